//! Sentences for facts, and biographies put together from them.

use super::lists::lists;
use super::names::Name;
use super::{Document, Span};
use crate::error::{Error, Result};

/// Which sentences state the facts.
///
/// A template is a sentence with `{value}` for the fact and, before it, the person: `{Who}` or `{who}` (name, or
/// pronoun from the second sentence on), `{Whose}` or `{whose}` (possessive). `{he}`, `{his}` and `{him}` are
/// always pronouns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Templates {
    /// The paper's five sentences.
    #[default]
    Paper,
    /// Fifteen sentences a field, one drawn for each fact (bioS "multi" of Allen-Zhu and Li 2023).
    Varied,
    /// Field and sentence; several of a field are drawn from.
    Own(Vec<(String, String)>),
}

const PLACES: [&str; 8] = ["{Who}", "{who}", "{Whose}", "{whose}", "{he}", "{his}", "{him}", "{value}"];

impl Templates {
    /// The sentences of `field`.
    ///
    /// # Errors
    /// [`Error::Option`] when there are none or one of them breaks the rules above.
    pub(super) fn of(&self, field: &str) -> Result<Vec<String>> {
        let built_in = || lists().templates.iter().filter(|(f, _)| *f == field).map(|(_, t)| t.to_string());
        let found: Vec<String> = match self {
            Templates::Paper => built_in().take(1).collect(),
            Templates::Varied => built_in().collect(),
            Templates::Own(own) => own.iter().filter(|(f, _)| f == field).map(|(_, t)| t.clone()).collect(),
        };
        if found.is_empty() {
            return Err(Error::option("templates", field, "every field needs at least one sentence"));
        }
        for template in &found {
            check(template)?;
        }
        Ok(found)
    }
}

fn check(template: &str) -> Result<()> {
    let refuse = |expected: &str| Err(Error::option("templates", template, expected));
    let mut rest = template;
    let (mut person, mut value) = (false, false);
    while let Some(at) = rest.find(['{', '}']) {
        let Some(place) = PLACES.iter().find(|p| rest[at..].starts_with(**p)) else {
            return refuse(&format!("known places are {}", PLACES.join(", ")));
        };
        match *place {
            "{value}" if value => return refuse("{value} may stand once"),
            "{value}" if !person => return refuse("the person, such as {Who}, must stand before {value}"),
            "{value}" => value = true,
            "{Who}" | "{who}" | "{Whose}" | "{whose}" => person = true,
            _ => {}
        }
        rest = &rest[at + place.len()..];
    }
    if value { Ok(()) } else { refuse("a sentence must hold {value}") }
}

/// Puts sentences together, counting characters as it goes.
pub(super) struct Writer<'a> {
    name: &'a Name,
    /// Names in place of pronouns throughout.
    full_name: bool,
    document: Document,
    length: usize,
}

impl<'a> Writer<'a> {
    pub(super) fn new(id: String, name: &'a Name, full_name: bool) -> Self {
        let document = Document::new(id, "", Vec::new());
        Writer { name, full_name, document, length: 0 }
    }

    fn push(&mut self, text: &str) {
        self.document.text.push_str(text);
        self.length += text.chars().count();
    }

    fn mark(&mut self, field: &str, text: &str) {
        let start = self.length;
        self.push(text);
        self.document.spans.push(Span { field: field.into(), start, end: self.length });
    }

    /// Appends one sentence, which has passed [`check`].
    pub(super) fn sentence(&mut self, template: &str, field: &str, value: &str) {
        let named = self.full_name || self.document.text.is_empty();
        if !self.document.text.is_empty() {
            self.push(" ");
        }
        let name = self.name;
        let pronoun = |she: &'static str, he: &'static str| if name.woman { she } else { he };
        let mut rest = template;
        while let Some(at) = rest.find('{') {
            self.push(&rest[..at]);
            let end = rest[at..].find('}').map_or(rest.len(), |e| at + e + 1);
            match &rest[at..end] {
                "{value}" => self.mark(field, value),
                "{Who}" | "{who}" if named => self.mark("name", &name.full),
                "{Whose}" | "{whose}" if named => {
                    self.mark("name", &name.full);
                    self.push("'s");
                }
                "{Who}" => self.push(pronoun("She", "He")),
                "{Whose}" => self.push(pronoun("Her", "His")),
                "{who}" | "{he}" => self.push(pronoun("she", "he")),
                "{whose}" | "{his}" => self.push(pronoun("her", "his")),
                "{him}" => self.push(pronoun("her", "him")),
                other => self.push(other),
            }
            rest = &rest[end..];
        }
        self.push(rest);
    }

    pub(super) fn finish(self) -> Document {
        self.document
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::FIELDS;

    #[test]
    fn every_sentence_of_the_lists_passes() {
        for field in FIELDS {
            assert_eq!(Templates::Varied.of(field).unwrap().len(), 15);
            assert_eq!(Templates::Paper.of(field).unwrap().len(), 1);
        }
    }

    #[test]
    fn bad_sentences_are_refused() {
        for (template, words) in [
            ("{Who} was here.", "must hold {value}"),
            ("On {value} {who} was born.", "before {value}"),
            ("{Who} {value} {value}", "once"),
            ("{Name} was born on {value}.", "known places"),
            ("{Who} } {value}", "known places"),
        ] {
            let own = Templates::Own(vec![("date".into(), template.into())]);
            let message = own.of("date").unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
        assert!(Templates::Own(Vec::new()).of("date").is_err());
    }

    #[test]
    fn names_and_pronouns_take_their_forms() {
        let woman = Name { full: "Ana Ruß".into(), woman: true };
        let mut w = Writer::new("x".into(), &woman, false);
        w.sentence("The home of {who} is {value}.", "city", "Łódź, Poland");
        w.sentence("{Whose} boss gave {him} {his} job at {value} when {he} came.", "company", "Ö & Co");
        let d = w.finish();
        assert_eq!(
            d.to_tagged().unwrap(),
            "The home of <name>Ana Ruß</name> is <city>Łódź, Poland</city>. Her boss gave her her job at \
             <company>Ö & Co</company> when she came."
        );
        let mut w = Writer::new("x".into(), &woman, true);
        w.sentence("{Who} is {value}.", "a", "1");
        w.sentence("{Whose} job is {value}.", "b", "2");
        assert_eq!(w.finish().text, "Ana Ruß is 1. Ana Ruß's job is 2.");
    }
}

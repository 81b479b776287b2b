//! Text with facts marked inline, `<name>Ada Osei</name> was born on <date>May 1, 1980</date>.`, to plain
//! text with [`Span`]s and back.
//!
//! A tag is `<` or `</`, a letter, then letters, digits, `_` or `-`, then `>`. A `<` before anything but a
//! letter or `/` and a letter is an ordinary character, so `3 < 4` needs no care. Tags do not nest.

use super::{Document, Span};
use crate::error::{Error, Result};

/// A tag fault: the character of the tagged text at which it stands, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) message: String,
}

/// Plain text and spans of a tagged text.
pub(super) fn parse(tagged: &str) -> Result<(String, Vec<Span>), Fault> {
    let mut text = String::with_capacity(tagged.len());
    let mut written = 0; // characters in `text`
    let mut spans = Vec::new();
    let mut open: Option<(usize, Span)> = None;
    let mut at = 0; // characters read
    let mut rest = tagged;
    while let Some(c) = rest.chars().next() {
        let Some(tag) = starts_tag(rest) else {
            text.push(c);
            written += 1;
            at += 1;
            rest = &rest[c.len_utf8()..];
            continue;
        };
        let fault = |message: String| Fault { at, message };
        let name_length = tag.name.len();
        let after = &rest[tag.lead + name_length..];
        if !after.starts_with('>') {
            let seen: String = rest.chars().take(20).collect();
            return Err(fault(format!(
                "`{seen}` begins a tag that `>` does not end; write `<` apart from the next word if no tag is meant"
            )));
        }
        match (&open, tag.closing) {
            (None, false) => {
                open = Some((at, Span { field: tag.name.to_string(), start: written, end: written }))
            }
            (Some((from, outer)), false) => {
                return Err(fault(format!(
                    "<{}> inside <{}> (opened at character {from}); tags do not nest",
                    tag.name, outer.field
                )));
            }
            (None, true) => return Err(fault(format!("</{0}> without <{0}> before it", tag.name))),
            (Some((from, outer)), true) if outer.field != tag.name => {
                return Err(fault(format!(
                    "</{}> where </{}> is expected (opened at character {from})",
                    tag.name, outer.field
                )));
            }
            (Some((from, outer)), true) if outer.start == written => {
                return Err(Fault {
                    at: *from,
                    message: format!("<{0}></{0}> marks nothing; remove it or fill it", tag.name),
                });
            }
            (Some(_), true) => {
                if let Some((_, span)) = open.take() {
                    spans.push(Span { end: written, ..span });
                }
            }
        }
        at += tag.lead + name_length + 1; // tag names are ASCII: characters are bytes
        rest = &after[1..];
    }
    match open {
        Some((at, span)) => {
            Err(Fault { at, message: format!("<{0}> is never closed by </{0}>", span.field) })
        }
        None => Ok((text, spans)),
    }
}

struct Tag<'a> {
    closing: bool,
    /// Bytes of `<` or `</`.
    lead: usize,
    name: &'a str,
}

fn starts_tag(rest: &str) -> Option<Tag<'_>> {
    let inside = rest.strip_prefix('<')?;
    let (closing, inside) = match inside.strip_prefix('/') {
        Some(inside) => (true, inside),
        None => (false, inside),
    };
    if !inside.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let end = inside.find(|c: char| !is_name(c)).unwrap_or(inside.len());
    Some(Tag { closing, lead: if closing { 2 } else { 1 }, name: &inside[..end] })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

/// True when `field` can stand in a tag.
pub(super) fn is_field(field: &str) -> bool {
    field.starts_with(|c: char| c.is_ascii_alphabetic()) && field.chars().all(is_name)
}

impl Document {
    /// Reads inline tags (paper, section 2).
    ///
    /// ```
    /// use cluescope::corpus::Document;
    /// let d = Document::from_tagged("ada", "<name>Ada Osei</name> was born on <date>May 1, 1980</date>.")?;
    /// assert_eq!(d.text, "Ada Osei was born on May 1, 1980.");
    /// assert_eq!(d.fact("date"), Some("May 1, 1980"));
    /// assert_eq!(d.to_tagged()?, "<name>Ada Osei</name> was born on <date>May 1, 1980</date>.");
    /// # Ok::<(), cluescope::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Format`] with the character at which a tag is broken, nested, empty, closed without being
    /// opened or opened without being closed.
    pub fn from_tagged(id: impl Into<String>, tagged: &str) -> Result<Self> {
        let id = id.into();
        match parse(tagged) {
            Ok((text, spans)) => Ok(Document::new(id, text, spans)),
            Err(fault) => Err(Error::format(
                format!("document {id:?}"),
                format!("character {}", fault.at),
                fault.message,
            )),
        }
    }

    /// Writes the spans as inline tags.
    ///
    /// # Errors
    /// [`Error::Format`] when tags cannot say it: overlapping or empty spans, spans past the end, field names
    /// that make no tag, or text that itself looks like a tag. JSONL holds all of these but the faulty spans.
    pub fn to_tagged(&self) -> Result<String> {
        let fault = |place: String, message: String| {
            Error::format(format!("document {:?}", self.id), place, message + "; .jsonl can hold it")
        };
        let mut out = String::with_capacity(self.text.len() + 32 * self.spans.len());
        let mut spans = self.spans.iter().peekable();
        let mut open: Option<&Span> = None;
        let bytes = self.text.char_indices().map(|(byte, _)| byte).chain([self.text.len()]);
        for (at, byte) in bytes.enumerate() {
            if let Some(span) = open.filter(|s| s.end == at) {
                out.push_str(&format!("</{}>", span.field));
                open = None;
            }
            if let Some(span) = spans.next_if(|s| s.start <= at) {
                if open.is_some() || span.start < at || span.end <= span.start {
                    let message = format!("span {}..{} overlaps another or is empty", span.start, span.end);
                    return Err(fault(format!("field {}", span.field), message));
                }
                if !is_field(&span.field) {
                    let message = format!("{:?} is no tag name (ASCII letters, digits, _ and -)", span.field);
                    return Err(fault(format!("character {at}"), message));
                }
                out.push_str(&format!("<{}>", span.field));
                open = Some(span);
            }
            out.extend(self.text[byte..].chars().next());
        }
        if let Some(span) = open.or(spans.next()) {
            let message = format!("span {}..{} ends after the text", span.start, span.end);
            return Err(fault(format!("field {}", span.field), message));
        }
        // A `<` of the text may or may not read as a tag, depending on the tags around it: ask the reader.
        let same = parse(&out).is_ok_and(|(text, spans)| text == self.text && spans == self.spans);
        if !same {
            let looks = self
                .text
                .char_indices()
                .enumerate()
                .find(|(_, (b, _))| starts_tag(&self.text[*b..]).is_some());
            let (at, seen): (usize, String) = looks
                .map_or((0, String::new()), |(at, (b, _))| (at, self.text[b..].chars().take(12).collect()));
            return Err(fault(format!("character {at}"), format!("the text `{seen}` looks like a tag")));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_their_place() {
        let cases = [
            ("ä <name>Bo", 2, "never closed"),
            ("a <name Bo</name>", 2, "does not end"),
            ("a <b>x <c>y</c></b>", 7, "do not nest"),
            ("a</name>", 1, "without <name>"),
            ("<a>x</b>", 4, "</a> is expected"),
            ("é<a></a>", 1, "marks nothing"),
            ("<name", 0, "does not end"),
        ];
        for (tagged, at, words) in cases {
            let fault = parse(tagged).unwrap_err();
            assert_eq!(fault.at, at, "{tagged}");
            assert!(fault.message.contains(words), "{tagged}: {}", fault.message);
        }
    }

    #[test]
    fn a_lone_sign_is_text() {
        for text in ["3 < 4 > 2", "<3", "a <", "</ b", "<>", "日本 <— →"] {
            let (plain, spans) = parse(text).unwrap();
            assert_eq!((plain.as_str(), spans.len()), (text, 0));
            let d = Document::new("x", plain, spans);
            assert_eq!(d.to_tagged().unwrap(), text);
        }
    }

    #[test]
    fn what_tags_cannot_say_is_refused() {
        let doc = |text: &str, spans: &[(&str, usize, usize)]| {
            let span = |&(f, start, end): &(&str, usize, usize)| Span { field: f.into(), start, end };
            Document::new("x", text, spans.iter().map(span).collect())
        };
        for (d, words) in [
            (doc("abcdef", &[("a", 0, 3), ("b", 2, 4)]), "overlaps"),
            (doc("abcdef", &[("a", 2, 2)]), "empty"),
            (doc("abc", &[("a", 1, 9)]), "after the text"),
            (doc("abc", &[("a", 7, 9)]), "after the text"),
            (doc("abc", &[("a b", 0, 2)]), "no tag name"),
            (doc("see <b>", &[]), "looks like a tag"),
        ] {
            let message = d.to_tagged().unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
        // Touching spans are fine.
        let d = doc("abcd", &[("a", 0, 2), ("b", 2, 4)]);
        assert_eq!(d.to_tagged().unwrap(), "<a>ab</a><b>cd</b>");
    }
}

//! The questions asked about a biography, one a field.

use std::collections::HashSet;
use std::path::Path;

use super::{Biographies, Corpus, Document, Question, csv_file};
use crate::error::{Error, Result};

/// The fields of a biography in the order of the paper's template.
pub const FIELDS: [&str; 5] = ["date", "city", "university", "major", "company"];

/// How the questions are worded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Wording {
    /// The paper's five questions.
    #[default]
    Paper,
    /// The same questions in other words; the date's is the one the paper's text names. No question repeats a
    /// verb of the paper's sentences.
    Reworded,
    /// Field and question, with `{name}` where the person stands.
    Own(Vec<(String, String)>),
}

const PAPER: [(&str, &str); 5] = [
    ("date", "What is the birth date of {name}?"),
    ("city", "What is the birth city of {name}?"),
    ("major", "Which major did {name} study?"),
    ("university", "Which university did {name} attend?"),
    ("company", "Which company did {name} work for?"),
];

const REWORDED: [(&str, &str); 5] = [
    ("date", "When was {name} born?"),
    ("city", "In which city did {name} grow up?"),
    ("major", "What subject did {name} take a degree in?"),
    ("university", "Where did {name} go to university?"),
    ("company", "Who was the employer of {name}?"),
];

impl Wording {
    /// Reads a CSV with the columns `field` and `prompt`; a last line `Answer:` of a prompt is taken off.
    ///
    /// # Errors
    /// An unreadable file, a missing column, or a prompt without `{name}`, with its line.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Wording::Own(csv_file::prompts(path.as_ref())?))
    }

    /// Field and question template, in asking order.
    pub fn templates(&self) -> Vec<(&str, &str)> {
        match self {
            Wording::Paper => PAPER.to_vec(),
            Wording::Reworded => REWORDED.to_vec(),
            Wording::Own(list) => list.iter().map(|(f, q)| (f.as_str(), q.as_str())).collect(),
        }
    }

    /// One question for each field of each person, about the first document that tells it; documents without a `name`
    /// get none.
    pub fn ask(&self, documents: &[Document]) -> Vec<Question> {
        let templates = self.templates();
        let mut questions = Vec::new();
        let mut asked = HashSet::new();
        for document in documents {
            let Some(name) = document.fact("name") else { continue };
            for (field, template) in &templates {
                let Some(answer) = document.fact(field) else { continue };
                if !asked.insert((name, *field)) {
                    continue;
                }
                questions.push(Question {
                    document: document.id.clone(),
                    field: (*field).to_string(),
                    question: template.replace("{name}", name),
                    answers: vec![answer.to_string()],
                    distance: document.distance(field),
                });
            }
        }
        questions
    }
}

impl Document {
    /// Characters between the end of the nearest name before the first fact `field` and that fact's start
    /// (paper, Figure 1); `None` when there is no such fact or no name before it.
    pub fn distance(&self, field: &str) -> Option<usize> {
        let fact = self.spans.iter().find(|s| s.field == field)?;
        let before = self.spans.iter().filter(|s| s.field == "name" && s.end <= fact.start);
        before.map(|name| fact.start - name.end).min()
    }
}

impl Corpus {
    /// Replaces the questions: every person (`name`) is asked about in this wording, once a fact.
    pub fn ask(mut self, wording: &Wording) -> Self {
        self.questions = wording.ask(&self.documents);
        self
    }

    /// Sets the last `texts` documents aside, and others about the same people or things with them: their questions become
    /// few-shot examples, and nothing is trained on or asked about them.
    ///
    /// # Errors
    /// [`Error::Option`] when no document would be left.
    pub fn set_examples_aside(mut self, texts: usize) -> Result<Self> {
        let left = self.documents.len().checked_sub(texts).filter(|left| *left > 0);
        let Some(left) = left else {
            let expected = format!("fewer than the {} texts of the corpus", self.documents.len());
            return Err(Error::option("examples", texts, expected));
        };
        let subjects = self.subjects();
        let last: HashSet<&str> = subjects[left..].iter().copied().collect();
        let of_last = subjects.iter().map(|subject| last.contains(subject));
        let aside: HashSet<String> =
            self.documents.iter().zip(of_last).filter(|(_, of)| *of).map(|(d, _)| d.id.clone()).collect();
        self.documents.retain(|d| !aside.contains(&d.id));
        if self.documents.is_empty() {
            let expected = "fewer: the other texts are about the same people or things";
            return Err(Error::option("examples", texts, expected));
        }
        let (examples, questions) = self.questions.into_iter().partition(|q| aside.contains(&q.document));
        self.questions = questions;
        self.examples = examples;
        Ok(self)
    }

    /// Gives fields that have no worked examples those of this package, which are about what everybody knows: ten
    /// real people for the fields of a biography, three paragraphs for the questions of a SQuAD file.
    ///
    /// # Errors
    /// As [`Corpus::paragraphs`].
    pub fn with_known_examples(mut self) -> Result<Self> {
        let has: HashSet<String> = self.examples.iter().map(|e| e.field.clone()).collect();
        let asked: HashSet<&str> = self.questions.iter().map(|q| q.field.as_str()).collect();
        let known = Biographies::real_people().questions.into_iter().chain(Corpus::paragraphs()?.examples);
        self.examples.extend(known.filter(|e| asked.contains(e.field.as_str()) && !has.contains(&e.field)));
        Ok(self)
    }

    /// Takes the questions of `other` as few-shot examples.
    pub fn with_examples_from(mut self, other: &Corpus) -> Self {
        self.examples = other.questions.clone();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_set_aside_are_neither_trained_on_nor_asked_about() {
        let all = Biographies::new(4).generate().unwrap();
        let some = all.clone().set_examples_aside(1).unwrap();
        assert_eq!((some.documents.len(), some.questions.len(), some.examples.len()), (3, 15, 5));
        assert!(some.examples.iter().all(|e| e.document == all.documents[3].id));
        assert!(
            all.set_examples_aside(4).unwrap_err().to_string().starts_with("examples = 4: fewer than the 4")
        );
    }

    #[test]
    fn a_person_is_set_aside_whole() {
        let mut all = Biographies::new(4).generate().unwrap();
        let mut second = all.documents[3].clone();
        second.id = "again".into();
        all.documents.insert(0, second);
        let some = all.clone().set_examples_aside(1).unwrap();
        assert_eq!((some.documents.len(), some.questions.len(), some.examples.len()), (3, 15, 5));
        assert_eq!(Corpus::paragraphs().unwrap().first_asked().iter().find(|(id, first)| id != first), None);
        let message = all.set_examples_aside(4).unwrap_err().to_string();
        assert!(message.starts_with("examples = 4: fewer: the other texts"), "{message}");
    }

    #[test]
    fn distance_is_from_the_nearest_name_before() {
        let d = Document::from_tagged(
            "x",
            "<date>May 1</date>: <name>Bo</name> is ill. <name>Bo</name> saw <city>Rome</city>.",
        )
        .unwrap();
        assert_eq!(d.distance("city"), Some(5));
        assert_eq!(d.distance("date"), None);
        assert_eq!(d.distance("major"), None);
        let questions = Wording::Paper.ask(&[d]);
        assert_eq!(questions.len(), 2);
        assert_eq!(questions[1].question, "What is the birth city of Bo?");
    }
}

//! Texts with marked facts, and the questions asked about them.
//!
//! A [`Document`] is plain text plus [`Span`]s that name its facts (paper, section 2: `name`, `date`,
//! `city`, `university`, `major`, `company`); a [`Corpus`] adds questions and few-shot examples.
//! All positions count Unicode characters of the text without tags.
//!
//! [`Biographies`] makes people; [`Corpus::read`] takes the user's own files.
//!
//! ```
//! use cluescope::corpus::Biographies;
//! let people = Biographies::new(3).seed(1).generate()?;
//! assert_eq!((people.documents.len(), people.questions.len(), people.examples.len()), (3, 15, 50));
//! # Ok::<(), cluescope::Error>(())
//! ```

mod biographies;
mod csv_file;
mod io;
mod jsonl;
mod lists;
mod names;
mod paragraphs;
mod parquet;
mod questions;
mod squad;
mod tagged;
mod templates;

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

pub use biographies::Biographies;
pub use csv_file::CsvStyle;
pub use questions::{FIELDS, Wording};
pub use templates::Templates;

use crate::error::{Error, Result};

/// A fact's place in a text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Span {
    /// What kind of fact, such as `company`.
    pub field: String,
    /// First character.
    pub start: usize,
    /// One past the last character.
    pub end: usize,
}

impl Span {
    /// Whether a token that covers the characters `start..end` has one of the fact's. A start token covers none.
    pub fn overlaps(&self, (start, end): (usize, usize)) -> bool {
        start < end && start < self.end && self.start < end
    }
}

/// What a text is a version of. Versions of one text (its copies, several biographies of one person) never share a
/// window when texts are packed for training.
///
/// In files it is `version_of`: absent for a text of its own, an id, or null where nothing is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "Option<String>", into = "Option<String>")]
pub enum VersionOf {
    /// Nothing but itself.
    #[default]
    Itself,
    /// The text, or the person, of this id.
    Of(String),
    /// Any other of the corpus, for all that is known: rows of a CSV file without ids.
    Unknown,
}

impl VersionOf {
    fn is_itself(&self) -> bool {
        *self == VersionOf::Itself
    }
}

impl From<Option<String>> for VersionOf {
    fn from(id: Option<String>) -> Self {
        id.map_or(VersionOf::Unknown, VersionOf::Of)
    }
}

impl From<VersionOf> for Option<String> {
    fn from(version_of: VersionOf) -> Self {
        match version_of {
            VersionOf::Of(id) => Some(id),
            VersionOf::Itself | VersionOf::Unknown => None,
        }
    }
}

/// One text with its facts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Document {
    /// Unique within a corpus; the person for biographies.
    pub id: String,
    /// The text, without tags.
    pub text: String,
    /// The facts, in order of appearance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    /// The text or person it is a version of.
    #[serde(default, skip_serializing_if = "VersionOf::is_itself")]
    pub version_of: VersionOf,
}

/// A question with its right answers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Question {
    /// [`Document::id`] of the text that answers it; answers about one person or thing belong to one cluster.
    pub document: String,
    /// The kind of fact asked for.
    pub field: String,
    /// The question, without `Answer:`.
    pub question: String,
    /// Accepted answers; the first is the canonical one.
    pub answers: Vec<String>,
    /// Characters between the end of the name and the start of the answer in the text, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<usize>,
}

/// Texts, the questions about them, and worked examples for few-shot prompts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Corpus {
    /// What is trained on.
    pub documents: Vec<Document>,
    /// What is asked afterwards.
    #[serde(default)]
    pub questions: Vec<Question>,
    /// Answered questions about other, well-known people.
    #[serde(default)]
    pub examples: Vec<Question>,
}

impl Corpus {
    /// The document `id`, its augmented copies (`id#1`, `id#2`, …) and the questions about it.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no such document.
    ///
    /// ```
    /// use cluescope::{augment::Augment, corpus::Biographies};
    /// let people = Biographies::new(5).seed(1).generate()?;
    /// let copied = Augment::plain().copies(2).apply(&people)?;
    /// let one = copied.about(&people.documents[3].id)?;
    /// assert_eq!((one.documents.len(), one.questions.len()), (3, 5));
    /// # Ok::<(), cluescope::Error>(())
    /// ```
    pub fn about(&self, id: &str) -> Result<Corpus> {
        let copy =
            |of: &str| of.strip_prefix(id).is_some_and(|rest| rest.is_empty() || rest.starts_with('#'));
        let documents: Vec<Document> = self.documents.iter().filter(|d| copy(&d.id)).cloned().collect();
        if documents.is_empty() {
            return Err(Error::option(
                "id",
                id,
                format!("the id of one of the {} texts", self.documents.len()),
            ));
        }
        let questions = self.questions.iter().filter(|q| q.document == id).cloned().collect();
        Ok(Corpus { documents, questions, examples: self.examples.clone() })
    }
}

/// The kinds of fact that any of `documents` marks.
pub fn marked_fields(documents: &[Document]) -> BTreeSet<&str> {
    documents.iter().flat_map(|d| &d.spans).map(|span| span.field.as_str()).collect()
}

impl Document {
    /// A text of its own.
    pub fn new(id: impl Into<String>, text: impl Into<String>, spans: Vec<Span>) -> Self {
        Document { id: id.into(), text: text.into(), spans, version_of: VersionOf::Itself }
    }

    /// Version number `copy` of this text, under the id `id#copy`.
    pub(crate) fn version(&self, copy: usize, text: String, spans: Vec<Span>) -> Self {
        let version_of = match self.version_of() {
            Some(id) => VersionOf::Of(id.into()),
            None => VersionOf::Unknown,
        };
        Document { id: format!("{}#{copy}", self.id), text, spans, version_of }
    }

    /// What all versions of one text have in common: the id of what it is a version of; `None` when that is unknown.
    pub fn version_of(&self) -> Option<&str> {
        match &self.version_of {
            VersionOf::Itself => Some(&self.id),
            VersionOf::Of(id) => Some(id),
            VersionOf::Unknown => None,
        }
    }

    /// The text of `span`; empty where the span lies outside the text.
    pub fn slice(&self, span: &Span) -> &str {
        let byte = |at: usize| self.text.char_indices().map(|(b, _)| b).chain([self.text.len()]).nth(at);
        match (byte(span.start), byte(span.end)) {
            (Some(start), Some(end)) if start <= end => &self.text[start..end],
            _ => "",
        }
    }

    /// The text of the first fact of the kind `field`.
    pub fn fact(&self, field: &str) -> Option<&str> {
        self.spans.iter().find(|s| s.field == field).map(|s| self.slice(s))
    }
}

impl Corpus {
    /// What each document is about, in their order: the person, by name, or what it is a version of. Several
    /// biographies of one person are about one thing.
    pub fn subjects<'a>(&'a self) -> Vec<&'a str> {
        let names: HashMap<&str, &str> =
            self.documents.iter().filter_map(|d| Some((d.id.as_str(), d.fact("name")?))).collect();
        let subject = |d: &'a Document| -> &'a str {
            let root = d.version_of().unwrap_or(&d.id);
            names.get(root).copied().or(d.fact("name")).unwrap_or(root)
        };
        self.documents.iter().map(subject).collect()
    }

    /// By id, each document that is asked about or taken as an example, and the first such about the same person or thing: their
    /// answers are one cluster, and none is an example for another.
    pub(crate) fn first_asked(&self) -> HashMap<&str, &str> {
        let subjects: HashMap<&str, &str> =
            self.documents.iter().map(|d| d.id.as_str()).zip(self.subjects()).collect();
        let mut first: HashMap<&str, &str> = HashMap::new();
        let asked = self.questions.iter().chain(&self.examples).map(|question| question.document.as_str());
        asked.map(|id| (id, *first.entry(subjects.get(id).copied().unwrap_or(id)).or_insert(id))).collect()
    }

    /// The first `count` documents with the questions about them, and the rest; both keep all examples.
    ///
    /// ```
    /// use cluescope::corpus::Biographies;
    /// let (two, rest) = Biographies::new(5).seed(1).generate()?.split_at(2);
    /// assert_eq!((two.documents.len(), two.questions.len()), (2, 10));
    /// assert_eq!((rest.documents.len(), rest.questions.len()), (3, 15));
    /// # Ok::<(), cluescope::Error>(())
    /// ```
    pub fn split_at(mut self, count: usize) -> (Corpus, Corpus) {
        let documents = self.documents.split_off(count.min(self.documents.len()));
        let rest: HashSet<&str> = documents.iter().map(|d| d.id.as_str()).collect();
        let (later, first) = self.questions.into_iter().partition(|q| rest.contains(q.document.as_str()));
        let examples = self.examples.clone();
        let rest = Corpus { documents, questions: later, examples };
        (Corpus { questions: first, ..self }, rest)
    }
}

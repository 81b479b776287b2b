//! SQuAD-style JSON, versions 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): paragraphs and their questions.
//!
//! A paragraph becomes a document `title#k`; every answerable question is kept, with its different answers.
//! Questions marked `is_impossible` or without answers (version 2.0) have nothing to score and are left out.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Corpus, Document, Question, Span};
use crate::error::{Error, Result};

/// The kind of fact of every question from a SQuAD file.
pub(super) const FIELD: &str = "answer";

#[derive(Serialize, Deserialize)]
struct File {
    #[serde(default = "version")]
    version: String,
    data: Vec<Article>,
}

#[derive(Serialize, Deserialize)]
struct Article {
    #[serde(default)]
    title: String,
    paragraphs: Vec<Paragraph>,
}

#[derive(Serialize, Deserialize)]
struct Paragraph {
    context: String,
    #[serde(default)]
    qas: Vec<Asked>,
}

#[derive(Serialize, Deserialize)]
struct Asked {
    #[serde(default)]
    id: String,
    question: String,
    #[serde(default)]
    answers: Vec<Answer>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_impossible: bool,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    text: String,
    #[serde(default)]
    answer_start: Option<usize>,
}

fn version() -> String {
    "1.1".into()
}

pub(super) fn parse(path: &Path, content: &str) -> Result<Corpus> {
    let shape = "expected SQuAD: {\"data\": [{\"title\", \"paragraphs\": [{\"context\", \"qas\": [{\"question\", \
                 \"answers\": [{\"text\", \"answer_start\"}]}]}]}]}; other texts go in .jsonl";
    let file: File = serde_json::from_str(content.trim_start_matches('\u{feff}')).map_err(|e| {
        Error::format(path, format!("line {}, column {}", e.line(), e.column()), format!("{e}; {shape}"))
    })?;
    let mut corpus = Corpus::default();
    let mut paragraphs = std::collections::BTreeMap::<String, usize>::new();
    for article in file.data {
        let title = if article.title.is_empty() { "untitled".to_string() } else { article.title };
        for paragraph in article.paragraphs {
            // Counted by title over the whole file: some files repeat an article.
            let number = paragraphs.entry(title.clone()).or_default();
            *number += 1;
            let id = format!("{title}#{number}");
            let mut spans: Vec<Span> = Vec::new();
            for asked in paragraph.qas {
                let mut answers: Vec<String> = Vec::new();
                for answer in &asked.answers {
                    let text = answer.text.trim();
                    if text.is_empty() || asked.is_impossible {
                        continue;
                    }
                    if !answers.iter().any(|a| a == text) {
                        answers.push(text.to_string());
                    }
                    let Some(start) = answer.answer_start else { continue };
                    let length = answer.text.chars().count();
                    // Some published files count bytes or UTF-16 units: the answer is kept, its place is not.
                    if paragraph.context.chars().skip(start).take(length).eq(answer.text.chars()) {
                        let span = Span { field: FIELD.into(), start, end: start + length };
                        if !spans.contains(&span) {
                            spans.push(span);
                        }
                    }
                }
                if !answers.is_empty() {
                    corpus.questions.push(Question {
                        document: id.clone(),
                        field: FIELD.into(),
                        question: asked.question.trim().to_string(),
                        answers,
                        distance: None,
                    });
                }
            }
            spans.sort_by_key(|s| (s.start, s.end));
            corpus.documents.push(Document::new(id, paragraph.context, spans));
        }
    }
    Ok(corpus)
}

impl Corpus {
    /// The paragraphs of this project, `datasets/paragraphs.json`: 33 short texts with 103 questions that need a
    /// reference resolved across sentences ("she", "the second", "the former"). The nine questions of its last three
    /// paragraphs, which tell what everybody knows, are the few-shot examples.
    ///
    /// # Errors
    /// None but a fault of the build: the file is compiled in.
    pub fn paragraphs() -> Result<Corpus> {
        const NAME: &str = "datasets/paragraphs.json";
        parse(Path::new(NAME), include_str!("../../datasets/paragraphs.json"))?.set_examples_aside(3)
    }
}

/// Version 1.1, one article a document; examples have no place in this format and are refused.
pub(super) fn format(corpus: &Corpus) -> Result<String> {
    if !corpus.examples.is_empty() {
        let message = "few-shot examples have no place in SQuAD JSON; write .jsonl or remove them";
        return Err(Error::format("SQuAD JSON", "", message));
    }
    let mut data: Vec<Article> = Vec::new();
    let mut place = std::collections::HashMap::new();
    let starts_article =
        |id: &str| id.rsplit_once('#').map_or(id.to_string(), |(title, _)| title.to_string());
    for document in &corpus.documents {
        let title = starts_article(&document.id);
        if data.last().is_none_or(|a| a.title != title) {
            data.push(Article { title, paragraphs: Vec::new() });
        }
        let article = data.len() - 1;
        let paragraphs = &mut data[article].paragraphs;
        place.insert(document.id.as_str(), (article, paragraphs.len(), document));
        paragraphs.push(Paragraph { context: document.text.clone(), qas: Vec::new() });
    }
    for (number, question) in corpus.questions.iter().enumerate() {
        let Some(&(article, paragraph, document)) = place.get(question.document.as_str()) else {
            let message = format!("question {}: no document {:?}", number + 1, question.document);
            return Err(Error::format("SQuAD JSON", "", message));
        };
        let find = |answer: &str| {
            let marked = document.spans.iter().find(|s| document.slice(s) == answer).map(|s| s.start);
            marked.or_else(|| document.text.find(answer).map(|b| document.text[..b].chars().count()))
        };
        data[article].paragraphs[paragraph].qas.push(Asked {
            id: format!("{}", number + 1),
            question: question.question.clone(),
            answers: question
                .answers
                .iter()
                .map(|a| Answer { text: a.clone(), answer_start: find(a) })
                .collect(),
            is_impossible: false,
        });
    }
    let file = File { version: version(), data };
    serde_json::to_string_pretty(&file).map(|s| s + "\n").map_err(|e| Error::format("SQuAD JSON", "", e))
}

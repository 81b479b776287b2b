//! JSONL: one object a line, a document (`text`) or a question (`question`).
//!
//! ```text
//! {"id": "ada", "text": "Ada Osei was born …", "spans": [{"field": "name", "start": 0, "end": 8}]}
//! {"document": "ada", "field": "date", "question": "When …?", "answers": ["May 1, 1980"], "distance": 13}
//! {"document": "…", "field": "…", "question": "…", "answers": ["…"], "example": true}
//! ```
//! `id`, `spans`, `distance` and `example` may be left out; other keys are ignored. A copy or another version of a text
//! names that text's id as `version_of`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Corpus, Document, Question, Span, VersionOf};
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

#[derive(Deserialize)]
struct DocumentLine {
    id: Option<Id>,
    text: String,
    #[serde(default)]
    spans: Vec<Span>,
    #[serde(default)]
    version_of: VersionOf,
}

#[derive(Serialize, Deserialize)]
struct QuestionLine {
    #[serde(flatten)]
    question: Question,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    example: bool,
}

pub(super) fn parse(path: &Path, content: &str) -> Result<Corpus> {
    let mut corpus = Corpus::default();
    for (index, line) in content.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let fault = |message: String| Error::format(path, format!("line {}", index + 1), message);
        let value: serde_json::Value =
            serde_json::from_str(line).map_err(|e| fault(format!("not JSON: {e}; one object a line")))?;
        let bad = |e: serde_json::Error| fault(e.to_string());
        if value.get("question").is_some() {
            let line: QuestionLine = serde_json::from_value(value).map_err(bad)?;
            if line.question.answers.is_empty() {
                return Err(fault("`answers` is empty; a question needs at least one".into()));
            }
            if line.example {
                corpus.examples.push(line.question);
            } else {
                corpus.questions.push(line.question);
            }
        } else if value.get("text").is_some() {
            let line: DocumentLine = serde_json::from_value(value).map_err(bad)?;
            let id = match line.id {
                Some(Id::Text(id)) => id,
                Some(Id::Number(id)) => id.to_string(),
                None => format!("line {}", index + 1),
            };
            corpus.documents.push(Document {
                id,
                text: line.text,
                spans: line.spans,
                version_of: line.version_of,
            });
        } else {
            return Err(fault("neither `text` (a document) nor `question`".into()));
        }
    }
    Ok(corpus)
}

pub(super) fn format(corpus: &Corpus) -> Result<String> {
    let mut out = String::new();
    let mut push = |line: serde_json::Result<String>| match line {
        Ok(line) => {
            out.push_str(&line);
            out.push('\n');
            Ok(())
        }
        Err(error) => Err(Error::format("JSONL", "", error)),
    };
    for document in &corpus.documents {
        push(serde_json::to_string(document))?;
    }
    for (questions, example) in [(&corpus.questions, false), (&corpus.examples, true)] {
        for question in questions {
            push(serde_json::to_string(&QuestionLine { question: question.clone(), example }))?;
        }
    }
    Ok(out)
}

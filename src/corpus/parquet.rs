//! Parquet: one row a document or question.
//!
//! Columns: `kind` (`document`, `question`, `example`), `id` (of the document), `text`, `spans` (JSON), `version_of`
//! (an id, its own for a text that is no version of another, null where nothing is known), `field`, `question`, `answers` (JSON), `distance`. A file from elsewhere needs only a string column `text`.

use std::path::Path;

use polars::prelude::{
    Column, DataFrame, DataType, NamedFrom, ParquetReader, ParquetWriter, SerReader, Series, StringChunked,
};

use super::{Corpus, Document, Question, VersionOf};
use crate::error::{Error, Result};
use crate::files;

const DOCUMENT: &str = "document";
const QUESTION: &str = "question";
const EXAMPLE: &str = "example";

pub(super) fn read(path: &Path) -> Result<Corpus> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let frame = ParquetReader::new(file).finish().map_err(|e| Error::format(path, "", e))?;
    let strings = |name: &str| -> Result<Option<StringChunked>> {
        let Ok(column) = frame.column(name) else { return Ok(None) };
        // A column of nulls has no type of its own; numbers make good ids.
        let column = column.cast(&DataType::String)?;
        Ok(Some(column.str()?.clone()))
    };
    let names: Vec<&str> = frame.get_column_names().iter().map(|n| n.as_str()).collect();
    let wrong = |what: &str| {
        let message = format!("{what}; the columns are: {}", names.join(", "));
        Error::format(path, "", message)
    };
    let text = match frame.column("text").map(|c| c.dtype().clone()) {
        Ok(DataType::String | DataType::Null) => strings("text")?,
        Ok(other) => return Err(wrong(&format!("the column `text` holds {other}, not strings"))),
        Err(_) => None,
    };
    let text = text.ok_or_else(|| wrong("no column `text`"))?;
    let (kind, id, spans) = (strings("kind")?, strings("id")?, strings("spans")?);
    let version_of = strings("version_of")?;
    let (field, question, answers) = (strings("field")?, strings("question")?, strings("answers")?);
    let distance = match frame.column("distance") {
        Ok(column) => Some(column.cast(&DataType::UInt64)?.u64()?.clone()),
        Err(_) => None,
    };
    let mut corpus = Corpus::default();
    for row in 0..frame.height() {
        let get =
            |column: &Option<StringChunked>| column.as_ref().and_then(|c| c.get(row)).map(str::to_string);
        let fault = |message: String| Error::format(path, format!("row {}", row + 1), message);
        let json = |name: &str, e: serde_json::Error| fault(format!("column `{name}` is not JSON: {e}"));
        let kind = get(&kind).unwrap_or_else(|| DOCUMENT.into());
        match kind.as_str() {
            DOCUMENT => {
                let text = text.get(row).ok_or_else(|| fault("a document without `text`".into()))?;
                let spans = match get(&spans) {
                    Some(spans) => serde_json::from_str(&spans).map_err(|e| json("spans", e))?,
                    None => Vec::new(),
                };
                let id = get(&id).unwrap_or_else(|| format!("row {}", row + 1));
                let version_of = match get(&version_of) {
                    Some(of) if of == id => VersionOf::Itself,
                    None if version_of.is_none() => VersionOf::Itself,
                    of => VersionOf::from(of),
                };
                corpus.documents.push(Document { id, text: text.into(), spans, version_of });
            }
            QUESTION | EXAMPLE => {
                let need = |column, name: &str| {
                    get(column).ok_or_else(|| fault(format!("a {kind} without `{name}`")))
                };
                let answers: Vec<String> =
                    serde_json::from_str(&need(&answers, "answers")?).map_err(|e| json("answers", e))?;
                if answers.is_empty() {
                    return Err(fault("`answers` is empty; a question needs at least one".into()));
                }
                let question = Question {
                    document: need(&id, "id")?,
                    field: need(&field, "field")?,
                    question: need(&question, "question")?,
                    answers,
                    distance: distance.as_ref().and_then(|c| c.get(row)).map(|d| d as usize),
                };
                if kind == EXAMPLE {
                    corpus.examples.push(question);
                } else {
                    corpus.questions.push(question);
                }
            }
            other => {
                return Err(fault(format!("kind {other:?}; known are {DOCUMENT}, {QUESTION}, {EXAMPLE}")));
            }
        }
    }
    Ok(corpus)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::format("Parquet", "", e))
}

pub(super) fn write(corpus: &Corpus, path: &Path) -> Result<()> {
    let mut kind: Vec<&str> = Vec::new();
    let mut id: Vec<&str> = Vec::new();
    let (mut text, mut field, mut question) = (Vec::new(), Vec::new(), Vec::new());
    let (mut spans, mut version_of, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    let mut distance: Vec<Option<u64>> = Vec::new();
    for document in &corpus.documents {
        kind.push(DOCUMENT);
        id.push(&document.id);
        text.push(Some(document.text.as_str()));
        spans.push(Some(json(&document.spans)?));
        version_of.push(document.version_of());
        field.push(None);
        question.push(None);
        answers.push(None);
        distance.push(None);
    }
    for (name, list) in [(QUESTION, &corpus.questions), (EXAMPLE, &corpus.examples)] {
        for q in list {
            kind.push(name);
            id.push(&q.document);
            text.push(None);
            spans.push(None);
            version_of.push(None);
            field.push(Some(q.field.as_str()));
            question.push(Some(q.question.as_str()));
            answers.push(Some(json(&q.answers)?));
            distance.push(q.distance.map(|d| d as u64));
        }
    }
    let columns: Vec<Column> = vec![
        Series::new("kind".into(), kind).into(),
        Series::new("id".into(), id).into(),
        Series::new("text".into(), text).into(),
        Series::new("spans".into(), spans).into(),
        Series::new("version_of".into(), version_of).into(),
        Series::new("field".into(), field).into(),
        Series::new("question".into(), question).into(),
        Series::new("answers".into(), answers).into(),
        Series::new("distance".into(), distance).into(),
    ];
    let mut frame = DataFrame::new_infer_height(columns)?;
    files::write_atomic(path, |out| {
        ParquetWriter::new(out).finish(&mut frame)?;
        Ok(())
    })
}

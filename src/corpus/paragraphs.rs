//! Plain text: paragraphs between empty lines, each a document.

use std::path::Path;

use super::{Corpus, Document};
use crate::error::{Error, Result};

fn paragraphs(content: &str) -> Vec<String> {
    let mut out: Vec<Vec<&str>> = vec![Vec::new()];
    for line in content.trim_start_matches('\u{feff}').lines() {
        if line.trim().is_empty() {
            out.push(Vec::new());
        } else if let Some(last) = out.last_mut() {
            last.push(line);
        }
    }
    out.into_iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n")).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or("text".into(), |s| s.to_string_lossy().into_owned())
}

pub(super) fn parse(path: &Path, content: &str) -> Corpus {
    let stem = stem(path);
    let number = |(i, text): (usize, String)| Document::new(format!("{stem}#{}", i + 1), text, Vec::new());
    Corpus {
        documents: paragraphs(content).into_iter().enumerate().map(number).collect(),
        ..Corpus::default()
    }
}

/// The whole file as one document.
pub(super) fn whole(path: &Path, content: &str) -> Document {
    let text = content.trim_start_matches('\u{feff}').trim_end().to_string();
    Document::new(stem(path), text, Vec::new())
}

pub(super) fn format(corpus: &Corpus) -> Result<String> {
    let mut out = String::new();
    for document in &corpus.documents {
        if paragraphs(&document.text).len() != 1 {
            let message =
                "an empty text or one with an empty line cannot be told apart in .txt; write .jsonl";
            return Err(Error::format(format!("document {:?}", document.id), "", message));
        }
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(document.text.trim_end_matches('\n'));
        out.push('\n');
    }
    Ok(out)
}

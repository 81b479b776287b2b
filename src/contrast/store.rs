//! A contrast as JSONL, one line a text.
//!
//! `{"id", "ids", "offsets", "large", "small", "difference", "rank", "probe": {FIELD: {"position", "large",
//! "small", "difference"}}, "provenance"}`; see [`ContrastText`] for their meaning.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::difference::{Contrast, ContrastText};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files::{read_text, write_atomic};
use crate::provenance::Provenance;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    text: &'a ContrastText,
    provenance: &'a Provenance,
}

#[derive(Deserialize)]
struct Stamp {
    provenance: Provenance,
}

impl Contrast {
    /// Writes one line a text.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write_atomic(path, |out| {
            for text in &self.texts {
                let line = Line { text, provenance: &self.provenance };
                serde_json::to_writer(&mut *out, &line).map_err(|e| Error::io(path)(e.into()))?;
                out.write_all(b"\n").map_err(Error::io(path))?;
            }
            Ok(())
        })
    }

    /// Reads what [`Contrast::write`] wrote; texts and facts come from `documents`, found by id.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Format`] with the line for content that is no contrast, vectors of unequal
    /// length, tokens outside their text, or an id that is not among `documents`.
    pub fn read(path: impl AsRef<Path>, documents: &[Document]) -> Result<Self> {
        let path = path.as_ref();
        let by_id: HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
        let content = read_text(path)?;
        let mut texts = Vec::new();
        let mut provenance = None;
        for (number, line) in content.lines().enumerate() {
            let bad = |message: String| Error::format(path, format!("line {}", number + 1), message);
            let mut text: ContrastText =
                serde_json::from_str(line).map_err(|e| bad(format!("not a contrast of one text: {e}")))?;
            let document = by_id
                .get(text.id.as_str())
                .ok_or_else(|| bad(format!("id {:?} is not in the corpus given", text.id)))?;
            let characters = document.text.chars().count();
            check(&text, characters).map_err(bad)?;
            text.text.clone_from(&document.text);
            text.spans.clone_from(&document.spans);
            texts.push(text);
            if provenance.is_none() {
                let stamp: Stamp = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
                provenance = Some(stamp.provenance);
            }
        }
        let provenance = provenance.ok_or_else(|| Error::format(path, "", "no text in this file"))?;
        let option = |name: &str| provenance.options.get(name).cloned().unwrap_or_default();
        Ok(Contrast {
            large: option("large"),
            small: option("small"),
            aligned: option("tokens").starts_with("aligned"),
            prefix: option("prefix"),
            texts,
            provenance,
        })
    }
}

/// Refuses what would make later steps count past an end.
fn check(text: &ContrastText, characters: usize) -> Result<(), String> {
    let tokens = text.ids.len();
    let equal =
        [text.offsets.len(), text.large.len(), text.small.len(), text.difference.len(), text.rank.len()];
    if equal.iter().any(|&n| n != tokens) {
        return Err(format!(
            "offsets, large, small, difference and rank must have one entry for each of {tokens} ids"
        ));
    }
    if text.offsets.iter().any(|&(start, end)| start > end || end > characters) {
        return Err(format!(
            "a token lies outside the text of {characters} characters; is this the same corpus?"
        ));
    }
    if text.rank.iter().any(|&r| r >= tokens) {
        return Err(format!("ranks run from 0 to {}", tokens.saturating_sub(1)));
    }
    for (field, probe) in &text.probe {
        let rows = [&probe.large, &probe.small, &probe.difference];
        if probe.position >= tokens || rows.iter().any(|row| row.len() != probe.position + 1) {
            return Err(format!("probe {field}: position + 1 entries expected, within {tokens} tokens"));
        }
    }
    Ok(())
}

//! A contrast as JSONL, one line a text.
//!
//! `{"id", "ids", "offsets", "large", "small", "difference", "rank", "probe": {FIELD: {"position", "large",
//! "small", "difference"}}, "provenance"}`; see [`ContrastText`] for their meaning.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::difference::{Contrast, ContrastText};
use crate::attention::{Per, corpus_hash};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files::{extension, read_text, write_atomic};
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

/// The provenance in the first line of the file `path`, when it was made from `documents`, which are in the file's order.
pub(super) fn made_from<'a>(
    path: &Path,
    line: &str,
    documents: impl IntoIterator<Item = &'a Document>,
) -> Result<Provenance> {
    let bad = |message: String| Error::format(path, "line 1", message);
    let Stamp { provenance } = serde_json::from_str(line).map_err(|e| bad(e.to_string()))?;
    // A file from elsewhere may not say what it was made from.
    if provenance.options.get("corpus").is_some_and(|was| *was != corpus_hash(documents)) {
        let message = "made from other texts or facts than this corpus has under the same ids; make it again from this corpus";
        return Err(bad(message.into()));
    }
    Ok(provenance)
}

impl Contrast {
    /// Refuses a path that [`Contrast::write`] would refuse, for those who want to know before they measure.
    ///
    /// # Errors
    /// [`Error::Option`] for another extension than `.jsonl`.
    pub fn check_path(path: impl AsRef<Path>) -> Result<()> {
        match extension(&path).as_str() {
            "jsonl" => Ok(()),
            _ => Err(Error::option("out", path.as_ref().display(), "a file name that ends in .jsonl")),
        }
    }

    /// Writes one line a text.
    ///
    /// # Errors
    /// As [`Contrast::check_path`]; [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        Self::check_path(path)?;
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
    /// length, tokens outside their text, an id that is not among `documents`, or other texts under the same ids.
    pub fn read(path: impl AsRef<Path>, documents: &[Document]) -> Result<Self> {
        let path = path.as_ref();
        let by_id: HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
        let content = read_text(path)?;
        let mut texts = Vec::new();
        let mut found = Vec::new();
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
            found.push(*document);
        }
        let first = content.lines().next().ok_or_else(|| Error::format(path, "", "no text in this file"))?;
        let provenance = made_from(path, first, found)?;
        let option = |name: &str| provenance.options.get(name).cloned().unwrap_or_default();
        let shape = |name: &str| {
            let value = option(name);
            let numbers = value.split_once('x').and_then(|(l, h)| Some((l.parse().ok()?, h.parse().ok()?)));
            numbers.ok_or_else(|| {
                let message = format!("provenance option {name} is {value:?}; LAYERSxHEADS expected");
                Error::format(path, "line 1", message)
            })
        };
        let per = option("per");
        let per =
            [Per::Mean, Per::Layer, Per::Head].into_iter().find(|p| p.name() == per).ok_or_else(|| {
                Error::format(
                    path,
                    "line 1",
                    format!("provenance option per is {per:?}; mean, layer or head expected"),
                )
            })?;
        let (large_shape, small_shape) = (shape("shape_large")?, shape("shape_small")?);
        let groups = |(layers, heads): (usize, usize)| match per {
            Per::Mean => 0,
            Per::Layer => layers,
            Per::Head => layers.saturating_mul(heads),
        };
        for (number, text) in texts.iter().enumerate() {
            check_apart(text, groups(large_shape), groups(small_shape))
                .map_err(|message| Error::format(path, format!("line {}", number + 1), message))?;
        }
        Ok(Contrast {
            large: option("large"),
            small: option("small"),
            aligned: option("tokens").starts_with("aligned"),
            prefix: option("prefix"),
            per,
            large_shape,
            small_shape,
            texts,
            provenance,
        })
    }
}

/// Refuses layers or heads that are not all there, or not of the length of what they are parts of.
fn check_apart(text: &ContrastText, large: usize, small: usize) -> Result<(), String> {
    let whole = |name: &str, by: &[Vec<f32>], groups: usize, length: usize| {
        let fits = by.len() == groups && by.iter().all(|row| row.len() == length);
        if fits { Ok(()) } else { Err(format!("{name}: {groups} rows of {length} numbers expected")) }
    };
    // An empty text has nothing that a model could be run on.
    if !text.ids.is_empty() {
        whole("large_by", &text.large_by, large, text.ids.len())?;
        whole("small_by", &text.small_by, small, text.ids.len())?;
    }
    for (field, probe) in &text.probe {
        whole(&format!("probe {field}, large_by"), &probe.large_by, large, probe.position + 1)?;
        whole(&format!("probe {field}, small_by"), &probe.small_by, small, probe.position + 1)?;
    }
    Ok(())
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
    let mut seen = vec![false; tokens];
    if !text.rank.iter().all(|&r| r < tokens && !std::mem::replace(&mut seen[r], true)) {
        return Err(format!("ranks must be 0 to {}, each once", tokens.saturating_sub(1)));
    }
    for (field, probe) in &text.probe {
        let rows = [&probe.large, &probe.small, &probe.difference];
        if probe.position >= tokens || rows.iter().any(|row| row.len() != probe.position + 1) {
            return Err(format!("probe {field}: position + 1 entries expected, within {tokens} tokens"));
        }
    }
    Ok(())
}

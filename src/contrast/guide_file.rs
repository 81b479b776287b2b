//! Guides from the files of `contrast` and `attend`.

use std::collections::HashMap;
use std::path::Path;

use super::difference::Contrast;
use super::rank::GuideText;
use super::store::made_from;
use crate::attention::AttendedText;
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files::{extension, read_text};

impl GuideText {
    /// Reads what [`Contrast::write`] wrote (the guide is the difference) or what
    /// [`Attended::write`](crate::attention::Attended::write) wrote as JSONL (the guide is the attention received);
    /// each line must belong to one of `documents`, by id.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] with the line for anything else, for tokens outside their text, and for a file made from
    /// other texts under the same ids.
    pub fn read(path: impl AsRef<Path>, documents: &[Document]) -> Result<Vec<GuideText>> {
        let path = path.as_ref();
        if extension(path) != "jsonl" {
            let message = "a guide is the .jsonl file of `contrast` or `attend`";
            return Err(Error::format(path, "", message));
        }
        let content = read_text(path)?;
        let first: serde_json::Value =
            serde_json::from_str(content.lines().next().unwrap_or_default()).unwrap_or_default();
        if !first["difference"].is_null() {
            return Ok(Contrast::read(path, documents)?.guide());
        }
        let by_id: HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
        let mut guide = Vec::new();
        let mut found = Vec::new();
        for (number, line) in content.lines().enumerate() {
            let bad = |message: String| Error::format(path, format!("line {}", number + 1), message);
            let text: AttendedText = serde_json::from_str(line)
                .map_err(|e| bad(format!("neither a contrast nor attention of one text: {e}")))?;
            let Some(&document) = by_id.get(text.id.as_str()) else {
                return Err(bad(format!("id {:?} is not in the corpus given", text.id)));
            };
            let characters = document.text.chars().count();
            if text.offsets.len() != text.received.len() {
                return Err(bad("offsets and received must have one entry a token".into()));
            }
            if text.offsets.iter().any(|&(start, end)| start > end || end > characters) {
                return Err(bad(format!(
                    "a token lies outside the text of {characters} characters; is this the same corpus?"
                )));
            }
            guide.push(GuideText::new(text.id, text.offsets, text.received).for_text(&document.text));
            found.push(document);
        }
        let first = content.lines().next().ok_or_else(|| Error::format(path, "", "no text in this file"))?;
        made_from(path, first, found)?;
        Ok(guide)
    }
}

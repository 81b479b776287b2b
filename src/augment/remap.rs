//! Facts followed through texts whose pieces were moved, repeated or replaced.

use crate::corpus::{Document, Span};

/// A text put together from pieces of another one and new words.
pub(super) struct Pieced<'a> {
    source: &'a Document,
    chars: Vec<char>,
    text: String,
    /// For each character of `text`: the character of the source it is.
    origin: Vec<Option<usize>>,
}

impl<'a> Pieced<'a> {
    pub(super) fn new(source: &'a Document) -> Self {
        Pieced { source, chars: source.text.chars().collect(), text: String::new(), origin: Vec::new() }
    }

    pub(super) fn chars(&self) -> &[char] {
        &self.chars
    }

    pub(super) fn is_empty(&self) -> bool {
        self.origin.is_empty()
    }

    /// Appends the source's characters `start..end`.
    pub(super) fn old(&mut self, start: usize, end: usize) {
        self.text.extend(&self.chars[start..end]);
        self.origin.extend((start..end).map(Some));
    }

    /// Appends text that is not the source's.
    pub(super) fn new_text(&mut self, text: &str) {
        self.text.push_str(text);
        self.origin.extend(text.chars().map(|_| None));
    }

    /// The new document; a fact stays marked where it stands whole.
    pub(super) fn finish(self, copy: usize) -> Document {
        let mut first = vec![None; self.chars.len()];
        for (at, origin) in self.origin.iter().enumerate().rev() {
            if let Some(o) = origin {
                first[*o] = Some(at);
            }
        }
        let mut spans: Vec<Span> = Vec::new();
        for span in &self.source.spans {
            let Some(start) = first.get(span.start).copied().flatten() else { continue };
            let end = start + (span.end - span.start);
            let whole = self
                .origin
                .get(start..end)
                .is_some_and(|o| o.iter().copied().eq((span.start..span.end).map(Some)));
            if whole {
                spans.push(Span { field: span.field.clone(), start, end });
            }
        }
        spans.sort_by_key(|s| (s.start, s.end));
        self.source.version(copy, self.text, spans)
    }
}

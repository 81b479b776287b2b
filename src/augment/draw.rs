//! One draw from a plan: which tokens go, and the text that is left.

use serde::{Deserialize, Serialize};

use super::plan::{Plan, PlanText};
use crate::corpus::{Document, Span};
use crate::error::{Error, Result};
use crate::random::Stream;

/// What happens to the characters of dropped tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// They go, and where they went the blanks are mended: no doubled or leading blank, none before `. , ; : ! ?`
    /// or a closing bracket, none at the end of a line or of the text, no line left empty. Blanks elsewhere stay
    /// as they were.
    #[default]
    Delete,
    /// Each becomes one blank, as in the authors' script.
    Blank,
}

/// When a character goes that several tokens share, such as an emoji of three byte tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pieces {
    /// Only when all of them are dropped.
    #[default]
    All,
    /// When any of them is, as in the authors' script.
    Any,
}

const NOWHERE: u8 = 0;
const KEPT: u8 = 1;
const DROPPED: u8 = 2;
const BOTH: u8 = KEPT | DROPPED;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Blank,
    LineEnd,
    /// A sign that takes no blank before it.
    Closing,
    Other,
}

fn kind(c: char) -> Kind {
    match c {
        '\n' | '\r' => Kind::LineEnd,
        '.' | ',' | ';' | ':' | '!' | '?' | ')' | ']' | '}' | '…' | '،' | '؛' | '؟' => Kind::Closing,
        c if c.is_whitespace() => Kind::Blank,
        _ => Kind::Other,
    }
}

/// A text of a plan, made ready for many draws.
pub(super) struct Ready<'a> {
    text: &'a PlanText,
    removal: Removal,
    pieces: Pieces,
    /// Byte at which each character begins, and the length of the text.
    bytes: Vec<usize>,
    kinds: Vec<Kind>,
}

impl Plan {
    /// Which tokens of text `index` the draw of `copy` (counted from 1) drops under `seed`. Draws depend on the
    /// text's id, not on its place in the corpus.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no such text.
    pub fn dropped(&self, index: usize, seed: u64, copy: usize) -> Result<Vec<bool>> {
        Ok(draw(self.text(index)?, seed, copy))
    }

    /// The text that the draw of `copy` leaves of text `index`, under the id `id#copy`. Facts are moved along; one
    /// that lost characters keeps the rest, one that lost all is gone.
    ///
    /// # Errors
    /// [`Error::Option`] when there is no such text.
    pub fn draw(&self, index: usize, seed: u64, copy: usize) -> Result<Document> {
        Ok(Ready::new(self, self.text(index)?).copy(seed, copy))
    }

    fn text(&self, index: usize) -> Result<&PlanText> {
        let expected = || format!("below {}, the number of texts", self.texts.len());
        self.texts.get(index).ok_or_else(|| Error::option("index", index, expected()))
    }
}

fn draw(text: &PlanText, seed: u64, copy: usize) -> Vec<bool> {
    let mut stream = Stream::new(seed, &format!("token dropout: {}", text.document.id), &[copy as u64]);
    // Every token takes one number, protected or not, so that protecting some leaves the fate of the others.
    text.probability.iter().map(|&p| stream.unit_f32() < p).collect()
}

impl<'a> Ready<'a> {
    pub(super) fn new(plan: &Plan, text: &'a PlanText) -> Self {
        let content = &text.document.text;
        Ready {
            text,
            removal: plan.removal,
            pieces: plan.pieces,
            bytes: content.char_indices().map(|(b, _)| b).chain([content.len()]).collect(),
            kinds: content.chars().map(kind).collect(),
        }
    }

    pub(super) fn copy(&self, seed: u64, copy: usize) -> Document {
        let dropped = draw(self.text, seed, copy);
        let mut state = vec![NOWHERE; self.kinds.len()];
        for (&(start, end), dropped) in self.text.offsets.iter().zip(dropped) {
            for s in &mut state[start..end] {
                *s |= if dropped { DROPPED } else { KEPT };
            }
        }
        let gone = |s: u8| s == DROPPED || (s == BOTH && self.pieces == Pieces::Any);
        let (text, spans) = match self.removal {
            Removal::Delete => self.delete(&state, gone),
            Removal::Blank => self.blank(&state, gone),
        };
        self.text.document.version(copy, text, spans)
    }

    fn blank(&self, state: &[u8], gone: impl Fn(u8) -> bool) -> (String, Vec<Span>) {
        let source = &self.text.document;
        let mut text = String::with_capacity(source.text.len());
        for (i, &s) in state.iter().enumerate() {
            if gone(s) {
                text.push(' ');
            } else {
                text.push_str(&source.text[self.bytes[i]..self.bytes[i + 1]]);
            }
        }
        let remains = |i: &usize| !gone(state[*i]);
        let spans = source.spans.iter().filter_map(|span| {
            let start = (span.start..span.end).find(remains)?;
            let end = (span.start..span.end).rev().find(remains)? + 1;
            Some(Span { field: span.field.clone(), start, end })
        });
        (text, spans.collect())
    }

    fn delete(&self, state: &[u8], gone: impl Fn(u8) -> bool) -> (String, Vec<Span>) {
        // Characters that stay, in order.
        let mut left: Vec<u32> = Vec::with_capacity(state.len());
        let kind_of = |i: Option<&u32>| i.map(|&i| self.kinds[i as usize]);
        let open = |kind: Option<Kind>| matches!(kind, None | Some(Kind::Blank | Kind::LineEnd));
        // True from a removal until the next character that stays.
        let mut seam = false;
        for (i, &s) in state.iter().enumerate() {
            if gone(s) {
                seam = true;
                continue;
            }
            if seam {
                let before = kind_of(left.last());
                match self.kinds[i] {
                    Kind::Blank if open(before) => continue,
                    Kind::LineEnd if matches!(before, None | Some(Kind::LineEnd)) => continue,
                    Kind::Closing | Kind::LineEnd => {
                        while kind_of(left.last()) == Some(Kind::Blank) {
                            left.pop();
                        }
                    }
                    _ => {}
                }
                seam = false;
            }
            left.push(i as u32);
        }
        if seam {
            while open(kind_of(left.last())) && left.pop().is_some() {}
        }
        let source = &self.text.document;
        let mut text = String::with_capacity(source.text.len());
        let mut at = 0;
        while at < left.len() {
            let from = left[at] as usize;
            let mut to = from + 1;
            at += 1;
            while at < left.len() && left[at] as usize == to {
                to += 1;
                at += 1;
            }
            text.push_str(&source.text[self.bytes[from]..self.bytes[to]]);
        }
        let place = |i: usize| left.partition_point(|&l| (l as usize) < i);
        let spans = source.spans.iter().filter_map(|span| {
            let (start, end) = (place(span.start), place(span.end));
            (start < end).then(|| Span { field: span.field.clone(), start, end })
        });
        (text, spans.collect())
    }
}

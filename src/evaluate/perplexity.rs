//! Perplexity on held-out text: exp(−Σ ln p(token | before) / tokens), the sums over the whole corpus.

use serde::{Deserialize, Serialize};

use super::Examinee;
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Tokens run through a model at once.
const BATCH_TOKENS: usize = 8192;

/// Sums from which perplexity follows; two corpora's sums may be added.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Perplexity {
    /// Σ ln p, natural logarithm.
    pub log_prob: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Texts they came from.
    pub texts: u64,
}

impl Perplexity {
    /// exp(−Σ ln p / tokens).
    pub fn value(&self) -> f64 {
        (-self.log_prob / self.tokens as f64).exp()
    }
}

impl std::fmt::Display for Perplexity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.3} ({} tokens, {} texts)", self.value(), self.tokens, self.texts)
    }
}

/// Perplexity of `examinee` on `texts`.
///
/// The first token of a text has nothing before it and is not predicted (a start token therefore never counts). A text longer
/// than the model's context is read in windows that overlap by about half, each with the start token first where the model
/// wants one: each token counts once, with at least half a context before it.
///
/// # Errors
/// [`Error::Stopped`] when no token can be predicted; errors of the model.
pub fn perplexity(examinee: &dyn Examinee, texts: &[Document]) -> Result<Perplexity> {
    let progress = Progress::start("perplexity", texts.len() as u64, "texts");
    let mut total = Perplexity { texts: texts.len() as u64, ..Perplexity::default() };
    let mut waiting: Vec<Window> = Vec::new();
    let empty = examinee.encode("")?;
    for text in texts {
        for window in windows_of(examinee, text, &empty)? {
            if waiting.iter().map(|w| w.ids.len()).sum::<usize>() + window.ids.len() > BATCH_TOKENS {
                total.add(examinee, &mut waiting)?;
            }
            waiting.push(window);
        }
        progress.advance(1)?;
    }
    total.add(examinee, &mut waiting)?;
    if total.tokens == 0 { Err(nothing()) } else { Ok(total) }
}

/// Refuses texts of which [`perplexity`] could predict nothing.
///
/// # Errors
/// As [`perplexity`].
pub(crate) fn check_texts(examinee: &dyn Examinee, texts: &[Document]) -> Result<()> {
    let empty = examinee.encode("")?;
    for text in texts {
        if !windows_of(examinee, text, &empty)?.is_empty() {
            return Ok(());
        }
    }
    Err(nothing())
}

fn nothing() -> Error {
    Error::Stopped("perplexity: no text of two tokens or more; give held-out texts".into())
}

impl Perplexity {
    fn add(&mut self, examinee: &dyn Examinee, waiting: &mut Vec<Window>) -> Result<()> {
        let windows = std::mem::take(waiting);
        if windows.is_empty() {
            return Ok(());
        }
        let from: Vec<usize> = windows.iter().map(|w| w.from).collect();
        let ids: Vec<Vec<u32>> = windows.into_iter().map(|w| w.ids).collect();
        for (row, from) in examinee.log_probs(&ids)?.iter().zip(from) {
            self.log_prob += row[from..].iter().map(|&p| f64::from(p)).sum::<f64>();
            self.tokens += (row.len() - from) as u64;
        }
        Ok(())
    }
}

/// Part of a text; tokens before `from` are context only.
struct Window {
    ids: Vec<u32>,
    from: usize,
}

/// What `examinee` reads of `text`; `empty` are the tokens it puts where there is no text.
fn windows_of(examinee: &dyn Examinee, text: &Document, empty: &[u32]) -> Result<Vec<Window>> {
    let ids = examinee.encode(&text.text)?;
    // What every text begins with; a tokenizer may also put something at the end.
    let start = ids.iter().zip(empty).take_while(|(a, b)| a == b).count();
    Ok(windows(&ids, start, examinee.max_positions()))
}

/// The first `special` ids are start tokens, which stand before every window.
fn windows(ids: &[u32], special: usize, max: usize) -> Vec<Window> {
    let (special, text) = ids.split_at(special);
    let room = max.saturating_sub(special.len());
    let mut all = Vec::new();
    // Of the text's own ids: those counted, and where the window begins.
    let mut done = usize::from(special.is_empty());
    let mut start = 0;
    while done < text.len() && room > done - start {
        let end = (start + room).min(text.len());
        let ids = [special, &text[start..end]].concat();
        all.push(Window { ids, from: special.len() + done - start });
        done = end;
        start = end.saturating_sub(room / 2);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_count_every_token_once_with_half_a_context() {
        for (len, max) in [(0, 8), (1, 8), (2, 8), (8, 8), (9, 8), (23, 8), (100, 7), (5, 2)] {
            for special in [0, 1] {
                let ids: Vec<u32> = (0..len).collect();
                let mut counted = Vec::new();
                for w in windows(&ids, special.min(ids.len()), max) {
                    assert!(w.ids.len() <= max);
                    assert!(special == 0 || w.ids[0] == 0, "every window has the start token");
                    assert!(w.ids[special] == special as u32 || w.from >= max / 2, "{} of {max}", w.from);
                    counted.extend_from_slice(&w.ids[w.from..]);
                }
                assert_eq!(
                    counted,
                    (1..len).collect::<Vec<_>>(),
                    "{len} tokens, context {max}, start {special}"
                );
            }
        }
    }
}

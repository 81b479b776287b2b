//! Which texts make up which optimiser step.
//!
//! An epoch visits every text once, in an order drawn from (seed, epoch) alone; so the batches of any
//! step can be named again after an interruption without replaying what came before. Batches are ragged:
//! texts lie one after the other without padding, and attention never crosses from one to the next.
//!
//! With packing, a batch is made of *windows* of at most `max_length` tokens into which several texts go
//! as long as they fit. Two versions of one text never share a window ([`Example::version_of`]); a text that may be a
//! version of any other has a window to itself.
//!
//! ```
//! use cluescope::train::{Batching, Example};
//! let example = |i| Example { id: format!("p{i}"), version_of: Some(format!("p{i}")), ids: vec![i, 1, 2] };
//! let examples: Vec<Example> = (0..5).map(example).collect();
//! let batching = Batching { batch_size: 2, max_length: 16, packing: false, seed: 7 };
//! let epoch = batching.epoch(&examples, 0);
//! assert_eq!(epoch.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
//! assert_eq!(epoch, batching.epoch(&examples, 0));
//! assert_ne!(epoch, batching.epoch(&examples, 1));
//! ```

use serde::{Deserialize, Serialize};

use crate::corpus::Document;
use crate::error::Result;
use crate::provenance::content_hash;
use crate::random::Stream;
use crate::tokens::Tokenizer;

/// One text as the trainer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The document's id.
    pub id: String,
    /// [`Document::version_of()`]: what all versions of one text have in common; `None` where that is unknown.
    pub version_of: Option<String>,
    /// Its tokens, start token and all; at least two.
    pub ids: Vec<u32>,
}

impl Example {
    /// Whether the two are known to be versions of different texts.
    fn goes_with(&self, other: &Example) -> bool {
        matches!((&self.version_of, &other.version_of), (Some(a), Some(b)) if a != b)
    }
}

/// Texts ready for training, and what was done to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The texts, in the corpus's order.
    pub examples: Vec<Example>,
    /// Texts cut at the maximal length.
    pub truncated: usize,
    /// Ids of texts left out because fewer than two tokens leave nothing to predict.
    pub skipped: Vec<String>,
}

impl Prepared {
    /// Tokenises `documents` as the model reads them, cut after `max_length` tokens.
    ///
    /// # Errors
    /// Texts that the tokenizer refuses.
    pub fn new(documents: &[Document], tokenizer: &Tokenizer, max_length: usize) -> Result<Prepared> {
        let mut prepared =
            Prepared { examples: Vec::with_capacity(documents.len()), truncated: 0, skipped: Vec::new() };
        for document in documents {
            let mut ids = tokenizer.encode(&document.text)?.ids;
            if ids.len() < 2 {
                prepared.skipped.push(document.id.clone());
                continue;
            }
            if ids.len() > max_length {
                ids.truncate(max_length);
                prepared.truncated += 1;
            }
            let version_of = document.version_of().map(String::from);
            prepared.examples.push(Example { id: document.id.clone(), version_of, ids });
        }
        Ok(prepared)
    }

    /// Identifies ids and tokens, and with `packing` what the windows depend on beside them; a checkpoint carries it so
    /// that no other corpus continues the run.
    pub fn hash(&self, packing: bool) -> String {
        content_hash(self.examples.iter().flat_map(|example| {
            let ids: Vec<u8> = example.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            let version_of = packing.then(|| format!("{:?}", example.version_of).into_bytes());
            [example.id.as_bytes().to_vec(), ids].into_iter().chain(version_of)
        }))
    }
}

/// How texts are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batching {
    /// Texts a batch, or windows when packing.
    pub batch_size: usize,
    /// Tokens a window.
    pub max_length: usize,
    /// Whether windows hold several texts.
    pub packing: bool,
    /// Decides the order of every epoch.
    pub seed: u64,
}

/// Windows that stay open for further texts; a later text looks for room in these only.
const OPEN_WINDOWS: usize = 16;

impl Batching {
    /// The batches of one epoch, each a list of indices into `examples`. Every index appears once; the last
    /// batch may be smaller.
    pub fn epoch(&self, examples: &[Example], epoch: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..examples.len()).collect();
        Stream::new(self.seed, "training order", &[epoch as u64]).shuffle(&mut order);
        if self.packing {
            let windows = self.windows(examples, &order);
            windows.chunks(self.batch_size).map(|windows| windows.concat()).collect()
        } else {
            order.chunks(self.batch_size).map(<[usize]>::to_vec).collect()
        }
    }

    /// First fit over the last few windows.
    fn windows(&self, examples: &[Example], order: &[usize]) -> Vec<Vec<usize>> {
        let mut windows: Vec<(usize, Vec<usize>)> = Vec::new();
        for &index in order {
            let example = &examples[index];
            let oldest = windows.len().saturating_sub(OPEN_WINDOWS);
            let room = windows[oldest..].iter_mut().find(|(used, texts)| {
                used + example.ids.len() <= self.max_length
                    && texts.iter().all(|&other| example.goes_with(&examples[other]))
            });
            match room {
                Some((used, texts)) => {
                    *used += example.ids.len();
                    texts.push(index);
                }
                None => windows.push((example.ids.len(), vec![index])),
            }
        }
        windows.into_iter().map(|(_, texts)| texts).collect()
    }
}

/// For each token of the concatenated `texts` the token it must predict: its follower, and `None` at each
/// text's end. These are the labels of "labels = inputs" after the causal shift.
pub fn next_token_targets(texts: &[impl AsRef<[u32]>]) -> Vec<Option<u32>> {
    let mut targets = Vec::with_capacity(texts.iter().map(|t| t.as_ref().len()).sum());
    for text in texts {
        let text = text.as_ref();
        targets.extend(text.iter().skip(1).map(|&id| Some(id)));
        if !text.is_empty() {
            targets.push(None);
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples(copies: usize) -> Vec<Example> {
        (0..40)
            .flat_map(|person| {
                (0..=copies).map(move |copy| Example {
                    id: format!("p{person} {copy}"),
                    version_of: Some(format!("p{person}")),
                    ids: vec![person; 5 + (person as usize * 7 + copy) % 20],
                })
            })
            .collect()
    }

    #[test]
    fn every_text_comes_once_an_epoch() {
        let examples = examples(3);
        for packing in [false, true] {
            let batching = Batching { batch_size: 8, max_length: 64, packing, seed: 3 };
            for epoch in 0..3 {
                let mut seen: Vec<usize> = batching.epoch(&examples, epoch).concat();
                seen.sort_unstable();
                assert_eq!(seen, (0..examples.len()).collect::<Vec<_>>(), "packing {packing}, epoch {epoch}");
            }
        }
    }

    #[test]
    fn windows_hold_no_two_versions_and_no_more_than_fits() {
        let examples = examples(10);
        let batching = Batching { batch_size: 1, max_length: 64, packing: true, seed: 3 };
        let windows = batching.epoch(&examples, 0);
        assert!(windows.len() < examples.len() / 2, "packing packs: {} windows", windows.len());
        for window in windows {
            let tokens: usize = window.iter().map(|&i| examples[i].ids.len()).sum();
            assert!(tokens <= 64);
            let mut people: Vec<_> = window.iter().map(|&i| &examples[i].version_of).collect();
            people.sort_unstable();
            people.dedup();
            assert_eq!(people.len(), window.len());
        }
    }

    #[test]
    fn what_may_be_a_version_of_anything_is_alone() {
        let mut examples = examples(0);
        for example in &mut examples[..10] {
            example.version_of = None;
        }
        let batching = Batching { batch_size: 1, max_length: 64, packing: true, seed: 3 };
        for window in batching.epoch(&examples, 0) {
            assert!(window.len() == 1 || window.iter().all(|&i| i >= 10), "{window:?}");
        }
    }

    #[test]
    fn targets_are_the_followers() {
        assert_eq!(
            next_token_targets(&[vec![1, 2, 3], vec![], vec![4, 5]]),
            [Some(2), Some(3), None, Some(5), None]
        );
    }
}

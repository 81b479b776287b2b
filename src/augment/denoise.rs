//! Denoising auto-regression, "D-AR" (Saito et al. 2024, arXiv 2402.12170): noise in the input, not in the target.

use crate::error::{Error, Result};
use crate::random::Stream;

/// Replaces input tokens by random ones while the model still has to predict the true next token.
///
/// Unlike the other policies this is no change of the text: [`Finetune::denoise`](crate::train::Finetune::denoise) has the
/// trainer call it on the input ids of every text and epoch, and leaves the targets alone. Each token is replaced independently with probability `ratio` by one
/// drawn evenly from the vocabulary. The source's summary does not settle the ratio: it has no default here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Denoise {
    ratio: f64,
    seed: u64,
}

impl Denoise {
    /// Noise on this share of the tokens.
    ///
    /// # Errors
    /// [`Error::Option`] when `ratio` is not between 0 and 1.
    pub fn new(ratio: f64, seed: u64) -> Result<Self> {
        if (0.0..=1.0).contains(&ratio) {
            Ok(Denoise { ratio, seed })
        } else {
            Err(Error::option("ratio", ratio, "0 to 1"))
        }
    }

    /// The input ids of text `text` in `epoch`; tokens marked `special` stay. `special` may be shorter than `ids`.
    pub fn inputs(
        &self,
        ids: &[u32],
        special: &[bool],
        vocab_size: usize,
        text: u64,
        epoch: u64,
    ) -> Vec<u32> {
        let mut stream = Stream::new(self.seed, "denoise", &[text, epoch]);
        let noisy = |(i, &id): (usize, &u32)| {
            let hit = stream.chance(self.ratio);
            let noise = stream.below(vocab_size) as u32;
            if hit && !special.get(i).copied().unwrap_or(false) { noise } else { id }
        };
        ids.iter().enumerate().map(noisy).collect()
    }
}

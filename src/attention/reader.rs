//! What measures attention: a model in memory, or one whose blocks come from disk one at a time.

use super::options::Attend;
use crate::error::Result;
use crate::model::{Batch, Capture, CapturedText, DecoderConfig, Device, Model, Streamed, Want};
use crate::progress::Progress;
use crate::tokens::Tokenizer;

/// Texts handed on together even where all come from the cache.
const GROUP_TEXTS: usize = 64;

/// A source of attention.
pub(super) trait Reader: Sync {
    fn name(&self) -> &str;
    fn hash(&self) -> &str;
    /// Whether the hash stands for these very weights.
    fn is_settled(&self) -> bool;
    /// What computes.
    fn device(&self) -> Device;
    fn config(&self) -> &DecoderConfig;
    fn tokenizer(&self) -> &Tokenizer;
    /// The most texts and tokens that are taken together before their numbers are handed on.
    fn group(&self, options: &Attend) -> (usize, usize);
    /// How often progress counts each token.
    fn count(&self) -> usize;
    /// Captures of each batch's texts. An interrupt that comes when all is computed is left to the caller to notice, once it
    /// has handed the numbers on.
    fn read(&self, batches: &[(Batch, Capture)], progress: &Progress) -> Result<Vec<Vec<CapturedText>>>;
}

impl Reader for Model {
    fn name(&self) -> &str {
        Model::name(self)
    }

    fn hash(&self) -> &str {
        Model::hash(self)
    }

    fn is_settled(&self) -> bool {
        Model::is_settled(self)
    }

    fn device(&self) -> Device {
        Model::device(self).clone()
    }

    fn config(&self) -> &DecoderConfig {
        Model::config(self)
    }

    fn tokenizer(&self) -> &Tokenizer {
        Model::tokenizer(self)
    }

    fn group(&self, options: &Attend) -> (usize, usize) {
        (GROUP_TEXTS, options.batch_tokens)
    }

    fn count(&self) -> usize {
        1
    }

    fn read(&self, batches: &[(Batch, Capture)], progress: &Progress) -> Result<Vec<Vec<CapturedText>>> {
        let mut all = Vec::with_capacity(batches.len());
        for (batch, capture) in batches {
            all.push(self.forward(batch, &Want::capture(capture.clone()))?.attention);
            let go_on = progress.advance(batch.tokens() as u64);
            if all.len() < batches.len() {
                go_on?;
            }
        }
        Ok(all)
    }
}

impl Reader for Streamed {
    fn name(&self) -> &str {
        Streamed::name(self)
    }

    fn hash(&self) -> &str {
        Streamed::hash(self)
    }

    fn is_settled(&self) -> bool {
        // Blocks come from files and are never trained.
        true
    }

    fn device(&self) -> Device {
        Device::cpu()
    }

    fn config(&self) -> &DecoderConfig {
        Streamed::config(self)
    }

    fn tokenizer(&self) -> &Tokenizer {
        Streamed::tokenizer(self)
    }

    fn group(&self, options: &Attend) -> (usize, usize) {
        // Every group reads the whole model once.
        (usize::MAX, options.stream_tokens)
    }

    fn count(&self) -> usize {
        Streamed::config(self).layers
    }

    fn read(&self, batches: &[(Batch, Capture)], progress: &Progress) -> Result<Vec<Vec<CapturedText>>> {
        self.capture(batches, &mut |tokens| progress.advance(tokens as u64))
    }
}

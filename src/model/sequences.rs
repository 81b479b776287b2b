//! Texts that grow, each token read once: what decoding and the comparison of continuations are made of.

use candle_core::Tensor;

use super::{Model, cache, graph};
use crate::error::Result;

/// Several texts with a beginning in common.
pub(super) trait Sequences {
    /// Reads the next tokens of each text, some of which may have none.
    fn read(&mut self, texts: &[Vec<u32>]) -> Result<()>;

    /// Reads them and returns the logits after the last of each, `[texts, vocab_size]`; every text must have one.
    fn logits(&mut self, texts: &[Vec<u32>]) -> Result<Tensor>;

    /// Reads them and returns `log p(wanted)` in nats after each, in order.
    fn log_probs(&mut self, texts: &[Vec<u32>], wanted: &[u32]) -> Result<Vec<f32>>;

    /// Goes on with the texts `places`, in that order; one may be named several times.
    fn select(&mut self, places: &[usize]) -> Result<()>;
}

impl Model {
    /// `count` texts that begin with `prefix`, which is read here.
    pub(super) fn sequences(&self, prefix: &[u32], count: usize) -> Result<Box<dyn Sequences + '_>> {
        let decoder = &self.0.decoder;
        Ok(match self.0.device.tensor_dtype() {
            None => Box::new(cache::Sequences::new(decoder, prefix, count)?),
            Some(dtype) => Box::new(graph::Sequences::new(decoder, dtype, prefix, count)?),
        })
    }
}

//! How likely a model holds given continuations of one prompt.

use super::Model;
use super::cache::Cache;
use super::capture::Batch;
use super::loss;
use crate::error::{Error, Result};

impl Model {
    /// `log p` in nats of each token of each continuation, given `prompt` and the continuation's tokens before it; one
    /// row a continuation. The prompt is read once for all.
    ///
    /// # Errors
    /// When the prompt or a continuation is empty, both together exceed the model's context, or an id lies outside
    /// the vocabulary.
    pub fn continuation_log_probs(
        &self,
        prompt: &[u32],
        continuations: &[Vec<u32>],
    ) -> Result<Vec<Vec<f32>>> {
        if prompt.is_empty() || continuations.iter().any(Vec::is_empty) {
            let message = "a prompt or a continuation has no tokens; both need at least one";
            return Err(Error::model(self.name(), message));
        }
        let c = self.config();
        let whole: Vec<Vec<u32>> = continuations.iter().map(|rest| [prompt, rest].concat()).collect();
        let batch = Batch::new(&whole);
        batch.check(self.name(), c.vocab_size, c.max_positions)?;
        if continuations.is_empty() {
            return Ok(Vec::new());
        }
        if !self.device().is_cpu() {
            let rows = self.token_log_probs(&batch)?;
            return Ok(rows.into_iter().map(|row| row[prompt.len()..].to_vec()).collect());
        }
        let decoder = &self.0.decoder;
        // The prompt's last token predicts the first of each continuation, so it is read with them.
        let (before, last) = prompt.split_at(prompt.len() - 1);
        let mut prefix = [Cache::new(c.layers)];
        if !before.is_empty() {
            drop(decoder.extend(&Cache::new(c.layers), &mut prefix, &Batch::new(&[before]))?);
        }
        let [prefix] = prefix;
        let texts: Vec<Vec<u32>> =
            continuations.iter().map(|rest| [last, &rest[..rest.len() - 1]].concat()).collect();
        let mut caches = vec![Cache::new(c.layers); texts.len()];
        let x = decoder.extend(&prefix, &mut caches, &Batch::new(&texts))?;
        let work = decoder.work(None);
        let mut normed = work.pool.take(x.len());
        decoder.norm.forward(c.norm_eps as f32, &x, &mut normed)?;
        let mut flat = loss::log_probs(decoder, &normed, &continuations.concat(), &work)?.into_iter();
        Ok(continuations.iter().map(|rest| flat.by_ref().take(rest.len()).collect()).collect())
    }
}

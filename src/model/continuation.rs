//! How likely a model holds given continuations of prompts.

use super::Model;
use super::capture::Batch;
use super::generate::shared_prefix;
use crate::error::{Error, Result};

/// Copied keys and values of one group of prompts, in f32 values: 256 MiB.
const COPIES: usize = 64 << 20;

impl Model {
    /// `log p` in nats of each token of each continuation, given its prompt and the continuation's tokens before it:
    /// `continuations[i]` are those of `prompts[i]`, one row each.
    ///
    /// What all prompts begin with is read once, then each prompt's own part, then the continuations.
    ///
    /// # Errors
    /// When the lists differ in length, a prompt or a continuation is empty, both together exceed the model's context, or
    /// an id lies outside the vocabulary.
    pub fn continuation_log_probs(
        &self,
        prompts: &[Vec<u32>],
        continuations: &[Vec<Vec<u32>>],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        if prompts.len() != continuations.len() {
            let message = format!("{} prompts but continuations for {}", prompts.len(), continuations.len());
            return Err(Error::model(self.name(), message));
        }
        if prompts.iter().any(Vec::is_empty) || continuations.iter().flatten().any(Vec::is_empty) {
            let message = "a prompt or a continuation has no tokens; both need at least one";
            return Err(Error::model(self.name(), message));
        }
        let c = self.config();
        let mut rows = Vec::with_capacity(prompts.len());
        for (prompt, rest) in prompts.iter().zip(continuations) {
            let whole: Vec<Vec<u32>> = rest.iter().map(|rest| [prompt.as_slice(), rest].concat()).collect();
            let batch = Batch::new(&whole);
            batch.check(self.name(), c.vocab_size, c.max_positions)?;
        }
        let shared = shared_prefix(prompts);
        let mut from = 0;
        while from < prompts.len() {
            // Each continuation copies its prompt's own part; a group of one prompt has none.
            let cost =
                |i: usize| (prompts[i].len() - shared) * continuations[i].len() * 2 * c.layers * c.kv_width();
            let mut to = from + 1;
            let mut copied = cost(from);
            while to < prompts.len() && copied + cost(to) <= COPIES {
                copied += cost(to);
                to += 1;
            }
            rows.extend(self.continue_group(&prompts[from..to], &continuations[from..to])?);
            from = to;
        }
        Ok(rows)
    }

    fn continue_group(
        &self,
        prompts: &[Vec<u32>],
        continuations: &[Vec<Vec<u32>>],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        if continuations.iter().all(Vec::is_empty) {
            return Ok(vec![Vec::new(); prompts.len()]);
        }
        let shared = shared_prefix(prompts);
        let mut sequences = self.sequences(&prompts[0][..shared], prompts.len())?;
        // A prompt's last token predicts the first of each continuation, so it is read with them.
        let own: Vec<Vec<u32>> = prompts.iter().map(|p| p[shared..p.len() - 1].to_vec()).collect();
        sequences.read(&own)?;
        let places: Vec<usize> = continuations
            .iter()
            .enumerate()
            .flat_map(|(i, rests)| std::iter::repeat_n(i, rests.len()))
            .collect();
        sequences.select(&places)?;
        let mut texts: Vec<Vec<u32>> = Vec::new();
        let mut wanted = Vec::new();
        for (prompt, rests) in prompts.iter().zip(continuations) {
            let last = &prompt[prompt.len() - 1..];
            texts.extend(rests.iter().map(|rest| [last, &rest[..rest.len() - 1]].concat()));
            wanted.extend(rests.iter().flatten().copied());
        }
        let mut flat = sequences.log_probs(&texts, &wanted)?.into_iter();
        let mut row = |rest: &Vec<u32>| flat.by_ref().take(rest.len()).collect();
        Ok(continuations.iter().map(|rests| rests.iter().map(&mut row).collect()).collect())
    }
}

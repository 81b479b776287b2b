//! How likely a model holds given continuations of prompts.

use super::Model;
use super::cache::Cache;
use super::capture::Batch;
use super::generate::shared_prefix;
use super::loss;
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
            if !self.device().is_cpu() {
                let found = self.token_log_probs(&batch)?;
                rows.push(found.into_iter().map(|row| row[prompt.len()..].to_vec()).collect());
            }
        }
        if !self.device().is_cpu() {
            return Ok(rows);
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
        let (c, decoder) = (self.config(), &self.0.decoder);
        if continuations.iter().all(Vec::is_empty) {
            return Ok(vec![Vec::new(); prompts.len()]);
        }
        let empty = || Cache::new(c.layers);
        let shared = shared_prefix(prompts);
        let mut prefix = [empty()];
        if shared > 0 {
            drop(decoder.extend(&empty(), &mut prefix, &Batch::new(&[&prompts[0][..shared]]))?);
        }
        let [prefix] = prefix;
        // A prompt's last token predicts the first of each continuation, so it is read with them.
        let own: Vec<&[u32]> = prompts.iter().map(|p| &p[shared..p.len() - 1]).collect();
        let longer: Vec<usize> = (0..own.len()).filter(|&i| !own[i].is_empty()).collect();
        let mut read = vec![empty(); longer.len()];
        if !longer.is_empty() {
            let texts: Vec<&[u32]> = longer.iter().map(|&i| own[i]).collect();
            drop(decoder.extend(&prefix, &mut read, &Batch::new(&texts))?);
        }
        let mut of_prompt = vec![empty(); prompts.len()];
        for (i, cache) in longer.into_iter().zip(read) {
            of_prompt[i] = cache;
        }
        let mut caches = Vec::new();
        let mut texts: Vec<Vec<u32>> = Vec::new();
        let mut wanted = Vec::new();
        for ((prompt, rests), cache) in prompts.iter().zip(continuations).zip(of_prompt) {
            let last = &prompt[prompt.len() - 1..];
            texts.extend(rests.iter().map(|rest| [last, &rest[..rest.len() - 1]].concat()));
            wanted.extend(rests.iter().flatten().copied());
            caches.extend(std::iter::repeat_n(cache, rests.len()));
        }
        let x = decoder.extend(&prefix, &mut caches, &Batch::new(&texts))?;
        let work = decoder.work(None);
        let mut normed = work.pool.take(x.len());
        decoder.norm.forward(c.norm_eps as f32, &x, &mut normed)?;
        let mut flat = loss::log_probs(decoder, &normed, &wanted, &work)?.into_iter();
        let mut row = |rest: &Vec<u32>| flat.by_ref().take(rest.len()).collect();
        Ok(continuations.iter().map(|rests| rests.iter().map(&mut row).collect()).collect())
    }
}

//! Greedy decoding of many prompts at once.

use rayon::prelude::*;

use super::Model;
use super::scratch::in_pool;
use crate::error::{Error, Result};

/// How far to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generate {
    /// At most this many tokens a prompt.
    pub max_new_tokens: usize,
    /// Stop after a token whose text contains a line break; that token is kept.
    pub stop_at_newline: bool,
}

impl Default for Generate {
    /// The paper's: 10 tokens, one line.
    fn default() -> Self {
        Generate { max_new_tokens: 10, stop_at_newline: true }
    }
}

/// Cached keys and values of one group of prompts, in f32 values: 512 MiB.
const CACHE: usize = 128 << 20;

impl Model {
    /// The most likely continuation of each prompt, token by token; of equal logits the lowest id wins.
    ///
    /// Ends with one of the tokenizer's end tokens (not returned), with a line break (returned) or
    /// after `max_new_tokens`. A prefix that all prompts share is computed once.
    ///
    /// # Errors
    /// When a prompt is empty, leaves no room for `max_new_tokens` in the model's context, or holds
    /// an id outside the vocabulary.
    pub fn generate(&self, prompts: &[Vec<u32>], options: &Generate) -> Result<Vec<Vec<u32>>> {
        let c = self.config();
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.is_empty() {
                return Err(Error::model(
                    self.name(),
                    format!("prompt {index} has no tokens; begin with some text"),
                ));
            }
            if prompt.len() + options.max_new_tokens > c.max_positions {
                return Err(Error::model(
                    self.name(),
                    format!(
                        "prompt {index} has {} tokens; with {} new ones it exceeds the context of {}",
                        prompt.len(),
                        options.max_new_tokens,
                        c.max_positions
                    ),
                ));
            }
            if let Some(id) = prompt.iter().find(|id| **id as usize >= c.vocab_size) {
                return Err(Error::model(
                    self.name(),
                    format!("prompt {index}: id {id} lies outside the vocabulary of {}", c.vocab_size),
                ));
            }
        }
        if options.max_new_tokens == 0 {
            return Ok(vec![Vec::new(); prompts.len()]);
        }
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + options.max_new_tokens;
        let group = (CACHE / (2 * c.layers * c.kv_width() * longest)).max(1);
        let mut answers = Vec::with_capacity(prompts.len());
        for group in prompts.chunks(group) {
            answers.extend(in_pool(|| self.generate_group(group, options))?);
        }
        Ok(answers)
    }

    fn generate_group(&self, prompts: &[Vec<u32>], options: &Generate) -> Result<Vec<Vec<u32>>> {
        let shared = if prompts.len() > 1 { shared_prefix(prompts) } else { 0 };
        let mut sequences = self.sequences(&prompts[0][..shared], prompts.len())?;
        let mut answers = vec![Vec::new(); prompts.len()];
        let mut open: Vec<usize> = (0..prompts.len()).collect();
        let mut next: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt[shared..].to_vec()).collect();
        for step in 1..=options.max_new_tokens {
            let tokens = argmax_rows(&sequences.logits(&next)?)?;
            let kept = self.accept(&mut open, &tokens, &mut answers, options)?;
            if open.is_empty() || step == options.max_new_tokens {
                break;
            }
            next = kept.iter().map(|index| vec![tokens[*index]]).collect();
            sequences.select(&kept)?;
        }
        drop(sequences);
        self.trim();
        Ok(answers)
    }

    /// Appends each open prompt's token, closes those that end, and returns which places stay open.
    fn accept(
        &self,
        open: &mut Vec<usize>,
        tokens: &[u32],
        answers: &mut [Vec<u32>],
        options: &Generate,
    ) -> Result<Vec<usize>> {
        let mut kept = Vec::with_capacity(open.len());
        for (place, (prompt, token)) in open.iter().zip(tokens).enumerate() {
            if self.tokenizer().eos().contains(token) {
                continue;
            }
            answers[*prompt].push(*token);
            if !(options.stop_at_newline && self.tokenizer().decode(&[*token])?.contains('\n')) {
                kept.push(place);
            }
        }
        *open = kept.iter().map(|place| open[*place]).collect();
        Ok(kept)
    }
}

/// Tokens all prompts begin with, leaving each at least one of its own.
pub(super) fn shared_prefix(prompts: &[Vec<u32>]) -> usize {
    let most = prompts.iter().map(Vec::len).min().unwrap_or(0).saturating_sub(1);
    (0..most).find(|at| prompts.iter().any(|p| p[*at] != prompts[0][*at])).unwrap_or(most)
}

/// Index of the first largest value of each row; values that are not numbers never win.
fn argmax_rows(logits: &candle_core::Tensor) -> Result<Vec<u32>> {
    let best = |row: Vec<f32>| {
        let first = (0, f32::NEG_INFINITY);
        row.iter().enumerate().fold(first, |best, (index, v)| if *v > best.1 { (index, *v) } else { best }).0
            as u32
    };
    Ok(logits.to_vec2::<f32>()?.into_par_iter().map(best).collect())
}

#[cfg(test)]
mod tests {
    use super::super::capture::{Batch, Logits, Want};
    use super::super::tests::{ids, small, tokenizer};
    use super::*;

    #[test]
    fn cached_decoding_equals_reading_everything_anew() {
        let mut config = small();
        config.layer_kinds[1].window = Some(5);
        config.attention_softcap = Some(3.0);
        let model = Model::random("m", config, tokenizer(40), 3).unwrap();
        let start = ids(11, 40, 5);
        let prompts: Vec<Vec<u32>> = [(4, 1), (1, 2), (7, 3), (4, 4)]
            .map(|(length, seed)| [start.clone(), ids(length, 40, seed)].concat())
            .to_vec();
        let options = Generate { max_new_tokens: 12, stop_at_newline: false };
        let cached = model.generate(&prompts, &options).unwrap();
        // Every text read anew for each token.
        for (prompt, answer) in prompts.iter().zip(&cached) {
            for (at, token) in answer.iter().enumerate() {
                let text = [prompt.as_slice(), &answer[..at]].concat();
                let want = Want { logits: Logits::Last, capture: None };
                let logits = model.forward(&Batch::new(&[text]), &want).unwrap().logits.unwrap();
                assert_eq!(argmax_rows(&logits).unwrap(), [*token]);
            }
        }
        assert!(cached.iter().all(|answer| answer.len() == 12));
        for (prompt, answer) in prompts.iter().zip(&cached) {
            assert_eq!(&model.generate(std::slice::from_ref(prompt), &options).unwrap()[0], answer);
        }
    }

    #[test]
    fn the_shared_prefix_leaves_every_prompt_a_token() {
        assert_eq!(shared_prefix(&[vec![1, 2, 3], vec![1, 2]]), 1);
        assert_eq!(shared_prefix(&[vec![1, 2, 3], vec![1, 5, 3]]), 1);
        assert_eq!(shared_prefix(&[vec![1], vec![2]]), 0);
    }
}

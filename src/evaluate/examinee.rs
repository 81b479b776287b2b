//! What a quiz needs of a language model.

use super::{Perplexity, Quiz, QuizResult};
use crate::corpus::{Corpus, Document};
use crate::error::Result;
use crate::model::{Batch, Generate, Model};

/// A causal language model that can be quizzed: [`Model`], or anything else that answers.
pub trait Examinee {
    /// For people.
    fn name(&self) -> &str;

    /// Identifies the weights.
    fn hash(&self) -> &str;

    /// On which kind of device and in which type it computes, unless on the CPU in f32: answers of one are not those of
    /// another.
    fn arithmetic(&self) -> Option<String> {
        None
    }

    /// The most tokens one text may have, prompt and answer together.
    fn max_positions(&self) -> usize;

    /// Token ids of `text`, with the start token where the model wants one.
    ///
    /// # Errors
    /// When `text` cannot be tokenised.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;

    /// Text of token ids.
    ///
    /// # Errors
    /// When an id is unknown.
    fn decode(&self, ids: &[u32]) -> Result<String>;

    /// Goes on greedily from each prompt for at most `max_new_tokens` tokens, stopping early after a line end or an
    /// end token; returns the new ids only, one row a prompt.
    ///
    /// # Errors
    /// When the model cannot run.
    fn answer(&self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<Vec<u32>>>;

    /// ln p(token t | tokens before t) of each text, one entry a token, the first 0.
    ///
    /// # Errors
    /// When the model cannot run.
    fn log_probs(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>>;

    /// ln p of each continuation's tokens after its prompt: `continuations[i]` are those of `prompts[i]`, one row each.
    ///
    /// # Errors
    /// When the model cannot run.
    fn continuation_log_probs(
        &self,
        prompts: &[Vec<u32>],
        continuations: &[Vec<Vec<u32>>],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        let one = |(prompt, rests): (&Vec<u32>, &Vec<Vec<u32>>)| {
            let whole: Vec<Vec<u32>> = rests.iter().map(|rest| [prompt.as_slice(), rest].concat()).collect();
            let rows = self.log_probs(&whole)?;
            Ok(rows.into_iter().map(|row| row[prompt.len()..].to_vec()).collect())
        };
        prompts.iter().zip(continuations).map(one).collect()
    }
}

/// Most f32 logits held at once by [`Examinee::log_probs`] of a [`Model`]: 512 MiB.
const LOGITS: usize = 1 << 27;

impl Examinee for Model {
    fn name(&self) -> &str {
        Model::name(self)
    }

    fn hash(&self) -> &str {
        Model::hash(self)
    }

    fn arithmetic(&self) -> Option<String> {
        self.device().noted_arithmetic()
    }

    fn max_positions(&self) -> usize {
        self.config().max_positions
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer().encode(text)?.ids)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer().decode(ids)
    }

    fn answer(&self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<Vec<u32>>> {
        self.generate(prompts, &Generate { max_new_tokens, stop_at_newline: true })
    }

    fn log_probs(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let most = (LOGITS / self.config().vocab_size).max(1);
        let mut rows = Vec::with_capacity(texts.len());
        let mut from = 0;
        while from < texts.len() {
            let mut to = from + 1;
            let mut tokens = texts[from].len();
            while to < texts.len() && tokens + texts[to].len() <= most {
                tokens += texts[to].len();
                to += 1;
            }
            rows.extend(self.token_log_probs(&Batch::new(&texts[from..to]))?);
            from = to;
        }
        Ok(rows)
    }

    fn continuation_log_probs(
        &self,
        prompts: &[Vec<u32>],
        continuations: &[Vec<Vec<u32>>],
    ) -> Result<Vec<Vec<Vec<f32>>>> {
        Model::continuation_log_probs(self, prompts, continuations)
    }
}

impl Model {
    /// Asks every question of `corpus`: [`quiz`](super::quiz()).
    ///
    /// # Errors
    /// As [`quiz`](super::quiz()).
    pub fn quiz(&self, corpus: &Corpus, quiz: Quiz) -> Result<QuizResult> {
        super::quiz(self, corpus, &quiz)
    }

    /// Perplexity on held-out `texts`: [`perplexity`](super::perplexity()).
    ///
    /// # Errors
    /// As [`perplexity`](super::perplexity()).
    pub fn perplexity(&self, texts: &[Document]) -> Result<Perplexity> {
        super::perplexity(self, texts)
    }
}

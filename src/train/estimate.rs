//! How much memory a run will need, before it starts.

use serde::{Deserialize, Serialize};

use super::batch::Example;
use super::checkpoint;
use super::params::{Finetune, Method, Settings};
use super::trainer::prepare;
use crate::corpus::Corpus;
use crate::error::Result;
use crate::memory::{self, readable};
use crate::model::Model;

/// Memory a run is expected to need, in bytes, from the shapes of the model and of the largest batch the texts can make.
/// The program itself and its tokenizer come on top: 50 to 200 MB, by the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Weights of the model the run begins with, in the types of their file.
    pub weights: u64,
    /// What is trained, f32: adapters, or a copy of every weight.
    pub trainable: u64,
    /// Gradients of what is trained; two sets where batches are accumulated.
    pub gradients: u64,
    /// AdamW's two running means.
    pub optimizer: u64,
    /// Activations of the largest forward and backward pass.
    pub activations: u64,
    /// Tokens of that pass.
    pub tokens: usize,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.trainable + self.gradients + self.optimizer + self.activations
    }

    /// What this process will hold at most, the model being loaded: what it holds now (the program, its tokenizer, the
    /// weights) and all but the weights. [`MemoryEstimate::total`] where the system does not tell.
    pub fn peak(&self) -> u64 {
        let now = memory::resident().unwrap_or(self.weights);
        now.max(self.weights) + self.total() - self.weights
    }

    pub(super) fn new(model: &Model, settings: &Settings, examples: &[Example]) -> Result<MemoryEstimate> {
        let variables = match &settings.method {
            Method::Lora(lora) => {
                let adapted = model.with_lora(lora, settings.seed)?;
                adapted.trainable().values().map(|variable| variable.elem_count()).sum()
            }
            Method::Full => model.parameter_count(),
        };
        let trainable = (variables * size_of::<f32>()) as u64;
        let mut lengths: Vec<usize> = examples.iter().map(|example| example.ids.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let tokens = if settings.packing {
            lengths.iter().sum::<usize>().min(settings.batch_size * settings.max_length)
        } else {
            lengths.iter().take(settings.batch_size).sum()
        };
        let sets = if settings.gradient_accumulation_steps > 1 { 2 } else { 1 };
        Ok(MemoryEstimate {
            weights: model.weight_bytes(),
            trainable,
            gradients: sets * trainable,
            optimizer: 2 * trainable,
            activations: model.training_pass_bytes(tokens, settings.gradient_checkpointing),
            tokens,
        })
    }
}

impl std::fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} (weights {}, trained {}, gradients {}, optimiser {}, activations of {} tokens {})",
            readable(self.total()),
            readable(self.weights),
            readable(self.trainable),
            readable(self.gradients),
            readable(self.optimizer),
            self.tokens,
            readable(self.activations)
        )
    }
}

impl Finetune {
    /// About the bytes that a run of this `estimate` will write into its [`checkpoint`](Finetune::checkpoint) folder beyond
    /// what is there: a state is written whole before it takes the last one's place.
    pub fn disk_bytes(&self, estimate: &MemoryEstimate) -> u64 {
        let best = if self.evaluation.is_some() { estimate.trainable } else { 0 };
        let held = self.checkpoint.as_deref().map_or(0, checkpoint::held_bytes);
        (2 * (estimate.trainable + estimate.optimizer + best)).saturating_sub(held)
    }

    /// The memory that [`Model::finetune`] of `model` on `corpus` will need.
    ///
    /// # Errors
    /// As [`Model::finetune`] before its first step.
    pub fn estimate(&self, model: &Model, corpus: &Corpus) -> Result<MemoryEstimate> {
        let settings = self.settings()?;
        let prepared = prepare(model, corpus, &settings)?;
        MemoryEstimate::new(model, &settings, &prepared.examples)
    }
}

//! Training that can be trusted: LoRA and full fine-tuning with exact resume, and pretraining of the nano pair.
//!
//! The defaults of [`Finetune`] are the paper's released configuration (section 5). Everything that decides a run is in
//! its [`Settings`]; the same model, corpus and settings give the same bits on the same machine at any number of threads,
//! also when the run was killed and resumed. A loss that is not finite stops the run with the step and the texts named;
//! so does a trainable tensor that the loss does not reach.

mod adapter;
mod batch;
mod checkpoint;
mod engine;
mod estimate;
mod evaluation;
mod lessons;
mod optimizer;
mod params;
mod pretrain;
mod schedule;
mod tensorboard;
mod tensors;
mod trainer;

pub use adapter::Adapter;
pub use batch::{Batching, Example, Prepared, next_token_targets};
pub use engine::{Engine, Options, Outcome, Pass, StepRecord};
pub use estimate::MemoryEstimate;
pub use evaluation::Evaluation;
pub use lessons::Mixture;
pub use optimizer::{AdamW, AdamWConfig, Moments, clip_factor, global_norm};
pub use params::{Finetune, Method, Settings};
pub use pretrain::{Pretrained, PretrainingReport, Recipe, Size, pretrain};
pub use schedule::{LearningRate, Schedule, warmup_steps};
pub use trainer::{EpochRecord, Run};

pub use crate::model::PAPER_TARGETS;

use crate::error::Result;
use crate::model::{LoraConfig, Model, with_values};
use crate::provenance::content_hash;

/// The content hash of a model whose trainable tensors moved away from `base`: those of an adapter, which counts by its scale
/// too, or all weights.
fn trained_hash(base: &str, model: &Model, adapter: Option<&LoraConfig>) -> Result<String> {
    let mut failure = None;
    // One tensor after the other: after full fine-tuning all of them together are as large as the model.
    let tensors = model.trainable().iter().flat_map(|(name, variable)| {
        let bytes = |v: &[f32]| Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
        let bytes = with_values(variable, bytes).unwrap_or_else(|error| {
            failure = Some(error);
            Vec::new()
        });
        [name.as_bytes().to_vec(), bytes]
    });
    let scale = adapter.map(|lora| format!("lora_alpha {} r {}", lora.lora_alpha, lora.r).into_bytes());
    let hash = content_hash(std::iter::once(base.as_bytes().to_vec()).chain(scale).chain(tensors));
    match failure {
        Some(error) => Err(error),
        None => Ok(hash),
    }
}

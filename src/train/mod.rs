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
mod export;
mod lessons;
mod optimizer;
mod params;
mod pretrain;
mod schedule;
mod tensors;
mod trainer;

pub use adapter::Adapter;
pub use batch::{Batching, Example, Prepared, next_token_targets};
pub use engine::{Engine, Options, Outcome, Pass, StepRecord};
pub use export::SavePrecision;
pub use lessons::Mixture;
pub use optimizer::{AdamW, AdamWConfig, Moments, clip_factor, global_norm};
pub use params::{Finetune, Method, PAPER_TARGETS, Settings};
pub use pretrain::{Pretrained, PretrainingReport, Recipe, Size, pretrain};
pub use schedule::{LearningRate, Schedule, warmup_steps};
pub use trainer::{EpochRecord, Run};

use crate::error::Result;
use crate::model::Model;
use crate::provenance::content_hash;

/// The content hash of a model whose trainable tensors moved away from `base`.
fn trained_hash(base: &str, model: &Model) -> Result<String> {
    let mut parts: Vec<Vec<u8>> = vec![base.as_bytes().to_vec()];
    for (name, variable) in model.trainable() {
        parts.push(name.as_bytes().to_vec());
        let bytes =
            optimizer::with_values(variable, |v| Ok(v.iter().flat_map(|x| x.to_le_bytes()).collect()))?;
        parts.push(bytes);
    }
    Ok(content_hash(parts))
}

//! One optimiser step, and the state that a run carries from step to step.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::batch::next_token_targets;
use super::optimizer::{AdamW, AdamWConfig, clip_factor, global_norm};
use crate::error::{Error, Result};
use crate::model::{Batch, Model, TrainPass};
use crate::progress::check_interrupt;
use crate::random::Stream;

/// What one optimiser step did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Counted from 1.
    pub step: usize,
    /// Passes over the texts finished with this step, a fraction.
    pub epoch: f64,
    /// Mean cross-entropy of the predicted tokens, in nats, before the step.
    pub loss: f64,
    /// Rate the step was taken with.
    pub learning_rate: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// Texts of one forward pass and what they must predict.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pass {
    /// Token ids, text by text.
    pub texts: Vec<Vec<u32>>,
    /// For each token of all texts together, the token it must predict; `None` predicts nothing.
    pub targets: Vec<Option<u32>>,
    /// Names of the texts, for messages.
    pub ids: Vec<String>,
}

impl Pass {
    /// Every token predicts its follower.
    pub fn new(texts: Vec<Vec<u32>>, ids: Vec<String>) -> Pass {
        Pass { targets: next_token_targets(&texts), texts, ids }
    }

    fn predicted(&self) -> usize {
        self.targets.iter().flatten().count()
    }
}

/// Loss and size of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Mean cross-entropy of the predicted tokens before the step, in nats.
    pub loss: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
}

/// A model in training with its optimiser: for batches and schedules of one's own. [`Model::finetune`] is made of it.
#[derive(Debug)]
pub struct Engine {
    pub(super) model: Model,
    pub(super) optimizer: AdamW,
    options: Options,
}

/// What every step of a run has in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Blocks are computed again in the backward pass instead of being kept.
    pub gradient_checkpointing: bool,
    /// Decides the dropout of every step.
    pub seed: u64,
}

impl Engine {
    /// Trains the variables of `model`, which [`Model::with_lora`] or [`Model::with_trainable_weights`] made.
    pub fn new(model: Model, adamw: AdamWConfig, options: Options) -> Engine {
        Engine { model, optimizer: AdamW::new(adamw), options }
    }

    /// The model as trained so far.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// One optimiser step over `passes`; every predicted token weighs the same, whichever pass it is in.
    /// `step`, counted from 1, decides the dropout.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the step and the texts; a variable that the loss does not reach, with its name.
    pub fn step(&mut self, passes: &[Pass], step: usize, learning_rate: f64) -> Result<Outcome> {
        let predicted: usize = passes.iter().map(Pass::predicted).sum();
        if predicted == 0 {
            return Err(Error::Stopped(format!("step {step}: nothing to predict in {}", names(passes))));
        }
        let mut gradients: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut loss = 0.0;
        for (index, pass) in passes.iter().enumerate().filter(|(_, pass)| pass.predicted() > 0) {
            let share = pass.predicted() as f64 / predicted as f64;
            let batch = Batch::new(&pass.texts);
            let dropout = Stream::new(self.options.seed, "dropout", &[step as u64, index as u64]).bits64();
            let how =
                TrainPass { recompute: self.options.gradient_checkpointing, dropout_seed: Some(dropout) };
            let mut pass_loss = self.model.loss_with(&batch, &pass.targets, &how)?;
            if passes.len() > 1 {
                pass_loss = (pass_loss * share)?;
            }
            let value = f64::from(pass_loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(Error::Stopped(format!(
                    "step {step}: the loss is {value} on {}; a smaller learning rate or max_grad_norm may help",
                    names(std::slice::from_ref(pass))
                )));
            }
            loss += value;
            self.accumulate(&pass_loss, &mut gradients)?;
        }
        let norm = global_norm(&gradients)?;
        if !norm.is_finite() {
            return Err(Error::Stopped(format!(
                "step {step}: the gradient is {norm} on {} though the loss is {loss}; a smaller learning rate may help",
                names(passes)
            )));
        }
        let max_norm = self.options.max_grad_norm;
        let scale = if max_norm > 0.0 { clip_factor(norm, max_norm) } else { 1.0 };
        self.optimizer.step(self.model.trainable(), &gradients, learning_rate, scale)?;
        let tokens = passes.iter().flat_map(|pass| &pass.texts).map(Vec::len).sum();
        Ok(Outcome { loss, grad_norm: norm.into(), tokens })
    }

    fn accumulate(&self, loss: &Tensor, gradients: &mut BTreeMap<String, Tensor>) -> Result<()> {
        let found = loss.backward();
        // What stopped the pass comes out as candle's error; an interrupt is told apart here.
        check_interrupt()?;
        let mut found = found?;
        for (name, variable) in self.model.trainable() {
            // A cut graph trains nothing and says nothing; so it is looked for at every step.
            let Some(gradient) = found.remove(variable) else {
                return Err(Error::Stopped(format!(
                    "{name} is to be trained but the loss does not reach it (no gradient); \
                     this is a fault of the model's differentiable path, not of the data"
                )));
            };
            match gradients.get_mut(name) {
                Some(sum) => *sum = (&*sum + gradient)?,
                None => {
                    gradients.insert(name.clone(), gradient);
                }
            }
        }
        Ok(())
    }
}

/// The texts of `passes` by name, the first few of them.
fn names(passes: &[Pass]) -> String {
    const SHOWN: usize = 8;
    let ids: Vec<&str> = passes.iter().flat_map(|pass| &pass.ids).map(String::as_str).collect();
    let rest = ids.len().saturating_sub(SHOWN);
    let shown = ids[..ids.len() - rest].join(", ");
    if rest > 0 { format!("the texts {shown} and {rest} more") } else { format!("the texts {shown}") }
}

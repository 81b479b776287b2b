//! One optimiser step, and the state that a run carries from step to step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::batch::next_token_targets;
use super::optimizer::{AdamW, AdamWConfig, clip_factor, global_norm};
use crate::error::{Error, Result};
use crate::files::write_text;
use crate::model::{Batch, Model, TrainPass};
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
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
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

/// The name under which a batch of a failed step is kept.
const FAILED_BATCH: &str = "failed-batch.json";

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
    failures: Option<PathBuf>,
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
        Engine { model, optimizer: AdamW::new(adamw), options, failures: None }
    }

    /// A step that fails because its loss or gradient is not finite leaves its batch in `folder`, as
    /// `failed-batch.json`: the step, and of each pass the texts' tokens, targets and names. Without a folder it is left
    /// among the system's temporary files.
    pub fn keep_failed_batch(mut self, folder: impl AsRef<Path>) -> Engine {
        self.failures = Some(folder.as_ref().to_path_buf());
        self
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
            let (value, found) = self.model.loss_and_gradients(&batch, &pass.targets, &how)?;
            if !value.is_finite() {
                let pass = std::slice::from_ref(pass);
                return Err(self.failed(
                    format!("the loss is {value}"),
                    "a smaller learning rate or max_grad_norm may help",
                    pass,
                    step,
                )?);
            }
            loss += f64::from(value) * share;
            add(self.model.trainable(), found, share, &mut gradients)?;
        }
        let norm = global_norm(&gradients)?;
        if !norm.is_finite() {
            let what = format!("the gradient is {norm} though the loss is {loss}");
            return Err(self.failed(what, "a smaller learning rate may help", passes, step)?);
        }
        let max_norm = self.options.max_grad_norm;
        let scale = if max_norm > 0.0 { clip_factor(norm, max_norm) } else { 1.0 };
        self.optimizer.step(self.model.trainable(), &gradients, learning_rate, scale)?;
        let tokens = passes.iter().flat_map(|pass| &pass.texts).map(Vec::len).sum();
        Ok(Outcome { loss, grad_norm: norm.into(), tokens })
    }

    /// The error for numbers that are not finite, after keeping the batch they came from.
    fn failed(&self, what: String, remedy: &str, passes: &[Pass], step: usize) -> Result<Error> {
        let path = match &self.failures {
            Some(folder) => folder.join(FAILED_BATCH),
            None => {
                let temporary = std::env::temp_dir();
                let folder = tempfile::Builder::new().prefix("cluescope-").tempdir_in(&temporary);
                folder.map_err(Error::io(&temporary))?.keep().join(FAILED_BATCH)
            }
        };
        let batch = serde_json::json!({"step": step, "reason": what, "passes": passes});
        write_text(&path, &format!("{batch}\n"))?;
        let message = format!("step {step}: {what} on {}; {remedy}", names(passes));
        Ok(Error::Diverged { message, batch: Some(path) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.model.trim();
    }
}

/// Adds `share` of the gradients `found` in one pass to those of the passes before.
fn add(
    trainable: &BTreeMap<String, Var>,
    mut found: BTreeMap<String, Tensor>,
    share: f64,
    gradients: &mut BTreeMap<String, Tensor>,
) -> Result<()> {
    for name in trainable.keys() {
        // A cut graph trains nothing and says nothing; so it is looked for at every step.
        let Some(mut gradient) = found.remove(name) else {
            return Err(Error::Stopped(format!(
                "{name} is to be trained but the loss does not reach it (no gradient); \
                 this is a fault of the model's differentiable path, not of the data"
            )));
        };
        if share != 1.0 {
            gradient = (gradient * share)?;
        }
        if let Some(sum) = gradients.get_mut(name) {
            *sum = (&*sum + gradient)?;
        } else {
            gradients.insert(name.clone(), gradient);
        }
    }
    Ok(())
}

/// The texts of `passes` by name, the first few of them.
fn names(passes: &[Pass]) -> String {
    const SHOWN: usize = 8;
    let ids: Vec<&str> = passes.iter().flat_map(|pass| &pass.ids).map(String::as_str).collect();
    let rest = ids.len().saturating_sub(SHOWN);
    let shown = ids[..ids.len() - rest].join(", ");
    if rest > 0 { format!("the texts {shown} and {rest} more") } else { format!("the texts {shown}") }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::model::{DecoderConfig, Device, LoraConfig};
    use crate::tokens::Tokenizer;

    /// The loss curve of the tensor operations that run on a GPU: that of the CPU's kernels, in bf16 within a twentieth.
    #[test]
    fn tensor_operations_learn_as_the_kernels_do() {
        let tokenizer = Tokenizer::train_bpe(["one two three"], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 4, 2, 48, 32);
        let model = Model::random("m", config, tokenizer, 1).unwrap();
        let lora = LoraConfig { lora_dropout: 0.1, ..LoraConfig::default() };
        let passes: Vec<Pass> = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]]
            .into_iter()
            .map(|text| Pass::new(vec![text.to_vec(), text[2..].to_vec()], vec!["a".into(), "b".into()]))
            .collect();
        let curve = |model: &Model, full: bool, gradient_checkpointing: bool| -> Vec<f64> {
            let trained =
                if full { model.with_trainable_weights() } else { model.with_lora(&lora, 3) }.unwrap();
            let options = Options { max_grad_norm: 1.0, gradient_checkpointing, seed: 5 };
            let mut engine = Engine::new(trained, AdamWConfig::default(), options);
            (1..=30).map(|step| engine.step(&passes, step, 3e-3).unwrap().loss).collect()
        };
        for full in [false, true] {
            let exact = curve(&model, full, false);
            assert!(exact[29] < exact[0] - 0.3, "{exact:?}");
            for (dtype, tolerance) in [(DType::F32, 1e-3), (DType::BF16, 5e-2)] {
                for device in Device::present(dtype) {
                    let there = model.to_device(&device).unwrap();
                    let found = curve(&there, full, false);
                    assert_eq!(found, curve(&there, full, true), "{device}: computed again or kept");
                    for (step, (found, exact)) in found.iter().zip(&exact).enumerate() {
                        let off = (found - exact).abs() / exact.max(1.0);
                        assert!(off < tolerance, "{device}, step {step}: {found} instead of {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_variable_that_the_loss_does_not_reach_stops_the_run_by_name() {
        let tokenizer = Tokenizer::train_bpe(["one two three"], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 16, 1, 2, 2, 16, 16);
        let model = Model::random("m", config, tokenizer, 1).unwrap();
        let options = Options { max_grad_norm: 1.0, gradient_checkpointing: false, seed: 0 };
        let pass = || [Pass::new(vec![vec![1, 2, 3]], vec!["a".into()])];
        for (cut, expected) in [(false, None), (true, Some("layers.0.mlp.gate_proj.weight is to be trained"))]
        {
            let mut trained = model.with_trainable_weights().unwrap();
            if cut {
                trained = trained.with_cut("layers.0.mlp.gate_proj.weight");
            }
            let before: Vec<f32> = trained.trainable()["norm.weight"].to_vec1().unwrap();
            let mut engine = Engine::new(trained, AdamWConfig::default(), options);
            let outcome = engine.step(&pass(), 1, 1e-3);
            let after: Vec<f32> = engine.model().trainable()["norm.weight"].to_vec1().unwrap();
            match expected {
                None => {
                    outcome.unwrap();
                    assert_ne!(before, after);
                }
                Some(part) => {
                    let message = outcome.unwrap_err().to_string();
                    assert!(message.starts_with(part), "{message}");
                    assert_eq!(before, after, "nothing moves in a step that fails");
                }
            }
        }
    }
}

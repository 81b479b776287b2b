//! What can be chosen about a training run, checked once before it starts.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::batch::Batching;
use super::engine::Options;
use super::optimizer::AdamWConfig;
use super::schedule::{LearningRate, Schedule, warmup_steps};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::LoraConfig;

/// Which weights learn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Low-rank adapters beside frozen projections.
    Lora(#[serde(with = "LoraFields")] LoraConfig),
    /// Every weight.
    Full,
}

/// How the model's [`LoraConfig`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "LoraConfig")]
struct LoraFields {
    r: usize,
    lora_alpha: f32,
    lora_dropout: f32,
    target_modules: Vec<String>,
}

/// The values of one run, within their ranges. Made by [`Finetune::settings`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which weights learn.
    pub method: Method,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Decay after the warm-up.
    pub schedule: Schedule,
    /// Share of the steps spent warming up.
    pub warmup_ratio: f64,
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// Longest gradient, over all trainable tensors together; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Passes over the texts.
    pub epochs: usize,
    /// Optimiser steps in all; overrides `epochs` when set.
    pub max_steps: Option<usize>,
    /// Texts (windows when packing) in one forward pass.
    pub batch_size: usize,
    /// Forward passes an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Tokens after which a text is cut.
    pub max_length: usize,
    /// Several texts a window.
    pub packing: bool,
    /// Blocks are computed again in the backward pass instead of being kept.
    pub gradient_checkpointing: bool,
    /// Share of input tokens replaced by random ones while the targets stay; none where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoise: Option<f64>,
    /// Decides adapter initialisation, order, dropout and noise.
    pub seed: u64,
    /// Optimiser steps between evaluations; 0 is each epoch's end. Without texts to evaluate on it has no effect.
    pub eval_steps: usize,
    /// Evaluations without a lower loss after which the run ends.
    pub early_stopping_patience: Option<usize>,
    /// Whether the run returns what it had learned at its lowest evaluation loss.
    pub load_best_model_at_end: bool,
}

/// How to fine-tune; the defaults are the paper's released configuration (section 5), in f32 and without
/// quantising the base.
///
/// | option | default | purpose | range |
/// |---|---|---|---|
/// | [`lora`](Finetune::lora) / [`full`](Finetune::full) | LoRA, r 16 | which weights learn | r 1 to 4096 |
/// | [`lora_alpha`](Finetune::lora_alpha) | 16 | adapter scale is `lora_alpha / r` | above 0, to 1e6 |
/// | [`lora_dropout`](Finetune::lora_dropout) | 0 | dropout before the adapter | 0 to below 1 |
/// | [`target_modules`](Finetune::target_modules) | q, k, v, o, gate, up, down | adapted projections | names ending in `_proj` |
/// | [`learning_rate`](Finetune::learning_rate) | 5e-4 | peak rate | 0 to 1 |
/// | [`schedule`](Finetune::schedule) | linear | decay | linear, cosine, constant |
/// | [`warmup_ratio`](Finetune::warmup_ratio) | 0.1 | share of steps warming up | 0 to 1 |
/// | [`betas`](Finetune::betas) | 0.9, 0.999 | AdamW's decays | 0 to below 1 |
/// | [`epsilon`](Finetune::epsilon) | 1e-8 | AdamW's denominator | above 0, to 1 |
/// | [`weight_decay`](Finetune::weight_decay) | 0 | decoupled decay | 0 to 1 |
/// | [`max_grad_norm`](Finetune::max_grad_norm) | 1 | clipping; 0 is off | 0 to 1e6 |
/// | [`epochs`](Finetune::epochs) | 20 | passes over the texts | 1 to 1,000,000 |
/// | [`max_steps`](Finetune::max_steps) | – | optimiser steps instead of epochs | 1 to 1,000,000,000 |
/// | [`batch_size`](Finetune::batch_size) | 8 | texts a forward pass | 1 to 65,536 |
/// | [`gradient_accumulation_steps`](Finetune::gradient_accumulation_steps) | 1 | forward passes a step | 1 to 65,536 |
/// | [`max_length`](Finetune::max_length) | 1024 | tokens after which a text is cut | 2 to 1,048,576 |
/// | [`packing`](Finetune::packing) | off | several texts a window of `max_length` | on, off |
/// | [`gradient_checkpointing`](Finetune::gradient_checkpointing) | off | less memory for a third more work, same bits | on, off |
/// | [`denoise`](Finetune::denoise) | – | share of input tokens replaced, "D-AR" | 0 to 1 |
/// | [`seed`](Finetune::seed) | 0 | initialisation, order, dropout, noise | any |
/// | [`evaluate`](Finetune::evaluate) | – | texts whose loss is looked at while training | a corpus |
/// | [`eval_steps`](Finetune::eval_steps) | 0: each epoch's end | steps between evaluations | any, with `evaluate` |
/// | [`early_stopping_patience`](Finetune::early_stopping_patience) | – | evaluations without a lower loss before the run ends | from 1, with `evaluate` |
/// | [`load_best_model_at_end`](Finetune::load_best_model_at_end) | on | the result is the step of lowest evaluation loss | on, off |
/// | [`checkpoint`](Finetune::checkpoint) | – | folder to save to and resume from | a folder |
/// | [`save_every`](Finetune::save_every) | 45 s, see [`save_every`](crate::files::save_every()) | time between checkpoints | any |
/// | [`save_steps`](Finetune::save_steps) | 0: by time alone | steps between checkpoints, beside the time | any |
/// | [`logging_dir`](Finetune::logging_dir) | – | folder for TensorBoard event files | a folder |
///
/// ```
/// use cluescope::train::Finetune;
/// let settings = Finetune::default().learning_rate(1e-3).epochs(10).settings()?;
/// assert_eq!(settings.batch_size, 8);
/// let error = Finetune::lora(0).settings().unwrap_err();
/// assert!(error.to_string().starts_with("r = 0: "));
/// # Ok::<(), cluescope::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Finetune {
    pub(super) settings: Settings,
    pub(super) checkpoint: Option<PathBuf>,
    pub(super) save_steps: usize,
    pub(super) save_every: Option<Duration>,
    pub(super) evaluation: Option<Corpus>,
    pub(super) logging_dir: Option<PathBuf>,
    // Asking for an adapter option on a full run is a mistake to report, not to swallow.
    misplaced: Option<&'static str>,
}

impl Default for Finetune {
    fn default() -> Self {
        Finetune {
            settings: Settings {
                method: Method::Lora(LoraConfig::default()),
                learning_rate: 5e-4,
                schedule: Schedule::Linear,
                warmup_ratio: 0.1,
                adamw: AdamWConfig::default(),
                max_grad_norm: 1.0,
                epochs: 20,
                max_steps: None,
                batch_size: 8,
                gradient_accumulation_steps: 1,
                max_length: 1024,
                packing: false,
                gradient_checkpointing: false,
                denoise: None,
                seed: 0,
                eval_steps: 0,
                early_stopping_patience: None,
                load_best_model_at_end: true,
            },
            checkpoint: None,
            save_steps: 0,
            save_every: None,
            evaluation: None,
            logging_dir: None,
            misplaced: None,
        }
    }
}

impl Finetune {
    /// LoRA of rank `r`; other values as in the paper.
    pub fn lora(r: usize) -> Self {
        Self::default().adapt("r", |lora| lora.r = r)
    }

    /// Every weight learns. The paper's rate of 5e-4 is for adapters; 2e-4 is set here.
    pub fn full() -> Self {
        let mut full = Self::default();
        full.settings.method = Method::Full;
        full.settings.learning_rate = 2e-4;
        full
    }

    fn adapt(mut self, name: &'static str, change: impl FnOnce(&mut LoraConfig)) -> Self {
        match &mut self.settings.method {
            Method::Lora(lora) => change(lora),
            Method::Full => self.misplaced = Some(name),
        }
        self
    }

    /// The adapter's scale is `lora_alpha / r`.
    pub fn lora_alpha(self, lora_alpha: f32) -> Self {
        self.adapt("lora_alpha", |lora| lora.lora_alpha = lora_alpha)
    }

    /// Dropout on the adapter's input.
    pub fn lora_dropout(self, lora_dropout: f32) -> Self {
        self.adapt("lora_dropout", |lora| lora.lora_dropout = lora_dropout)
    }

    /// Names of the projections that get an adapter, such as `q_proj`.
    pub fn target_modules<S: Into<String>>(self, target_modules: impl IntoIterator<Item = S>) -> Self {
        let names = target_modules.into_iter().map(Into::into).collect();
        self.adapt("target_modules", |lora| lora.target_modules = names)
    }

    /// Highest learning rate.
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.settings.learning_rate = learning_rate;
        self
    }

    /// Decay after the warm-up.
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.settings.schedule = schedule;
        self
    }

    /// Share of the steps spent warming up.
    pub fn warmup_ratio(mut self, warmup_ratio: f64) -> Self {
        self.settings.warmup_ratio = warmup_ratio;
        self
    }

    /// AdamW's β₁ and β₂.
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.settings.adamw.beta1 = beta1;
        self.settings.adamw.beta2 = beta2;
        self
    }

    /// AdamW's ε.
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.settings.adamw.epsilon = epsilon;
        self
    }

    /// Decoupled weight decay.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.settings.adamw.weight_decay = weight_decay;
        self
    }

    /// Longest gradient; 0 switches clipping off.
    pub fn max_grad_norm(mut self, max_grad_norm: f64) -> Self {
        self.settings.max_grad_norm = max_grad_norm;
        self
    }

    /// Passes over the texts.
    pub fn epochs(mut self, epochs: usize) -> Self {
        self.settings.epochs = epochs;
        self
    }

    /// Optimiser steps in all, instead of epochs; for comparisons at equal steps.
    pub fn max_steps(mut self, max_steps: usize) -> Self {
        self.settings.max_steps = Some(max_steps);
        self
    }

    /// Texts (windows when packing) in one forward pass.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.settings.batch_size = batch_size;
        self
    }

    /// Forward passes an optimiser step; every token of the step counts the same, whichever pass it is in.
    pub fn gradient_accumulation_steps(mut self, gradient_accumulation_steps: usize) -> Self {
        self.settings.gradient_accumulation_steps = gradient_accumulation_steps;
        self
    }

    /// Tokens after which a text is cut.
    pub fn max_length(mut self, max_length: usize) -> Self {
        self.settings.max_length = max_length;
        self
    }

    /// Several texts a window; see [`Batching`].
    pub fn packing(mut self, packing: bool) -> Self {
        self.settings.packing = packing;
        self
    }

    /// Computes blocks again in the backward pass instead of keeping what they computed: about a tenth of the memory for a
    /// third more work. The result keeps its bits.
    pub fn gradient_checkpointing(mut self, gradient_checkpointing: bool) -> Self {
        self.settings.gradient_checkpointing = gradient_checkpointing;
        self
    }

    /// Replaces this share of the input tokens by random ones, anew in each epoch, while the targets stay: denoising
    /// auto-regression, see [`Denoise`](crate::augment::Denoise).
    pub fn denoise(mut self, share: f64) -> Self {
        self.settings.denoise = Some(share);
        self
    }

    /// Decides adapter initialisation, order, dropout and noise.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Saves the run's state to `folder`, and goes on from there when it holds the state of the same run by the same version.
    pub fn checkpoint(mut self, folder: impl AsRef<Path>) -> Self {
        self.checkpoint = Some(folder.as_ref().to_path_buf());
        self
    }

    /// Also saves a checkpoint each time so many optimiser steps are done; 0 saves by time alone.
    pub fn save_steps(mut self, save_steps: usize) -> Self {
        self.save_steps = save_steps;
        self
    }

    /// Time between checkpoints: a killed run redoes at most this much, and the step it was in.
    pub fn save_every(mut self, time: Duration) -> Self {
        self.save_every = Some(time);
        self
    }

    /// Looks at the loss on `corpus` while training: [`Run::evaluations`](super::Run::evaluations). Its texts should be
    /// none of those trained on.
    pub fn evaluate(mut self, corpus: &Corpus) -> Self {
        self.evaluation = Some(corpus.clone());
        self
    }

    /// Optimiser steps between evaluations; 0 evaluates at the end of every epoch.
    pub fn eval_steps(mut self, eval_steps: usize) -> Self {
        self.settings.eval_steps = eval_steps;
        self
    }

    /// Ends the run after so many evaluations in a row without a loss below the lowest so far.
    pub fn early_stopping_patience(mut self, evaluations: usize) -> Self {
        self.settings.early_stopping_patience = Some(evaluations);
        self
    }

    /// Whether the run returns what it had learned at its lowest evaluation loss rather than at its end. The best is
    /// kept in `best.safetensors` of the checkpoint's folder, in memory without one.
    pub fn load_best_model_at_end(mut self, load_best: bool) -> Self {
        self.settings.load_best_model_at_end = load_best;
        self
    }

    /// Writes loss, learning rate, gradient norm and evaluation loss as TensorBoard event files into `folder`:
    /// `tensorboard --logdir FOLDER` shows them.
    pub fn logging_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.logging_dir = Some(folder.as_ref().to_path_buf());
        self
    }

    /// The checked values.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first value outside its range.
    pub fn settings(&self) -> Result<Settings> {
        let s = &self.settings;
        if let Some(name) = self.misplaced {
            return Err(Error::option(
                name,
                "set",
                "an adapter's option; it has no meaning with Finetune::full()",
            ));
        }
        if let Method::Lora(lora) = &s.method {
            whole("r", lora.r, 1..=4096)?;
            if !(lora.lora_alpha > 0.0 && lora.lora_alpha <= 1e6) {
                return Err(Error::option("lora_alpha", lora.lora_alpha, "a number above 0, at most 1e6"));
            }
            below_one("lora_dropout", lora.lora_dropout.into())?;
            if lora.target_modules.is_empty() {
                return Err(Error::option("target_modules", "[]", "at least one projection, such as q_proj"));
            }
        }
        real("learning_rate", s.learning_rate, 0.0..=1.0)?;
        real("warmup_ratio", s.warmup_ratio, 0.0..=1.0)?;
        below_one("beta1", s.adamw.beta1)?;
        below_one("beta2", s.adamw.beta2)?;
        if !(s.adamw.epsilon > 0.0 && s.adamw.epsilon <= 1.0) {
            return Err(Error::option("epsilon", s.adamw.epsilon, "a number above 0, at most 1"));
        }
        real("weight_decay", s.adamw.weight_decay, 0.0..=1.0)?;
        real("max_grad_norm", s.max_grad_norm, 0.0..=1e6)?;
        whole("epochs", s.epochs, 1..=1_000_000)?;
        if let Some(steps) = s.max_steps {
            whole("max_steps", steps, 1..=1_000_000_000)?;
        }
        whole("batch_size", s.batch_size, 1..=65_536)?;
        if let Some(patience) = s.early_stopping_patience {
            whole("early_stopping_patience", patience, 1..=1_000_000)?;
        }
        if self.evaluation.is_none() {
            let alone = [
                ("early_stopping_patience", s.early_stopping_patience.unwrap_or(0)),
                ("eval_steps", s.eval_steps),
            ];
            if let Some((name, value)) = alone.into_iter().find(|(_, value)| *value > 0) {
                return Err(Error::option(name, value, "needs texts to evaluate on: Finetune::evaluate"));
            }
        }
        whole("gradient_accumulation_steps", s.gradient_accumulation_steps, 1..=65_536)?;
        whole("max_length", s.max_length, 2..=1_048_576)?;
        real("denoise", s.denoise.unwrap_or(0.0), 0.0..=1.0)?;
        if s.denoise.is_some() && s.packing {
            return Err(Error::option(
                "denoise",
                "set",
                "not with packing, whose windows hold several texts",
            ));
        }
        Ok(s.clone())
    }
}

impl Settings {
    /// The learning rate of every step of a run of `total_steps`.
    pub fn rate(&self, total_steps: usize) -> LearningRate {
        LearningRate {
            peak: self.learning_rate,
            schedule: self.schedule,
            warmup_steps: warmup_steps(total_steps, self.warmup_ratio),
            total_steps,
        }
    }

    /// What every step has in common.
    pub(super) fn options(&self) -> Options {
        Options {
            max_grad_norm: self.max_grad_norm,
            gradient_checkpointing: self.gradient_checkpointing,
            seed: self.seed,
        }
    }

    /// How texts are put together.
    pub fn batching(&self) -> Batching {
        Batching {
            batch_size: self.batch_size,
            max_length: self.max_length,
            packing: self.packing,
            seed: self.seed,
        }
    }
}

fn real(name: &'static str, value: f64, range: RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::option(name, value, format!("a number from {} to {}", range.start(), range.end())))
}

fn below_one(name: &'static str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        Ok(())
    } else {
        Err(Error::option(name, value, "a number from 0 to below 1"))
    }
}

fn whole(name: &'static str, value: usize, range: RangeInclusive<usize>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::option(name, value, format!("a whole number from {} to {}", range.start(), range.end())))
}

#[cfg(test)]
mod tests {
    use super::super::PAPER_TARGETS;
    use super::*;

    #[test]
    fn the_default_is_the_papers_configuration() {
        let s = Finetune::default().settings().unwrap();
        let Method::Lora(lora) = &s.method else { panic!("LoRA is the default") };
        assert_eq!((lora.r, lora.lora_alpha, lora.lora_dropout), (16, 16.0, 0.0));
        assert_eq!(lora.target_modules, PAPER_TARGETS);
        assert_eq!(s.adamw, AdamWConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 });
        assert_eq!(
            (s.learning_rate, s.schedule, s.warmup_ratio, s.max_grad_norm),
            (5e-4, Schedule::Linear, 0.1, 1.0)
        );
        assert_eq!((s.batch_size, s.gradient_accumulation_steps, s.epochs, s.max_length), (8, 1, 20, 1024));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let cases = [
            ("r", Finetune::lora(5000)),
            ("lora_alpha", Finetune::lora(8).lora_alpha(0.0)),
            ("lora_dropout", Finetune::lora(8).lora_dropout(1.0)),
            ("target_modules", Finetune::lora(8).target_modules(Vec::<String>::new())),
            ("lora_alpha", Finetune::full().lora_alpha(4.0)),
            ("learning_rate", Finetune::full().learning_rate(f64::NAN)),
            ("warmup_ratio", Finetune::full().warmup_ratio(-0.1)),
            ("beta2", Finetune::full().betas(0.9, 1.0)),
            ("epsilon", Finetune::full().epsilon(0.0)),
            ("weight_decay", Finetune::full().weight_decay(2.0)),
            ("max_grad_norm", Finetune::full().max_grad_norm(-1.0)),
            ("epochs", Finetune::full().epochs(0)),
            ("max_steps", Finetune::full().max_steps(0)),
            ("batch_size", Finetune::full().batch_size(0)),
            ("gradient_accumulation_steps", Finetune::full().gradient_accumulation_steps(0)),
            ("max_length", Finetune::full().max_length(1)),
            ("denoise", Finetune::full().denoise(1.5)),
            ("denoise", Finetune::full().denoise(0.1).packing(true)),
            ("eval_steps", Finetune::full().eval_steps(5)),
            ("early_stopping_patience", Finetune::full().early_stopping_patience(2)),
            (
                "early_stopping_patience",
                Finetune::full().evaluate(&Corpus::default()).early_stopping_patience(0),
            ),
        ];
        for (name, finetune) in cases {
            match finetune.settings() {
                Err(Error::Option { name: refused, .. }) => assert_eq!(refused, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}

//! Pretraining a small decoder from nothing, for the bundled nano pair.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};

use super::checkpoint::{self, History, Identity};
use super::engine::{Engine, Options, Pass, StepRecord};
use super::lessons::{Lesson, Lessons, Mixture, SPLIT};
use super::optimizer::AdamWConfig;
use super::schedule::{LearningRate, Schedule, warmup_steps};
use crate::error::{Error, Result};
use crate::files::{self, as_read_back, make_ready, read_text, save_every, write_text};
use crate::model::{Batch, DecoderConfig, Device, Model, Position};
use crate::progress::Progress;
use crate::provenance::{content_hash, program};
use crate::tokens::Tokenizer;

/// Which of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// The smaller model, the one that is taught.
    Small,
    /// The larger model, whose attention knows better.
    Large,
}

/// Everything that decides a pretrained model: the same recipe gives the same bits on the same machine.
///
/// Both sizes of a recipe share seed and tokenizer. The decoder is Llama's: RMS norm, rotary positions, gated SiLU,
/// tied embeddings.
///
/// # Pilots
/// What [`Recipe::nano`] is chosen from; losses in nats. *Answers* is the loss a token of answers about people never met, with
/// their biography in the context; "repetition" the loss on repeated random tokens, which falls once the model copies.
///
/// | pilot | seen |
/// |---|---|
/// | PyTorch, 2 layers of 128, texts only, 16 a step, vocabulary 2,048, rate 3e-3 falling to 0 | answers 2.24 after 575 steps; none of 40 questions right with the text in the context |
/// | the same shape on repetition only, weights from N(0, 0.02) | 4.98 after 300 steps, 1.44 after 450, 0.30 after 750 |
/// | … weights from N(0, 1/in), also with query and key biases, or query = key at the start | no faster |
/// | nano-small on repetition, no head looking back | 4.9 at step 514, 0.85 at 733 |
/// | … one head of the first block looking back from the start | 1.1 at step 244, 0.32 at 314 |
/// | … two heads | 0.77 at step 246, 0.26 at 324: the choice |
/// | nano-small, 1,600 steps of 16, a fifth of the texts about residents | answers 0.27; 100 of 100 questions right with the biography; 1 % of the residents' questions right without |
/// | nano-small, 2,400 steps of 16, 0.55 about residents: the choice | answers 0.29; 100 of 100; 94 % of the residents' |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Name of the model.
    pub name: String,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Attention heads, keys and values of their own each.
    pub heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Longest text in tokens.
    pub max_positions: usize,
    /// Tokens of the byte-level BPE vocabulary.
    pub vocab_size: usize,
    /// Heads of the first block that begin by looking at the token before, which is what copying needs first.
    pub look_back_heads: usize,
    /// Texts the vocabulary is learned from.
    pub tokenizer_texts: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Texts a step.
    pub batch_size: usize,
    /// Highest learning rate; a cosine after the warm-up.
    pub learning_rate: f64,
    /// Share of the steps spent warming up.
    pub warmup_ratio: f64,
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// Longest gradient.
    pub max_grad_norm: f64,
    /// What is read.
    pub mixture: Mixture,
    /// Decides weights and texts.
    pub seed: u64,
    /// The recipe whose finished model, as saved, this one goes on from with its tokenizer and a fresh optimiser; the shapes are
    /// that recipe's. `None` begins with random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<Recipe>>,
}

impl Recipe {
    /// The bundled nano pair.
    pub fn nano(size: Size) -> Recipe {
        let small = Recipe {
            name: "nano-small".into(),
            layers: 2,
            hidden_size: 128,
            heads: 4,
            intermediate_size: 384,
            max_positions: 1024,
            vocab_size: 4096,
            look_back_heads: 2,
            tokenizer_texts: 8000,
            steps: 2400,
            batch_size: 16,
            learning_rate: 3e-3,
            warmup_ratio: 0.02,
            adamw: AdamWConfig { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.0 },
            max_grad_norm: 1.0,
            mixture: Mixture {
                residents: 200,
                resident_share: 0.55,
                echo_share: 0.95,
                echo_until: 0.11,
                plain_targets: 0.4,
            },
            seed: 1,
            before: None,
        };
        if size == Size::Small {
            return small;
        }
        let first = Recipe {
            name: "nano-large-first".into(),
            layers: 4,
            hidden_size: 160,
            heads: 5,
            intermediate_size: 448,
            learning_rate: 2.5e-3,
            ..small
        };
        // More layers need longer to read as well as the small model does: three further cycles, with ever fewer residents.
        let again = |name: &str, steps, learning_rate, resident_share, before: &Recipe| Recipe {
            name: name.into(),
            steps,
            learning_rate,
            warmup_ratio: 0.05,
            mixture: Mixture { resident_share, echo_share: 0.0, ..before.mixture.clone() },
            before: Some(Box::new(before.clone())),
            ..before.clone()
        };
        let second = again("nano-large-second", 700, 1.5e-3, 0.3, &first);
        let third = again("nano-large-third", 1200, 1.5e-3, 0.15, &second);
        again("nano-large", 900, 2e-3, 0.05, &third)
    }

    /// The recipes in the order they are run, this one last.
    pub fn cycles(&self) -> Vec<&Recipe> {
        let mut cycles = self.before.as_ref().map_or_else(Vec::new, |before| before.cycles());
        cycles.push(self);
        cycles
    }

    fn config(&self, tokenizer: &Tokenizer) -> DecoderConfig {
        let llama = DecoderConfig::llama(
            tokenizer.vocab_size(),
            self.hidden_size,
            self.layers,
            self.heads,
            self.heads,
            self.intermediate_size,
            self.max_positions,
        );
        DecoderConfig { qkv_bias: true, ..llama }
    }

    fn check(&self) -> Result<()> {
        let shares = [
            ("resident_share", self.mixture.resident_share),
            ("echo_share", self.mixture.echo_share),
            ("echo_until", self.mixture.echo_until),
            ("plain_targets", self.mixture.plain_targets),
            ("warmup_ratio", self.warmup_ratio),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::option(name, share, "a share from 0 to 1"));
            }
        }
        let counts = [
            ("steps", self.steps, 1),
            ("batch_size", self.batch_size, 1),
            ("tokenizer_texts", self.tokenizer_texts, 1),
            ("vocab_size", self.vocab_size, 257),
        ];
        checkpoint::check_steps(self.steps)?;
        if self.look_back_heads > self.heads {
            return Err(Error::option(
                "look_back_heads",
                self.look_back_heads,
                format!("at most heads ({})", self.heads),
            ));
        }
        for (name, value, least) in counts {
            if value < least {
                return Err(Error::option(name, value, format!("at least {least}")));
            }
        }
        if let Some(before) = &self.before {
            before.check()?;
            if before.name == self.name {
                return Err(Error::option(
                    "before.name",
                    &before.name,
                    "another name: both models are saved",
                ));
            }
        }
        if self.mixture.residents > 0 && self.mixture.residents < 8 {
            return Err(Error::option("residents", self.mixture.residents, "none, or at least 8"));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate <= 1.0) {
            return Err(Error::option("learning_rate", self.learning_rate, "a number above 0, at most 1"));
        }
        Ok(())
    }
}

/// A finished pretraining.
#[derive(Debug, Clone)]
pub struct Pretrained {
    /// The model as saved, that is with f16 weights.
    pub model: Model,
    /// What is written beside it.
    pub report: PretrainingReport,
    /// The folder it was saved to.
    pub folder: PathBuf,
}

/// What is written beside the model, as `pretraining.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainingReport {
    /// All that decides the model.
    pub recipe: Recipe,
    /// Version of this package.
    pub cluescope: String,
    /// Group of people the texts are about.
    pub split: String,
    /// Hash of the first texts and the tokenizer.
    pub texts: String,
    /// Weights.
    pub parameters: usize,
    /// Tokens read.
    pub tokens: usize,
    /// Mean loss of the last fiftieth of the steps, in nats.
    pub final_loss: f64,
    /// Step, and mean loss of the answers (nats a token) in texts about people it never met.
    pub probes: Vec<(usize, f64)>,
}

/// Steps between two looks at how well the model reads.
const PROBE_STEPS: usize = 50;
/// Texts of such a look.
const PROBE_TEXTS: u64 = 16;

/// Trains `recipe` from nothing, after the recipes it goes on from, and saves it into `out/{recipe.name}` (f16) with `pretraining.json` beside the weights.
/// The state lies in the same folder while training; the same call goes on from it, and a finished model is read back, whether or
/// not those it went on from are still there.
///
/// # Errors
/// Values out of range, files that cannot be written, another process that trains in the folder, a loss that is not finite,
/// [`Error::Interrupted`] after saving the state.
pub fn pretrain(recipe: &Recipe, out: impl AsRef<Path>) -> Result<Pretrained> {
    recipe.check()?;
    let folder = out.as_ref().join(&recipe.name);
    let _locked = checkpoint::lock(&folder)?;
    // How much room is needed follows from the vocabulary, which takes a while to learn; whether there is any shows at once.
    make_ready(&folder, 0)?;
    let mut lessons = Lessons::new(&recipe.mixture, recipe.seed)?;
    let report_path = folder.join("pretraining.json");
    let wanted = as_read_back(recipe).map_err(|e| Error::format(&report_path, "recipe", e))?;
    let finished = read_report(&report_path).filter(|report| report.recipe == wanted);
    // The last of a chain answers for it: the earlier models may be gone.
    if let Some(report) = finished.as_ref().filter(|report| report.recipe.before.is_some()) {
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
        if fingerprint(&mut lessons, &tokenizer)? == report.texts {
            files::remove(checkpoint::path(&folder))?;
            return saved(recipe, folder, report.clone());
        }
    }
    let before = recipe.before.as_deref().map(|before| pretrain(before, out.as_ref())).transpose()?;
    let tokenizer = match &before {
        Some(before) => before.model.tokenizer().clone(),
        None => {
            let sample = lessons.sample(recipe.tokenizer_texts)?;
            Tokenizer::train_bpe(sample.iter().map(String::as_str), recipe.vocab_size)?
        }
    };
    // A change of the generator is a change of the texts.
    let texts = fingerprint(&mut lessons, &tokenizer)?;
    if let Some(report) = finished.filter(|report| report.texts == texts) {
        // Killed just before, the last run may have left it.
        files::remove(checkpoint::path(&folder))?;
        return saved(recipe, folder, report);
    }
    let base = match before {
        Some(before) => {
            let hash = before.model.hash().to_string();
            before.model.renamed(recipe.name.clone(), hash)
        }
        None => {
            Model::random(recipe.name.clone(), recipe.config(&tokenizer), tokenizer.clone(), recipe.seed)?
        }
    };
    let options =
        Options { max_grad_norm: recipe.max_grad_norm, gradient_checkpointing: false, seed: recipe.seed };
    let start = base.with_trainable_weights()?;
    if recipe.before.is_none() {
        look_back(&start, recipe.look_back_heads)?;
    }
    // The state twice, since it is written whole before it takes the last one's place, and the f16 weights.
    let bytes = (base.parameter_count() * (2 * 3 * size_of::<f32>() + 2)) as u64;
    make_ready(&folder, bytes.saturating_sub(checkpoint::held_bytes(&folder)))?;
    let mut engine = Engine::new(start, recipe.adamw, options).keep_failed_batch(&folder);
    let identity = Identity {
        kind: "pretraining".into(),
        model: base.name().into(),
        model_hash: base.hash().into(),
        program: Some(program()),
        arithmetic: base.device().noted_arithmetic(),
        data: texts.clone(),
        held_out: String::new(),
        settings: serde_json::to_value(recipe).map_err(|e| Error::Stopped(format!("recipe: {e}")))?,
    };
    let mut history = checkpoint::resume(&folder, &identity, recipe.adamw, &mut engine)?.unwrap_or_default();
    let outcome =
        train(recipe, &mut engine, &mut lessons, &tokenizer, &mut history, &mut |engine, history| {
            checkpoint::save(&folder, &identity, engine, history)
        });
    if matches!(outcome, Err(Error::Interrupted)) {
        checkpoint::save(&folder, &identity, &engine, &history)?;
    }
    outcome?;
    engine.model.save_as(&folder, DType::F16)?;
    let last = &history.steps[history.steps.len() - history.steps.len().div_ceil(50)..];
    let report = PretrainingReport {
        recipe: recipe.clone(),
        cluescope: env!("CARGO_PKG_VERSION").into(),
        split: SPLIT.into(),
        texts,
        parameters: engine.model.parameter_count(),
        tokens: history.steps.iter().map(|step| step.tokens).sum(),
        final_loss: last.iter().map(|step| step.loss).sum::<f64>() / last.len().max(1) as f64,
        probes: history.probes,
    };
    let text = serde_json::to_string_pretty(&report).map_err(|e| Error::format(&report_path, "", e))?;
    write_text(&report_path, &format!("{text}\n"))?;
    // The result is whole; the state, six times its size, has done its work.
    files::remove(checkpoint::path(&folder))?;
    saved(recipe, folder, report)
}

/// Size of the biases that [`look_back`] sets: large enough that the token before gets most of the attention.
const LOOK_BACK_BIAS: f64 = 4.0;
/// Rotary frequencies that carry them: the fastest, which tell neighbours apart.
const LOOK_BACK_FREQUENCIES: usize = 6;

/// Sets the query and key biases of the first `heads` heads of block 0 so that each token looks at the one before it.
///
/// With key bias `k = c` on the pair of a rotary frequency `f` and query bias `q` the same vector turned back by `f`, the score of
/// two tokens `n` apart is `c² · Σ cos(f · (n − 1))` beside what their contents add: highest one token back. A head that
/// looks one back is the first half of the copying circuit ("induction head", Olsson et al. 2022), and waiting for it to form
/// is what the first thousand steps of a small model are spent on. Training is free to change it like any other weight.
fn look_back(model: &Model, heads: usize) -> Result<()> {
    let config = model.config();
    let Position::Rope { theta, rotary_dim, .. } = &config.position else { return Ok(()) };
    let half = rotary_dim / 2;
    let (mut queries, mut keys) = (vec![0f32; config.q_width()], vec![0f32; config.kv_width()]);
    for head in 0..heads.min(config.kv_heads) {
        let first = head * config.head_dim;
        for i in 0..LOOK_BACK_FREQUENCIES.min(half) {
            let angle = theta.powf(-((2 * i) as f64) / *rotary_dim as f64);
            keys[first + i] = LOOK_BACK_BIAS as f32;
            queries[first + i] = (LOOK_BACK_BIAS * angle.cos()) as f32;
            queries[first + half + i] = (-LOOK_BACK_BIAS * angle.sin()) as f32;
        }
    }
    for (end, values) in [("q_proj.bias", queries), ("k_proj.bias", keys)] {
        let name = format!("layers.0.self_attn.{end}");
        let bias = model.trainable().iter().find(|(known, _)| known.ends_with(&name));
        let (_, bias) = bias.ok_or_else(|| Error::model(model.name(), format!("no weight {name}")))?;
        bias.set(&Tensor::new(values, bias.device())?)?;
    }
    Ok(())
}

/// The finished model, from its folder: a later call with the same recipe gets the same weights as the first.
fn saved(recipe: &Recipe, folder: PathBuf, report: PretrainingReport) -> Result<Pretrained> {
    // Where it was trained.
    let model = Model::load_onto(&folder.to_string_lossy(), &Device::cpu())?;
    let hash = model.hash().to_string();
    Ok(Pretrained { model: model.renamed(recipe.name.clone(), hash), report, folder })
}

/// `None` for anything that is no such report: then there is no finished model to go by.
fn read_report(path: &Path) -> Option<PretrainingReport> {
    serde_json::from_str(&read_text(path).ok()?).ok()
}

fn fingerprint(lessons: &mut Lessons, tokenizer: &Tokenizer) -> Result<String> {
    let mut parts = vec![tokenizer.hash().as_bytes().to_vec()];
    for index in 0..32 {
        let lesson = lessons.lesson(tokenizer, index, 1.0)?;
        parts.push(lesson.ids.iter().flat_map(|id| id.to_le_bytes()).collect());
    }
    Ok(content_hash(parts))
}

fn train(
    recipe: &Recipe,
    engine: &mut Engine,
    lessons: &mut Lessons,
    tokenizer: &Tokenizer,
    history: &mut History,
    save: &mut dyn FnMut(&Engine, &History) -> Result<()>,
) -> Result<()> {
    let rate = LearningRate {
        peak: recipe.learning_rate,
        schedule: Schedule::Cosine,
        warmup_steps: warmup_steps(recipe.steps, recipe.warmup_ratio),
        total_steps: recipe.steps,
    };
    let (label, earlier) = (format!("pretraining {}", recipe.name), history.steps.len() as u64);
    let progress = Progress::resume(label, recipe.steps as u64, "steps", earlier);
    let curve = |record: &StepRecord| {
        progress.point(("step", record.step as f64), ("loss (nats a token)", record.loss));
    };
    history.steps.iter().for_each(curve);
    let (save_every, mut saved) = (save_every()?, Instant::now());
    let mut smooth = None;
    let probe = lessons.probe(tokenizer, PROBE_TEXTS)?;
    // The last step of an earlier life may have been interrupted in its look.
    look(recipe, &engine.model, &probe, history)?;
    for step in history.steps.len() + 1..=recipe.steps {
        let done = (step - 1) as f64 / recipe.steps as f64;
        let first = (step - 1) as u64 * recipe.batch_size as u64;
        let mut pass = Pass { texts: Vec::new(), targets: Vec::new(), ids: Vec::new() };
        for index in first..first + recipe.batch_size as u64 {
            let mut lesson = lessons.lesson(tokenizer, index, done)?;
            lesson.ids.truncate(recipe.max_positions);
            lesson.targets.truncate(recipe.max_positions);
            pass.texts.push(lesson.ids);
            pass.targets.extend(lesson.targets);
            pass.ids.push(lesson.id);
        }
        let learning_rate = rate.at(step - 1);
        let outcome = engine.step(&[pass], step, learning_rate)?;
        let mean = smooth.map_or(outcome.loss, |mean: f64| mean + 0.05 * (outcome.loss - mean));
        smooth = Some(mean);
        let record = StepRecord {
            step,
            epoch: step as f64 / recipe.steps as f64,
            loss: outcome.loss,
            learning_rate,
            grad_norm: outcome.grad_norm,
            tokens: outcome.tokens,
        };
        progress.work(record.tokens as u64, "tokens");
        curve(&record);
        history.steps.push(record);
        look(recipe, &engine.model, &probe, history)?;
        let answers = history.probes.last().map_or(String::new(), |(_, loss)| format!(", answers {loss:.3}"));
        progress.note(format!("loss {mean:.3}{answers}, rate {learning_rate:.2e}"));
        if saved.elapsed() >= save_every {
            save(engine, history)?;
            saved = Instant::now();
        }
        progress.advance(1)?;
    }
    Ok(())
}

/// Looks at how well the model reads, where that is due after the last step and not done yet.
fn look(recipe: &Recipe, model: &Model, probe: &[Lesson], history: &mut History) -> Result<()> {
    let step = history.steps.len();
    let due = step > 0 && (step.is_multiple_of(PROBE_STEPS) || step == recipe.steps);
    if due && history.probes.last().is_none_or(|(last, _)| *last < step) {
        history.probes.push((step, probe_loss(model, probe)?));
    }
    Ok(())
}

fn probe_loss(model: &Model, probe: &[Lesson]) -> Result<f64> {
    let texts: Vec<&[u32]> = probe.iter().map(|lesson| lesson.ids.as_slice()).collect();
    let targets: Vec<Option<u32>> = probe.iter().flat_map(|lesson| lesson.targets.iter().copied()).collect();
    Ok(f64::from(model.loss(&Batch::new(&texts), &targets)?.to_scalar::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toy() -> Recipe {
        let nano = Recipe::nano(Size::Small);
        Recipe {
            steps: 2,
            tokenizer_texts: 60,
            vocab_size: 400,
            batch_size: 2,
            layers: 1,
            hidden_size: 32,
            heads: 2,
            intermediate_size: 48,
            mixture: Mixture { residents: 8, ..nano.mixture },
            ..nano
        }
    }

    /// Ctrl-C in the look leaves a step that is recorded and a look that is not.
    #[test]
    fn an_interrupted_look_is_made_up_for() {
        let recipe = toy();
        let mut lessons = Lessons::new(&recipe.mixture, recipe.seed).unwrap();
        let sample = lessons.sample(recipe.tokenizer_texts).unwrap();
        let tokenizer = Tokenizer::train_bpe(sample.iter().map(String::as_str), recipe.vocab_size).unwrap();
        let model = Model::random("toy", recipe.config(&tokenizer), tokenizer.clone(), 1).unwrap();
        let options = Options { max_grad_norm: 1.0, gradient_checkpointing: false, seed: 1 };
        let mut engine = Engine::new(model.with_trainable_weights().unwrap(), recipe.adamw, options);
        let mut history = History::default();
        let mut go_on = |history: &mut History| {
            train(&recipe, &mut engine, &mut lessons, &tokenizer, history, &mut |_, _| Ok(())).unwrap();
        };
        go_on(&mut history);
        let whole = history.clone();
        assert_eq!((whole.steps.len(), whole.probes.len()), (2, 1));
        history.probes.clear();
        go_on(&mut history);
        assert_eq!(history, whole);
    }
}

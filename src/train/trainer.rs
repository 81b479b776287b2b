//! Fine-tuning: from a model and a corpus to a trained model and the record of every step.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::adapter::Adapter;
use super::batch::{Example, Prepared};
use super::checkpoint::{self, History, Identity};
use super::engine::{Engine, Pass, StepRecord};
use super::estimate::MemoryEstimate;
use super::evaluation::{Evaluation, HeldOut, best, exhausted};
use super::params::{Finetune, Method, Settings};
use super::tensorboard::Events;
use crate::augment::Denoise;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::files::{make_ready, save_every};
use crate::memory;
use crate::model::Model;
use crate::progress::Progress;
use crate::provenance::{Provenance, program};

/// A finished fine-tuning run.
#[derive(Debug, Clone)]
pub struct Run {
    /// The trained model; with LoRA, the base with its adapter.
    pub model: Model,
    /// One record an optimiser step.
    pub steps: Vec<StepRecord>,
    /// The losses on the texts of [`Finetune::evaluate`].
    pub evaluations: Vec<Evaluation>,
    /// The step whose weights `model` has: the last, or the best of the evaluations.
    pub step: usize,
    /// The memory that was expected.
    pub estimate: MemoryEstimate,
    /// The most memory the process has held so far, bytes; `None` where the system does not tell.
    pub peak_memory: Option<u64>,
    /// The values the run was made with.
    pub settings: Settings,
    /// Texts trained on.
    pub texts: usize,
    /// Texts cut at `max_length`.
    pub truncated: usize,
    /// Ids of texts too short to train on.
    pub skipped: Vec<String>,
    /// Name and content hash of the model it began with.
    pub base: (String, String),
    /// Model, seed and options.
    pub provenance: Provenance,
}

/// Loss and work of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Counted from 1.
    pub epoch: usize,
    /// Mean of the steps' losses, weighted by their tokens.
    pub loss: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
}

impl Run {
    /// Tokens that went through the model in the whole run.
    pub fn tokens(&self) -> usize {
        self.steps.iter().map(|step| step.tokens).sum()
    }

    /// The trained adapter, to be saved as PEFT files.
    ///
    /// # Errors
    /// [`Error::Model`] after full fine-tuning, which has none.
    pub fn adapter(&self) -> Result<Adapter> {
        match &self.settings.method {
            Method::Lora(lora) => Adapter::of(&self.model, lora, &self.base.0, &self.base.1),
            Method::Full => {
                Err(Error::model(self.model.name(), "every weight was trained; save the whole model"))
            }
        }
    }

    /// The evaluation with the lowest loss.
    pub fn best(&self) -> Option<&Evaluation> {
        best(&self.evaluations)
    }

    /// The run summed up by epoch.
    pub fn epochs(&self) -> Vec<EpochRecord> {
        let mut epochs: Vec<EpochRecord> = Vec::new();
        for step in &self.steps {
            // A step that finishes epoch 3 has the fraction 3.0 and belongs to epoch 3.
            let epoch = (step.epoch - 1e-9).floor().max(0.0) as usize + 1;
            if epochs.last().is_none_or(|last| last.epoch != epoch) {
                epochs.push(EpochRecord { epoch, loss: 0.0, tokens: 0 });
            }
            if let Some(last) = epochs.last_mut() {
                let tokens = last.tokens + step.tokens;
                last.loss += (step.loss - last.loss) * step.tokens as f64 / tokens.max(1) as f64;
                last.tokens = tokens;
            }
        }
        epochs
    }
}

impl Model {
    /// Fine-tunes a copy of this model on the corpus's documents, labels = inputs (paper, section 5); the model
    /// itself stays as it is.
    ///
    /// The same model, corpus and settings give the same bits on the same machine, at any number of threads, and also
    /// when the run was interrupted and resumed from [`Finetune::checkpoint`].
    ///
    /// # Errors
    /// Settings out of range; no text long enough to train on; a loss that is not finite; a trainable tensor that the
    /// loss does not reach; [`Error::Interrupted`], after saving a checkpoint where one is asked for.
    pub fn finetune(&self, corpus: &Corpus, finetune: Finetune) -> Result<Run> {
        let settings = finetune.settings()?;
        let prepared = prepare(self, corpus, &settings)?;
        let held_out =
            finetune.evaluation.as_ref().map(|texts| HeldOut::new(texts, self, &settings)).transpose()?;
        let plan = Plan::new(&settings, &prepared.examples);
        if finetune.checkpoint.is_some() {
            checkpoint::check_steps(plan.total)?;
        }
        let estimate = MemoryEstimate::new(self, &settings, &prepared.examples)?;
        let model = match &settings.method {
            Method::Lora(lora) => self.with_lora(lora, settings.seed)?,
            Method::Full => self.with_trainable_weights()?,
        };
        let mut engine = Engine::new(model, settings.adamw, settings.options());
        let identity = Identity {
            kind: "fine-tuning".into(),
            model: self.name().into(),
            model_hash: self.hash().into(),
            program: Some(program()),
            arithmetic: self.device().noted_arithmetic(),
            data: prepared.hash(settings.packing),
            held_out: held_out.as_ref().map(HeldOut::hash).unwrap_or_default(),
            settings: serde_json::to_value(&settings)
                .map_err(|e| Error::Stopped(format!("settings: {e}")))?,
        };
        let mut history = History::default();
        let mut locked = None;
        if let Some(folder) = &finetune.checkpoint {
            locked = Some(checkpoint::lock(folder)?);
            make_ready(folder, finetune.disk_bytes(&estimate))?;
            engine = engine.keep_failed_batch(folder);
            history = checkpoint::resume(folder, &identity, settings.adamw, &mut engine)?.unwrap_or_default();
        }
        let events =
            finetune.logging_dir.as_ref().map(|folder| Events::create(folder, history.steps.len() + 1));
        let mut training = Training {
            save_every: finetune.save_every.map_or_else(save_every, Ok)?,
            plan,
            examples: &prepared.examples,
            held_out,
            finetune: &finetune,
            identity: &identity,
            events: events.transpose()?,
            best: None,
        };
        let outcome = training.run(&mut engine, &mut history, &estimate);
        // What is done is kept, whatever stopped the run; a fault of the data or the rate would come again, so only
        // an interrupt is worth a checkpoint.
        if let (Err(Error::Interrupted), Some(folder)) = (&outcome, &finetune.checkpoint) {
            checkpoint::save(folder, &identity, &engine, &history)?;
        }
        outcome?;
        let step = training.choose(&engine.model, &history)?;
        drop(locked);
        let (suffix, adapter) = match &settings.method {
            Method::Lora(lora) => ("lora", Some(lora)),
            Method::Full => ("full", None),
        };
        let hash = super::trained_hash(self.hash(), &engine.model, adapter)?;
        let provenance = provenance(self, &settings, &identity)?;
        Ok(Run {
            model: engine.model.renamed(format!("{}+{suffix}", self.name()), hash),
            base: (self.name().into(), self.hash().into()),
            steps: history.steps,
            evaluations: history.evaluations,
            step,
            estimate,
            peak_memory: memory::peak(),
            settings,
            texts: prepared.examples.len(),
            truncated: prepared.truncated,
            skipped: prepared.skipped,
            provenance,
        })
    }
}

/// The texts as `model` reads them, once they and the settings are known to go together.
pub(super) fn prepare(model: &Model, corpus: &Corpus, settings: &Settings) -> Result<Prepared> {
    let prepared = Prepared::new(&corpus.documents, model.tokenizer(), settings.max_length)?;
    if prepared.examples.is_empty() {
        return Err(Error::Stopped(format!(
            "nothing to train on: of {} texts none has two tokens or more",
            corpus.documents.len()
        )));
    }
    let longest = prepared.examples.iter().map(|e| e.ids.len()).max().unwrap_or(0);
    if longest > model.config().max_positions {
        let allowed =
            format!("at most {} for {}, or shorter texts", model.config().max_positions, model.name());
        return Err(Error::option("max_length", settings.max_length, allowed));
    }
    Ok(prepared)
}

fn provenance(model: &Model, settings: &Settings, identity: &Identity) -> Result<Provenance> {
    let settings = serde_json::to_string(settings).map_err(|e| Error::Stopped(format!("settings: {e}")))?;
    let mut provenance = Provenance::new("finetune").model(model.name(), model.hash());
    if let Some(arithmetic) = model.device().noted_arithmetic() {
        provenance = provenance.option("device", arithmetic);
    }
    Ok(provenance.option("settings", settings).option("texts", &identity.data))
}

/// Which texts are trained on at which step.
struct Plan {
    settings: Settings,
    /// Optimiser steps of the whole run.
    total: usize,
}

/// The steps of one epoch: each a list of passes, each a list of texts.
type EpochSteps = Vec<Vec<Vec<usize>>>;

impl Plan {
    fn new(settings: &Settings, examples: &[Example]) -> Plan {
        let plan = Plan { settings: settings.clone(), total: 0 };
        let total = settings.max_steps.unwrap_or_else(|| {
            if settings.packing {
                // How many windows an epoch needs depends on its order.
                (0..settings.epochs).map(|epoch| plan.epoch(examples, epoch).len()).sum()
            } else {
                let batches = examples.len().div_ceil(settings.batch_size);
                batches.div_ceil(settings.gradient_accumulation_steps) * settings.epochs
            }
        });
        Plan { total, ..plan }
    }

    fn epoch(&self, examples: &[Example], epoch: usize) -> EpochSteps {
        let batches = self.settings.batching().epoch(examples, epoch);
        batches.chunks(self.settings.gradient_accumulation_steps).map(<[Vec<usize>]>::to_vec).collect()
    }
}

/// A run under way.
struct Training<'a> {
    plan: Plan,
    examples: &'a [Example],
    held_out: Option<HeldOut>,
    finetune: &'a Finetune,
    identity: &'a Identity,
    events: Option<Events>,
    save_every: Duration,
    /// What was learned at the lowest evaluation loss, where no folder keeps it.
    best: Option<BTreeMap<String, Tensor>>,
}

impl Training<'_> {
    /// Runs the steps that `history` does not hold yet.
    fn run(&mut self, engine: &mut Engine, history: &mut History, estimate: &MemoryEstimate) -> Result<()> {
        let settings = &self.finetune.settings;
        let total = self.plan.total;
        let (label, earlier) = (format!("fine-tuning {}", engine.model.name()), history.steps.len() as u64);
        let progress = Progress::resume(label, total as u64, "steps", earlier);
        progress.note(format!("about {} of memory", memory::readable(estimate.peak())));
        let rate = settings.rate(total);
        let curve = |record: &StepRecord| {
            progress.point(("step", record.step as f64), ("loss (nats a token)", record.loss));
        };
        history.steps.iter().for_each(curve);
        let mut saved = Instant::now();
        let noise = match settings.denoise {
            Some(share) => Some(Denoise::new(share, settings.seed)?),
            None => None,
        };
        let mut step = 0;
        for epoch in 0.. {
            let planned = self.plan.epoch(self.examples, epoch);
            let in_epoch = planned.len();
            for (index, batches) in planned.into_iter().enumerate() {
                if step >= total || exhausted(&history.evaluations, settings.early_stopping_patience) {
                    return Ok(());
                }
                step += 1;
                let passed = epoch as f64 + (index + 1) as f64 / in_epoch as f64;
                let taken = step > history.steps.len();
                if taken {
                    let mut passes: Vec<Pass> =
                        batches.iter().map(|batch| pass(self.examples, batch)).collect();
                    if let Some(noise) = &noise {
                        for (pass, batch) in passes.iter_mut().zip(&batches) {
                            disturb(pass, batch, noise, epoch, &engine.model);
                        }
                    }
                    let learning_rate = rate.at(step - 1);
                    let outcome = engine.step(&passes, step, learning_rate)?;
                    let record = StepRecord {
                        step,
                        epoch: passed,
                        loss: outcome.loss,
                        learning_rate,
                        grad_norm: outcome.grad_norm,
                        tokens: outcome.tokens,
                    };
                    history.steps.push(record);
                    self.log(&record)?;
                    progress.work(record.tokens as u64, "tokens");
                    progress.note(format!("loss {:.4}, rate {learning_rate:.2e}", record.loss));
                    curve(&record);
                }
                let ends_epoch = index + 1 == in_epoch;
                let reached = |every: usize| every > 0 && step.is_multiple_of(every);
                // Also for a step of an earlier life that was interrupted in its evaluation.
                let missing = history.evaluations.last().is_none_or(|last| last.step < step);
                let due = match settings.eval_steps {
                    0 => ends_epoch,
                    every => reached(every),
                };
                let evaluated = (due || step == total) && missing && self.held_out.is_some();
                if evaluated {
                    self.evaluate(&engine.model, step, passed, history)?;
                }
                if let Some(folder) = &self.finetune.checkpoint
                    && (taken || evaluated)
                {
                    let ended =
                        step == total || exhausted(&history.evaluations, settings.early_stopping_patience);
                    if ended || reached(self.finetune.save_steps) || saved.elapsed() >= self.save_every {
                        checkpoint::save(folder, self.identity, engine, history)?;
                        saved = Instant::now();
                    }
                }
                if taken {
                    progress.advance(1)?;
                }
            }
        }
        Ok(())
    }

    /// Looks at the held-out texts, and keeps what was learned so far when nothing before was better.
    fn evaluate(&mut self, model: &Model, step: usize, epoch: f64, history: &mut History) -> Result<()> {
        let Some(held_out) = &self.held_out else { return Ok(()) };
        let loss = held_out.loss(model)?;
        history.evaluations.push(Evaluation { step, epoch, loss });
        if let Some(events) = &mut self.events {
            events.write(step, &[("eval/loss", loss)])?;
        }
        let better = best(&history.evaluations).is_some_and(|best| best.step == step);
        if better && self.finetune.settings.load_best_model_at_end {
            match &self.finetune.checkpoint {
                Some(folder) => checkpoint::save_best(folder, self.identity, model, step)?,
                None => {
                    let copy = |(name, variable): (&String, &candle_core::Var)| {
                        Ok((name.clone(), variable.as_tensor().copy()?.detach()))
                    };
                    self.best = Some(model.trainable().iter().map(copy).collect::<Result<_>>()?);
                }
            }
        }
        Ok(())
    }

    fn log(&mut self, record: &StepRecord) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let scalars = [
            ("train/loss", record.loss),
            ("train/learning_rate", record.learning_rate),
            ("train/grad_norm", record.grad_norm),
            ("train/epoch", record.epoch),
        ];
        events.write(record.step, &scalars)
    }

    /// Brings `model` to the step it shall be returned with.
    fn choose(&self, model: &Model, history: &History) -> Result<usize> {
        let last = history.steps.len();
        let chosen = best(&history.evaluations).filter(|_| self.finetune.settings.load_best_model_at_end);
        let Some(chosen) = chosen.filter(|chosen| chosen.step != last) else { return Ok(last) };
        match (&self.finetune.checkpoint, &self.best) {
            (Some(folder), _) => checkpoint::load_best(folder, self.identity, model, chosen.step)?,
            (None, Some(kept)) => {
                for (name, variable) in model.trainable() {
                    if let Some(values) = kept.get(name) {
                        variable.set(values)?;
                    }
                }
            }
            // Every best evaluation was kept by one of the two.
            (None, None) => return Ok(last),
        }
        Ok(chosen.step)
    }
}

fn pass(examples: &[Example], batch: &[usize]) -> Pass {
    let texts = batch.iter().map(|&i| examples[i].ids.clone()).collect();
    Pass::new(texts, batch.iter().map(|&i| examples[i].id.clone()).collect())
}

/// Puts noise into what the model reads; what it must predict stays.
fn disturb(pass: &mut Pass, batch: &[usize], noise: &Denoise, epoch: usize, model: &Model) {
    for (ids, &text) in pass.texts.iter_mut().zip(batch) {
        // A start token is no part of the text.
        let special = [ids.first().copied() == model.tokenizer().bos()];
        // Gemma 3's tokenizer has a token more than the model has embeddings, most others fewer.
        let vocabulary = model.tokenizer().vocab_size().min(model.config().vocab_size);
        *ids = noise.inputs(ids, &special, vocabulary, text as u64, epoch as u64);
    }
}

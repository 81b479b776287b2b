//! The state of a run in one file, `checkpoint.safetensors`: replaced atomically, so that a run killed at any
//! moment finds the last whole one and ends with the same bits as an uninterrupted run.
//!
//! Tensors: `trainable.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`, all f32. The header's metadata entry
//! `cluescope` is JSON: what is being run (so that another run is refused by name), how many steps are done, and
//! their records. Every random number of a run follows from (seed, epoch or step), so there is no generator state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::engine::{Engine, StepRecord};
use super::evaluation::Evaluation;
use super::optimizer::{AdamW, AdamWConfig, Moments};
use super::tensors::{self, Stored, Values};
use crate::error::{Error, Result};
use crate::files::{Locked, as_read_back};
use crate::model::Model;

/// Identifies a run: only the same run may go on from its checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// `fine-tuning` or `pretraining`.
    pub(super) kind: String,
    /// The model it began with.
    pub(super) model: String,
    /// That model's content hash.
    pub(super) model_hash: String,
    /// This program's version, and those of the crates that decide numbers; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) program: Option<String>,
    /// Where it computes and in which type, unless on the CPU in f32: other numbers end in another model.
    #[serde(default)]
    pub(super) arithmetic: Option<String>,
    /// Hash of the texts.
    pub(super) data: String,
    /// Hash of the texts evaluated on; empty without.
    #[serde(default)]
    pub(super) held_out: String,
    /// Every setting, as JSON.
    pub(super) settings: serde_json::Value,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    identity: Identity,
    optimizer_steps: u64,
    #[serde(flatten)]
    history: History,
}

/// What a run has recorded so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Bits", into = "Bits")]
pub(super) struct History {
    /// One record a step.
    pub(super) steps: Vec<StepRecord>,
    /// Step and loss of the looks at held-out texts.
    pub(super) probes: Vec<(usize, f64)>,
    /// Losses on the texts evaluated on.
    pub(super) evaluations: Vec<Evaluation>,
}

/// A [`History`] as it is written: a fraction as the bits of its f64, because decimal numbers come back from JSON up to one
/// unit in the last place off.
#[derive(Clone, Serialize, Deserialize)]
struct Bits {
    /// step, epoch, loss, learning_rate, grad_norm, tokens
    steps: Vec<[u64; 6]>,
    /// step, loss
    probes: Vec<[u64; 2]>,
    /// step, epoch, loss
    evaluations: Vec<[u64; 3]>,
}

impl From<History> for Bits {
    fn from(history: History) -> Bits {
        let step = |s: StepRecord| {
            let fractions = [s.epoch, s.loss, s.learning_rate, s.grad_norm].map(f64::to_bits);
            [s.step as u64, fractions[0], fractions[1], fractions[2], fractions[3], s.tokens as u64]
        };
        let evaluation = |e: Evaluation| [e.step as u64, e.epoch.to_bits(), e.loss.to_bits()];
        Bits {
            steps: history.steps.into_iter().map(step).collect(),
            probes: history.probes.into_iter().map(|(step, loss)| [step as u64, loss.to_bits()]).collect(),
            evaluations: history.evaluations.into_iter().map(evaluation).collect(),
        }
    }
}

impl From<Bits> for History {
    fn from(bits: Bits) -> History {
        let f = f64::from_bits;
        let step = |[step, epoch, loss, learning_rate, grad_norm, tokens]: [u64; 6]| StepRecord {
            step: step as usize,
            epoch: f(epoch),
            loss: f(loss),
            learning_rate: f(learning_rate),
            grad_norm: f(grad_norm),
            tokens: tokens as usize,
        };
        let evaluation = |[step, epoch, loss]: [u64; 3]| Evaluation {
            step: step as usize,
            epoch: f(epoch),
            loss: f(loss),
        };
        History {
            steps: bits.steps.into_iter().map(step).collect(),
            probes: bits.probes.into_iter().map(|[step, loss]| (step as usize, f(loss))).collect(),
            evaluations: bits.evaluations.into_iter().map(evaluation).collect(),
        }
    }
}

/// Steps whose records surely fit into the header of a safetensors file, which may have 100 MB: a hundred bytes each, and half as
/// many for an evaluation after each.
const MOST_STEPS: usize = 600_000;

/// Refuses a run whose state could not be read back.
///
/// # Errors
/// [`Error::Option`] for too many steps.
pub(super) fn check_steps(steps: usize) -> Result<()> {
    if steps <= MOST_STEPS {
        return Ok(());
    }
    let allowed = format!("at most {MOST_STEPS} with a checkpoint, which records them all");
    Err(Error::option("steps", steps, allowed))
}

const VERSION: u32 = 2;
const METADATA: &str = "cluescope";

/// Where a run's state lies in `folder`.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("checkpoint.safetensors")
}

/// Bytes of the states that lie in `folder`.
pub(super) fn held_bytes(folder: &Path) -> u64 {
    [path(folder), best_path(folder)].iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum()
}

/// Keeps other processes out of `folder`, in which two runs would overwrite each other's state.
///
/// # Errors
/// [`Error::Stopped`] when another process trains there.
pub(super) fn lock(folder: &Path) -> Result<Locked> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let path = folder.join("checkpoint.lock");
    let file = std::fs::File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
    Locked::try_new(file).map_err(Error::io(&path))?.ok_or_else(|| {
        let place = folder.display();
        Error::Stopped(format!(
            "{place}: another process trains in this folder; wait for it, or name another"
        ))
    })
}

/// Saves the run after the steps of `history`.
pub(super) fn save(folder: &Path, identity: &Identity, engine: &Engine, history: &History) -> Result<()> {
    let path = path(folder);
    let header = Header {
        version: VERSION,
        identity: identity.clone(),
        optimizer_steps: engine.optimizer.steps(),
        history: history.clone(),
    };
    let header = serde_json::to_string(&header).map_err(|e| Error::format(&path, "header", e))?;
    let mut moments = BTreeMap::new();
    for name in engine.model.trainable().keys() {
        moments.extend(engine.optimizer.moments(name)?.map(|moments| (name, moments)));
    }
    let mut out = BTreeMap::new();
    for (name, variable) in engine.model.trainable() {
        out.insert(format!("trainable.{name}"), Values::Tensor(variable.as_tensor()));
        if let Some(moments) = moments.get(name) {
            let shape = variable.dims().to_vec();
            out.insert(format!("exp_avg.{name}"), Values::Slice(shape.clone(), &moments.exp_avg));
            out.insert(format!("exp_avg_sq.{name}"), Values::Slice(shape, &moments.exp_avg_sq));
        }
    }
    tensors::write(&path, &out, &BTreeMap::from([(METADATA.to_string(), header)]))
}

/// Brings `engine` to the state saved in `folder` and returns what was recorded; `None` when there is
/// no checkpoint.
///
/// # Errors
/// A checkpoint of another run (the message names the difference), or one that is damaged.
pub(super) fn resume(
    folder: &Path,
    identity: &Identity,
    adamw: AdamWConfig,
    engine: &mut Engine,
) -> Result<Option<History>> {
    let path = path(folder);
    if !path.exists() {
        return Ok(None);
    }
    let stored = tensors::open(&path)?;
    let header: Header = header(&path, &stored)?;
    check(&path, header.version, &header.identity, identity)?;
    let mut moments = BTreeMap::new();
    for (name, variable) in engine.model.trainable() {
        let count = variable.elem_count();
        let values = take(&path, &stored, &format!("trainable.{name}"), count)?;
        variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
        if header.optimizer_steps > 0 {
            let exp_avg = take(&path, &stored, &format!("exp_avg.{name}"), count)?;
            let exp_avg_sq = take(&path, &stored, &format!("exp_avg_sq.{name}"), count)?;
            moments.insert(name.clone(), Moments { exp_avg, exp_avg_sq });
        }
    }
    engine.optimizer = AdamW::restore(adamw, header.optimizer_steps, moments);
    Ok(Some(header.history))
}

#[derive(Serialize, Deserialize)]
struct BestHeader {
    version: u32,
    identity: Identity,
    step: usize,
}

fn best_path(folder: &Path) -> PathBuf {
    folder.join("best.safetensors")
}

/// Saves what `model` has learned by `step` as the best so far.
///
/// A run killed before its next checkpoint comes back to this step and writes the same bytes again, so the file may be
/// ahead of the checkpoint but never contradicts it.
pub(super) fn save_best(folder: &Path, identity: &Identity, model: &Model, step: usize) -> Result<()> {
    let path = best_path(folder);
    let header = BestHeader { version: VERSION, identity: identity.clone(), step };
    let header = serde_json::to_string(&header).map_err(|e| Error::format(&path, "header", e))?;
    let tensors: BTreeMap<String, Values<'_>> = model
        .trainable()
        .iter()
        .map(|(name, variable)| (format!("trainable.{name}"), Values::Tensor(variable.as_tensor())))
        .collect();
    tensors::write(&path, &tensors, &BTreeMap::from([(METADATA.to_string(), header)]))
}

/// Brings `model` back to what [`save_best`] kept of `step`.
///
/// # Errors
/// A file that is missing, damaged, or of another run or step.
pub(super) fn load_best(folder: &Path, identity: &Identity, model: &Model, step: usize) -> Result<()> {
    let path = best_path(folder);
    let stored = tensors::open(&path)?;
    let header: BestHeader = header(&path, &stored)?;
    check(&path, header.version, &header.identity, identity)?;
    if header.step != step {
        let message =
            format!("holds step {}, the best was step {step}; delete the folder to start over", header.step);
        return Err(Error::format(&path, "header", message));
    }
    for (name, variable) in model.trainable() {
        let values = take(&path, &stored, &format!("trainable.{name}"), variable.elem_count())?;
        variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
    }
    Ok(())
}

fn header<T: serde::de::DeserializeOwned>(path: &Path, stored: &Stored) -> Result<T> {
    let header = stored.metadata.get(METADATA).map(String::as_str).unwrap_or_default();
    serde_json::from_str(header)
        .map_err(|e| Error::format(path, "header", format!("not a checkpoint of cluescope: {e}")))
}

/// Refuses the state of another run, in words.
fn check(path: &Path, version: u32, was: &Identity, now: &Identity) -> Result<()> {
    if version != VERSION {
        let message = format!("checkpoint version {version}; this program reads version {VERSION}");
        return Err(Error::format(path, "header", message));
    }
    let settings = as_read_back(&now.settings).map_err(|e| Error::format(path, "settings", e))?;
    match was.difference(&Identity { settings, ..now.clone() }) {
        None => Ok(()),
        Some(difference) => {
            let message = format!(
                "belongs to another run: {difference}; choose another folder, or delete this file to start over"
            );
            Err(Error::format(path, "", message))
        }
    }
}

/// The `count` values of a tensor.
fn take(path: &Path, stored: &Stored, name: &str, count: usize) -> Result<Vec<f32>> {
    let place = || format!("tensor {name}");
    match stored.tensor(name)? {
        Some((_, values)) if values.len() == count => Ok(values),
        Some((_, values)) => {
            let message =
                format!("{} values where the model has {count}; delete the file to start over", values.len());
            Err(Error::format(path, place(), message))
        }
        None => Err(Error::format(path, place(), "missing; delete the file to start over")),
    }
}

impl Identity {
    /// In words, the first thing that is not the same as `now`, whose settings were [read back](as_read_back) too.
    fn difference(&self, now: &Identity) -> Option<String> {
        if self.kind != now.kind {
            return Some(format!("it was {}, now it is {}", self.kind, now.kind));
        }
        if self.model_hash != now.model_hash {
            return Some(format!(
                "its model is {} (content {}), now it is {} (content {})",
                self.model, self.model_hash, now.model, now.model_hash
            ));
        }
        if let (Some(was), Some(is)) = (&self.program, &now.program)
            && was != is
        {
            return Some(format!("it was computed by {was}, now it is {is}"));
        }
        if self.arithmetic != now.arithmetic {
            let [was, is] = [self, now].map(|run| run.arithmetic.as_deref().unwrap_or("cpu f32"));
            return Some(format!("it was computed in {was}, now it is {is}"));
        }
        if let (Some(was), Some(is)) = (self.settings.as_object(), now.settings.as_object()) {
            let names: std::collections::BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            for name in names {
                if was.get(name) != is.get(name) {
                    let show =
                        |v: Option<&serde_json::Value>| v.map_or("absent".to_string(), ToString::to_string);
                    return Some(format!(
                        "{name} was {}, now it is {}",
                        show(was.get(name)),
                        show(is.get(name))
                    ));
                }
            }
        }
        if self.data != now.data {
            return Some("its texts are others".to_string());
        }
        (self.held_out != now.held_out).then(|| "the texts it evaluates on are others".to_string())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::corpus::{Corpus, Document};
    use crate::model::{DecoderConfig, Device};
    use crate::tokens::Tokenizer;
    use crate::train::Finetune;

    #[test]
    fn a_run_does_not_go_on_in_another_arithmetic() {
        let tokenizer = Tokenizer::train_bpe(["one two three"], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 16, 1, 2, 2, 16, 16);
        let model = Model::random("m", config, tokenizer, 1).unwrap();
        let document = Document::new("a", "one two three", Vec::new());
        let corpus = Corpus { documents: vec![document], ..Default::default() };
        let folder = tempfile::tempdir().unwrap();
        let run = |model: &Model| {
            model
                .finetune(&corpus, Finetune::lora(2).epochs(2).checkpoint(folder.path()))
                .map(|run| run.steps)
        };
        let here = run(&model).unwrap();
        assert_eq!(run(&model).unwrap(), here);
        let there = model.to_device(&Device::tensors(DType::F32)).unwrap();
        let message = run(&there).unwrap_err().to_string();
        assert!(message.contains("it was computed in cpu f32, now it is cpu tensors f32"), "{message}");
    }

    #[test]
    fn a_run_does_not_go_on_under_another_version() {
        let run = |program: Option<&str>| Identity {
            kind: "fine-tuning".into(),
            model: "m".into(),
            model_hash: "1".into(),
            program: program.map(String::from),
            arithmetic: None,
            data: "2".into(),
            held_out: String::new(),
            settings: serde_json::Value::Null,
        };
        let now = run(Some("cluescope 2"));
        // An older file does not tell.
        assert_eq!([run(None), now.clone()].map(|was| was.difference(&now)), [None, None]);
        let difference = run(Some("cluescope 1")).difference(&now).unwrap();
        assert_eq!(difference, "it was computed by cluescope 1, now it is cluescope 2");
    }

    #[test]
    fn records_keep_every_bit_and_numbers_that_json_has_no_word_for() {
        // The first was read back as 3.736404098163951 when it was written in decimal.
        let losses = [3.7364040981639515, f64::NAN, f64::INFINITY, 0.1 + 0.2, f64::MIN_POSITIVE];
        let history = History {
            steps: losses
                .iter()
                .enumerate()
                .map(|(step, &loss)| StepRecord {
                    step,
                    epoch: loss / 3.0,
                    loss,
                    learning_rate: 5e-4 / 7.0,
                    grad_norm: loss * 1.7,
                    tokens: 99,
                })
                .collect(),
            probes: losses.iter().map(|&loss| (7, loss)).collect(),
            evaluations: losses.iter().map(|&loss| Evaluation { step: 3, epoch: 0.3, loss }).collect(),
        };
        let text = serde_json::to_string(&history).unwrap();
        let read: History = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        for (step, &loss) in read.steps.iter().zip(&losses) {
            assert_eq!(step.loss.to_bits(), loss.to_bits());
        }
        assert_eq!(read.evaluations[0], history.evaluations[0]);
        assert_eq!(read.probes[0], history.probes[0]);
    }
}

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
use super::optimizer::{AdamW, AdamWConfig, Moments};
use super::tensors::{self, Precision, Values};
use crate::error::{Error, Result};

/// Identifies a run: only the same run may go on from its checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// `fine-tuning` or `pretraining`.
    pub(super) kind: String,
    /// The model it began with.
    pub(super) model: String,
    /// That model's content hash.
    pub(super) model_hash: String,
    /// Hash of the texts.
    pub(super) data: String,
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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct History {
    /// One record a step.
    pub(super) steps: Vec<StepRecord>,
    /// Step and loss of the looks at held-out texts.
    #[serde(default)]
    pub(super) probes: Vec<(usize, f64)>,
}

const VERSION: u32 = 1;
const METADATA: &str = "cluescope";

/// Where a run's state lies in `folder`.
pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join("checkpoint.safetensors")
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
    let mut out = BTreeMap::new();
    for (name, variable) in engine.model.trainable() {
        out.insert(format!("trainable.{name}"), Values::Tensor(variable.as_tensor()));
        if let Some(moments) = engine.optimizer.moments().get(name) {
            let shape = variable.dims().to_vec();
            out.insert(format!("exp_avg.{name}"), Values::Slice(shape.clone(), &moments.exp_avg));
            out.insert(format!("exp_avg_sq.{name}"), Values::Slice(shape, &moments.exp_avg_sq));
        }
    }
    tensors::write(&path, &out, &BTreeMap::from([(METADATA.to_string(), header)]), Precision::F32)
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
    let mut stored = tensors::read(&path)?;
    let header = stored.metadata.get(METADATA).map(String::as_str).unwrap_or_default();
    let header: Header = serde_json::from_str(header)
        .map_err(|e| Error::format(&path, "header", format!("not a checkpoint of cluescope: {e}")))?;
    if header.version != VERSION {
        let message = format!("checkpoint version {}; this program reads version {VERSION}", header.version);
        return Err(Error::format(&path, "header", message));
    }
    if let Some(difference) = header.identity.difference(identity) {
        let message = format!(
            "belongs to another run: {difference}; choose another folder, or delete this file to start over"
        );
        return Err(Error::format(&path, "", message));
    }
    let mut take = |name: String, count: usize| match stored.tensors.remove(&name) {
        Some((_, values)) if values.len() == count => Ok(values),
        Some((_, values)) => {
            let message =
                format!("{} values where the model has {count}; delete the file to start over", values.len());
            Err(Error::format(&path, format!("tensor {name}"), message))
        }
        None => Err(Error::format(&path, format!("tensor {name}"), "missing; delete the file to start over")),
    };
    let mut moments = BTreeMap::new();
    for (name, variable) in engine.model.trainable() {
        let count = variable.elem_count();
        let values = take(format!("trainable.{name}"), count)?;
        variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
        if header.optimizer_steps > 0 {
            let exp_avg = take(format!("exp_avg.{name}"), count)?;
            let exp_avg_sq = take(format!("exp_avg_sq.{name}"), count)?;
            moments.insert(name.clone(), Moments { exp_avg, exp_avg_sq });
        }
    }
    engine.optimizer = AdamW::restore(adamw, header.optimizer_steps, moments);
    Ok(Some(header.history))
}

impl Identity {
    /// In words, the first thing that is not the same.
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
        (self != now).then(|| "its texts are others".to_string())
    }
}

//! Low-rank adapters (Hu et al. 2021), named and initialised as Hugging Face's PEFT does.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor, Var};

use super::init;
use super::linear::Lora;
use super::parameters::{Decoder, Parameter};
use crate::error::{Error, Result};

/// Options of a LoRA adapter; the default is the paper's configuration.
///
/// | option | default | meaning | range |
/// |---|---|---|---|
/// | `r` | 16 | rank | ≥ 1 |
/// | `lora_alpha` | 16 | the update is scaled by `lora_alpha / r` | > 0 |
/// | `lora_dropout` | 0 | share of the adapter's inputs set to zero while training | 0 ≤ p < 1 |
/// | `target_modules` | all seven projections ([`PAPER_TARGETS`]) | names of the linear layers adapted | `q_proj` … `down_proj` |
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f32,
    /// Dropout on the adapter's input.
    pub lora_dropout: f32,
    /// Last part of the names of the layers to adapt.
    pub target_modules: Vec<String>,
}

/// The projections the paper adapts: all of attention and of the MLP, neither embedding nor head. As targets all seven mean those
/// that a model has: the MLP of GPT-2 and GPT-NeoX has no gate.
pub const PAPER_TARGETS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            r: 16,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: PAPER_TARGETS.map(String::from).to_vec(),
        }
    }
}

impl LoraConfig {
    /// Refuses values outside their range.
    ///
    /// # Errors
    /// [`Error::Option`] naming the option.
    pub fn validate(&self) -> Result<()> {
        if self.r == 0 {
            return Err(Error::option("r", self.r, "the rank must be at least 1"));
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return Err(Error::option("lora_alpha", self.lora_alpha, "must be a finite number above 0"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::option("lora_dropout", self.lora_dropout, "must be at least 0 and below 1"));
        }
        if self.target_modules.is_empty() {
            return Err(Error::option(
                "target_modules",
                "[]",
                "name at least one linear layer, such as q_proj",
            ));
        }
        Ok(())
    }
}

/// Puts fresh adapters on every linear layer whose name ends in a target module. Adapters that are there already
/// become part of their weights: dropped, they would take what was learned with them in silence.
pub(super) fn attach(
    model: &str,
    decoder: &mut Decoder,
    config: &LoraConfig,
    seed: u64,
    device: &Device,
) -> Result<BTreeMap<String, Var>> {
    let mut trainable = BTreeMap::new();
    let mut unmatched = config.target_modules.clone();
    let mut known = BTreeSet::new();
    decoder.for_each_linear(&mut |linear| {
        if linear.lora.is_some() {
            let merged = Parameter::Matrix(linear).effective(device)?.detach();
            Parameter::Matrix(linear).replace(merged);
        }
        let module = linear.name.rsplit('.').next().unwrap_or(&linear.name);
        known.insert(module.to_string());
        if !config.target_modules.iter().any(|target| target == module) {
            return Ok(());
        }
        unmatched.retain(|target| target != module);
        let name_a = format!("{}.lora_A.weight", linear.name);
        // kaiming_uniform(a = √5): bound √(6 / ((1 + 5) · in)).
        let bound = (linear.cols as f32).powf(-0.5);
        let values = init::uniform(seed, &name_a, linear.cols * config.r, bound);
        let a = Var::from_tensor(&Tensor::from_vec(values, (config.r, linear.cols), device)?)?;
        let b = Var::zeros((linear.rows, config.r), candle_core::DType::F32, device)?;
        linear.lora = Some(Lora {
            a: a.as_tensor().clone(),
            b: b.as_tensor().clone(),
            scale: config.lora_alpha / config.r as f32,
            dropout: config.lora_dropout,
        });
        trainable.insert(name_a, a);
        trainable.insert(format!("{}.lora_B.weight", linear.name), b);
        Ok(())
    })?;
    let all = PAPER_TARGETS.iter().all(|target| config.target_modules.iter().any(|named| named == target));
    unmatched.retain(|target| !(all && PAPER_TARGETS.contains(&target.as_str())));
    if !unmatched.is_empty() {
        return Err(Error::model(
            model,
            format!(
                "target_modules {} name no linear layer of this model; it has {}",
                unmatched.join(", "),
                known.into_iter().collect::<Vec<_>>().join(", ")
            ),
        ));
    }
    Ok(trainable)
}

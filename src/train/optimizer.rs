//! AdamW with decoupled weight decay, the arithmetic of `torch.optim.AdamW`.
//!
//! For gradient `g` (after clipping), step `t` counted from 1:
//!
//! ```text
//! p ← p · (1 − lr · weight_decay)
//! m ← m + (1 − β₁) (g − m)
//! v ← β₂ v + (1 − β₂) g²
//! p ← p − lr / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! ```
//!
//! The state is plain f32 and can be saved; on the CPU one pass over the slices does all four lines.
//! Weight decay leaves out tensors of fewer than two dimensions (biases, norm scales), as transformers does.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::model::with_values;

/// The optimiser's constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamWConfig {
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// Running means of one tensor, in its row-major order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// `m`, the gradient's.
    pub exp_avg: Vec<f32>,
    /// `v`, the squared gradient's.
    pub exp_avg_sq: Vec<f32>,
}

/// AdamW over name-ordered tensors.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    moments: BTreeMap<String, Moments>,
}

/// Values one task works on; fixed, so that the split never depends on the number of threads.
const CHUNK: usize = 16 * 1024;

impl AdamW {
    /// A fresh optimiser.
    pub fn new(config: AdamWConfig) -> Self {
        AdamW { config, steps: 0, moments: BTreeMap::new() }
    }

    /// An optimiser as [`AdamW::steps`] and [`AdamW::moments`] described it.
    pub fn restore(config: AdamWConfig, steps: u64, moments: BTreeMap<String, Moments>) -> Self {
        AdamW { config, steps, moments }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state by tensor name.
    pub fn moments(&self) -> &BTreeMap<String, Moments> {
        &self.moments
    }

    /// One step: every variable moves along its gradient times `scale` (the clipping factor).
    /// Variables without an entry in `gradients` stay as they are.
    ///
    /// # Errors
    /// When a gradient's size is not its variable's, or a tensor is not f32.
    pub fn step(
        &mut self,
        variables: &BTreeMap<String, Var>,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        scale: f32,
    ) -> Result<()> {
        self.steps += 1;
        let bias1 = 1.0 - self.config.beta1.powf(self.steps as f64);
        let bias2 = 1.0 - self.config.beta2.powf(self.steps as f64);
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(name) else { continue };
            let size = variable.elem_count();
            let moments = self.moments.entry(name.clone()).or_default();
            if moments.exp_avg.len() != size || moments.exp_avg_sq.len() != size {
                *moments = Moments { exp_avg: vec![0.0; size], exp_avg_sq: vec![0.0; size] };
            }
            let decay = if variable.rank() >= 2 { self.config.weight_decay } else { 0.0 };
            let update = Update {
                keep: (1.0 - learning_rate * decay) as f32,
                lerp: (1.0 - self.config.beta1) as f32,
                beta2: self.config.beta2 as f32,
                square: (1.0 - self.config.beta2) as f32,
                root: bias2.sqrt() as f32,
                epsilon: self.config.epsilon as f32,
                size: (learning_rate / bias1) as f32,
                scale,
            };
            with_values(gradient, |gradient| {
                if matches!(variable.device(), Device::Cpu) {
                    let op = InPlace { update, gradient, moments: Mutex::new(moments) };
                    variable.inplace_op1(&op)?;
                } else {
                    // The state lives on the host: correct on any device, and training is bound by
                    // the decoder, not by this copy.
                    let mut values = variable.flatten_all()?.to_vec1::<f32>()?;
                    update.apply(&mut values, gradient, moments);
                    variable.set(&Tensor::from_vec(values, variable.shape(), variable.device())?)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The constants of one tensor's step.
#[derive(Clone, Copy)]
struct Update {
    keep: f32,
    lerp: f32,
    beta2: f32,
    square: f32,
    root: f32,
    epsilon: f32,
    size: f32,
    scale: f32,
}

impl Update {
    fn apply(self, values: &mut [f32], gradient: &[f32], moments: &mut Moments) {
        values
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(moments.exp_avg.par_chunks_mut(CHUNK))
            .zip(moments.exp_avg_sq.par_chunks_mut(CHUNK))
            .for_each(|(((p, g), m), v)| {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * self.scale;
                    *p *= self.keep;
                    *m += self.lerp * (g - *m);
                    *v = *v * self.beta2 + self.square * (g * g);
                    *p -= self.size * (*m / (v.sqrt() / self.root + self.epsilon));
                }
            });
    }
}

struct InPlace<'a> {
    update: Update,
    gradient: &'a [f32],
    // candle hands the operation out by shared reference and runs it once.
    moments: Mutex<&'a mut Moments>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("AdamW keeps its parameters in f32, got {:?}", storage_type(storage));
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("AdamW needs a contiguous parameter");
        };
        if end - start != self.gradient.len() {
            candle_core::bail!(
                "a parameter of {} values has a gradient of {}",
                end - start,
                self.gradient.len()
            );
        }
        let mut moments = self.moments.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.update.apply(&mut values[start..end], self.gradient, &mut moments);
        Ok(())
    }
}

fn storage_type(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// The Euclidean norm over all tensors together, summed in name order and fixed chunks, so that it
/// has the same bits at any number of threads.
///
/// # Errors
/// Tensors that cannot be brought to the host.
pub fn global_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f32> {
    let mut sum = 0.0f64;
    for gradient in gradients.values() {
        sum += with_values(gradient, |values| {
            let parts: Vec<f64> = values
                .par_chunks(CHUNK)
                .map(|chunk| chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum())
                .collect();
            Ok(parts.iter().sum::<f64>())
        })?;
    }
    Ok(sum.sqrt() as f32)
}

/// The factor that brings a gradient of `norm` to at most `max_grad_norm`, as
/// `torch.nn.utils.clip_grad_norm_` computes it.
pub fn clip_factor(norm: f32, max_grad_norm: f64) -> f32 {
    ((max_grad_norm / (f64::from(norm) + 1e-6)) as f32).min(1.0)
}

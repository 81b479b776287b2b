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
//! The state is plain f32, lies where the variables lie, and can be saved; on the CPU one pass over the slices does all
//! four lines, on a GPU tensor operations do, and nothing comes to the host.
//! Weight decay leaves out tensors of fewer than two dimensions (biases, norm scales), as transformers does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor, Var};
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

impl AdamWConfig {
    /// The constants of step `step`, counted from 1.
    fn update(&self, step: u64, learning_rate: f64, decay: f64, scale: f32) -> Update {
        let bias1 = 1.0 - self.beta1.powf(step as f64);
        let bias2 = 1.0 - self.beta2.powf(step as f64);
        Update {
            keep: (1.0 - learning_rate * decay) as f32,
            lerp: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            square: (1.0 - self.beta2) as f32,
            root: bias2.sqrt() as f32,
            epsilon: self.epsilon as f32,
            size: (learning_rate / bias1) as f32,
            scale,
        }
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

/// Where the running means of one tensor lie.
#[derive(Debug, Clone)]
enum State {
    Host(Moments),
    /// Beside the variable, in its shape.
    Device {
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
    },
}

impl State {
    /// On the host, for a tensor of `size` values; zeros where there were none of that size.
    fn host(&mut self, size: usize) -> Result<&mut Moments> {
        let moments = self.moments()?;
        let fits = moments.exp_avg.len() == size && moments.exp_avg_sq.len() == size;
        match (&*self, fits) {
            (State::Host(_), true) => {}
            (_, true) => *self = State::Host(moments.into_owned()),
            (_, false) => {
                *self = State::Host(Moments { exp_avg: vec![0.0; size], exp_avg_sq: vec![0.0; size] });
            }
        }
        match self {
            State::Host(moments) => Ok(moments),
            State::Device { .. } => {
                Err(candle_core::Error::Msg("the optimiser's state got lost".into()).into())
            }
        }
    }

    /// Beside `variable`; zeros where there were none of its size.
    fn beside(&mut self, variable: &Tensor) -> Result<(&mut Tensor, &mut Tensor)> {
        let place = |values: &[f32]| -> Result<Tensor> {
            if values.len() == variable.elem_count() {
                return Ok(Tensor::from_slice(values, variable.shape(), variable.device())?);
            }
            Ok(variable.zeros_like()?.detach())
        };
        if let State::Host(moments) = self {
            *self =
                State::Device { exp_avg: place(&moments.exp_avg)?, exp_avg_sq: place(&moments.exp_avg_sq)? };
        }
        match self {
            State::Device { exp_avg, exp_avg_sq } => Ok((exp_avg, exp_avg_sq)),
            State::Host(_) => Err(candle_core::Error::Msg("the optimiser's state got lost".into()).into()),
        }
    }

    fn moments(&self) -> Result<Cow<'_, Moments>> {
        let values = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
        Ok(match self {
            State::Host(moments) => Cow::Borrowed(moments),
            State::Device { exp_avg, exp_avg_sq } => {
                Cow::Owned(Moments { exp_avg: values(exp_avg)?, exp_avg_sq: values(exp_avg_sq)? })
            }
        })
    }
}

/// AdamW over name-ordered tensors.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    states: BTreeMap<String, State>,
}

/// Values one task works on; fixed, so that the split never depends on the number of threads.
const CHUNK: usize = 16 * 1024;

impl AdamW {
    /// A fresh optimiser.
    pub fn new(config: AdamWConfig) -> Self {
        AdamW { config, steps: 0, states: BTreeMap::new() }
    }

    /// An optimiser as [`AdamW::steps`] and [`AdamW::moments`] described it.
    pub fn restore(config: AdamWConfig, steps: u64, moments: BTreeMap<String, Moments>) -> Self {
        let states = moments.into_iter().map(|(name, moments)| (name, State::Host(moments))).collect();
        AdamW { config, steps, states }
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The state of the tensor `name`; `None` before its first step.
    ///
    /// # Errors
    /// When it cannot be brought to the host.
    pub fn moments(&self, name: &str) -> Result<Option<Cow<'_, Moments>>> {
        self.states.get(name).map(State::moments).transpose()
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
        for (name, variable) in variables {
            let Some(gradient) = gradients.get(name) else { continue };
            let state = self.states.entry(name.clone()).or_insert_with(|| State::Host(Moments::default()));
            let decay = if variable.rank() >= 2 { self.config.weight_decay } else { 0.0 };
            let update = self.config.update(self.steps, learning_rate, decay, scale);
            if !variable.device().is_cpu() {
                update.apply_tensors(variable, gradient, state)?;
                continue;
            }
            let moments = state.host(variable.elem_count())?;
            with_values(gradient, |gradient| {
                let op = InPlace { update, gradient, moments: Mutex::new(moments) };
                Ok(variable.inplace_op1(&op)?)
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

impl Update {
    /// The same on the device of `variable`.
    fn apply_tensors(self, variable: &Var, gradient: &Tensor, state: &mut State) -> Result<()> {
        let number = f64::from;
        let (m, v) = state.beside(variable)?;
        let gradient = (gradient.detach() * number(self.scale))?;
        *m = (&*m + ((&gradient - &*m)? * number(self.lerp))?)?;
        *v = ((&*v * number(self.beta2))? + (gradient.sqr()? * number(self.square))?)?;
        let spread = ((v.sqrt()? / number(self.root))? + number(self.epsilon))?;
        let kept = (variable.as_tensor().detach() * number(self.keep))?;
        variable.set(&(kept - (m.div(&spread)? * number(self.size))?)?)?;
        Ok(())
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
/// has the same bits at any number of threads. A GPU sums each tensor there.
///
/// # Errors
/// Tensors that cannot be brought to the host.
pub fn global_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f32> {
    let mut sum = 0.0f64;
    let mut there = Vec::new();
    for gradient in gradients.values() {
        if !gradient.device().is_cpu() {
            there.push(sum_of_squares(gradient)?);
            continue;
        }
        sum += with_values(gradient, |values| {
            let parts: Vec<f64> = values
                .par_chunks(CHUNK)
                .map(|chunk| chunk.iter().map(|&x| f64::from(x) * f64::from(x)).sum())
                .collect();
            Ok(parts.iter().sum::<f64>())
        })?;
    }
    if !there.is_empty() {
        // One transfer for all.
        sum += Tensor::stack(&there, 0)?.to_vec1::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    }
    Ok(sum.sqrt() as f32)
}

/// A scalar on the tensor's device.
fn sum_of_squares(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?)
}

/// The factor that brings a gradient of `norm` to at most `max_grad_norm`, as
/// `torch.nn.utils.clip_grad_norm_` computes it.
pub fn clip_factor(norm: f32, max_grad_norm: f64) -> f32 {
    ((max_grad_norm / (f64::from(norm) + 1e-6)) as f32).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_operations_walk_as_the_slices_do() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let draw = |seed: u64, size: usize| -> Vec<f32> {
            let mut stream = crate::random::Stream::new(seed, "adamw", &[]);
            (0..size).map(|_| (stream.bits64() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
        };
        let tensor =
            |seed: u64| Tensor::from_vec(draw(seed, 40_000), (200, 200), &candle_core::Device::Cpu).unwrap();
        let (here, there) = (Var::from_tensor(&tensor(1)).unwrap(), Var::from_tensor(&tensor(1)).unwrap());
        let mut optimizer = AdamW::new(config);
        let mut state = State::Host(Moments::default());
        for step in 1..=20 {
            let gradient = tensor(1 + step);
            let (rate, scale) = (1e-3, 0.5);
            let variables = BTreeMap::from([("w".to_string(), here.clone())]);
            let gradients = BTreeMap::from([("w".to_string(), gradient.clone())]);
            optimizer.step(&variables, &gradients, rate, scale).unwrap();
            let update = config.update(step, rate, config.weight_decay, scale);
            update.apply_tensors(&there, &gradient, &mut state).unwrap();
            let squares = f64::from(sum_of_squares(&gradient).unwrap().to_scalar::<f32>().unwrap());
            assert!((squares.sqrt() / f64::from(global_norm(&gradients).unwrap()) - 1.0).abs() < 1e-6);
        }
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let close = |a: &[f32], b: &[f32], what: &str| {
            let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(off <= 1e-6 * largest, "{what}: {off} of {largest}");
        };
        close(&values(&here), &values(&there), "values");
        let (host, device) = (optimizer.moments("w").unwrap().unwrap(), state.moments().unwrap());
        close(&host.exp_avg, &device.exp_avg, "exp_avg");
        close(&host.exp_avg_sq, &device.exp_avg_sq, "exp_avg_sq");
        // A checkpoint's state goes to either.
        assert_eq!(state.clone().host(40_000).unwrap(), &*device);
        let mut back = State::Host(device.clone().into_owned());
        assert_eq!(values(back.beside(&there).unwrap().0), device.exp_avg);
    }
}

//! Random weights that depend on the seed and the tensor's name alone.

use candle_core::{Device, Tensor};

use super::{Matrix, WeightSource};
use crate::error::Result;
use crate::random::Stream;

/// `count` values, uniform in `±bound`.
pub(super) fn uniform(seed: u64, name: &str, count: usize, bound: f32) -> Vec<f32> {
    let mut random = Stream::new(seed, name, &[]);
    (0..count).map(|_| ((2.0 * random.unit_f64() - 1.0) * f64::from(bound)) as f32).collect()
}

/// `count` normal values of standard deviation `deviation` (Box–Muller).
pub(super) fn normal(seed: u64, name: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut random = Stream::new(seed, name, &[]);
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 − u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - random.unit_f64()).ln()).sqrt() * deviation;
        let (sin, cos) = (std::f64::consts::TAU * random.unit_f64()).sin_cos();
        values.push((radius * cos) as f32);
        values.push((radius * sin) as f32);
    }
    values.truncate(count);
    values
}

/// Factors of a dropout layer: `1 / (1 − p)` with probability `1 − p`, otherwise 0.
pub(super) fn dropout(seed: u64, name: &str, count: usize, p: f32) -> Vec<f32> {
    let mut random = Stream::new(seed, name, &[]);
    let keep = 1.0 / (1.0 - p);
    (0..count).map(|_| if random.unit_f32() < p { 0.0 } else { keep }).collect()
}

/// GPT-2's initialisation as a source of weights.
#[derive(Debug)]
pub(super) struct RandomWeights {
    seed: u64,
    layers: usize,
}

impl RandomWeights {
    pub(super) fn new(seed: u64, layers: usize) -> Self {
        RandomWeights { seed, layers }
    }
}

impl WeightSource for RandomWeights {
    fn has(&self, _name: &str) -> bool {
        true
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let onto_residual = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
        let deviation = if onto_residual { 0.02 / (2.0 * self.layers as f64).sqrt() } else { 0.02 };
        let values = normal(self.seed, name, rows * cols, deviation);
        Ok(Matrix::Dense(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        let value = if name.ends_with("norm.weight") { 1f32 } else { 0.0 };
        Ok(Tensor::full(value, len, &Device::Cpu)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_and_name_and_have_the_stated_spread() {
        let values = normal(1, "a", 100_000, 0.02);
        assert_eq!(values, normal(1, "a", 100_000, 0.02));
        assert_ne!(values[..4], normal(2, "a", 4, 0.02)[..]);
        assert_ne!(values[..4], normal(1, "b", 4, 0.02)[..]);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1e5;
        let spread = (values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 1e5).sqrt();
        // Six standard errors of the mean and of the deviation.
        assert!(mean.abs() < 6.0 * 0.02 / 316.0, "{mean}");
        assert!((spread - 0.02).abs() < 6.0 * 0.02 / 447.0, "{spread}");
        let bounded = uniform(1, "a", 100_000, 0.5);
        assert!(bounded.iter().all(|v| v.abs() <= 0.5) && bounded.iter().any(|v| v.abs() > 0.49));
        let kept = dropout(1, "a", 100_000, 0.25).iter().filter(|f| **f > 0.0).count();
        assert!((kept as f64 - 75_000.0).abs() < 6.0 * 137.0, "{kept}");
    }
}

//! The MLP's non-linearity: `act(up)` or `act(gate) · up`, element by element.

use rayon::prelude::*;

use super::config::Activation;
use super::simd::{erf, exp, sigmoid, tanh, vectorized};

/// Elements handled by one task.
const PIECE: usize = 16_384;
/// √(2/π).
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// Value and slope of an activation.
trait Curve: Sync {
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct Silu;
struct Gelu;
struct GeluTanh;

impl Curve for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        const DENSITY: f32 = 0.398_942_3;
        0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)) + x * DENSITY * exp(-0.5 * x * x)
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x)))
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
        let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
    }
}

/// `out = act(gate) · up`, or `act(up)` without a gate.
pub(super) fn forward(activation: Activation, gate: Option<&[f32]>, up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Silu => forward_as::<Silu>(gate, up, out),
        Activation::Gelu => forward_as::<Gelu>(gate, up, out),
        Activation::GeluTanh => forward_as::<GeluTanh>(gate, up, out),
    }
}

fn forward_as<C: Curve>(gate: Option<&[f32]>, up: &[f32], out: &mut [f32]) {
    let pieces = out.par_chunks_mut(PIECE).zip(up.par_chunks(PIECE));
    match gate {
        Some(gate) => pieces.zip(gate.par_chunks(PIECE)).for_each(|((out, up), gate)| {
            vectorized(|| {
                for ((out, up), gate) in out.iter_mut().zip(up).zip(gate) {
                    *out = C::value(*gate) * up;
                }
            });
        }),
        None => pieces.for_each(|(out, up)| {
            vectorized(|| out.iter_mut().zip(up).for_each(|(out, up)| *out = C::value(*up)));
        }),
    }
}

/// Replaces `gate` and `up` by their gradients, given `dout`.
pub(super) fn backward(activation: Activation, gate: Option<&mut [f32]>, up: &mut [f32], dout: &[f32]) {
    match activation {
        Activation::Silu => backward_as::<Silu>(gate, up, dout),
        Activation::Gelu => backward_as::<Gelu>(gate, up, dout),
        Activation::GeluTanh => backward_as::<GeluTanh>(gate, up, dout),
    }
}

fn backward_as<C: Curve>(gate: Option<&mut [f32]>, up: &mut [f32], dout: &[f32]) {
    let pieces = up.par_chunks_mut(PIECE).zip(dout.par_chunks(PIECE));
    match gate {
        Some(gate) => pieces.zip(gate.par_chunks_mut(PIECE)).for_each(|((up, dout), gate)| {
            vectorized(|| {
                for ((up, dout), gate) in up.iter_mut().zip(dout).zip(gate) {
                    let (value, slope) = (C::value(*gate), C::slope(*gate));
                    *gate = dout * *up * slope;
                    *up = dout * value;
                }
            });
        }),
        None => pieces.for_each(|(up, dout)| {
            vectorized(|| up.iter_mut().zip(dout).for_each(|(up, dout)| *up = dout * C::slope(*up)));
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_values_differences() {
        fn check<C: Curve>(exact: fn(f64) -> f64) {
            for i in -60..=60 {
                let x = f64::from(i) * 0.1;
                let h = 1e-5;
                let slope = (exact(x + h) - exact(x - h)) / (2.0 * h);
                assert!((f64::from(C::value(x as f32)) - exact(x)).abs() < 2e-6, "value at {x}");
                assert!((f64::from(C::slope(x as f32)) - slope).abs() < 2e-6, "slope at {x}");
            }
        }
        check::<Silu>(|x| x / (1.0 + (-x).exp()));
        check::<Gelu>(|x| 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt())));
        check::<GeluTanh>(|x| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        });
    }
}

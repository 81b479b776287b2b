//! Elementary functions and sums written so that the compiler turns them into vector code.
//!
//! [`vectorized`] compiles its closure for each instruction set and picks one at run time. Sums keep a
//! fixed number of partial sums, so their bits do not depend on the vector width.

/// Runs `work` compiled for the widest vectors this CPU has.
#[inline(always)]
pub(super) fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

const LANES: usize = 32;

/// `Σ f(i)`-style reductions over one or two rows in a fixed order.
macro_rules! lanes_sum {
    ($a:expr, $b:expr, |$x:ident, $y:ident| $term:expr) => {{
        let (a, b): (&[f32], &[f32]) = ($a, $b);
        let mut sums = [0f32; LANES];
        let (whole_a, rest_a) = a.as_chunks::<LANES>();
        let (whole_b, rest_b) = b.as_chunks::<LANES>();
        for (a, b) in whole_a.iter().zip(whole_b) {
            for lane in 0..LANES {
                let ($x, $y) = (a[lane], b[lane]);
                sums[lane] += $term;
            }
        }
        for (lane, ($x, $y)) in rest_a.iter().zip(rest_b).enumerate() {
            let ($x, $y) = (*$x, *$y);
            sums[lane] += $term;
        }
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    }};
}

/// Sum of all values.
#[inline(always)]
pub(super) fn sum(a: &[f32]) -> f32 {
    lanes_sum!(a, a, |x, _y| x)
}

/// Sum of squares of `x − shift`.
#[inline(always)]
pub(super) fn sum_squares(a: &[f32], shift: f32) -> f32 {
    lanes_sum!(a, a, |x, _y| (x - shift) * (x - shift))
}

/// Inner product.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    lanes_sum!(a, b, |x, y| x * y)
}

/// Largest value; −∞ for an empty row. Values that are not numbers are passed over.
#[inline(always)]
pub(super) fn max(a: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            best[lane] = if chunk[lane] > best[lane] { chunk[lane] } else { best[lane] };
        }
    }
    let all = best.iter().chain(rest);
    all.fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m })
}

/// `eˣ` to about 2 ulp (Cephes' polynomial); inputs beyond ±87 are held there.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 87.0 { 87.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * (r * r) + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    mantissa * f32::from_bits(exponent)
}

/// `1 / (1 + e⁻ˣ)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, to about 1e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function, to about 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let y = 1.0 - p * exp(-a * a);
    if x < 0.0 { -y } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elementary_functions_agree_with_the_standard_library() {
        for i in -2000..2000 {
            let x = i as f32 * 0.0431;
            let wide = f64::from(x);
            assert!((f64::from(exp(x)) / wide.exp() - 1.0).abs() < 3e-7, "exp {x}");
            assert!((f64::from(tanh(x)) - wide.tanh()).abs() < 2e-7, "tanh {x}");
            assert!((f64::from(sigmoid(x)) - 1.0 / (1.0 + (-wide).exp())).abs() < 2e-7, "sigmoid {x}");
            assert!((erf(x) - candle_core::cpu::erf::erf_f32(x)).abs() < 4e-7, "erf {x}");
        }
    }

    #[test]
    fn sums_cover_every_element_once() {
        for length in [0, 1, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let n = length as f32;
            assert_eq!(sum(&a), n * (n - 1.0) / 2.0 * f32::from(u8::from(length > 0)));
            assert_eq!(dot(&a, &a), sum_squares(&a, 0.0));
            assert_eq!(max(&a), a.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
    }
}

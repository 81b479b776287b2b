//! A handful of rows, as in generation: microseconds a call.

use crate::BUILD;
use crate::linear::{SHAPES, case};
use crate::product::{View, multiply, multiply_pieces, parallelism};
use crate::timing::{line, median, numbers};
use crate::turn::turn;
use rayon::prelude::*;

/// `y[r, o] = Σₖ x[r, k] · w[o, k]` for a few rows at a time, both sides read along k: nothing to pack.
#[inline(always)]
fn dots<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    const LANES: usize = 16;
    for (o, w) in w.chunks_exact(inputs).enumerate() {
        let mut sums = [[0f32; LANES]; ROWS];
        for start in (0..inputs - inputs % LANES).step_by(LANES) {
            let w: &[f32; LANES] = w[start..start + LANES].try_into().unwrap_or(&[0.0; LANES]);
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = &x[r * inputs + start..r * inputs + start + LANES];
                for lane in 0..LANES {
                    sums[lane] = x[lane].mul_add(w[lane], sums[lane]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let tail: f32 = (inputs - inputs % LANES..inputs).map(|k| x[r * inputs + k] * w[k]).sum();
            y[o * ROWS + r] = sums.iter().sum::<f32>() + tail;
        }
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
fn dots_avx512<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    dots::<ROWS>(x, w, inputs, y);
}

#[target_feature(enable = "avx2,fma")]
fn dots_avx2<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    dots::<ROWS>(x, w, inputs, y);
}

fn best_dots<const ROWS: usize>(x: &[f32], w: &[f32], inputs: usize, y: &mut [f32]) {
    // Sound: each function is called where its features were found.
    if cfg!(feature = "avx512") && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
    {
        unsafe { dots_avx512::<ROWS>(x, w, inputs, y) }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        unsafe { dots_avx2::<ROWS>(x, w, inputs, y) }
    } else {
        dots::<ROWS>(x, w, inputs, y);
    }
}

/// Four rows at a time over 64 outputs a task; `y` comes out in blocks `[outputs, rows of the block]`.
fn by_dots(x: &[f32], w: &[f32], rows: usize, outputs: usize, inputs: usize, y: &mut [f32]) {
    const TASK: usize = 64;
    y.par_chunks_mut(TASK * rows).enumerate().for_each(|(task, y)| {
        let w = &w[task * TASK * inputs..((task + 1) * TASK).min(outputs) * inputs];
        let count = w.len() / inputs;
        for start in (0..rows).step_by(4) {
            let some = (rows - start).min(4);
            let (x, y) =
                (&x[start * inputs..(start + some) * inputs], &mut y[start * count..(start + some) * count]);
            match some {
                1 => best_dots::<1>(x, w, inputs, y),
                2 => best_dots::<2>(x, w, inputs, y),
                3 => best_dots::<3>(x, w, inputs, y),
                _ => best_dots::<4>(x, w, inputs, y),
            }
        }
    });
}

pub fn run() {
    for shape in [SHAPES[2], SHAPES[7], SHAPES[4]] {
        let (_, _, outputs, inputs) = shape;
        let weight = numbers(outputs * inputs, 1);
        let mut turned = vec![0f32; outputs * inputs];
        turn(&weight, outputs, inputs, &mut turned);
        for rows in [1, 2, 3, 4, 6, 8, 12, 16, 32] {
            let x = numbers(rows * inputs, 2);
            let mut y = vec![0f32; rows * outputs];
            let report = |name: &str, seconds: f64| {
                line("few", &case("forward", shape, rows), &format!("{name} {BUILD}"), seconds * 1e6, "us");
            };
            let (a, b, b_turned) =
                (View::rows(&x, inputs), View::transposed(&weight, inputs), View::rows(&turned, outputs));
            report("gemm", median(|| multiply(rows, outputs, inputs, &mut y, outputs, a, b, parallelism())));
            report("pieces", median(|| multiply_pieces(rows, outputs, inputs, &mut y, a, b)));
            let seconds = median(|| multiply_pieces(rows, outputs, inputs, &mut y, a, b_turned));
            report("pieces, W kept as [in, out],", seconds);
            report("dot products", median(|| by_dots(&x, &weight, rows, outputs, inputs, &mut y)));
        }
    }
}

//! RMS and layer norms over rows.
//!
//! RMS: `y = x · r · w`, `r = 1 / √(mean(x²) + ε)`. Layer: `y = (x − μ) · r · w + b`, `r = 1 / √(var(x) + ε)`.
//! Backward, with `g = dy · w` and `x̂` the normalised row: `dx = r · (g − [mean(g)] − x̂ · mean(g · x̂))`, the bracket for layer norms alone.

use candle_core::Tensor;
use rayon::prelude::*;

use super::linear::{Gradients, with_values};
use super::parameters::NormWeights;
use super::scratch::{for_rows, rows_per_task};
use super::simd::{dot, sum, sum_squares, vectorized};
use crate::error::Result;

impl NormWeights {
    /// Whether anything in it is trained.
    pub(super) fn trained(&self) -> bool {
        self.weight.is_variable() || self.bias.as_ref().is_some_and(Tensor::is_variable)
    }

    /// Calls `work` with the factors and the offsets (empty for RMS norms).
    fn with<R>(&self, work: impl FnOnce(&[f32], &[f32]) -> Result<R>) -> Result<R> {
        with_values(&self.weight, |weight| match &self.bias {
            Some(bias) => with_values(bias, |bias| work(weight, bias)),
            None => work(weight, &[]),
        })
    }

    /// `y = norm(x)`, row by row; rows as wide as the weight.
    pub(super) fn forward(&self, eps: f32, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.with(|weight, bias| {
            let width = weight.len();
            for_rows(y, width, |first, y| {
                let x = &x[first * width..][..y.len()];
                vectorized(|| forward_rows(eps, weight, bias, x, y));
            });
            Ok(())
        })
    }

    /// As [`NormWeights::forward`], in place.
    pub(super) fn forward_in_place(&self, eps: f32, x: &mut [f32]) -> Result<()> {
        self.with(|weight, bias| {
            let width = weight.len();
            for_rows(x, width, |_, rows| {
                vectorized(|| {
                    for row in rows.chunks_exact_mut(width) {
                        let (mean, r) = statistics(eps, !bias.is_empty(), row);
                        for (x, w) in row.iter_mut().zip(weight) {
                            *x = (*x - mean) * r * w;
                        }
                        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
                    }
                });
            });
            Ok(())
        })
    }

    /// Adds the weights' gradients and the input's: `dx += …`, or `dx = …` when not `accumulate`.
    pub(super) fn backward(
        &self,
        eps: f32,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        accumulate: bool,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let trained = self.trained();
        let parts: Vec<(Vec<f32>, Vec<f32>)> = self.with(|weight, bias| {
            let width = weight.len();
            let rows = rows_per_task(width) * width;
            let parts = dx.par_chunks_mut(rows).zip(dy.par_chunks(rows)).zip(x.par_chunks(rows));
            Ok(parts
                .map(|((dx, dy), x)| {
                    let mut dw = vec![0f32; if trained { width } else { 0 }];
                    let mut db = vec![0f32; if trained { bias.len() } else { 0 }];
                    let layer = !bias.is_empty();
                    vectorized(|| {
                        backward_rows(eps, layer, weight, (x, dy), dx, accumulate, &mut dw, &mut db)
                    });
                    (dw, db)
                })
                .collect())
        })?;
        if !trained {
            return Ok(());
        }
        let mut add = |variable: &Tensor, part: &[f32]| {
            if variable.is_variable() {
                gradients.slot(variable).iter_mut().zip(part).for_each(|(s, p)| *s += p);
            }
        };
        for (dw, db) in &parts {
            add(&self.weight, dw);
            if let Some(bias) = &self.bias {
                add(bias, db);
            }
        }
        Ok(())
    }
}

/// Mean (0 for RMS norms) and reciprocal spread of one row.
#[inline(always)]
fn statistics(eps: f32, layer: bool, row: &[f32]) -> (f32, f32) {
    let n = row.len() as f32;
    let mean = if layer { sum(row) / n } else { 0.0 };
    (mean, 1.0 / (sum_squares(row, mean) / n + eps).sqrt())
}

#[inline(always)]
fn forward_rows(eps: f32, weight: &[f32], bias: &[f32], x: &[f32], y: &mut [f32]) {
    let width = weight.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let (mean, r) = statistics(eps, !bias.is_empty(), x);
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = (x - mean) * r * w;
        }
        y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn backward_rows(
    eps: f32,
    layer: bool,
    weight: &[f32],
    (x, dy): (&[f32], &[f32]),
    dx: &mut [f32],
    accumulate: bool,
    dw: &mut [f32],
    db: &mut [f32],
) {
    let width = weight.len();
    let n = width as f32;
    let mut g = vec![0f32; width];
    let mut normal = vec![0f32; width];
    for ((x, dy), dx) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(dx.chunks_exact_mut(width)) {
        let (mean, r) = statistics(eps, layer, x);
        for i in 0..width {
            g[i] = dy[i] * weight[i];
            normal[i] = (x[i] - mean) * r;
        }
        let along = dot(&g, &normal) / n;
        let shift = if layer { sum(&g) / n } else { 0.0 };
        if accumulate {
            for i in 0..width {
                dx[i] += r * (g[i] - shift - normal[i] * along);
            }
        } else {
            for i in 0..width {
                dx[i] = r * (g[i] - shift - normal[i] * along);
            }
        }
        for ((dw, dy), normal) in dw.iter_mut().zip(dy).zip(&normal) {
            *dw += dy * normal;
        }
        db.iter_mut().zip(dy).for_each(|(db, dy)| *db += dy);
    }
}

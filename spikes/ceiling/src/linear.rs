//! The linear layers of two models, forward (x · Wᵀ) and backward (dy · W), W being `[out, in]` row by row.

use crate::BUILD;
use crate::product::{View, multiply, multiply_pieces, parallelism};
use crate::timing::{line, median, numbers};
use anyhow::Result;
use candle_core::{Device, Tensor};

/// (model, matrix, outputs, inputs); equal shapes once.
pub const SHAPES: [(&str, &str, usize, usize); 10] = [
    ("SmolLM2-135M", "q, o", 576, 576),
    ("SmolLM2-135M", "k, v", 192, 576),
    ("SmolLM2-135M", "gate, up", 1536, 576),
    ("SmolLM2-135M", "down", 576, 1536),
    ("SmolLM2-135M", "head", 49152, 576),
    ("Qwen2.5-0.5B", "q, o", 896, 896),
    ("Qwen2.5-0.5B", "k, v", 128, 896),
    ("Qwen2.5-0.5B", "gate, up", 4864, 896),
    ("Qwen2.5-0.5B", "down", 896, 4864),
    ("Qwen2.5-0.5B", "head", 151936, 896),
];

pub fn case(direction: &str, shape: (&str, &str, usize, usize), rows: usize) -> String {
    let (model, matrix, outputs, inputs) = shape;
    format!("{direction}|{model}|{matrix}|{outputs}|{inputs}|{rows}")
}

pub fn run() -> Result<()> {
    for shape in SHAPES {
        let (_, _, outputs, inputs) = shape;
        let weight = numbers(outputs * inputs, 1);
        let weight_t = candle_core::Tensor::from_slice(&weight, (outputs, inputs), &Device::Cpu)?;
        // 2,048 rows of Qwen's head are 1.2 GB of logits, which nobody keeps: 512 tell the same.
        let most = if outputs > 100_000 { 512 } else { 2048 };
        for rows in [64, 512, 2048].into_iter().filter(|&rows| rows <= most) {
            let flops = 2.0 * (rows * outputs * inputs) as f64;
            let report = |direction: &str, implementation: &str, seconds: f64| {
                line(
                    "linear",
                    &case(direction, shape, rows),
                    &format!("{implementation} {BUILD}"),
                    flops / seconds / 1e9,
                    "GFLOP/s",
                );
            };
            // Forward.
            let x = numbers(rows * inputs, 2);
            let mut y = vec![0f32; rows * outputs];
            let seconds = median(|| {
                let (x, w) = (View::rows(&x, inputs), View::transposed(&weight, inputs));
                multiply(rows, outputs, inputs, &mut y, outputs, x, w, parallelism());
            });
            report("forward", "gemm", seconds);
            let seconds = median(|| {
                let (x, w) = (View::rows(&x, inputs), View::transposed(&weight, inputs));
                multiply_pieces(rows, outputs, inputs, &mut y, x, w);
            });
            report("forward", "pieces", seconds);
            if outputs < 10_000 {
                // The weight kept as [in, out]: no packing of the left operand that gemm turns it into.
                let turned = weight_t.t()?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                let seconds = median(|| {
                    let (x, w) = (View::rows(&x, inputs), View::rows(&turned, outputs));
                    multiply(rows, outputs, inputs, &mut y, outputs, x, w, parallelism());
                });
                report("forward", "gemm, W kept as [in, out],", seconds);
                let seconds = median(|| {
                    let (x, w) = (View::rows(&x, inputs), View::rows(&turned, outputs));
                    multiply_pieces(rows, outputs, inputs, &mut y, x, w);
                });
                report("forward", "pieces, W kept as [in, out],", seconds);
            }
            drop(y);
            let x_t = Tensor::from_slice(&x, (rows, inputs), &Device::Cpu)?;
            let w_t = weight_t.t()?;
            let mut failed = None;
            let seconds = median(|| failed = x_t.matmul(&w_t).err());
            failed.map_or(Ok(()), Err)?;
            report("forward", "candle", seconds);
            // Backward.
            let dy = numbers(rows * outputs, 3);
            let mut dx = vec![0f32; rows * inputs];
            let seconds = median(|| {
                let (dy, w) = (View::rows(&dy, outputs), View::rows(&weight, inputs));
                multiply(rows, inputs, outputs, &mut dx, inputs, dy, w, parallelism());
            });
            report("backward", "gemm", seconds);
            let seconds = median(|| {
                let (dy, w) = (View::rows(&dy, outputs), View::rows(&weight, inputs));
                multiply_pieces(rows, inputs, outputs, &mut dx, dy, w);
            });
            report("backward", "pieces", seconds);
            let dy_t = Tensor::from_vec(dy, (rows, outputs), &Device::Cpu)?;
            let mut failed = None;
            let seconds = median(|| failed = dy_t.matmul(&weight_t).err());
            failed.map_or(Ok(()), Err)?;
            report("backward", "candle", seconds);
        }
    }
    Ok(())
}

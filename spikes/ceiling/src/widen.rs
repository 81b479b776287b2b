//! Stored weights widened a tile at a time into a reused f32 scratch, then multiplied by all rows.

use crate::BUILD;
use crate::linear::{SHAPES, case};
use crate::product::{Cells, View, columns, multiply, multiply_pieces, parallelism};
use crate::timing::{line, median, numbers};
use crate::turn::turn_eight;
use anyhow::Result;
use candle_core::quantized::k_quants::{BlockQ4K, BlockQ8_0, GgmlType};
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// A stored weight that can widen some of its rows.
enum Stored {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Q8_0(Vec<BlockQ8_0>),
    Q4K(Vec<BlockQ4K>),
}

/// Blocks of `weight` in a quantised type.
fn quantise<B: GgmlType>(weight: &[f32]) -> Vec<B> {
    let mut blocks = vec![B::zeros(); weight.len() / B::BLCK_SIZE];
    B::from_float(weight, &mut blocks);
    blocks
}

impl Stored {
    fn all(weight: &[f32], inputs: usize) -> Vec<(&'static str, Self)> {
        let mut all = vec![
            ("f32, copied", Self::F32(weight.to_vec())),
            ("f16", Self::F16(weight.iter().map(|&x| f16::from_f32(x)).collect())),
            ("bf16", Self::Bf16(weight.iter().map(|&x| bf16::from_f32(x)).collect())),
            ("Q8_0", Self::Q8_0(quantise(weight))),
        ];
        // Super-blocks of 256 do not fit every width (576, 896: such files store those matrices in another type).
        if inputs.is_multiple_of(256) {
            all.push(("Q4_K", Self::Q4K(quantise(weight))));
        }
        all
    }

    fn widen(&self, start: usize, out: &mut [f32]) {
        let range = start..start + out.len();
        match self {
            Self::F32(w) => out.copy_from_slice(&w[range]),
            Self::F16(w) => w[range].convert_to_f32_slice(out),
            // bf16 is the upper half of an f32: a shift that the compiler vectorises.
            Self::Bf16(w) => out
                .iter_mut()
                .zip(&w[range])
                .for_each(|(o, x)| *o = f32::from_bits(u32::from(x.to_bits()) << 16)),
            Self::Q8_0(w) => BlockQ8_0::to_float(&w[range.start / 32..range.end / 32], out),
            Self::Q4K(w) => BlockQ4K::to_float(&w[range.start / 256..range.end / 256], out),
        }
    }
}

pub fn run() -> Result<()> {
    for shape in [SHAPES[2], SHAPES[3], SHAPES[7], SHAPES[8]] {
        let (_, _, outputs, inputs) = shape;
        let weight = numbers(outputs * inputs, 1);
        let stored = Stored::all(&weight, inputs);
        // Widening alone, 64 rows at a time, over the whole matrix.
        for (name, w) in &stored {
            let tile = 64 * inputs;
            let seconds = median(|| {
                (0..outputs / 64).into_par_iter().for_each_init(
                    || vec![0f32; tile],
                    |scratch, t| {
                        w.widen(t * tile, scratch);
                        std::hint::black_box(&scratch);
                    },
                );
            });
            line(
                "widen",
                &case("widen", shape, 0),
                &format!("{name} {BUILD}"),
                seconds * 1e9 / (outputs * inputs) as f64,
                "ns/weight",
            );
        }
        for rows in [64, 512, 2048] {
            let x = numbers(rows * inputs, 2);
            let mut y = vec![0f32; rows * outputs];
            let flops = 2.0 * (rows * outputs * inputs) as f64;
            let seconds = median(|| {
                let (x, w) = (View::rows(&x, inputs), View::transposed(&weight, inputs));
                multiply(rows, outputs, inputs, &mut y, outputs, x, w, parallelism());
            });
            let report = |name: &str, seconds: f64| {
                line(
                    "widen",
                    &case("forward", shape, rows),
                    &format!("{name} {BUILD}"),
                    flops / seconds / 1e9,
                    "GFLOP/s",
                );
            };
            report("f32, gemm", seconds);
            let seconds = median(|| {
                let (x, w) = (View::rows(&x, inputs), View::transposed(&weight, inputs));
                multiply_pieces(rows, outputs, inputs, &mut y, x, w);
            });
            report("f32, pieces", seconds);
            for most in [128, 256, 512] {
                // One task a tile: widened into the thread's own scratch, then multiplied by all rows on that thread.
                for (name, w) in &stored {
                    let cells = Cells::of(&mut y);
                    let seconds = median(|| {
                        columns(outputs, most).into_par_iter().for_each_init(
                            || vec![0f32; (2 * most + 48) * inputs],
                            |scratch, (start, end)| {
                                let scratch = &mut scratch[..(end - start) * inputs];
                                w.widen(start * inputs, scratch);
                                cells.multiply(
                                    rows,
                                    (start, end),
                                    outputs,
                                    inputs,
                                    &x,
                                    View::transposed(scratch, inputs),
                                );
                            },
                        );
                    });
                    report(&format!("{name}, tiles of {most}"), seconds);
                    // The same, turned to [in, tile] eight rows at a time, so that gemm need not pack it.
                    let seconds = median(|| {
                        columns(outputs, most).into_par_iter().for_each_init(
                            || (vec![0f32; 8 * inputs], vec![0f32; (2 * most + 48) * inputs]),
                            |(eight, scratch), (start, end)| {
                                let count = end - start;
                                for first in (0..count).step_by(8) {
                                    w.widen((start + first) * inputs, eight);
                                    turn_eight(eight, inputs, &mut scratch[first..], count);
                                }
                                cells.multiply(
                                    rows,
                                    (start, end),
                                    outputs,
                                    inputs,
                                    &x,
                                    View::rows(&scratch[..count * inputs], count),
                                );
                            },
                        );
                    });
                    report(&format!("{name}, turned tiles of {most}"), seconds);
                }
            }
            // candle's own way for quantised weights: the activations are quantised too.
            if inputs.is_multiple_of(256) && rows < 2048 {
                let w = Tensor::from_slice(&weight, (outputs, inputs), &Device::Cpu)?;
                let x = Tensor::from_slice(&x, (rows, inputs), &Device::Cpu)?;
                for dtype in [GgmlDType::Q8_0, GgmlDType::Q4K] {
                    let q = QMatMul::from_arc(Arc::new(QTensor::quantize(&w, dtype)?))?;
                    let mut failed = None;
                    let seconds = median(|| failed = q.forward(&x).err());
                    failed.map_or(Ok(()), Err)?;
                    report(&format!("{dtype:?}, candle's QMatMul"), seconds);
                }
            }
        }
    }
    Ok(())
}

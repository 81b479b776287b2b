//! Small products of attention: q · kᵀ and p · v of one (text, head), head_dim 64, read in place from `[tokens, heads * 64]`.

use crate::BUILD;
use crate::product::{View, multiply};
use crate::timing::{line, median, numbers};
use anyhow::Result;
use candle_core::{Device, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

const HEADS: usize = 8;
const WIDTH: usize = 64;

pub fn run() -> Result<()> {
    for tokens in [64, 128, 256, 512] {
        let stride = HEADS * WIDTH;
        let (q, k, v) =
            (numbers(tokens * stride, 1), numbers(tokens * stride, 2), numbers(tokens * stride, 3));
        let p = numbers(HEADS * tokens * tokens, 4);
        let flops = 2.0 * (HEADS * tokens * tokens * WIDTH) as f64;
        let report = |product: &str, implementation: &str, seconds: f64| {
            line(
                "attention",
                &format!("{product}|{tokens}"),
                &format!("{implementation} {BUILD}"),
                flops / seconds / 1e9,
                "GFLOP/s",
            );
        };

        // One task a head, each product on one thread.
        let mut scores = vec![0f32; HEADS * tokens * tokens];
        let seconds = median(|| {
            scores.par_chunks_mut(tokens * tokens).enumerate().for_each(|(head, out)| {
                let (q, k) =
                    (View::rows(&q[head * WIDTH..], stride), View::transposed(&k[head * WIDTH..], stride));
                multiply(tokens, tokens, WIDTH, out, tokens, q, k, Parallelism::None);
            });
        });
        report("q·kᵀ", "gemm a head", seconds);
        let mut mixed = vec![0f32; HEADS * tokens * WIDTH];
        let seconds = median(|| {
            mixed.par_chunks_mut(tokens * WIDTH).enumerate().for_each(|(head, out)| {
                let (p, v) = (
                    View::rows(&p[head * tokens * tokens..], tokens),
                    View::rows(&v[head * WIDTH..], stride),
                );
                multiply(tokens, WIDTH, tokens, out, WIDTH, p, v, Parallelism::None);
            });
        });
        report("p·v", "gemm a head", seconds);

        // The same in blocks of queries that skip the keys after them; rated at the full product's operations, so that
        // the figures compare.
        for block in [32, 64, 128] {
            if block >= tokens {
                continue;
            }
            let seconds = median(|| {
                scores.par_chunks_mut(tokens * tokens).enumerate().for_each(|(head, out)| {
                    for start in (0..tokens).step_by(block) {
                        let q = View::rows(&q[start * stride + head * WIDTH..], stride);
                        let k = View::transposed(&k[head * WIDTH..], stride);
                        multiply(
                            block,
                            start + block,
                            WIDTH,
                            &mut out[start * tokens..],
                            tokens,
                            q,
                            k,
                            Parallelism::None,
                        );
                    }
                });
            });
            report("q·kᵀ", &format!("gemm, causal blocks of {block},"), seconds);
            let seconds = median(|| {
                mixed.par_chunks_mut(tokens * WIDTH).enumerate().for_each(|(head, out)| {
                    for start in (0..tokens).step_by(block) {
                        let p = View::rows(&p[(head * tokens + start) * tokens..], tokens);
                        let v = View::rows(&v[head * WIDTH..], stride);
                        multiply(
                            block,
                            WIDTH,
                            start + block,
                            &mut out[start * WIDTH..],
                            WIDTH,
                            p,
                            v,
                            Parallelism::None,
                        );
                    }
                });
            });
            report("p·v", &format!("gemm, causal blocks of {block},"), seconds);
        }

        // candle's batched product: one head after the other, each on all threads.
        let heads_first = |data: &[f32]| {
            Tensor::from_slice(data, (tokens, HEADS, WIDTH), &Device::Cpu)?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (heads_first(&q)?, heads_first(&k)?.t()?, heads_first(&v)?);
        let p = Tensor::from_slice(&p, (HEADS, tokens, tokens), &Device::Cpu)?;
        let mut failed = None;
        let seconds = median(|| failed = q.matmul(&k).err());
        failed.map_or(Ok(()), Err)?;
        report("q·kᵀ", "candle", seconds);
        let mut failed = None;
        let seconds = median(|| failed = p.matmul(&v).err());
        failed.map_or(Ok(()), Err)?;
        report("p·v", "candle", seconds);
    }
    Ok(())
}

//! Softmax cross-entropy fused with the output head, row chunk by row chunk, and the bridge to
//! candle's gradients.
//!
//! The decoder's backward pass runs as a whole. [`deferred`] hangs it into candle's graph: a chain of one two-argument
//! operation per variable, each of which hands its variable the finished gradient, so `loss.backward()` works as for any
//! other tensor.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Device, Layout, MetalStorage, Shape, Tensor, TensorId,
};
use rayon::prelude::*;

use super::decoder::soft_cap;
use super::linear::{Gradients, Work};
use super::parameters::Decoder;
use super::scratch::Buffer;
use super::simd::{exp, max, vectorized};
use crate::error::Result;

/// Logits held at a time: 64 MiB.
const CHUNK: usize = 16 << 20;

pub(super) fn rows_per_chunk(vocab: usize) -> usize {
    (CHUNK / vocab).clamp(1, 1024)
}

/// `log p(wanted[i])` in nats from rows of the final normed states.
pub(super) fn log_probs(decoder: &Decoder, hidden: &[f32], wanted: &[u32], work: &Work) -> Result<Vec<f32>> {
    let (d, vocab) = (decoder.config.hidden_size, decoder.config.vocab_size);
    let rows = rows_per_chunk(vocab);
    let mut all = Vec::with_capacity(wanted.len());
    let mut buffer = work.pool.take(rows.min(wanted.len()) * vocab);
    for (hidden, wanted) in hidden.chunks(rows * d).zip(wanted.chunks(rows)) {
        let logits = &mut buffer[..wanted.len() * vocab];
        decoder.head().forward(hidden, logits, false, work)?;
        soft_cap(logits, vocab, decoder.config.final_softcap);
        let values = logits.par_chunks(vocab).zip(wanted).map(|(row, wanted)| {
            vectorized(|| {
                let (top, total) = normalizer(row);
                row[*wanted as usize] - top - total.ln()
            })
        });
        all.extend(values.collect::<Vec<f32>>());
    }
    Ok(all)
}

/// Mean negative log probability, added up in f64.
pub(super) fn mean<T: Copy + Into<f64>>(log_probs: &[T]) -> f64 {
    let total: f64 = log_probs.iter().map(|v| (*v).into()).sum();
    -total / log_probs.len() as f64
}

/// Mean cross-entropy, and its gradient with respect to `hidden`; the head's own gradient is added where it is trained.
pub(super) fn cross_entropy(
    decoder: &Decoder,
    hidden: &[f32],
    wanted: &[u32],
    gradients: &mut Gradients,
    work: &Work,
) -> Result<(f32, Buffer)> {
    let (d, vocab) = (decoder.config.hidden_size, decoder.config.vocab_size);
    let rows = rows_per_chunk(vocab);
    let share = 1.0 / wanted.len() as f32;
    let cap = decoder.config.final_softcap;
    let mut slopes = work.pool.take(hidden.len());
    let mut buffer = work.pool.take(rows.min(wanted.len()) * vocab);
    let mut all = Vec::with_capacity(wanted.len());
    let chunks = hidden.chunks(rows * d).zip(wanted.chunks(rows)).zip(slopes.chunks_mut(rows * d));
    for ((hidden, wanted), slopes) in chunks {
        let logits = &mut buffer[..wanted.len() * vocab];
        decoder.head().forward(hidden, logits, false, work)?;
        soft_cap(logits, vocab, cap);
        let values = logits.par_chunks_mut(vocab).zip(wanted).map(|(row, wanted)| {
            vectorized(|| {
                let (top, total) = normalizer(row);
                let wanted = *wanted as usize;
                let value = row[wanted] - top - total.ln();
                slope_of_row(row, wanted, (top, total), share, cap);
                value
            })
        });
        all.extend(values.collect::<Vec<f32>>());
        decoder.head().backward(hidden, logits, Some(slopes), false, gradients, work)?;
    }
    Ok((mean(&all) as f32, slopes))
}

/// Largest logit, and the sum of exponentials relative to it.
#[inline(always)]
fn normalizer(row: &[f32]) -> (f32, f32) {
    let top = max(row);
    // Partial sums of a fixed width, added in order; f64 in between keeps large vocabularies exact.
    let mut total = 0f64;
    for piece in row.chunks(1024) {
        let mut sums = [0f32; 32];
        let (whole, rest) = piece.as_chunks::<32>();
        for chunk in whole {
            for lane in 0..32 {
                sums[lane] += exp(chunk[lane] - top);
            }
        }
        for (lane, x) in rest.iter().enumerate() {
            sums[lane] += exp(x - top);
        }
        total += sums.iter().map(|s| f64::from(*s)).sum::<f64>();
    }
    (top, total as f32)
}

/// Logits to the gradient `share · (softmax − [wanted])`, back through the soft-cap.
#[inline(always)]
fn slope_of_row(row: &mut [f32], wanted: usize, (top, total): (f32, f32), share: f32, cap: Option<f32>) {
    let scale = share / total;
    let through = |logit: f32| cap.map_or(1.0, |cap| 1.0 - (logit / cap) * (logit / cap));
    let at_wanted = share * through(row[wanted]);
    match cap {
        None => row.iter_mut().for_each(|x| *x = scale * exp(*x - top)),
        Some(cap) => row.iter_mut().for_each(|x| {
            let t = *x / cap;
            *x = scale * exp(*x - top) * (1.0 - t * t);
        }),
    }
    row[wanted] -= at_wanted;
}

/// The gradients of variables, by tensor.
pub(super) type Found = HashMap<TensorId, Tensor>;

/// A backward pass that may still have to run.
enum State {
    Waiting(Box<dyn FnOnce() -> Result<Found> + Send>),
    Done(Found),
    Failed,
}

/// Hands one variable its gradient.
struct Deliver(Arc<Mutex<State>>);

impl CustomOp2 for Deliver {
    fn name(&self) -> &'static str {
        "decoder loss"
    }

    fn cpu_fwd(
        &self,
        loss: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((loss.try_clone(layout)?, Shape::from(())))
    }

    fn cuda_fwd(
        &self,
        loss: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        Ok((loss.try_clone(layout)?, Shape::from(())))
    }

    fn metal_fwd(
        &self,
        loss: &MetalStorage,
        layout: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        Ok((loss.try_clone(layout)?, Shape::from(())))
    }

    fn bwd(
        &self,
        loss: &Tensor,
        variable: &Tensor,
        _: &Tensor,
        slope: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Waiting(_) = &*state
            && let State::Waiting(backward) = std::mem::replace(&mut *state, State::Failed)
        {
            *state = State::Done(backward().map_err(|e| candle_core::Error::Msg(e.to_string()))?);
        }
        let State::Done(found) = &mut *state else {
            return Err(candle_core::Error::Msg("the backward pass failed before".into()));
        };
        // A variable the pass never reached stays without a gradient, for the trainer to notice.
        let gradient = match found.remove(&variable.id()) {
            Some(gradient) => {
                let factor = f64::from(slope.to_scalar::<f32>()?);
                Some(if factor == 1.0 { gradient } else { (gradient * factor)? })
            }
            None => None,
        };
        Ok((loss.track_op().then(|| slope.clone()), gradient))
    }
}

/// The scalar `value` with the waiting backward pass behind it.
///
/// What that pass holds is freed by the first `backward()`, or with the tensor.
pub(super) fn deferred(
    value: f32,
    backward: impl FnOnce() -> Result<Found> + Send + 'static,
    trainable: &[Tensor],
    device: &Device,
) -> Result<Tensor> {
    let state = Arc::new(Mutex::new(State::Waiting(Box::new(backward))));
    let mut loss = Tensor::new(value, device)?;
    for variable in trainable {
        loss = loss.apply_op2(variable, Deliver(state.clone()))?;
    }
    Ok(loss)
}

//! `softmax(cap(q · kᵀ · scale) + mask) · v`, a block of queries at a time, with grouped key/value heads.

use std::sync::PoisonError;

use candle_core::{D, DType, Tensor};
use candle_nn::ops::softmax;

use super::super::parameters::Block;
use super::layers::soft_cap;
use super::own::with_backward;
use super::{Along, Graph};
use crate::error::Result;

/// Attention weights held at a time: 256 MiB in f32. Few in tests, so that blocks are many.
const WEIGHTS: usize = if cfg!(test) { 1 << 16 } else { 64 << 20 };

/// How scores become weights.
#[derive(Clone)]
struct Softening {
    scale: f64,
    cap: Option<f32>,
    /// Broadcasts over `[B, heads, queries, keys]`.
    mask: Tensor,
    wide: DType,
}

impl Softening {
    /// The weights, in the wide type.
    fn weights(&self, scores: &Tensor) -> candle_core::Result<Tensor> {
        let mut scores = (scores.to_dtype(self.wide)? * self.scale)?;
        if let Some(cap) = self.cap {
            scores = soft_cap(&scores, cap)?;
        }
        softmax(&scores.broadcast_add(&self.mask)?, D::Minus1)
    }

    /// The gradient of the scores from that of the weights.
    fn backward(&self, scores: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let weights = self.weights(scores)?;
        let dy = dy.to_dtype(self.wide)?;
        let mean = (&weights * &dy)?.sum_keepdim(D::Minus1)?;
        let mut slopes = (weights * dy.broadcast_sub(&mean)?)?;
        if let Some(cap) = self.cap {
            let bent = (scores.to_dtype(self.wide)? * (self.scale / f64::from(cap)))?.tanh()?;
            slopes = (slopes * (1.0 - bent.sqr()?)?)?;
        }
        (slopes * self.scale)?.to_dtype(scores.dtype())
    }
}

impl Graph {
    /// The block's attention, `[B · T, d]`; `None` when the pass ends with its weights.
    pub(super) fn attention(
        &self,
        x: &Tensor,
        layer: usize,
        block: &Block,
        along: &mut Along,
    ) -> Result<Option<Tensor>> {
        let c = &self.decoder.config;
        let (b, t, heads, kv) = (self.texts, self.longest, c.heads, c.kv_heads);
        let (group, hd) = (heads / kv, c.head_dim);
        let last = along.stop == Some(layer);
        let x = self.norm(x, &block.input_norm)?;
        let mut q = self.split(&self.linear(&x, &block.q_proj)?, heads)?;
        let mut k = self.split(&self.linear(&x, &block.k_proj)?, kv)?;
        if let Some((q_norm, k_norm)) = &block.qk_norm {
            q = self.norm(&q, q_norm)?;
            k = self.norm(&k, k_norm)?;
        }
        if let Some(rope) = &block.rope {
            q = self.rotate(&q, rope)?;
            k = self.rotate(&k, rope)?;
        }
        let mut v = if last { None } else { Some(self.split(&self.linear(&x, &block.v_proj)?, kv)?) };
        let mut prefix = None;
        if let (Some(sequences), Some(values)) = (along.sequences.as_deref_mut(), &v) {
            let (keys, values) = sequences.append(layer, &k, values)?;
            (k, v) = (keys, Some(values));
            prefix = sequences.prefix(layer);
        }
        let shared = match &prefix {
            Some((keys, _)) => keys.dim(1)?,
            None => 0,
        };
        let mask = self.mask(block.window)?;
        let own = k.dim(2)?;
        // Without cached keys in front, key j is query j, and those behind a block's last query are seen by none of it.
        let cached = along.sequences.is_some();
        let at_a_time = (WEIGHTS / (b * heads * (shared + own))).clamp(1, t);
        let mut mixed = Vec::new();
        for first in (0..t).step_by(at_a_time) {
            let rows = at_a_time.min(t - first);
            let own = if cached { own } else { first + rows };
            let q = q.narrow(2, first, rows)?.contiguous()?.reshape((b, kv, group * rows, hd))?;
            let mut scores = q.matmul(&k.narrow(2, 0, own)?.t()?)?;
            if let Some((keys, _)) = &prefix {
                let q = q.transpose(0, 1)?.reshape((kv, b * group * rows, hd))?;
                let before = q.matmul(&keys.t()?)?.reshape((kv, b, group * rows, shared))?;
                scores = Tensor::cat(&[before.transpose(0, 1)?, scores], 3)?;
            }
            let scores = scores.reshape((b, heads, rows, shared + own))?;
            let softening = Softening {
                scale: f64::from(c.query_scale),
                cap: c.attention_softcap,
                mask: mask.narrow(2, first, rows)?.narrow(3, 0, shared + own)?,
                wide: self.wide,
            };
            let weights = softening.weights(&scores.detach())?;
            if let Some(collected) = along.collected.as_deref_mut() {
                collected.add(&weights, layer, first)?;
            }
            let Some(v) = &v else { continue };
            let weights = with_backward(&scores, weights.to_dtype(self.dtype)?, move |scores, dy| {
                softening.backward(scores, dy)
            })?;
            let weights = weights.reshape((b, kv, group * rows, shared + own))?;
            let of_own = weights.narrow(3, shared, own)?.contiguous()?;
            let mut out = of_own.matmul(&v.narrow(2, 0, own)?)?;
            if let Some((_, values)) = &prefix {
                let weights = weights.narrow(3, 0, shared)?.transpose(0, 1)?;
                let before = weights.reshape((kv, b * group * rows, shared))?.matmul(values)?;
                out = (out + before.reshape((kv, b, group * rows, hd))?.transpose(0, 1)?)?;
            }
            mixed.push(out.reshape((b, heads, rows, hd))?);
        }
        if last {
            return Ok(None);
        }
        let mixed = Tensor::cat(&mixed, 2)?.transpose(1, 2)?.reshape((b * t, c.q_width()))?;
        Ok(Some(self.linear(&mixed, &block.o_proj)?))
    }

    /// `[B · T, heads · head_dim]` to `[B, heads, T, head_dim]`.
    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let shape = (self.texts, self.longest, heads, self.decoder.config.head_dim);
        Ok(x.reshape(shape)?.transpose(1, 2)?.contiguous()?)
    }

    /// 0 where a query may look, −∞ elsewhere; `[1 or B, 1, T, keys]`.
    fn mask(&self, window: Option<usize>) -> Result<Tensor> {
        let mut known = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mask)) = known.iter().find(|(of, _)| *of == window) {
            return Ok(mask.clone());
        }
        let behind = self.places.queries.broadcast_sub(&self.places.keys)?;
        let mut visible = behind.ge(0f32)?;
        if let Some(window) = window {
            visible = (visible * behind.lt(window as f32)?)?;
        }
        let (nothing, never) = (behind.zeros_like()?, (behind.ones_like()? * f64::NEG_INFINITY)?);
        let mask = visible.where_cond(&nothing, &never)?.to_dtype(self.wide)?;
        known.push((window, mask.clone()));
        Ok(mask)
    }
}

//! Linear layers, norms, the MLP and rotary embeddings.

use std::sync::{Arc, PoisonError};

use candle_core::{D, DType, Tensor};

use super::super::config::{Activation, Norm};
use super::super::init;
use super::super::linear::Linear;
use super::super::parameters::{Block, NormWeights};
use super::super::rope::Rope;
use super::own::{frozen, in_wide, scale, shift, with_backward};
use super::{Graph, tensor};
use crate::error::Result;

type Answer<T = Tensor> = candle_core::Result<T>;

impl Graph {
    /// Rows of `x` through a layer with its adapter.
    pub(super) fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let mut y = match linear.weight.variable() {
            Some(weight) => x.matmul(&weight.to_dtype(self.dtype)?.t()?)?,
            None => frozen(x, &linear.weight, self.dtype)?,
        };
        if let Some(bias) = &linear.bias {
            y = if bias.is_variable() {
                // In the wide type, for its gradient is a sum over all rows.
                y.to_dtype(self.wide)?.broadcast_add(&bias.to_dtype(self.wide)?)?.to_dtype(self.dtype)?
            } else {
                shift(&y, &bias.to_dtype(self.dtype)?)?
            };
        }
        if let Some(lora) = &linear.lora {
            let mut x = x.clone();
            if let Some(seed) = self.dropout_seed
                && lora.dropout > 0.0
            {
                x = scale(&x, &self.dropout(seed, &linear.name, linear.cols, lora.dropout)?)?;
            }
            let low = x.matmul(&lora.a.to_dtype(self.dtype)?.t()?)?;
            y = (y + (low.matmul(&lora.b.to_dtype(self.dtype)?.t()?)? * f64::from(lora.scale))?)?;
        }
        Ok(y)
    }

    /// Dropout factors for the padded rows; the draw follows the unpadded batch, so that padding does not change it.
    fn dropout(&self, seed: u64, name: &str, cols: usize, p: f32) -> Result<Tensor> {
        let drawn = init::dropout(seed, name, self.batch.tokens() * cols, p);
        let mut padded = vec![0f32; self.texts * self.longest * cols];
        for (source, row) in self.all_rows().into_iter().enumerate() {
            padded[row as usize * cols..][..cols].copy_from_slice(&drawn[source * cols..][..cols]);
        }
        tensor(padded, (self.texts * self.longest, cols), self.device(), self.dtype)
    }

    /// Over the last dimension, in the wide type.
    pub(super) fn norm(&self, x: &Tensor, weights: &NormWeights) -> Result<Tensor> {
        let c = &self.decoder.config;
        // A norm without bias is an RMS norm: those of queries and keys are, in every family.
        let centre = c.norm == Norm::Layer && weights.bias.is_some();
        let (wide, eps) = (self.wide, c.norm_eps);
        let (y, _) = normalize(&x.detach(), wide, centre, eps)?;
        let y = with_backward(x, y, move |x, dy| {
            // dx = (dy − x̂ · mean(dy · x̂) [− mean(dy)]) / spread.
            let (y, spread) = normalize(x, wide, centre, eps)?;
            let along = (dy * &y)?.mean_keepdim(D::Minus1)?;
            let mut dx = (dy - y.broadcast_mul(&along)?)?;
            if centre {
                dx = dx.broadcast_sub(&dy.mean_keepdim(D::Minus1)?)?;
            }
            dx.broadcast_div(&spread)?.to_dtype(x.dtype())
        })?;
        let weight = weights.weight.to_dtype(wide)?;
        let mut y =
            if weights.weight.is_variable() { y.broadcast_mul(&weight)? } else { scale(&y, &weight)? };
        if let Some(bias) = &weights.bias {
            let offset = bias.to_dtype(wide)?;
            y = if bias.is_variable() { y.broadcast_add(&offset)? } else { shift(&y, &offset)? };
        }
        Ok(y.to_dtype(self.dtype)?)
    }

    pub(super) fn mlp(&self, x: &Tensor, block: &Block) -> Result<Tensor> {
        let activation = self.decoder.config.activation;
        let activate = |x: Tensor| {
            in_wide(&x, self.wide, move |x| match activation {
                Activation::Silu => x.silu(),
                Activation::Gelu => x.gelu_erf(),
                Activation::GeluTanh => x.gelu(),
            })
        };
        let up = self.linear(x, &block.up_proj)?;
        let inner = match &block.gate_proj {
            Some(gate) => (activate(self.linear(x, gate)?)? * up)?,
            None => activate(up)?,
        };
        self.linear(&inner, &block.down_proj)
    }

    /// Queries or keys, `[B, heads, T, head_dim]`, turned by the angles of their positions.
    pub(super) fn rotate(&self, x: &Tensor, rope: &Arc<Rope>) -> Result<Tensor> {
        let (cos, sin) = self.angles(rope)?;
        let (wide, dim, interleaved) = (self.wide, rope.rotary_dim, rope.interleaved);
        let back = sin.neg()?;
        let y = turn(&x.detach(), wide, &cos, &sin, dim, interleaved)?;
        // A rotation's transpose turns the other way.
        Ok(with_backward(x, y, move |_, dy| turn(dy, wide, &cos, &back, dim, interleaved))?)
    }

    fn angles(&self, rope: &Arc<Rope>) -> Result<(Tensor, Tensor)> {
        let mut known = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, angles)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, rope)) {
            return Ok(angles.clone());
        }
        let (t, starts) = (self.longest, &self.places.starts);
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for start in starts {
            let (c, s) = rope.table(*start, t);
            cos.extend(c);
            sin.extend(s);
        }
        let shape = (starts.len(), 1, t, rope.rotary_dim / 2);
        let angles =
            (tensor(cos, shape, self.device(), self.wide)?, tensor(sin, shape, self.device(), self.wide)?);
        known.push((rope.clone(), angles.clone()));
        Ok(angles)
    }
}

/// `x` with mean square 1 (after taking its mean away when `centre`), and what it was divided by.
fn normalize(x: &Tensor, wide: DType, centre: bool, eps: f64) -> Answer<(Tensor, Tensor)> {
    let mut x = x.to_dtype(wide)?;
    if centre {
        x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    }
    let spread = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    Ok((x.broadcast_div(&spread)?, spread))
}

/// Turns the first `dim` values of each head; the others stay.
fn turn(x: &Tensor, wide: DType, cos: &Tensor, sin: &Tensor, dim: usize, interleaved: bool) -> Answer {
    let (b, heads, t, head_dim) = x.dims4()?;
    let half = dim / 2;
    let pair = |first: &Tensor, second: &Tensor| -> Answer<(Tensor, Tensor)> {
        Ok((
            (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?,
            (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?,
        ))
    };
    let turned = x.narrow(3, 0, dim)?.to_dtype(wide)?;
    let turned = if interleaved {
        let pairs = turned.reshape((b, heads, t, half, 2))?;
        let (first, second) = pair(&pairs.narrow(4, 0, 1)?.squeeze(4)?, &pairs.narrow(4, 1, 1)?.squeeze(4)?)?;
        Tensor::stack(&[first, second], 4)?.reshape((b, heads, t, dim))?
    } else {
        let (first, second) = pair(&turned.narrow(3, 0, half)?, &turned.narrow(3, half, half)?)?;
        Tensor::cat(&[first, second], 3)?
    };
    let turned = turned.to_dtype(x.dtype())?;
    if dim == head_dim {
        return Ok(turned);
    }
    Tensor::cat(&[turned, x.narrow(3, dim, head_dim - dim)?], 3)
}

/// `cap · tanh(x / cap)`.
pub(super) fn soft_cap(x: &Tensor, cap: f32) -> Answer {
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
}

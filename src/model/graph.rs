//! The decoder as plain tensor operations on padded batches: what runs on a GPU, and the reference
//! that the CPU kernels are checked against.
//!
//! Every operation has a backward pass; candle's fused softmax, norms and rotary embeddings have none and are not used. Texts are padded on the right, where
//! the causal mask already hides the padding. Generic over the type, so that the reference also runs in f64.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax};

use super::TrainPass;
use super::capture::{Batch, Gather, Logits, Output, Want};
use super::config::{Activation, Norm, Residual};
use super::init;
use super::linear::Linear;
use super::parameters::{Block, Decoder, NormWeights};
use super::rope::Rope;
use crate::error::Result;
use crate::progress::check_interrupt;

struct Graph<'a> {
    decoder: &'a Decoder,
    batch: &'a Batch,
    dtype: DType,
    dropout_seed: Option<u64>,
    /// Texts, B.
    texts: usize,
    /// Longest text, T.
    longest: usize,
}

/// Logits and attention of `batch`, computed in `dtype`; logits are returned in it.
pub(super) fn forward(decoder: &Decoder, batch: &Batch, want: &Want, dtype: DType) -> Result<Output> {
    let graph = Graph::new(decoder, batch, dtype, None);
    let config = &decoder.config;
    let mut gather = want.capture.as_ref().map(|c| Gather::new(c, batch, config.layers, config.heads));
    let stop = match (want.logits, &want.capture) {
        (Logits::None, Some(capture)) => capture.last_layer(config.layers),
        (Logits::None, None) => return Ok(Output::default()),
        _ => None,
    };
    let nothing_wanted = want.logits == Logits::None && stop.is_none();
    let hidden = if nothing_wanted { None } else { graph.hidden(gather.as_mut(), stop)? };
    let rows: Vec<u32> = match want.logits {
        Logits::None => Vec::new(),
        Logits::Last => {
            (0..batch.texts()).map(|text| graph.padded_row(text, batch.range(text).len() - 1)).collect()
        }
        Logits::All => graph.all_rows(),
    };
    let logits = match hidden {
        Some(hidden) if !rows.is_empty() => Some(graph.logits(&hidden, &rows)?.detach()),
        _ => None,
    };
    Ok(Output { logits, attention: gather.map(Gather::finish).unwrap_or_default() })
}

/// Mean cross-entropy of the targets that are `Some`.
pub(super) fn loss(
    decoder: &Decoder,
    batch: &Batch,
    targets: &[Option<u32>],
    pass: &TrainPass,
    dtype: DType,
) -> Result<Tensor> {
    let graph = Graph::new(decoder, batch, dtype, pass.dropout_seed);
    let Some(hidden) = graph.hidden(None, None)? else {
        return Err(candle_core::Error::Msg("the decoder stopped early".into()).into());
    };
    let (rows, wanted): (Vec<u32>, Vec<u32>) = graph
        .all_rows()
        .into_iter()
        .zip(targets)
        .filter_map(|(row, target)| target.map(|target| (row, target)))
        .unzip();
    let log_probs = graph.log_probs(&hidden, &rows, wanted)?;
    Ok(log_probs.mean_all()?.neg()?)
}

/// One value a token of the batch; 0 for the first of each text.
pub(super) fn token_log_probs(decoder: &Decoder, batch: &Batch, dtype: DType) -> Result<Vec<f32>> {
    let graph = Graph::new(decoder, batch, dtype, None);
    let mut all = vec![0.0; batch.tokens()];
    let Some(hidden) = graph.hidden(None, None)? else { return Ok(all) };
    for text in 0..batch.texts() {
        let range = batch.range(text);
        if range.len() < 2 {
            continue;
        }
        let rows: Vec<u32> = (0..range.len() - 1).map(|position| graph.padded_row(text, position)).collect();
        let wanted = batch.text(text)[1..].to_vec();
        let values = graph.log_probs(&hidden, &rows, wanted)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        all[range.start + 1..range.end].copy_from_slice(&values);
    }
    Ok(all)
}

impl<'a> Graph<'a> {
    fn new(decoder: &'a Decoder, batch: &'a Batch, dtype: DType, dropout_seed: Option<u64>) -> Self {
        Graph { decoder, batch, dtype, dropout_seed, texts: batch.texts(), longest: batch.longest() }
    }

    fn device(&self) -> &Device {
        &self.decoder.device
    }

    /// Row of a token in the padded `[B · T, …]` layout.
    fn padded_row(&self, text: usize, position: usize) -> u32 {
        (text * self.longest + position) as u32
    }

    /// Padded rows of all tokens, in the batch's order.
    fn all_rows(&self) -> Vec<u32> {
        let of_text = |text| (0..self.batch.range(text).len()).map(move |p| self.padded_row(text, p));
        (0..self.texts).flat_map(of_text).collect()
    }

    fn value(&self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_dtype(self.dtype)?)
    }

    /// The residual stream after the last block and the final norm, `[B · T, d]`; `None` when the
    /// pass ends with the attention of block `stop`.
    fn hidden(&self, mut gather: Option<&mut Gather>, stop: Option<usize>) -> Result<Option<Tensor>> {
        let c = &self.decoder.config;
        let (b, t) = (self.texts, self.longest);
        let mut ids = vec![0u32; b * t];
        for text in 0..b {
            ids[text * t..][..self.batch.range(text).len()].copy_from_slice(self.batch.text(text));
        }
        let ids = Tensor::from_vec(ids, b * t, self.device())?;
        let table = self.decoder.embed_tokens.weight.dense(self.device(), self.dtype)?;
        let mut x = (table.index_select(&ids, 0)? * f64::from(c.embed_scale))?;
        if let Some(positions) = &self.decoder.position_embeddings {
            let table = positions.weight.dense(self.device(), self.dtype)?.narrow(0, 0, t)?;
            x = x.reshape((b, t, c.hidden_size))?.broadcast_add(&table)?.reshape((b * t, c.hidden_size))?;
        }
        for (layer, block) in self.decoder.blocks.iter().enumerate() {
            check_interrupt()?;
            let last = stop == Some(layer);
            let attention = self.attention(&x, layer, block, gather.as_deref_mut(), last)?;
            let Some(attention) = attention else { return Ok(None) };
            x = match (c.residual, &block.post_norms) {
                (Residual::Parallel, _) => {
                    ((&x + attention)? + self.mlp(&self.norm(&x, &block.mlp_norm)?, block)?)?
                }
                (Residual::Sandwich, Some((after_attention, after_mlp))) => {
                    let x = (&x + self.norm(&attention, after_attention)?)?;
                    let mlp = self.mlp(&self.norm(&x, &block.mlp_norm)?, block)?;
                    (&x + self.norm(&mlp, after_mlp)?)?
                }
                _ => {
                    let x = (x + attention)?;
                    (&x + self.mlp(&self.norm(&x, &block.mlp_norm)?, block)?)?
                }
            };
        }
        Ok(Some(self.norm(&x, &self.decoder.norm)?))
    }

    /// `[rows, vocab_size]`.
    fn logits(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, self.device())?;
        let logits = self.linear(&hidden.index_select(&rows, 0)?, self.decoder.head())?;
        Ok(match self.decoder.config.final_softcap {
            Some(cap) => soft_cap(&logits, cap)?,
            None => logits,
        })
    }

    fn log_probs(&self, hidden: &Tensor, rows: &[u32], wanted: Vec<u32>) -> Result<Tensor> {
        let all = log_softmax(&self.logits(hidden, rows)?, D::Minus1)?;
        let wanted = Tensor::from_vec(wanted, (rows.len(), 1), self.device())?;
        Ok(all.gather(&wanted, 1)?.squeeze(1)?)
    }

    fn linear(&self, x: &Tensor, linear: &Linear) -> Result<Tensor> {
        let mut y = x.matmul(&linear.weight.dense(self.device(), self.dtype)?.t()?)?;
        if let Some(bias) = &linear.bias {
            y = y.broadcast_add(&self.value(bias)?)?;
        }
        if let Some(lora) = &linear.lora {
            let mut x = x.clone();
            if let Some(seed) = self.dropout_seed
                && lora.dropout > 0.0
            {
                x = (x * self.dropout(seed, &linear.name, linear.cols, lora.dropout)?)?;
            }
            let low = x.matmul(&self.value(&lora.a)?.t()?)?;
            y = (y + (low.matmul(&self.value(&lora.b)?.t()?)? * f64::from(lora.scale))?)?;
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
        let shape = (self.texts * self.longest, cols);
        self.value(&Tensor::from_vec(padded, shape, self.device())?)
    }

    fn norm(&self, x: &Tensor, weights: &NormWeights) -> Result<Tensor> {
        let c = &self.decoder.config;
        // A norm without bias is an RMS norm: those of queries and keys are, in every family.
        let centred = match c.norm {
            Norm::Layer if weights.bias.is_some() => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            _ => x.clone(),
        };
        let spread = (centred.sqr()?.mean_keepdim(D::Minus1)? + c.norm_eps)?.sqrt()?;
        let scaled = centred.broadcast_div(&spread)?.broadcast_mul(&self.value(&weights.weight)?)?;
        match &weights.bias {
            Some(bias) => Ok(scaled.broadcast_add(&self.value(bias)?)?),
            None => Ok(scaled),
        }
    }

    fn mlp(&self, x: &Tensor, block: &Block) -> Result<Tensor> {
        let activate = |x: Tensor| match self.decoder.config.activation {
            Activation::Silu => x.silu(),
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
        };
        let up = self.linear(x, &block.up_proj)?;
        let inner = match &block.gate_proj {
            Some(gate) => (activate(self.linear(x, gate)?)? * up)?,
            None => activate(up)?,
        };
        self.linear(&inner, &block.down_proj)
    }

    /// `[B · T, heads · head_dim]` to `[B, heads, T, head_dim]`.
    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let shape = (self.texts, self.longest, heads, self.decoder.config.head_dim);
        Ok(x.reshape(shape)?.transpose(1, 2)?.contiguous()?)
    }

    fn attention(
        &self,
        x: &Tensor,
        layer: usize,
        block: &Block,
        gather: Option<&mut Gather>,
        last: bool,
    ) -> Result<Option<Tensor>> {
        let c = &self.decoder.config;
        let (b, t) = (self.texts, self.longest);
        let x = self.norm(x, &block.input_norm)?;
        let mut q = self.split(&self.linear(&x, &block.q_proj)?, c.heads)?;
        let mut k = self.split(&self.linear(&x, &block.k_proj)?, c.kv_heads)?;
        if let Some((q_norm, k_norm)) = &block.qk_norm {
            q = self.norm(&q, q_norm)?;
            k = self.norm(&k, k_norm)?;
        }
        if let Some(rope) = &block.rope {
            q = self.rotate(&q, rope)?;
            k = self.rotate(&k, rope)?;
        }
        let k = self.repeat(&k)?;
        let mut scores = (q.matmul(&k.t()?)? * f64::from(c.query_scale))?;
        if let Some(cap) = c.attention_softcap {
            scores = soft_cap(&scores, cap)?;
        }
        let weights = softmax(&scores.broadcast_add(&self.mask(block.window)?)?, D::Minus1)?;
        if let Some(gather) = gather {
            self.gather(&weights, layer, gather)?;
        }
        if last {
            return Ok(None);
        }
        let v = self.repeat(&self.split(&self.linear(&x, &block.v_proj)?, c.kv_heads)?)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((b * t, c.q_width()))?;
        Ok(Some(self.linear(&mixed, &block.o_proj)?))
    }

    /// One copy of each key/value head per query head of its group.
    fn repeat(&self, x: &Tensor) -> Result<Tensor> {
        let c = &self.decoder.config;
        let group = c.heads / c.kv_heads;
        if group == 1 {
            return Ok(x.clone());
        }
        let (b, kv, t, hd) = x.dims4()?;
        let wide = x.unsqueeze(2)?.expand((b, kv, group, t, hd))?;
        Ok(wide.reshape((b, c.heads, t, hd))?)
    }

    /// 0 where a query may look, −∞ elsewhere; `[T, T]`.
    fn mask(&self, window: Option<usize>) -> Result<Tensor> {
        let t = self.longest;
        let visible = |i: usize, j: usize| j <= i && window.is_none_or(|w| i - j < w);
        let values: Vec<f32> =
            (0..t * t).map(|at| if visible(at / t, at % t) { 0.0 } else { f32::NEG_INFINITY }).collect();
        self.value(&Tensor::from_vec(values, (t, t), self.device())?)
    }

    fn rotate(&self, x: &Tensor, rope: &Rope) -> Result<Tensor> {
        let (b, heads, t, hd) = x.dims4()?;
        let half = rope.rotary_dim / 2;
        let (cos, sin) = rope.table(0, t);
        let table = |values| self.value(&Tensor::from_vec(values, (t, half), self.device())?);
        let (cos, sin) = (table(cos)?, table(sin)?);
        let rotated = if rope.interleaved {
            let pairs = x.narrow(3, 0, rope.rotary_dim)?.reshape((b, heads, t, half, 2))?;
            let (first, second) = (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?);
            let (first, second) = turn(&first, &second, &cos, &sin)?;
            Tensor::stack(&[first, second], 4)?.reshape((b, heads, t, rope.rotary_dim))?
        } else {
            let (first, second) = turn(&x.narrow(3, 0, half)?, &x.narrow(3, half, half)?, &cos, &sin)?;
            Tensor::cat(&[first, second], 3)?
        };
        if rope.rotary_dim == hd {
            return Ok(rotated);
        }
        let rest = x.narrow(3, rope.rotary_dim, hd - rope.rotary_dim)?;
        Ok(Tensor::cat(&[rotated, rest], 3)?)
    }

    fn gather(&self, weights: &Tensor, layer: usize, gather: &mut Gather) -> Result<()> {
        let weights = weights.detach();
        let wanted = gather.wanted(layer);
        for text in 0..self.texts {
            let length = self.batch.range(text).len();
            let own = weights.get(text)?.narrow(1, 0, length)?.narrow(2, 0, length)?;
            if wanted.received {
                let columns = own.sum(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                for (head, columns) in columns.iter().enumerate() {
                    gather.add_columns(text, layer, head, columns);
                }
            }
            for (probe, position) in gather.probes(text, layer).iter().copied().enumerate() {
                let rows = own.narrow(1, position, 1)?.squeeze(1)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
                for (head, row) in rows.iter().enumerate() {
                    gather.add_probe(text, layer, head, probe, row);
                }
            }
            for head in &wanted.maps {
                let map = own.get(*head)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                gather.set_map(text, layer, *head, 0, length, &map);
            }
        }
        Ok(())
    }
}

/// Rotates the pairs `(first, second)` by the tabled angles.
fn turn(first: &Tensor, second: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((
        (first.broadcast_mul(cos)? - second.broadcast_mul(sin)?)?,
        (second.broadcast_mul(cos)? + first.broadcast_mul(sin)?)?,
    ))
}

fn soft_cap(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(((x / cap)?.tanh()? * cap)?)
}

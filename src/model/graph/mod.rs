//! The decoder as plain tensor operations on padded batches: what runs on a GPU, and the reference
//! that the CPU kernels are checked against.
//!
//! Texts are padded on the right, where the causal mask already hides the padding. Weights, activations and matrix products
//! have the type of the [`Device`](super::Device), `dtype`; norms, softmax, activations and the loss are computed in f32 and
//! trained values stay f32, whatever that type is. The reference also runs in f64.
//!
//! A block is the unit of training: its input is cut from the graph, so that its backward pass can run alone, on
//! operations that were kept or, with [`TrainPass::recompute`](super::TrainPass::recompute), on new ones.

mod attention;
mod collect;
mod layers;
mod own;
mod sequences;
mod training;

use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::log_softmax;

use super::capture::{Batch, Logits, Output, Want};
use super::config::Residual;
use super::linear::Linear;
use super::parameters::{Block, Decoder};
use super::rope::Rope;
use super::{Matrix, loss};
use crate::error::Result;
use crate::progress::check_interrupt;
use collect::Collected;
use layers::soft_cap;
use own::with_backward;
pub(super) use sequences::Sequences;
#[cfg(test)]
pub(super) use training::Half;
pub(super) use training::forward_half;

/// Logits held at a time: 256 MiB in f32. Few in tests, so that chunks are many.
const LOGITS: usize = if cfg!(test) { 1 << 9 } else { 64 << 20 };

/// One pass over a batch.
struct Graph {
    decoder: Arc<Decoder>,
    batch: Batch,
    dtype: DType,
    /// Of reductions: f32, or f64 where all is f64.
    wide: DType,
    dropout_seed: Option<u64>,
    /// Texts, B.
    texts: usize,
    /// Longest text, T.
    longest: usize,
    places: Places,
    /// By window, additive and `[1 or B, 1, T, keys]`.
    masks: Mutex<Vec<(Option<usize>, Tensor)>>,
    /// Cosines and sines, `[1 or B, 1, T, rotary_dim / 2]`.
    angles: Mutex<Vec<(Arc<Rope>, (Tensor, Tensor))>>,
}

/// Where the tokens of a pass and all keys stand in their texts.
struct Places {
    /// Position of each text's first token; one entry where all begin at 0.
    starts: Vec<usize>,
    /// `[1 or B, 1, T, 1]`.
    queries: Tensor,
    /// `[1 or B, 1, 1, keys]`.
    keys: Tensor,
}

/// What a pass does besides computing hidden states.
#[derive(Default)]
struct Along<'a, 'c> {
    collected: Option<&'a mut Collected<'c>>,
    sequences: Option<&'a mut Sequences>,
    /// The block with whose attention the pass ends.
    stop: Option<usize>,
}

/// Logits and attention of `batch`, computed in `dtype`; logits are f32, or f64 where all is f64.
pub(super) fn forward(decoder: &Arc<Decoder>, batch: &Batch, want: &Want, dtype: DType) -> Result<Output> {
    let graph = Graph::new(decoder, batch, dtype, None)?;
    let config = &decoder.config;
    let mut collected = want.capture.as_ref().map(|c| Collected::new(c, batch, config.layers, config.heads));
    let stop = match (want.logits, &want.capture) {
        (Logits::None, Some(capture)) => capture.last_layer(config.layers),
        (Logits::None, None) => return Ok(Output::default()),
        _ => None,
    };
    let nothing_wanted = want.logits == Logits::None && stop.is_none();
    let along = Along { collected: collected.as_mut(), sequences: None, stop };
    let hidden = if nothing_wanted { None } else { graph.hidden(along)? };
    let rows: Vec<u32> = match want.logits {
        Logits::None => Vec::new(),
        Logits::Last => {
            (0..batch.texts()).map(|text| graph.padded_row(text, batch.range(text).len() - 1)).collect()
        }
        Logits::All => graph.all_rows(),
    };
    let logits = match hidden {
        Some(hidden) if !rows.is_empty() => Some(graph.logits_of(&hidden, &rows)?),
        _ => None,
    };
    let attention = collected.map(Collected::finish).transpose()?.unwrap_or_default();
    Ok(Output { logits, attention })
}

/// One value a token of the batch; 0 for the first of each text.
pub(super) fn token_log_probs(decoder: &Arc<Decoder>, batch: &Batch, dtype: DType) -> Result<Vec<f32>> {
    let graph = Graph::new(decoder, batch, dtype, None)?;
    let mut all = vec![0.0; batch.tokens()];
    let Some(hidden) = graph.hidden(Along::default())? else { return Ok(all) };
    let follows = |text| batch.range(text).skip(1).map(move |row| (text, row));
    let followers: Vec<(usize, usize)> = (0..batch.texts()).flat_map(follows).collect();
    let rows: Vec<u32> = followers
        .iter()
        .map(|(text, row)| graph.padded_row(*text, row - batch.range(*text).start - 1))
        .collect();
    let wanted: Vec<u32> = followers.iter().map(|(_, row)| batch.ids()[*row]).collect();
    for ((_, row), value) in followers.iter().zip(graph.log_probs_of(&hidden, &rows, &wanted)?) {
        all[*row] = value as f32;
    }
    Ok(all)
}

/// Mean cross-entropy of the targets that are `Some`, without gradients.
pub(super) fn loss_value(
    decoder: &Arc<Decoder>,
    batch: &Batch,
    targets: &[Option<u32>],
    dropout_seed: Option<u64>,
    dtype: DType,
) -> Result<f64> {
    let graph = Graph::new(decoder, batch, dtype, dropout_seed)?;
    let hidden = graph.hidden(Along::default())?.ok_or_else(early)?;
    let (rows, wanted) = graph.wanted(targets);
    Ok(loss::mean(&graph.log_probs_of(&hidden.detach(), &rows, &wanted)?))
}

fn early() -> candle_core::Error {
    candle_core::Error::Msg("the decoder stopped early".into())
}

/// The type reductions are computed in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// `values` as one tensor in type `dtype`.
fn tensor(
    values: Vec<f32>,
    shape: impl candle_core::shape::ShapeWithOneHole,
    device: &Device,
    dtype: DType,
) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)
}

impl Graph {
    /// A pass over texts that begin with the batch.
    fn new(decoder: &Arc<Decoder>, batch: &Batch, dtype: DType, dropout_seed: Option<u64>) -> Result<Self> {
        let (longest, device) = (batch.longest(), &decoder.device);
        let positions = Tensor::arange(0f32, longest as f32, device)?;
        let places = Places {
            starts: vec![0],
            queries: positions.reshape((1, 1, longest, 1))?,
            keys: positions.reshape((1, 1, 1, longest))?,
        };
        Ok(Graph::at(decoder, batch, dtype, dropout_seed, places))
    }

    fn at(
        decoder: &Arc<Decoder>,
        batch: &Batch,
        dtype: DType,
        dropout_seed: Option<u64>,
        places: Places,
    ) -> Self {
        Graph {
            decoder: decoder.clone(),
            dtype,
            wide: wide(dtype),
            dropout_seed,
            texts: batch.texts(),
            longest: batch.longest(),
            batch: batch.clone(),
            places,
            masks: Mutex::default(),
            angles: Mutex::default(),
        }
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

    /// Padded rows with a target, and the targets.
    fn wanted(&self, targets: &[Option<u32>]) -> (Vec<u32>, Vec<u32>) {
        let rows = self.all_rows().into_iter().zip(targets);
        rows.filter_map(|(row, target)| target.map(|target| (row, target))).unzip()
    }

    /// The residual stream before the first block, `[B · T, d]`.
    fn embed(&self) -> Result<Tensor> {
        let c = &self.decoder.config;
        let (b, t) = (self.texts, self.longest);
        let mut ids = vec![0u32; b * t];
        for text in 0..b {
            ids[text * t..][..self.batch.range(text).len()].copy_from_slice(self.batch.text(text));
        }
        let mut x = self.rows(&self.decoder.embed_tokens, ids)?;
        if c.embed_scale != 1.0 {
            x = (x * f64::from(c.embed_scale))?;
        }
        if let Some(table) = &self.decoder.position_embeddings {
            let starts = &self.places.starts;
            // Padding may lie behind the last position; nothing looks at it.
            let of_text = |start: &usize| *start..*start + t;
            let at = starts.iter().flat_map(of_text).map(|p| p.min(c.max_positions - 1) as u32).collect();
            let learned = self.rows(table, at)?.reshape((starts.len(), t, c.hidden_size))?;
            x = x.reshape((b, t, c.hidden_size))?.broadcast_add(&learned)?.reshape((b * t, c.hidden_size))?;
        }
        Ok(x.to_dtype(self.dtype)?)
    }

    /// The rows `ids` of a table, in the wide type; widened after they are picked where the device can.
    fn rows(&self, table: &Linear, ids: Vec<u32>) -> Result<Tensor> {
        use candle_core::quantized::GgmlDType as Type;
        let count = ids.len();
        let ids = Tensor::from_vec(ids, count, self.device())?;
        let rows = match &table.weight {
            Matrix::Dense(tensor) => tensor.index_select(&ids, 0)?,
            Matrix::Quantized(tensor) => match tensor.dtype() {
                // candle has no kernel that picks rows of these.
                Type::F32 | Type::F16 | Type::BF16 | Type::Q8_1 | Type::Q8K => {
                    tensor.dequantize(self.device())?.index_select(&ids, 0)?
                }
                _ => tensor.embedding(&ids)?,
            },
        };
        Ok(rows.to_dtype(self.wide)?)
    }

    /// Block `layer` applied to its input; `None` when the pass ends with its attention.
    fn block(&self, x: &Tensor, layer: usize, along: &mut Along) -> Result<Option<Tensor>> {
        check_interrupt()?;
        let block = &self.decoder.blocks[layer];
        let Some(attention) = self.attention(x, layer, block, along)? else { return Ok(None) };
        Ok(Some(match (self.decoder.config.residual, &block.post_norms) {
            (Residual::Parallel, _) => ((x + attention)? + self.mlp_of(x, block)?)?,
            (Residual::Sandwich, Some((after_attention, after_mlp))) => {
                let x = (x + self.norm(&attention, after_attention)?)?;
                (&x + self.norm(&self.mlp_of(&x, block)?, after_mlp)?)?
            }
            _ => {
                let x = (x + attention)?;
                (&x + self.mlp_of(&x, block)?)?
            }
        }))
    }

    fn mlp_of(&self, x: &Tensor, block: &Block) -> Result<Tensor> {
        self.mlp(&self.norm(x, &block.mlp_norm)?, block)
    }

    /// The residual stream after the last block and the final norm, `[B · T, d]`; `None` when the
    /// pass ends with an attention.
    fn hidden(&self, mut along: Along) -> Result<Option<Tensor>> {
        let mut x = self.embed()?.detach();
        for layer in 0..self.decoder.blocks.len() {
            match self.block(&x, layer, &mut along)? {
                // Nobody asks for gradients here, so what a block kept for them is dropped.
                Some(next) => x = next.detach(),
                None => return Ok(None),
            }
        }
        Ok(Some(self.norm(&x, &self.decoder.norm)?.detach()))
    }

    /// The output head in the pass's type, widened once for all chunks of rows.
    fn head(&self) -> Result<Linear> {
        let mut head = self.decoder.head().clone();
        if head.weight.variable().is_none() {
            head.weight = Matrix::Dense(head.weight.dense(self.device(), self.dtype)?.detach());
        }
        Ok(head)
    }

    /// Rows of logits that are held at a time.
    fn rows_at_a_time(&self) -> usize {
        (LOGITS / self.decoder.config.vocab_size).max(1)
    }

    /// `[rows, vocab_size]`, in the wide type.
    fn logits(&self, hidden: &Tensor, head: &Linear) -> Result<Tensor> {
        let logits = self.linear(hidden, head)?.to_dtype(self.wide)?;
        Ok(match self.decoder.config.final_softcap {
            Some(cap) => soft_cap(&logits, cap)?,
            None => logits,
        })
    }

    fn logits_of(&self, hidden: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::new(rows, self.device())?;
        Ok(self.logits(&hidden.index_select(&rows, 0)?, &self.head()?)?.detach())
    }

    /// `log p(wanted[i])` of each row of `hidden`, `[rows]` in the wide type.
    fn log_probs(&self, hidden: &Tensor, head: &Linear, wanted: &[u32]) -> Result<Tensor> {
        let logits = self.logits(hidden, head)?;
        let wanted = Tensor::new(wanted, self.device())?.unsqueeze(1)?;
        let values = log_softmax(&logits.detach(), D::Minus1)?.gather(&wanted, 1)?.squeeze(1)?;
        Ok(with_backward(&logits, values, move |logits, dy| {
            // d log p(wanted) = [wanted] − softmax.
            let dy = dy.unsqueeze(1)?;
            let others = candle_nn::ops::softmax(logits, D::Minus1)?.broadcast_mul(&dy.neg()?)?;
            others.scatter_add(&wanted, &dy.contiguous()?, 1)
        })?)
    }

    /// The same for the rows `rows` of `hidden`, a chunk at a time, on the host.
    fn log_probs_of(&self, hidden: &Tensor, rows: &[u32], wanted: &[u32]) -> Result<Vec<f64>> {
        let head = self.head()?;
        let chunk = self.rows_at_a_time();
        let mut all = Vec::with_capacity(rows.len());
        for (rows, wanted) in rows.chunks(chunk).zip(wanted.chunks(chunk)) {
            check_interrupt()?;
            let hidden = hidden.index_select(&Tensor::new(rows, self.device())?, 0)?;
            all.extend(on_host(&self.log_probs(&hidden, &head, wanted)?)?);
        }
        Ok(all)
    }
}

fn on_host(values: &Tensor) -> Result<Vec<f64>> {
    Ok(values.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec1()?)
}

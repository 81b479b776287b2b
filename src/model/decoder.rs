//! The decoder on the CPU: embedding, blocks, final norm, logits; and the way back.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::block::{Inner, Pass, Run, Saved};
use super::capture::{Batch, Gather, Logits, Output, Want};
use super::linear::{Gradients, Work};
use super::parameters::Decoder;
use super::scratch::{Buffer, add, for_rows, in_pool};
use super::simd::{tanh, vectorized};
use super::{TrainPass, loss};
use crate::error::Result;

/// Everything the backward pass needs of a forward pass.
#[derive(Debug)]
pub(super) struct Tape {
    batch: Batch,
    positions: Vec<u32>,
    work: Work,
    /// From the first trained block on.
    blocks: Vec<Saved>,
    /// Index of the first of `blocks`.
    first: usize,
    /// Input of the final norm, `[N, d]`.
    last: Buffer,
}

/// Position within its text of every row.
pub(super) fn positions(batch: &Batch) -> Vec<u32> {
    (0..batch.texts()).flat_map(|text| 0..batch.range(text).len() as u32).collect()
}

impl Decoder {
    pub(super) fn work(&self, dropout_seed: Option<u64>) -> Work {
        Work { pool: self.pool.clone(), products: self.products, dropout_seed }
    }

    /// The residual stream before the first block, `[N, d]`.
    pub(super) fn embed(&self, ids: &[u32], positions: &[u32], work: &Work) -> Result<Buffer> {
        let d = self.config.hidden_size;
        let mut x = work.pool.take(ids.len() * d);
        self.embed_tokens.weight.rows(ids, d, self.config.embed_scale, &mut x)?;
        if let Some(table) = &self.position_embeddings {
            let mut learned = work.pool.take(x.len());
            table.weight.rows(positions, d, 1.0, &mut learned)?;
            add(&mut x, &learned);
        }
        Ok(x)
    }

    /// Logits and attention of `batch`.
    pub(super) fn forward(&self, batch: &Batch, want: &Want) -> Result<Output> {
        let c = &self.config;
        let mut gather = want.capture.as_ref().map(|capture| Gather::new(capture, batch, c.layers, c.heads));
        let end = match (want.logits, &want.capture) {
            (Logits::None, None) => return Ok(Output::default()),
            (Logits::None, Some(capture)) => match capture.last_layer(c.layers) {
                Some(layer) => Some(layer),
                None => {
                    return Ok(Output {
                        logits: None,
                        attention: gather.map(Gather::finish).unwrap_or_default(),
                    });
                }
            },
            _ => None,
        };
        let work = self.work(None);
        let positions = positions(batch);
        let pass = Pass { config: c, batch, positions: &positions, work: &work };
        let mut x = self.embed(batch.ids(), &positions, &work)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let stop = end == Some(layer);
            block.forward(&pass, &mut x, Run { layer, gather: gather.as_mut(), stop, save: false })?;
            if stop {
                break;
            }
        }
        let logits = match want.logits {
            Logits::None => None,
            Logits::All => Some(self.logits(&x, &work)?),
            Logits::Last => {
                let last: Vec<usize> = (0..batch.texts()).map(|text| batch.range(text).end - 1).collect();
                Some(self.logits(&pick(&x, &last, c.hidden_size, &work), &work)?)
            }
        };
        drop(x);
        self.pool.trim();
        Ok(Output { logits, attention: gather.map(Gather::finish).unwrap_or_default() })
    }

    /// Final norm, output head and soft-cap of rows of the residual stream: `[n, vocab_size]`.
    pub(super) fn logits(&self, x: &[f32], work: &Work) -> Result<Tensor> {
        let rows = x.len() / self.config.hidden_size;
        let mut normed = work.pool.take(x.len());
        self.norm.forward(self.config.norm_eps as f32, x, &mut normed)?;
        let mut logits = vec![0f32; rows * self.config.vocab_size];
        self.head().forward(&normed, &mut logits, false, work)?;
        soft_cap(&mut logits, self.config.vocab_size, self.config.final_softcap);
        Ok(Tensor::from_vec(logits, (rows, self.config.vocab_size), &Device::Cpu)?)
    }

    /// The final hidden states, after the last norm.
    pub(super) fn hidden(&self, batch: &Batch) -> Result<(Buffer, Work)> {
        let work = self.work(None);
        let positions = positions(batch);
        let pass = Pass { config: &self.config, batch, positions: &positions, work: &work };
        let mut x = self.embed(batch.ids(), &positions, &work)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            block.forward(&pass, &mut x, Run { layer, gather: None, stop: false, save: false })?;
        }
        self.norm.forward_in_place(pass.eps(), &mut x)?;
        Ok((x, work))
    }

    /// One value a token of the batch; 0 for the first of each text.
    pub(super) fn token_log_probs(&self, batch: &Batch) -> Result<Vec<f32>> {
        let (hidden, work) = self.hidden(batch)?;
        let follows = |text| batch.range(text).skip(1);
        let rows: Vec<usize> = (0..batch.texts()).flat_map(follows).map(|row| row - 1).collect();
        let wanted: Vec<u32> = rows.iter().map(|row| batch.ids()[row + 1]).collect();
        let picked = pick(&hidden, &rows, self.config.hidden_size, &work);
        drop(hidden);
        let mut all = vec![0.0; batch.tokens()];
        for (row, value) in rows.iter().zip(loss::log_probs(self, &picked, &wanted, &work)?) {
            all[row + 1] = value;
        }
        drop(picked);
        self.pool.trim();
        Ok(all)
    }

    /// Runs forward keeping what [`Decoder::backward`] needs, and returns the final normed states with it.
    pub(super) fn forward_for_training(&self, batch: &Batch, train: &TrainPass) -> Result<(Buffer, Tape)> {
        let work = self.work(train.dropout_seed);
        let positions = positions(batch);
        let first = self.first_trained();
        let mut blocks: Vec<Saved> = Vec::with_capacity(self.blocks.len() - first);
        let pass = Pass { config: &self.config, batch, positions: &positions, work: &work };
        let mut x = self.embed(batch.ids(), &positions, &work)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let keep = (layer >= first).then(|| {
                let mut input = work.pool.take(x.len());
                input.copy_from_slice(&x);
                input
            });
            let save = keep.is_some() && !train.recompute;
            let inner: Option<Inner> =
                block.forward(&pass, &mut x, Run { layer, gather: None, stop: false, save })?;
            if let Some(input) = keep {
                blocks.push(Saved { x: input, inner });
            }
        }
        let mut normed = work.pool.take(x.len());
        self.norm.forward(pass.eps(), &x, &mut normed)?;
        Ok((normed, Tape { batch: batch.clone(), positions, work, blocks, first, last: x }))
    }

    /// The first block below which nothing is trained.
    pub(super) fn first_trained(&self) -> usize {
        if self.embeddings_trained() {
            return 0;
        }
        self.blocks.iter().position(super::parameters::Block::trained).unwrap_or(self.blocks.len())
    }

    pub(super) fn embeddings_trained(&self) -> bool {
        self.embed_tokens.trained() || self.position_embeddings.as_ref().is_some_and(|p| p.trained())
    }

    /// Adds the gradients of everything below the output head, given `dnormed`, the gradient of the final normed states.
    pub(super) fn backward(&self, tape: Tape, dnormed: &[f32], gradients: &mut Gradients) -> Result<()> {
        let Tape { batch, positions, work, blocks, first, last } = tape;
        let pass = Pass { config: &self.config, batch: &batch, positions: &positions, work: &work };
        let mut dx = work.pool.take(last.len());
        self.norm.backward(pass.eps(), &last, dnormed, &mut dx, false, gradients)?;
        drop(last);
        let embeddings = self.embeddings_trained();
        for (index, saved) in blocks.into_iter().enumerate().rev() {
            let lowest = index == 0 && !embeddings;
            self.blocks[first + index].backward(&pass, saved, &mut dx, lowest, gradients)?;
        }
        if embeddings {
            let d = self.config.hidden_size;
            if let Some(table) = self.position_embeddings.as_ref().and_then(|p| p.weight.variable()) {
                scatter(gradients.slot(table), &positions, &dx, d, 1.0);
            }
            if let Some(table) = self.embed_tokens.weight.variable() {
                scatter(gradients.slot(table), batch.ids(), &dx, d, self.config.embed_scale);
            }
        }
        Ok(())
    }
}

/// `table[ids[i]] += factor · rows[i]`, in order.
fn scatter(table: &mut [f32], ids: &[u32], rows: &[f32], width: usize, factor: f32) {
    for (id, row) in ids.iter().zip(rows.chunks_exact(width)) {
        let target = &mut table[*id as usize * width..][..width];
        target.iter_mut().zip(row).for_each(|(t, r)| *t += factor * r);
    }
}

/// The given rows of `x`.
pub(super) fn pick(x: &[f32], rows: &[usize], width: usize, work: &Work) -> Buffer {
    let mut picked = work.pool.take(rows.len() * width);
    for (target, row) in picked.chunks_exact_mut(width).zip(rows) {
        target.copy_from_slice(&x[row * width..][..width]);
    }
    picked
}

/// `cap · tanh(x / cap)`.
pub(super) fn soft_cap(logits: &mut [f32], width: usize, cap: Option<f32>) {
    let Some(cap) = cap else { return };
    for_rows(logits, width, |_, rows| {
        vectorized(|| rows.iter_mut().for_each(|x| *x = cap * tanh(*x / cap)));
    });
}

/// Rows with a target, and the targets.
fn wanted(targets: &[Option<u32>]) -> (Vec<usize>, Vec<u32>) {
    targets.iter().enumerate().filter_map(|(row, target)| target.map(|t| (row, t))).unzip()
}

/// Mean cross-entropy with gradients to `trainable`, see [`super::Model::loss`].
pub(super) fn loss(
    decoder: &Arc<Decoder>,
    trainable: &[Tensor],
    batch: &Batch,
    targets: &[Option<u32>],
    train: &TrainPass,
) -> Result<Tensor> {
    if trainable.is_empty() {
        let (rows, wanted) = wanted(targets);
        let (hidden, work) = decoder.hidden(batch)?;
        let picked = pick(&hidden, &rows, decoder.config.hidden_size, &work);
        drop(hidden);
        let log_probs = loss::log_probs(decoder, &picked, &wanted, &work)?;
        decoder.pool.trim();
        return Ok(Tensor::new(loss::mean(&log_probs) as f32, &Device::Cpu)?);
    }
    let (value, half) = forward_half(decoder, batch, targets, train)?;
    let (decoder, variables) = (decoder.clone(), trainable.to_vec());
    let backward = move || {
        let mut gradients = in_pool(|| half.backward(&decoder))?;
        decoder.pool.trim();
        let mut found = loss::Found::new();
        for variable in variables {
            if let Some(values) = gradients.take(&variable) {
                found.insert(variable.id(), Tensor::from_vec(values, variable.shape(), &Device::Cpu)?);
            }
        }
        Ok(found)
    };
    loss::deferred(value, backward, trainable, &Device::Cpu)
}

/// Mean cross-entropy and all gradients, see [`super::Model::loss_and_gradients`].
pub(super) fn loss_and_gradients(
    decoder: &Decoder,
    batch: &Batch,
    targets: &[Option<u32>],
    train: &TrainPass,
) -> Result<(f32, Gradients)> {
    let (value, half) = forward_half(decoder, batch, targets, train)?;
    Ok((value, half.backward(decoder)?))
}

/// A training pass after its loss, before the blocks' backward pass.
#[derive(Debug)]
pub(super) struct Half {
    tape: Tape,
    /// Gradient of the final normed states, `[N, d]`.
    dnormed: Buffer,
    /// Those of the output head.
    gradients: Gradients,
}

impl Half {
    /// The second half.
    pub(super) fn backward(self, decoder: &Decoder) -> Result<Gradients> {
        let Half { tape, dnormed, mut gradients } = self;
        decoder.backward(tape, &dnormed, &mut gradients)?;
        Ok(gradients)
    }
}

fn forward_half(
    decoder: &Decoder,
    batch: &Batch,
    targets: &[Option<u32>],
    train: &TrainPass,
) -> Result<(f32, Half)> {
    let (rows, wanted) = wanted(targets);
    let d = decoder.config.hidden_size;
    let (normed, tape) = decoder.forward_for_training(batch, train)?;
    let mut gradients = Gradients::default();
    let picked = pick(&normed, &rows, d, &tape.work);
    let mut dnormed = normed;
    dnormed.fill(0.0);
    let (value, slopes) = loss::cross_entropy(decoder, &picked, &wanted, &mut gradients, &tape.work)?;
    for (row, slope) in rows.iter().zip(slopes.chunks_exact(d)) {
        dnormed[row * d..][..d].copy_from_slice(slope);
    }
    Ok((value, Half { tape, dnormed, gradients }))
}

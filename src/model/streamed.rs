//! Attention of a model that does not fit into memory: one block at a time from its file, many texts a block.
//!
//! What stays in memory is one block's weights and the residual stream of all texts taken together. The arithmetic is
//! that of [`Model::forward`], so are the numbers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;

#[cfg(doc)]
use super::Model;
use super::block::{Pass, Run};
use super::capture::{Batch, Capture, CapturedText, Gather};
use super::config::{Position, Residual};
use super::decoder::positions;
use super::hub::Hub;
use super::linear::{GROUP, Linear, Work};
use super::load::open;
use super::matmul::Products;
use super::parameters::Block;
use super::rope::Rope;
use super::scratch::{Buffer, Pool, add, in_pool};
use super::weights::WeightFile;
use super::{DecoderConfig, Matrix, tokenizer_fits};
use crate::error::Result;
use crate::progress::check_interrupt;
use crate::tokens::Tokenizer;

/// A model whose weights stay in their files. It measures attention on the CPU and does nothing else; whatever needs
/// logits or training needs a [`Model`].
///
/// ```no_run
/// # use cluescope::{attention::Attend, corpus::Corpus, model::Streamed};
/// # fn example(people: &Corpus) -> cluescope::Result<()> {
/// let large = Streamed::open("Qwen2.5-32B-Instruct-Q4_K_M.gguf")?;
/// println!("{}", large.estimate(&people.documents, &Attend::new())?);
/// let attended = large.attend(&people.documents, &Attend::new())?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Streamed {
    name: String,
    hash: String,
    config: DecoderConfig,
    tokenizer: Tokenizer,
    weights: Mutex<WeightFile>,
    pool: Arc<Pool>,
    block_bytes: u64,
}

impl Streamed {
    /// Opens what [`Model::load`] would load; weights are read once, for [`Streamed::hash`], and none is kept.
    ///
    /// # Errors
    /// As [`Model::load`], those about weights when they are read.
    pub fn open(source: &str) -> Result<Streamed> {
        let opened = open(source, &Hub::from_env())?;
        let (name, hash) = (opened.name.clone(), opened.hash()?);
        let (config, tokenizer) = (opened.config.clone(), opened.tokenizer.clone());
        config.validate(&name)?;
        tokenizer_fits(&name, &tokenizer, &config)?;
        let weights = opened.weights(&Device::Cpu);
        let block_bytes = weights.block_bytes();
        let weights = Mutex::new(weights);
        Ok(Streamed { name, hash, config, tokenizer, weights, pool: Arc::default(), block_bytes })
    }

    /// The name it was opened under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Identifies the weights' content, as [`Model::hash`] does.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The configuration.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Bytes of the largest block as it is kept in memory.
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// About the most bytes held while `tokens` tokens go through the blocks, `largest` of them in the largest batch: a
    /// block, the residual stream, and what a batch needs within a block.
    pub(crate) fn working_bytes(&self, tokens: usize, largest: usize) -> u64 {
        let c = &self.config;
        let (d, q, kv, wide) = (c.hidden_size, c.q_width(), c.kv_width(), c.intermediate_size);
        let sandwich = if c.residual == Residual::Sandwich { d } else { 0 };
        let within = (d + 2 * q + 2 * kv).max(q + 2 * d + 3 * wide) + sandwich;
        let values = tokens * d + largest * within + GROUP;
        self.block_bytes + (values * size_of::<f32>()) as u64
    }

    /// Attention of all texts of `batches`, block by block: every block is read once. `done` hears how many tokens went
    /// through one more block.
    ///
    /// # Errors
    /// As [`Model::forward`] and [`Model::load`]; what `done` returns.
    pub fn capture(
        &self,
        batches: &[(Batch, Capture)],
        done: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Vec<CapturedText>>> {
        let c = &self.config;
        let mut gathers = Vec::with_capacity(batches.len());
        let mut states = Vec::with_capacity(batches.len());
        let work = Work { pool: self.pool.clone(), products: Products::F32, dropout_seed: None };
        let positions: Vec<Vec<u32>> = batches.iter().map(|(batch, _)| positions(batch)).collect();
        for ((batch, capture), positions) in batches.iter().zip(&positions) {
            batch.check(&self.name, c.vocab_size, c.max_positions)?;
            capture.check(&self.name, batch, c.layers, c.heads)?;
            gathers.push(Gather::new(capture, batch, c.layers, c.heads));
            states.push(self.embed(batch.ids(), positions, &work)?);
        }
        let ends: Vec<Option<usize>> =
            batches.iter().map(|(_, capture)| capture.last_layer(c.layers)).collect();
        let Some(last) = ends.iter().flatten().max().copied() else {
            return Ok(gathers.into_iter().map(Gather::finish).collect());
        };
        for layer in 0..=last {
            let rope = Rope::of_layer(c, layer).map(Arc::new);
            let block = {
                let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
                let block = Block::load(c, &mut *weights, layer, rope)?;
                weights.finish_layer(layer)?;
                block
            };
            for (index, (batch, _)) in batches.iter().enumerate() {
                check_interrupt()?;
                if ends[index].is_none_or(|end| layer > end) {
                    continue;
                }
                let pass = Pass { config: c, batch, positions: &positions[index], work: &work };
                let stop = ends[index] == Some(layer);
                let run = Run { layer, gather: Some(&mut gathers[index]), stop, save: false };
                in_pool(|| block.forward(&pass, &mut states[index], run))?;
                done(batch.tokens())?;
            }
        }
        drop(states);
        self.pool.trim();
        Ok(gathers.into_iter().map(Gather::finish).collect())
    }

    /// The residual stream before the first block; of the embedding only the rows in use are read.
    fn embed(&self, ids: &[u32], positions: &[u32], work: &Work) -> Result<Buffer> {
        let c = &self.config;
        let d = c.hidden_size;
        // Rows of the small matrix below, by token.
        let mut row_of: BTreeMap<u32, u32> = ids.iter().map(|&id| (id, 0)).collect();
        row_of.values_mut().zip(0..).for_each(|(row, index)| *row = index);
        let used: Vec<u32> = row_of.keys().copied().collect();
        let rows: Vec<u32> = ids.iter().map(|id| row_of[id]).collect();
        let mut weights = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        let some = weights.some_rows("embed_tokens.weight", (c.vocab_size, d), &used)?;
        let mut x = work.pool.take(ids.len() * d);
        contiguous(some)?.rows(&rows, d, c.embed_scale, &mut x)?;
        if c.position == Position::Learned {
            let table = Linear::load(&mut *weights, "position_embeddings".into(), c.max_positions, d, false)?;
            let mut learned = work.pool.take(x.len());
            table.weight.rows(positions, d, 1.0, &mut learned)?;
            add(&mut x, &learned);
        }
        Ok(x)
    }
}

fn contiguous(matrix: Matrix) -> Result<Matrix> {
    Ok(match matrix {
        Matrix::Dense(tensor) => Matrix::Dense(tensor.contiguous()?),
        quantized => quantized,
    })
}

//! Keys and values of tokens already read, so that decoding reads each token once.
//!
//! A prefix that all sequences share is held once. Behind it each pass appends one column of keys and values a token of
//! its longest text, to all sequences alike; which position a column holds is remembered for each of them.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::super::capture::Batch;
use super::super::parameters::Decoder;
use super::super::sequences;
use super::{Along, Graph, Places, early};
use crate::error::Result;

/// Keys and values of one layer.
type Pair = (Tensor, Tensor);

/// The position of padding, behind every token; f32 holds it exactly.
const PADDING: f32 = (1 << 24) as f32;

/// Texts that grow.
pub(in super::super) struct Sequences {
    decoder: Arc<Decoder>,
    dtype: DType,
    /// `[kv_heads, shared, head_dim]` of each layer.
    prefix: Vec<Pair>,
    shared: usize,
    /// `[B, kv_heads, columns, head_dim]` of each layer.
    layers: Vec<Option<Pair>>,
    /// Position in each sequence of the columns.
    positions: Vec<Vec<f32>>,
    /// Tokens of each sequence.
    lengths: Vec<usize>,
}

impl Sequences {
    /// `count` sequences that begin with `prefix`.
    pub(in super::super) fn new(
        decoder: &Arc<Decoder>,
        dtype: DType,
        prefix: &[u32],
        count: usize,
    ) -> Result<Self> {
        let mut sequences = Sequences {
            decoder: decoder.clone(),
            dtype,
            prefix: Vec::new(),
            shared: 0,
            layers: vec![None; decoder.blocks.len()],
            positions: vec![Vec::new(); count],
            lengths: vec![prefix.len(); count],
        };
        if !prefix.is_empty() {
            let mut read = Sequences::new(decoder, dtype, &[], 1)?;
            read.advance(&Batch::new(&[prefix]))?;
            sequences.shared = prefix.len();
            for (k, v) in read.layers.into_iter().flatten() {
                sequences.prefix.push((k.squeeze(0)?, v.squeeze(0)?));
            }
        }
        Ok(sequences)
    }

    /// Runs the decoder over the next tokens; the final normed states are padded.
    fn advance(&mut self, batch: &Batch) -> Result<(Graph, Tensor)> {
        let (texts, longest, device) = (batch.texts(), batch.longest(), self.decoder.device.clone());
        let mut queries = Vec::with_capacity(texts * longest);
        for text in 0..texts {
            let (start, own) = (self.lengths[text], batch.range(text).len());
            // Padding sees everything, itself too, so that its numbers stay finite; nobody sees it.
            queries.extend((0..longest).map(|i| if i < own { (start + i) as f32 } else { PADDING }));
            self.positions[text].extend(&queries[text * longest..]);
        }
        let columns = self.positions[0].len();
        let mut keys = Vec::with_capacity(texts * (self.shared + columns));
        for positions in &self.positions {
            keys.extend((0..self.shared).map(|position| position as f32));
            keys.extend(positions);
        }
        let places = Places {
            starts: self.lengths.clone(),
            queries: Tensor::from_vec(queries, (texts, 1, longest, 1), &device)?,
            keys: Tensor::from_vec(keys, (texts, 1, 1, self.shared + columns), &device)?,
        };
        let graph = Graph::at(&self.decoder.clone(), batch, self.dtype, None, places);
        let along = Along { sequences: Some(self), ..Along::default() };
        let hidden = graph.hidden(along)?.ok_or_else(early)?;
        for (text, length) in self.lengths.iter_mut().enumerate() {
            *length += batch.range(text).len();
        }
        Ok((graph, hidden))
    }

    /// Adds a pass's keys and values and returns all behind the prefix.
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<Pair> {
        let pair = match &self.layers[layer] {
            Some((keys, values)) => (Tensor::cat(&[keys, k], 2)?, Tensor::cat(&[values, v], 2)?),
            None => (k.clone(), v.clone()),
        };
        let pair = (pair.0.detach().contiguous()?, pair.1.detach().contiguous()?);
        self.layers[layer] = Some(pair.clone());
        Ok(pair)
    }

    /// Keys and values that all sequences begin with.
    pub(super) fn prefix(&self, layer: usize) -> Option<Pair> {
        self.prefix.get(layer).cloned()
    }
}

impl sequences::Sequences for Sequences {
    fn read(&mut self, texts: &[Vec<u32>]) -> Result<()> {
        if texts.iter().any(|text| !text.is_empty()) {
            self.advance(&Batch::new(texts))?;
        }
        Ok(())
    }

    fn logits(&mut self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let batch = Batch::new(texts);
        let (graph, hidden) = self.advance(&batch)?;
        let last = |text| graph.padded_row(text, batch.range(text).len() - 1);
        let rows: Vec<u32> = (0..batch.texts()).map(last).collect();
        graph.logits_of(&hidden, &rows)
    }

    fn log_probs(&mut self, texts: &[Vec<u32>], wanted: &[u32]) -> Result<Vec<f32>> {
        let (graph, hidden) = self.advance(&Batch::new(texts))?;
        let values = graph.log_probs_of(&hidden, &graph.all_rows(), wanted)?;
        Ok(values.into_iter().map(|value| value as f32).collect())
    }

    fn select(&mut self, places: &[usize]) -> Result<()> {
        let rows: Vec<u32> = places.iter().map(|place| *place as u32).collect();
        let rows = Tensor::new(rows, &self.decoder.device)?;
        for (k, v) in self.layers.iter_mut().flatten() {
            (*k, *v) = (k.index_select(&rows, 0)?, v.index_select(&rows, 0)?);
        }
        self.positions = places.iter().map(|place| self.positions[*place].clone()).collect();
        self.lengths = places.iter().map(|place| self.lengths[*place]).collect();
        Ok(())
    }
}

//! The loss and its gradients, block by block.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Tensor, TensorId, Var};

use super::super::TrainPass;
use super::super::capture::Batch;
use super::super::loss;
use super::super::parameters::Decoder;
use super::own::pull;
use super::{Along, Graph, early, on_host};
use crate::error::Result;
use crate::progress::check_interrupt;

/// A block between its forward and its backward pass.
struct Segment {
    /// A variable, unless nothing below is trained.
    input: Tensor,
    /// The output with its graph; computed again where it was not kept.
    output: Option<Tensor>,
}

/// A training pass after its loss, before the blocks' backward pass.
pub(in super::super) struct Half {
    graph: Graph,
    /// The residual stream before the first block; in the graph where the embedding is trained.
    embedded: Tensor,
    /// From block `first` on, the lowest with something to train.
    segments: Vec<Segment>,
    first: usize,
    /// Gradient of the last block's output.
    slope: Option<Tensor>,
    found: Found,
}

/// Gradients found so far, of the variables looked for.
struct Found {
    variables: Vec<Tensor>,
    gradients: HashMap<TensorId, Tensor>,
}

impl Found {
    /// Runs back from `output` to `input`, whose gradient is returned; those of the variables are added up.
    fn pull(&mut self, output: &Tensor, slope: &Tensor, input: &Tensor) -> Result<Option<Tensor>> {
        let mut found = pull(output, slope)?;
        for variable in &self.variables {
            let Some(gradient) = found.remove(variable) else { continue };
            let sum = match self.gradients.remove(&variable.id()) {
                Some(before) => (before + gradient)?,
                None => gradient,
            };
            self.gradients.insert(variable.id(), sum);
        }
        Ok(found.remove(input))
    }
}

/// A copy of `x` whose gradient is computed, cut from the graph of `x`.
fn leaf(x: &Tensor) -> Result<Tensor> {
    Ok(Var::from_tensor(&x.detach())?.as_tensor().clone())
}

/// Mean cross-entropy of the targets that are `Some`, and what its gradients with respect to `variables` need.
pub(in super::super) fn forward_half(
    decoder: &Arc<Decoder>,
    variables: Vec<Tensor>,
    batch: &Batch,
    targets: &[Option<u32>],
    pass: &TrainPass,
    dtype: candle_core::DType,
) -> Result<(f64, Half)> {
    let graph = Graph::new(decoder, batch, dtype, pass.dropout_seed)?;
    let embedded = graph.embed()?;
    let first = decoder.first_trained();
    let mut x = embedded.detach();
    let mut segments = Vec::with_capacity(decoder.blocks.len() - first);
    for layer in 0..decoder.blocks.len() {
        let lowest = layer == first && !decoder.embeddings_trained();
        let input = if layer < first || lowest { x } else { leaf(&x)? };
        let output = graph.block(&input, layer, &mut Along::default())?.ok_or_else(early)?;
        x = output.detach();
        if layer >= first {
            segments.push(Segment { input, output: (!pass.recompute).then_some(output) });
        }
    }
    let mut found = Found { variables, gradients: HashMap::new() };
    let (value, slope) = graph.loss(&x, targets, &mut found)?;
    Ok((value, Half { graph, embedded, segments, first, slope, found }))
}

impl Graph {
    /// The loss and the gradient of the last block's output `x`; logits live a chunk of rows at a time.
    fn loss(&self, x: &Tensor, targets: &[Option<u32>], found: &mut Found) -> Result<(f64, Option<Tensor>)> {
        let (rows, wanted) = self.wanted(targets);
        let input = leaf(x)?;
        let rows = Tensor::new(rows, self.device())?;
        let picked = self.norm(&input, &self.decoder.norm)?.index_select(&rows, 0)?;
        let head = self.head()?;
        let chunk = self.rows_at_a_time();
        let mut values = Vec::with_capacity(wanted.len());
        let mut slopes = Vec::new();
        for (index, targets) in wanted.chunks(chunk).enumerate() {
            check_interrupt()?;
            let hidden = leaf(&picked.narrow(0, index * chunk, targets.len())?)?;
            let log_probs = self.log_probs(&hidden, &head, targets)?;
            values.extend(on_host(&log_probs)?);
            let share = (log_probs.ones_like()? * (-1.0 / wanted.len() as f64))?;
            slopes.extend(found.pull(&log_probs, &share, &hidden)?);
        }
        let slope = found.pull(&picked, &Tensor::cat(&slopes, 0)?, &input)?;
        Ok((loss::mean(&values), slope))
    }
}

impl Half {
    /// The gradients of all variables that the loss reaches.
    pub(in super::super) fn backward(self) -> Result<HashMap<TensorId, Tensor>> {
        let Half { graph, embedded, segments, first, mut slope, mut found } = self;
        for (index, Segment { input, output }) in segments.into_iter().enumerate().rev() {
            check_interrupt()?;
            let Some(from) = slope else { break };
            let output = match output {
                Some(output) => output,
                None => graph.block(&input, first + index, &mut Along::default())?.ok_or_else(early)?,
            };
            slope = found.pull(&output, &from, &input)?;
        }
        if let Some(slope) = slope.filter(|_| embedded.track_op()) {
            found.pull(&embedded, &slope, &embedded)?;
        }
        Ok(found.gradients)
    }
}

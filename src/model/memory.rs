//! How much memory weights and a training pass take, from the shapes alone.

use candle_core::{DType, Tensor};

use super::config::{DecoderConfig, Mlp, Residual};
use super::loss::rows_per_chunk;
use super::{Matrix, Model};
use crate::error::Result;

const F32: usize = size_of::<f32>();

impl Model {
    /// Bytes of the weights in the types they are kept in, adapters included.
    pub fn weight_bytes(&self) -> u64 {
        let mut bytes = 0;
        let mut decoder = super::parameters::Decoder::clone(&self.0.decoder);
        let dense = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let visited: Result<()> = decoder.for_each_parameter(&mut |_, parameter| {
            bytes += match parameter {
                super::parameters::Parameter::Vector(tensor) => dense(tensor),
                super::parameters::Parameter::Matrix(linear) => {
                    let adapter = linear.lora.as_ref().map_or(0, |lora| dense(&lora.a) + dense(&lora.b));
                    adapter
                        + match &linear.weight {
                            Matrix::Dense(tensor) => dense(tensor),
                            Matrix::Quantized(tensor) => tensor.storage_size_in_bytes(),
                        }
                }
            };
            Ok(())
        });
        debug_assert!(visited.is_ok(), "the visitor cannot fail");
        bytes as u64
    }

    /// About the most bytes that a training pass over `tokens` tokens holds beside the weights and their gradients; with
    /// `recompute` as in [`TrainPass`](super::TrainPass). Counted from the shapes of what the decoder keeps.
    pub fn training_pass_bytes(&self, tokens: usize, recompute: bool) -> u64 {
        let config = self.config();
        let (input, inner) = kept(config);
        let saved = if recompute { config.layers * input + inner } else { config.layers * (input + inner) };
        // Beside them: the final states, their norm and its gradient, and what one block's backward pass works with.
        let values = tokens * (saved + 3 * config.hidden_size + working(config));
        let logits = rows_per_chunk(config.vocab_size).min(tokens) * config.vocab_size;
        let widened = if self.all_f32() { 0 } else { super::linear::GROUP };
        ((values + logits + widened) * F32) as u64
    }

    fn all_f32(&self) -> bool {
        self.0.decoder.blocks.iter().all(
            |block| matches!(&block.q_proj.weight, Matrix::Dense(tensor) if tensor.dtype() == DType::F32),
        )
    }
}

/// Values a token that every block keeps for its backward pass: its input, and the rest.
fn kept(config: &DecoderConfig) -> (usize, usize) {
    let (d, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
    let mut inner = 2 * q + 2 * kv;
    if config.qk_norm {
        inner += q + kv;
    }
    inner += match config.residual {
        Residual::Sequential => d,
        Residual::Parallel => 0,
        Residual::Sandwich => 3 * d,
    };
    inner += match config.mlp {
        Mlp::Gated => 2 * config.intermediate_size,
        Mlp::Plain => config.intermediate_size,
    };
    (d, inner)
}

/// Values a token that one block's backward pass holds at once, in its larger half.
fn working(config: &DecoderConfig) -> usize {
    let (d, q, kv) = (config.hidden_size, config.q_width(), config.kv_width());
    3 * d + (2 * config.intermediate_size).max(2 * q + 2 * kv)
}

//! What distinguishes one family of decoders from another, as plain validated data.
//!
//! The decoder reads nothing else: it never asks which model it is. Field names follow Hugging
//! Face's `config.json` where one exists.

use crate::error::{Error, Result};

/// Kind of normalisation, everywhere in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Norm {
    /// `(x − mean) / sqrt(var + eps) · weight + bias` (GPT-2, GPT-NeoX).
    Layer,
    /// `x / sqrt(mean(x²) + eps) · weight` (Llama and later).
    Rms,
}

/// How the rotary frequencies are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// As trained: `theta^(−2i/rotary_dim)`.
    #[default]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor, > 0.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a linear blend between.
    Llama3 {
        /// Divisor of the low frequencies, > 0.
        factor: f64,
        /// Wavelengths longer than `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching, in tokens.
        original_max_positions: usize,
    },
    /// One divisor a frequency, `rotary_dim / 2` of them (the `rope_freqs` tensor of a GGUF file).
    Factors(
        /// The divisors, each > 0.
        Vec<f32>,
    ),
}

/// How a token learns its position.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// A learned vector added to the embedding (`position_embeddings.weight`, GPT-2).
    Learned,
    /// Queries and keys rotated by angles that grow with the position.
    Rope {
        /// Base of the geometric row of frequencies.
        theta: f64,
        /// Rotated leading part of each head; even, at most `head_dim`.
        rotary_dim: usize,
        /// Stretching of the frequencies.
        scaling: RopeScaling,
        /// Pairs are `(2i, 2i + 1)` when true, `(i, i + rotary_dim / 2)` otherwise (Hugging Face).
        interleaved: bool,
    },
}

/// What may differ from layer to layer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerKind {
    /// A query sees at most this many keys, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// Base of this layer's rotary frequencies, where it differs from [`Position::Rope`]'s.
    pub rope_theta: Option<f64>,
    /// Scaling of this layer's rotary frequencies, where it differs from [`Position::Rope`]'s.
    pub rope_scaling: Option<RopeScaling>,
}

/// How attention and MLP join the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Residual {
    /// `x += attn(norm(x)); x += mlp(norm(x))` (GPT-2, Llama, Qwen).
    Sequential,
    /// `x += attn(norm1(x)) + mlp(norm2(x))`, both reading the same `x` (GPT-NeoX).
    Parallel,
    /// `x += norm(attn(norm(x))); x += norm(mlp(norm(x)))` (Gemma 2 and 3).
    Sandwich,
}

/// Shape of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mlp {
    /// `down(act(up(x)))`.
    Plain,
    /// `down(act(gate(x)) · up(x))`.
    Gated,
}

/// The MLP's non-linearity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// Exact: `x · Φ(x)`.
    Gelu,
    /// `0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`.
    GeluTanh,
}

/// Everything the decoder needs to know about a model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream, d.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads, H.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; `heads · head_dim` need not equal `hidden_size`.
    pub head_dim: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Longest text, in tokens.
    pub max_positions: usize,
    /// Kind of normalisation.
    pub norm: Norm,
    /// Added under the square root of every norm.
    pub norm_eps: f64,
    /// How positions enter.
    pub position: Position,
    /// One entry a layer.
    pub layer_kinds: Vec<LayerKind>,
    /// How the sublayers join the residual stream.
    pub residual: Residual,
    /// Shape of the MLP.
    pub mlp: Mlp,
    /// Non-linearity of the MLP.
    pub activation: Activation,
    /// Whether `q_proj`, `k_proj` and `v_proj` have biases.
    pub qkv_bias: bool,
    /// Whether `o_proj` has a bias.
    pub o_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// RMS norm over each head of queries and keys before rotation (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Scores become `cap · tanh(score / cap)` before mask and softmax (Gemma 2).
    pub attention_softcap: Option<f32>,
    /// Logits become `cap · tanh(logit / cap)` (Gemma 2).
    pub final_softcap: Option<f32>,
    /// Factor on the token embeddings (Gemma: √d; otherwise 1).
    pub embed_scale: f32,
    /// Factor on `q · k`, usually `1 / √head_dim`.
    pub query_scale: f32,
    /// The output head is the token embedding.
    pub tied_embeddings: bool,
}

impl DecoderConfig {
    /// A Llama-style configuration: RMS norm, rotary positions (theta 10,000), gated SiLU, no
    /// biases, tied embeddings, sequential residual. A start for tests and small models trained from scratch.
    pub fn llama(
        vocab_size: usize,
        hidden_size: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        intermediate_size: usize,
        max_positions: usize,
    ) -> Self {
        let head_dim = hidden_size / heads.max(1);
        DecoderConfig {
            vocab_size,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate_size,
            max_positions,
            norm: Norm::Rms,
            norm_eps: 1e-5,
            position: Position::Rope {
                theta: 10_000.0,
                rotary_dim: head_dim,
                scaling: RopeScaling::None,
                interleaved: false,
            },
            layer_kinds: vec![LayerKind::default(); layers],
            residual: Residual::Sequential,
            mlp: Mlp::Gated,
            activation: Activation::Silu,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            qk_norm: false,
            attention_softcap: None,
            final_softcap: None,
            embed_scale: 1.0,
            query_scale: (head_dim.max(1) as f32).powf(-0.5),
            tied_embeddings: true,
        }
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses values the decoder cannot compute with.
    ///
    /// # Errors
    /// [`Error::Model`] naming `model`, the field, its value and what is allowed.
    pub fn validate(&self, model: &str) -> Result<()> {
        let bad = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            Err(Error::model(model, format!("configuration: {field} = {value}: {expected}")))
        };
        for (field, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate_size),
            ("max_positions", self.max_positions),
        ] {
            // The bound keeps every product of two sizes far from overflow; no model comes near it.
            if !(1..1 << 28).contains(&value) {
                return bad(field, &value, "must be at least 1 and below 2^28");
            }
        }
        // Rotary frequencies are made from it before any weight could contradict it.
        if self.head_dim > 1 << 16 {
            return bad("head_dim", &self.head_dim, "must be at most 2^16");
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return bad("kv_heads", &self.kv_heads, &format!("must divide heads ({})", self.heads));
        }
        if self.layer_kinds.len() != self.layers {
            return bad(
                "layer_kinds",
                &self.layer_kinds.len(),
                &format!("one entry a layer ({})", self.layers),
            );
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad("norm_eps", &self.norm_eps, "must lie between 0 and 1");
        }
        for (field, value) in [("embed_scale", self.embed_scale), ("query_scale", self.query_scale)] {
            if !(value.is_finite() && value > 0.0) {
                return bad(field, &value, "must be a finite number above 0");
            }
        }
        for (field, cap) in
            [("attention_softcap", self.attention_softcap), ("final_softcap", self.final_softcap)]
        {
            if let Some(cap) = cap
                && !(cap.is_finite() && cap > 0.0)
            {
                return bad(field, &cap, "must be a finite number above 0");
            }
        }
        if let Position::Rope { theta, rotary_dim, scaling, .. } = &self.position {
            if rotary_dim % 2 != 0 || !(2..=self.head_dim).contains(rotary_dim) {
                return bad(
                    "rotary_dim",
                    rotary_dim,
                    &format!("even and at most head_dim ({})", self.head_dim),
                );
            }
            let layer_scalings = self.layer_kinds.iter().filter_map(|k| k.rope_scaling.as_ref());
            for scaling in layer_scalings.chain([scaling]) {
                scaling.validate(model, rotary_dim / 2)?;
            }
            for theta in self.layer_kinds.iter().filter_map(|k| k.rope_theta).chain([*theta]) {
                if !(theta.is_finite() && theta > 0.0) {
                    return bad("rope_theta", &theta, "must be a finite number above 0");
                }
            }
        }
        for (layer, kind) in self.layer_kinds.iter().enumerate() {
            if kind.window == Some(0) {
                return bad(&format!("window of layer {layer}"), &0, "must be at least 1");
            }
        }
        Ok(())
    }
}

impl RopeScaling {
    fn validate(&self, model: &str, frequencies: usize) -> Result<()> {
        let good = |x: f64| x.is_finite() && x > 0.0;
        let fine = match self {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => good(*factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                good(*factor)
                    && good(*low_freq_factor)
                    && good(*high_freq_factor)
                    && high_freq_factor > low_freq_factor
                    && *original_max_positions > 0
            }
            RopeScaling::Factors(factors) => {
                factors.len() == frequencies && factors.iter().all(|&f| good(f.into()))
            }
        };
        if fine {
            return Ok(());
        }
        Err(Error::model(
            model,
            format!(
                "configuration: rope scaling {self:?}: every number must be finite and above 0, \
                 high_freq_factor above low_freq_factor, and factors {frequencies} in number"
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_values_are_refused_by_name() {
        let good = DecoderConfig::llama(64, 32, 2, 4, 2, 48, 128);
        good.validate("m").unwrap();
        let cases: [(&str, fn(&mut DecoderConfig)); 10] = [
            ("kv_heads", |c| c.kv_heads = 3),
            ("heads", |c| c.heads = 0),
            ("vocab_size", |c| c.vocab_size = usize::MAX),
            ("head_dim", |c| c.head_dim = 1 << 27),
            ("layer_kinds", |c| c.layer_kinds.truncate(1)),
            ("norm_eps", |c| c.norm_eps = f64::NAN),
            ("query_scale", |c| c.query_scale = 0.0),
            ("attention_softcap", |c| c.attention_softcap = Some(-1.0)),
            ("window of layer 1", |c| c.layer_kinds[1].window = Some(0)),
            ("rotary_dim", |c| {
                c.position = Position::Rope {
                    theta: 1e4,
                    rotary_dim: 9,
                    scaling: RopeScaling::None,
                    interleaved: false,
                }
            }),
        ];
        for (field, spoil) in cases {
            let mut config = good.clone();
            spoil(&mut config);
            let message = config.validate("m").unwrap_err().to_string();
            assert!(message.contains(field), "{field}: {message}");
        }
    }
}

//! The weights of a decoder, block by block, under their canonical names.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::config::{DecoderConfig, Mlp, Norm, Position, Residual};
use super::linear::Linear;
use super::matmul::Products;
use super::rope::Rope;
use super::scratch::Pool;
use super::{Matrix, WeightSource};
use crate::error::Result;

/// A norm's factors and, for layer norms, offsets.
#[derive(Debug, Clone)]
pub(super) struct NormWeights {
    pub(super) name: String,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// One block's weights.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) input_norm: NormWeights,
    pub(super) q_proj: Linear,
    pub(super) k_proj: Linear,
    pub(super) v_proj: Linear,
    pub(super) o_proj: Linear,
    /// Norms of each head's queries and keys.
    pub(super) qk_norm: Option<(NormWeights, NormWeights)>,
    pub(super) mlp_norm: NormWeights,
    pub(super) gate_proj: Option<Linear>,
    pub(super) up_proj: Linear,
    pub(super) down_proj: Linear,
    /// Norms of the sublayers' outputs, attention then MLP.
    pub(super) post_norms: Option<(NormWeights, NormWeights)>,
    pub(super) rope: Option<Arc<Rope>>,
    pub(super) window: Option<usize>,
}

/// All weights of a model.
#[derive(Debug, Clone)]
pub(super) struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) device: Device,
    /// How the CPU's own kernels multiply.
    pub(super) products: Products,
    /// Memory for activations, shared by clones.
    pub(super) pool: Arc<Pool>,
    /// `[vocab_size, hidden_size]`.
    pub(super) embed_tokens: Linear,
    /// `[max_positions, hidden_size]`.
    pub(super) position_embeddings: Option<Linear>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: NormWeights,
    /// Absent when tied to the embedding.
    pub(super) lm_head: Option<Linear>,
}

/// A named weight, seen in turn by [`Decoder::for_each_parameter`].
pub(super) enum Parameter<'a> {
    Matrix(&'a mut Linear),
    Vector(&'a mut Tensor),
}

impl Parameter<'_> {
    /// The values in use as a dense f32 tensor, an adapter merged.
    pub(super) fn effective(&self, device: &Device) -> Result<Tensor> {
        match self {
            Parameter::Vector(tensor) => Ok((**tensor).clone()),
            Parameter::Matrix(linear) => {
                let weight = linear.weight.dense(device, DType::F32)?;
                Ok(match &linear.lora {
                    Some(lora) => (weight + (lora.b.matmul(&lora.a)? * f64::from(lora.scale))?)?,
                    None => weight,
                })
            }
        }
    }

    /// Puts other values in its place; an adapter is dropped.
    pub(super) fn replace(&mut self, tensor: Tensor) {
        match self {
            Parameter::Vector(old) => **old = tensor,
            Parameter::Matrix(linear) => {
                linear.weight = Matrix::Dense(tensor);
                linear.lora = None;
            }
        }
    }
}

impl NormWeights {
    fn load(source: &mut dyn WeightSource, name: String, kind: Norm, len: usize) -> Result<Self> {
        let weight = source.vector(&format!("{name}.weight"), len)?.contiguous()?;
        let bias = match kind {
            Norm::Layer => Some(source.vector(&format!("{name}.bias"), len)?.contiguous()?),
            Norm::Rms => None,
        };
        Ok(NormWeights { name, weight, bias })
    }
}

impl Decoder {
    pub(super) fn load(
        config: DecoderConfig,
        source: &mut dyn WeightSource,
        device: &Device,
    ) -> Result<Self> {
        let c = &config;
        let d = c.hidden_size;
        // The head is a name of its own so that a linear layer's name never changes.
        let embed_tokens = Linear::load(source, "embed_tokens".into(), c.vocab_size, d, false)?;
        let position_embeddings = match c.position {
            Position::Learned => {
                Some(Linear::load(source, "position_embeddings".into(), c.max_positions, d, false)?)
            }
            Position::Rope { .. } => None,
        };
        let mut ropes: Vec<Arc<Rope>> = Vec::new();
        let mut blocks = Vec::with_capacity(c.layers);
        for layer in 0..c.layers {
            let rope = Rope::of_layer(c, layer).map(|rope| {
                // Layers with the same angles share them.
                let known = ropes.iter().find(|r| ***r == rope).cloned();
                known.unwrap_or_else(|| {
                    ropes.push(Arc::new(rope));
                    ropes[ropes.len() - 1].clone()
                })
            });
            blocks.push(Block::load(c, source, layer, rope)?);
        }
        let norm = NormWeights::load(source, "norm".into(), c.norm, d)?;
        let lm_head = if c.tied_embeddings {
            None
        } else {
            Some(Linear::load(source, "lm_head".into(), c.vocab_size, d, false)?)
        };
        Ok(Decoder {
            device: device.clone(),
            products: Products::default(),
            pool: Arc::default(),
            embed_tokens,
            position_embeddings,
            blocks,
            norm,
            lm_head,
            config,
        })
    }

    /// The output head, `[vocab_size, hidden_size]`.
    pub(super) fn head(&self) -> &Linear {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Every linear layer and embedding, in the order of use.
    pub(super) fn for_each_linear(&mut self, visit: &mut dyn FnMut(&mut Linear) -> Result<()>) -> Result<()> {
        visit(&mut self.embed_tokens)?;
        self.position_embeddings.iter_mut().try_for_each(&mut *visit)?;
        for block in &mut self.blocks {
            for linear in block.linears() {
                visit(linear)?;
            }
        }
        self.lm_head.iter_mut().try_for_each(visit)
    }

    pub(super) fn for_each_norm(
        &mut self,
        visit: &mut dyn FnMut(&mut NormWeights) -> Result<()>,
    ) -> Result<()> {
        for block in &mut self.blocks {
            for norm in block.norms() {
                visit(norm)?;
            }
        }
        visit(&mut self.norm)
    }

    /// Every weight with its canonical name.
    pub(super) fn for_each_parameter(
        &mut self,
        visit: &mut dyn FnMut(String, &mut Parameter<'_>) -> Result<()>,
    ) -> Result<()> {
        self.for_each_linear(&mut |linear| {
            let name = linear.name.clone();
            if let Some(bias) = &mut linear.bias {
                visit(format!("{name}.bias"), &mut Parameter::Vector(bias))?;
            }
            visit(format!("{name}.weight"), &mut Parameter::Matrix(linear))
        })?;
        self.for_each_norm(&mut |norm| {
            visit(format!("{}.weight", norm.name), &mut Parameter::Vector(&mut norm.weight))?;
            match &mut norm.bias {
                Some(bias) => visit(format!("{}.bias", norm.name), &mut Parameter::Vector(bias)),
                None => Ok(()),
            }
        })
    }

    /// Cuts every tensor from its variable.
    pub(super) fn detach(&mut self) {
        // The visitors cannot fail.
        let _ = self.for_each_linear(&mut |linear| {
            linear.weight = linear.weight.detach();
            linear.bias = linear.bias.as_ref().map(Tensor::detach);
            if let Some(lora) = &mut linear.lora {
                lora.a = lora.a.detach();
                lora.b = lora.b.detach();
            }
            Ok(())
        });
        let _ = self.for_each_norm(&mut |norm| {
            norm.weight = norm.weight.detach();
            norm.bias = norm.bias.as_ref().map(Tensor::detach);
            Ok(())
        });
    }

    /// Number of weights, adapters included.
    pub(super) fn parameter_count(&self) -> usize {
        let mut count = 0;
        let mut copy = self.clone();
        // The visitors cannot fail.
        let _ = copy.for_each_linear(&mut |linear| {
            count += linear.rows * linear.cols + linear.bias.as_ref().map_or(0, Tensor::elem_count);
            count += linear.lora.as_ref().map_or(0, |l| l.a.elem_count() + l.b.elem_count());
            Ok(())
        });
        let _ = copy.for_each_norm(&mut |norm| {
            count += norm.weight.elem_count() + norm.bias.as_ref().map_or(0, Tensor::elem_count);
            Ok(())
        });
        count
    }
}

impl Block {
    pub(super) fn load(
        c: &DecoderConfig,
        source: &mut dyn WeightSource,
        layer: usize,
        rope: Option<Arc<Rope>>,
    ) -> Result<Self> {
        let (d, q, kv, wide) = (c.hidden_size, c.q_width(), c.kv_width(), c.intermediate_size);
        let at = |part: &str| format!("layers.{layer}.{part}");
        let norm = |source: &mut dyn WeightSource, part: &str| NormWeights::load(source, at(part), c.norm, d);
        let head_norm = |source: &mut dyn WeightSource, part: &str| {
            NormWeights::load(source, at(part), Norm::Rms, c.head_dim)
        };
        Ok(Block {
            input_norm: norm(source, "input_norm")?,
            q_proj: Linear::load(source, at("self_attn.q_proj"), q, d, c.qkv_bias)?,
            k_proj: Linear::load(source, at("self_attn.k_proj"), kv, d, c.qkv_bias)?,
            v_proj: Linear::load(source, at("self_attn.v_proj"), kv, d, c.qkv_bias)?,
            o_proj: Linear::load(source, at("self_attn.o_proj"), d, q, c.o_bias)?,
            qk_norm: if c.qk_norm {
                Some((head_norm(source, "self_attn.q_norm")?, head_norm(source, "self_attn.k_norm")?))
            } else {
                None
            },
            mlp_norm: norm(source, "mlp_norm")?,
            gate_proj: match c.mlp {
                Mlp::Gated => Some(Linear::load(source, at("mlp.gate_proj"), wide, d, c.mlp_bias)?),
                Mlp::Plain => None,
            },
            up_proj: Linear::load(source, at("mlp.up_proj"), wide, d, c.mlp_bias)?,
            down_proj: Linear::load(source, at("mlp.down_proj"), d, wide, c.mlp_bias)?,
            post_norms: match c.residual {
                Residual::Sandwich => {
                    Some((norm(source, "post_attention_norm")?, norm(source, "post_mlp_norm")?))
                }
                Residual::Sequential | Residual::Parallel => None,
            },
            rope,
            window: c.layer_kinds[layer].window,
        })
    }

    fn linears(&mut self) -> impl Iterator<Item = &mut Linear> {
        [&mut self.q_proj, &mut self.k_proj, &mut self.v_proj, &mut self.o_proj]
            .into_iter()
            .chain(self.gate_proj.as_mut())
            .chain([&mut self.up_proj, &mut self.down_proj])
    }

    fn norms(&mut self) -> impl Iterator<Item = &mut NormWeights> {
        fn pair(norms: &mut Option<(NormWeights, NormWeights)>) -> impl Iterator<Item = &mut NormWeights> {
            norms.iter_mut().flat_map(|(a, b)| [a, b])
        }
        [&mut self.input_norm, &mut self.mlp_norm]
            .into_iter()
            .chain(pair(&mut self.qk_norm))
            .chain(pair(&mut self.post_norms))
    }
}

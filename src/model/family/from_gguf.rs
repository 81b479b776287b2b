//! A decoder's configuration from the metadata of a GGUF file.

use super::Family;
use crate::error::{Error, Result};
use crate::model::DecoderConfig;
use crate::model::config::{Activation, LayerKind, Mlp, Norm, Position, Residual, RopeScaling};
use crate::model::fields::Fields;
use crate::model::gguf::Header;

/// The configuration in GGUF metadata. What llama.cpp leaves out of the file, because its code knows it by
/// the architecture, is filled in here: Gemma's scales, window patterns, caps and local rotary base. A Mistral 7B v0.1
/// calls itself `llama` and its file keeps no window: texts above 4,096 tokens are read without one, as llama.cpp does.
pub(super) fn read(
    family: Family,
    architecture: &str,
    model: &str,
    header: &Header<'_>,
) -> Result<DecoderConfig> {
    let key = |name: &str| format!("{architecture}.{name}");
    let count = |name: &str| header.count(&key(name));
    let need = |name: &str| header.need(&key(name), header.count(&key(name))?);
    let number = |name: &str| header.number(&key(name));
    let has = |name: &str| header.tensors.contains_key(name);
    let bad = |name: &str, message: String| Error::format(header.path(), key(name), message);
    let embedding = header.tensors.get("token_embd.weight");
    let embedding = header.need("tensor token_embd.weight", embedding)?;
    let [vocab_size, _] = embedding.shape[..] else {
        return Err(Error::format(header.path(), "tensor token_embd.weight", "is not a matrix"));
    };
    let (hidden_size, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let layers = need("block_count")?;
    if layers > Fields::MAX_LAYERS {
        return Err(bad(
            "block_count",
            format!("{layers} layers; at most {} are possible", Fields::MAX_LAYERS),
        ));
    }
    if heads == 0 {
        return Err(bad("attention.head_count", "0: must be at least 1".into()));
    }
    let kv_heads = count("attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = count("attention.key_length")?.unwrap_or(hidden_size / heads);
    if count("attention.value_length")?.is_some_and(|width| width != head_dim) {
        return Err(bad("attention.value_length", "differs from key_length, which is not supported".into()));
    }
    let rotary_dim = count("rope.dimension_count")?.unwrap_or(head_dim);
    let pairs = matches!(family, Family::Llama);
    if pairs && rotary_dim != head_dim {
        return Err(bad(
            "rope.dimension_count",
            format!("{rotary_dim} of {head_dim}: partial rotation is not supported here"),
        ));
    }
    let gemma = family.is_gemma();
    // As llama.cpp reads them: linear where nothing is said, the factor under either of two keys, and 0 for none.
    let factor = match header.text(&key("rope.scaling.type"))? {
        Some("none") => None,
        None | Some("linear") => number("rope.scaling.factor")?.or(number("rope.scale_linear")?),
        Some(other) => return Err(bad("rope.scaling.type", format!("{other} is not supported; linear is"))),
    };
    let scaling = match factor.filter(|factor| ![0.0, 1.0].contains(factor)) {
        Some(_) if has("rope_freqs.weight") => {
            return Err(bad(
                "rope.scaling.factor",
                "together with rope_freqs.weight is not supported".into(),
            ));
        }
        Some(factor) => RopeScaling::Linear { factor },
        None if has("rope_freqs.weight") => RopeScaling::Factors(header.floats("rope_freqs.weight")?),
        None => RopeScaling::None,
    };
    if has("rope_factors_long.weight") {
        return Err(Error::model(model, "longrope scaling is not supported"));
    }
    // Files from before the keys existed: llama.cpp knows Gemma 2's window and caps by its name.
    let gemma2 = family == Family::Gemma2;
    let window = count("attention.sliding_window")?.or(gemma2.then_some(4096)).filter(|&n| n > 0);
    let pattern = count("attention.sliding_window_pattern")?.filter(|&n| n > 0).unwrap_or(6);
    let local_theta = number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let layer_kinds = (0..layers)
        .map(|layer| match family {
            Family::Gemma2 => LayerKind { window: window.filter(|_| layer % 2 == 0), ..LayerKind::default() },
            Family::Gemma3 if (layer + 1) % pattern != 0 && window.is_some() => {
                LayerKind { window, rope_theta: Some(local_theta), rope_scaling: Some(RopeScaling::None) }
            }
            Family::Gemma3 => LayerKind::default(),
            _ => LayerKind { window, ..LayerKind::default() },
        })
        .collect();
    let plain = matches!(family, Family::Gpt2 | Family::GptNeox);
    let eps = if plain { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    // The 27B models divide by the width of the residual stream a head, the others by the head's own.
    let wide = matches!((family, layers), (Family::Gemma2, 46) | (Family::Gemma3, 62));
    let scale_of = if wide { hidden_size as f32 / heads as f32 } else { head_dim as f32 };
    let cap = |name: &str, default: f32| {
        Ok::<_, Error>(number(name)?.map(|cap| cap as f32).or(gemma2.then_some(default)).filter(|_| gemma))
    };
    let parallel = family == Family::GptNeox && header.flag(&key("use_parallel_residual"))?.unwrap_or(true);
    Ok(DecoderConfig {
        head_dim,
        norm: if plain { Norm::Layer } else { Norm::Rms },
        norm_eps: header.need(&key(eps), number(eps)?)?,
        position: if family == Family::Gpt2 {
            Position::Learned
        } else {
            Position::Rope {
                theta: number("rope.freq_base")?.unwrap_or(10_000.0),
                rotary_dim,
                scaling,
                interleaved: false,
            }
        },
        layer_kinds,
        residual: match (gemma, parallel) {
            (true, _) => Residual::Sandwich,
            (_, true) => Residual::Parallel,
            _ => Residual::Sequential,
        },
        mlp: if plain { Mlp::Plain } else { Mlp::Gated },
        activation: match family {
            Family::Gpt2 | Family::Gemma2 | Family::Gemma3 => Activation::GeluTanh,
            Family::GptNeox => Activation::Gelu,
            _ => Activation::Silu,
        },
        qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_up.bias"),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        attention_softcap: cap("attn_logit_softcapping", 50.0)?,
        final_softcap: cap("final_logit_softcapping", 30.0)?,
        embed_scale: if gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        query_scale: scale_of.powf(-0.5),
        tied_embeddings: !has("output.weight"),
        ..DecoderConfig::llama(
            vocab_size,
            hidden_size,
            layers,
            heads,
            kv_heads,
            need("feed_forward_length")?,
            need("context_length")?,
        )
    })
}

//! A decoder's configuration from the settings of a `config.json`.

use super::Family;
use crate::error::Result;
use crate::model::DecoderConfig;
use crate::model::config::{Activation, LayerKind, Mlp, Norm, Position, Residual, RopeScaling};
use crate::model::fields::Fields;

/// The configuration a checkpoint of `family` states.
pub(super) fn read(family: Family, fields: &Fields<'_>) -> Result<DecoderConfig> {
    match family {
        Family::Gpt2 => gpt2(fields),
        Family::GptNeox => gpt_neox(fields),
        _ => llama_like(family, fields),
    }
}

fn activation(fields: &Fields<'_>, key: &str, default: &str) -> Result<Activation> {
    let name = fields.text(key)?.unwrap_or(default);
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        other => {
            let expected = format!(
                "activation {other} is not supported; silu, gelu, gelu_new and gelu_pytorch_tanh are"
            );
            return Err(fields.bad(key, expected));
        }
    })
}

/// The rotary settings of one kind of layer: `rope_scaling` of today's files, or `rope_parameters` of
/// transformers 5, which Gemma 3 has once a kind of layer.
fn rope_fields<'a>(fields: &Fields<'a>, kind: &str) -> Result<Option<Fields<'a>>> {
    let parameters = fields.object("rope_parameters")?;
    Ok(match parameters {
        Some(parameters) => Some(parameters.object(kind)?.unwrap_or(parameters)),
        None => fields.object("rope_scaling")?.filter(|_| kind == "full_attention"),
    })
}

fn rope_scaling(fields: &Fields<'_>, kind: &str) -> Result<RopeScaling> {
    let Some(scaling) = rope_fields(fields, kind)? else { return Ok(RopeScaling::None) };
    let name = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
    Ok(match name {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: scaling.need_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: scaling.need_number("factor")?,
            low_freq_factor: scaling.need_number("low_freq_factor")?,
            high_freq_factor: scaling.need_number("high_freq_factor")?,
            original_max_positions: scaling.need_count("original_max_position_embeddings")?,
        },
        other => {
            let message = format!("rotary scaling {other} is not supported; default, linear and llama3 are");
            return Err(fields.bad("rope_scaling", message));
        }
    })
}

/// A rotary setting: `key` of today's files, `nested` among [`rope_fields`].
fn rope_number(fields: &Fields<'_>, key: &str, kind: &str, nested: &str, default: f64) -> Result<f64> {
    let nested = match rope_fields(fields, kind)? {
        Some(rope) => rope.number(nested)?,
        None => None,
    };
    Ok(fields.number(key)?.or(nested).unwrap_or(default))
}

fn rope_theta(fields: &Fields<'_>, key: &str, kind: &str, default: f64) -> Result<f64> {
    rope_number(fields, key, kind, "rope_theta", default)
}

/// Per-layer windows: `layer_types` where the file has it, else the family's rule.
fn windows(
    fields: &Fields<'_>,
    layers: usize,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let Some(kinds) = fields.texts("layer_types")? else {
        return Ok((0..layers).map(|layer| window.filter(|_| rule(layer))).collect());
    };
    if kinds.len() != layers {
        return Err(fields.bad("layer_types", format!("{} entries for {layers} layers", kinds.len())));
    }
    kinds
        .into_iter()
        .map(|kind| match kind {
            "full_attention" => Ok(None),
            "sliding_attention" if window.is_some() => Ok(window),
            "sliding_attention" => {
                Err(fields.bad("sliding_window", "missing, though layer_types asks for it"))
            }
            other => Err(fields.bad("layer_types", format!("{other} is not supported"))),
        })
        .collect()
}

/// Llama, Mistral, Qwen and Gemma: RMS norm, rotary positions, a gated MLP.
fn llama_like(family: Family, fields: &Fields<'_>) -> Result<DecoderConfig> {
    let gemma = family.is_gemma();
    let gemma3 = family == Family::Gemma3;
    // The text part of larger Gemma 3 checkpoints leaves out what equals its class's defaults.
    let size = |key: &'static str, default: usize| match fields.count(key)? {
        Some(n) => Ok(n),
        None if gemma3 => Ok(default),
        None => fields.need_count(key),
    };
    let layers = fields.layers("num_hidden_layers", gemma3.then_some(26))?;
    let hidden_size = size("hidden_size", 2304)?;
    let heads = size("num_attention_heads", 8)?;
    let default_kv = match family {
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
        Family::Gemma2 | Family::Gemma3 => 4,
        _ => heads,
    };
    let kv_heads = fields.count("num_key_value_heads")?.unwrap_or(default_kv);
    let head_dim = match fields.count("head_dim")? {
        Some(n) => n,
        None if gemma => 256,
        None if family == Family::Qwen3 => 128,
        None if heads > 0 && hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(fields
                .bad("num_attention_heads", format!("{heads} does not divide hidden_size {hidden_size}")));
        }
    };
    let window = fields.nullable_count("sliding_window")?;
    let windows = match family {
        Family::Llama => vec![None; layers],
        Family::Mistral => vec![window.unwrap_or(Some(4096)); layers],
        Family::Gemma2 => windows(fields, layers, window.unwrap_or(Some(4096)), |layer| layer % 2 == 0)?,
        Family::Gemma3 => {
            let pattern = match fields.count("sliding_window_pattern")? {
                Some(n) => n,
                None => fields.count("_sliding_window_pattern")?.unwrap_or(6),
            };
            if pattern == 0 {
                return Err(fields.bad("sliding_window_pattern", "0: must be at least 1"));
            }
            windows(fields, layers, window.unwrap_or(Some(4096)), |layer| (layer + 1) % pattern != 0)?
        }
        _ => {
            let used = fields.flag("use_sliding_window")?.unwrap_or(false);
            let window = window.unwrap_or(Some(4096)).filter(|_| used);
            let from = fields.count("max_window_layers")?.unwrap_or(28);
            windows(fields, layers, window, |layer| layer >= from)?
        }
    };
    let scaling = rope_scaling(fields, "full_attention")?;
    let theta = rope_theta(fields, "rope_theta", "full_attention", if gemma3 { 1e6 } else { 10_000.0 })?;
    let local_theta = rope_theta(fields, "rope_local_base_freq", "sliding_attention", 10_000.0)?;
    let layer_kinds = windows
        .into_iter()
        .map(|window| match window {
            // Gemma 3 turns its sliding layers by a base of their own, never stretched.
            Some(_) if gemma3 => {
                LayerKind { window, rope_theta: Some(local_theta), rope_scaling: Some(RopeScaling::None) }
            }
            _ => LayerKind { window, ..LayerKind::default() },
        })
        .collect();
    if fields.flag("use_bidirectional_attention")?.unwrap_or(false) {
        return Err(fields.bad("use_bidirectional_attention", "attention that looks ahead is not supported"));
    }
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    let (qkv_bias, o_bias) = match family {
        Family::Qwen2 => (true, false),
        Family::Mistral => (false, false),
        _ => (attention_bias, attention_bias),
    };
    let default_cap = |cap: f32| (family == Family::Gemma2).then_some(cap);
    let scale_of = match fields.number("query_pre_attn_scalar")? {
        Some(scalar) if gemma => scalar,
        _ if gemma => 256.0,
        _ => head_dim as f64,
    };
    let default_context = match family {
        Family::Llama => 2048,
        Family::Gemma2 => 8192,
        Family::Mistral | Family::Gemma3 => 131_072,
        _ => 32_768,
    };
    Ok(DecoderConfig {
        vocab_size: size("vocab_size", 262_208)?,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size: size("intermediate_size", 9216)?,
        max_positions: fields.count("max_position_embeddings")?.unwrap_or(default_context),
        norm: Norm::Rms,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        position: Position::Rope { theta, rotary_dim: head_dim, scaling, interleaved: false },
        layer_kinds,
        residual: if gemma { Residual::Sandwich } else { Residual::Sequential },
        mlp: Mlp::Gated,
        // Old Gemma files carry a `hidden_act` that their own code ignores.
        activation: if gemma {
            activation(fields, "hidden_activation", "gelu_pytorch_tanh")?
        } else {
            activation(fields, "hidden_act", "silu")?
        },
        qkv_bias,
        o_bias,
        mlp_bias: family == Family::Llama && fields.flag("mlp_bias")?.unwrap_or(false),
        qk_norm: matches!(family, Family::Qwen3 | Family::Gemma3),
        attention_softcap: fields
            .nullable_f32("attn_logit_softcapping")?
            .unwrap_or(default_cap(50.0))
            .filter(|_| gemma),
        final_softcap: fields
            .nullable_f32("final_logit_softcapping")?
            .unwrap_or(default_cap(30.0))
            .filter(|_| gemma),
        embed_scale: if gemma { (hidden_size as f32).sqrt() } else { 1.0 },
        query_scale: scale_of.powf(-0.5) as f32,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(gemma),
    })
}

/// The width of a head where the heads share the residual stream's width evenly.
fn even_heads(fields: &Fields<'_>, key: &str, heads: usize, hidden_size: usize) -> Result<usize> {
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(fields.bad(key, format!("{heads} does not divide the hidden size {hidden_size}")));
    }
    Ok(hidden_size / heads)
}

fn gpt_neox(fields: &Fields<'_>) -> Result<DecoderConfig> {
    let hidden_size = fields.need_count("hidden_size")?;
    let heads = fields.need_count("num_attention_heads")?;
    let head_dim = even_heads(fields, "num_attention_heads", heads, hidden_size)?;
    let layers = fields.layers("num_hidden_layers", None)?;
    let old = fields.number("rotary_emb_base")?.unwrap_or(10_000.0);
    let theta = rope_theta(fields, "rope_theta", "full_attention", old)?;
    let factor = "partial_rotary_factor";
    let fraction = fields.number(factor)?.unwrap_or(0.25);
    let fraction = rope_number(fields, "rotary_pct", "full_attention", factor, fraction)?;
    let bias = fields.flag("attention_bias")?.unwrap_or(true);
    let parallel = fields.flag("use_parallel_residual")?.unwrap_or(true);
    Ok(DecoderConfig {
        head_dim,
        norm: Norm::Layer,
        norm_eps: fields.number("layer_norm_eps")?.unwrap_or(1e-5),
        position: Position::Rope {
            theta,
            rotary_dim: (head_dim as f64 * fraction) as usize,
            scaling: rope_scaling(fields, "full_attention")?,
            interleaved: false,
        },
        residual: if parallel { Residual::Parallel } else { Residual::Sequential },
        mlp: Mlp::Plain,
        activation: activation(fields, "hidden_act", "gelu")?,
        qkv_bias: bias,
        o_bias: bias,
        mlp_bias: true,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
        ..DecoderConfig::llama(
            fields.need_count("vocab_size")?,
            hidden_size,
            layers,
            heads,
            heads,
            fields.need_count("intermediate_size")?,
            fields.count("max_position_embeddings")?.unwrap_or(2048),
        )
    })
}

fn gpt2(fields: &Fields<'_>) -> Result<DecoderConfig> {
    let hidden_size = fields.need_count("n_embd")?;
    let heads = fields.need_count("n_head")?;
    even_heads(fields, "n_head", heads, hidden_size)?;
    let layers = fields.layers("n_layer", None)?;
    for (key, wanted) in [
        ("scale_attn_by_inverse_layer_idx", false),
        ("scale_attn_weights", true),
        ("add_cross_attention", false),
    ] {
        if fields.flag(key)?.is_some_and(|value| value != wanted) {
            return Err(fields.bad(key, format!("{} is not supported", !wanted)));
        }
    }
    Ok(DecoderConfig {
        norm: Norm::Layer,
        norm_eps: fields.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        position: Position::Learned,
        mlp: Mlp::Plain,
        activation: activation(fields, "activation_function", "gelu_new")?,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(true),
        ..DecoderConfig::llama(
            fields.need_count("vocab_size")?,
            hidden_size,
            layers,
            heads,
            heads,
            fields.nullable_count("n_inner")?.flatten().unwrap_or(4 * hidden_size),
            fields.count("n_positions")?.unwrap_or(1024),
        )
    })
}

//! What the families call things: the one place that matches on a family.
//!
//! A [`Family`] turns an architecture's name and settings, from `config.json` or from GGUF metadata, into a
//! [`DecoderConfig`], and a canonical weight name into the name and arrangement in the file.
//! The decoder itself never learns which family it runs. Defaults are those of the transformers classes.

use serde_json::Value;

use super::DecoderConfig;
use super::config::{Activation, LayerKind, Mlp, Norm, Position, Residual, RopeScaling};
use super::fields::Fields;
use super::gguf::Header;
use crate::error::{Error, Result};

/// A supported family of decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    GptNeox,
    Gpt2,
}

/// Which file's conventions apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A Hugging Face checkpoint in safetensors.
    HuggingFace,
    /// llama.cpp's GGUF.
    Gguf,
}

/// Where a canonical weight lies in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// Its name, after the checkpoint's prefix unless `absolute`.
    pub(crate) name: String,
    /// The name stands alone, such as `lm_head.weight`.
    pub(crate) absolute: bool,
    /// Stored as `[in, out]` (GPT-2's Conv1D).
    pub(crate) transposed: bool,
    /// Added to every value of a vector: Gemma stores its norm scales less one.
    pub(crate) offset: f32,
    /// Which stored rows it is made of.
    pub(crate) rows: Rows,
}

/// Which rows of a stored tensor form a canonical one, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// All, as they are.
    All,
    /// The n-th third: q, k, v one after the other.
    Third(usize),
    /// The n-th third of each head: GPT-NeoX's `query_key_value`.
    HeadThird { part: usize, heads: usize },
    /// All, but each head's halves are interleaved as pairs: llama.cpp's rotary order for Llama.
    Pairs { heads: usize },
}

const SUPPORTED: &str = "Llama 2, 3 and SmolLM2 (LlamaForCausalLM), Mistral, Qwen 2/2.5, Qwen 3, Gemma 2, Gemma 3 (text), \
                         GPT-NeoX/Pythia and GPT-2";

/// Architectures people will try, and why they are refused.
fn refusal(lower: &str) -> &'static str {
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    if has(&["deepseekv2", "deepseekv3", "deepseek2", "minicpm3", "kimi", "longcat"]) {
        "uses multi-head latent attention, whose keys are compressed"
    } else if has(&[
        "moe", "mixtral", "dbrx", "grok", "gptoss", "gpt-oss", "gpt_oss", "arctic", "llama4", "jetmoe",
        "olmoe",
    ]) {
        "is a mixture of experts"
    } else if has(&[
        "mamba",
        "rwkv",
        "jamba",
        "zamba",
        "recurrentgemma",
        "bamba",
        "griffin",
        "xlstm",
        "lfm",
        "falconh1",
        "qwen3next",
    ]) {
        "is a state-space or recurrent model, which has no attention matrix in some or all layers"
    } else if has(&["t5", "bert", "bart", "electra", "deberta", "marian", "pegasus", "whisper"]) {
        "is not a decoder of text alone"
    } else {
        "is not supported"
    }
}

fn refuse(model: &str, architecture: &str) -> Error {
    let reason = refusal(&architecture.to_lowercase());
    Error::model(model, format!("architecture {architecture} {reason}; supported are {SUPPORTED}"))
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen 2",
            Family::Qwen3 => "Qwen 3",
            Family::Gemma2 => "Gemma 2",
            Family::Gemma3 => "Gemma 3",
            Family::GptNeox => "GPT-NeoX",
            Family::Gpt2 => "GPT-2",
        })
    }
}

impl Family {
    pub(crate) const ALL: [Family; 8] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma2,
        Family::Gemma3,
        Family::GptNeox,
        Family::Gpt2,
    ];

    /// transformers' class, model type, and the type of its GGUF file.
    pub(crate) fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Family::Llama => ("LlamaForCausalLM", "llama", "llama"),
            // llama.cpp writes Mistral as "llama" and finds the difference in the settings.
            Family::Mistral => ("MistralForCausalLM", "mistral", ""),
            Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2", "qwen2"),
            Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3", "qwen3"),
            Family::Gemma2 => ("Gemma2ForCausalLM", "gemma2", "gemma2"),
            Family::Gemma3 => ("Gemma3ForCausalLM", "gemma3_text", "gemma3"),
            Family::GptNeox => ("GPTNeoXForCausalLM", "gpt_neox", "gptneox"),
            Family::Gpt2 => ("GPT2LMHeadModel", "gpt2", "gpt2"),
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    /// Family and configuration of a `config.json`; `model` names it in messages.
    ///
    /// # Errors
    /// [`Error::Model`] for an architecture or setting that is not supported, [`Error::Format`] for a missing or wrong value.
    pub(crate) fn read_config(
        model: &str,
        path: &std::path::Path,
        json: &Value,
    ) -> Result<(Family, DecoderConfig)> {
        let named = json["architectures"][0].as_str();
        let Some(architecture) = named.or(json["model_type"].as_str()) else {
            return Err(Error::format(
                path,
                "architectures",
                "missing; this is not the config.json of a model",
            ));
        };
        let found = Family::ALL.into_iter().find(|family| {
            let (class, kind, _) = family.names();
            let base = class.replace("ForCausalLM", "Model").replace("LMHeadModel", "Model");
            architecture == class || architecture == base || (named.is_none() && architecture == kind)
        });
        let (family, json) = match found {
            Some(family) => (family, json),
            // The text part of the larger Gemma 3 checkpoints; the image part is left unread.
            None if architecture == "Gemma3ForConditionalGeneration" => {
                (Family::Gemma3, &json["text_config"])
            }
            None => return Err(refuse(model, architecture)),
        };
        if let Some(scheme) = json.get("quantization_config") {
            let method = scheme["quant_method"].as_str().unwrap_or("an unknown method");
            return Err(Error::model(
                model,
                format!(
                    "its weights are quantised by {method}, which is not read; use the original checkpoint or a GGUF file"
                ),
            ));
        }
        let fields = Fields::new(model, path, json);
        let config = match family {
            Family::Gpt2 => gpt2(&fields),
            Family::GptNeox => gpt_neox(&fields),
            _ => llama_like(family, &fields),
        }?;
        config.validate(model)?;
        Ok((family, config))
    }

    /// Family and configuration of a GGUF file.
    ///
    /// # Errors
    /// As [`Family::read_config`].
    pub(crate) fn read_gguf(model: &str, header: &Header<'_>) -> Result<(Family, DecoderConfig)> {
        let architecture =
            header.need("general.architecture", header.text("general.architecture")?)?.to_owned();
        let found = Family::ALL.into_iter().find(|family| family.names().2 == architecture);
        let Some(family) = found else { return Err(refuse(model, &architecture)) };
        if header.count(&format!("{architecture}.expert_count"))?.unwrap_or(0) > 0 {
            return Err(refuse(model, &format!("{architecture} with experts (MoE)")));
        }
        if header.count("split.count")?.unwrap_or(1) > 1 {
            return Err(Error::model(
                model,
                "is one part of a split GGUF; join the parts first (llama-gguf-split --merge)",
            ));
        }
        let config = from_gguf(family, &architecture, model, header)?;
        config.validate(model)?;
        Ok((family, config))
    }

    /// What stands before the names of a checkpoint.
    pub(crate) fn prefix(self, form: Form, has: impl Fn(&str) -> bool) -> String {
        if form == Form::Gguf {
            return String::new();
        }
        let (candidates, probe): (&[&str], &str) = match self {
            Family::Gpt2 => (&["transformer.", ""], "wte.weight"),
            Family::GptNeox => (&["gpt_neox.", ""], "embed_in.weight"),
            Family::Gemma3 => {
                (&["model.", "", "language_model.model.", "model.language_model."], "embed_tokens.weight")
            }
            _ => (&["model.", ""], "embed_tokens.weight"),
        };
        let found = candidates.iter().find(|prefix| has(&format!("{prefix}{probe}")));
        (*found.unwrap_or(&candidates[0])).to_owned()
    }

    /// Where the canonical weight `name` lies; `None` for a name the family does not have.
    pub(crate) fn stored(self, form: Form, name: &str, config: &DecoderConfig) -> Option<Stored> {
        let mut stored =
            Stored { name: String::new(), absolute: false, transposed: false, offset: 0.0, rows: Rows::All };
        let (layer, part) = match name.strip_prefix("layers.") {
            Some(rest) => rest.split_once('.').map(|(layer, part)| (Some(layer), part))?,
            None => (None, name),
        };
        let (part, suffix) = part.rsplit_once('.')?;
        let fused = matches!(self, Family::Gpt2 | Family::GptNeox);
        let qkv =
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].iter().position(|p| *p == part);
        if self.is_gemma() && form == Form::HuggingFace && (part.ends_with("norm")) {
            stored.offset = 1.0;
        }
        let base = match (form, layer) {
            (Form::Gguf, None) => match part {
                "embed_tokens" => "token_embd",
                "position_embeddings" => "position_embd",
                "norm" => "output_norm",
                "lm_head" => "output",
                _ => return None,
            },
            (Form::Gguf, Some(_)) => match part {
                _ if fused && qkv.is_some() => "attn_qkv",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                "input_norm" => "attn_norm",
                "mlp_norm" => "ffn_norm",
                "post_attention_norm" => "post_attention_norm",
                "post_mlp_norm" => "post_ffw_norm",
                _ => return None,
            },
            (Form::HuggingFace, None) => match (self, part) {
                (Family::Gpt2, "embed_tokens") => "wte",
                (Family::Gpt2, "position_embeddings") => "wpe",
                (Family::Gpt2, "norm") => "ln_f",
                (Family::GptNeox, "embed_tokens") => "embed_in",
                (Family::GptNeox, "norm") => "final_layer_norm",
                (Family::GptNeox, "lm_head") => "embed_out",
                (_, "embed_tokens" | "norm" | "lm_head") => part,
                _ => return None,
            },
            (Form::HuggingFace, Some(_)) => match (self, part) {
                (Family::Gpt2, _) => match part {
                    _ if qkv.is_some() => "attn.c_attn",
                    "self_attn.o_proj" => "attn.c_proj",
                    "mlp.up_proj" => "mlp.c_fc",
                    "mlp.down_proj" => "mlp.c_proj",
                    "input_norm" => "ln_1",
                    "mlp_norm" => "ln_2",
                    _ => return None,
                },
                (Family::GptNeox, _) => match part {
                    _ if qkv.is_some() => "attention.query_key_value",
                    "self_attn.o_proj" => "attention.dense",
                    "mlp.up_proj" => "mlp.dense_h_to_4h",
                    "mlp.down_proj" => "mlp.dense_4h_to_h",
                    "input_norm" => "input_layernorm",
                    "mlp_norm" => "post_attention_layernorm",
                    _ => return None,
                },
                (_, "input_norm") => "input_layernorm",
                (Family::Gemma2 | Family::Gemma3, "post_attention_norm") => "post_attention_layernorm",
                (Family::Gemma2 | Family::Gemma3, "mlp_norm") => "pre_feedforward_layernorm",
                (Family::Gemma2 | Family::Gemma3, "post_mlp_norm") => "post_feedforward_layernorm",
                (_, "mlp_norm") => "post_attention_layernorm",
                (_, "post_attention_norm" | "post_mlp_norm") => return None,
                _ => part,
            },
        };
        stored.name = match (form, layer) {
            (_, None) => format!("{base}.{suffix}"),
            (Form::Gguf, Some(layer)) => format!("blk.{layer}.{base}.{suffix}"),
            (Form::HuggingFace, Some(layer)) if self == Family::Gpt2 => format!("h.{layer}.{base}.{suffix}"),
            (Form::HuggingFace, Some(layer)) => format!("layers.{layer}.{base}.{suffix}"),
        };
        stored.absolute = form == Form::HuggingFace && part == "lm_head";
        stored.transposed = form == Form::HuggingFace
            && self == Family::Gpt2
            && suffix == "weight"
            && (part.starts_with("self_attn") || part.starts_with("mlp."));
        stored.rows = match (qkv, self, form) {
            (Some(third), Family::GptNeox, Form::HuggingFace) => {
                Rows::HeadThird { part: third, heads: config.heads }
            }
            (Some(third), Family::Gpt2 | Family::GptNeox, _) => Rows::Third(third),
            (Some(0), Family::Llama | Family::Mistral, Form::Gguf) => Rows::Pairs { heads: config.heads },
            (Some(1), Family::Llama | Family::Mistral, Form::Gguf) => Rows::Pairs { heads: config.kv_heads },
            _ => Rows::All,
        };
        Some(stored)
    }

    /// Whether a tensor nobody asked for may be passed over: buffers that hold no weights, a second copy
    /// of tied embeddings, the image part of Gemma 3.
    pub(crate) fn ignorable(self, form: Form, name: &str, config: &DecoderConfig) -> bool {
        match form {
            Form::Gguf => name == "rope_freqs.weight",
            Form::HuggingFace => {
                Family::is_buffer(name)
                    || (config.tied_embeddings && (name == "lm_head.weight" || name == "embed_out.weight"))
                    || (self == Family::Gemma3
                        && [
                            "vision_tower.",
                            "multi_modal_projector.",
                            "model.vision_tower.",
                            "model.multi_modal_projector.",
                        ]
                        .iter()
                        .any(|part| name.starts_with(part)))
            }
        }
    }

    /// Buffers of old checkpoints: causal masks and rotary frequencies.
    pub(crate) fn is_buffer(name: &str) -> bool {
        [".attn.bias", ".attention.bias", ".masked_bias", ".rotary_emb.inv_freq"]
            .iter()
            .any(|end| name.ends_with(end))
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

fn rope_theta(fields: &Fields<'_>, key: &str, kind: &str, default: f64) -> Result<f64> {
    let nested = match rope_fields(fields, kind)? {
        Some(nested) => nested.number("rope_theta")?,
        None => None,
    };
    Ok(fields.number(key)?.or(nested).unwrap_or(default))
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

fn gpt_neox(fields: &Fields<'_>) -> Result<DecoderConfig> {
    let hidden_size = fields.need_count("hidden_size")?;
    let heads = fields.need_count("num_attention_heads")?;
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(
            fields.bad("num_attention_heads", format!("{heads} does not divide hidden_size {hidden_size}"))
        );
    }
    let head_dim = hidden_size / heads;
    let layers = fields.layers("num_hidden_layers", None)?;
    let old = fields.number("rotary_emb_base")?.unwrap_or(10_000.0);
    let theta = rope_theta(fields, "rope_theta", "full_attention", old)?;
    let fraction = fields.number("rotary_pct")?.or(fields.number("partial_rotary_factor")?).unwrap_or(0.25);
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
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(fields.bad("n_head", format!("{heads} does not divide n_embd {hidden_size}")));
    }
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

/// The configuration in GGUF metadata. What llama.cpp leaves out of the file, because its code knows it by
/// the architecture, is filled in here: Gemma's scales, window patterns and local rotary base.
fn from_gguf(family: Family, architecture: &str, model: &str, header: &Header<'_>) -> Result<DecoderConfig> {
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
    let scaling = match header.text(&key("rope.scaling.type"))? {
        _ if has("rope_freqs.weight") => RopeScaling::Factors(header.floats("rope_freqs.weight")?),
        None | Some("none") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: header.need(&key("rope.scaling.factor"), number("rope.scaling.factor")?)?,
        },
        Some(other) => return Err(bad("rope.scaling.type", format!("{other} is not supported; linear is"))),
    };
    if has("rope_factors_long.weight") {
        return Err(Error::model(model, "longrope scaling is not supported"));
    }
    let window = count("attention.sliding_window")?.filter(|&n| n > 0);
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
    let cap = |name: &str| Ok::<_, Error>(number(name)?.map(|cap| cap as f32).filter(|_| gemma));
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
        attention_softcap: cap("attn_logit_softcapping")?,
        final_softcap: cap("final_logit_softcapping")?,
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

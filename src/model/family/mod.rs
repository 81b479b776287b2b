//! What the families call things: the one place that matches on a family.
//!
//! A [`Family`] turns an architecture's name and settings, from `config.json` or from GGUF metadata, into a
//! [`DecoderConfig`], and a canonical weight name into the name and arrangement in the file.
//! The decoder itself never learns which family it runs. Defaults are those of the transformers classes.

mod from_config;
mod from_gguf;

use serde_json::Value;

use super::DecoderConfig;
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
        let config = from_config::read(family, &fields)?;
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
        let found = Family::ALL
            .into_iter()
            .find(|family| !architecture.is_empty() && family.names().2 == architecture);
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
        let config = from_gguf::read(family, &architecture, model, header)?;
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

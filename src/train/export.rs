//! A model as a plain Hugging Face folder: `config.json`, `model.safetensors`, `tokenizer.json`. Adapters are merged.
//!
//! What transformers calls the tensors differs from the canonical names only for the norms; the architectures that can be
//! written are those whose projections are kept apart: Llama, Qwen 2 and Qwen 3.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::tensors::{self, Precision, Values};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::model::{Activation, DecoderConfig, Mlp, Model, Norm, Position, Residual, RopeScaling};

/// Number format of saved weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SavePrecision {
    /// As trained.
    #[default]
    F32,
    /// Half the size; about three decimal digits.
    F16,
}

impl Model {
    /// Saves this model, adapters merged, as a folder that transformers and [`Model::load`] read.
    ///
    /// ```no_run
    /// # use cluescope::prelude::*;
    /// # use cluescope::train::SavePrecision;
    /// # fn f(run: cluescope::train::Run) -> cluescope::Result<()> {
    /// run.model.save_pretrained("runs/merged", SavePrecision::F32)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Model`] for architectures other than Llama, Qwen 2 and Qwen 3; files that cannot be written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>, precision: SavePrecision) -> Result<()> {
        let folder = folder.as_ref();
        let mut config = config_json(self)?;
        let (precision, dtype) = match precision {
            SavePrecision::F32 => (Precision::F32, "float32"),
            SavePrecision::F16 => (Precision::F16, "float16"),
        };
        config["torch_dtype"] = json!(dtype);
        let weights = self.weights()?;
        let mut out = BTreeMap::new();
        for (name, tensor) in &weights {
            out.insert(hugging_face_name(name), Values::Tensor(tensor));
        }
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        tensors::write(&folder.join("model.safetensors"), &out, &metadata, precision)?;
        let write_text = |name: &str, text: String| {
            let path = folder.join(name);
            write_atomic(&path, |file| writeln!(file, "{text}").map_err(Error::io(&path)))
        };
        write_text("tokenizer.json", self.tokenizer().to_json()?)?;
        let pretty = serde_json::to_string_pretty(&config)
            .map_err(|e| Error::format(folder.join("config.json"), "", e))?;
        write_text("config.json", pretty)
    }
}

/// Inverse of the name mapping that loading applies to these architectures.
fn hugging_face_name(canonical: &str) -> String {
    if canonical == "lm_head.weight" {
        return canonical.into();
    }
    let name = canonical
        .replace(".input_norm.", ".input_layernorm.")
        .replace(".mlp_norm.", ".post_attention_layernorm.");
    format!("model.{name}")
}

fn config_json(model: &Model) -> Result<Value> {
    let c = model.config();
    let (theta, scaling) = plain_rope(c).ok_or_else(|| refused(model, "its positions"))?;
    let llama_like = c.norm == Norm::Rms
        && c.residual == Residual::Sequential
        && c.mlp == Mlp::Gated
        && c.activation == Activation::Silu
        && c.attention_softcap.is_none()
        && c.final_softcap.is_none()
        && c.embed_scale == 1.0
        && (c.query_scale - (c.head_dim as f32).powf(-0.5)).abs() < 1e-6
        && c.layer_kinds
            .iter()
            .all(|kind| kind.window.is_none() && kind.rope_theta.is_none() && kind.rope_scaling.is_none())
        && !c.mlp_bias;
    let (architecture, model_type) = match (llama_like, c.qkv_bias, c.qk_norm, c.o_bias) {
        (true, false, false, false) => ("LlamaForCausalLM", "llama"),
        (true, true, false, false) => ("Qwen2ForCausalLM", "qwen2"),
        (true, false, true, false) => ("Qwen3ForCausalLM", "qwen3"),
        _ => return Err(refused(model, "its layers")),
    };
    let tokenizer = model.tokenizer();
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.intermediate_size,
        "max_position_embeddings": c.max_positions,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": theta,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": c.tied_embeddings,
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": match tokenizer.eos() { [] => Value::Null, [one] => json!(one), many => json!(many) },
    });
    if model_type == "qwen2" {
        // Qwen 2 always has the query, key and value biases and knows neither key.
        if let Some(object) = config.as_object_mut() {
            object.remove("attention_bias");
            object.remove("mlp_bias");
        }
        if c.heads * c.head_dim != c.hidden_size {
            return Err(refused(model, "its head_dim"));
        }
    }
    if let Some(scaling) = scaling {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

/// Base and scaling of rotary positions as these architectures know them.
fn plain_rope(config: &DecoderConfig) -> Option<(f64, Option<Value>)> {
    let Position::Rope { theta, rotary_dim, scaling, interleaved: false } = &config.position else {
        return None;
    };
    let scaling = match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(json!({"rope_type": "linear", "factor": factor})),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            Some(json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_positions,
            }))
        }
        RopeScaling::Factors(_) => return None,
    };
    (*rotary_dim == config.head_dim).then_some((*theta, scaling))
}

fn refused(model: &Model, what: &str) -> Error {
    Error::model(
        model.name(),
        format!(
            "cannot be saved as a transformers folder: {what} are not those of Llama, Qwen 2 or Qwen 3; save the adapter instead"
        ),
    )
}

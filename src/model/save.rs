//! A model as a Hugging Face checkpoint that transformers loads: merged fine-tunes and trained models.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use super::family::{Family, Form, Stored};
use super::rope::Rope;
use super::{Activation, DecoderConfig, Mlp, Model, Norm, Position, Residual, RopeScaling};
use crate::error::{Error, Result};
use crate::files::{self, write_atomic, write_text};
use crate::progress::check_interrupt;

impl Model {
    /// Writes `config.json`, `model.safetensors` (f32), `tokenizer.json`, `tokenizer_config.json` and
    /// `generation_config.json` into `folder`. Adapters are merged, quantised weights written as the numbers they stand for.
    ///
    /// # Errors
    /// [`Error::Model`] when no supported family has this configuration, [`Error::Io`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_as(folder, DType::F32)
    }

    /// Whether [`Model::save`] knows a form for this model: worth asking before it is trained.
    ///
    /// # Errors
    /// [`Error::Model`] as [`Model::save`].
    pub fn check_save(&self) -> Result<()> {
        describe(self.name(), self.config()).map(drop)
    }

    /// [`Model::save`] with the weights rounded to `dtype`: f32, f16 or bf16.
    ///
    /// # Errors
    /// As [`Model::save`]; [`Error::Option`] for another `dtype`.
    pub fn save_as(&self, folder: impl AsRef<Path>, dtype: DType) -> Result<()> {
        let folder = folder.as_ref();
        let (kind, torch) = match dtype {
            DType::F32 => (Dtype::F32, "float32"),
            DType::F16 => (Dtype::F16, "float16"),
            DType::BF16 => (Dtype::BF16, "bfloat16"),
            other => return Err(Error::option("dtype", format!("{other:?}"), "f32, f16 or bf16")),
        };
        let (family, mut config) = describe(self.name(), self.config())?;
        let tokenizer = self.tokenizer();
        let eos = match tokenizer.eos() {
            [one] => json!(one),
            several => json!(several),
        };
        config["torch_dtype"] = json!(torch);
        let ids = [("bos_token_id", json!(tokenizer.bos())), ("eos_token_id", eos)];
        for (key, value) in &ids {
            config[*key] = value.clone();
        }
        let text = |id: Option<u32>| id.map(|id| tokenizer.token(id));
        let tokenizer_config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": text(tokenizer.bos()),
            "eos_token": text(tokenizer.eos().first().copied()),
            "clean_up_tokenization_spaces": false,
        });
        let config_path = folder.join("config.json");
        self.write_weights(&folder.join("model.safetensors"), &config_path, family, kind, dtype)?;
        let put = |name: &str, text: String| {
            let path = folder.join(name);
            write_text(&path, &text)
        };
        put("tokenizer.json", tokenizer.to_json()?)?;
        for (name, value) in [
            ("tokenizer_config.json", tokenizer_config),
            (
                "generation_config.json",
                Value::Object(ids.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
            ),
            // Last: a folder with a config.json is a whole checkpoint.
            ("config.json", config),
        ] {
            put(name, format!("{value:#}\n"))?;
        }
        Ok(())
    }

    /// Writes the weights to `path`; once they are complete, an old `config` is removed before they take their place.
    fn write_weights(
        &self,
        path: &Path,
        config: &Path,
        family: Family,
        kind: Dtype,
        dtype: DType,
    ) -> Result<()> {
        // The canonical tensors that make up each stored one; GPT-2 and GPT-NeoX fuse q, k and v.
        let mut groups: BTreeMap<String, Vec<(Stored, Tensor)>> = BTreeMap::new();
        let prefix = family.prefix(Form::HuggingFace, |_| false);
        for (name, tensor) in self.weights()? {
            let stored = family.stored(Form::HuggingFace, &name, self.config());
            let stored =
                stored.ok_or_else(|| Error::model(self.name(), format!("{family} has no weight {name}")))?;
            let full = if stored.absolute { stored.name.clone() } else { format!("{prefix}{}", stored.name) };
            groups.entry(full).or_default().push((stored, tensor));
        }
        let mut infos = Vec::new();
        let mut end = 0;
        for (name, parts) in &groups {
            let mut shape = parts[0].1.dims().to_vec();
            shape[0] *= parts[0].0.rows.parts();
            if parts[0].0.transposed {
                shape.reverse();
            }
            let start = end;
            end += shape.iter().product::<usize>() * dtype.size_in_bytes();
            infos.push((name.clone(), TensorInfo { dtype: kind, shape, data_offsets: (start, end) }));
        }
        let bad = |e: String| Error::format(path, "header", e);
        let about = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
        let header = Metadata::new(Some(about), infos).map_err(|e| bad(e.to_string()))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| bad(e.to_string()))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        write_atomic(path, |out| {
            let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
            write(&(header.len() as u64).to_le_bytes())?;
            write(&header)?;
            // One tensor after the other: the file never lies in memory as a whole.
            for parts in groups.values() {
                check_interrupt()?;
                write(&bytes_of(&join(parts)?, dtype)?)?;
            }
            // From here to the end a checkpoint that is overwritten is neither the old nor the new one, and shall not load.
            files::remove(config)
        })
    }
}

/// The stored tensor that `parts` make up, flat and row-major.
fn join(parts: &[(Stored, Tensor)]) -> Result<Vec<f32>> {
    let (first, tensor) = &parts[0];
    let rows = tensor.dims()[0];
    let cols = tensor.elem_count() / rows;
    let total = rows * first.rows.parts();
    let mut whole = vec![0.0; total * cols];
    for (stored, tensor) in parts {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let order = stored.rows.order(rows).unwrap_or_else(|| (0..rows).collect());
        for (row, target) in order.into_iter().enumerate() {
            for col in 0..cols {
                let at = if stored.transposed { col * total + target } else { target * cols + col };
                whole[at] = values[row * cols + col] - stored.offset;
            }
        }
    }
    Ok(whole)
}

fn bytes_of(values: &[f32], dtype: DType) -> Result<Vec<u8>> {
    Ok(match dtype {
        DType::F16 => values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    })
}

/// The family and `config.json` that stand for `config`: the first family whose reading of what we would
/// write gives `config` back, so that the two directions cannot drift apart.
fn describe(model: &str, config: &DecoderConfig) -> Result<(Family, Value)> {
    let config = without_factors(model, config)?;
    for family in Family::ALL {
        let json = written(family, &config);
        if let Ok((_, read)) = Family::read_config(model, Path::new("config.json"), &json)
            && read == config
        {
            return Ok((family, json));
        }
    }
    Err(Error::model(
        model,
        "no supported Hugging Face architecture has this configuration, so it cannot be saved",
    ))
}

/// A GGUF file tells Llama 3's scaling by its divisors alone; the parameters of the released models are found again.
fn without_factors(model: &str, config: &DecoderConfig) -> Result<DecoderConfig> {
    let mut config = config.clone();
    let Position::Rope { scaling: RopeScaling::Factors(factors), .. } = &config.position else {
        return Ok(config);
    };
    let factors = factors.clone();
    for factor in [8.0, 32.0] {
        let scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        let mut with = config.clone();
        let mut without = config.clone();
        if let (Position::Rope { scaling: a, .. }, Position::Rope { scaling: b, .. }) =
            (&mut with.position, &mut without.position)
        {
            *a = scaling;
            *b = RopeScaling::None;
        }
        let near = match (Rope::of_layer(&without, 0), Rope::of_layer(&with, 0)) {
            (Some(plain), Some(scaled)) => {
                let pairs = plain.frequencies.iter().zip(&scaled.frequencies).zip(&factors);
                pairs
                    .into_iter()
                    .all(|((plain, scaled), factor)| (plain / scaled / factor - 1.0).abs() < 1e-4)
            }
            _ => false,
        };
        if near {
            config.position = with.position;
            return Ok(config);
        }
    }
    Err(Error::model(
        model,
        "its rotary divisors belong to no known Llama 3 release, so config.json cannot say them",
    ))
}

/// `config` in the words of `family`, as far as the family has words for it.
fn written(family: Family, config: &DecoderConfig) -> Value {
    let c = config;
    let (class, kind, _) = family.names();
    let activation = match c.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let (theta, rotary_dim, scaling) = match &c.position {
        Position::Learned => (10_000.0, 0, Value::Null),
        Position::Rope { theta, rotary_dim, scaling, .. } => (*theta, *rotary_dim, scaling_json(scaling)),
    };
    let mut json = match family {
        Family::Gpt2 => json!({
            "n_embd": c.hidden_size, "n_layer": c.layers, "n_head": c.heads, "n_positions": c.max_positions,
            "n_inner": c.intermediate_size, "layer_norm_epsilon": c.norm_eps,
            "activation_function": if activation == "gelu_pytorch_tanh" { "gelu_new" } else { activation },
        }),
        _ => json!({
            "hidden_size": c.hidden_size, "num_hidden_layers": c.layers, "num_attention_heads": c.heads,
            "intermediate_size": c.intermediate_size, "max_position_embeddings": c.max_positions,
            "hidden_act": activation, "rope_theta": theta, "rope_scaling": scaling,
        }),
    };
    let mut more = match family {
        Family::Gpt2 => Map::new(),
        Family::GptNeox => object(json!({
            "layer_norm_eps": c.norm_eps, "rotary_emb_base": theta,
            "rotary_pct": rotary_dim as f64 / c.head_dim as f64,
            "use_parallel_residual": c.residual == Residual::Parallel, "attention_bias": c.qkv_bias,
        })),
        _ => object(json!({
            "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "rms_norm_eps": c.norm_eps,
            "attention_bias": c.o_bias, "mlp_bias": c.mlp_bias,
        })),
    };
    let window = c.layer_kinds.iter().find_map(|kind| kind.window);
    let kinds = || -> Vec<&str> {
        let name =
            |window: Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        c.layer_kinds.iter().map(|kind| name(kind.window)).collect()
    };
    match family {
        Family::Mistral => {
            more.insert("sliding_window".into(), json!(window));
        }
        Family::Qwen2 | Family::Qwen3 => {
            let full = c.layer_kinds.iter().take_while(|kind| kind.window.is_none()).count();
            more.extend(object(json!({
                "use_sliding_window": window.is_some(), "sliding_window": window, "max_window_layers": full,
                "layer_types": kinds(),
            })));
        }
        Family::Gemma2 | Family::Gemma3 => {
            let local = c.layer_kinds.iter().find_map(|kind| kind.rope_theta);
            // The nearest whole number, where it gives the same scale: files say 256, not 255.99998.
            let scalar = f64::from(c.query_scale).powi(-2);
            let whole = scalar.round();
            let scalar =
                if whole.powf(-0.5) as f32 == c.query_scale { json!(whole as u64) } else { json!(scalar) };
            more.extend(object(json!({
                "sliding_window": window.unwrap_or(4096), "layer_types": kinds(), "query_pre_attn_scalar": scalar,
                "hidden_activation": activation, "attn_logit_softcapping": c.attention_softcap,
                "final_logit_softcapping": c.final_softcap,
            })));
            if family == Family::Gemma3 {
                more.insert("rope_local_base_freq".into(), json!(local.unwrap_or(10_000.0)));
            }
        }
        _ => {}
    }
    let all = object(json!({
        "architectures": [class], "model_type": kind, "vocab_size": c.vocab_size,
        "tie_word_embeddings": c.tied_embeddings,
    }));
    if let Some(json) = json.as_object_mut() {
        json.extend(more);
        json.extend(all);
    }
    // Families tell these apart by the family alone; reading back compares them.
    debug_assert!(matches!((c.norm, c.mlp), (Norm::Layer | Norm::Rms, Mlp::Plain | Mlp::Gated)));
    json
}

fn object(json: Value) -> Map<String, Value> {
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::None | RopeScaling::Factors(_) => Value::Null,
    }
}

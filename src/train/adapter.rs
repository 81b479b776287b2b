//! LoRA adapters as PEFT files: `adapter_config.json` and `adapter_model.safetensors`, both ways.
//!
//! Tensors are named `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` (A is `[r, in]`, B `[out, r]`) as
//! Hugging Face's peft saves them for Llama, Qwen, Gemma and Mistral. Beside them the header carries the content hash of
//! the model that was adapted, so that an adapter for other weights is refused by name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::tensors::{self, Values};
use crate::error::{Error, Result};
use crate::files::{read_text, write_text};
use crate::model::{LoraConfig, Model, Norm};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const PREFIX: &str = "base_model.model.model.";
const BASE_HASH: &str = "cluescope_base_hash";

/// Ways of peft's to begin an adapter that leave the model's weights as they are; others (PiSSA, OLoRA, CorDA, LoftQ) subtract the
/// beginning from them.
const KEEPING: [&str; 4] = ["gaussian", "eva", "orthogonal", "default"];

/// A low-rank adapter apart from its model.
///
/// ```no_run
/// use cluescope::model::Model;
/// use cluescope::train::Adapter;
/// let base = Model::load("HuggingFaceTB/SmolLM2-135M")?;
/// let adapted = Adapter::load("runs/biographies")?.apply(&base)?;
/// # Ok::<(), cluescope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Rank, scale and targets.
    pub config: LoraConfig,
    /// Name of the model it was trained on.
    pub base_model: String,
    /// Content hash of that model; absent in files that peft wrote.
    pub base_hash: Option<String>,
    /// Dimensions and values by name, such as `layers.0.self_attn.q_proj.lora_A.weight`.
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Adapter {
    /// Refuses architectures whose projections peft knows under other names, so that no file is written that neither peft
    /// nor [`Adapter::apply`] could use: worth asking before such a model is trained.
    ///
    /// # Errors
    /// [`Error::Model`] for a GPT-2 or GPT-NeoX.
    pub fn check_names(model: &Model) -> Result<()> {
        if model.config().norm == Norm::Rms {
            return Ok(());
        }
        Err(Error::model(
            model.name(),
            "GPT-2 and GPT-NeoX keep query, key and value in one matrix, so a PEFT file cannot name their adapters apart; \
             save the merged model instead (Model::save)",
        ))
    }

    /// The adapter that `model`, made from `base_model` by [`Model::with_lora`] with `config`, carries now.
    ///
    /// # Errors
    /// [`Error::Model`] when `model` carries none, or is a GPT-2 or GPT-NeoX, whose adapters no PEFT file can name.
    pub fn of(model: &Model, config: &LoraConfig, base_model: &str, base_hash: &str) -> Result<Adapter> {
        Self::check_names(model)?;
        let mut tensors = BTreeMap::new();
        for (name, variable) in model.trainable() {
            if !is_adapter(name) {
                return Err(Error::model(
                    model.name(),
                    format!("{name} is no part of an adapter; save the whole model"),
                ));
            }
            tensors
                .insert(name.clone(), (variable.dims().to_vec(), variable.flatten_all()?.to_vec1::<f32>()?));
        }
        if tensors.is_empty() {
            return Err(Error::model(model.name(), "carries no trainable adapter"));
        }
        Ok(Adapter {
            config: config.clone(),
            base_model: base_model.into(),
            base_hash: Some(base_hash.into()),
            tensors,
        })
    }

    /// Writes the two PEFT files into `folder`.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        let mut out = BTreeMap::new();
        for (name, (shape, values)) in &self.tensors {
            out.insert(format!("{PREFIX}{name}"), Values::Slice(shape.clone(), values));
        }
        let mut metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
        if let Some(hash) = &self.base_hash {
            metadata.insert(BASE_HASH.into(), hash.clone());
        }
        tensors::write(&folder.join(WEIGHTS), &out, &metadata)?;
        // Last, so that a folder with a configuration is a whole adapter.
        let path = folder.join(CONFIG);
        let text =
            serde_json::to_string_pretty(&self.config_json()).map_err(|e| Error::format(&path, "", e))?;
        write_text(&path, &format!("{text}\n"))
    }

    /// The keys that peft needs; it fills in its defaults for the others.
    fn config_json(&self) -> Value {
        // f32 printed as f64 would show 0.1 as 0.10000000149.
        let short = |x: f32| x.to_string().parse::<f64>().unwrap_or(f64::from(x));
        let alpha = if self.config.lora_alpha.fract() == 0.0 {
            json!(self.config.lora_alpha as i64)
        } else {
            json!(short(self.config.lora_alpha))
        };
        json!({
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": alpha,
            "lora_dropout": short(self.config.lora_dropout),
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.config.r,
            "target_modules": self.config.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        })
    }

    /// Reads the two PEFT files of `folder`.
    ///
    /// # Errors
    /// Missing or damaged files, and adapters of a kind this library does not compute (DoRA, rsLoRA, aLoRA, PiSSA and others that
    /// change the model's own weights, trained biases, per-layer ranks), named.
    pub fn load(folder: impl AsRef<Path>) -> Result<Adapter> {
        let folder = folder.as_ref();
        let path = folder.join(CONFIG);
        let config: Value = serde_json::from_str(&read_text(&path)?)
            .map_err(|e| Error::format(&path, format!("line {}", e.line()), format!("not JSON: {e}")))?;
        let lora = read_config(&path, &config)?;
        let path = folder.join(WEIGHTS);
        let stored = tensors::open(&path)?;
        let mut tensors = BTreeMap::new();
        for name in stored.names() {
            let short = name.strip_prefix(PREFIX).filter(|short| is_adapter(short));
            let Some(short) = short else {
                let message =
                    format!("not a LoRA matrix of a Llama-like model ({PREFIX}layers.N.….lora_A.weight)");
                return Err(Error::format(&path, format!("tensor {name}"), message));
            };
            let Some((shape, values)) = stored.tensor(name)? else { continue };
            let rank = if short.ends_with(".lora_A.weight") { shape.first() } else { shape.get(1) };
            if shape.len() != 2 || rank != Some(&lora.r) {
                let message = format!("{shape:?} does not go with the rank of {CONFIG}, r = {}", lora.r);
                return Err(Error::format(&path, format!("tensor {name}"), message));
            }
            tensors.insert(short.to_string(), (shape, values));
        }
        Ok(Adapter {
            config: lora,
            base_model: config["base_model_name_or_path"].as_str().unwrap_or_default().to_string(),
            base_hash: stored.metadata.get(BASE_HASH).cloned(),
            tensors,
        })
    }

    /// `model` with this adapter attached; the adapter's tensors are trainable further.
    ///
    /// # Errors
    /// [`Error::Model`] when the adapter was trained on another model: by content hash where the file carries one, by the
    /// last part of the name otherwise, and always when a tensor does not fit. [`Adapter::for_model`] lifts the first two.
    pub fn apply(&self, model: &Model) -> Result<Model> {
        let other = match &self.base_hash {
            Some(hash) => hash != model.hash(),
            None => !self.base_model.is_empty() && last_part(&self.base_model) != last_part(model.name()),
        };
        if other {
            let hash = self.base_hash.as_ref().map_or(String::new(), |hash| format!(" (content {hash})"));
            return Err(Error::model(
                model.name(),
                format!(
                    "the adapter was trained on {}{hash}, this model's content is {}; load that model, or use \
                     Adapter::for_model where these are the same weights in another format",
                    self.base_model,
                    model.hash()
                ),
            ));
        }
        Self::check_names(model)?;
        // First of rank 1: how much is allocated must not follow a number of a file that its tensors do not bear out.
        let places = model.with_lora(&LoraConfig { r: 1, ..self.config.clone() }, 0)?;
        for (name, place) in places.trainable() {
            self.check_shape(model, name, place.dims())?;
        }
        if let Some(extra) = self.tensors.keys().find(|name| !places.trainable().contains_key(*name)) {
            return Err(Error::model(
                model.name(),
                format!("the adapter's {extra} has no place in this model"),
            ));
        }
        let adapted = model.with_lora(&self.config, 0)?;
        for (name, variable) in adapted.trainable() {
            if let Some((shape, values)) = self.tensors.get(name) {
                variable.set(&Tensor::from_vec(values.clone(), shape.as_slice(), variable.device())?)?;
            }
        }
        let hash = super::trained_hash(model.hash(), &adapted, Some(&self.config))?;
        Ok(adapted.renamed(format!("{}+lora", model.name()), hash))
    }

    /// `place` is the shape of the matrix `name` in an adapter of rank 1.
    fn check_shape(&self, model: &Model, name: &str, place: &[usize]) -> Result<()> {
        let Some((shape, _)) = self.tensors.get(name) else {
            return Err(Error::model(
                model.name(),
                format!("the adapter for {} lacks {name}", self.base_model),
            ));
        };
        let mut needed = place.to_vec();
        needed[if name.ends_with(".lora_A.weight") { 0 } else { 1 }] = self.config.r;
        if *shape == needed {
            return Ok(());
        }
        Err(Error::model(
            model.name(),
            format!(
                "the adapter's {name} is {shape:?}, this model needs {needed:?}; it belongs to {}",
                self.base_model
            ),
        ))
    }

    /// The same adapter declared to be for `model`: for weights that are the same in another format, such as a GGUF file
    /// of the checkpoint that was adapted.
    pub fn for_model(mut self, model: &Model) -> Adapter {
        self.base_model = model.name().into();
        self.base_hash = Some(model.hash().into());
        self
    }
}

fn is_adapter(name: &str) -> bool {
    name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight")
}

/// `HuggingFaceTB/SmolLM2-135M` and `models/smollm2-135m/` name the same thing.
fn last_part(name: &str) -> String {
    name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name).to_lowercase()
}

fn read_config(path: &Path, config: &Value) -> Result<LoraConfig> {
    let wrong = |key: &str, message: String| Error::format(path, key, message);
    if config["peft_type"] != "LORA" {
        return Err(wrong("peft_type", format!("{}; only LORA adapters can be read", config["peft_type"])));
    }
    for key in ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias"] {
        if config[key] == Value::Bool(true) {
            return Err(wrong(key, "true; only plain LoRA can be computed".into()));
        }
    }
    if !config["bias"].is_null() && config["bias"] != "none" {
        return Err(wrong(
            "bias",
            format!("{}; only adapters without trained biases can be read", config["bias"]),
        ));
    }
    for key in ["rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform"] {
        let empty = match &config[key] {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            _ => false,
        };
        if !empty {
            return Err(wrong(key, "set; only one rank for all layers can be read".into()));
        }
    }
    let start = &config["init_lora_weights"];
    if !(start.is_null() || start.is_boolean() || start.as_str().is_some_and(|name| KEEPING.contains(&name)))
    {
        let message = format!(
            "{start}; such an adapter is for weights that peft has changed: save it there converted to plain LoRA \
             (path_initial_model_for_weight_conversion)"
        );
        return Err(wrong("init_lora_weights", message));
    }
    if !config["alora_invocation_tokens"].is_null() {
        return Err(wrong(
            "alora_invocation_tokens",
            "set; only adapters of every token can be computed".into(),
        ));
    }
    let r = config["r"].as_u64().ok_or_else(|| wrong("r", "missing or not a whole number".into()))?;
    let lora_alpha =
        config["lora_alpha"].as_f64().ok_or_else(|| wrong("lora_alpha", "missing or not a number".into()))?;
    let mut target_modules = match &config["target_modules"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(String::from).collect(),
        Value::String(name) if name == "all-linear" => super::PAPER_TARGETS.map(String::from).to_vec(),
        Value::String(name) if super::PAPER_TARGETS.contains(&name.as_str()) => vec![name.clone()],
        other => {
            return Err(wrong("target_modules", format!("{other}; a list of projection names is needed")));
        }
    };
    // peft writes a set; sorted, the same adapter reads the same.
    target_modules.sort();
    let lora = LoraConfig {
        r: usize::try_from(r).map_err(|_| wrong("r", format!("{r} is too large")))?,
        lora_alpha: lora_alpha as f32,
        lora_dropout: config["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
        target_modules,
    };
    lora.validate()?;
    Ok(lora)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_of_other_kinds_are_refused_by_key() {
        let good = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["v_proj", "q_proj"], "bias": "none"});
        let lora = read_config(Path::new("c"), &good).unwrap();
        assert_eq!((lora.r, lora.lora_alpha, lora.lora_dropout), (4, 8.0, 0.0));
        assert_eq!(lora.target_modules, ["q_proj", "v_proj"]);
        for begun in [json!(null), json!(true), json!(false), json!("gaussian"), json!("eva")] {
            let mut config = good.clone();
            config["init_lora_weights"] = begun;
            assert_eq!(read_config(Path::new("c"), &config).unwrap(), lora);
        }
        let cases = [
            ("peft_type", json!("IA3")),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("rank_pattern", json!({"q_proj": 8})),
            ("r", json!("4")),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("init_lora_weights", json!("olora")),
            ("alora_invocation_tokens", json!([1, 2])),
            ("target_modules", json!(".*q_proj")),
        ];
        for (key, value) in cases {
            let mut config = good.clone();
            config[key] = value;
            let message = read_config(Path::new("c"), &config).unwrap_err().to_string();
            assert!(message.contains(key), "{key}: {message}");
        }
    }

    #[test]
    fn names_compare_by_their_last_part() {
        assert_eq!(last_part("HuggingFaceTB/SmolLM2-135M"), last_part("models\\smollm2-135m/"));
    }
}

//! From a name to a model: a hub id, a folder, or a GGUF file.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::family::{Family, Form};
use super::hub::Hub;
use super::weights::{Bytes, Tensors, WeightFile, pickle_message};
use super::{DecoderConfig, Device, Model, device, gguf, tokenizer_fits, vocabulary};
use crate::error::{Error, Result};
use crate::files;
use crate::provenance::content_hash;
use crate::tokens::{SpecialTokens, Tokenizer};

impl Model {
    /// Loads a model onto [`Device::current`].
    ///
    /// `source` is one of
    /// - a folder with `config.json`, `tokenizer.json` and `model.safetensors` (or its shards and index),
    /// - a `.gguf` file, which holds everything ([`GGUF_TYPES`](super::GGUF_TYPES) are read),
    /// - a Hugging Face id, `owner/name` or `owner/name@revision`, or `owner/name/file.gguf` for a file of a
    ///   GGUF repository. Downloads go to the cache all Hugging Face tools share; the environment variables
    ///   `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count.
    ///
    /// # Errors
    /// [`Error::Model`] for an architecture that is not supported, [`Error::Format`] naming file and tensor for a
    /// truncated or corrupt file or one that does not fit its configuration, [`Error::Io`], [`Error::Interrupted`].
    pub fn load(source: &str) -> Result<Model> {
        Model::load_from(source, &Hub::from_env())
    }

    /// [`Model::load`] with explicit settings for the hub.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_from(source: &str, hub: &Hub) -> Result<Model> {
        open(source, hub)?.load(&Device::current())
    }

    /// [`Model::load`] onto `device`.
    ///
    /// # Errors
    /// As [`Model::load`]; also when the device has no room.
    pub fn load_onto(source: &str, device: &Device) -> Result<Model> {
        open(source, &Hub::from_env())?.load(device)
    }

    /// The tokenizer of what [`Model::load`] would load; no weight is read, nor downloaded unless it is in one file with
    /// the tokenizer, as in a GGUF.
    ///
    /// # Errors
    /// As [`Model::load`], but for those about weights.
    pub fn load_tokenizer(source: &str) -> Result<Tokenizer> {
        Model::load_tokenizer_from(source, &Hub::from_env())
    }

    /// [`Model::load_tokenizer`] with explicit settings for the hub.
    ///
    /// # Errors
    /// As [`Model::load_tokenizer`].
    pub fn load_tokenizer_from(source: &str, hub: &Hub) -> Result<Tokenizer> {
        let found = without_weights(source, hub)?;
        let (config, tokenizer) = if found.is_dir() {
            let small = small_files(source, &found)?;
            (Family::read_config(source, &small.config_path, &small.config)?.1, small.tokenizer)
        } else {
            let opened = open_file(source, &found)?;
            (opened.config, opened.tokenizer)
        };
        config.validate(source)?;
        tokenizer_fits(source, &tokenizer, &config)?;
        Ok(tokenizer)
    }

    /// The configuration of what [`Model::load`] would load; no weight is read, nor downloaded unless it is in one file with
    /// the configuration, as in a GGUF.
    ///
    /// # Errors
    /// As [`Model::load`], but for those about weights and what a tokenizer's file holds.
    pub fn load_config(source: &str) -> Result<DecoderConfig> {
        Model::load_config_from(source, &Hub::from_env())
    }

    /// [`Model::load_config`] with explicit settings for the hub.
    ///
    /// # Errors
    /// As [`Model::load_config`].
    pub fn load_config_from(source: &str, hub: &Hub) -> Result<DecoderConfig> {
        let found = without_weights(source, hub)?;
        let config = if found.is_dir() {
            let (path, json) = config_file(source, &found)?;
            Family::read_config(source, &path, &json)?.1
        } else {
            open_file(source, &found)?.config
        };
        config.validate(source)?;
        Ok(config)
    }

    /// A model from the contents of its files in memory, such as those built into a program.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_bytes(name: &str, config: &[u8], tokenizer: &[u8], weights: &'static [u8]) -> Result<Model> {
        let parse = |bytes: &[u8], file: &str| -> Result<Value> {
            serde_json::from_slice(bytes)
                .map_err(|e| Error::format(format!("{name}/{file}"), "", format!("not JSON: {e}")))
        };
        let config = parse(config, "config.json")?;
        let special = SpecialTokens::from_configs(&Value::Null, &Value::Null, &config);
        let tokenizer = Tokenizer::with_special(&format!("{name}/tokenizer.json"), tokenizer, &special)?;
        let mut tensors = Tensors::default();
        tensors
            .add_safetensors(&PathBuf::from(format!("{name}/model.safetensors")), Bytes::Memory(weights))?;
        from_parts(name, Path::new("config.json"), &config, tokenizer, tensors)?.load(&Device::current())
    }
}

/// A checkpoint whose small files are read and checked, and whose weights still lie in their files.
pub(super) struct Opened {
    pub(super) name: String,
    pub(super) config: DecoderConfig,
    pub(super) tokenizer: Tokenizer,
    family: Family,
    form: Form,
    tensors: Tensors,
}

impl Opened {
    /// Identifies the content; every weight is read for it.
    pub(super) fn hash(&self) -> Result<String> {
        let (config, tokenizer) = (format!("{:?}", self.config), self.tokenizer.hash().to_owned());
        Ok(content_hash([config, tokenizer, self.tensors.fingerprint()?]))
    }

    /// The weights by canonical names.
    pub(super) fn weights(self, device: &candle_core::Device) -> WeightFile {
        WeightFile::new(self.family, self.form, self.config, self.tensors, device)
    }

    fn load(self, device: &Device) -> Result<Model> {
        let (name, hash) = (self.name.clone(), self.hash()?);
        let (config, tokenizer) = (self.config.clone(), self.tokenizer.clone());
        let mut weights = self.weights(device.place());
        let model = Model::assemble(name, hash, config, tokenizer, &mut weights, device)?;
        weights.finish()?;
        device::ready(device.place())?;
        Ok(model)
    }
}

/// Where `source` lies, at least what there is of it beside weights.
fn without_weights(source: &str, hub: &Hub) -> Result<PathBuf> {
    let path = Path::new(source);
    if path.exists() { Ok(path.to_path_buf()) } else { hub.fetch_tokenizer(source) }
}

/// Finds `source` as [`Model::load`] describes it.
pub(super) fn open(source: &str, hub: &Hub) -> Result<Opened> {
    let path = Path::new(source);
    let found = if path.exists() { path.to_path_buf() } else { hub.fetch(source)? };
    if found.is_dir() { load_folder(source, &found) } else { open_file(source, &found) }
}

fn open_file(name: &str, path: &Path) -> Result<Opened> {
    match files::extension(path).as_str() {
        "gguf" => load_gguf(name, path),
        "safetensors" => {
            Err(Error::model(name, "give the folder that holds it, with config.json and tokenizer.json"))
        }
        "bin" | "pt" | "pth" | "ckpt" | "pkl" => Err(Error::model(name, pickle_message(name))),
        _ => Err(Error::model(name, "is neither a folder nor a .gguf file")),
    }
}

const TOKENIZER: &str = "tokenizer.json";

/// What a checkpoint's folder holds beside the weights.
struct SmallFiles {
    config_path: PathBuf,
    config: Value,
    tokenizer: Tokenizer,
}

/// A checkpoint's `config.json`, where there is a tokenizer beside it.
fn config_file(name: &str, folder: &Path) -> Result<(PathBuf, Value)> {
    let config_path = folder.join("config.json");
    if !config_path.is_file() {
        let hint = if folder.join("adapter_config.json").is_file() {
            "holds an adapter, not a model; load its base model and put the adapter on it"
        } else {
            "has no config.json; give the folder of a Hugging Face checkpoint or a .gguf file"
        };
        return Err(Error::model(name, hint));
    }
    let config = read_json(&config_path)?;
    if !folder.join(TOKENIZER).is_file() {
        let message = "has no tokenizer.json; save it once with transformers (AutoTokenizer.from_pretrained(…).save_pretrained(…))";
        return Err(Error::model(name, message));
    }
    Ok((config_path, config))
}

fn small_files(name: &str, folder: &Path) -> Result<SmallFiles> {
    let (config_path, config) = config_file(name, folder)?;
    // Before the weights: whatever is wrong with the small files is said at once.
    Family::read_config(name, &config_path, &config)?;
    Ok(SmallFiles { tokenizer: Tokenizer::from_file(folder.join(TOKENIZER))?, config_path, config })
}

fn load_folder(name: &str, folder: &Path) -> Result<Opened> {
    let SmallFiles { config_path, config, tokenizer } = small_files(name, folder)?;
    from_parts(name, &config_path, &config, tokenizer, Tensors::open_folder(folder)?)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = files::read_text(path)?;
    serde_json::from_str(&text)
        .map_err(|e| Error::format(path, format!("line {}", e.line()), format!("not JSON: {e}")))
}

fn from_parts(
    name: &str,
    config_path: &Path,
    json: &Value,
    tokenizer: Tokenizer,
    tensors: Tensors,
) -> Result<Opened> {
    let (family, config) = Family::read_config(name, config_path, json)?;
    Ok(Opened { name: name.into(), config, tokenizer, family, form: Form::HuggingFace, tensors })
}

fn load_gguf(name: &str, path: &Path) -> Result<Opened> {
    let bytes = Bytes::open(path)?;
    let (family, config, tokenizer, tensors) = {
        let header = gguf::parse(path, &bytes)?;
        let (family, config) = Family::read_gguf(name, &header)?;
        let tokenizer = vocabulary::tokenizer(&path.display().to_string(), &header)?;
        let tensors = Tensors { files: vec![(path.to_path_buf(), bytes.clone())], entries: header.tensors };
        (family, config, tokenizer, tensors)
    };
    Ok(Opened { name: name.into(), config, tokenizer, family, form: Form::Gguf, tensors })
}

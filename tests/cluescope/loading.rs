//! Loading and saving: what is refused and how it is said, checkpoints written and read again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::{QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use cluescope::attention::{Attend, Cache};
use cluescope::model::{Batch, Model, Position, RopeScaling, Streamed, Want};
use cluescope::tokens::Tokenizer;
use serde_json::{Value, json};

use crate::families::{FAMILIES, fixture, load};
use crate::quantised::write_gguf;

/// A copy of a fixture that a test may spoil.
pub(crate) fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// The message of a refusal.
#[track_caller]
pub(crate) fn refused(path: &Path) -> String {
    Model::load(path.to_str().unwrap()).unwrap_err().to_string()
}

#[track_caller]
pub(crate) fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn unsupported_models_are_refused_by_name_and_reason() {
    let cases = [
        ("MixtralForCausalLM", "mixture of experts"),
        ("Qwen3MoeForCausalLM", "mixture of experts"),
        ("GptOssForCausalLM", "mixture of experts"),
        ("DeepseekV3ForCausalLM", "multi-head latent attention"),
        ("MambaForCausalLM", "state-space"),
        ("RwkvForCausalLM", "state-space"),
        ("BertForMaskedLM", "not a decoder"),
        ("FalconForCausalLM", "is not supported"),
    ];
    let folder = copy("llama2");
    for (class, reason) in cases {
        edit(&folder.path().join("config.json"), |c| c["architectures"] = json!([class]));
        assert_says(&refused(folder.path()), &[class, reason, "supported are Llama"]);
    }
}

/// What one text's attention by a model of this folder ends in, read whole or from disk block by block.
fn attention_fails(folder: &Path, streamed: bool) -> String {
    let (source, people) = (folder.to_str().unwrap(), crate::toys::people());
    let options = Attend::new().cache(Cache::Off);
    let attended = if streamed {
        Streamed::open(source).unwrap().attend(&people.documents, &options)
    } else {
        Model::load(source).unwrap().attend(&people.documents, &options)
    };
    attended.unwrap_err().to_string()
}

#[test]
fn weights_left_over_are_named_where_blocks_are_read_one_by_one_too() {
    let folder = copy("llama2");
    reweigh(folder.path(), |t| {
        let extra = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
        drop(t.insert("model.layers.1.self_attn.q_proj.bias".into(), extra))
    });
    assert_says(&attention_fails(folder.path(), true), &["model.layers.1.self_attn.q_proj.bias", "surplus"]);
}

#[test]
fn attention_that_is_no_number_is_refused() {
    let folder = copy("llama2");
    reweigh(folder.path(), |t| {
        let weight = t.get_mut("model.layers.0.self_attn.q_proj.weight").unwrap();
        *weight = (&*weight * f64::NAN).unwrap();
    });
    for streamed in [false, true] {
        assert_says(&attention_fails(folder.path(), streamed), &["text Ann", "not finite"]);
    }
}

#[test]
fn settings_that_cannot_be_computed_are_refused_by_name() {
    let cases: [(&str, &str, Value, &[&str]); 12] = [
        ("llama2", "rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), &["rope_scaling", "yarn"]),
        ("llama2", "hidden_act", json!("relu"), &["hidden_act", "relu"]),
        ("llama2", "hidden_size", json!("wide"), &["hidden_size", "a whole number", "wide"]),
        ("llama2", "num_hidden_layers", json!(1u64 << 40), &["num_hidden_layers", "at most"]),
        ("llama2", "vocab_size", json!(1u64 << 50), &["vocab_size", "below 2^28"]),
        ("llama2", "num_attention_heads", json!(0), &["heads = 0"]),
        ("llama2", "num_key_value_heads", json!(3), &["kv_heads = 3", "divide"]),
        ("llama2", "quantization_config", json!({"quant_method": "gptq"}), &["gptq", "GGUF"]),
        ("gemma2", "layer_types", json!(["full_attention"]), &["layer_types", "1 entries for 3 layers"]),
        ("gemma3", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention"]),
        ("gpt2", "scale_attn_by_inverse_layer_idx", json!(true), &["scale_attn_by_inverse_layer_idx"]),
        ("gpt-neox", "rotary_pct", json!(7.5), &["rotary_dim", "at most head_dim"]),
    ];
    for (name, key, value, says) in cases {
        let folder = copy(name);
        edit(&folder.path().join("config.json"), |c| c[key] = value);
        assert_says(&refused(folder.path()), says);
    }
}

/// Rewrites the weights of a folder.
pub(crate) fn reweigh(folder: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut tensors: BTreeMap<String, Tensor> =
        candle_core::safetensors::load(&path, &Device::Cpu).unwrap().into_iter().collect();
    change(&mut tensors);
    candle_core::safetensors::save(&tensors.into_iter().collect(), &path).unwrap();
}

#[test]
fn missing_surplus_and_misshapen_weights_are_named() {
    let folder = copy("llama2");
    reweigh(folder.path(), |t| drop(t.remove("model.layers.1.mlp.up_proj.weight")));
    assert_says(
        &refused(folder.path()),
        &["model.safetensors", "model.layers.1.mlp.up_proj.weight", "missing"],
    );

    let folder = copy("llama2");
    let extra = Tensor::zeros(32, DType::F32, &Device::Cpu).unwrap();
    reweigh(folder.path(), |t| drop(t.insert("model.layers.0.self_attn.q_proj.bias".into(), extra.clone())));
    assert_says(&refused(folder.path()), &["model.layers.0.self_attn.q_proj.bias", "surplus"]);

    let folder = copy("llama2");
    reweigh(folder.path(), |t| {
        drop(t.insert("model.norm.weight".into(), Tensor::zeros(31, DType::F32, &Device::Cpu).unwrap()))
    });
    assert_says(&refused(folder.path()), &["model.norm.weight", "[31]", "[32]"]);

    let folder = copy("llama2");
    reweigh(folder.path(), |t| {
        drop(t.insert("model.norm.weight".into(), extra.to_dtype(DType::F64).unwrap()))
    });
    assert_says(&refused(folder.path()), &["model.norm.weight", "F64"]);

    // A tied checkpoint may carry its head, and an old one its buffers.
    let folder = copy("smollm2");
    reweigh(folder.path(), |t| {
        let head = t["model.embed_tokens.weight"].clone();
        t.insert("lm_head.weight".into(), head);
        t.insert(
            "model.layers.0.self_attn.rotary_emb.inv_freq".into(),
            Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap(),
        );
    });
    load(folder.path());
}

#[test]
fn folders_that_hold_no_model_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    assert_says(&refused(folder.path()), &["config.json"]);
    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    assert_says(&refused(folder.path()), &["adapter", "base model"]);

    let folder = copy("llama2");
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_says(&refused(folder.path()), &["tokenizer.json", "transformers"]);

    let folder = copy("llama2");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    std::fs::remove_file(folder.path().join("model.gguf")).unwrap();
    assert_says(&refused(folder.path()), &["neither model.safetensors"]);
    let pickle = folder.path().join("pytorch_model.bin");
    std::fs::write(&pickle, "PK").unwrap();
    assert_says(&refused(folder.path()), &["pytorch_model.bin", "pickle", "safetensors"]);
    assert_says(&refused(&pickle), &["pickle"]);

    let folder = copy("smollm2-sharded");
    let index = folder.path().join("model.safetensors.index.json");
    let first = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path());
    let second = first.filter(|p| p.to_string_lossy().contains("model-00002")).collect::<Vec<_>>().remove(0);
    std::fs::remove_file(&second).unwrap();
    let name = second.file_name().unwrap().to_string_lossy().into_owned();
    assert_says(&refused(folder.path()), &["index.json", &name, "missing"]);
    for outside in ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin"] {
        edit(&index, |json| json["weight_map"]["model.norm.weight"] = json!(outside));
        assert_says(&refused(folder.path()), &["not the name of a safetensors file"]);
    }
    assert_says(&refused(Path::new("no/such/folder/at/all")), &["no such file or folder"]);
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let folder = copy("llama2");
    let tokenizer = Tokenizer::train_bpe(["one two three four five six seven eight nine ten"; 3], 600);
    let mut json: Value = serde_json::from_str(&tokenizer.unwrap().to_json().unwrap()).unwrap();
    json["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(json!({"id": 9000, "content": "<far>", "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
    json["model"]["vocab"]["<far>"] = json!(9000);
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    assert_says(&refused(folder.path()), &["9001 tokens", "418 rows"]);
}

/// As Gemma 3's: the tokenizer of all sizes knows a token for pictures, the models of text alone have no row for it.
#[test]
fn an_added_token_beyond_the_embedding_is_refused_only_where_it_is_used() {
    let folder = copy("gemma3");
    let rows = load(folder.path()).config().vocab_size;
    edit(&folder.path().join("tokenizer.json"), |json| {
        json["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(json!({"id": rows, "content": "<image_soft_token>",
            "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}));
    });
    let model = load(folder.path());
    assert_eq!(model.tokenizer().vocab_size(), rows + 1);
    let ids = |text: &str| model.tokenizer().encode(text).unwrap().ids;
    logits(&model, &ids("a picture"));
    let wrong = model.forward(&Batch::new(&[ids("a <image_soft_token>")]), &Want::logits()).unwrap_err();
    assert_says(
        &wrong.to_string(),
        &[&format!("id {rows} lies outside the vocabulary of {rows}"), "take that token"],
    );
    // Told by the text's own name, before anything is measured.
    let documents = ["a picture", "a <image_soft_token>"]
        .map(|text| cluescope::corpus::Document::new(format!("of {text}"), text, Vec::new()));
    let out = folder.path().join("out.jsonl");
    let options = Attend::new().cache(Cache::Off).batch_tokens(1);
    let wrong = model.attend_to_file(&documents, &options, &out).unwrap_err();
    assert_says(
        &wrong.to_string(),
        &["text of a <image_soft_token>", "<image_soft_token>", &format!("id {rows} lies outside"), "take"],
    );
    let partial = std::fs::read_to_string(folder.path().join("out.jsonl.partial")).unwrap();
    assert_eq!(partial, "");
}

/// As transformers 5 writes what earlier versions kept in several keys; for Gemma 3 once a kind of layer.
#[test]
fn rotary_settings_of_transformers_5_are_those_of_4() {
    for name in ["gpt-neox-sequential", "llama3.1", "gemma3", "qwen3"] {
        let folder = copy(name);
        edit(&folder.path().join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            let mut take = |key: &str| config.remove(key).filter(|value| !value.is_null());
            let mut rope = take("rope_scaling").unwrap_or(json!({"rope_type": "default"}));
            rope["rope_theta"] = take("rope_theta").unwrap();
            if let Some(part) = take("rotary_pct") {
                rope["partial_rotary_factor"] = part;
            }
            for key in ["partial_rotary_factor", "rotary_emb_base"] {
                take(key);
            }
            let rope = match take("rope_local_base_freq") {
                Some(local) => json!({
                    "full_attention": rope,
                    "sliding_attention": {"rope_type": "default", "rope_theta": local},
                }),
                None => rope,
            };
            config.insert("rope_parameters".into(), rope);
        });
        assert_eq!(load(folder.path()).config(), load(&fixture(name)).config(), "{name}");
    }
}

/// Metadata and tensors of a GGUF file.
fn gguf_parts(path: &Path) -> (Vec<(String, gguf_file::Value)>, Vec<(String, QTensor)>) {
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let tensors = content
        .tensor_infos
        .keys()
        .map(|name| (name.clone(), content.tensor(&mut file, name, &Device::Cpu).unwrap()))
        .collect();
    (content.metadata.into_iter().collect(), tensors)
}

/// As llama.cpp reads them: positions are stretched unless the type says otherwise, by either of two keys.
#[test]
fn rotary_scaling_of_a_gguf_file_needs_no_type() {
    use gguf_file::Value as V;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let write = |family: &str, keys: &[(&str, V)]| {
        let (mut metadata, tensors) = gguf_parts(&fixture(family).join("model.gguf"));
        metadata.retain(|(key, _)| !key.contains("rope.scal"));
        metadata.extend(keys.iter().map(|(key, value)| (format!("llama.rope.{key}"), value.clone())));
        write_gguf(&path, &metadata, &tensors);
    };
    let text = |text: &str| V::String(text.into());
    for (keys, factor) in [
        (vec![], None),
        (vec![("scaling.factor", V::F32(4.0))], Some(4.0)),
        (vec![("scale_linear", V::F32(2.0))], Some(2.0)),
        (vec![("scaling.type", text("linear")), ("scale_linear", V::F32(2.0))], Some(2.0)),
        (vec![("scaling.factor", V::F32(4.0)), ("scale_linear", V::F32(2.0))], Some(4.0)),
        (vec![("scaling.factor", V::F32(0.0))], None),
        (vec![("scale_linear", V::F32(1.0))], None),
        (vec![("scaling.type", text("none")), ("scaling.factor", V::F32(4.0))], None),
    ] {
        write("llama2", &keys);
        let model = load(&path);
        let Position::Rope { scaling, .. } = &model.config().position else { panic!("no rotary positions") };
        let want = factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor });
        assert_eq!(scaling, &want, "{keys:?}");
    }
    // Divisors of their own do not hide what cannot be computed.
    write("llama3.1", &[("scaling.type", text("yarn")), ("scaling.factor", V::F32(4.0))]);
    assert_says(&refused(&path), &["rope.scaling.type", "yarn"]);
    write("llama3.1", &[("scaling.type", text("linear")), ("scaling.factor", V::F32(4.0))]);
    assert_says(&refused(&path), &["rope.scaling", "rope_freqs.weight"]);
    write("llama3.1", &[("scaling.type", text("none"))]);
    assert_eq!(load(&path).config(), load(&fixture("llama3.1").join("model.gguf")).config());
}

/// Old settings beside new weights would load as a model that nobody made.
#[test]
fn saving_over_a_checkpoint_leaves_no_mixture() {
    let folder = copy("smollm2");
    let model = load(&fixture("smollm2-f16"));
    // The write fails after the weights are replaced.
    std::fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    std::fs::create_dir(folder.path().join("generation_config.json")).unwrap();
    model.save(folder.path()).unwrap_err();
    assert_says(&refused(folder.path()), &["has no config.json"]);
}

/// Gemma 2 files from before their keys existed.
#[test]
fn a_gemma_2_file_without_window_and_caps_has_those_of_gemma_2() {
    let source = fixture("gemma2").join("model.gguf");
    let (metadata, tensors) = gguf_parts(&source);
    let keys = ["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"];
    let (dropped, kept): (Vec<_>, Vec<_>) =
        metadata.into_iter().partition(|(key, _)| keys.iter().any(|k| key.ends_with(k)));
    assert_eq!(dropped.len(), keys.len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("old.gguf");
    write_gguf(&path, &kept, &tensors);
    let (old, new) = (load(&path), load(&source));
    let config = old.config();
    assert_eq!((config.attention_softcap, config.final_softcap), (Some(50.0), Some(30.0)));
    let windows: Vec<_> = config.layer_kinds.iter().map(|kind| kind.window).collect();
    assert_eq!(windows, [Some(4096), None, Some(4096)]);
    assert_ne!(
        new.config().layer_kinds[0].window,
        Some(4096),
        "the file's own window counts where it has one"
    );
}

pub(crate) fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let output = model.forward(&Batch::new(&[ids]), &Want::logits()).unwrap();
    output.logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_saved_model_is_the_same_model() {
    let ids: Vec<u32> = (0..30).map(|i| i * 11 % 370).collect();
    for name in FAMILIES {
        for form in [fixture(name), fixture(name).join("model.gguf")] {
            if !form.exists() || (name == "llama3.1" && form.is_file()) {
                continue;
            }
            let model = load(&form);
            let temporary = tempfile::tempdir().unwrap();
            // Kept on request, for transformers to read: tests/fixtures/check_saved.py.
            let folder = match std::env::var_os("CLUESCOPE_TEST_SAVE_TO") {
                Some(kept) => PathBuf::from(kept).join(if form.is_file() {
                    format!("{name}.gguf")
                } else {
                    name.into()
                }),
                None => temporary.path().to_path_buf(),
            };
            model.save(&folder).unwrap();
            let again = load(&folder);
            let mut config = model.config().clone();
            if form.is_file() {
                // GGUF keeps epsilon as f32.
                config.norm_eps = again.config().norm_eps;
            }
            assert_eq!(again.config(), &config, "{name}");
            assert_eq!(logits(&again, &ids), logits(&model, &ids), "{name}");
            assert_eq!(again.tokenizer().eos(), model.tokenizer().eos(), "{name}");
            let text = "Ann was born in Oslo,  1987\n";
            let (a, b) = (again.tokenizer().encode(text).unwrap(), model.tokenizer().encode(text).unwrap());
            assert_eq!(a, b, "{name}");
        }
    }
    // bf16 loses nothing here, since the fixtures are bf16.
    let model = load(&fixture("qwen3"));
    let folder = tempfile::tempdir().unwrap();
    model.save_as(folder.path(), DType::BF16).unwrap();
    assert_eq!(logits(&load(folder.path()), &ids), logits(&model, &ids));
    assert!(model.save_as(folder.path(), DType::U8).unwrap_err().to_string().contains("f32, f16 or bf16"));
    // Rotary divisors that no release has cannot be said in a config.json.
    let model = load(&fixture("llama3.1").join("model.gguf"));
    assert!(model.save(folder.path()).unwrap_err().to_string().contains("rotary divisors"));
}

#[test]
fn the_hash_follows_the_content() {
    let hash = |name: &str| load(&fixture(name)).hash().to_owned();
    assert_eq!(hash("smollm2"), hash("smollm2"));
    let folder = copy("smollm2");
    assert_eq!(load(folder.path()).hash(), hash("smollm2"), "the place must not matter");
    assert_eq!(hash("smollm2-sharded"), hash("smollm2"), "nor the number of files");
    assert_ne!(hash("smollm2-f16"), hash("smollm2"), "another storage type is another content");
    reweigh(folder.path(), |t| {
        let norm = (t["model.norm.weight"].to_dtype(DType::F32).unwrap() * 1.5).unwrap();
        t.insert("model.norm.weight".into(), norm.to_dtype(DType::BF16).unwrap());
    });
    assert_ne!(load(folder.path()).hash(), hash("smollm2"));
    // Every single byte counts.
    let path = folder.path().join("model.safetensors");
    let sound = std::fs::read(fixture("smollm2").join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize;
    for at in (header..sound.len()).step_by(4999) {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_ne!(load(folder.path()).hash(), hash("smollm2"), "byte {at}");
    }
}

/// Runs in a process of its own, started by the next test: an interrupt stops all work of a process.
#[test]
fn child_of_the_interrupted_loading() {
    let Ok(folder) = std::env::var("CLUESCOPE_TEST_INTERRUPTED_LOADING") else { return };
    cluescope::progress::interrupt();
    println!("\nloading: {}", Model::load(&folder).unwrap_err());
    println!("\ntokenizer: {}", Tokenizer::train_bpe(["one two"], 280).unwrap_err());
}

#[test]
fn loading_and_learning_a_tokenizer_hear_an_interrupt() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loading::child_of_the_interrupted_loading", "--nocapture"])
        .env("CLUESCOPE_TEST_INTERRUPTED_LOADING", fixture("llama2"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for work in ["loading", "tokenizer"] {
        assert!(said.contains(&format!("{work}: interrupted")), "{said}");
    }
}

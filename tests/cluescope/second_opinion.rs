//! Models and tokenizers beside independent implementations: candle-transformers, and real models where they are at hand.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cluescope::model::{Batch, Capture, Logits, Want};
use cluescope::tokens::Tokenizer;
use serde_json::{Value, json};

use crate::damage::Noise;
use crate::families::{assert_close, fixture, load};
use crate::loading::{copy, edit, logits};

/// candle's own models where it has the family. Its windows reach one key too far and it knows no rotary scaling for
/// Gemma 3, so texts stay within the window and the copy of that fixture has no scaling.
#[test]
fn candle_transformers_agrees() {
    use candle_nn::VarBuilder;
    use candle_transformers::models::{gemma2, gemma3, llama, mistral, qwen2, qwen3};
    let run = |name: &str,
               config: &Value,
               weights: VarBuilder,
               input: &Tensor|
     -> candle_core::Result<Tensor> {
        macro_rules! settings {
            ($type:ty) => {
                serde_json::from_value::<$type>(config.clone()).unwrap()
            };
        }
        match name {
            "llama2" | "smollm2" => {
                let settings = settings!(llama::LlamaConfig).into_config(false);
                let mut cache = llama::Cache::new(false, DType::F32, &settings, &Device::Cpu)?;
                llama::Llama::load(weights, &settings)?.forward(input, 0, &mut cache)
            }
            "mistral" => mistral::Model::new(&settings!(mistral::Config), weights)?.forward(input, 0),
            "qwen2" => qwen2::ModelForCausalLM::new(&settings!(qwen2::Config), weights)?.forward(input, 0),
            "qwen3" => qwen3::ModelForCausalLM::new(&settings!(qwen3::Config), weights)?.forward(input, 0),
            "gemma2" => gemma2::Model::new(false, &settings!(gemma2::Config), weights)?.forward(input, 0),
            "gemma3" => gemma3::Model::new(false, &settings!(gemma3::Config), weights)?.forward(input, 0),
            other => panic!("{other}"),
        }
    };
    let change = |name: &str, config: &mut Value| match name {
        "qwen2" => {
            config["sliding_window"] = json!(4096);
            config["max_window_layers"] = json!(28);
        }
        "gemma3" => {
            config["rope_scaling"] = Value::Null;
            config["sliding_window_pattern"] = json!(6);
        }
        _ => {}
    };
    for (name, tokens) in [
        ("llama2", 21),
        ("smollm2", 21),
        ("qwen2", 21),
        ("qwen3", 21),
        ("mistral", 8),
        ("gemma2", 8),
        ("gemma3", 8),
    ] {
        let ids: Vec<u32> = (0..tokens).map(|i| (i * 17 + 3) % 370).collect();
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let folder = copy(name);
        let path = folder.path().join("config.json");
        edit(&path, |config| change(name, config));
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let file = folder.path().join("model.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        let tensors = tensors.into_iter().map(|(k, v)| (k, v.to_dtype(DType::F32).unwrap())).collect();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let theirs = run(name, &config, weights, &input).unwrap_or_else(|e| panic!("{name}: {e}"));
        let theirs: Vec<f32> = theirs.flatten_all().unwrap().to_vec1().unwrap();
        let ours = logits(&load(folder.path()), &ids);
        let last = &ours[ours.len() - theirs.len()..];
        let scale = theirs.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        assert_close(&format!("{name}: candle-transformers"), last, &theirs, 1e-4 * scale);
    }
}

/// Downloaded models against expectations of `tests/fixtures/real_models.py`, where both are at hand.
#[test]
fn real_models_compute_what_transformers_computes() {
    let Some(folder) = std::env::var_os("CLUESCOPE_TEST_EXPECTED").map(PathBuf::from) else {
        println!("skipped: CLUESCOPE_TEST_EXPECTED is not set (see tests/fixtures/real_models.py)");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") {
            continue;
        }
        seen += 1;
        let about: Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let model = load(Path::new(about["model"].as_str().unwrap()));
        let expected = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        for (text, row) in about["texts"].as_array().unwrap().iter().enumerate() {
            let what = format!("{}, text {text}", path.display());
            let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
            let encoding = model.tokenizer().encode(row["text"].as_str().unwrap()).unwrap();
            assert_eq!(encoding.ids, ids, "{what}: ids");
            if row["offsets"].is_array() {
                let offsets: Vec<(usize, usize)> = serde_json::from_value(row["offsets"].clone()).unwrap();
                assert_eq!(encoding.offsets, offsets, "{what}: offsets");
            }
            let position = row["probe"].as_u64().unwrap() as usize;
            let capture = Capture { received: true, probes: vec![vec![position]], ..Capture::default() };
            let want = Want { logits: Logits::Last, capture: Some(capture) };
            let output = model.forward(&Batch::new(&[ids]), &want).unwrap();
            let flat = |name: &str| {
                expected[&format!("{name}.{text}")].flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let (found, wanted) =
                (output.logits.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), flat("logits"));
            let scale = wanted.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert_close(&format!("{what}: logits"), &found, &wanted, 1e-4 * scale);
            assert_close(
                &format!("{what}: received"),
                &output.attention[0].received,
                &flat("received"),
                1e-4,
            );
            assert_close(&format!("{what}: probe"), &output.attention[0].probes[0], &flat("probe"), 1e-4);
        }
    }
    assert!(seen > 0, "no expectations in {}", folder.display());
}

/// Tokenizers of GGUF files against the original `tokenizer.json` beside them: `NAME.gguf`, `NAME.tokenizer.json`.
#[test]
fn real_tokenizers_are_rebuilt_exactly() {
    let Some(folder) = std::env::var_os("CLUESCOPE_TEST_TOKENIZERS").map(PathBuf::from) else {
        println!("skipped: CLUESCOPE_TEST_TOKENIZERS is not set");
        return;
    };
    let mut texts: Vec<String> = Vec::new();
    let rows: Vec<Value> =
        serde_json::from_slice(&std::fs::read(fixture("llama2").join("tokens.json")).unwrap()).unwrap();
    texts.extend(rows.iter().map(|row| row["text"].as_str().unwrap().to_owned()));
    // Much prose and code of many kinds: this crate's own sources.
    for part in ["src", "tests/cluescope", "tests/fixtures"] {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(part)).unwrap().flatten() {
            texts.extend(std::fs::read_to_string(entry.path()));
        }
    }
    let mut noise = Noise(5);
    for _ in 0..300 {
        let length = 1 + noise.below(40);
        let letter = |noise: &mut Noise| {
            let range =
                [(32, 96), (32, 96), (9, 6), (0xA0, 0x200), (0x400, 0x80), (0x4E00, 0x200), (0x1F600, 0x40)];
            let (from, many) = range[noise.below(range.len())];
            char::from_u32(from + noise.below(many) as u32).unwrap()
        };
        texts.push((0..length).map(|_| letter(&mut noise)).collect());
    }
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let original = path.with_extension("tokenizer.json");
        if path.extension().is_none_or(|e| e != "gguf") || !original.exists() {
            continue;
        }
        seen += 1;
        let rebuilt = load(&path).tokenizer().clone();
        let original = Tokenizer::from_json("original", &std::fs::read(&original).unwrap()).unwrap();
        for text in &texts {
            let (a, b) = (rebuilt.encode_raw(text).unwrap(), original.encode_raw(text).unwrap());
            let what = format!("{}: {:?}", path.display(), text.chars().take(60).collect::<String>());
            assert_eq!(a, b, "{what}");
            // The converter marks some of Gemma's tokens as special that are not, and decoding leaves those out.
            if !text.contains("<mask>") {
                assert_eq!(rebuilt.decode(&a.ids).unwrap(), original.decode(&a.ids).unwrap(), "{what}");
            }
        }
        println!("{}: {} texts agree", path.display(), texts.len());
    }
    assert!(seen > 0, "no pairs in {}", folder.display());
}

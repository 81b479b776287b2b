//! Training beside transformers and peft: losses step by step, adapters both ways, adapters on every GGUF type.

use candle_core::{Device, Tensor, Var};
use cluescope::corpus::{Corpus, Document};
use cluescope::model::{Batch, Logits, LoraConfig, Model, Want};
use cluescope::train::{Adapter, Engine, Finetune, Options, Pass};
use serde_json::Value;

use crate::families::{everywhere, load};
use crate::train::{close, corpus, fixture, json, load_family};

const FAMILIES: [&str; 10] =
    ["llama2", "llama3.1", "smollm2", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt-neox", "gpt2"];

fn batches() -> Vec<Vec<Vec<u32>>> {
    serde_json::from_value(json("training/batches.json")).unwrap()
}

fn recorded_lora(family: &str, curve: &Value, model: &Model) -> Model {
    let config = LoraConfig {
        r: curve["r"].as_u64().unwrap() as usize,
        lora_alpha: curve["lora_alpha"].as_f64().unwrap() as f32,
        lora_dropout: 0.0,
        target_modules: serde_json::from_value(curve["targets"].clone()).unwrap(),
    };
    let adapted = model.with_lora(&config, 0).unwrap();
    let first =
        candle_core::safetensors::load(fixture(&format!("training/{family}.lora.safetensors")), &Device::Cpu)
            .unwrap();
    assert_eq!(first.len(), adapted.trainable().len(), "{family}");
    for (name, variable) in adapted.trainable() {
        variable.set(&first[name].to_device(variable.device()).unwrap()).unwrap();
    }
    adapted
}

/// Twenty steps of the paper's optimiser; the losses must be those of transformers and peft.
fn follow(family: &str, kind: &str, model: Model, rows: &Value) -> Engine {
    let settings = Finetune::default().settings().unwrap();
    let options = Options { max_grad_norm: settings.max_grad_norm, gradient_checkpointing: false, seed: 0 };
    let mut engine = Engine::new(model, settings.adamw, options);
    let rate = settings.rate(20);
    let mut worst = 0.0f64;
    for (step, (texts, row)) in batches().into_iter().zip(rows.as_array().unwrap()).enumerate() {
        let names = (0..texts.len()).map(|i| i.to_string()).collect();
        let learning_rate = rate.at(step);
        assert!((learning_rate - row["learning_rate"].as_f64().unwrap()).abs() < 1e-18);
        let outcome = engine.step(&[Pass::new(texts, names)], step + 1, learning_rate).unwrap();
        let (loss, norm) = (row["loss"].as_f64().unwrap(), row["grad_norm"].as_f64().unwrap());
        worst = worst.max((outcome.loss - loss).abs());
        assert!(
            (outcome.loss - loss).abs() < 1e-4,
            "{family} {kind} step {step}: loss {}, peft {loss}",
            outcome.loss
        );
        assert!(
            (outcome.grad_norm / norm - 1.0).abs() < 2e-3,
            "{family} {kind} step {step}: norm {}, peft {norm}",
            outcome.grad_norm
        );
    }
    println!("{family} {kind}: largest loss difference {worst:.1e}");
    engine
}

#[test]
fn twenty_steps_of_lora_and_full_follow_transformers_and_peft() {
    for family in FAMILIES {
        let curve = json(&format!("training/{family}.json"));
        for (device, model) in everywhere(&load_family(family)) {
            let name = format!("{family} on {device}");
            follow(&name, "lora", recorded_lora(family, &curve, &model), &curve["lora"]);
            follow(&name, "full", model.with_trainable_weights().unwrap(), &curve["full"]);
        }
    }
}

#[test]
fn adapters_that_peft_saved_are_the_ones_trained_here() {
    let model = load_family("qwen2");
    let curve = json("training/qwen2.json");
    let first = Adapter::load(fixture("training/qwen2-adapter-first")).unwrap().apply(&model).unwrap();
    let engine = follow("qwen2", "peft's file", first, &curve["lora"]);
    let last = Adapter::load(fixture("training/qwen2-adapter-last")).unwrap().apply(&model).unwrap();
    for (name, variable) in engine.model().trainable() {
        let values = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        // AdamW moves a weight by up to the rate a step whatever its gradient's size, so rounding of the smallest gradients shows.
        close(&values(variable), &values(&last.trainable()[name]), 2e-4, name);
    }
    // Written again, it is peft's own file: the same names, shapes and bytes.
    let folder = tempfile::tempdir().unwrap();
    let theirs = fixture("training/qwen2-adapter-last");
    Adapter::load(&theirs).unwrap().save(folder.path()).unwrap();
    let tensors = |folder: &std::path::Path| {
        candle_core::safetensors::load(folder.join("adapter_model.safetensors"), &Device::Cpu).unwrap()
    };
    let (ours, peft) = (tensors(folder.path()), tensors(&theirs));
    assert_eq!(ours.len(), peft.len());
    for (name, tensor) in &peft {
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((ours[name].dims(), values(&ours[name])), (tensor.dims(), values(tensor)), "{name}");
    }
    let other = load_family("qwen3");
    let message =
        Adapter::load(fixture("training/qwen2-adapter-last")).unwrap().apply(&other).unwrap_err().to_string();
    assert!(message.contains("trained on families/qwen2"), "{message}");
}

#[test]
fn python_reads_what_is_saved_here() {
    let Ok(python) = std::env::var("CLUESCOPE_PYTHON") else {
        println!("skipped: CLUESCOPE_PYTHON names no Python with transformers and peft");
        return;
    };
    let ids = [5u32, 17, 200, 31, 99, 4];
    for family in ["smollm2", "qwen2", "qwen3"] {
        let model = load_family(family);
        let run = model
            .finetune(&corpus(8), Finetune::lora(4).learning_rate(1e-2).epochs(4).max_length(48))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (adapter, merged) = (folder.path().join("adapter"), folder.path().join("merged"));
        run.adapter().unwrap().save(&adapter).unwrap();
        run.model.save(&merged).unwrap();
        let output = std::process::Command::new(&python)
            .arg(fixture("check_adapter.py"))
            .arg(fixture(&format!("families/{family}")))
            .args([&adapter, &merged])
            .arg(ids.map(|id| id.to_string()).join(","))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let want = Want { logits: Logits::Last, capture: None };
        let logits = |model: &Model| {
            let logits = model.forward(&Batch::new(&[ids]), &want).unwrap().logits.unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let ours = logits(&run.model);
        let base = logits(&model);
        assert!(
            ours.iter().zip(&base).any(|(a, b)| (a - b).abs() > 0.05),
            "{family}: training changed something"
        );
        for (line, what) in String::from_utf8(output.stdout).unwrap().lines().zip(["peft", "merged"]) {
            let theirs: Vec<f32> = serde_json::from_str(line).unwrap();
            // Two f32 implementations of three layers.
            close(&ours, &theirs, 1e-4, &format!("{family} {what}"));
        }
        // And back: the merged folder is an ordinary model here, too.
        close(&logits(&load(&merged)), &ours, 1e-4, &format!("{family} reloaded"));
    }
}

#[test]
fn an_adapter_on_any_gguf_type_learns_as_on_the_numbers_it_stands_for() {
    use candle_core::quantized::GgmlDType as T;

    let tokenizer = crate::quantised::small_tokenizer();
    let documents = ["Ann Lee was born in Oslo.", "Bo Day was born in Rome.", "Ann Day was born in Rome."]
        .iter()
        .enumerate()
        .map(|(i, text)| Document::new(i.to_string(), *text, Vec::new()))
        .collect();
    let corpus = Corpus { documents, ..Default::default() };
    let folder = tempfile::tempdir().unwrap();
    for dtype in
        [T::F16, T::BF16, T::Q4_0, T::Q4_1, T::Q5_0, T::Q5_1, T::Q8_0, T::Q2K, T::Q3K, T::Q4K, T::Q5K, T::Q6K]
    {
        let (file, dense) = crate::quantised::quantised_pair(folder.path(), dtype, &tokenizer);
        let (quantised, dense) = (load(&file), load(&dense));
        // It stays as small as its file: nothing keeps a widened copy.
        assert!(quantised.weight_bytes() < dense.weight_bytes() * 6 / 10, "{dtype:?}");
        let run = |model: &Model| {
            model
                .finetune(&corpus, Finetune::lora(2).learning_rate(3e-3).batch_size(3).max_steps(4).seed(5))
                .unwrap()
        };
        let (a, b) = (run(&quantised), run(&dense));
        assert!(a.steps[3].loss < a.steps[0].loss, "{dtype:?}: {:?}", a.steps);
        for (a, b) in a.steps.iter().zip(&b.steps) {
            // The same numbers, widened tile by tile or stored so: sums in another order.
            assert!((a.loss - b.loss).abs() < 1e-4, "{dtype:?}, step {}: {} and {}", a.step, a.loss, b.loss);
        }
    }
}

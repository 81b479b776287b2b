//! Tokens a second and peak memory of whole training steps (forward, backward, clipping, AdamW) on a random model of
//! SmolLM2-135M's shape: `cargo bench --bench train`. `scripts/bench_train.py` does the same with transformers and peft; both
//! print one table row for each setting. Run them one after the other on an idle machine.
//!
//! `cargo bench --bench train -- MODEL` measures LoRA steps on a model of one's own instead, such as a quantised `.gguf`.
//!
//! Every setting runs in a process of its own, because the system counts peak memory by process.

use std::time::Instant;

use cluescope::memory;
use cluescope::model::{DecoderConfig, Device, LoraConfig, Model, Position, RopeScaling};
use cluescope::tokens::Tokenizer;
use cluescope::train::{AdamWConfig, Engine, Options, Pass};

const STEPS: usize = 4;
const BATCH: usize = 8;
/// The biographies of the paper have about this many tokens.
const LENGTH: usize = 80;
/// Names the setting for the process that measures it.
const SETTING: &str = "CLUESCOPE_BENCH_SETTING";
const SETTINGS: [&str; 4] =
    ["LoRA r 16", "LoRA r 16, gradient checkpointing", "LoRA r 16, bf16x3", "every weight"];

fn random_model() -> Model {
    let mut config = DecoderConfig::llama(49_152, 576, 30, 9, 3, 1536, 8192);
    config.position =
        Position::Rope { theta: 1e5, rotary_dim: 64, scaling: RopeScaling::None, interleaved: false };
    let words: serde_json::Map<String, serde_json::Value> =
        (0..100).map(|id| (format!("w{id}"), id.into())).collect();
    let json = serde_json::json!({"version": "1.0", "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"}});
    let tokenizer =
        Tokenizer::from_json("words", json.to_string().as_bytes()).expect("a well-formed tokenizer");
    Model::random("smollm2-135m", config, tokenizer, 1).expect("a valid configuration")
}

fn pass(step: usize, vocab: usize) -> Pass {
    let texts: Vec<Vec<u32>> = (0..BATCH)
        .map(|text| {
            (0..LENGTH).map(|i| ((step * 7919 + text * 131 + i * i * 17 + i * 3) % vocab) as u32).collect()
        })
        .collect();
    Pass::new(texts, (0..BATCH).map(|i| i.to_string()).collect())
}

fn measure(setting: &str, source: Option<&str>) {
    let mut base = source.map_or_else(random_model, |source| Model::load(source).expect("a model"));
    if setting == SETTINGS[2] {
        match Device::cpu().with_bf16x3() {
            Ok(device) => base = base.to_device(&device).expect("the same weights"),
            Err(error) => return println!("| cluescope, {setting} | {error} |"),
        }
    }
    let name = source.map_or(String::new(), |_| format!(", {}", base.name()));
    let model = if setting == SETTINGS[3] {
        base.with_trainable_weights().expect("variables")
    } else {
        base.with_lora(&LoraConfig::default(), 1).expect("adapters")
    };
    drop(base);
    let vocab = model.config().vocab_size;
    let options = Options { max_grad_norm: 1.0, gradient_checkpointing: setting == SETTINGS[1], seed: 1 };
    let mut engine = Engine::new(model, AdamWConfig::default(), options);
    engine.step(&[pass(0, vocab)], 1, 5e-4).expect("a step");
    let start = Instant::now();
    let mut tokens = 0;
    for step in 0..STEPS {
        tokens += engine.step(&[pass(step + 1, vocab)], step + 2, 5e-4).expect("a step").tokens;
    }
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    let peak = memory::peak().map_or("unknown".into(), memory::readable);
    println!("| cluescope, {setting}{name} | {BATCH} × {LENGTH} | {rate:.0} | {peak} |");
}

fn main() {
    // Cargo hands its own flags on.
    let source = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    if let Ok(setting) = std::env::var(SETTING) {
        return measure(&setting, source.as_deref());
    }
    println!("| what | batch | tokens/s | peak memory |");
    println!("|---|---|---|---|");
    // A model of one's own may be far too large for full training.
    let settings = if source.is_some() { &SETTINGS[..3] } else { &SETTINGS };
    for setting in settings {
        let this = std::env::current_exe().expect("the path of this program");
        let status = std::process::Command::new(this).args(&source).env(SETTING, setting).status();
        assert!(status.expect("a process for the setting").success(), "{setting}");
    }
}

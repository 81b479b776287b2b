//! Tokens a second of whole LoRA steps (forward, backward, clipping, AdamW) on a random model of SmolLM2-135M's shape:
//! `cargo bench --bench train`. `scripts/bench_train.py` does the same with transformers and peft; both print one table row
//! for each setting. Run them one after the other on an idle machine.

use std::time::Instant;

use cluescope::model::{DecoderConfig, LoraConfig, Model, Position, RopeScaling};
use cluescope::tokens::Tokenizer;
use cluescope::train::{AdamWConfig, Engine, Options, Pass};

const STEPS: usize = 4;
const BATCH: usize = 8;

fn model() -> Model {
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

fn pass(step: usize, length: usize) -> Pass {
    let texts: Vec<Vec<u32>> = (0..BATCH)
        .map(|text| {
            (0..length).map(|i| ((step * 7919 + text * 131 + i * i * 17 + i * 3) % 49_152) as u32).collect()
        })
        .collect();
    Pass::new(texts, (0..BATCH).map(|i| i.to_string()).collect())
}

fn main() {
    let base = model();
    println!("| what | batch | tokens/s | peak memory |");
    println!("|---|---|---|---|");
    for gradient_checkpointing in [false, true] {
        let adapted = base.with_lora(&LoraConfig::default(), 1).expect("adapters");
        let options = Options { max_grad_norm: 1.0, gradient_checkpointing, seed: 1 };
        let mut engine = Engine::new(adapted, AdamWConfig::default(), options);
        // The biographies of the paper have about this many tokens.
        let length = 80;
        engine.step(&[pass(0, length)], 1, 5e-4).expect("a step");
        let start = Instant::now();
        let mut tokens = 0;
        for step in 0..STEPS {
            tokens += engine.step(&[pass(step + 1, length)], step + 2, 5e-4).expect("a step").tokens;
        }
        let rate = tokens as f64 / start.elapsed().as_secs_f64();
        let how = if gradient_checkpointing { "LoRA r 16, gradient checkpointing" } else { "LoRA r 16" };
        println!("| cluescope, {how} | {BATCH} × {length} | {rate:.0} | {} |", peak_memory());
    }
}

/// The process's largest resident set so far, where the system tells it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<f64> = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
    kib.map_or_else(|| "unknown".into(), |kib| format!("{:.2} GB", kib * 1024.0 / 1e9))
}

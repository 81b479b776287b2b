//! Speed of the decoder on random models: `cargo bench --bench decoder`.
//!
//! `smollm2-135m` and `qwen2.5-0.5b` have those models' shapes, in f32, bf16 and Q8_0; `nano` is the size of the committed pair. Rates
//! are tokens a second.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Tensor};
use cluescope::model::{
    Batch, Capture, DecoderConfig, Generate, LoraConfig, Matrix, Model, Position, RopeScaling, Want,
    WeightSource,
};
use cluescope::tokens::Tokenizer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn tokenizer(size: usize) -> Tokenizer {
    let vocab: BTreeMap<String, usize> = (0..size).map(|id| (format!("w{id}"), id)).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    Tokenizer::from_json("words", json.to_string().as_bytes()).expect("a well-formed tokenizer")
}

fn smollm2() -> Model {
    let mut config = DecoderConfig::llama(49_152, 576, 30, 9, 3, 1536, 8192);
    config.position =
        Position::Rope { theta: 1e5, rotary_dim: 64, scaling: RopeScaling::None, interleaved: false };
    Model::random("smollm2-135m", config, tokenizer(1000), 1).expect("a valid configuration")
}

fn qwen2() -> Model {
    let mut config = DecoderConfig::llama(151_936, 896, 24, 14, 2, 4864, 32_768);
    config.position =
        Position::Rope { theta: 1e6, rotary_dim: 64, scaling: RopeScaling::None, interleaved: false };
    config.qkv_bias = true;
    Model::random("qwen2.5-0.5b", config, tokenizer(1000), 1).expect("a valid configuration")
}

/// How a file stores matrices.
#[derive(Debug, Clone, Copy)]
enum Form {
    F32,
    Bf16,
    Q8_0,
}

/// Weights of a model in another form.
struct Stored(BTreeMap<String, Tensor>, Form);

impl WeightSource for Stored {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn matrix(&mut self, name: &str, _rows: usize, _cols: usize) -> cluescope::Result<Matrix> {
        let weight = self.vector(name, 0)?;
        Ok(match self.1 {
            Form::F32 => Matrix::Dense(weight),
            Form::Bf16 => Matrix::Dense(weight.to_dtype(DType::BF16)?),
            Form::Q8_0 => Matrix::Quantized(Arc::new(QTensor::quantize(&weight, GgmlDType::Q8_0)?)),
        })
    }

    fn vector(&mut self, name: &str, _len: usize) -> cluescope::Result<Tensor> {
        Ok(self.0.remove(name).expect("each weight is asked for once"))
    }
}

fn stored(model: Model, form: Form) -> Model {
    let (name, config, tokenizer) =
        (format!("{} {form:?}", model.name()), model.config().clone(), model.tokenizer().clone());
    let mut weights = Stored(model.weights().expect("dense weights"), form);
    drop(model);
    Model::assemble(name, "0", config, tokenizer, &mut weights, &cluescope::model::Device::cpu())
        .expect("the same model")
}

fn nano() -> Model {
    let config = DecoderConfig::llama(2048, 192, 6, 6, 6, 512, 512);
    Model::random("nano", config, tokenizer(1000), 1).expect("a valid configuration")
}

/// Texts about as long as the biographies.
fn texts(count: usize, length: usize) -> Vec<Vec<u32>> {
    (0..count)
        .map(|t| (0..length - t % 7).map(|i| ((t * 131 + i * i * 17 + i * 3) % 1000) as u32).collect())
        .collect()
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("received attention");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    let forms = [Form::F32, Form::Bf16, Form::Q8_0];
    let models: [(fn() -> Model, &[Form], &[(usize, usize)]); 3] = [
        (smollm2, &forms, &[(8, 112), (1, 2048)]),
        (qwen2, &forms[1..], &[(8, 112)]),
        (nano, &forms[..1], &[(32, 112)]),
    ];
    let cases = models.iter().flat_map(|(model, forms, sizes)| {
        forms.iter().flat_map(move |form| sizes.iter().map(move |size| (stored(model(), *form), *size)))
    });
    for (model, (count, length)) in cases {
        let batch = Batch::new(&texts(count, length));
        let want = Want::capture(Capture::received());
        group.throughput(Throughput::Elements(batch.tokens() as u64));
        group.bench_function(format!("{} {count}x{length}", model.name()), |b| {
            b.iter(|| black_box(model.forward(&batch, &want).expect("a valid batch")));
        });
    }
}

fn training(c: &mut Criterion) {
    let mut group = c.benchmark_group("training step");
    group.sample_size(10).measurement_time(Duration::from_secs(12));
    let lora = smollm2().with_lora(&LoraConfig::default(), 1).expect("adapters");
    let full = nano().with_trainable_weights().expect("variables");
    for (name, model, count) in [("lora", lora, 8), ("full", full, 16)] {
        let batch = Batch::new(&texts(count, 112));
        let targets: Vec<Option<u32>> = batch.ids().iter().map(|id| Some((id + 1) % 1000)).collect();
        group.throughput(Throughput::Elements(batch.tokens() as u64));
        group.bench_function(format!("{} {name} {count}x112", model.name()), |b| {
            b.iter(|| {
                let loss = model.loss(&batch, &targets).expect("a valid batch");
                black_box(loss.backward().expect("gradients"))
            });
        });
    }
}

fn generation(c: &mut Criterion) {
    let mut group = c.benchmark_group("generation");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    let shared = texts(1, 300).concat();
    let prompts: Vec<Vec<u32>> = texts(16, 20).iter().map(|own| [shared.as_slice(), own].concat()).collect();
    let options = Generate { max_new_tokens: 10, stop_at_newline: false };
    for model in [smollm2(), nano()] {
        group.throughput(Throughput::Elements(160));
        group.bench_function(format!("{} 16 prompts, shared 300", model.name()), |b| {
            b.iter(|| black_box(model.generate(&prompts, &options).expect("valid prompts")));
        });
    }
}

criterion_group!(benches, attention, training, generation);
criterion_main!(benches);

//! Checks of the whole decoder on small random models.

use candle_core::{DType, Device};

use super::*;

mod fixtures;
mod parity;
mod sameness;
mod stopping;

/// A word-level tokenizer of `size` tokens named `w0`, `w1` …; the last one is a line break.
pub(super) fn tokenizer(size: usize) -> Tokenizer {
    let vocab: BTreeMap<String, usize> =
        (0..size).map(|id| (if id + 1 == size { "\n".to_string() } else { format!("w{id}") }, id)).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    Tokenizer::from_json("words", json.to_string().as_bytes()).unwrap()
}

/// A reproducible text of `length` ids below `vocab`.
pub(super) fn ids(length: usize, vocab: u32, seed: u32) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 7 + seed * 13 + i * i * 3 + 1) % vocab).collect()
}

pub(super) fn small() -> DecoderConfig {
    DecoderConfig::llama(40, 32, 3, 4, 2, 48, 64)
}

#[test]
fn the_loss_falls_along_its_gradient() {
    let model = Model::random("m", small(), tokenizer(40), 1).unwrap().with_trainable_weights().unwrap();
    let batch = Batch::new(&[ids(9, 40, 1), ids(5, 40, 2)]);
    let targets: Vec<Option<u32>> = (0..14).map(|i| Some(i % 40)).collect();
    let before = model.loss(&batch, &targets).unwrap();
    let gradients = before.backward().unwrap();
    for (name, var) in model.trainable() {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} has no gradient"));
        var.set(&(var.as_tensor() - (gradient * 0.1).unwrap()).unwrap().detach()).unwrap();
    }
    let after = model.loss(&batch, &targets).unwrap().to_scalar::<f32>().unwrap();
    assert!(after < before.to_scalar::<f32>().unwrap() - 0.01);
}

#[test]
fn a_fresh_adapter_changes_nothing_and_has_pefts_names() {
    let model = Model::random("m", small(), tokenizer(40), 1).unwrap();
    let adapted = model.with_lora(&LoraConfig { r: 4, ..LoraConfig::default() }, 5).unwrap();
    assert_eq!(adapted.trainable().len(), 3 * 7 * 2);
    let a = &adapted.trainable()["layers.0.self_attn.q_proj.lora_A.weight"];
    assert_eq!(a.dims(), [4, 32]);
    let batch = Batch::new(&[ids(9, 40, 1)]);
    let logits = |m: &Model| m.forward(&batch, &Want::logits()).unwrap().logits.unwrap();
    let (one, two) = (logits(&model), logits(&adapted));
    assert_eq!(one.to_vec2::<f32>().unwrap(), two.to_vec2::<f32>().unwrap());
    let unknown = LoraConfig { target_modules: vec!["c_attn".into()], ..LoraConfig::default() };
    assert!(model.with_lora(&unknown, 5).unwrap_err().to_string().contains("c_attn"));
}

#[test]
fn bad_batches_are_refused_with_the_place() {
    let model = Model::random("m", small(), tokenizer(40), 1).unwrap();
    for (texts, part) in
        [(vec![vec![1], vec![]], "text 1"), (vec![vec![1, 40]], "id 40"), (vec![vec![1; 65]], "65 tokens")]
    {
        let message = model.forward(&Batch::new(&texts), &Want::logits()).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let error = model.generate(&[vec![]], &Generate::default()).unwrap_err();
    assert!(error.to_string().contains("prompt 0"), "{error}");
    let error = model.generate(&[vec![1; 60]], &Generate::default()).unwrap_err();
    assert!(error.to_string().contains("context of 64"), "{error}");
}

#[test]
fn attention_rows_sum_to_one_and_columns_to_what_is_received() {
    let model = Model::random("m", small(), tokenizer(40), 1).unwrap();
    let batch = Batch::new(&[ids(9, 40, 1), ids(5, 40, 2)]);
    let capture = Capture {
        detail: Detail::Head,
        received: true,
        probes: vec![vec![8, 0], vec![3]],
        maps: vec![(1, 2)],
        depth: None,
    };
    let output = graph::forward(&model.0.decoder, &batch, &Want::capture(capture), DType::F64).unwrap();
    assert!(output.logits.is_none());
    let text = &output.attention[0];
    let map = &text.maps[0];
    for row in map.chunks(9) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
    for j in 0..9 {
        let sum: f32 = (0..9).map(|i| map[i * 9 + j]).sum();
        assert!((text.received_by[4 + 2][j] - sum / (9 - j) as f32).abs() < 1e-6);
    }
    assert_eq!(text.probes_by[4 + 2][0], map[72..81]);
    assert_eq!(text.probes[1], [1.0]);
    let mean: f32 = text.probes_by.iter().map(|p| p[0][3]).sum::<f32>() / 12.0;
    assert!((mean - text.probes[0][3]).abs() < 1e-6);
}

/// Models that together use every branch of the configuration.
pub(super) fn kinds() -> Vec<(&'static str, DecoderConfig)> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 16,
    };
    let rope =
        |rotary_dim, scaling, interleaved| Position::Rope { theta: 1e4, rotary_dim, scaling, interleaved };
    let mut gpt2 = DecoderConfig {
        norm: Norm::Layer,
        position: Position::Learned,
        mlp: Mlp::Plain,
        activation: Activation::GeluTanh,
        qkv_bias: true,
        o_bias: true,
        mlp_bias: true,
        kv_heads: 4,
        ..small()
    };
    gpt2.norm_eps = 1e-5;
    let neox = DecoderConfig {
        residual: Residual::Parallel,
        activation: Activation::Gelu,
        position: rope(4, RopeScaling::None, false),
        tied_embeddings: false,
        ..gpt2.clone()
    };
    let qwen3 = DecoderConfig {
        qk_norm: true,
        head_dim: 12,
        position: rope(12, RopeScaling::Factors(vec![1.0, 1.5, 2.0, 3.0, 4.0, 5.0]), false),
        ..small()
    };
    let mut gemma = DecoderConfig {
        residual: Residual::Sandwich,
        activation: Activation::GeluTanh,
        qk_norm: true,
        attention_softcap: Some(2.0),
        final_softcap: Some(1.5),
        embed_scale: 32f32.sqrt(),
        query_scale: 0.3,
        ..small()
    };
    for layer in [0, 2] {
        gemma.layer_kinds[layer] = LayerKind {
            window: Some(5),
            rope_theta: Some(100.0),
            rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        };
    }
    vec![
        ("llama", small()),
        ("llama 3", DecoderConfig { qkv_bias: true, position: rope(8, llama3, false), ..small() }),
        ("interleaved", DecoderConfig { position: rope(6, RopeScaling::None, true), ..small() }),
        ("gpt2", gpt2),
        ("neox", neox),
        ("qwen3", qwen3),
        ("gemma", gemma),
    ]
}

/// A random model whose every weight, biases and norms too, is far from its neutral value.
pub(super) fn lively(config: DecoderConfig, seed: u64) -> Model {
    struct Lively(u64);
    impl WeightSource for Lively {
        fn has(&self, _name: &str) -> bool {
            true
        }
        fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
            let values = init::normal(self.0, name, rows * cols, 0.2);
            Ok(Matrix::Dense(Tensor::from_vec(values, (rows, cols), &Device::Cpu)?))
        }
        fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
            let mut values = init::normal(self.0, name, len, 0.2);
            if name.ends_with("norm.weight") {
                values.iter_mut().for_each(|v| *v += 1.0);
            }
            Ok(Tensor::from_vec(values, len, &Device::Cpu)?)
        }
    }
    Model::assemble("lively", "0", config, tokenizer(40), &mut Lively(seed), &super::Device::cpu()).unwrap()
}

pub(super) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn captured(texts: &[CapturedText]) -> Vec<f32> {
    let mut all = Vec::new();
    for text in texts {
        all.extend_from_slice(&text.received);
        all.extend(text.received_by.iter().flatten());
        all.extend(text.probes.iter().flatten());
        all.extend(text.probes_by.iter().flatten().flatten());
        all.extend(text.maps.iter().flatten());
    }
    all
}

fn rich_capture(detail: Detail) -> Capture {
    Capture {
        detail,
        received: true,
        probes: vec![vec![0, 7, 20], vec![3], vec![]],
        maps: vec![(0, 1), (2, 3), (0, 1)],
        depth: None,
    }
}

/// Loss and backward pass of the tensor operations in f64.
fn exact_half(model: &Model, batch: &Batch, targets: &[Option<u32>], pass: &TrainPass) -> (f64, graph::Half) {
    graph::forward_half(&model.0.decoder, model.variables(), batch, targets, pass, DType::F64).unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    vec![ids(21, 40, 1), ids(5, 40, 2), ids(13, 40, 3)]
}

#[test]
fn kernels_agree_with_tensor_operations_in_f64() {
    for (name, config) in kinds() {
        let model = lively(config, 7);
        let batch = Batch::new(&texts());
        for detail in [Detail::Mean, Detail::Layer, Detail::Head] {
            let want = Want { logits: Logits::All, capture: Some(rich_capture(detail)) };
            let fast = model.forward(&batch, &want).unwrap();
            let exact = graph::forward(&model.0.decoder, &batch, &want, DType::F64).unwrap();
            let off = difference(&captured(&fast.attention), &captured(&exact.attention));
            assert!(off < 2e-6, "{name}: attention differs by {off}");
            let (fast, exact) = (flat(&fast.logits.unwrap()), flat(&exact.logits.unwrap()));
            let largest = exact.iter().fold(0f32, |m, v| m.max(v.abs()));
            let off = difference(&fast, &exact) / largest;
            assert!(off < 1e-5, "{name}: logits differ by {off} of the largest");
        }
        let fast = model.token_log_probs(&batch).unwrap().concat();
        let exact = graph::token_log_probs(&model.0.decoder, &batch, DType::F64).unwrap();
        assert!(difference(&fast, &exact) < 2e-5, "{name}: log probabilities");
        let last = model.forward(&batch, &Want { logits: Logits::Last, capture: None }).unwrap();
        let all = model.forward(&batch, &Want::logits()).unwrap();
        let rows: Vec<f32> = (0..3)
            .flat_map(|text| flat(&all.logits.as_ref().unwrap().get(batch.range(text).end - 1).unwrap()))
            .collect();
        assert!(difference(&flat(&last.logits.unwrap()), &rows) < 1e-5, "{name}: last logits");
    }
}

#[test]
fn gradients_agree_with_tensor_operations_in_f64() {
    for (name, config) in kinds() {
        let base = lively(config, 11);
        let modules = if base.config().mlp == Mlp::Gated {
            LoraConfig::default().target_modules
        } else {
            ["q_proj", "v_proj", "up_proj", "down_proj"].map(String::from).to_vec()
        };
        let lora = LoraConfig { r: 3, lora_alpha: 6.0, lora_dropout: 0.3, target_modules: modules };
        let adapted = base.with_lora(&lora, 5).unwrap();
        for (name, var) in adapted.trainable() {
            let values = init::normal(3, name, var.elem_count(), 0.15);
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        for (way, model) in [("full", base.with_trainable_weights().unwrap()), ("lora", adapted)] {
            for recompute in [false, true] {
                let batch = Batch::new(&texts());
                let mut targets: Vec<Option<u32>> = (0..39).map(|i| Some(i * 3 % 40)).collect();
                targets[4] = None;
                targets[20] = None;
                let pass = TrainPass { recompute, dropout_seed: Some(9) };
                let fast = model.loss_with(&batch, &targets, &pass).unwrap();
                let (value, exact) = exact_half(&model, &batch, &targets, &pass);
                let (a, b) = (fast.to_scalar::<f32>().unwrap(), value as f32);
                assert!((a - b).abs() < 1e-5, "{name}, {way}: loss {a} instead of {b}");
                let (value, direct) = model.loss_and_gradients(&batch, &targets, &pass).unwrap();
                assert_eq!(value, a);
                // A factor on the loss must reach the gradients.
                let fast = (fast * 2.0).unwrap().backward().unwrap();
                let exact = exact.backward().unwrap();
                for (tensor, var) in model.trainable() {
                    let missing = || panic!("{name}, {way}: no gradient for {tensor}");
                    let fast = flat(fast.get(var).unwrap_or_else(missing));
                    let doubled = flat(&(&direct[tensor] * 2.0).unwrap());
                    assert_eq!(fast, doubled, "{name}, {way}: {tensor} through candle's graph");
                    let exact = flat(&(exact.get(&var.id()).unwrap_or_else(missing) * 2.0).unwrap());
                    // Gradients are of the order of 0.1; far smaller ones are held to f32's absolute noise.
                    let largest = exact.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
                    let off = difference(&fast, &exact) / largest;
                    assert!(off < 5e-5, "{name}, {way}: {tensor} differs by {off} of the largest");
                }
            }
        }
    }
}

#[test]
fn gradients_are_the_losses_differences() {
    // The tensor operations in f64 against finite differences: the check of the checker.
    for (name, config) in kinds() {
        let model = lively(config, 13).with_trainable_weights().unwrap();
        let batch = Batch::new(&texts());
        let targets: Vec<Option<u32>> = (0..39).map(|i| Some(i * 7 % 40)).collect();
        let loss = || graph::loss_value(&model.0.decoder, &batch, &targets, None, DType::F64).unwrap();
        let gradients = exact_half(&model, &batch, &targets, &TrainPass::default()).1.backward().unwrap();
        for (tensor, var) in model.trainable() {
            let direction =
                Tensor::from_vec(init::normal(1, tensor, var.elem_count(), 1.0), var.shape(), &Device::Cpu)
                    .unwrap();
            let slope: f32 = (gradients[&var.id()].to_dtype(DType::F32).unwrap() * &direction)
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar()
                .unwrap();
            let start = var.as_tensor().copy().unwrap();
            let h = 2f64.powi(-5) / (var.elem_count() as f64).sqrt();
            let at = |step: f64| {
                var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
                loss()
            };
            // Four points: the error falls with the fourth power of the step.
            let measured = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            var.set(&start).unwrap();
            // The weights are f32: rounding their steps leaves some 1e-5 of noise.
            let tolerance = 1e-3 * f64::from(slope.abs()).max(0.05);
            assert!(
                (measured - f64::from(slope)).abs() < tolerance,
                "{name}, {tensor}: {measured} against {slope}"
            );
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (name, config) in kinds() {
        let model = lively(config, 17).with_trainable_weights().unwrap();
        let batch = Batch::new(&texts());
        let targets: Vec<Option<u32>> = (0..39).map(|i| Some(i * 5 % 40)).collect();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let want = Want { logits: Logits::All, capture: Some(rich_capture(Detail::Head)) };
                let output = model.forward(&batch, &want).unwrap();
                let mut all = captured(&output.attention);
                all.extend(flat(&output.logits.unwrap()));
                let loss = model.loss(&batch, &targets).unwrap();
                let gradients = loss.backward().unwrap();
                all.push(loss.to_scalar().unwrap());
                for var in model.trainable().values() {
                    all.extend(flat(gradients.get(var).unwrap()));
                }
                all
            })
        };
        let one = run(1);
        for threads in [2, 5] {
            assert!(one.iter().zip(&run(threads)).all(|(a, b)| a.to_bits() == b.to_bits()), "{name}");
        }
    }
}

#[test]
fn a_text_does_not_depend_on_its_batch() {
    for (name, config) in kinds() {
        let model = lively(config, 19);
        let texts = texts();
        let want = Want::capture(Capture { probes: Vec::new(), ..rich_capture(Detail::Head) });
        let together = model.forward(&Batch::new(&texts), &want).unwrap().attention;
        for (text, together) in texts.iter().zip(&together) {
            let alone = model.forward(&Batch::new(&[text]), &want).unwrap().attention;
            let off = difference(&captured(&alone), &captured(std::slice::from_ref(together)));
            assert!(off < 1e-6, "{name}: {off}");
        }
    }
}

#[test]
fn long_texts_cross_blocks_and_spans() {
    let mut config = DecoderConfig { max_positions: 1200, ..small() };
    config.layer_kinds[1].window = Some(100);
    let model = lively(config, 23);
    let batch = Batch::new(&[ids(1100, 40, 1), ids(70, 40, 2)]);
    let capture = Capture {
        detail: Detail::Head,
        received: true,
        probes: vec![vec![63, 64, 511, 512, 1099], vec![]],
        maps: vec![(1, 0)],
        depth: None,
    };
    let want = Want { logits: Logits::None, capture: Some(capture) };
    let fast = model.forward(&batch, &want).unwrap();
    let exact = graph::forward(&model.0.decoder, &batch, &want, DType::F64).unwrap();
    assert!(difference(&captured(&fast.attention), &captured(&exact.attention)) < 2e-6);
    let model = model.with_lora(&LoraConfig::default(), 1).unwrap();
    for (name, var) in model.trainable() {
        let values = init::normal(3, name, var.elem_count(), 0.1);
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let targets: Vec<Option<u32>> = batch.ids().iter().map(|id| Some((id + 1) % 40)).collect();
    let fast = model.loss(&batch, &targets).unwrap().backward().unwrap();
    let pass = TrainPass::default();
    let exact = exact_half(&model, &batch, &targets, &pass).1.backward().unwrap();
    for (name, var) in model.trainable() {
        let (fast, exact) = (flat(fast.get(var).unwrap()), flat(&exact[&var.id()]));
        let largest = exact.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        let off = difference(&fast, &exact) / largest;
        assert!(off < 5e-5, "{name} differs by {off} of the largest");
    }
}

#[test]
fn every_file_type_of_a_weight_computes_what_its_values_say() {
    use candle_core::quantized::{GgmlDType, QTensor};
    let config = DecoderConfig::llama(40, 256, 1, 4, 2, 256, 64);
    let dense = lively(config.clone(), 29);
    struct Typed<'a> {
        weights: &'a BTreeMap<String, Tensor>,
        form: &'a dyn Fn(&Tensor) -> Matrix,
    }
    impl WeightSource for Typed<'_> {
        fn has(&self, name: &str) -> bool {
            self.weights.contains_key(name)
        }
        fn matrix(&mut self, name: &str, _: usize, _: usize) -> Result<Matrix> {
            Ok((self.form)(&self.weights[name]))
        }
        fn vector(&mut self, name: &str, _: usize) -> Result<Tensor> {
            Ok(self.weights[name].clone())
        }
    }
    let weights = dense.weights().unwrap();
    let quantized = |dtype| {
        move |t: &Tensor| {
            // candle cannot quantise to Q8_1 in a way it reads back; it is an activation type, never stored.
            Matrix::Quantized(Arc::new(QTensor::quantize(t, dtype).unwrap()))
        }
    };
    use GgmlDType::*;
    let mut forms: Vec<(String, Box<dyn Fn(&Tensor) -> Matrix>)> =
        [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Q8K]
            .map(|dtype| (format!("{dtype:?}"), Box::new(quantized(dtype)) as Box<dyn Fn(&Tensor) -> Matrix>))
            .into_iter()
            .collect();
    for dtype in [DType::F16, DType::BF16] {
        forms
            .push((format!("dense {dtype:?}"), Box::new(move |t| Matrix::Dense(t.to_dtype(dtype).unwrap()))));
    }
    let batch = Batch::new(&[ids(9, 40, 1)]);
    for (name, form) in &forms {
        let assemble = |form: &dyn Fn(&Tensor) -> Matrix| {
            let mut source = Typed { weights: &weights, form };
            Model::assemble("m", "0", config.clone(), tokenizer(40), &mut source, &super::Device::cpu())
                .unwrap()
        };
        let typed = assemble(&**form);
        let plain = assemble(&|t| Matrix::Dense(form(t).dense(&Device::Cpu, DType::F32).unwrap()));
        let logits = |m: &Model| flat(&m.forward(&batch, &Want::logits()).unwrap().logits.unwrap());
        assert_eq!(logits(&typed), logits(&plain), "{name}");
        // Adapters on a base of this type get the same gradients as on its values.
        let gradients = |m: &Model| {
            let m = m.with_lora(&LoraConfig { r: 2, ..LoraConfig::default() }, 1).unwrap();
            let grads = m.loss(&batch, &[Some(1); 9]).unwrap().backward().unwrap();
            m.trainable().values().flat_map(|v| flat(grads.get(v).unwrap())).collect::<Vec<_>>()
        };
        assert!(difference(&gradients(&typed), &gradients(&plain)) < 1e-6, "{name}: gradients");
    }
}

//! The tensor operations that run on a GPU, on the CPU and on every GPU of this machine, beside the CPU's own kernels: in f32
//! they agree to rounding, in bf16 within the tolerances stated in docs/gpu.md.

use super::super::Device as At;
use super::*;

/// The model wherever tensor operations can run, each time with the device's name.
fn on_tensors(model: &Model, dtype: DType) -> Vec<(String, Model)> {
    let moved = |device: At| (device.to_string(), model.to_device(&device).unwrap());
    At::present(dtype).into_iter().map(moved).collect()
}

/// Weights as GPT-2 draws them, with what is drawn neutral moved.
fn calm(config: DecoderConfig) -> Model {
    let model = Model::random("calm", config, tokenizer(40), 41).unwrap().with_trainable_weights().unwrap();
    for (name, var) in model.trainable() {
        let noise =
            Tensor::from_vec(init::normal(43, name, var.elem_count(), 0.1), var.shape(), var.device());
        var.set(&(var.as_tensor().detach() + noise.unwrap()).unwrap()).unwrap();
    }
    model.frozen()
}

/// The largest difference, relative to the largest value.
fn off(a: &[f32], b: &[f32]) -> f32 {
    difference(a, b) / b.iter().fold(0f32, |most, v| most.max(v.abs()))
}

#[test]
fn attention_logits_and_log_probabilities_agree() {
    for (name, config) in kinds() {
        let model = calm(config);
        let batch = Batch::new(&texts());
        let want = Want { logits: Logits::All, capture: Some(rich_capture(Detail::Head)) };
        let exact = model.forward(&batch, &want).unwrap();
        let log_probs = model.token_log_probs(&batch).unwrap().concat();
        for (dtype, attention, logits, nats) in
            [(DType::F32, 2e-6, 1e-5, 2e-5), (DType::BF16, 0.025, 0.05, 0.05)]
        {
            for (device, there) in on_tensors(&model, dtype) {
                let found = there.forward(&batch, &want).unwrap();
                let apart = difference(&captured(&found.attention), &captured(&exact.attention));
                assert!(apart < attention, "{name}, {device}: attention differs by {apart}");
                let found = found.logits.unwrap();
                assert_eq!(found.dtype(), DType::F32);
                let apart = off(&flat(&found), &flat(exact.logits.as_ref().unwrap()));
                assert!(apart < logits, "{name}, {device}: logits differ by {apart} of the largest");
                let apart = difference(&there.token_log_probs(&batch).unwrap().concat(), &log_probs);
                assert!(apart < nats, "{name}, {device}: log probabilities differ by {apart}");
                let none = vec![None; batch.tokens() - 1].into_iter().chain([Some(3)]).collect::<Vec<_>>();
                let loss = |m: &Model| m.loss(&batch, &none).unwrap().to_scalar::<f32>().unwrap();
                assert!((loss(&there) - loss(&model)).abs() < nats, "{name}, {device}: loss");
            }
        }
    }
}

#[test]
fn gradients_agree_and_recomputation_changes_no_bit() {
    for (name, config) in kinds() {
        let base = calm(config);
        let modules = ["q_proj", "v_proj", "up_proj", "down_proj"].map(String::from).to_vec();
        let lora = LoraConfig { r: 3, lora_alpha: 6.0, lora_dropout: 0.3, target_modules: modules };
        let batch = Batch::new(&texts());
        let targets: Vec<Option<u32>> = (0..39).map(|i| (i != 4).then_some(i * 3 % 40)).collect();
        let adapted = |model: &Model| {
            let adapted = model.with_lora(&lora, 5).unwrap();
            for (name, var) in adapted.trainable() {
                let values = init::normal(3, name, var.elem_count(), 0.1);
                var.set(&Tensor::from_vec(values, var.shape(), var.device()).unwrap()).unwrap();
            }
            adapted
        };
        let full = |model: &Model| model.with_trainable_weights().unwrap();
        for (way, train) in [("lora", &adapted as &dyn Fn(&Model) -> Model), ("full", &full)] {
            let pass = |recompute| TrainPass { recompute, dropout_seed: Some(9) };
            let (value, exact) = train(&base).loss_and_gradients(&batch, &targets, &pass(false)).unwrap();
            for (dtype, loss, gradients) in [(DType::F32, 1e-5, 5e-5), (DType::BF16, 0.02, 0.11)] {
                for (device, there) in on_tensors(&base, dtype) {
                    let there = train(&there);
                    let (found, kept) = there.loss_and_gradients(&batch, &targets, &pass(false)).unwrap();
                    assert!(
                        (found - value).abs() < loss,
                        "{name}, {way}, {device}: loss {found}, not {value}"
                    );
                    let (again, computed) = there.loss_and_gradients(&batch, &targets, &pass(true)).unwrap();
                    assert_eq!(again, found);
                    let graph = there.loss_with(&batch, &targets, &pass(true)).unwrap();
                    let graph = (graph * 2.0).unwrap().backward().unwrap();
                    assert_eq!(kept.len(), exact.len());
                    for (tensor, gradient) in &kept {
                        assert_eq!(
                            gradient.dtype(),
                            DType::F32,
                            "trained values and their gradients are f32"
                        );
                        let what = format!("{name}, {way}, {device}: {tensor}");
                        assert_eq!(flat(gradient), flat(&computed[tensor]), "{what}");
                        let doubled = flat(graph.get(&there.trainable()[tensor]).unwrap());
                        assert_eq!(flat(&(gradient * 2.0).unwrap()), doubled, "{what}");
                        let (a, b) = (flat(gradient), flat(&exact[tensor]));
                        let largest = b.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
                        let apart = difference(&a, &b) / largest;
                        assert!(apart < gradients, "{what} differs by {apart}");
                    }
                }
            }
        }
    }
}

/// On a processor with the tile unit: a hundred times nearer to f32 than bf16 is.
#[test]
fn bf16x3_is_nearly_f32() {
    let Ok(device) = At::cpu().with_bf16x3() else { return };
    for (name, config) in kinds() {
        let model = calm(config);
        let there = model.to_device(&device).unwrap();
        let batch = Batch::new(&texts());
        let want = Want { logits: Logits::All, capture: Some(rich_capture(Detail::Head)) };
        let (exact, found) = (model.forward(&batch, &want).unwrap(), there.forward(&batch, &want).unwrap());
        let apart = difference(&captured(&found.attention), &captured(&exact.attention));
        assert!(apart < 1e-4, "{name}: attention differs by {apart}");
        let (found, exact) = (flat(&found.logits.unwrap()), flat(&exact.logits.unwrap()));
        let apart = off(&found, &exact);
        assert!(apart > 0.0 && apart < 1e-4, "{name}: logits differ by {apart} of the largest");
        let targets: Vec<Option<u32>> = (0..39).map(|i| (i != 4).then_some(i * 3 % 40)).collect();
        let pass = TrainPass { recompute: true, dropout_seed: None };
        let gradients = |m: &Model| {
            m.with_trainable_weights().unwrap().loss_and_gradients(&batch, &targets, &pass).unwrap()
        };
        let ((value, exact), (near, found)) = (gradients(&model), gradients(&there));
        assert!((near - value).abs() < 1e-4, "{name}: loss {near}, not {value}");
        for (tensor, gradient) in &found {
            let (a, b) = (flat(gradient), flat(&exact[tensor]));
            let largest = b.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
            let apart = difference(&a, &b) / largest;
            assert!(apart < 3e-4, "{name}: the gradient of {tensor} differs by {apart}");
        }
    }
}

#[test]
fn quantised_and_narrow_weights_train_an_adapter_as_their_values_do() {
    use candle_core::quantized::{GgmlDType, QTensor};
    struct Typed<'a>(&'a BTreeMap<String, Tensor>, &'a dyn Fn(&Tensor) -> Matrix);
    impl WeightSource for Typed<'_> {
        fn has(&self, name: &str) -> bool {
            self.0.contains_key(name)
        }
        fn matrix(&mut self, name: &str, _: usize, _: usize) -> Result<Matrix> {
            Ok((self.1)(&self.0[name]))
        }
        fn vector(&mut self, name: &str, _: usize) -> Result<Tensor> {
            Ok(self.0[name].clone())
        }
    }
    let config = DecoderConfig::llama(40, 256, 2, 4, 2, 256, 64);
    let weights = lively(config.clone(), 29).weights().unwrap();
    let batch = Batch::new(&[ids(9, 40, 1), ids(4, 40, 2)]);
    let quantized =
        |dtype| move |t: &Tensor| Matrix::Quantized(Arc::new(QTensor::quantize(t, dtype).unwrap()));
    let narrow = |t: &Tensor| Matrix::Dense(t.to_dtype(DType::BF16).unwrap());
    for (name, form) in [
        ("Q4K", &quantized(GgmlDType::Q4K) as &dyn Fn(&Tensor) -> Matrix),
        ("Q6K", &quantized(GgmlDType::Q6K)),
        ("Q8_0", &quantized(GgmlDType::Q8_0)),
        ("Q8K", &quantized(GgmlDType::Q8K)),
        ("F16", &quantized(GgmlDType::F16)),
        ("bf16", &narrow),
    ] {
        let model =
            Model::assemble("m", "0", config.clone(), tokenizer(40), &mut Typed(&weights, form), &At::cpu());
        let model = model.unwrap();
        let gradients = |model: &Model| {
            let model = model.with_lora(&LoraConfig { r: 2, ..LoraConfig::default() }, 1).unwrap();
            model.loss_and_gradients(&batch, &[Some(1); 13], &TrainPass::default()).unwrap()
        };
        let (a, exact) = gradients(&model);
        for (device, there) in on_tensors(&model, DType::F32) {
            let (b, found) = gradients(&there);
            assert!((a - b).abs() < 1e-5 * a, "{name}, {device}: loss {b}, not {a}");
            for (tensor, exact) in &exact {
                let (found, exact) = (flat(&found[tensor]), flat(exact));
                let largest = exact.iter().fold(1e-2f32, |m, v| m.max(v.abs()));
                let apart = difference(&found, &exact) / largest;
                assert!(apart < 5e-5, "{name}, {device}: {tensor} differs by {apart}");
            }
        }
    }
}

#[test]
fn texts_that_grow_are_read_once_on_either_side() {
    for (name, config) in kinds() {
        let model = lively(config, 47);
        let start = ids(6, 40, 5);
        // A prefix in common, parts of different length, none among them, then one sequence twice and one no more.
        let walk = |model: &Model| {
            let mut sequences = model.sequences(&start, 4).unwrap();
            sequences.read(&[ids(7, 40, 1), vec![], ids(2, 40, 2), ids(3, 40, 3)]).unwrap();
            sequences.select(&[2, 0, 0, 1]).unwrap();
            let mut all = Vec::new();
            for step in 0..3 {
                let next = [ids(1 + step, 40, 4), ids(1, 40, 5), ids(4, 40, 6), ids(2, 40, 7)];
                all.extend(flat(&sequences.logits(&next).unwrap()));
            }
            let wanted: Vec<u32> = ids(9, 40, 8);
            let next = [ids(2, 40, 1), ids(3, 40, 2), ids(1, 40, 3), ids(3, 40, 4)];
            all.extend(sequences.log_probs(&next, &wanted).unwrap());
            all
        };
        let prompts: Vec<Vec<u32>> = [(4, 1), (1, 2), (7, 3), (4, 4)]
            .map(|(n, seed)| [start.clone(), ids(n, 40, seed)].concat())
            .to_vec();
        let options = Generate { max_new_tokens: 12, stop_at_newline: true };
        let rests =
            vec![vec![ids(3, 40, 1), ids(1, 40, 2)], vec![], vec![ids(2, 40, 3)], vec![ids(4, 40, 4)]];
        let of = |model: &Model| model.continuation_log_probs(&prompts, &rests).unwrap();
        let all = |rows: &[Vec<Vec<f32>>]| rows.iter().flatten().flatten().copied().collect::<Vec<f32>>();
        let (walked, answers, exact) =
            (walk(&model), model.generate(&prompts, &options).unwrap(), of(&model));
        for (device, there) in on_tensors(&model, DType::F32) {
            let apart = off(&walk(&there), &walked);
            assert!(apart < 2e-5, "{name}, {device}: {apart}");
            assert_eq!(there.generate(&prompts, &options).unwrap(), answers, "{name}, {device}");
            let found = of(&there);
            assert!(difference(&all(&found), &all(&exact)) < 5e-5, "{name}, {device}");
            // What each reads in pieces is what it reads as a whole.
            let whole = [prompts[3].as_slice(), &rests[3][0]].concat();
            let whole = there.token_log_probs(&Batch::new(&[whole])).unwrap().remove(0);
            assert!(difference(&found[3][0], &whole[prompts[3].len()..]) < 5e-5, "{name}, {device}");
        }
    }
}

#[test]
fn bf16_generates_and_a_long_text_is_read_in_blocks() {
    let config = DecoderConfig { max_positions: 1200, ..small() };
    let model = calm(config);
    let prompts = [ids(11, 40, 1), ids(3, 40, 2)];
    let options = Generate { max_new_tokens: 4, stop_at_newline: false };
    for (device, narrow) in on_tensors(&model, DType::BF16) {
        let answers = narrow.generate(&prompts, &options).unwrap();
        assert!(answers.iter().all(|answer| answer.len() == 4), "{device}");
    }
    let batch = Batch::new(&[ids(1100, 40, 1), ids(70, 40, 2)]);
    let want = Want::capture(Capture {
        detail: Detail::Head,
        received: true,
        probes: vec![vec![63, 64, 511, 512, 1099], vec![69]],
        maps: vec![(1, 0)],
        depth: None,
    });
    let exact = model.forward(&batch, &want).unwrap().attention;
    for (device, there) in on_tensors(&model, DType::F32) {
        let found = there.forward(&batch, &want).unwrap().attention;
        assert!(difference(&captured(&found), &captured(&exact)) < 2e-6, "{device}");
    }
}

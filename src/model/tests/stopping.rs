//! What follows the last attention that is asked for is not computed: weights that are not numbers do no harm there.

use super::*;

/// Gives `model`'s weights, those that `spoilt` names as NaN.
struct Spoiling<'a> {
    weights: BTreeMap<String, Tensor>,
    spoilt: &'a dyn Fn(&str) -> bool,
    seen: Vec<String>,
}

impl Spoiling<'_> {
    fn get(&mut self, name: &str) -> Result<Tensor> {
        let tensor = self.weights[name].clone();
        if !(self.spoilt)(name) {
            return Ok(tensor);
        }
        self.seen.push(name.to_owned());
        Ok(Tensor::full(f32::NAN, tensor.shape(), &Device::Cpu)?)
    }
}

impl WeightSource for Spoiling<'_> {
    fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    fn matrix(&mut self, name: &str, _: usize, _: usize) -> Result<Matrix> {
        self.get(name).map(Matrix::Dense)
    }

    fn vector(&mut self, name: &str, _: usize) -> Result<Tensor> {
        self.get(name)
    }
}

fn spoil(model: &Model, spoilt: &dyn Fn(&str) -> bool) -> Model {
    let mut source = Spoiling { weights: model.weights().unwrap(), spoilt, seen: Vec::new() };
    let config = model.config().clone();
    let spoiled = Model::assemble(
        "spoilt",
        "0",
        config,
        model.tokenizer().clone(),
        &mut source,
        &super::super::Device::cpu(),
    )
    .unwrap();
    assert!(!source.seen.is_empty(), "no weight was spoilt");
    spoiled
}

/// Everything of `layer` but what its attention weights come from.
fn after_attention(name: &str, layer: usize) -> bool {
    let needed = ["input_norm", "q_proj", "k_proj", "q_norm", "k_norm"];
    name.starts_with(&format!("layers.{layer}.")) && !needed.iter().any(|part| name.contains(part))
}

#[test]
fn nothing_after_the_last_attention_is_computed() {
    for (name, config) in kinds() {
        // A head of its own, so that it can be spoilt without the embedding.
        let config = DecoderConfig { tied_embeddings: false, ..config };
        let last = config.layers - 1;
        let model = lively(config, 31);
        let spoilt = spoil(&model, &|name| {
            after_attention(name, last) || name.starts_with("norm.") || name.starts_with("lm_head")
        });
        let batch = Batch::new(&texts());
        let want = Want::capture(rich_capture(Detail::Head));
        let (sound, found) = (model.forward(&batch, &want).unwrap(), spoilt.forward(&batch, &want).unwrap());
        assert_eq!(captured(&found.attention), captured(&sound.attention), "{name}");
        assert!(captured(&found.attention).iter().all(|value| value.is_finite()), "{name}");
        let exact = graph::forward(&spoilt.0.decoder, &batch, &want, DType::F64).unwrap();
        assert!(
            captured(&exact.attention).iter().all(|value| value.is_finite()),
            "{name}: tensor operations"
        );
        // The weights do matter to what comes after.
        let logits = spoilt.forward(&batch, &Want::logits()).unwrap().logits.unwrap();
        assert!(flat(&logits).iter().all(|value| value.is_nan()), "{name}");
    }
}

#[test]
fn attention_of_the_first_layers_needs_no_others() {
    for (name, config) in kinds() {
        let (layers, heads) = (config.layers, config.heads);
        let model = lively(config, 37);
        let batch = Batch::new(&texts());
        let all = model.forward(&batch, &Want::capture(rich_capture(Detail::Head))).unwrap().attention;
        for depth in 1..layers {
            let capture = Capture { depth: Some(depth), maps: Vec::new(), ..rich_capture(Detail::Head) };
            let want = Want::capture(capture);
            let above =
                |name: &str| (depth..layers).any(|layer| name.starts_with(&format!("layers.{layer}.")));
            let spoilt = spoil(&model, &|name| above(name) || after_attention(name, depth - 1));
            let found = spoilt.forward(&batch, &want).unwrap().attention;
            let exact = graph::forward(&spoilt.0.decoder, &batch, &want, DType::F64).unwrap().attention;
            assert!(difference(&captured(&found), &captured(&exact)) < 2e-6, "{name}");
            for (found, all) in found.iter().zip(&all) {
                assert_eq!(found.received_by, all.received_by[..depth * heads], "{name}, {depth} layers");
                for (probe, row) in found.probes.iter().enumerate() {
                    let by = &all.probes_by[..depth * heads];
                    for (key, weight) in row.iter().enumerate() {
                        let mean = by.iter().map(|group| group[probe][key]).sum::<f32>() / by.len() as f32;
                        assert!((weight - mean).abs() < 1e-6, "{name}, {depth} layers");
                    }
                }
            }
        }
        let wrong = Capture { depth: Some(layers + 1), ..Capture::received() };
        let message = model.forward(&batch, &Want::capture(wrong)).unwrap_err().to_string();
        assert!(message.contains(&format!("the model has {layers}")), "{message}");
    }
}

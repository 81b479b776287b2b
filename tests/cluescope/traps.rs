//! What is easy to get wrong, switched off one at a time: each mistake must miss what transformers computed by far more than the
//! tolerance, or the fixtures would not notice it. That the model as it is hits them is shown in `families`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use cluescope::Result;
use cluescope::model::{
    Batch, Capture, DecoderConfig, Detail, Logits, Matrix, Model, Position, RopeScaling, Want, WeightSource,
};

use crate::families::{Expected, fixture, load};

/// What a mistake must miss by, a hundred times the tolerance on attention.
const FAR: f32 = 1e-3;

struct Weights(BTreeMap<String, Tensor>);

impl WeightSource for Weights {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn matrix(&mut self, name: &str, _rows: usize, _cols: usize) -> Result<Matrix> {
        Ok(Matrix::Dense(self.0[name].clone()))
    }

    fn vector(&mut self, name: &str, _len: usize) -> Result<Tensor> {
        Ok(self.0[name].clone())
    }
}

/// The model at `path` with changes.
fn changed(
    path: PathBuf,
    config: impl FnOnce(&mut DecoderConfig),
    weights: impl Fn(&str, &Tensor, &DecoderConfig) -> Option<Tensor>,
) -> Model {
    let model = load(&path);
    let mut settings = model.config().clone();
    let mut count = 0;
    let all = model.weights().unwrap().into_iter().map(|(name, tensor)| {
        let other = weights(&name, &tensor, model.config());
        count += usize::from(other.is_some());
        (name, other.unwrap_or(tensor))
    });
    let mut source = Weights(all.collect());
    config(&mut settings);
    assert!(count > 0 || &settings != model.config(), "nothing was changed");
    Model::assemble(
        "trap",
        "0",
        settings,
        model.tokenizer().clone(),
        &mut source,
        &cluescope::model::Device::cpu(),
    )
    .unwrap()
}

fn same_weights(_: &str, _: &Tensor, _: &DecoderConfig) -> Option<Tensor> {
    None
}

fn largest(found: &[f32], want: &[f32]) -> f32 {
    assert_eq!(found.len(), want.len());
    found.iter().zip(want).map(|(f, w)| (f - w).abs()).fold(0.0, f32::max)
}

/// How far received attention and logits, as a part of the largest, are from what transformers computed for the longest text.
fn misses(model: &Model, family: &str) -> (f32, f32) {
    let expected = Expected::read(&fixture(family));
    let ids = expected.ids(2);
    let middle = ids.len() / 2;
    let capture = Capture { detail: Detail::Head, received: true, ..Capture::default() };
    let want = Want { logits: Logits::All, capture: Some(capture) };
    let output = model.forward(&Batch::new(&[ids]), &want).unwrap();
    let logits: Vec<Vec<f32>> = output.logits.unwrap().to_vec2().unwrap();
    let picked = [&logits[middle][..], logits.last().unwrap()].concat();
    let wanted = expected.flat("logits.2");
    let scale = wanted.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    let attention = largest(&output.attention[0].received_by.concat(), &expected.flat("received.2"));
    (attention, largest(&picked, &wanted) / scale)
}

#[track_caller]
fn attention_is_missed(model: &Model, family: &str) {
    let (attention, logits) = misses(model, family);
    assert!(attention > FAR, "{family}: attention misses by {attention:e} only");
    assert!(logits > FAR, "{family}: logits miss by {logits:e} only");
}

#[test]
fn llamas_gguf_rows_left_in_pairs() {
    // Hugging Face's halves of a head to llama.cpp's pairs: how the rows lie in the file.
    let pairs = |name: &str, weight: &Tensor, config: &DecoderConfig| {
        (name.contains("q_proj.weight") || name.contains("k_proj.weight")).then(|| {
            let (rows, cols) = weight.dims2().unwrap();
            let heads = rows / config.head_dim;
            let halves = weight.reshape((heads, 2, config.head_dim / 2, cols)).unwrap();
            halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, cols)).unwrap()
        })
    };
    attention_is_missed(&changed(fixture("llama2").join("model.gguf"), |_| {}, pairs), "llama2");
}

#[test]
fn gemmas_one_added_twice_or_never() {
    let gguf = |family: &str| fixture(family).join("model.gguf");
    for family in ["gemma2", "gemma3"] {
        for (path, by) in [(gguf(family), 1.0), (fixture(family), -1.0)] {
            let shifted = |name: &str, weight: &Tensor, _: &DecoderConfig| {
                name.contains("norm").then(|| (weight + by).unwrap())
            };
            attention_is_missed(&changed(path, |_| {}, shifted), family);
        }
    }
}

#[test]
fn llama_3_without_its_rotary_factors() {
    for path in [fixture("llama3.1"), fixture("llama3.1").join("model.gguf")] {
        let plain = |config: &mut DecoderConfig| match &mut config.position {
            Position::Rope { scaling, .. } => *scaling = RopeScaling::None,
            Position::Learned => panic!("no rotary positions"),
        };
        attention_is_missed(&changed(path, plain, same_weights), "llama3.1");
    }
}

#[test]
fn a_tied_head_taken_for_another() {
    // As if the head were read from a tensor of its own: here the embedding with its rows in another order.
    let path = fixture("smollm2");
    let model = load(&path);
    assert!(model.config().tied_embeddings);
    let mut weights = model.weights().unwrap();
    let rows = model.config().vocab_size;
    let order: Vec<u32> = (0..rows as u32).rev().collect();
    let order = Tensor::from_vec(order, rows, &Device::Cpu).unwrap();
    let head = weights["embed_tokens.weight"].index_select(&order, 0).unwrap();
    weights.insert("lm_head.weight".into(), head);
    let config = DecoderConfig { tied_embeddings: false, ..model.config().clone() };
    let other = Model::assemble(
        "trap",
        "0",
        config,
        model.tokenizer().clone(),
        &mut Weights(weights),
        &cluescope::model::Device::cpu(),
    )
    .unwrap();
    assert!(misses(&other, "smollm2").1 > FAR);
}

#[test]
fn gemma_2_without_its_caps() {
    attention_is_missed(&changed(fixture("gemma2"), |c| c.attention_softcap = None, same_weights), "gemma2");
    let uncapped = changed(fixture("gemma2"), |c| c.final_softcap = None, same_weights);
    let (attention, logits) = misses(&uncapped, "gemma2");
    assert!(
        attention < 1e-5 && logits > FAR,
        "the last cap changes the logits alone: {attention:e}, {logits:e}"
    );
}

#[test]
fn sliding_layers_that_see_everything() {
    for family in ["mistral", "qwen2-window", "gemma2", "gemma3"] {
        let wide =
            |config: &mut DecoderConfig| config.layer_kinds.iter_mut().for_each(|kind| kind.window = None);
        attention_is_missed(&changed(fixture(family), wide, same_weights), family);
    }
}

#[test]
fn windows_one_key_too_wide() {
    for family in ["mistral", "qwen2-window", "gemma2", "gemma3"] {
        let wider = |config: &mut DecoderConfig| {
            config.layer_kinds.iter_mut().for_each(|kind| kind.window = kind.window.map(|window| window + 1));
        };
        attention_is_missed(&changed(fixture(family), wider, same_weights), family);
    }
}

#[test]
fn gemma_3_with_one_rotary_base() {
    let one = |config: &mut DecoderConfig| {
        for kind in &mut config.layer_kinds {
            (kind.rope_theta, kind.rope_scaling) = (None, None);
        }
    };
    attention_is_missed(&changed(fixture("gemma3"), one, same_weights), "gemma3");
}

/// Column sums are divided by all queries from the token on, T − j: not by T, and under a window not by those that saw it.
#[test]
fn another_divisor_than_the_queries_that_follow() {
    for family in ["llama2", "mistral", "gemma3"] {
        let expected = Expected::read(&fixture(family));
        let ids = expected.ids(2);
        let length = ids.len();
        let capture = Capture { detail: Detail::Head, received: true, ..Capture::default() };
        let output = load(&fixture(family)).forward(&Batch::new(&[ids]), &Want::capture(capture)).unwrap();
        let received = output.attention[0].received_by.concat();
        let wanted = expected.flat("received.2");
        assert!(largest(&received, &wanted) < 1e-5);
        let divided = |by: &dyn Fn(usize) -> usize| -> Vec<f32> {
            let share = |(at, value): (usize, &f32)| {
                let j = at % length;
                value * (length - j) as f32 / by(j) as f32
            };
            received.iter().enumerate().map(share).collect()
        };
        assert!(largest(&divided(&|_| length), &wanted) > FAR, "{family}: by T");
        assert!(
            largest(&divided(&|j| (length - j).min(8)), &wanted) > FAR,
            "{family}: by the queries within a window"
        );
    }
}

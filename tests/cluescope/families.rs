//! Every family against transformers: token ids and offsets, logits, received attention, probe rows and full
//! maps on tiny random checkpoints (`tests/fixtures/make_families.py`), from safetensors and from GGUF.
//!
//! Tolerances: logits 1e-4 of the largest logit, attention 1e-5, both f32 rounding over a few layers.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cluescope::model::{Batch, Capture, Detail, Device as At, Devices, Logits, Model, Output, Want};

pub(crate) const FAMILIES: [&str; 14] = [
    "llama2",
    "llama3.1",
    "llama-bias-linear",
    "smollm2",
    "mistral",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "gemma2",
    "gemma2-scalar",
    "gemma3",
    "gpt-neox",
    "gpt-neox-sequential",
    "gpt2",
];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name)
}

/// On the CPU, whatever else the machine has.
pub(crate) fn load(path: &Path) -> Model {
    Model::load_onto(path.to_str().unwrap(), &At::cpu()).unwrap()
}

/// In f32 on the CPU and, in a build for GPUs, on every one of this machine.
pub(crate) fn everywhere(model: &Model) -> Vec<(String, Model)> {
    let cards = Devices::all_cuda().map(|cards| cards.as_slice().to_vec()).unwrap_or_default();
    let devices = cards.into_iter().chain(At::metal()).map(|card| card.with_dtype(DType::F32).unwrap());
    let moved = |device: At| (device.to_string(), model.to_device(&device).unwrap());
    std::iter::once(At::cpu()).chain(devices).map(moved).collect()
}

/// What transformers computed.
pub(crate) struct Expected(std::collections::HashMap<String, Tensor>);

impl Expected {
    pub(crate) fn read(folder: &Path) -> Self {
        Expected(candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap())
    }

    pub(crate) fn ids(&self, text: usize) -> Vec<u32> {
        let ids = self.0[&format!("ids.{text}")].to_dtype(DType::I64).unwrap();
        ids.to_vec1::<i64>().unwrap().into_iter().map(|id| id as u32).collect()
    }

    pub(crate) fn flat(&self, name: &str) -> Vec<f32> {
        self.0[name].flatten_all().unwrap().to_vec1().unwrap()
    }
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(found.len(), want.len(), "{what}: lengths");
    let (mut worst, mut at) = (0.0, 0);
    for (index, (f, w)) in found.iter().zip(want).enumerate() {
        assert!(f.is_finite(), "{what}[{index}] = {f}");
        if (f - w).abs() > worst {
            (worst, at) = ((f - w).abs(), index);
        }
    }
    assert!(worst <= tolerance, "{what}[{at}]: {} instead of {}, off by {worst:e}", found[at], want[at]);
}

fn rows(logits: &Tensor) -> Vec<Vec<f32>> {
    logits.to_vec2().unwrap()
}

fn full(texts: &[Vec<u32>], maps: Vec<(usize, usize)>) -> Want {
    let probes = texts.iter().map(|ids| vec![ids.len() / 2]).collect();
    Want {
        logits: Logits::All,
        capture: Some(Capture { detail: Detail::Head, received: true, probes, maps, depth: None }),
    }
}

/// Compares a run over all three texts with the fixture.
fn check(name: &str, model: &Model, expected: &Expected, batched: bool) {
    let texts: Vec<Vec<u32>> = (0..3).map(|text| expected.ids(text)).collect();
    let config = model.config();
    let maps: Vec<(usize, usize)> =
        (0..config.layers).flat_map(|layer| (0..config.heads).map(move |head| (layer, head))).collect();
    let groups: Vec<Vec<usize>> = if batched { vec![vec![2, 0, 1]] } else { vec![vec![0], vec![1], vec![2]] };
    for group in groups {
        let chosen: Vec<Vec<u32>> = group.iter().map(|&text| texts[text].clone()).collect();
        let batch = Batch::new(&chosen);
        let Output { logits, attention, .. } = model.forward(&batch, &full(&chosen, maps.clone())).unwrap();
        let logits = rows(&logits.unwrap());
        for (slot, &text) in group.iter().enumerate() {
            let what = format!("{name}, text {text}, batched {batched}");
            let length = texts[text].len();
            let mine = &logits[batch.range(slot)];
            let picked: Vec<f32> = match text {
                0 => mine.concat(),
                _ => [&mine[length / 2][..], &mine[length - 1]].concat(),
            };
            let want = expected.flat(&format!("logits.{text}"));
            let scale = want.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert_close(&format!("{what}: logits"), &picked, &want, 1e-4 * scale);

            let captured = &attention[slot];
            let want = expected.flat(&format!("received.{text}"));
            let by: Vec<f32> = captured.received_by.concat();
            assert_close(&format!("{what}: received by head"), &by, &want, 1e-5);
            let heads = captured.received_by.len() as f32;
            let mean: Vec<f32> = (0..length)
                .map(|j| captured.received_by.iter().map(|head| head[j]).sum::<f32>() / heads)
                .collect();
            assert_close(&format!("{what}: received"), &captured.received, &mean, 1e-6);

            let want = expected.flat(&format!("probe.{text}"));
            let by: Vec<f32> = captured.probes_by.iter().flat_map(|probes| probes[0].clone()).collect();
            assert_close(&format!("{what}: probe by head"), &by, &want, 1e-5);
            if text == 0 {
                let want = expected.flat("maps.0");
                assert_close(&format!("{what}: maps"), &captured.maps.concat(), &want, 1e-5);
            }
        }
    }
}

#[test]
fn every_family_computes_what_transformers_computes() {
    for name in FAMILIES {
        let folder = fixture(name);
        let expected = Expected::read(&folder);
        for (device, model) in everywhere(&load(&folder)) {
            let name = format!("{name} on {device}");
            check(&name, &model, &expected, false);
            check(&name, &model, &expected, true);
        }
    }
}

#[test]
fn every_family_computes_the_same_from_gguf() {
    let mut seen = 0;
    for name in FAMILIES {
        let folder = fixture(name);
        let file = folder.join("model.gguf");
        if !file.exists() {
            continue;
        }
        seen += 1;
        let expected = Expected::read(&folder);
        for (device, model) in everywhere(&load(&file)) {
            check(&format!("{name} GGUF on {device}"), &model, &expected, false);
        }
    }
    assert!(seen >= 8, "only {seen} GGUF fixtures");
}

#[test]
fn every_storage_form_holds_the_same_model() {
    let expected = Expected::read(&fixture("smollm2"));
    for form in ["smollm2-f32", "smollm2-f16", "smollm2-sharded"] {
        check(form, &load(&fixture(form)), &expected, false);
    }
    let parts = std::fs::read_dir(fixture("smollm2-sharded")).unwrap();
    let shards = parts.filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|e| e == "safetensors"));
    assert!(shards.count() > 1, "the sharded fixture has one file only");
}

/// The texts of the fixtures are longer than the windows, or the windows would go untested.
#[test]
fn windows_matter_in_the_fixtures() {
    for name in ["mistral", "qwen2-window", "gemma2", "gemma3"] {
        let model = load(&fixture(name));
        let windows: Vec<_> = model.config().layer_kinds.iter().map(|kind| kind.window).collect();
        assert!(windows.contains(&Some(8)), "{name}: {windows:?}");
        assert!(name == "mistral" || windows.contains(&None), "{name}: {windows:?}");
        assert!(Expected::read(&fixture(name)).ids(2).len() > 40);
    }
}

#[test]
fn tokens_and_offsets_are_those_of_transformers() {
    for name in FAMILIES {
        let folder = fixture(name);
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&std::fs::read_to_string(folder.join("tokens.json")).unwrap()).unwrap();
        let mut models = vec![("safetensors", load(&folder))];
        if folder.join("model.gguf").exists() {
            models.push(("GGUF", load(&folder.join("model.gguf"))));
        }
        for (form, model) in models {
            for row in &rows {
                let text = row["text"].as_str().unwrap();
                let encoding = model.tokenizer().encode(text).unwrap();
                let ids: Vec<u32> = serde_json::from_value(row["ids"].clone()).unwrap();
                let offsets: Vec<(usize, usize)> = serde_json::from_value(row["offsets"].clone()).unwrap();
                assert_eq!(encoding.ids, ids, "{name} {form}: ids of {text:?}");
                assert_eq!(encoding.offsets, offsets, "{name} {form}: offsets of {text:?}");
            }
        }
    }
}

#[test]
fn every_family_streams_the_attention_it_has_in_memory() {
    use cluescope::attention::{Attend, Cache};
    use cluescope::corpus::Document;
    use cluescope::model::Streamed;

    let texts = ["Anna Roth was born in Oslo.", "She studied physics and went to Rome in 1987.", "Paris"];
    let documents: Vec<Document> =
        texts.iter().enumerate().map(|(i, text)| Document::new(i.to_string(), *text, Vec::new())).collect();
    let options = Attend::new().cache(Cache::Off);
    let mut seen = 0;
    for family in FAMILIES {
        let folder = fixture(family);
        for source in [folder.clone(), folder.join("model.gguf")] {
            if !source.is_file() && !source.join("config.json").is_file() {
                continue;
            }
            let (whole, streamed) = (load(&source), Streamed::open(source.to_str().unwrap()).unwrap());
            let source = source.display();
            let (a, b) =
                (whole.attend(&documents, &options).unwrap(), streamed.attend(&documents, &options).unwrap());
            // The same batches, so the same bits; the hash too, so that both find each other's results in the cache.
            assert_eq!((&a.hash, &a.texts), (&b.hash, &b.texts), "{source}");
            assert!(streamed.block_bytes() > 0 && streamed.block_bytes() < whole.weight_bytes(), "{source}");
            seen += 1;
        }
    }
    assert!(seen > FAMILIES.len(), "folders and GGUF files: {seen}");
}

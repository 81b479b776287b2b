//! Training against torch and against itself: resumed, on other thread counts, saved and loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor, Var};
use cluescope::augment::Augment;
use cluescope::corpus::{Biographies, Corpus, Document};
use cluescope::model::{Batch, DecoderConfig, Logits, LoraConfig, Model, Want};
use cluescope::tokens::Tokenizer;
use cluescope::train::{
    AdamW, AdamWConfig, Adapter, Batching, Finetune, LearningRate, Prepared, Recipe, Run, Schedule,
    clip_factor, global_norm, pretrain,
};
use serde_json::Value;

use super::toys::tiny_recipe;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

pub(crate) fn load_family(family: &str) -> Model {
    crate::families::load(&fixture(&format!("families/{family}")))
}

fn floats(value: &Value) -> Vec<f32> {
    match value {
        Value::Array(items) => items.iter().flat_map(floats).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

pub(crate) fn close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!((g - e).abs() <= tolerance * e.abs().max(1.0), "{what}[{i}]: {g}, expected {e}");
    }
}

#[test]
fn adamw_walks_as_torch_does() {
    for (index, case) in json("optimizer.json")["cases"].as_array().unwrap().iter().enumerate() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let config = AdamWConfig {
            beta1: number("beta1"),
            beta2: number("beta2"),
            epsilon: number("epsilon"),
            weight_decay: number("weight_decay"),
        };
        let tensor =
            |value: &Value, shape: &[usize]| Tensor::from_vec(floats(value), shape, &Device::Cpu).unwrap();
        let variables = BTreeMap::from([
            ("matrix".to_string(), Var::from_tensor(&tensor(&case["matrix"], &[5, 7])).unwrap()),
            ("vector".to_string(), Var::from_tensor(&tensor(&case["vector"], &[6])).unwrap()),
        ]);
        let mut optimizer = AdamW::new(config);
        for (step, expected) in case["steps"].as_array().unwrap().iter().enumerate() {
            let gradients = BTreeMap::from([
                ("matrix".to_string(), tensor(&expected["matrix_grad"], &[5, 7])),
                ("vector".to_string(), tensor(&expected["vector_grad"], &[6])),
            ]);
            let mut scale = 1.0;
            if let Some(norm) = expected["norm"].as_f64() {
                let got = global_norm(&gradients).unwrap();
                assert!(
                    (f64::from(got) / norm - 1.0).abs() < 1e-6,
                    "case {index}, step {step}: norm {got}, torch {norm}"
                );
                scale = clip_factor(got, number("max_grad_norm"));
            }
            optimizer.step(&variables, &gradients, number("learning_rate"), scale).unwrap();
            for (name, variable) in &variables {
                // Ten f32 steps in another order of operations: a few units in the last place.
                let got = variable.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                close(&got, &floats(&expected[name]), 2e-6, &format!("case {index}, step {step}, {name}"));
            }
        }
        assert_eq!(optimizer.steps(), 10);
    }
}

#[test]
fn learning_rates_are_those_of_transformers() {
    for case in json("optimizer.json")["schedules"].as_array().unwrap() {
        let schedule: Schedule = serde_json::from_value(case["schedule"].clone()).unwrap();
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let rate =
            LearningRate { peak: 5e-4, schedule, warmup_steps: size("warmup"), total_steps: size("total") };
        for (step, expected) in case["rates"].as_array().unwrap().iter().enumerate() {
            let expected = expected.as_f64().unwrap();
            // The cosine of the platform may differ in the last bit.
            assert!(
                (rate.at(step) - expected).abs() <= 1e-18,
                "{case:?} step {step}: {} != {expected}",
                rate.at(step)
            );
        }
    }
}

pub(crate) fn corpus(texts: usize) -> Corpus {
    let cities = ["Oslo", "Quito", "Dakar", "Hanoi", "Turin", "Perth", "Sofia"];
    let documents = (0..texts)
        .map(|i| {
            let (born, worked) = (cities[i % 7], cities[(i * 3 + 1) % 7]);
            let text = format!("Person number {i} was born in {born} and worked in {worked}.");
            Document::new(format!("p{i}"), text, Vec::new())
        })
        .collect();
    Corpus { documents, ..Default::default() }
}

fn tiny() -> Model {
    let corpus = corpus(40);
    let tokenizer = Tokenizer::train_bpe(corpus.documents.iter().map(|d| d.text.as_str()), 300).unwrap();
    let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 4, 2, 48, 64);
    Model::random("tiny", config, tokenizer, 1).unwrap()
}

fn bits(run: &Run) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    for variable in run.model.trainable().values() {
        all.extend(variable.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()));
    }
    all.extend(run.steps.iter().flat_map(|s| [(s.loss as f32).to_bits(), (s.grad_norm as f32).to_bits()]));
    all
}

fn short(method: Finetune) -> Finetune {
    method.learning_rate(5e-3).epochs(3).batch_size(4).seed(9)
}

#[test]
fn training_lowers_the_loss_and_leaves_the_base_alone() {
    let model = tiny();
    let before: Vec<f32> = model.weights().unwrap()["layers.0.self_attn.q_proj.weight"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    // An adapter beside frozen random weights can do little; all weights together can do much.
    for (method, share) in [(Finetune::lora(4), 0.96), (Finetune::full(), 0.6)] {
        let run = model.finetune(&corpus(24), short(method).epochs(12)).unwrap();
        let epochs = run.epochs();
        assert_eq!(epochs.len(), 12);
        assert_eq!(run.steps.len(), 12 * 6);
        assert!(epochs[11].loss < share * epochs[0].loss, "{:?}", epochs);
        assert_ne!(run.model.hash(), model.hash());
    }
    let after: Vec<f32> = model.weights().unwrap()["layers.0.self_attn.q_proj.weight"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert_eq!(before, after);
}

#[test]
fn accumulated_passes_weigh_every_token_the_same() {
    let model = tiny();
    let whole = model.finetune(&corpus(24), short(Finetune::full()).batch_size(8)).unwrap();
    let parts = model
        .finetune(&corpus(24), short(Finetune::full()).batch_size(2).gradient_accumulation_steps(4))
        .unwrap();
    assert_eq!(whole.steps.len(), parts.steps.len());
    for (a, b) in whole.steps.iter().zip(&parts.steps) {
        // Sums in another order; AdamW magnifies rounding of tiny gradients over the nine steps.
        assert!((a.loss - b.loss).abs() < 2e-4, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
}

/// Windows group texts and change nothing else: all texts in one step give the loss they give without windows.
#[test]
fn packed_texts_have_the_loss_they_have_alone() {
    let model = tiny();
    let copied = Augment::plain().copies(2).apply(&corpus(12)).unwrap();
    let train = |packing: bool| {
        // No more windows than texts: an epoch is one step either way.
        let how =
            Finetune::full().learning_rate(5e-3).epochs(6).batch_size(36).packing(packing).max_length(64);
        model.finetune(&copied, how.seed(9)).unwrap()
    };
    let (alone, packed) = (train(false), train(true));
    assert_eq!((alone.steps.len(), packed.steps.len()), (6, 6));
    for (a, b) in alone.steps.iter().zip(&packed.steps) {
        assert_eq!(a.tokens, b.tokens);
        // Sums in another order, which AdamW magnifies.
        assert!((a.loss - b.loss).abs() < 2e-4, "step {}: {} and {}", a.step, a.loss, b.loss);
    }
    assert!(alone.steps[5].loss < 0.95 * alone.steps[0].loss, "the loss moves: {:?}", alone.steps);
}

/// The versions of one text, whatever made them and wherever they were kept, never share a window.
#[test]
fn no_window_holds_two_versions_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let people = Biographies::new(6).per_person(2).permute_sentences(true).generate().unwrap();
    let tokenizer = Tokenizer::train_bpe(people.documents.iter().map(|d| d.text.as_str()), 400).unwrap();
    let copied = Augment::random().tokenizer(&tokenizer).alpha(0.3).copies(2).apply(&people).unwrap();
    let kept = |name: &str, corpus: &Corpus| {
        let path = folder.path().join(name);
        corpus.write(&path).unwrap();
        Corpus::read(&path).unwrap()
    };
    let text = |i: usize| Document::new(format!("t{i}"), "One line of a text of one's own.", Vec::new());
    let notes = Corpus { documents: (0..9).map(text).collect(), ..Default::default() };
    // Texts, and how many of them at most may share a window.
    for (name, corpus, most) in [
        ("copies", &copied, 6),
        ("jsonl", &kept("a.jsonl", &copied), 6),
        ("parquet", &kept("a.parquet", &copied), 6),
        ("csv: anything may be a copy", &kept("a.csv", &copied), 1),
        ("paragraphs", &kept("notes.txt", &notes), 9),
        ("SQuAD", &kept("squad.json", &kept("notes.txt", &notes)), 9),
    ] {
        let prepared = Prepared::new(&corpus.documents, &tokenizer, 4096).unwrap();
        let batching = Batching { batch_size: 1, max_length: 4096, packing: true, seed: 3 };
        let windows = batching.epoch(&prepared.examples, 0);
        assert_eq!(windows.iter().map(Vec::len).max(), Some(most), "{name}");
        for window in &windows {
            // The person's name, without a number of a biography or copy.
            let of = |&i: &usize| prepared.examples[i].id.split(['/', '#']).next().unwrap().to_string();
            let mut subjects: Vec<String> = window.iter().map(of).collect();
            subjects.sort();
            subjects.dedup();
            assert!(most == 9 || subjects.len() == window.len(), "{name}: {window:?}");
        }
    }
}

#[test]
fn a_pretraining_that_diverges_keeps_its_batch() {
    let tiny = tiny_recipe(40);
    // No f32 holds a weight after such a step.
    let recipe = Recipe { steps: 3, adamw: AdamWConfig { weight_decay: 1e300, ..tiny.adamw }, ..tiny };
    let folder = tempfile::tempdir().unwrap();
    let message = pretrain(&recipe, folder.path()).unwrap_err().to_string();
    let kept = folder.path().join("nano-small/failed-batch.json");
    assert!(message.contains(&kept.display().to_string()), "{message}");
    let batch: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert!(message.starts_with(&format!("step {}: the loss is", batch["step"])), "{message}");
    assert_eq!(batch["passes"][0]["texts"].as_array().unwrap().len(), 2);
}

#[test]
fn recomputing_blocks_keeps_the_bits() {
    let model = tiny();
    let kept = model.finetune(&corpus(24), short(Finetune::lora(4).lora_dropout(0.2))).unwrap();
    let again = model
        .finetune(&corpus(24), short(Finetune::lora(4).lora_dropout(0.2)).gradient_checkpointing(true))
        .unwrap();
    assert_eq!(bits(&kept), bits(&again));
}

/// The run that is killed below: long enough to be hit in the middle.
fn killed(method: Finetune, folder: &std::path::Path) -> Run {
    tiny().finetune(&corpus(22), short(method).epochs(30).checkpoint(folder).save_steps(3)).unwrap()
}

fn methods() -> [Finetune; 2] {
    [Finetune::lora(4).lora_dropout(0.1), Finetune::full()]
}

const WORKER: &str = "CLUESCOPE_TEST_TRAIN_WORKER";

/// Not a test of its own: the process that `a_killed_run_resumes_with_the_same_bits` starts and kills.
#[test]
#[ignore = "started by a_killed_run_resumes_with_the_same_bits"]
fn worker() {
    let Ok(folder) = std::env::var(WORKER) else { return };
    let folder = PathBuf::from(folder);
    let method: usize = std::fs::read_to_string(folder.join("method")).unwrap().parse().unwrap();
    let run = killed(methods()[method].clone(), &folder);
    let bytes: Vec<u8> = bits(&run).iter().flat_map(|b| b.to_le_bytes()).collect();
    std::fs::write(folder.join("result.partial"), bytes).unwrap();
    std::fs::rename(folder.join("result.partial"), folder.join("result")).unwrap();
}

#[test]
fn a_killed_run_resumes_with_the_same_bits() {
    for (index, method) in methods().into_iter().enumerate() {
        let straight = bits(&killed(method, tempfile::tempdir().unwrap().path()));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("method"), index.to_string()).unwrap();
        let mut kills = 0;
        // Each life is a little longer than the last, so that the run ends on any machine.
        for life in 1.. {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["train::worker", "--exact", "--ignored", "--quiet"])
                .env(WORKER, folder.path())
                // Another number of threads each time.
                .env("RAYON_NUM_THREADS", (1 + life % 3).to_string())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let deadline = std::time::Instant::now() + std::time::Duration::from_millis(60 + 37 * life);
            while std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none() {
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            let finished = child.try_wait().unwrap().is_some();
            if !finished {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += usize::from(folder.path().join("checkpoint.safetensors").exists());
            }
            if folder.path().join("result").exists() {
                break;
            }
            assert!(!finished, "the worker failed by itself");
        }
        let result = std::fs::read(folder.path().join("result")).unwrap();
        let resumed: Vec<u32> =
            result.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        assert!(resumed == straight, "method {index}, killed {kills} times with a checkpoint: other bits");
        assert!(kills > 0, "method {index}: never killed after its first checkpoint, so nothing was resumed");
    }
}

#[test]
fn a_finished_run_is_not_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = killed(Finetune::lora(4), folder.path());
    let path = folder.path().join("checkpoint.safetensors");
    let saved = std::fs::metadata(&path).unwrap().modified().unwrap();
    let again = killed(Finetune::lora(4), folder.path());
    assert_eq!(bits(&again), bits(&first));
    assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), saved);
}

#[test]
fn another_run_is_refused_by_what_differs() {
    let model = tiny();
    let folder = tempfile::tempdir().unwrap();
    let run = short(Finetune::lora(4)).checkpoint(folder.path());
    model.finetune(&corpus(8), run.clone()).unwrap();
    let cases = [
        ("batch_size was 4, now it is 2", model.finetune(&corpus(8), run.clone().batch_size(2))),
        ("its texts are others", model.finetune(&corpus(9), run.clone())),
    ];
    for (part, result) in cases {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part) && message.contains("checkpoint.safetensors"), "{message}");
    }
}

/// JSON moves the last bit of some numbers; neither a run nor a finished model is another for that.
#[test]
fn settings_of_many_digits_are_known_again() {
    let model = tiny();
    for (alpha, dropout) in [(3.9, 0.03), (16.0, 0.07), (0.7, 0.0)] {
        let folder = tempfile::tempdir().unwrap();
        let run = short(Finetune::lora(4).lora_alpha(alpha).lora_dropout(dropout)).checkpoint(folder.path());
        let first = model.finetune(&corpus(8), run.clone()).unwrap();
        assert_eq!(bits(&model.finetune(&corpus(8), run).unwrap()), bits(&first), "{alpha}, {dropout}");
    }
    let read_back = |x: &f64| serde_json::from_str::<f64>(&serde_json::to_string(x).unwrap()).unwrap();
    let rate = (1..10_000).map(|i| 1e-3 / f64::from(i)).find(|x| read_back(x) != *x).unwrap();
    let recipe = Recipe { steps: 2, learning_rate: rate, ..tiny_recipe(8) };
    let folder = tempfile::tempdir().unwrap();
    pretrain(&recipe, folder.path()).unwrap();
    let weights = folder.path().join("nano-small/model.safetensors");
    let written = || std::fs::metadata(&weights).unwrap().modified().unwrap();
    let first = written();
    pretrain(&recipe, folder.path()).unwrap();
    assert_eq!(written(), first, "a finished model is not trained again");
}

#[test]
fn a_checkpoint_too_large_to_be_read_is_refused_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let long = short(Finetune::lora(2)).max_steps(600_001).checkpoint(folder.path());
    let message = tiny().finetune(&corpus(8), long).unwrap_err().to_string();
    assert!(message.contains("steps = 600001: at most 600000 with a checkpoint"), "{message}");
    assert!(!folder.path().join("checkpoint.safetensors").exists());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let model = tiny();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&model.finetune(&corpus(16), short(Finetune::full())).unwrap()))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn noise_is_in_the_input_alone_and_follows_the_seed() {
    let train = |share: f64| {
        let run = tiny().finetune(&corpus(8), short(Finetune::lora(4)).denoise(share)).unwrap();
        (bits(&run), run.steps[0].loss)
    };
    let plain = tiny().finetune(&corpus(8), short(Finetune::lora(4))).unwrap();
    assert_eq!(train(0.0).0, bits(&plain), "no noise is no change");
    let noisy = train(0.5);
    assert_eq!(noisy, train(0.5));
    assert_ne!(noisy.1, plain.steps[0].loss);
    // Were the targets noise too, an untrained model's loss would be that of guessing either way; a trained one learns
    // the texts: the loss on the clean corpus falls.
    let losses = tiny()
        .finetune(&corpus(8), short(Finetune::full()).learning_rate(1e-2).epochs(30).denoise(0.2))
        .unwrap();
    let (first, last) = (losses.steps[0].loss, losses.steps[losses.steps.len() - 1].loss);
    assert!(last < 0.6 * first, "{first} to {last}");
}

/// As Gemma 3's: the tokenizer knows a token that the model has no embedding for.
#[test]
fn noise_is_of_tokens_that_the_model_has() {
    let folder = crate::loading::copy("gemma3");
    crate::loading::edit(&folder.path().join("tokenizer.json"), |tokenizer| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        let mut extra = added[0].clone();
        (extra["id"], extra["content"]) = (427.into(), "<image_soft_token>".into());
        added.push(extra);
    });
    let model = crate::families::load(folder.path());
    assert_eq!((model.tokenizer().vocab_size(), model.config().vocab_size), (428, 427));
    let noisy = Finetune::lora(2).epochs(20).max_length(32).denoise(1.0);
    model.finetune(&corpus(8), noisy).unwrap();
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_texts() {
    let model = tiny().with_trainable_weights().unwrap();
    let norm = &model.trainable()["norm.weight"];
    norm.set(&norm.affine(f64::NAN, 0.0).unwrap()).unwrap();
    let model = model.frozen();
    let message = model.finetune(&corpus(8), short(Finetune::full())).unwrap_err().to_string();
    assert!(message.starts_with("step 1: the loss is NaN on "), "{message}");
    // Without a folder the batch lies among the temporary files.
    let path = PathBuf::from(message.rsplit_once("kept in ").unwrap().1);
    assert!(path.starts_with(std::env::temp_dir()) && path.ends_with("failed-batch.json"), "{message}");
    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    // With a folder it lies there, as the model read it.
    let folder = tempfile::tempdir().unwrap();
    let run = short(Finetune::full()).checkpoint(folder.path());
    let message = model.finetune(&corpus(8), run).unwrap_err().to_string();
    assert!(message.contains("failed-batch.json"), "{message}");
    let kept: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("failed-batch.json")).unwrap()).unwrap();
    assert_eq!(kept["step"], 1);
    let pass = &kept["passes"][0];
    let ids: Vec<String> = serde_json::from_value(pass["ids"].clone()).unwrap();
    let texts: Vec<Vec<u32>> = serde_json::from_value(pass["texts"].clone()).unwrap();
    assert_eq!(ids.len(), 4);
    for (id, text) in ids.iter().zip(&texts) {
        let document = corpus(8).documents.into_iter().find(|d| d.id == *id).unwrap();
        assert_eq!(*text, model.tokenizer().encode(&document.text).unwrap().ids);
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    assert_eq!(pass["targets"].as_array().unwrap().len(), tokens);
}

#[test]
fn a_second_adapter_stands_on_the_first() {
    let model = tiny();
    let first = model.finetune(&corpus(24), short(Finetune::lora(4)).epochs(6)).unwrap();
    let logits = |model: &Model| {
        let want = Want { logits: Logits::Last, capture: None };
        let output = model.forward(&Batch::new(&[[5u32, 17, 30, 9]]), &want).unwrap();
        output.logits.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    // A fresh adapter changes nothing, so what comes out is the first one's doing.
    let second = first.model.with_lora(&LoraConfig { r: 2, ..LoraConfig::default() }, 3).unwrap();
    let (plain, learned) = (logits(&model), logits(&first.model));
    assert!(
        plain.iter().zip(&learned).any(|(a, b)| (a - b).abs() > 1e-3),
        "the first adapter does something"
    );
    // Rounding of the merged weights.
    close(&logits(&second), &learned, 1e-5, "merged");
    let names: Vec<&String> = second.trainable().keys().collect();
    assert!(second.trainable()[names[0]].dims().contains(&2), "the rank is the second adapter's");
}

#[test]
fn the_best_of_the_evaluations_is_returned_and_ends_the_run() {
    let model = tiny();
    // The words of texts like those trained on, in backward order: the words are learned first, then their order, which
    // is wrong here.
    let mut documents = corpus(40).documents.split_off(34);
    for document in &mut documents {
        document.text = document.text.split(' ').rev().collect::<Vec<_>>().join(" ");
    }
    let held_out = Corpus { documents, ..Default::default() };
    let how = |patience: Option<usize>| {
        let run = short(Finetune::full()).learning_rate(2e-2).epochs(20).evaluate(&held_out).eval_steps(2);
        match patience {
            Some(patience) => run.early_stopping_patience(patience),
            None => run,
        }
    };
    let whole = model.finetune(&corpus(12), how(None)).unwrap();
    assert_eq!((whole.steps.len(), whole.evaluations.len()), (60, 30));
    let best = *whole.best().unwrap();
    assert!(best.step < 50, "the losses: {:?}", whole.evaluations);
    assert_eq!(whole.step, best.step);
    // The weights are those of the best step: the loss comes out again.
    let texts: Vec<Vec<u32>> =
        held_out.documents.iter().map(|d| model.tokenizer().encode(&d.text).unwrap().ids).collect();
    let loss = |model: &Model| {
        let rows = model.token_log_probs(&Batch::new(&texts)).unwrap();
        let tokens: usize = rows.iter().map(|row| row.len() - 1).sum();
        -rows.iter().flat_map(|row| &row[1..]).map(|&p| f64::from(p)).sum::<f64>() / tokens as f64
    };
    // Batches of other sizes, other roundings.
    assert!((loss(&whole.model) - best.loss).abs() < 1e-5);
    let last = model.finetune(&corpus(12), how(None).load_best_model_at_end(false)).unwrap();
    assert_eq!(last.step, 60);
    assert!(loss(&last.model) > best.loss + 1e-3);

    let stopped = model.finetune(&corpus(12), how(Some(3))).unwrap();
    assert_eq!(stopped.steps.len(), stopped.best().unwrap().step + 2 * 3);
    assert!(stopped.steps.len() < 60);
    // On disk the same, and a run that was ended is not taken up again.
    let folder = tempfile::tempdir().unwrap();
    let kept = model.finetune(&corpus(12), how(Some(3)).checkpoint(folder.path())).unwrap();
    let again = model.finetune(&corpus(12), how(Some(3)).checkpoint(folder.path())).unwrap();
    assert!(folder.path().join("best.safetensors").exists());
    for run in [&kept, &again] {
        assert_eq!(bits(run), bits(&stopped));
        assert_eq!((run.step, &run.evaluations), (stopped.step, &stopped.evaluations));
    }
    // Other held-out texts are another run.
    let other = how(Some(3)).evaluate(&corpus(3)).checkpoint(folder.path());
    let message = model.finetune(&corpus(12), other).unwrap_err().to_string();
    assert!(message.contains("the texts it evaluates on are others"), "{message}");
}

#[test]
fn one_folder_holds_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(folder.path().join("checkpoint.lock")).unwrap();
    let held = cluescope::files::Locked::try_new(file).unwrap().unwrap();
    let run = || tiny().finetune(&corpus(8), short(Finetune::lora(2)).checkpoint(folder.path()));
    let message = run().unwrap_err().to_string();
    assert!(message.contains("another process trains in this folder"), "{message}");
    drop(held);
    run().unwrap();
}

#[test]
fn the_memory_expected_is_counted_from_shapes() {
    let model = tiny();
    let lora = Finetune::lora(4).batch_size(4).estimate(&model, &corpus(16)).unwrap();
    let full = Finetune::full().batch_size(4).estimate(&model, &corpus(16)).unwrap();
    // Two layers; A is [4, in], B [out, 4] of q, k, v, o, gate, up, down.
    let adapters = 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 48));
    assert_eq!(lora.trainable, 4 * adapters);
    assert_eq!((lora.gradients, lora.optimizer), (lora.trainable, 2 * lora.trainable));
    assert_eq!(full.trainable, 4 * model.parameter_count() as u64);
    assert_eq!(full.weights, 4 * model.parameter_count() as u64);
    let recomputed =
        Finetune::lora(4).batch_size(4).gradient_checkpointing(true).estimate(&model, &corpus(16)).unwrap();
    assert!(recomputed.activations < lora.activations);
    // The run carries both numbers.
    let run = model.finetune(&corpus(16), short(Finetune::lora(4))).unwrap();
    assert_eq!(run.estimate, lora);
    // How near it comes is measured with processes of their own, in commands.rs.
    assert_eq!(run.peak_memory.is_some(), cfg!(unix));
}

#[test]
fn tensorboard_files_hold_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let run = short(Finetune::lora(2)).epochs(2).evaluate(&corpus(3)).logging_dir(folder.path());
    let run = tiny().finetune(&corpus(8), run).unwrap();
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    // The frame alone: length, its checksum, message, its checksum. The checksums themselves have a test beside the code.
    let mut messages = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        messages.push(&rest[12..12 + length]);
        rest = &rest[16 + length..];
    }
    assert!(messages[0].ends_with(b"brain.Event:2"));
    let holds = |message: &[u8], tag: &str, value: f64| {
        let mut field = vec![0x0a, tag.len() as u8];
        field.extend(tag.as_bytes());
        field.push(0x15);
        field.extend((value as f32).to_le_bytes());
        message.windows(field.len()).any(|part| part == field)
    };
    let losses: Vec<&&[u8]> = messages.iter().filter(|m| m.windows(10).any(|w| w == b"train/loss")).collect();
    assert_eq!(losses.len(), run.steps.len());
    for (message, step) in losses.iter().zip(&run.steps) {
        assert!(holds(message, "train/loss", step.loss) && holds(message, "train/grad_norm", step.grad_norm));
    }
    for evaluation in &run.evaluations {
        assert!(messages.iter().any(|m| holds(m, "eval/loss", evaluation.loss)));
    }
}

#[test]
fn adapters_that_no_peft_file_can_name_are_not_written() {
    for family in ["gpt2", "gpt-neox"] {
        let model = load_family(family);
        let how = Finetune::lora(2).target_modules(["q_proj", "v_proj"]).epochs(1).max_length(32);
        let message = model.finetune(&corpus(4), how).unwrap().adapter().unwrap_err().to_string();
        assert!(message.contains("cannot name their adapters"), "{family}: {message}");
    }
}

#[test]
fn an_adapter_makes_the_round_trip_and_fits_only_its_model() {
    let model = tiny();
    let run = model.finetune(&corpus(16), short(Finetune::lora(4))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    run.adapter().unwrap().save(folder.path()).unwrap();
    let loaded = Adapter::load(folder.path()).unwrap();
    let applied = loaded.apply(&model).unwrap();
    assert_eq!(applied.hash(), run.model.hash());
    for (name, variable) in run.model.trainable() {
        let values = |v: &Var| v.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(variable), values(&applied.trainable()[name]), "{name}");
    }
    // Another scale is another model: what is kept of one must not stand for the other.
    let mut louder = loaded.clone();
    louder.config.lora_alpha *= 2.0;
    assert_ne!(louder.apply(&model).unwrap().hash(), applied.hash());
    // The same shapes, other weights.
    let other = Model::random("other", model.config().clone(), model.tokenizer().clone(), 2).unwrap();
    let message = loaded.apply(&other).unwrap_err().to_string();
    assert!(message.starts_with("other: ") && message.contains("trained on tiny"), "{message}");
    loaded.for_model(&other).apply(&other).unwrap();
}

#[test]
fn a_rank_that_no_tensor_has_is_refused_before_memory_is_taken() {
    let model = tiny();
    let run = model.finetune(&corpus(16), short(Finetune::lora(4))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    run.adapter().unwrap().save(folder.path()).unwrap();
    let mut adapter = Adapter::load(folder.path()).unwrap();
    crate::loading::edit(&folder.path().join("adapter_config.json"), |c| c["r"] = 4_000_000_000u64.into());
    let message = Adapter::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("lora_A") && message.contains("r = 4000000000"), "{message}");
    adapter.config.r = 4_000_000_000;
    let message = adapter.apply(&model).unwrap_err().to_string();
    assert!(message.contains("this model needs [4000000000, "), "{message}");
}

/// The paper's targets are every projection a model has: GPT-2 and GPT-NeoX have no gate.
#[test]
fn every_family_takes_the_default_targets() {
    for family in ["gpt2", "gpt-neox", "qwen2"] {
        let model = load_family(family);
        let run = model.finetune(&corpus(4), Finetune::lora(2).epochs(1).max_length(32)).unwrap();
        let mut trained: Vec<&str> =
            run.model.trainable().keys().map(|name| name.rsplit('.').nth(2).unwrap()).collect();
        trained.sort_unstable();
        trained.dedup();
        assert_eq!(trained.len(), if family == "qwen2" { 7 } else { 6 }, "{family}: {trained:?}");
    }
}

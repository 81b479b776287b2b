//! Attention on files: types in Parquet, interrupted and continued work, what is refused, and the command itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use cluescope::attention::{Attend, Cache, Per, Probes};
use cluescope::corpus::{Document, Span};
use cluescope::model::{DecoderConfig, LoraConfig, Model};
use cluescope::progress::{Sink, Status, interrupt, set_sink};
use cluescope::tokens::{SpecialTokens, Tokenizer};
use polars::prelude::{DataType, ParquetReader, SerReader};
use serde_json::Value;

use crate::families::fixture;

fn document(id: &str, text: &str, spans: &[(&str, usize, usize)]) -> Document {
    let spans = spans.iter().map(|&(field, start, end)| Span { field: field.into(), start, end }).collect();
    Document::new(id, text, spans)
}

fn people() -> Vec<Document> {
    vec![
        document("Ann", "Ann was born in Rome.", &[("name", 0, 3), ("city", 16, 20)]),
        document("Bo", "Bo was born in Oslo, they say.", &[("name", 0, 2), ("city", 15, 19)]),
        document("Cy", "Cy was born in Lima.", &[("name", 0, 2), ("city", 15, 19)]),
    ]
}

/// A small random model; its tokenizer adds a start token when `start`.
fn model(start: bool) -> Model {
    let texts: Vec<String> = people().iter().map(|d| d.text.repeat(3)).collect();
    let trained = Tokenizer::train_bpe(texts.iter().map(String::as_str), 290).unwrap();
    let special = SpecialTokens { add_bos: Some(start), ..SpecialTokens::default() };
    let json = trained.to_json().unwrap();
    let tokenizer = Tokenizer::with_special("tokenizer", json.as_bytes(), &special).unwrap();
    let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 3, 4, 2, 48, 256);
    Model::random("small", config, tokenizer, 1).unwrap()
}

fn plain() -> Attend {
    Attend::new().cache(Cache::Off)
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn parquet_keeps_its_types_after_a_first_text_without_tokens() {
    let mut documents = people();
    documents.insert(0, document("Empty", "", &[]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let options = plain().per(Per::Layer).probe("city");
    let model = model(false);
    let attended = model.attend(&documents, &options).unwrap();
    assert!(attended.texts[0].ids.is_empty());
    model.attend_to_file(&documents, &options, &path).unwrap();
    let frame = ParquetReader::new(std::fs::File::open(&path).unwrap()).finish().unwrap();
    let list = |inner: DataType| DataType::List(Box::new(inner));
    for (column, kind) in [
        ("ids", list(DataType::UInt32)),
        ("offsets", list(list(DataType::UInt32))),
        ("received", list(DataType::Float32)),
        ("received_by", list(list(DataType::Float32))),
        ("probe.city.weights", list(DataType::Float32)),
        ("probe.city.weights_by", list(list(DataType::Float32))),
    ] {
        let column = frame.column(column).unwrap();
        assert_eq!(column.dtype(), &kind, "{}", column.name());
        let lengths: Vec<usize> =
            (0..4).map(|row| column.list().unwrap().get_as_series(row).map_or(0, |s| s.len())).collect();
        assert!(lengths[1..].iter().all(|&length| length > 0), "{}: {lengths:?}", column.name());
    }
    let offsets = frame.column("offsets").unwrap().list().unwrap().get_as_series(1).unwrap();
    for (token, &(start, end)) in attended.texts[1].offsets.iter().enumerate() {
        let pair = offsets.list().unwrap().get_as_series(token).unwrap();
        let pair: Vec<u32> = pair.u32().unwrap().into_no_null_iter().collect();
        assert_eq!(pair, [start as u32, end as u32]);
    }
    let message = model.attend_to_file(&[], &plain(), &path).unwrap_err().to_string();
    assert!(message.contains("at least one text"), "{message}");
}

#[test]
fn a_field_that_no_text_marks_is_refused() {
    let model = model(true);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.jsonl");
    let options = plain().probe("city").probe("compnay");
    for message in [
        model.attend(&people(), &options).unwrap_err().to_string(),
        model.attend_to_file(&people(), &options, &out).unwrap_err().to_string(),
    ] {
        assert!(message.contains("compnay") && message.contains("city, name"), "{message}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is begun");
    let unmarked = [document("x", "Ann was born.", &[])];
    let message = model.attend(&unmarked, &plain().probe("city")).unwrap_err().to_string();
    assert!(message.contains("no text of this corpus marks a field"), "{message}");
    model.attend(&unmarked, &plain().probes(Probes::All)).unwrap();
}

#[test]
fn a_model_named_by_another_path_continues_the_same_work() {
    let model = model(true);
    let folder = tempfile::tempdir().unwrap();
    let (out, partial) = (folder.path().join("a.jsonl"), folder.path().join("a.jsonl.partial"));
    model.attend_to_file(&people(), &plain(), &out).unwrap();
    let first = std::fs::read_to_string(&out).unwrap().lines().next().unwrap().to_owned();
    std::fs::write(&partial, format!("{first}\n")).unwrap();
    model.renamed("./small", model.hash()).attend_to_file(&people(), &plain(), &out).unwrap();
    assert_eq!(lines(&out).len(), 3);
    // Another content under the same name is other work.
    std::fs::write(&partial, format!("{first}\n")).unwrap();
    let other = model.renamed("small", "0123456789abcdef");
    let message = other.attend_to_file(&people(), &plain(), &out).unwrap_err().to_string();
    assert!(message.contains("another model"), "{message}");
}

#[test]
fn weights_in_training_are_not_taken_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let options = || Attend::new().cache(Cache::Folder(folder.path().into()));
    let base = model(true);
    let first = base.attend(&people(), &options()).unwrap();
    let adapted = base.with_lora(&LoraConfig { r: 2, ..LoraConfig::default() }, 1).unwrap();
    let set = |value: f64| {
        for var in adapted.trainable().values() {
            var.set(&Tensor::full(value as f32, var.shape(), &candle_core::Device::Cpu).unwrap()).unwrap();
        }
    };
    set(0.05);
    let once = adapted.attend(&people(), &options()).unwrap();
    assert_ne!(once.texts[0].received, first.texts[0].received);
    assert_ne!(once.hash, first.hash);
    set(0.2);
    let frozen = adapted.frozen();
    for later in [&adapted, &frozen] {
        assert_ne!(later.attend(&people(), &options()).unwrap().texts[0].received, once.texts[0].received);
    }
    // Named with a hash of its own, it is remembered like any other.
    let finished = adapted.renamed("finished", "feedfacefeedface");
    let count = || std::fs::read_dir(folder.path().join("attention")).unwrap().count();
    let before = count();
    finished.attend(&people(), &options()).unwrap();
    assert!(count() > before);
}

/// Asks to stop at the first progress after the start, which a batch reports when it is done.
struct StopAfterFirstBatch;

impl Sink for StopAfterFirstBatch {
    fn show(&self, status: &Status) {
        match status.done {
            // Progress is shown ten times a second at most; the next one shall not be too early.
            0 => std::thread::sleep(Duration::from_millis(150)),
            _ => interrupt(),
        }
    }
}

/// Runs in a process of its own, started by the next test: an interrupt stops all work of a process.
#[test]
fn child_of_the_interrupt_test() {
    let Ok(out) = std::env::var("CLUESCOPE_TEST_INTERRUPTED") else { return };
    // Made before, since learning a tokenizer and loading report progress too.
    let model = model(true);
    set_sink(Arc::new(StopAfterFirstBatch));
    let error = model.attend_to_file(&people(), &plain().batch_tokens(1), &out).unwrap_err();
    println!("\nstopped: {error}");
}

#[test]
fn an_interrupt_keeps_the_batch_that_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.jsonl");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "attend::child_of_the_interrupt_test", "--nocapture"])
        .env("CLUESCOPE_TEST_INTERRUPTED", &out)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("stopped: interrupted"), "{said}");
    let partial = folder.path().join("a.jsonl.partial");
    assert_eq!(lines(&partial).len(), 1, "the first text was computed before the interrupt");
    model(true).attend_to_file(&people(), &plain(), &out).unwrap();
    assert_eq!(lines(&out).len(), 3);
}

/// The command as a user starts it.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluescope"));
    command.arg("attend").args(arguments).env("CLUESCOPE_CACHE", "");
    command
}

#[track_caller]
fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = command(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

const TAGGED: &str = "text\n\"<name>Ann Øst</name> was born in <city>Rome</city>. She worked at <company>Acme</company>.\"\n\
                      \"<name>Bo</name> was born in <city>Oslo</city>. He worked at <company>日立</company>.\"\n";

#[test]
fn the_command_reads_every_corpus_and_writes_both_formats() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("people.csv", TAGGED);
    let tagged = "{\"id\":\"a\",\"text\":\"Ann was born in Rome.\",\"spans\":[{\"field\":\"city\",\"start\":16,\"end\":20}]}\n\
                  {\"text\":\"Bo was born.\"}\n";
    write("people.jsonl", tagged);
    write("plain.txt", "Ann was born in Rome.\n");
    let model = fixture("smollm2").to_str().unwrap().to_owned();

    let (code, said, progress) = run(&[
        "--model",
        &model,
        "--corpus",
        &path("people.csv"),
        "--out",
        &path("a.jsonl"),
        "--probe",
        "city",
        "company",
    ]);
    assert_eq!(code, 0, "{progress}");
    assert!(said.starts_with("2 texts: "), "{said}");
    assert!(progress.contains(" tokens (") && progress.contains("/s"), "plain lines in a pipe: {progress}");
    let found = lines(Path::new(&path("a.jsonl")));
    let text = "Ann Øst was born in Rome. She worked at Acme.";
    let tokenizer = crate::families::load(&fixture("smollm2")).tokenizer().clone();
    let encoding = tokenizer.encode(text).unwrap();
    assert_eq!(found[0]["ids"], serde_json::json!(encoding.ids));
    assert_eq!(found[0]["offsets"], serde_json::json!(encoding.offsets));
    for line in &found {
        let tokens = line["ids"].as_array().unwrap().len();
        assert_eq!(line["received"].as_array().unwrap().len(), tokens);
        for field in ["city", "company"] {
            let probe = &line["probe"][field];
            let position = probe["position"].as_u64().unwrap() as usize;
            let weights: Vec<f64> = serde_json::from_value(probe["weights"].clone()).unwrap();
            assert_eq!(weights.len(), position + 1);
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-4);
        }
        assert!(line["provenance"]["command"].as_str().unwrap().starts_with("cluescope attend --model"));
    }
    let city = text.chars().position(|c| c == 'R').unwrap();
    let end =
        found[0]["offsets"][found[0]["probe"]["city"]["position"].as_u64().unwrap() as usize][1].as_u64();
    assert!(end.unwrap() as usize <= city);

    // One thread or three, the same numbers; per head beside the mean.
    let numbers = |threads: &str, name: &str| {
        let (code, _, said) = run(&[
            "--model",
            &model,
            "--corpus",
            &path("people.jsonl"),
            "--out",
            &path(name),
            "--per",
            "head",
            "--threads",
            threads,
            "--probe",
            "city",
        ]);
        assert_eq!(code, 0, "{said}");
        let found = lines(Path::new(&path(name)));
        found
            .into_iter()
            .map(|line| [&line["received"], &line["received_by"], &line["probe"]].map(Value::clone))
            .collect::<Vec<_>>()
    };
    let one = numbers("1", "one.jsonl");
    assert_eq!(one, numbers("3", "three.jsonl"));
    let config = crate::families::load(&fixture("smollm2")).config().clone();
    assert_eq!(one[0][1].as_array().unwrap().len(), config.layers * config.heads);
    assert!(one[1][2].as_object().unwrap().is_empty(), "the second text marks nothing");

    let (code, _, said) = run(&[
        "--model",
        &model,
        "--corpus",
        &path("plain.txt"),
        "--out",
        &path("b.parquet"),
        "--per",
        "layer",
    ]);
    assert_eq!(code, 0, "{said}");
    let frame = ParquetReader::new(std::fs::File::open(path("b.parquet")).unwrap()).finish().unwrap();
    assert_eq!(frame.height(), 1);
    let layers = frame.column("received_by").unwrap().list().unwrap().get_as_series(0).unwrap();
    assert_eq!(layers.len(), config.layers);

    for (arguments, code, part) in [
        (
            vec!["--model", &model, "--corpus", &path("people.csv"), "--out", &path("a.csv")],
            1,
            ".jsonl or .parquet",
        ),
        (vec!["--model", &model, "--corpus", &path("none.csv"), "--out", &path("c.jsonl")], 1, "none.csv"),
        (
            vec!["--model", "no/such/place", "--corpus", &path("people.csv"), "--out", &path("c.jsonl")],
            1,
            "no/such/place",
        ),
        (
            vec![
                "--model",
                &model,
                "--corpus",
                &path("people.csv"),
                "--out",
                &path("c.jsonl"),
                "--probe",
                "compnay",
            ],
            1,
            "compnay",
        ),
        (
            vec![
                "--model",
                &model,
                "--corpus",
                &path("people.csv"),
                "--out",
                &path("c.jsonl"),
                "--threads",
                "0",
            ],
            1,
            "--threads",
        ),
        (vec!["--model", &model], 2, "--corpus"),
    ] {
        let (found, _, said) = run(&arguments);
        assert_eq!((found, said.contains(part)), (code, true), "{arguments:?}: {said}");
    }
    assert!(!Path::new(&path("c.jsonl")).exists() && !Path::new(&path("c.jsonl.partial")).exists());
}

/// A model slow enough to be interrupted: its folder.
#[cfg(unix)]
fn slow_model(folder: &Path) -> PathBuf {
    let tokenizer = Tokenizer::train_bpe(["Ann was born in Rome. She worked at Acme."; 3], 290).unwrap();
    let config = DecoderConfig::llama(tokenizer.vocab_size(), 256, 8, 8, 4, 1024, 2048);
    let path = folder.join("slow");
    Model::random("slow", config, tokenizer, 1).unwrap().save(&path).unwrap();
    path
}

#[test]
#[cfg(unix)]
fn the_command_stops_at_a_signal_and_continues() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let model = slow_model(folder.path()).to_str().unwrap().to_owned();
    let text = "Ann was born in Rome. She worked at Acme. ".repeat(40);
    let corpus: String = (0..60)
        .map(|n| format!("{}\n", serde_json::json!({"id": format!("t{n}"), "text": format!("{n} {text}")})))
        .collect();
    std::fs::write(path("c.jsonl"), corpus).unwrap();
    let (corpus, out, partial) = (path("c.jsonl"), path("a.jsonl"), path("a.jsonl.partial"));
    let arguments = ["--model", &model, "--corpus", &corpus, "--out", &out];
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Once something is finished, Ctrl-C.
    let done = || std::fs::read_to_string(&partial).map_or(0, |text| text.lines().count());
    while done() == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a signal to our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(id, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let before = std::fs::read_to_string(&partial).unwrap();
    let kept = before.lines().count();
    assert!((1..60).contains(&kept), "{kept} texts");
    assert!(!Path::new(&out).exists());

    let (code, _, said) = run(&arguments);
    assert_eq!(code, 0, "{said}");
    assert!(!Path::new(&partial).exists());
    let whole = std::fs::read_to_string(&out).unwrap();
    assert!(whole.starts_with(&before), "what was finished stands as it was");
    let ids: Vec<Value> = lines(Path::new(&out)).into_iter().map(|line| line["id"].clone()).collect();
    assert_eq!(ids, (0..60).map(|n| Value::from(format!("t{n}"))).collect::<Vec<_>>());
}

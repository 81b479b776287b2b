//! The commands as a user runs them, on tiny random models.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cluescope::corpus::Corpus;
use cluescope::model::{DecoderConfig, Device, Model};
use cluescope::tokens::Tokenizer;
use serde_json::Value;

fn run(folder: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .args(words)
        .current_dir(folder)
        .env("CLUESCOPE_CACHE", "")
        .output()
        .unwrap()
}

/// What it printed; the command must succeed.
fn good(folder: &Path, words: &[&str]) -> String {
    let output = run(folder, words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it complained about; the command must fail with 1.
fn bad(folder: &Path, words: &[&str]) -> String {
    let output = run(folder, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Ten people in `people.jsonl`, and two sizes of a model in `small` and `large`.
fn workplace() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    good(at, &["biographies", "10", "--out", "people.jsonl"]);
    let people = Corpus::read(at.join("people.jsonl")).unwrap();
    let tokenizer = Tokenizer::train_bpe(people.documents.iter().map(|d| d.text.as_str()), 400).unwrap();
    for (name, layers) in [("small", 1), ("large", 2)] {
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 2, 2, 48, 1024);
        Model::random(name, config, tokenizer.clone(), layers as u64).unwrap().save(at.join(name)).unwrap();
    }
    folder
}

/// Whole or block by block, the bundled pair is known by name and gives the same numbers.
#[test]
fn attend_knows_the_bundled_pair() {
    let folder = workplace();
    let at = folder.path();
    let attend = |out: &str, more: &[&str]| {
        let words = ["attend", "--model", "nano-small", "--corpus", "people.jsonl", "--out", out];
        good(at, &[&words, more].concat());
        let text = std::fs::read_to_string(at.join(out)).unwrap();
        let received = |line: &str| serde_json::from_str::<Value>(line).unwrap()["received"].clone();
        text.lines().map(received).filter(|values| !values.is_null()).collect::<Vec<_>>()
    };
    let whole = attend("whole.jsonl", &["--device", "cpu"]);
    assert_eq!(whole.len(), 10);
    assert_eq!(attend("streamed.jsonl", &["--streamed"]), whole);
    let words = ["attend", "--model", "nano-small", "--corpus", "people.jsonl", "--out", "x.jsonl"];
    // Every command that loads a model takes it.
    let reproduce = ["reproduce", "--out", "x", "--device", "gpu"];
    let contrast = ["contrast", "--small", "nano-small", "--large", "nano-large", "--corpus", "people.jsonl"];
    let contrast = [&contrast[..], &["--out", "x.jsonl", "--device", "gpu"]].concat();
    for command in [&reproduce[..], &contrast] {
        let said = bad(at, command);
        assert!(said.contains("--device = gpu"), "{said}");
    }
    let said = bad(at, &[&words[..], &["--device", "cpu,cpu"]].concat());
    assert!(said.contains("--device = cpu,cpu: the CPU alone"), "{said}");
    let said = bad(at, &[&words[..], &["--streamed", "--device", "cuda"]].concat());
    assert!(said.contains("--device = cuda") && said.contains("--streamed"), "{said}");
}

#[test]
fn from_people_to_a_quiz_by_commands_alone() {
    let folder = workplace();
    let at = folder.path();
    let contrast =
        ["--small", "small", "--large", "large", "--corpus", "people.jsonl", "--out", "contrast.jsonl"];
    good(at, &[&["contrast", "--device", "cpu"][..], &contrast].concat());
    good(
        at,
        &[
            "augment",
            "guide",
            "--corpus",
            "people.jsonl",
            "--guide",
            "contrast.jsonl",
            "--copies",
            "2",
            "--beta",
            "0.05",
            "--protect",
            "name",
            "--plan",
            "plan.jsonl",
            "--out",
            "taught.jsonl",
        ],
    );
    let people = Corpus::read(at.join("people.jsonl")).unwrap();
    let taught = Corpus::read(at.join("taught.jsonl")).unwrap();
    assert_eq!(taught.documents.len(), 30);
    assert_eq!(taught.questions.len(), 50);
    for (copy, original) in taught.documents[10..20].iter().zip(&people.documents) {
        assert_eq!(copy.id, format!("{}#1", original.id));
        assert!(copy.text.len() < original.text.len());
        assert!(copy.text.contains(original.fact("name").unwrap()), "{}", copy.text);
    }

    let training =
        ["finetune", "--model", "small", "--corpus", "taught.jsonl", "--out", "run", "--lora-r", "2"];
    let more = [
        "--max_steps",
        "6",
        "--batch-size",
        "4",
        "--learning_rate",
        "1e-2",
        "--evaluate",
        "people.jsonl",
        "--eval-steps",
        "3",
        "--logging-dir",
        "logs",
        "--merge",
        "--device",
        "cpu",
    ];
    let words = [&training[..], &more].concat();
    let said = good(at, &words);
    assert!(said.contains("30 texts, 6 steps") && said.contains("memory: "), "{said}");
    let report = json(at.join("run/training.json"));
    assert_eq!(report["settings"]["method"]["lora"]["r"], 2);
    assert_eq!(report["settings"]["learning_rate"], 1e-2);
    assert_eq!(report["evaluations"].as_array().unwrap().len(), 2);
    assert!(
        report["provenance"]["command"].as_str().unwrap().starts_with("cluescope finetune --model small")
    );
    assert_eq!(std::fs::read_dir(at.join("logs")).unwrap().count(), 1);
    // The same command finds its work done and ends with the same weights.
    let adapter = std::fs::read(at.join("run/adapter/adapter_model.safetensors")).unwrap();
    good(at, &words);
    assert_eq!(std::fs::read(at.join("run/adapter/adapter_model.safetensors")).unwrap(), adapter);

    let ask =
        ["quiz", "--model", "small", "--corpus", "people.jsonl", "--few-shot", "1", "--distractors", "3"];
    let said = good(at, &[&ask[..], &["--adapter", "run/adapter", "--out", "answers.jsonl"]].concat());
    assert!(said.contains("exact_match") && said.contains("50 answers: answers.jsonl"), "{said}");
    let answers = |file: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(at.join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let adapted = answers("answers.jsonl");
    assert_eq!(adapted.len(), 50);
    // The adapter changes the answers' likelihood, and the merged model is the same as base and adapter.
    let log_probs = |answers: &[Value]| -> Vec<f64> {
        answers.iter().map(|a| a["choices"][0]["log_prob"].as_f64().unwrap()).collect()
    };
    good(at, &[&ask[..], &["--out", "plain.jsonl"]].concat());
    let merged = ask.map(|word| if word == "small" { "run/model" } else { word });
    good(at, &[&merged[..], &["--out", "merged.jsonl"]].concat());
    let (plain, adapted, merged) =
        (log_probs(&answers("plain.jsonl")), log_probs(&adapted), log_probs(&answers("merged.jsonl")));
    assert!(plain.iter().zip(&adapted).any(|(a, b)| (a - b).abs() > 0.1));
    for (a, b) in adapted.iter().zip(&merged) {
        // Sums over some ten tokens in f32, the adapter multiplied in or not.
        assert!((a - b).abs() < 1e-3 * a.abs().max(1.0), "{a} and {b}");
    }
    let message =
        bad(at, &["quiz", "--model", "large", "--adapter", "run/adapter", "--corpus", "people.jsonl"]);
    assert!(message.contains("the adapter was trained on small"), "{message}");
}

#[test]
fn every_policy_is_a_command_and_says_what_it_lacks() {
    let folder = workplace();
    let at = folder.path();
    let augment = |policy: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        [&["augment", policy, "--corpus", "people.jsonl", "--out", "out.csv"][..], more].concat()
    };
    good(at, &["attend", "--model", "small", "--corpus", "people.jsonl", "--out", "own.jsonl"]);
    let cases: [(&'static str, &[&'static str], usize); 7] = [
        ("plain", &["--copies", "3"], 40),
        ("random", &["--tokenizer", "small", "--copies", "1"], 20),
        ("random", &["--guide", "own.jsonl", "--copies", "1", "--as-released"], 10),
        ("guide", &["--guide", "own.jsonl", "--copies", "1", "--without-originals"], 10),
        ("eda", &["--copies", "1"], 20),
        ("shuffle-sentences", &["--copies", "2"], 30),
        ("permute-biographies", &[], 110),
    ];
    for (policy, more, texts) in cases {
        good(at, &augment(policy, more));
        assert_eq!(Corpus::read(at.join("out.csv")).unwrap().documents.len(), texts, "{policy} {more:?}");
    }
    for (policy, more, part) in [
        ("guide", &[][..], "--guide = none"),
        ("random", &[], "--tokenizer = none"),
        ("eda", &["--guide", "own.jsonl"], "only `guide` and `random`"),
        ("random", &["--tokenizer", "small", "--alpha", "1.5"], "alpha = 1.5"),
        ("guide", &["--guide", "people.jsonl"], "people.jsonl, line 1"),
        ("plain", &["--alpha", "0.5"], "--alpha = given: only with `guide` and `random`"),
        ("random", &["--tokenizer", "small", "--beta", "0.1"], "--beta = given: only with `guide`"),
        ("eda", &["--protect", "name"], "--protect = given"),
        ("guide", &["--guide", "own.jsonl", "--tokenizer", "small"], "--tokenizer = given"),
        ("random", &["--tokenizer", "small", "--share", "0.2"], "--share = given: only with `eda`"),
        (
            "guide",
            &["--guide", "own.jsonl", "--protect", "punctation"],
            "--protect = punctation: one of punctuation",
        ),
    ] {
        let message = bad(at, &augment(policy, more));
        assert!(message.contains(part), "{policy} {more:?}: {message}");
    }
}

#[test]
fn all_weights_learn_on_demand_and_wrong_values_are_named() {
    let folder = workplace();
    let at = folder.path();
    let base =
        ["finetune", "--model", "small", "--corpus", "people.jsonl", "--out", "full", "--max-steps", "2"];
    good(at, &[&base[..], &["--full"]].concat());
    assert!(at.join("full/model/model.safetensors").exists() && !at.join("full/adapter").exists());
    let tokens = Model::load(at.join("full/model").to_str().unwrap()).unwrap();
    assert_eq!(tokens.config(), Model::load(at.join("small").to_str().unwrap()).unwrap().config());
    for (more, part) in [
        (&["--lora-r", "0"][..], "r = 0"),
        (&["--batch-size", "0"], "batch_size = 0"),
        (&["--device", "cuda"], "--device = cuda: this program is built without it"),
        (&["--device", "gpu"], "--device = gpu: auto, cpu, cuda"),
        (&["--device", "cuda:0,cuda:1"], "--device = cuda:0,cuda:1: one device; only attend"),
        (&["--device", "cpu", "--dtype", "bf16"], "--dtype = bf16: f32 or bf16x3 on the CPU"),
        (&["--threads", "0"], "--threads = 0"),
    ] {
        // A build for that device would find it.
        if part.contains("built without") && cfg!(feature = "cuda") {
            continue;
        }
        let message = bad(at, &[&base[..], more].concat());
        assert!(message.contains(part), "{more:?}: {message}");
    }
    assert_eq!(run(at, &[&base[..], &["--full", "--lora-r", "4"]].concat()).status.code(), Some(2));
}

#[test]
fn attention_streamed_from_disk_is_the_attention() {
    let folder = workplace();
    let at = folder.path();
    let words = ["attend", "--model", "large", "--corpus", "people.jsonl", "--probe", "company", "--out"];
    good(at, &[&words[..], &["whole.jsonl"]].concat());
    let output = run(at, &[&words[..], &["streamed.jsonl", "--streamed", "--stream-tokens", "300"]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("expected: ") && said.contains("read from disk"), "{said}");
    let read = |file: &str| weights_of(at, file);
    let (whole, streamed) = (read("whole.jsonl"), read("streamed.jsonl"));
    assert_eq!((whole.len(), streamed.len()), (10, 10));
    // Other batches, other roundings.
    assert!(apart(&whole, &streamed) < 1e-6);
    // A processor with the tile unit is asked for its products; any other refuses by name.
    let near = run(at, &[&words[..], &["near.jsonl", "--dtype", "bf16x3"]].concat());
    if Device::cpu().with_bf16x3().is_ok() {
        assert!(near.status.success());
        let off = apart(&whole, &read("near.jsonl"));
        assert!(off > 0.0 && off < 1e-4, "{off}");
    } else {
        assert!(String::from_utf8(near.stderr).unwrap().contains("--dtype = bf16x3: f32: bf16x3 needs"));
    }
    for (dtype, expected) in [("bf16", "--dtype = bf16: "), ("bf16x3", "--dtype = bf16x3: ")] {
        let message = bad(at, &[&words[..], &["none.jsonl", "--streamed", "--dtype", dtype]].concat());
        assert!(message.contains(&format!("{expected}f32 with --streamed")), "{message}");
    }
}

/// Identity of each text with its received attention and its probe.
fn weights_of(at: &Path, file: &str) -> Vec<(Value, Vec<f64>)> {
    let text = std::fs::read_to_string(at.join(file)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let numbers = |v: &Value| -> Vec<f64> { serde_json::from_value(v.clone()).unwrap() };
    lines
        .map(|line| {
            let (received, probe) = (&line["received"], &line["probe"]["company"]["weights"]);
            let both = [numbers(received), numbers(probe)];
            assert!(both.iter().all(|weights| !weights.is_empty()));
            (serde_json::json!([line["id"], line["ids"]]), both.concat())
        })
        .collect()
}

/// The largest difference of the same texts' numbers.
fn apart(a: &[(Value, Vec<f64>)], b: &[(Value, Vec<f64>)]) -> f64 {
    assert!(a.iter().map(|(text, _)| text).eq(b.iter().map(|(text, _)| text)));
    let pairs = a.iter().zip(b).flat_map(|((_, a), (_, b))| a.iter().zip(b));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// The bundled pair's protocol has several biographies a person, whose facts have no one distance; texts of one's own do.
#[test]
fn distances_of_texts_of_ones_own_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    good(at, &["biographies", "4", "--out", "people.jsonl"]);
    let words = ["reproduce", "--corpus", "people.jsonl", "--conditions", "untrained", "--out", "run"];
    good(at, &words);
    let page = std::fs::read_to_string(at.join("run/report.html")).unwrap();
    assert!(page.contains("By distance: exact match") && !page.contains("no one distance"));
}

/// Every kind of corpus can be asked about as it is, and what cannot work is told before a model is loaded.
#[test]
fn each_kind_of_corpus_makes_a_quiz_by_default() {
    let folder = workplace();
    let at = folder.path();
    good(at, &["biographies", "3", "--out", "people.csv"]);
    good(at, &["biographies", "3", "--out", "people.parquet"]);
    let squad = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/paragraphs.json");
    let all = Corpus::read(&squad).unwrap().questions.len();
    let squad = squad.to_str().unwrap();
    let own = r#"{"id": "a", "text": "A ship is red."}
{"document": "a", "field": "colour", "question": "What is red?", "answers": ["A ship"]}
{"document": "b", "field": "colour", "question": "What is blue?", "answers": ["The sea"], "example": true}
"#;
    std::fs::write(at.join("own.jsonl"), own).unwrap();
    for (corpus, questions, few_shot) in
        [("people.csv", 15, 5), ("people.parquet", 15, 5), (squad, all, 5), ("own.jsonl", 1, 1)]
    {
        let said = good(at, &["quiz", "--model", "small", "--corpus", corpus, "--out", "out/a.jsonl"]);
        assert!(said.contains(&format!("{questions} questions answered")), "{corpus}: {said}");
        let answers = std::fs::read_to_string(at.join("out/a.jsonl")).unwrap();
        let first: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
        let prompt = first["prompt"].as_str().unwrap();
        assert_eq!(prompt.matches("Answer:").count(), 1 + few_shot, "{corpus}: {prompt}");
        assert_eq!(std::fs::read_dir(at.join("out")).unwrap().count(), 1, "the checkpoint is gone");
    }
    let ask = ["quiz", "--model", "nowhere", "--corpus", "people.csv"];
    for (more, part) in [
        (&["--few-shot", "11"][..], "few_shot = 11"),
        (&["--max-new-tokens", "0"], "max_new_tokens = 0"),
        (&["--out", "answers.txt"], "ends in .jsonl, .csv or .parquet"),
    ] {
        let message = bad(at, &[&ask[..], more].concat());
        assert!(message.contains(part) && !message.contains("nowhere"), "{more:?}: {message}");
    }
}

/// The time between saves is a number of seconds.
#[test]
fn a_wrong_time_between_saves_is_named() {
    let folder = workplace();
    let words = ["quiz", "--model", "small", "--corpus", "people.jsonl", "--out", "a.jsonl"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluescope"));
    let output = command
        .args(words)
        .current_dir(folder.path())
        .env("CLUESCOPE_SAVE_SECONDS", "soon")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("CLUESCOPE_SAVE_SECONDS = soon: a number of seconds"), "{message}");
}

#[test]
fn questions_without_texts_are_no_corpus_to_read() {
    let folder = workplace();
    let at = folder.path();
    let own = "{\"document\": \"a\", \"field\": \"f\", \"question\": \"What?\", \"answers\": [\"That\"]}\n";
    std::fs::write(at.join("asked.jsonl"), own).unwrap();
    for words in [
        "attend --model small --corpus asked.jsonl --out out.jsonl",
        "contrast --small small --large large --corpus asked.jsonl --out out.jsonl",
        "augment plain --corpus asked.jsonl --out out.jsonl",
        "finetune --model small --corpus asked.jsonl --out out.jsonl",
        "reproduce --small small --large large --corpus asked.jsonl --out out.jsonl",
    ] {
        let message = bad(at, &words.split(' ').collect::<Vec<_>>());
        assert!(message.contains("asked.jsonl: questions, but no text"), "{words}: {message}");
        assert!(!at.join("out.jsonl").is_file(), "{words}");
    }
}

/// GPT-2 keeps query, key and value in one matrix: no PEFT file can name their adapters, and the merged model is written.
#[test]
fn adapters_without_a_peft_form_become_a_merged_model() {
    let folder = workplace();
    let at = folder.path();
    let gpt2 = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/gpt2");
    let base =
        ["finetune", "--model", gpt2.to_str().unwrap(), "--corpus", "people.jsonl", "--max-length", "32"];
    let more = ["--max-steps", "2", "--learning-rate", "1e-2", "--target-modules", "q_proj", "v_proj"];
    let output = run(at, &[&base[..], &more, &["--out", "run"]].concat());
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && note.contains("model/ will be written, and no adapter/"), "{note}");
    assert!(!at.join("run/adapter").exists() && at.join("run/training.json").exists());
    let (before, after) =
        (Model::load(base[2]).unwrap(), Model::load(at.join("run/model").to_str().unwrap()).unwrap());
    assert_eq!(before.config(), after.config());
    assert_ne!(before.hash(), after.hash());
    let message = bad(at, &[&base[..], &["--target-modules", "c_attn", "--out", "none"]].concat());
    assert!(
        message.contains("c_attn name no linear layer") && message.contains("it has down_proj"),
        "{message}"
    );
    assert!(!at.join("none/checkpoint.safetensors").exists(), "nothing was trained");
}

/// Several biographies of one person are one person, and a fact that stands elsewhere in each has no one distance.
#[test]
fn people_with_several_texts_of_ones_own_are_counted_once() {
    let folder = workplace();
    let at = folder.path();
    let several = ["biographies", "4", "--per-person", "3", "--permute-sentences", "--out"];
    for corpus in ["several.jsonl", "several.csv"] {
        good(at, &[&several[..], &[corpus]].concat());
        let (cells, out) = (format!("{corpus} run"), at.join(format!("{corpus} run")));
        let words = "reproduce --small small --large large --conditions untrained,plain --epochs 1 --seeds 1 --lora-r 2";
        let said = good(
            at,
            &[&words.split(' ').collect::<Vec<_>>()[..], &["--corpus", corpus, "--out", &cells]].concat(),
        );
        assert!(
            said.contains(&format!("people      4 people or things with up to 3 texts each of {corpus}")),
            "{said}"
        );
        let page = std::fs::read_to_string(out.join("report.html")).unwrap();
        assert!(
            page.contains("no one distance") && page.contains("4 people or things with up to 3 texts each")
        );
        assert!(!page.contains("Where the two models look"), "no condition needs the contrast");
        let summary = std::fs::read_to_string(out.join("summary.csv")).unwrap();
        assert!(summary.contains(",field,city,") && !summary.contains(",distance,"), "{summary}");
        let results = std::fs::read_to_string(out.join("results.csv")).unwrap();
        // Five questions for each of four people.
        assert!(results.lines().nth(1).unwrap().contains(",20,"), "{results}");
    }
}

/// The guides of `contrast`, by the same options: each brings its condition into `reproduce`.
#[test]
fn guides_are_chosen_by_the_same_options_everywhere() {
    let here = workplace();
    let words = |rest: &str| {
        let fixed =
            "reproduce --small small --large large --people 4 --copies 1 --epochs 1 --seeds 1 --lora-r 2";
        format!("{fixed} --few-shot 1 --distractors 2 {rest}")
    };
    let run = |rest: &str| good(here.path(), &words(rest).split(' ').collect::<Vec<_>>());
    let conditions = |out: &str| -> Vec<String> {
        let csv = std::fs::read_to_string(here.path().join(out).join("results.csv")).unwrap();
        csv.lines().skip(1).map(|line| line.split(',').nth(1).unwrap().to_string()).collect()
    };
    let said = run(
        "--conditions plain,attention_difference --guide-probe company city --large-layers 0 --out guided",
    );
    assert!(
        said.contains("guides      probes of company, city; layers 0 of the large, all of the small model"),
        "{said}"
    );
    let both = ["plain", "attention_difference", "probe_difference", "heads_difference"];
    assert_eq!(conditions("guided"), both);
    let page = std::fs::read_to_string(here.path().join("guided/report.html")).unwrap();
    for heading in ["", ": probe city,company", ": layers 0 of the large model"] {
        assert!(page.contains(&format!(">Where the two models look{heading}</h2>")), "{heading}");
    }
    run("--conditions all --out all");
    assert!(!conditions("all").iter().any(|c| c == "heads_difference"), "no heads are chosen");
    assert_eq!(conditions("all").len(), 15);
    let bad = |rest: &str| bad(here.path(), &words(rest).split(' ').collect::<Vec<_>>());
    let message = bad("--conditions heads_difference --out bad");
    assert!(message.contains("heads = all: layers or heads of at least one model"), "{message}");
    let message = bad("--large-heads 9.0 --out bad");
    assert!(message.contains("heads = heads 9.0: at least one, layers 0 to"), "{message}");
    assert!(bad("--noise 0.3 --out bad").contains("--noise = given: left out, unless denoising"));
    for (rest, said) in [
        (
            "--conditions untrained,plain --alpha 0.9",
            "--alpha = given: left out, unless a condition drops tokens",
        ),
        ("--conditions plain,random --beta 1", "--beta = given"),
        ("--conditions plain,plain_equal_steps --lr 1e-3,2e-3 --tuning-people 0 --beta 1", "--beta = given"),
        ("--conditions untrained,plain", "--copies = given"),
        (
            "--conditions random --tuning-people 4",
            "--tuning-people = given: left out, unless a condition has several",
        ),
        ("--conditions untrained,random --alpha 0.6,0.7", "one value, or --tuning-people"),
    ] {
        let message = bad(&format!("{rest} --out bad"));
        assert!(message.contains(said), "{rest}: {message}");
    }
    // A minus is no option's beginning.
    assert!(bad("--alpha -0.1 --out bad").contains("alphas = -0.1: from 0 to 1"));
    let message = bad("--guide-probe weight city --out bad");
    assert!(
        message
            .contains("guide = probe weight,city: facts marked in the texts; \"weight\" is marked in none"),
        "{message}"
    );
}

/// What is expected lies near what is needed, beside what the program itself takes.
#[test]
#[cfg(target_os = "linux")]
fn the_memory_expected_is_about_the_memory_needed() {
    let folder = workplace();
    let at = folder.path();
    let tokenizer = Model::load(at.join("small").to_str().unwrap()).unwrap().tokenizer().clone();
    let config = DecoderConfig::llama(tokenizer.vocab_size(), 256, 4, 4, 4, 1024, 1024);
    Model::random("wide", config, tokenizer, 1).unwrap().save(at.join("wide")).unwrap();
    let mega = |bytes: u64| bytes as f64 / 1e6;
    let measure = |model: &str, more: &[&str]| {
        let words =
            ["finetune", "--model", model, "--corpus", "people.jsonl", "--max-steps", "2", "--out", "run"];
        good(at, &[&words[..], more].concat());
        let report = json(at.join("run/training.json"));
        std::fs::remove_dir_all(at.join("run")).unwrap();
        let parts = ["weights", "trainable", "gradients", "optimizer", "activations"];
        let expected: u64 = parts.iter().map(|part| report["memory_expected"][part].as_u64().unwrap()).sum();
        (mega(expected), mega(report["peak_memory"].as_u64().unwrap()))
    };
    let (small, program) = measure("small", &["--full"]);
    let program = program - small;
    for more in [&["--full"][..], &["--lora-r", "16"], &["--full", "--gradient-checkpointing"]] {
        let (expected, peak) = measure("wide", more);
        let needed = peak - program;
        println!(
            "{more:?}: {expected:.0} MB expected, {needed:.0} needed beside {program:.0} of the program"
        );
        assert!(expected > 30.0, "too small a run to tell");
        assert!(
            (0.6..1.6).contains(&(needed / expected)),
            "{more:?}: {expected:.0} MB expected, {needed:.0} needed"
        );
    }
}

#[test]
fn what_is_wrong_with_one_model_is_told_before_the_other_is_measured() {
    let folder = workplace();
    let at = folder.path();
    let contrast =
        ["contrast", "--small", "small", "--corpus", "people.jsonl", "--out", "x.jsonl", "--large"];
    let unmarked = ["attend", "--model", "no/such/model", "--corpus", "people.jsonl", "--out", "x.jsonl"];
    std::fs::create_dir(at.join("bare")).unwrap();
    std::fs::copy(at.join("large/config.json"), at.join("bare/config.json")).unwrap();
    for (words, part) in [
        ([&contrast[..], &["no/such/model"]].concat(), "no/such/model: no such file or folder"),
        (
            [&contrast[..], &["large", "--large-layers", "0,2"]].concat(),
            "large: layers = layers 0,2: at least one, layers 0 to 1",
        ),
        ([&contrast[..], &["bare"]].concat(), "bare: has no tokenizer.json"),
        (
            [&unmarked[..], &["--probe", "city", "compnay"]].concat(),
            "probe = compnay: a field that some text marks",
        ),
    ] {
        let said = bad(at, &words);
        assert!(said.contains(part) && !said.contains("attention of"), "{words:?}: {said}");
    }
}

#[test]
fn a_result_never_replaces_what_it_is_made_from() {
    let folder = workplace();
    let at = folder.path();
    good(at, &["attend", "--model", "small", "--corpus", "people.jsonl", "--out", "own.jsonl"]);
    std::fs::write(at.join("wording.csv"), "field,prompt\nname,Who?\n").unwrap();
    let contrast = ["contrast", "--small", "small", "--large", "large", "--corpus", "people.jsonl", "--out"];
    let augment = ["augment", "guide", "--corpus", "people.jsonl", "--guide", "own.jsonl", "--out"];
    for (words, part) in [
        (
            &["attend", "--model", "small", "--corpus", "people.jsonl", "--out", "small/../people.jsonl"][..],
            "--corpus",
        ),
        (&[&contrast[..], &["people.jsonl"]].concat(), "--corpus"),
        (&[&contrast[..], &["x.jsonl", "--html", "people.jsonl"]].concat(), "--html = people.jsonl"),
        (&[&augment[..], &["people.jsonl"]].concat(), "--out = people.jsonl"),
        (&[&augment[..], &["own.jsonl"]].concat(), "--guide"),
        (&[&augment[..], &["x.jsonl", "--plan", "own.jsonl"]].concat(), "--plan = own.jsonl"),
        (&["quiz", "--model", "small", "--corpus", "people.jsonl", "--out", "people.jsonl"], "--corpus"),
        (&["biographies", "3", "--wording", "wording.csv", "--out", "wording.csv"], "--wording"),
    ] {
        let files =
            || ["people.jsonl", "own.jsonl", "wording.csv"].map(|name| std::fs::read(at.join(name)).unwrap());
        let before = files();
        let said = bad(at, words);
        assert!(said.contains(part) && said.contains("would replace"), "{words:?}: {said}");
        assert_eq!(files(), before, "{words:?}");
    }
}

#[test]
#[cfg(unix)]
fn names_that_are_not_unicode_are_no_reason_to_stop() {
    use std::os::unix::ffi::OsStrExt;
    let folder = workplace();
    let at = folder.path();
    let corpus = std::ffi::OsStr::from_bytes(b"people\xff.jsonl");
    std::fs::copy(at.join("people.jsonl"), at.join(corpus)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .args(["attend", "--model", "small", "--out", "own.jsonl", "--corpus"])
        .arg(corpus)
        .current_dir(at)
        .env("CLUESCOPE_CACHE", "")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let first = std::fs::read_to_string(at.join("own.jsonl")).unwrap();
    assert!(first.contains("--corpus 'people\u{fffd}.jsonl'"), "the command is told as well as it can be");
}

/// The name of the result is looked at before anything is read or made.
#[test]
fn a_name_that_cannot_be_written_is_told_first() {
    let folder = workplace();
    for words in
        ["biographies 10000000 --out people.xlsx", "augment plain --corpus missing.jsonl --out texts.xlsx"]
    {
        let message = bad(folder.path(), &words.split(' ').collect::<Vec<_>>());
        assert!(message.contains(".xlsx: extension \"xlsx\"; known: .csv"), "{words}: {message}");
    }
}

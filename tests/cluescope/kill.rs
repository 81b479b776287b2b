//! kill -9 at random moments, and disks that are full: the commands as users run them, on models of a toy size.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluescope::corpus::Biographies;
use cluescope::model::{DecoderConfig, Model};
use cluescope::random::Stream;
use cluescope::tokens::Tokenizer;
use cluescope::train::{Mixture, Recipe, pretrain};

use super::toys::tiny_recipe;

/// Kills a stage, each while it is at work.
const KILLS: usize = 20;
/// Of these at least, where a stage keeps what is unfinished, find some of it kept.
const RESUMED: usize = KILLS / 4;
/// Kills that must be enough for both; on a busy machine many come while the program still starts up.
const MOST_KILLS: usize = 5 * KILLS;

/// Progress of work that is finished.
const DONE: u64 = u64::MAX;

/// What the commands read: untrained models and people.
struct Inputs {
    folder: tempfile::TempDir,
}

impl Inputs {
    fn new(people: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let few = Biographies::new(40).seed(5).generate().unwrap();
        let tokenizer = Tokenizer::train_bpe(few.documents.iter().map(|d| d.text.as_str()), 500).unwrap();
        for (name, layers) in [("small", 1), ("large", 2)] {
            let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 2, 2, 64, 512);
            Model::random(name, config, tokenizer.clone(), 1)
                .unwrap()
                .save(folder.path().join(name))
                .unwrap();
        }
        Biographies::new(people).generate().unwrap().write(folder.path().join("people.jsonl")).unwrap();
        Inputs { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The program in `folder`; words that begin with `@` name inputs.
    fn program(&self, folder: &Path, words: &str) -> Command {
        let words = words.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name),
            None => word.to_string(),
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_cluescope"));
        // Without a cache, and saved as often as there is something to save.
        command.args(words).current_dir(folder).env("CLUESCOPE_CACHE", "").env("CLUESCOPE_SAVE_SECONDS", "0");
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// A command that is killed.
struct Stage<'a> {
    name: &'a str,
    /// The command in a folder.
    command: &'a dyn Fn(&Path) -> Command,
    /// How much of the work lies in a folder: 0 for nothing, [`DONE`] for all. It must never go back.
    progress: &'a dyn Fn(&Path) -> u64,
    /// Whether what is unfinished outlives a kill; else a kill leaves the whole output or none.
    keeps: bool,
    /// Results that must come out as in an undisturbed run, byte for byte.
    files: &'a [&'a str],
}

fn succeeds(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Stage<'_> {
    /// Kills the command [`KILLS`] times at work or more, in as many folders as that takes, lets it end in each, and compares.
    fn survives(&self) {
        let whole = tempfile::tempdir().unwrap();
        let start = Instant::now();
        succeeds((self.command)(whole.path()));
        let undisturbed = start.elapsed();
        assert_eq!((self.progress)(whole.path()), DONE, "{}", self.name);
        let mut moments = Stream::new(std::process::id().into(), self.name, &[]);
        let (mut kills, mut resumable, mut folders) = (0, 0, 0);
        let enough = |kills: usize, resumable: usize| {
            kills >= MOST_KILLS || (kills >= KILLS && (!self.keeps || resumable >= RESUMED))
        };
        while !enough(kills, resumable) {
            let parts = tempfile::tempdir().unwrap();
            folders += 1;
            let mut before = 0;
            while !enough(kills, resumable) {
                let mut child = (self.command)(parts.path()).stderr(Stdio::null()).spawn().unwrap();
                std::thread::sleep(undisturbed.mul_f64(0.9 * moments.unit_f64()));
                let at_work = child.try_wait().unwrap().is_none();
                child.kill().unwrap();
                child.wait().unwrap();
                let now = (self.progress)(parts.path());
                assert!(now >= before, "{}: {before} was there, {now} is left", self.name);
                if !self.keeps {
                    assert!(now == 0 || now == DONE, "{}: a part of the output", self.name);
                }
                before = now;
                // Killed between the last word and its end, where the same command would do it all anew.
                if !at_work || now == DONE {
                    break;
                }
                kills += 1;
                resumable += usize::from(now > 0 && now < DONE);
            }
            succeeds((self.command)(parts.path()));
            for file in self.files {
                let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
                assert!(read(parts.path()) == read(whole.path()), "{}: {file} differs", self.name);
            }
            assert_eq!(listing(parts.path()), listing(whole.path()), "{}: leftovers", self.name);
        }
        println!("{}: {kills} kills at work in {folders} folders, {resumable} with work kept", self.name);
        assert!(
            !self.keeps || resumable >= RESUMED,
            "{}: only {resumable} of {kills} kills found work kept",
            self.name
        );
    }
}

/// Every file below `folder`.
fn listing(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(folder).unwrap().to_path_buf());
            }
        }
    }
    files.sort();
    files
}

/// [`DONE`] when `file` is there.
fn all_or_nothing(file: &str) -> impl Fn(&Path) -> u64 + '_ {
    move |folder| if folder.join(file).exists() { DONE } else { 0 }
}

/// Optimiser steps in a checkpoint; 0 without one.
fn steps(checkpoint: &Path) -> u64 {
    let Ok(bytes) = std::fs::read(checkpoint) else { return 0 };
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let state: serde_json::Value =
        serde_json::from_str(header["__metadata__"]["cluescope"].as_str().unwrap()).unwrap();
    state["steps"].as_array().unwrap().len() as u64
}

#[test]
fn biographies_killed() {
    let inputs = Inputs::new(2);
    Stage {
        name: "biographies",
        command: &|folder| inputs.program(folder, "biographies 6000 --out out/people.parquet"),
        progress: &all_or_nothing("out/people.parquet"),
        keeps: false,
        files: &["out/people.parquet"],
    }
    .survives();
}

#[test]
fn attend_killed() {
    const TEXTS: usize = 600;
    let inputs = Inputs::new(TEXTS);
    let words = "attend --model @large --corpus @people.jsonl --out attention.jsonl --probe city";
    Stage {
        name: "attend",
        command: &|folder| inputs.program(folder, words),
        progress: &|folder| match std::fs::read_to_string(folder.join("attention.jsonl.partial")) {
            Ok(lines) => lines.matches('\n').count() as u64,
            Err(_) => all_or_nothing("attention.jsonl")(folder),
        },
        keeps: true,
        files: &["attention.jsonl"],
    }
    .survives();
}

#[test]
fn contrast_killed() {
    let inputs = Inputs::new(200);
    let words = "contrast --small @small --large @large --corpus @people.jsonl --out contrast.jsonl";
    Stage {
        name: "contrast",
        command: &|folder| inputs.program(folder, words),
        progress: &all_or_nothing("contrast.jsonl"),
        keeps: false,
        files: &["contrast.jsonl"],
    }
    .survives();
}

#[test]
fn augment_killed() {
    let inputs = Inputs::new(600);
    let words = "augment random --tokenizer @small --copies 10 --corpus @people.jsonl --out taught.jsonl";
    Stage {
        name: "augment",
        command: &|folder| inputs.program(folder, words),
        progress: &all_or_nothing("taught.jsonl"),
        keeps: false,
        files: &["taught.jsonl"],
    }
    .survives();
}

#[test]
fn finetune_killed() {
    let inputs = Inputs::new(40);
    let words =
        "finetune --model @large --corpus @people.jsonl --out run --lora-r 4 --epochs 8 --batch-size 4";
    Stage {
        name: "finetune",
        command: &|folder| inputs.program(folder, words),
        progress: &|folder| match steps(&folder.join("run/checkpoint.safetensors")) {
            // 10 steps an epoch; the state of the last stays.
            80 => DONE,
            some => some,
        },
        keeps: true,
        files: &["run/adapter/adapter_model.safetensors", "run/adapter/adapter_config.json"],
    }
    .survives();
}

#[test]
fn quiz_killed() {
    let inputs = Inputs::new(60);
    let words =
        "quiz --model @large --corpus @people.jsonl --few-shot 2 --distractors 3 --out out/answers.jsonl";
    Stage {
        name: "quiz",
        command: &|folder| inputs.program(folder, words),
        progress: &|folder| match std::fs::read_to_string(folder.join("out/answers.jsonl.partial")) {
            Ok(kept) => kept.matches("\"prediction\"").count() as u64,
            Err(_) => all_or_nothing("out/answers.jsonl")(folder),
        },
        keeps: true,
        files: &["out/answers.jsonl"],
    }
    .survives();
}

/// `results.csv` without the seconds, which no two runs share.
fn results(folder: &Path) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_path(folder.join("out/results.csv")).unwrap();
    let seconds = reader.headers().unwrap().iter().position(|h| h == "seconds").unwrap();
    let row = |r: csv::StringRecord| {
        r.iter().enumerate().filter(|(i, _)| *i != seconds).map(|(_, v)| v.to_string()).collect()
    };
    reader.records().map(|r| row(r.unwrap())).collect()
}

/// Finished cells in `folder`, by name.
fn finished(folder: &Path) -> Vec<PathBuf> {
    let cells =
        std::fs::read_dir(folder.join("cells")).into_iter().flatten().map(|entry| entry.unwrap().path());
    cells.filter(|path| path.extension().is_some_and(|e| e == "json")).collect()
}

const REPRODUCE: &str = "reproduce --out out --small @small --large @large --people 6 --copies 3 --epochs 6 --seeds 1,2 \
    --lora-r 4 --few-shot 1 --distractors 2 --conditions untrained,plain,random,attention_difference";

#[test]
fn reproduce_killed() {
    let inputs = Inputs::new(2);
    Stage {
        name: "reproduce",
        command: &|folder| inputs.program(folder, REPRODUCE),
        progress: &|folder| {
            if folder.join("out/report.html").exists() {
                assert_eq!(results(folder).len(), 1 + 3 * 2, "nothing is lost, nothing counted twice");
                return DONE;
            }
            // Cells, and steps of the one at work.
            let scratch = std::fs::read_dir(folder.join("out/cells/scratch")).into_iter().flatten();
            let step =
                scratch.map(|cell| steps(&cell.unwrap().path().join("checkpoint.safetensors"))).sum::<u64>();
            1000 * finished(&folder.join("out/cells")).len() as u64 + step.min(999)
        },
        keeps: true,
        files: &["out/summary.csv", "out/differences.csv", "out/answers.parquet"],
    }
    .survives();
}

/// A chain of two cycles, as the large model's.
fn recipe() -> Recipe {
    let first = Recipe { name: "tiny-first".into(), steps: 40, ..tiny_recipe(40) };
    let mixture = Mixture { resident_share: 0.1, ..first.mixture.clone() };
    Recipe { name: "tiny".into(), steps: 30, mixture, before: Some(Box::new(first.clone())), ..first }
}

/// Not a test of its own: what [`pretrain_killed`] runs and kills.
#[test]
fn child_of_pretrain_killed() {
    let Ok(folder) = std::env::var("CLUESCOPE_TEST_PRETRAIN") else { return };
    pretrain(&recipe(), folder).unwrap();
}

#[test]
fn pretrain_killed() {
    let model = format!("{}/model.safetensors", recipe().name);
    let report = format!("{}/pretraining.json", recipe().name);
    Stage {
        name: "pretrain",
        command: &|folder| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "kill::child_of_pretrain_killed", "--test-threads=1"]);
            command.env("CLUESCOPE_TEST_PRETRAIN", folder).env("CLUESCOPE_SAVE_SECONDS", "0");
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command
        },
        progress: &|folder| {
            if folder.join(recipe().name).join("pretraining.json").exists() {
                return DONE;
            }
            // Steps of the whole chain: those of a finished cycle, or of its state.
            let recipe = recipe();
            let of = |cycle: &Recipe| match folder.join(&cycle.name) {
                place if place.join("pretraining.json").exists() => cycle.steps as u64,
                place => steps(&place.join("checkpoint.safetensors")),
            };
            recipe.cycles().into_iter().map(of).sum()
        },
        keeps: true,
        files: &[&model, &report],
    }
    .survives();
}

/// What the last moments before an end leave is cleared by the next start.
#[test]
fn a_finished_pretraining_leaves_no_state() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { steps: 2, ..recipe() };
    let made = pretrain(&recipe, folder.path()).unwrap();
    let before = listing(folder.path());
    for left in ["checkpoint.safetensors", ".cluescope-abc"] {
        std::fs::write(made.folder.join(left), "left by a killed run").unwrap();
    }
    let again = pretrain(&recipe, folder.path()).unwrap();
    assert_eq!((again.model.hash(), &again.report), (made.model.hash(), &made.report));
    assert_eq!(listing(folder.path()), before);
    // The model goes on from the first cycle's and is not that one; once made it needs it no more.
    let first = folder.path().join("tiny-first");
    let hash = Model::load(&first.to_string_lossy()).unwrap().hash().to_string();
    assert_ne!(made.model.hash(), hash);
    std::fs::remove_dir_all(&first).unwrap();
    assert_eq!(pretrain(&recipe, folder.path()).unwrap().report, made.report);
    assert!(!first.exists(), "nothing was trained again");
    let lock = std::fs::File::options().append(true).open(made.folder.join("checkpoint.lock")).unwrap();
    let held = cluescope::files::Locked::try_new(lock).unwrap().unwrap();
    let message = pretrain(&recipe, folder.path()).unwrap_err().to_string();
    assert!(message.contains("another process trains in this folder"), "{message}");
    drop(held);
}

/// Makes every write of `command` beyond `bytes` of a file fail, as on a disk that is full.
#[cfg(target_os = "linux")]
fn with_small_files(command: &mut Command, bytes: u64) {
    use std::os::unix::process::CommandExt;
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: both calls may be made between fork and exec, and take nothing but numbers and a local struct.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            if libc::setrlimit(libc::RLIMIT_FSIZE, &limit) == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        });
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_before_work_begins() {
    let inputs = Inputs::new(30);
    for (words, place) in [
        ("biographies 10 --out full/people.csv", "full"),
        ("attend --model @small --corpus @people.jsonl --out full/a.jsonl", "full"),
        ("contrast --small @small --large @large --corpus @people.jsonl --out full/c.jsonl", "full"),
        ("augment plain --corpus @people.jsonl --out full/t.jsonl", "full"),
        ("finetune --model @small --corpus @people.jsonl --out full", "full"),
        ("quiz --model @small --corpus @people.jsonl --out full/q.jsonl", "full"),
        ("pretrain small --out full", "full/nano-small"),
        ("reproduce --small @small --large @large --people 4 --out full", "full"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = inputs.program(folder.path(), words);
        with_small_files(&mut command, 10_000);
        let output = command.output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words}: {message}");
        assert!(message.contains(&format!("error: {place}: File too large")), "{words}: {message}");
        // No bar of any work before it.
        assert!(!message.contains('%') && !message.contains("texts"), "{words}: {message}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_up_costs_no_finished_cell() {
    let (inputs, folder) = (Inputs::new(2), tempfile::tempdir().unwrap());
    let cells = folder.path().join("out/cells");
    let mut command = inputs.program(folder.path(), REPRODUCE);
    with_small_files(&mut command, libc::RLIM_INFINITY);
    let child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(600);
    while finished(&cells).len() < 2 {
        assert!(Instant::now() < deadline, "no cell was finished in ten minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    let limit = libc::rlimit { rlim_cur: 2000, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the child is this process's own and not waited for yet, so its number is its; the struct is local.
    let limited =
        unsafe { libc::prlimit(child.id() as i32, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
    assert_eq!(limited, 0);
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("File too large"), "{message}");
    let times = |paths: Vec<PathBuf>| -> Vec<_> {
        paths.into_iter().map(|path| (path.metadata().unwrap().modified().unwrap(), path)).collect()
    };
    let before = times(finished(&cells));
    assert!(before.len() >= 2 && before.len() < 7, "{} cells, {message}", before.len());
    succeeds(inputs.program(folder.path(), REPRODUCE));
    let after = times(finished(&cells));
    assert!(before.iter().all(|cell| after.contains(cell)), "finished cells are not computed again");
    assert_eq!(results(folder.path()).len(), 7);
}

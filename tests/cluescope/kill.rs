//! kill -9 at random moments, and disks that are full: the commands as users run them, on models of a toy size.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluescope::corpus::Biographies;
use cluescope::model::{DecoderConfig, Model};
use cluescope::random::Stream;
use cluescope::tokens::Tokenizer;
use cluescope::train::{Mixture, Recipe, Size, pretrain};

/// Kills a stage.
const KILLS: usize = 20;

/// Untrained models `small` and `large` in `folder`.
fn toys(folder: &Path) -> [PathBuf; 2] {
    let people = Biographies::new(40).seed(5).generate().unwrap();
    let tokenizer = Tokenizer::train_bpe(people.documents.iter().map(|d| d.text.as_str()), 500).unwrap();
    [("small", 1), ("large", 2)].map(|(name, layers)| {
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 2, 2, 64, 512);
        let path = folder.join(name);
        Model::random(name, config, tokenizer.clone(), 1).unwrap().save(&path).unwrap();
        path
    })
}

/// The program in `folder`, without a cache beyond it.
fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluescope"));
    command.args(arguments).current_dir(folder).env("CLUESCOPE_CACHE", folder.join("cache"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs what `make` makes again and again, kills it at random moments, lets it end, and returns how many kills came
/// before the end. `undisturbed` is the time of a whole run.
fn kill_again_and_again(make: impl Fn() -> Command, undisturbed: Duration, name: &str) -> usize {
    let mut moments = Stream::new(std::process::id().into(), name, &[]);
    let mut at_work = 0;
    for round in 0..KILLS {
        let mut child = make().spawn().unwrap();
        // The first comes early, so that one at least hits work wherever the machine's speed goes meanwhile.
        let share = if round == 0 { 0.2 } else { 0.6 * moments.unit_f64() };
        std::thread::sleep(undisturbed.mul_f64(share));
        at_work += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(make().status().unwrap().success());
    at_work
}

fn timed(mut command: Command) -> Duration {
    let start = Instant::now();
    assert!(command.status().unwrap().success());
    start.elapsed()
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

#[test]
fn reproduce_killed_at_random_moments_ends_as_undisturbed() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [small, large] = toys(whole.path()).map(|path| path.to_string_lossy().into_owned());
    let arguments = [
        "reproduce",
        "--out",
        "out",
        "--small",
        &small,
        "--large",
        &large,
        "--people",
        "6",
        "--copies",
        "3",
        "--epochs",
        "6",
        "--seeds",
        "1,2",
        "--lora-r",
        "4",
        "--few-shot",
        "1",
        "--distractors",
        "2",
        "--conditions",
        "untrained,plain,random,attention_difference",
    ];
    let undisturbed = timed(program(whole.path(), &arguments));
    let make = || program(parts.path(), &arguments);
    let at_work = kill_again_and_again(make, undisturbed, "reproduce");
    assert!(at_work >= 1, "only {at_work} of {KILLS} kills came before the end");
    assert_eq!(results(parts.path()).len(), 1 + 3 * 2, "nothing is lost, nothing counted twice");
    assert_eq!(results(parts.path()), results(whole.path()));
    for name in ["summary.csv", "differences.csv", "answers.parquet"] {
        let read = |folder: &Path| std::fs::read(folder.join("out").join(name)).unwrap();
        assert!(read(parts.path()) == read(whole.path()), "{name} differs from an undisturbed run's");
    }
    assert_eq!(std::fs::read_dir(parts.path().join("out/cells/scratch")).unwrap().count(), 0);
    println!("reproduce: {at_work} of {KILLS} kills before the end");
}

#[test]
fn attend_killed_at_random_moments_ends_as_undisturbed() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [_, large] = toys(whole.path()).map(|path| path.to_string_lossy().into_owned());
    let corpus = whole.path().join("people.jsonl");
    Biographies::new(1500).generate().unwrap().write(&corpus).unwrap();
    let corpus = corpus.to_string_lossy().into_owned();
    let arguments =
        ["attend", "--model", &large, "--corpus", &corpus, "--out", "attention.jsonl", "--probe", "city"];
    let undisturbed = timed(program(whole.path(), &arguments));
    let make = || program(parts.path(), &arguments);
    let at_work = kill_again_and_again(make, undisturbed, "attend");
    assert!(at_work >= 1, "only {at_work} of {KILLS} kills came before the end");
    let read = |folder: &Path| std::fs::read_to_string(folder.join("attention.jsonl")).unwrap();
    assert_eq!(read(parts.path()).lines().count(), 1500, "nothing is lost, nothing counted twice");
    assert!(read(parts.path()) == read(whole.path()), "the file differs from an undisturbed run's");
    println!("attend: {at_work} of {KILLS} kills before the end");
}

fn recipe() -> Recipe {
    let nano = Recipe::nano(Size::Small);
    Recipe {
        steps: 12,
        tokenizer_texts: 60,
        vocab_size: 400,
        batch_size: 2,
        layers: 1,
        hidden_size: 64,
        intermediate_size: 128,
        mixture: Mixture { residents: 40, echo_share: 0.0, ..nano.mixture },
        ..nano
    }
}

/// Not a test of its own: what [`pretraining_killed_at_random_moments_ends_as_undisturbed`] runs and kills.
#[test]
fn child_of_pretraining_killed() {
    let Ok(folder) = std::env::var("CLUESCOPE_TEST_PRETRAIN") else { return };
    pretrain(&recipe(), folder).unwrap();
}

#[test]
fn pretraining_killed_at_random_moments_ends_as_undisturbed() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let child = |folder: &Path| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "kill::child_of_pretraining_killed", "--test-threads=1"]);
        command.env("CLUESCOPE_TEST_PRETRAIN", folder).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let undisturbed = timed(child(whole.path()));
    let at_work = kill_again_and_again(|| child(parts.path()), undisturbed, "pretrain");
    assert!(at_work >= 1, "only {at_work} of {KILLS} kills came before the end");
    let made = |folder: &Path| pretrain(&recipe(), folder).unwrap();
    let (got, want) = (made(parts.path()), made(whole.path()));
    assert_eq!(got.model.hash(), want.model.hash());
    assert_eq!(got.report, want.report, "no step is counted twice");
    println!("pretrain: {at_work} of {KILLS} kills before the end");
}

/// A file system of `kib` KiB, until dropped; `None` where this user may not mount one.
#[cfg(target_os = "linux")]
struct SmallDisk(tempfile::TempDir);

#[cfg(target_os = "linux")]
impl SmallDisk {
    fn mount(kib: usize) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={kib}k"), "tmpfs"]).arg(folder.path());
        let done = mount.stdout(Stdio::null()).stderr(Stdio::null()).status();
        match done {
            Ok(status) if status.success() => Some(SmallDisk(folder)),
            _ => {
                println!("skipped: only root may mount a small disk");
                None
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_at_once_and_costs_no_finished_cell() {
    let Some(disk) = SmallDisk::mount(512) else { return };
    let models = tempfile::tempdir().unwrap();
    let [small, large] = toys(models.path()).map(|path| path.to_string_lossy().into_owned());
    let run = |out: &Path| {
        let out = out.to_string_lossy().into_owned();
        let mut command = program(
            models.path(),
            &[
                "reproduce",
                "--out",
                &out,
                "--small",
                &small,
                "--large",
                &large,
                "--people",
                "100",
                "--copies",
                "1",
                "--epochs",
                "1",
                "--seeds",
                "1",
                "--lora-r",
                "4",
                "--few-shot",
                "1",
                "--distractors",
                "2",
                "--conditions",
                "plain,random,plain_equal_steps",
            ],
        );
        command.stderr(Stdio::piped()).output().unwrap()
    };
    // Too small for anything: told before the models are loaded, by name.
    let start = run(disk.0.path());
    let message = String::from_utf8_lossy(&start.stderr).into_owned();
    assert!(!start.status.success() && message.contains("No space left on device"), "{message}");
    assert!(message.contains(&disk.0.path().display().to_string()), "{message}");
    assert!(!message.contains("fine-tuning"), "{message}");
    drop(disk);

    // It fills up while the run is at work: finished cells stay, and the same command goes on once there is room.
    let Some(disk) = SmallDisk::mount(8192) else { return };
    let filler = disk.0.path().join("filler");
    std::fs::write(&filler, vec![1; (8 << 20) - 1_250_000]).unwrap();
    let filled = run(disk.0.path());
    let message = String::from_utf8_lossy(&filled.stderr).into_owned();
    assert!(!filled.status.success() && message.contains("No space left on device"), "{message}");
    let finished = || -> Vec<_> {
        let cells = std::fs::read_dir(disk.0.path().join("cells/cells")).unwrap().map(|e| e.unwrap());
        let cells = cells.filter(|e| e.file_name().to_string_lossy().ends_with(".json"));
        let mut cells: Vec<_> =
            cells.map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap())).collect();
        cells.sort();
        cells
    };
    let before = finished();
    assert!(!before.is_empty(), "{message}");
    std::fs::remove_file(&filler).unwrap();
    let done = run(disk.0.path());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(before.iter().all(|cell| finished().contains(cell)), "finished cells are not computed again");
    let rows = csv::Reader::from_path(disk.0.path().join("results.csv")).unwrap().into_records().count();
    assert_eq!(rows, 3);
}

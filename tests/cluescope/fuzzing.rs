//! The seeds of the fuzz targets (`fuzz/make_seeds.py`) and a fixed number of mutations of each, through what the targets call:
//! any outcome but a panic, in a process that may not take memory without bound.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use cluescope::corpus::{Corpus, Document};
use cluescope::model::Model;

use crate::damage::{Noise, in_little_memory};
use crate::families::fixture;

/// One input of `target`, as `fuzz/fuzz_targets` does it; `folder` is a copy of a sound checkpoint.
fn attempt(target: &str, bytes: &[u8], folder: &Path) {
    let load = |file: &str, model: PathBuf| {
        std::fs::write(folder.join(file), bytes).unwrap();
        let _ = Model::load(model.to_str().unwrap());
    };
    match target {
        "tagged" => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(document) = Document::from_tagged("x", &text) {
                assert_eq!(document.to_tagged().unwrap(), text, "what was read comes back");
            }
        }
        "jsonl" => {
            std::fs::write(folder.join("corpus.jsonl"), bytes).unwrap();
            let _ = Corpus::read(folder.join("corpus.jsonl"));
        }
        "gguf" => load("seed.gguf", folder.join("seed.gguf")),
        "config" => load("config.json", folder.to_path_buf()),
        "safetensors" => load("model.safetensors", folder.to_path_buf()),
        other => panic!("no target {other}"),
    }
}

fn mutated(noise: &mut Noise, sound: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..=noise.below(3) {
        let at = noise.below(bytes.len());
        match noise.below(5) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << noise.below(8),
            1 if !bytes.is_empty() => bytes[at] = noise.bits() as u8,
            2 => bytes.truncate(at),
            3 if at + 8 <= bytes.len() => bytes[at..at + 8].copy_from_slice(&noise.bits().to_le_bytes()),
            _ => {
                let piece = bytes[at..(at + 1 + noise.below(16)).min(bytes.len())].to_vec();
                let to = noise.below(bytes.len() + 1);
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

#[test]
fn seeds_and_their_mutations_never_panic() {
    in_little_memory("fuzzing::child_of_the_seeds_test");
}

/// Runs in a process of its own, started by the test above.
#[test]
fn child_of_the_seeds_test() {
    if std::env::var_os("CLUESCOPE_TEST_DAMAGE").is_none() {
        return;
    }
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut noise = Noise(2409);
    let mut total = 0;
    let mut targets: Vec<PathBuf> = std::fs::read_dir(seeds).unwrap().map(|e| e.unwrap().path()).collect();
    targets.sort();
    for folder in &targets {
        let target = folder.file_name().unwrap().to_str().unwrap();
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for file in files {
            // Fresh each time: a config.json is spoilt for the weights' seeds.
            let copy = tempfile::tempdir().unwrap();
            for entry in std::fs::read_dir(fixture("qwen2")).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let sound = std::fs::read(&file).unwrap();
            for round in 0..40 {
                let bytes = if round == 0 { sound.clone() } else { mutated(&mut noise, &sound) };
                let outcome = catch_unwind(AssertUnwindSafe(|| attempt(target, &bytes, copy.path())));
                assert!(outcome.is_ok(), "{}, round {round}: {}", file.display(), bytes.escape_ascii());
                total += 1;
            }
        }
    }
    assert_eq!(targets.len(), 5, "a target without seeds");
    println!("{total} attempts, none panicked");
}

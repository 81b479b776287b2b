//! Damaged files and awkward settings of a fixed seed: any outcome but a panic or memory without bound.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{Device, Tensor};
use cluescope::model::Model;
use cluescope::train::Adapter;
use serde_json::{Value, json};

use crate::families::{fixture, load};
use crate::loading::{assert_says, copy, refused};

/// Values of a seeded generator, uniform in ±1.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn bits(&mut self) -> u64 {
        // SplitMix64 (Steele et al. 2014).
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n.max(1) as u64) as usize
    }

    pub(crate) fn tensor(&mut self, rows: usize, cols: usize, scale: f32) -> Tensor {
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| scale * ((self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0))
            .collect();
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    }
}

#[test]
fn truncated_files_say_so_wherever_they_end() {
    let folder = copy("llama2");
    for file in ["model.gguf", "model.safetensors"] {
        let bytes = std::fs::read(fixture("llama2").join(file)).unwrap();
        let path = folder.path().join(file);
        let model = if file == "model.gguf" { &path } else { folder.path() };
        for cut in [0, 3, 4, 7, 9, 20, 100, 1000, bytes.len() / 4, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert_says(&refused(model), &[file]);
        }
        std::fs::write(&path, &bytes).unwrap();
        load(model);
    }
}

/// Runs a test of this binary in a process that may not take more than 1 GiB of address space, where the system can limit
/// that: an allocation that follows a number in a damaged file ends the process.
pub(crate) fn in_little_memory(test: &str) {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]);
    // The C library reserves address space for each thread.
    command.env("CLUESCOPE_TEST_DAMAGE", "1").env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "2");
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::process::CommandExt;
        let limit = || {
            let bytes = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
            // SAFETY: a system call on a value of our own.
            match unsafe { libc::setrlimit(libc::RLIMIT_AS, &bytes) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(limit) };
    }
    let output = command.output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{test} in 1 GiB: {said}");
    assert!(said.contains("attempts, "), "{test} did not run: {said}");
}

#[test]
fn damaged_files_neither_panic_nor_take_memory() {
    in_little_memory("damage::child_of_the_damage_test");
}

#[test]
fn awkward_settings_neither_panic_nor_take_memory() {
    in_little_memory("damage::child_of_the_settings_test");
}

/// The limit is real: a child that takes more dies.
#[test]
#[cfg(target_os = "linux")]
fn memory_without_bound_would_be_noticed() {
    let died = catch_unwind(|| in_little_memory("damage::child_that_takes_memory")).unwrap_err();
    let message = died.downcast_ref::<String>().unwrap();
    assert!(message.contains("memory allocation of"), "{message}");
}

#[test]
fn child_that_takes_memory() {
    if std::env::var_os("CLUESCOPE_TEST_DAMAGE").is_some() {
        println!("{}", std::hint::black_box(vec![1u8; 2 << 30]).len());
    }
}

/// Mutations of sound files by a fixed seed: any outcome but a panic, in a process of its own.
#[test]
fn child_of_the_damage_test() {
    if std::env::var_os("CLUESCOPE_TEST_DAMAGE").is_none() {
        return;
    }
    let mut noise = Noise(2024);
    let mut failed = 0;
    let mut total = 0;
    let adapted = load(&fixture("qwen2"));
    let mut attempt = |path: &Path, model: &Path, bytes: &[u8], what: &str| {
        std::fs::write(path, bytes).unwrap();
        let read = || match what.contains("adapter") {
            true => Adapter::load(model)?.for_model(&adapted).apply(&adapted).map(|_| ()),
            false => Model::load(model.to_str().unwrap()).map(|_| ()),
        };
        let outcome = catch_unwind(AssertUnwindSafe(read));
        total += 1;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                failed += 1;
                assert!(!error.to_string().is_empty());
            }
            Err(_) => panic!("{what} panicked"),
        }
    };
    for (name, file) in [
        ("llama2", "model.gguf"),
        ("gemma3", "model.gguf"),
        ("llama3.1", "model.gguf"),
        ("qwen2", "model.safetensors"),
        ("gemma2", "config.json"),
        ("gpt-neox", "config.json"),
        ("gpt2", "config.json"),
        ("llama2", "tokenizer.json"),
        ("smollm2-sharded", "model.safetensors.index.json"),
        ("../training/qwen2-adapter-first", "adapter_config.json"),
        ("../training/qwen2-adapter-first", "adapter_model.safetensors"),
    ] {
        let folder = copy(name);
        let path = folder.path().join(file);
        let model = if file == "model.gguf" { path.clone() } else { folder.path().to_path_buf() };
        let sound = std::fs::read(&path).unwrap();
        // Binary files are damaged where their structure is: in the header.
        let reach = match file {
            "model.gguf" => sound.len().min(24_000),
            "model.safetensors" | "adapter_model.safetensors" => {
                8 + u64::from_le_bytes(sound[..8].try_into().unwrap()) as usize
            }
            _ => sound.len(),
        };
        for round in 0..60 {
            let mut bytes = sound.clone();
            for _ in 0..=noise.below(3) {
                let at = noise.below(reach);
                match noise.below(5) {
                    0 => bytes[at] ^= 1 << noise.below(8),
                    1 => bytes[at] = noise.bits() as u8,
                    2 if at + 8 <= bytes.len() => {
                        let huge = [u64::MAX, 1 << 62, 1 << 40, 1 << 31, 0][noise.below(5)];
                        bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
                    }
                    3 => bytes.truncate(at),
                    _ => {
                        let piece = bytes[at..(at + 1 + noise.below(16)).min(bytes.len())].to_vec();
                        let to = noise.below(bytes.len());
                        bytes.splice(to..to, piece);
                    }
                }
                if bytes.len() < reach {
                    break;
                }
            }
            attempt(&path, &model, &bytes, &format!("{name}/{file}, round {round}"));
        }
    }
    assert!(failed > total / 4, "only {failed} of {total} mutations did damage");
    println!("{total} attempts, {failed} refused");
}

/// Every value of every configuration replaced by awkward ones, one at a time, in a process of its own.
#[test]
fn child_of_the_settings_test() {
    if std::env::var_os("CLUESCOPE_TEST_DAMAGE").is_none() {
        return;
    }
    let mut total = 0;
    let awkward = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1e308),
        json!(3.5),
        json!(u64::MAX),
        json!(268_435_455),
        json!(65_536),
        json!(1u64 << 27),
        json!(""),
        json!("nan"),
        json!([]),
        json!({}),
        json!(true),
    ];
    for name in ["llama3.1", "gemma3", "gpt-neox", "gpt2", "qwen2-window"] {
        let folder = copy(name);
        let path = folder.path().join("config.json");
        let sound: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for key in sound.as_object().unwrap().keys() {
            for value in &awkward {
                let mut json = sound.clone();
                json[key] = value.clone();
                std::fs::write(&path, json.to_string()).unwrap();
                let outcome = catch_unwind(|| Model::load(folder.path().to_str().unwrap()).map(|_| ()));
                assert!(outcome.is_ok(), "{name}: {key} = {value} panicked");
                total += 1;
            }
        }
    }
    println!("{total} attempts, none panicked");
}

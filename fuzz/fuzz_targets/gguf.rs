//! A GGUF file, whole: header, metadata, tokenizer, tensors.
#![no_main]

use std::sync::LazyLock;

use cluescope::model::Model;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a file");
    let _ = Model::load(&path.to_string_lossy());
});

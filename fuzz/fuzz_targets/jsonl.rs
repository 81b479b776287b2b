//! A corpus of JSON lines.
#![no_main]

use std::sync::LazyLock;

use cluescope::corpus::Corpus;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

fuzz_target!(|bytes: &[u8]| {
    let path = FOLDER.path().join("corpus.jsonl");
    std::fs::write(&path, bytes).expect("a file");
    let _ = Corpus::read(&path);
});

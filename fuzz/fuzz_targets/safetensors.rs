//! A file of safetensors beside a sound configuration.
#![no_main]

use std::sync::LazyLock;

use cluescope::model::Model;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sound = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/families/qwen2");
    for entry in std::fs::read_dir(sound).expect("the fixtures") {
        let path = entry.expect("the fixtures").path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap_or_default())).expect("a copy");
    }
    folder
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(FOLDER.path().join("model.safetensors"), bytes).expect("a file");
    let _ = Model::load(&FOLDER.path().to_string_lossy());
});

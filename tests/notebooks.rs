//! The notebooks, executed by the kernel, still show what is committed. A program of its own, so that it runs when the
//! other tests are done: it needs both cores, and builds the notebook engine first where that has not been built.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn notebooks_show_what_is_committed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("notebooks");
    let mut notebooks: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ipynb"))
        .collect();
    notebooks.sort();
    assert_eq!(notebooks.len(), 10);
    let checked = Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .args(["run", "--check"])
        .args(&notebooks)
        .current_dir(&folder)
        .status()
        .unwrap();
    assert!(checked.success(), "see above what the notebooks show now");
}

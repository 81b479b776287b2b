//! Data flows one way: a stage imports only earlier stages; and all builds share one graph of dependencies.

use std::path::{Path, PathBuf};

/// Stages in order; the root helpers may be used by all and use none.
const STAGES: [&str; 12] = [
    "corpus",
    "tokens",
    "model",
    "attention",
    "contrast",
    "augment",
    "train",
    "evaluate",
    "experiment",
    "report",
    "notebook",
    "kernel",
];
const ROOT: [&str; 8] = ["error", "files", "memory", "progress", "provenance", "random", "spread", "text"];

fn stage_of(file: &Path, src: &Path) -> String {
    let inside = file.strip_prefix(src).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Names following `crate::` in `text`, in `use` lines, braces and inline paths alike.
fn imports(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => names.push(std::mem::take(&mut item)),
                    _ if depth == 0 => item.push(c),
                    _ => {}
                }
            }
            names.push(item);
        } else {
            names.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    names
        .iter()
        .map(|n| n.trim().split("::").next().unwrap_or("").trim().to_string())
        .filter(|n| !n.is_empty())
        .collect()
}

#[test]
fn data_flows_one_way() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    files.sort();
    let order = |name: &str| STAGES.iter().position(|s| *s == name);
    let mut wrong = Vec::new();
    let mut checked = 0;
    for file in &files {
        let stage = stage_of(file, &src);
        if matches!(stage.as_str(), "lib" | "main" | "cli") {
            continue;
        }
        let here = order(&stage);
        assert!(
            here.is_some() || ROOT.contains(&stage.as_str()),
            "{}: a stage the rule does not know",
            file.display()
        );
        for name in imports(&std::fs::read_to_string(file).unwrap()) {
            checked += 1;
            let allowed = match (here, order(&name)) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(h), Some(n)) => n <= h,
            };
            if !allowed {
                wrong.push(format!("{} imports {name}", file.strip_prefix(&src).unwrap().display()));
            }
        }
    }
    assert!(checked > 0, "no import seen: the scan is broken");
    assert!(wrong.is_empty(), "later stages imported by earlier ones:\n{}", wrong.join("\n"));
}

#[test]
fn the_scan_sees_every_form_of_import() {
    let text = "use crate::report::Table;\nuse crate::{error::Error, model::{A, B}, train};\nfn f() -> crate::Result<()> {}\n// crate::kernel";
    assert_eq!(imports(text), ["report", "error", "model", "train", "Result"]);
}

/// Packages and their features as `arguments` choose them.
fn graph(arguments: &[&str]) -> std::collections::BTreeSet<String> {
    let tree = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--format", "{p} [{f}]"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let lines = String::from_utf8(tree.stdout).unwrap();
    lines.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
}

/// A feature that only one of these builds turns on would compile candle and polars again for it.
#[test]
fn program_tests_and_kernel_share_their_dependencies() {
    let program = graph(&["--edges", "normal,build"]);
    let tests = graph(&["--edges", "normal,build,dev"]);
    let kernel = graph(&["--edges", "normal,build,dev", "--features", "kernel"]);
    let only = |some: &std::collections::BTreeSet<String>, all: &std::collections::BTreeSet<String>| {
        let only: Vec<String> =
            some.difference(all).filter(|p| !p.starts_with("cluescope ")).cloned().collect();
        only
    };
    assert!(program.len() > 100 && kernel.len() > tests.len());
    assert_eq!(only(&program, &tests), [""; 0], "add what is missing to the features in Cargo.toml");
    assert_eq!(only(&tests, &kernel), [""; 0], "add what is missing to the features in Cargo.toml");
}

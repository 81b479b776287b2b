//! Data flows one way: a stage imports only earlier stages.

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
const ROOT: [&str; 6] = ["error", "files", "memory", "progress", "provenance", "random"];

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

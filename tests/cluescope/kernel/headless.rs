//! `cluescope run`: notebooks without Jupyter.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn run(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .arg("run")
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn code(source: &str, tags: &[&str]) -> Value {
    json!({ "cell_type": "code", "execution_count": null, "metadata": { "tags": tags }, "outputs": [], "source": source })
}

fn write(path: &Path, cells: &[Value]) {
    let notebook = json!({ "cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4 });
    std::fs::write(path, notebook.to_string()).unwrap();
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// `cargo run` puts its target folder first, and there another build may have left a library of the same name.
#[test]
#[cfg(target_os = "linux")]
fn a_library_elsewhere_is_not_taken_for_the_prelude() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    std::fs::write(folder.join("libcluescope.so"), "no library at all").unwrap();
    let notebook = folder.join("a.ipynb");
    let source = format!("std::env::var(\"LD_LIBRARY_PATH\")? == {:?}", folder.display().to_string());
    write(&notebook, &[code(&source, &[])]);
    let out = Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .args(["run", "a.ipynb"])
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let shown = &read(&notebook)["cells"][0]["outputs"][0]["data"]["text/plain"];
    assert_eq!(shown, &json!(["true"]), "cells see the variable as it was");
}

#[test]
fn notebooks_run_compare_and_fail_where_they_should() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let notebook = folder.join("a.ipynb");
    let salt = std::process::id();
    write(
        &notebook,
        &[
            json!({ "cell_type": "markdown", "metadata": {}, "source": "# A notebook" }),
            code("use cluescope::prelude::*;\nlet n: usize = 2;", &["parameters"]),
            code("let people = Biographies::new(n).seed(1).generate()?;\npeople.documents.len()", &["exact"]),
            code("println!(\"now {}\", 1.0 + std::process::id() as f64 * 1e-9);", &["tolerance=0.1"]),
            code(
                "let mut table = Table::new([\"score\"]);\ntable.push([\"0.50 [0.40, 0.60]\"])?;\ntable",
                &["interval"],
            ),
            code(
                "let p = cluescope::progress::Progress::start(\"slow\", 3, \"x\"); for _ in 0..3 { p.advance(1)?; std::thread::sleep(std::time::Duration::from_millis(500)); }",
                &[],
            ),
            code("None::<u8>.expect(\"wanted\")", &["raises-exception"]),
        ],
    );
    let out = run(&["a.ipynb", "--out", "done", "--param", "n=3"], folder);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let done = folder.join("done/a.ipynb");
    let made = read(&done);
    let cells = made["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 8, "the parameters are a cell of their own");
    assert_eq!(cells[3]["outputs"][0]["data"]["text/plain"], json!(["3"]));
    assert_eq!(cells[5]["outputs"][0]["output_type"], "execute_result");
    assert!(cells[5]["outputs"][0]["data"]["text/html"].to_string().contains("<table"));
    assert_eq!(
        cells[6]["outputs"].as_array().unwrap().len(),
        1,
        "one bar, replaced in its place: {}",
        cells[6]
    );
    assert_eq!(cells[7]["outputs"][0]["ename"], "Panic");
    assert_eq!(made["metadata"]["kernelspec"]["name"], "cluescope");
    assert_eq!(read(&notebook)["cells"][2]["outputs"], json!([]), "with --out the file itself stays");

    let untouched = std::fs::read(&done).unwrap();
    let same = run(&["done/a.ipynb", "--check", "--param", "n=3"], folder);
    assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stderr));
    let other = run(&["done/a.ipynb", "--check", "--param", "n=4"], folder);
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(1), "{said}");
    assert!(said.contains("code cell 2 shows something else now") && said.contains('4'), "{said}");
    assert_eq!(std::fs::read(&done).unwrap(), untouched, "--check writes nothing");

    write(
        &notebook,
        &[
            code("let x = 1;", &[]),
            code(&format!("panic!(\"failing {salt}\")"), &[]),
            code("println!(\"never\");", &[]),
        ],
    );
    let failing = run(&["a.ipynb", "--out", "failed"], folder);
    let said = String::from_utf8_lossy(&failing.stderr).into_owned();
    assert_eq!(failing.status.code(), Some(1), "{said}");
    assert!(said.contains("a.ipynb: cell 2 failed") && said.contains(&format!("failing {salt}")), "{said}");
    assert!(!said.contains('\u{1b}'), "colours in a pipe: {said}");
    assert_eq!(read(&folder.join("failed/a.ipynb"))["cells"][2]["outputs"], json!([]));
    std::fs::write(&notebook, "{\"cells\": [").unwrap();
    let broken = run(&["a.ipynb"], folder);
    assert!(String::from_utf8_lossy(&broken.stderr).contains("a.ipynb, line 1: not a notebook"));
}

#[test]
fn what_is_wrong_is_said_and_no_old_output_stays() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let notebook = folder.join("a.ipynb");
    let shown = json!([{ "output_type": "stream", "name": "stdout", "text": ["of an earlier run"] }]);
    let mut cells = [
        code("let people = 2usize;", &["parameters"]),
        code("println!(\"first\"); cluescope::kernel::child::clear_output(true); println!(\"second\");", &[]),
        code("panic!(\"failing\")", &[]),
        code("1", &[]),
    ];
    cells.iter_mut().for_each(|cell| (cell["outputs"], cell["execution_count"]) = (shown.clone(), 9.into()));
    write(&notebook, &cells);
    let before = std::fs::read(&notebook).unwrap();
    let slip = run(&["a.ipynb", "--param", "peple=5"], folder);
    let said = String::from_utf8_lossy(&slip.stderr).into_owned();
    assert!(!slip.status.success() && said.contains("peple=5") && said.contains("declare: people"), "{said}");
    assert_eq!(std::fs::read(&notebook).unwrap(), before, "nothing ran");
    // Written in place, as far as it got.
    assert_eq!(run(&["a.ipynb"], folder).status.code(), Some(1));
    let made = read(&notebook);
    assert_eq!(made["cells"][1]["outputs"][0]["text"], json!(["second\n"]));
    assert_eq!(made["cells"][2]["outputs"][0]["ename"], "Panic");
    assert_eq!(
        (&made["cells"][3]["outputs"], &made["cells"][3]["execution_count"]),
        (&json!([]), &Value::Null)
    );
}

/// The container image and the release archive hold the bundled pair and every file that a notebook reads from the project.
#[test]
fn recipes_ship_what_notebooks_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let recipes = ["Dockerfile", ".github/workflows/release.yml"];
    let texts = recipes.map(|name| std::fs::read_to_string(root.join(name)).unwrap());
    let mut wanted = std::collections::BTreeSet::from([
        "datasets/nano".to_owned(),
        "share/cluescope".to_owned(),
        "scripts/shipped.ipynb".to_owned(),
    ]);
    for entry in std::fs::read_dir(root.join("notebooks")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ipynb") {
            continue;
        }
        for cell in read(&path)["cells"].as_array().unwrap() {
            let source: String =
                cell["source"].as_array().into_iter().flatten().filter_map(|line| line.as_str()).collect();
            let files = source.split("\"../").skip(1).filter_map(|rest| rest.split('"').next());
            wanted.extend(files.filter(|file| !file.starts_with("out/")).map(str::to_owned));
        }
    }
    assert!(wanted.len() > 3, "the scan is broken: {wanted:?}");
    for (name, text) in recipes.iter().zip(&texts) {
        for file in &wanted {
            assert!(text.contains(file), "{name} leaves out {file}");
        }
    }
}

#[test]
fn ctrl_c_stops_the_cell_and_leaves_with_130() {
    let place = tempfile::tempdir().unwrap();
    write(
        &place.path().join("long.ipynb"),
        &[code(
            "let p = cluescope::progress::Progress::start(\"long\", 0, \"x\"); std::fs::write(\"begun\", \"\")?; \
             loop { p.advance(1)?; std::thread::sleep(std::time::Duration::from_millis(5)); }",
            &[],
        )],
    );
    let mut process = Command::new(env!("CARGO_BIN_EXE_cluescope"))
        .args(["run", "long.ipynb"])
        .current_dir(place.path())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    while !place.path().join("begun").is_file() {
        assert!(
            start.elapsed().as_secs() < 300 && process.try_wait().unwrap().is_none(),
            "the cell never began"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // SAFETY: the process started above.
    unsafe { libc::kill(process.id() as i32, libc::SIGINT) };
    let start = std::time::Instant::now();
    assert_eq!(process.wait().unwrap().code(), Some(130));
    assert!(start.elapsed().as_secs_f64() < 20.0, "{:?}", start.elapsed());
}

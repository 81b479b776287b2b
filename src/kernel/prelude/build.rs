//! Builds the library for cells and lays everything their compiler needs into one folder.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::super::toolchain::Toolchain;
use super::super::{analysis, compiler, interface};
use super::{Crate, MANIFEST, Prelude, link_arguments};
use crate::error::{Error, Result};

/// The command that builds the library.
fn cargo(toolchain: &Toolchain, source: &Path, features: &[&str]) -> Command {
    let mut command = Command::new(&toolchain.cargo);
    compiler::as_before(&mut command);
    // Where this program was built, the dependencies are; elsewhere all would be compiled again.
    if let (None, Some(target)) = (std::env::var_os("CARGO_TARGET_DIR"), option_env!("CARGO_TARGET_DIR")) {
        command.env("CARGO_TARGET_DIR", target);
    }
    command.current_dir(source).env("RUSTC", &toolchain.rustc).args(["rustc", "--release", "--lib"]);
    command.args(["--features", &features.join(",")]);
    command.args(["--crate-type", "dylib", "--message-format=json-render-diagnostics"]);
    command.args(["--", "-C", "prefer-dynamic"]);
    command
}

/// Compiles the library and puts it into `folder`, which must not exist; `say` gets cargo's lines.
///
/// # Errors
/// [`Error::Stopped`] with the compiler's last lines.
pub(super) fn build(
    toolchain: &Toolchain,
    source: &Path,
    features: &[&str],
    folder: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    say("building the library for notebooks, once per installation");
    let start = std::time::Instant::now();
    let metadata = metadata(toolchain, source, features)?;
    let mut child = cargo(toolchain, source, features)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io(&toolchain.cargo))?;
    let stdout = child.stdout.take();
    let artifacts = std::thread::spawn(move || {
        let lines =
            stdout.into_iter().flat_map(|out| BufReader::new(out).lines().map_while(|line| line.ok()));
        lines
            .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            .filter(|message| message["reason"] == "compiler-artifact")
            .collect::<Vec<_>>()
    });
    let mut last_lines = Vec::new();
    for line in
        child.stderr.take().into_iter().flat_map(|e| BufReader::new(e).lines().map_while(|line| line.ok()))
    {
        say(line.trim());
        last_lines.push(line);
    }
    let status = child.wait().map_err(Error::io(&toolchain.cargo))?;
    let artifacts = artifacts.join().unwrap_or_default();
    if !status.success() {
        let from = last_lines.len().saturating_sub(30);
        return Err(Error::Stopped(format!(
            "the library for notebooks does not build:\n{}",
            last_lines[from..].join("\n")
        )));
    }
    collect(toolchain, &metadata, folder, &artifacts)?;
    say(&format!("ready after {:.1} s: {}", start.elapsed().as_secs_f64(), folder.display()));
    Ok(())
}

/// Links everything the compiler of cells needs into `folder`, by way of a temporary one.
fn collect(toolchain: &Toolchain, metadata: &Value, folder: &Path, artifacts: &[Value]) -> Result<()> {
    let parent = folder.parent().unwrap_or(folder);
    let temporary = tempfile::tempdir_in(parent).map_err(Error::io(parent))?;
    let into = temporary.path();
    let mut by_package: BTreeMap<&str, (PathBuf, BTreeSet<String>)> = BTreeMap::new();
    let deps = into.join("deps");
    std::fs::create_dir_all(&deps).map_err(Error::io(&deps))?;
    for artifact in artifacts {
        let kinds = strings(&artifact["target"]["kind"]);
        let is_library = kinds.iter().any(|k| matches!(k.as_str(), "lib" | "rlib" | "dylib" | "proc-macro"));
        if !is_library {
            continue;
        }
        for file in strings(&artifact["filenames"]) {
            let path = PathBuf::from(file);
            let name = path.file_name().unwrap_or_default();
            let shared = path.extension().is_some_and(|e| e == std::env::consts::DLL_EXTENSION);
            let ours =
                kinds.iter().any(|k| k == "dylib") || (shared && !kinds.iter().any(|k| k == "proc-macro"));
            if !ours && !shared && path.extension().is_none_or(|e| e != "rlib") {
                continue;
            }
            let place = if ours { PathBuf::from(name) } else { Path::new("deps").join(name) };
            link(&path, &into.join(&place))?;
            if let Some(id) = artifact["package_id"].as_str() {
                by_package.insert(id, (place, strings(&artifact["features"]).into_iter().collect()));
            }
        }
    }
    let mut crates = BTreeMap::new();
    for (name, id, package, version) in direct_dependencies(metadata) {
        if let Some((file, features)) = by_package.get(id.as_str()) {
            let features = features.clone();
            crates.insert(name, Crate { package, version, file: file.clone(), features });
        }
    }
    if !crates.contains_key("cluescope") {
        return Err(Error::Stopped(
            "cargo reported no dynamic library; try again with the latest stable Rust".into(),
        ));
    }
    // As `open` will see it once it has its name.
    let made_in = parent.canonicalize().map_err(Error::io(parent))?;
    let made_in = made_in.join(folder.file_name().unwrap_or_default());
    let compiler = toolchain.version()?;
    let mut prelude = Prelude { folder: into.to_path_buf(), made_in, compiler, crates, interface: None };
    compile_child(toolchain, &prelude)?;
    if cfg!(target_os = "linux") {
        let folder = Path::new("interface");
        let library = &prelude.crates["cluescope"].file;
        interface::write(toolchain, &into.join(library), &into.join(folder))?;
        prelude.interface = Some(folder.join(library));
    }
    let sources = into.join(analysis::METADATA);
    let text =
        serde_json::to_vec(&analysis::metadata(metadata)).map_err(|e| Error::Stopped(e.to_string()))?;
    std::fs::write(&sources, text).map_err(Error::io(&sources))?;
    let text = serde_json::to_vec_pretty(&prelude).map_err(|e| Error::Stopped(e.to_string()))?;
    let list = into.join(MANIFEST);
    std::fs::write(&list, text).map_err(Error::io(&list))?;
    let made = temporary.keep();
    std::fs::rename(&made, folder).map_err(Error::io(folder))
}

/// What cargo knows of this package and all it may depend on. That includes the crates of the tests and benches, which nothing
/// has downloaded where only the program was built, so cargo may use the network for these.
fn metadata(toolchain: &Toolchain, source: &Path, features: &[&str]) -> Result<Value> {
    let mut command = Command::new(&toolchain.cargo);
    compiler::as_before(&mut command);
    command.current_dir(source).args(["metadata", "--format-version", "1", "--locked"]);
    command.arg("--filter-platform").arg(toolchain.host()?);
    command.args(["--features", &features.join(",")]);
    let out = command.stdin(Stdio::null()).output().map_err(Error::io(&toolchain.cargo))?;
    serde_json::from_slice(&out.stdout).map_err(|_| {
        Error::Stopped(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim()))
    })
}

/// (crate name, package id, package name, version) of this package and its direct dependencies.
fn direct_dependencies(metadata: &Value) -> Vec<(String, String, String, String)> {
    let root = metadata["resolve"]["root"].as_str().unwrap_or_default();
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let mut wanted = vec![("cluescope".to_owned(), root.to_owned())];
    for node in nodes.filter(|node| node["id"] == root) {
        for dependency in node["deps"].as_array().into_iter().flatten() {
            if let (Some(name), Some(id)) = (dependency["name"].as_str(), dependency["pkg"].as_str()) {
                wanted.push((name.to_owned(), id.to_owned()));
            }
        }
    }
    let packages: BTreeMap<&str, (&str, &str)> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| Some((p["id"].as_str()?, (p["name"].as_str()?, p["version"].as_str()?))))
        .collect();
    // Cells that await get this runtime from the engine; it is here already, through polars.
    wanted.extend(
        packages.iter().filter(|(_, p)| p.0 == "tokio").map(|(id, _)| ("tokio".to_owned(), (*id).to_owned())),
    );
    wanted
        .into_iter()
        .filter_map(|(name, id)| {
            let (package, version) = packages.get(id.as_str())?;
            Some((name, id.clone(), (*package).to_owned(), (*version).to_owned()))
        })
        .collect()
}

/// The program of [`super::child`], three words long, linked against the library.
fn compile_child(toolchain: &Toolchain, prelude: &Prelude) -> Result<()> {
    let code = prelude.folder.join("cell-process.rs");
    std::fs::write(&code, "fn main() {\n    cluescope::kernel::child::run()\n}\n")
        .map_err(Error::io(&code))?;
    let mut command = Command::new(&toolchain.rustc);
    command.args(["--edition", "2024", "--crate-type", "bin", "-C", "prefer-dynamic", "-C", "opt-level=1"]);
    command.arg(&code).arg("-o").arg(prelude.program());
    link_arguments(prelude, &mut command);
    let out = command.output().map_err(Error::io(&toolchain.rustc))?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        return Err(Error::Stopped(format!("the process for cells does not link:\n{message}")));
    }
    Ok(())
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if to.exists() || std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).map(|_| ()).map_err(Error::io(from))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

//! The compiler of cells. The engine believes that it runs cargo for every cell; this stands in its
//! place. A cell that uses only the prelude goes straight to `rustc`, against prebuilt crates.
//! Crates asked for by `:dep` are built by the real cargo once, in a folder shared by all
//! sessions, and their file names remembered: from then on such cells go straight to `rustc` too.
//! Nothing here can rebuild the prelude.
//!
//! The engine also runs rust-analyzer on every cell to learn the types of new variables. Loading
//! the standard library and some hundred crates into it takes seconds and much memory, so it is
//! told of none of them; the types come from `rustc` itself (see [`super::types`]). The stand-in's
//! `cargo check` is where they are found.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::prelude::{Prelude, link_arguments};
use super::program;
use super::toolchain::Toolchain;
use super::types;
use super::{analysis, cargo};
use crate::error::{Error, Result};
use crate::files;
use crate::provenance::content_hash;

const PRELUDE: &str = "CLUESCOPE_CELL_PRELUDE";
const RUSTC: &str = "CLUESCOPE_CELL_RUSTC";
const CARGO: &str = "CLUESCOPE_CELL_CARGO";
const CARGO_HOME: &str = "CLUESCOPE_CELL_CARGO_HOME";
const PATH: &str = "CLUESCOPE_CELL_PATH";
const EXTRA: &str = "CLUESCOPE_CELL_EXTRA";
/// Where the engine wants to read the path of the compiled cell.
const RESULT: &str = "EVCXR_EXECUTION_SO_PATH";
/// Set on every call by the engine itself; rust-analyzer's own calls lack it.
const BY_ENGINE: &str = "EVCXR_CORE_EXTERN";
/// Written by `check`: variable name to type.
pub(super) const TYPES: &str = "target/cell/types.json";
/// Holds the process group of a running compiler, for interrupts.
pub(super) const RUNNING: &str = "target/cell/compiler.pid";

/// Call first thing in `main`. When this process was started as a stand-in for cargo, rustup or
/// rustc, or as `kernel serve CONNECTION_FILE`, it does that work and exits; a kernel sets its
/// environment before there are threads, so nothing may come before it.
pub fn hook() {
    if std::env::var_os(PRELUDE).is_none() {
        let arguments: Vec<OsString> = std::env::args_os().collect();
        if let [_, kernel, serve, file] = &arguments[..]
            && kernel == "kernel"
            && serve == "serve"
        {
            match super::serve(file) {
                Ok(()) => std::process::exit(0),
                Err(error) => {
                    eprintln!("error: {error}");
                    std::process::exit(1);
                }
            }
        }
        return;
    }
    let mut arguments = std::env::args_os();
    let role = arguments.next().and_then(|a| Some(Path::new(&a).file_stem()?.to_string_lossy().into_owned()));
    let arguments: Vec<OsString> = arguments.collect();
    let outcome = match role.as_deref() {
        Some("cargo") => cargo(&arguments),
        Some("rustup") => rustup(&arguments),
        Some("rustc") => rustc_for_analyzer(&arguments),
        _ => return,
    };
    std::process::exit(outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        101
    }));
}

/// Lays the stand-ins into `bin` of `folder` and points this process's environment at them. Call before the
/// engine starts and before there are threads; `prelude`, the folder of the prelude, need not exist
/// yet. Returns the variables that the process running
/// cells must get back, so that user code sees the world as it was.
///
/// # Errors
/// [`Error::Io`] when `folder` cannot be written.
pub(super) fn install(
    folder: &Path,
    prelude: &Path,
    toolchain: &Toolchain,
    extra: &Path,
) -> Result<Vec<(String, Option<OsString>)>> {
    let exe = program::kept()?;
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).map_err(Error::io(&bin))?;
    for role in ["cargo", "rustup", "rustc"] {
        let link = bin.join(role);
        let _ = std::fs::remove_file(&link);
        #[cfg(unix)]
        std::os::unix::fs::symlink(&exe, &link).map_err(Error::io(&link))?;
    }
    let old_path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![bin.clone()];
    places.extend(std::env::split_paths(&old_path));
    let path = std::env::join_paths(places).map_err(|e| Error::Stopped(format!("PATH: {e}")))?;
    let set: [(&str, OsString); 10] = [
        ("PATH", path),
        ("CARGO", bin.join("cargo").into()),
        ("RUSTC", bin.join("rustc").into()),
        // rust-analyzer looks for its tools in here first.
        ("CARGO_HOME", folder.into()),
        (CARGO_HOME, std::env::var_os("CARGO_HOME").unwrap_or_default()),
        (PATH, old_path.clone()),
        (PRELUDE, prelude.into()),
        (RUSTC, toolchain.rustc.clone().into()),
        (CARGO, toolchain.cargo.clone().into()),
        (EXTRA, extra.into()),
    ];
    let mut before = Vec::new();
    for (name, value) in set {
        before.push((name.to_owned(), std::env::var_os(name)));
        // SAFETY: the caller promises that no other thread runs yet.
        unsafe { std::env::set_var(name, value) };
    }
    Ok(before)
}

fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| Error::Stopped(format!("{name} is not set")))
}

fn rustup(arguments: &[OsString]) -> Result<i32> {
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    match words.iter().map(|w| w.as_ref()).collect::<Vec<_>>()[..] {
        ["which", "cargo"] => println!("{}", variable("CARGO")?.display()),
        ["which", "rustc"] => println!("{}", variable(RUSTC)?.display()),
        // Another toolchain cannot use the prelude.
        _ => return Ok(1),
    }
    Ok(0)
}

fn cargo(arguments: &[OsString]) -> Result<i32> {
    let command = arguments.iter().find(|a| !a.to_string_lossy().starts_with('-'));
    let by_engine = std::env::var_os(BY_ENGINE).is_some();
    match command.map(|c| c.to_string_lossy()).as_deref() {
        Some("build") if by_engine => interruptible(build),
        Some("check") if by_engine => interruptible(check),
        Some("metadata") if by_engine => metadata_for_engine(arguments),
        Some("metadata") => metadata_for_analyzer(arguments),
        Some("clean") => Ok(0),
        _ => Ok(1),
    }
}

/// Runs `work` in a process group of its own whose number is known, so that an interrupt can stop
/// it with everything it started.
fn interruptible(work: fn() -> Result<i32>) -> Result<i32> {
    let folder = Path::new("target/cell");
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    // SAFETY: a plain system call about this process.
    #[cfg(unix)]
    unsafe {
        libc::setpgid(0, 0);
    }
    std::fs::write(RUNNING, std::process::id().to_string()).map_err(Error::io(RUNNING))?;
    let outcome = work();
    let _ = std::fs::remove_file(RUNNING);
    outcome
}

/// What the engine wrote into the manifest of a cell.
struct Request {
    opt_level: String,
    /// `name = config` lines of crates the prelude lacks.
    dependencies: Vec<String>,
}

fn request(prelude: &Prelude) -> Result<Request> {
    let text = files::read_text("Cargo.toml")?;
    let opt_level = text
        .lines()
        .find_map(|line| line.strip_prefix("opt-level = "))
        .unwrap_or("0")
        .trim_matches('"')
        .to_owned();
    let dependencies = text
        .split_once("[dependencies]")
        .map_or("", |(_, rest)| rest)
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .filter(|line| {
            let name = line.split('=').next().unwrap_or(line).trim().replace('-', "_");
            !prelude.crates.contains_key(&name)
        })
        .map(str::to_owned)
        .collect();
    Ok(Request { opt_level, dependencies })
}

fn build() -> Result<i32> {
    let prelude = Prelude::open(variable(PRELUDE)?)?;
    let request = request(&prelude)?;
    let extra = extra_crates(&prelude, &request)?;
    let source = files::read_text("src/lib.rs")?;
    let folder = Path::new("target/cell");
    let out_file = folder.join(format!("libctx.{}", std::env::consts::DLL_EXTENSION));
    let out_file = std::path::absolute(&out_file).map_err(Error::io(&out_file))?;
    let mut command = compile(&prelude, &extra, folder, &cell_source(&source))?;
    command.args(["--crate-type", "cdylib", "-C", "prefer-dynamic", "-C", "overflow-checks=on"]);
    command.arg("-C").arg(format!("opt-level={}", request.opt_level)).arg("-o").arg(&out_file);
    let mut out = command.output().map_err(Error::io("rustc"))?;
    // Closing remarks such as "Some errors have detailed explanations" would count as errors.
    let text = String::from_utf8_lossy(&out.stderr);
    let errors = text.lines().filter(|line| !line.contains(r#""level":"failure-note""#));
    out.stderr = errors.flat_map(|line| [line, "\n"]).collect::<String>().into_bytes();
    pass_on(&out)?;
    if out.status.success() {
        let result = variable(RESULT)?;
        std::fs::write(&result, out_file.as_os_str().as_encoded_bytes()).map_err(Error::io(&result))?;
    }
    Ok(out.status.code().unwrap_or(1))
}

/// Finds the types of all variables of the cell, and the errors in it. Both leave on their own
/// paths: types by a file, errors as cargo would print them.
fn check() -> Result<i32> {
    let prelude = Prelude::open(variable(PRELUDE)?)?;
    let request = request(&prelude)?;
    let extra = extra_crates(&prelude, &request)?;
    let source = files::read_text("src/lib.rs")?;
    let folder = Path::new("target/cell");
    let crates = prelude.crates.keys().map(String::as_str);
    let mut command = compile(&prelude, &extra, folder, &types::probe_source(&source, crates))?;
    command.args(["--crate-type", "lib", "--emit", "metadata", "-o"]).arg(folder.join("probe.rmeta"));
    // Full paths and unshortened types: both options exist in every stable compiler but are not
    // promised. Nothing but the text of messages depends on them.
    command.env("RUSTC_BOOTSTRAP", "1").args(["-Ztrim-diagnostic-paths=no", "-Zwrite-long-types-to-disk=no"]);
    let out = command.output().map_err(Error::io("rustc"))?;
    let mut found = BTreeMap::new();
    let mut stdout = std::io::stdout().lock();
    for line in String::from_utf8_lossy(&out.stderr).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        match types::type_in(&message, &source) {
            Some((name, type_name)) => {
                found.insert(name, type_name);
            }
            None if message["level"] == "failure-note" => {}
            None => writeln!(stdout, "{line}").map_err(Error::io("standard output"))?,
        }
    }
    let text = serde_json::to_vec(&found).map_err(|e| Error::Stopped(e.to_string()))?;
    std::fs::write(TYPES, text).map_err(Error::io(TYPES))?;
    Ok(0)
}

/// `rustc` with everything but the kind of output. The source keeps its file name, by which the
/// engine recognises its own lines.
fn compile(prelude: &Prelude, extra: &Extra, folder: &Path, source: &str) -> Result<Command> {
    let file = folder.join("lib.rs");
    std::fs::write(&file, source).map_err(Error::io(&file))?;
    let mut command = Command::new(variable(RUSTC)?);
    command.stdin(Stdio::null()).arg(&file);
    command.args(["--crate-name", "ctx", "--edition", "2024", "--error-format=json", "-A", "warnings"]);
    link_arguments(prelude, &mut command);
    for (name, path) in &extra.crates {
        command.arg("--extern").arg(format!("{name}={}", path.display()));
    }
    for place in &extra.search {
        command.arg("-L").arg(place);
    }
    Ok(command)
}

fn pass_on(out: &Output) -> Result<()> {
    std::io::stdout().write_all(&out.stdout).map_err(Error::io("standard output"))?;
    std::io::stderr().write_all(&out.stderr).map_err(Error::io("standard error"))
}

/// The engine's source with its own marks sent to the engine, errors reported as errors, and a
/// value's `Debug` text shown at the first attempt. Line numbers stay.
fn cell_source(source: &str) -> String {
    let mut text = source
        .replace(
            r#"println!("EVCXR_PANIC_NOTIFICATION");"#,
            r#"::cluescope::kernel::child::engine("EVCXR_PANIC_NOTIFICATION");"#,
        )
        .replace(
            r#"println!("{VARIABLE_CHANGED_TYPE}{name}");"#,
            r#"::cluescope::kernel::child::engine(&format!("{VARIABLE_CHANGED_TYPE}{name}"));"#,
        );
    for format in ["{}", "{:?}", "{:#?}"] {
        // The error's type and text, instead of text on standard error alone.
        text = text.replace(
            &format!("eprintln!(\"{format}\", error);"),
            &format!("let text = format!(\"{format}\", error);"),
        );
    }
    text = text.replace(
        r#"println!("{}", evcxr_internal_runtime::USER_ERROR_OCCURRED);"#,
        "::cluescope::kernel::child::user_error(::std::any::type_name::<T>(), &text);",
    );
    if text.contains(").evcxr_display();") {
        text.push_str(SHOW);
    }
    // Standard output and standard error reach the kernel apart. What the cell itself writes takes one way, in order;
    // a macro of that name that the notebook imports stays what it is.
    for name in ["eprint", "eprintln", "dbg"] {
        let imported = |line: &str| line.trim_start().starts_with("use ") && line.contains(name);
        let defined = format!("macro_rules! {name} ");
        if text.contains(&format!("{name}!")) && !source.contains(&defined) && !source.lines().any(imported) {
            text.push_str(&format!(
                "\n#[allow(unused_imports)]\nuse ::cluescope::__cell_{name} as {name};\n"
            ));
        }
    }
    text
}

/// A type's own `evcxr_display` goes first, being inherent; all other types are shown by `Debug`
/// without a second compilation.
const SHOW: &str = r#"
trait CluescopeShow { fn evcxr_display(&self); }
impl<T: ::std::fmt::Debug + ?Sized> CluescopeShow for T {
    fn evcxr_display(&self) {
        ::cluescope::kernel::child::text_result(::std::any::type_name::<T>(), &self)
    }
}
"#;

/// Crates beyond the prelude: names, files and where to search.
#[derive(Default, Serialize, Deserialize)]
struct Extra {
    crates: BTreeMap<String, PathBuf>,
    search: Vec<String>,
}

/// Gives `command`, a tool that this process runs for itself, the environment from before
/// [`install`]: with the stand-ins' it would find no registry and build everything anew.
pub(super) fn as_before(command: &mut Command) {
    cargo::forget_package(command);
    for (name, saved) in [("CARGO_HOME", CARGO_HOME), ("PATH", PATH)] {
        match std::env::var_os(saved) {
            Some(value) if !value.is_empty() => command.env(name, value),
            Some(_) => command.env_remove(name),
            // Never replaced.
            None => &mut *command,
        };
    }
    if std::env::var_os(PRELUDE).is_some() {
        command.env_remove("CARGO").env_remove("RUSTC");
    }
}

fn real_cargo() -> Result<Command> {
    let mut command = Command::new(variable(CARGO)?);
    as_before(&mut command);
    command.env("RUSTC", variable(RUSTC)?).stdin(Stdio::null());
    // The engine's settings belong to cells, not to the crates they use.
    for name in
        ["RUSTFLAGS", "RUSTC_WRAPPER", "EVCXR_RUSTC_WRAPPER", "EVCXR_FORCE_DYLIB", "CARGO_BUILD_BUILD_DIR"]
    {
        command.env_remove(name);
    }
    Ok(command)
}

fn extra_crates(prelude: &Prelude, request: &Request) -> Result<Extra> {
    if request.dependencies.is_empty() {
        return Ok(Extra::default());
    }
    let mut lines = request.dependencies.clone();
    lines.sort();
    let shared = variable(EXTRA)?;
    // Crates of one compiler are of no use to another, whatever its path.
    let key = content_hash(lines.iter().cloned().chain([prelude.compiler.clone()]));
    let folder = shared.join(&key);
    let known = folder.join("crates.json");
    if let Ok(text) = std::fs::read_to_string(&known)
        && let Ok(extra) = serde_json::from_str::<Extra>(&text)
        && extra.crates.values().all(|path| path.is_file())
    {
        return Ok(extra);
    }
    let manifest = folder.join("Cargo.toml");
    files::write_atomic(&manifest, |out| {
        write!(
            out,
            "[package]\nname = \"extra\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[lib]\npath = \"lib.rs\"\n\n\
             [profile.dev]\nopt-level = 2\ndebug = false\ndebug-assertions = false\noverflow-checks = false\nincremental = false\n\n\
             [dependencies]\n{}\n\n[workspace]\n",
            lines.join("\n")
        )
        .map_err(Error::io(&manifest))
    })?;
    let library = folder.join("lib.rs");
    std::fs::write(&library, "").map_err(Error::io(&library))?;
    let out = real_cargo()?
        .current_dir(&folder)
        .env("CARGO_TARGET_DIR", shared.join("target"))
        .args(["build", "--message-format=json"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::io("cargo"))?;
    if !out.status.success() {
        pass_on(&out)?;
        return Err(Error::Stopped(format!("the crates of :dep do not build: {}", lines.join("; "))));
    }
    let extra =
        read_artifacts(&folder, &String::from_utf8_lossy(&out.stdout), &shared.join("target/debug/deps"))?;
    files::write_atomic(&known, |out| {
        serde_json::to_writer(out, &extra).map_err(|e| Error::Stopped(e.to_string()))
    })?;
    Ok(extra)
}

fn read_artifacts(folder: &Path, messages: &str, deps: &Path) -> Result<Extra> {
    let mut files: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut extra = Extra { search: vec![format!("dependency={}", deps.display())], ..Extra::default() };
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if message["reason"] == "build-script-executed" {
            let paths = message["linked_paths"].as_array().into_iter().flatten();
            extra.search.extend(paths.filter_map(|p| p.as_str().map(str::to_owned)));
        }
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let names = message["filenames"].as_array().into_iter().flatten().filter_map(|f| f.as_str());
        let wanted = names
            .map(PathBuf::from)
            .find(|f| f.extension().is_some_and(|e| e == "rlib" || e == std::env::consts::DLL_EXTENSION));
        if let (Some(id), Some(file)) = (message["package_id"].as_str(), wanted) {
            files.insert(id.to_owned(), file);
        }
    }
    let out = real_cargo()?
        .current_dir(folder)
        .args(["metadata", "--format-version", "1"])
        .output()
        .map_err(Error::io("cargo"))?;
    let metadata: Value = serde_json::from_slice(&out.stdout).map_err(|_| {
        Error::Stopped(format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr).trim()))
    })?;
    let root = &metadata["resolve"]["root"];
    for node in metadata["resolve"]["nodes"].as_array().into_iter().flatten().filter(|n| n["id"] == *root) {
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let (Some(name), Some(id)) = (dependency["name"].as_str(), dependency["pkg"].as_str()) else {
                continue;
            };
            if let Some(file) = files.get(id) {
                extra.crates.insert(name.to_owned(), file.clone());
            }
        }
    }
    Ok(extra)
}

/// The engine asks for metadata to see whether a `:dep` line makes sense and which crates there
/// are. Without crates beyond the prelude the answer is known.
fn metadata_for_engine(arguments: &[OsString]) -> Result<i32> {
    let prelude = Prelude::open(variable(PRELUDE)?)?;
    let request = request(&prelude)?;
    if request.dependencies.is_empty() {
        return metadata_for_analyzer(&[]);
    }
    let out = real_cargo()?.args(arguments).output().map_err(Error::io("cargo"))?;
    pass_on(&out)?;
    Ok(out.status.code().unwrap_or(1))
}

/// One package without dependencies: all that rust-analyzer needs in order to parse cells. The
/// engine for completions gets those of the prelude too.
fn metadata_for_analyzer(arguments: &[OsString]) -> Result<i32> {
    let here = std::env::current_dir().map_err(Error::io("."))?;
    let manifest = here.join("Cargo.toml");
    let of_another = arguments
        .iter()
        .skip_while(|a| *a != "--manifest-path")
        .nth(1)
        .is_some_and(|asked| Path::new(asked) != manifest);
    if of_another {
        // The standard library's own workspace.
        let out = real_cargo()?.args(arguments).output().map_err(Error::io("cargo"))?;
        pass_on(&out)?;
        return Ok(out.status.code().unwrap_or(1));
    }
    let known = variable(PRELUDE)?.join(analysis::METADATA);
    if Path::new(analysis::MARK).is_file()
        && let Ok(text) = std::fs::read_to_string(&known)
    {
        println!("{}", text.replace(analysis::FOLDER, &here.display().to_string()));
        return Ok(0);
    }
    let package = cell_package(&here);
    let id = &package["id"];
    let answer = json!({
        "packages": [package], "workspace_members": [id], "workspace_default_members": [id],
        "resolve": { "nodes": [{ "id": id, "dependencies": [], "deps": [], "features": [] }], "root": id },
        "target_directory": here.join("target"), "build_directory": here.join("target"),
        "version": 1, "workspace_root": here, "metadata": null
    });
    println!("{answer}");
    Ok(0)
}

/// The package of cells, as `cargo metadata` would describe it.
pub(super) fn cell_package(folder: &Path) -> Value {
    json!({
        "name": "ctx", "version": "1.0.0", "id": format!("path+file://{}#ctx@1.0.0", folder.display()),
        "license": null, "license_file": null, "description": null, "source": null, "dependencies": [],
        "features": {},
        "targets": [{
            "kind": ["cdylib"], "crate_types": ["cdylib"], "name": "ctx",
            "src_path": folder.join("src/lib.rs"), "edition": "2024", "doc": true, "doctest": false, "test": true
        }],
        "manifest_path": folder.join("Cargo.toml"), "metadata": null, "publish": null, "authors": [],
        "categories": [], "keywords": [], "readme": null, "repository": null, "homepage": null,
        "documentation": null, "edition": "2024", "links": null, "default_run": null, "rust_version": null
    })
}

/// Without an answer rust-analyzer loads no standard library, which is what cells want; the engine
/// for completions gets the real one.
fn rustc_for_analyzer(arguments: &[OsString]) -> Result<i32> {
    if !Path::new(analysis::MARK).is_file() {
        return Ok(1);
    }
    let out = Command::new(variable(RUSTC)?).args(arguments).output().map_err(Error::io("rustc"))?;
    pass_on(&out)?;
    Ok(out.status.code().unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_redirected_without_moving_lines() {
        let source = "a\nprintln!(\"EVCXR_PANIC_NOTIFICATION\");\neprintln!(\"{}\", error);\n\
                      println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);\n(1+1\n).evcxr_display();\n";
        let made = cell_source(source);
        assert!(!made.contains("println!"));
        assert!(made.contains("child::engine(\"EVCXR_PANIC_NOTIFICATION\")"));
        assert!(made.contains("user_error(::std::any::type_name::<T>(), &text)"));
        assert_eq!(made.lines().position(|l| l == "(1+1"), source.lines().position(|l| l == "(1+1"));
        assert!(made.contains("trait CluescopeShow"));
        assert!(!cell_source("let x = 1;").contains("CluescopeShow"));
    }

    #[test]
    fn what_a_cell_writes_to_standard_error_keeps_its_place() {
        let made = cell_source("eprintln!(\"a\"); dbg!(1);");
        assert!(made.contains("use ::cluescope::__cell_eprintln as eprintln;"), "{made}");
        assert!(made.contains("use ::cluescope::__cell_dbg as dbg;"), "{made}");
        assert!(!cell_source("println!(\"a\");").contains("__cell"));
        assert!(!cell_source("use other::eprintln;\neprintln!(\"a\");").contains("__cell"));
        assert!(!cell_source("macro_rules! dbg { () => {} }\ndbg!();").contains("__cell"));
    }
}

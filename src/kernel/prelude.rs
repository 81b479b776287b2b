//! The prebuilt library that cells are linked against: this package and its direct dependencies,
//! as one dynamic library of the release profile, made once per installation.
//!
//! `cargo rustc --release --lib --crate-type dylib -- -C prefer-dynamic` compiles only this
//! package again; the dependencies are the very files of the normal release build. The result is
//! kept, with hard links to those files, in a folder named by a key over the toolchain, the lock
//! file, the features and the sources, so that a later build cannot pull it away from under a
//! running session. Sessions only read it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::analysis;
use super::child::{LIBRARY_PATH, OWN_LIBRARIES};
use super::{compiler, interface};
use crate::error::{Error, Result};
use crate::files;
use crate::provenance::content_hash;

/// Environment variable with the folder of a prelude, for the compiler of cells.
pub(super) const PRELUDE_VARIABLE: &str = "CLUESCOPE_PRELUDE";
/// Environment variable that replaces the folder of all kernel files.
pub(super) const HOME_VARIABLE: &str = "CLUESCOPE_KERNEL_HOME";
const MANIFEST: &str = "prelude.json";

/// One crate that cells may use by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crate {
    /// Package name, as in `Cargo.toml`: `candle-core`.
    pub package: String,
    /// Its version: `0.11.1`.
    pub version: String,
    /// File name within the prelude's folder.
    pub file: PathBuf,
    /// Features it was built with.
    pub features: BTreeSet<String>,
}

/// A prebuilt library, ready for cells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prelude {
    /// Its folder.
    #[serde(skip)]
    pub folder: PathBuf,
    /// Where it was built, with its compiler at the same place as now.
    #[serde(default)]
    pub made_in: PathBuf,
    /// `rustc --version` of the compiler that made it; no other can use it.
    pub compiler: String,
    /// Crate name, as in `use candle_core`, to where it lies. `cluescope` is one of them.
    pub crates: BTreeMap<String, Crate>,
    /// What cells are linked against in place of the library, within the folder; where there is
    /// none, the library itself.
    #[serde(default)]
    pub interface: Option<PathBuf>,
}

/// The compiler and cargo in use.
#[derive(Debug, Clone)]
pub struct Toolchain {
    /// `rustc`, not the proxy of rustup.
    pub rustc: PathBuf,
    /// `cargo`, likewise.
    pub cargo: PathBuf,
}

impl Toolchain {
    /// Asks rustup, then looks along `PATH`.
    ///
    /// # Errors
    /// [`Error::Stopped`] when either tool is missing.
    pub fn find() -> Result<Self> {
        Ok(Toolchain { rustc: tool("rustc")?, cargo: tool("cargo")? })
    }

    /// The first line of `rustc --version`.
    ///
    /// # Errors
    /// [`Error::Io`] when the compiler does not run.
    pub fn version(&self) -> Result<String> {
        let out = Command::new(&self.rustc).arg("--version").output().map_err(Error::io(&self.rustc))?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// The triple this compiler runs on and compiles for.
    fn host(&self) -> Result<String> {
        let out = Command::new(&self.rustc).arg("-vV").output().map_err(Error::io(&self.rustc))?;
        let text = String::from_utf8_lossy(&out.stdout);
        text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).ok_or_else(|| {
            Error::Stopped(format!("{} does not say what it compiles for", self.rustc.display()))
        })
    }
}

fn tool(name: &str) -> Result<PathBuf> {
    let asked = Command::new("rustup").args(["which", name]).stderr(Stdio::null()).output();
    if let Some(out) = asked.ok().filter(|out| out.status.success()) {
        return Ok(PathBuf::from(String::from_utf8_lossy(&out.stdout).trim()));
    }
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|p| p.join(&file)).find(|p| p.is_file()))
        .ok_or_else(|| {
            Error::Stopped(format!(
                "`{name}` was not found; notebooks need the Rust toolchain: https://rustup.rs"
            ))
        })
}

/// Where preludes, shared builds and logs live: `CLUESCOPE_KERNEL_HOME`, or `cluescope` in the
/// user's cache folder.
///
/// # Errors
/// [`Error::Stopped`] when there is no home folder.
pub(super) fn home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os(HOME_VARIABLE) {
        return Ok(home.into());
    }
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").filter(|c| !c.is_empty()) {
        return Ok(PathBuf::from(cache).join("cluescope"));
    }
    let home = std::env::home_dir().ok_or_else(|| {
        Error::Stopped(format!("no home folder; set {HOME_VARIABLE} to a folder that can be written"))
    })?;
    let cache = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
    Ok(home.join(cache).join("cluescope"))
}

impl Prelude {
    /// The prelude in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] when there is none, [`Error::Format`] when its list cannot be read.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(MANIFEST);
        let text = files::read_text(&path)?;
        let mut prelude: Prelude = serde_json::from_str(&text).map_err(|e| {
            Error::format(&path, format!("line {}", e.line()), format!("{e}; delete it to build it again"))
        })?;
        // The real path: that of the library is written into every cell.
        prelude.folder = folder.as_ref().canonicalize().map_err(Error::io(&path))?;
        Ok(prelude)
    }

    /// The prelude of this installation, if it is there and fresh.
    ///
    /// # Errors
    /// When a file that is there cannot be read.
    pub fn find(toolchain: &Toolchain) -> Result<Option<Self>> {
        if let Some(prelude) = Self::shipped(toolchain)? {
            return Ok(Some(prelude));
        }
        let source = source()?;
        let folder = home()?.join("prelude").join(key(toolchain, &source, &features())?);
        if folder.join(MANIFEST).is_file() { Self::open(&folder).map(Some) } else { Ok(None) }
    }

    /// The prelude of this installation, built now if it is missing or stale. `say` gets a line for
    /// every crate compiled.
    ///
    /// Looked for in this order: the folder `CLUESCOPE_PRELUDE` names; `lib/cluescope` beside the
    /// binary's folder, as in a release; the folder of this key in [`home`].
    ///
    /// # Errors
    /// [`Error::Stopped`] with the compiler's message when the build fails.
    pub fn find_or_build(toolchain: &Toolchain, say: &mut dyn FnMut(&str)) -> Result<Self> {
        if let Some(prelude) = Self::find(toolchain)? {
            return Ok(prelude);
        }
        let source = source()?;
        let features = features();
        let folder = home()?.join("prelude").join(key(toolchain, &source, &features)?);
        let parent = folder.parent().unwrap_or(&folder).to_path_buf();
        std::fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
        let lock_path = parent.join("lock");
        let lock = std::fs::File::create(&lock_path).map_err(Error::io(&lock_path))?;
        if lock.try_lock().is_err() {
            say("another kernel is building the library for notebooks; waiting for it");
            lock.lock().map_err(Error::io(&lock_path))?;
        }
        if !folder.join(MANIFEST).is_file() {
            build(toolchain, &source, &features, &folder, say)?;
            forget_old(&parent, &folder);
        }
        Self::open(&folder)
    }

    fn shipped(toolchain: &Toolchain) -> Result<Option<Self>> {
        if let Some(folder) = std::env::var_os(PRELUDE_VARIABLE) {
            let prelude = Self::open(PathBuf::from(folder))?;
            let version = toolchain.version()?;
            if prelude.compiler != version {
                return Err(Error::Stopped(format!(
                    "{PRELUDE_VARIABLE}: {} was made by {}, but {version} is in use; unset the variable, or install that compiler",
                    prelude.folder.display(),
                    prelude.compiler
                )));
            }
            return Ok(Some(prelude));
        }
        let beside =
            std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("lib/cluescope")));
        let Some(folder) = beside.filter(|folder| folder.join(MANIFEST).is_file()) else { return Ok(None) };
        let prelude = Self::open(&folder)?;
        // A release made by another compiler is of no use; build from source if there is one.
        Ok((prelude.compiler == toolchain.version()?).then_some(prelude))
    }

    /// The program that runs cells, ready to be started.
    ///
    /// # Errors
    /// [`Error::Io`] when the compiler does not say where its library is.
    pub(super) fn child(&self, toolchain: &Toolchain) -> Result<Command> {
        let mut command = Command::new(self.program());
        // The loader asks this variable before what is written in the program, and `cargo run` lets it begin with its target
        // folder, where the library of another build may lie.
        let mut path = self.folder.clone().into_os_string();
        let mut own = 1;
        // Where it was made, it finds the standard library by itself; a release was made elsewhere.
        if self.folder != self.made_in {
            let out = Command::new(&toolchain.rustc).args(["--print", "target-libdir"]).output();
            let out = out.map_err(Error::io(&toolchain.rustc))?;
            path.push(":");
            path.push(String::from_utf8_lossy(&out.stdout).trim());
            own += 1;
        }
        if let Some(before) = std::env::var_os(LIBRARY_PATH).filter(|before| !before.is_empty()) {
            path.push(":");
            path.push(before);
        }
        command.env(LIBRARY_PATH, path).env(OWN_LIBRARIES, own.to_string());
        Ok(command)
    }

    fn program(&self) -> PathBuf {
        self.folder.join("cell-process")
    }

    /// Whether a `:dep` line asks for something already here: `Ok(true)` when it is, `Ok(false)`
    /// when the crate is not part of the prelude.
    ///
    /// # Errors
    /// [`Error::Stopped`] when it is here in another version, from another place or without a feature
    /// asked for: its types would exist twice.
    pub(super) fn provides(&self, wanted: &Dependency<'_>) -> Result<bool> {
        let name = wanted.package.replace('-', "_");
        let Some(carried) = self.crates.get(&name) else { return Ok(false) };
        if name == "cluescope" {
            return Ok(true);
        }
        let lacking: Vec<&str> =
            wanted.features.iter().copied().filter(|f| !carried.features.contains(*f)).collect();
        let other = if let Some(version) = wanted.requirement.filter(|r| !accepts(r, &carried.version)) {
            format!("version {version}")
        } else if wanted.elsewhere {
            "a copy from another place".to_owned()
        } else if !lacking.is_empty() {
            format!("a copy with the feature {}", lacking.join(", "))
        } else {
            return Ok(true);
        };
        Err(Error::Stopped(format!(
            "{} {} is part of cluescope's notebooks; {other} would make every one of its types exist twice. \
             Leave the :dep line out, or ask for {} with features among: {}",
            carried.package,
            carried.version,
            carried.version,
            carried.features.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        )))
    }

    /// Marks the prelude as in use for as long as the result lives; nobody tidies it away then.
    ///
    /// # Errors
    /// [`Error::Io`] when its list cannot be opened.
    pub(super) fn hold(&self) -> Result<std::fs::File> {
        let path = self.folder.join(MANIFEST);
        let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
        // A file system without locks keeps what it has.
        let _ = file.try_lock_shared();
        Ok(file)
    }
}

/// What a `:dep` line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dependency<'a> {
    /// Package name.
    pub(super) package: &'a str,
    /// Version requirement.
    pub(super) requirement: Option<&'a str>,
    /// Features by name.
    pub(super) features: Vec<&'a str>,
    /// From a folder or a repository instead of the registry.
    pub(super) elsewhere: bool,
}

/// Whether cargo would accept `version` for `requirement`: caret, tilde, `=`, `>=` and `*`.
fn accepts(requirement: &str, version: &str) -> bool {
    fn numbers(text: &str) -> Vec<u64> {
        let core = text.split(['-', '+']).next().unwrap_or(text);
        core.split('.').map_while(|n| n.trim().parse().ok()).collect()
    }
    let have = numbers(version);
    requirement.split(',').all(|part| {
        let part = part.trim();
        let (sign, wanted) = part.split_at(part.find(|c: char| c.is_ascii_digit()).unwrap_or(part.len()));
        let wanted = numbers(wanted);
        let shared = wanted.len().min(have.len());
        match sign.trim() {
            _ if wanted.is_empty() => true,
            ">=" => have >= wanted,
            ">" => have > wanted,
            "<" => have < wanted,
            "<=" => have[..shared] <= wanted[..shared],
            "=" => have[..shared] == wanted[..shared],
            "~" => have[..shared.min(2)] == wanted[..shared.min(2)] && have >= wanted,
            _ => {
                // Caret: the first number that is not zero must stay.
                let fixed = wanted.iter().position(|&n| n > 0).map_or(wanted.len(), |i| i + 1).min(shared);
                have[..fixed] == wanted[..fixed] && have >= wanted
            }
        }
    })
}

/// The folder this package was built from.
fn source() -> Result<PathBuf> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    if source.join("Cargo.toml").is_file() {
        return Ok(source);
    }
    Err(Error::Stopped(format!(
        "no prebuilt library for notebooks, and its source {} is gone; set {PRELUDE_VARIABLE} to the folder of a release",
        source.display()
    )))
}

/// Features that the library is built with: this build's, without the kernel itself.
fn features() -> Vec<&'static str> {
    let mut features = vec!["cells"];
    if cfg!(feature = "cuda") {
        features.push("cuda");
    }
    if cfg!(feature = "metal") {
        features.push("metal");
    }
    features
}

fn key(toolchain: &Toolchain, source: &Path, features: &[&str]) -> Result<String> {
    let mut parts: Vec<Vec<u8>> = vec![features.join(",").into_bytes()];
    let mut files = vec![toolchain.rustc.clone()];
    let mut folders = vec![source.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io(&folder))? {
            let path = entry.map_err(Error::io(&folder))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    for path in files {
        // Only the library matters; the kernel and the commands may change beside it.
        let relative = path.strip_prefix(source).unwrap_or(&path);
        let kernel = relative.starts_with("src/kernel")
            && !["child.rs", "interface.rs", "mod.rs"].iter().any(|name| relative.ends_with(name));
        if kernel || relative.starts_with("src/cli") || relative == Path::new("src/main.rs") {
            continue;
        }
        let meta = std::fs::metadata(&path).map_err(Error::io(&path))?;
        let time = meta.modified().ok().and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        parts.push(format!("{} {} {:?}", path.display(), meta.len(), time).into_bytes());
    }
    for name in ["Cargo.toml", "Cargo.lock"] {
        let path = source.join(name);
        parts.push(std::fs::read(&path).map_err(Error::io(&path))?);
    }
    Ok(content_hash(parts))
}

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

fn build(
    toolchain: &Toolchain,
    source: &Path,
    features: &[&str],
    folder: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    say("building the library for notebooks, once per installation");
    let start = std::time::Instant::now();
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
    collect(toolchain, source, features, folder, &artifacts)?;
    say(&format!("ready after {:.1} s: {}", start.elapsed().as_secs_f64(), folder.display()));
    Ok(())
}

/// Links everything the compiler of cells needs into `folder`, by way of a temporary one.
fn collect(
    toolchain: &Toolchain,
    source: &Path,
    features: &[&str],
    folder: &Path,
    artifacts: &[Value],
) -> Result<()> {
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
    let metadata = metadata(toolchain, source, features)?;
    for (name, id, package, version) in direct_dependencies(&metadata) {
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
        serde_json::to_vec(&analysis::metadata(&metadata)).map_err(|e| Error::Stopped(e.to_string()))?;
    std::fs::write(&sources, text).map_err(Error::io(&sources))?;
    let text = serde_json::to_vec_pretty(&prelude).map_err(|e| Error::Stopped(e.to_string()))?;
    let list = into.join(MANIFEST);
    std::fs::write(&list, text).map_err(Error::io(&list))?;
    let made = temporary.keep();
    std::fs::rename(&made, folder).map_err(Error::io(folder))
}

fn metadata(toolchain: &Toolchain, source: &Path, features: &[&str]) -> Result<Value> {
    let mut command = Command::new(&toolchain.cargo);
    compiler::as_before(&mut command);
    command.current_dir(source).args(["metadata", "--format-version", "1", "--offline", "--locked"]);
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

/// Arguments of `rustc` that make the prelude's crates usable, and found again when run: by a
/// path relative to the program for the library, by the toolchain's own for the standard library.
pub(super) fn link_arguments(prelude: &Prelude, command: &mut Command) {
    for (name, carried) in &prelude.crates {
        let file = prelude.interface.as_ref().filter(|_| name == "cluescope").unwrap_or(&carried.file);
        command.arg("--extern").arg(format!("{name}={}", prelude.folder.join(file).display()));
    }
    command.arg("-L").arg(format!("dependency={}", prelude.folder.join("deps").display()));
    command.args(["-C", "rpath"]);
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if to.exists() || std::fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    std::fs::copy(from, to).map(|_| ()).map_err(Error::io(from))
}

/// Keeps the three newest preludes, and those that a session uses.
fn forget_old(parent: &Path, current: &Path) {
    let mut found: Vec<_> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.path() != current && e.path().join(MANIFEST).is_file())
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(2);
    for (_, folder) in found.into_iter().take(surplus) {
        let free = std::fs::File::open(folder.join(MANIFEST)).is_ok_and(|file| file.try_lock().is_ok());
        if free {
            // Tidying up is no reason to fail.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_here_is_not_taken_twice() {
        let carried = Crate {
            package: "polars".into(),
            version: "0.55.2".into(),
            file: "deps/libpolars.rlib".into(),
            features: ["csv".to_owned(), "fmt".to_owned()].into(),
        };
        let prelude = Prelude {
            folder: PathBuf::new(),
            made_in: PathBuf::new(),
            compiler: String::new(),
            crates: [("polars".to_owned(), carried)].into(),
            interface: None,
        };
        let wanted = |requirement, features: &[&'static str], elsewhere| Dependency {
            package: "polars",
            requirement,
            features: features.to_vec(),
            elsewhere,
        };
        assert!(prelude.provides(&wanted(Some("0.55"), &["csv"], false)).unwrap());
        assert!(prelude.provides(&wanted(None, &[], false)).unwrap());
        assert!(!prelude.provides(&Dependency { package: "regex", ..wanted(None, &[], false) }).unwrap());
        for (wrong, word) in [
            (wanted(Some("0.40"), &[], false), "version 0.40"),
            (wanted(None, &["lazy", "csv"], false), "the feature lazy would"),
            (wanted(None, &[], true), "from another place"),
        ] {
            let message = prelude.provides(&wrong).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("exist twice"), "{message}");
        }
    }

    #[test]
    fn a_prelude_in_use_is_not_tidied_away() {
        let place = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            let folder = place.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join(MANIFEST), "").unwrap();
        }
        let all: Vec<std::fs::File> = ["a", "b", "c", "d"]
            .iter()
            .map(|name| {
                let folder = place.path().join(name);
                let prelude = Prelude {
                    folder,
                    made_in: PathBuf::new(),
                    compiler: String::new(),
                    crates: BTreeMap::new(),
                    interface: None,
                };
                prelude.hold().unwrap()
            })
            .collect();
        let left = || std::fs::read_dir(place.path()).unwrap().count();
        forget_old(place.path(), &place.path().join("e"));
        assert_eq!(left(), 5);
        drop(all);
        forget_old(place.path(), &place.path().join("e"));
        assert_eq!(left(), 3);
    }

    #[test]
    fn requirements_as_cargo_reads_them() {
        for (requirement, version, yes) in [
            ("0.11", "0.11.1", true),
            ("0.11.1", "0.11.1", true),
            ("0.11.2", "0.11.1", false),
            ("0.10", "0.11.1", false),
            ("1", "1.54.1", true),
            ("2", "1.54.1", false),
            ("=0.55.2", "0.55.2", true),
            ("=0.55.1", "0.55.2", false),
            (">=0.40, <0.60", "0.55.2", true),
            ("~0.55", "0.55.9", true),
            ("*", "3.0.0", true),
            ("0.0.3", "0.0.4", false),
        ] {
            assert_eq!(accepts(requirement, version), yes, "{requirement} against {version}");
        }
    }
}

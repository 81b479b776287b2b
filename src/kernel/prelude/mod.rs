//! The prebuilt library that cells are linked against: this package and its direct dependencies,
//! as one dynamic library of the release profile, made once per installation.
//!
//! `cargo rustc --release --lib --crate-type dylib -- -C prefer-dynamic` compiles only this
//! package again; the dependencies are the very files of the normal release build. The result is
//! kept, with hard links to those files, in a folder named by a key over the toolchain, the lock
//! file, the features and the sources, so that a later build cannot pull it away from under a
//! running session. Sessions only read it.

mod build;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::child::{LIBRARY_PATH, OWN_LIBRARIES};
use super::toolchain::Toolchain;
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
            build::build(toolchain, &source, &features, &folder, say)?;
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
        // Until it listens for interrupts itself: one that was meant for the process before it must not end it.
        // SAFETY: between fork and exec only a system call is made.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                Ok(())
            });
        }
        Ok(command)
    }

    fn program(&self) -> PathBuf {
        self.folder.join("cell-process")
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
        let shapes_it = ["child.rs", "interface.rs", "mod.rs", "prelude/build.rs"];
        let kernel = relative
            .strip_prefix("src/kernel")
            .is_ok_and(|within| !shapes_it.iter().any(|name| within == Path::new(name)));
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

#[cfg(test)]
mod tests {
    use super::*;

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
}

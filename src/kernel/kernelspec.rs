//! The entry by which Jupyter finds this kernel.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::program;
use crate::error::{Error, Result};
use crate::files;

/// Jupyter's name for the kernel.
pub(super) const NAME: &str = "cluescope";
/// The name people see.
pub(super) const TITLE: &str = "Rust (cluescope)";

/// What is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The kernelspec's folder.
    pub folder: PathBuf,
    /// The program it starts.
    pub program: PathBuf,
    /// Whether that program exists.
    pub works: bool,
}

/// Jupyter's folder for this user's kernels, or the one below `prefix`, a virtual environment.
fn folder(prefix: Option<&Path>) -> Result<PathBuf> {
    if let Some(prefix) = prefix {
        return Ok(prefix.join("share/jupyter/kernels").join(NAME));
    }
    if let Some(data) = std::env::var_os("JUPYTER_DATA_DIR").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(data).join("kernels").join(NAME));
    }
    let home = std::env::home_dir().ok_or_else(|| {
        Error::Stopped("no home folder; set JUPYTER_DATA_DIR to where Jupyter keeps its data".into())
    })?;
    let data = if cfg!(target_os = "macos") {
        home.join("Library/Jupyter")
    } else {
        match std::env::var_os("XDG_DATA_HOME").filter(|d| !d.is_empty()) {
            Some(data) => PathBuf::from(data).join("jupyter"),
            None => home.join(".local/share/jupyter"),
        }
    };
    Ok(data.join("kernels").join(NAME))
}

/// Registers this program as the kernel "Rust (cluescope)": at its present place when it is
/// installed there, as a copy in the kernelspec's folder when cargo built it and may replace it.
/// Returns that folder.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be written.
pub fn install(prefix: Option<&Path>) -> Result<PathBuf> {
    let folder = folder(prefix)?;
    let mut program = program::this()?;
    if program::is_built_here(&program) {
        let copy = folder.join("cluescope");
        program::copy(&program, &copy)?;
        program = copy;
    }
    let path = folder.join("kernel.json");
    files::write_atomic(&path, |out| {
        serde_json::to_writer_pretty(out, &spec(&program)).map_err(|e| Error::Stopped(e.to_string()))
    })?;
    Ok(folder)
}

fn spec(program: &Path) -> Value {
    json!({
        "argv": [program, "kernel", "serve", "{connection_file}"],
        "display_name": TITLE,
        "language": "rust",
        // A signal would reach this program, not the process that runs cells.
        "interrupt_mode": "message",
        "kernel_protocol_version": "5.4",
        "metadata": { "debugger": false }
    })
}

/// Removes the entry. Returns whether there was one.
///
/// # Errors
/// [`Error::Io`] when it cannot be removed.
pub fn uninstall(prefix: Option<&Path>) -> Result<bool> {
    let folder = folder(prefix)?;
    if !folder.is_dir() {
        return Ok(false);
    }
    std::fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    Ok(true)
}

/// The entry as it stands; `None` when there is none.
///
/// # Errors
/// [`Error::Format`] when it cannot be read as a kernelspec.
pub fn installed(prefix: Option<&Path>) -> Result<Option<Installed>> {
    let folder = folder(prefix)?;
    let path = folder.join("kernel.json");
    if !path.is_file() {
        return Ok(None);
    }
    let spec: Value = serde_json::from_str(&files::read_text(&path)?).map_err(|e| {
        Error::format(&path, format!("line {}", e.line()), format!("{e}; install the kernel again"))
    })?;
    let program = PathBuf::from(spec["argv"][0].as_str().unwrap_or_default());
    Ok(Some(Installed { works: program.is_file(), folder, program }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn install_find_remove() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(installed(Some(place.path())).unwrap(), None);
        let folder = install(Some(place.path())).unwrap();
        assert!(folder.ends_with("share/jupyter/kernels/cluescope"));
        let found = installed(Some(place.path())).unwrap().unwrap();
        // The test's own program lies in a build folder.
        assert!(found.works && found.program == folder.join("cluescope"), "{found:?}");
        assert!(uninstall(Some(place.path())).unwrap());
        assert!(!uninstall(Some(place.path())).unwrap());
    }
}

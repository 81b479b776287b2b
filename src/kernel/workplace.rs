//! The files of one kernel process, and the environment it works in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::child::SOCKET_VARIABLE;
use super::compiler;
use super::prelude;
use super::toolchain::Toolchain;
use crate::error::{Error, Result};

const FOLDER: &str = "cluescope-kernel-";
const LOCK: &str = "lock";

/// The files of one kernel process: a private folder, and the stand-ins in the environment.
#[derive(Debug)]
pub struct Workplace {
    folder: tempfile::TempDir,
    /// Locked: another kernel's tidying up then leaves the folder alone.
    _lock: std::fs::File,
    toolchain: Toolchain,
    environment: Vec<(String, Option<OsString>)>,
}

impl Workplace {
    /// Prepares this process for one [`Session`](super::Session) at a time. Call once, before other threads start.
    ///
    /// # Errors
    /// When the toolchain is missing or the temporary folder cannot be written.
    pub fn prepare() -> Result<Self> {
        let toolchain = Toolchain::find()?;
        forget_dead(&std::env::temp_dir());
        let folder =
            tempfile::Builder::new().prefix(FOLDER).tempdir().map_err(Error::io("temporary folder"))?;
        // Locked before it has its name, so that nobody finds it open.
        let (lock_path, unnamed) = (folder.path().join(LOCK), folder.path().join("unnamed-lock"));
        let lock = std::fs::File::create(&unnamed).map_err(Error::io(&unnamed))?;
        lock.lock().map_err(Error::io(&unnamed))?;
        std::fs::rename(&unnamed, &lock_path).map_err(Error::io(&lock_path))?;
        let extra = prelude::home()?.join("crates");
        let tools = folder.path().join("cargo-home");
        let mut place = Workplace { folder, _lock: lock, toolchain, environment: Vec::new() };
        place.environment = compiler::install(&tools, &place.prelude(), &place.toolchain, &extra)?;
        let ours = [
            ("EVCXR_TMPDIR", place.cell()),
            (SOCKET_VARIABLE, place.socket()),
            // A user's start-up file for evcxr may ask for crates, at 20 minutes a session.
            ("EVCXR_CONFIG_DIR", place.configuration()),
        ];
        for (name, value) in ours {
            if name != SOCKET_VARIABLE {
                place.environment.push((name.to_owned(), std::env::var_os(name)));
            }
            // SAFETY: the caller promises that no other thread runs yet.
            unsafe { std::env::set_var(name, value) };
        }
        Ok(place)
    }

    /// The private folder; it goes with this value, or with the next kernel that starts.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the engine puts a cell, its compiler's output and messages between the two.
    pub(super) fn cell(&self) -> PathBuf {
        self.folder().join("cell")
    }

    /// By which the process of cells reaches this one.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder().join("socket")
    }

    /// Will lead to the prelude once there is one.
    pub(super) fn prelude(&self) -> PathBuf {
        self.folder().join("prelude")
    }

    /// The engine's settings: none, and no file of the user's.
    pub(super) fn configuration(&self) -> PathBuf {
        self.folder().join("no-configuration")
    }

    /// Gives the process of cells the environment from before the stand-ins.
    pub(super) fn as_before(&self, command: &mut Command) {
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    /// The toolchain in use.
    pub fn toolchain(&self) -> &Toolchain {
        &self.toolchain
    }
}

/// Removes the folders of kernels that were killed: nobody holds their locks.
fn forget_dead(temporary: &Path) {
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(FOLDER) {
            continue;
        }
        let dead = std::fs::File::open(entry.path().join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
        if dead {
            // Someone else's folder stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

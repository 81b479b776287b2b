//! The Rust toolchain that builds the library for cells and compiles them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::error::{Error, Result};

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
    pub(super) fn host(&self) -> Result<String> {
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

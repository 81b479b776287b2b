//! What notebooks need, what is missing, and the command that mends it.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::kernelspec;
use super::lab;
use super::prelude::{self, Prelude};
use super::toolchain::Toolchain;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// As it should be.
    Good,
    /// Works, with a limit.
    Limited,
    /// Notebooks do not work.
    Missing,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What: `compiler`, `linker`.
    pub name: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// The command, or the sentence, that mends it; empty when nothing need be done.
    pub mend: String,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.state {
            State::Good => "good",
            State::Limited => "limited",
            State::Missing => "missing",
        };
        write!(f, "{:<10} {word:<8} {}", self.name, self.found)?;
        if !self.mend.is_empty() {
            write!(f, "\n{:<19} to mend: {}", "", self.mend)?;
        }
        Ok(())
    }
}

fn check(name: &'static str, state: State, found: impl Into<String>, mend: impl Into<String>) -> Check {
    Check { name, state, found: found.into(), mend: mend.into() }
}

/// Looks at everything; changes nothing. Takes a second or two.
pub fn doctor() -> Vec<Check> {
    let toolchain = Toolchain::find();
    let mut checks = vec![match &toolchain {
        Ok(tools) => {
            let version = tools.version().unwrap_or_default();
            if new_enough(&version) {
                check("compiler", State::Good, version, "")
            } else {
                let needed = env!("CARGO_PKG_RUST_VERSION");
                check(
                    "compiler",
                    State::Missing,
                    format!("{version}; {needed} or later is needed"),
                    "rustup update stable",
                )
            }
        }
        Err(error) => {
            check("compiler", State::Missing, error.to_string(), "curl https://sh.rustup.rs -sSf | sh")
        }
    }];
    if let Ok(tools) = &toolchain {
        checks.push(linker(tools));
        checks.push(sources(tools));
    }
    checks.push(library(toolchain.as_ref().ok()));
    checks.push(disk());
    checks.push(gpu());
    checks.push(match lab::find_jupyter() {
        Some(found) => check("jupyter", State::Good, found.display().to_string(), ""),
        None => {
            check("jupyter", State::Limited, "not found", "`cluescope lab` makes a private one with python3")
        }
    });
    checks.push(match kernelspec::installed(None) {
        Ok(Some(spec)) if spec.works => {
            check("kernelspec", State::Good, spec.folder.display().to_string(), "")
        }
        Ok(Some(spec)) => check(
            "kernelspec",
            State::Missing,
            format!("{} is gone", spec.program.display()),
            "cluescope kernel install",
        ),
        Ok(None) => check("kernelspec", State::Limited, "not installed", "cluescope kernel install"),
        Err(error) => check("kernelspec", State::Missing, error.to_string(), "cluescope kernel install"),
    });
    checks
}

/// `rustc 1.95.0 (…)` against the version this package needs.
fn new_enough(version: &str) -> bool {
    let numbers = |text: &str| -> Vec<u32> { text.split('.').map_while(|n| n.parse().ok()).collect() };
    let have = version.split(' ').nth(1).map(numbers).unwrap_or_default();
    have >= numbers(env!("CARGO_PKG_RUST_VERSION"))
}

/// Links a program of one line: the only way to know.
fn linker(tools: &Toolchain) -> Check {
    let mend = if cfg!(target_os = "macos") {
        "xcode-select --install"
    } else {
        "sudo apt-get install build-essential"
    };
    let Ok(folder) = tempfile::tempdir() else {
        return check(
            "linker",
            State::Missing,
            "no temporary folder can be written",
            "free some disk space, or set TMPDIR",
        );
    };
    let source = folder.path().join("main.rs");
    let out = std::fs::write(&source, "fn main() {}").and_then(|()| {
        Command::new(&tools.rustc).arg(&source).arg("-o").arg(folder.path().join("main")).output()
    });
    match out {
        Ok(out) if out.status.success() => check("linker", State::Good, "links", ""),
        Ok(out) => {
            let text = String::from_utf8_lossy(&out.stderr);
            let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("rustc failed");
            check("linker", State::Missing, first, mend)
        }
        Err(error) => check("linker", State::Missing, error.to_string(), mend),
    }
}

/// The standard library's source, by which completions know its names.
fn sources(tools: &Toolchain) -> Check {
    let out = Command::new(&tools.rustc).args(["--print", "sysroot"]).output();
    let root = out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    let folder = Path::new(&root).join("lib/rustlib/src/rust/library");
    if folder.is_dir() {
        return check("rust-src", State::Good, folder.display().to_string(), "");
    }
    check(
        "rust-src",
        State::Limited,
        "the standard library's source is not installed; completions do not know its names",
        "rustup component add rust-src",
    )
}

fn library(tools: Option<&Toolchain>) -> Check {
    let Some(tools) = tools else {
        return check(
            "library",
            State::Missing,
            "cannot be looked for without a compiler",
            "install the compiler first",
        );
    };
    match Prelude::find(tools) {
        Ok(Some(found)) => check("library", State::Good, found.folder.display().to_string(), ""),
        Ok(None) => check(
            "library",
            State::Limited,
            "the prebuilt library is missing or stale; the next kernel builds it",
            "cluescope kernel install",
        ),
        Err(error) => check("library", State::Missing, error.to_string(), "cluescope kernel install"),
    }
}

#[cfg(unix)]
fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = path.ancestors().find(|p| p.exists())?;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path is terminated and the structure is filled in by the call before it is read.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        // The fields' widths differ between systems.
        #[allow(clippy::unnecessary_cast)]
        (libc::statvfs(path.as_ptr(), &mut found) == 0).then(|| found.f_bavail as u64 * found.f_frsize as u64)
    }
}

fn disk() -> Check {
    const NEEDED: u64 = 4 << 30;
    let Ok(home) = prelude::home() else {
        return check(
            "disk",
            State::Missing,
            "no home folder",
            "set CLUESCOPE_KERNEL_HOME to a folder that can be written",
        );
    };
    match free_bytes(&home) {
        Some(free) if free < NEEDED => check(
            "disk",
            State::Limited,
            format!("{:.1} GB free for {}; a build wants 4", free as f64 / 1e9, home.display()),
            "cargo clean, or set CLUESCOPE_KERNEL_HOME to another disk",
        ),
        Some(free) => {
            check("disk", State::Good, format!("{:.1} GB free for {}", free as f64 / 1e9, home.display()), "")
        }
        None => check("disk", State::Limited, "free space unknown", ""),
    }
}

fn gpu() -> Check {
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=name", "--format=csv,noheader"])
        .stderr(Stdio::null())
        .output();
    let name = asked
        .ok()
        .filter(|o| o.status.success())
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    match name.filter(|n| !n.is_empty()) {
        Some(name) if cfg!(feature = "cuda") => check("gpu", State::Good, name, ""),
        Some(name) => check(
            "gpu",
            State::Limited,
            format!("{name}, but this build does not use it"),
            "cargo build --release --features kernel,cuda",
        ),
        None => check("gpu", State::Good, "none; the CPU is used", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert!(new_enough("rustc 1.95.0 (59807616e 2026-04-14)"));
        assert!(new_enough("rustc 2.0.0"));
        assert!(!new_enough("rustc 1.94.9 (x)"));
        assert!(!new_enough(""));
    }

    #[test]
    fn a_finding_names_its_cure() {
        let text = check("linker", State::Missing, "linker `cc` not found", "install it").to_string();
        assert!(text.contains("missing") && text.contains("to mend: install it"));
    }
}

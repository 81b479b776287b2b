//! Opens JupyterLab on a folder of notebooks, with this kernel registered.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kernelspec;
use super::prelude::{self, Prelude};
use super::toolchain::Toolchain;
use crate::error::{Error, Result};

/// The `jupyter` program with JupyterLab: along `PATH`, or the private one that [`lab`] makes.
pub(super) fn find_jupyter() -> Option<PathBuf> {
    let private = prelude::home().ok().map(|home| home.join("jupyter/bin/jupyter"));
    let mut candidates: Vec<PathBuf> = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).map(|p| p.join("jupyter")).collect())
        .unwrap_or_default();
    candidates.extend(private);
    candidates.into_iter().filter(|c| c.is_file()).find(|c| {
        let asked =
            Command::new(c).args(["lab", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|s| s.success())
    })
}

/// Makes a private virtual environment with JupyterLab; the user's own Python stays as it is.
fn make_jupyter(say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let folder = prelude::home()?.join("jupyter");
    say(&format!("no JupyterLab found; making a private one in {}", folder.display()));
    run(
        Command::new("python3").args(["-m", "venv"]).arg(&folder),
        "install python3 with its venv module, or JupyterLab itself",
    )?;
    let pip = folder.join("bin/pip");
    run(Command::new(pip).args(["install", "--quiet", "jupyterlab"]), "check the network, then try again")?;
    Ok(folder.join("bin/jupyter"))
}

fn run(command: &mut Command, mend: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error::Stopped(format!("{name}: {status}; {mend}"))),
        Err(error) => Err(Error::Stopped(format!("{name}: {error}; {mend}"))),
    }
}

/// Where this project's own notebooks may lie: in the clone it was built from, or in an unpacked archive of a release, whose
/// `bin` holds the program.
fn own(program: Option<&Path>) -> Vec<PathBuf> {
    let archive = program.and_then(|program| program.ancestors().nth(2));
    let archive = archive.filter(|folder| folder.join("share/cluescope/nano").is_dir());
    let clone = Path::new(env!("CARGO_MANIFEST_DIR"));
    [Some(clone), archive].into_iter().flatten().map(|folder| folder.join("notebooks")).collect()
}

/// Marks this project's own notebooks as trusted: until they are run, JupyterLab would leave their charts out. Others are for their reader to judge.
fn trust(jupyter: &Path, notebooks: &Path, say: &mut dyn FnMut(&str)) {
    let Ok(asked) = notebooks.canonicalize() else { return };
    let program = std::env::current_exe().ok();
    if !own(program.as_deref()).iter().any(|own| own.canonicalize().is_ok_and(|own| own == asked)) {
        return;
    }
    let files = std::fs::read_dir(&asked).into_iter().flatten().flatten().map(|entry| entry.path());
    let numbered = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.ends_with(".ipynb") && name.starts_with(|c: char| c.is_ascii_digit())
    };
    let asked =
        Command::new(jupyter).arg("trust").args(files.filter(numbered)).stdout(Stdio::null()).status();
    if !asked.is_ok_and(|status| status.success()) {
        say(
            "`jupyter trust` failed; JupyterLab shows charts once a notebook is run or trusted (File, Trust Notebook)",
        );
    }
}

/// Builds the library for notebooks when it is due, registers the kernel, and runs JupyterLab on
/// `notebooks` in the place of this process. `arguments` go to JupyterLab. Returns only when it fails.
///
/// # Errors
/// [`Error::Stopped`] naming the step that failed and what to do.
pub fn lab(notebooks: &Path, arguments: &[String], say: &mut dyn FnMut(&str)) -> Result<()> {
    if !notebooks.is_dir() {
        return Err(Error::Stopped(format!(
            "{} is no folder; run this in a clone of cluescope, or name a folder of notebooks",
            notebooks.display()
        )));
    }
    let toolchain = Toolchain::find()?;
    Prelude::find_or_build(&toolchain, say)?;
    let jupyter = match find_jupyter() {
        Some(found) => found,
        None => make_jupyter(say)?,
    };
    let spec = kernelspec::install(None)?;
    say(&format!("kernel \"Rust (cluescope)\" registered in {}", spec.display()));
    trust(&jupyter, notebooks, say);
    // In this process's place, so that Ctrl-C and closing mean what they mean to JupyterLab.
    let error = Command::new(&jupyter).arg("lab").arg(notebooks).args(arguments).exec();
    Err(Error::io(&jupyter)(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_notebooks_that_came_with_the_program_are_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("bin/cluescope");
        let shipped = folder.path().join("notebooks");
        assert!(!own(Some(&program)).contains(&shipped), "any folder beside a `bin`");
        std::fs::create_dir_all(folder.path().join("share/cluescope/nano")).unwrap();
        assert!(own(Some(&program)).contains(&shipped));
        assert!(own(None)[0].join("00-tour.ipynb").is_file());
    }
}

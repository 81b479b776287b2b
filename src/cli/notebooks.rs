//! `cluescope lab | run | kernel | doctor`: notebooks, which need a build with the feature `kernel`.

use std::path::PathBuf;

/// Options of `cluescope lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct LabArgs {
    /// Folder of notebooks
    #[arg(default_value = "notebooks")]
    notebooks: PathBuf,
    /// Passed on to JupyterLab
    #[arg(last = true)]
    jupyter: Vec<String>,
}

/// Options of `cluescope run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Notebooks, each in a fresh kernel
    #[arg(required = true)]
    notebooks: Vec<PathBuf>,
    /// Folder for the executed notebooks; without it each replaces its file
    #[arg(long)]
    out: Option<PathBuf>,
    /// Sets NAME, which a cell tagged `parameters` declares, to the Rust expression VALUE
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, String)>,
    /// Write nothing; fail when an output differs from the one in the file, by as much as the cell's tag allows: exact,
    /// tolerance, tolerance=0.01, interval or kind
    #[arg(long)]
    check: bool,
}

/// What to do with the kernel's registration.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum KernelCommand {
    /// Register the kernel "Rust (cluescope)" with Jupyter, and build the library for notebooks when it is due
    Install {
        /// A virtual environment instead of the user's Jupyter
        #[arg(long)]
        prefix: Option<PathBuf>,
    },
    /// Remove the registration
    Uninstall {
        /// A virtual environment instead of the user's Jupyter
        #[arg(long)]
        prefix: Option<PathBuf>,
    },
    /// Say what is registered
    Status {
        /// A virtual environment instead of the user's Jupyter
        #[arg(long)]
        prefix: Option<PathBuf>,
    },
    /// Serve one notebook; Jupyter calls this
    Serve {
        /// Jupyter's connection file
        connection_file: PathBuf,
    },
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}

#[cfg(all(unix, feature = "kernel"))]
mod commands {
    use super::*;
    use cluescope::kernel;

    fn say(line: &str) {
        eprintln!("{line}");
    }

    pub(crate) fn lab(args: &LabArgs) -> anyhow::Result<()> {
        Ok(kernel::lab(&args.notebooks, &args.jupyter, &mut say)?)
    }

    /// `listen` begins to listen for Ctrl-C; cells' environment is set before, while there is one thread.
    pub(crate) fn run(args: &RunArgs, listen: fn()) -> anyhow::Result<()> {
        let workplace = kernel::Workplace::prepare()?;
        listen();
        let options = kernel::RunOptions {
            out: args.out.clone(),
            parameters: args.parameters.clone(),
            check: args.check,
        };
        Ok(kernel::run_notebooks(&workplace, &args.notebooks, &options, &mut say)?)
    }

    pub(crate) fn kernel(command: &KernelCommand) -> anyhow::Result<()> {
        match command {
            KernelCommand::Install { prefix } => {
                kernel::Prelude::find_or_build(&kernel::Toolchain::find()?, &mut say)?;
                println!("{}", kernel::install(prefix.as_deref())?.display());
            }
            KernelCommand::Uninstall { prefix } => {
                println!(
                    "{}",
                    if kernel::uninstall(prefix.as_deref())? { "removed" } else { "was not registered" }
                );
            }
            KernelCommand::Status { prefix } => match kernel::installed(prefix.as_deref())? {
                None => println!("not registered; register it with: cluescope kernel install"),
                Some(found) => {
                    let state = if found.works { "" } else { " (missing; install again)" };
                    println!("{}\nstarts {}{state}", found.folder.display(), found.program.display());
                }
            },
            KernelCommand::Serve { connection_file } => kernel::serve(connection_file)?,
        }
        Ok(())
    }

    pub(crate) fn doctor() -> anyhow::Result<()> {
        let checks = kernel::doctor();
        for check in &checks {
            println!("{check}");
        }
        let missing = checks.iter().filter(|c| c.state == kernel::State::Missing).count();
        anyhow::ensure!(missing == 0, "{missing} missing; notebooks will not work before they are mended");
        Ok(())
    }
}

/// A build without the notebook engine builds the one with it, and hands over.
#[cfg(not(all(unix, feature = "kernel")))]
mod commands {
    use super::*;

    #[cfg(unix)]
    fn hand_over(_: &impl std::fmt::Debug) -> anyhow::Result<()> {
        use std::os::unix::process::CommandExt;
        let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        anyhow::ensure!(
            package.join("Cargo.toml").is_file(),
            "this program was built without notebooks; in a clone of cluescope: cargo install --locked --path . --features kernel"
        );
        eprintln!("building the notebook engine; the first time takes ten to twenty minutes");
        let mut cargo = std::process::Command::new("cargo");
        let error = cluescope::kernel::cargo::forget_package(&mut cargo)
            .args(["run", "--release", "--features", "kernel", "--manifest-path"])
            .arg(package.join("Cargo.toml"))
            .arg("--")
            .args(std::env::args_os().skip(1))
            .exec();
        Err(anyhow::Error::from(error).context("cargo is needed to build the notebook engine"))
    }

    #[cfg(not(unix))]
    fn hand_over(_: &impl std::fmt::Debug) -> anyhow::Result<()> {
        anyhow::bail!("notebooks run on Linux and macOS; on Windows use WSL")
    }

    pub(crate) fn lab(args: &LabArgs) -> anyhow::Result<()> {
        hand_over(args)
    }

    pub(crate) fn run(args: &RunArgs, _listen: fn()) -> anyhow::Result<()> {
        hand_over(args)
    }

    pub(crate) fn kernel(command: &KernelCommand) -> anyhow::Result<()> {
        hand_over(command)
    }

    pub(crate) fn doctor() -> anyhow::Result<()> {
        hand_over(&())
    }
}

pub(crate) use commands::{doctor, kernel, lab, run};

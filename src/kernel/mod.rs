//! Rust notebooks that answer at once: a Jupyter kernel on the evcxr engine whose cells are linked
//! against one prebuilt dynamic library of this package.
//!
//! | part | what it does |
//! |---|---|
//! | `child` | the process in which cells run; part of the library, so always compiled |
//! | `cargo` | what cargo tells a program it runs, kept from the cargo that the program runs; always compiled too |
//! | `prelude` | builds and finds the prebuilt library |
//! | `toolchain` | finds rustc and cargo |
//! | `dependency` | `:dep` lines that ask for what is there |
//! | `compiler` | stands in for cargo before the engine and calls `rustc` directly |
//! | `interface` | what cells are linked against in the library's place, without its hundred thousand symbols |
//! | `syntax` | questions about source text |
//! | `diagnostics` | errors of a cell in words |
//! | `types` | types of new variables, told by the compiler |
//! | `stream` | takes apart what a cell prints |
//! | `session` | one notebook's engine |
//! | `workplace` | the files and the environment of one kernel process |
//! | `analysis` | completions that know the library |
//! | `output` | from a cell's events to Jupyter's messages |
//! | `server` | the five sockets |
//! | `shell` | answers requests in order |
//! | `outlets` | what the server's parts share |
//! | `public` | the channel to all who listen |
//! | `engine` | the thread that owns a session |
//! | `history` | earlier cells |
//! | `headless` | runs notebooks without Python |
//! | `compare` | whether a notebook shows the same as before |
//! | `kernelspec`, `lab`, `doctor` | registering, opening, looking for what is missing |
//! | `requests` | what clients send, with the defaults of what they leave out |
//! | `program` | copies of this program that a later build leaves alone |
//!
//! All but `child` and `cargo` need the cargo feature `kernel`. Cells run on Linux; macOS is written for and
//! untested; on Windows the kernel runs in WSL.

#[cfg(unix)]
pub mod cargo;
#[cfg(unix)]
pub mod child;

#[cfg(all(unix, feature = "kernel"))]
pub use host::*;

/// All but `child` and `cargo`, so that the condition stands once. The files lie in this folder.
#[cfg(all(unix, feature = "kernel"))]
#[path = ""]
mod host {
    mod analysis;
    mod compare;
    mod compiler;
    mod dependency;
    mod diagnostics;
    mod doctor;
    mod engine;
    mod headless;
    mod history;
    mod interface;
    mod kernelspec;
    mod lab;
    mod outlets;
    mod output;
    mod prelude;
    mod program;
    mod public;
    mod requests;
    mod server;
    mod session;
    mod shell;
    mod stream;
    mod syntax;
    mod toolchain;
    mod types;
    mod workplace;

    use super::{cargo, child};

    pub use compiler::hook;
    pub use doctor::{Check, State, doctor};
    pub use headless::{RunOptions, run_notebooks};
    pub use kernelspec::{Installed, install, installed, uninstall};
    pub use lab::lab;
    pub use prelude::{Crate, Prelude};
    pub use server::serve;
    pub use session::{CellError, Handle, Session, Sink};
    pub use stream::{Event, Stream};
    pub use toolchain::Toolchain;
    pub use workplace::Workplace;
}

// Named so that each is inside the prebuilt library even before a stage uses it: a cell that names
// a crate which is not would be linked against a copy of its own.
use candle_nn as _;
#[cfg(feature = "cells")]
use candle_transformers as _;
use csv as _;
use half as _;
use memmap2 as _;
use plotters as _;
use rand_chacha as _;
use rayon as _;
use safetensors as _;
use tokenizers as _;

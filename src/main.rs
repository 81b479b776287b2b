//! The command line: parse, dispatch, exit code.

mod cli;

fn main() -> std::process::ExitCode {
    // A kernel sets its environment before there are threads, so nothing may come before it.
    #[cfg(all(unix, feature = "kernel"))]
    cluescope::kernel::hook();
    cli::main()
}

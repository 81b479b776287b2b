//! Cargo as a tool that this program runs, also when cargo runs this program.

use std::process::Command;

/// Takes from `command` what `cargo run` or `cargo test` told this program about its own package.
///
/// Build scripts would see the names of another package and take that for a change: ring and all above it would be
/// compiled again, under a program or a test that was linked before, and once more in the next build outside.
pub fn forget_package(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_not_told_about_another() {
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some(), "a test runs under cargo");
        let output = forget_package(&mut Command::new("env")).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("PATH="), "{told}");
        assert!(!told.contains("CARGO_PKG_NAME=") && !told.contains("CARGO_MANIFEST_DIR="), "{told}");
    }
}

//! Where a result came from: written into every output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Command, versions, model hashes, seeds and options of one result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// What made it: a command line, or the library call.
    pub command: String,
    /// Version of this package.
    pub cluescope: String,
    /// Model name to content hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, String>,
    /// Options that matter for the result, seeds among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl Provenance {
    /// Provenance of `command` by this version.
    pub fn new(command: impl Into<String>) -> Self {
        Provenance {
            command: command.into(),
            cluescope: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }
    }

    /// Adds a model and its content hash.
    pub fn model(mut self, name: impl Into<String>, hash: impl Into<String>) -> Self {
        self.models.insert(name.into(), hash.into());
        self
    }

    /// Adds where it was made: processor, system, threads, and the versions of what computes.
    pub fn with_machine(self) -> Self {
        let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        let mut here = self
            .option("processor", processor().unwrap_or_else(|| "unknown".into()))
            .option("system", system)
            .option("threads", rayon::current_num_threads());
        for name in ["candle-core", "gemm", "tokenizers", "polars"] {
            if let Some(version) = locked_version(name) {
                here = here.option(name, version);
            }
        }
        here
    }

    /// Adds an option.
    pub fn option(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.options.insert(name.into(), value.to_string());
        self
    }
}

/// The processor's name where the system tells it in a file (Linux).
fn processor() -> Option<String> {
    let told = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let name = told.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(name.trim_start_matches([' ', '\t', ':']).trim().to_string())
}

/// The version of a dependency in this build's lock file.
fn locked_version(name: &str) -> Option<&'static str> {
    let lock = include_str!("../Cargo.lock");
    let (_, package) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    package.split('"').next()
}

/// The first 16 hexadecimal digits of the SHA-256 of `parts`, each preceded by its length, so that
/// `["ab", "c"]` and `["a", "bc"]` differ.
///
/// ```
/// use cluescope::provenance::content_hash;
/// assert_eq!(content_hash(["a"]).len(), 16);
/// assert_ne!(content_hash(["ab", "c"]), content_hash(["a", "bc"]));
/// ```
pub fn content_hash<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_the_versions_are_told() {
        let here = Provenance::new("x").with_machine();
        assert_eq!(here.options["threads"], rayon::current_num_threads().to_string());
        assert!(here.options["candle-core"].starts_with(|c: char| c.is_ascii_digit()), "{here:?}");
        assert_eq!(locked_version("no-such-crate"), None);
    }
}

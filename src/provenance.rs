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
    /// Versions of the crates that decide numbers or tokens.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub crates: BTreeMap<String, String>,
    /// Model name to content hash.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<String, String>,
    /// Options that matter for the result, seeds among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Another version of one of these may compute other last digits or split a text into other tokens.
const DECIDING: [&str; 3] = ["candle-core", "gemm", "tokenizers"];

impl Provenance {
    /// Provenance of `command` by this version.
    pub fn new(command: impl Into<String>) -> Self {
        let version = |name: &str| Some((name.to_string(), locked_version(name)?.to_string()));
        Provenance {
            command: command.into(),
            cluescope: env!("CARGO_PKG_VERSION").into(),
            crates: DECIDING.into_iter().filter_map(version).collect(),
            ..Default::default()
        }
    }

    /// Everything that is known, as names and values for people.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines =
            vec![("command".into(), self.command.clone()), ("cluescope".into(), self.cluescope.clone())];
        lines.extend(self.crates.clone());
        lines.extend(self.models.iter().map(|(name, hash)| (format!("model {name}"), hash.clone())));
        lines.extend(self.options.clone());
        lines.retain(|(_, value)| !value.is_empty());
        lines
    }

    /// Whether `other` would lead to the same numbers: a model is its content, whatever name it goes by, and the command
    /// may be spelt another way.
    pub fn same_numbers(&self, other: &Provenance) -> bool {
        self.program() == other.program()
            && self.models.values().eq(other.models.values())
            && self.options == other.options
    }

    /// Versions of this package and of the crates that decided the numbers.
    pub(crate) fn program(&self) -> String {
        let crates: Vec<String> =
            self.crates.iter().map(|(name, version)| format!("{name} {version}")).collect();
        format!("cluescope {} ({})", self.cluescope, crates.join(", "))
    }

    /// Adds a model and its content hash.
    pub fn model(mut self, name: impl Into<String>, hash: impl Into<String>) -> Self {
        self.models.insert(name.into(), hash.into());
        self
    }

    /// Adds where it was made: processor, system, threads.
    pub fn with_machine(self) -> Self {
        let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        self.option("processor", processor().unwrap_or_else(|| "unknown".into()))
            .option("system", system)
            .option("threads", rayon::current_num_threads())
    }

    /// Adds an option.
    pub fn option(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.options.insert(name.into(), value.to_string());
        self
    }
}

/// This package and the crates that decide numbers, with their versions.
pub(crate) fn program() -> String {
    Provenance::new("").program()
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
        for name in DECIDING {
            assert!(here.crates[name].starts_with(|c: char| c.is_ascii_digit()), "{here:?}");
        }
        assert_eq!(locked_version("no-such-crate"), None);
    }

    #[test]
    fn the_same_numbers_need_the_same_model_options_and_versions() {
        let made = Provenance::new("x").model("a.gguf", "01").option("prefix", "");
        let named_otherwise = Provenance::new("y").model("b.gguf", "01").option("prefix", "");
        assert!(made.same_numbers(&named_otherwise));
        assert!(!made.same_numbers(&made.clone().option("prefix", "Text: ")));
        assert!(!made.same_numbers(&made.clone().model("a.gguf", "02")));
        let mut older = made.clone();
        older.crates.insert("gemm".into(), "0.1.0".into());
        assert!(!made.same_numbers(&older));
        assert!(made.lines().contains(&("model a.gguf".into(), "01".into())));
    }
}

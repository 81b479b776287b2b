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

    /// Adds an option.
    pub fn option(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.options.insert(name.into(), value.to_string());
        self
    }
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

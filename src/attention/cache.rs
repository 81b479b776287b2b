//! Finished texts remembered by content: the same model, text and options are never computed twice.
//!
//! One small file a text. Entries that cannot be read are computed again; a cache that cannot be written
//! is no reason to stop. Above [`LIMIT_BYTES`] the entries used longest ago are removed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::AttendedText;
use super::options::Cache;
use crate::error::Error;
use crate::files::{clear_leftovers, write_atomic};

/// Size the cache is brought back to after a run that added to it.
const LIMIT_BYTES: u64 = 2 << 30;

/// Counts up when the meaning of a stored entry changes.
pub(super) const VERSION: &str = "attention 1";

/// The folder in use, if any.
#[derive(Debug)]
pub(super) struct Store {
    folder: Option<PathBuf>,
    /// Until an entry could not be written.
    writable: bool,
    added: bool,
}

impl Store {
    pub(super) fn open(cache: &Cache) -> Self {
        let folder = match cache {
            Cache::User => user_folder(),
            Cache::Folder(folder) => Some(folder.clone()),
            Cache::Off => None,
        };
        Store { folder: folder.map(|f| f.join("attention")), writable: true, added: false }
    }

    pub(super) fn is_on(&self) -> bool {
        self.folder.is_some()
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(key.get(..2)?).join(format!("{key}.json")))
    }

    /// The entry under `key`, whose id, text and facts are the caller's to fill in.
    pub(super) fn get(&self, key: &str, ids: &[u32]) -> Option<AttendedText> {
        let path = self.path(key)?;
        let found: AttendedText = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        let whole = found.ids == ids
            && found.received.len() == ids.len()
            && found.probe.values().all(|row| row.weights.len() == row.position + 1);
        // The time of use decides what is removed first; a read-only cache keeps the old one.
        if whole && let Ok(file) = std::fs::File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        whole.then_some(found)
    }

    pub(super) fn put(&mut self, key: &str, text: &AttendedText) {
        let Some(path) = self.path(key).filter(|_| self.writable) else { return };
        let written = write_atomic(&path, |out| {
            serde_json::to_writer(out, text).map_err(|e| Error::io(&path)(e.into()))
        });
        match written {
            Ok(()) => self.added = true,
            // A full or read-only disk: go on without. What is there is still found, so that batches are the same whoever comes
            // first.
            Err(_) => self.writable = false,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let (Some(folder), true) = (&self.folder, self.added) {
            prune(folder, LIMIT_BYTES);
        }
    }
}

/// Removes the entries used longest ago until at most `limit` bytes remain.
fn prune(folder: &Path, limit: u64) {
    let mut entries: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
    for shelf in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        // A leftover that cannot be removed is old one day, and goes with the entries.
        let _ = clear_leftovers(shelf.path());
        for entry in std::fs::read_dir(shelf.path()).into_iter().flatten().flatten() {
            if let Ok(meta) = entry.metadata() {
                entries.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), entry.path()));
            }
        }
    }
    let mut total: u64 = entries.iter().map(|e| e.1).sum();
    entries.sort();
    for (_, bytes, path) in entries {
        if total <= limit {
            break;
        }
        // Another process may have removed it already.
        let _ = std::fs::remove_file(path);
        total -= bytes;
    }
}

/// `$CLUESCOPE_CACHE`, or `cluescope` in the user's cache folder.
fn user_folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("CLUESCOPE_CACHE") {
        return (!folder.is_empty()).then(|| folder.into());
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        set("HOME").map(|home| home.join("Library/Caches"))
    } else {
        set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("cluescope"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(&Cache::Folder(folder.path().into()));
        let text = AttendedText { ids: vec![7, 8], received: vec![0.1, 1e-9], ..Default::default() };
        store.put("abcd", &text);
        assert_eq!(store.get("abcd", &[7, 8]).unwrap().received, text.received);
        assert!(store.get("abcd", &[7, 9]).is_none(), "another tokenisation");
        assert!(store.get("abce", &[7, 8]).is_none());
        let path = store.path("abcd").unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(store.get("abcd", &[7, 8]).is_none(), "a torn entry");
    }

    #[test]
    fn the_oldest_entries_go_first() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = folder.path().join("ab");
        std::fs::create_dir(&shelf).unwrap();
        for (age, name) in ["old", "middle", "new"].iter().rev().enumerate() {
            let path = shelf.join(name);
            std::fs::write(&path, [0u8; 100]).unwrap();
            let when = SystemTime::now() - std::time::Duration::from_secs(60 * age as u64);
            std::fs::File::options().append(true).open(&path).unwrap().set_modified(when).unwrap();
        }
        prune(folder.path(), 250);
        assert!(!shelf.join("old").exists());
        assert!(shelf.join("middle").exists() && shelf.join("new").exists());
    }
}

//! Copies of this program that a later build cannot pull away: `cargo run` without the feature
//! `kernel` puts another program in the same place, and everything that pointed there would break.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::prelude;
use crate::error::{Error, Result};
use crate::provenance::content_hash;

/// Copies kept besides the one in use; running sessions may still need them.
const KEPT: usize = 4;

/// This program.
///
/// # Errors
/// [`Error::Io`] when the system does not tell.
pub(super) fn this() -> Result<PathBuf> {
    std::env::current_exe().map_err(Error::io("this program"))
}

/// Whether cargo may replace `program` at any time.
pub(super) fn is_built_here(program: &Path) -> bool {
    // A target folder that was there before cargo has no tag of its own, but each profile's folder a lock.
    let marks = ["CACHEDIR.TAG", ".cargo-lock"];
    program.ancestors().skip(1).take(3).any(|folder| marks.iter().any(|mark| folder.join(mark).is_file()))
}

/// A copy of this program that stays, made when there is none.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
pub(super) fn kept() -> Result<PathBuf> {
    let program = this()?;
    let meta = std::fs::metadata(&program).map_err(Error::io(&program))?;
    let time = meta.modified().ok().and_then(|t| t.duration_since(SystemTime::UNIX_EPOCH).ok());
    let key = content_hash([format!("{} {} {time:?}", program.display(), meta.len())]);
    let all = prelude::home()?.join("bin");
    let place = all.join(&key).join("cluescope");
    if place.is_file() {
        return Ok(place);
    }
    copy(&program, &place)?;
    forget_old(&all, &key);
    Ok(place)
}

/// Copies a program; whole or absent.
///
/// # Errors
/// [`Error::Io`] when it cannot be written.
pub(super) fn copy(program: &Path, place: &Path) -> Result<()> {
    let folder = place.parent().unwrap_or(place);
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let temporary = tempfile::Builder::new().prefix(".program-").tempfile_in(folder);
    let temporary = temporary.map_err(Error::io(folder))?.into_temp_path();
    // Keeps the permission to run it; shares the data where the file system can.
    std::fs::copy(program, &temporary).map_err(Error::io(place))?;
    temporary.persist(place).map_err(|e| Error::io(place)(e.error))
}

fn forget_old(all: &Path, current: &str) {
    let mut found: Vec<(SystemTime, PathBuf)> = std::fs::read_dir(all)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name() != current)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let surplus = found.len().saturating_sub(KEPT);
    for (_, folder) in found.into_iter().take(surplus) {
        // Tidying up is no reason to fail.
        let _ = std::fs::remove_dir_all(folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_runs_and_old_ones_go() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join("program");
        std::fs::write(&program, "#!/bin/sh\necho here\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        for name in ["a", "b", "c", "d", "e", "f", "g"] {
            copy(&program, &place.path().join("all").join(name).join("cluescope")).unwrap();
        }
        forget_old(&place.path().join("all"), "g");
        let copy = place.path().join("all/g/cluescope");
        let out = std::process::Command::new(copy).output().unwrap();
        assert_eq!(out.stdout, b"here\n");
        assert_eq!(std::fs::read_dir(place.path().join("all")).unwrap().count(), KEPT + 1);
    }

    #[test]
    fn build_folders_are_recognised() {
        assert!(is_built_here(&this().unwrap()));
        assert!(!is_built_here(Path::new("/usr/bin/env")));
    }
}

//! Files that are either whole or absent: written to a temporary name beside the target, then renamed.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through `fill`; the file appears under its name only when `fill` succeeded and
/// the bytes are on disk. Missing parent folders are made.
///
/// # Errors
/// [`Error::Io`] naming `path`, or whatever `fill` returns; the old file, if any, is then untouched.
pub fn write_atomic(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut file = tempfile::Builder::new()
        .prefix(".cluescope-")
        .permissions_of(path)
        .tempfile_in(folder)
        .map_err(Error::io(path))?;
    {
        let mut out = BufWriter::new(file.as_file_mut());
        fill(&mut out)?;
        out.flush().map_err(Error::io(path))?;
    }
    file.as_file().sync_all().map_err(Error::io(path))?;
    file.persist(path).map_err(|e| Error::io(path)(e.error))?;
    Ok(())
}

/// Writes `text` as the whole file `path`, or nothing: see [`write_atomic`].
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_text(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, |out| out.write_all(text.as_bytes()).map_err(Error::io(path)))
}

/// The whole of a text file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Format`] with the byte offset when it is not UTF-8.
pub fn read_text(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("byte {at}"), "not UTF-8; convert the file to UTF-8 first")
    })
}

/// A locked file, free again when this is dropped and when the process dies.
///
/// Closing a file is not enough to free it: a child process that another thread has just forked holds a copy of the
/// open file until it becomes the program it was made for.
#[derive(Debug)]
pub struct Locked(File);

impl Locked {
    /// Locks `file` unless another holder has it; then `None`.
    ///
    /// # Errors
    /// What the system says when it cannot lock files here.
    pub fn try_new(file: File) -> std::io::Result<Option<Self>> {
        match file.try_lock() {
            Ok(()) => Ok(Some(Locked(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl std::ops::Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Nothing could be done about a failure, and closing the file frees it soon after.
        let _ = self.0.unlock();
    }
}

/// Extension of `path` in lower case, without the dot; empty when there is none.
pub fn extension(path: impl AsRef<Path>) -> String {
    path.as_ref().extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Temporary files are private by default; a result should get the permissions any new file gets.
trait PermissionsOf {
    fn permissions_of(&mut self, path: &Path) -> &mut Self;
}

impl PermissionsOf for tempfile::Builder<'_, '_> {
    #[cfg(unix)]
    fn permissions_of(&mut self, path: &Path) -> &mut Self {
        use std::os::unix::fs::PermissionsExt;
        // The umask is applied on creation, so 0o666 becomes what the user's shell would give.
        let mode = std::fs::metadata(path).map_or(0o666, |m| m.permissions().mode() & 0o777);
        self.permissions(std::fs::Permissions::from_mode(mode))
    }

    #[cfg(not(unix))]
    fn permissions_of(&mut self, _path: &Path) -> &mut Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_lock_is_free_though_a_copy_of_the_file_is_open() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(path.path()).unwrap();
        let held = Locked::try_new(open()).unwrap().unwrap();
        let copy = held.try_clone().unwrap();
        assert!(Locked::try_new(open()).unwrap().is_none());
        drop(held);
        assert!(Locked::try_new(open()).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.txt");
        write_atomic(&path, |out| out.write_all(b"old").map_err(Error::io("b"))).unwrap();
        let failed = write_atomic(&path, |out| {
            out.write_all(b"new").map_err(Error::io("b"))?;
            Err(Error::Interrupted)
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
        assert_eq!(read_text(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file left");
    }
}

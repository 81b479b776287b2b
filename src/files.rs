//! Files that are either whole or absent: written to a temporary name beside the target, then renamed.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::error::{Error, Result};
use crate::memory::readable;

/// How the temporary files of [`write_atomic`] begin.
const PREFIX: &str = ".cluescope-";

/// Names the time between saves, in seconds.
const SAVE_SECONDS: &str = "CLUESCOPE_SAVE_SECONDS";

/// Time between saves of work under way, so that no more is lost to a kill: 45 seconds, or those of the environment
/// variable `CLUESCOPE_SAVE_SECONDS`.
///
/// # Errors
/// [`Error::Option`] when the variable holds no number of seconds.
pub fn save_every() -> Result<Duration> {
    let Some(given) = std::env::var_os(SAVE_SECONDS) else { return Ok(Duration::from_secs(45)) };
    let seconds = given.to_str().and_then(|text| text.trim().parse().ok());
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| Error::option(SAVE_SECONDS, given.display(), "a number of seconds, such as 45 or 0.5"))
}

/// `value` as it comes back from a file of JSON, which may move the last bit of a number: what is compared with something
/// read must have gone the same way.
pub(crate) fn as_read_back<T: Serialize + DeserializeOwned>(value: &T) -> serde_json::Result<T> {
    serde_json::from_str(&serde_json::to_string(value)?)
}

/// The folder that holds the file `path`.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `path` through `fill`; the file appears under its name only when `fill` succeeded and
/// the bytes are on disk. Missing parent folders are made.
///
/// # Errors
/// [`Error::Io`] naming `path`, or whatever `fill` returns; the old file, if any, is then untouched.
pub fn write_atomic(path: impl AsRef<Path>, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let folder = folder_of(path);
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut file = temporary(path, folder)?;
    {
        let mut out = BufWriter::new(file.as_file_mut());
        fill(&mut out)?;
        out.flush().map_err(Error::io(path))?;
    }
    file.as_file().sync_all().map_err(Error::io(path))?;
    let file = file.persist(path).map_err(|e| Error::io(path)(e.error))?;
    // Nothing could be done about a failure, and closing the file frees it too.
    let _ = file.unlock();
    Ok(())
}

/// A new file in `folder` that becomes `path`, locked as long as it is written: so one that nobody holds was left by a
/// killed process.
fn temporary(path: &Path, folder: &Path) -> Result<NamedTempFile> {
    loop {
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions_of(path)
            .tempfile_in(folder)
            .map_err(Error::io(path))?;
        // A file system without locks has no leftovers cleared either. Before the lock was there, another process may
        // have taken the file for one: then a new one is made.
        if file.as_file().lock().is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes what killed processes left half-written in `folder` by [`write_atomic`]; files that are being written stay.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read or a leftover not be removed; a folder that is not there has none.
pub fn clear_leftovers(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    let missing = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
    let entries = match std::fs::read_dir(folder) {
        Err(e) if missing(&e) => return Ok(()),
        entries => entries.map_err(Error::io(folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io(folder))?;
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) || !path.is_file() {
            continue;
        }
        let file = match File::open(&path) {
            Err(e) if missing(&e) => continue,
            file => file.map_err(Error::io(&path))?,
        };
        if file.try_lock().is_ok() {
            match std::fs::remove_file(&path) {
                Err(e) if !missing(&e) => return Err(Error::io(&path)(e)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Written at most, and removed again, to see whether a folder takes files.
const PROBE_BYTES: u64 = 1 << 20;

/// Makes `folder` ready for about `bytes` of results before the work for them begins: made where it is missing, without
/// what a killed process left half-written, and with room on its disk.
///
/// # Errors
/// [`Error::Io`] when it cannot be made or written, [`Error::Stopped`] when its disk has less room.
pub fn make_ready(folder: impl AsRef<Path>, bytes: u64) -> Result<()> {
    let folder = folder.as_ref();
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    clear_leftovers(folder)?;
    // What a system says of its free space leaves out quotas and rights.
    let zeros = vec![0; bytes.clamp(PROBE_BYTES / 16, PROBE_BYTES) as usize];
    temporary(folder, folder)?.write_all(&zeros).map_err(Error::io(folder))?;
    match available(folder) {
        Some(left) if left < bytes => Err(Error::Stopped(format!(
            "{}: about {} will be written and {} are left on this disk; make room, or name another folder",
            folder.display(),
            readable(bytes),
            readable(left)
        ))),
        _ => Ok(()),
    }
}

/// Bytes that this user may still write on the disk of `folder`; `None` where the system does not tell.
fn available(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
        // SAFETY: all zeros is a value of this plain C struct; the path ends in a zero byte, and statvfs writes into the
        // struct alone.
        let stat = unsafe {
            let mut stat: libc::statvfs = std::mem::zeroed();
            (libc::statvfs(path.as_ptr(), &mut stat) == 0).then_some(stat)
        }?;
        // Their types differ between systems.
        #[allow(clippy::unnecessary_cast)]
        Some((stat.f_bavail as u64).saturating_mul(stat.f_frsize as u64))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Writes `text` as the whole file `path`, or nothing: see [`write_atomic`].
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn write_text(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    write_atomic(path, |out| out.write_all(text.as_bytes()).map_err(Error::io(path)))
}

/// Removes the file `path`, if there is one.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn remove(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
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
        let path = NamedTempFile::new().unwrap();
        let open = || File::open(path.path()).unwrap();
        let held = Locked::try_new(open()).unwrap().unwrap();
        let copy = held.try_clone().unwrap();
        assert!(Locked::try_new(open()).unwrap().is_none());
        drop(held);
        assert!(Locked::try_new(open()).unwrap().is_some());
        drop(copy);
    }

    #[test]
    fn only_what_nobody_writes_is_a_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!("{PREFIX}abc"));
        std::fs::write(&left, "half").unwrap();
        let count = || std::fs::read_dir(folder.path()).unwrap().count();
        let target = folder.path().join("a.txt");
        write_atomic(&target, |out| {
            out.write_all(b"whole").map_err(Error::io("a"))?;
            assert_eq!(count(), 2);
            clear_leftovers(folder.path())?;
            assert!(count() == 1 && !left.exists());
            Ok(())
        })
        .unwrap();
        assert_eq!(read_text(&target).unwrap(), "whole");
        clear_leftovers(folder.path().join("none")).unwrap();
    }

    #[test]
    fn a_disk_without_room_is_told_with_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("new");
        make_ready(&place, 1000).unwrap();
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0, "the probe is gone");
        if cfg!(unix) {
            let message = make_ready(&place, 1 << 60).unwrap_err().to_string();
            assert!(
                message.contains("1152921504.61 GB will be written") && message.contains("left"),
                "{message}"
            );
        }
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

//! Finished cells on disk, one file each, named by the hash of their configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{Locked, as_read_back, clear_leftovers, make_ready, read_text, write_text};
use crate::progress::Progress;
use crate::provenance::content_hash;
use crate::spread::spread;

/// Room that must be there when a store is opened: a full disk shows before work is lost, not after.
const ROOM_BYTES: u64 = 1 << 20;

/// A folder of finished cells, held by one process at a time.
///
/// `cells/<hash>.json` holds a finished cell, whole or not at all; `scratch/<hash>/` what an unfinished one
/// needs to go on.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Locked until dropped; the system frees it when the process dies.
    _lock: Locked,
}

#[derive(Serialize, Deserialize)]
struct Entry<C, R> {
    cell: C,
    result: R,
}

impl Store {
    /// Opens or makes `folder`, and clears away what a killed process left half-written.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be written or the disk is full, [`Error::Stopped`] when another process
    /// holds it.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_path_buf();
        for part in ["cells", "scratch"] {
            let path = folder.join(part);
            std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        }
        let path = folder.join(".lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        let Some(lock) = Locked::try_new(lock).map_err(Error::io(&path))? else {
            return Err(Error::Stopped(format!(
                "{}: another run works in this folder; wait for it or choose another folder",
                folder.display()
            )));
        };
        clear_leftovers(folder.join("cells"))?;
        remove_finished_scratch(&folder)?;
        make_ready(&folder, ROOM_BYTES)?;
        Ok(Store { folder, _lock: lock })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The name of `cell`: 16 hexadecimal digits that depend on its content, not on the order of its fields.
    ///
    /// # Errors
    /// [`Error::Stopped`] when it cannot be written as JSON.
    pub fn key<C: Serialize>(cell: &C) -> Result<String> {
        let value = serde_json::to_value(cell).map_err(unwritable)?;
        Ok(content_hash([canonical(&value)]))
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join("cells").join(format!("{key}.json"))
    }

    /// The result of `cell`, if it is finished.
    ///
    /// # Errors
    /// [`Error::Format`] when its file is damaged or belongs to another cell.
    pub fn load<C: Serialize, R: DeserializeOwned>(&self, cell: &C) -> Result<Option<R>> {
        let path = self.path(&Self::key(cell)?);
        if !path.exists() {
            return Ok(None);
        }
        let mend = "delete this file to compute the cell again";
        let entry: Entry<Value, R> = serde_json::from_str(&read_text(&path)?).map_err(|e| {
            Error::format(&path, format!("line {}", e.line()), format!("not a finished cell ({e}); {mend}"))
        })?;
        let wanted = serde_json::to_value(cell).and_then(|cell| as_read_back(&cell)).map_err(unwritable)?;
        if canonical(&entry.cell) != canonical(&wanted) {
            return Err(Error::format(&path, "", format!("holds another cell than its name says; {mend}")));
        }
        Ok(Some(entry.result))
    }

    /// Keeps the result of `cell` and clears its scratch; returns what [`Store::load`] will return.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Stopped`] when it would not read back.
    pub fn save<C: Serialize, R: Serialize + DeserializeOwned>(&self, cell: &C, result: R) -> Result<R> {
        let key = Self::key(cell)?;
        let path = self.path(&key);
        let text = serde_json::to_string(&Entry { cell, result }).map_err(unwritable)?;
        // Read back before anything is kept: JSON knows no infinity, and the last bit of a number may move. The
        // table must not depend on whether a cell was computed or found.
        let entry: Entry<Value, R> = serde_json::from_str(&text).map_err(|e| {
            Error::Stopped(format!("cell {key}: its result holds a number that is not finite ({e})"))
        })?;
        write_text(&path, &text)?;
        let scratch = self.folder.join("scratch").join(&key);
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).map_err(Error::io(&scratch))?;
        }
        Ok(entry.result)
    }

    /// Moves `file` of a cell that failed to `failed/`, where it outlives the cell's scratch.
    pub(super) fn keep_failed<C: Serialize>(&self, cell: &C, file: &Path) -> Result<PathBuf> {
        let folder = self.folder.join("failed");
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(format!("{}.json", Self::key(cell)?));
        // Copied, for it may lie on another disk.
        std::fs::copy(file, &path).map_err(Error::io(file))?;
        std::fs::remove_file(file).map_err(Error::io(file))?;
        Ok(path)
    }

    /// A folder for the unfinished `cell`; what is in it outlives an interruption.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be made.
    pub fn scratch<C: Serialize>(&self, cell: &C) -> Result<PathBuf> {
        let path = self.folder.join("scratch").join(Self::key(cell)?);
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(path)
    }
}

/// The results of `cells`, in their order: those on disk are read, the others computed by `run` and kept. Equal
/// cells are computed once. Progress names the cell at work as it displays itself.
///
/// # Errors
/// The first error of `run` or of the store; finished cells stay on disk.
pub fn run_cells<C, R>(
    store: &Store,
    label: &str,
    cells: &[C],
    run: impl FnMut(&C, &Path) -> Result<R> + Send,
) -> Result<Vec<R>>
where
    C: Serialize + Display + Sync,
    R: Serialize + DeserializeOwned + Send,
{
    spread_cells(store, label, cells, vec![(String::new(), run)], |run, cell, scratch| run(cell, scratch))
}

/// As [`run_cells`], spread over `devices`: what is not on disk is computed by `run` on whichever is free, in the order of
/// `cells`.
pub(super) fn spread_cells<C, R, D>(
    store: &Store,
    label: &str,
    cells: &[C],
    devices: Vec<(String, D)>,
    run: impl Fn(&mut D, &C, &Path) -> Result<R> + Sync,
) -> Result<Vec<R>>
where
    C: Serialize + Display + Sync,
    R: Serialize + DeserializeOwned + Send,
    D: Send,
{
    let mut results = Vec::with_capacity(cells.len());
    let (mut todo, mut seen) = (Vec::new(), BTreeSet::new());
    for (number, cell) in cells.iter().enumerate() {
        let found: Option<R> = store.load(cell)?;
        if found.is_none() && seen.insert(Store::key(cell)?) {
            todo.push(number);
        }
        results.push(found);
    }
    // What was found is no measure of how long the rest will take.
    let found = results.iter().flatten().count();
    let progress = Progress::resume(label, cells.len() as u64, "cells", found as u64);
    let at_work = Mutex::new(BTreeMap::new());
    let note = |change: &dyn Fn(&mut BTreeMap<usize, String>)| {
        let mut names = at_work.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut names);
        let names: Vec<&str> = names.values().map(String::as_str).collect();
        progress.note(if names.is_empty() { String::new() } else { format!("now {}", names.join("; ")) });
    };
    let mut todo = todo.into_iter();
    let work = |device: &mut D, number: usize| {
        let cell = &cells[number];
        note(&|names| drop(names.insert(number, cell.to_string())));
        progress.advance(0)?;
        let result = run(device, cell, &store.scratch(cell)?)?;
        let kept = store.save(cell, result)?;
        note(&|names| drop(names.remove(&number)));
        progress.advance(1)?;
        Ok((number, kept))
    };
    spread(
        devices,
        || Ok(todo.next()),
        work,
        |(number, result)| {
            results[number] = Some(result);
            Ok(())
        },
    )?;
    let mut all = Vec::with_capacity(cells.len());
    for (cell, result) in cells.iter().zip(results) {
        all.push(match result {
            Some(result) => result,
            // Equal to an earlier one.
            None => {
                progress.advance(1)?;
                let missing = || Error::Stopped("a finished cell is gone from its folder".into());
                store.load(cell)?.ok_or_else(missing)?
            }
        });
    }
    Ok(all)
}

/// Removes the scratch of cells that were kept just before the process was killed.
fn remove_finished_scratch(folder: &Path) -> Result<()> {
    let scratch = folder.join("scratch");
    for entry in std::fs::read_dir(&scratch).map_err(Error::io(&scratch))? {
        let path = entry.map_err(Error::io(&scratch))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if folder.join("cells").join(format!("{name}.json")).exists() {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

/// JSON with sorted keys.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let parts: Vec<String> = keys
                .into_iter()
                .map(|k| format!("{}:{}", Value::from(k.as_str()), canonical(&map[k])))
                .collect();
            format!("{{{}}}", parts.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

fn unwritable(e: serde_json::Error) -> Error {
    Error::Stopped(format!("a cell cannot be written as JSON: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_on_content_alone() {
        let a: Value = serde_json::from_str(r#"{"x":1,"y":{"b":[1,2],"a":null}}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"y":{"a":null,"b":[1,2]},"x":1}"#).unwrap();
        let c: Value = serde_json::from_str(r#"{"y":{"a":null,"b":[2,1]},"x":1}"#).unwrap();
        assert_eq!(Store::key(&a).unwrap(), Store::key(&b).unwrap());
        assert_ne!(Store::key(&a).unwrap(), Store::key(&c).unwrap());
    }

    /// JSON may read another last bit than was written; the cell is the same.
    #[test]
    fn a_cell_of_any_number_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        for i in 1..2000 {
            let cell = f64::from(i) / 997.0 + 1e-16;
            store.save(&cell, i).unwrap();
            assert_eq!(store.load::<f64, i32>(&cell).unwrap(), Some(i), "{cell}");
        }
    }

    #[test]
    fn cells_are_computed_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut calls = 0;
        for _ in 0..2 {
            let store = Store::open(folder.path()).unwrap();
            let got = run_cells(&store, "test", &[1u32, 2, 1], |cell, scratch| {
                calls += 1;
                assert!(scratch.is_dir());
                Ok(f64::from(*cell) / 3.0)
            });
            assert_eq!(got.unwrap(), [1.0 / 3.0, 2.0 / 3.0, 1.0 / 3.0]);
        }
        assert_eq!(calls, 2);
        assert_eq!(std::fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn cells_spread_over_devices_are_kept_as_they_end_and_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let devices = |count: usize| (0..count).map(|n| (format!("card:{n}"), n)).collect::<Vec<_>>();
        let cells: Vec<u32> = (0..9).chain([3]).collect();
        let run = |fails: bool| {
            move |_: &mut usize, cell: &u32, scratch: &Path| {
                assert!(scratch.is_dir());
                std::thread::sleep(std::time::Duration::from_millis(3));
                if fails && *cell == 5 { Err(Error::Stopped("no room".into())) } else { Ok(cell * 10) }
            }
        };
        let store = Store::open(folder.path()).unwrap();
        let message = spread_cells(&store, "test", &cells, devices(3), run(true)).unwrap_err().to_string();
        assert!(message.starts_with("card:") && message.ends_with(": no room"), "{message}");
        let finished = std::fs::read_dir(folder.path().join("cells")).unwrap().count();
        assert!((1..9).contains(&finished), "{finished}");
        // The rest on another number of devices.
        let want: Vec<u32> = cells.iter().map(|cell| cell * 10).collect();
        assert_eq!(spread_cells(&store, "test", &cells, devices(2), run(false)).unwrap(), want);
        assert_eq!(std::fs::read_dir(folder.path().join("cells")).unwrap().count(), 9);
        assert_eq!(std::fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0);
    }

    #[test]
    fn damaged_foreign_and_held_stores_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let held = Store::open(folder.path()).unwrap_err().to_string();
        assert!(held.contains("another run works in this folder"), "{held}");
        store.save(&1u32, 5u32).unwrap();
        let path = store.path(&Store::key(&2u32).unwrap());
        std::fs::copy(store.path(&Store::key(&1u32).unwrap()), &path).unwrap();
        let foreign = store.load::<u32, u32>(&2).unwrap_err().to_string();
        assert!(foreign.contains("another cell than its name says"), "{foreign}");
        std::fs::write(&path, "{\"cell\":2,\"res").unwrap();
        let damaged = store.load::<u32, u32>(&2).unwrap_err().to_string();
        assert!(damaged.contains("delete this file"), "{damaged}");
        assert!(store.save(&3u32, f64::NAN).unwrap_err().to_string().contains("not finite"));
        assert!(store.load::<u32, f64>(&3).unwrap().is_none(), "nothing is kept of what cannot be read back");
    }

    #[test]
    fn leftovers_of_a_killed_write_are_cleared() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        let left = folder.path().join("cells/.cluescope-abc");
        std::fs::write(&left, "half").unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(!left.exists());
        // Killed between keeping a cell and clearing its scratch; another cell is still at work.
        store.save(&1u32, 1u32).unwrap();
        let (finished, open) = (store.scratch(&1u32).unwrap(), store.scratch(&2u32).unwrap());
        drop(store);
        drop(Store::open(folder.path()).unwrap());
        assert!(!finished.exists() && open.exists());
    }
}

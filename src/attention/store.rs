//! Attention on disk: JSONL, one line a text, or Parquet, one row a text.
//!
//! | JSONL key | Parquet column | content |
//! |---|---|---|
//! | `id` | `id` | the document's id |
//! | `ids` | `ids` | vocabulary indices |
//! | `offsets` | `offsets` | `[start, end]` of each token, Unicode characters of the untagged text |
//! | `received` | `received` | received attention |
//! | `probe.FIELD.position` | the same | the probe's token index, null where the field is not marked |
//! | `probe.FIELD.weights` | the same | weights from token 0 to the probe |
//! | `received_by`, `probe.FIELD.weights_by` | the same | each layer or head, where asked for |
//! | `provenance` | file metadata `cluescope` | command, version, model, options |

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use polars::chunked_array::builder::get_list_builder;
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Attended, AttendedText};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files::{Locked, extension, write_atomic};
use crate::provenance::Provenance;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    text: &'a AttendedText,
    provenance: &'a Provenance,
}

/// What of a line decides whether work may continue after it.
#[derive(Deserialize)]
struct Stamp {
    id: String,
    provenance: Provenance,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Jsonl,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match extension(path).as_str() {
            "jsonl" => Ok(Format::Jsonl),
            "parquet" => Ok(Format::Parquet),
            _ => Err(Error::option("out", path.display(), "a file name that ends in .jsonl or .parquet")),
        }
    }
}

impl Attended {
    /// Refuses a path that [`Attended::write`] would refuse, for those who want to know before a model is loaded.
    ///
    /// # Errors
    /// [`Error::Option`] for another extension than `.jsonl` and `.parquet`.
    pub fn check_path(path: impl AsRef<Path>) -> Result<()> {
        Format::of(path.as_ref()).map(|_| ())
    }

    /// Writes all texts to `path`, `.jsonl` or `.parquet`.
    ///
    /// # Errors
    /// As [`Attended::check_path`]; [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match Format::of(path)? {
            Format::Jsonl => write_atomic(path, |out| {
                self.texts.iter().try_for_each(|text| write_line(out, text, &self.provenance, path))
            }),
            Format::Parquet => write_parquet(path, &self.texts, &self.provenance),
        }
    }
}

fn write_line(out: &mut dyn Write, text: &AttendedText, provenance: &Provenance, path: &Path) -> Result<()> {
    serde_json::to_writer(&mut *out, &Line { text, provenance }).map_err(|e| Error::io(path)(e.into()))?;
    out.write_all(b"\n").map_err(Error::io(path))
}

/// Finished texts of work under way.
#[derive(Debug)]
pub(super) struct Partial {
    target: PathBuf,
    path: PathBuf,
    file: Locked,
    done: usize,
    provenance: Provenance,
}

impl Partial {
    /// Opens or makes `target` + `.partial`, after checking that what it holds belongs to this work.
    pub(super) fn open(target: &Path, documents: &[Document], provenance: &Provenance) -> Result<Self> {
        Format::of(target)?;
        let mut name = target.as_os_str().to_owned();
        name.push(".partial");
        let path = PathBuf::from(name);
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        }
        let file =
            File::options().read(true).append(true).create(true).open(&path).map_err(Error::io(&path))?;
        let Some(file) = Locked::try_new(file).map_err(Error::io(&path))? else {
            return Err(Error::Stopped(format!("{}: another process is writing this file", path.display())));
        };
        let (done, whole_bytes) = finished(&path, &file, documents, provenance)?;
        // A line the last run did not finish.
        file.set_len(whole_bytes).map_err(Error::io(&path))?;
        Ok(Partial { target: target.into(), path, file, done, provenance: provenance.clone() })
    }

    /// Texts finished before.
    pub(super) fn done(&self) -> usize {
        self.done
    }

    pub(super) fn append(&mut self, text: &AttendedText) -> Result<()> {
        let mut line = Vec::new();
        write_line(&mut line, text, &self.provenance, &self.path)?;
        (&*self.file).write_all(&line).map_err(Error::io(&self.path))?;
        self.done += 1;
        Ok(())
    }

    /// Turns the partial file into the target.
    pub(super) fn finish(self) -> Result<()> {
        let Partial { target, path, file, done, provenance } = self;
        file.sync_all().map_err(Error::io(&path))?;
        let mut texts = Vec::new();
        let parquet = Format::of(&target)? == Format::Parquet;
        if parquet {
            texts.reserve(done);
            (&*file).seek(SeekFrom::Start(0)).map_err(Error::io(&path))?;
            for (number, line) in BufReader::new(&*file).lines().enumerate() {
                let line = line.map_err(Error::io(&path))?;
                let text = serde_json::from_str(&line)
                    .map_err(|e| Error::format(&path, format!("line {}", number + 1), e))?;
                texts.push(text);
            }
        }
        // Some systems rename and remove only closed files.
        drop(file);
        if parquet {
            write_parquet(&target, &texts, &provenance)?;
            std::fs::remove_file(&path).map_err(Error::io(&path))
        } else {
            std::fs::rename(&path, &target).map_err(Error::io(&target))
        }
    }
}

/// How many texts `file` holds whole, and in how many bytes.
fn finished(
    path: &Path,
    file: &File,
    documents: &[Document],
    provenance: &Provenance,
) -> Result<(usize, u64)> {
    let mut reader = BufReader::new(file);
    let (mut done, mut whole_bytes) = (0, 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if line.last() != Some(&b'\n') {
            return Ok((done, whole_bytes));
        }
        let refuse = |why: &str| {
            Error::Stopped(format!(
                "{}, line {}: {why}; remove the file to begin anew, or name another output",
                path.display(),
                done + 1
            ))
        };
        let stamp: Stamp = serde_json::from_slice(&line).map_err(|_| refuse("not a line of this command"))?;
        if !stamp.provenance.same_numbers(provenance) {
            return Err(refuse("unfinished work with another model, corpus, version or other options"));
        }
        if documents.get(done).is_none_or(|d| d.id != stamp.id) {
            return Err(refuse("a text that does not stand at this place of the corpus"));
        }
        done += 1;
        whole_bytes += read as u64;
    }
}

/// A column of lists of `inner`. Polars takes the type from the first entry otherwise, and an empty list has none: a first
/// text without tokens would make every later one null.
fn lists(name: &str, inner: &DataType, rows: impl IntoIterator<Item = Option<Series>>) -> Result<Series> {
    let mut builder = get_list_builder(inner, 0, 0, name.into());
    for row in rows {
        builder.append_opt_series(row.as_ref())?;
    }
    Ok(builder.finish().into_series())
}

fn nested<'a>(rows: impl IntoIterator<Item = &'a Vec<f32>>) -> Result<Series> {
    lists("", &DataType::Float32, rows.into_iter().map(|row| Some(Series::new("".into(), row.as_slice()))))
}

/// One row a text; fields of probes become columns of their own.
fn frame(texts: &[AttendedText]) -> Result<DataFrame> {
    let flat = |values: &[f32]| Series::new("".into(), values);
    let number = DataType::Float32;
    let pair = DataType::List(Box::new(DataType::UInt32));
    let row = DataType::List(Box::new(DataType::Float32));
    let mut columns: Vec<Column> =
        vec![Column::new("id".into(), texts.iter().map(|t| t.id.as_str()).collect::<Vec<_>>())];
    let ids = texts.iter().map(|t| Some(Series::new("".into(), t.ids.as_slice())));
    columns.push(lists("ids", &DataType::UInt32, ids)?.into());
    let offsets = texts.iter().map(|t| {
        let pairs = t.offsets.iter().map(|&(a, b)| Some(Series::new("".into(), [a as u32, b as u32])));
        lists("", &DataType::UInt32, pairs)
    });
    columns.push(lists("offsets", &pair, offsets.map(|o| o.map(Some)).collect::<Result<Vec<_>>>()?)?.into());
    columns.push(lists("received", &number, texts.iter().map(|t| Some(flat(&t.received))))?.into());
    if texts.iter().any(|t| !t.received_by.is_empty()) {
        let rows = texts.iter().map(|t| nested(&t.received_by).map(Some)).collect::<Result<Vec<_>>>()?;
        columns.push(lists("received_by", &row, rows)?.into());
    }
    let fields: BTreeSet<&String> = texts.iter().flat_map(|t| t.probe.keys()).collect();
    for field in fields {
        let probes: Vec<_> = texts.iter().map(|t| t.probe.get(field)).collect();
        let positions: Vec<Option<u32>> = probes.iter().map(|p| p.map(|p| p.position as u32)).collect();
        columns.push(Column::new(format!("probe.{field}.position").into(), positions));
        let weights = probes.iter().map(|p| p.map(|p| flat(&p.weights)));
        columns.push(lists(&format!("probe.{field}.weights"), &number, weights)?.into());
        if probes.iter().flatten().any(|p| !p.weights_by.is_empty()) {
            let rows = probes.iter().map(|p| p.map(|p| nested(&p.weights_by)).transpose());
            let rows = rows.collect::<Result<Vec<_>>>()?;
            columns.push(lists(&format!("probe.{field}.weights_by"), &row, rows)?.into());
        }
    }
    Ok(DataFrame::new(texts.len(), columns)?)
}

fn write_parquet(path: &Path, texts: &[AttendedText], provenance: &Provenance) -> Result<()> {
    let mut frame = frame(texts)?;
    let provenance = serde_json::to_string(provenance).map_err(|e| Error::io(path)(e.into()))?;
    let metadata = KeyValueMetadata::from_static(vec![("cluescope".to_string(), provenance)]);
    write_atomic(path, |out| {
        ParquetWriter::new(out).with_key_value_metadata(Some(metadata)).finish(&mut frame)?;
        Ok(())
    })
}

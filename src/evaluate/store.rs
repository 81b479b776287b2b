//! Answers on disk: JSONL with everything, or the table of [`QuizResult::frame`] as CSV or Parquet.

use std::path::Path;

use polars::prelude::{CsvWriter, ParquetWriter, SerWriter};
use serde::Serialize;

use super::result::{Answer, QuizResult};
use crate::error::{Error, Result};
use crate::files::{extension, write_atomic};
use crate::provenance::Provenance;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    answer: &'a Answer,
    provenance: &'a Provenance,
}

#[derive(Clone, Copy)]
enum Format {
    Jsonl,
    Csv,
    Parquet,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match extension(path).as_str() {
            "jsonl" => Ok(Format::Jsonl),
            "csv" => Ok(Format::Csv),
            "parquet" => Ok(Format::Parquet),
            _ => {
                Err(Error::option("out", path.display(), "a file name that ends in .jsonl, .csv or .parquet"))
            }
        }
    }
}

impl QuizResult {
    /// Refuses a `path` that [`QuizResult::write`] would refuse, before a quiz is taken for it.
    ///
    /// # Errors
    /// [`Error::Option`] for another extension than those.
    pub fn check_path(path: impl AsRef<Path>) -> Result<()> {
        Format::of(path.as_ref()).map(drop)
    }

    /// Writes one line or row an answer to `path`: `.jsonl`, `.csv` or `.parquet`.
    ///
    /// # Errors
    /// [`Error::Option`] for another extension, [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match Format::of(path)? {
            Format::Jsonl => write_atomic(path, |out| {
                for answer in &self.answers {
                    let line = Line { answer, provenance: &self.provenance };
                    serde_json::to_writer(&mut *out, &line).map_err(|e| Error::io(path)(e.into()))?;
                    out.write_all(b"\n").map_err(Error::io(path))?;
                }
                Ok(())
            }),
            Format::Csv => write_atomic(path, |out| Ok(CsvWriter::new(out).finish(&mut self.frame()?)?)),
            Format::Parquet => write_atomic(path, |out| {
                ParquetWriter::new(out).finish(&mut self.frame()?)?;
                Ok(())
            }),
        }
    }
}

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

impl QuizResult {
    /// Writes one line or row an answer to `path`: `.jsonl`, `.csv` or `.parquet`.
    ///
    /// # Errors
    /// [`Error::Option`] for another extension, [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        match extension(path).as_str() {
            "jsonl" => write_atomic(path, |out| {
                for answer in &self.answers {
                    let line = Line { answer, provenance: &self.provenance };
                    serde_json::to_writer(&mut *out, &line).map_err(|e| Error::io(path)(e.into()))?;
                    out.write_all(b"\n").map_err(Error::io(path))?;
                }
                Ok(())
            }),
            "csv" => write_atomic(path, |out| Ok(CsvWriter::new(out).finish(&mut self.frame()?)?)),
            "parquet" => write_atomic(path, |out| {
                ParquetWriter::new(out).finish(&mut self.frame()?)?;
                Ok(())
            }),
            _ => {
                Err(Error::option("out", path.display(), "a file name that ends in .jsonl, .csv or .parquet"))
            }
        }
    }
}

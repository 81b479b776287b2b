//! A corpus from a file and back, by the file's extension.

use std::collections::HashSet;
use std::path::Path;

use super::{Corpus, CsvStyle, csv_file, jsonl, paragraphs, parquet, squad};
use crate::error::{Error, Result};
use crate::files;

const KNOWN: &str =
    ".csv (tagged, column text), .jsonl, .parquet, .json (SQuAD), .txt, or a folder of .txt files";

impl Corpus {
    /// Reads a corpus by extension:
    ///
    /// | path | documents | questions |
    /// |---|---|---|
    /// | `.csv` | column `text` with inline tags, optional `id` and `version_of` | the paper's, once for each `name` |
    /// | `.jsonl` | lines with `text`, optional `id`, `spans` and `version_of` | lines with `question`; `"example": true` for few-shot |
    /// | `.parquet` | string column `text`, the rest as [`Corpus::write`] makes it | kept |
    /// | `.json` | SQuAD 1.1 or 2.0, one a paragraph | the answerable ones |
    /// | `.txt` | one a paragraph, empty lines between | none |
    /// | a folder | one a `.txt` file, by name | none |
    ///
    /// # Errors
    /// Each with file and place: unreadable, not UTF-8, another shape, broken tags, ids that stand twice, spans
    /// outside their text, no document at all.
    pub fn read(path: impl AsRef<Path>) -> Result<Corpus> {
        let path = path.as_ref();
        let corpus = if path.is_dir() {
            read_folder(path)?
        } else {
            match files::extension(path).as_str() {
                "csv" => csv_file::read(path)?,
                "jsonl" => jsonl::parse(path, &files::read_text(path)?)?,
                "json" => squad::parse(path, &files::read_text(path)?)?,
                "parquet" => parquet::read(path)?,
                "txt" => paragraphs::parse(path, &files::read_text(path)?),
                _ => return Err(unknown(path)),
            }
        };
        corpus.check(path)?;
        Ok(corpus)
    }

    /// Refuses a path that [`Corpus::write`] would refuse, for those who want to know before they make the texts.
    ///
    /// # Errors
    /// [`Error::Format`] for an unknown extension.
    pub fn check_path(path: impl AsRef<Path>) -> Result<()> {
        match files::extension(&path).as_str() {
            "csv" | "jsonl" | "json" | "parquet" | "txt" => Ok(()),
            _ => Err(unknown(path.as_ref())),
        }
    }

    /// Writes the corpus by extension, in the forms of [`Corpus::read`]; the file is whole or absent.
    ///
    /// `.jsonl` and `.parquet` hold everything. `.csv` holds texts and tags in the paper's style
    /// ([`Corpus::to_csv`] for another), `.txt` texts alone, `.json` no examples.
    ///
    /// # Errors
    /// [`Error::Io`], an unknown extension, or a text the format cannot hold.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let content = match files::extension(path).as_str() {
            "csv" => self.to_csv(&CsvStyle::default())?,
            "jsonl" => jsonl::format(self)?,
            "json" => squad::format(self)?,
            "txt" => paragraphs::format(self)?,
            "parquet" => return parquet::write(self, path),
            _ => return Err(unknown(path)),
        };
        files::write_text(path, &content)
    }

    /// What every stage relies on: documents with different ids, spans inside their texts and in order.
    fn check(&self, path: &Path) -> Result<()> {
        if self.documents.is_empty() && self.questions.is_empty() {
            return Err(Error::format(path, "", "no document in it"));
        }
        let mut seen = HashSet::new();
        for document in &self.documents {
            let fault = |message: String| Error::format(path, format!("document {:?}", document.id), message);
            if !seen.insert(document.id.as_str()) {
                return Err(fault("the id stands twice; ids must differ".into()));
            }
            let length = document.text.chars().count();
            let mut last = 0;
            for span in &document.spans {
                if span.start >= span.end || span.end > length {
                    let message =
                        format!("{} {}..{} in {length} characters", span.field, span.start, span.end);
                    return Err(fault(message + "; spans count Unicode characters, start before end"));
                }
                if span.start < last {
                    return Err(fault(format!("{} at {} is out of order", span.field, span.start)));
                }
                last = span.start;
            }
        }
        Ok(())
    }
}

fn unknown(path: &Path) -> Error {
    Error::format(path, "", format!("extension {:?}; known: {KNOWN}", files::extension(path)))
}

fn read_folder(path: &Path) -> Result<Corpus> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if file.is_file() && files::extension(&file) == "txt" {
            found.push(file);
        }
    }
    // The order of a folder's entries differs between file systems.
    found.sort();
    if found.is_empty() {
        return Err(Error::format(path, "", format!("no .txt file in this folder; known: {KNOWN}")));
    }
    let read = |file: &std::path::PathBuf| Ok(paragraphs::whole(file, &files::read_text(file)?));
    Ok(Corpus { documents: found.iter().map(read).collect::<Result<_>>()?, ..Default::default() })
}

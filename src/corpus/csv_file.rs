//! The paper's CSV: one column `text`, facts as inline tags, every cell quoted but the header.

use std::path::Path;

use super::{Corpus, Document, VersionOf, questions, tagged};
use crate::error::{Error, Result};
use crate::files;

/// How a CSV file is laid out, so that a file can be written back byte for byte.
///
/// The default is the style of the authors' `biography_synthetic.csv`: bare header, quoted cells, a line
/// feed after every row. Their other file lacks the last line feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CsvStyle {
    /// The header's cells stand in quotes.
    pub quote_header: bool,
    /// Every cell stands in quotes, not only those that need them.
    pub quote_cells: bool,
    /// Rows end in `\r\n` instead of `\n`.
    pub carriage_return: bool,
    /// The last row ends in a line end.
    pub final_line_end: bool,
}

impl Default for CsvStyle {
    fn default() -> Self {
        CsvStyle { quote_header: false, quote_cells: true, carriage_return: false, final_line_end: true }
    }
}

impl CsvStyle {
    /// The style of an existing file's content.
    pub fn of(content: &str) -> Self {
        let content = content.trim_start_matches('\u{feff}');
        let (header, rows) = content.split_once('\n').unwrap_or((content, ""));
        CsvStyle {
            quote_header: header.starts_with('"'),
            quote_cells: rows.is_empty() || rows.starts_with('"'),
            carriage_return: header.ends_with('\r'),
            final_line_end: content.ends_with('\n'),
        }
    }

    fn cell(&self, cell: &str, always: bool, out: &mut String) {
        // A bare empty cell in a one-column file would be an empty line, which readers skip.
        if always || cell.is_empty() || cell.contains(['"', ',', '\n', '\r']) {
            out.push('"');
            out.push_str(&cell.replace('"', "\"\""));
            out.push('"');
        } else {
            out.push_str(cell);
        }
    }
}

/// Rows of the columns asked for; a missing optional column yields `None`.
struct Row {
    line: u64,
    cells: Vec<Option<String>>,
}

fn rows(path: &Path, content: &str, required: &[&str], optional: &[&str]) -> Result<Vec<Row>> {
    let content = content.trim_start_matches('\u{feff}');
    let mut reader = csv::ReaderBuilder::new().flexible(false).from_reader(content.as_bytes());
    let fault = |error: csv::Error| {
        let line = error.position().map_or(String::new(), |p| format!("line {}", p.line()));
        let what = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!(
                    "{len} cells where the header has {expected_len}; put cells that hold commas in quotes"
                )
            }
            _ => error.to_string(),
        };
        Error::format(path, line, what)
    };
    let header = reader.headers().map_err(fault)?.clone();
    let find = |name: &str| header.iter().position(|h| h.trim() == name);
    for name in required {
        if find(name).is_none() {
            let seen: Vec<&str> = header.iter().collect();
            let seen = if seen.is_empty() {
                "the file is empty".into()
            } else {
                format!("the columns are: {}", seen.join(", "))
            };
            let message = format!("no column `{name}`; {seen}");
            return Err(Error::format(path, "line 1", message));
        }
    }
    let columns: Vec<_> = required.iter().chain(optional).map(|name| find(name)).collect();
    let mut out = Vec::new();
    for record in reader.records() {
        let record = record.map_err(fault)?;
        let cells = columns.iter().map(|c| c.and_then(|c| record.get(c)).map(str::to_string)).collect();
        out.push(Row { line: record.position().map_or(0, csv::Position::line), cells });
    }
    Ok(out)
}

/// Documents of a tagged CSV, with the paper's questions about those that are biographies.
pub(super) fn read(path: &Path) -> Result<Corpus> {
    parse(path, &files::read_text(path)?)
}

pub(super) fn parse(path: &Path, content: &str) -> Result<Corpus> {
    let mut documents = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (number, row) in rows(path, content, &["text"], &["id", "version_of"])?.into_iter().enumerate() {
        let cell = row.cells[0].as_deref().unwrap_or("");
        let (text, spans) = tagged::parse(cell).map_err(|fault| {
            let place = format!("row {} (line {}), character {}", number + 1, row.line, fault.at);
            Error::format(path, place, fault.message)
        })?;
        let mut document = Document::new("", text, spans);
        let filled = |column: usize| row.cells[column].as_deref().filter(|cell| !cell.is_empty());
        let given = filled(1);
        // This format has no ids of its own, and dropout takes names away: a row may be a copy of any other.
        document.version_of = match (filled(2), given) {
            (Some(id), _) => VersionOf::Of(id.into()),
            (None, Some(_)) => VersionOf::Itself,
            (None, None) => VersionOf::Unknown,
        };
        document.id = match given.or(document.fact("name")) {
            Some(name) if !seen.contains(name) => name.to_string(),
            Some(name) if given.is_none() => format!("{name} (row {})", number + 1),
            Some(name) => {
                let place = format!("row {} (line {})", number + 1, row.line);
                return Err(Error::format(path, place, format!("id {name:?} stands twice; ids must differ")));
            }
            None => format!("row {}", number + 1),
        };
        seen.insert(document.id.clone());
        documents.push(document);
    }
    let mut corpus = Corpus { documents, ..Default::default() };
    corpus.questions = questions::Wording::Paper.ask(&corpus.documents);
    Ok(corpus)
}

impl Corpus {
    /// The documents as tagged CSV of one column `text` in `style`. Ids, questions and examples are not part of
    /// this format.
    ///
    /// # Errors
    /// Those of [`Document::to_tagged`].
    pub fn to_csv(&self, style: &CsvStyle) -> Result<String> {
        let end = if style.carriage_return { "\r\n" } else { "\n" };
        let mut out = String::new();
        style.cell("text", style.quote_header, &mut out);
        for document in &self.documents {
            out.push_str(end);
            style.cell(&document.to_tagged()?, style.quote_cells, &mut out);
        }
        if style.final_line_end {
            out.push_str(end);
        }
        Ok(out)
    }
}

/// `(field, question template)` pairs of a CSV with the columns `field` and `prompt`, as the authors keep them:
/// a trailing line `Answer:` belongs to the prompt, not to the question, and is taken off.
pub(super) fn prompts(path: &Path) -> Result<Vec<(String, String)>> {
    let content = files::read_text(path)?;
    let mut out = Vec::new();
    for row in rows(path, &content, &["field", "prompt"], &[])? {
        let [Some(field), Some(prompt)] = &row.cells[..] else { continue };
        let question = prompt.trim_end().strip_suffix("Answer:").unwrap_or(prompt).trim();
        if !question.contains("{name}") {
            let message = format!("the prompt of {field:?} has no {{name}}");
            return Err(Error::format(path, format!("line {}", row.line), message));
        }
        out.push((field.trim().to_string(), question.to_string()));
    }
    if out.is_empty() {
        return Err(Error::format(path, "", "no prompts below the header"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(content: &str) {
        let corpus = parse(Path::new("t.csv"), content).unwrap();
        assert_eq!(corpus.to_csv(&CsvStyle::of(content)).unwrap(), content);
    }

    #[test]
    fn bytes_come_back() {
        round("text\n\"<name>A</name> said \"\"no\"\", twice.\"\n\"two\nlines\"\n\"\"\n");
        round("text\n\"no last line end\"");
        round("\"text\"\r\n\"with\r\nreturns\"\r\n");
        round("text\nbare\n\"a, b\"\n");
        round("text\n");
    }

    #[test]
    fn faults_are_placed() {
        for (content, words) in [
            ("words\nx\n", "line 1: no column `text`"),
            ("", "no column `text`"),
            ("text\n\"fine\"\n\"a <b\"\n", "row 2 (line 3), character 2"),
            ("text\na,b\n", "2 cells where the header has 1"),
            ("id,text\nx,a\nx,b\n", "stands twice"),
        ] {
            let message = parse(Path::new("t.csv"), content).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
    }
}

//! A finished experiment as tables and files.

use std::path::{Path, PathBuf};

use polars::prelude::{Column, CsvWriter, DataFrame, ParquetWriter, SerWriter};

use super::cell::{Failed, Row, Stage};
use super::condition::{Condition, Student};
use super::protocol::Protocol;
use super::store::Store;
use super::summary::{Summary, summarize};
use crate::error::{Error, Result};
use crate::evaluate::{Bootstrap, DISTANCE_EDGES, Interval, QuizResult};
use crate::files::{remove, write_atomic};
use crate::provenance::Provenance;

/// Everything an experiment found.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What was run.
    pub protocol: Protocol,
    /// The reported cells.
    pub rows: Vec<Row>,
    /// The cells on which options were chosen, about other people.
    pub tuning: Vec<Row>,
    /// The cells, reported and tuning, that came to no result.
    pub failed: Vec<Failed>,
    /// Models, versions, options.
    pub provenance: Provenance,
}

impl Outcome {
    /// Means and paired differences with intervals: over all, by field, and by distance unless people have several
    /// texts, in each of which a fact may stand elsewhere.
    ///
    /// # Errors
    /// When the bootstrap's settings are out of range or a value is not finite.
    pub fn summary(&self, bootstrap: &Bootstrap) -> Result<Vec<Summary>> {
        let edges = if self.protocol.per_person > 1 { &[][..] } else { &DISTANCE_EDGES };
        summarize(&self.rows, edges, bootstrap)
    }

    /// One row a reported cell.
    ///
    /// # Errors
    /// [`Error::Table`] when the table cannot be built.
    pub fn frame(&self) -> Result<DataFrame> {
        frame(&self.rows)
    }

    /// One row a tuning cell; no rows without a search.
    ///
    /// # Errors
    /// [`Error::Table`] when the table cannot be built.
    pub fn tuning_frame(&self) -> Result<DataFrame> {
        frame(&self.tuning)
    }

    /// One row an answer of the reported cells, prompts included.
    ///
    /// # Errors
    /// [`Error::Table`] when the table cannot be built.
    pub fn answers(&self) -> Result<DataFrame> {
        let mut all: Option<DataFrame> = None;
        for row in &self.rows {
            let answers = row.measured.quiz.frame()?;
            let n = answers.height();
            let mut columns = vec![
                Column::new("student".into(), vec![row.cell.student.name(); n]),
                Column::new("condition".into(), vec![row.cell.condition.name(); n]),
                Column::new("seed".into(), vec![row.cell.seed; n]),
            ];
            columns.extend(answers.columns().iter().cloned());
            let part = DataFrame::new(n, columns)?;
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    all.vstack_mut(&part)?;
                }
            }
        }
        Ok(all.unwrap_or_default())
    }

    /// One row a cell that came to no result.
    ///
    /// # Errors
    /// [`Error::Table`] when the table cannot be built.
    pub fn failed_frame(&self) -> Result<DataFrame> {
        let rows = &self.failed;
        let keys: Result<Vec<String>> = rows.iter().map(|f| Store::key(&f.cell)).collect();
        let columns = vec![
            text("stage", rows, |f| if f.cell.stage == Stage::Tune { "tune" } else { "report" }),
            text("student", rows, |f| f.cell.student.name()),
            text("condition", rows, |f| f.cell.condition.name()),
            count("seed", rows, |f| f.cell.seed),
            number("alpha", rows, |f| f.cell.alpha),
            number("beta", rows, |f| f.cell.beta),
            number("learning_rate", rows, |f| f.cell.learning_rate),
            text("reason", rows, |f| f.reason.as_str()),
            Column::new("cell".into(), keys?),
        ];
        Ok(DataFrame::new(rows.len(), columns)?)
    }

    /// Writes `results`, `summary`, `differences` and, where there are any, `tuning` and `failed` cells as `.parquet` and
    /// `.csv`, and `answers.parquet`, into `folder`; returns the paths. `summary` is what [`Outcome::summary`] gave.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, folder: impl AsRef<Path>, summary: &[Summary]) -> Result<Vec<PathBuf>> {
        let folder = folder.as_ref();
        let mut tables = vec![
            ("results", self.frame()?),
            ("summary", summary_frame(summary)?),
            ("differences", differences_frame(summary)?),
        ];
        if self.tuning.is_empty() {
            remove_table(folder, "tuning")?;
        } else {
            tables.push(("tuning", self.tuning_frame()?));
        }
        if self.failed.is_empty() {
            remove_table(folder, "failed")?;
        } else {
            tables.push(("failed", self.failed_frame()?));
        }
        let mut paths = Vec::new();
        for (name, mut table) in tables {
            let path = folder.join(format!("{name}.csv"));
            let mut bytes = Vec::new();
            CsvWriter::new(&mut bytes).finish(&mut table)?;
            write_atomic(&path, |out| out.write_all(&bytes).map_err(Error::io(&path)))?;
            paths.push(path);
            paths.push(write_parquet(folder, name, &mut table)?);
        }
        if !self.rows.is_empty() {
            paths.push(write_parquet(folder, "answers", &mut self.answers()?)?);
        }
        Ok(paths)
    }

    /// The rows of one trained model.
    pub fn rows_of(&self, student: Student) -> Vec<&Row> {
        self.rows.iter().filter(|row| row.cell.student == student).collect()
    }

    /// The reported cells of one trained model that came to no result.
    pub fn failed_of(&self, student: Student) -> Vec<&Failed> {
        let mine = |f: &&Failed| f.cell.student == student && f.cell.stage == Stage::Report;
        self.failed.iter().filter(mine).collect()
    }

    /// The quizzes of one condition and one trained model, a training seed each.
    pub fn quizzes(&self, student: Student, condition: Condition) -> Vec<&QuizResult> {
        let rows =
            self.rows.iter().filter(|row| row.cell.student == student && row.cell.condition == condition);
        rows.map(|row| &row.measured.quiz).collect()
    }
}

fn write_parquet(folder: &Path, name: &str, table: &mut DataFrame) -> Result<PathBuf> {
    let path = folder.join(format!("{name}.parquet"));
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(table)?;
    write_atomic(&path, |out| out.write_all(&bytes).map_err(Error::io(&path)))?;
    Ok(path)
}

fn frame(rows: &[Row]) -> Result<DataFrame> {
    let keys: Result<Vec<String>> = rows.iter().map(|r| Store::key(&r.cell)).collect();
    let totals: Vec<_> = rows.iter().map(|r| r.measured.quiz.total()).collect();
    let mut columns = vec![
        text("student", rows, |r| r.cell.student.name()),
        text("condition", rows, |r| r.cell.condition.name()),
        count("seed", rows, |r| r.cell.seed),
        number("alpha", rows, |r| r.cell.alpha),
        number("beta", rows, |r| r.cell.beta),
        number("learning_rate", rows, |r| r.cell.learning_rate),
        Column::new("questions".into(), totals.iter().map(|s| s.questions as u64).collect::<Vec<_>>()),
        Column::new("exact_match".into(), totals.iter().map(|s| s.exact_match).collect::<Vec<_>>()),
        Column::new("f1".into(), totals.iter().map(|s| s.f1).collect::<Vec<_>>()),
        Column::new("log_prob".into(), totals.iter().map(|s| s.log_prob).collect::<Vec<_>>()),
        Column::new(
            "log_prob_per_token".into(),
            totals.iter().map(|s| s.log_prob_per_token).collect::<Vec<_>>(),
        ),
        Column::new("choice_accuracy".into(), totals.iter().map(|s| s.choice_accuracy).collect::<Vec<_>>()),
        Column::new("choice_chance".into(), totals.iter().map(|s| s.choice_chance).collect::<Vec<_>>()),
        Column::new("too_long".into(), totals.iter().map(|s| s.too_long as u64).collect::<Vec<_>>()),
        number("perplexity", rows, |r| r.measured.perplexity.map(|p| p.value())),
        number("last_loss", rows, |r| r.measured.loss.last().map(|l| l.loss)),
        count("steps", rows, |r| r.measured.loss.len() as u64),
        count("tokens", rows, |r| r.measured.tokens),
        count("truncated", rows, |r| r.measured.truncated as u64),
        count("left_out", rows, |r| r.measured.left_out as u64),
        number("seconds", rows, |r| Some(r.measured.seconds)),
        Column::new("cell".into(), keys?),
    ];
    let mut fields: Vec<String> = Vec::new();
    for (field, _) in rows.iter().flat_map(|r| r.measured.quiz.by_field()) {
        if !fields.contains(&field) {
            fields.push(field);
        }
    }
    for field in &fields {
        let scores: Vec<_> = rows
            .iter()
            .map(|r| r.measured.quiz.by_field().into_iter().find(|(f, _)| f == field).map(|(_, s)| s))
            .collect();
        let column =
            |name: &str, values: Vec<Option<f64>>| Column::new(format!("{name}_{field}").into(), values);
        columns.push(column("exact_match", scores.iter().map(|s| s.map(|s| s.exact_match)).collect()));
        columns.push(column("f1", scores.iter().map(|s| s.map(|s| s.f1)).collect()));
    }
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// One row a mean.
fn summary_frame(all: &[Summary]) -> Result<DataFrame> {
    let rows: Vec<(&Summary, &Interval)> = all.iter().map(|s| (s, &s.value)).collect();
    intervals(&rows, Vec::new())
}

/// One row a difference of two conditions.
fn differences_frame(all: &[Summary]) -> Result<DataFrame> {
    let flat = || all.iter().flat_map(|s| s.differences.iter().map(move |d| (s, d)));
    let rows: Vec<(&Summary, &Interval)> = flat().map(|(s, d)| (s, &d.1)).collect();
    let base: Vec<&str> = flat().map(|(_, d)| d.0.name()).collect();
    intervals(&rows, vec![Column::new("minus".into(), base)])
}

/// What each interval is of, `extra`, and the interval.
fn intervals(rows: &[(&Summary, &Interval)], extra: Vec<Column>) -> Result<DataFrame> {
    let mut columns = vec![
        text("student", rows, |r| r.0.student.name()),
        text("condition", rows, |r| r.0.condition.name()),
    ];
    columns.extend(extra);
    columns.extend([
        text("group", rows, |r| r.0.group.kind()),
        text("of", rows, |r| r.0.group.label()),
        text("measure", rows, |r| r.0.measure.name()),
        number("estimate", rows, |r| Some(r.1.estimate)),
        number("low", rows, |r| Some(r.1.low)),
        number("high", rows, |r| Some(r.1.high)),
        count("values", rows, |r| r.1.values),
        count("seeds", rows, |r| r.1.seeds as u64),
        count("persons", rows, |r| r.1.persons as u64),
        count("resamples", rows, |r| r.1.resamples as u64),
        number("level", rows, |r| Some(r.1.level)),
    ]);
    Ok(DataFrame::new(rows.len(), columns)?)
}

fn count<T>(name: &str, rows: &[T], get: impl Fn(&T) -> u64) -> Column {
    Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
}

fn text<'a, T>(name: &str, rows: &'a [T], get: impl Fn(&'a T) -> &'a str) -> Column {
    Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
}

fn number<T>(name: &str, rows: &[T], get: impl Fn(&T) -> Option<f64>) -> Column {
    Column::new(name.into(), rows.iter().map(get).collect::<Vec<_>>())
}

/// Removes a table of earlier results that these have not: beside them it would be read as theirs.
fn remove_table(folder: &Path, name: &str) -> Result<()> {
    for extension in ["csv", "parquet"] {
        remove(folder.join(format!("{name}.{extension}")))?;
    }
    Ok(())
}

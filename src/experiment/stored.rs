//! Summaries read back from the files of a finished experiment.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude::{DataFrame, DataType, ParquetReader, SerReader};

use super::condition::{Condition, Student};
use super::summary::{Group, Measure, Summary};
use crate::error::{Error, Result};
use crate::evaluate::Interval;

/// What is measured of whom: a row's place in `summary.parquet`.
type Place = (Student, Condition, Group, Measure);

/// The means and differences that [`Outcome::write`](super::Outcome::write) left in `folder` (`summary.parquet`,
/// `differences.parquet`), for tables and figures without the experiment itself.
///
/// ```
/// # fn example() -> cluescope::Result<()> {
/// use cluescope::experiment::{Measure, read_summary};
/// for row in read_summary("out/reproduce")?.iter().filter(|row| row.measure == Measure::ExactMatch) {
///     println!("{} {:?}: {}", row.condition, row.group, row.value);
/// }
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Io`] when a file is missing, [`Error::Format`] naming the file and the row when it holds something else.
pub fn read_summary(folder: impl AsRef<Path>) -> Result<Vec<Summary>> {
    let folder = folder.as_ref();
    let mut all: Vec<Summary> = Vec::new();
    let mut at: HashMap<Place, usize> = HashMap::new();
    for (place, value, _) in rows(&folder.join("summary.parquet"), false)? {
        at.insert(place.clone(), all.len());
        let (student, condition, group, measure) = place;
        all.push(Summary { student, condition, group, measure, value, differences: Vec::new() });
    }
    let path = folder.join("differences.parquet");
    for (row, (place, value, minus)) in rows(&path, true)?.into_iter().enumerate() {
        let (Some(&index), Some(minus)) = (at.get(&place), minus) else {
            let message = "a difference of something that summary.parquet does not have";
            return Err(Error::format(&path, format!("row {}", row + 1), message));
        };
        all[index].differences.push((minus, value));
    }
    Ok(all)
}

/// Place, interval and, in a table of differences, the condition subtracted.
fn rows(path: &Path, differences: bool) -> Result<Vec<(Place, Interval, Option<Condition>)>> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    let frame = ParquetReader::new(file).finish().map_err(|e| Error::format(path, "", e))?;
    let table = Columns { path, frame: &frame };
    let [student, condition, group, of, measure] =
        ["student", "condition", "group", "of", "measure"].map(|name| table.text(name));
    let (student, condition, group, of, measure) = (student?, condition?, group?, of?, measure?);
    let minus = if differences { Some(table.text("minus")?) } else { None };
    let [estimate, low, high, level, resamples, seeds, persons, values] =
        ["estimate", "low", "high", "level", "resamples", "seeds", "persons", "values"]
            .map(|name| table.numbers(name));
    let (estimate, low, high, level) = (estimate?, low?, high?, level?);
    let (resamples, seeds, persons, values) = (resamples?, seeds?, persons?, values?);
    let mut all = Vec::with_capacity(frame.height());
    for row in 0..frame.height() {
        let fault = |error: Error| Error::format(path, format!("row {}", row + 1), error);
        let group = match group[row].as_str() {
            "all" => Group::All,
            "field" => Group::Field(of[row].clone()),
            "distance" => Group::Distance(of[row].clone()),
            other => return Err(fault(Error::option("group", other, "all, field or distance"))),
        };
        let place = (
            student[row].parse().map_err(fault)?,
            condition[row].parse().map_err(fault)?,
            group,
            measure[row].parse().map_err(fault)?,
        );
        let value = Interval {
            estimate: estimate[row],
            low: low[row],
            high: high[row],
            level: level[row],
            resamples: resamples[row] as usize,
            seeds: seeds[row] as usize,
            persons: persons[row] as usize,
            values: values[row] as u64,
        };
        let minus = minus.as_ref().map(|minus| minus[row].parse()).transpose().map_err(fault)?;
        all.push((place, value, minus));
    }
    Ok(all)
}

/// The columns of a file by name.
struct Columns<'a> {
    path: &'a Path,
    frame: &'a DataFrame,
}

impl Columns<'_> {
    fn column(&self, name: &str, kind: &DataType) -> Result<polars::prelude::Column> {
        let fault = |message: String| Error::format(self.path, format!("column {name}"), message);
        let column = self.frame.column(name).map_err(|e| fault(e.to_string()))?;
        let column = column.cast(kind).map_err(|e| fault(e.to_string()))?;
        if column.null_count() > 0 {
            return Err(fault(format!("{} values are missing or of another kind", column.null_count())));
        }
        Ok(column)
    }

    fn text(&self, name: &str) -> Result<Vec<String>> {
        let column = self.column(name, &DataType::String)?;
        let values = column.str()?;
        Ok((0..values.len()).filter_map(|row| values.get(row)).map(str::to_owned).collect())
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        let column = self.column(name, &DataType::Float64)?;
        let values = column.f64()?;
        Ok((0..values.len()).filter_map(|row| values.get(row)).collect())
    }
}

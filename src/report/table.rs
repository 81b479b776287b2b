//! Tables for terminals and pages, from polars frames or row by row.

use polars::prelude::{AnyValue, DataFrame};

use super::escape;

use crate::error::{Error, Result};
use crate::text::tame;

/// A table of finished texts.
///
/// ```
/// use cluescope::report::Table;
/// let mut table = Table::new(["condition", "f1"]).caption("Results");
/// table.push(["plain", "0.48"])?;
/// assert_eq!(table.to_string(), "Results\ncondition    f1\n---------  ----\nplain      0.48\n");
/// assert!(table.html().contains("<td class=\"n\">0.48</td>"));
/// # Ok::<(), cluescope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    caption: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// What stands between columns on a terminal.
const SPACE: &str = "  ";
/// What stands for a value that is not known.
const NOTHING: &str = "–";

impl Table {
    /// A table without rows as yet.
    pub fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Table { columns: columns.into_iter().map(Into::into).collect(), ..Table::default() }
    }

    /// Sets the line above the table.
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.caption = caption.into();
        self
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`Error::Stopped`] when it has not one cell for each column.
    pub fn push<S: Into<String>>(&mut self, row: impl IntoIterator<Item = S>) -> Result<()> {
        let row: Vec<String> = row.into_iter().map(Into::into).collect();
        if row.len() != self.columns.len() {
            return Err(Error::Stopped(format!(
                "table `{}`: a row of {} cells for {} columns",
                self.caption,
                row.len(),
                self.columns.len()
            )));
        }
        self.rows.push(row);
        Ok(())
    }

    /// A table of rows made to fit `columns`.
    pub(super) fn of(columns: Vec<String>, rows: Vec<Vec<String>>) -> Self {
        debug_assert!(rows.iter().all(|row| row.len() == columns.len()), "one cell a column");
        Table { columns, rows, ..Table::default() }
    }

    /// All of `frame`, fractions with `decimals` places.
    ///
    /// # Errors
    /// [`Error::Table`] when a value cannot be read.
    pub fn from_frame(frame: &DataFrame, decimals: usize) -> Result<Self> {
        let mut table = Table::new(frame.columns().iter().map(|c| c.name().to_string()));
        for row in 0..frame.height() {
            let cells: Result<Vec<String>> =
                frame.columns().iter().map(|c| Ok(cell(&c.get(row)?, decimals))).collect();
            table.rows.push(cells?);
        }
        Ok(table)
    }

    /// The same in tables no wider than `width` characters, for a terminal: the first column stands in each, the caption above the
    /// first. A column that is wider by itself stays whole.
    pub fn within(&self, width: usize) -> Vec<Table> {
        let widths = self.widths();
        let first = widths.first().copied().unwrap_or(0);
        let (mut parts, mut used) = (vec![Vec::new()], first);
        for (column, wide) in widths.iter().enumerate().skip(1) {
            if used + SPACE.len() + wide > width && parts.last().is_some_and(|part| !part.is_empty()) {
                parts.push(Vec::new());
                used = first;
            }
            used += SPACE.len() + wide;
            parts.last_mut().into_iter().for_each(|part| part.push(column));
        }
        let of = |cells: &Vec<String>, part: &[usize]| -> Vec<String> {
            cells.first().into_iter().chain(part.iter().map(|&column| &cells[column])).cloned().collect()
        };
        let table = |(number, part): (usize, &Vec<usize>)| Table {
            caption: if number == 0 { self.caption.clone() } else { String::new() },
            columns: of(&self.columns, part),
            rows: self.rows.iter().map(|row| of(row, part)).collect(),
        };
        parts.iter().enumerate().map(table).collect()
    }

    /// Characters of each column on a terminal.
    fn widths(&self) -> Vec<usize> {
        let wide = |column: usize| {
            let cells = self.rows.iter().map(move |row| &row[column]);
            cells.chain([&self.columns[column]]).map(|text| flat(text).chars().count()).max().unwrap_or(0)
        };
        (0..self.columns.len()).map(wide).collect()
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Columns whose every known cell is a number stand flush right.
    fn numeric(&self) -> Vec<bool> {
        let number = |text: &str| {
            let first = text.split([' ', '[', '%']).next().unwrap_or_default().replace('\u{2212}', "-");
            first.parse::<f64>().is_ok()
        };
        (0..self.columns.len())
            .map(|c| {
                let mut known = self.rows.iter().map(|r| r[c].as_str()).filter(|t| *t != NOTHING).peekable();
                known.peek().is_some() && known.all(number)
            })
            .collect()
    }

    /// The table as HTML, every text escaped; it scrolls sideways within itself where the page is too narrow.
    pub fn html(&self) -> String {
        let numeric = self.numeric();
        let class = |c: usize| if numeric[c] { " class=\"n\"" } else { "" };
        let name = if self.caption.is_empty() { "Table" } else { &self.caption };
        let mut out = format!(
            "<div class=\"scroll\" style=\"overflow-x:auto\" role=\"region\" tabindex=\"0\" aria-label=\"{}\"><table>",
            escape(&tame(name))
        );
        if !self.caption.is_empty() {
            out += &format!("<caption>{}</caption>", escape(&tame(&self.caption)));
        }
        out += "<thead><tr>";
        for (c, column) in self.columns.iter().enumerate() {
            out += &format!("<th scope=\"col\"{}>{}</th>", class(c), escape(&tame(column)));
        }
        out += "</tr></thead>\n<tbody>\n";
        for row in &self.rows {
            out += "<tr>";
            for (c, text) in row.iter().enumerate() {
                // The first column names its row, unless it is a number itself.
                if c == 0 && !numeric[0] {
                    out += &format!("<th scope=\"row\">{}</th>", escape(&tame(text)));
                } else {
                    out += &format!("<td{}>{}</td>", class(c), escape(&tame(text)));
                }
            }
            out += "</tr>\n";
        }
        out += "</tbody></table></div>\n";
        out
    }
}

impl std::fmt::Display for Table {
    /// Aligned columns for terminals; line breaks in cells become blanks.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (numeric, widths) = (self.numeric(), self.widths());
        let columns: Vec<String> = self.columns.iter().map(|text| flat(text)).collect();
        let rows: Vec<Vec<String>> =
            self.rows.iter().map(|r| r.iter().map(|text| flat(text)).collect()).collect();
        if !self.caption.is_empty() {
            writeln!(f, "{}", flat(&self.caption))?;
        }
        let mut line = |cells: &[String]| {
            let padded: Vec<String> = cells
                .iter()
                .enumerate()
                .map(|(c, text)| {
                    let w = widths[c];
                    if numeric[c] { format!("{text:>w$}") } else { format!("{text:<w$}") }
                })
                .collect();
            writeln!(f, "{}", padded.join(SPACE).trim_end())
        };
        let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
        line(&columns)?;
        line(&rule)?;
        rows.iter().try_for_each(|row| line(row))
    }
}

/// On one line; fields, answers and names may come from anywhere.
fn flat(text: &str) -> String {
    tame(&text.replace(['\n', '\r', '\t'], " "))
}

fn cell(value: &AnyValue, decimals: usize) -> String {
    match value {
        AnyValue::Null => NOTHING.into(),
        AnyValue::String(text) => (*text).to_string(),
        AnyValue::StringOwned(text) => text.to_string(),
        AnyValue::Boolean(yes) => if *yes { "yes" } else { "no" }.into(),
        AnyValue::Float32(v) => fraction(f64::from(*v), decimals),
        AnyValue::Float64(v) => fraction(*v, decimals),
        other => other.to_string(),
    }
}

/// Small numbers keep figures that mean something: a learning rate of 0.0005 is neither 0.000 nor 0.001.
fn fraction(value: f64, decimals: usize) -> String {
    if value.is_nan() {
        return NOTHING.into();
    }
    let text = format!("{value:.decimals$}");
    let off = text.parse::<f64>().map_or(0.0, |shown| (shown - value).abs());
    let vanishes = value != 0.0 && value.abs() < 0.5 * 10f64.powi(-(decimals as i32));
    if vanishes || value.abs() < 0.01 && off > 0.25 * value.abs() { format!("{value:.1e}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::Column;

    #[test]
    fn a_narrow_terminal_gets_the_columns_in_parts() {
        let mut table = Table::new(["condition", "f1", "em"]).caption("Results");
        table.push(["plain", "0.48 [0.40, 0.56]", "0.1"]).unwrap();
        assert_eq!(table.within(34), [table.clone()], "9 + 2 + 17 + 2 + 3 = 33 characters");
        let text = |width| table.within(width).iter().map(ToString::to_string).collect::<String>();
        let parts = "Results\ncondition                 f1\n---------  -----------------\nplain      0.48 [0.40, 0.56]\n\
                     condition   em\n---------  ---\nplain      0.1\n";
        assert_eq!(text(32), parts);
        assert_eq!(text(1), parts, "a column stays whole");
        assert_eq!(Table::new(["alone"]).within(1).len(), 1);
    }

    #[test]
    fn frames_become_tables() {
        let frame = DataFrame::new(
            3,
            vec![
                Column::new("text".into(), ["<b>", "a\nb", ""]),
                Column::new("n".into(), [1u64, 20, 300]),
                Column::new("x".into(), [Some(0.5), None, Some(5e-5)]),
                Column::new("ok".into(), [true, false, true]),
            ],
        )
        .unwrap();
        let table = Table::from_frame(&frame, 3).unwrap();
        assert_eq!((table.len(), table.numeric()), (3, vec![false, true, true, false]));
        assert_eq!(
            table.to_string(),
            "text    n       x  ok\n----  ---  ------  ---\n<b>     1   0.500  yes\na b    20       –  no\n      300  5.0e-5  yes\n"
        );
        let html = table.html();
        assert!(html.contains("<th scope=\"row\">&lt;b&gt;</th><td class=\"n\">1</td>"), "{html}");
    }

    #[test]
    fn what_cells_hold_cannot_drive_a_terminal() {
        let mut table = Table::new(["probe"]);
        table.push(["\u{1b}[2Jcity"]).unwrap();
        assert!(table.to_string().contains("[U+001B][2Jcity"), "{table}");
        assert!(table.html().contains("[U+001B][2Jcity"), "{}", table.html());
    }

    #[test]
    fn rounding_makes_no_other_number() {
        let shown = [0.0, 5e-4, 1.5e-3, 1.2e-3, 1e-3, 0.1234, -0.0004, 2.0].map(|value| fraction(value, 3));
        assert_eq!(shown, ["0.000", "5.0e-4", "1.5e-3", "0.001", "0.001", "0.123", "-4.0e-4", "2.000"]);
    }

    #[test]
    fn a_ragged_row_is_refused() {
        assert!(Table::new(["a", "b"]).push(["1"]).is_err());
    }
}

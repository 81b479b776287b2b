//! Which kinds of tokens dropout takes: policies side by side.

use super::{Bar, GroupedBars, Table};
use crate::augment::{OTHER_WORDS, Plan};
use crate::error::{Error, Result};

/// The mean drop probability of each kind of token, a colour a plan.
///
/// ```
/// use cluescope::augment::Augment;
/// use cluescope::report::DropFigure;
/// # use cluescope::{corpus::Biographies, tokens::Tokenizer};
/// # let people = Biographies::new(2).seed(1).generate()?;
/// # let tokenizer = Tokenizer::train_bpe(people.documents.iter().map(|d| d.text.as_str()), 300)?;
/// let half = Augment::random().tokenizer(&tokenizer).alpha(0.5).plan(&people)?;
/// let table = DropFigure::new("Random dropout").series("random", &half).table()?;
/// assert!(table.to_string().contains("university     0.50"));
/// # Ok::<(), cluescope::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DropFigure {
    title: String,
    /// Kinds of tokens in order of first appearance; other words last.
    kinds: Vec<String>,
    series: Vec<(String, Vec<(String, f64)>)>,
}

impl DropFigure {
    /// A figure without plans as yet.
    pub fn new(title: impl Into<String>) -> Self {
        DropFigure { title: title.into(), kinds: Vec::new(), series: Vec::new() }
    }

    /// Adds the plan of one policy.
    pub fn series(mut self, name: impl Into<String>, plan: &Plan) -> Self {
        let by_field = plan.by_field();
        let new: Vec<String> = by_field
            .iter()
            .map(|(kind, _)| kind)
            .filter(|kind| !self.kinds.contains(kind))
            .cloned()
            .collect();
        // What touches no fact stays at the end, also where plans are of different texts.
        let at = self.kinds.iter().position(|kind| kind == OTHER_WORDS).unwrap_or(self.kinds.len());
        self.kinds.splice(at..at, new);
        self.series.push((name.into(), by_field));
        self
    }

    fn values(&self, of: &[(String, f64)]) -> Vec<Option<f64>> {
        let value = |kind: &String| of.iter().find(|(k, _)| k == kind).map(|(_, p)| *p);
        self.kinds.iter().map(value).collect()
    }

    fn check(&self) -> Result<()> {
        if self.kinds.is_empty() {
            return Err(Error::option("series", &self.title, "at least one plan with texts"));
        }
        Ok(())
    }

    /// The figure.
    ///
    /// # Errors
    /// [`Error::Option`] without a plan that has texts.
    pub fn bars(&self) -> Result<GroupedBars> {
        self.check()?;
        let mut chart = GroupedBars::new(&self.title)
            .x_label("tokens of")
            .y_label("mean probability of being dropped")
            .y_range(0.0, 1.0)
            .categories(&self.kinds);
        for (name, of) in &self.series {
            let bar = |value: Option<f64>| value.map_or(Bar::missing(), Bar::value);
            chart = chart.series(name, self.values(of).into_iter().map(bar));
        }
        Ok(chart)
    }

    /// The numbers of the figure, a row a kind of token and a column a plan.
    ///
    /// # Errors
    /// As [`DropFigure::bars`].
    pub fn table(&self) -> Result<Table> {
        self.check()?;
        let names = self.series.iter().map(|(name, _)| name.as_str());
        let mut table = Table::new(["tokens of"].into_iter().chain(names))
            .caption(format!("{}: mean probability of being dropped", self.title));
        let columns: Vec<Vec<Option<f64>>> = self.series.iter().map(|(_, of)| self.values(of)).collect();
        for (row, kind) in self.kinds.iter().enumerate() {
            let cells = columns.iter().map(|column| column[row]);
            let known = |value: Option<f64>| value.map_or("\u{2013}".to_string(), |p| format!("{p:.2}"));
            table.push([kind.clone()].into_iter().chain(cells.map(known)))?;
        }
        Ok(table)
    }
}

//! Quizzes side by side: a measure by field or by distance, with intervals (paper, Table 1 and Figure 1).

use std::collections::BTreeSet;

use super::summary::percent;
use super::{Bar, GroupedBars, Table};
use crate::error::{Error, Result};
use crate::evaluate::{Answer, Bootstrap, Cells, DISTANCE_EDGES, Interval, QuizResult, distance_bins};
use crate::experiment::Measure;

/// What the answers are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Field,
    Distance,
}

/// One measure of several quizzes, a colour a series and a group of bars a field or a distance.
///
/// ```
/// use cluescope::report::QuizFigure;
/// # fn example(before: &cluescope::evaluate::QuizResult, after: &cluescope::evaluate::QuizResult) -> cluescope::Result<()> {
/// let figure = QuizFigure::by_field("Before and after").series("before", [before]).series("after", [after]);
/// println!("{}", figure.table()?);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct QuizFigure {
    title: String,
    by: By,
    measure: Measure,
    bootstrap: Bootstrap,
    series: Vec<(String, Vec<QuizResult>)>,
}

impl QuizFigure {
    fn new(title: String, by: By) -> Self {
        QuizFigure {
            title,
            by,
            measure: Measure::ExactMatch,
            bootstrap: Bootstrap::default(),
            series: Vec::new(),
        }
    }

    /// Answers grouped by the kind of fact asked for.
    pub fn by_field(title: impl Into<String>) -> Self {
        Self::new(title.into(), By::Field)
    }

    /// Answers grouped by the characters between the name and the answer ([`DISTANCE_EDGES`]); answers of unknown
    /// distance are left out.
    pub fn by_distance(title: impl Into<String>) -> Self {
        Self::new(title.into(), By::Distance)
    }

    /// What is measured; exact match unless this is called.
    pub fn measure(mut self, measure: Measure) -> Self {
        self.measure = measure;
        self
    }

    /// How intervals are made.
    pub fn bootstrap(mut self, bootstrap: Bootstrap) -> Self {
        self.bootstrap = bootstrap;
        self
    }

    /// Adds a colour: the quizzes of one way of training, one a training seed.
    pub fn series<'a>(
        mut self,
        name: impl Into<String>,
        quizzes: impl IntoIterator<Item = &'a QuizResult>,
    ) -> Self {
        self.series.push((name.into(), quizzes.into_iter().cloned().collect()));
        self
    }

    /// Fields as first asked, or the distances that hold answers, in order.
    fn groups(&self) -> Vec<String> {
        let answers = || self.series.iter().flat_map(|(_, quizzes)| quizzes).flat_map(|quiz| &quiz.answers);
        match self.by {
            By::Field => {
                let mut seen = BTreeSet::new();
                answers().filter(|a| seen.insert(&a.field)).map(|a| a.field.clone()).collect()
            }
            By::Distance => distance_bins(&DISTANCE_EDGES)
                .into_iter()
                .filter(|(_, from, to)| answers().any(|a| within(a, *from, *to)))
                .map(|(label, ..)| label)
                .collect(),
        }
    }

    /// The measure of one series in one group; `None` where it has no answers.
    fn value(&self, quizzes: &[QuizResult], group: &str) -> Result<Option<Interval>> {
        let bins = distance_bins(&DISTANCE_EDGES);
        let inside = |answer: &Answer| match self.by {
            By::Field => answer.field == group,
            By::Distance => bins.iter().any(|(label, from, to)| label == group && within(answer, *from, *to)),
        };
        let values: Vec<(u64, &str, f64)> = (0u64..)
            .zip(quizzes)
            .flat_map(|(seed, quiz)| quiz.answers.iter().map(move |answer| (seed, answer)))
            .filter(|(_, answer)| inside(answer))
            .filter_map(|(seed, answer)| Some((seed, answer.cluster(), self.measure.of(answer)?)))
            .collect();
        if values.is_empty() {
            return Ok(None);
        }
        self.bootstrap.mean(&Cells::new(values)?).map(Some)
    }

    /// `values[series][group]`
    fn values(&self, groups: &[String]) -> Result<Vec<Vec<Option<Interval>>>> {
        if groups.is_empty() {
            let expected = "at least one quiz with answers, of known distance where grouped by it";
            return Err(Error::option("series", &self.title, expected));
        }
        let of = |quizzes: &[QuizResult]| groups.iter().map(|g| self.value(quizzes, g)).collect();
        self.series.iter().map(|(_, quizzes)| of(quizzes)).collect()
    }

    /// The figure.
    ///
    /// # Errors
    /// [`Error::Option`] without answers; when the bootstrap's settings are out of range.
    pub fn bars(&self) -> Result<GroupedBars> {
        let groups = self.groups();
        let mut chart = GroupedBars::new(&self.title)
            .x_label(match self.by {
                By::Field => "kind of fact",
                By::Distance => "characters between the name and the answer",
            })
            .y_label(self.measure.label())
            .categories(groups.iter());
        if self.measure != Measure::LogProb {
            chart = chart.y_range(0.0, 1.0);
        }
        for ((name, _), values) in self.series.iter().zip(self.values(&groups)?) {
            let bar = |value: Option<Interval>| match value {
                Some(i) if i.is_defined() => Bar::with_interval(i.estimate, i.low, i.high),
                Some(i) => Bar::value(i.estimate),
                None => Bar::missing(),
            };
            chart = chart.series(name, values.into_iter().map(bar));
        }
        Ok(chart)
    }

    /// The numbers of the figure, a row a group and a column a series.
    ///
    /// # Errors
    /// As [`QuizFigure::bars`].
    pub fn table(&self) -> Result<Table> {
        let groups = self.groups();
        let values = self.values(&groups)?;
        let names = self.series.iter().map(|(name, _)| name.as_str());
        let head = match self.by {
            By::Field => "kind of fact",
            By::Distance => "characters from the name",
        };
        let mut table = Table::new([head].into_iter().chain(names)).caption(format!(
            "{}: {} with {} % intervals",
            self.title,
            self.measure.label(),
            percent(self.bootstrap.level)
        ));
        for (number, group) in groups.iter().enumerate() {
            let known = |value: Option<Interval>| {
                value.map_or("\u{2013}".to_string(), |i| format!("{i:.2}").replace('-', "\u{2212}"))
            };
            table.push([group.clone()].into_iter().chain(values.iter().map(|row| known(row[number]))))?;
        }
        Ok(table)
    }
}

fn within(answer: &Answer, from: usize, to: usize) -> bool {
    answer.distance.is_some_and(|distance| (from..to).contains(&distance))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provenance::Provenance;

    fn quiz(answers: &[(&str, &str, Option<usize>, f64)]) -> QuizResult {
        let answers = answers.iter().map(|&(document, field, distance, exact_match)| Answer {
            document: document.into(),
            cluster: None,
            field: field.into(),
            question: String::new(),
            distance,
            prompt: String::new(),
            prediction: String::new(),
            right: vec!["x".into()],
            exact_match,
            f1: exact_match,
            answer_tokens: 1,
            too_long: false,
            choices: Vec::new(),
        });
        QuizResult { answers: answers.collect(), provenance: Provenance::new("test") }
    }

    #[test]
    fn seeds_are_pooled_and_groups_keep_their_order() {
        let one =
            quiz(&[("a", "date", Some(3), 1.0), ("b", "date", Some(4), 1.0), ("a", "city", Some(60), 0.0)]);
        let two = quiz(&[("a", "date", Some(3), 0.0), ("b", "date", Some(4), 1.0), ("a", "city", None, 1.0)]);
        let figure = QuizFigure::by_field("F").series("both", [&one, &two]).series("second", [&two]);
        let table = figure.table().unwrap().to_string();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "F: exact match (share) with 95 % intervals");
        // Three of four answers over both seeds; one person has no interval.
        assert!(lines[3].starts_with("date          0.75 ["), "{table}");
        assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>(), ["city", "0.50", "1.00"]);
        assert!(figure.bars().unwrap().svg().unwrap().contains("second"));
    }

    #[test]
    fn distances_are_binned_and_unknown_ones_left_out() {
        let one =
            quiz(&[("a", "city", Some(60), 0.0), ("b", "date", Some(4), 1.0), ("a", "major", None, 1.0)]);
        let table = QuizFigure::by_distance("D").series("one", [&one]).table().unwrap();
        let text = table.to_string();
        assert_eq!(table.len(), 2, "{text}");
        assert!(text.contains("0–24                      1.00\n50–99                     0.00\n"), "{text}");
        let unknown = quiz(&[("a", "city", None, 0.0)]);
        assert!(QuizFigure::by_distance("D").series("one", [&unknown]).bars().is_err());
        assert!(QuizFigure::by_field("F").table().is_err());
    }
}

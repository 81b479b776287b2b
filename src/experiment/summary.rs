//! Means and differences with their intervals, over seeds and persons.

use std::collections::BTreeMap;
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cell::Row;
use super::condition::{Condition, Student, by_name};
use crate::error::{Error, Result};
use crate::evaluate::{Answer, Bootstrap, Cells, Interval, distance_bins};

/// A number that an answer gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// 1 or 0.
    ExactMatch,
    /// Word F1.
    F1,
    /// ln p of the right answer, in nats.
    LogProb,
    /// Whether the right answer beats its distractors.
    ChoiceAccuracy,
}

impl Measure {
    /// In the order of tables.
    pub const ALL: [Measure; 4] =
        [Measure::ExactMatch, Measure::F1, Measure::LogProb, Measure::ChoiceAccuracy];

    /// Name in files.
    pub fn name(self) -> &'static str {
        match self {
            Measure::ExactMatch => "exact_match",
            Measure::F1 => "f1",
            Measure::LogProb => "log_prob",
            Measure::ChoiceAccuracy => "choice_accuracy",
        }
    }

    /// Name for the head of a column.
    pub fn short(self) -> &'static str {
        match self {
            Measure::ExactMatch => "exact match",
            Measure::F1 => "word F1",
            Measure::LogProb => "ln p (nats)",
            Measure::ChoiceAccuracy => "choice",
        }
    }

    /// Name for people, with the unit.
    pub fn label(self) -> &'static str {
        match self {
            Measure::ExactMatch => "exact match (share)",
            Measure::F1 => "word F1 (0 to 1)",
            Measure::LogProb => "ln p of the right answer (nats)",
            Measure::ChoiceAccuracy => "choice accuracy (share)",
        }
    }

    /// Its value for one answer, where known.
    pub fn of(self, answer: &Answer) -> Option<f64> {
        match self {
            Measure::ExactMatch => Some(answer.exact_match),
            Measure::F1 => Some(answer.f1),
            Measure::LogProb => answer.log_prob(),
            Measure::ChoiceAccuracy => answer.choice_correct().map(|c| f64::from(u8::from(c))),
        }
    }
}

impl FromStr for Measure {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("measure", name, Measure::ALL, Measure::name)
    }
}

/// Which answers are summed up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// All.
    All,
    /// Those about one kind of fact.
    Field(String),
    /// Those whose distance between name and answer, in characters, lies in a bin.
    Distance(String),
}

impl Group {
    /// `all`, `field` or `distance`.
    pub fn kind(&self) -> &'static str {
        match self {
            Group::All => "all",
            Group::Field(_) => "field",
            Group::Distance(_) => "distance",
        }
    }

    /// The field or bin; empty for all.
    pub fn label(&self) -> &str {
        match self {
            Group::All => "",
            Group::Field(label) | Group::Distance(label) => label,
        }
    }
}

/// One measure of one condition in one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The model trained.
    pub student: Student,
    /// How the training texts were made.
    pub condition: Condition,
    /// Which answers.
    pub group: Group,
    /// Which measure.
    pub measure: Measure,
    /// Its mean.
    pub value: Interval,
    /// Its mean minus those of other conditions, paired by seed and person; see [`Summary::minus`].
    pub differences: Vec<(Condition, Interval)>,
}

impl Summary {
    /// Its mean minus that of `base`, where that was compared: every trained condition with `plain` and
    /// `plain_equal_steps`, and the attention difference, under whichever guide, with all.
    pub fn minus(&self, base: Condition) -> Option<Interval> {
        self.differences.iter().find(|(other, _)| *other == base).map(|(_, interval)| *interval)
    }
}

/// Every measure of every condition in every group, in the order of the rows.
pub(super) fn summarize(rows: &[Row], edges: &[usize], bootstrap: &Bootstrap) -> Result<Vec<Summary>> {
    let mut arms: Vec<(Student, Condition)> = Vec::new();
    for row in rows {
        let arm = (row.cell.student, row.cell.condition);
        if !arms.contains(&arm) {
            arms.push(arm);
        }
    }
    arms.sort();
    let bins = distance_bins(edges);
    let tasks: Vec<(Group, Measure)> = groups(rows, &bins)
        .into_iter()
        .flat_map(|group| Measure::ALL.map(|measure| (group.clone(), measure)))
        .collect();
    let all: Result<Vec<Vec<Summary>>> = tasks
        .par_iter()
        .map(|(group, measure)| one(rows, &arms, group, &bins, *measure, bootstrap))
        .collect();
    Ok(all?.into_iter().flatten().collect())
}

/// One measure in one group, a summary a condition that has it.
fn one(
    rows: &[Row],
    arms: &[(Student, Condition)],
    group: &Group,
    bins: &[(String, usize, usize)],
    measure: Measure,
    bootstrap: &Bootstrap,
) -> Result<Vec<Summary>> {
    let inside = |answer: &Answer| match group {
        Group::All => true,
        Group::Field(field) => answer.field == *field,
        Group::Distance(label) => bins
            .iter()
            .filter(|(name, _, _)| name == label)
            .any(|(_, from, to)| answer.distance.is_some_and(|d| (*from..*to).contains(&d))),
    };
    let mut cells: BTreeMap<(Student, Condition), Cells> = BTreeMap::new();
    for &(student, condition) in arms {
        let values: Vec<(u64, &str, f64)> = rows
            .iter()
            .filter(|r| r.cell.student == student && r.cell.condition == condition)
            .flat_map(|r| r.measured.quiz.answers.iter().map(move |a| (r.cell.seed, a)))
            .filter(|(_, a)| inside(a))
            .filter_map(|(seed, a)| Some((seed, a.cluster(), measure.of(a)?)))
            .collect();
        if !values.is_empty() {
            cells.insert((student, condition), Cells::new(values)?);
        }
    }
    let mut all = Vec::with_capacity(cells.len());
    for (&(student, condition), mine) in &cells {
        let mut differences = Vec::new();
        for (&(_, base), theirs) in cells.iter().filter(|((other, _), _)| *other == student) {
            let compared =
                condition.is_difference() || matches!(base, Condition::Plain | Condition::PlainEqualSteps);
            // Without training there are no seeds to pair by, and where cells failed all those of a pair may be missing.
            let paired = condition.trains() && base.trains() && mine.overlaps(theirs);
            if compared && base != condition && paired {
                differences.push((base, bootstrap.difference(mine, theirs)?));
            }
        }
        let value = bootstrap.mean(mine)?;
        all.push(Summary { student, condition, group: group.clone(), measure, value, differences });
    }
    Ok(all)
}

/// All, then the fields as first asked, then the distance bins that hold answers.
fn groups(rows: &[Row], bins: &[(String, usize, usize)]) -> Vec<Group> {
    let answers = || rows.iter().flat_map(|r| &r.measured.quiz.answers);
    let mut fields: Vec<String> = Vec::new();
    for answer in answers() {
        if !fields.contains(&answer.field) {
            fields.push(answer.field.clone());
        }
    }
    let filled = bins
        .iter()
        .filter(|(_, from, to)| answers().any(|a| a.distance.is_some_and(|d| (*from..*to).contains(&d))));
    std::iter::once(Group::All)
        .chain(fields.into_iter().map(Group::Field))
        .chain(filled.map(|(label, _, _)| Group::Distance(label.clone())))
        .collect()
}

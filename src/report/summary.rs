//! Means and differences of an experiment as tables and bars, fresh or read back from its files.

use super::{Bar, GroupedBars, Table};
use crate::error::Result;
use crate::evaluate::Interval;
use crate::experiment::{Condition, Group, Measure, Summary};

/// `measure` by kind of fact, a colour a condition; `of` one trained model.
///
/// # Errors
/// [`crate::Error::Option`] where nothing is known by kind of fact.
pub fn summary_bars(title: impl Into<String>, of: &[Summary], measure: Measure) -> Result<GroupedBars> {
    let groups = groups(of, "field");
    if groups.is_empty() {
        return Err(crate::Error::option("summary", "no kinds of fact", "means by kind of fact"));
    }
    Ok(bars(title.into(), "kind of fact", of, &groups, measure))
}

/// `measure` of one trained model with its intervals: a row a condition, a column for all questions and for each of `fields`,
/// or for every kind of fact where none is named.
///
/// # Errors
/// None but a fault of the program: a row of another length than its table.
pub fn summary_table(of: &[Summary], measure: Measure, fields: &[&str]) -> Result<Table> {
    let all = groups(of, "field");
    let wanted = |g: &Group| fields.is_empty() || fields.contains(&g.label());
    let columns: Vec<Group> = std::iter::once(Group::All).chain(all.into_iter().filter(wanted)).collect();
    let name = |g: &Group| if *g == Group::All { "all".to_string() } else { g.label().to_string() };
    let mut table = Table::new(["condition".to_string()].into_iter().chain(columns.iter().map(name)));
    if let Some(first) = of.first() {
        table = table.caption(format!("{} with {} % intervals", measure.label(), percent(first.value.level)));
    }
    for condition in conditions(of) {
        let cells = columns.iter().map(|g| known(find(of, condition, g, measure).map(|s| plain(&s.value))));
        table.push([condition.label().to_string()].into_iter().chain(cells))?;
    }
    Ok(table)
}

/// The paper's method minus every other condition over all questions, paired by person and seed, a column a measure; `of` one trained
/// model.
///
/// # Errors
/// None but a fault of the program: a row of another length than its table.
pub fn gains_table(of: &[Summary]) -> Result<Table> {
    gains(of, Condition::AttentionDifference)
}

/// `method` minus every other condition, as [`gains_table`].
pub(super) fn gains(of: &[Summary], method: Condition) -> Result<Table> {
    let mut table = Table::new(["compared with"].into_iter().chain(Measure::ALL.map(Measure::short)))
        .caption(format!("“{method}” minus each other condition, paired by person and seed"));
    for base in conditions(of) {
        let cell = |m| find(of, method, &Group::All, m).and_then(|s| s.minus(base));
        let cells: Vec<Option<Interval>> = Measure::ALL.into_iter().map(cell).collect();
        if cells.iter().any(Option::is_some) {
            let name = std::iter::once(base.label().to_string());
            table.push(name.chain(cells.into_iter().map(|i| known(i.map(|i| signed(&i))))))?;
        }
    }
    Ok(table)
}

/// Bars of `measure` for every group, a colour a condition.
pub(super) fn bars(
    title: String,
    x_label: &str,
    of: &[Summary],
    groups: &[Group],
    measure: Measure,
) -> GroupedBars {
    let mut chart = GroupedBars::new(title)
        .x_label(x_label)
        .y_label(measure.label())
        .categories(groups.iter().map(Group::label));
    if measure != Measure::LogProb {
        chart = chart.y_range(0.0, ceiling(of, groups, measure));
    }
    // The untrained model last, so that it takes the grey of the palette.
    let (last, first): (Vec<Condition>, Vec<Condition>) =
        conditions(of).into_iter().partition(|c| *c == Condition::Untrained);
    for condition in first.into_iter().chain(last) {
        let bar = |g: &Group| match find(of, condition, g, measure) {
            Some(s) if s.value.is_defined() => {
                Bar::with_interval(s.value.estimate, s.value.low, s.value.high)
            }
            Some(s) => Bar::value(s.value.estimate),
            None => Bar::missing(),
        };
        chart = chart.series(condition.label(), groups.iter().map(bar));
    }
    chart
}

/// The end of an axis of shares that has room for every interval: small shares drawn up to 1 could not be told apart.
fn ceiling(of: &[Summary], groups: &[Group], measure: Measure) -> f64 {
    let shown = of.iter().filter(|s| s.measure == measure && groups.contains(&s.group));
    let top =
        shown.map(|s| if s.value.is_defined() { s.value.high } else { s.value.estimate }).fold(0.0, f64::max);
    [0.1, 0.2, 0.5].into_iter().find(|end| top <= *end).unwrap_or(1.0)
}

/// The conditions that `of` knows, in the order of tables.
pub(super) fn conditions(of: &[Summary]) -> Vec<Condition> {
    let mut found: Vec<Condition> = of.iter().map(|s| s.condition).collect();
    found.sort();
    found.dedup();
    found
}

/// The groups of one kind, `field` or `distance`, in their order.
pub(super) fn groups(of: &[Summary], kind: &str) -> Vec<Group> {
    let mut found: Vec<Group> = Vec::new();
    for s in of.iter().filter(|s| s.group.kind() == kind) {
        if !found.contains(&s.group) {
            found.push(s.group.clone());
        }
    }
    found
}

pub(super) fn find<'a>(
    of: &'a [Summary],
    condition: Condition,
    group: &Group,
    measure: Measure,
) -> Option<&'a Summary> {
    of.iter().find(|s| s.condition == condition && s.group == *group && s.measure == measure)
}

pub(super) fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".into())
}

/// `+0.03 [−0.01, +0.07]`
pub(super) fn signed(i: &Interval) -> String {
    let text = if i.is_defined() {
        format!("{:+.2} [{:+.2}, {:+.2}]", i.estimate, i.low, i.high)
    } else {
        format!("{:+.2}", i.estimate)
    };
    text.replace('-', "\u{2212}")
}

/// A share in per cent: 95, or 99.5.
pub(super) fn percent(share: f64) -> String {
    ((1000.0 * share).round() / 10.0).to_string()
}

pub(super) fn plain(i: &Interval) -> String {
    format!("{i:.2}").replace('-', "\u{2212}")
}

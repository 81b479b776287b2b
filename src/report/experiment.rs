//! An experiment as one page: what was found, how sure it is, and everything needed to do it again.

use std::collections::BTreeMap;

use super::experiment_record::{answers, configuration, options};
use super::summary::{bars, conditions, find, gains, groups, known, percent, plain, signed, summary_bars};
use super::{LineChart, Page, Section, Table};
use crate::error::Result;
use crate::evaluate::Interval;
use crate::experiment::{Condition, Failed, Group, LossPoint, Measure, Outcome, Row, Stage, Summary};

/// Points of a loss curve at most; a longer one is averaged over stretches of steps.
const CURVE_POINTS: usize = 150;

/// The page of `outcome`: results with intervals, measures by field and by distance, loss curves, perplexity, chosen
/// options, answers, configuration, versions. `summary` is what [`Outcome::summary`] gave.
///
/// # Errors
/// When a figure cannot be drawn.
pub fn experiment_page(outcome: &Outcome, summary: &[Summary]) -> Result<Page> {
    let mut page =
        Page::new(format!("Experiment: {} protocol, {} pair", outcome.protocol.name, outcome.protocol.pair))
            .lead(lead(outcome))
            .provenance(outcome.provenance.clone());
    for &student in &outcome.protocol.students {
        let of: Vec<Summary> = summary.iter().filter(|s| s.student == student).cloned().collect();
        let rows = outcome.rows_of(student);
        if rows.is_empty() {
            continue;
        }
        let heading = |text: &str| match outcome.protocol.students.len() {
            1 => text.to_string(),
            _ => format!("{text}: {student} model"),
        };
        page = page
            .section(results(
                heading("Results"),
                &of,
                &rows,
                &outcome.failed_of(student),
                outcome.protocol.clusters(),
            )?)
            .section(by_field(heading("By field"), &of)?)
            .section(by_distance(heading("By distance from the name"), &of, outcome.protocol.per_person)?)
            .section(losses(heading("Loss curves"), &rows)?)
            .section(answers(heading("Answers"), &rows)?);
    }
    let failed = failures(&outcome.failed)?;
    if !failed.is_empty() {
        page = page.section(Section::new("Failed cells").table(&failed));
    }
    Ok(page.section(options(outcome)?).section(configuration(outcome)))
}

/// The cells that came to no result; empty where all did.
fn failures(failed: &[Failed]) -> Result<Table> {
    let columns = ["stage", "student", "condition", "seed", "α", "β", "learning rate", "reason"];
    let mut table = Table::new(columns).caption(
        "Cells whose numbers stopped being finite: they are in no mean, and are not run again while their files are kept",
    );
    for Failed { cell, reason } in failed {
        let number = |v: Option<f64>| known(v.map(|v| v.to_string()));
        table.push([
            if cell.stage == Stage::Tune { "search" } else { "report" }.to_string(),
            cell.student.name().into(),
            cell.condition.label().into(),
            cell.seed.to_string(),
            number(cell.alpha),
            number(cell.beta),
            number(cell.learning_rate),
            reason.clone(),
        ])?;
    }
    Ok(table)
}

fn lead(outcome: &Outcome) -> String {
    let p = &outcome.protocol;
    let failed = match outcome.failed.iter().filter(|f| f.cell.stage == Stage::Report).count() {
        0 => String::new(),
        failed => format!(", {failed} more failed"),
    };
    format!(
        "{}, {} copies a text, {} epochs, {} training seeds, {} cells{failed}. Intervals are bootstraps over {} and seeds.",
        p.subjects(),
        p.copies,
        p.epochs,
        p.seeds.len(),
        outcome.rows.len(),
        p.clusters()
    )
}

/// What the differences of one trained model say, a sentence a measure: whether the paper's method, under each guide it followed,
/// beats plain training of equal steps, in words that claim no more than the intervals do.
pub fn verdicts(of: &[Summary]) -> Vec<String> {
    let measures = [Measure::ExactMatch, Measure::F1, Measure::ChoiceAccuracy];
    let of_method = |method| measures.into_iter().filter_map(move |measure| verdict(of, method, measure));
    differences_of(of).into_iter().flat_map(of_method).collect()
}

/// What the differences say, in words that claim no more than the intervals do.
fn verdict(of: &[Summary], condition: Condition, measure: Measure) -> Option<String> {
    let method = find(of, condition, &Group::All, measure)?;
    let (base, i) = match (method.minus(Condition::PlainEqualSteps), method.minus(Condition::Plain)) {
        (Some(i), _) => ("plain training of equal steps", i),
        (None, Some(i)) => ("plain training", i),
        (None, None) => return None,
    };
    let said = if !i.is_defined() || (i.low <= 0.0 && i.high >= 0.0) {
        "cannot be told apart from"
    } else if i.estimate > 0.0 {
        "beats"
    } else {
        "falls short of"
    };
    Some(format!("By {}, {condition} {said} {base}: {}.", measure.label(), signed(&i)))
}

/// The means that open the page and what the paper's method gains over each other condition, two tables a trained
/// model, and the cells that failed: for a terminal.
///
/// # Errors
/// None but a fault of the program: a row of another length than its table.
pub fn experiment_tables(outcome: &Outcome, summary: &[Summary]) -> Result<Vec<Table>> {
    let mut tables = Vec::new();
    for &student in &outcome.protocol.students {
        let of: Vec<Summary> = summary.iter().filter(|s| s.student == student).cloned().collect();
        let rows = outcome.rows_of(student);
        if !rows.is_empty() {
            tables.push(means(&of, &rows, &outcome.failed_of(student))?);
            tables.extend(gains_tables(&of)?);
        }
    }
    tables.extend(Some(failures(&outcome.failed)?).filter(|table| !table.is_empty()));
    Ok(tables)
}

/// What the paper's method gains over each other condition: a table for each guide it followed.
fn gains_tables(of: &[Summary]) -> Result<Vec<Table>> {
    let tables: Result<Vec<Table>> = differences_of(of).into_iter().map(|method| gains(of, method)).collect();
    Ok(tables?.into_iter().filter(|table| !table.is_empty()).collect())
}

/// The paper's method, under each guide it followed.
fn differences_of(of: &[Summary]) -> Vec<Condition> {
    conditions(of).into_iter().filter(|condition| condition.is_difference()).collect()
}

/// A row a condition, a column a measure.
fn means(of: &[Summary], rows: &[&Row], failed: &[&Failed]) -> Result<Table> {
    let mut columns = vec!["condition", "seeds"];
    columns.extend(Measure::ALL.map(Measure::short));
    columns.push("perplexity");
    let mut table = Table::new(columns).caption(format!(
        "Means over all questions with {} % intervals; perplexity on held-out texts with its range over seeds",
        percent(of.first().map_or(0.0, |s| s.value.level))
    ));
    let mut all = conditions(of);
    all.extend(failed.iter().map(|f| f.cell.condition));
    all.sort();
    all.dedup();
    for condition in all {
        let mine: Vec<&&Row> = rows.iter().filter(|r| r.cell.condition == condition).collect();
        let seeds = match failed.iter().filter(|f| f.cell.condition == condition).count() {
            0 => mine.len().to_string(),
            failed => format!("{} ({failed} failed)", mine.len()),
        };
        let mut row = vec![condition.label().to_string(), seeds];
        for measure in Measure::ALL {
            row.push(known(find(of, condition, &Group::All, measure).map(|s| plain(&s.value))));
        }
        row.push(perplexity(&mine));
        table.push(row)?;
    }
    Ok(table)
}

fn results(
    title: String,
    of: &[Summary],
    rows: &[&Row],
    failed: &[&Failed],
    clusters: &str,
) -> Result<Section> {
    let mut section = Section::new(title);
    for text in verdicts(of) {
        section = section.paragraph(text);
    }
    section = section.table(&means(of, rows, failed)?);
    let equal = differences(of, Condition::PlainEqualSteps)?;
    let paper = differences(of, Condition::Plain)?;
    for table in gains_tables(of)?.into_iter().chain([equal, paper]).filter(|t| !t.is_empty()) {
        section = section.table(&table);
    }
    // A condition of which cells failed has fewer seeds than the others.
    let drawn: Vec<&Interval> =
        of.iter().filter(|s| s.condition.trains() && s.group == Group::All).map(|s| &s.value).collect();
    if let Some(first) = drawn.first() {
        let range = |number: fn(&Interval) -> u64| {
            let (least, most) = drawn
                .iter()
                .fold((u64::MAX, 0), |(least, most), i| (least.min(number(i)), most.max(number(i))));
            if least == most { most.to_string() } else { format!("{least} to {most}") }
        };
        let one = if drawn.iter().any(|i| i.seeds == 1) {
            " With one seed the spread between trainings is not in the interval."
        } else {
            ""
        };
        section = section.paragraph(format!(
            "Intervals: percentile bootstrap, {} resamples of whole {clusters} ({}) and of seeds ({}); {} values a \
             condition.{one} Chance for choice accuracy is {}.",
            first.resamples,
            range(|i| i.persons as u64),
            range(|i| i.seeds as u64),
            range(|i| i.values),
            known(rows[0].measured.quiz.total().choice_chance.map(|c| format!("{c:.2}")))
        ));
    }
    let total = rows[0].measured.quiz.total();
    if total.too_long > 0 {
        section = section.paragraph(format!(
            "{} of {} right answers are longer than an answer may be: exact match cannot reach 1.",
            total.too_long, total.questions
        ));
    }
    section = section.paragraph(
        "Choice compares ln p summed over an answer's tokens, so of two answers that fit equally well it favours the shorter; \
         all conditions choose among the same answers.",
    );
    Ok(section)
}

/// Each condition minus `base`, a column a measure.
fn differences(of: &[Summary], base: Condition) -> Result<Table> {
    let columns = ["condition"].into_iter().chain(Measure::ALL.map(Measure::short));
    let mut table = Table::new(columns).caption(format!("Minus “{base}”, paired by person and seed"));
    for condition in conditions(of) {
        let cells: Vec<Option<Interval>> =
            Measure::ALL.iter().map(|&m| find(of, condition, &Group::All, m)?.minus(base)).collect();
        if cells.iter().any(Option::is_some) {
            let name = std::iter::once(condition.label().to_string());
            table.push(name.chain(cells.into_iter().map(|i| known(i.map(|i| signed(&i))))))?;
        }
    }
    Ok(table)
}

/// Over all seeds' sums, with the lowest and highest seed.
fn perplexity(rows: &[&&Row]) -> String {
    let found: Vec<_> = rows.iter().filter_map(|r| r.measured.perplexity).collect();
    if found.is_empty() {
        return known(None);
    }
    let log_prob: f64 = found.iter().map(|p| p.log_prob).sum();
    let tokens: u64 = found.iter().map(|p| p.tokens).sum();
    let all = (-log_prob / tokens as f64).exp();
    let (low, high) = found
        .iter()
        .map(|p| p.value())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let [all, low, high] = [all, low, high].map(three_digits);
    if found.len() == 1 { all } else { format!("{all} [{low}, {high}]") }
}

/// `4.26`, `19.3`, `137`: as many as a perplexity is worth.
fn three_digits(value: f64) -> String {
    match value {
        v if v < 9.995 => format!("{v:.2}"),
        v if v < 99.95 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

fn by_field(title: String, of: &[Summary]) -> Result<Section> {
    let mut section = Section::new(title).table(&pairs_by_field(of)?);
    for measure in [Measure::ExactMatch, Measure::ChoiceAccuracy, Measure::LogProb] {
        if of.iter().any(|s| s.measure == measure) {
            let bars = summary_bars(format!("By field: {}", measure.label()), of, measure)?;
            section = section.figure(bars.svg()?, "");
        }
    }
    Ok(section)
}

/// A row a condition, a column a field.
fn pairs_by_field(of: &[Summary]) -> Result<Table> {
    let groups = groups(of, "field");
    let mut table =
        Table::new(["condition".to_string()].into_iter().chain(groups.iter().map(|g| g.label().to_string())))
            .caption("Exact match / F1 by field, as in the paper's tables");
    for condition in conditions(of) {
        let mut row = vec![condition.label().to_string()];
        for group in &groups {
            let mean = |m| known(find(of, condition, group, m).map(|s| format!("{:.2}", s.value.estimate)));
            row.push(format!("{} / {}", mean(Measure::ExactMatch), mean(Measure::F1)));
        }
        table.push(row)?;
    }
    Ok(table)
}

fn by_distance(title: String, of: &[Summary], per_person: usize) -> Result<Section> {
    let mut section = Section::new(title);
    if per_person > 1 {
        return Ok(section.paragraph(format!(
            "There are up to {per_person} texts about one person or thing, in each of which a fact may stand elsewhere: it has no one distance."
        )));
    }
    let groups = groups(of, "distance");
    if groups.is_empty() {
        return Ok(section.paragraph("The corpus does not say how far its answers stand from the name."));
    }
    for measure in [Measure::ExactMatch, Measure::ChoiceAccuracy, Measure::LogProb] {
        if of.iter().any(|s| s.measure == measure) {
            let title = format!("By distance: {}", measure.label());
            let bars = bars(title, "characters between the name and the answer", of, &groups, measure);
            section = section.figure(bars.svg()?, "");
        }
    }
    let mut table = Table::new([
        "distance",
        "condition",
        "exact match",
        "F1",
        "choice accuracy",
        "ln p",
        "questions × seeds",
    ])
    .caption("Measures by distance, with intervals");
    for group in &groups {
        for condition in conditions(of) {
            let cell = |m| known(find(of, condition, group, m).map(|s| plain(&s.value)));
            let count = find(of, condition, group, Measure::ExactMatch).map(|s| s.value.values.to_string());
            table.push([
                group.label().to_string(),
                condition.label().into(),
                cell(Measure::ExactMatch),
                cell(Measure::F1),
                cell(Measure::ChoiceAccuracy),
                cell(Measure::LogProb),
                known(count),
            ])?;
        }
    }
    Ok(section.details("The numbers", |s| s.table(&table)))
}

fn losses(title: String, rows: &[&Row]) -> Result<Section> {
    let section = Section::new(title);
    if rows.iter().all(|row| row.measured.loss.is_empty()) {
        return Ok(section.paragraph("No condition was trained."));
    }
    Ok(section.figure(
        loss_chart(rows).svg()?,
        "Mean over training seeds; the band spans the lowest and the highest seed. The loss is of the texts trained on, so \
         conditions with dropped tokens are not comparable by height.",
    ))
}

/// The training loss of each condition among `rows` over the steps: mean, lowest and highest of the seeds.
pub fn loss_chart(rows: &[&Row]) -> LineChart {
    let mut chart =
        LineChart::new("Training loss").x_label("optimiser step").y_label("cross-entropy (nats a token)");
    for condition in Condition::ALL {
        let runs: Vec<&&Row> =
            rows.iter().filter(|r| r.cell.condition == condition && !r.measured.loss.is_empty()).collect();
        if !runs.is_empty() {
            chart = chart.line_with_band(condition.label(), curve(&runs));
        }
    }
    chart
}

/// (step, mean, lowest, highest) over the seeds, averaged over stretches of equal length.
fn curve(runs: &[&&Row]) -> Vec<(f64, f64, f64, f64)> {
    let longest = runs.iter().map(|r| r.measured.loss.len()).max().unwrap_or(0);
    let stretch = longest.div_ceil(CURVE_POINTS).max(1);
    let mut points: BTreeMap<usize, (f64, Vec<f64>)> = BTreeMap::new();
    for run in runs {
        for (i, part) in run.measured.loss.chunks(stretch).enumerate() {
            let mean = |of: fn(&LossPoint) -> f64| part.iter().map(of).sum::<f64>() / part.len() as f64;
            let (_, values) = points.entry(i).or_insert((mean(|p| p.step as f64), Vec::new()));
            values.push(mean(|p| p.loss));
        }
    }
    points
        .into_values()
        .map(|(step, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (step, mean, low, high)
        })
        .collect()
}

//! An experiment as one page: what was found, how sure it is, and everything needed to do it again.

use std::collections::BTreeMap;

use super::{Bar, GroupedBars, LineChart, Page, Section, Table};
use crate::error::Result;
use crate::evaluate::{Bootstrap, Interval};
use crate::experiment::{Condition, Group, Measure, Outcome, Row, Student, Summary};

/// Points of a loss curve at most; a longer one is averaged over stretches of steps.
const CURVE_POINTS: usize = 150;

/// The page of `outcome`: results with intervals, measures by field and by distance, loss curves, perplexity, chosen
/// options, answers, configuration, versions.
///
/// # Errors
/// When the bootstrap's settings are out of range or a figure cannot be drawn.
pub fn experiment_page(outcome: &Outcome, bootstrap: &Bootstrap) -> Result<Page> {
    let all = outcome.summary(bootstrap)?;
    let mut page =
        Page::new(format!("Experiment: {} protocol, {} pair", outcome.protocol.name, outcome.protocol.pair))
            .lead(lead(outcome))
            .provenance(outcome.provenance.clone());
    for &student in &outcome.protocol.students {
        let of: Vec<&Summary> = all.iter().filter(|s| s.student == student).collect();
        let rows: Vec<&Row> = outcome.rows.iter().filter(|r| r.cell.student == student).collect();
        if rows.is_empty() {
            continue;
        }
        let heading = |text: &str| match outcome.protocol.students.len() {
            1 => text.to_string(),
            _ => format!("{text}: {student} model"),
        };
        page = page
            .section(results(heading("Results"), &of, &rows, bootstrap)?)
            .section(by_field(heading("By field"), &of)?)
            .section(by_distance(heading("By distance from the name"), &of)?)
            .section(losses(heading("Loss curves"), &rows)?);
    }
    Ok(page.section(options(outcome)?).section(answers(outcome)?).section(configuration(outcome)))
}

fn lead(outcome: &Outcome) -> String {
    let p = &outcome.protocol;
    format!(
        "{} people, {} copies a text, {} epochs, {} training seeds, {} cells. Intervals are bootstraps over people and seeds.",
        p.people,
        p.copies,
        p.epochs,
        p.seeds.len(),
        outcome.rows.len()
    )
}

fn conditions(of: &[&Summary]) -> Vec<Condition> {
    let mut found: Vec<Condition> = of.iter().map(|s| s.condition).collect();
    found.sort();
    found.dedup();
    found
}

fn find<'a>(
    of: &[&'a Summary],
    condition: Condition,
    group: &Group,
    measure: Measure,
) -> Option<&'a Summary> {
    of.iter().copied().find(|s| s.condition == condition && s.group == *group && s.measure == measure)
}

fn known(value: Option<String>) -> String {
    value.unwrap_or_else(|| "–".into())
}

/// `+0.03 [−0.01, +0.07]`
fn signed(i: &Interval) -> String {
    let text = if i.is_defined() {
        format!("{:+.2} [{:+.2}, {:+.2}]", i.estimate, i.low, i.high)
    } else {
        format!("{:+.2}", i.estimate)
    };
    text.replace('-', "\u{2212}")
}

fn plain(i: &Interval) -> String {
    format!("{i:.2}").replace('-', "\u{2212}")
}

/// What the differences say, in words that claim no more than the intervals do.
fn verdict(of: &[&Summary], measure: Measure) -> Option<String> {
    let method = find(of, Condition::AttentionDifference, &Group::All, measure)?;
    let (base, i) = match (method.minus_equal_steps, method.minus_plain) {
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
    Some(format!("By {}, attention difference {said} {base}: {}.", measure.label(), signed(&i)))
}

/// The means that open the page, one table a trained model: for a terminal.
///
/// # Errors
/// When the bootstrap's settings are out of range.
pub fn experiment_tables(outcome: &Outcome, bootstrap: &Bootstrap) -> Result<Vec<Table>> {
    let all = outcome.summary(bootstrap)?;
    let mut tables = Vec::new();
    for &student in &outcome.protocol.students {
        let of: Vec<&Summary> = all.iter().filter(|s| s.student == student).collect();
        let rows: Vec<&Row> = outcome.rows.iter().filter(|r| r.cell.student == student).collect();
        if !rows.is_empty() {
            tables.push(means(&of, &rows, bootstrap)?);
        }
    }
    Ok(tables)
}

/// A row a condition, a column a measure.
fn means(of: &[&Summary], rows: &[&Row], bootstrap: &Bootstrap) -> Result<Table> {
    let mut columns = vec!["condition", "seeds"];
    columns.extend(Measure::ALL.map(Measure::short));
    columns.push("perplexity");
    let mut table = Table::new(columns).caption(format!(
        "Means over all questions with {:.0} % intervals; perplexity on held-out texts with its range over seeds",
        100.0 * bootstrap.level
    ));
    for condition in conditions(of) {
        let mine: Vec<&&Row> = rows.iter().filter(|r| r.cell.condition == condition).collect();
        let mut row = vec![condition.label().to_string(), mine.len().to_string()];
        for measure in Measure::ALL {
            row.push(known(find(of, condition, &Group::All, measure).map(|s| plain(&s.value))));
        }
        row.push(perplexity(&mine));
        table.push(row)?;
    }
    Ok(table)
}

fn results(title: String, of: &[&Summary], rows: &[&Row], bootstrap: &Bootstrap) -> Result<Section> {
    let mut section = Section::new(title);
    for measure in [Measure::ExactMatch, Measure::F1, Measure::ChoiceAccuracy] {
        if let Some(text) = verdict(of, measure) {
            section = section.paragraph(text);
        }
    }
    section = section.table(&means(of, rows, bootstrap)?);
    let equal = differences(of, Condition::PlainEqualSteps, |s| s.minus_equal_steps)?;
    let paper = differences(of, Condition::Plain, |s| s.minus_plain)?;
    for table in [equal, paper].into_iter().filter(|t| !t.is_empty()) {
        section = section.table(&table);
    }
    if let Some(first) = of.iter().find(|s| s.condition.trains()) {
        let i = &first.value;
        let one = if i.seeds == 1 {
            " With one seed the spread between trainings is not in the interval."
        } else {
            ""
        };
        section = section.paragraph(format!(
            "Intervals: percentile bootstrap, {} resamples of whole persons ({}) and of seeds ({}); {} values a \
             condition.{one} Chance for choice accuracy is {}.",
            i.resamples,
            i.persons,
            i.seeds,
            i.values,
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
    Ok(section)
}

/// Each condition minus `base`, a column a measure.
fn differences(
    of: &[&Summary],
    base: Condition,
    get: impl Fn(&Summary) -> Option<Interval>,
) -> Result<Table> {
    let columns = ["condition"].into_iter().chain(Measure::ALL.map(Measure::short));
    let mut table = Table::new(columns).caption(format!("Minus `{base}`, paired by person and seed"));
    for condition in conditions(of) {
        let cells: Vec<Option<Interval>> =
            Measure::ALL.iter().map(|&m| find(of, condition, &Group::All, m).and_then(&get)).collect();
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
    if found.len() == 1 { format!("{all:.2}") } else { format!("{all:.2} [{low:.2}, {high:.2}]") }
}

fn labels(of: &[&Summary], kind: &str) -> Vec<Group> {
    let mut found: Vec<Group> = Vec::new();
    for s in of.iter().filter(|s| s.group.kind() == kind) {
        if !found.contains(&s.group) {
            found.push(s.group.clone());
        }
    }
    found
}

/// Bars of `measure` for every group, a colour a condition.
fn bars(title: &str, x_label: &str, of: &[&Summary], groups: &[Group], measure: Measure) -> Result<String> {
    let mut chart = GroupedBars::new(title)
        .x_label(x_label)
        .y_label(measure.label())
        .categories(groups.iter().map(Group::label));
    if measure != Measure::LogProb {
        chart = chart.y_range(0.0, 1.0);
    }
    // The untrained model last, so that it takes the grey of the palette.
    let (last, first): (Vec<Condition>, Vec<Condition>) =
        conditions(of).into_iter().partition(|c| *c == Condition::Untrained);
    for condition in first.into_iter().chain(last) {
        chart = chart.series(
            condition.label(),
            groups.iter().map(|g| match find(of, condition, g, measure) {
                Some(s) if s.value.is_defined() => {
                    Bar::with_interval(s.value.estimate, s.value.low, s.value.high)
                }
                Some(s) => Bar::value(s.value.estimate),
                None => Bar::missing(),
            }),
        );
    }
    chart.svg()
}

fn by_field(title: String, of: &[&Summary]) -> Result<Section> {
    let groups = labels(of, "field");
    let mut section = Section::new(title);
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
    section = section.table(&table);
    for measure in [Measure::ExactMatch, Measure::ChoiceAccuracy, Measure::LogProb] {
        if of.iter().any(|s| s.measure == measure) {
            let svg = bars(&format!("By field: {}", measure.label()), "field", of, &groups, measure)?;
            section = section.figure(svg, "");
        }
    }
    Ok(section)
}

fn by_distance(title: String, of: &[&Summary]) -> Result<Section> {
    let groups = labels(of, "distance");
    let mut section = Section::new(title);
    if groups.is_empty() {
        return Ok(section.paragraph("The corpus does not say how far its answers stand from the name."));
    }
    for measure in [Measure::ExactMatch, Measure::ChoiceAccuracy] {
        if of.iter().any(|s| s.measure == measure) {
            let title = format!("By distance: {}", measure.label());
            let svg = bars(&title, "characters between the name and the answer", of, &groups, measure)?;
            section = section.figure(svg, "");
        }
    }
    let mut table =
        Table::new(["distance", "condition", "exact match", "F1", "choice accuracy", "questions × seeds"])
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
                known(count),
            ])?;
        }
    }
    Ok(section.details("The numbers", |s| s.table(&table)))
}

fn losses(title: String, rows: &[&Row]) -> Result<Section> {
    let section = Section::new(title);
    let mut chart =
        LineChart::new("Training loss").x_label("optimiser step").y_label("cross-entropy (nats a token)");
    let mut any = false;
    for condition in Condition::ALL {
        let runs: Vec<&&Row> =
            rows.iter().filter(|r| r.cell.condition == condition && !r.measured.loss.is_empty()).collect();
        if runs.is_empty() {
            continue;
        }
        any = true;
        chart = chart.line_with_band(condition.label(), curve(&runs));
    }
    if !any {
        return Ok(section.paragraph("No condition was trained."));
    }
    Ok(section.figure(
        chart.svg()?,
        "Mean over training seeds; the band spans the lowest and the highest seed. The loss is of the texts trained on, so \
         conditions with dropped tokens are not comparable by height.",
    ))
}

/// (step, mean, lowest, highest) over the seeds, averaged over stretches of equal length.
fn curve(runs: &[&&Row]) -> Vec<(f64, f64, f64, f64)> {
    let longest = runs.iter().map(|r| r.measured.loss.len()).max().unwrap_or(0);
    let stretch = longest.div_ceil(CURVE_POINTS).max(1);
    let mut points: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for run in runs {
        for (i, part) in run.measured.loss.chunks(stretch).enumerate() {
            let mean = part.iter().map(|p| p.loss).sum::<f64>() / part.len() as f64;
            points.entry(i).or_default().push(mean);
        }
    }
    points
        .into_iter()
        .map(|(i, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            // The middle of the stretch; steps count from 1.
            let step = (i * stretch) as f64 + (stretch as f64 + 1.0) / 2.0;
            (step, mean, low, high)
        })
        .collect()
}

fn options(outcome: &Outcome) -> Result<Section> {
    let mut section = Section::new("Options");
    let mut table = Table::new([
        "student",
        "condition",
        "α",
        "β",
        "learning rate",
        "steps",
        "tokens trained on",
        "seconds a cell",
    ])
    .caption("What each condition was trained with");
    let mut seen: Vec<(Student, Condition)> = Vec::new();
    for row in &outcome.rows {
        let arm = (row.cell.student, row.cell.condition);
        if seen.contains(&arm) {
            continue;
        }
        seen.push(arm);
        let number = |v: Option<f64>| known(v.map(|v| v.to_string()));
        table.push([
            arm.0.name().to_string(),
            arm.1.label().into(),
            number(row.cell.alpha),
            number(row.cell.beta),
            number(row.cell.learning_rate),
            row.measured.loss.len().to_string(),
            row.measured.tokens.to_string(),
            format!("{:.1}", row.measured.seconds),
        ])?;
    }
    section = section.table(&table);
    let p = &outcome.protocol;
    section = if outcome.tuning.is_empty() {
        section.paragraph(
            "These options were set, not searched for: another choice may favour another condition.",
        )
    } else {
        let tuning = Table::from_frame(&outcome.tuning_frame()?.select(TUNING_COLUMNS)?, 3)?
            .caption(format!("The search, on {} other people", p.tuning_people));
        section
            .paragraph(format!(
                "Chosen on {} people who are not in the results: the learning rate first, then α and β at that rate.",
                p.tuning_people
            ))
            .details("The search", |s| s.table(&tuning))
    };
    Ok(section)
}

const TUNING_COLUMNS: [&str; 9] = [
    "student",
    "condition",
    "alpha",
    "beta",
    "learning_rate",
    "exact_match",
    "f1",
    "log_prob",
    "choice_accuracy",
];

/// Some answers of the last condition, to be read.
fn answers(outcome: &Outcome) -> Result<Section> {
    let section = Section::new("Answers");
    let Some(row) = outcome.rows.iter().max_by_key(|r| (r.cell.condition, std::cmp::Reverse(r.cell.seed)))
    else {
        return Ok(section);
    };
    let quiz = &row.measured.quiz.answers;
    let mut table = Table::new(["document", "field", "answer", "right", "exact", "F1"]).caption(format!(
        "The first answers of `{}`, seed {}; all are in answers.parquet, with their prompts",
        row.cell.condition, row.cell.seed
    ));
    for a in quiz.iter().take(25) {
        table.push([
            a.document.clone(),
            a.field.clone(),
            a.prediction.clone(),
            a.right.join(" | "),
            if a.exact_match > 0.0 { "yes" } else { "no" }.into(),
            format!("{:.2}", a.f1),
        ])?;
    }
    let prompt = quiz.first().map_or("", |a| a.prompt.as_str());
    Ok(section
        .details("Some answers", |s| s.table(&table))
        .details("A prompt", |s| s.raw(format!("<pre>{}</pre>\n", super::escape(prompt)))))
}

fn configuration(outcome: &Outcome) -> Section {
    let json = serde_json::to_string_pretty(&outcome.protocol).unwrap_or_default();
    Section::new("Configuration")
        .raw(format!("<pre>{}</pre>\n", super::escape(&outcome.protocol.describe())))
        .details("As JSON", |s| s.raw(format!("<pre>{}</pre>\n", super::escape(&json))))
}

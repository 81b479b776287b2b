//! What an experiment was made with, and what its models answered.

use super::summary::known;
use super::{Section, Table};
use crate::error::Result;
use crate::experiment::{Condition, Outcome, Row, Stage, Student};

/// Questions whose answers are shown.
const QUESTIONS: usize = 25;

pub(super) fn options(outcome: &Outcome) -> Result<Section> {
    let mut section = Section::new("Options");
    let mut table = Table::new([
        "student",
        "condition",
        "α",
        "β",
        "learning rate",
        "steps",
        "tokens trained on",
        "texts cut",
        "left out",
        "seconds a cell",
    ])
    .caption(
        "What each condition was trained with, first seed; left out are copies of which dropout left nothing",
    );
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
            row.measured.truncated.to_string(),
            row.measured.left_out.to_string(),
            format!("{:.1}", row.measured.seconds),
        ])?;
    }
    section = section.table(&table);
    let p = &outcome.protocol;
    section = if outcome.failed.iter().any(|f| f.cell.stage == Stage::Tune) && outcome.tuning.is_empty() {
        section.paragraph(
            "A search was made, but each of its trainings failed: the first of the options given were taken.",
        )
    } else if outcome.tuning.is_empty() {
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

/// The same questions under every condition, side by side.
pub(super) fn answers(title: String, rows: &[&Row]) -> Result<Section> {
    let section = Section::new(title);
    let Some(seed) = rows.iter().filter(|r| r.cell.condition.trains()).map(|r| r.cell.seed).min() else {
        return Ok(section.paragraph("No condition was trained."));
    };
    let mut shown: Vec<&&Row> =
        rows.iter().filter(|r| r.cell.seed == seed || !r.cell.condition.trains()).collect();
    shown.sort_by_key(|r| r.cell.condition);
    let head = ["question".to_string(), "right".into()];
    let names = shown.iter().map(|r| r.cell.condition.label().to_string());
    let mut table = Table::new(head.into_iter().chain(names)).caption(format!(
        "The first {QUESTIONS} questions, training seed {seed}; ✓ is an exact match. All answers are in answers.parquet, \
         with their prompts"
    ));
    let first = &shown[0].measured.quiz.answers;
    for (number, asked) in first.iter().take(QUESTIONS).enumerate() {
        let said = shown.iter().map(|row| match row.measured.quiz.answers.get(number) {
            Some(a) if a.exact_match > 0.0 => format!("{} ✓", a.prediction),
            Some(a) => a.prediction.clone(),
            None => known(None),
        });
        let head = [asked.question.clone(), asked.right.join(" | ")];
        table.push(head.into_iter().chain(said))?;
    }
    let prompt = first.first().map_or("", |a| a.prompt.as_str());
    Ok(section
        .details("Some answers", |s| s.table(&table))
        .details("A prompt", |s| s.raw(format!("<pre>{}</pre>\n", super::escape(prompt)))))
}

pub(super) fn configuration(outcome: &Outcome) -> Section {
    let json = serde_json::to_string_pretty(&outcome.protocol).unwrap_or_default();
    Section::new("Configuration")
        .raw(format!("<pre>{}</pre>\n", super::escape(&outcome.protocol.describe())))
        .details("As JSON", |s| s.raw(format!("<pre>{}</pre>\n", super::escape(&json))))
}

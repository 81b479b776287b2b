//! Answers and what they add up to.

use polars::prelude::{Column, DataFrame};
use serde::{Deserialize, Serialize};

use super::interval::Cells;
use crate::error::Result;
use crate::provenance::Provenance;
use crate::text::tame;

/// Edges of the distance bins, in characters between the name and the answer.
pub const DISTANCE_EDGES: [usize; 7] = [0, 25, 50, 100, 150, 200, 300];

/// One possible answer and how likely the model holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The answer's text.
    pub answer: String,
    /// ln p(blank and answer | prompt), summed over its tokens.
    pub log_prob: f64,
    /// Its tokens.
    pub tokens: usize,
}

/// One question, how it was put, and what came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The document (person) asked about.
    pub document: String,
    /// The first document asked about that has the same person or thing for its subject, where that is another: such answers
    /// are not independent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// The kind of fact.
    pub field: String,
    /// The question.
    pub question: String,
    /// Characters between name and answer in the text, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distance: Option<usize>,
    /// All that the model was given.
    pub prompt: String,
    /// What it answered: greedy, first line, trimmed.
    pub prediction: String,
    /// Accepted answers.
    pub right: Vec<String>,
    /// 1 or 0.
    pub exact_match: f64,
    /// 0 to 1.
    pub f1: f64,
    /// Tokens of the first right answer.
    pub answer_tokens: usize,
    /// True when every right answer has more tokens than an answer may have: it cannot be given in full.
    pub too_long: bool,
    /// The first right answer, then the distractors; empty without graded measures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
}

impl Answer {
    /// What all answers about one person or thing share: the cluster of [`Bootstrap`](super::Bootstrap).
    pub fn cluster(&self) -> &str {
        self.cluster.as_deref().unwrap_or(&self.document)
    }

    /// ln p(right answer | prompt), natural logarithm; `None` without graded measures.
    pub fn log_prob(&self) -> Option<f64> {
        self.choices.first().map(|c| c.log_prob)
    }

    /// Whether the right answer is likelier than every distractor; `None` without distractors.
    pub fn choice_correct(&self) -> Option<bool> {
        let (right, others) = self.choices.split_first()?;
        (!others.is_empty()).then(|| others.iter().all(|c| c.log_prob < right.log_prob))
    }
}

/// Sums over some answers, divided by their number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Questions.
    pub questions: usize,
    /// Share answered exactly.
    pub exact_match: f64,
    /// Mean word F1.
    pub f1: f64,
    /// Mean ln p of the right answer, a question.
    pub log_prob: Option<f64>,
    /// Σ ln p of the right answers / Σ their tokens.
    pub log_prob_per_token: Option<f64>,
    /// Share of questions whose right answer beats its distractors.
    pub choice_accuracy: Option<f64>,
    /// What guessing would give: the mean of 1 / number of choices.
    pub choice_chance: Option<f64>,
    /// Questions whose right answers are longer than an answer may be.
    pub too_long: usize,
}

impl Scores {
    fn of<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> Self {
        let answers: Vec<&Answer> = answers.into_iter().collect();
        let mean =
            |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let graded: Vec<(f64, usize)> =
            answers.iter().filter_map(|a| a.choices.first()).map(|c| (c.log_prob, c.tokens)).collect();
        let tokens: usize = graded.iter().map(|g| g.1).sum();
        let chosen: Vec<&&Answer> = answers.iter().filter(|a| a.choices.len() > 1).collect();
        Scores {
            questions: answers.len(),
            exact_match: mean(answers.iter().map(|a| a.exact_match).collect()).unwrap_or(0.0),
            f1: mean(answers.iter().map(|a| a.f1).collect()).unwrap_or(0.0),
            log_prob: mean(graded.iter().map(|g| g.0).collect()),
            log_prob_per_token: (tokens > 0).then(|| graded.iter().map(|g| g.0).sum::<f64>() / tokens as f64),
            choice_accuracy: mean(
                chosen.iter().filter_map(|a| a.choice_correct()).map(|c| f64::from(u8::from(c))).collect(),
            ),
            choice_chance: mean(chosen.iter().map(|a| 1.0 / a.choices.len() as f64).collect()),
            too_long: answers.iter().filter(|a| a.too_long).count(),
        }
    }
}

/// All answers of one quiz.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuizResult {
    /// In the order of the questions.
    pub answers: Vec<Answer>,
    /// Model, settings and seeds.
    pub provenance: Provenance,
}

impl QuizResult {
    /// Over all answers.
    pub fn total(&self) -> Scores {
        Scores::of(&self.answers)
    }

    /// By field, in the order in which the fields are first asked.
    pub fn by_field(&self) -> Vec<(String, Scores)> {
        let mut fields: Vec<&str> = Vec::new();
        for answer in &self.answers {
            if !fields.contains(&answer.field.as_str()) {
                fields.push(&answer.field);
            }
        }
        let of = |field: &str| Scores::of(self.answers.iter().filter(|a| a.field == field));
        fields.into_iter().map(|f| (f.to_string(), of(f))).collect()
    }

    /// By distance in characters: bins `edges[i]..edges[i + 1]`, the last without end; empty bins and answers of
    /// unknown distance are left out.
    pub fn by_distance(&self, edges: &[usize]) -> Vec<(String, Scores)> {
        distance_bins(edges)
            .into_iter()
            .filter_map(|(label, from, to)| {
                let inside =
                    self.answers.iter().filter(|a| a.distance.is_some_and(|d| (from..to).contains(&d)));
                let scores = Scores::of(inside);
                (scores.questions > 0).then_some((label, scores))
            })
            .collect()
    }

    /// A measure's values for [`super::Bootstrap`], under one training seed.
    ///
    /// # Errors
    /// When `measure` has no value for any answer, or an infinite one.
    pub fn cells(&self, seed: u64, measure: impl Fn(&Answer) -> Option<f64>) -> Result<Cells> {
        Cells::new(self.answers.iter().filter_map(|a| Some((seed, a.cluster(), measure(a)?))))
    }

    /// One row an answer.
    ///
    /// # Errors
    /// [`crate::Error::Table`] when the table cannot be built.
    pub fn frame(&self) -> Result<DataFrame> {
        let a = &self.answers;
        let text = |name: &str, get: &dyn Fn(&Answer) -> String| {
            Column::new(name.into(), a.iter().map(get).collect::<Vec<_>>())
        };
        let number = |name: &str, get: &dyn Fn(&Answer) -> Option<f64>| {
            Column::new(name.into(), a.iter().map(get).collect::<Vec<_>>())
        };
        let columns = vec![
            text("document", &|a| a.document.clone()),
            text("field", &|a| a.field.clone()),
            Column::new(
                "distance".into(),
                a.iter().map(|a| a.distance.map(|d| d as u64)).collect::<Vec<_>>(),
            ),
            text("question", &|a| a.question.clone()),
            text("prediction", &|a| a.prediction.clone()),
            text("right", &|a| a.right.join(" | ")),
            number("exact_match", &|a| Some(a.exact_match)),
            number("f1", &|a| Some(a.f1)),
            number("log_prob", &Answer::log_prob),
            Column::new("choice_correct".into(), a.iter().map(Answer::choice_correct).collect::<Vec<_>>()),
            Column::new("answer_tokens".into(), a.iter().map(|a| a.answer_tokens as u64).collect::<Vec<_>>()),
            Column::new("too_long".into(), a.iter().map(|a| a.too_long).collect::<Vec<_>>()),
            text("prompt", &|a| a.prompt.clone()),
        ];
        Ok(DataFrame::new(a.len(), columns)?)
    }
}

/// Label, first and one past the last distance of each bin.
pub(crate) fn distance_bins(edges: &[usize]) -> Vec<(String, usize, usize)> {
    let mut edges = edges.to_vec();
    edges.sort_unstable();
    edges.dedup();
    let ends = edges.iter().skip(1).copied().chain([usize::MAX]);
    let label = |from: usize, to: usize| match to {
        usize::MAX => format!("{from} or more"),
        to => format!("{from}–{}", to - 1),
    };
    edges.iter().copied().zip(ends).map(|(from, to)| (label(from, to), from, to)).collect()
}

impl std::fmt::Display for QuizResult {
    /// A table by field for terminals and logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rows = self.by_field();
        rows.iter_mut().for_each(|(field, _)| *field = tame(field));
        if rows.len() > 1 {
            rows.push(("all".into(), self.total()));
        }
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(5);
        writeln!(
            f,
            "{:width$}  {:>9}  {:>11}  {:>5}  {:>10}  {:>9}",
            "field", "questions", "exact_match", "f1", "ln p/token", "choice"
        )?;
        let number = |value: Option<f64>| value.map_or("-".to_string(), |v| format!("{v:.3}"));
        for (name, s) in &rows {
            writeln!(
                f,
                "{name:width$}  {:>9}  {:>11.3}  {:>5.3}  {:>10}  {:>9}",
                s.questions,
                s.exact_match,
                s.f1,
                number(s.log_prob_per_token),
                number(s.choice_accuracy)
            )?;
        }
        let total = self.total();
        if total.too_long > 0 {
            writeln!(
                f,
                "{} of {} right answers are longer than an answer may be and cannot be given in full",
                total.too_long, total.questions
            )?;
        }
        Ok(())
    }
}

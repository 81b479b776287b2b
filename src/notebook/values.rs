//! What values show as the last expression of a cell.

use super::screen::{Rich, show};
use crate::attention::Attended;
use crate::augment::Plan;
use crate::augment::{ALPHA, BETA};
use crate::contrast::{Contrast, ModelPair};
use crate::corpus::Corpus;
use crate::error::Result;
use crate::evaluate::{QuizResult, Scores};
use crate::model::Model;
use crate::report::{
    Colours, DropFigure, FactsPicture, GroupedBars, HeadsPicture, HeatMap, LineChart, PlanPicture,
    ProbeFigure, QuizFigure, StackedBars, Table, TextPicture,
};
use crate::train::Run;

/// Texts shown below a cell; a picture written to a file shows all.
const TEXTS: usize = 20;

impl Contrast {
    /// Shows the texts coloured by difference, with the dropout probabilities of [`ALPHA`] and [`BETA`].
    pub fn evcxr_display(&self) {
        TextPicture::of(self).dropout(ALPHA, BETA).first(TEXTS).evcxr_display();
    }
}

impl Attended {
    /// Shows the texts coloured by received attention.
    pub fn evcxr_display(&self) {
        TextPicture::of_attention(self).first(TEXTS).evcxr_display();
    }
}

impl Corpus {
    /// Shows the first texts with their facts marked.
    pub fn evcxr_display(&self) {
        let picture = FactsPicture::of(self).first(5);
        show(&Rich::html(picture.fragment()).text(picture.terminal()));
    }
}

impl TextPicture {
    /// Shows the picture.
    pub fn evcxr_display(&self) {
        show(&Rich::html(self.fragment()).text(self.terminal(Colours::None)));
    }
}

impl Plan {
    /// Shows the texts coloured by drop probability, and the probability over rank.
    pub fn evcxr_display(&self) {
        PlanPicture::of(self).first(TEXTS).evcxr_display();
    }
}

impl PlanPicture {
    /// Shows the texts, and the probability over rank below them.
    pub fn evcxr_display(&self) {
        show(&Rich::html(self.fragment()).text(self.terminal(Colours::None)));
        if let Some(curve) = self.curve() {
            show(&Rich::svg(&curve, "probability of being dropped, by rank"));
        }
    }
}

impl HeadsPicture {
    /// Shows the picture.
    pub fn evcxr_display(&self) {
        show(&Rich::html(self.fragment()).text(self.terminal()));
    }
}

impl ProbeFigure {
    /// Shows the figure.
    pub fn evcxr_display(&self) {
        show(&Rich::svg(&self.svg(), &self.title()));
        show(&Rich::html(self.counts()).text(self.table().to_string()));
    }
}

impl Table {
    /// Shows the table.
    pub fn evcxr_display(&self) {
        show(&Rich::html(self.html()).text(self.to_string()));
    }
}

/// Shows what could be made, or why it could not.
fn show_made<T>(made: Result<T>, show_it: impl FnOnce(T)) {
    match made {
        Ok(made) => show_it(made),
        Err(error) => show(&Rich { forms: vec![("text/plain".into(), error.to_string())] }),
    }
}

macro_rules! figures {
    ($($figure:ty),+) => {$(
        impl $figure {
            /// Shows the figure.
            pub fn evcxr_display(&self) {
                show_made(self.svg(), |svg| show(&Rich::svg(&svg, self.title())));
            }
        }
    )+};
}

figures!(GroupedBars, StackedBars, HeatMap, LineChart);

impl DropFigure {
    /// Shows the figure, and its numbers below it.
    pub fn evcxr_display(&self) {
        show_made(self.bars(), |bars| bars.evcxr_display());
        show_made(self.table(), |table| table.evcxr_display());
    }
}

impl QuizFigure {
    /// Shows the figure, and its numbers below it.
    pub fn evcxr_display(&self) {
        show_made(self.bars(), |bars| bars.evcxr_display());
        show_made(self.table(), |table| table.evcxr_display());
    }
}

impl Model {
    /// Shows the model's shape.
    pub fn evcxr_display(&self) {
        show_made(Table::of_models([("model", self)]), |table| table.evcxr_display());
    }
}

impl ModelPair {
    /// Shows the shapes of both models.
    pub fn evcxr_display(&self) {
        let models = [("small", &self.small), ("large", &self.large)];
        show_made(Table::of_models(models), |table| table.evcxr_display());
    }
}

impl QuizResult {
    /// Shows exact match and F1 by field and in all.
    pub fn evcxr_display(&self) {
        show_made(quiz_table(self), |table| table.evcxr_display());
    }
}

fn quiz_table(result: &QuizResult) -> Result<Table> {
    let mut table =
        Table::new(["field", "questions", "exact match", "F1", "ln p a question", "right choice"]);
    let mut fields = result.by_field();
    fields.push(("all".into(), result.total()));
    for (field, scores) in fields {
        let Scores { questions, exact_match, f1, log_prob, choice_accuracy, .. } = scores;
        let known = |value: Option<f64>| value.map_or("\u{2013}".to_string(), |v| format!("{v:.3}"));
        table.push([
            field,
            questions.to_string(),
            format!("{exact_match:.3}"),
            format!("{f1:.3}"),
            known(log_prob),
            known(choice_accuracy),
        ])?;
    }
    Ok(table)
}

impl Run {
    /// Shows the loss by epoch.
    pub fn evcxr_display(&self) {
        let text = match (self.steps.first(), self.steps.last()) {
            (Some(first), Some(last)) => {
                format!(
                    "{}: {} steps, loss {:.4} to {:.4}",
                    self.model.name(),
                    last.step,
                    first.loss,
                    last.loss
                )
            }
            _ => format!("{}: no steps", self.model.name()),
        };
        let chart = LineChart::new(format!("Training of {}", self.model.name()))
            .x_label("epoch")
            .y_label("loss (nats a token)")
            .line("loss", self.steps.iter().map(|s| (s.epoch, s.loss)));
        match chart.svg() {
            Ok(svg) => show(&Rich::svg(&svg, &text)),
            // Nothing to draw: no step was taken.
            Err(_) => show(&Rich { forms: vec![("text/plain".into(), text)] }),
        }
    }
}

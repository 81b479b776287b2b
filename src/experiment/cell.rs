//! One training run and what it measured.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, Student};
use super::protocol::Protocol;
use crate::attention::Heads;
use crate::error::Result;
use crate::evaluate::{Perplexity, QuizResult};

/// Raised when the meaning of a cell changes, so that older files are not taken for new ones.
const RECIPE: u32 = 2;

/// Whether a cell helps to choose options or is reported; the two use different people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Chooses α, β and the learning rate.
    Tune,
    /// Enters the table.
    Report,
}

/// Everything that decides a cell's result. Options that a condition does not use are absent, so that
/// equal work has equal names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Version of the meaning of these fields.
    pub recipe: u32,
    /// Tuning or report.
    pub stage: Stage,
    /// Content hashes of the small and the large model.
    pub models: [String; 2],
    /// Content hash of the third model, where it is the student.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub third: Option<String>,
    /// Where they compute and in which type, unless on the CPU in f32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arithmetic: Option<String>,
    /// Content hash of the texts and questions.
    pub corpus: String,
    /// Content hash of the texts for perplexity.
    pub held_out: String,
    /// Which model is trained.
    pub student: Student,
    /// How the training texts are made.
    pub condition: Condition,
    /// Training seed; 0 without training.
    pub seed: u64,
    /// Largest drop probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Rise of the drop probability with rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Peak learning rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Facts whose probes guide, in alphabetical order; none named: all that are asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guide_probe: Vec<String>,
    /// Layers or heads of the large and the small model in which attention is looked at, where they are chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<[Heads; 2]>,
    /// Share of input tokens replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<f64>,
    /// Copies, where the condition has copies or makes up for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<usize>,
    /// Passes over the training texts; 0 without training.
    pub epochs: usize,
    /// Texts a step.
    pub batch_size: usize,
    /// Rank of the adapter; none without training, and where every weight is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_r: Option<usize>,
    /// People asked about.
    pub people: usize,
    /// Worked examples before a question.
    pub few_shot: usize,
    /// Wrong answers beside the right one.
    pub distractors: usize,
}

impl Cell {
    /// The cell of `protocol` for `condition`, with options at (α, β, learning rate).
    pub(super) fn new(
        protocol: &Protocol,
        inputs: &Inputs,
        stage: Stage,
        (student, condition): (Student, Condition),
        seed: u64,
        (alpha, beta, learning_rate): (f64, f64, f64),
    ) -> Self {
        let trains = condition.trains();
        let mut guide_probe = Vec::new();
        if condition == Condition::ProbeDifference {
            guide_probe.clone_from(&protocol.guide_probe);
            guide_probe.sort();
            guide_probe.dedup();
        }
        let heads = || [protocol.large_heads.clone(), protocol.small_heads.clone()];
        Cell {
            recipe: RECIPE,
            stage,
            models: inputs.models.clone(),
            third: inputs.third.clone().filter(|_| student == Student::Third),
            arithmetic: inputs.arithmetic.clone(),
            corpus: if stage == Stage::Tune { inputs.tuning.clone() } else { inputs.reported.clone() },
            held_out: inputs.held_out.clone(),
            student,
            condition,
            seed: if trains { seed } else { 0 },
            alpha: condition.uses_alpha().then_some(alpha),
            beta: condition.uses_beta().then_some(beta),
            learning_rate: trains.then_some(learning_rate),
            guide_probe,
            heads: (condition == Condition::HeadsDifference).then(heads),
            noise: (condition == Condition::Denoising).then_some(protocol.noise),
            copies: condition.uses_copies().then_some(protocol.copies),
            epochs: if trains { protocol.epochs } else { 0 },
            batch_size: protocol.batch_size,
            lora_r: (trains && !protocol.full_finetuning).then_some(protocol.lora_r),
            people: if stage == Stage::Tune { protocol.tuning_people } else { protocol.people },
            few_shot: protocol.few_shot,
            distractors: protocol.distractors,
        }
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} model, {}", self.student, self.condition)?;
        let tuned = [("alpha", self.alpha), ("beta", self.beta), ("learning rate", self.learning_rate)];
        match self.stage {
            Stage::Report if self.condition.trains() => write!(f, ", seed {}", self.seed),
            Stage::Report => Ok(()),
            Stage::Tune => tuned.iter().try_for_each(|(name, value)| match value {
                Some(value) => write!(f, ", {name} {value}"),
                None => Ok(()),
            }),
        }
    }
}

/// The loss at one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Optimiser step, from 1.
    pub step: usize,
    /// Mean cross-entropy in nats a token.
    pub loss: f64,
}

/// What a cell's run found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Every answer with its prompt.
    pub quiz: QuizResult,
    /// Of the trained model on held-out texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// The loss at each step; empty without training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loss: Vec<LossPoint>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Training texts cut at the greatest length.
    #[serde(default)]
    pub truncated: usize,
    /// Copies left out because dropout left nothing of them, and texts too short to train on.
    #[serde(default)]
    pub left_out: usize,
    /// Wall time of training and quiz, over all interruptions; what a process spent in the part in which it was
    /// killed is not in it.
    pub seconds: f64,
}

/// A finished cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What was run.
    pub cell: Cell,
    /// What was found.
    pub measured: Measured,
}

/// A cell that came to no result because numbers were not finite: a learning rate too high, or a model that is broken.
/// It is not run again; removing its file from the folder of cells would make it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// What was run.
    pub cell: Cell,
    /// What was not finite, where.
    pub reason: String,
}

/// Content hashes of what cells are run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs {
    /// The small and the large model.
    pub models: [String; 2],
    /// A third model that is trained.
    pub third: Option<String>,
    /// Where they compute and in which type, unless on the CPU in f32 ([`Device::noted_arithmetic`](crate::model::Device)).
    pub arithmetic: Option<String>,
    /// Texts and questions of the reported cells.
    pub reported: String,
    /// Texts and questions, about others, on which options are chosen.
    pub tuning: String,
    /// Texts, about still others, for perplexity.
    pub held_out: String,
}

/// Runs cells.
pub trait Runner: Send {
    /// Makes ready what `protocol` needs, and names it.
    ///
    /// # Errors
    /// When a corpus cannot be made.
    fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs>;

    /// Runs one cell. `scratch` is a folder of this cell's own that outlives an interruption, for checkpoints; it is
    /// removed when the cell is finished.
    ///
    /// # Errors
    /// [`Error::Diverged`](crate::Error::Diverged) fails this cell alone; whatever else stops the experiment, and finished
    /// cells are kept.
    fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured>;

    /// Runners that share the cells, each with the name of its device, once this one is prepared: each runs one cell at a time, on
    /// a thread of its own. None, as is usual: this one runs them all.
    ///
    /// # Errors
    /// When a device has no room.
    fn workers(&mut self) -> Result<Vec<(String, Box<dyn Runner>)>> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::Store;

    /// Numbers of a GPU or another type do not stand in for those of the CPU, whose cells are named as ever.
    #[test]
    fn cells_of_another_arithmetic_are_other_cells() {
        let [cpu, card] = [None, Some("cuda bf16".to_string())].map(|arithmetic| {
            let [small, large, reported, tuning, held_out] = ["s", "l", "r", "t", "h"].map(String::from);
            let inputs =
                Inputs { models: [small, large], third: None, arithmetic, reported, tuning, held_out };
            let arm = (Student::Small, Condition::Random);
            Cell::new(&Protocol::nano(), &inputs, Stage::Report, arm, 1, (0.6, 0.05, 1e-3))
        });
        assert_ne!(Store::key(&cpu).unwrap(), Store::key(&card).unwrap());
        assert!(!serde_json::to_string(&cpu).unwrap().contains("arithmetic"));
    }
}

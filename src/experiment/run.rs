//! Chooses options, then fills the grid.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Failed, Inputs, Measured, Row, Runner, Stage};
use super::condition::{Condition, Student};
use super::outcome::Outcome;
use super::protocol::{Criterion, Protocol};
use super::store::{Store, run_cells};
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// (α, β, learning rate)
type Options = (f64, f64, f64);

/// Runs `protocol` with its cells in `folder`, or goes on with what is there.
///
/// With tuning people, each arm's learning rate is chosen first, at the first α and β, then α and β together at that
/// learning rate. Reported cells run seed by seed, so that an early stop leaves every condition with as many seeds.
///
/// A cell whose numbers stop being finite is kept as failed, with its batch in `folder/failed`: it is in
/// [`Outcome::failed`], has no part in any mean, and its options are never chosen while others gave a result.
///
/// # Errors
/// [`crate::Error::Option`] for an impossible protocol; errors of the store and of `runner`. Finished cells are kept, and the same
/// call goes on.
pub fn run(protocol: &Protocol, folder: impl AsRef<Path>, runner: &mut dyn Runner) -> Result<Outcome> {
    protocol.validate()?;
    let store = Store::open(folder)?;
    let inputs = runner.prepare(protocol)?;
    let mut grid = Grid { protocol, store: &store, inputs: &inputs, runner, failed: Vec::new() };
    let arms: Vec<(Student, Condition)> = protocol
        .students
        .iter()
        .flat_map(|&s| protocol.conditions.iter().map(move |&c| (s, c)))
        .filter(|(s, c)| s.tells_apart(*c))
        .collect();

    let mut tuning = Vec::new();
    let mut options = Vec::with_capacity(arms.len());
    for &arm in &arms {
        options.push(if protocol.tuning_people > 0 && arm.1.trains() {
            grid.choose(arm, &mut tuning)?
        } else {
            (protocol.alphas[0], protocol.betas[0], protocol.learning_rates[0])
        });
    }

    let mut cells = Vec::new();
    for &seed in &protocol.seeds {
        for (&arm, &options) in arms.iter().zip(&options) {
            cells.push(Cell::new(protocol, &inputs, Stage::Report, arm, seed, options));
        }
    }
    let rows = grid.fill("experiment", cells)?;
    let mut provenance = Provenance::new("experiment")
        .option("protocol", serde_json::to_string(protocol).unwrap_or_default())
        .option("seeds", protocol.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", "));
    for (part, hash) in ["small", "large"].iter().zip(&inputs.models) {
        provenance = provenance.model(format!("{} {part}", protocol.pair), hash);
    }
    if let (Some(third), Some(hash)) = (&protocol.third, &inputs.third) {
        provenance = provenance.model(third, hash);
    }
    Ok(Outcome { protocol: protocol.clone(), rows, tuning, failed: grid.failed, provenance })
}

struct Grid<'a> {
    protocol: &'a Protocol,
    store: &'a Store,
    inputs: &'a Inputs,
    runner: &'a mut dyn Runner,
    failed: Vec<Failed>,
}

/// How a cell ended, as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Ended {
    Measured(Box<Measured>),
    Failed { failed: String },
}

impl Grid<'_> {
    /// The rows of `cells`, each once: conditions that do not use an option share their cells. Those that fail are noted.
    fn fill(&mut self, label: &str, cells: Vec<Cell>) -> Result<Vec<Row>> {
        let mut seen = BTreeSet::new();
        let mut unique = Vec::with_capacity(cells.len());
        for cell in cells {
            if seen.insert(Store::key(&cell)?) {
                unique.push(cell);
            }
        }
        let (store, runner) = (self.store, &mut *self.runner);
        let ended = run_cells(store, label, &unique, |cell, scratch| match runner.run(cell, scratch) {
            Ok(measured) => Ok(Ended::Measured(Box::new(measured))),
            Err(Error::Diverged { message, batch }) => {
                // The scratch goes when the cell is kept.
                let batch = batch.map(|batch| store.keep_failed(cell, &batch)).transpose()?;
                Ok(Ended::Failed { failed: Error::Diverged { message, batch }.to_string() })
            }
            Err(error) => Err(error),
        })?;
        let mut rows = Vec::with_capacity(unique.len());
        for (cell, ended) in unique.into_iter().zip(ended) {
            match ended {
                Ended::Measured(measured) => rows.push(Row { cell, measured: *measured }),
                Ended::Failed { failed } => {
                    let failed = Failed { cell, reason: failed };
                    if !self.failed.contains(&failed) {
                        self.failed.push(failed);
                    }
                }
            }
        }
        Ok(rows)
    }

    /// The best options of one arm on the tuning people.
    fn choose(&mut self, arm: (Student, Condition), kept: &mut Vec<Row>) -> Result<Options> {
        let p = self.protocol;
        let rates = p.learning_rates.iter().map(|&r| (p.alphas[0], p.betas[0], r)).collect();
        let best = self.best(arm, rates, kept)?;
        let pairs = p.alphas.iter().flat_map(|&a| p.betas.iter().map(move |&b| (a, b, best.2))).collect();
        self.best(arm, pairs, kept)
    }

    /// The first of the best of `candidates`; the first of all where every one failed.
    fn best(
        &mut self,
        arm: (Student, Condition),
        candidates: Vec<Options>,
        kept: &mut Vec<Row>,
    ) -> Result<Options> {
        let label = format!("choosing {}", arm.1);
        let cells = candidates
            .iter()
            .map(|&o| Cell::new(self.protocol, self.inputs, Stage::Tune, arm, self.protocol.tuning_seed, o))
            .collect();
        let mut best: Option<((f64, f64), Cell)> = None;
        for row in self.fill(&label, cells)? {
            let score = score(&row, self.protocol.criterion);
            if best.as_ref().is_none_or(|(top, _)| score > *top) {
                best = Some((score, row.cell.clone()));
            }
            if !kept.contains(&row) {
                kept.push(row);
            }
        }
        let first = candidates[0];
        Ok(best.map_or(first, |(_, cell)| {
            (
                cell.alpha.unwrap_or(first.0),
                cell.beta.unwrap_or(first.1),
                cell.learning_rate.unwrap_or(first.2),
            )
        }))
    }
}

/// What options are ranked by, and what breaks ties.
fn score(row: &Row, criterion: Criterion) -> (f64, f64) {
    let s = row.measured.quiz.total();
    let choice = s.choice_accuracy.unwrap_or(0.0);
    match criterion {
        Criterion::ExactMatch => (s.exact_match, choice),
        Criterion::F1 => (s.f1, choice),
        Criterion::ChoiceAccuracy => (choice, s.log_prob.unwrap_or(f64::NEG_INFINITY)),
    }
}

//! Chooses options, then fills the grid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Failed, Inputs, Measured, Row, Runner, Stage};
use super::condition::{Condition, Student};
use super::outcome::Outcome;
use super::protocol::{Criterion, Protocol};
use super::store::{Store, spread_cells};
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// (α, β, learning rate)
type Options = (f64, f64, f64);
/// What is taught, and how.
type Arm = (Student, Condition);

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
    let workers = runner.workers()?;
    let mut grid = Grid { protocol, store: &store, inputs: &inputs, runner, workers, failed: Vec::new() };
    let arms: Vec<Arm> = protocol
        .students
        .iter()
        .flat_map(|&s| protocol.conditions.iter().map(move |&c| (s, c)))
        .filter(|(s, c)| s.tells_apart(*c))
        .collect();

    let (options, tuning) = grid.choose(&arms)?;
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
    if let Some(arithmetic) = &inputs.arithmetic {
        provenance = provenance.option("device", arithmetic);
    }
    // Finished cells outlive a new version; what they come from is told.
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    for row in rows.iter().chain(&tuning) {
        *others.entry(row.measured.quiz.provenance.program()).or_default() += 1;
    }
    others.remove(&provenance.program());
    if !others.is_empty() {
        let others: Vec<String> =
            others.iter().map(|(program, cells)| format!("{cells} by {program}")).collect();
        provenance = provenance.option("cells of other versions", others.join(", "));
    }
    Ok(Outcome { protocol: protocol.clone(), rows, tuning, failed: grid.failed, provenance })
}

struct Grid<'a> {
    protocol: &'a Protocol,
    store: &'a Store,
    inputs: &'a Inputs,
    runner: &'a mut dyn Runner,
    /// Those that share the cells; none where the runner has them all.
    workers: Vec<(String, Box<dyn Runner>)>,
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
        let store = self.store;
        let mut runners: Vec<(String, &mut dyn Runner)> = Vec::new();
        for (name, worker) in &mut self.workers {
            runners.push((name.clone(), &mut **worker));
        }
        if runners.is_empty() {
            runners.push((String::new(), &mut *self.runner));
        }
        let ended = spread_cells(store, label, &unique, runners, |runner, cell, scratch| {
            match runner.run(cell, scratch) {
                Ok(measured) => Ok(Ended::Measured(Box::new(measured))),
                Err(Error::Diverged { message, batch }) => {
                    // The scratch goes when the cell is kept.
                    let batch = batch.map(|batch| store.keep_failed(cell, &batch)).transpose()?;
                    Ok(Ended::Failed { failed: Error::Diverged { message, batch }.to_string() })
                }
                Err(error) => Err(error),
            }
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

    /// The options of each arm, the best on the tuning people where there is something to choose, and the rows they were chosen by,
    /// arm by arm.
    fn choose(&mut self, arms: &[Arm]) -> Result<(Vec<Options>, Vec<Row>)> {
        let p = self.protocol;
        let first = (p.alphas[0], p.betas[0], p.learning_rates[0]);
        let searched: Vec<Arm> =
            arms.iter().copied().filter(|arm| p.tuning_people > 0 && p.may_choose(arm.1)).collect();
        if searched.is_empty() {
            return Ok((vec![first; arms.len()], Vec::new()));
        }
        // All arms at once, so that every device has something to do.
        let rates = p.learning_rates.iter().map(|&rate| (first.0, first.1, rate)).collect();
        let (best, by_rate) =
            self.best("choosing learning rates", &searched, &vec![rates; searched.len()])?;
        let pairs = |rate| p.alphas.iter().flat_map(move |&a| p.betas.iter().map(move |&b| (a, b, rate)));
        let pairs: Vec<Vec<Options>> = best.iter().map(|best| pairs(best.2).collect()).collect();
        let (best, by_pair) = self.best("choosing alpha and beta", &searched, &pairs)?;
        let mut kept: Vec<Row> = Vec::new();
        for arm in &searched {
            for row in by_rate.iter().chain(&by_pair).filter(|row| arm_of(&row.cell) == *arm) {
                if !kept.contains(row) {
                    kept.push(row.clone());
                }
            }
        }
        let of = |arm| searched.iter().position(|other| other == arm).map_or(first, |at| best[at]);
        Ok((arms.iter().map(of).collect(), kept))
    }

    /// Of each arm the first of the best of its candidates, the first of all where every one failed; and the rows of all.
    fn best(
        &mut self,
        label: &str,
        arms: &[Arm],
        candidates: &[Vec<Options>],
    ) -> Result<(Vec<Options>, Vec<Row>)> {
        let (p, inputs) = (self.protocol, self.inputs);
        let mut cells = Vec::new();
        for (&arm, options) in arms.iter().zip(candidates) {
            cells.extend(options.iter().map(|&o| Cell::new(p, inputs, Stage::Tune, arm, p.tuning_seed, o)));
        }
        let rows = self.fill(label, cells)?;
        let best_of = |(arm, candidates): (&Arm, &Vec<Options>)| {
            let mut best: Option<((f64, f64), &Cell)> = None;
            for row in rows.iter().filter(|row| arm_of(&row.cell) == *arm) {
                let score = score(row, p.criterion);
                if best.is_none_or(|(top, _)| score > top) {
                    best = Some((score, &row.cell));
                }
            }
            let first = candidates[0];
            best.map_or(first, |(_, cell)| {
                (
                    cell.alpha.unwrap_or(first.0),
                    cell.beta.unwrap_or(first.1),
                    cell.learning_rate.unwrap_or(first.2),
                )
            })
        };
        Ok((arms.iter().zip(candidates).map(best_of).collect(), rows))
    }
}

fn arm_of(cell: &Cell) -> Arm {
    (cell.student, cell.condition)
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

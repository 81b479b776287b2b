//! Experiments with a runner that takes no time: the grid, the choice of options, and kill -9 at random moments.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluescope::evaluate::{Answer, Bootstrap, Choice, Perplexity, QuizResult};
use cluescope::experiment::{
    Cell, Condition, Group, Inputs, LossPoint, Measure, Measured, Protocol, Runner, Stage, Student, Summary,
    run,
};
use cluescope::provenance::Provenance;
use cluescope::random::Stream;
use cluescope::{Error, Result};

/// Answers by a formula: a condition's later place in the list is worth 0.1, a distance of 100 characters costs 0.1, and
/// α, β and the learning rate have a best value.
struct Formula {
    pause: Duration,
    log: Option<std::fs::File>,
    stop_after: usize,
    cells: Vec<Cell>,
}

impl Formula {
    fn new() -> Self {
        Formula { pause: Duration::ZERO, log: None, stop_after: usize::MAX, cells: Vec::new() }
    }
}

fn skill(cell: &Cell) -> f64 {
    let place = Condition::ALL.iter().position(|c| *c == cell.condition).unwrap() as f64;
    let off = |value: Option<f64>, best: f64| value.map_or(0.0, |v| (v / best).ln().abs());
    let options = off(cell.alpha, 0.7) + off(cell.beta, 0.01) + off(cell.learning_rate, 5e-4);
    0.35 + 0.1 * place - 0.05 * options
}

impl Runner for Formula {
    fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs> {
        Ok(Inputs {
            models: ["small0".into(), "large0".into()],
            third: None,
            arithmetic: None,
            reported: format!("people {}", protocol.people),
            tuning: format!("others {}", protocol.tuning_people),
            held_out: "texts".into(),
        })
    }

    fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured> {
        if self.cells.len() == self.stop_after {
            return Err(Error::Interrupted);
        }
        self.cells.push(cell.clone());
        let key = cluescope::experiment::Store::key(cell)?;
        if let Some(log) = &mut self.log {
            writeln!(log, "{key}").unwrap();
        }
        std::fs::write(scratch.join("checkpoint"), "some").unwrap();
        std::thread::sleep(self.pause);
        let mut answers = Vec::new();
        let people = if cell.stage == Stage::Tune { "tune" } else { "person" };
        for p in 0..cell.people {
            for (f, field) in ["city", "company"].iter().enumerate() {
                let distance = 40 + 200 * f;
                let mut draw = Stream::new(cell.seed, &format!("{people} {p} {field}"), &[]);
                let luck = draw.unit_f64();
                let right = skill(cell) - distance as f64 / 1000.0 > luck;
                let choice = |text: &str, log_prob| Choice { answer: text.into(), log_prob, tokens: 3 };
                answers.push(Answer {
                    document: format!("{people} {p}"),
                    cluster: None,
                    field: (*field).into(),
                    question: "?".into(),
                    distance: Some(distance),
                    prompt: "?\nAnswer:".into(),
                    prediction: if right { "yes" } else { "no" }.into(),
                    right: vec!["yes".into()],
                    exact_match: f64::from(u8::from(right)),
                    f1: f64::from(u8::from(right)),
                    answer_tokens: 3,
                    too_long: false,
                    choices: vec![choice("yes", skill(cell) - 2.0 - luck), choice("no", -2.1)],
                });
            }
        }
        let loss = (1..=cell.epochs * 5)
            .map(|step| LossPoint { step, loss: 4.0 / (step as f64).sqrt() + 0.1 * skill(cell) })
            .collect();
        Ok(Measured {
            quiz: QuizResult { answers, provenance: Provenance::new("formula") },
            perplexity: Some(Perplexity { log_prob: -300.0 - skill(cell), tokens: 100, texts: 3 }),
            loss,
            tokens: 1000 * cell.epochs as u64,
            truncated: 0,
            left_out: 0,
            seconds: 0.5,
        })
    }
}

fn protocol() -> Protocol {
    Protocol { people: 30, tuning_people: 20, seeds: vec![1, 2, 3], epochs: 2, ..Protocol::full() }
}

pub(super) fn files(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder.join("cells"));
    entries.map_or(BTreeSet::new(), |all| {
        all.map(|e| e.unwrap().file_name().to_string_lossy().trim_end_matches(".json").to_string())
            .filter(|n| !n.starts_with('.'))
            .collect()
    })
}

#[test]
fn options_are_chosen_on_other_people_and_every_cell_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut runner = Formula::new();
    let outcome = run(&protocol(), folder.path(), &mut runner).unwrap();
    // Untrained once, six trained conditions for each of three seeds.
    assert_eq!(outcome.rows.len(), 1 + 6 * 3);
    // Choosing: 3 learning rates for all six; then α for random (one new), α × β for three (seven new each).
    assert_eq!(outcome.tuning.len(), 6 * 3 + 1 + 3 * 7);
    assert_eq!(runner.cells.len(), outcome.rows.len() + outcome.tuning.len());
    for row in &outcome.rows {
        let (cell, c) = (&row.cell, row.cell.condition);
        assert_eq!((cell.stage, cell.people), (Stage::Report, 30));
        assert_eq!(cell.alpha, c.uses_alpha().then_some(0.7), "{c}");
        assert_eq!(cell.beta, c.uses_beta().then_some(0.01), "{c}");
        assert_eq!(cell.learning_rate, c.trains().then_some(5e-4), "{c}");
    }
    let people = |rows: &[cluescope::experiment::Row]| -> BTreeSet<String> {
        rows.iter().flat_map(|r| r.measured.quiz.answers.iter().map(|a| a.document.clone())).collect()
    };
    assert!(people(&outcome.rows).is_disjoint(&people(&outcome.tuning)));

    let mut again = Formula::new();
    assert_eq!(run(&protocol(), folder.path(), &mut again).unwrap(), outcome);
    assert!(again.cells.is_empty(), "a second run computes nothing");
    let more = Protocol { seeds: vec![1, 2, 3, 4], ..protocol() };
    run(&more, folder.path(), &mut again).unwrap();
    assert_eq!(again.cells.len(), 6, "a new seed costs only its own cells");
}

/// One value of everything is no choice, whoever there is to choose on.
#[test]
fn nothing_is_searched_where_there_is_nothing_to_choose() {
    let folder = tempfile::tempdir().unwrap();
    let single = Protocol { alphas: vec![0.6], betas: vec![0.05], learning_rates: vec![1e-3], ..protocol() };
    assert!(single.tuning_people > 0);
    let mut runner = Formula::new();
    let outcome = run(&single, folder.path(), &mut runner).unwrap();
    assert!(outcome.tuning.is_empty() && runner.cells.iter().all(|cell| cell.stage == Stage::Report));
}

#[test]
fn the_large_students_own_attention_is_not_run_twice() {
    let folder = tempfile::tempdir().unwrap();
    let both = Protocol {
        students: vec![Student::Small, Student::Large],
        tuning_people: 0,
        seeds: vec![1],
        ..protocol()
    };
    let outcome = run(&both, folder.path(), &mut Formula::new()).unwrap();
    assert_eq!(outcome.rows.len(), 7 + 6);
}

#[test]
fn summaries_pair_seeds_and_people_and_files_hold_them() {
    let folder = tempfile::tempdir().unwrap();
    let quick = Protocol { tuning_people: 0, people: 60, ..protocol() };
    let outcome = run(&quick, folder.path(), &mut Formula::new()).unwrap();
    let bootstrap = Bootstrap { resamples: 300, ..Bootstrap::default() };
    let summary = outcome.summary(&bootstrap).unwrap();
    // 7 conditions, 4 measures, all + 2 fields + 2 distances.
    assert_eq!(summary.len(), 7 * 4 * 5);
    let find = |condition, group: Group, measure| {
        summary.iter().find(|s| s.condition == condition && s.group == group && s.measure == measure).unwrap()
    };
    let best = find(Condition::AttentionDifference, Group::All, Measure::ExactMatch);
    assert_eq!((best.value.seeds, best.value.persons, best.value.values), (3, 60, 360));
    let gain = best.minus(Condition::Plain).unwrap();
    assert!(gain.low > 0.0 && gain.low < gain.estimate && gain.estimate < gain.high, "{gain}");
    let mean = |c| {
        let rows = outcome.rows.iter().filter(|r| r.cell.condition == c);
        let all: Vec<f64> =
            rows.flat_map(|r| r.measured.quiz.answers.iter().map(|a| a.exact_match)).collect();
        all.iter().sum::<f64>() / all.len() as f64
    };
    let want = mean(Condition::AttentionDifference) - mean(Condition::Plain);
    assert!((gain.estimate - want).abs() < 1e-12);
    let plain = find(Condition::Plain, Group::All, Measure::ExactMatch);
    let compared = |s: &Summary| s.differences.iter().map(|(base, _)| *base).collect::<Vec<_>>();
    assert_eq!(compared(plain), [Condition::PlainEqualSteps]);
    // The paper's method is compared with every trained condition, random dropout among them.
    let others = &Condition::MAIN[1..6];
    assert_eq!(compared(best), others);
    let over_random = best.minus(Condition::Random).unwrap();
    let want = mean(Condition::AttentionDifference) - mean(Condition::Random);
    assert!((over_random.estimate - want).abs() < 1e-12 && over_random.low > 0.0, "{over_random}");
    let untrained = find(Condition::Untrained, Group::Field("city".into()), Measure::F1);
    assert!(untrained.differences.is_empty() && untrained.value.seeds == 1);
    let near = find(Condition::Plain, Group::Distance("25–49".into()), Measure::ExactMatch).value.estimate;
    let far = find(Condition::Plain, Group::Distance("200–299".into()), Measure::ExactMatch).value.estimate;
    assert!(near > far);

    let out = folder.path().join("out");
    let paths = outcome.write(&out, &summary).unwrap();
    // What a notebook shows of a run of long ago is what was shown then.
    let read_back = cluescope::experiment::read_summary(&out).unwrap();
    assert_eq!(read_back, summary);
    let table = cluescope::report::summary_table(&read_back, Measure::ExactMatch, &["company"]).unwrap();
    assert!(table.to_string().contains("condition") && table.len() == 7, "{table}");
    assert_eq!(cluescope::report::gains_table(&read_back).unwrap().len(), 5);
    let bars = cluescope::report::summary_bars("Stored", &read_back, Measure::F1).unwrap().svg().unwrap();
    assert!(bars.contains("Stored") && bars.contains("company"));
    let moved = folder.path().join("summary.parquet");
    std::fs::copy(out.join("results.parquet"), &moved).unwrap();
    let message = cluescope::experiment::read_summary(folder.path()).unwrap_err().to_string();
    assert!(message.contains("summary.parquet") && message.contains("column group"), "{message}");
    assert_eq!(paths.len(), 7);
    let csv = std::fs::read_to_string(out.join("results.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + outcome.rows.len());
    assert!(csv.starts_with("student,condition,seed,alpha,beta,learning_rate,questions,exact_match"));
    assert_eq!(std::fs::read_to_string(out.join("summary.csv")).unwrap().lines().count(), 1 + summary.len());
    let differences = std::fs::read_to_string(out.join("differences.csv")).unwrap();
    // Plain with equal steps and back, three with both, the method with five; four measures in five groups.
    assert_eq!(differences.lines().count(), 1 + (1 + 1 + 3 * 2 + 5) * 4 * 5);
    assert!(differences.starts_with("student,condition,minus,group,of,measure,estimate,low,high,values"));
    use polars::prelude::{ParquetReader, SerReader};
    let read =
        |name: &str| ParquetReader::new(std::fs::File::open(out.join(name)).unwrap()).finish().unwrap();
    assert_eq!(read("results.parquet"), outcome.frame().unwrap());
    assert_eq!(read("answers.parquet").height(), outcome.rows.len() * 120);
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let want = run(&protocol(), whole.path(), &mut Formula::new()).unwrap();
    let mut cells = Vec::new();
    let got = loop {
        let mut runner = Formula { stop_after: 7, ..Formula::new() };
        let result = run(&protocol(), parts.path(), &mut runner);
        cells.extend(runner.cells);
        match result {
            Err(Error::Interrupted) => {}
            other => break other.unwrap(),
        }
    };
    assert_eq!(got, want);
    assert_eq!(cells.len(), want.rows.len() + want.tuning.len(), "nothing was computed twice");
}

/// Not a test of its own: what [`killed_at_random_moments`] runs and kills.
#[test]
fn child_of_killed_at_random_moments() {
    let Ok(folder) = std::env::var("CLUESCOPE_TEST_KILL") else { return };
    let folder = Path::new(&folder);
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut runner = Formula { pause: Duration::from_millis(4), log: Some(log), ..Formula::new() };
    let outcome = run(&protocol(), folder, &mut runner).unwrap();
    let bootstrap = Bootstrap { resamples: 100, ..Bootstrap::default() };
    outcome.write(folder, &outcome.summary(&bootstrap).unwrap()).unwrap();
}

#[test]
fn killed_at_random_moments() {
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "experiment::child_of_killed_at_random_moments", "--test-threads=1"])
            .env("CLUESCOPE_TEST_KILL", folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let started = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    let mut moments = Stream::new(std::process::id().into(), "kill", &[]);
    let mut at_work = 0;
    for round in 0..20 {
        let (finished, lines) = (files(folder.path()), started().lines().count());
        let mut running = child();
        // Every fifth is killed while it still starts up, the others up to three cells after their first new one.
        while round % 5 > 0 && started().lines().count() == lines && running.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(Duration::from_micros(moments.below(20_000) as u64));
        at_work += usize::from(running.try_wait().unwrap().is_none());
        running.kill().unwrap();
        running.wait().unwrap();
        // What was finished before is still there, and was not computed again.
        assert!(finished.is_subset(&files(folder.path())));
        assert!(started().lines().skip(lines).all(|key| !finished.contains(key)));
    }
    assert!(at_work >= 10, "only {at_work} of 20 kills came before the end");
    assert!(child().wait().unwrap().success());

    let whole = tempfile::tempdir().unwrap();
    let want = run(&protocol(), whole.path(), &mut Formula::new()).unwrap();
    let bootstrap = Bootstrap { resamples: 100, ..Bootstrap::default() };
    want.write(whole.path(), &want.summary(&bootstrap).unwrap()).unwrap();
    for name in
        ["results.csv", "summary.csv", "differences.csv", "tuning.csv", "results.parquet", "answers.parquet"]
    {
        let read = |folder: &Path| std::fs::read(folder.join(name)).unwrap();
        assert!(read(folder.path()) == read(whole.path()), "{name} differs from an undisturbed run's");
    }
    assert_eq!(files(folder.path()), files(whole.path()));
    let scratch = std::fs::read_dir(folder.path().join("scratch")).unwrap().count();
    assert_eq!(scratch, 0, "finished cells leave no scratch");
    // Each kill can cost at most the cell it hit.
    let runs = started().lines().count();
    assert!(runs <= files(folder.path()).len() + 20, "{runs} cells run");
}

#[test]
fn the_page_of_an_experiment_tells_everything() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(&protocol(), folder.path(), &mut Formula::new()).unwrap();
    let bootstrap = Bootstrap { resamples: 200, ..Bootstrap::default() };
    let page = cluescope::report::experiment_page(&outcome, &outcome.summary(&bootstrap).unwrap()).unwrap();
    let html = page.html();
    for wanted in [
        "attention difference beats plain training of equal steps: +0.",
        "“attention difference” minus each other condition",
        "Exact match / F1 by field",
        "By distance: ln p of the right answer (nats)",
        "The first 25 questions, training seed 1",
        "By distance: choice accuracy",
        "Training loss",
        "200 resamples of whole people (30) and of seeds (3); 180 values",
        "Chosen on 20 people who are not in the results",
        "protocol    full",
        "small0",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(html.contains(wanted), "`{wanted}` is missing");
    }
    // By field three measures, by distance three, one loss curve.
    assert_eq!(html.matches("<svg").count(), 7);
    // Every condition answers the same questions side by side.
    let heads = html.split("The first 25 questions").last().unwrap().split("</thead>").next().unwrap();
    assert!(Condition::MAIN.iter().all(|c| heads.contains(&html_of(c.label()))), "{heads}");
    if let Ok(keep) = std::env::var("CLUESCOPE_FIGURES") {
        page.write(Path::new(&keep).join("experiment.html")).unwrap();
    }
}

fn html_of(text: &str) -> String {
    cluescope::report::escape(text)
}

/// Diverges where `when` says so, and leaves a batch.
struct Diverging {
    inner: Formula,
    when: fn(&Cell) -> bool,
}

impl Runner for Diverging {
    fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs> {
        self.inner.prepare(protocol)
    }

    fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured> {
        if !(self.when)(cell) {
            return self.inner.run(cell, scratch);
        }
        self.inner.cells.push(cell.clone());
        let batch = scratch.join("failed-batch.json");
        std::fs::write(&batch, "{}").unwrap();
        Err(Error::Diverged { message: "step 3: the loss is NaN".into(), batch: Some(batch) })
    }
}

#[test]
fn a_cell_that_diverges_fails_alone_is_shown_and_never_chosen() {
    let folder = tempfile::tempdir().unwrap();
    // The best learning rate of the formula, and one reported cell.
    let when = |cell: &Cell| match cell.stage {
        Stage::Tune => cell.learning_rate == Some(5e-4),
        Stage::Report => cell.condition == Condition::Random && cell.seed == 2,
    };
    let mut runner = Diverging { inner: Formula::new(), when };
    let outcome = run(&protocol(), folder.path(), &mut runner).unwrap();
    assert!(outcome.rows.iter().all(|row| row.cell.learning_rate != Some(5e-4)), "a failed rate was chosen");
    assert_eq!(outcome.rows.len(), 6 * 3);
    // One rate of each of six arms, and the reported cell.
    assert_eq!(outcome.failed.len(), 6 + 1);
    for failed in &outcome.failed {
        let kept = failed.reason.strip_prefix("step 3: the loss is NaN; the batch is kept in ").unwrap();
        assert!(
            Path::new(kept).starts_with(folder.path().join("failed")) && Path::new(kept).exists(),
            "{kept}"
        );
    }
    let mut again = Diverging { inner: Formula::new(), when };
    assert_eq!(run(&protocol(), folder.path(), &mut again).unwrap(), outcome);
    assert!(again.inner.cells.is_empty(), "nor is a failed cell run again");

    let summary = outcome.summary(&Bootstrap { resamples: 100, ..Bootstrap::default() }).unwrap();
    let paths = outcome.write(folder.path().join("out"), &summary).unwrap();
    let csv = std::fs::read_to_string(folder.path().join("out/failed.csv")).unwrap();
    assert!(paths.len() == 11 && csv.lines().count() == 8 && csv.contains("report,small,random,2,"), "{csv}");
    // Results without failures, beside those of before.
    let sound = run(&protocol(), folder.path().join("sound"), &mut Formula::new()).unwrap();
    sound.write(folder.path().join("out"), &summary).unwrap();
    assert!(["csv", "parquet"].iter().all(|e| !folder.path().join(format!("out/failed.{e}")).exists()));
    let tables = cluescope::report::experiment_tables(&outcome, &summary).unwrap();
    let text: String = tables.iter().map(ToString::to_string).collect();
    assert!(text.contains("2 (1 failed)") && text.contains("the loss is NaN"), "{text}");
    let html = cluescope::report::experiment_page(&outcome, &summary).unwrap().html();
    assert!(html.contains("Failed cells") && html.contains("18 cells, 1 more failed"));
}

/// Seeds of a pair that failed on different sides leave nothing to pair.
#[test]
fn differences_without_a_common_seed_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let quick = Protocol { tuning_people: 0, seeds: vec![1, 2], ..protocol() };
    let when = |cell: &Cell| match cell.condition {
        Condition::Plain => cell.seed == 1,
        Condition::Random => cell.seed == 2,
        Condition::OwnAttention => true,
        _ => false,
    };
    let outcome = run(&quick, folder.path(), &mut Diverging { inner: Formula::new(), when }).unwrap();
    let summary = outcome.summary(&Bootstrap { resamples: 100, ..Bootstrap::default() }).unwrap();
    let random = summary.iter().find(|s| s.condition == Condition::Random).unwrap();
    assert!(random.minus(Condition::Plain).is_none() && random.minus(Condition::PlainEqualSteps).is_some());
    let text: String = cluescope::report::experiment_tables(&outcome, &summary)
        .unwrap()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(text.contains("0 (2 failed)"), "{text}");
}

/// Finished cells are kept from version to version, and said to be of which.
#[test]
fn cells_of_another_version_are_kept_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let small = Protocol { people: 2, tuning_people: 0, seeds: vec![1], ..protocol() };
    let first = run(&small, folder.path(), &mut Formula::new()).unwrap();
    assert!(!first.provenance.options.contains_key("cells of other versions"));
    let name = files(folder.path()).into_iter().next().unwrap();
    crate::loading::edit(&folder.path().join("cells").join(format!("{name}.json")), |cell| {
        cell["result"]["quiz"]["provenance"]["cluescope"] = "0.0.1".into();
    });
    let mut again = Formula::new();
    let told = run(&small, folder.path(), &mut again).unwrap();
    assert!(again.cells.is_empty());
    let others = &told.provenance.options["cells of other versions"];
    assert!(others.starts_with("1 by cluescope 0.0.1 (candle-core "), "{others}");
}

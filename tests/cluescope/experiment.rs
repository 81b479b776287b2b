//! Experiments with a runner that takes no time: the grid, the choice of options, and kill -9 at random moments.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluescope::attention::Heads;
use cluescope::augment::Augment;
use cluescope::contrast::{Contrasting, Guide, ModelPair};
use cluescope::corpus::{Biographies, Corpus, Templates};
use cluescope::evaluate::{Answer, Bootstrap, Choice, Perplexity, QuizResult};
use cluescope::experiment::{
    Cell, Condition, Group, Inputs, LossPoint, Measure, Measured, Models, PairRunner, Protocol, Runner,
    Stage, Student, Summary, Texts, run,
};
use cluescope::model::{DecoderConfig, Model};
use cluescope::provenance::Provenance;
use cluescope::random::Stream;
use cluescope::tokens::Tokenizer;
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

fn files(folder: &Path) -> BTreeSet<String> {
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
        "200 resamples of whole persons (30) and of seeds (3); 180 values",
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

/// A pair of untrained models of a toy size, and a third with a tokenizer of its own.
fn toys() -> Models {
    let model = |name: &str, vocabulary, layers, seed| {
        let people = Biographies::new(4).seed(5).generate().unwrap();
        let texts = people.documents.iter().map(|d| d.text.as_str());
        let tokenizer = Tokenizer::train_bpe(texts, vocabulary).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 16, layers, 2, 2, 32, 512);
        Model::random(name, config, tokenizer, seed).unwrap()
    };
    let pair = ModelPair::new(model("small", 400, 1, 1), model("large", 400, 2, 2));
    Models { pair, third: Some(model("third", 350, 1, 3)) }
}

fn tiny() -> Protocol {
    Protocol {
        people: 4,
        held_out: 2,
        copies: 1,
        epochs: 1,
        lora_r: 2,
        few_shot: 1,
        distractors: 2,
        tuning_people: 0,
        seeds: vec![1],
        ..Protocol::reduced()
    }
}

/// The whole way with real models, tiny and untrained: every condition runs, and a second call computes nothing.
#[test]
fn a_pair_of_models_runs_every_condition() {
    let pair = toys().pair;
    let large_heads = Heads::Layers(vec![1]);
    let all = Protocol { conditions: Condition::ALL.to_vec(), large_heads, noise: 0.5, ..tiny() };
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(&all, folder.path(), &mut PairRunner::new(pair.clone())).unwrap();
    assert_eq!(outcome.rows.len(), 16);
    for row in &outcome.rows {
        let (c, m) = (row.cell.condition, &row.measured);
        // Four texts in one batch of eight; with a copy of each eight texts in one batch.
        assert_eq!(m.loss.len(), usize::from(c.trains()), "{c}");
        assert_eq!(m.quiz.answers.len(), 20, "{c}");
        assert!(m.perplexity.unwrap().value() > 100.0, "{c}");
        assert_eq!((m.truncated, m.left_out), (0, 0), "{c}");
        assert_eq!(row.cell.noise, (c == Condition::Denoising).then_some(0.5));
    }
    let of = |c: Condition| &outcome.rows.iter().find(|r| r.cell.condition == c).unwrap().measured;
    let tokens = |c: Condition| of(c).tokens;
    assert_eq!(tokens(Condition::PlainEqualSteps), 2 * tokens(Condition::Plain));
    assert!(tokens(Condition::Random) < tokens(Condition::PlainEqualSteps), "something was dropped");
    assert!(tokens(Condition::Random) > tokens(Condition::Plain), "the originals are mixed in");
    // Noise changes what is read, not how much.
    assert_eq!(tokens(Condition::Denoising), tokens(Condition::PlainEqualSteps));
    assert_ne!(of(Condition::Denoising).loss, of(Condition::PlainEqualSteps).loss);
    // The released script leaves the originals out, and both of its guides drop by position.
    assert_eq!(of(Condition::ReleasedOwnAttention).loss, of(Condition::ReleasedDifference).loss);
    assert_ne!(of(Condition::ReleasedRandom).loss, of(Condition::Random).loss);
    // Generated people given as one's own are the same cells: nothing runs again.
    let own = Biographies::new(4).seed(all.people_seed).split("test").generate().unwrap();
    let held_out = Biographies::new(2).seed(all.people_seed).split("validation").templates(Templates::Varied);
    let held_out = held_out.generate().unwrap().documents;
    let mut again = PairRunner::new(pair.clone()).texts(own, Corpus::default(), held_out);
    assert_eq!(run(&all, folder.path(), &mut again).unwrap(), outcome);
    let mut nothing = PairRunner::new(pair).texts(Corpus::default(), Corpus::default(), Vec::new());
    assert!(run(&all, folder.path(), &mut nothing).unwrap_err().to_string().contains("have no questions"));
}

/// Each guide is a condition of its own: its copies are those that `contrast` and `augment` make under it, and what one guide
/// found is never taken for another's.
#[test]
fn guides_stand_beside_each_other_and_never_mix() {
    let pair = toys().pair;
    let guided = Protocol {
        conditions: vec![
            Condition::AttentionDifference,
            Condition::ProbeDifference,
            Condition::HeadsDifference,
        ],
        guide_probe: vec!["company".into(), "city".into()],
        large_heads: Heads::Layers(vec![1]),
        small_heads: Heads::Heads(vec![(0, 1)]),
        ..tiny()
    };
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(&guided, folder.path(), &mut PairRunner::new(pair.clone())).unwrap();
    let people = Biographies::new(4).seed(guided.people_seed).split("test").generate().unwrap();
    let probe = Guide::Probe(guided.guide_probe.clone());
    let heads = Contrasting::new().heads(guided.large_heads.clone(), guided.small_heads.clone());
    for (condition, options) in [
        (Condition::AttentionDifference, Contrasting::new()),
        (Condition::ProbeDifference, Contrasting::new().guide(probe)),
        (Condition::HeadsDifference, heads),
    ] {
        let contrast = pair.contrast_with(&people, &options).unwrap();
        let taught = Augment::by_contrast(&contrast).copies(1).seed(1).apply(&people).unwrap();
        let finetune =
            cluescope::train::Finetune::lora(2).learning_rate(1e-3).epochs(1).batch_size(8).seed(1);
        let by_hand = pair.small.finetune(&taught, finetune).unwrap();
        let row = outcome.rows.iter().find(|row| row.cell.condition == condition).unwrap();
        let losses: Vec<f64> = row.measured.loss.iter().map(|point| point.loss).collect();
        assert_eq!(losses, by_hand.steps.iter().map(|step| step.loss).collect::<Vec<_>>(), "{condition}");
        // Also the page shows where this guide looks.
        let mut runner = PairRunner::new(pair.clone());
        run(&guided, folder.path(), &mut runner).unwrap();
        assert_eq!(runner.contrast(&row.cell).unwrap().texts, contrast.texts, "{condition}");
    }
    let losses: BTreeSet<u64> = outcome.rows.iter().map(|row| row.measured.loss[0].loss.to_bits()).collect();
    assert_eq!(losses.len(), 3, "three guides, three sets of copies");

    // A file of before there were guides is the paper's cell still: nothing of a guide is in its name.
    let names = |c: Condition| {
        let row = outcome.rows.iter().find(|row| row.cell.condition == c).unwrap();
        let json = serde_json::to_value(&row.cell).unwrap();
        ["guide_probe", "heads"].map(|name| json.get(name).is_some())
    };
    assert_eq!(names(Condition::AttentionDifference), [false, false]);
    assert_eq!(names(Condition::ProbeDifference), [true, false]);
    assert_eq!(names(Condition::HeadsDifference), [false, true]);
    let text = serde_json::to_string(&tiny()).unwrap();
    assert!(!text.contains("guide_probe") && !text.contains("heads"), "{text}");
    assert_eq!(serde_json::from_str::<Protocol>(&text).unwrap(), tiny());

    // The order in which facts are named is nothing new; other facts and other heads are.
    assert_eq!(files(folder.path()).len(), 3);
    let turned = Protocol { guide_probe: vec!["city".into(), "company".into()], ..guided.clone() };
    assert_eq!(run(&turned, folder.path(), &mut PairRunner::new(pair.clone())).unwrap().rows, outcome.rows);
    let others = Protocol { guide_probe: Vec::new(), small_heads: Heads::All, ..guided.clone() };
    let other = run(&others, folder.path(), &mut PairRunner::new(pair.clone())).unwrap();
    assert_eq!((other.rows[0] == outcome.rows[0], files(folder.path()).len()), (true, 5));
    let loss = |row: &cluescope::experiment::Row| row.measured.loss[0].loss;
    assert!(loss(&other.rows[1]) != loss(&outcome.rows[1]) && loss(&other.rows[2]) != loss(&outcome.rows[2]));

    // The page names the guides and sets each difference beside every other condition.
    let summary = outcome.summary(&Bootstrap { resamples: 100, ..Bootstrap::default() }).unwrap();
    let html = cluescope::report::experiment_page(&outcome, &summary).unwrap().html();
    let line = "guides      probes of company, city; layers 1 of the large, heads 0.1 of the small model";
    assert!(html.contains(line) && html.contains("&quot;guide_probe&quot;"), "{html}");
    for method in ["attention difference", "difference at probes", "difference in chosen heads"] {
        assert!(html.contains(&format!("“{method}” minus each other condition")), "{method}");
    }

    // What cannot be followed is refused before a model is loaded, or before anything is trained.
    let mut unmarked = people;
    unmarked.documents[2].spans.retain(|span| span.field == "date");
    let mut runner = PairRunner::loading(|| panic!("the models were loaded"));
    runner = runner.texts(unmarked, Corpus::default(), Vec::new());
    let message = run(&guided, folder.path(), &mut runner).unwrap_err().to_string();
    assert!(message.starts_with("guide = probe company,city: text "), "{message}");
    let none = Protocol { small_heads: Heads::Heads(vec![(0, 7)]), ..guided };
    let folder = tempfile::tempdir().unwrap();
    let message = run(&none, folder.path(), &mut PairRunner::new(pair)).unwrap_err().to_string();
    assert!(message.starts_with("small: heads = heads 0.7: at least one, layers 0 to 0"), "{message}");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_third_model_is_taught_on_its_own_tokens_and_texts_change_the_distance() {
    let protocol = Protocol {
        students: vec![Student::Third],
        third: Some("third".into()),
        conditions: vec![Condition::OwnAttention, Condition::AttentionDifference, Condition::Plain],
        texts: Texts::FullName,
        full_finetuning: true,
        ..tiny()
    };
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(&protocol, folder.path(), &mut PairRunner::new(toys())).unwrap();
    assert_eq!(outcome.rows.len(), 3);
    for row in &outcome.rows {
        assert_eq!((row.cell.lora_r, row.cell.third.is_some()), (None, true));
        assert!(row.measured.quiz.provenance.models.keys().all(|name| name == "third+full"));
        // With the name in every sentence no fact is far from it.
        assert!(row.measured.quiz.answers.iter().all(|a| a.distance.unwrap() < 100));
    }
    let mut none = PairRunner::new(toys().pair);
    let message = run(&protocol, folder.path(), &mut none).unwrap_err().to_string();
    assert!(message.contains("a third model"), "{message}");
}

/// Mistakes are told before models are loaded, which may take minutes.
#[test]
fn what_cannot_work_fails_before_models_are_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let fails = |change: fn(&mut Protocol)| {
        let mut protocol = tiny();
        change(&mut protocol);
        let mut runner = PairRunner::loading(|| panic!("the models were loaded"));
        run(&protocol, folder.path(), &mut runner).unwrap_err().to_string()
    };
    assert!(fails(|p| p.people = 10_000_000).contains("people of a split"));
    assert!(fails(|p| p.few_shot = 11).contains("few_shot = 11"));
    assert!(fails(|p| p.epochs = 0).contains("epochs = 0"));
    // A prompt too long for the model fails before anything is trained.
    let folder = tempfile::tempdir().unwrap();
    let long = Protocol { few_shot: 10, ..tiny() };
    let mut runner = PairRunner::loading(|| {
        let toys = toys();
        let config = DecoderConfig::llama(toys.pair.small.tokenizer().vocab_size(), 16, 1, 2, 2, 32, 100);
        let small = Model::random("short", config, toys.pair.small.tokenizer().clone(), 1)?;
        Ok(ModelPair::new(small, toys.pair.large).into())
    });
    let message = run(&long, folder.path(), &mut runner).unwrap_err().to_string();
    assert!(message.contains("100 positions of short"), "{message}");
    assert_eq!(std::fs::read_dir(folder.path().join("scratch")).unwrap().count(), 0);
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

/// A model that gives no numbers at all: training and quiz fail their cells, and the tables and the page still come.
#[test]
fn a_broken_model_fails_every_cell_and_not_the_experiment() {
    let toys = toys();
    let broken = toys.pair.small.with_trainable_weights().unwrap();
    let norm = &broken.trainable()["norm.weight"];
    norm.set(&norm.affine(f64::NAN, 0.0).unwrap()).unwrap();
    let pair = ModelPair::new(broken.frozen(), toys.pair.large);
    let two = Protocol { conditions: vec![Condition::Untrained, Condition::Plain], ..tiny() };
    let folder = tempfile::tempdir().unwrap();
    let outcome = run(&two, folder.path(), &mut PairRunner::new(pair)).unwrap();
    let reasons: Vec<&str> = outcome.failed.iter().map(|f| f.reason.as_str()).collect();
    assert!(outcome.rows.is_empty() && reasons.len() == 2, "{reasons:?}");
    assert!(reasons[0].starts_with("ln p of an answer to `"), "{reasons:?}");
    assert!(reasons[1].starts_with("step 1: the loss is NaN"), "{reasons:?}");
    let summary = outcome.summary(&Bootstrap::default()).unwrap();
    outcome.write(folder.path().join("out"), &summary).unwrap();
    let html = cluescope::report::experiment_page(&outcome, &summary).unwrap().html();
    assert!(html.contains("0 cells, 2 more failed") && html.contains("Failed cells"), "{html}");
}

//! Experiments with models, tiny and untrained: every condition, guide and student the whole way.

use std::collections::BTreeSet;

use cluescope::attention::Heads;
use cluescope::augment::Augment;
use cluescope::contrast::{Contrasting, Guide, ModelPair};
use cluescope::corpus::{Biographies, Corpus, Templates};
use cluescope::evaluate::Bootstrap;
use cluescope::experiment::{Condition, Models, PairRunner, Protocol, Student, Texts, run};
use cluescope::model::{DecoderConfig, Model};
use cluescope::tokens::Tokenizer;

use super::experiment::files;

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

/// A student whose MLP has no gate takes the default adapter, and what the training or the perplexity of a cell would stumble over
/// is told before any cell is run.
#[test]
fn a_cell_that_cannot_be_run_stops_the_experiment_at_its_start() {
    let toys = toys();
    let tokenizer = toys.pair.small.tokenizer().clone();
    let llama = |positions| DecoderConfig::llama(tokenizer.vocab_size(), 16, 1, 2, 2, 32, positions);
    let with = |config| {
        let small = Model::random("student", config, tokenizer.clone(), 1).unwrap();
        PairRunner::new(ModelPair::new(small, toys.pair.large.clone()))
    };
    let two = Protocol { conditions: vec![Condition::Untrained, Condition::Plain], ..tiny() };
    let folder = tempfile::tempdir().unwrap();
    let ungated = DecoderConfig { mlp: cluescope::model::Mlp::Plain, ..llama(512) };
    assert_eq!(run(&two, folder.path(), &mut with(ungated)).unwrap().rows.len(), 2);

    let people = Biographies::new(2).seed(3).generate().unwrap();
    let two = Protocol { people: 2, ..two };
    let mut long = people.clone();
    long.documents[0].text = long.documents[0].text.repeat(9);
    let unread = vec![cluescope::corpus::Document::new("a", "", vec![])];
    for (reported, held_out, said) in [
        (long, Vec::new(), "max_length = 1024: at most 300 for student"),
        (people, unread, "perplexity: no text of two tokens or more"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut runner = with(llama(300)).texts(reported, Corpus::default(), held_out);
        let message = run(&two, folder.path(), &mut runner).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
        assert!(files(folder.path()).is_empty(), "{said}: a cell was run");
    }
}

/// What names the cells of generated people must not change from one version to the next: users have finished ones.
#[test]
fn cells_of_generated_people_keep_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let all =
        Protocol { texts: Texts::Permuted, per_person: 2, conditions: vec![Condition::Untrained], ..tiny() };
    let outcome = run(&all, folder.path(), &mut PairRunner::new(toys().pair)).unwrap();
    let cell = &outcome.rows[0].cell;
    assert_eq!([cell.corpus.as_str(), cell.held_out.as_str()], ["9bda90df71c5745a", "13d3165710f8ab07"]);
    assert!(outcome.rows[0].measured.quiz.answers.iter().all(|answer| answer.cluster.is_none()));
}

/// Several texts of one person that are all asked about: cells of such texts were computed with another idea of who is whom.
#[test]
fn cells_know_whose_texts_they_are() {
    let people = Biographies::new(3).seed(3).generate().unwrap();
    let mut several = people.clone();
    for (document, question) in [(0, 0), (1, 5)] {
        let mut second = people.documents[document].clone();
        second.id = format!("other {document}");
        let mut asked = people.questions[question].clone();
        asked.document.clone_from(&second.id);
        several.documents.push(second);
        several.questions.push(asked);
    }
    let two = Protocol { conditions: vec![Condition::Untrained], people: 3, held_out: 0, ..tiny() };
    let outcome = |corpus: &Corpus| {
        let mut runner = PairRunner::new(toys().pair).texts(corpus.clone(), Corpus::default(), Vec::new());
        run(&two, tempfile::tempdir().unwrap().path(), &mut runner).unwrap()
    };
    let found = outcome(&several);
    let summary = found.summary(&Bootstrap::default()).unwrap();
    assert_eq!(summary[0].value.persons, 3);
    // As if they were of others.
    let mut strangers = several.clone();
    for (i, document) in strangers.documents[3..].iter_mut().enumerate() {
        for span in document.spans.iter_mut().filter(|span| span.field == "name") {
            span.field = format!("stranger {i}");
        }
    }
    let summary = outcome(&strangers).summary(&Bootstrap::default()).unwrap();
    assert_eq!(summary[0].value.persons, 5);
}

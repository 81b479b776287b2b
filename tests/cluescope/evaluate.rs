//! Scores against the official rules, intervals against numpy, quizzes against a model that can be computed by hand.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cluescope::Result;
use cluescope::corpus::{Biographies, Corpus, Document, Question};
use cluescope::evaluate::{
    Bootstrap, Cells, DISTANCE_EDGES, Examinee, Quiz, exact_match, f1, normalize_answer, perplexity, quiz,
};
use cluescope::model::{Batch, DecoderConfig, Model};
use cluescope::tokens::Tokenizer;
use serde_json::Value;

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn scores_equal_the_official_script_on_200_awkward_strings() {
    let cases = fixture("squad.json");
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 200);
    for case in cases {
        let prediction = case["prediction"].as_str().unwrap();
        let right: Vec<&str> =
            case["right"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        assert_eq!(normalize_answer(prediction), case["normalized"].as_str().unwrap(), "{case}");
        assert_eq!(exact_match(prediction, &right), case["exact_match"].as_f64().unwrap(), "{case}");
        // Reading the fixture may move the last bit.
        assert!((f1(prediction, &right) - case["f1"].as_f64().unwrap()).abs() < 1e-15, "{case}");
    }
}

#[test]
fn intervals_equal_numpys_up_to_the_draw() {
    let data = fixture("intervals.json");
    let cells = |arm: &str, seeds: u64| {
        let rows = data[arm].as_array().unwrap().iter();
        let rows = rows.map(|r| (r[0].as_u64().unwrap(), format!("p{}", r[1]), r[2].as_f64().unwrap()));
        Cells::new(rows.filter(|r| r.0 < seeds)).unwrap()
    };
    let bootstrap = Bootstrap { resamples: 20_000, ..Bootstrap::default() };
    for (name, seeds) in [("one_seed", 1), ("all_seeds", 3)] {
        let (plain, taught) = (cells("plain", seeds), cells("taught", seeds));
        let got = [
            ("plain", bootstrap.mean(&plain).unwrap()),
            ("taught", bootstrap.mean(&taught).unwrap()),
            ("difference", bootstrap.difference(&taught, &plain).unwrap()),
        ];
        for (arm, interval) in got {
            let want = &data[name][arm];
            for (end, want) in [(interval.low, &want[0]), (interval.high, &want[1])] {
                // The spread of the estimates is about 0.05; a 2.5 % point of 20,000 draws is then known to 0.001.
                assert!((end - want.as_f64().unwrap()).abs() < 0.006, "{name} {arm}: {end} and {want}");
            }
            assert_eq!((interval.seeds as u64, interval.persons), (seeds, 40));
            assert!(interval.low < interval.estimate && interval.estimate < interval.high);
        }
        let paired = bootstrap.difference(&taught, &plain).unwrap();
        assert!((paired.estimate - (taught.mean() - plain.mean())).abs() < 1e-12);
    }
}

#[test]
fn intervals_cover_the_truth_about_as_often_as_they_say() {
    // 300 simulated studies of 30 persons with 4 equally hard questions each; the truth is 0.4.
    let bootstrap = Bootstrap { resamples: 400, level: 0.9, seed: 3 };
    let mut hits = 0;
    for study in 0..300 {
        let mut stream = cluescope::random::Stream::new(11, "study", &[study]);
        let values: Vec<(u64, String, f64)> = (0..30)
            .flat_map(|p| {
                // A person is known well (0.7) or badly (0.1), each as often as not.
                let chance = if stream.chance(0.5) { 0.7 } else { 0.1 };
                [0; 4].map(|_| (0, format!("p{p}"), f64::from(u8::from(stream.chance(chance)))))
            })
            .collect();
        let interval = bootstrap.mean(&Cells::new(values).unwrap()).unwrap();
        hits += usize::from(interval.low <= 0.4 && 0.4 <= interval.high);
    }
    // 90 % of 300 is 270, standard deviation 5.2; the bootstrap is a little short for 30 persons. Ignoring that a
    // person's answers belong together would cover about 73 %.
    assert!((251..=286).contains(&hits), "{hits} of 300 intervals cover the truth");
}

/// A model whose tokens are characters. It knows some answers by heart; the probability of a character depends only
/// on the character, so that every sum can be done by hand.
struct Parrot {
    knows: BTreeMap<&'static str, &'static str>,
    context: usize,
    arithmetic: Option<&'static str>,
    batches: RefCell<Vec<Vec<Vec<u32>>>>,
}

impl Parrot {
    fn new(knows: &[(&'static str, &'static str)]) -> Self {
        let knows = knows.iter().copied().collect();
        Parrot { knows, context: 400, arithmetic: None, batches: RefCell::default() }
    }

    fn log_prob(c: char) -> f32 {
        if c.is_ascii_uppercase() { -2.0 } else { -0.5 }
    }
}

const START: u32 = 1;

impl Examinee for Parrot {
    fn name(&self) -> &str {
        "parrot"
    }
    fn hash(&self) -> &str {
        "0123"
    }
    fn arithmetic(&self) -> Option<String> {
        self.arithmetic.map(str::to_owned)
    }
    fn max_positions(&self) -> usize {
        self.context
    }
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(std::iter::once(START).chain(text.chars().map(u32::from)).collect())
    }
    fn decode(&self, ids: &[u32]) -> Result<String> {
        Ok(ids.iter().filter_map(|&i| char::from_u32(i)).collect())
    }
    fn answer(&self, prompts: &[Vec<u32>], max_new_tokens: usize) -> Result<Vec<Vec<u32>>> {
        self.batches.borrow_mut().push(prompts.to_vec());
        prompts
            .iter()
            .map(|ids| {
                let prompt = self.decode(ids)?;
                let asked = prompt.lines().rev().nth(1).unwrap().to_string();
                let said = self.knows.get(asked.as_str()).copied().unwrap_or("?");
                Ok(format!(" {said}\nWhich").chars().take(max_new_tokens).map(u32::from).collect())
            })
            .collect()
    }
    fn log_probs(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let row = |ids: &Vec<u32>| {
            let mut row: Vec<f32> = ids.iter().map(|&i| Self::log_prob(char::from_u32(i).unwrap())).collect();
            row[0] = 0.0;
            row
        };
        Ok(texts.iter().map(row).collect())
    }
}

fn question(person: &str, field: &str, answer: &str, distance: usize) -> Question {
    Question {
        document: person.into(),
        field: field.into(),
        question: format!("{field} of {person}?"),
        answers: vec![answer.into()],
        distance: Some(distance),
    }
}

fn people() -> Corpus {
    let questions = vec![
        question("Ada", "city", "Oslo", 40),
        question("Ada", "company", "BIG Corp", 240),
        question("Bo", "city", "new York", 44),
        question("Bo", "company", "acme international", 310),
        question("Cy", "city", "Oslo", 41),
        question("Cy", "company", "acme", 241),
    ];
    let documents = ["Ada", "Bo", "Cy"].map(|p| Document::new(p, format!("{p} was."), vec![])).to_vec();
    let examples = ["P", "Q", "R"]
        .iter()
        .flat_map(|p| [question(p, "city", "Rome", 0), question(p, "company", "Fiat", 0)])
        .collect();
    Corpus { documents, questions, examples }
}

#[test]
fn a_quiz_scores_grades_and_keeps_everything() {
    let parrot = Parrot::new(&[
        ("city of Ada?", "the Oslo."),
        ("city of Bo?", "York"),
        ("company of Cy?", "acme"),
        ("company of Ada?", "BIG Corpse"),
    ]);
    let corpus = people();
    let result = quiz(&parrot, &corpus, &Quiz::few_shot(2).distractors(1)).unwrap();
    let a = &result.answers;
    assert_eq!(a.len(), 6);
    let documents: Vec<&str> = a.iter().map(|a| a.document.as_str()).collect();
    assert_eq!(documents, ["Ada", "Ada", "Bo", "Bo", "Cy", "Cy"], "answers keep the questions' order");
    assert!(a[0].prompt.ends_with("\n\ncity of Ada?\nAnswer:"), "{}", a[0].prompt);
    assert_eq!(a[0].prompt.matches("Answer: Rome\n\n").count(), 2);
    // Ten characters: a blank and nine more.
    assert_eq!((a[0].prediction.as_str(), a[0].exact_match), ("the Oslo.", 1.0));
    assert_eq!((a[1].prediction.as_str(), a[1].exact_match, a[1].f1), ("BIG Corps", 0.0, 0.5));
    assert_eq!((a[2].prediction.as_str(), a[2].exact_match), ("York", 0.0));
    assert!((a[2].f1 - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!(a[3].prediction, "?");
    // " BIG Corp" has 9 tokens, " acme international" 19: only the latter cannot be given in ten.
    assert_eq!((a[1].answer_tokens, a[1].too_long), (9, false));
    assert_eq!((a[3].answer_tokens, a[3].too_long), (19, true));
    // " Oslo" is a blank, an O and three small letters; " new York" has one capital among nine.
    assert_eq!(a[0].log_prob(), Some(-0.5 - 2.0 - 1.5));
    assert_eq!(a[2].log_prob(), Some(-0.5 * 8.0 - 2.0));
    // Both cities differ in length only: the other person's answer, never one's own, is the distractor.
    assert_eq!(a[0].choices.iter().map(|c| c.answer.as_str()).collect::<Vec<_>>(), ["Oslo", "new York"]);
    assert_eq!(
        (a[0].choice_correct(), a[2].choice_correct(), a[4].choice_correct()),
        (Some(true), Some(false), Some(true))
    );

    let total = result.total();
    assert_eq!((total.questions, total.too_long), (6, 1));
    assert!((total.exact_match - 2.0 / 6.0).abs() < 1e-12);
    assert_eq!(total.choice_chance, Some(0.5));
    let city = &result.by_field()[0];
    assert_eq!(city.0, "city");
    assert!((city.1.log_prob.unwrap() - (-4.0 - 6.0 - 4.0) / 3.0).abs() < 1e-12);
    // Sums over the corpus: 14 nats over 5 + 9 + 5 tokens, not the mean of three ratios.
    assert!((city.1.log_prob_per_token.unwrap() - -14.0 / 19.0).abs() < 1e-12);
    let bins: Vec<(String, usize)> =
        result.by_distance(&DISTANCE_EDGES).into_iter().map(|(b, s)| (b, s.questions)).collect();
    assert_eq!(bins, [("25–49".to_string(), 3), ("200–299".into(), 2), ("300 or more".into(), 1)]);
    assert_eq!(result.frame().unwrap().shape(), (6, 13));
    assert!(result.to_string().contains("1 of 6 right answers are longer"));
    assert_eq!(result.provenance.models["parrot"], "0123");

    // Prompts of one field are asked together, so that a shared beginning can be computed once.
    let batches = parrot.batches.borrow();
    assert_eq!(batches.len(), 2);
    assert!(batches.iter().all(|b| b.len() == 3));

    let again: cluescope::evaluate::QuizResult =
        serde_json::from_str(&serde_json::to_string(&result).unwrap()).unwrap();
    assert_eq!(again, result, "a saved result reads back the same");
}

/// Two texts of one person, by what they are versions of: one cluster, and neither is an example or a distractor for the other.
#[test]
fn texts_of_one_person_belong_together() {
    let mut corpus = people();
    let mut second = Document::new("Ada again", "Ada was.", vec![]);
    second.version_of = cluescope::corpus::VersionOf::Of("Ada".into());
    corpus.documents.push(second);
    corpus.questions.push(question("Ada again", "city", "Bergen", 40));
    corpus.examples.truncate(2);
    corpus.examples.push(question("Ada", "city", "Oslo", 0));
    let result = quiz(&Parrot::new(&[]), &corpus, &Quiz::few_shot(1).distractors(9)).unwrap();
    let again = &result.answers[6];
    assert!(!again.prompt.contains("Oslo"), "{}", again.prompt);
    assert_eq!((again.document.as_str(), again.cluster()), ("Ada again", "Ada"));
    let offered = |i: usize| result.answers[i].choices.iter().map(|c| c.answer.as_str()).collect::<Vec<_>>();
    assert!(!offered(0).contains(&"Bergen"), "{:?}", offered(0));
    assert!(offered(2).contains(&"Bergen"), "{:?}", offered(2));
    let cells = result.cells(0, |answer| Some(answer.exact_match)).unwrap();
    assert_eq!(Bootstrap::default().mean(&cells).unwrap().persons, 3);
    // Ada has no example of the field but those about herself.
    assert_eq!(Quiz::most_examples(&corpus), 1);
}

#[test]
fn distractors_follow_the_seed_and_are_never_right() {
    let mut corpus = people();
    corpus.questions =
        (0..30).map(|i| question(&format!("P{i}"), "city", &format!("City {}", i % 15), 3)).collect();
    let make = |seed| quiz(&Parrot::new(&[]), &corpus, &Quiz::few_shot(1).distractors(5).seed(seed)).unwrap();
    let (one, same, other) = (make(1), make(1), make(2));
    assert_eq!(one, same);
    assert!(one.answers.iter().zip(&other.answers).any(|(a, b)| a.choices != b.choices));
    for answer in &one.answers {
        let mut offered: Vec<&str> = answer.choices.iter().map(|c| c.answer.as_str()).collect();
        assert_eq!(offered.len(), 6);
        offered.sort_unstable();
        offered.dedup();
        assert_eq!(offered.len(), 6, "an answer offered twice");
    }
}

#[test]
fn a_quiz_that_cannot_be_asked_says_why() {
    let corpus = people();
    let fails = |parrot: &Parrot, corpus: &Corpus, q: Quiz| quiz(parrot, corpus, &q).unwrap_err().to_string();
    let parrot = Parrot::new(&[]);
    assert!(fails(&parrot, &Corpus::default(), Quiz::few_shot(0)).contains("no questions"));
    assert!(fails(&parrot, &corpus, Quiz::few_shot(4)).contains("few_shot = 4"));
    assert!(fails(&parrot, &corpus, Quiz::few_shot(1).max_new_tokens(0)).contains("max_new_tokens = 0"));
    let short = Parrot { context: 30, ..Parrot::new(&[]) };
    assert!(fails(&short, &corpus, Quiz::few_shot(2)).contains("30 positions of parrot"));
    let mut unanswered = people();
    unanswered.questions[2].answers.clear();
    assert!(fails(&parrot, &unanswered, Quiz::few_shot(2)).contains("city of Bo"));
    let mut closed = people();
    closed.documents.remove(1);
    assert!(fails(&parrot, &closed, Quiz::few_shot(1).open_book(true)).contains("no document `Bo`"));
}

#[test]
fn perplexity_adds_up_counts_over_windows() {
    let parrot = Parrot { context: 16, ..Parrot::new(&[]) };
    let texts: Vec<Document> =
        ["aaaa", "AB", "", &"c".repeat(50)].iter().map(|t| Document::new("x", *t, vec![])).collect();
    let got = perplexity(&parrot, &texts).unwrap();
    // The start token is context, everything after it is predicted.
    assert_eq!((got.tokens, got.texts), (56, 4));
    assert!((got.log_prob - (-0.5 * 54.0 - 2.0 * 2.0)).abs() < 1e-9);
    assert!((got.value() - (31.0f64 / 56.0).exp()).abs() < 1e-9);
    assert!(perplexity(&parrot, &texts[2..3]).is_err());
}

fn small_model(texts: &Corpus) -> Model {
    let tokenizer = Tokenizer::train_bpe(texts.documents.iter().map(|d| d.text.as_str()), 400).unwrap();
    let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 2, 4, 2, 64, 512);
    Model::random("tiny", config, tokenizer, 3).unwrap()
}

#[test]
fn continuations_are_as_likely_as_within_whole_texts() {
    let corpus = Biographies::new(4).seed(5).generate().unwrap();
    let model = small_model(&corpus);
    let ids = |text: &str| model.tokenizer().encode_raw(text).unwrap().ids;
    let text = ids(&corpus.documents[0].text);
    let rest = [ids(" Oslo"), ids(" University of St Andrews"), ids(" x")];
    // One prompt; several with a common beginning, one of them no longer than it; several that share nothing.
    let longer = [&text[..], &ids(" She")].concat();
    let cases = [
        vec![text.clone()],
        vec![text[..1].to_vec()],
        vec![longer, text.clone(), text[..9].to_vec()],
        vec![ids("Oslo is"), ids("x"), text.clone()],
    ];
    for prompts in cases {
        let rests: Vec<_> = (0..prompts.len()).map(|i| rest[..3 - i].to_vec()).collect();
        let got = model.continuation_log_probs(&prompts, &rests).unwrap();
        assert_eq!(got.len(), prompts.len());
        for ((prompt, rests), rows) in prompts.iter().zip(&rests).zip(got) {
            assert_eq!(rows.len(), rests.len());
            for (rest, row) in rests.iter().zip(rows) {
                let whole = [prompt.as_slice(), rest].concat();
                let want = &model.token_log_probs(&Batch::new(&[whole])).unwrap()[0][prompt.len()..];
                assert_eq!(row.len(), rest.len());
                for (g, w) in row.iter().zip(want) {
                    // f32 sums in another grouping.
                    assert!((g - w).abs() < 1e-4, "{g} and {w}");
                }
            }
        }
    }
    let fails = |prompt: Vec<u32>, rest| model.continuation_log_probs(&[prompt], &[vec![rest]]).is_err();
    assert!(fails(vec![], vec![1]) && fails(vec![1], vec![]) && fails(vec![1], vec![1; 512]));
    assert!(model.continuation_log_probs(&[vec![1]], &[]).is_err());
    assert_eq!(model.continuation_log_probs(&[vec![1]], &[vec![]]).unwrap(), [Vec::<Vec<f32>>::new()]);
}

/// A kept quiz goes on where it stopped, says the same to the last bit, and is not taken for another.
#[test]
fn finished_answers_outlive_an_interruption() {
    let corpus = Biographies::new(40).seed(5).generate().unwrap();
    let model = small_model(&corpus);
    let quiz = || Quiz::few_shot(1).distractors(2);
    let whole = model.quiz(&corpus, quiz()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.json");
    assert_eq!(model.quiz(&corpus, quiz().checkpoint(&path)).unwrap(), whole);
    // Half of the answers are gone, and what is kept of one of the others is marked.
    let mut kept: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let answers = kept["answers"].as_object_mut().unwrap();
    assert_eq!(answers.len(), 200);
    let city: Vec<usize> = (0..200).filter(|i| whole.answers[*i].field == "city").collect();
    (0..200).filter(|i| !city.contains(i)).for_each(|i| drop(answers.remove(&i.to_string())));
    answers[&city[0].to_string()]["prediction"] = "marked".into();
    std::fs::write(&path, kept.to_string()).unwrap();
    let resumed = model.quiz(&corpus, quiz().checkpoint(&path)).unwrap();
    assert_eq!(resumed.answers[city[0]].prediction, "marked", "finished answers are not asked again");
    let same = |i: usize| i == city[0] || resumed.answers[i] == whole.answers[i];
    assert!((0..200).all(same));
    let other = model.quiz(&corpus, quiz().seed(1).checkpoint(&path)).unwrap_err().to_string();
    assert!(other.contains("another quiz or model"), "{other}");
    std::fs::write(&path, "{\"quiz\":").unwrap();
    let damaged = model.quiz(&corpus, quiz().checkpoint(&path)).unwrap_err().to_string();
    assert!(damaged.contains("delete the file to ask again"), "{damaged}");
}

#[test]
fn answers_in_another_arithmetic_are_another_quiz() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("answers.json");
    let mut parrot = Parrot::new(&[]);
    let asked =
        |parrot: &Parrot| quiz(parrot, &people(), &Quiz::few_shot(0).distractors(0).checkpoint(&path));
    let first = asked(&parrot).unwrap();
    assert_eq!(asked(&parrot).unwrap(), first);
    assert_eq!(parrot.batches.borrow().len(), 2, "city and company, once");
    parrot.arithmetic = Some("cuda bf16");
    let message = asked(&parrot).unwrap_err().to_string();
    assert!(message.contains("another quiz or model"), "{message}");
}

#[test]
fn the_projects_paragraphs_can_be_quizzed() {
    let corpus = Corpus::paragraphs().unwrap();
    let model = small_model(&corpus);
    let result = model.quiz(&corpus, Quiz::few_shot(5).distractors(3)).unwrap();
    assert_eq!((result.answers.len(), corpus.examples.len()), (103, 9));
    assert!(result.answers.iter().all(|a| a.prompt.matches("Answer:").count() == 6 && a.choices.len() == 4));
    let asked: Vec<&str> = corpus.questions.iter().map(|q| q.question.as_str()).collect();
    assert!(corpus.examples.iter().all(|e| !asked.contains(&e.question.as_str())));
}

#[test]
fn a_model_can_be_quizzed_on_generated_people() {
    let corpus = Biographies::new(3).seed(5).generate().unwrap();
    let model = small_model(&corpus);
    let result = model.quiz(&corpus, Quiz::few_shot(2).distractors(2)).unwrap();
    assert_eq!(result.answers.len(), 15);
    assert_eq!(result, model.quiz(&corpus, Quiz::few_shot(2).distractors(2)).unwrap());
    assert_eq!(result.by_field().len(), 5);
    for answer in &result.answers {
        assert_eq!(answer.choices.len(), 3, "{}", answer.field);
        // An untrained model is nearly uniform over its 400 tokens.
        let per_token = answer.log_prob().unwrap() / answer.answer_tokens as f64;
        assert!((per_token + 400f64.ln()).abs() < 0.5, "{per_token}");
    }
    let perplexity = model.perplexity(&corpus.documents).unwrap();
    assert!((300.0..520.0).contains(&perplexity.value()), "{perplexity}");
}

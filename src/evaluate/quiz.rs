//! Asks a model every question of a corpus.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Examinee;
use super::kept::{Kept, Said};
use super::prompt::Prompter;
use super::result::{Answer, Choice, QuizResult};
use super::score::{exact_match, f1, normalize_answer};
use crate::corpus::{Corpus, Question};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provenance::{Provenance, content_hash};
use crate::random::Stream;

/// Prompts answered at once: enough to fill the machine, few enough to stop soon after an interrupt.
const BATCH_PROMPTS: usize = 64;

/// How to ask.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `few_shot` | 5 | worked examples before each question | 0 or more, at most what the corpus has |
/// | `seed` | 0 | of the examples' and distractors' draw | any |
/// | `max_new_tokens` | 10 | length of an answer | 1 or more |
/// | `distractors` | 9 | wrong answers offered beside the right one; 0 leaves the graded measures out | 0 or more |
/// | `open_book` | false | puts the document before the question | |
/// | `checkpoint` | – | file in which finished answers outlive an interruption | a path |
///
/// ```
/// use cluescope::evaluate::Quiz;
/// let quiz = Quiz::few_shot(5).distractors(4).seed(7);
/// assert_eq!(quiz, Quiz::few_shot(5).seed(7).distractors(4));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiz {
    few_shot: usize,
    seed: u64,
    max_new_tokens: usize,
    distractors: usize,
    open_book: bool,
    #[serde(skip)]
    checkpoint: Option<PathBuf>,
}

impl Quiz {
    /// A quiz with `examples` worked examples before each question (paper: 5).
    pub fn few_shot(examples: usize) -> Self {
        Quiz {
            few_shot: examples,
            seed: 0,
            max_new_tokens: 10,
            distractors: 9,
            open_book: false,
            checkpoint: None,
        }
    }

    /// Seed of the draw of examples and distractors.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The most tokens of an answer (paper: 10).
    pub fn max_new_tokens(mut self, tokens: usize) -> Self {
        self.max_new_tokens = tokens;
        self
    }

    /// Wrong answers to compare the right one with; 0 skips both graded measures.
    pub fn distractors(mut self, count: usize) -> Self {
        self.distractors = count;
        self
    }

    /// Whether the document stands before its question: measures reading, not knowing.
    pub fn open_book(mut self, open: bool) -> Self {
        self.open_book = open;
        self
    }
}

impl Quiz {
    /// Keeps finished answers in the file `path` and goes on from there when it holds answers of the same quiz by the same
    /// version: a killed quiz redoes no more than the time of [`save_every`](crate::files::save_every). The file stays when all
    /// is answered.
    pub fn checkpoint(mut self, path: impl Into<PathBuf>) -> Self {
        self.checkpoint = Some(path.into());
        self
    }

    /// The most worked examples that every question of `corpus` can have; 0 without questions.
    pub fn most_examples(corpus: &Corpus) -> usize {
        Prompter::new(corpus, 0, 0, false).fewest_examples(&corpus.questions)
    }

    /// About the bytes of the answers to `corpus`, checkpoint included.
    ///
    /// # Errors
    /// As [`Quiz::check`].
    pub fn expected_bytes(&self, corpus: &Corpus) -> Result<u64> {
        // Beside the prompt: the answer's fields, and a line each for the choices, whose texts are short.
        let answer = |prompt: String| prompt.len() + 1000 + 150 * (self.distractors + 1);
        Ok(prompts(corpus, self)?.into_iter().map(answer).sum::<usize>() as u64)
    }

    /// Refuses what cannot be asked of any model: settings out of range, questions without answers, too few examples.
    ///
    /// # Errors
    /// As [`quiz`](quiz()).
    pub fn check(&self, corpus: &Corpus) -> Result<()> {
        prompts(corpus, self).map(drop)
    }

    /// [`Quiz::check`], and whether `examinee` can read every prompt with its answers.
    ///
    /// # Errors
    /// As [`quiz`](quiz()).
    pub fn check_for(&self, examinee: &dyn Examinee, corpus: &Corpus) -> Result<()> {
        ask(examinee, corpus, self).map(drop)
    }
}

/// Asks `examinee` every question of `corpus`; answers come back in the order of the questions.
///
/// # Errors
/// [`Error::Option`] for settings out of range, [`Error::Stopped`] for a corpus without questions, a question without answers
/// or a prompt that with an answer is longer than the model's context: all before the first answer; errors of the model and
/// of the [checkpoint](Quiz::checkpoint).
pub fn quiz(examinee: &dyn Examinee, corpus: &Corpus, quiz: &Quiz) -> Result<QuizResult> {
    let asked = ask(examinee, corpus, quiz)?;
    let mut kept = Kept::open(quiz.checkpoint.as_deref(), identity(examinee, quiz, &asked)?)?;
    // One field after the other: its prompts begin alike, and the model computes a shared beginning once.
    let mut by_field: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, asked) in asked.iter().enumerate() {
        by_field.entry(&asked.answer.field).or_default().push(i);
    }
    let progress = Progress::start("quiz", asked.len() as u64, "questions");
    for batch in by_field.values().flat_map(|all| all.chunks(BATCH_PROMPTS)) {
        if !kept.has(batch) {
            let said = respond(examinee, &asked, batch, quiz)?;
            kept.add(batch, said)?;
        }
        if let Err(stop) = progress.advance(batch.len() as u64) {
            kept.save()?;
            return Err(stop);
        }
    }
    kept.save()?;
    let answers = asked.into_iter().enumerate().map(|(i, asked)| asked.finish(kept.take(i))).collect();
    let mut provenance = Provenance::new("quiz")
        .model(examinee.name(), examinee.hash())
        .option("few_shot", quiz.few_shot)
        .option("seed", quiz.seed)
        .option("max_new_tokens", quiz.max_new_tokens)
        .option("distractors", quiz.distractors)
        .option("open_book", quiz.open_book);
    if let Some(arithmetic) = examinee.arithmetic() {
        provenance = provenance.option("device", arithmetic);
    }
    Ok(QuizResult { answers, provenance })
}

/// A question ready to be asked.
struct Asked {
    /// Everything known of the answer before the model is asked.
    answer: Answer,
    /// Token ids of the prompt.
    prompt: Vec<u32>,
    /// Possible answers, the right one first; none without graded measures.
    texts: Vec<String>,
    /// Tokens of the prompt that go before every possible answer: usually all, less where a tokenizer joins the
    /// prompt's last character to an answer's first.
    shared: usize,
    /// What follows them, one row a possible answer.
    rest: Vec<Vec<u32>>,
}

impl Asked {
    fn finish(self, said: Said) -> Answer {
        let choices = self.texts.into_iter().zip(&self.rest).zip(said.log_probs);
        let choices = choices
            .map(|((answer, rest), log_prob)| Choice {
                answer,
                log_prob: f64::from_bits(log_prob),
                tokens: rest.len(),
            })
            .collect();
        Answer {
            exact_match: exact_match(&said.prediction, &self.answer.right),
            f1: f1(&said.prediction, &self.answer.right),
            prediction: said.prediction,
            choices,
            ..self.answer
        }
    }
}

/// The prompt of every question.
fn prompts(corpus: &Corpus, quiz: &Quiz) -> Result<Vec<String>> {
    if corpus.questions.is_empty() {
        return Err(Error::Stopped("quiz: the corpus has no questions; generate or import some".into()));
    }
    if quiz.max_new_tokens == 0 {
        return Err(Error::option("max_new_tokens", 0, "at least 1; the paper uses 10"));
    }
    let prompter = Prompter::new(corpus, quiz.few_shot, quiz.seed, quiz.open_book);
    let of = |question: &Question| {
        if question.answers.is_empty() {
            let place = place(question);
            return Err(Error::Stopped(format!("{place} has no right answer; add one or drop it")));
        }
        prompter.prompt(question)
    };
    corpus.questions.iter().map(of).collect()
}

fn place(question: &Question) -> String {
    format!("quiz: `{}` ({})", question.question, question.document)
}

/// Every question in the tokens of `examinee`.
fn ask(examinee: &dyn Examinee, corpus: &Corpus, quiz: &Quiz) -> Result<Vec<Asked>> {
    let first = corpus.first_asked();
    let pools = Pools::new(&corpus.questions, &first);
    let prompts = prompts(corpus, quiz)?.into_iter();
    prompts
        .zip(&corpus.questions)
        .enumerate()
        .map(|(i, (prompt, question))| {
            let mut texts = Vec::new();
            if quiz.distractors > 0 {
                texts.push(question.answers[0].clone());
                texts.extend(pools.distractors(question, i, quiz));
            }
            let mut asked = ask_one(examinee, question, prompt, texts, quiz)?;
            let first = first[question.document.as_str()];
            asked.answer.cluster = (first != question.document).then(|| first.to_string());
            Ok(asked)
        })
        .collect()
}

fn ask_one(
    examinee: &dyn Examinee,
    question: &Question,
    text: String,
    texts: Vec<String>,
    quiz: &Quiz,
) -> Result<Asked> {
    let prompt = examinee.encode(&text)?;
    let fits = |tokens: usize, what: &str| {
        if tokens <= examinee.max_positions() {
            return Ok(());
        }
        let (place, most, name) = (place(question), examinee.max_positions(), examinee.name());
        Err(Error::Stopped(format!(
            "{place}: {what} exceed the {most} positions of {name}; use fewer examples"
        )))
    };
    let new = quiz.max_new_tokens;
    fits(prompt.len() + new, &format!("a prompt of {} tokens and {new} for the answer", prompt.len()))?;
    let with = |answer: &str| examinee.encode(&format!("{text} {answer}"));
    let mut lengths = Vec::with_capacity(question.answers.len());
    for right in &question.answers {
        let whole = with(right)?;
        lengths.push(whole.len() - shared_start(&prompt, &whole));
    }
    let mut whole = Vec::with_capacity(texts.len());
    for answer in &texts {
        let ids = with(answer)?;
        fits(ids.len(), &format!("the {} tokens of the prompt with the answer `{answer}`", ids.len()))?;
        whole.push(ids);
    }
    let shared = whole.iter().map(|ids| shared_start(&prompt, ids)).min().unwrap_or(0);
    let answer = Answer {
        document: question.document.clone(),
        cluster: None,
        field: question.field.clone(),
        question: question.question.clone(),
        distance: question.distance,
        prompt: text,
        prediction: String::new(),
        right: question.answers.clone(),
        exact_match: 0.0,
        f1: 0.0,
        answer_tokens: lengths[0],
        too_long: lengths.iter().all(|&n| n > quiz.max_new_tokens),
        choices: Vec::new(),
    };
    let rest = whole.iter().map(|ids| ids[shared..].to_vec()).collect();
    Ok(Asked { answer, prompt, texts, shared, rest })
}

/// Greedy answers to some questions, and how likely the model holds the possible ones.
fn respond(examinee: &dyn Examinee, asked: &[Asked], batch: &[usize], quiz: &Quiz) -> Result<Vec<Said>> {
    let prompts: Vec<Vec<u32>> = batch.iter().map(|&i| asked[i].prompt.clone()).collect();
    let mut said = Vec::with_capacity(batch.len());
    for new in examinee.answer(&prompts, quiz.max_new_tokens)? {
        let prediction = first_line(&examinee.decode(&new)?).to_string();
        said.push(Said { prediction, log_probs: Vec::new() });
    }
    if quiz.distractors > 0 {
        let before: Vec<Vec<u32>> =
            batch.iter().map(|&i| asked[i].prompt[..asked[i].shared].to_vec()).collect();
        let rests: Vec<Vec<Vec<u32>>> = batch.iter().map(|&i| asked[i].rest.clone()).collect();
        let found = examinee.continuation_log_probs(&before, &rests)?;
        for (said, rows) in said.iter_mut().zip(found) {
            let sum = |row: Vec<f32>| row.iter().map(|&p| f64::from(p)).sum::<f64>().to_bits();
            said.log_probs = rows.into_iter().map(sum).collect();
        }
    }
    Ok(said)
}

/// What counts of a continuation. A model may open with a line end instead of a blank; that is an empty answer.
fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default().trim()
}

/// What decides the answers, as a hash.
fn identity(examinee: &dyn Examinee, quiz: &Quiz, asked: &[Asked]) -> Result<String> {
    let settings =
        serde_json::to_vec(quiz).map_err(|e| Error::Stopped(format!("quiz: its settings: {e}")))?;
    let ids = |ids: &[u32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let questions = asked.iter().flat_map(|a| {
        let rests = a.rest.iter().map(|rest| ids(rest));
        std::iter::once(ids(&a.prompt)).chain(rests).collect::<Vec<_>>()
    });
    let head = [examinee.hash().as_bytes().to_vec(), settings];
    let arithmetic = examinee.arithmetic().map(String::into_bytes);
    Ok(content_hash(head.into_iter().chain(arithmetic).chain(questions)))
}

/// Tokens that `prompt` and `whole` begin with alike; at least one stays for the answer.
fn shared_start(prompt: &[u32], whole: &[u32]) -> usize {
    let same = prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    same.min(whole.len().saturating_sub(1))
}

/// Each field's answers, sorted, with those they belong to: the first documents about them.
struct Pools<'a> {
    answers: BTreeMap<&'a str, BTreeMap<String, (&'a str, Vec<&'a str>)>>,
    first: &'a HashMap<&'a str, &'a str>,
}

impl<'a> Pools<'a> {
    fn new(questions: &'a [Question], first: &'a HashMap<&'a str, &'a str>) -> Self {
        let mut pools: BTreeMap<&str, BTreeMap<String, (&str, Vec<&str>)>> = BTreeMap::new();
        for q in questions.iter().filter(|q| !q.answers.is_empty()) {
            let entry = pools.entry(&q.field).or_default().entry(normalize_answer(&q.answers[0]));
            entry.or_insert_with(|| (&q.answers[0], Vec::new())).1.push(first[q.document.as_str()]);
        }
        Pools { answers: pools, first }
    }

    /// Wrong answers for the `index`th question: others' answers that no right answer equals.
    fn distractors(&self, question: &Question, index: usize, quiz: &Quiz) -> Vec<String> {
        let right: Vec<String> = question.answers.iter().map(|a| normalize_answer(a)).collect();
        let Some(pool) = self.answers.get(question.field.as_str()) else { return Vec::new() };
        let own = self.first[question.document.as_str()];
        let fits = |normal: &str, whose: &[&str]| {
            !right.iter().any(|r| r == normal) && whose.iter().any(|first| *first != own)
        };
        let all: Vec<&str> =
            pool.iter().filter(|(n, (_, whose))| fits(n, whose)).map(|(_, (text, _))| *text).collect();
        Stream::new(quiz.seed, "distractors", &[index as u64])
            .sample(all.len(), quiz.distractors)
            .into_iter()
            .map(|i| all[i].to_string())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_start_leaves_a_token() {
        assert_eq!(shared_start(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        assert_eq!(shared_start(&[1, 2, 3], &[1, 2, 9, 4]), 2);
        assert_eq!(shared_start(&[1, 2, 3], &[1, 2, 3]), 2);
    }

    #[test]
    fn only_the_first_line_counts() {
        assert_eq!(first_line(" Oslo \nWhich"), "Oslo");
        assert_eq!(first_line("\nOslo"), "");
    }
}

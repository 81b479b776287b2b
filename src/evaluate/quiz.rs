//! Asks a model every question of a corpus.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Examinee;
use super::prompt::Prompter;
use super::result::{Answer, Choice, QuizResult};
use super::score::{exact_match, f1, normalize_answer};
use crate::corpus::{Corpus, Question};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::provenance::Provenance;
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
}

impl Quiz {
    /// A quiz with `examples` worked examples before each question (paper: 5).
    pub fn few_shot(examples: usize) -> Self {
        Quiz { few_shot: examples, seed: 0, max_new_tokens: 10, distractors: 9, open_book: false }
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

/// Asks `examinee` every question of `corpus`; answers come back in the order of the questions.
///
/// # Errors
/// [`Error::Option`] for settings out of range, [`Error::Stopped`] for a corpus without questions, a question without answers
/// or a prompt longer than the model's context; errors of the model.
pub fn quiz(examinee: &dyn Examinee, corpus: &Corpus, quiz: &Quiz) -> Result<QuizResult> {
    if corpus.questions.is_empty() {
        return Err(Error::Stopped("quiz: the corpus has no questions; generate or import some".into()));
    }
    if quiz.max_new_tokens == 0 {
        return Err(Error::option("max_new_tokens", 0, "at least 1; the paper uses 10"));
    }
    let prompter = Prompter::new(corpus, quiz.few_shot, quiz.seed, quiz.open_book);
    let mut answers = Vec::with_capacity(corpus.questions.len());
    let mut prompts = Vec::with_capacity(corpus.questions.len());
    for question in &corpus.questions {
        let (answer, ids) = prepare(examinee, &prompter, question, quiz)?;
        answers.push(answer);
        prompts.push(ids);
    }
    generate(examinee, &prompts, &mut answers, quiz)?;
    if quiz.distractors > 0 {
        grade(examinee, corpus, &prompts, &mut answers, quiz)?;
    }
    let provenance = Provenance::new("quiz")
        .model(examinee.name(), examinee.hash())
        .option("few_shot", quiz.few_shot)
        .option("seed", quiz.seed)
        .option("max_new_tokens", quiz.max_new_tokens)
        .option("distractors", quiz.distractors)
        .option("open_book", quiz.open_book);
    Ok(QuizResult { answers, provenance })
}

/// Everything known of an answer before the model is asked, and the prompt's token ids.
fn prepare(
    examinee: &dyn Examinee,
    prompter: &Prompter,
    question: &Question,
    quiz: &Quiz,
) -> Result<(Answer, Vec<u32>)> {
    let place = || format!("quiz: `{}` ({})", question.question, question.document);
    if question.answers.is_empty() {
        return Err(Error::Stopped(format!("{} has no right answer; add one or drop it", place())));
    }
    let prompt = prompter.prompt(question)?;
    let ids = examinee.encode(&prompt)?;
    if ids.len() + quiz.max_new_tokens > examinee.max_positions() {
        return Err(Error::Stopped(format!(
            "{}: a prompt of {} tokens and {} for the answer exceed the {} positions of {}; use fewer examples",
            place(),
            ids.len(),
            quiz.max_new_tokens,
            examinee.max_positions(),
            examinee.name()
        )));
    }
    let mut lengths = Vec::with_capacity(question.answers.len());
    for right in &question.answers {
        let whole = examinee.encode(&format!("{prompt} {right}"))?;
        lengths.push(whole.len() - shared_start(&ids, &whole));
    }
    let answer = Answer {
        document: question.document.clone(),
        field: question.field.clone(),
        question: question.question.clone(),
        distance: question.distance,
        prompt,
        prediction: String::new(),
        right: question.answers.clone(),
        exact_match: 0.0,
        f1: 0.0,
        answer_tokens: lengths[0],
        too_long: lengths.iter().all(|&n| n > quiz.max_new_tokens),
        choices: Vec::new(),
    };
    Ok((answer, ids))
}

/// Greedy answers and their scores.
fn generate(
    examinee: &dyn Examinee,
    prompts: &[Vec<u32>],
    answers: &mut [Answer],
    quiz: &Quiz,
) -> Result<()> {
    let progress = Progress::start("quiz", prompts.len() as u64, "questions");
    // One field after the other: its prompts begin alike, and the model computes a shared beginning once.
    let mut by_field: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, answer) in answers.iter().enumerate() {
        by_field.entry(&answer.field).or_default().push(i);
    }
    let batches: Vec<Vec<usize>> =
        by_field.values().flat_map(|all| all.chunks(BATCH_PROMPTS)).map(<[usize]>::to_vec).collect();
    for batch in batches {
        let some: Vec<Vec<u32>> = batch.iter().map(|&i| prompts[i].clone()).collect();
        for (&i, new) in batch.iter().zip(examinee.answer(&some, quiz.max_new_tokens)?) {
            let answer = &mut answers[i];
            answer.prediction = first_line(&examinee.decode(&new)?).to_string();
            answer.exact_match = exact_match(&answer.prediction, &answer.right);
            answer.f1 = f1(&answer.prediction, &answer.right);
        }
        progress.advance(batch.len() as u64)?;
    }
    Ok(())
}

/// What counts of a continuation. A model may open with a line end instead of a blank; that is an empty answer.
fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default().trim()
}

/// Log-probability of the right answer and of its distractors.
fn grade(
    examinee: &dyn Examinee,
    corpus: &Corpus,
    prompts: &[Vec<u32>],
    answers: &mut [Answer],
    quiz: &Quiz,
) -> Result<()> {
    let progress = Progress::start("grading", prompts.len() as u64, "questions");
    let pools = Pools::new(&corpus.questions);
    for (i, question) in corpus.questions.iter().enumerate() {
        let mut texts = vec![question.answers[0].clone()];
        texts.extend(pools.distractors(question, i, quiz));
        let mut whole = Vec::with_capacity(texts.len());
        for text in &texts {
            let ids = examinee.encode(&format!("{} {text}", answers[i].prompt))?;
            if ids.len() > examinee.max_positions() {
                return Err(Error::Stopped(format!(
                    "quiz: `{}` with the answer `{text}` has {} tokens, {} has {} positions; use fewer examples",
                    question.question,
                    ids.len(),
                    examinee.name(),
                    examinee.max_positions()
                )));
            }
            whole.push(ids);
        }
        // Usually the whole prompt; less where a tokenizer joins its last character to the answer's first.
        let shared = whole.iter().map(|ids| shared_start(&prompts[i], ids)).min().unwrap_or(0);
        let rest: Vec<Vec<u32>> = whole.iter().map(|ids| ids[shared..].to_vec()).collect();
        let rows = examinee.continuation_log_probs(&prompts[i][..shared], &rest)?;
        answers[i].choices = texts
            .into_iter()
            .zip(rows)
            .map(|(answer, row)| Choice {
                answer,
                log_prob: row.iter().map(|&p| f64::from(p)).sum(),
                tokens: row.len(),
            })
            .collect();
        progress.advance(1)?;
    }
    Ok(())
}

/// Tokens that `prompt` and `whole` begin with alike; at least one stays for the answer.
fn shared_start(prompt: &[u32], whole: &[u32]) -> usize {
    let same = prompt.iter().zip(whole).take_while(|(a, b)| a == b).count();
    same.min(whole.len().saturating_sub(1))
}

/// Each field's answers, sorted, with the document they belong to.
struct Pools<'a>(BTreeMap<&'a str, BTreeMap<String, (&'a str, Vec<&'a str>)>>);

impl<'a> Pools<'a> {
    fn new(questions: &'a [Question]) -> Self {
        let mut pools: BTreeMap<&str, BTreeMap<String, (&str, Vec<&str>)>> = BTreeMap::new();
        for q in questions.iter().filter(|q| !q.answers.is_empty()) {
            let entry = pools.entry(&q.field).or_default().entry(normalize_answer(&q.answers[0]));
            entry.or_insert_with(|| (&q.answers[0], Vec::new())).1.push(&q.document);
        }
        Pools(pools)
    }

    /// Wrong answers for the `index`th question: other documents' answers that no right answer equals.
    fn distractors(&self, question: &Question, index: usize, quiz: &Quiz) -> Vec<String> {
        let right: Vec<String> = question.answers.iter().map(|a| normalize_answer(a)).collect();
        let Some(pool) = self.0.get(question.field.as_str()) else { return Vec::new() };
        let fits = |normal: &str, documents: &[&str]| {
            !right.iter().any(|r| r == normal) && documents.iter().any(|d| *d != question.document)
        };
        let all: Vec<&str> =
            pool.iter().filter(|(n, (_, docs))| fits(n, docs)).map(|(_, (text, _))| *text).collect();
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

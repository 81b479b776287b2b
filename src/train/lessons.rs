//! What the nano pair reads: an endless, seeded stream of short texts about invented people.
//!
//! | text | share | teaches |
//! |---|---|---|
//! | a biography, then its questions | about half | finding a fact in the context |
//! | few-shot questions about others first, as the quiz asks them | of these, half | that examples are not the source |
//! | two biographies, then questions about both | about a quarter | that the name decides |
//! | biographies of *residents*, or questions about them alone | `resident_share` | answering from the weights |
//! | a row of random tokens, repeated | `echo_share`, in the first `echo_until` of the steps | copying |
//!
//! Every person but the residents is met in one text only, so nothing about them is worth remembering. The residents are a fixed
//! group whose biographies (several wordings each) and questions come again and again, in separate texts: a model that never
//! had to answer from memory would not learn to be asked about what it is fine-tuned on (Allen-Zhu and Li 2023, part 3.1).
//! Repeated random tokens make the copying circuit ("induction heads", Olsson et al. 2022) appear within some hundred steps instead of
//! thousands; see the pilots in [`Recipe`](super::Recipe).

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::corpus::{Biographies, Corpus, Document, Question, Templates, Wording};
use crate::error::{Error, Result};
use crate::random::Stream;
use crate::tokens::Tokenizer;

/// The group all people of the stream come from; the quiz's people come from others.
pub(super) const SPLIT: &str = "pretrain";

/// The mixture of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// People met again and again.
    pub residents: usize,
    /// Share of texts about residents.
    pub resident_share: f64,
    /// Share of repeated random tokens while they last.
    pub echo_share: f64,
    /// Share of the steps during which they last.
    pub echo_until: f64,
    /// Share of the tokens outside answers that are predicted; drawn anew each time. Answers, and the blank line that ends
    /// them, always are, so answers weigh `1 / plain_targets` times as much.
    pub plain_targets: f64,
}

/// One text and what is predicted in it.
pub(super) struct Lesson {
    pub(super) id: String,
    pub(super) ids: Vec<u32>,
    pub(super) targets: Vec<Option<u32>>,
}

/// A person with their texts and questions.
struct Person {
    biographies: Vec<Document>,
    questions: Vec<Question>,
    reworded: Vec<Question>,
}

/// People made at one time; a chunk is kept until the stream leaves it.
const CHUNK: usize = 512;
/// Biographies of each resident.
const VERSIONS: usize = 6;

/// The stream.
pub(super) struct Lessons {
    mixture: Mixture,
    seed: u64,
    residents: Vec<Person>,
    known: HashSet<String>,
    chunk: Option<(u64, Vec<Person>)>,
}

impl Lessons {
    pub(super) fn new(mixture: &Mixture, seed: u64) -> Result<Lessons> {
        let mut lessons = Lessons {
            mixture: mixture.clone(),
            seed,
            residents: Vec::new(),
            known: HashSet::new(),
            chunk: None,
        };
        if mixture.residents > 0 {
            let base = Biographies::new(mixture.residents).split(SPLIT).seed(lessons.draw("residents", 0));
            lessons.residents = people(&base, VERSIONS)?;
            lessons.known = lessons.residents.iter().map(|p| p.biographies[0].id.clone()).collect();
        }
        Ok(lessons)
    }

    fn draw(&self, purpose: &str, index: u64) -> u64 {
        Stream::new(self.seed, purpose, &[index]).bits64()
    }

    /// Texts to learn the tokenizer from: `texts` of the stream, written out.
    pub(super) fn sample(&mut self, texts: usize) -> Result<Vec<String>> {
        let mut sample = Vec::with_capacity(texts);
        for index in 0..texts as u64 {
            let mut stream = Stream::new(self.seed, "tokenizer text", &[index]);
            sample.push(self.text(&mut stream, index * 2)?.text);
        }
        Ok(sample)
    }

    /// Text number `index`; `progress` is the share of the run done.
    pub(super) fn lesson(&mut self, tokenizer: &Tokenizer, index: u64, progress: f64) -> Result<Lesson> {
        let mut stream = Stream::new(self.seed, "lesson", &[index]);
        let echo = stream.chance(self.mixture.echo_share);
        if echo && progress < self.mixture.echo_until {
            return Ok(echo_lesson(&mut stream, index, tokenizer.vocab_size()));
        }
        let draft = self.text(&mut stream, index * 2)?;
        let encoding = tokenizer.encode(&draft.text)?;
        let mut targets = vec![None; encoding.ids.len()];
        for next in 1..encoding.ids.len() {
            let (start, end) = encoding.offsets[next];
            let answer = draft.answers.iter().any(|&(from, to)| start < to && from < end);
            if answer || stream.chance(self.mixture.plain_targets) {
                targets[next - 1] = Some(encoding.ids[next]);
            }
        }
        Ok(Lesson { id: format!("text {index}: {}", draft.id), ids: encoding.ids, targets })
    }

    /// The stream of another seed without echoes and residents, of which only the answers are predicted: the loss on it says how well
    /// the model reads.
    pub(super) fn probe(&self, tokenizer: &Tokenizer, texts: u64) -> Result<Vec<Lesson>> {
        let mixture = Mixture {
            residents: 0,
            resident_share: 0.0,
            echo_share: 0.0,
            echo_until: 0.0,
            plain_targets: 0.0,
        };
        let mut lessons = Lessons::new(&mixture, self.draw("probe", 0))?;
        (0..texts).map(|index| lessons.lesson(tokenizer, index, 1.0)).collect()
    }

    /// People `first` and `first + 1` of the endless row, the residents left out.
    fn strangers(&mut self, first: u64) -> Result<(&Person, &Person)> {
        let number = first / CHUNK as u64;
        if self.chunk.as_ref().is_none_or(|(held, _)| *held != number) {
            let base =
                Biographies::new(CHUNK + self.known.len()).split(SPLIT).seed(self.draw("people", number));
            let mut people = people(&base, 2)?;
            people.retain(|person| !self.known.contains(&person.biographies[0].id));
            self.chunk = Some((number, people));
        }
        let people = self.chunk.as_ref().map_or(&[][..], |(_, people)| people);
        let at = (first % CHUNK as u64) as usize;
        match (people.get(at), people.get(at + 1)) {
            (Some(one), Some(other)) => Ok((one, other)),
            _ => Err(Error::Stopped(format!(
                "pretraining: the generator made {} people of {CHUNK}",
                people.len()
            ))),
        }
    }

    fn text(&mut self, stream: &mut Stream, people: u64) -> Result<Draft> {
        if !self.residents.is_empty() && stream.chance(self.mixture.resident_share) {
            return Ok(self.about_residents(stream));
        }
        let kind = stream.unit_f64();
        let (one, other) = self.strangers(people)?;
        let mut draft = Draft { id: one.biographies[0].id.clone(), ..Default::default() };
        let questions = one.questions(stream);
        if kind < 0.35 {
            // Read, then asked.
            draft.biography(one.pick(stream));
            draft.text.push('\n');
            draft.ask_all(&questions);
        } else if kind < 0.7 {
            // The quiz's form: examples of one field about others, then the text, then the question of that field.
            let field = stream.below(questions.len());
            let shots = stream.below(5) + 1;
            let seed = stream.bits64();
            let first = questions[field].clone();
            let mut rest = questions;
            rest.swap(0, field);
            let book = one.pick(stream).clone();
            let examples = self.examples(people, &first.field, shots, seed);
            for example in &examples {
                draft.ask(example);
            }
            draft.biography(&book);
            draft.text.push('\n');
            draft.ask_all(&rest);
        } else {
            // Two people, questions about both in random order.
            draft.biography(one.pick(stream));
            draft.text.push_str("\n\n");
            draft.biography(other.pick(stream));
            draft.text.push('\n');
            let mut all = questions;
            all.extend(other.questions(stream));
            stream.shuffle(&mut all);
            all.truncate(7);
            draft.ask_all(&all);
        }
        Ok(draft)
    }

    /// Questions of one field about other people of the chunk.
    fn examples(&self, people: u64, field: &str, count: usize, seed: u64) -> Vec<Question> {
        let all = self.chunk.as_ref().map_or(&[][..], |(_, people)| people);
        let at = (people % CHUNK as u64) as usize;
        let mut stream = Stream::new(seed, "examples", &[]);
        let mut found = Vec::with_capacity(count);
        while found.len() < count {
            let who = stream.below(all.len());
            if who != at && who != at + 1 {
                found.extend(all[who].questions.iter().find(|q| q.field == field).cloned());
            }
        }
        found
    }

    fn about_residents(&self, stream: &mut Stream) -> Draft {
        let mut draft = Draft { id: "residents".into(), ..Default::default() };
        if stream.chance(0.5) {
            for index in stream.sample(self.residents.len(), 2) {
                draft.biography(self.residents[index].pick(stream));
                draft.text.push_str("\n\n");
            }
        } else {
            let field = stream.below(self.residents[0].questions.len());
            for index in stream.sample(self.residents.len(), 8) {
                draft.ask(&self.residents[index].questions[field]);
            }
        }
        draft
    }
}

impl Person {
    fn pick(&self, stream: &mut Stream) -> &Document {
        &self.biographies[stream.below(self.biographies.len())]
    }

    /// All questions in random order, mostly in the paper's words.
    fn questions(&self, stream: &mut Stream) -> Vec<Question> {
        let mut questions = if stream.chance(0.8) { self.questions.clone() } else { self.reworded.clone() };
        stream.shuffle(&mut questions);
        questions
    }
}

/// A text being written, with the characters of its answers.
#[derive(Default)]
struct Draft {
    id: String,
    text: String,
    /// Ranges of characters, the blank line after each answer included: it is what ends an answer.
    answers: Vec<(usize, usize)>,
}

impl Draft {
    fn biography(&mut self, document: &Document) {
        self.text.push_str(&document.text);
    }

    fn ask(&mut self, question: &Question) {
        self.text.push_str(&question.question);
        self.text.push_str("\nAnswer:");
        let start = self.text.chars().count();
        self.text.push(' ');
        self.text.push_str(question.answers.first().map_or("", String::as_str));
        self.text.push_str("\n\n");
        self.answers.push((start, self.text.chars().count()));
    }

    fn ask_all(&mut self, questions: &[Question]) {
        for question in questions {
            self.ask(question);
        }
    }
}

/// The people of `base` with `versions` biographies each: the first in the paper's sentences, the others in varied ones, in every
/// second of those the sentences permuted and the name in each.
fn people(base: &Biographies, versions: usize) -> Result<Vec<Person>> {
    let paper = base.clone().generate()?;
    let mut people: BTreeMap<String, Person> = BTreeMap::new();
    let mut order = Vec::with_capacity(paper.documents.len());
    for document in &paper.documents {
        order.push(document.id.clone());
        let person =
            Person { biographies: vec![document.clone()], questions: Vec::new(), reworded: Vec::new() };
        people.insert(document.id.clone(), person);
    }
    let varied = base.clone().templates(Templates::Varied);
    let free = varied.clone().permute_sentences(true);
    for version in 1..versions {
        let form = if version % 2 == 0 { varied.clone() } else { free.clone().full_name(version % 4 == 3) };
        // Asking for more biographies a person gives new draws; the last of them is used.
        for document in last_version(&form.per_person(version).generate()?, order.len()) {
            let person = document.id.split('/').next().and_then(|id| people.get_mut(id));
            if let Some(person) = person {
                person.biographies.push(document);
            }
        }
    }
    for (questions, reworded) in
        [(paper.questions.clone(), false), (paper.clone().ask(&Wording::Reworded).questions, true)]
    {
        for question in questions {
            if let Some(person) = people.get_mut(&question.document) {
                if reworded { &mut person.reworded } else { &mut person.questions }.push(question);
            }
        }
    }
    Ok(order.iter().filter_map(|id| people.remove(id)).collect())
}

fn last_version(corpus: &Corpus, people: usize) -> Vec<Document> {
    corpus.documents[corpus.documents.len() - people..].to_vec()
}

/// Random tokens, repeated; only the repetition is predicted.
fn echo_lesson(stream: &mut Stream, index: u64, vocabulary: usize) -> Lesson {
    let period = 6 + stream.below(19);
    let length = period + 24 + stream.below(40);
    let row: Vec<u32> = (0..period).map(|_| stream.below(vocabulary) as u32).collect();
    let ids: Vec<u32> = (0..length).map(|i| row[i % period]).collect();
    let targets = (0..length).map(|i| (i >= period && i + 1 < length).then(|| ids[i + 1])).collect();
    Lesson { id: format!("text {index}: repeated tokens"), ids, targets }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture() -> Mixture {
        Mixture { residents: 20, resident_share: 0.2, echo_share: 0.3, echo_until: 0.5, plain_targets: 0.4 }
    }

    #[test]
    fn the_stream_is_the_same_wherever_it_is_entered() {
        let mut lessons = Lessons::new(&mixture(), 1).unwrap();
        let sample = lessons.sample(60).unwrap();
        let tokenizer = Tokenizer::train_bpe(sample.iter().map(String::as_str), 600).unwrap();
        let all: Vec<Lesson> = (0..600).map(|i| lessons.lesson(&tokenizer, i, 0.1).unwrap()).collect();
        let mut again = Lessons::new(&mixture(), 1).unwrap();
        for i in [599, 3, 300, 256, 255] {
            let lesson = again.lesson(&tokenizer, i as u64, 0.1).unwrap();
            assert_eq!((&lesson.ids, &lesson.targets), (&all[i].ids, &all[i].targets), "{i}");
        }
        assert!(all.iter().any(|l| l.id.ends_with("repeated tokens")));
        assert!((0..50).all(|i| !again.lesson(&tokenizer, i, 0.6).unwrap().id.ends_with("repeated tokens")));
    }

    #[test]
    fn every_answer_is_predicted_to_its_end_and_stands_in_the_text_before() {
        let mixture = Mixture { resident_share: 0.0, echo_share: 0.0, plain_targets: 0.0, ..mixture() };
        let mut lessons = Lessons::new(&mixture, 2).unwrap();
        let sample = lessons.sample(60).unwrap();
        let tokenizer = Tokenizer::train_bpe(sample.iter().map(String::as_str), 600).unwrap();
        let mut answered = 0;
        for index in 0..100 {
            let mut stream = Stream::new(2, "test", &[index]);
            let draft = lessons.text(&mut stream, index * 2).unwrap();
            let book = draft.text.find(&draft.id).map(|at| &draft.text[at..]).unwrap();
            for question in lessons.strangers(index * 2).unwrap().0.questions.iter() {
                if draft.text.contains(&format!("{}\nAnswer: {}\n\n", question.question, question.answers[0]))
                {
                    answered += 1;
                    assert!(book.matches(&question.answers[0]).count() >= 2, "{}", draft.text);
                }
            }
            let lesson = lessons.lesson(&tokenizer, index, 0.0).unwrap();
            let predicted: Vec<u32> = lesson.targets.iter().flatten().copied().collect();
            let text = tokenizer.decode(&predicted).unwrap();
            assert!(text.starts_with(' ') && text.ends_with("\n\n"), "{text:?}");
        }
        assert!(answered > 200, "{answered}");
    }

    #[test]
    fn strangers_are_met_once_and_never_residents() {
        let mut lessons = Lessons::new(&mixture(), 3).unwrap();
        let residents: HashSet<String> = lessons.known.clone();
        assert_eq!(residents.len(), 20);
        let mut met = HashSet::new();
        for i in 0..(CHUNK as u64 / 2) {
            let (one, other) = lessons.strangers(i * 2).unwrap();
            for person in [one, other] {
                let id = person.biographies[0].id.clone();
                assert!(!residents.contains(&id) && met.insert(id));
                assert_eq!((person.questions.len(), person.reworded.len()), (5, 5));
            }
        }
    }
}

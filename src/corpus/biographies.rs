//! Invented people and their biographies (paper, section 2; the controls are those of bioS, Allen-Zhu and
//! Li 2023, "Physics of Language Models: Part 3.1").

use super::lists::lists;
use super::names::{Name, Pool, SPLITS};
use super::templates::{Templates, Writer};
use super::{Corpus, Document, FIELDS, VersionOf, Wording};
use crate::error::{Error, Result};
use crate::random::Stream;

/// Makes biographies of invented people, five questions about each, and fifty answered questions about ten
/// well-known people.
///
/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `seed` | 0 | which people and facts, and every draw of the text | any |
/// | `split` | `"test"` | people of different splits never meet, whatever the seeds | `test`, `validation`, `train`, `pretrain` |
/// | `offset` | 0 | leaves out the first people of the split | up to its end (over 100,000) |
/// | `templates` | the paper's | sentences | [`Templates`] |
/// | `permute_sentences` | off | sentences in random order | |
/// | `full_name` | off | the name instead of He/She | |
/// | `field_order` | date, city, university, major, company | order and choice of the facts | different fields |
/// | `per_person` | 1 | biographies of each person, with their own draws | 1 to 1000 |
/// | `wording` | the paper's | of the questions | [`Wording`] |
///
/// Person `i` has the same name and facts whatever `n`, `offset` and the options of the text are, so that
/// conditions can be compared person by person.
///
/// ```
/// use cluescope::corpus::Biographies;
/// let people = Biographies::new(100).seed(1).generate()?;
/// let far = Biographies::new(100).seed(1).field_order(["company", "date"]).generate()?;
/// assert_eq!(people.documents[7].fact("company"), far.documents[7].fact("company"));
/// # Ok::<(), cluescope::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is made before `generate`"]
pub struct Biographies {
    n: usize,
    seed: u64,
    split: String,
    offset: usize,
    templates: Templates,
    permute_sentences: bool,
    full_name: bool,
    field_order: Vec<String>,
    per_person: usize,
    wording: Wording,
}

impl Biographies {
    /// Biographies of `n` people.
    pub fn new(n: usize) -> Self {
        Biographies {
            n,
            seed: 0,
            split: SPLITS[0].into(),
            offset: 0,
            templates: Templates::Paper,
            permute_sentences: false,
            full_name: false,
            field_order: FIELDS.map(String::from).to_vec(),
            per_person: 1,
            wording: Wording::Paper,
        }
    }

    /// Which people, facts and draws.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The group the people come from: `test` (default), `validation`, `train` or `pretrain`. No person of one
    /// split appears in another, even under another seed.
    pub fn split(mut self, split: impl Into<String>) -> Self {
        self.split = split.into();
        self
    }

    /// Leaves out the first `people` of the split: two calls whose ranges do not overlap share nobody.
    pub fn offset(mut self, people: usize) -> Self {
        self.offset = people;
        self
    }

    /// Which sentences state the facts.
    pub fn templates(mut self, templates: Templates) -> Self {
        self.templates = templates;
        self
    }

    /// Puts the sentences of each biography in random order; the name moves to the new first sentence.
    pub fn permute_sentences(mut self, permute: bool) -> Self {
        self.permute_sentences = permute;
        self
    }

    /// Uses the name in every sentence instead of He or She.
    pub fn full_name(mut self, full_name: bool) -> Self {
        self.full_name = full_name;
        self
    }

    /// Which facts, in which order.
    pub fn field_order<S: Into<String>>(mut self, fields: impl IntoIterator<Item = S>) -> Self {
        self.field_order = fields.into_iter().map(Into::into).collect();
        self
    }

    /// Makes `k` biographies of each person; the ids are `name`, `name/2`, `name/3`, … Questions name the first.
    pub fn per_person(mut self, k: usize) -> Self {
        self.per_person = k;
        self
    }

    /// How the questions are worded.
    pub fn wording(mut self, wording: Wording) -> Self {
        self.wording = wording;
        self
    }

    /// Makes the corpus: the first biographies of all people, then the second ones, and so on.
    ///
    /// # Errors
    /// [`Error::Option`] naming the option out of range.
    pub fn generate(&self) -> Result<Corpus> {
        let (split, sentences) = self.check()?;
        let pool = Pool::new(split, self.seed);
        let last = self.offset.checked_add(self.n).filter(|last| *last <= pool.len());
        if last.is_none() {
            let expected = format!("offset + n may be at most {}, the people of a split", pool.len());
            return Err(Error::option("n", format!("{} after {}", self.n, self.offset), expected));
        }
        let people: Vec<(usize, Name)> =
            (self.offset..self.offset + self.n).filter_map(|i| Some((i, pool.name(i)?))).collect();
        let mut documents = Vec::with_capacity(self.n * self.per_person);
        for k in 0..self.per_person {
            for (i, name) in &people {
                documents.push(self.biography(name, split, *i, k, &sentences));
            }
        }
        let questions = self.wording.ask(&documents[..self.n]);
        let mut corpus = Corpus { documents, questions, examples: Vec::new() };
        corpus.examples = self.wording.ask(&real_people(&self.field_order).documents);
        Ok(corpus)
    }

    /// Ten well-known people in the paper's sentences, with the paper's questions: the source of the few-shot
    /// examples.
    pub fn real_people() -> Corpus {
        real_people(&FIELDS.map(String::from)).ask(&Wording::Paper)
    }

    /// The split's number and the sentences of each field, in field order.
    fn check(&self) -> Result<(usize, Vec<Vec<String>>)> {
        if self.n == 0 {
            return Err(Error::option("n", 0, "at least one person"));
        }
        if !(1..=1000).contains(&self.per_person) {
            return Err(Error::option("per_person", self.per_person, "1 to 1000"));
        }
        let Some(split) = SPLITS.iter().position(|s| *s == self.split) else {
            return Err(Error::option("split", &self.split, format!("one of {}", SPLITS.join(", "))));
        };
        let order = &self.field_order;
        let wrong =
            order.iter().enumerate().find(|(i, f)| !FIELDS.contains(&f.as_str()) || order[..*i].contains(f));
        if order.is_empty() || wrong.is_some() {
            let expected = format!("different fields of: {}", FIELDS.join(", "));
            return Err(Error::option("field_order", order.join(", "), expected));
        }
        Ok((split, order.iter().map(|f| self.templates.of(f)).collect::<Result<_>>()?))
    }

    fn biography(
        &self,
        name: &Name,
        split: usize,
        i: usize,
        k: usize,
        sentences: &[Vec<String>],
    ) -> Document {
        let facts = Facts::draw(&mut Stream::new(self.seed, "biography facts", &[split as u64, i as u64]));
        let mut text = Stream::new(self.seed, "biography text", &[split as u64, i as u64, k as u64]);
        let mut order: Vec<usize> = (0..self.field_order.len()).collect();
        if self.permute_sentences {
            text.shuffle(&mut order);
        }
        let mut writer = Writer::new(name.full.clone(), name, self.full_name);
        for field in order {
            let choice = text.below(sentences[field].len());
            let field_name = &self.field_order[field];
            writer.sentence(&sentences[field][choice], field_name, facts.get(field_name));
        }
        let mut document = writer.finish();
        if k > 0 {
            document.version_of = VersionOf::Of(std::mem::take(&mut document.id));
            document.id = format!("{}/{}", name.full, k + 1);
        }
        document
    }
}

fn real_people(fields: &[String]) -> Corpus {
    let mut corpus = Corpus::default();
    for person in &lists().real_people {
        let name = Name { full: person.name.clone(), woman: person.pronoun == "She" };
        let mut writer = Writer::new(name.full.clone(), &name, false);
        for field in fields {
            let value = match field.as_str() {
                "date" => &person.date,
                "city" => &person.city,
                "university" => &person.university,
                "major" => &person.major,
                _ => &person.company,
            };
            let sentence = lists().templates.iter().find(|(f, _)| f == field).map_or("", |(_, t)| t);
            writer.sentence(sentence, field, value);
        }
        corpus.documents.push(writer.finish());
    }
    corpus
}

struct Facts {
    date: String,
    city: &'static str,
    university: &'static str,
    major: &'static str,
    company: &'static str,
}

impl Facts {
    fn draw(stream: &mut Stream) -> Self {
        // All five are drawn, in this order, whatever the options: facts stay with the person.
        let date = date(stream);
        let mut pick = |list: &[&'static str]| stream.choose(list).copied().unwrap_or_default();
        Facts {
            date,
            city: pick(&lists().cities),
            university: pick(&lists().universities),
            major: pick(&lists().majors),
            company: pick(&lists().companies),
        }
    }

    fn get(&self, field: &str) -> &str {
        match field {
            "date" => &self.date,
            "city" => self.city,
            "university" => self.university,
            "major" => self.major,
            _ => self.company,
        }
    }
}

const MONTHS: [(&str, usize); 12] = [
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
];

/// A day of 1940 to 2004, in the paper's form: `January 5, 1990`.
fn date(stream: &mut Stream) -> String {
    let year = 1940 + stream.below(65);
    let (month, days) = MONTHS[stream.below(12)];
    // No century year but 2000, a leap year, lies in the range.
    let days = if month == "February" && year.is_multiple_of(4) { 29 } else { days };
    format!("{month} {}, {year}", 1 + stream.below(days))
}

//! People, where the models look in their texts, and what a condition makes of the texts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cell::Cell;
use super::condition::{Condition, Student};
use super::pair_runner::Models;
use crate::attention::{Aggregation, Attend, Heads};
use crate::augment::{Augment, Eda};
use crate::contrast::{Contrast, ContrastText, Contrasting, Guide, GuideText};
use crate::corpus::Corpus;
use crate::error::Result;

/// One group of people.
#[derive(Debug, Clone, Default)]
pub(super) struct Group {
    pub(super) corpus: Corpus,
    /// Shared by clones, which have the same models: whoever needs it first measures it, and the others wait.
    measured: Arc<Mutex<Attention>>,
}

/// Where the models look in the texts of a group.
#[derive(Debug, Default)]
struct Attention {
    /// By the student on whose tokens it is laid, and by what is looked at.
    contrasts: BTreeMap<(Student, Looking), Arc<Contrast>>,
    /// The third model's own attention, by whether it is computed as in the released script.
    third: BTreeMap<bool, Vec<GuideText>>,
}

/// Which attention a cell's copies go by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Looking {
    released: bool,
    guide: Guide,
    /// Of the large and of the small model.
    heads: [Heads; 2],
}

impl Looking {
    fn options(&self) -> Contrasting {
        let [large, small] = self.heads.clone();
        Contrasting::new()
            .aggregation(aggregation(self.released))
            .guide(self.guide.clone())
            .heads(large, small)
    }
}

/// What a cell trains on.
pub(super) struct Taught {
    pub(super) corpus: Corpus,
    /// Copies of which nothing was left.
    pub(super) blank: usize,
}

impl Group {
    pub(super) fn new(corpus: Corpus) -> Self {
        Group { corpus, ..Group::default() }
    }

    /// Refuses texts without the probes that are to guide.
    pub(super) fn check_probes(&self, named: &[String]) -> Result<()> {
        Contrasting::new().guide(probes(&self.corpus, named)).check(&self.corpus.documents)
    }

    fn looking(&self, cell: &Cell) -> Looking {
        Looking {
            released: cell.condition.released(),
            guide: match cell.condition {
                Condition::ProbeDifference => probes(&self.corpus, &cell.guide_probe),
                _ => Guide::Received,
            },
            heads: cell.heads.clone().unwrap_or_default(),
        }
    }

    /// The pair's attention on the tokens of `student`, as `cell` looks at it.
    pub(super) fn contrast(&self, models: &Models, student: Student, cell: &Cell) -> Result<Arc<Contrast>> {
        let tokens = models.student(student)?.tokenizer();
        let foreign = tokens.hash() != models.pair.small.tokenizer().hash();
        let key = (if foreign { student } else { Student::Small }, self.looking(cell));
        let mut attention = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(measured) = attention.contrasts.get(&key) {
            return Ok(measured.clone());
        }
        let mut options = key.1.options();
        if foreign {
            options = options.onto(tokens);
        }
        let measured = Arc::new(models.pair.contrast_with(&self.corpus, &options)?);
        attention.contrasts.insert(key, measured.clone());
        Ok(measured)
    }

    /// The student's own attention.
    fn own(&self, models: &Models, cell: &Cell) -> Result<Vec<GuideText>> {
        let (student, released) = (cell.student, cell.condition.released());
        if student != Student::Third {
            return Ok(side(&*self.contrast(models, student, cell)?, student));
        }
        let mut attention = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(measured) = attention.third.get(&released) {
            return Ok(measured.clone());
        }
        let options = Attend::new().aggregation(aggregation(released));
        let measured = models.student(student)?.attend(&self.corpus.documents, &options)?.guide();
        attention.third.insert(released, measured.clone());
        Ok(measured)
    }

    /// The texts of `cell`; `None` when nothing is trained.
    pub(super) fn taught(&self, cell: &Cell, models: &Models) -> Result<Option<Taught>> {
        let (student, released) = (cell.student, cell.condition.released());
        let augment = match cell.condition {
            Condition::Untrained => return Ok(None),
            Condition::Plain | Condition::PlainEqualSteps | Condition::Denoising => Augment::plain(),
            Condition::Random | Condition::ReleasedRandom => {
                Augment::random().tokenizer(models.student(student)?.tokenizer())
            }
            Condition::OwnAttention | Condition::ReleasedOwnAttention => {
                Augment::by_guide(self.own(models, cell)?)
            }
            Condition::LargeAttention => {
                Augment::by_guide(side(&*self.contrast(models, student, cell)?, Student::Large))
            }
            Condition::AttentionDifference
            | Condition::ProbeDifference
            | Condition::HeadsDifference
            | Condition::ReleasedDifference => {
                Augment::by_guide(self.contrast(models, student, cell)?.guide())
            }
            Condition::Eda => Augment::eda(Eda::default()),
            Condition::SentenceShuffle => Augment::shuffle_sentences(),
            Condition::BiographyPermutation => Augment::permute_biographies(),
        };
        let copies = cell.copies.unwrap_or(0);
        let mut augment = augment
            .alpha(cell.alpha.unwrap_or_default())
            .beta(cell.beta.unwrap_or_default())
            .copies(copies)
            .seed(cell.seed);
        if released {
            augment = augment.as_released();
        }
        let corpus = augment.apply(&self.corpus)?;
        let drawn = self.corpus.documents.len() * (copies + usize::from(!released));
        Ok(Some(Taught { blank: drawn - corpus.documents.len(), corpus }))
    }
}

fn aggregation(released: bool) -> Aggregation {
    if released { Aggregation::AsReleased } else { Aggregation::Paper }
}

/// One model's attention as a guide.
fn side(contrast: &Contrast, which: Student) -> Vec<GuideText> {
    let score = |text: &ContrastText| match which {
        Student::Large => text.large.clone(),
        _ => text.small.clone(),
    };
    let guide = |text: &ContrastText| {
        GuideText::new(&text.id, text.offsets.clone(), score(text)).for_text(&text.text)
    };
    contrast.texts.iter().map(guide).collect()
}

/// The probes of the facts named, or of all that are asked about.
fn probes(corpus: &Corpus, named: &[String]) -> Guide {
    if !named.is_empty() {
        return Guide::Probe(named.to_vec());
    }
    let Corpus { questions, documents, .. } = corpus;
    let mut facts: Vec<String> = questions.iter().map(|question| question.field.clone()).collect();
    facts.sort();
    facts.dedup();
    facts.retain(|fact| documents.iter().flat_map(|d| &d.spans).any(|span| span.field == *fact));
    Guide::Probe(facts)
}

/// Whether every text has a probe of a fact that is asked about, which [`Condition::ProbeDifference`] follows; so has a
/// corpus without texts.
pub fn has_probes(corpus: &Corpus) -> bool {
    let guide = probes(corpus, &[]);
    corpus.documents.is_empty() || Contrasting::new().guide(guide).check(&corpus.documents).is_ok()
}

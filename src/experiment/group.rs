//! People, where the models look in their texts, and what a condition makes of the texts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::cell::Cell;
use super::condition::{Condition, Student};
use super::pair_runner::Models;
use crate::attention::{Aggregation, Attend};
use crate::augment::{Augment, Eda};
use crate::contrast::{Contrast, ContrastText, Contrasting, GuideText};
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
    /// By the student on whose tokens it is laid, and whether attention is computed as in the released script.
    contrasts: BTreeMap<(Student, bool), Arc<Contrast>>,
    /// The third model's own attention, by the same switch.
    third: BTreeMap<bool, Vec<GuideText>>,
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

    /// The pair's attention on the tokens of `student`.
    pub(super) fn contrast(
        &self,
        models: &Models,
        student: Student,
        released: bool,
    ) -> Result<Arc<Contrast>> {
        let tokens = models.student(student)?.tokenizer();
        let foreign = tokens.hash() != models.pair.small.tokenizer().hash();
        let key = (if foreign { student } else { Student::Small }, released);
        let mut attention = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(measured) = attention.contrasts.get(&key) {
            return Ok(measured.clone());
        }
        let mut options = Contrasting::new().aggregation(aggregation(released));
        if foreign {
            options = options.onto(tokens);
        }
        let measured = Arc::new(models.pair.contrast_with(&self.corpus, &options)?);
        attention.contrasts.insert(key, measured.clone());
        Ok(measured)
    }

    /// The student's own attention.
    fn own(&self, models: &Models, student: Student, released: bool) -> Result<Vec<GuideText>> {
        if student != Student::Third {
            return Ok(side(&*self.contrast(models, student, released)?, student));
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
                Augment::by_guide(self.own(models, student, released)?)
            }
            Condition::LargeAttention => {
                Augment::by_guide(side(&*self.contrast(models, student, false)?, Student::Large))
            }
            Condition::AttentionDifference | Condition::ReleasedDifference => {
                Augment::by_guide(self.contrast(models, student, released)?.guide())
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

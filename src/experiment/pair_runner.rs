//! Runs cells on a pair of models: attention once, then dropout, fine-tuning and quiz for each cell.

use std::path::Path;
use std::time::Instant;

use super::cell::{Cell, Inputs, LossPoint, Measured, Runner, Stage};
use super::condition::{Condition, Student};
use super::protocol::Protocol;
use crate::augment::Augment;
use crate::contrast::{Contrast, GuideText, ModelPair};
use crate::corpus::{Biographies, Corpus, Document};
use crate::error::{Error, Result};
use crate::evaluate::Quiz;
use crate::model::Model;
use crate::provenance::content_hash;
use crate::train::Finetune;

/// Optimiser steps between checkpoints within a cell, so that a killed run redoes little of it.
const SAVE_STEPS: usize = 25;

/// The experiment with a pair of models, on generated biographies or on texts of one's own.
///
/// The people asked about, the people on whom options are chosen and the people of the held-out texts are three disjoint
/// groups; attention is measured once a group, when the first cell needs it.
#[derive(Debug, Clone)]
pub struct PairRunner {
    pair: ModelPair,
    report: Group,
    tune: Group,
    held_out: Vec<Document>,
    /// The texts are the user's: none are generated.
    own: bool,
}

/// People, and where the two models look in their texts.
#[derive(Debug, Clone, Default)]
struct Group {
    corpus: Corpus,
    contrast: Option<Contrast>,
}

impl Group {
    fn contrast(&mut self, pair: &ModelPair) -> Result<&Contrast> {
        let measured = match self.contrast.take() {
            Some(measured) => measured,
            None => pair.contrast(&self.corpus)?,
        };
        Ok(self.contrast.insert(measured))
    }
}

impl PairRunner {
    /// A runner on `pair`; people are generated when [`run`](super::run()) says how many.
    pub fn new(pair: ModelPair) -> Self {
        PairRunner {
            pair,
            report: Group::default(),
            tune: Group::default(),
            held_out: Vec::new(),
            own: false,
        }
    }

    /// A runner on texts and questions of one's own: `reported` for the table, `tuning`, about others, to choose options (empty
    /// where the protocol has no tuning people), `held_out` for perplexity (may be empty). The protocol's numbers of
    /// people then only say whether there is a search.
    pub fn with_texts(pair: ModelPair, reported: Corpus, tuning: Corpus, held_out: Vec<Document>) -> Self {
        let group = |corpus| Group { corpus, contrast: None };
        PairRunner { pair, report: group(reported), tune: group(tuning), held_out, own: true }
    }

    /// The people of the report; none before the run.
    pub fn corpus(&self) -> &Corpus {
        &self.report.corpus
    }

    /// Where the two models look in the texts of the report.
    ///
    /// # Errors
    /// As [`ModelPair::contrast`].
    pub fn contrast(&mut self) -> Result<&Contrast> {
        self.report.contrast(&self.pair)
    }
}

impl Runner for PairRunner {
    fn prepare(&mut self, protocol: &Protocol) -> Result<Inputs> {
        if !self.own {
            let people = |split: &str, n: usize, offset: usize| -> Result<Corpus> {
                if n == 0 {
                    return Ok(Corpus::default());
                }
                Biographies::new(n).seed(protocol.people_seed).split(split).offset(offset).generate()
            };
            self.report = Group { corpus: people("test", protocol.people, 0)?, contrast: None };
            self.tune = Group { corpus: people("validation", protocol.tuning_people, 0)?, contrast: None };
            self.held_out = people("validation", protocol.held_out, protocol.tuning_people)?.documents;
        }
        // A quiz without questions would fail only after the first training.
        let asked = [
            ("the corpus", &self.report, true),
            ("the tuning corpus", &self.tune, protocol.tuning_people > 0),
        ];
        if let Some((name, ..)) = asked.iter().find(|(_, g, needed)| *needed && g.corpus.questions.is_empty())
        {
            return Err(Error::Stopped(format!(
                "experiment: {name} has no questions; nothing could be measured"
            )));
        }
        Ok(Inputs {
            models: [self.pair.small.hash().to_string(), self.pair.large.hash().to_string()],
            reported: hash(&self.report.corpus)?,
            tuning: hash(&self.tune.corpus)?,
            held_out: hash(&self.held_out)?,
        })
    }

    fn run(&mut self, cell: &Cell, scratch: &Path) -> Result<Measured> {
        let start = Instant::now();
        let pair = self.pair.clone();
        let student = match cell.student {
            Student::Small => &pair.small,
            Student::Large => &pair.large,
        };
        let group = match cell.stage {
            Stage::Tune => &mut self.tune,
            Stage::Report => &mut self.report,
        };
        let run = match texts(cell, &pair, student, group)? {
            Some(corpus) => Some(student.finetune(&corpus, finetune(cell, scratch))?),
            None => None,
        };
        let trained = run.as_ref().map_or(student, |run| &run.model);
        let quiz = Quiz::few_shot(cell.few_shot).distractors(cell.distractors);
        let quiz = trained.quiz(&group.corpus, quiz)?;
        let perplexity =
            if self.held_out.is_empty() { None } else { Some(trained.perplexity(&self.held_out)?) };
        Ok(Measured {
            quiz,
            perplexity,
            loss: run
                .iter()
                .flat_map(|r| &r.steps)
                .map(|s| LossPoint { step: s.step, loss: s.loss })
                .collect(),
            tokens: run.as_ref().map_or(0, |r| r.tokens() as u64),
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// What the student reads; `None` when it is not trained.
fn texts(cell: &Cell, pair: &ModelPair, student: &Model, group: &mut Group) -> Result<Option<Corpus>> {
    let copies = cell.copies.unwrap_or(0);
    let guided = |guide| Augment::by_guide(guide).beta(cell.beta.unwrap_or_default());
    let augment = match cell.condition {
        Condition::Untrained => return Ok(None),
        Condition::Plain | Condition::PlainEqualSteps => Augment::plain(),
        Condition::Random => Augment::random().tokenizer(student.tokenizer()),
        Condition::OwnAttention => guided(side(group.contrast(pair)?, cell.student)),
        Condition::LargeAttention => guided(side(group.contrast(pair)?, Student::Large)),
        Condition::AttentionDifference => guided(group.contrast(pair)?.guide()),
    };
    let augment = augment.alpha(cell.alpha.unwrap_or_default()).copies(copies).seed(cell.seed);
    Ok(Some(augment.apply(&group.corpus)?))
}

/// One model's attention as a guide.
fn side(contrast: &Contrast, which: Student) -> Vec<GuideText> {
    contrast
        .texts
        .iter()
        .map(|text| {
            let score = match which {
                Student::Small => &text.small,
                Student::Large => &text.large,
            };
            GuideText::new(&text.id, text.offsets.clone(), score.clone())
        })
        .collect()
}

fn finetune(cell: &Cell, scratch: &Path) -> Finetune {
    let finetune = Finetune::lora(cell.lora_r)
        .epochs(cell.epochs)
        .batch_size(cell.batch_size)
        .seed(cell.seed)
        .checkpoint(scratch)
        .save_steps(SAVE_STEPS);
    match cell.learning_rate {
        Some(rate) => finetune.learning_rate(rate),
        None => finetune,
    }
}

fn hash<T: serde::Serialize>(texts: &T) -> Result<String> {
    let json =
        serde_json::to_vec(texts).map_err(|e| Error::Stopped(format!("experiment: the texts: {e}")))?;
    Ok(content_hash([json]))
}

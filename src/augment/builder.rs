//! [`Augment`]: the policies behind one builder.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use super::draw::{Pieces, Ready, Removal};
use super::eda::Eda;
use super::plan::{Plan, Protect};
use super::sentences;
use crate::contrast::{Contrast, GuideText};
use crate::corpus::{Corpus, Document};
use crate::error::{Error, Result};
use crate::progress::{Progress, check_interrupt};
use crate::provenance::content_hash;
use crate::tokens::Tokenizer;

/// The cap of the drop probability where none is given.
pub const ALPHA: f64 = 0.6;
/// How fast the drop probability rises with rank where nothing is said; as [`ALPHA`] one of the values the paper tried.
pub const BETA: f64 = 0.05;

/// Makes a training corpus out of a corpus.
///
/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `alpha` | 0.6 ([`ALPHA`]) | cap of the drop probability (the paper tried 0.6 and 0.7) | 0 to 1 |
/// | `beta` | 0.05 ([`BETA`]) | how fast it rises with rank (the paper tried 0.005 to 0.05) | from 0 |
/// | `copies` | 10; `plain`: 0 | augmented copies of each text | 0 to 100,000 |
/// | `with_originals` | yes | originals mixed in | |
/// | `protect` | none | tokens never dropped | [`Protect`] |
/// | `removal` | delete | what happens to dropped characters | [`Removal`] |
/// | `pieces` | all | when a character of several tokens goes | [`Pieces`] |
/// | `seed` | 0 | the draw; the plan does not depend on it | any |
///
/// The originals come first, then all first copies (`id#1`), all second ones, and so on. Questions and examples
/// stay. A copy of which nothing but blanks is left is left out.
#[derive(Debug, Clone)]
#[must_use = "nothing is made before `apply`"]
pub struct Augment {
    policy: Policy,
    alpha: f64,
    beta: f64,
    copies: Option<usize>,
    with_originals: bool,
    protect: Vec<Protect>,
    removal: Removal,
    pieces: Pieces,
    random_keeps: bool,
    seed: u64,
}

#[derive(Debug, Clone)]
enum Policy {
    Plain,
    Random(Tokens),
    Guide(Vec<GuideText>),
    Eda(Eda),
    ShuffleSentences,
    PermuteBiographies,
}

#[derive(Debug, Clone)]
enum Tokens {
    Missing,
    Of(Tokenizer),
    Given(Vec<GuideText>),
}

impl Augment {
    fn new(policy: Policy) -> Self {
        Augment {
            policy,
            alpha: ALPHA,
            beta: BETA,
            copies: None,
            with_originals: true,
            protect: Vec::new(),
            removal: Removal::Delete,
            pieces: Pieces::All,
            random_keeps: false,
            seed: 0,
        }
    }

    /// No augmentation. With `copies(10)` each text stands eleven times, so that training takes as many
    /// optimiser steps as in the augmented conditions.
    pub fn plain() -> Self {
        Self::new(Policy::Plain)
    }

    /// Every token is dropped with probability α. Needs [`Augment::tokenizer`] or [`Augment::tokens_of`].
    pub fn random() -> Self {
        Self::new(Policy::Random(Tokens::Missing))
    }

    /// Dropped by rank under a guide: a model's own attention ([`crate::attention::Attended::guide`]), the large
    /// model's, or any other score with one text for each document of the corpus (by id).
    pub fn by_guide(guide: Vec<GuideText>) -> Self {
        Self::new(Policy::Guide(guide))
    }

    /// Dropped by rank of the attention difference, large minus small (the paper's method).
    pub fn by_contrast(contrast: &Contrast) -> Self {
        Self::by_guide(contrast.guide())
    }

    /// Words swapped, deleted, inserted, replaced (Wei and Zou 2019).
    pub fn eda(options: Eda) -> Self {
        Self::new(Policy::Eda(options))
    }

    /// The sentences in random order.
    pub fn shuffle_sentences() -> Self {
        Self::new(Policy::ShuffleSentences)
    }

    /// The sentences in random order, and the name in the new first one (bioS permutation).
    pub fn permute_biographies() -> Self {
        Self::new(Policy::PermuteBiographies)
    }

    /// Cap of the drop probability, 0 to 1.
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// How fast the drop probability rises with rank, from 0.
    pub fn beta(mut self, beta: f64) -> Self {
        self.beta = beta;
        self
    }

    /// Augmented copies of each text.
    pub fn copies(mut self, copies: usize) -> Self {
        self.copies = Some(copies);
        self
    }

    /// Whether the originals are trained on too.
    pub fn with_originals(mut self, with_originals: bool) -> Self {
        self.with_originals = with_originals;
        self
    }

    /// Tokens never dropped; later calls add to earlier ones.
    pub fn protect(mut self, protect: impl IntoIterator<Item = Protect>) -> Self {
        self.protect.extend(protect);
        self
    }

    /// What happens to dropped characters.
    pub fn removal(mut self, removal: Removal) -> Self {
        self.removal = removal;
        self
    }

    /// When a character of several tokens goes.
    pub fn pieces(mut self, pieces: Pieces) -> Self {
        self.pieces = pieces;
        self
    }

    /// Seed of the draw.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Whose tokens [`Augment::random`] drops.
    pub fn tokenizer(mut self, tokenizer: &Tokenizer) -> Self {
        if let Policy::Random(tokens) = &mut self.policy {
            *tokens = Tokens::Of(tokenizer.clone());
        }
        self
    }

    /// The tokens [`Augment::random`] drops, as the offsets of a guide; its scores are not used.
    pub fn tokens_of(mut self, guide: Vec<GuideText>) -> Self {
        if let Policy::Random(tokens) = &mut self.policy {
            *tokens = Tokens::Given(guide);
        }
        self
    }

    /// What the authors' script does instead of what their paper says: random dropout *keeps* with probability α;
    /// `,` and `.` are never dropped; dropped characters become blanks, also when only one of a character's tokens
    /// is dropped; the originals are not mixed in. (Its draws had no seed; these have one.)
    pub fn as_released(mut self) -> Self {
        self.random_keeps = true;
        self.with_originals = false;
        self.protect = vec![Protect::CommaAndStop];
        self.removal = Removal::Blank;
        self.pieces = Pieces::Any;
        self
    }

    /// Copies of each text that will be drawn.
    fn count(&self) -> usize {
        self.copies.unwrap_or(if matches!(self.policy, Policy::Plain) { 0 } else { 10 })
    }

    /// Refuses options out of range.
    pub(crate) fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(Error::option("alpha", self.alpha, "a probability, 0 to 1"));
        }
        if !(self.beta >= 0.0 && self.beta.is_finite()) {
            return Err(Error::option("beta", self.beta, "a finite number from 0"));
        }
        if self.count() > 100_000 {
            return Err(Error::option("copies", self.count(), "0 to 100000"));
        }
        if self.count() == 0 && !self.with_originals {
            return Err(Error::option("copies", 0, "at least 1 when the originals are left out"));
        }
        if let Policy::Eda(eda) = &self.policy {
            eda.check()?;
        }
        Ok(())
    }

    /// The drop probability of every token.
    ///
    /// # Errors
    /// [`Error::Option`] for an option out of range, a policy that drops no tokens, or a document without guide;
    /// [`Error::Format`] for a guide made for another text.
    pub fn plan(&self, corpus: &Corpus) -> Result<Plan> {
        self.check()?;
        let random = matches!(self.policy, Policy::Random(_));
        let mut plan = Plan {
            policy: if random { "random" } else { "guide" }.into(),
            alpha: self.alpha,
            beta: self.beta,
            removal: self.removal,
            pieces: self.pieces,
            protect: self.protect.clone(),
            texts: Vec::with_capacity(corpus.documents.len()),
        };
        let (guide, ranked) = match &self.policy {
            Policy::Guide(guide) => (guide, true),
            Policy::Random(Tokens::Given(guide)) => (guide, false),
            Policy::Random(Tokens::Of(tokenizer)) => {
                for document in &corpus.documents {
                    let offsets = tokenizer.encode(&document.text)?.offsets;
                    plan.push(document, &offsets, None, self.constant())?;
                }
                return Ok(plan);
            }
            Policy::Random(Tokens::Missing) => {
                let expected = "Augment::random() needs .tokenizer(&model.tokenizer()): it drops tokens";
                return Err(Error::option("tokenizer", "none", expected));
            }
            _ => {
                let expected = "only Augment::random() and by guide drop tokens by a plan";
                return Err(Error::option("policy", self.name(), expected));
            }
        };
        let by_id: HashMap<&str, &GuideText> = guide.iter().map(|g| (g.id.as_str(), g)).collect();
        for document in &corpus.documents {
            let Some(text) = by_id.get(document.id.as_str()) else {
                let expected = "the guide has no text of this id; make it from the same corpus";
                return Err(Error::option("guide", &document.id, expected));
            };
            if !text.text.is_empty() && text.text != content_hash([&document.text]) {
                let message = "made for another text of this id; make the guide from this very corpus";
                return Err(Error::format(format!("guide of document {:?}", document.id), "", message));
            }
            plan.push(document, &text.offsets, ranked.then_some(text.rank.as_slice()), self.constant())?;
        }
        Ok(plan)
    }

    fn constant(&self) -> f64 {
        if self.random_keeps { 1.0 - self.alpha } else { self.alpha }
    }

    fn name(&self) -> &'static str {
        match self.policy {
            Policy::Plain => "plain",
            Policy::Random(_) => "random",
            Policy::Guide(_) => "guide",
            Policy::Eda(_) => "eda",
            Policy::ShuffleSentences => "shuffle_sentences",
            Policy::PermuteBiographies => "permute_biographies",
        }
    }

    /// The corpus to train on.
    ///
    /// # Errors
    /// Those of [`Augment::plan`], an empty corpus, ids that stand twice, [`Error::Interrupted`].
    pub fn apply(&self, corpus: &Corpus) -> Result<Corpus> {
        self.check()?;
        if corpus.documents.is_empty() {
            return Err(Error::option("corpus", "0 documents", "at least one document to augment"));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = corpus.documents.iter().find(|d| !seen.insert(d.id.as_str())) {
            return Err(Error::option("corpus", &twice.id, "ids must differ: draws are tied to them"));
        }
        let (copies, seed) = (self.count(), self.seed);
        let drawn = match &self.policy {
            Policy::Plain => {
                copy_all(corpus, copies, |d, copy| d.version(copy, d.text.clone(), d.spans.clone()))?
            }
            Policy::Eda(eda) => copy_all(corpus, copies, |d, copy| eda.copy(d, seed, copy))?,
            Policy::ShuffleSentences => {
                copy_all(corpus, copies, |d, copy| sentences::shuffle(d, seed, copy))?
            }
            Policy::PermuteBiographies => {
                copy_all(corpus, copies, |d, copy| sentences::permute_biography(d, seed, copy))?
            }
            Policy::Random(_) | Policy::Guide(_) => self.plan(corpus)?.copies(seed, copies)?,
        };
        let mut documents = if self.with_originals { corpus.documents.clone() } else { Vec::new() };
        documents.extend(drawn.into_iter().filter(|d| !d.text.trim().is_empty()));
        Ok(Corpus { documents, questions: corpus.questions.clone(), examples: corpus.examples.clone() })
    }
}

impl Plan {
    /// All copies 1 to `copies` of all texts: first the first of each, then the second of each. Empty ones are
    /// among them.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn copies(&self, seed: u64, copies: usize) -> Result<Vec<Document>> {
        in_turn(self.texts.len(), copies, |index| {
            let ready = Ready::new(self, &self.texts[index]);
            (1..=copies).map(|copy| ready.copy(seed, copy)).collect()
        })
    }
}

fn copy_all(
    corpus: &Corpus,
    copies: usize,
    one: impl Fn(&Document, usize) -> Document + Sync,
) -> Result<Vec<Document>> {
    in_turn(corpus.documents.len(), copies, |i| {
        (1..=copies).map(|copy| one(&corpus.documents[i], copy)).collect()
    })
}

/// Runs `all_of` for every text on all threads; the result is ordered by copy, then text.
fn in_turn(
    texts: usize,
    copies: usize,
    all_of: impl Fn(usize) -> Vec<Document> + Sync,
) -> Result<Vec<Document>> {
    // What takes less than a blink needs no bar.
    let progress = (texts * copies > 20_000).then(|| Progress::start("augmenting", texts as u64, "texts"));
    let by_text: Vec<Vec<Document>> = (0..texts)
        .into_par_iter()
        .map(|index| {
            let drawn = all_of(index);
            progress.as_ref().map_or_else(check_interrupt, |p| p.advance(1)).map(|()| drawn)
        })
        .collect::<Result<_>>()?;
    let mut by_text: Vec<_> = by_text.into_iter().map(Vec::into_iter).collect();
    let mut out = Vec::with_capacity(texts * copies);
    for _ in 0..copies {
        out.extend(by_text.iter_mut().filter_map(Iterator::next));
    }
    Ok(out)
}

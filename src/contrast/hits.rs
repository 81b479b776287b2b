//! Does a probe notice the name? (paper, Figures 2 and 3)

use std::collections::BTreeMap;

use super::difference::{Contrast, ContrastText, ProbeContrast};
use super::rank::rank_descending;

/// One of the three rows of a [`ProbeContrast`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// The small model's attention.
    Small,
    /// The large model's.
    Large,
    /// Large minus small.
    Difference,
}

impl Row {
    /// All three, in the order of the paper's figures.
    pub const ALL: [Row; 3] = [Row::Small, Row::Large, Row::Difference];

    /// The row of a probe.
    pub fn of(self, probe: &ProbeContrast) -> &[f32] {
        match self {
            Row::Small => &probe.small,
            Row::Large => &probe.large,
            Row::Difference => &probe.difference,
        }
    }
}

/// For one probe: in how many texts a token of the head entity is among the highest weights.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeHits {
    /// The probe's field.
    pub field: String,
    /// Texts with this probe and with the kind of token looked for.
    pub texts: usize,
    /// Texts with a hit, in the small model; the text's first token is no hit.
    pub small: usize,
    /// In the large model.
    pub large: usize,
    /// In the difference.
    pub difference: usize,
    /// Texts with a hit to be expected of a random order of the tokens; counts mean little near it.
    pub chance: f64,
    /// The same where the text's first token may be a hit.
    pub with_first: Tally,
}

/// Texts with a hit, where the text's first token may be one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tally {
    /// Texts with this probe and with the kind of token looked for.
    pub texts: usize,
    /// Texts with a hit, in the small model.
    pub small: usize,
    /// In the large model.
    pub large: usize,
    /// In the difference.
    pub difference: usize,
    /// Texts with a hit to be expected of a random order.
    pub chance: f64,
}

impl Tally {
    /// Counts one text's probe, where tokens for which `hit` holds are hits.
    fn count(&mut self, probe: &ProbeContrast, top: usize, hit: impl Fn(usize) -> bool) {
        let tokens = probe.position + 1;
        let hits = (0..tokens).filter(|&i| hit(i)).count();
        if hits == 0 {
            return;
        }
        self.texts += 1;
        self.chance += chance(tokens, hits, top);
        for (count, row) in [&mut self.small, &mut self.large, &mut self.difference].into_iter().zip(Row::ALL)
        {
            let rank = rank_descending(row.of(probe));
            *count += usize::from((0..rank.len()).any(|i| rank[i] < top && hit(i)));
        }
    }
}

/// The probability that at least one of `hits` tokens is among the first `top` of `tokens` in random order.
fn chance(tokens: usize, hits: usize, top: usize) -> f64 {
    let miss = (0..top.min(tokens)).map(|d| (tokens - hits).saturating_sub(d) as f64 / (tokens - d) as f64);
    1.0 - miss.product::<f64>()
}

impl Contrast {
    /// For each field's probe, in how many texts a token of `kind` (such as `name`) has one of the `top` highest weights.
    ///
    /// A text's first token keeps its place in the ranking but is no hit: without a start token it is the first a model
    /// reads and draws attention whatever it is. With a prefix it is a word like any other, so the counts are also given
    /// with it ([`ProbeHits::with_first`]).
    pub fn probe_hits(&self, kind: &str, top: usize) -> Vec<ProbeHits> {
        let mut found: BTreeMap<&str, (Tally, Tally)> = BTreeMap::new();
        for text in &self.texts {
            for (field, probe) in text.probe.iter().filter(|(field, _)| *field != kind) {
                let of_kind =
                    |i: usize| text.spans.iter().any(|s| s.field == kind && s.overlaps(text.offsets[i]));
                let (strict, with_first) = found.entry(field).or_default();
                strict.count(probe, top, |i| i > 0 && of_kind(i));
                with_first.count(probe, top, of_kind);
            }
        }
        let mut hits: Vec<ProbeHits> = found
            .into_iter()
            .filter(|(_, (_, with_first))| with_first.texts > 0)
            .map(|(field, (Tally { texts, small, large, difference, chance }, with_first))| ProbeHits {
                field: field.into(),
                texts,
                small,
                large,
                difference,
                chance,
                with_first,
            })
            .collect();
        hits.sort_by_key(|h| self.texts.iter().find_map(|t| place(t, &h.field)));
        hits
    }
}

/// Where a field first stands in a text, for an order of fields that follows the texts.
fn place(text: &ContrastText, field: &str) -> Option<usize> {
    text.spans.iter().position(|s| s.field == field)
}

//! Large minus small, token by token (paper, section 3: Contrast).
//!
//! ```text
//! difference[j] = received_large[j] − received_small[j]
//! ```
//!
//! Where the tokenizers differ, or the result is wanted on the tokens of a third, both sides are first
//! normalised and laid on the target's tokens with [`align`]; each is then a share of the attention
//! that falls on text, with total 1.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::align::align;
use super::options::{Contrasting, Guide};
use super::pair::ModelPair;
use super::rank::{GuideText, rank_descending};
use super::sides::{Side, provenance, token_by_token};
use crate::attention::{Attended, AttendedText, Per, ProbeRow, probe_position};
use crate::corpus::{Corpus, Document, Span};
use crate::error::{Error, Result};
use crate::provenance::Provenance;

/// The attention of two models compared, one entry a text, in corpus order.
#[derive(Debug, Clone, PartialEq)]
pub struct Contrast {
    /// Name of the large model.
    pub large: String,
    /// Name of the small model.
    pub small: String,
    /// True when the weights were normalised and laid on other tokens than a model's own.
    pub aligned: bool,
    /// What was read in front of every text.
    pub prefix: String,
    /// Whether layers or heads were kept apart.
    pub per: Per,
    /// Layers of the large model, and heads of each.
    pub large_shape: (usize, usize),
    /// Layers of the small model, and heads of each.
    pub small_shape: (usize, usize),
    /// One entry a text.
    pub texts: Vec<ContrastText>,
    /// Models, options and command.
    pub provenance: Provenance,
}

/// One text; vectors have one entry a token of the target tokenizer, T.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ContrastText {
    /// The document's id.
    pub id: String,
    /// The document's text. Not written to files.
    #[serde(skip)]
    pub text: String,
    /// The document's facts. Not written to files.
    #[serde(skip)]
    pub spans: Vec<Span>,
    /// Vocabulary indices.
    pub ids: Vec<u32>,
    /// Characters covered, `start..end` in Unicode characters; empty for start tokens.
    pub offsets: Vec<(usize, usize)>,
    /// The large model's attention.
    pub large: Vec<f32>,
    /// The small model's attention.
    pub small: Vec<f32>,
    /// `large − small`.
    pub difference: Vec<f32>,
    /// Place in the order of falling difference, 0 for the largest; of equals the earlier token comes first.
    pub rank: Vec<usize>,
    /// Probe rows by field.
    pub probe: BTreeMap<String, ProbeContrast>,
    /// The large model's layers or heads (at `layer · heads + head`) apart, where asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_by: Vec<Vec<f32>>,
    /// The small model's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub small_by: Vec<Vec<f32>>,
}

/// The rows of one probe in both models; `position + 1` entries each.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProbeContrast {
    /// The probe's index among the target's tokens.
    pub position: usize,
    /// The large model's row.
    pub large: Vec<f32>,
    /// The small model's row.
    pub small: Vec<f32>,
    /// `large − small`.
    pub difference: Vec<f32>,
    /// The large model's layers or heads apart, as in [`ContrastText::large_by`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_by: Vec<Vec<f32>>,
    /// The small model's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub small_by: Vec<Vec<f32>>,
}

impl ModelPair {
    /// Compares the two models' attention on every document, with the paper's definitions.
    ///
    /// # Errors
    /// As [`Model::attend`](crate::model::Model::attend).
    pub fn contrast(&self, corpus: &Corpus) -> Result<Contrast> {
        self.contrast_with(corpus, &Contrasting::new())
    }

    /// As [`ModelPair::contrast`], with options.
    ///
    /// # Errors
    /// As [`Model::attend`](crate::model::Model::attend); [`Error::Option`] for a guiding probe that a text does not have.
    pub fn contrast_with(&self, corpus: &Corpus, options: &Contrasting) -> Result<Contrast> {
        let small =
            Side::measure(&self.small, &corpus.documents, &options.attend_with(&options.small_heads))?;
        let large =
            Side::measure(&self.large, &corpus.documents, &options.attend_with(&options.large_heads))?;
        between(&corpus.documents, &large, &small, options)
    }
}

pub(super) fn between(
    documents: &[Document],
    large: &Side,
    small: &Side,
    options: &Contrasting,
) -> Result<Contrast> {
    let aligned = !token_by_token(documents, large, small, options)?;
    let target = options.onto.as_ref().unwrap_or(&small.tokenizer);
    let mut texts = Vec::with_capacity(documents.len());
    for (number, document) in documents.iter().enumerate() {
        let (large, small) = (&large.attended.texts[number], &small.attended.texts[number]);
        let (ids, offsets) = if aligned {
            let encoding =
                target.encode(&document.text).map_err(|e| e.at(format!("text {}", document.id)))?;
            (encoding.ids, encoding.offsets)
        } else {
            (small.ids.clone(), small.offsets.clone())
        };
        let on = Target { offsets: &offsets, aligned };
        texts.push(on.compare(document, ids, large, small, &options.guide)?);
    }
    Ok(Contrast {
        large: large.attended.model.clone(),
        small: small.attended.model.clone(),
        aligned,
        prefix: options.attend.prefix_text().into(),
        per: small.attended.per,
        large_shape: (large.attended.layers, large.attended.heads),
        small_shape: (small.attended.layers, small.attended.heads),
        texts,
        provenance: provenance(large, small, options, aligned),
    })
}

/// The tokens a result is laid on.
struct Target<'a> {
    offsets: &'a [(usize, usize)],
    aligned: bool,
}

impl Target<'_> {
    fn lay(&self, text: &AttendedText, weights: &[f32]) -> Vec<f32> {
        if self.aligned { align(&text.offsets, weights, self.offsets) } else { weights.to_vec() }
    }

    /// A probe row on the target's tokens `0..=position`.
    fn lay_row(&self, text: &AttendedText, row: &[f32], position: usize) -> Vec<f32> {
        if self.aligned {
            align(&text.offsets[..row.len()], row, &self.offsets[..=position])
        } else {
            row.to_vec()
        }
    }

    fn compare(
        &self,
        document: &Document,
        ids: Vec<u32>,
        large: &AttendedText,
        small: &AttendedText,
        guide: &Guide,
    ) -> Result<ContrastText> {
        let mut probe = BTreeMap::new();
        for (field, of_small) in &small.probe {
            let Some(of_large) = large.probe.get(field) else { continue };
            let position = if self.aligned {
                let start = document.spans.iter().find(|s| s.field == *field).map_or(0, |s| s.start);
                probe_position(self.offsets, start)
            } else {
                Some(of_small.position)
            };
            let Some(position) = position else { continue };
            let lay = |text: &AttendedText, row: &[f32]| self.lay_row(text, row, position);
            let by = |text: &AttendedText, probe: &ProbeRow| {
                probe.weights_by.iter().map(|row| lay(text, row)).collect::<Vec<_>>()
            };
            let (of_both, large_by, small_by) = (
                (lay(large, &of_large.weights), lay(small, &of_small.weights)),
                by(large, of_large),
                by(small, of_small),
            );
            let difference = minus(&of_both.0, &of_both.1);
            let (large, small) = of_both;
            probe.insert(
                field.clone(),
                ProbeContrast { position, large, small, difference, large_by, small_by },
            );
        }
        let (of_large, of_small) = match guide {
            Guide::Received => (self.lay(large, &large.received), self.lay(small, &small.received)),
            Guide::Probe(fields) => {
                let rows: Vec<&ProbeContrast> = fields.iter().filter_map(|f| probe.get(f)).collect();
                if rows.is_empty() {
                    // Scores of zero would rank its tokens by their place, unnoticed.
                    return Err(guide.missing(&document.id));
                }
                let mean = |of: fn(&ProbeContrast) -> &[f32]| mean_rows(&rows, of, self.offsets.len());
                (mean(|p| &p.large), mean(|p| &p.small))
            }
        };
        let difference = minus(&of_large, &of_small);
        let apart = |text: &AttendedText| text.received_by.iter().map(|row| self.lay(text, row)).collect();
        Ok(ContrastText {
            id: document.id.clone(),
            text: document.text.clone(),
            spans: document.spans.clone(),
            ids,
            offsets: self.offsets.to_vec(),
            rank: rank_descending(&difference),
            large: of_large,
            small: of_small,
            difference,
            probe,
            large_by: apart(large),
            small_by: apart(small),
        })
    }
}

fn minus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// The mean of `rows` over all `tokens` tokens; a row is 0 after its probe.
fn mean_rows(rows: &[&ProbeContrast], of: fn(&ProbeContrast) -> &[f32], tokens: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; tokens];
    for row in rows {
        sum.iter_mut().zip(of(row)).for_each(|(s, &v)| *s += f64::from(v));
    }
    sum.iter().map(|s| (s / rows.len() as f64) as f32).collect()
}

impl Contrast {
    /// What dropout by attention difference follows.
    pub fn guide(&self) -> Vec<GuideText> {
        let guide = |t: &ContrastText| {
            GuideText::new(&t.id, t.offsets.clone(), t.difference.clone()).for_text(&t.text)
        };
        self.texts.iter().map(guide).collect()
    }

    /// The text with this id.
    ///
    /// # Errors
    /// [`Error::Option`] when there is none.
    pub fn text(&self, id: &str) -> Result<&ContrastText> {
        self.texts.iter().find(|t| t.id == id).ok_or_else(|| {
            Error::option("id", id, format!("the id of one of the {} texts", self.texts.len()))
        })
    }
}

impl Attended {
    /// What dropout by a model's own attention follows.
    pub fn guide(&self) -> Vec<GuideText> {
        let guide =
            |t: &AttendedText| GuideText::new(&t.id, t.offsets.clone(), t.received.clone()).for_text(&t.text);
        self.texts.iter().map(guide).collect()
    }
}

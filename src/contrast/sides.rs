//! The two sides of a contrast: each model's own measurement, before and after they are compared.

use super::difference::{Contrast, ContrastText, ProbeContrast};
use super::options::Contrasting;
use crate::attention::{Attend, Attended, AttendedText, Per, ProbeRow, tokens_of};
use crate::corpus::Document;
use crate::error::Result;
use crate::model::Model;
use crate::provenance::Provenance;
use crate::tokens::Tokenizer;

/// What remains of a model once its attention is measured.
pub(super) struct Side {
    pub(super) attended: Attended,
    pub(super) tokenizer: Tokenizer,
}

impl Side {
    pub(super) fn measure(model: &Model, documents: &[Document], options: &Attend) -> Result<Self> {
        let attended = model.attend(documents, options)?;
        Ok(Side { attended, tokenizer: model.tokenizer().clone() })
    }
}

/// Whether both models and the tokenizer the result is laid on split every text into the same tokens. Decided by the
/// tokens themselves: the same tokenizer written in two forms (`tokenizer.json`, GGUF) has two hashes.
pub(super) fn token_by_token(
    documents: &[Document],
    large: &Side,
    small: &Side,
    options: &Contrasting,
) -> Result<bool> {
    let pairs = large.attended.texts.iter().zip(&small.attended.texts);
    if pairs.into_iter().any(|(a, b)| a.ids != b.ids || a.offsets != b.offsets) {
        return Ok(false);
    }
    let Some(onto) = options.onto.as_ref().filter(|onto| onto.hash() != small.tokenizer.hash()) else {
        return Ok(true);
    };
    for (document, text) in documents.iter().zip(&small.attended.texts) {
        // Read as the models read it, prefix included.
        let (ids, offsets) = tokens_of(onto, document, &options.attend)?;
        if ids != text.ids || offsets != text.offsets {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Models by role, since two files may go by one name, and the options of both measurements.
pub(super) fn provenance(large: &Side, small: &Side, options: &Contrasting, aligned: bool) -> Provenance {
    let mut provenance = Provenance::new(&options.command);
    for (role, side) in [("large", large), ("small", small)] {
        let Attended { model, hash, layers, heads, .. } = &side.attended;
        provenance = provenance
            .model(role, hash)
            .option(role, model)
            .option(format!("shape_{role}"), format!("{layers}x{heads}"));
        for (name, value) in &side.attended.provenance.options {
            let name = if matches!(name.as_str(), "heads" | "context") {
                format!("{name}_{role}")
            } else {
                name.clone()
            };
            provenance = provenance.option(name, value);
        }
    }
    let target = options.onto.as_ref().unwrap_or(&small.tokenizer);
    let tokens = if aligned {
        format!("aligned to {} ({})", folder_and_file(target.name()), target.hash())
    } else {
        "the models'".into()
    };
    provenance.option("guide", options.guide.describe()).option("tokens", tokens)
}

impl Contrast {
    /// The large model's side, on the tokens of this contrast: for pictures of one model, such as its heads.
    ///
    /// `received` is what the guide compares, so it is the mean of probe rows where a probe guides.
    pub fn of_large(&self) -> Attended {
        self.side(
            "large",
            &self.large,
            self.large_shape,
            |text| (&text.large, &text.large_by),
            |probe| (&probe.large, &probe.large_by),
        )
    }

    /// The small model's side; see [`Contrast::of_large`].
    pub fn of_small(&self) -> Attended {
        self.side(
            "small",
            &self.small,
            self.small_shape,
            |text| (&text.small, &text.small_by),
            |probe| (&probe.small, &probe.small_by),
        )
    }

    /// Without the layers or heads kept apart.
    pub fn without_parts(mut self) -> Self {
        self.per = Per::Mean;
        self.provenance = self.provenance.option("per", Per::Mean.name());
        for text in &mut self.texts {
            (text.large_by, text.small_by) = (Vec::new(), Vec::new());
            for probe in text.probe.values_mut() {
                (probe.large_by, probe.small_by) = (Vec::new(), Vec::new());
            }
        }
        self
    }

    fn side(
        &self,
        role: &str,
        model: &str,
        (layers, heads): (usize, usize),
        of_text: impl Fn(&ContrastText) -> (&Vec<f32>, &Vec<Vec<f32>>),
        of_probe: impl Fn(&ProbeContrast) -> (&Vec<f32>, &Vec<Vec<f32>>),
    ) -> Attended {
        let row = |probe: &ProbeContrast| {
            let (weights, by) = of_probe(probe);
            ProbeRow { position: probe.position, weights: weights.clone(), weights_by: by.clone() }
        };
        let texts = self.texts.iter().map(|text| {
            let (received, by) = of_text(text);
            AttendedText {
                id: text.id.clone(),
                text: text.text.clone(),
                spans: text.spans.clone(),
                ids: text.ids.clone(),
                offsets: text.offsets.clone(),
                received: received.clone(),
                received_by: by.clone(),
                probe: text.probe.iter().map(|(field, probe)| (field.clone(), row(probe))).collect(),
                maps: Vec::new(),
            }
        });
        Attended {
            model: model.into(),
            hash: self.provenance.models.get(role).cloned().unwrap_or_default(),
            layers,
            heads,
            per: self.per,
            texts: texts.collect(),
            provenance: self.provenance.clone(),
        }
    }
}

/// The last two parts of a path: which file it is, not where this machine keeps it.
fn folder_and_file(name: &str) -> &str {
    name.rmatch_indices('/').nth(1).map_or(name, |(at, _)| &name[at + 1..])
}

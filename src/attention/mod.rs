//! What each token of a text receives, and what a probe token looks at.
//!
//! For a text of T tokens and attention weights `A[i, j]` (query i, key j ≤ i), mean over layers and heads
//! (paper, section 3):
//!
//! ```text
//! received[j]        = Σ_{i ≥ j} A[i, j] / (T − j)
//! probe(field).weights[j] = A[p, j],   p the last token before the field's first character
//! ```
//!
//! [`Model::attend`](crate::model::Model::attend) measures a list of texts. Texts longer than the
//! model's context are read in stretches that overlap by half, each with the same start tokens and prefix
//! in front: received attention is pooled over the stretches (a token's weights in all of them over the
//! number of queries that could see it there), and a probe's row comes from the stretch that shows the
//! most text before the probe.
//!
//! A model that does not fit into memory is measured with [`Streamed`](crate::model::Streamed), block by block from disk.
//!
//! ```
//! use cluescope::attention::{Attend, Aggregation, Cache};
//! # use cluescope::{corpus::Document, model::Model};
//! # fn example(model: &Model, documents: &[Document]) -> cluescope::Result<()> {
//! let attended = model.attend(documents, &Attend::new().probe("company"))?;
//! for text in &attended.texts {
//!     println!("{} {:?}", text.id, text.received);
//! }
//! # Ok(()) }
//! ```

mod cache;
mod gather;
mod options;
mod prepare;
mod probe;
mod reader;
mod run;
mod store;
mod streamed;
mod window;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use options::{Aggregation, Attend, Cache, Heads, Per, Probes};
pub(crate) use prepare::tokens_of;
pub use probe::probe_position;
pub(crate) use run::corpus_hash;
pub use streamed::StreamEstimate;

use crate::corpus::Span;
use crate::provenance::Provenance;

/// Attention of one model over many texts, in the order they were given.
#[derive(Debug, Clone, PartialEq)]
pub struct Attended {
    /// The model's name.
    pub model: String,
    /// The model's content hash.
    pub hash: String,
    /// Layers of the model.
    pub layers: usize,
    /// Query heads of each layer.
    pub heads: usize,
    /// What was kept apart.
    pub per: Per,
    /// One entry a text.
    pub texts: Vec<AttendedText>,
    /// Model, options and command.
    pub provenance: Provenance,
}

/// Attention of one text of T tokens, start tokens included and the prefix's tokens cut away.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AttendedText {
    /// The document's id.
    pub id: String,
    /// The document's text.
    #[serde(skip)]
    pub text: String,
    /// The document's facts.
    #[serde(skip)]
    pub spans: Vec<Span>,
    /// Vocabulary indices, T.
    pub ids: Vec<u32>,
    /// Characters covered by each token, `start..end` in Unicode characters of the text; empty for start
    /// tokens. T.
    pub offsets: Vec<(usize, usize)>,
    /// Received attention, T.
    pub received: Vec<f32>,
    /// Probe rows by field.
    pub probe: BTreeMap<String, ProbeRow>,
    /// Received attention of each layer, or of each head at `layer · heads + head`; empty unless asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub received_by: Vec<Vec<f32>>,
    /// Whole matrices in the order they were asked for: T × T, row-major, query by row, zero above the
    /// diagonal. Not written to files.
    #[serde(skip)]
    pub maps: Vec<Vec<f32>>,
}

/// The attention row of one probe.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ProbeRow {
    /// The probe's index among the text's tokens.
    pub position: usize,
    /// Weights from token 0 to the probe, `position + 1` of them.
    pub weights: Vec<f32>,
    /// The same of each layer or head, as in [`AttendedText::received_by`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights_by: Vec<Vec<f32>>,
}

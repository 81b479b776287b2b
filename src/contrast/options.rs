//! What is compared, and how.

use crate::attention::{Aggregation, Attend, Cache, Heads, Per, Probes};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::model::Devices;
use crate::tokens::Tokenizer;

/// Which attention decides what is a clue.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Guide {
    /// Received attention (paper, section 3).
    #[default]
    Received,
    /// The mean of the probe rows of these fields, of those marked in a text; a text that has none of them is refused.
    /// Tokens after a probe weigh 0 in its row.
    Probe(Vec<String>),
}

impl Guide {
    pub(super) fn describe(&self) -> String {
        match self {
            Guide::Received => "received".into(),
            Guide::Probe(fields) => format!("probe {}", fields.join(",")),
        }
    }

    /// That the text `id` has none of the probes asked for.
    pub(super) fn missing(&self, id: &str) -> Error {
        let expected = format!(
            "text {id:?} has no such probe: the fact is not marked in it, or no token stands before it; leave the text out or follow another guide"
        );
        Error::option("guide", self.describe(), expected)
    }
}

/// Options of [`ModelPair::contrast_with`](super::ModelPair::contrast_with).
///
/// | option | default | meaning |
/// |---|---|---|
/// | `aggregation` | `Paper` | how received attention is computed |
/// | `guide` | `Received` | which attention is compared and ranked |
/// | `heads` | all of both | layers or heads of each model the mean is taken over |
/// | `per` | `Mean` | also keep each layer or head of each model apart |
/// | `probes` | all marked fields | fields whose probe rows are recorded |
/// | `prefix` | none | read in front of every text, and cut away again |
/// | `onto` | the small model's | tokenizer whose tokens the result is laid on |
/// | `context`, `batch_tokens`, `cache`, `devices` | as [`Attend`] | |
///
/// ```
/// use cluescope::contrast::{Contrasting, Guide};
/// let options = Contrasting::new().guide(Guide::Probe(vec!["company".into()])).prefix("Text: ");
/// ```
#[derive(Debug, Clone)]
pub struct Contrasting {
    pub(super) attend: Attend,
    pub(super) guide: Guide,
    pub(super) large_heads: Heads,
    pub(super) small_heads: Heads,
    pub(super) onto: Option<Tokenizer>,
    pub(super) command: String,
}

impl Default for Contrasting {
    fn default() -> Self {
        Contrasting {
            attend: Attend::new().probes(Probes::All),
            guide: Guide::Received,
            large_heads: Heads::All,
            small_heads: Heads::All,
            onto: None,
            command: "ModelPair::contrast".into(),
        }
    }
}

impl Contrasting {
    /// The defaults: the paper's received attention, and the probes of all marked fields.
    pub fn new() -> Self {
        Self::default()
    }

    /// How received attention is computed.
    pub fn aggregation(mut self, aggregation: Aggregation) -> Self {
        self.attend = self.attend.aggregation(aggregation);
        self
    }

    /// Which attention is compared and ranked.
    pub fn guide(mut self, guide: Guide) -> Self {
        self.guide = guide;
        self
    }

    /// Layers or heads the mean is taken over, of the large and of the small model.
    pub fn heads(mut self, large: Heads, small: Heads) -> Self {
        (self.large_heads, self.small_heads) = (large, small);
        self
    }

    /// Also keeps each layer, or each head, of both models apart.
    pub fn per(mut self, per: Per) -> Self {
        self.attend = self.attend.per(per);
        self
    }

    /// Fields whose probe rows are recorded; those the guide needs are added.
    pub fn probes(mut self, probes: Probes) -> Self {
        self.attend = self.attend.probes(probes);
        self
    }

    /// Reads `prefix` in front of every text and cuts it away again; see [`Attend::prefix`].
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.attend = self.attend.prefix(prefix);
        self
    }

    /// Lays the result on the tokens of this tokenizer: that of the model to be trained.
    pub fn onto(mut self, tokenizer: &Tokenizer) -> Self {
        self.onto = Some(tokenizer.clone());
        self
    }

    /// Reads at most `tokens` tokens at once; see [`Attend::context`].
    pub fn context(mut self, tokens: usize) -> Self {
        self.attend = self.attend.context(tokens);
        self
    }

    /// Puts at most `tokens` tokens into one batch.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.attend = self.attend.batch_tokens(tokens);
        self
    }

    /// Where finished texts are remembered.
    pub fn cache(mut self, cache: Cache) -> Self {
        self.attend = self.attend.cache(cache);
        self
    }

    /// Spreads the texts over `devices`; see [`Attend::devices`].
    pub fn devices(mut self, devices: &Devices) -> Self {
        self.attend = self.attend.devices(devices);
        self
    }

    /// What the provenance names as the cause; the command line, for a command.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Refuses texts that cannot have the guide or the probes asked for, before a model is loaded for them.
    ///
    /// # Errors
    /// [`Error::Option`] naming what is missing and where.
    pub fn check(&self, documents: &[Document]) -> Result<()> {
        self.attend.check(documents)?;
        let Guide::Probe(fields) = &self.guide else { return Ok(()) };
        let nowhere = |field: &&String| !documents.iter().any(|d| probed(d, field));
        if let Some(field) = fields.iter().find(nowhere).filter(|_| !documents.is_empty()) {
            let expected = format!(
                "facts marked in the texts; {field:?} is marked in none, or only where a text begins"
            );
            return Err(Error::option("guide", self.guide.describe(), expected));
        }
        let lacks = |d: &&Document| !fields.iter().any(|field| probed(d, field));
        documents.iter().find(lacks).map_or(Ok(()), |document| Err(self.guide.missing(&document.id)))
    }

    /// The options for one model.
    pub(super) fn attend_with(&self, heads: &Heads) -> Attend {
        let mut attend = self.attend.clone().heads(heads.clone());
        if let Guide::Probe(fields) = &self.guide {
            for field in fields {
                attend = attend.probe(field);
            }
        }
        attend
    }
}

/// Whether something stands before the first place at which `field` is marked: the probe is there.
fn probed(document: &Document, field: &str) -> bool {
    document.spans.iter().find(|span| span.field == field).is_some_and(|span| span.start > 0)
}

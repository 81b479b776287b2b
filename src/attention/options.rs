//! What to measure, and how.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::corpus::{Document, marked_fields};
use crate::error::{Error, Result};
use crate::model::{DecoderConfig, Detail, Devices};

/// How received attention is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Aggregation {
    /// The paper's definition (section 3): the column sum of the causal attention matrix divided by the
    /// number of queries, T − j for token j of T.
    #[default]
    Paper,
    /// What the published script computes: it sums each row, always 1, instead of each column, and divides
    /// by the position. Token i receives 1/(i + 1) whatever the model, so every difference is 0 and
    /// dropout by rank becomes dropout by position.
    AsReleased,
}

impl Aggregation {
    /// The option's name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Aggregation::Paper => "paper",
            Aggregation::AsReleased => "as-released",
        }
    }
}

/// The published script's value for each of `tokens` tokens: 1, 1/2, 1/3, …
pub(crate) fn as_released(tokens: usize) -> Vec<f32> {
    (0..tokens).map(|i| 1.0 / (i as f32 + 1.0)).collect()
}

/// Which layers and heads the mean is taken over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heads {
    /// All of them.
    #[default]
    All,
    /// All heads of these layers, counted from 0.
    Layers(Vec<usize>),
    /// These (layer, head) pairs, counted from 0.
    Heads(Vec<(usize, usize)>),
}

impl Heads {
    /// The option as text, such as `all`, `layers 3,4` or `heads 3.0,3.7`.
    pub fn describe(&self) -> String {
        let list = |items: Vec<String>| items.join(",");
        match self {
            Heads::All => "all".into(),
            Heads::Layers(layers) => {
                format!("layers {}", list(layers.iter().map(usize::to_string).collect()))
            }
            Heads::Heads(heads) => {
                format!("heads {}", list(heads.iter().map(|(l, h)| format!("{l}.{h}")).collect()))
            }
        }
    }

    /// Refuses an empty choice and what a model of `layers` × `heads` does not have.
    pub(crate) fn check(&self, layers: usize, heads: usize) -> Result<()> {
        let (name, empty, outside) = match self {
            Heads::All => return Ok(()),
            Heads::Layers(chosen) => ("layers", chosen.is_empty(), chosen.iter().any(|&l| l >= layers)),
            Heads::Heads(chosen) => {
                ("heads", chosen.is_empty(), chosen.iter().any(|&(l, h)| l >= layers || h >= heads))
            }
        };
        if empty || outside {
            let expected = format!(
                "at least one, layers 0 to {} and heads 0 to {} of this model",
                layers.saturating_sub(1),
                heads.saturating_sub(1)
            );
            return Err(Error::option(name, self.describe(), expected));
        }
        Ok(())
    }
}

/// Which fields' probes are recorded. A field's probe is the last token with a non-empty span that ends at or before
/// the first character of the field's first span: the preposition, in the biographies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probes {
    /// None.
    #[default]
    None,
    /// Every field that is marked in a text.
    All,
    /// These fields, in the texts where they are marked.
    Fields(Vec<String>),
}

impl Probes {
    pub(crate) fn wants(&self, field: &str) -> bool {
        match self {
            Probes::None => false,
            Probes::All => true,
            Probes::Fields(fields) => fields.iter().any(|f| f == field),
        }
    }
}

/// Where finished texts are remembered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Cache {
    /// `$CLUESCOPE_CACHE` if set (empty: no cache), otherwise `cluescope` in the user's cache folder.
    #[default]
    User,
    /// This folder.
    Folder(PathBuf),
    /// Nowhere.
    Off,
}

/// Options of [`Model::attend`](crate::model::Model::attend).
///
/// | option | default | meaning |
/// |---|---|---|
/// | `aggregation` | `Paper` | how received attention is computed |
/// | `heads` | all | layers or heads the mean is taken over |
/// | `per` | `Mean` | also keep each layer or each head apart |
/// | `probes` | none | fields whose probe rows are recorded |
/// | `maps` | none | (layer, head) pairs whose whole matrix is kept |
/// | `prefix` | none | read in front of every text, and cut away again |
/// | `context` | the model's | tokens read at once, 2 to the model's own |
/// | `batch_tokens` | 2048 | tokens of a batch; memory grows with it |
/// | `stream_tokens` | 32768 | tokens that share one reading of a [`Streamed`](crate::model::Streamed) model; memory grows with it |
/// | `cache` | the user's | where finished texts are remembered |
/// | `devices` | the model's | devices the texts are spread over |
///
/// ```
/// use cluescope::attention::{Attend, Heads, Per};
/// let options = Attend::new().probe("company").per(Per::Head).heads(Heads::Layers(vec![0, 1]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attend {
    pub(crate) aggregation: Aggregation,
    pub(crate) heads: Heads,
    pub(crate) per: Per,
    pub(crate) probes: Probes,
    pub(crate) maps: Vec<(usize, usize)>,
    pub(crate) prefix: String,
    pub(crate) context: Option<usize>,
    pub(crate) batch_tokens: usize,
    pub(crate) stream_tokens: usize,
    pub(crate) cache: Cache,
    pub(crate) devices: Option<Devices>,
    pub(crate) command: String,
}

/// What is kept apart besides the mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Per {
    /// Nothing.
    #[default]
    Mean,
    /// Each layer.
    Layer,
    /// Each head of each layer, head after head, layer after layer.
    Head,
}

impl Per {
    /// The option's name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Per::Mean => "mean",
            Per::Layer => "layer",
            Per::Head => "head",
        }
    }
}

impl Default for Attend {
    fn default() -> Self {
        Attend {
            aggregation: Aggregation::Paper,
            heads: Heads::All,
            per: Per::Mean,
            probes: Probes::None,
            maps: Vec::new(),
            prefix: String::new(),
            context: None,
            batch_tokens: 2048,
            stream_tokens: 32_768,
            cache: Cache::User,
            devices: None,
            command: "Model::attend".into(),
        }
    }
}

impl Attend {
    /// The defaults: received attention by the paper's definition, nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// How received attention is computed.
    pub fn aggregation(mut self, aggregation: Aggregation) -> Self {
        self.aggregation = aggregation;
        self
    }

    /// Layers or heads the mean is taken over.
    pub fn heads(mut self, mut heads: Heads) -> Self {
        // Naming one twice shall not count it twice.
        match &mut heads {
            Heads::All => {}
            Heads::Layers(layers) => {
                layers.sort_unstable();
                layers.dedup();
            }
            Heads::Heads(heads) => {
                heads.sort_unstable();
                heads.dedup();
            }
        }
        self.heads = heads;
        self
    }

    /// Also keeps each layer, or each head, apart.
    pub fn per(mut self, per: Per) -> Self {
        self.per = per;
        self
    }

    /// Records the row of `field`'s probe too, in the texts where the field is marked.
    pub fn probe(mut self, field: impl Into<String>) -> Self {
        match &mut self.probes {
            Probes::All => {}
            Probes::Fields(fields) => fields.push(field.into()),
            Probes::None => self.probes = Probes::Fields(vec![field.into()]),
        }
        self
    }

    /// Records the rows of these probes.
    pub fn probes(mut self, probes: Probes) -> Self {
        self.probes = probes;
        self
    }

    /// Keeps the whole matrix of one head: T² numbers a text, so for few and short texts.
    pub fn map(mut self, layer: usize, head: usize) -> Self {
        self.maps.push((layer, head));
        self
    }

    /// Reads `prefix` in front of every text and cuts its tokens away again. The paper uses `Text: ` for models whose
    /// tokenizer adds no start token, so that something else absorbs the attention no word wants.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Reads at most `tokens` tokens at once; longer texts are read in overlapping stretches.
    pub fn context(mut self, tokens: usize) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Puts at most `tokens` tokens into one batch (a longer stretch goes alone).
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// Takes texts of at most `tokens` tokens through a [`Streamed`](crate::model::Streamed) model together (a longer text
    /// goes alone): each such group reads the whole model from disk once, and holds one hidden state a token.
    pub fn stream_tokens(mut self, tokens: usize) -> Self {
        self.stream_tokens = tokens;
        self
    }

    /// Where finished texts are remembered.
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Spreads the texts over `devices`, each with a copy of the model as long as it lasts. Batches are cut the same way however
    /// many there are.
    pub fn devices(mut self, devices: &Devices) -> Self {
        self.devices = Some(devices.clone());
        self
    }

    /// What the provenance names as the cause; the command line, for a command.
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = command.into();
        self
    }

    /// Refuses options that no model could measure `documents` with, for those who want to know before one is loaded: above
    /// all a probe's field that no text marks, whose column would be missing from the result without a word.
    ///
    /// # Errors
    /// [`Error::Option`] naming it.
    pub fn check(&self, documents: &[Document]) -> Result<()> {
        if self.batch_tokens == 0 {
            return Err(Error::option("batch_tokens", 0, "at least 1"));
        }
        let Probes::Fields(fields) = &self.probes else { return Ok(()) };
        let marked = marked_fields(documents);
        match fields.iter().find(|field| !documents.is_empty() && !marked.contains(field.as_str())) {
            None => Ok(()),
            Some(field) => {
                let marked: Vec<&str> = marked.into_iter().collect();
                let expected = if marked.is_empty() {
                    "nothing: no text of this corpus marks a field".to_owned()
                } else {
                    format!("a field that some text marks: {}", marked.join(", "))
                };
                Err(Error::option("probe", field, expected))
            }
        }
    }

    /// Refuses layers, heads and a context that a model of this configuration does not have, and gives the tokens read at once.
    pub(crate) fn check_for(&self, config: &DecoderConfig) -> Result<usize> {
        self.heads.check(config.layers, config.heads)?;
        let most = config.max_positions;
        match self.context {
            None => Ok(most),
            Some(tokens) if (2..=most).contains(&tokens) => Ok(tokens),
            Some(tokens) => Err(Error::option("context", tokens, format!("2 to {most}, the model's own"))),
        }
    }

    /// What is read in front of every text.
    pub fn prefix_text(&self) -> &str {
        &self.prefix
    }

    /// The detail the model must capture for `per` and for the chosen heads.
    pub(crate) fn detail(&self) -> Detail {
        match (self.per, &self.heads) {
            (Per::Head, _) | (_, Heads::Heads(_)) => Detail::Head,
            (Per::Layer, _) | (_, Heads::Layers(_)) => Detail::Layer,
            (Per::Mean, Heads::All) => Detail::Mean,
        }
    }

    /// Number of layers the model must run for what is asked; `None`: all.
    pub(crate) fn depth(&self) -> Option<usize> {
        let last = match (self.per, &self.heads) {
            (Per::Mean, Heads::Layers(layers)) => layers.iter().max(),
            (Per::Mean, Heads::Heads(heads)) => heads.iter().map(|(layer, _)| layer).max(),
            _ => None,
        };
        last.map(|last| last + 1)
    }

    /// Everything that decides the numbers, as text: for provenance and cache keys.
    pub(crate) fn describe(&self, context: usize) -> Vec<(&'static str, String)> {
        let probes = match &self.probes {
            Probes::None => "none".into(),
            Probes::All => "all".into(),
            Probes::Fields(fields) => fields.join(","),
        };
        vec![
            ("aggregation", self.aggregation.name().into()),
            ("heads", self.heads.describe()),
            ("per", self.per.name().into()),
            ("probes", probes),
            ("prefix", self.prefix.clone()),
            ("context", context.to_string()),
        ]
    }
}

//! The attention that decides what is a clue, where it is not the paper's.

use cluescope::attention::Heads;

/// Options of the commands that compare two models.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct GuideArgs {
    /// Compare and rank by the probes of these facts instead of received attention
    #[arg(long, value_name = "FACT", num_args = 1..)]
    pub(crate) guide_probe: Vec<String>,
    /// Layers of the large model the mean is taken over, such as 3,4; counted from 0
    #[arg(long, value_delimiter = ',', conflicts_with = "large_heads")]
    large_layers: Vec<usize>,
    /// Heads of the large model, as LAYER.HEAD, such as 3.0,3.7
    #[arg(long, value_delimiter = ',', value_parser = head)]
    large_heads: Vec<(usize, usize)>,
    /// Layers of the small model
    #[arg(long, value_delimiter = ',', conflicts_with = "small_heads")]
    small_layers: Vec<usize>,
    /// Heads of the small model
    #[arg(long, value_delimiter = ',', value_parser = head)]
    small_heads: Vec<(usize, usize)>,
}

impl GuideArgs {
    /// Of the large model.
    pub(crate) fn large(&self) -> Heads {
        chosen(&self.large_layers, &self.large_heads)
    }

    /// Of the small model.
    pub(crate) fn small(&self) -> Heads {
        chosen(&self.small_layers, &self.small_heads)
    }

    /// An option that chooses layers or heads, if one is given.
    pub(crate) fn chosen(&self) -> Option<&'static str> {
        let options = [
            ("--large-layers", !self.large_layers.is_empty()),
            ("--large-heads", !self.large_heads.is_empty()),
            ("--small-layers", !self.small_layers.is_empty()),
            ("--small-heads", !self.small_heads.is_empty()),
        ];
        options.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }
}

/// `LAYER.HEAD`.
fn head(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('.').and_then(|(l, h)| Some((l.parse().ok()?, h.parse().ok()?)));
    numbers.ok_or_else(|| "LAYER.HEAD expected, such as 3.0".into())
}

fn chosen(layers: &[usize], heads: &[(usize, usize)]) -> Heads {
    match (layers, heads) {
        ([], []) => Heads::All,
        ([], heads) => Heads::Heads(heads.into()),
        (layers, _) => Heads::Layers(layers.into()),
    }
}

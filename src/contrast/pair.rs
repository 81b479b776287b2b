//! A small and a large model that are compared.

use crate::error::{Error, Result};
use crate::model::Model;

/// A small and a large model, usually of one family.
#[derive(Debug, Clone)]
pub struct ModelPair {
    /// The model to be taught.
    pub small: Model,
    /// The model that shows what is worth noticing.
    pub large: Model,
}

/// A pair known by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPair {
    /// What [`ModelPair::load`] takes.
    pub name: &'static str,
    /// Source of the small model, as [`load_model`](super::load_model) takes it.
    pub small: &'static str,
    /// Source of the large model.
    pub large: &'static str,
}

const fn known(name: &'static str, small: &'static str, large: &'static str) -> KnownPair {
    KnownPair { name, small, large }
}

/// Pairs known by name. `nano` stands in this project's `datasets` folder; all others are fetched from the
/// Hugging Face hub, where Gemma and Llama ask for their licence to be accepted first.
pub const KNOWN_PAIRS: [KnownPair; 10] = [
    known("nano", "nano-small", "nano-large"),
    known("pythia", "EleutherAI/pythia-160m", "EleutherAI/pythia-1.4b"),
    known("smollm2", "HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-1.7B"),
    known("qwen2.5", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B"),
    known("qwen2.5-coder", "Qwen/Qwen2.5-Coder-0.5B", "Qwen/Qwen2.5-Coder-1.5B"),
    known("qwen3", "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-1.7B-Base"),
    known("gemma2", "google/gemma-2-2b", "google/gemma-2-9b"),
    known("gemma3", "google/gemma-3-270m", "google/gemma-3-1b-pt"),
    known("llama3", "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-70B"),
    known("llama3.2", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"),
];

/// The pair called `name`, capitals ignored.
///
/// # Errors
/// [`Error::Option`] listing the known names.
pub fn known_pair(name: &str) -> Result<KnownPair> {
    KNOWN_PAIRS.into_iter().find(|pair| pair.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        let names: Vec<&str> = KNOWN_PAIRS.iter().map(|pair| pair.name).collect();
        let expected = format!(
            "one of {}; or load two models and join them with ModelPair::new(small, large)",
            names.join(", ")
        );
        Error::option("pair", name, expected)
    })
}

impl ModelPair {
    /// Joins any two models; they may come from different families.
    pub fn new(small: Model, large: Model) -> Self {
        ModelPair { small, large }
    }

    /// True when both have one and the same tokenizer, so that attention is compared token by token whatever the text. Two
    /// files of one tokenizer may differ in form: what was decided for a corpus is [`Contrast::aligned`](super::Contrast::aligned).
    pub fn same_tokenizer(&self) -> bool {
        self.small.tokenizer().hash() == self.large.tokenizer().hash()
    }
}

//! Small random models, marked texts and pretrainings of seconds, for tests.

use cluescope::attention::{Attend, Cache};
use cluescope::contrast::ModelPair;
use cluescope::corpus::{Corpus, Document, Span};
use cluescope::model::{DecoderConfig, Model};
use cluescope::tokens::Tokenizer;
use cluescope::train::{Mixture, Recipe, Size};

/// Biographies with marked facts; `[field|text]` marks one.
fn document(id: &str, marked: &str) -> Document {
    let mut document = Document::new(id, "", Vec::new());
    let mut rest = marked;
    while let Some((before, after)) = rest.split_once('[') {
        document.text.push_str(before);
        let (fact, after) = after.split_once(']').unwrap();
        let (field, value) = fact.split_once('|').unwrap();
        let start = document.text.chars().count();
        document.text.push_str(value);
        document.spans.push(Span { field: field.into(), start, end: document.text.chars().count() });
        rest = after;
    }
    document.text.push_str(rest);
    document
}

pub(super) fn people() -> Corpus {
    let documents = vec![
        document("Ann", "[name|Ann Øst] was born in [city|Rome]. She worked at [company|the Louvre]."),
        document("Bo", "[name|Bo] was born in [city|Ålesund]."),
        document("Empty", ""),
        document(
            "Cy",
            "In [city|Lima], 日本 e\u{301} 👩‍👧, [name|Cy Day] had a role at [company|Acme & Sons]. Cy liked it there.",
        ),
    ];
    Corpus { documents, ..Corpus::default() }
}

pub(super) fn tokenizer(size: usize) -> Tokenizer {
    let texts: Vec<String> = people().documents.iter().map(|d| d.text.repeat(3)).collect();
    Tokenizer::train_bpe(texts.iter().map(String::as_str), size).unwrap()
}

/// A model with 3 layers of 4 heads, or, when `large`, 4 layers of 6.
pub(super) fn model(tokenizer: &Tokenizer, large: bool, context: usize) -> Model {
    let vocab = tokenizer.vocab_size();
    let config = if large {
        DecoderConfig::llama(vocab, 48, 4, 6, 3, 64, context)
    } else {
        DecoderConfig::llama(vocab, 32, 3, 4, 2, 48, context)
    };
    let name = if large { "large" } else { "small" };
    Model::random(name, config, tokenizer.clone(), if large { 2 } else { 1 }).unwrap()
}

pub(super) fn pair(context: usize) -> ModelPair {
    let tokenizer = tokenizer(300);
    ModelPair::new(model(&tokenizer, false, context), model(&tokenizer, true, context))
}

pub(super) fn plain() -> Attend {
    Attend::new().cache(Cache::Off)
}

pub(super) fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance, "{a:?}\n{b:?}");
    }
}

/// A pretraining of seconds, for as many steps as a test asks for.
pub(super) fn tiny_recipe(residents: usize) -> Recipe {
    let nano = Recipe::nano(Size::Small);
    Recipe {
        tokenizer_texts: 60,
        vocab_size: 400,
        batch_size: 2,
        layers: 1,
        hidden_size: 64,
        intermediate_size: 128,
        mixture: Mixture { residents, echo_share: 0.0, ..nano.mixture },
        ..nano
    }
}

//! From a document to the tokens a model reads and the tokens that are reported.

use super::options::Attend;
use super::probe::probes_of;
use super::window::{Window, windows};
use crate::corpus::Document;
use crate::error::Result;
use crate::tokens::Tokenizer;

/// One text, tokenised and divided.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// What the model reads: start tokens, prefix, text.
    pub(crate) read: Vec<u32>,
    /// Indices in `read` of the tokens that are reported; all but the prefix's.
    pub(crate) kept: Vec<usize>,
    /// Characters of the kept tokens, within the text.
    pub(crate) offsets: Vec<(usize, usize)>,
    /// Field and probe position among the kept tokens.
    pub(crate) probes: Vec<(String, usize)>,
    /// Stretches of `read`.
    pub(crate) windows: Vec<Window>,
}

impl Prepared {
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        document: &Document,
        options: &Attend,
        context: usize,
    ) -> Result<Self> {
        let prefix = options.prefix.chars().count();
        let encoding = if prefix == 0 {
            tokenizer.encode(&document.text)
        } else {
            tokenizer.encode(&format!("{}{}", options.prefix, document.text))
        };
        let encoding = encoding.map_err(|e| e.at(format!("text {}", document.id)))?;
        let count = encoding.ids.len();
        let start = encoding.special.iter().take_while(|&&special| special).count();
        // A token that reaches from the prefix into the text belongs to the text.
        let first =
            (start..count).find(|&i| encoding.special[i] || encoding.offsets[i].1 > prefix).unwrap_or(count);
        let kept: Vec<usize> = (0..start).chain(first..count).collect();
        let offsets: Vec<(usize, usize)> = kept
            .iter()
            .map(|&i| {
                let (from, to) = encoding.offsets[i];
                (from.saturating_sub(prefix), to.saturating_sub(prefix))
            })
            .collect();
        let probes = probes_of(&offsets, &document.spans, |field| options.probes.wants(field));
        let windows = windows(count, first, context)?;
        Ok(Prepared { read: encoding.ids, kept, offsets, probes, windows })
    }

    /// Vocabulary indices of the kept tokens.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.kept.iter().map(|&i| self.read[i]).collect()
    }

    /// Tokens the model reads, repeated ones counted each time.
    pub(crate) fn cost(&self) -> usize {
        self.windows.iter().map(Window::len).sum()
    }
}

/// Vocabulary indices and characters of the tokens that `options` report of `document`.
pub(crate) fn tokens_of(
    tokenizer: &Tokenizer,
    document: &Document,
    options: &Attend,
) -> Result<(Vec<u32>, Vec<(usize, usize)>)> {
    let prepared = Prepared::new(tokenizer, document, options, usize::MAX)?;
    Ok((prepared.ids(), prepared.offsets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_the_tokenizer_refuses_is_named() {
        let json = r#"{"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}}"#;
        let tokenizer = Tokenizer::from_json("words", json.as_bytes()).unwrap();
        let document = |text: &str| Document::new(format!("of {text}"), text, Vec::new());
        let prepare = |text: &str| Prepared::new(&tokenizer, &document(text), &Attend::new(), 64);
        prepare("a a").unwrap();
        let message = prepare("a b").unwrap_err().to_string();
        assert!(message.starts_with("words, text of a b: cannot tokenise"), "{message}");
    }

    #[test]
    fn the_prefix_is_cut_away_and_offsets_are_the_texts() {
        let tokenizer = Tokenizer::train_bpe(["Text: Ann was born in Rome."], 280).unwrap();
        let document = Document::new("a", "Ann was born.", Vec::new());
        let plain = Prepared::new(&tokenizer, &document, &Attend::new(), 64).unwrap();
        let options = Attend::new().prefix("Text: ");
        let prefixed = Prepared::new(&tokenizer, &document, &options, 64).unwrap();
        assert!(prefixed.read.len() > plain.read.len());
        // The start token stays, the prefix's tokens do not.
        assert_eq!(prefixed.kept[0], 0);
        assert!(prefixed.kept[1] > 1);
        for prepared in [&plain, &prefixed] {
            let mut covered: Vec<usize> = prepared.offsets.iter().flat_map(|&(from, to)| from..to).collect();
            covered.dedup();
            assert_eq!(covered, (0..13).collect::<Vec<_>>());
        }
    }
}

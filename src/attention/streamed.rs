//! Attention of models that do not fit into memory.

use std::path::Path;

use super::options::{Aggregation, Attend};
use super::prepare::Prepared;
use super::{Attended, run};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::memory::readable;
use crate::model::{Detail, Device, Streamed};

/// What measuring attention with a [`Streamed`] model will take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEstimate {
    /// Bytes held at most, besides the program itself and its tokenizer (50 to 200 MB, by the vocabulary).
    pub memory: u64,
    /// How often all blocks are read from disk.
    pub passes: usize,
    /// Bytes read each time.
    pub pass_bytes: u64,
}

impl std::fmt::Display for StreamEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (memory, bytes) = (readable(self.memory), readable(self.pass_bytes));
        write!(f, "{memory} of memory; {} × {bytes} read from disk", self.passes)
    }
}

impl Streamed {
    /// What attention of `documents` will take where the cache holds nothing of it, besides the results themselves.
    ///
    /// # Errors
    /// [`Error::Option`] for options outside their range; what the tokenizer reports.
    pub fn estimate(&self, documents: &[Document], options: &Attend) -> Result<StreamEstimate> {
        options.check(documents)?;
        let todo = run::prepare(self, documents, options, options.check_for(self.config())?)?;
        let pass_bytes = self.block_bytes() * self.config().layers as u64;
        let mut estimate = StreamEstimate { memory: 0, passes: 0, pass_bytes };
        for group in run::groups(self, &todo, options) {
            let texts: Vec<&Prepared> = todo[group].iter().collect();
            let batches = run::batches(&texts, options);
            let sizes =
                batches.iter().map(|batch| batch.iter().map(|&(t, w)| texts[t].windows[w].len()).sum());
            let sizes: Vec<usize> = sizes.collect();
            let Some(&largest) = sizes.iter().max() else { continue };
            let captured = batches.iter().flatten().map(|&(t, w)| self.captured_bytes(texts[t], w, options));
            let working = self.working_bytes(sizes.iter().sum(), largest) + captured.sum::<u64>();
            estimate.memory = estimate.memory.max(working);
            estimate.passes += 1;
        }
        Ok(estimate)
    }

    /// Bytes of what is captured of one stretch of `text`, each layer or head apart where that is asked for.
    fn captured_bytes(&self, text: &Prepared, stretch: usize, options: &Attend) -> u64 {
        let layers = options.depth().unwrap_or(self.config().layers);
        let apart = match options.detail() {
            Detail::Mean => 0,
            Detail::Layer => layers,
            Detail::Head => layers * self.config().heads,
        };
        let tokens = text.windows[stretch].len();
        let received = if options.aggregation == Aggregation::Paper { tokens } else { 0 };
        let probes: usize = run::probe_places(text, stretch).iter().map(|place| place + 1).sum();
        let numbers = (received + probes) * (1 + apart) + options.maps.len() * tokens * tokens;
        (numbers * size_of::<f32>()) as u64
    }

    /// As [`Model::attend`](crate::model::Model::attend), with every block read once for all the texts of
    /// [`Attend::stream_tokens`].
    ///
    /// # Errors
    /// As there; [`Error::Option`] for [`Attend::devices`] other than the CPU.
    pub fn attend(&self, documents: &[Document], options: &Attend) -> Result<Attended> {
        on_the_cpu(options)?;
        run::attend(&[self], documents, options)
    }

    /// As [`Model::attend_to_file`](crate::model::Model::attend_to_file), likewise.
    ///
    /// # Errors
    /// As [`Streamed::attend`].
    pub fn attend_to_file(
        &self,
        documents: &[Document],
        options: &Attend,
        path: impl AsRef<Path>,
    ) -> Result<()> {
        on_the_cpu(options)?;
        run::attend_to_file(&[self], documents, options, path.as_ref())
    }
}

fn on_the_cpu(options: &Attend) -> Result<()> {
    match &options.devices {
        Some(devices) if devices != &Device::cpu().into() => Err(Error::option(
            "devices",
            devices,
            "cpu, or nothing, for a model that is read from disk block by block",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Cache, Per};
    use crate::corpus::Span;
    use crate::model::{DecoderConfig, Model};
    use crate::tokens::Tokenizer;

    #[test]
    fn an_estimate_counts_what_is_read_together() {
        let tokenizer = Tokenizer::train_bpe(["one two three four five six"; 3], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 3, 4, 2, 48, 400);
        let folder = tempfile::tempdir().unwrap();
        Model::random("m", config, tokenizer.clone(), 1).unwrap().save(folder.path()).unwrap();
        let streamed = Streamed::open(folder.path().to_str().unwrap()).unwrap();
        // A text of so many tokens, its start token among them.
        let text = |tokens: usize| {
            let text = "z".repeat(tokens - 1);
            assert_eq!(tokenizer.encode(&text).unwrap().ids.len(), tokens);
            Document::new("t", text, vec![Span { field: "z".into(), start: 19, end: 20 }])
        };
        let plain = Attend::new().batch_tokens(50).stream_tokens(100).cache(Cache::Off);
        let estimate = |texts: &[usize], options: &Attend| {
            let documents: Vec<Document> = texts.iter().map(|&tokens| text(tokens)).collect();
            streamed.attend(&documents, options).unwrap();
            streamed.estimate(&documents, options).unwrap()
        };
        let told = |tokens: usize, largest: usize, numbers: usize| {
            streamed.working_bytes(tokens, largest) + 4 * numbers as u64
        };
        // Texts are never divided among readings: 240 tokens take four, not three.
        let four = estimate(&[60, 60, 60, 60], &plain);
        assert_eq!((four.passes, four.memory), (4, told(60, 60, 60)));
        // Two share a reading, and one is more than a batch and more than a reading.
        let long = estimate(&[30, 20, 300, 40], &plain);
        assert_eq!((long.passes, long.memory), (3, told(300, 300, 300)));
        let two = estimate(&[30, 40], &plain);
        assert_eq!((two.passes, two.memory), (1, told(70, 40, 70)));
        // Three stretches of 40 tokens, each with the start token.
        let cut = estimate(&[60], &plain.clone().context(40));
        assert_eq!((cut.passes, cut.memory), (1, told(120, 40, 120)));
        // The prefix is read too.
        let prefixed = estimate(&[60], &plain.clone().prefix("zzzzz"));
        assert_eq!(prefixed.memory, told(65, 65, 65));
        // Twelve heads apart, of all tokens and of the probe's row: the start token and those of 19 characters.
        let heads = estimate(&[60], &plain.clone().per(Per::Head).probe("z"));
        assert_eq!(heads.memory, told(60, 60, (60 + 20) * 13));
        // What the model need not be asked for.
        let released = estimate(&[60], &plain.clone().aggregation(Aggregation::AsReleased));
        assert_eq!((released.passes, released.memory), (0, 0));
    }
}

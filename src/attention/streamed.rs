//! Attention of models that do not fit into memory.

use std::path::Path;

use super::options::Attend;
use super::{Attended, run};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::memory::readable;
use crate::model::{Device, Streamed};

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
    /// What attention of texts of `tokens` tokens in all will take.
    pub fn estimate(&self, tokens: usize, options: &Attend) -> StreamEstimate {
        let together = tokens.min(options.stream_tokens.max(1));
        StreamEstimate {
            memory: self.working_bytes(together, options.batch_tokens),
            passes: tokens.div_ceil(together.max(1)),
            pass_bytes: self.block_bytes() * self.config().layers as u64,
        }
    }

    /// [`StreamEstimate`] for `documents`.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn estimate_for(&self, documents: &[Document], options: &Attend) -> Result<StreamEstimate> {
        let mut tokens = 0;
        for document in documents {
            tokens += self.tokenizer().encode(&document.text)?.ids.len();
        }
        Ok(self.estimate(tokens, options))
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

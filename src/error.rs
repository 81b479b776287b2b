//! One error type for the whole library; every message names the thing, the place and what to do.

use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, sorted by what the user has to mend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file's content is not what its format promises.
    #[error("{}{}: {message}", path.display(), Place(place))]
    Format {
        /// The file, or a name for data that has none.
        path: PathBuf,
        /// Where in it: `line 12`, `tensor model.norm.weight`; empty for the whole.
        place: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// An option outside its range.
    #[error("{name} = {value}: {expected}")]
    Option {
        /// The option's name, as the user wrote it.
        name: &'static str,
        /// The value refused.
        value: String,
        /// The allowed range, as a sentence.
        expected: String,
    },
    /// A model, tokenizer or adapter that cannot be used as asked.
    #[error("{model}: {message}")]
    Model {
        /// The model, as the user named it.
        model: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Work that cannot go on; the message says why and what was kept.
    #[error("{0}")]
    Stopped(String),
    /// Training or a model ran into numbers that are not finite; the message names step, texts and what may help.
    #[error("{message}{}", Kept(batch))]
    Diverged {
        /// What was not finite, and where.
        message: String,
        /// The file that holds the batch, where one was trained on.
        batch: Option<PathBuf>,
    },
    /// One of several devices that share the work failed; the others were stopped.
    #[error("{device}: {source}")]
    Device {
        /// The device, such as `cuda:1`.
        device: String,
        /// What happened on it.
        source: Box<Error>,
    },
    /// The user interrupted; finished work is kept.
    #[error("interrupted; what was finished is kept")]
    Interrupted,
    /// A tensor operation failed: a shape or device mistake inside the library.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A table could not be built or written.
    #[error("table: {0}")]
    Table(#[from] polars::error::PolarsError),
}

impl Error {
    /// An [`Error::Io`] at `path`; made for `map_err`.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, source }
    }

    /// An [`Error::Format`] at a place within `path`.
    pub fn format(path: impl AsRef<Path>, place: impl ToString, message: impl ToString) -> Error {
        Error::Format {
            path: path.as_ref().to_path_buf(),
            place: place.to_string(),
            message: message.to_string(),
        }
    }

    /// This error, where it is about a format, at `place`.
    pub(crate) fn at(self, place: impl ToString) -> Error {
        match self {
            Error::Format { path, message, .. } => Error::format(path, place, message),
            other => other,
        }
    }

    /// An [`Error::Option`].
    pub fn option(name: &'static str, value: impl ToString, expected: impl ToString) -> Error {
        Error::Option { name, value: value.to_string(), expected: expected.to_string() }
    }

    /// This error as one of `device`; an interrupt is nobody's.
    pub(crate) fn on(self, device: &str) -> Error {
        match self {
            Error::Interrupted => Error::Interrupted,
            error => Error::Device { device: device.into(), source: Box::new(error) },
        }
    }

    /// An [`Error::Model`].
    pub fn model(model: impl ToString, message: impl ToString) -> Error {
        Error::Model { model: model.to_string(), message: message.to_string() }
    }
}

struct Kept<'a>(&'a Option<PathBuf>);

impl std::fmt::Display for Kept<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |path| write!(f, "; the batch is kept in {}", path.display()))
    }
}

struct Place<'a>(&'a str);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ", {}", self.0) }
    }
}

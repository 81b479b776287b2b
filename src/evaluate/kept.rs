//! Finished answers of a quiz on disk, so that a killed one does not begin anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_text, save_every, write_text};

/// What a model said to one question.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    /// The greedy answer's first line.
    pub(super) prediction: String,
    /// The bits of ln p of each possible answer: JSON's decimals may move the last one, and a resumed quiz must
    /// give what an undisturbed one gives.
    pub(super) log_probs: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct File {
    quiz: String,
    answers: BTreeMap<usize, Said>,
}

/// Answers by number of their question.
pub(super) struct Kept {
    path: Option<PathBuf>,
    file: File,
    saved: Instant,
    save_every: Duration,
}

impl Kept {
    /// What `path` holds of the quiz named `identity`; nothing when there is no such file.
    pub(super) fn open(path: Option<&Path>, identity: String) -> Result<Self> {
        let mut file = File { quiz: identity, answers: BTreeMap::new() };
        if let Some(path) = path.filter(|path| path.exists()) {
            let found: File = serde_json::from_str(&read_text(path)?).map_err(|e| {
                let message = format!("no answers of a quiz ({e}); delete the file to ask again");
                Error::format(path, format!("line {}", e.line()), message)
            })?;
            if found.quiz != file.quiz {
                let message =
                    "holds answers of another quiz or model; choose another file, or delete this one";
                return Err(Error::format(path, "", message));
            }
            file = found;
        }
        Ok(Kept { path: path.map(Path::to_path_buf), file, saved: Instant::now(), save_every: save_every()? })
    }

    /// Whether all of `questions` are answered.
    pub(super) fn has(&self, questions: &[usize]) -> bool {
        questions.iter().all(|i| self.file.answers.contains_key(i))
    }

    pub(super) fn add(&mut self, questions: &[usize], said: Vec<Said>) -> Result<()> {
        self.file.answers.extend(questions.iter().copied().zip(said));
        if self.saved.elapsed() >= self.save_every { self.save() } else { Ok(()) }
    }

    pub(super) fn save(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            let text = serde_json::to_string(&self.file).map_err(|e| Error::format(path, "", e))?;
            write_text(path, &text)?;
            self.saved = Instant::now();
        }
        Ok(())
    }

    pub(super) fn take(&mut self, question: usize) -> Said {
        self.file.answers.remove(&question).unwrap_or_default()
    }
}

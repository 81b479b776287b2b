//! Finished answers of a quiz on disk, so that a killed one does not begin anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{read_text, save_every, write_text};
use crate::provenance::program;

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
    /// This program's version, and those of the crates that decide numbers; absent in older files.
    #[serde(default)]
    program: Option<String>,
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
        let mut file = File { quiz: identity, program: Some(program()), answers: BTreeMap::new() };
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
            if let (Some(was), Some(is)) = (&found.program, &file.program)
                && was != is
            {
                let message = format!(
                    "holds answers computed by {was}, now it is {is}; choose another file, or delete this one"
                );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_another_version_are_refused_and_older_files_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.json");
        let open = || Kept::open(Some(&path), "quiz".into());
        let mut kept = open().unwrap();
        kept.add(&[0], vec![Said::default()]).unwrap();
        kept.save().unwrap();
        assert!(open().unwrap().has(&[0]));
        let text = read_text(&path).unwrap();
        let mut file: File = serde_json::from_str(&text).unwrap();
        let mut with = |program: Option<&str>| {
            file.program = program.map(String::from);
            write_text(&path, &serde_json::to_string(&file).unwrap()).unwrap();
            open()
        };
        assert!(with(None).unwrap().has(&[0]));
        let message = with(Some("cluescope 0.0.1")).err().unwrap().to_string();
        assert!(message.contains("computed by cluescope 0.0.1, now it is cluescope "), "{message}");
    }
}

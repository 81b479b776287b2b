//! Easy data augmentation (Wei and Zou 2019): words swapped, deleted, inserted, replaced.

use std::collections::BTreeMap;
use std::path::Path;

use super::remap::Pieced;
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files;
use crate::random::Stream;

/// Words that may stand for another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Synonyms(BTreeMap<String, Vec<String>>);

impl Synonyms {
    /// Reads a dictionary: one line a word, `word: synonym, synonym`; `#` begins a remark.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] with the line that has another form.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut words = BTreeMap::<String, Vec<String>>::new();
        for (index, line) in files::read_text(path)?.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fault =
                || Error::format(path, format!("line {}", index + 1), "expected `word: synonym, synonym`");
            let (word, list) = line.split_once(':').ok_or_else(fault)?;
            let list: Vec<String> =
                list.split(',').map(|s| s.trim().to_string()).filter(|s| !s.is_empty()).collect();
            if word.trim().is_empty() || list.is_empty() {
                return Err(fault());
            }
            words.entry(word.trim().to_lowercase()).or_default().extend(list);
        }
        if words.is_empty() {
            return Err(Error::format(path, "", "no synonym in it"));
        }
        Ok(Synonyms(words))
    }

    fn of(&self, word: &str) -> Option<&Vec<String>> {
        self.0.get(&bare(word).to_lowercase())
    }
}

/// The word without signs around it.
fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_alphanumeric())
}

/// Options of EDA. Copies take the operations in turn: (replacement,) insertion, swap, deletion.
///
/// | option | default | purpose | range |
/// |---|---|---|---|
/// | `share` | 0.1 | share of words each operation changes (at least one); each word's chance of deletion | 0 to 1 |
/// | `synonyms` | none | replacement, and insertion as in the paper | |
///
/// Without a dictionary there is no replacement, and insertion takes another word of the same text. Words are
/// what stands between blanks; case and punctuation stay, unlike in the authors' script, which removes both.
#[derive(Debug, Clone, PartialEq)]
pub struct Eda {
    /// Share of words changed.
    pub share: f64,
    /// Dictionary for replacement and insertion.
    pub synonyms: Option<Synonyms>,
}

impl Default for Eda {
    fn default() -> Self {
        Eda { share: 0.1, synonyms: None }
    }
}

#[derive(Clone)]
enum Word {
    /// Characters of the source.
    Old(usize, usize),
    New(String),
}

impl Eda {
    pub(super) fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.share) {
            Ok(())
        } else {
            Err(Error::option("share", self.share, "0 to 1"))
        }
    }

    pub(super) fn copy(&self, document: &Document, seed: u64, copy: usize) -> Document {
        let mut out = Pieced::new(document);
        let mut words = Vec::new();
        let mut start = None;
        for (i, c) in out.chars().iter().chain(&[' ']).enumerate() {
            match (start, c.is_whitespace()) {
                (None, false) => start = Some(i),
                (Some(from), true) => {
                    words.push(Word::Old(from, i));
                    start = None;
                }
                _ => {}
            }
        }
        let mut stream = Stream::new(seed, &format!("eda: {}", document.id), &[copy as u64]);
        if !words.is_empty() {
            let changes = ((self.share * words.len() as f64) as usize).max(1);
            let text = |word: &Word| match word {
                Word::Old(start, end) => out.chars()[*start..*end].iter().collect(),
                Word::New(new) => new.clone(),
            };
            let turn = copy.saturating_sub(1);
            match (&self.synonyms, turn % if self.synonyms.is_some() { 4 } else { 3 }) {
                (Some(synonyms), 3) => replace(&mut words, synonyms, changes, &mut stream, &text),
                (synonyms, 0) => insert(&mut words, synonyms.as_ref(), changes, &mut stream, &text),
                (_, 1) => swap(&mut words, changes, &mut stream),
                _ => delete(&mut words, self.share, &mut stream),
            }
        }
        let mut last = None;
        for word in &words {
            match (word, last) {
                // Words that still follow each other keep the blanks between them, facts of several words included.
                (Word::Old(start, _), Some(end))
                    if *start > end && out.chars()[end..*start].iter().all(|c| c.is_whitespace()) =>
                {
                    out.old(end, *start);
                }
                _ if !out.is_empty() => out.new_text(" "),
                _ => {}
            }
            match word {
                Word::Old(start, end) => {
                    out.old(*start, *end);
                    last = Some(*end);
                }
                Word::New(new) => {
                    out.new_text(new);
                    last = None;
                }
            }
        }
        out.finish(copy)
    }
}

fn swap(words: &mut [Word], changes: usize, stream: &mut Stream) {
    if words.len() < 2 {
        return;
    }
    for _ in 0..changes {
        let a = stream.below(words.len());
        let b = (a + 1 + stream.below(words.len() - 1)) % words.len();
        words.swap(a, b);
    }
}

fn delete(words: &mut Vec<Word>, share: f64, stream: &mut Stream) {
    let spare = words[stream.below(words.len())].clone();
    words.retain(|_| !stream.chance(share));
    // A text is never emptied: one word stays (as in the authors' script).
    if words.is_empty() {
        words.push(spare);
    }
}

fn insert(
    words: &mut Vec<Word>,
    synonyms: Option<&Synonyms>,
    changes: usize,
    stream: &mut Stream,
    text: &dyn Fn(&Word) -> String,
) {
    let pool: Vec<String> = words.iter().map(text).collect();
    for _ in 0..changes {
        let new = match synonyms {
            None => stream.choose(&pool).map(|w| bare(w).to_string()),
            // Ten tries to meet a word with synonyms, as in the authors' script.
            Some(synonyms) => {
                let found = (0..10).find_map(|_| synonyms.of(&pool[stream.below(pool.len())]));
                found.and_then(|list| stream.choose(list).cloned())
            }
        };
        if let Some(new) = new.filter(|w| !w.is_empty()) {
            let at = stream.below(words.len() + 1);
            words.insert(at, Word::New(new));
        }
    }
}

fn replace(
    words: &mut [Word],
    synonyms: &Synonyms,
    changes: usize,
    stream: &mut Stream,
    text: &dyn Fn(&Word) -> String,
) {
    let mut known: Vec<String> = words.iter().map(text).filter(|w| synonyms.of(w).is_some()).collect();
    known.iter_mut().for_each(|w| *w = bare(w).to_string());
    known.sort();
    known.dedup();
    stream.shuffle(&mut known);
    for old in known.into_iter().take(changes) {
        let Some(new) = synonyms.of(&old).and_then(|list| stream.choose(list)) else { continue };
        for word in words.iter_mut() {
            let full = text(word);
            if bare(&full) == old {
                *word = Word::New(full.replacen(&old, new, 1));
            }
        }
    }
}

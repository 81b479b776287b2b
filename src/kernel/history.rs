//! The cells of this session, for history requests.

use std::collections::{HashSet, VecDeque};

use jupyter_protocol::{HistoryEntry, HistoryRequest};

use super::syntax;

/// Cells kept.
const CELLS: usize = 10_000;
/// Of a cell's value this much is kept, in bytes; a search through ten thousand large tables would be of no use.
const VALUE: usize = 4 * 1024;

/// Number, code and shown value of each cell, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    cells: VecDeque<(usize, String, Option<String>)>,
}

impl History {
    pub(super) fn push(&mut self, count: usize, code: String, mut shown: Option<String>) {
        if let Some(text) = shown.as_mut().filter(|text| text.len() > VALUE) {
            // The rest is given back, too.
            *text = format!("{} \u{2026}", &text[..text.floor_char_boundary(VALUE)]);
        }
        self.cells.push_back((count, code, shown));
        if self.cells.len() > CELLS {
            self.cells.pop_front();
        }
    }

    /// The cells asked for, oldest first.
    pub(super) fn find(&self, wanted: &HistoryRequest) -> Vec<HistoryEntry> {
        let entry = |(count, code, text): &(usize, String, Option<String>), output: bool| {
            if output {
                HistoryEntry::InputOutput(1, *count, (code.clone(), text.clone().unwrap_or_default()))
            } else {
                HistoryEntry::Input(1, *count, code.clone())
            }
        };
        let last = |n: i32| self.cells.len().saturating_sub(usize::try_from(n).unwrap_or(0));
        match wanted {
            HistoryRequest::Tail { n, output, .. } => {
                self.cells.iter().skip(last(*n)).map(|e| entry(e, *output)).collect()
            }
            HistoryRequest::Range { start, stop, output, .. } => {
                let start = usize::try_from(*start).unwrap_or(0);
                let stop = usize::try_from(*stop).ok().filter(|&s| s > 0).unwrap_or(usize::MAX);
                self.cells.iter().filter(|e| e.0 >= start && e.0 < stop).map(|e| entry(e, *output)).collect()
            }
            HistoryRequest::Search { pattern, unique, output, n, .. } => {
                let mut found: Vec<_> = self.cells.iter().filter(|e| syntax::glob(pattern, &e.1)).collect();
                if *unique {
                    let mut seen = HashSet::new();
                    found.reverse();
                    found.retain(|e| seen.insert(e.1.clone()));
                    found.reverse();
                }
                let skip = found.len().saturating_sub(usize::try_from(*n).unwrap_or(0));
                found.into_iter().skip(skip).map(|e| entry(e, *output)).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_values_are_kept_in_part() {
        let mut history = History::default();
        history.push(1, "large".into(), Some("é".repeat(1 << 20)));
        history.push(2, "small".into(), Some("5".into()));
        let HistoryEntry::InputOutput(_, 1, (_, text)) =
            &history.find(&HistoryRequest::Tail { n: 2, output: true, raw: true })[0]
        else {
            panic!("no entry")
        };
        assert!(text.ends_with('…') && (VALUE..VALUE + 10).contains(&text.len()), "{}", text.len());
        assert!(history.cells.iter().all(|(.., text)| text.as_ref().unwrap().capacity() < 4 * VALUE));
    }
}

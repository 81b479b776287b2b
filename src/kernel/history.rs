//! The cells of this session, for history requests.

use std::collections::{HashSet, VecDeque};

use jupyter_protocol::{HistoryEntry, HistoryRequest};

use super::syntax;

/// Cells kept.
const CELLS: usize = 10_000;

/// Number, code and shown value of each cell, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    cells: VecDeque<(usize, String, Option<String>)>,
}

impl History {
    pub(super) fn push(&mut self, count: usize, code: String, shown: Option<String>) {
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

//! Full names, each once, dealt out to the splits so that no person stands in two of them.

use std::sync::OnceLock;

use super::lists::{Culture, lists};
use crate::random::Stream;

/// The groups of people that never share a person, whatever the seeds.
pub(super) const SPLITS: [&str; 4] = ["test", "validation", "train", "pretrain"];

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) full: String,
    pub(super) woman: bool,
}

/// One way of putting a name together; all indices of the lists.
#[derive(Debug, Clone, Copy)]
struct Parts {
    culture: u8,
    man: bool,
    given: u8,
    /// A second given name.
    second: Option<u8>,
    family: u8,
}

/// All combinations: (given family, given second family), in a fixed random order.
fn combinations() -> &'static [Vec<Parts>; 2] {
    static ALL: OnceLock<[Vec<Parts>; 2]> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = [Vec::new(), Vec::new()];
        for (c, culture) in lists().cultures.iter().enumerate() {
            for man in [false, true] {
                let names = culture.given[usize::from(man)].len() as u8;
                for family in 0..culture.family[0].len() as u8 {
                    for given in 0..names {
                        let one = Parts { culture: c as u8, man, given, second: None, family };
                        all[0].push(one);
                        let others = (0..names).filter(|&s| s != given && !culture.family_first);
                        all[1].extend(others.map(|s| Parts { second: Some(s), ..one }));
                    }
                }
            }
        }
        // The order decides who belongs to which split, so it may depend on nothing the user chooses.
        for (kind, parts) in all.iter_mut().enumerate() {
            Stream::new(0, "name splits", &[kind as u64]).shuffle(parts);
        }
        all
    })
}

/// The names of one split under one seed; three of four have one given name while they last.
pub(super) struct Pool {
    short: Vec<Parts>,
    long: Vec<Parts>,
}

impl Pool {
    pub(super) fn new(split: usize, seed: u64) -> Self {
        let part = |kind: usize| {
            let all = &combinations()[kind];
            let size = all.len() / SPLITS.len();
            let mut mine = all[split * size..(split + 1) * size].to_vec();
            Stream::new(seed, "name order", &[split as u64, kind as u64]).shuffle(&mut mine);
            mine
        };
        Pool { short: part(0), long: part(1) }
    }

    /// How many people there are.
    pub(super) fn len(&self) -> usize {
        // Short names come in threes; what is left of them is not used.
        self.short.len() / 3 * 3 + self.long.len()
    }

    /// Person `i`; `None` from [`Pool::len`] on.
    pub(super) fn name(&self, i: usize) -> Option<Name> {
        let blocks = self.short.len() / 3;
        let parts = match (i / 4, i % 4) {
            (block, place) if block < blocks && place < 3 => self.short.get(block * 3 + place),
            (block, _) if block < blocks => self.long.get(block),
            _ => self.long.get(i - 3 * blocks),
        };
        parts.map(|p| p.name(&lists().cultures[usize::from(p.culture)]))
    }
}

impl Parts {
    fn name(&self, culture: &Culture) -> Name {
        let gender = usize::from(self.man);
        let given = culture.given[gender][usize::from(self.given)];
        let family = culture.family[gender][usize::from(self.family)];
        let full = match self.second.map(|s| culture.given[gender][usize::from(s)]) {
            None if culture.family_first => format!("{family} {given}"),
            None => format!("{given} {family}"),
            Some(second) => format!("{given} {second} {family}"),
        };
        Name { full, woman: !self.man }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_stands_in_one_split_only() {
        let mut seen = HashSet::new();
        for split in 0..SPLITS.len() {
            let pool = Pool::new(split, split as u64);
            assert!(pool.len() >= 100_000, "{}", pool.len());
            for i in 0..pool.len() {
                let name = pool.name(i).unwrap();
                assert!(seen.insert(name.full.clone()), "{} twice", name.full);
            }
            assert_eq!(pool.name(pool.len()), None);
        }
        for real in &lists().real_people {
            assert!(!seen.contains(&real.name), "{}", real.name);
        }
    }
}

//! Bootstrap intervals for means and for paired differences between conditions.
//!
//! The questions about one person share that person's text, so they are not independent: whole persons are drawn
//! with replacement (a cluster bootstrap). With several training seeds, seeds and persons are drawn independently
//! and a value counts as often as its seed and its person were drawn together (Owen's "pigeonhole" bootstrap,
//! 2007, doi:10.1214/07-AOAS122; it errs on the wide side). A difference uses the same draw for both conditions.
//!
//! Estimate: Σ values / number of values, over everything; never a mean of means.
//! Interval: the percentiles (1 − level)/2 and (1 + level)/2 of the resampled estimates.
//!
//! ```
//! use cluescope::evaluate::{Bootstrap, Cells};
//! // (training seed, person, value)
//! let plain = Cells::new([(0, "Ada", 0.0), (0, "Bo", 1.0), (0, "Cy", 0.0)])?;
//! let taught = Cells::new([(0, "Ada", 1.0), (0, "Bo", 1.0), (0, "Cy", 0.0)])?;
//! let gain = Bootstrap::default().difference(&taught, &plain)?;
//! assert!((gain.estimate - 1.0 / 3.0).abs() < 1e-12);
//! assert_eq!((gain.low, gain.high), (0.0, 1.0));
//! # Ok::<(), cluescope::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::Stream;

/// Values gathered by training seed and person.
#[derive(Debug, Clone, PartialEq)]
pub struct Cells {
    /// (sum, number of values) of each seed and person; ordered, so that results do not depend on input order.
    cells: BTreeMap<(u64, String), (f64, u64)>,
}

impl Cells {
    /// Gathers `(training seed, person, value)` triples; any number of values for the same seed and person.
    ///
    /// # Errors
    /// [`Error::Stopped`] when there is no value or one is not finite; the message names the person.
    pub fn new<P: Into<String>>(values: impl IntoIterator<Item = (u64, P, f64)>) -> Result<Self> {
        let mut cells = BTreeMap::new();
        for (seed, person, value) in values {
            let person = person.into();
            if !value.is_finite() {
                return Err(Error::Stopped(format!(
                    "interval: the value of {person} (seed {seed}) is {value}; leave it out or mend the measure"
                )));
            }
            let cell = cells.entry((seed, person)).or_insert((0.0, 0));
            cell.0 += value;
            cell.1 += 1;
        }
        if cells.is_empty() {
            return Err(Error::Stopped("interval: no values to average".into()));
        }
        Ok(Cells { cells })
    }

    /// Whether a difference can be taken: some seed and person are in both.
    pub(crate) fn overlaps(&self, other: &Cells) -> bool {
        self.cells.keys().any(|key| other.cells.contains_key(key))
    }

    /// Σ values / number of values.
    pub fn mean(&self) -> f64 {
        let (sum, n) = self.cells.values().fold((0.0, 0), |(s, n), c| (s + c.0, n + c.1));
        sum / n as f64
    }
}

/// An estimate with its interval and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean, or the difference of two means, of all values.
    pub estimate: f64,
    /// Lower end; equal to `high` and `estimate` when there is a single person, see [`Interval::is_defined`].
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Nominal coverage, such as 0.95.
    pub level: f64,
    /// Bootstrap resamples behind the ends.
    pub resamples: usize,
    /// Training seeds.
    pub seeds: usize,
    /// Persons (clusters).
    pub persons: usize,
    /// Values, over all seeds and persons (of one condition).
    pub values: u64,
}

impl Interval {
    /// False for a single person, who can say nothing about the spread between persons.
    pub fn is_defined(&self) -> bool {
        self.persons > 1
    }
}

impl std::fmt::Display for Interval {
    /// `0.420 [0.381, 0.459]`; a precision, as in `{:.2}`, changes the three digits.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let p = f.precision().unwrap_or(3);
        write!(f, "{:.p$}", self.estimate)?;
        if self.is_defined() { write!(f, " [{:.p$}, {:.p$}]", self.low, self.high) } else { Ok(()) }
    }
}

/// How intervals are made.
///
/// | name | default | purpose | range |
/// |---|---|---|---|
/// | `resamples` | 2000 | draws of persons and seeds | ≥ 100 |
/// | `level` | 0.95 | nominal coverage | 0 to 1, both exclusive |
/// | `seed` | 0 | of the draws | any |
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Draws of persons and seeds.
    pub resamples: usize,
    /// Nominal coverage.
    pub level: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Bootstrap { resamples: 2000, level: 0.95, seed: 0 }
    }
}

impl Bootstrap {
    /// The mean of `cells`.
    ///
    /// # Errors
    /// [`Error::Option`] for settings out of range.
    pub fn mean(&self, cells: &Cells) -> Result<Interval> {
        self.resample(&[cells])
    }

    /// The mean of `a` minus the mean of `b`, over the seeds and persons that both have.
    ///
    /// # Errors
    /// [`Error::Option`] for settings out of range, [`Error::Stopped`] when the two share no seed and person.
    pub fn difference(&self, a: &Cells, b: &Cells) -> Result<Interval> {
        self.resample(&[a, b])
    }

    /// `arms` holds one condition, or two whose difference is wanted.
    fn resample(&self, arms: &[&Cells]) -> Result<Interval> {
        self.check()?;
        let shared: Vec<&(u64, String)> =
            arms[0].cells.keys().filter(|key| arms.iter().all(|arm| arm.cells.contains_key(key))).collect();
        if shared.is_empty() {
            return Err(Error::Stopped(
                "interval: the two conditions share no seed and person; quiz both on the same people".into(),
            ));
        }
        let seeds = number(shared.iter().map(|key| key.0));
        let persons = number(shared.iter().map(|key| key.1.as_str()));
        let table: Vec<Entry> = shared
            .iter()
            .map(|key| Entry {
                seed: seeds[&key.0],
                person: persons[key.1.as_str()],
                arms: std::array::from_fn(|i| arms.get(i).map_or((0.0, 0), |arm| arm.cells[*key])),
            })
            .collect();

        let statistic = |weight: &dyn Fn(&Entry) -> u64| {
            let mut totals = [(0.0, 0u64); 2];
            for entry in &table {
                let w = weight(entry);
                for (total, (sum, n)) in totals.iter_mut().zip(entry.arms) {
                    total.0 += w as f64 * sum;
                    total.1 += w * n;
                }
            }
            let mean = |(sum, n): (f64, u64)| sum / n as f64;
            if arms.len() == 2 { mean(totals[0]) - mean(totals[1]) } else { mean(totals[0]) }
        };
        let estimate = statistic(&|_| 1);
        let mut drawn = Vec::with_capacity(self.resamples);
        for resample in 0..self.resamples as u64 {
            let seed_weight = draw(self.seed, "bootstrap seeds", resample, seeds.len());
            let person_weight = draw(self.seed, "bootstrap persons", resample, persons.len());
            let value = statistic(&|e| seed_weight[e.seed] * person_weight[e.person]);
            // Not a number: with cells missing, a draw may hit none at all; it then says nothing.
            if value.is_finite() {
                drawn.push(value);
            }
        }
        drawn.sort_unstable_by(f64::total_cmp);
        let (low, high) = if persons.len() < 2 {
            (estimate, estimate)
        } else {
            let tail = (1.0 - self.level) / 2.0;
            (percentile(&drawn, tail), percentile(&drawn, 1.0 - tail))
        };
        Ok(Interval {
            estimate,
            low,
            high,
            level: self.level,
            resamples: drawn.len(),
            seeds: seeds.len(),
            persons: persons.len(),
            values: table.iter().map(|e| e.arms[0].1).sum(),
        })
    }

    fn check(&self) -> Result<()> {
        if self.resamples < 100 {
            return Err(Error::option("resamples", self.resamples, "at least 100; 2000 or more to report"));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return Err(Error::option("level", self.level, "between 0 and 1, such as 0.95"));
        }
        Ok(())
    }
}

/// (sum, number of values) of each arm in one seed and person.
struct Entry {
    seed: usize,
    person: usize,
    arms: [(f64, u64); 2],
}

/// The place of each key in their order.
fn number<K: Ord>(keys: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    keys.collect::<BTreeSet<K>>().into_iter().zip(0..).collect()
}

/// How often each of `0..n` comes up in `n` draws with replacement.
fn draw(seed: u64, purpose: &str, resample: u64, n: usize) -> Vec<u64> {
    let mut weights = vec![0; n];
    if n == 1 {
        return vec![1];
    }
    let mut stream = Stream::new(seed, purpose, &[resample]);
    for _ in 0..n {
        weights[stream.below(n)] += 1;
    }
    weights
}

/// Linear interpolation between order statistics (numpy's default).
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + part * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_interpolate() {
        assert_eq!(percentile(&[0.0, 1.0, 2.0, 3.0], 0.5), 1.5);
        assert_eq!(percentile(&[0.0, 1.0], 1.0), 1.0);
    }

    #[test]
    fn order_of_values_changes_nothing() {
        let values: Vec<_> =
            (0..40).map(|i| (u64::from(i % 2 == 0), format!("p{}", i % 7), f64::from(i * i % 5))).collect();
        let forward = Bootstrap::default().mean(&Cells::new(values.clone()).unwrap()).unwrap();
        let backward = Bootstrap::default().mean(&Cells::new(values.into_iter().rev()).unwrap()).unwrap();
        assert_eq!(forward, backward);
        assert_eq!((forward.seeds, forward.persons, forward.values, forward.resamples), (2, 7, 40, 2000));
    }

    #[test]
    fn bad_settings_and_values_are_named() {
        let cells = Cells::new([(0, "Ada", 1.0)]).unwrap();
        let few = Bootstrap { resamples: 5, ..Bootstrap::default() }.mean(&cells).unwrap_err().to_string();
        assert!(few.contains("resamples = 5"), "{few}");
        let wide = Bootstrap { level: 95.0, ..Bootstrap::default() }.mean(&cells).unwrap_err().to_string();
        assert!(wide.contains("level = 95"), "{wide}");
        assert!(Cells::new([(0, "Ada", f64::NAN)]).unwrap_err().to_string().contains("Ada"));
        assert!(Cells::new([] as [(u64, &str, f64); 0]).is_err());
        let other = Cells::new([(1, "Ada", 1.0)]).unwrap();
        assert!(Bootstrap::default().difference(&cells, &other).is_err());
        assert!(!Bootstrap::default().mean(&cells).unwrap().is_defined());
    }
}

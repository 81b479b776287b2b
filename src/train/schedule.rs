//! Learning rate over the run: a linear warm-up, then the chosen decay.
//!
//! With `w` warm-up steps of `n` in all, step `s` (counted from 0) trains at `learning_rate · f(s)`:
//!
//! | schedule | `s < w` | `s ≥ w`, `x = (s − w) / max(1, n − w)` |
//! |---|---|---|
//! | [`Schedule::Linear`] | `s / max(1, w)` | `max(0, 1 − x)` |
//! | [`Schedule::Cosine`] | `s / max(1, w)` | `max(0, (1 + cos(π x)) / 2)` |
//! | [`Schedule::Constant`] | `s / max(1, w)` | `1` |
//!
//! These are `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup` and
//! `get_constant_schedule_with_warmup` of transformers, and `w = ceil(n · warmup_ratio)` is its
//! `TrainingArguments`. The paper (section 5) uses the first with a ratio of 0.1.
//!
//! ```
//! use cluescope::train::{LearningRate, Schedule};
//! let rate = LearningRate { peak: 5e-4, schedule: Schedule::Linear, warmup_steps: 10, total_steps: 110 };
//! assert_eq!(rate.at(0), 0.0);
//! assert_eq!(rate.at(5), 2.5e-4);
//! assert_eq!(rate.at(10), 5e-4);
//! assert_eq!(rate.at(60), 2.5e-4);
//! ```

use serde::{Deserialize, Serialize};

/// What happens to the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Falls in a straight line to 0 at the last step; the paper's.
    #[default]
    Linear,
    /// Falls along half a cosine wave to 0.
    Cosine,
    /// Stays.
    Constant,
}

/// The learning rate of every step of one run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// The rate at the end of the warm-up.
    pub peak: f64,
    /// The decay afterwards.
    pub schedule: Schedule,
    /// Steps of warm-up.
    pub warmup_steps: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
}

impl LearningRate {
    /// The rate of optimiser step `step`, counted from 0. As in transformers the first warm-up step
    /// has rate 0.
    pub fn at(&self, step: usize) -> f64 {
        let (s, w, n) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        // The formulas are kept in transformers' order of operations, so that even the last bit agrees.
        let factor = if step < self.warmup_steps {
            s / w.max(1.0)
        } else {
            match self.schedule {
                Schedule::Linear => ((n - s) / (n - w).max(1.0)).max(0.0),
                Schedule::Cosine => {
                    let progress = (s - w) / (n - w).max(1.0);
                    (0.5 * (1.0 + (std::f64::consts::PI * 0.5 * 2.0 * progress).cos())).max(0.0)
                }
                Schedule::Constant => 1.0,
            }
        };
        self.peak * factor
    }
}

/// Warm-up steps for a share of the run, rounded up as transformers does.
pub fn warmup_steps(total_steps: usize, warmup_ratio: f64) -> usize {
    (total_steps as f64 * warmup_ratio).ceil() as usize
}

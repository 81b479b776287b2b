//! The loss on texts that are not trained on, and what follows from it: the best step, and when to stop.

use serde::{Deserialize, Serialize};

use super::batch::Prepared;
use super::params::Settings;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::{Batch, Model};
use crate::progress::check_interrupt;

/// One look at the held-out texts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// After this many optimiser steps.
    pub step: usize,
    /// Passes over the training texts by then, a fraction.
    pub epoch: f64,
    /// Mean cross-entropy of all predicted tokens together, in nats, without dropout.
    pub loss: f64,
}

/// Texts to evaluate on.
#[derive(Debug)]
pub(super) struct HeldOut {
    prepared: Prepared,
    batch_size: usize,
}

impl HeldOut {
    pub(super) fn new(corpus: &Corpus, model: &Model, settings: &Settings) -> Result<HeldOut> {
        let longest = settings.max_length.min(model.config().max_positions);
        let prepared = Prepared::new(&corpus.documents, model.tokenizer(), longest)?;
        if prepared.examples.is_empty() {
            let count = corpus.documents.len();
            return Err(Error::Stopped(format!(
                "nothing to evaluate on: of {count} texts none has two tokens or more"
            )));
        }
        Ok(HeldOut { prepared, batch_size: settings.batch_size })
    }

    /// Identifies ids and tokens.
    pub(super) fn hash(&self) -> String {
        self.prepared.hash(false)
    }

    pub(super) fn loss(&self, model: &Model) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        for examples in self.prepared.examples.chunks(self.batch_size) {
            check_interrupt()?;
            let texts: Vec<&[u32]> = examples.iter().map(|e| e.ids.as_slice()).collect();
            for row in model.token_log_probs(&Batch::new(&texts))? {
                // Nothing predicts a text's first token.
                sum -= row[1..].iter().map(|&p| f64::from(p)).sum::<f64>();
                tokens += row.len() - 1;
            }
        }
        Ok(sum / tokens as f64)
    }
}

/// The evaluation with the lowest loss, the first of equals; those that are no number never win.
pub(super) fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    evaluations.iter().filter(|e| e.loss.is_finite()).min_by(|a, b| a.loss.total_cmp(&b.loss))
}

/// Whether the last `patience` evaluations brought nothing better.
pub(super) fn exhausted(evaluations: &[Evaluation], patience: Option<usize>) -> bool {
    let since = match best(evaluations) {
        Some(best) => evaluations.iter().filter(|e| e.step > best.step).count(),
        None => evaluations.len(),
    };
    patience.is_some_and(|patience| since >= patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_lowest_and_patience_counts_from_it() {
        let evaluations = |losses: &[f64]| -> Vec<Evaluation> {
            losses
                .iter()
                .enumerate()
                .map(|(i, &loss)| Evaluation { step: 10 * (i + 1), epoch: 0.0, loss })
                .collect()
        };
        let cases: [(&[f64], Option<usize>, [bool; 3]); 6] = [
            (&[], None, [false, false, false]),
            (&[3.0], Some(10), [false, false, false]),
            (&[3.0, 2.0, 2.0], Some(20), [true, false, false]),
            (&[3.0, 2.0, 2.5, f64::NAN], Some(20), [true, true, false]),
            (&[3.0, 4.0, 5.0, 6.0], Some(10), [true, true, true]),
            (&[f64::NAN, f64::INFINITY], None, [true, true, false]),
        ];
        for (losses, step, stops) in cases {
            let evaluations = evaluations(losses);
            assert_eq!(best(&evaluations).map(|e| e.step), step, "{losses:?}");
            assert_eq!([1, 2, 3].map(|p| exhausted(&evaluations, Some(p))), stops, "{losses:?}");
            assert!(!exhausted(&evaluations, None));
        }
    }
}

//! Texts longer than the context, read in overlapping stretches.
//!
//! Every stretch begins with the same *head* (start tokens and prefix), so that the token which
//! absorbs attention for want of anything better is the same in all of them. Then come as many
//! tokens of the text as fit. Each stretch begins half a stretch after the one before; the last is moved
//! back until it is full. Received attention is pooled: the weights a token received in all stretches,
//! divided by the number of queries that could have looked at it there.
//! A probe's row comes from one stretch, the one that shows the most text before the probe; tokens
//! before that stretch weigh 0.

use std::ops::Range;

use crate::error::{Error, Result};

/// One stretch: tokens `0..head` of the text, then `body`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Window {
    /// Tokens repeated in front of every stretch.
    pub(crate) head: usize,
    /// The tokens of the text after them.
    pub(crate) body: Range<usize>,
}

impl Window {
    /// Tokens the model reads.
    pub(crate) fn len(&self) -> usize {
        self.head + self.body.len()
    }

    /// The text's token at each place of the stretch.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.head).chain(self.body.clone())
    }

    /// Where token `index` of the text stands in the stretch.
    pub(crate) fn place(&self, index: usize) -> Option<usize> {
        if index < self.head {
            Some(index)
        } else {
            self.body.contains(&index).then(|| index - self.body.start + self.head)
        }
    }
}

/// Divides `tokens` tokens, of which the first `head` are repeated, into stretches of at most `context`.
///
/// # Errors
/// [`Error::Option`] when the head leaves no room for two tokens of the text.
pub(crate) fn windows(tokens: usize, head: usize, context: usize) -> Result<Vec<Window>> {
    let head = head.min(tokens);
    if tokens <= context {
        return Ok(vec![Window { head, body: head..tokens }]);
    }
    let room = context.saturating_sub(head);
    if room < 2 {
        let expected =
            format!("at least {}, for the start tokens and the prefix ({head}) and 2 more", head + 2);
        return Err(Error::option("context", context, expected));
    }
    let mut found = Vec::new();
    let mut start = head;
    while start + room < tokens {
        found.push(Window { head, body: start..start + room });
        start += room / 2;
    }
    found.push(Window { head, body: tokens - room..tokens });
    Ok(found)
}

/// The stretch that shows the most text before token `index`: the earliest that contains it.
pub(crate) fn window_of_probe(windows: &[Window], index: usize) -> Option<usize> {
    windows.iter().position(|w| w.place(index).is_some())
}

/// Pools received attention of all stretches; `received[w][k]` is the mean weight of the k-th
/// token of stretch w over the queries from k to the stretch's end.
pub(crate) fn pool(tokens: usize, windows: &[Window], received: &[&[f32]]) -> Vec<f32> {
    if let ([only], [row]) = (windows, received)
        && only.len() == tokens
    {
        return row.to_vec();
    }
    let mut sum = vec![0.0f64; tokens];
    let mut queries = vec![0usize; tokens];
    for (window, row) in windows.iter().zip(received) {
        for (k, token) in window.tokens().enumerate() {
            let seen = window.len() - k;
            sum[token] += f64::from(row[k]) * seen as f64;
            queries[token] += seen;
        }
    }
    sum.iter().zip(&queries).map(|(&s, &q)| (s / q.max(1) as f64) as f32).collect()
}

/// A probe's row within `window` as a row over tokens `0..=index` of the text.
pub(crate) fn widen(window: &Window, index: usize, row: &[f32]) -> Vec<f32> {
    let mut wide = vec![0.0; index + 1];
    for (&weight, token) in row.iter().zip(window.tokens()) {
        wide[token] = weight;
    }
    wide
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_text_is_one_stretch() {
        assert_eq!(windows(5, 1, 5).unwrap(), [Window { head: 1, body: 1..5 }]);
        assert_eq!(windows(0, 1, 5).unwrap(), [Window { head: 0, body: 0..0 }]);
    }

    #[test]
    fn stretches_overlap_by_half_and_the_last_is_full() {
        let found: Vec<_> = windows(12, 1, 7).unwrap().into_iter().map(|w| w.body).collect();
        assert_eq!(found, [1..7, 4..10, 6..12]);
        for (tokens, head, context) in [(100, 0, 7), (100, 3, 8), (9, 2, 4), (8, 0, 7)] {
            let found = windows(tokens, head, context).unwrap();
            assert!(found.iter().all(|w| w.len() == context), "{found:?}");
            assert!((head..tokens).all(|t| found.iter().any(|w| w.body.contains(&t))), "{found:?}");
        }
    }

    #[test]
    fn a_head_as_long_as_the_context_is_refused() {
        let message = windows(10, 4, 5).unwrap_err().to_string();
        assert!(message.contains("context = 5") && message.contains("at least 6"), "{message}");
    }

    #[test]
    fn pooling_divides_by_the_queries_seen() {
        // 4 tokens, no head, stretches 0..3 and 1..4 of uniform causal attention.
        let windows = [Window { head: 0, body: 0..3 }, Window { head: 0, body: 1..4 }];
        let uniform = [(1.0 + 0.5 + 1.0 / 3.0) / 3.0, (0.5 + 1.0 / 3.0) / 2.0, 1.0 / 3.0];
        let pooled = pool(4, &windows, &[&uniform, &uniform]);
        let expected = [
            uniform[0],
            (uniform[1] * 2.0 + uniform[0] * 3.0) / 5.0,
            (uniform[2] + uniform[1] * 2.0) / 3.0,
            uniform[2],
        ];
        for (got, want) in pooled.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{pooled:?} {expected:?}");
        }
    }

    #[test]
    fn a_probe_takes_the_stretch_with_the_most_text_before_it() {
        let found = windows(12, 1, 7).unwrap();
        assert_eq!(window_of_probe(&found, 6), Some(0));
        assert_eq!(window_of_probe(&found, 7), Some(1));
        assert_eq!(window_of_probe(&found, 0), Some(0));
        let row = widen(&found[1], 7, &[0.5, 0.1, 0.1, 0.1, 0.2]);
        assert_eq!(row, [0.5, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1, 0.2]);
    }
}

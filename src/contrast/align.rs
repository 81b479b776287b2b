//! Attention of one tokenizer laid on the tokens of another, by characters.
//!
//! Two models that split a text differently cannot be compared token by token. What they share is the
//! text: each token's weight is spread evenly over its characters, and each token of the target takes
//! what lies on its own characters. Start tokens cover no character, so the weights are first
//! normalised over the tokens that do: what remains is each model's share of attention, in the same unit.
//!
//! ```
//! use cluescope::contrast::align;
//! // "abcd" as ab|cd and as a|bc|d.
//! let laid = align(&[(0, 2), (2, 4)], &[3.0, 1.0], &[(0, 1), (1, 3), (3, 4)]);
//! assert_eq!(laid, [0.375, 0.5, 0.125]);
//! ```

/// `weights` (one a token of `source`), normalised to a total of 1 over the tokens with a non-empty
/// span and laid on the tokens of `target`. Returns one weight a token of `target`, with total 1, or all
/// zeros when no source token with a span has weight or no target token has a span.
///
/// A character of several source tokens (a letter split into bytes) takes a part from each; a character
/// of several target tokens is divided evenly among them; a character of no target token (a
/// blank some tokenizers leave out) goes to the target token after it, or the last one.
/// Where both splits are equal the normalised weights come back as they are.
///
/// # Panics
/// When `weights` and `source` differ in length: a mistake of the caller, not of the data.
pub fn align(source: &[(usize, usize)], weights: &[f32], target: &[(usize, usize)]) -> Vec<f32> {
    assert_eq!(source.len(), weights.len(), "one weight a token");
    let covered = |&(start, end): &(usize, usize)| end > start;
    let total: f64 =
        source.iter().zip(weights).filter(|(span, _)| covered(span)).map(|(_, &w)| f64::from(w)).sum();
    if total <= 0.0 || !target.iter().any(covered) {
        return vec![0.0; target.len()];
    }
    if source == target {
        return source
            .iter()
            .zip(weights)
            .map(|(span, &w)| if covered(span) { (f64::from(w) / total) as f32 } else { 0.0 })
            .collect();
    }
    let characters = source.iter().map(|span| span.1).max().unwrap_or(0);
    let mut mass = vec![0.0f64; characters];
    for (span, &weight) in source.iter().zip(weights).filter(|(span, _)| covered(span)) {
        let part = f64::from(weight) / total / (span.1 - span.0) as f64;
        for place in &mut mass[span.0..span.1] {
            *place += part;
        }
    }
    let mut sharers = vec![0u32; characters];
    for span in target.iter().filter(|span| covered(span)) {
        for count in &mut sharers[span.0.min(characters)..span.1.min(characters)] {
            *count += 1;
        }
    }
    let mut laid = vec![0.0f64; target.len()];
    for (sum, span) in laid.iter_mut().zip(target).filter(|(_, span)| covered(span)) {
        for c in span.0.min(characters)..span.1.min(characters) {
            *sum += mass[c] / f64::from(sharers[c]);
        }
    }
    give_uncovered(&mass, &sharers, target, &mut laid);
    laid.iter().map(|&w| w as f32).collect()
}

/// Adds the mass of characters that no target token covers to the token after them, or the last.
fn give_uncovered(mass: &[f64], sharers: &[u32], target: &[(usize, usize)], laid: &mut [f64]) {
    let mut by_start: Vec<usize> = (0..target.len()).filter(|&t| target[t].1 > target[t].0).collect();
    by_start.sort_by_key(|&t| target[t].0);
    let Some(&last) = by_start.last() else { return };
    let mut next = 0;
    for (c, &m) in mass.iter().enumerate().filter(|&(c, _)| sharers[c] == 0) {
        while next < by_start.len() && target[by_start[next]].0 <= c {
            next += 1;
        }
        laid[by_start.get(next).copied().unwrap_or(last)] += m;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(weights: &[f32]) -> f64 {
        weights.iter().map(|&w| f64::from(w)).sum()
    }

    #[test]
    fn equal_splits_give_the_weights_back() {
        // A start token, two ordinary tokens, and one letter split into three bytes.
        let spans = [(0, 0), (0, 3), (3, 5), (5, 6), (5, 6), (5, 6)];
        let weights = [9.0, 0.25, 0.125, 0.375, 0.25, 0.0];
        assert_eq!(align(&spans, &weights, &spans), [0.0, 0.25, 0.125, 0.375, 0.25, 0.0]);
    }

    #[test]
    fn totals_are_kept_for_any_two_splits() {
        // Pseudo-random splits of 97 characters, some with gaps, some with shared characters.
        let mut state = 12345u64;
        let mut random = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..200 {
            let mut split = |gaps: bool| {
                let (mut spans, mut at) = (vec![(0, 0)], 0);
                while at < 97 {
                    if gaps && random(5) == 0 {
                        at += 1;
                    }
                    let end = (at + 1 + random(9)).min(97);
                    if at < end {
                        spans.push((at, end));
                        if random(6) == 0 {
                            spans.push((end - 1, end));
                        }
                    }
                    at = end;
                }
                spans
            };
            let (source, target) = (split(false), split(true));
            let weights: Vec<f32> = source.iter().map(|_| random(1000) as f32 / 7.0).collect();
            let laid = align(&source, &weights, &target);
            assert!((total(&laid) - 1.0).abs() < 1e-6, "{}", total(&laid));
            assert_eq!(laid[0], 0.0, "a start token takes nothing");
        }
    }

    #[test]
    fn uncovered_characters_go_to_the_next_token_or_the_last() {
        // "a b " with a leading blank inside source tokens, none in the target's.
        let laid = align(&[(0, 1), (1, 3), (3, 4)], &[1.0, 2.0, 1.0], &[(0, 1), (2, 3)]);
        assert_eq!(laid, [0.25, 0.75]);
    }

    #[test]
    fn nothing_to_lay_gives_zeros() {
        assert_eq!(align(&[(0, 0)], &[1.0], &[(0, 0), (0, 2)]), [0.0, 0.0]);
        assert_eq!(align(&[(0, 1)], &[1.0], &[(0, 0)]), [0.0]);
        assert_eq!(align(&[(0, 1)], &[0.0], &[(0, 1)]), [0.0]);
    }
}

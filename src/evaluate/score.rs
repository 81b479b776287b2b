//! Exact match and word F1 as SQuAD v1.1 defines them.
//!
//! A text is normalised by lower-casing, dropping ASCII punctuation, replacing the articles `a`, `an`, `the` by a
//! blank, and squeezing white space. *Exact match* compares two normalised texts; *F1* is the harmonic mean of
//! precision and recall over the bags of their words. Several right answers: the best score counts.
//! Source: the official `evaluate-v1.1.py` (Rajpurkar et al., 2016); paper, section 4.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// `text` in the form that scores compare.
///
/// ```
/// use cluescope::evaluate::normalize_answer;
/// assert_eq!(normalize_answer(" The  University of St. Andrews. "), "university of st andrews");
/// ```
pub fn normalize_answer(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut out = String::with_capacity(lower.len());
    let mut word = String::new();
    // The line end closes the last word; white space is squeezed below.
    for c in lower.chars().filter(|c| !c.is_ascii_punctuation()).chain(['\n']) {
        if is_word(c) {
            word.push(c);
            continue;
        }
        // The script's `\b(a|an|the)\b` matches exactly where a whole run of word characters is an article.
        out.push_str(if matches!(word.as_str(), "a" | "an" | "the") { " " } else { &word });
        out.push(c);
        word.clear();
    }
    words(&out).collect::<Vec<_>>().join(" ")
}

/// 1 when `prediction` equals one of `right` after [`normalize_answer`], else 0.
///
/// ```
/// use cluescope::evaluate::exact_match;
/// assert_eq!(exact_match("the Riverdale", &["Oslo", "Riverdale."]), 1.0);
/// ```
pub fn exact_match<S: AsRef<str>>(prediction: &str, right: &[S]) -> f64 {
    let prediction = normalize_answer(prediction);
    f64::from(u8::from(right.iter().any(|r| normalize_answer(r.as_ref()) == prediction)))
}

/// The largest word F1 of `prediction` with one of `right`, from 0 to 1.
///
/// As in the official script, two texts without a common word score 0, even when both are empty.
///
/// ```
/// use cluescope::evaluate::f1;
/// assert!((f1("St Andrews", &["University of St Andrews"]) - 2.0 / 3.0).abs() < 1e-12);
/// ```
pub fn f1<S: AsRef<str>>(prediction: &str, right: &[S]) -> f64 {
    let prediction = normalize_answer(prediction);
    right.iter().map(|r| f1_of(&prediction, &normalize_answer(r.as_ref()))).fold(0.0, f64::max)
}

fn f1_of(prediction: &str, right: &str) -> f64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in words(right) {
        *left.entry(word).or_default() += 1;
    }
    let common = words(prediction)
        .filter(|word| {
            left.get_mut(word).is_some_and(|n| {
                *n > 0 && {
                    *n -= 1;
                    true
                }
            })
        })
        .count();
    if common == 0 {
        return 0.0;
    }
    let precision = common as f64 / words(prediction).count() as f64;
    let recall = common as f64 / words(right).count() as f64;
    2.0 * precision * recall / (precision + recall)
}

/// What Python's `str.split()` calls words: the four ASCII separators U+001C–U+001F divide too.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).filter(|w| !w.is_empty())
}

/// What `\w` means in the script: a letter or number by general category. `char::is_alphanumeric` also counts
/// vowel signs and circled letters.
fn is_word(c: char) -> bool {
    // A constant pattern: it compiles or the tests below do not pass.
    static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]$").expect("a valid pattern"));
    if c.is_ascii() {
        c.is_ascii_alphanumeric() || c == '_'
    } else {
        WORD.is_match(c.encode_utf8(&mut [0; 4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_go_only_as_whole_words() {
        assert_eq!(normalize_answer("The theatre, an answer a day; A-a thea"), "theatre answer day aa thea");
        assert_eq!(normalize_answer("a1 \u{e9}a a\u{e9} the\u{301}"), "a1 \u{e9}a a\u{e9} \u{301}");
        assert_eq!(normalize_answer("...the"), "");
    }

    #[test]
    fn words_are_counted_as_bags() {
        assert_eq!(f1("new new york", &["new york"]), 0.8);
        assert_eq!(f1("", &[""]), 0.0);
        assert_eq!(exact_match("", &["the"]), 1.0);
        assert_eq!(f1("x", &[] as &[&str]), 0.0);
    }
}

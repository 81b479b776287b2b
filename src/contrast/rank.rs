//! Rank r = 0 for the largest score (paper, section 3).

use serde::{Deserialize, Serialize};

use crate::provenance::content_hash;

/// What a dropout policy needs to know of one text: a score for each token, and its rank.
///
/// All vectors have one entry a token.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GuideText {
    /// The document's id.
    pub id: String,
    /// Characters covered, `start..end` in Unicode characters; empty for start tokens.
    pub offsets: Vec<(usize, usize)>,
    /// The score, such as the attention difference; higher is more worth keeping.
    pub score: Vec<f32>,
    /// Position in the order of falling score, 0 for the highest.
    pub rank: Vec<usize>,
    /// Content hash of the text it was made for; empty where that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

impl GuideText {
    /// Ranks `score` with [`rank_descending`].
    pub fn new(id: impl Into<String>, offsets: Vec<(usize, usize)>, score: Vec<f32>) -> Self {
        let rank = rank_descending(&score);
        GuideText { id: id.into(), offsets, score, rank, text: String::new() }
    }

    /// Ties the guide to the text it was made for: another text of the same id is then refused.
    pub fn for_text(mut self, text: &str) -> Self {
        self.text = content_hash([text]);
        self
    }
}

/// The rank of each score, 0 for the largest. Ties: the earlier token gets the lower rank; NaN comes last.
///
/// ```
/// use cluescope::contrast::rank_descending;
/// assert_eq!(rank_descending(&[0.1, 0.5, 0.1, 0.9]), [2, 1, 3, 0]);
/// ```
pub fn rank_descending(score: &[f32]) -> Vec<usize> {
    let key = |i: usize| if score[i].is_nan() { f32::NEG_INFINITY } else { score[i] };
    let mut order: Vec<usize> = (0..score.len()).collect();
    // A stable sort keeps text order among equals; total_cmp would split +0 from -0.
    order.sort_by(|&a, &b| {
        score[a]
            .is_nan()
            .cmp(&score[b].is_nan())
            .then(key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal))
    });
    let mut rank = vec![0; score.len()];
    for (r, &i) in order.iter().enumerate() {
        rank[i] = r;
    }
    rank
}

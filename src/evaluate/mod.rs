//! What a model knows: few-shot quizzes, graded measures, perplexity, and intervals for all of them.
//!
//! | measure | of what | source |
//! |---|---|---|
//! | `exact_match`, `f1` | the greedy answer, at most 10 new tokens, cut at the line end | SQuAD v1.1; paper, section 2 |
//! | `log_prob` | ln p(right answer given the prompt): summed over its tokens, and per token | graded: moves while exact match is still 0 |
//! | `choice_accuracy` | share of questions whose right answer is likelier than every distractor | graded; distractors are the same field's answers of other people |
//! | perplexity | exp(−Σ ln p / tokens) over held-out text | what was forgotten |
//!
//! Every answer is kept with its prompt. Sums over all questions are divided by the number of questions, never means
//! of means; [`Bootstrap`] gives intervals that respect that questions about one person belong together.

mod examinee;
mod interval;
mod kept;
mod perplexity;
mod prompt;
mod quiz;
mod result;
mod score;
mod store;

pub use examinee::Examinee;
pub use interval::{Bootstrap, Cells, Interval};
pub(crate) use perplexity::check_texts;
pub use perplexity::{Perplexity, perplexity};
pub use quiz::{Quiz, quiz};
pub(crate) use result::distance_bins;
pub use result::{Answer, Choice, DISTANCE_EDGES, QuizResult, Scores};
pub use score::{exact_match, f1, normalize_answer};

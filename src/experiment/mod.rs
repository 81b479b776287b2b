//! The paper's experiment as a grid: conditions × training seeds, options chosen on other people, every finished cell on disk.
//!
//! A [`Cell`] is one training run with its quiz. Its configuration decides its file name, so a run that was stopped at any
//! moment and is started again finds what is finished and computes only the rest; nothing can count twice.
//!
//! | condition | what is trained on | question it answers |
//! |---|---|---|
//! | `untrained` | nothing | what was known before |
//! | `plain` | the originals | the paper's baseline |
//! | `plain_equal_steps` | the originals, as often as the others see texts | is it the dropout or only more steps? |
//! | `random` | originals and copies, tokens dropped with probability α | is it the clues or only noise? |
//! | `own_attention` | copies dropped by the student's own attention | is the other model needed? |
//! | `large_attention` | copies dropped by the large model's attention | is the difference needed? |
//! | `attention_difference` | copies dropped by large − small | the paper's method |
//! | `probe_difference` | the same, where the guide is what the word before each fact looks at | does another guide find better clues? |
//! | `heads_difference` | the same, where the guide is attention received in chosen layers or heads | do these heads know better? |
//! | `denoising` | the originals as often, noise in the input (D-AR) | is it the texts or only noise? |
//! | `eda`, `sentence_shuffle`, `biography_permutation` | copies changed without a model | do cheaper changes do? |
//! | `released_random` | as the authors' script: copies alone, tokens *kept* with probability α, blanks where they were | what did the script measure? |
//! | `released_own_attention`, `released_difference` | the same by the script's "attention", 1, 1/2, 1/3, … in every model | |
//!
//! The first seven are [`Condition::MAIN`]. The script's difference is rounding noise; here it is exactly 0, and ties rank in
//! the order of the text, so both of its guides drop by position.
//!
//! Source: paper, section 4, for `plain`, `random`, `own_attention` and `attention_difference`; the authors' script for the last
//! two rows; the other controls are this library's.

mod cell;
mod condition;
mod group;
mod outcome;
mod pair_runner;
mod protocol;
mod run;
mod store;
mod stored;
mod summary;

pub use cell::{Cell, Failed, Inputs, LossPoint, Measured, Row, Runner, Stage};
pub use condition::{Condition, Student, Texts};
pub use group::has_probes;
pub use outcome::Outcome;
pub use pair_runner::{Models, PairRunner};
pub use protocol::{Criterion, Protocol};
pub use run::run;
pub use store::{Store, run_cells};
pub use stored::read_summary;
pub use summary::{Group, Measure, Summary};

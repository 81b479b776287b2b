//! The large model's attention minus the small one's, and the order of tokens that follows from it.
//!
//! ```no_run
//! use cluescope::contrast::ModelPair;
//! # fn example(people: &cluescope::corpus::Corpus) -> cluescope::Result<()> {
//! let pair = ModelPair::load("nano")?;
//! let contrast = pair.contrast(people)?;
//! let text = &contrast.texts[0];
//! let clue = text.rank.iter().position(|&r| r == 0); // the token the large model prefers most
//! # Ok(()) }
//! ```

mod align;
mod difference;
mod guide_file;
mod hits;
mod load;
mod memory;
mod options;
mod pair;
mod rank;
mod sides;
mod store;

pub use align::align;
pub use difference::{Contrast, ContrastText, ProbeContrast};
pub use hits::{ProbeHits, Row, Tally};
pub use load::{contrast_sources, load_config, load_model, load_tokenizer, open_streamed};
pub use options::{Contrasting, Guide};
pub use pair::{KNOWN_PAIRS, KnownPair, ModelPair, known_pair};
pub use rank::{GuideText, rank_descending};

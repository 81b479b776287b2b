//! Copies of texts with tokens dropped, so that what stays is learned (paper, section 4), and the baselines.
//!
//! A [`Plan`] says with which probability each token is dropped: p(r) = α·(1 − exp(−β·r)) by its rank r under a
//! guide, or α for all. A draw from it (seed, copy) drops tokens and yields plain text, which the trainer
//! tokenises again. [`Augment`] makes both.
//!
//! ```
//! use cluescope::augment::Augment;
//! use cluescope::contrast::GuideText;
//! use cluescope::corpus::{Corpus, Document};
//! let corpus = Corpus {
//!     documents: vec![Document::from_tagged("a", "<name>Ada</name> lives in <city>Rome</city>.")?],
//!     ..Default::default()
//! };
//! // Five tokens; the name scores highest, so it has rank 0 and is never dropped.
//! let guide = GuideText::new("a", vec![(0, 3), (3, 9), (9, 12), (12, 17), (17, 18)], vec![0.9, 0.1, 0.0, 0.5, 0.0]);
//! let augment = Augment::by_guide(vec![guide]).alpha(1.0).beta(10.0).copies(2).seed(1);
//! assert_eq!(augment.plan(&corpus)?.texts[0].probability[0], 0.0);
//! let taught = augment.apply(&corpus)?;
//! assert_eq!(taught.documents.len(), 3); // the original and two copies
//! assert_eq!(taught.documents[1].text, "Ada");
//! # Ok::<(), cluescope::Error>(())
//! ```

mod builder;
mod denoise;
mod draw;
mod eda;
mod plan;
mod remap;
mod sentences;

pub use builder::{ALPHA, Augment, BETA};
pub use denoise::Denoise;
pub use draw::{Pieces, Removal};
pub use eda::{Eda, Synonyms};
pub(crate) use plan::OTHER_WORDS;
pub use plan::{Plan, PlanText, Protect, drop_probability};

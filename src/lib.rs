//! See what a large language model notices and a small one misses, and teach with it.
//!
//! An implementation of *Enhancing Elusive Clues in Knowledge Learning by Contrasting Attention of Language Models* (Gao, Zhang,
//! Li, Wu; AAAI 2025, arXiv 2409.17954) as a library, a command line and notebooks. Data flows one way:
//!
//! ```text
//! corpus ─► tokens ─► model ─► attention ─► contrast ─► augment ─► train ─► evaluate ─► experiment ─► report
//! texts,    ids and   logits,  received     large −     token      LoRA,    quiz,       conditions    tables,
//! facts,    character capture  attention,   small,      dropout    full     exact       × seeds,      plots,
//! questions spans              probes       ranks                           match, F1   on disk       pages
//! ```
//!
//! Each module is one stage and imports only earlier ones. The whole way, on two untrained models of a toy size:
//!
//! ```
//! use cluescope::prelude::*;
//!
//! let people = Biographies::new(6).seed(1).generate()?;
//! let texts: Vec<&str> = people.documents.iter().map(|d| d.text.as_str()).collect();
//! let tokenizer = Tokenizer::train_bpe(texts, 400)?;
//! let config = |layers| DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 2, 2, 64, 512);
//! let pair = ModelPair::new(
//!     Model::random("toy-small", config(1), tokenizer.clone(), 1)?,
//!     Model::random("toy-large", config(2), tokenizer.clone(), 2)?,
//! );
//!
//! let contrast = pair.contrast(&people)?;
//! let taught = Augment::by_guide(contrast.guide()).alpha(0.6).beta(0.05).copies(2).apply(&people)?;
//! assert_eq!(taught.documents.len(), 6 * 3);
//!
//! let run = pair.small.finetune(&taught, Finetune::lora(4).epochs(1))?;
//! let answers = run.model.quiz(&people, Quiz::few_shot(1))?;
//! assert_eq!(answers.total().questions, 6 * 5);
//! # Ok::<(), cluescope::Error>(())
//! ```
#![deny(unsafe_op_in_unsafe_fn)]

pub mod attention;
pub mod augment;
pub mod contrast;
pub mod corpus;
mod error;
pub mod evaluate;
pub mod experiment;
pub mod files;
pub mod kernel;
pub mod memory;
pub mod model;
pub mod notebook;
pub mod progress;
pub mod provenance;
pub mod random;
pub mod report;
mod spread;
mod text;
pub mod tokens;
pub mod train;

pub use error::{Error, Result};

/// What a notebook needs, in one line: `use cluescope::prelude::*;`
pub mod prelude {
    pub use crate::attention::{Attend, Attended};
    pub use crate::augment::Augment;
    pub use crate::contrast::{Contrast, ModelPair};
    pub use crate::corpus::{Biographies, Corpus, Document, Question, Span};
    pub use crate::error::{Error, Result};
    pub use crate::evaluate::{Quiz, QuizResult};
    pub use crate::experiment::{Condition, Outcome, PairRunner, Protocol};
    pub use crate::model::{DecoderConfig, Device, Devices, Model};
    pub use crate::report::{
        HeadsPicture, HeatMap, LineChart, Page, PlanPicture, ProbeFigure, QuizFigure, Section, Table,
        TextPicture, experiment_page,
    };
    pub use crate::tokens::Tokenizer;
    pub use crate::train::{Finetune, Recipe, Run};
}

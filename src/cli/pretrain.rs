//! `cluescope pretrain`: a pair of small decoders from generated text.

use std::path::PathBuf;

use cluescope::corpus::Biographies;
use cluescope::evaluate::Quiz;
use cluescope::train::{Recipe, Size, pretrain};

/// Options of `cluescope pretrain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which of the pair
    #[arg(value_enum)]
    size: Which,
    /// Folder; each model goes into a folder of its own in it, and interrupted training continues there
    #[arg(long, default_value = "out/pretrain")]
    out: PathBuf,
}

/// The pair's two sizes.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Which {
    /// The model to be taught
    Small,
    /// The model that shows what is worth noticing
    Large,
}

/// People the finished model is asked about; it met none of them.
const PEOPLE: usize = 20;

/// Trains and saves, then asks what the model was trained for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let size = match args.size {
        Which::Small => Size::Small,
        Which::Large => Size::Large,
    };
    let recipe = Recipe::nano(size);
    for cycle in recipe.cycles() {
        println!("{}: {} steps of {} texts", cycle.name, cycle.steps, cycle.batch_size);
    }
    let trained = pretrain(&recipe, &args.out)?;
    println!("{} parameters: {}", trained.model.parameter_count(), trained.folder.display());
    let people = Biographies::new(PEOPLE).split("validation").generate()?;
    for (book, open) in [("with the biography before the question", true), ("without it", false)] {
        let result = trained.model.quiz(&people, Quiz::few_shot(5).open_book(open))?.total();
        println!("exact match {book}: {:.2} of {} questions", result.exact_match, result.questions);
    }
    Ok(())
}

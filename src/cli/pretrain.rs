//! `cluescope pretrain`: a pair of small decoders from generated text.

use std::path::PathBuf;

use cluescope::train::{Recipe, Size, pretrain};

/// Options of `cluescope pretrain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which of the pair
    #[arg(value_enum)]
    size: Which,
    /// The recipe of about half a minute that `reproduce` uses, instead of the long one
    #[arg(long)]
    minute: bool,
    /// Folder; the model goes into a folder of its own in it, and interrupted training continues there
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

/// Trains and saves.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let size = match args.size {
        Which::Small => Size::Small,
        Which::Large => Size::Large,
    };
    let recipe = if args.minute { Recipe::minute(size) } else { Recipe::nano(size) };
    let trained = pretrain(&recipe, &args.out)?;
    println!("{} parameters: {}", trained.model.parameter_count(), trained.folder.display());
    Ok(())
}

//! `cluescope contrast`: the large model's attention minus the small one's, with pictures.

use std::path::PathBuf;

use cluescope::attention::Aggregation;
use cluescope::contrast::{Contrasting, contrast_sources, load_model};
use cluescope::corpus::Corpus;
use cluescope::report::TextPicture;

/// Options of `cluescope contrast`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model that shows what is worth noticing: hub id, folder or .gguf file
    #[arg(long)]
    large: String,
    /// The model to be taught
    #[arg(long)]
    small: String,
    /// Lay the result on the tokens of a third model
    #[arg(long)]
    onto: Option<String>,
    /// Tagged .csv, .jsonl, .parquet, SQuAD .json, .txt, or a folder of .txt files
    #[arg(long)]
    corpus: PathBuf,
    /// Where to write, .jsonl
    #[arg(long)]
    out: PathBuf,
    /// A page with every text coloured by signed difference
    #[arg(long)]
    html: Option<PathBuf>,
    /// Folder for the paper's Figures 2 and 3, one a field
    #[arg(long)]
    figures: Option<PathBuf>,
    /// Received attention as the published script computes it: 1/(i+1) for every model
    #[arg(long)]
    as_released: bool,
    /// Text read in front of each text and cut away again, such as "Text: "
    #[arg(long, default_value = "")]
    prefix: String,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// Measures, compares, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    super::use_threads(args.threads)?;
    let corpus = Corpus::read(&args.corpus)?;
    let aggregation = if args.as_released { Aggregation::AsReleased } else { Aggregation::Paper };
    let mut options = Contrasting::new()
        .aggregation(aggregation)
        .prefix(args.prefix.as_str())
        .command(super::command_line());
    if let Some(third) = &args.onto {
        options = options.onto(load_model(third)?.tokenizer());
    }
    let contrast = contrast_sources(&args.large, &args.small, &corpus, &options)?;
    contrast.write(&args.out)?;
    println!("{} texts: {}", contrast.texts.len(), args.out.display());
    for hit in contrast.probe_hits("name", 10) {
        println!(
            "{}: a name token among the probe's top 10 in {} (small), {} (large), {} (difference) of {} texts",
            hit.field, hit.small, hit.large, hit.difference, hit.texts
        );
    }
    if let Some(path) = &args.html {
        TextPicture::of(&contrast).write(path)?;
        println!("{}", path.display());
    }
    if let Some(folder) = &args.figures {
        for path in contrast.write_figures(folder)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

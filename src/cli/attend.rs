//! `cluescope attend`: what each token of a corpus receives.

use std::path::PathBuf;

use cluescope::attention::{Attend, Per, Probes};
use cluescope::corpus::Corpus;
use cluescope::model::Model;

/// Options of `cluescope attend`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Hub id, folder or .gguf file
    #[arg(long)]
    model: String,
    /// Tagged .csv, .jsonl, .parquet, SQuAD .json, .txt, or a folder of .txt files
    #[arg(long)]
    corpus: PathBuf,
    /// Where to write: .jsonl or .parquet; interrupted work continues
    #[arg(long)]
    out: PathBuf,
    /// Fields whose probe rows are recorded
    #[arg(long, value_name = "FIELD", num_args = 1..)]
    probe: Vec<String>,
    /// Also keep each layer or head apart
    #[arg(long, value_enum)]
    per: Option<Part>,
    /// Text read in front of each text and cut away again, such as "Text: "
    #[arg(long, default_value = "")]
    prefix: String,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// What is kept apart.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Part {
    /// Each layer
    Layer,
    /// Each head of each layer
    Head,
}

/// Measures and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    super::use_threads(args.threads)?;
    let corpus = Corpus::read(&args.corpus)?;
    let model = Model::load(&args.model)?;
    let per = match args.per {
        None => Per::Mean,
        Some(Part::Layer) => Per::Layer,
        Some(Part::Head) => Per::Head,
    };
    let probes = if args.probe.is_empty() { Probes::None } else { Probes::Fields(args.probe.clone()) };
    let options =
        Attend::new().per(per).probes(probes).prefix(args.prefix.as_str()).command(super::command_line());
    model.attend_to_file(&corpus.documents, &options, &args.out)?;
    println!("{} texts: {}", corpus.documents.len(), args.out.display());
    Ok(())
}

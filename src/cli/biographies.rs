//! `cluescope biographies`: people, their texts and questions, as a file.

use std::path::PathBuf;

use cluescope::corpus::Biographies;

/// Options of `cluescope biographies`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many people
    #[arg(default_value_t = 100)]
    people: usize,
    /// Which people, facts and draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Group the people come from: test, validation, train or pretrain; groups never share a person
    #[arg(long, default_value = "test")]
    split: String,
    /// Sentences in random order
    #[arg(long)]
    permute_sentences: bool,
    /// The full name instead of He or She
    #[arg(long)]
    full_name: bool,
    /// Where to write; .jsonl and .parquet keep questions, .csv is the paper's tagged form
    #[arg(long)]
    out: PathBuf,
}

/// Generates and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Biographies::new(args.people)
        .seed(args.seed)
        .split(args.split.as_str())
        .permute_sentences(args.permute_sentences)
        .full_name(args.full_name)
        .generate()?;
    corpus.write(&args.out)?;
    println!(
        "{} texts, {} questions: {}",
        corpus.documents.len(),
        corpus.questions.len(),
        args.out.display()
    );
    Ok(())
}

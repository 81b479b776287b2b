//! `cluescope biographies`: people, their texts and questions, as a file.

use std::path::PathBuf;

use cluescope::corpus::{Biographies, Corpus, Templates, Wording};

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
    /// Leave out the first people of the group
    #[arg(long, default_value_t = 0)]
    offset: usize,
    /// One of fifteen sentences for each fact instead of the paper's one
    #[arg(long)]
    varied: bool,
    /// Sentences in random order
    #[arg(long)]
    permute_sentences: bool,
    /// The full name instead of He or She
    #[arg(long)]
    full_name: bool,
    /// Facts and their order, such as company,date; date, city, university, major, company when left out
    #[arg(long, value_delimiter = ',')]
    field_order: Vec<String>,
    /// Biographies of each person, with their own draws
    #[arg(long, default_value_t = 1)]
    per_person: usize,
    /// Questions in other words than the paper's
    #[arg(long)]
    reworded: bool,
    /// Questions of your own: a .csv with the columns field and prompt, {name} where the person stands
    #[arg(long, value_name = "FILE", conflicts_with = "reworded")]
    wording: Option<PathBuf>,
    /// Where to write; .jsonl and .parquet keep questions, .csv is the paper's tagged form
    #[arg(long)]
    out: PathBuf,
}

/// Generates and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    Corpus::check_path(&args.out)?;
    super::keep_apart(&[("--wording", args.wording.as_deref())], &[("--out", Some(&args.out))])?;
    let wording = match &args.wording {
        Some(path) => Wording::read(path)?,
        None if args.reworded => Wording::Reworded,
        None => Wording::Paper,
    };
    let mut people = Biographies::new(args.people)
        .seed(args.seed)
        .split(args.split.as_str())
        .offset(args.offset)
        .templates(if args.varied { Templates::Varied } else { Templates::Paper })
        .permute_sentences(args.permute_sentences)
        .full_name(args.full_name)
        .per_person(args.per_person)
        .wording(wording);
    if !args.field_order.is_empty() {
        people = people.field_order(args.field_order.iter().map(String::as_str));
    }
    let corpus = people.generate()?;
    super::make_ready_for(&args.out, super::characters(&corpus))?;
    corpus.write(&args.out)?;
    println!(
        "{} texts, {} questions: {}",
        corpus.documents.len(),
        corpus.questions.len(),
        args.out.display()
    );
    Ok(())
}

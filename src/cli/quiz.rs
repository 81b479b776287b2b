//! `cluescope quiz`: asks a model every question of a corpus.

use std::path::PathBuf;
use std::time::Instant;

use cluescope::corpus::{Biographies, Corpus, Wording};
use cluescope::evaluate::Quiz;

use super::model::{AdapterArgs, ModelArgs};

/// Options of `cluescope quiz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// A corpus with questions: .jsonl or .parquet of `biographies`, or SQuAD .json; of a tagged .csv the facts are asked
    /// with the paper's questions
    #[arg(long)]
    corpus: PathBuf,
    /// Worked examples before each question
    #[arg(long, default_value_t = 5)]
    few_shot: usize,
    /// Seed of the draw of examples and distractors
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The most tokens of an answer
    #[arg(long, default_value_t = 10)]
    max_new_tokens: usize,
    /// Wrong answers each right one is compared with; 0 leaves the graded measures out
    #[arg(long, default_value_t = 9)]
    distractors: usize,
    /// Put the text before its question: measures reading, not knowing
    #[arg(long)]
    open_book: bool,
    /// Where to write every answer: .jsonl, .csv or .parquet
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Asks, prints the table, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut corpus = Corpus::read(&args.corpus)?;
    if corpus.questions.is_empty() {
        corpus = corpus.ask(&Wording::Paper).with_examples_from(&Biographies::real_people());
    }
    let model = args.adapter.apply(args.model.load()?)?;
    let quiz = Quiz::few_shot(args.few_shot)
        .seed(args.seed)
        .max_new_tokens(args.max_new_tokens)
        .distractors(args.distractors)
        .open_book(args.open_book);
    let start = Instant::now();
    let mut result = model.quiz(&corpus, quiz)?;
    let seconds = start.elapsed().as_secs_f64();
    result.provenance.command = super::command_line();
    print!("{result}");
    println!("{} questions answered in {seconds:.2} s", result.answers.len());
    if let Some(path) = &args.out {
        result.write(path)?;
        println!("{} answers: {}", result.answers.len(), path.display());
    }
    Ok(())
}

//! `cluescope quiz`: asks a model every question of a corpus.

use std::path::{Path, PathBuf};
use std::time::Instant;

use cluescope::Error;
use cluescope::corpus::{Corpus, Wording};
use cluescope::evaluate::{Quiz, QuizResult};

use super::model::{AdapterArgs, ModelArgs};

/// Options of `cluescope quiz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    /// A corpus with questions: .jsonl or .parquet of `biographies`, or SQuAD .json; of a tagged .csv the facts are asked
    /// with the paper's questions. Worked examples that it lacks are about what everybody knows
    #[arg(long)]
    corpus: PathBuf,
    /// Worked examples before each question [5, or as many as there are]
    #[arg(long)]
    few_shot: Option<usize>,
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
    /// Where to write every answer: .jsonl, .csv or .parquet; an interrupted quiz goes on
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Worked examples where nothing is said; the paper's number.
const FEW_SHOT: usize = 5;

/// Asks, prints the table, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    super::keep_apart(&[("--corpus", Some(&args.corpus))], &[("--out", args.out.as_deref())])?;
    let mut corpus = Corpus::read(&args.corpus)?;
    if corpus.questions.is_empty() {
        corpus = corpus.ask(&Wording::Paper);
    }
    corpus = corpus.with_known_examples()?;
    let mut quiz = Quiz::few_shot(few_shot(args.few_shot, &corpus))
        .seed(args.seed)
        .max_new_tokens(args.max_new_tokens)
        .distractors(args.distractors)
        .open_book(args.open_book);
    // What cannot be asked or written is told before a model is loaded.
    quiz.check(&corpus)?;
    let kept = args.out.as_deref().map(checkpoint);
    if let (Some(out), Some(kept)) = (&args.out, &kept) {
        QuizResult::check_path(out)?;
        super::make_ready_for(out, quiz.expected_bytes(&corpus)?)?;
        quiz = quiz.checkpoint(kept);
    }
    let model = args.adapter.apply(args.model.load()?)?;
    let resumed = kept.as_ref().is_some_and(|kept| kept.exists());
    let start = Instant::now();
    let mut result = model.quiz(&corpus, quiz)?;
    let seconds = start.elapsed().as_secs_f64();
    result.provenance.command = super::command_line();
    print!("{result}");
    let since = if resumed { "s since they were taken up again" } else { "s" };
    println!("{} questions answered in {seconds:.2} {since}", result.answers.len());
    if let Some(path) = &args.out {
        result.write(path)?;
        println!("{} answers: {}", result.answers.len(), path.display());
    }
    if let Some(kept) = &kept {
        std::fs::remove_file(kept).map_err(Error::io(kept))?;
    }
    Ok(())
}

/// Where the answers are kept while the quiz goes on: `out` + `.partial`.
fn checkpoint(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// The number `given`, or as many of the usual as every question can have.
fn few_shot(given: Option<usize>, corpus: &Corpus) -> usize {
    given.unwrap_or_else(|| {
        let most = Quiz::most_examples(corpus);
        if most < FEW_SHOT && !corpus.questions.is_empty() {
            eprintln!("note: {most} worked examples before each question, since the corpus has no more; the paper has {FEW_SHOT}");
        }
        most.min(FEW_SHOT)
    })
}

//! One file a command; each turns flags into the library's settings once and calls the library.

mod attend;
mod augment;
mod biographies;
mod contrast;
mod finetune;
mod guide;
mod model;
mod notebooks;
mod pretrain;
mod quiz;
mod reproduce;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use cluescope::corpus::Corpus;
use cluescope::files::{extension, folder_of, make_ready};

/// See what a large language model notices and a small one misses, and teach with it.
///
/// Without a command, the whole experiment runs once, small and offline: `cluescope reproduce`.
#[derive(Debug, Parser)]
#[command(name = "cluescope", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole experiment: people, attention, contrast, dropout, fine-tuning, quiz, table and page
    Reproduce(Box<reproduce::Args>),
    /// Generate people, their texts and questions
    Biographies(biographies::Args),
    /// Measure what each token of a corpus receives in one model
    Attend(attend::Args),
    /// Compare two models' attention on a corpus
    Contrast(Box<contrast::Args>),
    /// Make a training corpus: originals and copies with tokens dropped by rank, at random, or rearranged
    Augment(augment::Args),
    /// Teach a model a corpus, by LoRA or with every weight
    Finetune(Box<finetune::Args>),
    /// Ask a model every question of a corpus
    Quiz(quiz::Args),
    /// Train one of the small pair from nothing
    Pretrain(pretrain::Args),
    /// Open JupyterLab on the notebooks, with the kernel registered
    Lab(notebooks::LabArgs),
    /// Run notebooks without Jupyter
    Run(notebooks::RunArgs),
    /// Register the notebook kernel with Jupyter, remove it, or say what is there
    #[command(subcommand)]
    Kernel(notebooks::KernelCommand),
    /// Look for what notebooks need and say how to mend what is missing
    Doctor,
}

/// Runs the command; 0 on success, 1 on an error, 2 on wrong usage, 130 when interrupted.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let command = cli.command.unwrap_or(Command::Reproduce(Box::default()));
    // Jupyter listens by itself, and `run` has something to do while there is only one thread.
    if !matches!(command, Command::Lab(_) | Command::Run(_)) {
        listen_for_interrupts();
    }
    let result = match command {
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Biographies(args) => biographies::run(&args),
        Command::Attend(args) => attend::run(&args),
        Command::Contrast(args) => contrast::run(&args),
        Command::Augment(args) => augment::run(&args),
        Command::Finetune(args) => finetune::run(&args),
        Command::Quiz(args) => quiz::run(&args),
        Command::Pretrain(args) => pretrain::run(&args),
        Command::Lab(args) => notebooks::lab(&args),
        Command::Run(args) => notebooks::run(&args, listen_for_interrupts),
        Command::Kernel(command) => notebooks::kernel(&command),
        Command::Doctor => notebooks::doctor(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", cluescope::report::tame(&message(&error)));
            let interrupted = matches!(error.downcast_ref(), Some(cluescope::Error::Interrupted));
            ExitCode::from(if interrupted { 130 } else { 1 })
        }
    }
}

/// The chain of causes, without those that the error above already quotes.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if !message.contains(&text) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&text);
        }
    }
    message
}

/// The first Ctrl-C asks the library to stop where its work can be taken up again; the second leaves at once.
#[cfg(unix)]
fn listen_for_interrupts() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = match signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("warning: Ctrl-C will stop at once, without saving the work in progress: {error}");
            return;
        }
    };
    std::thread::spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(130);
            }
            cluescope::progress::interrupt();
            eprintln!("\nstopping; press Ctrl-C again to leave at once");
        }
    });
}

/// Elsewhere Ctrl-C ends the process; what is finished lies on disk all the same.
#[cfg(not(unix))]
fn listen_for_interrupts() {}

/// A corpus whose texts are read or trained on: one of questions alone has nothing for that.
fn texts(path: &Path) -> cluescope::Result<Corpus> {
    let corpus = Corpus::read(path)?;
    if corpus.documents.is_empty() {
        return Err(cluescope::Error::format(path, "", "questions, but no text that they are about"));
    }
    Ok(corpus)
}

/// Refuses to write to `outs` what would replace one of the files `ins` it is made from; each with its option.
fn keep_apart(
    ins: &[(&'static str, Option<&Path>)],
    outs: &[(&'static str, Option<&Path>)],
) -> cluescope::Result<()> {
    for (option, out) in outs.iter().filter_map(|&(option, out)| Some((option, out?))) {
        // One that is not there yet replaces nothing.
        let Ok(place) = out.canonicalize() else { continue };
        let read =
            |path: Option<&Path>| path.and_then(|path| path.canonicalize().ok()).as_ref() == Some(&place);
        if let Some((other, _)) = ins.iter().find(|(_, path)| read(*path)) {
            let expected = format!("another file than {other}, which it would replace");
            return Err(cluescope::Error::option(option, out.display(), expected));
        }
    }
    Ok(())
}

/// Makes the folder of the file `path` ready for about `bytes`.
fn make_ready_for(path: &Path, bytes: u64) -> cluescope::Result<()> {
    make_ready(folder_of(path), bytes)
}

/// Makes ready for a file of `numbers` numbers for each token of `corpus` and, for each of `probes` probes, as many for each
/// token before it.
fn make_ready_for_rows(path: &Path, corpus: &Corpus, numbers: u64, probes: usize) -> cluescope::Result<()> {
    make_ready_for(path, bytes_of_rows(path, corpus, numbers, probes))
}

/// About the bytes of such a file.
fn bytes_of_rows(path: &Path, corpus: &Corpus, numbers: u64, probes: usize) -> u64 {
    // A token and its place, and one number: as text, or as Parquet keeps them.
    let (token, number) = if extension(path) == "parquet" { (12, 4) } else { (16, 11) };
    // A token has three or four characters, and a probe stands anywhere in its text.
    characters(corpus) / 3 * (token + number * numbers * (2 + probes as u64) / 2)
}

/// Bytes of all texts together, which files of numbers a token grow with.
fn characters(corpus: &Corpus) -> u64 {
    corpus.documents.iter().map(|d| d.text.len() as u64).sum()
}

/// Limits the library's threads.
fn use_threads(threads: Option<usize>) -> anyhow::Result<()> {
    match threads {
        None => Ok(()),
        Some(0) => Err(cluescope::Error::option("--threads", 0, "at least 1").into()),
        Some(n) => Ok(rayon::ThreadPoolBuilder::new().num_threads(n).build_global()?),
    }
}

/// What the user typed, for provenance; the program's path is left out, and a word that a shell would split is quoted.
fn command_line() -> String {
    let words = std::env::args_os().skip(1);
    words.fold("cluescope".into(), |line, word| line + " " + &quoted(&word.to_string_lossy()))
}

/// `word` as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use cluescope::attention::{Attend, Cache, Per, Probes};
    use cluescope::corpus::Biographies;
    use cluescope::model::{DecoderConfig, Model};
    use cluescope::tokens::Tokenizer;

    use super::attend::Part;
    use super::*;

    /// Heads apart make a file dozens of times as long.
    #[test]
    fn the_room_asked_for_is_about_what_is_written() {
        let corpus = Biographies::new(5).generate().unwrap();
        let texts = corpus.documents.iter().map(|d| d.text.as_str());
        let tokenizer = Tokenizer::train_bpe(texts, 700).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, 3, 4, 2, 48, 1024);
        let model = Model::random("m", config.clone(), tokenizer, 1).unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (part, per) in [(None, Per::Mean), (Some(Part::Layer), Per::Layer), (Some(Part::Head), Per::Head)]
        {
            for (probes, name) in [(0, "a.jsonl"), (2, "b.jsonl"), (0, "c.parquet"), (2, "d.parquet")] {
                let fields = ["city", "company"].map(str::to_owned)[..probes].to_vec();
                let options = Attend::new().per(per).probes(Probes::Fields(fields)).cache(Cache::Off);
                let path = folder.path().join(name);
                model.attend_to_file(&corpus.documents, &options, &path).unwrap();
                let parts = part.map_or(0, |part| part.count(&config));
                let share = bytes_of_rows(&path, &corpus, 1 + parts, probes) as f64
                    / std::fs::metadata(&path).unwrap().len() as f64;
                assert!((0.5..3.0).contains(&share), "{per:?} {name}: {share}");
            }
        }
    }

    #[test]
    fn a_command_can_be_typed_again() {
        for (word, want) in [
            ("--prefix", "--prefix"),
            ("", "''"),
            ("Text: ", "'Text: '"),
            ("it's", "'it'\\''s'"),
            ("a/b@c.gguf", "a/b@c.gguf"),
        ] {
            assert_eq!(quoted(word), want);
        }
    }
}

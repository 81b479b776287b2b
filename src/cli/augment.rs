//! `cluescope augment`: a training corpus with thinned-out or rearranged copies.

use std::path::{Path, PathBuf};

use cluescope::augment::{ALPHA, Augment, BETA, Eda, Pieces, Protect, Removal, Synonyms};
use cluescope::contrast::{GuideText, load_tokenizer};
use cluescope::corpus::{Corpus, Document, marked_fields};
use cluescope::tokens::Tokenizer;
use cluescope::{Error, Result};

/// Options of `cluescope augment`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Args {
    /// What makes the copies
    #[arg(value_enum)]
    policy: Policy,
    /// Tagged .csv, .jsonl, .parquet, SQuAD .json, .txt, or a folder of .txt files
    #[arg(long)]
    corpus: PathBuf,
    /// For `guide`: the .jsonl of `contrast` (dropout by attention difference) or of `attend` (by a model's own
    /// attention). For `random`: whose tokens are dropped
    #[arg(long)]
    guide: Option<PathBuf>,
    /// For `random` without a guide: tokenizer.json, or the model whose tokens are dropped
    #[arg(long)]
    tokenizer: Option<String>,
    /// For `guide` and `random`: cap of the drop probability; the paper tried 0.6 and 0.7 [default: 0.6]
    #[arg(long)]
    alpha: Option<f64>,
    /// For `guide`: how fast it rises with rank; the paper tried 0.005 to 0.05 [default: 0.05]
    #[arg(long)]
    beta: Option<f64>,
    /// Copies of each text; 10, and 0 for `plain`, when left out
    #[arg(long)]
    copies: Option<usize>,
    /// Leave the originals out
    #[arg(long)]
    without_originals: bool,
    /// For `guide` and `random`: tokens never dropped: punctuation, comma-and-stop, facts, or the name of a field
    #[arg(long, num_args = 1..)]
    protect: Vec<String>,
    /// Write blanks where characters were dropped, instead of closing the gap
    #[arg(long)]
    blanks: bool,
    /// Drop a character of several tokens when any of them is dropped, instead of when all are
    #[arg(long)]
    any_piece: bool,
    /// As the published script: keep with probability alpha when random, spare `,` and `.`, leave blanks and no originals
    #[arg(long)]
    as_released: bool,
    /// For `eda`: share of words each operation changes [default: 0.1]
    #[arg(long)]
    share: Option<f64>,
    /// For `eda`: a dictionary, `word: synonym, synonym` a line
    #[arg(long)]
    synonyms: Option<PathBuf>,
    /// Which draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Also write every token's drop probability, .jsonl
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Where to write; .jsonl and .parquet keep questions, .csv is the paper's tagged form
    #[arg(long)]
    out: PathBuf,
}

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Policy {
    /// Unchanged copies: as many optimiser steps as with augmentation
    Plain,
    /// Every token goes with probability alpha
    Random,
    /// Tokens go by rank under a guide, p(r) = alpha (1 - exp(-beta r)): the paper's method
    Guide,
    /// Words swapped, deleted, inserted, replaced
    Eda,
    /// Sentences in random order
    ShuffleSentences,
    /// Sentences in random order, the name in the new first one
    PermuteBiographies,
}

/// Draws and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    Corpus::check_path(&args.out)?;
    super::keep_apart(
        &[
            ("--corpus", Some(&args.corpus)),
            ("--guide", args.guide.as_deref()),
            ("--synonyms", args.synonyms.as_deref()),
        ],
        &[("--out", Some(&args.out)), ("--plan", args.plan.as_deref())],
    )?;
    let corpus = super::texts(&args.corpus)?;
    super::make_ready_for(&args.out, 0)?;
    if let Some(path) = &args.plan {
        super::make_ready_for(path, 0)?;
    }
    let augment = args.augment(&corpus.documents)?;
    if let Some(path) = &args.plan {
        augment.plan(&corpus)?.write(path)?;
        println!("{}", path.display());
    }
    let taught = augment.apply(&corpus)?;
    taught.write(&args.out)?;
    println!("{} texts from {}: {}", taught.documents.len(), corpus.documents.len(), args.out.display());
    Ok(())
}

impl Args {
    fn augment(&self, documents: &[Document]) -> anyhow::Result<Augment> {
        self.refuse_idle_options()?;
        let protect = self.protected(documents)?;
        let guide = match &self.guide {
            Some(path) => Some(GuideText::read(path, documents)?),
            None => None,
        };
        let mut augment = match (self.policy, guide) {
            (Policy::Guide, Some(guide)) => Augment::by_guide(guide),
            (Policy::Guide, None) => {
                let expected = "the .jsonl file of `contrast` or `attend` that decides which tokens stay";
                return Err(Error::option("--guide", "none", expected).into());
            }
            (Policy::Random, Some(guide)) => Augment::random().tokens_of(guide),
            (Policy::Random, None) => match &self.tokenizer {
                Some(source) => Augment::random().tokenizer(&tokenizer(source)?),
                None => {
                    let expected = "the model whose tokens are dropped at random (or --guide)";
                    return Err(Error::option("--tokenizer", "none", expected).into());
                }
            },
            (_, Some(_)) => {
                let expected = "only `guide` and `random` drop tokens, so only they take a guide";
                return Err(Error::option("--guide", "given", expected).into());
            }
            (Policy::Plain, None) => Augment::plain(),
            (Policy::Eda, None) => {
                let synonyms = self.synonyms.as_ref().map(Synonyms::read).transpose()?;
                Augment::eda(Eda { share: self.share.unwrap_or(Eda::default().share), synonyms })
            }
            (Policy::ShuffleSentences, None) => Augment::shuffle_sentences(),
            (Policy::PermuteBiographies, None) => Augment::permute_biographies(),
        };
        if self.as_released {
            augment = augment.as_released();
        }
        if self.without_originals {
            augment = augment.with_originals(false);
        }
        if self.blanks {
            augment = augment.removal(Removal::Blank);
        }
        if self.any_piece {
            augment = augment.pieces(Pieces::Any);
        }
        if let Some(copies) = self.copies {
            augment = augment.copies(copies);
        }
        let (alpha, beta) = (self.alpha.unwrap_or(ALPHA), self.beta.unwrap_or(BETA));
        Ok(augment.protect(protect).alpha(alpha).beta(beta).seed(self.seed))
    }

    /// The tokens never dropped; a fact that no text marks is refused.
    fn protected(&self, documents: &[Document]) -> anyhow::Result<Vec<Protect>> {
        let marked = marked_fields(documents);
        let known = |name: &String| match name.as_str() {
            "punctuation" => Ok(Protect::Punctuation),
            "comma-and-stop" => Ok(Protect::CommaAndStop),
            "facts" => Ok(Protect::Facts),
            field if marked.contains(field) => Ok(Protect::Field(field.into())),
            _ => {
                let facts: String = marked.iter().map(|fact| format!(", {fact}")).collect();
                let expected = format!("one of punctuation, comma-and-stop, facts{facts}");
                Err(Error::option("--protect", name, expected).into())
            }
        };
        self.protect.iter().map(known).collect()
    }

    /// Refuses what the policy would not look at.
    fn refuse_idle_options(&self) -> anyhow::Result<()> {
        let drops = matches!(self.policy, Policy::Random | Policy::Guide);
        let eda = matches!(self.policy, Policy::Eda);
        let (dropping, words) = ("only with `guide` and `random`, which drop tokens", "only with `eda`");
        for (name, given, used, expected) in [
            ("--alpha", self.alpha.is_some(), drops, dropping),
            ("--beta", self.beta.is_some(), matches!(self.policy, Policy::Guide), "only with `guide`"),
            ("--protect", !self.protect.is_empty(), drops, dropping),
            ("--blanks", self.blanks, drops, dropping),
            ("--any-piece", self.any_piece, drops, dropping),
            ("--as-released", self.as_released, drops, dropping),
            ("--share", self.share.is_some(), eda, words),
            ("--synonyms", self.synonyms.is_some(), eda, words),
            (
                "--tokenizer",
                self.tokenizer.is_some(),
                matches!(self.policy, Policy::Random) && self.guide.is_none(),
                "only with `random`, and without --guide, which has tokens of its own",
            ),
        ] {
            if given && !used {
                return Err(Error::option(name, "given", expected).into());
            }
        }
        Ok(())
    }
}

/// A tokenizer by its file, by a folder that holds it, or by its model.
fn tokenizer(source: &str) -> Result<Tokenizer> {
    let path = Path::new(source);
    let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() };
    if file.is_file() && file.extension().is_some_and(|extension| extension == "json") {
        return Tokenizer::from_file(&file);
    }
    load_tokenizer(source)
}

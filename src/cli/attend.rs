//! `cluescope attend`: what each token of a corpus receives.

use std::path::PathBuf;

use cluescope::attention::{Attend, Attended, Per, Probes};
use cluescope::memory;
use cluescope::model::DecoderConfig;

use super::model::ModelArgs;

/// Options of `cluescope attend`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
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
    /// For a model that does not fit into memory: read it from disk block by block, many texts a block
    #[arg(long)]
    streamed: bool,
    /// With --streamed: tokens that share one reading of the model; memory grows with it
    #[arg(long, default_value_t = 32_768, requires = "streamed")]
    stream_tokens: usize,
}

/// What is kept apart.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Part {
    /// Each layer
    Layer,
    /// Each head of each layer
    Head,
}

impl Part {
    /// How many a model has.
    pub(crate) fn count(self, config: &DecoderConfig) -> u64 {
        let heads = match self {
            Part::Layer => 1,
            Part::Head => config.heads,
        };
        (config.layers * heads) as u64
    }
}

/// Measures and writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    Attended::check_path(&args.out)?;
    super::keep_apart(&[("--corpus", Some(&args.corpus))], &[("--out", Some(&args.out))])?;
    let corpus = super::texts(&args.corpus)?;
    let per = match args.per {
        None => Per::Mean,
        Some(Part::Layer) => Per::Layer,
        Some(Part::Head) => Per::Head,
    };
    let probes = if args.probe.is_empty() { Probes::None } else { Probes::Fields(args.probe.clone()) };
    let options =
        Attend::new().per(per).probes(probes).prefix(args.prefix.as_str()).command(super::command_line());
    options.check(&corpus.documents)?;
    let ready = |parts: u64| super::make_ready_for_rows(&args.out, &corpus, 1 + parts, args.probe.len());
    ready(0)?;
    let parts = |config: &DecoderConfig| args.per.map_or(0, |part| part.count(config));
    if args.streamed {
        let options = options.stream_tokens(args.stream_tokens);
        let model = args.model.open_streamed()?;
        ready(parts(model.config()))?;
        eprintln!("expected: {}", model.estimate(&corpus.documents, &options)?);
        model.attend_to_file(&corpus.documents, &options, &args.out)?;
        if let Some(peak) = memory::peak() {
            eprintln!("memory: {} at most", memory::readable(peak));
        }
    } else {
        let (model, devices) = args.model.load_for_all()?;
        ready(parts(model.config()))?;
        model.attend_to_file(&corpus.documents, &options.devices(&devices), &args.out)?;
    }
    println!("{} texts: {}", corpus.documents.len(), args.out.display());
    Ok(())
}

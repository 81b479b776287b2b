//! `cluescope contrast`: the large model's attention minus the small one's, with pictures.

use std::collections::BTreeSet;
use std::path::PathBuf;

use cluescope::attention::{Aggregation, Per};
use cluescope::augment::{ALPHA, BETA};
use cluescope::contrast::{Contrast, Contrasting, Guide, contrast_sources, load_config, load_tokenizer};
use cluescope::corpus::marked_fields;
use cluescope::files::make_ready;
use cluescope::report::{Colours, HeadsPicture, Page, Section, Table, TextPicture};

use super::attend::Part;
use super::guide::GuideArgs;
use super::model::DeviceArgs;

/// Options of `cluescope contrast`.
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
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
    /// Folder for the paper's Figures 2 and 3, one a field, and a page of all with their counts; with --heads-html or --per
    /// head also for maps of the heads that differ
    #[arg(long)]
    figures: Option<PathBuf>,
    /// A page of all layers and heads: where the large model's differ from the small one's, then each model's own, and the
    /// first text coloured by the head chosen
    #[arg(long)]
    heads_html: Option<PathBuf>,
    /// Print the first texts in colour
    #[arg(long, value_name = "TEXTS", default_value_t = 0)]
    show: usize,
    /// The fact looked for among the probes' highest weights [default: name]
    #[arg(long)]
    fact: Option<String>,
    #[command(flatten)]
    guide: GuideArgs,
    /// Also write each layer or head apart, as large_by and small_by
    #[arg(long, value_enum)]
    per: Option<Part>,
    /// Received attention as the published script computes it: 1/(i+1) for every model
    #[arg(long)]
    as_released: bool,
    /// Text read in front of each text and cut away again, such as "Text: "
    #[arg(long, default_value = "")]
    prefix: String,
    /// Cap of the drop probability that the pages show
    #[arg(long, default_value_t = ALPHA)]
    alpha: f64,
    /// How fast the drop probability that the pages show rises with rank
    #[arg(long, default_value_t = BETA)]
    beta: f64,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// Measures, compares, writes.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    super::use_threads(args.threads)?;
    // What is wrong with an option is said before the hours a large model may take.
    if !(0.0..=1.0).contains(&args.alpha) {
        return Err(cluescope::Error::option("--alpha", args.alpha, "a probability, 0 to 1").into());
    }
    if !(args.beta >= 0.0 && args.beta.is_finite()) {
        return Err(cluescope::Error::option("--beta", args.beta, "a finite number from 0").into());
    }
    Contrast::check_path(&args.out)?;
    super::keep_apart(
        &[("--corpus", Some(&args.corpus))],
        &[
            ("--out", Some(&args.out)),
            ("--html", args.html.as_deref()),
            ("--heads-html", args.heads_html.as_deref()),
        ],
    )?;
    let devices = args.device.choose()?;
    let corpus = super::texts(&args.corpus)?;
    let marked = marked_fields(&corpus.documents);
    args.refuse_idle_options(&marked)?;
    if args.figures.is_some() && marked.is_empty() {
        let expected = "left out: the figures are of the places where facts are about to be told, and the corpus marks none";
        return Err(cluescope::Error::option("--figures", "given", expected).into());
    }
    let heads = args.heads_html.is_some() || args.figures.is_some() && matches!(args.per, Some(Part::Head));
    let fact = args.fact.as_deref().unwrap_or("name");
    // The default is no mistake in a corpus that does not mark it.
    if (heads || args.fact.is_some()) && !marked.contains(fact) {
        let expected = "a fact marked in at least one text";
        return Err(cluescope::Error::option("--fact", fact, expected).into());
    }
    let options = options(args)?.devices(&devices);
    options.check(&corpus.documents)?;
    let mut parts = 0;
    if let Some(part) = args.per {
        for source in [&args.small, &args.large] {
            parts += part.count(&load_config(source)?);
        }
    }
    super::make_ready_for_rows(&args.out, &corpus, 3 + parts, marked.len())?;
    for page in [&args.html, &args.heads_html].into_iter().flatten() {
        super::make_ready_for_rows(page, &corpus, 3, 0)?;
    }
    if let Some(folder) = &args.figures {
        make_ready(folder, 0)?;
    }
    let contrast = contrast_sources(&args.large, &args.small, &corpus, &options)?;
    let first = contrast.texts.iter().find(|t| t.spans.iter().any(|s| s.field == fact));
    if let Some(text) = first.filter(|_| contrast.per == Per::Head) {
        let differ = HeadsPicture::of_contrast(&contrast, &text.id, fact)?;
        if let Some(folder) = &args.figures {
            for path in differ.write_figures(folder)? {
                println!("{}", path.display());
            }
        }
        if let Some(path) = &args.heads_html {
            heads_page(&contrast, &differ, &text.id, fact)?.write(path)?;
            println!("{}", path.display());
        }
    }
    // The heads measured for the page alone would make the file a hundred times as long.
    let contrast = if args.per.is_some() { contrast } else { contrast.without_parts() };
    contrast.write(&args.out)?;
    println!("{} texts: {}", contrast.texts.len(), args.out.display());
    let picture = TextPicture::of(&contrast).dropout(args.alpha, args.beta);
    if let Some(path) = &args.html {
        picture.write(path)?;
        println!("{}", path.display());
    }
    if let Some(folder) = &args.figures {
        for path in contrast.write_figures(folder)? {
            println!("{}", path.display());
        }
    }
    let hits = contrast.probe_hits(fact, 10);
    if !hits.is_empty() {
        println!("\n{}", Table::of_hits(&hits, fact, 10));
    }
    if args.show > 0 {
        println!("{}", picture.first(args.show).terminal(Colours::of_stdout()));
    }
    Ok(())
}

impl Args {
    /// Refuses what would change nothing; `marked` are the facts that the corpus marks.
    fn refuse_idle_options(&self, marked: &BTreeSet<&str>) -> cluescope::Result<()> {
        let guided = !self.guide.guide_probe.is_empty();
        if self.as_released && guided {
            let expected =
                "left out with --guide-probe: it is about received attention, which then decides nothing";
            return Err(cluescope::Error::option("--as-released", "given", expected));
        }
        // Then only probes are measured by heads.
        match self.guide.chosen() {
            Some(name) if self.as_released && marked.is_empty() => {
                let expected = "left out with --as-released, where the corpus marks no facts: nothing is measured by heads then";
                Err(cluescope::Error::option(name, "given", expected))
            }
            _ => Ok(()),
        }
    }
}

fn options(args: &Args) -> anyhow::Result<Contrasting> {
    let aggregation = if args.as_released { Aggregation::AsReleased } else { Aggregation::Paper };
    let per = match args.per {
        Some(Part::Layer) if args.heads_html.is_some() => {
            let expected = "head, or nothing, together with --heads-html";
            return Err(cluescope::Error::option("--per", "layer", expected).into());
        }
        Some(Part::Layer) => Per::Layer,
        None if args.heads_html.is_none() => Per::Mean,
        None => Per::Head,
        Some(Part::Head) => Per::Head,
    };
    let mut options = Contrasting::new()
        .aggregation(aggregation)
        .heads(args.guide.large(), args.guide.small())
        .per(per)
        .prefix(args.prefix.as_str())
        .command(super::command_line());
    if !args.guide.guide_probe.is_empty() {
        options = options.guide(Guide::Probe(args.guide.guide_probe.clone()));
    }
    if let Some(third) = &args.onto {
        options = options.onto(&load_tokenizer(third)?);
    }
    Ok(options)
}

/// Which heads differ, then each model's own, each with the text `id` below.
fn heads_page(contrast: &Contrast, differ: &HeadsPicture, id: &str, fact: &str) -> cluescope::Result<Page> {
    let mut page = Page::new("Where the heads look")
        .provenance(contrast.provenance.clone())
        .section(Section::new("Large minus small").picture(differ.fragment()));
    for (role, attended) in [("small", contrast.of_small()), ("large", contrast.of_large())] {
        let picture = HeadsPicture::new(&attended, id, fact)?;
        page = page.section(Section::new(format!("The {role} model")).picture(picture.fragment()));
    }
    Ok(page)
}

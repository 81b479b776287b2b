//! `cluescope reproduce`: the whole experiment, from people to table and page.

use std::path::{Path, PathBuf};

use anyhow::Context;
use cluescope::contrast::ModelPair;
use cluescope::evaluate::Bootstrap;
use cluescope::experiment::{self, PairRunner, Protocol};
use cluescope::model::Model;
use cluescope::report::{Section, TextPicture, experiment_page, experiment_tables};
use cluescope::train::{Recipe, Size, pretrain};

/// Options of `cluescope reproduce`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Folder for results; the same command goes on with what is there
    #[arg(long, default_value = "out/reproduce")]
    out: PathBuf,
    /// People trained on and asked about
    #[arg(long)]
    people: Option<usize>,
    /// Augmented copies of each text
    #[arg(long)]
    copies: Option<usize>,
    /// Passes over originals and copies
    #[arg(long)]
    epochs: Option<usize>,
    /// Training seeds
    #[arg(long, value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
}

impl Default for Args {
    fn default() -> Self {
        Args { out: "out/reproduce".into(), people: None, copies: None, epochs: None, seeds: None }
    }
}

impl Args {
    fn protocol(&self) -> Protocol {
        let base = Protocol::reduced();
        Protocol {
            pair: "minute".into(),
            people: self.people.unwrap_or(base.people),
            copies: self.copies.unwrap_or(base.copies),
            epochs: self.epochs.unwrap_or(base.epochs),
            seeds: self.seeds.clone().unwrap_or(base.seeds.clone()),
            ..base
        }
    }
}

/// Runs the experiment.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let protocol = args.protocol();
    protocol.validate()?;
    println!("{}", protocol.describe());
    let pair = load_pair(&args.out.join("models"))?;
    let mut runner = PairRunner::new(pair);
    let outcome = experiment::run(&protocol, args.out.join("cells"), &mut runner)?;
    let bootstrap = Bootstrap::default();
    let mut files = outcome.write(&args.out, &bootstrap)?;
    let report = args.out.join("report.html");
    let pictures = TextPicture::of(runner.contrast()?).first(3);
    let where_they_look = Section::new("Where the two models look")
        .paragraph("The first three texts, coloured by the large model's attention minus the small one's; hover a token for its numbers.")
        .raw(pictures.fragment());
    experiment_page(&outcome, &bootstrap)?.section(where_they_look).write(&report)?;
    for table in experiment_tables(&outcome, &bootstrap)? {
        println!("\n{table}");
    }
    files.push(report);
    for file in &files {
        println!("{}", file.display());
    }
    Ok(())
}

/// Two sizes of one decoder, trained here from generated text, about half a minute each, and kept in `folder`: the
/// next call finds them.
fn load_pair(folder: &Path) -> anyhow::Result<ModelPair> {
    let one = |size| -> anyhow::Result<Model> {
        let recipe = Recipe::minute(size);
        Ok(pretrain(&recipe, folder).with_context(|| format!("training {}", recipe.name))?.model)
    };
    Ok(ModelPair::new(one(Size::Small)?, one(Size::Large)?))
}

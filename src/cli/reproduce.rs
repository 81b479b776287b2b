//! `cluescope reproduce`: the whole experiment, from people to table and page.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use cluescope::Error;
use cluescope::attention::Heads;
use cluescope::augment::Augment;
use cluescope::contrast::{ModelPair, load_model};
use cluescope::corpus::Corpus;
use cluescope::evaluate::Bootstrap;
use cluescope::experiment::{
    self, Cell, Condition, Models, Outcome, PairRunner, Protocol, Stage, Student, Summary, Texts,
};
use cluescope::files::make_ready;
use cluescope::report::{clues, experiment_page, experiment_tables, verdicts};
use console::Term;

use super::guide::GuideArgs;
use super::model::DeviceArgs;

/// Options of `cluescope reproduce`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Folder for results; the same command goes on with what is there [default: out/reproduce]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The full protocol: the paper's sizes, five seeds, options chosen on other people
    #[arg(long)]
    full: bool,
    /// A pair known by name, such as qwen2.5; the bundled pair, nano, when left out
    #[arg(long, value_name = "NAME", conflicts_with_all = ["small", "large"])]
    pair: Option<String>,
    /// The small model of a pair of one's own: hub id, folder or .gguf file
    #[arg(long, requires = "large")]
    small: Option<String>,
    /// The large model of that pair
    #[arg(long, requires = "small")]
    large: Option<String>,
    /// Which of the pair are taught: small, large
    #[arg(long, value_delimiter = ',')]
    student: Vec<String>,
    /// A third model to teach; the pair's attention is laid onto its tokens
    #[arg(long, value_name = "MODEL")]
    onto: Option<String>,
    /// What is compared: names as in the results, or `all`; when left out the paper's conditions, the large model's attention,
    /// and plain training of equal steps. `probe_difference` follows the probes of --guide-probe (of all facts asked about when left out),
    /// `heads_difference` the layers or heads chosen; these options bring their condition with them
    #[arg(long, value_delimiter = ',')]
    conditions: Vec<String>,
    #[command(flatten)]
    guide: GuideArgs,
    /// Texts and questions of your own instead of generated people; see `attend` for the formats
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Texts set aside from --corpus, whose questions become the worked examples
    #[arg(long, value_name = "TEXTS", requires = "corpus")]
    examples: Option<usize>,
    /// Texts, about others, on which options are chosen
    #[arg(long, value_name = "FILE", requires = "corpus")]
    tuning_corpus: Option<PathBuf>,
    /// Texts for perplexity before and after
    #[arg(long, value_name = "FILE", requires = "corpus")]
    held_out: Option<PathBuf>,
    /// How the biographies are written: paper, permuted, full_name, varied
    #[arg(long, conflicts_with = "corpus")]
    texts: Option<Texts>,
    /// Biographies of each person
    #[arg(long, conflicts_with = "corpus")]
    per_person: Option<usize>,
    /// People trained on and asked about
    #[arg(long, conflicts_with = "corpus")]
    people: Option<usize>,
    /// Other people, on whom alpha, beta and the learning rate are chosen; 0 takes the first of each
    #[arg(long, conflicts_with = "corpus")]
    tuning_people: Option<usize>,
    /// Augmented copies of each text
    #[arg(long)]
    copies: Option<usize>,
    /// Passes over originals and copies
    #[arg(long)]
    epochs: Option<usize>,
    /// Training seeds
    #[arg(long, value_delimiter = ',')]
    seeds: Option<Vec<u64>>,
    /// Largest drop probability; several to choose from
    #[arg(long, value_delimiter = ',')]
    alpha: Option<Vec<f64>>,
    /// Rise of the drop probability with rank; several to choose from
    #[arg(long, value_delimiter = ',')]
    beta: Option<Vec<f64>>,
    /// Peak learning rate; several to choose from
    #[arg(long, value_delimiter = ',')]
    lr: Option<Vec<f64>>,
    /// Share of input tokens replaced under the condition `denoising`
    #[arg(long)]
    noise: Option<f64>,
    /// Train every weight instead of an adapter, as is always done with the bundled pair unless --lora-r or --full is
    /// given; with another pair the learning rate is then 2e-4 unless --lr or --full says otherwise
    #[arg(long)]
    full_finetune: bool,
    /// Rank of the adapter, 16 when left out
    #[arg(long, conflicts_with = "full_finetune")]
    lora_r: Option<usize>,
    /// Texts a step
    #[arg(long)]
    batch_size: Option<usize>,
    /// Worked examples before a question
    #[arg(long)]
    few_shot: Option<usize>,
    /// Wrong answers offered beside the right one
    #[arg(long)]
    distractors: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads; all cores when left out. The result does not depend on it
    #[arg(long)]
    threads: Option<usize>,
}

/// Texts of one's own.
struct Own {
    reported: Corpus,
    tuning: Corpus,
    held_out: Corpus,
}

impl Args {
    fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| "out/reproduce".into())
    }

    fn protocol(&self, own: Option<&Own>, pair: &Pair) -> anyhow::Result<Protocol> {
        let mut p = match pair {
            _ if self.full => Protocol::full(),
            Pair::Known(name) if name == NANO && self.onto.is_none() => Protocol::nano(),
            _ if self.full_finetune => Protocol { learning_rates: vec![2e-4], ..Protocol::reduced() },
            _ => Protocol::reduced(),
        };
        p.pair = pair.name();
        p.third.clone_from(&self.onto);
        if !self.student.is_empty() || self.onto.is_some() {
            p.students = self.student.iter().map(|name| student(name)).collect::<Result<_, _>>()?;
            p.students.extend(self.onto.as_ref().map(|_| Student::Third));
        }
        p.guide_probe.clone_from(&self.guide.guide_probe);
        (p.large_heads, p.small_heads) = (self.guide.large(), self.guide.small());
        p.conditions = self.conditions(&p, own)?;
        if let Some(own) = own {
            p.corpus = self.corpus.as_ref().map(|path| path.display().to_string());
            (p.people, p.per_person) = subjects(&own.reported);
            p.tuning_people = subjects(&own.tuning).0;
            p.held_out = own.held_out.documents.len();
        }
        set(&mut p.people, self.people);
        set(&mut p.tuning_people, self.tuning_people);
        set(&mut p.texts, self.texts);
        set(&mut p.per_person, self.per_person);
        set(&mut p.copies, self.copies);
        set(&mut p.epochs, self.epochs);
        set(&mut p.seeds, self.seeds.clone());
        p.full_finetuning = self.lora_r.is_none() && (self.full_finetune || p.full_finetuning);
        set(&mut p.alphas, self.alpha.clone());
        set(&mut p.betas, self.beta.clone());
        set(&mut p.learning_rates, self.lr.clone());
        set(&mut p.noise, self.noise);
        set(&mut p.lora_r, self.lora_r);
        set(&mut p.batch_size, self.batch_size);
        set(&mut p.few_shot, self.few_shot);
        set(&mut p.distractors, self.distractors);
        p.validate()?;
        self.refuse_idle_options(&p)?;
        for (name, given) in [("--alpha", &self.alpha), ("--beta", &self.beta), ("--lr", &self.lr)] {
            if let Some(values) = given.as_ref().filter(|v| v.len() > 1 && p.tuning_people == 0) {
                let expected = "one value, or --tuning-people (--tuning-corpus) on whom to choose";
                return Err(Error::option(name, format!("{values:?}"), expected).into());
            }
        }
        Ok(p)
    }

    /// Refuses what no condition of `p` would look at.
    fn refuse_idle_options(&self, p: &Protocol) -> anyhow::Result<()> {
        let any = |uses: fn(Condition) -> bool| p.conditions.iter().any(|&condition| uses(condition));
        let tuned = self.tuning_corpus.is_some() || self.tuning_people.is_some_and(|people| people > 0);
        for (name, given, used, expected) in [
            (
                "--noise",
                self.noise.is_some(),
                any(|condition| condition == Condition::Denoising),
                "unless denoising is among the conditions: no other has noise",
            ),
            (
                "--alpha",
                self.alpha.is_some(),
                any(Condition::uses_alpha),
                "unless a condition drops tokens, such as random",
            ),
            (
                "--beta",
                self.beta.is_some(),
                any(Condition::uses_beta),
                "unless a condition drops tokens by rank, such as attention_difference",
            ),
            (
                "--copies",
                self.copies.is_some(),
                any(Condition::uses_copies),
                "unless a condition has copies or makes up for them, such as plain_equal_steps",
            ),
            ("--lr", self.lr.is_some(), any(Condition::trains), "unless a condition trains"),
            ("--epochs", self.epochs.is_some(), any(Condition::trains), "unless a condition trains"),
            ("--seeds", self.seeds.is_some(), any(Condition::trains), "unless a condition trains"),
            (
                if self.tuning_corpus.is_some() { "--tuning-corpus" } else { "--tuning-people" },
                tuned,
                p.chooses(),
                "unless a condition has several values of --alpha, --beta or --lr to choose from",
            ),
        ] {
            if given && !used {
                return Err(Error::option(name, "given", format!("left out, {expected}")).into());
            }
        }
        Ok(())
    }

    /// What is compared under the guides of `p`.
    fn conditions(&self, p: &Protocol, own: Option<&Own>) -> anyhow::Result<Vec<Condition>> {
        let chosen = p.large_heads != Heads::All || p.small_heads != Heads::All;
        if self.conditions == ["all"] {
            // Texts of one's own may mark no facts to ask about, or nothing before them; then they have no probes to follow.
            let marked = own.is_none_or(|own| {
                [&own.reported, &own.tuning].iter().all(|corpus| experiment::has_probes(corpus))
            });
            let possible = |condition: &Condition| match condition {
                Condition::ProbeDifference => marked || !p.guide_probe.is_empty(),
                Condition::HeadsDifference => chosen,
                _ => true,
            };
            return Ok(Condition::ALL.into_iter().filter(possible).collect());
        }
        let mut conditions = p.conditions.clone();
        if !self.conditions.is_empty() {
            conditions = self.conditions.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
        }
        for (guide, condition) in
            [(!p.guide_probe.is_empty(), Condition::ProbeDifference), (chosen, Condition::HeadsDifference)]
        {
            if guide && !conditions.contains(&condition) {
                conditions.push(condition);
            }
        }
        Ok(conditions)
    }

    fn own(&self) -> anyhow::Result<Option<Own>> {
        let Some(path) = &self.corpus else { return Ok(None) };
        let read = |path: &Option<PathBuf>| path.as_ref().map_or(Ok(Corpus::default()), |p| super::texts(p));
        let mut reported = super::texts(path)?;
        let mut tuning = read(&self.tuning_corpus)?;
        reported = match self.examples {
            Some(texts) => reported.set_examples_aside(texts)?,
            None => reported.with_known_examples()?,
        };
        // Options are chosen with the same worked examples unless the other file brings its own.
        if tuning.examples.is_empty() {
            tuning.examples.clone_from(&reported.examples);
        }
        Ok(Some(Own { reported, tuning, held_out: read(&self.held_out)? }))
    }
}

/// How many people or things the texts are about, and the most texts about one.
fn subjects(corpus: &Corpus) -> (usize, usize) {
    let mut counts = BTreeMap::<&str, usize>::new();
    for subject in corpus.subjects() {
        *counts.entry(subject).or_default() += 1;
    }
    (counts.len(), counts.into_values().max().unwrap_or(1))
}

fn set<T>(value: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *value = given;
    }
}

fn student(name: &str) -> Result<Student, Error> {
    match name {
        "small" => Ok(Student::Small),
        "large" => Ok(Student::Large),
        _ => Err(Error::option("--student", name, "small, large, or both; a third model is named by --onto")),
    }
}

/// Runs the experiment.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let start = Instant::now();
    super::use_threads(args.threads)?;
    let out = args.out();
    make_ready(&out, 0)?;
    let own = args.own()?;
    let pair = Pair::of(args);
    let protocol = args.protocol(own.as_ref(), &pair)?;
    let devices = args.device.choose()?;
    println!("{}", protocol.describe());
    let onto = args.onto.clone();
    let mut runner = PairRunner::loading(move || {
        Ok(Models { pair: pair.load()?, third: onto.as_deref().map(load_model).transpose()? })
    })
    .devices(&devices);
    if let Some(own) = own {
        runner = runner.texts(own.reported, own.tuning, own.held_out.documents);
    }
    let mut outcome = experiment::run(&protocol, out.join("cells"), &mut runner)?;
    let corpus = runner.corpus().clone();
    let summary = outcome.summary(&Bootstrap::default())?;
    let mut files = outcome.write(&out, &summary)?;
    let people = out.join("texts.jsonl");
    corpus.write(&people)?;
    files.push(people);
    // A pipe takes any width, and so does what is written into a file.
    let width = Term::stdout().size_checked().map_or(usize::MAX, |(_, columns)| columns.into());
    for table in experiment_tables(&outcome, &summary)?.iter().flat_map(|table| table.within(width)) {
        print!("\n{table}");
    }
    println!();
    for &student in &protocol.students {
        let of: Vec<Summary> = summary.iter().filter(|s| s.student == student).cloned().collect();
        for said in verdicts(&of) {
            let whose =
                if protocol.students.len() > 1 { format!("{student} model: ") } else { String::new() };
            println!("{whose}{said}");
        }
    }
    println!();
    let mut page = experiment_page(&outcome, &summary)?;
    for cell in guided(&outcome) {
        let (alpha, beta) = (cell.alpha.unwrap_or_default(), cell.beta.unwrap_or_default());
        let contrast = runner.contrast(cell)?;
        let plan = Augment::by_contrast(&contrast).alpha(alpha).beta(beta).plan(&corpus)?;
        page = page.section(clues(&contrast, &plan)?);
    }
    let spent = format!("{:.0} s", start.elapsed().as_secs_f64());
    outcome.provenance = origin(&outcome, &spent);
    let report = out.join("report.html");
    page.provenance(outcome.provenance.clone()).write(&report)?;
    for file in &files {
        println!("{}", file.display());
    }
    println!("\ntotal time {spent}; the report, for a browser: {}", report.display());
    Ok(())
}

/// A cell of each guide that was followed, with its α and β: those of the differences, or else one that goes by a single
/// model's attention.
fn guided(outcome: &Outcome) -> Vec<&Cell> {
    let rows = || outcome.rows.iter().map(|row| &row.cell);
    let failed = || outcome.failed.iter().map(|failed| &failed.cell).filter(|c| c.stage == Stage::Report);
    let looking = || rows().chain(failed()).filter(|cell| cell.condition.looks());
    let mut cells: Vec<&Cell> = Vec::new();
    for cell in looking().filter(|cell| cell.condition.is_difference()) {
        if cells.iter().all(|known| known.condition != cell.condition) {
            cells.push(cell);
        }
    }
    if cells.is_empty() { looking().take(1).collect() } else { cells }
}

/// Where the results came from: the command, this machine, and the time it took.
fn origin(outcome: &Outcome, spent: &str) -> cluescope::provenance::Provenance {
    let cells = || outcome.rows.iter().chain(&outcome.tuning);
    let all: f64 = cells().map(|row| row.measured.seconds).sum();
    let mut origin = outcome.provenance.clone().with_machine();
    origin.command = super::command_line();
    origin.option("total time of this run", spent).option(
        "time of all cells, earlier runs included",
        format!("{all:.0} s in {} cells", cells().count()),
    )
}

/// The bundled pair's name.
const NANO: &str = "nano";

/// Where the pair comes from.
enum Pair {
    /// Two sources.
    Two(String, String),
    /// One that is known by name.
    Known(String),
}

impl Pair {
    fn of(args: &Args) -> Self {
        match (&args.small, &args.large) {
            (Some(small), Some(large)) => Pair::Two(small.clone(), large.clone()),
            _ => Pair::Known(args.pair.clone().unwrap_or_else(|| NANO.into())),
        }
    }

    fn name(&self) -> String {
        match self {
            Pair::Two(small, large) => format!("{small} + {large}"),
            Pair::Known(name) => name.clone(),
        }
    }

    fn load(&self) -> cluescope::Result<ModelPair> {
        match self {
            Pair::Two(small, large) => Ok(ModelPair::new(load_model(small)?, load_model(large)?)),
            Pair::Known(name) => ModelPair::load(name),
        }
    }
}

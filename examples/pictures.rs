//! Every kind of picture as a page or figure in one folder, of short, ordinary, long and hostile texts, to be looked at and
//! to be opened by `scripts/pictures.js`:
//!
//! `cargo run --release --example pictures -- FOLDER`
//!
//! Beside them lies `expected.json`: by page, the texts that it must show as text, and whether it is of a contrast.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cluescope::attention::{Cache, Per, Probes};
use cluescope::contrast::{Contrasting, Row};
use cluescope::evaluate::Bootstrap;
use cluescope::experiment::{self, Condition};
use cluescope::files::write_text;
use cluescope::prelude::*;
use cluescope::report::{Colours, DropFigure, FactsPicture, clues, loss_chart};

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| anyhow::anyhow!("name the folder for the pages"))?;
    let pair = ModelPair::load("nano")?;
    let mut pages = Pages { folder: folder.clone(), expected: BTreeMap::new() };
    let people = Biographies::new(30).seed(3).generate()?;
    pages.of_texts("ordinary", &pair, &people)?;
    pages.of_texts("short", &pair, &marked("short", "<name>Ada</name> lives in <city>Rome</city>.")?)?;
    pages.of_texts("long", &pair, &long(&pair)?)?;
    let hostile = hostile();
    let (five, unbroken) = hostile.documents.split_at(5);
    for (name, documents) in [("hostile", five), ("unbroken", unbroken)] {
        pages.of_texts(name, &pair, &Corpus { documents: documents.to_vec(), ..Corpus::default() })?;
    }
    // Models of one shape: the trained one against the same without training.
    let untrained =
        Model::random("untrained", pair.small.config().clone(), pair.small.tokenizer().clone(), 1)?;
    let options = options();
    let contrast = ModelPair::new(untrained, pair.small.clone()).contrast_with(&people, &options)?;
    let picture = HeadsPicture::of_contrast(&contrast, &contrast.texts[0].id, "name")?;
    pages.write("same-shape-heads-signed.html", &picture.html(), true, &people.documents[..1])?;
    picture.write_figures(folder.join("same-shape"))?;
    pages.figures(&pair, &people)?;
    pages.report(pair, &people)?;
    write_text(folder.join("expected.json"), &serde_json::to_string_pretty(&pages.expected)?)?;
    Ok(())
}

fn options() -> Contrasting {
    Contrasting::new().per(Per::Head).probes(Probes::All).cache(Cache::Off)
}

fn marked(id: &str, text: &str) -> Result<Corpus> {
    Ok(Corpus { documents: vec![Document::from_tagged(id, text)?], ..Corpus::default() })
}

/// One text of at least 2,000 tokens: biographies one after the other, the first with its facts.
fn long(pair: &ModelPair) -> Result<Corpus> {
    let people = Biographies::new(40).seed(5).generate()?;
    let mut document = people.documents[0].clone();
    for other in &people.documents[1..] {
        if pair.small.tokenizer().encode(&document.text)?.ids.len() >= 2000 {
            break;
        }
        document.text.push_str(&format!("\n\n{}", other.text));
    }
    Ok(Corpus { documents: vec![document], ..Corpus::default() })
}

/// Texts, ids and fields that would harm a careless page; the last text has 100 KB without a blank.
fn hostile() -> Corpus {
    let texts = [
        "<script>alert(1)</script> lives in <b onload='y'>Rome</b> & says \"--> ]]> </div></details>",
        "שלום \u{202e}drow\u{202c} lives in مرحبا بالعالم.",
        "e\u{301}\u{301}\u{301} lives in a\u{300}\u{301} \u{301}start of Z\u{351}\u{36b}\u{343}\u{36a}\u{302}\u{36b}\u{33d}algo.",
        "👩‍👩‍👧‍👦 lives in 🏳️‍🌈, 日本語 and 𝒳.",
        "EVCXR_END_CONTENT\nEVCXR_END_CONTENT\r\n\tlives in \u{7}\u{200b}Rome.",
        &format!("{} lives in {}", "x<y>&".repeat(4), "<z&\u{301}".repeat(20_000)),
    ];
    let documents = texts.iter().enumerate().map(|(number, text)| {
        let place = text.split_once(" lives in ").map_or(0, |(before, _)| before.chars().count());
        let spans = vec![
            Span { field: "name".into(), start: 0, end: place },
            Span {
                field: "<script>alert(2)</script>\u{202e}".into(),
                start: place + 10,
                end: text.chars().count(),
            },
        ];
        let mut document = Document::new(format!("{number} <script>alert(3)</script>\u{202e}"), *text, spans);
        document.spans.retain(|span| span.start < span.end);
        document
    });
    Corpus { documents: documents.collect(), ..Corpus::default() }
}

/// What a page must show.
#[derive(serde::Serialize)]
struct Expected {
    texts: Vec<String>,
    contrast: bool,
}

struct Pages {
    folder: PathBuf,
    expected: BTreeMap<String, Expected>,
}

impl Pages {
    fn write(&mut self, name: &str, html: &str, contrast: bool, shown: &[Document]) -> Result<()> {
        let texts = shown.iter().map(|document| document.text.clone()).collect();
        self.expected.insert(name.into(), Expected { texts, contrast });
        write_text(self.folder.join(name), html)
    }

    /// All pictures of texts, heads and probes of one corpus.
    fn of_texts(&mut self, name: &str, pair: &ModelPair, corpus: &Corpus) -> Result<()> {
        let all = &corpus.documents;
        let first = &all[..1];
        let contrast = pair.contrast_with(corpus, &options())?;
        let text = TextPicture::of(&contrast).dropout(0.6, 0.05);
        self.write(&format!("{name}-text.html"), &text.html(), true, all)?;
        write_text(self.folder.join(format!("{name}-text.ansi")), &text.first(5).terminal(Colours::True))?;
        let attended = contrast.of_small();
        let attention = TextPicture::of_attention(&attended);
        self.write(&format!("{name}-attention.html"), &attention.html(), false, all)?;
        let heads = HeadsPicture::new(&attended, &all[0].id, "name")?;
        self.write(&format!("{name}-heads.html"), &heads.html(), false, first)?;
        let differ = HeadsPicture::of_contrast(&contrast, &all[0].id, "name")?;
        self.write(&format!("{name}-heads-signed.html"), &differ.html(), true, first)?;
        write_text(self.folder.join(format!("{name}-heads-signed.txt")), &differ.terminal())?;
        differ.write_figures(self.folder.join(name))?;
        let plan = Augment::by_contrast(&contrast).alpha(0.6).beta(0.05).plan(corpus)?;
        let plan = PlanPicture::of(&plan);
        self.write(&format!("{name}-plan.html"), &plan.html(), false, all)?;
        write_text(self.folder.join(format!("{name}-plan.ansi")), &plan.first(5).terminal(Colours::True))?;
        contrast.write_figures(self.folder.join(name))?;
        Ok(())
    }

    /// Figures that are drawn of numbers alone, and the table and texts that stand beside them.
    fn figures(&self, pair: &ModelPair, people: &Corpus) -> Result<()> {
        let contrast = pair.contrast_with(people, &options())?;
        let plan = |augment: Augment| augment.plan(people);
        let by_rank = plan(Augment::by_contrast(&contrast))?;
        let at_random = plan(Augment::random().tokenizer(pair.small.tokenizer()))?;
        let drop =
            DropFigure::new("Who is dropped").series("by rank", &by_rank).series("at random", &at_random);
        let attend = Attend::new().map(1, 0).cache(Cache::Off);
        let map =
            pair.large.attend(&marked("short", "<name>Ada</name> lives in Rome.")?.documents, &attend)?;
        let figure2 = ProbeFigure::new(&contrast, "company", Row::Small)?;
        let page = Page::new("Figures")
            .section(Section::new("Drop").figure(drop.bars()?.svg()?, "").table(&drop.table()?))
            .section(Section::new("Map").figure(HeatMap::of_map(&map.texts[0], 0, "One head")?.svg()?, ""))
            .section(Section::new("Probe").figure(figure2.svg(), "").raw(figure2.counts()))
            .section(Section::new("Hits").table(&Table::of_hits(
                &contrast.probe_hits("name", 10),
                "name",
                10,
            )))
            .section(Section::new("Facts").raw(FactsPicture::of(people).first(2).fragment()));
        page.write(self.folder.join("figures.html"))
    }

    /// A small experiment's report, with what the models look at, and its loss curve.
    fn report(&self, pair: ModelPair, people: &Corpus) -> anyhow::Result<()> {
        let protocol = Protocol {
            people: 4,
            held_out: 2,
            copies: 2,
            epochs: 3,
            few_shot: 1,
            distractors: 2,
            conditions: vec![Condition::Untrained, Condition::Plain, Condition::AttentionDifference],
            ..Protocol::reduced()
        };
        let contrast = pair.contrast_with(people, &options())?;
        let plan = Augment::by_contrast(&contrast).plan(people)?;
        let cells = tempfile::tempdir()?;
        let outcome = experiment::run(&protocol, cells.path(), &mut PairRunner::new(pair))?;
        let summary = outcome.summary(&Bootstrap::default())?;
        experiment_page(&outcome, &summary)?
            .section(clues(&contrast, &plan)?)
            .write(self.folder.join("report.html"))?;
        let rows: Vec<_> = outcome.rows.iter().collect();
        let loss = loss_chart(&rows).svg()?;
        write_text(Path::new(&self.folder).join("loss.svg"), &loss)?;
        Ok(())
    }
}

//! The paper's Figures 2 and 3: which kind of token holds each of the highest ranks at a probe.
//!
//! For every text the tokens before a fact are ranked by the probe's weights (Figure 2) or by large minus
//! small (Figure 3). A stacked bar for each of the first ten ranks shows, over all texts, what stood there: a token of the
//! name, of another fact, the start token, or a plain word.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::html::escape;
use super::picture::{STYLE as FRAME, stamped, title_name, unused_file_name, visible};
use super::text_picture::footer;
use super::{Page, Section, Table};
use crate::contrast::{Contrast, ContrastText, Row, rank_descending};
use crate::error::{Error, Result};
use crate::files::write_text;
use crate::provenance::{Provenance, content_hash};
use crate::text::tame;

/// Ranks shown.
const RANKS: usize = 10;
/// Plain words that get a colour of their own; the others are shown together.
const WORDS: usize = 8;

/// What kind of token a rank can be held by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A token of a marked fact.
    Field(String),
    /// A start token.
    Start,
    /// A literal word or piece of one, in lower case.
    Word(String),
    /// All words that are too rare to be shown by themselves.
    Other,
}

impl Kind {
    fn label(&self) -> String {
        match self {
            Kind::Field(field) => format!("<{}>", tame(field)),
            Kind::Start => "start token".into(),
            Kind::Word(word) => visible(word),
            Kind::Other => "other words".into(),
        }
    }
}

/// Counts behind one figure.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeFigure {
    /// The field whose probe it is.
    pub field: String,
    /// Whose weights are ranked.
    pub row: Row,
    /// Name of the model, or of both.
    pub models: String,
    /// Texts that have this probe.
    pub texts: usize,
    /// Kinds of tokens, bottom of the bars first.
    pub kinds: Vec<Kind>,
    /// `counts[rank][kind]`: texts in which a token of this kind holds this rank.
    pub counts: Vec<Vec<usize>>,
    /// Models, options and command.
    pub provenance: Provenance,
}

fn kind_of(text: &ContrastText, token: usize) -> Kind {
    let (start, end) = text.offsets[token];
    if end <= start {
        return Kind::Start;
    }
    match text.spans.iter().find(|s| s.overlaps((start, end))) {
        Some(span) => Kind::Field(span.field.clone()),
        None => {
            let word: String = text.text.chars().skip(start).take(end - start).collect();
            let trimmed = word.trim();
            Kind::Word(if trimmed.is_empty() { word } else { trimmed.to_lowercase() })
        }
    }
}

impl ProbeFigure {
    /// Counts for the probe of `field`.
    ///
    /// # Errors
    /// [`Error::Option`] when no text has this probe.
    pub fn new(contrast: &Contrast, field: &str, row: Row) -> Result<Self> {
        let mut seen: Vec<BTreeMap<Kind, usize>> = vec![BTreeMap::new(); RANKS];
        let mut texts = 0;
        for text in &contrast.texts {
            let Some(probe) = text.probe.get(field) else { continue };
            texts += 1;
            for (token, rank) in rank_descending(row.of(probe)).into_iter().enumerate() {
                if rank < RANKS {
                    *seen[rank].entry(kind_of(text, token)).or_default() += 1;
                }
            }
        }
        if texts == 0 {
            let expected = "a field that is marked in the texts, with a word before it, and was recorded";
            return Err(Error::option("field", field, expected));
        }
        let mut total: BTreeMap<&Kind, usize> = BTreeMap::new();
        for (kind, count) in seen.iter().flatten() {
            *total.entry(kind).or_default() += count;
        }
        let mut words: Vec<(&Kind, usize)> =
            total.iter().filter(|(k, _)| matches!(k, Kind::Word(_))).map(|(k, c)| (*k, *c)).collect();
        words.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let mut kinds: Vec<Kind> = field_order(contrast)
            .into_iter()
            .map(Kind::Field)
            .chain([Kind::Start])
            .filter(|kind| total.contains_key(kind))
            .collect();
        kinds.extend(words.iter().take(WORDS).map(|(kind, _)| (*kind).clone()));
        if words.len() > WORDS {
            kinds.push(Kind::Other);
        }
        let last = kinds.len() - 1;
        let counts = seen
            .iter()
            .map(|rank| {
                let mut row = vec![0; kinds.len()];
                for (kind, count) in rank {
                    row[kinds.iter().position(|k| k == kind).unwrap_or(last)] += count;
                }
                row
            })
            .collect();
        let models = match row {
            Row::Small => title_name(&contrast.small).into(),
            Row::Large => title_name(&contrast.large).into(),
            Row::Difference => {
                format!("{} minus {}", title_name(&contrast.large), title_name(&contrast.small))
            }
        };
        Ok(ProbeFigure {
            field: field.into(),
            row,
            models,
            texts,
            kinds,
            counts,
            provenance: contrast.provenance.clone(),
        })
    }

    /// The figure as SVG; needs no network and adapts to dark surroundings.
    pub fn svg(&self) -> String {
        let (left, top, height, step, bar) = (52.0f64, 56.0f64, 300.0f64, 52.0f64, 44.0f64);
        let bottom = top + height;
        let legend = left + step * RANKS as f64 + 16.0;
        let width = legend + 150.0;
        let full = (bottom + 56.0).max(top + 20.0 * self.kinds.len() as f64 + 16.0);
        let title = self.title();
        // Figures of one page must not share the names of their patterns.
        let number = content_hash([title.as_str()]);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"cs-fig\" viewBox=\"0 0 {width} {full}\" width=\"{width}\" style=\"max-width:100%;height:auto\" role=\"img\" aria-label=\"{}\">\n\
             <title>{}</title>\n<desc>{}</desc>\n<style>{STYLE}</style>\n{}\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{full}\"/>\n\
             <text x=\"{left}\" y=\"22\" class=\"head\">{}</text>\n<text x=\"{left}\" y=\"42\" class=\"soft\">kind of token at each rank, {} texts</text>\n",
            escape(&title),
            escape(&title),
            escape(&self.words()),
            patterns(&number),
            escape(&title),
            self.texts
        );
        for percent in [0, 25, 50, 75, 100] {
            let y = bottom - height * f64::from(percent) / 100.0;
            out.push_str(&format!(
                "<line x1=\"{left}\" x2=\"{}\" y1=\"{y}\" y2=\"{y}\" class=\"grid\"/><text x=\"{}\" y=\"{}\" class=\"soft end\">{percent} %</text>\n",
                legend - 12.0,
                left - 6.0,
                y + 4.0
            ));
        }
        for (rank, row) in self.counts.iter().enumerate() {
            let x = left + step * rank as f64 + (step - bar) / 2.0;
            let mut y = bottom;
            for (part, (kind, &count)) in self.kinds.iter().zip(row).enumerate().filter(|(_, (_, c))| **c > 0)
            {
                let tall = height * count as f64 / self.texts as f64;
                y -= tall;
                let label = kind.label();
                out.push_str(&format!(
                    "<rect x=\"{x}\" y=\"{y:.2}\" width=\"{bar}\" height=\"{tall:.2}\" class=\"part\" fill=\"{}\"><title>rank {}: {} in {count} of {} texts</title></rect>\n",
                    self.colour(part, &number),
                    rank + 1,
                    escape(&label),
                    self.texts
                ));
                if tall >= 13.0 {
                    out.push_str(&format!(
                        "<text x=\"{}\" y=\"{:.2}\" class=\"in\" fill=\"{}\">{}</text>\n",
                        x + bar / 2.0,
                        y + tall / 2.0 + 3.5,
                        self.ink(part),
                        escape(&clip(&label, 8))
                    ));
                }
            }
            out.push_str(&format!(
                "<text x=\"{}\" y=\"{}\" class=\"soft mid\">{}</text>\n",
                x + bar / 2.0,
                bottom + 18.0,
                rank + 1
            ));
        }
        out.push_str(&format!(
            "<text x=\"{}\" y=\"{}\" class=\"soft mid\">rank by attention{}, 1 is the highest</text>\n",
            left + step * RANKS as f64 / 2.0,
            bottom + 40.0,
            if self.row == Row::Difference { " difference" } else { "" }
        ));
        // The legend runs from the top of the bars down, as the eye meets the colours.
        for (line, (part, kind)) in self.kinds.iter().enumerate().rev().enumerate() {
            let y = top + 20.0 * line as f64;
            out.push_str(&format!(
                "<rect x=\"{legend}\" y=\"{y}\" width=\"14\" height=\"14\" class=\"part\" fill=\"{}\"/><text x=\"{}\" y=\"{}\" class=\"word\">{}</text>\n",
                self.colour(part, &number),
                legend + 20.0,
                y + 11.5,
                escape(&clip(&kind.label(), 18))
            ));
        }
        out.push_str("</svg>\n");
        stamped(&out, &footer(&self.provenance))
    }

    /// The counts, folded away, as a part of a page.
    pub fn counts(&self) -> String {
        format!(
            "<div class=\"cs\"><style>{FRAME}</style><details><summary>The counts as a table</summary>{}</details>\n<footer>{}</footer></div>\n",
            self.table().html(),
            escape(&footer(&self.provenance))
        )
    }

    /// The counts, one row a rank, for reading aloud and for copying out.
    pub fn table(&self) -> Table {
        let kinds = self.kinds.iter().map(Kind::label);
        let rows = self.counts.iter().enumerate().map(|(rank, row)| {
            [rank + 1].into_iter().chain(row.iter().copied()).map(|count| count.to_string()).collect()
        });
        Table::of(["rank".to_string()].into_iter().chain(kinds).collect(), rows.collect()).caption(format!(
            "{}: texts of {} by kind of token",
            self.title(),
            self.texts
        ))
    }

    /// What the figure shows.
    pub fn title(&self) -> String {
        tame(&format!("Probe of {}: {}", self.field, self.models))
    }

    /// The most frequent kind at each rank, as a sentence.
    fn words(&self) -> String {
        let ranks = self.counts.iter().enumerate().filter_map(|(rank, row)| {
            let (kind, count) = self.kinds.iter().zip(row).max_by_key(|(_, count)| **count)?;
            Some(format!("rank {}: {} in {count} of {}", rank + 1, kind.label(), self.texts))
        });
        ranks.collect::<Vec<_>>().join("; ")
    }

    /// What part `part` of a bar is filled with; `figure` names the figure's patterns.
    fn colour(&self, part: usize, figure: &str) -> String {
        match &self.kinds[part] {
            Kind::Field(field) => {
                let named = NAMED.iter().find(|(name, _)| name == field).map(|(_, colour)| *colour);
                named.unwrap_or_else(|| self.spare(part)).into()
            }
            Kind::Start => "#333333".into(),
            Kind::Other => format!("url(#cs-{figure}-other)"),
            Kind::Word(_) => {
                let first = self.kinds.iter().position(|k| matches!(k, Kind::Word(_))).unwrap_or(0);
                format!("url(#cs-{figure}-{})", (part - first) % WORDS)
            }
        }
    }

    /// A colour for a field that the paper does not have: one that no field of the figure has by name, as long as there are any.
    fn spare(&self, part: usize) -> &'static str {
        let named = |field: &str| NAMED.iter().find(|(name, _)| *name == field).map(|(_, colour)| *colour);
        let fields =
            || self.kinds.iter().filter_map(|k| if let Kind::Field(f) = k { Some(f.as_str()) } else { None });
        let taken: Vec<&str> = fields().filter_map(named).collect();
        let free: Vec<&str> = NAMED.iter().map(|(_, c)| *c).filter(|c| !taken.contains(c)).collect();
        let before = self.kinds[..part].iter();
        let nth = before.filter(|k| matches!(k, Kind::Field(f) if named(f).is_none())).count();
        free.get(nth % free.len().max(1)).copied().unwrap_or(NAMED[nth % NAMED.len()].1)
    }

    /// Letters that can be read on part `part`.
    fn ink(&self, part: usize) -> &'static str {
        match &self.kinds[part] {
            Kind::Start => "#ffffff",
            Kind::Field(_) if self.colour(part, "") == "#0072b2" => "#ffffff",
            _ => "#1b1f24",
        }
    }
}

/// Okabe and Ito's palette, each colour with the field of the biographies that it stands for.
const NAMED: [(&str, &str); 6] = [
    ("name", "#d55e00"),
    ("date", "#56b4e9"),
    ("city", "#009e73"),
    ("university", "#f0e442"),
    ("major", "#cc79a7"),
    ("company", "#0072b2"),
];

/// Words are greys told apart by what is drawn on them, since greys alone look alike: plain, hatched both ways, dotted,
/// barred, each on two grounds. The strokes are pale enough for letters.
fn patterns(figure: &str) -> String {
    const GROUNDS: [&str; 2] = ["#c9ced6", "#eceef1"];
    const DRAWN: [&str; 4] = [
        "",
        "<path d=\"M-1 9L9 -1\" stroke=\"#8d949e\"/>",
        "<circle cx=\"4\" cy=\"4\" r=\"1.2\" fill=\"#7e858f\"/>",
        "<path d=\"M0 4H8\" stroke=\"#8d949e\"/>",
    ];
    let mut out = String::from("<defs>");
    for number in 0..WORDS {
        out.push_str(&format!(
            "<pattern id=\"cs-{figure}-{number}\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\"><rect width=\"8\" height=\"8\" fill=\"{}\"/>{}</pattern>",
            GROUNDS[number % 2],
            DRAWN[number / 2 % 4]
        ));
    }
    out.push_str(&format!(
        "<pattern id=\"cs-{figure}-other\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\"><rect width=\"8\" height=\"8\" fill=\"#fafbfc\"/><path d=\"M0 0L8 8M0 8L8 0\" stroke=\"#c9ced6\" stroke-width=\".7\"/></pattern>"
    ));
    out + "</defs>"
}
/// Every rule is bound to these figures: a style within a page holds for the whole page.
const STYLE: &str = ".cs-fig text{font:12px system-ui,sans-serif;fill:#1b1f24}.cs-fig .head{font-size:15px;font-weight:600}.cs-fig .soft{fill:#5b6470}.cs-fig .end{text-anchor:end}\
.cs-fig .mid{text-anchor:middle}.cs-fig .in{font-size:9.5px;text-anchor:middle}.cs-fig .in[fill='#ffffff']{fill:#fff}.cs-fig .grid{stroke:#c9ced6}.cs-fig .part{stroke:#fff;stroke-width:.6}.cs-fig .ground{fill:#fff}\
@media(prefers-color-scheme:dark){.cs-fig text{fill:#e9ebee}.cs-fig .soft{fill:#a3abb6}.cs-fig .grid{stroke:#3d444d}.cs-fig .part{stroke:#15181c}.cs-fig .ground{fill:#15181c}.cs-fig .in{fill:#1b1f24}}";

fn clip(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.into()
    } else {
        text.chars().take(most - 1).chain(['\u{2026}']).collect()
    }
}

/// Fields in the order they stand in the texts; fields first seen in later texts come last.
fn field_order(contrast: &Contrast) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    for span in contrast.texts.iter().flat_map(|t| &t.spans) {
        if !fields.contains(&span.field) {
            fields.push(span.field.clone());
        }
    }
    fields
}

impl Contrast {
    /// Writes Figures 2 and 3 for every recorded probe into `folder`: `probe-FIELD-small.svg`, `probe-FIELD-large.svg`
    /// and `probe-FIELD-difference.svg`, then `probes.html` with all of them and their counts, and returns the paths.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write_figures(&self, folder: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
        let folder = folder.as_ref();
        let mut written = Vec::new();
        let mut page = Page::new("What the token before a fact attends to")
            .lead("For each text the tokens before a fact are ranked by attention; a bar shows what kind of token held that rank, over all texts.")
            .provenance(self.provenance.clone());
        let mut files = BTreeSet::new();
        for field in field_order(self) {
            if !self.texts.iter().any(|t| t.probe.contains_key(&field)) {
                continue;
            }
            let file = unused_file_name(&field, &mut files);
            let mut section = Section::new(format!("Before {}", tame(&field)));
            for (row, name) in Row::ALL.into_iter().zip(["small", "large", "difference"]) {
                let figure = ProbeFigure::new(self, &field, row)?;
                let path = folder.join(format!("probe-{file}-{name}.svg"));
                let svg = figure.svg();
                write_text(&path, &svg)?;
                written.push(path);
                section =
                    section.figure(svg, "").details("The counts as a table", |s| s.table(&figure.table()));
            }
            page = page.section(section);
        }
        if !written.is_empty() {
            let path = folder.join("probes.html");
            page.write(&path)?;
            written.push(path);
        }
        Ok(written)
    }
}

//! The paper's Figure 4: each token of a text coloured by the probability with which dropout deletes it, and that
//! probability over rank.

use super::html::escape;
use super::panel::{Colours, KEYS, Panel, Panels, Scale, Tone};
use super::picture::{BARE, SCRIPT, STYLE, page, short};
use super::plot::LineChart;
use crate::augment::{Plan, PlanText, Protect};
use crate::error::Result;
use crate::files::write_text;
use crate::text::tame;

/// Texts coloured by drop probability, ready to be shown. Deepest is α, the cap.
///
/// ```
/// use cluescope::augment::Augment;
/// use cluescope::report::PlanPicture;
/// # fn example(contrast: &cluescope::contrast::Contrast, people: &cluescope::corpus::Corpus) -> cluescope::Result<()> {
/// let plan = Augment::by_contrast(contrast).alpha(0.6).beta(0.05).plan(people)?;
/// PlanPicture::of(&plan).write("plan.html")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct PlanPicture {
    title: String,
    panels: Panels,
    /// Largest probability any token can have.
    cap: f64,
    guided: bool,
    /// Rank and probability, one line of the curve.
    curve: Vec<(f64, f64)>,
    options: String,
}

impl PlanPicture {
    /// All texts of `plan`.
    pub fn of(plan: &Plan) -> Self {
        let (alpha, beta) = (plan.alpha, plan.beta);
        let guided = plan.texts.iter().any(|text| !text.rank.is_empty());
        // Random dropout as released keeps with probability α, so that its cap is not α.
        let largest = plan.texts.iter().flat_map(|t| &t.probability).copied().fold(0.0f32, f32::max);
        let (title, cap) = if guided {
            (format!("Dropout by rank, \u{3b1} = {alpha}, \u{3b2} = {beta}"), alpha)
        } else {
            (format!("Random dropout, p = {}", short(largest)), f64::from(largest))
        };
        let protect: Vec<String> = plan.protect.iter().map(protected).collect();
        let mut options = format!("cluescope {} \u{b7} policy: {}", env!("CARGO_PKG_VERSION"), plan.policy);
        for (name, value) in [
            ("alpha", alpha.to_string()),
            ("beta", if guided { beta.to_string() } else { String::new() }),
            ("protected", protect.join(", ")),
        ] {
            if !value.is_empty() {
                options.push_str(&format!(" \u{b7} {name}: {value}"));
            }
        }
        PlanPicture {
            title,
            panels: Panels::new(plan.texts.iter().map(panel).collect()),
            cap: if cap > 0.0 { cap } else { 1.0 },
            guided,
            curve: curve(&plan.texts),
            options,
        }
    }

    /// Keeps the first `count` texts and says how many were left out.
    pub fn first(mut self, count: usize) -> Self {
        self.panels.first(count);
        self
    }

    /// Keeps the text with this id.
    pub fn only(mut self, id: &str) -> Self {
        self.panels.only(id);
        self
    }

    /// Probability over rank as SVG; `None` when no token has a rank.
    pub fn curve(&self) -> Option<String> {
        let chart = LineChart::new("Probability of being dropped, by rank")
            .x_label("rank (0: the clue most worth keeping)")
            .y_label("p(dropped)")
            .y_range(0.0, self.cap)
            .size(640, 280)
            .line("p(r) = \u{3b1} (1 \u{2212} exp(\u{2212}\u{3b2} r))", self.curve.iter().copied());
        if self.guided { chart.svg().ok() } else { None }
    }

    /// The texts as a part of a page, with its own style and script; needs no network.
    pub fn fragment(&self) -> String {
        let about = if self.guided {
            "The deeper a token, the likelier it is dropped from a copy; pale tokens are the clues that stay."
        } else {
            "Every token that is not protected is dropped with the same probability."
        };
        let mut out = format!(
            "<div class=\"cs\"><style>{STYLE}</style>\n<h2>{}</h2>\n<p>{about} {KEYS}</p>\n\
             <div class=\"scale\"><span>0: always kept</span>\n<span class=\"bar\" role=\"img\" aria-label=\"pale to blue\" \
             style=\"background:linear-gradient(90deg,transparent,var(--neg))\"></span>\n<span>p = {}</span></div>\n",
            escape(&self.title),
            short(self.cap as f32)
        );
        let note = |panel: &Panel, token: usize| format!("\ndropped with p = {:.3}", panel.value[token]);
        self.panels.html(Tone::Cool, Scale::Fixed(self.cap as f32), note, &mut out);
        out.push_str(&format!(
            "{BARE}<footer>{}</footer>\n<script>{SCRIPT}</script></div>\n",
            escape(&tame(&self.options))
        ));
        out
    }

    /// A whole page.
    pub fn html(&self) -> String {
        let curve = self.curve().map_or(String::new(), |svg| {
            format!("<div class=\"cs\"><div class=\"scroll\">{svg}</div></div>")
        });
        page(&self.title, &(self.fragment() + &curve))
    }

    /// Writes [`PlanPicture::html`].
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming the file.
    pub fn write(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        write_text(path, &self.html())
    }

    /// The texts with coloured backgrounds, as far as `colours` goes; what is likely dropped is deepest.
    pub fn terminal(&self, colours: Colours) -> String {
        let mut out = format!("{}\n", self.title);
        self.panels.terminal(Tone::Cool, Scale::Fixed(self.cap as f32), colours, &mut out);
        let legend = colours.paint(" dropped most often ", -1.0);
        out.push_str(&format!("\n0 {legend} p = {}\n", short(self.cap as f32)));
        out
    }
}

fn panel(text: &PlanText) -> Panel {
    Panel {
        id: text.document.id.clone(),
        text: text.document.text.clone(),
        offsets: text.offsets.clone(),
        value: text.probability.clone(),
        rank: text.rank.clone(),
        both: None,
        about: format!("{} tokens, {:.1} dropped on average", text.offsets.len(), text.expected_dropped()),
    }
}

/// Rank and probability of the longest text's tokens in order of rank; protected ones leave a gap.
fn curve(texts: &[PlanText]) -> Vec<(f64, f64)> {
    let Some(text) = texts.iter().max_by_key(|text| text.rank.len()) else { return Vec::new() };
    let mut points: Vec<(usize, f32)> =
        text.rank.iter().copied().zip(text.probability.iter().copied()).collect();
    points.sort_unstable_by_key(|point| point.0);
    let drawn = points.into_iter().filter(|&(rank, p)| rank == 0 || p > 0.0);
    drawn.map(|(rank, p)| (rank as f64, f64::from(p))).collect()
}

fn protected(protect: &Protect) -> String {
    match protect {
        Protect::Punctuation => "punctuation".into(),
        Protect::CommaAndStop => "comma and full stop".into(),
        Protect::Field(field) => format!("tokens of {field}"),
        Protect::Facts => "tokens of any fact".into(),
    }
}

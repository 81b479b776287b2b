//! A text coloured token by token: as a page, as part of a notebook, and in a terminal.
//!
//! Orange: the large model attends more; blue: the small one. A note on each token gives its rank, both
//! models' values, the difference and the probability with which dropout at the α and β shown deletes it.

use super::html::escape;
use super::panel::{Colours, KEYS, Panel, Panels, Tone};
use super::picture::{BARE, SCRIPT, STYLE, page, short, signed, signed_bar, title_name};
use crate::attention::{Attended, AttendedText};
use crate::augment::drop_probability;
use crate::contrast::{Contrast, ContrastText, rank_descending};
use crate::error::Result;
use crate::files::write_text;
use crate::provenance::Provenance;
use crate::text::tame;

/// Coloured texts, ready to be shown.
///
/// ```
/// use cluescope::report::{Colours, TextPicture};
/// # fn example(contrast: &cluescope::contrast::Contrast) -> cluescope::Result<()> {
/// TextPicture::of(contrast).dropout(0.6, 0.05).write("contrast.html")?;
/// print!("{}", TextPicture::of(contrast).first(1).terminal(Colours::of_stdout()));
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TextPicture {
    title: String,
    about: String,
    tone: Tone,
    panels: Panels,
    dropout: Option<(f64, f64)>,
    footer: String,
}

impl TextPicture {
    /// The texts of a contrast, coloured by signed difference.
    pub fn of(contrast: &Contrast) -> Self {
        let unit = if contrast.aligned { "share of the attention on text" } else { "attention" };
        Self::of_two(contrast, contrast.texts.iter().map(Panel::of_contrast).collect(), |large, small| {
            format!("Where {large} attends more than {small} ({unit}).")
        })
    }

    /// One probe of a contrast: what the token before `field` looks at in the large model more than in the
    /// small one. Texts without the field are left out.
    pub fn of_probe(contrast: &Contrast, field: &str) -> Self {
        let panels = contrast.texts.iter().filter_map(|text| {
            let probe = text.probe.get(field)?;
            let to = probe.position + 1;
            Some(Panel {
                id: text.id.clone(),
                text: text.text.clone(),
                offsets: text.offsets[..to].to_vec(),
                value: probe.difference.clone(),
                rank: rank_descending(&probe.difference),
                both: Some((probe.large.clone(), probe.small.clone())),
                about: tokens(to),
            })
        });
        Self::of_two(contrast, panels.collect(), |large, small| {
            format!("What the token before {field} attends to in {large} more than in {small}.")
        })
    }

    fn of_two(contrast: &Contrast, panels: Vec<Panel>, about: impl Fn(&str, &str) -> String) -> Self {
        let (large, small) = (title_name(&contrast.large), title_name(&contrast.small));
        TextPicture {
            title: format!("{large} against {small}"),
            about: about(large, small),
            tone: Tone::Signed,
            panels: Panels::new(panels),
            dropout: None,
            footer: footer(&contrast.provenance),
        }
    }

    /// The texts of one model, coloured by received attention.
    pub fn of_attention(attended: &Attended) -> Self {
        TextPicture {
            title: format!("Attention of {}", title_name(&attended.model)),
            about: "Attention each token receives from the tokens after it.".into(),
            tone: Tone::Warm,
            panels: Panels::new(attended.texts.iter().map(Panel::of_attention).collect()),
            dropout: None,
            footer: footer(&attended.provenance),
        }
    }

    /// Shows in the notes the probability `α · (1 − exp(−β · rank))` of being dropped (paper, section 4).
    pub fn dropout(mut self, alpha: f64, beta: f64) -> Self {
        self.dropout = Some((alpha, beta));
        self
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

    /// A part of a page, with its own style and script; needs no network.
    pub fn fragment(&self) -> String {
        let scale = self.panels.even_share();
        let mut out = format!(
            "<div class=\"cs\"><style>{STYLE}</style>\n<h2>{}</h2>\n<p>{} {KEYS}</p>\n",
            escape(&tame(&self.title)),
            escape(&tame(&self.about))
        );
        out.push_str(&self.legend());
        self.panels.html(self.tone, scale, |panel, token| self.note(panel, token), &mut out);
        out.push_str(&format!(
            "{BARE}<footer>{}</footer>\n<script>{SCRIPT}</script></div>\n",
            escape(&self.footer)
        ));
        out
    }

    /// A whole page.
    pub fn html(&self) -> String {
        page(&self.title, &self.fragment())
    }

    /// Writes [`TextPicture::html`].
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming the file.
    pub fn write(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        write_text(path, &self.html())
    }

    /// The texts with coloured backgrounds, as far as `colours` goes. Control characters of the texts are shown by their
    /// number, so a text cannot drive the terminal.
    pub fn terminal(&self, colours: Colours) -> String {
        let scale = self.panels.even_share();
        let mut out = format!("{}\n{}\n", tame(&self.title), tame(&self.about));
        self.panels.terminal(self.tone, scale, colours, &mut out);
        if self.tone == Tone::Signed {
            let (low, high) =
                (colours.paint(" small attends more ", -1.0), colours.paint(" large attends more ", 1.0));
            out.push_str(&format!("\n{low}0{high}\n"));
        } else {
            out.push_str(&format!("\n0{}\n", colours.paint(" attended most ", 1.0)));
        }
        out
    }

    fn legend(&self) -> String {
        let dropout = self.dropout.map_or(String::new(), |(alpha, beta)| {
            format!("<span>dropout: \u{3b1} = {alpha}, \u{3b2} = {beta}</span>")
        });
        if self.tone == Tone::Signed {
            format!(
                "<div class=\"scale\"><span>small attends more (blue)</span>\n\
                 {}\n<span>large attends more (orange, underlined)</span>\n{dropout}</div>\n",
                signed_bar()
            )
        } else {
            format!(
                "<div class=\"scale\"><span>0</span>\n<span class=\"bar\" role=\"img\" aria-label=\"pale to orange\" \
                 style=\"background:linear-gradient(90deg,transparent,var(--pos))\"></span>\n<span>attended most (orange)</span>\n{dropout}</div>\n"
            )
        }
    }

    fn note(&self, panel: &Panel, token: usize) -> String {
        let mut note = match &panel.both {
            Some((large, small)) => format!(
                "\nlarge {}, small {}\ndifference {}",
                short(large[token]),
                short(small[token]),
                signed(panel.value[token])
            ),
            None => format!("\nreceived {}", short(panel.value[token])),
        };
        if let Some((alpha, beta)) = self.dropout {
            let p = drop_probability(alpha, beta, panel.rank[token]);
            note.push_str(&format!("\ndropped with p = {p:.3}"));
        }
        note
    }
}

impl Panel {
    fn of_contrast(text: &ContrastText) -> Self {
        Panel {
            id: text.id.clone(),
            text: text.text.clone(),
            offsets: text.offsets.clone(),
            value: text.difference.clone(),
            rank: text.rank.clone(),
            both: Some((text.large.clone(), text.small.clone())),
            about: tokens(text.offsets.len()),
        }
    }

    fn of_attention(text: &AttendedText) -> Self {
        Panel {
            id: text.id.clone(),
            text: text.text.clone(),
            offsets: text.offsets.clone(),
            value: text.received.clone(),
            rank: rank_descending(&text.received),
            both: None,
            about: tokens(text.offsets.len()),
        }
    }
}

/// How many, in words.
fn tokens(count: usize) -> String {
    format!("{count} token{}", if count == 1 { "" } else { "s" })
}

/// One line that says where a picture came from.
pub(super) fn footer(provenance: &Provenance) -> String {
    let parts: Vec<String> =
        provenance.lines().iter().map(|(name, value)| format!("{name}: {value}")).collect();
    tame(&parts.join(" \u{b7} "))
}

//! A text coloured token by token: as a page, as part of a notebook, and in a terminal.
//!
//! Orange: the large model attends more; blue: the small one. A note on each token gives its rank, both
//! models' values, the difference and the probability with which dropout at the α and β shown deletes it.

use super::html::escape;
use super::picture::{SCRIPT, STYLE, full_colour, page, short, signed, tame, title_name, visible};
use crate::attention::{Attended, AttendedText};
use crate::contrast::{Contrast, ContrastText, rank_descending};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::provenance::Provenance;

/// Coloured texts, ready to be shown.
///
/// ```
/// use cluescope::report::TextPicture;
/// # fn example(contrast: &cluescope::contrast::Contrast) -> cluescope::Result<()> {
/// TextPicture::of(contrast).dropout(0.6, 0.05).write("contrast.html")?;
/// print!("{}", TextPicture::of(contrast).first(1).terminal());
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct TextPicture {
    title: String,
    about: String,
    signed: bool,
    panels: Vec<Panel>,
    left_out: usize,
    dropout: Option<(f64, f64)>,
    footer: String,
}

/// One text with a value for each token.
#[derive(Debug, Clone)]
struct Panel {
    id: String,
    text: String,
    offsets: Vec<(usize, usize)>,
    value: Vec<f32>,
    rank: Vec<usize>,
    /// Values of both models, for a contrast.
    both: Option<(Vec<f32>, Vec<f32>)>,
}

/// A stretch of text in one colour: one token, or several that share characters.
struct Piece {
    start: usize,
    end: usize,
    tokens: Vec<usize>,
}

impl TextPicture {
    /// The texts of a contrast, coloured by signed difference.
    pub fn of(contrast: &Contrast) -> Self {
        let (large, small) = (title_name(&contrast.large), title_name(&contrast.small));
        let unit = if contrast.aligned { "share of the attention on text" } else { "attention" };
        TextPicture {
            title: format!("{large} against {small}"),
            about: format!("Where {large} attends more than {small} ({unit})."),
            signed: true,
            panels: contrast.texts.iter().map(Panel::of_contrast).collect(),
            left_out: 0,
            dropout: None,
            footer: footer(&contrast.provenance),
        }
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
            })
        });
        let panels = panels.collect();
        TextPicture {
            about: format!(
                "What the token before {field} attends to in {} more than in {}.",
                title_name(&contrast.large),
                title_name(&contrast.small)
            ),
            panels,
            ..Self::of(&Contrast { texts: Vec::new(), ..contrast.clone() })
        }
    }

    /// The texts of one model, coloured by received attention.
    pub fn of_attention(attended: &Attended) -> Self {
        TextPicture {
            title: format!("Attention of {}", title_name(&attended.model)),
            about: "Attention each token receives from the tokens after it.".into(),
            signed: false,
            panels: attended.texts.iter().map(Panel::of_attention).collect(),
            left_out: 0,
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
        self.left_out += self.panels.len().saturating_sub(count);
        self.panels.truncate(count);
        self
    }

    /// Keeps the text with this id.
    pub fn only(mut self, id: &str) -> Self {
        self.panels.retain(|panel| panel.id == id);
        self
    }

    /// A part of a page, with its own style and script; needs no network.
    pub fn fragment(&self) -> String {
        let scale = self.scale();
        let mut out = format!(
            "<div class=\"cs\"><style>{STYLE}</style>\n<h2>{}</h2>\n<p>{} \
             Move over the text, or give it the focus and use the arrow keys: left and right by token, up and down by rank.</p>\n",
            escape(&tame(&self.title)),
            escape(&tame(&self.about))
        );
        out.push_str(&self.legend(scale));
        for (number, panel) in self.panels.iter().enumerate() {
            let open = if number == 0 { " open" } else { "" };
            out.push_str(&format!(
                "<details{open}><summary>{} <small>({} tokens)</small></summary>\n<div class=\"tx\" aria-label=\"Tokens of {}\">",
                escape(&tame(&panel.id)),
                panel.offsets.len(),
                escape(&tame(&panel.id))
            ));
            self.write_panel(panel, scale, &mut out);
            out.push_str("</div></details>\n");
        }
        if self.left_out > 0 {
            out.push_str(&format!(
                "<p>{} more texts are not shown here; write the picture to a file to see all.</p>\n",
                self.left_out
            ));
        }
        out.push_str(&format!(
            "<footer>{}</footer>\n<script>{SCRIPT}</script></div>\n",
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
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<std::path::Path>) -> Result<()> {
        let path = path.as_ref();
        write_atomic(path, |out| out.write_all(self.html().as_bytes()).map_err(Error::io(path)))
    }

    /// The texts with coloured backgrounds (24-bit ANSI sequences). Control characters of the texts are
    /// shown by their number, so a text cannot drive the terminal.
    pub fn terminal(&self) -> String {
        let scale = self.scale();
        let mut out = format!("{}\n{}\n", tame(&self.title), tame(&self.about));
        for panel in &self.panels {
            out.push_str(&format!("\n{} ({} tokens)\n", tame(&panel.id), panel.offsets.len()));
            let characters: Vec<char> = panel.text.chars().collect();
            let mut at = 0;
            for piece in panel.pieces(characters.len()) {
                out.push_str(&tame(&characters[at..piece.start].iter().collect::<String>()));
                let value = panel.strongest(&piece);
                let weight = (value / scale).clamp(-1.0, 1.0);
                let text = tame(&characters[piece.start..piece.end].iter().collect::<String>());
                out.push_str(&painted(&text, weight));
                at = piece.end;
            }
            out.push_str(&tame(&characters[at..].iter().collect::<String>()));
            out.push('\n');
        }
        if self.left_out > 0 {
            out.push_str(&format!("\n{} more texts\n", self.left_out));
        }
        let (low, high) = (painted(" small attends more ", -1.0), painted(" large attends more ", 1.0));
        let bound = short(scale);
        if self.signed {
            out.push_str(&format!("\n-{bound} {low} 0 {high} +{bound}\n"));
        } else {
            out.push_str(&format!("\n0 {} {bound}\n", painted(" attended most ", 1.0)));
        }
        out
    }

    fn scale(&self) -> f32 {
        let sizes = self
            .panels
            .iter()
            .flat_map(|p| p.offsets.iter().zip(&p.value).filter(|(o, _)| o.1 > o.0).map(|(_, v)| v.abs()));
        full_colour(sizes.collect())
    }

    fn legend(&self, scale: f32) -> String {
        let bound = short(scale);
        let dropout = self.dropout.map_or(String::new(), |(alpha, beta)| {
            format!("<span>dropout: \u{3b1} = {alpha}, \u{3b2} = {beta}</span>")
        });
        if self.signed {
            format!(
                "<div class=\"scale\"><span>\u{2212}{bound} and below: small attends more</span>\
                 <span class=\"bar\" role=\"img\" aria-label=\"blue to orange\" style=\"background:linear-gradient(90deg,var(--neg),transparent,var(--pos))\"></span>\
                 <span>+{bound} and above: large attends more (underlined)</span>{dropout}</div>\n"
            )
        } else {
            format!(
                "<div class=\"scale\"><span>0</span><span class=\"bar\" role=\"img\" aria-label=\"pale to orange\" \
                 style=\"background:linear-gradient(90deg,transparent,var(--pos))\"></span><span>{bound} and above</span>{dropout}</div>\n"
            )
        }
    }

    fn write_panel(&self, panel: &Panel, scale: f32, out: &mut String) {
        let characters: Vec<char> = panel.text.chars().collect();
        let slice = |from: usize, to: usize| escape(&characters[from..to].iter().collect::<String>());
        let mut at = 0;
        for piece in panel.pieces(characters.len()) {
            out.push_str(&slice(at, piece.start));
            let value = panel.strongest(&piece);
            let weight = (value.abs() / scale).min(1.0) * 100.0;
            let class = if value < 0.0 { "n" } else { "p" };
            let notes: Vec<String> = piece.tokens.iter().map(|&t| self.note(panel, t, &characters)).collect();
            let rank = piece.tokens.iter().map(|&t| panel.rank[t]).min().unwrap_or(0);
            out.push_str(&format!(
                "<b class=\"{class}\" style=\"--w:{weight:.0}\" data-r=\"{rank}\" title=\"{}\">{}</b>",
                escape(&notes.join("\n\n")),
                slice(piece.start, piece.end)
            ));
            at = piece.end;
        }
        out.push_str(&slice(at, characters.len()));
    }

    fn note(&self, panel: &Panel, token: usize, characters: &[char]) -> String {
        let (start, end) = panel.offsets[token];
        let text: String = characters[start..end].iter().collect();
        let rank = panel.rank[token];
        let mut note = format!(
            "\u{201c}{}\u{201d}\ntoken {token}, rank {rank} of {}",
            visible(&text),
            panel.offsets.len()
        );
        match &panel.both {
            Some((large, small)) => note.push_str(&format!(
                "\nlarge {}, small {}\ndifference {}",
                short(large[token]),
                short(small[token]),
                signed(panel.value[token])
            )),
            None => note.push_str(&format!("\nreceived {}", short(panel.value[token]))),
        }
        if let Some((alpha, beta)) = self.dropout {
            let p = alpha * (1.0 - (-beta * rank as f64).exp());
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
        }
    }

    /// The value of largest size among a piece's tokens.
    fn strongest(&self, piece: &Piece) -> f32 {
        let values = piece.tokens.iter().map(|&t| self.value[t]);
        values.max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0)
    }

    /// Tokens in text order, those that share characters joined.
    fn pieces(&self, characters: usize) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        for (token, &(start, end)) in self.offsets.iter().enumerate() {
            let end = end.min(characters);
            if end <= start {
                continue;
            }
            match pieces.last_mut() {
                Some(last) if start < last.end => {
                    last.end = last.end.max(end);
                    last.tokens.push(token);
                }
                _ => pieces.push(Piece { start, end, tokens: vec![token] }),
            }
        }
        pieces
    }
}

/// One line that says where a picture came from.
pub(super) fn footer(provenance: &Provenance) -> String {
    let list = |items: &std::collections::BTreeMap<String, String>| {
        items
            .iter()
            .filter(|(_, v)| !v.is_empty())
            .map(|(k, v)| format!("{k}: {v}"))
            .collect::<Vec<_>>()
            .join(" \u{b7} ")
    };
    format!(
        "cluescope {} \u{b7} {} \u{b7} models {} \u{b7} {}",
        provenance.cluescope,
        provenance.command,
        list(&provenance.models),
        list(&provenance.options)
    )
}

/// `text` on orange (positive) or blue, deeper with the weight's size; black letters throughout.
fn painted(text: &str, weight: f32) -> String {
    if weight.abs() < 0.02 {
        return text.into();
    }
    let full = if weight > 0.0 { [240.0, 154.0, 62.0] } else { [95.0, 168.0, 220.0] };
    let [r, g, b] = full.map(|c: f32| (255.0 + (c - 255.0) * weight.abs()).round() as u8);
    // The colour ends before a line break, or the terminal would paint to its edge.
    let lines: Vec<String> =
        text.split('\n')
            .map(|line| {
                if line.is_empty() {
                    String::new()
                } else {
                    format!("\x1b[30;48;2;{r};{g};{b}m{line}\x1b[0m")
                }
            })
            .collect();
    lines.join("\n")
}

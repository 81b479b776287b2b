//! One text whose tokens carry a number each: as coloured HTML and on a terminal.

use super::html::escape;
use super::picture::{full_colour, short};
use crate::text::tame;

/// One text with a value for each token.
#[derive(Debug, Clone)]
pub(super) struct Panel {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) offsets: Vec<(usize, usize)>,
    pub(super) value: Vec<f32>,
    pub(super) rank: Vec<usize>,
    /// Values of the large and of the small model, for a contrast.
    pub(super) both: Option<(Vec<f32>, Vec<f32>)>,
    /// A remark beside the id, such as the number of tokens.
    pub(super) about: String,
}

/// The texts of a picture, and how many more there are.
#[derive(Debug, Clone)]
pub(super) struct Panels {
    pub(super) shown: Vec<Panel>,
    left_out: usize,
}

impl Panels {
    pub(super) fn new(shown: Vec<Panel>) -> Self {
        Panels { shown, left_out: 0 }
    }

    /// Keeps the first `count`.
    pub(super) fn first(&mut self, count: usize) {
        self.left_out += self.shown.len().saturating_sub(count);
        self.shown.truncate(count);
    }

    /// Keeps the one with this id.
    pub(super) fn only(&mut self, id: &str) {
        self.shown.retain(|panel| panel.id == id);
    }

    /// All texts, the first unfolded; `note` says what a token's note adds to its words, number and rank.
    pub(super) fn html(
        &self,
        tone: Tone,
        scale: Scale,
        note: impl Fn(&Panel, usize) -> String,
        out: &mut String,
    ) {
        for (number, panel) in self.shown.iter().enumerate() {
            panel.html(tone, scale, number == 0, &|token| note(panel, token), out);
        }
        if self.left_out > 0 {
            out.push_str(&format!(
                "<p>{} more texts are not shown here; write the picture to a file to see all.</p>\n",
                self.left_out
            ));
        }
    }

    /// All texts for a terminal.
    pub(super) fn terminal(&self, tone: Tone, scale: Scale, colours: Colours, out: &mut String) {
        for panel in &self.shown {
            panel.terminal(tone, scale, colours, out);
        }
        if self.left_out > 0 {
            out.push_str(&format!("\n{} more texts\n", self.left_out));
        }
    }

    /// The scale of attention for all texts, start tokens left out.
    pub(super) fn even_share(&self) -> Scale {
        let sizes = self.shown.iter().flat_map(|panel| {
            let values = panel.offsets.iter().zip(&panel.value).filter(|(o, _)| o.1 > o.0);
            values.map(|(_, v)| v.abs() * panel.offsets.len() as f32)
        });
        Scale::EvenShare(full_colour(sizes.collect()))
    }
}

/// Which value has full colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// The same in every text.
    Fixed(f32),
    /// So many times what each token of a text would have if all had the same: attention is divided among the tokens, so
    /// texts of ten and of two thousand tokens could not share one value.
    EvenShare(f32),
}

impl Scale {
    /// The value of full colour in a text of `tokens` tokens.
    fn of(self, tokens: usize) -> f32 {
        match self {
            Scale::Fixed(value) => value,
            Scale::EvenShare(times) => times / tokens.max(1) as f32,
        }
    }
}

/// What the sign and size of a value look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Orange above zero, blue below.
    Signed,
    /// Orange, deeper with the value.
    Warm,
    /// Blue, deeper with the value.
    Cool,
}

impl Tone {
    /// `value` in units of full colour, −1 (blue) to 1 (orange).
    fn weight(self, value: f32, scale: f32) -> f32 {
        let weight = (value / scale).clamp(-1.0, 1.0);
        match self {
            Tone::Signed => weight,
            Tone::Warm => weight.max(0.0),
            Tone::Cool => -weight.max(0.0),
        }
    }
}

/// What a terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Colours {
    /// Text alone: `{+token+}` stands for at least half of full orange, `[-token-]` for at least half of full blue.
    None,
    /// The 256 colours of nearly every terminal.
    Indexed,
    /// 24-bit colours.
    True,
}

impl Colours {
    /// What standard output can show: nothing in a pipe, or when `NO_COLOR` is set or `TERM` is `dumb`; 24 bits when
    /// `COLORTERM` says so; otherwise 256 colours.
    pub fn of_stdout() -> Self {
        let set = |name: &str| std::env::var(name).unwrap_or_default();
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self::chosen(terminal, &set("NO_COLOR"), &set("TERM"), &set("COLORTERM"))
    }

    fn chosen(terminal: bool, no_color: &str, term: &str, colorterm: &str) -> Self {
        match colorterm {
            _ if !terminal || !no_color.is_empty() || term == "dumb" => Colours::None,
            "truecolor" | "24bit" => Colours::True,
            _ => Colours::Indexed,
        }
    }

    /// `text` on orange (positive) or blue, deeper with the weight's size; black letters throughout.
    pub(super) fn paint(self, text: &str, weight: f32) -> String {
        // The colour ends before a line break, or the terminal would paint to its edge.
        let by_line = |paint: &dyn Fn(&str) -> String| {
            let lines =
                text.split('\n').map(|line| if line.is_empty() { String::new() } else { paint(line) });
            lines.collect::<Vec<_>>().join("\n")
        };
        match self {
            Colours::None if weight.abs() < 0.5 => text.into(),
            Colours::None => by_line(&|line| {
                // The marks stand at the letters, not at the blank before them.
                let letters = line.trim_start();
                let blanks = &line[..line.len() - letters.len()];
                let (open, close) = if weight > 0.0 { ("{+", "+}") } else { ("[-", "-]") };
                format!("{blanks}{open}{letters}{close}")
            }),
            _ if weight.abs() < 0.02 => text.into(),
            Colours::True => {
                let [r, g, b] = on_white(weight);
                by_line(&|line| format!("\x1b[30;48;2;{r};{g};{b}m{line}\x1b[0m"))
            }
            Colours::Indexed => {
                // Of the 6 × 6 × 6 cube, from white to orange and to blue.
                let steps = if weight > 0.0 { [230, 223, 216, 215] } else { [195, 153, 117, 75] };
                let colour = steps[((weight.abs() * 4.0) as usize).min(3)];
                by_line(&|line| format!("\x1b[30;48;5;{colour}m{line}\x1b[0m"))
            }
        }
    }
}

/// Orange (positive) or blue, mixed with white by the weight's size.
fn on_white(weight: f32) -> [u8; 3] {
    let full = if weight > 0.0 { [240.0, 154.0, 62.0] } else { [95.0, 168.0, 220.0] };
    full.map(|c: f32| (255.0 + (c - 255.0) * weight.abs()).round() as u8)
}

/// The element that still tells strong colours apart where a host takes all styles away.
fn bare_tag(weight: f32) -> &'static str {
    match weight {
        w if w >= 0.5 => "b",
        w if w <= -0.5 => "i",
        _ => "span",
    }
}

/// Colours that survive where style sheets are taken away; the picture's own style overrides them.
fn bare_colour(weight: f32) -> String {
    if weight.abs() < 0.02 {
        return String::new();
    }
    let [r, g, b] = on_white(weight);
    format!(";background-color:#{r:02x}{g:02x}{b:02x};color:#1b1f24")
}

/// A stretch of text in one colour: one token, or several that share characters.
struct Piece {
    start: usize,
    end: usize,
    tokens: Vec<usize>,
}

/// What the keys of a picture of texts do, for its introduction.
pub(super) const KEYS: &str = "Move over the text, or give it the focus and use the arrow keys: left and right by token, up and down by rank.";

impl Panel {
    /// A text whose tokens get their values from a page's script.
    pub(super) fn without_values(id: &str, text: &str, offsets: &[(usize, usize)]) -> Self {
        Panel {
            id: id.into(),
            text: text.into(),
            offsets: offsets.to_vec(),
            value: vec![0.0; offsets.len()],
            rank: Vec::new(),
            both: None,
            about: String::new(),
        }
    }

    /// The text under its id, folded away unless `open`; `note` says what a token's note adds to its words, number and
    /// rank.
    fn html(&self, tone: Tone, scale: Scale, open: bool, note: &dyn Fn(usize) -> String, out: &mut String) {
        out.push_str(&format!(
            "<details{}><summary>{} <small>({})</small></summary>\n",
            if open { " open" } else { "" },
            escape(&tame(&self.id)),
            escape(&self.about(scale))
        ));
        self.listbox(tone, scale, note, out);
        out.push_str("</details>\n");
    }

    /// The text as a list of tokens that the keyboard and a screen reader can go through; returns the tokens of each
    /// entry.
    pub(super) fn listbox(
        &self,
        tone: Tone,
        scale: Scale,
        note: &dyn Fn(usize) -> String,
        out: &mut String,
    ) -> Vec<Vec<usize>> {
        let scale = scale.of(self.offsets.len());
        out.push_str(&format!(
            "<div class=\"tx\" role=\"listbox\" tabindex=\"0\" aria-label=\"Tokens of {}\">",
            escape(&tame(&self.id))
        ));
        let mut entries = Vec::new();
        let characters: Vec<char> = self.text.chars().collect();
        let slice = |from: usize, to: usize| escape(&characters[from..to].iter().collect::<String>());
        let mut at = 0;
        for piece in self.pieces(characters.len()) {
            out.push_str(&slice(at, piece.start));
            let weight = tone.weight(self.strongest(&piece), scale);
            let class = if weight < 0.0 { "n" } else { "p" };
            let tag = bare_tag(weight);
            let notes: Vec<String> =
                piece.tokens.iter().map(|&t| self.head(t, &characters) + &note(t)).collect();
            let rank = piece.tokens.iter().filter_map(|&t| self.rank.get(t)).min();
            let rank = rank.map_or(String::new(), |rank| format!(" data-r=\"{rank}\""));
            out.push_str(&format!(
                "<{tag} role=\"option\" class=\"t {class}\" style=\"--w:{:.0}{}\"{rank} title=\"{}\">{}</{tag}>",
                weight.abs() * 100.0,
                bare_colour(weight),
                escape(&notes.join("\n\n")),
                slice(piece.start, piece.end)
            ));
            at = piece.end;
            entries.push(piece.tokens);
        }
        out.push_str(&slice(at, characters.len()));
        out.push_str("</div>\n");
        entries
    }

    /// The text under its id. Control characters are shown by their number, so a text cannot drive the terminal.
    fn terminal(&self, tone: Tone, scale: Scale, colours: Colours, out: &mut String) {
        out.push_str(&format!("\n{} ({})\n", tame(&self.id), self.about(scale)));
        let scale = scale.of(self.offsets.len());
        let characters: Vec<char> = self.text.chars().collect();
        let mut at = 0;
        for piece in self.pieces(characters.len()) {
            out.push_str(&tame(&characters[at..piece.start].iter().collect::<String>()));
            let text = tame(&characters[piece.start..piece.end].iter().collect::<String>());
            out.push_str(&colours.paint(&text, tone.weight(self.strongest(&piece), scale)));
            at = piece.end;
        }
        out.push_str(&tame(&characters[at..].iter().collect::<String>()));
        out.push('\n');
    }

    /// The remark beside the id, with the value of full colour where each text has its own.
    fn about(&self, scale: Scale) -> String {
        match scale {
            Scale::Fixed(_) => self.about.clone(),
            Scale::EvenShare(_) => {
                format!("{}, full colour from {} on", self.about, short(scale.of(self.offsets.len())))
            }
        }
    }

    /// The first lines of a token's note.
    fn head(&self, token: usize, characters: &[char]) -> String {
        let (start, end) = self.offsets[token];
        let text: String = characters[start..end.min(characters.len())].iter().collect();
        let rank =
            self.rank.get(token).map_or(String::new(), |r| format!(", rank {r} of {}", self.rank.len()));
        format!("\u{201c}{}\u{201d}\ntoken {token}{rank}", super::picture::visible(&text))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_what_the_terminal_can() {
        for (terminal, no_color, term, colorterm, want) in [
            (false, "", "xterm", "truecolor", Colours::None),
            (true, "1", "xterm", "truecolor", Colours::None),
            (true, "", "dumb", "", Colours::None),
            (true, "", "xterm-256color", "24bit", Colours::True),
            (true, "", "xterm-256color", "", Colours::Indexed),
        ] {
            assert_eq!(Colours::chosen(terminal, no_color, term, colorterm), want, "{term} {colorterm}");
        }
    }

    #[test]
    fn paint_ends_at_the_line_and_marks_stand_at_the_letters() {
        assert_eq!(Colours::None.paint(" Rome\n in", 0.7), " {+Rome+}\n {+in+}");
        assert_eq!(Colours::None.paint(" was", -1.0), " [-was-]");
        assert_eq!(Colours::None.paint(" was", 0.4), " was");
        assert_eq!(
            Colours::Indexed.paint("a\nb", 1.0),
            "\x1b[30;48;5;215ma\x1b[0m\n\x1b[30;48;5;215mb\x1b[0m"
        );
        assert_eq!(Colours::Indexed.paint("a", -0.3), "\x1b[30;48;5;153ma\x1b[0m");
        assert_eq!(Colours::True.paint("a", 1.0), "\x1b[30;48;2;240;154;62ma\x1b[0m");
        assert_eq!(Colours::True.paint("a", 0.01), "a");
    }

    #[test]
    fn strong_colours_survive_without_styles() {
        assert_eq!([0.5, -0.5, 0.49, 0.0].map(bare_tag), ["b", "i", "span", "span"]);
        assert_eq!(bare_colour(1.0), ";background-color:#f09a3e;color:#1b1f24");
        assert_eq!(bare_colour(-1.0), ";background-color:#5fa8dc;color:#1b1f24");
        assert_eq!(bare_colour(0.01), "");
    }

    #[test]
    fn a_long_text_does_not_decide_how_a_short_one_is_coloured() {
        let text = |tokens: usize| {
            let offsets: Vec<(usize, usize)> = (0..tokens).map(|i| (i, i + 1)).collect();
            let mut panel = Panel::without_values("a", &"x".repeat(tokens), &offsets);
            panel.value = vec![0.5 / tokens as f32; tokens];
            panel
        };
        let scale = Panels::new(vec![text(10), text(2000)]).even_share();
        assert!((scale.of(10) - 0.05).abs() < 1e-6 && (scale.of(2000) - 0.00025).abs() < 1e-8, "{scale:?}");
        assert_eq!(Scale::Fixed(0.6).of(10), Scale::Fixed(0.6).of(2000));
    }

    #[test]
    fn tones_paint_to_their_side() {
        assert_eq!(Tone::Signed.weight(-3.0, 2.0), -1.0);
        assert_eq!((Tone::Warm.weight(1.0, 2.0), Tone::Warm.weight(-1.0, 2.0)), (0.5, 0.0));
        assert_eq!(Tone::Cool.weight(1.0, 2.0), -0.5);
    }
}

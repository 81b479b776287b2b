//! What all figures share: title, legend, axes, and the room their texts need.
//!
//! The SVG is shown with whatever sans-serif font the reader has, so text widths can only be estimated; the estimate is wide
//! enough for DejaVu Sans, the widest of the usual ones.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::color;
use crate::error::{Error, Result};
use crate::report::escape;
use crate::text::hidden;

/// Font sizes in pixels.
pub(super) const SMALL: f64 = 12.0;
const TITLE: f64 = 15.0;
const LINE: i32 = 16;
const MARGIN: i32 = 12;
/// Characters after which a legend's name is cut.
const NAME_LENGTH: usize = 48;

/// What every figure is described by.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Frame {
    pub(super) title: String,
    pub(super) x_label: String,
    pub(super) y_label: String,
    pub(super) size: (u32, u32),
    pub(super) y_range: Option<(f64, f64)>,
}

impl Frame {
    pub(super) fn new(title: String) -> Self {
        Frame { title, x_label: String::new(), y_label: String::new(), size: (760, 420), y_range: None }
    }

    /// The error of a figure that cannot be drawn.
    pub(super) fn fail(&self, why: impl std::fmt::Display) -> Error {
        Error::Stopped(format!("figure `{}`: {why}", self.title))
    }

    /// Draws through `draw` and finishes the SVG text; `description` says what a reader who does not see it should know.
    pub(super) fn svg(&self, description: &str, draw: impl FnOnce(&Area) -> Drawn) -> Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, self.size).into_drawing_area();
            draw(&area).and_then(|()| area.present().map_err(Into::into)).map_err(|e| self.fail(e))?;
        }
        let (width, height) = self.size;
        let opening = format!("<svg width=\"{width}\" height=\"{height}\"");
        let head = format!(
            "<svg role=\"img\" aria-label=\"{}\" width=\"{width}\" height=\"{height}\" \
             style=\"max-width:100%;height:auto\"",
            escape(&format!("{}. {description}", self.title))
        );
        // Black stands for the page's own text colour.
        Ok(text.replacen(&opening, &head, 1).replace("\"#000000\"", "\"currentColor\""))
    }
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The rectangle of the data within a figure, in pixels, and the range of values it shows.
pub(super) struct Plane {
    pub(super) left: i32,
    pub(super) right: i32,
    pub(super) top: i32,
    pub(super) bottom: i32,
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Plane {
    pub(super) fn px(&self, x: f64) -> i32 {
        let share = (x - self.x.0) / (self.x.1 - self.x.0);
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }

    pub(super) fn py(&self, y: f64) -> i32 {
        let share = (y - self.y.0) / (self.y.1 - self.y.0);
        self.bottom - (share * f64::from(self.bottom - self.top)).round() as i32
    }
}

/// `text` at `at`, anchored as said, `size` pixels high.
pub(super) fn write(
    area: &Area,
    text: &str,
    at: (i32, i32),
    size: f64,
    (h, v): (HPos, VPos),
    bold: bool,
) -> Drawn {
    // plotters divides by 1.24 when it writes SVG.
    let font = FontDesc::from(("sans-serif", size * 1.24));
    let font = if bold { font.style(FontStyle::Bold) } else { font };
    let style = TextStyle::from(font).color(&BLACK).pos(Pos::new(h, v));
    // Control characters have no place in XML, and a label is read as it is written.
    let clean: String = text.chars().map(|c| if hidden(c) { '\u{fffd}' } else { c }).collect();
    area.draw(&Text::new(clean, at, style))?;
    Ok(())
}

/// Estimated width of `text` in pixels, rather too wide than too narrow.
pub(super) fn text_width(text: &str, size: f64) -> i32 {
    let em: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '|' | '\'' | ' ' | 'f' | 't' | 'r' | '('
            | ')' => 0.42,
            'm' | 'w' | 'M' | 'W' | '%' | '@' => 1.0,
            c if c.is_ascii_uppercase() => 0.75,
            c if c.is_ascii() || ('\u{a0}'..'\u{530}').contains(&c) => 0.64,
            _ => 1.05,
        })
        .sum();
    (em * size).ceil() as i32
}

/// `text` on at most `lines` lines of `width` pixels, broken at blanks; what does not fit ends in `…`.
pub(super) fn wrap(text: &str, width: i32, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let last = out.last_mut().map(std::mem::take).unwrap_or_default();
        let longer = if last.is_empty() { word.to_string() } else { format!("{last} {word}") };
        if last.is_empty() || text_width(&longer, SMALL) <= width {
            out.pop();
            out.push(longer);
        } else {
            out.pop();
            out.extend([last, word.to_string()]);
        }
    }
    let cut = out.len() > lines;
    out.truncate(lines);
    let count = out.len();
    for (i, line) in out.iter_mut().enumerate() {
        if text_width(line, SMALL) > width || (cut && i + 1 == count) {
            while !line.is_empty() && text_width(&format!("{line}…"), SMALL) > width {
                line.pop();
            }
            *line = format!("{}…", line.trim_end());
        }
    }
    out
}

/// How a series looks in the legend.
#[derive(Clone, Copy)]
pub(super) enum Key {
    Box,
    Marker,
}

/// Draws title and legend; returns the first free pixel row.
pub(super) fn head(
    area: &Area,
    frame: &Frame,
    names: &[String],
    key: Key,
) -> std::result::Result<i32, Box<dyn std::error::Error + Send + Sync>> {
    let width = frame.size.0 as i32;
    let mut y = MARGIN;
    // The title is bold and larger than what `wrap` measures with.
    let room = (f64::from(width - 2 * MARGIN) * SMALL / (TITLE * 1.1)) as i32;
    for line in wrap(&frame.title, room, 2) {
        write(area, &line, (MARGIN, y), TITLE, (HPos::Left, VPos::Top), true)?;
        y += 20;
    }
    if names.len() > 1 {
        y += 6;
        let mut x = MARGIN;
        for (i, name) in names.iter().enumerate() {
            let name = shorten(name, NAME_LENGTH);
            let needed = 18 + text_width(&name, SMALL) + 14;
            if x > MARGIN && x + needed > width - MARGIN {
                x = MARGIN;
                y += LINE + 2;
            }
            match key {
                Key::Box => {
                    area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], color(i).filled()))?;
                }
                Key::Marker => {
                    area.draw(&PathElement::new([(x, y + 6), (x + 12, y + 6)], color(i).stroke_width(2)))?;
                    marker(area, i, (x + 6, y + 6))?;
                }
            }
            write(area, &name, (x + 18, y + 6), SMALL, (HPos::Left, VPos::Center), false)?;
            x += needed;
        }
        y += LINE + 2;
    }
    Ok(y + 4)
}

fn shorten(name: &str, length: usize) -> String {
    if name.chars().count() <= length {
        return name.to_string();
    }
    name.chars().take(length - 1).chain(['…']).collect()
}

/// The `index`th series' marker, about 7 pixels wide.
pub(super) fn marker(area: &Area, index: usize, (x, y): (i32, i32)) -> Drawn {
    let fill = color(index).filled();
    match index % 5 {
        0 => area.draw(&Circle::new((x, y), 4, fill))?,
        1 => area.draw(&Rectangle::new([(x - 3, y - 3), (x + 4, y + 4)], fill))?,
        2 => area.draw(&Polygon::new([(x, y - 5), (x + 5, y + 4), (x - 5, y + 4)], fill))?,
        3 => area.draw(&Polygon::new([(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)], fill))?,
        _ => area.draw(&Polygon::new([(x, y + 5), (x + 5, y - 4), (x - 5, y - 4)], fill))?,
    }
    Ok(())
}

/// The value axis with its grid lines and label, and room below for the other axis; returns the plane.
/// `bottom` is what the labels below the plane need, `x` the range across.
pub(super) fn value_axis(
    area: &Area,
    frame: &Frame,
    top: i32,
    bottom: i32,
    x: (f64, f64),
    values: (f64, f64),
) -> std::result::Result<Plane, Box<dyn std::error::Error + Send + Sync>> {
    let (low, high) = frame.y_range.unwrap_or(values);
    let mut marks = ticks(low, high, 6);
    let y = if frame.y_range.is_some() {
        // Round numbers beyond a fixed range would stand outside the plane.
        marks.retain(|mark| within(*mark, low, high));
        (low, high)
    } else {
        (low.min(marks[0]), high.max(marks[marks.len() - 1]))
    };
    let labels: Vec<String> = marks.iter().map(|&m| tick_label(m, &marks)).collect();
    let widest = labels.iter().map(|l| text_width(l, SMALL)).max().unwrap_or(0);
    let mut top = top;
    if !frame.y_label.is_empty() {
        // Above the axis and upright: easier to read than a rotated label.
        write(area, &frame.y_label, (MARGIN, top), SMALL, (HPos::Left, VPos::Top), false)?;
        top += LINE;
    }
    let axis_label = if frame.x_label.is_empty() { 0 } else { LINE + 4 };
    let plane = Plane {
        left: MARGIN + widest + 8,
        right: frame.size.0 as i32 - MARGIN - 8,
        top: top + 8,
        bottom: frame.size.1 as i32 - MARGIN - bottom - axis_label,
        x,
        y,
    };
    if plane.bottom - plane.top < 40 || plane.right - plane.left < 40 {
        return Err("no room is left for the data; make the figure larger or its labels shorter".into());
    }
    for (mark, label) in marks.iter().zip(&labels) {
        let at = plane.py(*mark);
        area.draw(&PathElement::new([(plane.left, at), (plane.right, at)], BLACK.mix(0.15)))?;
        write(area, label, (plane.left - 6, at), SMALL, (HPos::Right, VPos::Center), false)?;
    }
    if !frame.x_label.is_empty() {
        let middle = (plane.left + plane.right) / 2;
        let at = (middle, frame.size.1 as i32 - MARGIN);
        write(area, &frame.x_label, at, SMALL, (HPos::Center, VPos::Bottom), false)?;
    }
    Ok(plane)
}

/// Names below a plane cut into equal parts, wrapped to their width. Returns the lines each needs.
pub(super) fn category_lines(names: &[String], width: i32, lines: usize) -> Vec<Vec<String>> {
    let room = (f64::from(width) / names.len().max(1) as f64) as i32 - 6;
    names.iter().map(|n| wrap(n, room.max(14), lines)).collect()
}

/// Draws what [`category_lines`] made.
pub(super) fn categories(area: &Area, plane: &Plane, names: &[Vec<String>]) -> Drawn {
    let each = f64::from(plane.right - plane.left) / names.len() as f64;
    for (i, lines) in names.iter().enumerate() {
        let x = plane.left + ((i as f64 + 0.5) * each) as i32;
        for (j, line) in lines.iter().enumerate() {
            let y = plane.bottom + 6 + LINE * j as i32;
            write(area, line, (x, y), SMALL, (HPos::Center, VPos::Top), false)?;
        }
    }
    Ok(())
}

/// The room that wrapped names need.
pub(super) fn lines_height(names: &[Vec<String>]) -> i32 {
    6 + LINE * names.iter().map(Vec::len).max().unwrap_or(0) as i32
}

/// Round numbers from at most `low` to at least `high`, about `count` of them.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = if high > low { high - low } else { high.abs().max(1.0) };
    let rough = span / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step + 1e-9).floor();
    let last = (high / step - 1e-9).ceil().max(first + 1.0);
    // Multiples of the step, not sums: 0.3 stays 0.3. Adding zero turns -0 into 0.
    (0..=(last - first) as usize).map(|i| (first + i as f64) * step + 0.0).collect()
}

/// Whether `mark` lies in the range, up to rounding.
fn within(mark: f64, low: f64, high: f64) -> bool {
    let slack = (high - low) * 1e-9;
    (low - slack..=high + slack).contains(&mark)
}

/// A tick's number with the decimals its neighbours need.
pub(super) fn tick_label(mark: f64, marks: &[f64]) -> String {
    let step = marks.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let step = if step.is_finite() { step } else { mark.abs().max(1.0) };
    if mark.abs() >= 1e7 || step < 1e-6 {
        return format!("{mark:e}");
    }
    let places = (0..8).find(|&p| {
        let scaled = step * 10f64.powi(p);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.max(1.0)
    });
    let text = format!("{mark:.*}", places.unwrap_or(8) as usize);
    // The typographic minus is as wide as a figure; a hyphen is easily overlooked.
    text.replace('-', "\u{2212}")
}

/// The smallest range that holds `values`; with `zero` it includes 0. `None` when no value is finite.
pub(super) fn range(values: impl IntoIterator<Item = f64>, zero: bool) -> Option<(f64, f64)> {
    let start = if zero { Some((0.0f64, 0.0f64)) } else { None };
    let mut any = false;
    let range = values.into_iter().filter(|v| v.is_finite()).fold(start, |range, v| {
        any = true;
        Some(range.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
    });
    range.filter(|_| any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_range_keeps_its_ticks_inside() {
        let marks: Vec<f64> = ticks(0.0, 0.7, 6).into_iter().filter(|m| within(*m, 0.0, 0.7)).collect();
        assert_eq!(marks, [0.0, 0.2, 0.4, 0.6000000000000001]);
        assert!(within(0.6000000000000001, 0.0, 0.6));
    }

    #[test]
    fn ticks_are_round_and_enclose_the_values() {
        for (low, high) in
            [(0.0, 1.0), (0.0, 0.03), (-7.3, 0.0), (12.0, 12.0), (0.0, 123456.0), (-1e-4, 2e-4)]
        {
            let marks = ticks(low, high, 6);
            assert!(marks[0] <= low && *marks.last().unwrap() >= high, "{low} {high}: {marks:?}");
            assert!((2..=9).contains(&marks.len()), "{low} {high}: {marks:?}");
        }
        let marks = ticks(0.0, 1.0, 6);
        let labels: Vec<String> = marks.iter().map(|&m| tick_label(m, &marks)).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }

    #[test]
    fn long_names_wrap_and_end_in_an_ellipsis() {
        assert_eq!(wrap("attention difference", 90, 2), ["attention", "difference"]);
        let cut = wrap("a name that goes on and on and on", 60, 2);
        assert_eq!(cut.len(), 2);
        assert!(cut[1].ends_with('…') && cut.iter().all(|l| text_width(l, SMALL) <= 60), "{cut:?}");
        assert_eq!(wrap("", 60, 2), [""]);
    }
}

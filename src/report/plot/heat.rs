//! A table of numbers as colours.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::canvas::{self, Area, Drawn, Frame, Key, SMALL};
use crate::error::Result;

/// A table of numbers as colours: dark blue is high, or, where 0 is a middle, orange is above and blue below it.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    frame: Frame,
    rows: Vec<String>,
    columns: Vec<String>,
    values: Vec<Vec<f64>>,
    value_label: String,
    diverging: bool,
    /// Size of full colour, when it is not the largest value's.
    reach: f64,
}

impl HeatMap {
    /// `values[row][column]`; cells that are not finite stay empty.
    pub fn new(title: impl Into<String>, values: Vec<Vec<f64>>) -> Self {
        let rows = (0..values.len()).map(|i| i.to_string()).collect();
        let columns = (0..values.first().map_or(0, Vec::len)).map(|i| i.to_string()).collect();
        HeatMap {
            frame: Frame::new(title.into()),
            rows,
            columns,
            values,
            value_label: String::new(),
            diverging: false,
            reach: 0.0,
        }
    }

    /// What the columns are, such as `head`.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.frame.x_label = label.into();
        self
    }

    /// What the rows are, such as `layer`.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.frame.y_label = label.into();
        self
    }

    /// What a colour means, with its unit.
    pub fn value_label(mut self, label: impl Into<String>) -> Self {
        self.value_label = label.into();
        self
    }

    /// Names of the rows instead of their numbers, top to bottom.
    pub fn rows<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.rows = names.into_iter().map(Into::into).collect();
        self
    }

    /// Names of the columns instead of their numbers.
    pub fn columns<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.columns = names.into_iter().map(Into::into).collect();
        self
    }

    /// Colours around 0: for differences.
    pub fn diverging(mut self) -> Self {
        self.diverging = true;
        self
    }

    /// With [`HeatMap::diverging`], full colour at `size` and not below: for maps to be compared with each other.
    pub fn reach(mut self, size: f64) -> Self {
        self.reach = size;
        self
    }

    /// Width and height in pixels.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.frame.size = (width, height);
        self
    }

    /// Its title.
    pub fn title(&self) -> &str {
        &self.frame.title
    }

    /// The figure.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`] when rows differ in length, names do not match them, or no value is finite.
    pub fn svg(&self) -> Result<String> {
        let width = self.columns.len();
        if self.rows.len() != self.values.len() || self.values.iter().any(|row| row.len() != width) {
            return Err(self.frame.fail(format!(
                "{} row names and {width} column names for {} rows of values",
                self.rows.len(),
                self.values.len()
            )));
        }
        let (low, high) = canvas::range(self.values.iter().flatten().copied(), self.diverging)
            .ok_or_else(|| self.frame.fail("there is no finite value to draw"))?;
        let scale = if self.diverging {
            let far = low.abs().max(high.abs()).max(self.reach).max(f64::MIN_POSITIVE);
            (-far, far)
        } else {
            (low, if high > low { high } else { low + 1.0 })
        };
        let about = format!(
            "Heat map of {} by {} and {}, from {low:.4} to {high:.4}.",
            self.value_label, self.frame.y_label, self.frame.x_label
        );
        self.frame.svg(&about, |area| self.draw(area, scale))
    }

    fn draw(&self, area: &Area, scale: (f64, f64)) -> Drawn {
        let (w, h) = (self.frame.size.0 as i32, self.frame.size.1 as i32);
        let mut top = canvas::head(area, &self.frame, &[], Key::Box)?;
        top = self.draw_scale(area, top, scale)?;
        if !self.frame.y_label.is_empty() {
            canvas::write(area, &self.frame.y_label, (12, top), SMALL, (HPos::Left, VPos::Top), false)?;
            top += 16;
        }
        top += 4;
        let names: Vec<String> = self.rows.iter().map(|r| canvas::wrap(r, w / 3, 1).concat()).collect();
        let left = 20 + names.iter().map(|n| canvas::text_width(n, SMALL)).max().unwrap_or(0);
        let axis_label = if self.frame.x_label.is_empty() { 0 } else { 20 };
        let columns = canvas::category_lines(&self.columns, w - 12 - left, 2);
        // Names too long for their column would all be cut: then only some are shown, in full.
        let narrow = columns.iter().flatten().any(|l| l.ends_with('…'));
        let below = if narrow { 22 } else { canvas::lines_height(&columns) };
        let (right, bottom) = (w - 12, h - 12 - axis_label - below);
        if bottom - top < 20 || right - left < 20 {
            return Err("no room is left for the data; make the figure larger or its labels shorter".into());
        }
        let x =
            |c: usize| left + (f64::from(right - left) * c as f64 / self.columns.len() as f64).round() as i32;
        let y = |r: usize| top + (f64::from(bottom - top) * r as f64 / self.rows.len() as f64).round() as i32;
        for (r, row) in self.values.iter().enumerate() {
            for (c, value) in row.iter().enumerate().filter(|(_, v)| v.is_finite()) {
                let cell = [(x(c), y(r)), (x(c + 1), y(r + 1))];
                area.draw(&Rectangle::new(cell, self.color(*value, scale).filled()))?;
            }
        }
        area.draw(&Rectangle::new([(left, top), (right, bottom)], BLACK.mix(0.5)))?;
        let every = thin(y(1) - y(0), 14);
        for (r, name) in names.iter().enumerate().step_by(every) {
            let at = (left - 6, (y(r) + y(r + 1)) / 2);
            canvas::write(area, name, at, SMALL, (HPos::Right, VPos::Center), false)?;
        }
        let widest = self.columns.iter().map(|n| canvas::text_width(n, SMALL)).max().unwrap_or(0) + 6;
        let every = if narrow { thin(x(1) - x(0), widest) } else { 1 };
        for c in (0..self.columns.len()).step_by(every) {
            let lines = if narrow { vec![self.columns[c].clone()] } else { columns[c].clone() };
            for (i, line) in lines.iter().enumerate() {
                let at = ((x(c) + x(c + 1)) / 2, bottom + 6 + 16 * i as i32);
                canvas::write(area, line, at, SMALL, (HPos::Center, VPos::Top), false)?;
            }
        }
        if !self.frame.x_label.is_empty() {
            let at = ((left + right) / 2, h - 12);
            canvas::write(area, &self.frame.x_label, at, SMALL, (HPos::Center, VPos::Bottom), false)?;
        }
        Ok(())
    }

    /// The colour scale with its ends, in one line below the title.
    fn draw_scale(
        &self,
        area: &Area,
        top: i32,
        scale: (f64, f64),
    ) -> std::result::Result<i32, Box<dyn std::error::Error + Send + Sync>> {
        const STEPS: i32 = 40;
        // Three decimals, but where they would show nothing of any value.
        let tiny = scale.0.abs().max(scale.1.abs()) < 1e-3;
        let number = |v: f64| {
            let text = if tiny && v != 0.0 { format!("{v:.1e}") } else { format!("{v:.3}") };
            text.replace('-', "\u{2212}")
        };
        let low = number(scale.0);
        let start = 12 + canvas::text_width(&low, SMALL) + 6;
        canvas::write(area, &low, (12, top + 7), SMALL, (HPos::Left, VPos::Center), false)?;
        for i in 0..STEPS {
            let value = scale.0 + (scale.1 - scale.0) * (f64::from(i) + 0.5) / f64::from(STEPS);
            let at = [(start + 4 * i, top), (start + 4 * i + 4, top + 12)];
            area.draw(&Rectangle::new(at, self.color(value, scale).filled()))?;
        }
        let end = start + 4 * STEPS;
        area.draw(&Rectangle::new([(start, top), (end, top + 12)], BLACK.mix(0.5)))?;
        if self.diverging {
            // Below the bar, where the page's ground is behind it.
            let middle = ((start + end) / 2, top + 14);
            canvas::write(area, "0", middle, SMALL, (HPos::Center, VPos::Top), false)?;
        }
        let label = format!("{}  {}", number(scale.1), self.value_label);
        canvas::write(area, &label, (end + 6, top + 7), SMALL, (HPos::Left, VPos::Center), false)?;
        Ok(top + if self.diverging { 34 } else { 24 })
    }

    fn color(&self, value: f64, (low, high): (f64, f64)) -> RGBColor {
        let share = ((value - low) / (high - low)).clamp(0.0, 1.0);
        if self.diverging {
            // Blue, near white, vermillion: a colour-blind safe pair.
            let stops = [
                (0x00, 0x58, 0x9C),
                (0x7F, 0xB4, 0xD9),
                (0xF7, 0xF7, 0xF7),
                (0xF0, 0xA0, 0x60),
                (0xB3, 0x4A, 0x00),
            ];
            blend(&stops, share)
        } else {
            // Falling lightness: reads the same in grey.
            let stops = [
                (0xFF, 0xFF, 0xE8),
                (0xC7, 0xE9, 0xC0),
                (0x5F, 0xB8, 0xC4),
                (0x22, 0x6E, 0xAA),
                (0x08, 0x1D, 0x58),
            ];
            blend(&stops, share)
        }
    }
}

/// Label every how many cells of `cell` pixels, when a label needs `label` pixels.
fn thin(cell: i32, label: i32) -> usize {
    (label as usize).div_ceil(cell.max(1) as usize).max(1)
}

fn blend(stops: &[(u8, u8, u8); 5], share: f64) -> RGBColor {
    let at = share * (stops.len() - 1) as f64;
    let i = (at as usize).min(stops.len() - 2);
    let part = at - i as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + part * (f64::from(b) - f64::from(a))).round() as u8;
    let (a, b) = (stops[i], stops[i + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

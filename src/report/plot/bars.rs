//! Bars side by side with intervals, and bars on top of each other.

use plotters::prelude::*;

use super::canvas::{self, Area, Drawn, Frame, Key, Plane};
use super::color;
use crate::error::Result;

/// One bar.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bar {
    value: f64,
    interval: Option<(f64, f64)>,
}

impl Bar {
    /// A bar without an interval; not drawn when `value` is not finite.
    pub fn value(value: f64) -> Self {
        Bar { value, interval: None }
    }

    /// A bar with an interval from `low` to `high`.
    pub fn with_interval(value: f64, low: f64, high: f64) -> Self {
        Bar { value, interval: Some((low, high)) }
    }

    /// No bar: the value is not known.
    pub fn missing() -> Self {
        Bar::value(f64::NAN)
    }

    fn ends(self) -> [f64; 3] {
        let (low, high) = self.interval.unwrap_or((self.value, self.value));
        [self.value, low, high]
    }
}

/// Bars side by side: a group a category, a colour a series.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedBars {
    frame: Frame,
    categories: Vec<String>,
    series: Vec<(String, Vec<Bar>)>,
}

impl GroupedBars {
    /// A figure without bars as yet.
    pub fn new(title: impl Into<String>) -> Self {
        GroupedBars { frame: Frame::new(title.into()), categories: Vec::new(), series: Vec::new() }
    }

    /// What the categories are.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.frame.x_label = label.into();
        self
    }

    /// What the height means, with its unit.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.frame.y_label = label.into();
        self
    }

    /// Fixes the values shown.
    pub fn y_range(mut self, low: f64, high: f64) -> Self {
        self.frame.y_range = Some((low, high));
        self
    }

    /// Width and height in pixels.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.frame.size = (width, height);
        self
    }

    /// Names below the groups.
    pub fn categories<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.categories = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a colour with one bar for each category.
    pub fn series(mut self, name: impl Into<String>, bars: impl IntoIterator<Item = Bar>) -> Self {
        self.series.push((name.into(), bars.into_iter().collect()));
        self
    }

    /// Its title.
    pub fn title(&self) -> &str {
        &self.frame.title
    }

    /// The figure.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`] when a series has not one bar for each category, or there is nothing finite to draw.
    pub fn svg(&self) -> Result<String> {
        let values: Vec<(&str, usize)> = self.series.iter().map(|(n, b)| (n.as_str(), b.len())).collect();
        check(&self.frame, &self.categories, &values)?;
        let all = self.series.iter().flat_map(|(_, bars)| bars.iter().flat_map(|b| b.ends()));
        let range =
            canvas::range(all, true).ok_or_else(|| self.frame.fail("there is no finite value to draw"))?;
        let names: Vec<String> = self.series.iter().map(|(name, _)| name.clone()).collect();
        let about = about("Grouped bars", &self.frame, &self.categories, &names);
        self.frame.svg(&about, |area| {
            let top = canvas::head(area, &self.frame, &names, Key::Box)?;
            let labels = canvas::category_lines(&self.categories, self.frame.size.0 as i32 - 90, 3);
            let plane =
                canvas::value_axis(area, &self.frame, top, canvas::lines_height(&labels), (0.0, 1.0), range)?;
            canvas::categories(area, &plane, &labels)?;
            let group = f64::from(plane.right - plane.left) / self.categories.len() as f64;
            let bar = (group * 0.8 / self.series.len() as f64).clamp(1.0, 60.0);
            let start = (group - bar * self.series.len() as f64) / 2.0;
            for (s, (_, bars)) in self.series.iter().enumerate() {
                for (c, b) in bars.iter().enumerate().filter(|(_, b)| b.value.is_finite()) {
                    let left = f64::from(plane.left) + c as f64 * group + start + s as f64 * bar;
                    draw_bar(area, &plane, *b, s, (left, bar))?;
                }
            }
            baseline(area, &plane)
        })
    }
}

fn draw_bar(area: &Area, plane: &Plane, bar: Bar, series: usize, (left, width): (f64, f64)) -> Drawn {
    let py = |y: f64| plane.py(y).clamp(plane.top, plane.bottom);
    let (x0, x1) = (left.round() as i32, (left + width).round() as i32 - i32::from(width > 4.0));
    let (a, b) = (py(0.0), py(bar.value));
    area.draw(&Rectangle::new([(x0, a.min(b)), (x1, a.max(b))], color(series).filled()))?;
    if let Some((low, high)) = bar.interval {
        let (x, low, high) = ((x0 + x1) / 2, py(low), py(high));
        let cap = ((x1 - x0) / 4).clamp(1, 5);
        for (from, to) in
            [((x, low), (x, high)), ((x - cap, low), (x + cap, low)), ((x - cap, high), (x + cap, high))]
        {
            area.draw(&PathElement::new([from, to], BLACK.stroke_width(1)))?;
        }
    }
    Ok(())
}

/// Bars on top of each other: a bar a category, a colour a part.
#[derive(Debug, Clone, PartialEq)]
pub struct StackedBars {
    frame: Frame,
    categories: Vec<String>,
    parts: Vec<(String, Vec<f64>)>,
}

impl StackedBars {
    /// A figure without bars as yet.
    pub fn new(title: impl Into<String>) -> Self {
        StackedBars { frame: Frame::new(title.into()), categories: Vec::new(), parts: Vec::new() }
    }

    /// What the categories are.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.frame.x_label = label.into();
        self
    }

    /// What the height means, with its unit.
    pub fn y_label(mut self, label: impl Into<String>) -> Self {
        self.frame.y_label = label.into();
        self
    }

    /// Fixes the values shown.
    pub fn y_range(mut self, low: f64, high: f64) -> Self {
        self.frame.y_range = Some((low, high));
        self
    }

    /// Width and height in pixels.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.frame.size = (width, height);
        self
    }

    /// Names below the bars.
    pub fn categories<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.categories = names.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a part with one value, at least 0, for each category; parts stack upwards in the order added.
    pub fn part(mut self, name: impl Into<String>, values: impl IntoIterator<Item = f64>) -> Self {
        self.parts.push((name.into(), values.into_iter().collect()));
        self
    }

    /// Its title.
    pub fn title(&self) -> &str {
        &self.frame.title
    }

    /// The figure.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`] when a part has not one value for each category, or a value is negative or not finite.
    pub fn svg(&self) -> Result<String> {
        let values: Vec<(&str, usize)> = self.parts.iter().map(|(n, v)| (n.as_str(), v.len())).collect();
        check(&self.frame, &self.categories, &values)?;
        if let Some((name, _)) = self.parts.iter().find(|(_, v)| v.iter().any(|v| !v.is_finite() || *v < 0.0))
        {
            return Err(self.frame.fail(format!("part `{name}` has a value that is negative or not finite")));
        }
        let total = |c: usize| self.parts.iter().map(|(_, v)| v[c]).sum::<f64>();
        let high = (0..self.categories.len()).map(total).fold(0.0, f64::max);
        let names: Vec<String> = self.parts.iter().map(|(name, _)| name.clone()).collect();
        let about = about("Stacked bars", &self.frame, &self.categories, &names);
        self.frame.svg(&about, |area| {
            let top = canvas::head(area, &self.frame, &names, Key::Box)?;
            let labels = canvas::category_lines(&self.categories, self.frame.size.0 as i32 - 90, 3);
            let room = canvas::lines_height(&labels);
            let plane = canvas::value_axis(area, &self.frame, top, room, (0.0, 1.0), (0.0, high))?;
            canvas::categories(area, &plane, &labels)?;
            let each = f64::from(plane.right - plane.left) / self.categories.len() as f64;
            let width = (each * 0.8).min(80.0);
            for c in 0..self.categories.len() {
                let left = f64::from(plane.left) + c as f64 * each + (each - width) / 2.0;
                let (x0, x1) = (left.round() as i32, (left + width).round() as i32);
                let mut sum = 0.0;
                for (p, (_, values)) in self.parts.iter().enumerate().filter(|(_, (_, v))| v[c] > 0.0) {
                    let (a, b) = (plane.py(sum), plane.py(sum + values[c]));
                    area.draw(&Rectangle::new(
                        [(x0, b.max(plane.top)), (x1, a.max(plane.top))],
                        color(p).filled(),
                    ))?;
                    sum += values[c];
                }
            }
            baseline(area, &plane)
        })
    }
}

fn baseline(area: &Area, plane: &Plane) -> Drawn {
    let at = plane.py(0.0).clamp(plane.top, plane.bottom);
    area.draw(&PathElement::new([(plane.left, at), (plane.right, at)], BLACK.mix(0.6)))?;
    Ok(())
}

fn check(frame: &Frame, categories: &[String], series: &[(&str, usize)]) -> Result<()> {
    if categories.is_empty() || series.is_empty() {
        return Err(frame.fail("there is nothing to draw"));
    }
    match series.iter().find(|(_, n)| *n != categories.len()) {
        Some((name, n)) => {
            Err(frame.fail(format!("`{name}` has {n} values for {} categories", categories.len())))
        }
        None => Ok(()),
    }
}

fn about(kind: &str, frame: &Frame, categories: &[String], names: &[String]) -> String {
    format!("{kind} of {} for {}: {}.", frame.y_label, categories.join(", "), names.join(", "))
}

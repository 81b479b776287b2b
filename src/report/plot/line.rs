//! Lines over a number, each with an optional band of uncertainty.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::canvas::{self, Area, Drawn, Frame, Key, Plane, SMALL};
use super::color;
use crate::error::Result;

/// Lines over a number. Gaps stay where a value is not finite.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    frame: Frame,
    series: Vec<Series>,
}

/// (x, y, low, high)
type Point = (f64, f64, f64, f64);

#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    points: Vec<Point>,
    band: bool,
}

impl LineChart {
    /// A figure without lines as yet.
    pub fn new(title: impl Into<String>) -> Self {
        LineChart { frame: Frame::new(title.into()), series: Vec::new() }
    }

    /// What runs across, with its unit.
    pub fn x_label(mut self, label: impl Into<String>) -> Self {
        self.frame.x_label = label.into();
        self
    }

    /// What runs up, with its unit.
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

    /// Adds a line through `(x, y)` points in order.
    pub fn line(mut self, name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().map(|(x, y)| (x, y, y, y)).collect();
        self.series.push(Series { name: name.into(), points, band: false });
        self
    }

    /// Adds a line through `(x, y, low, high)` points in order, with a band from low to high.
    pub fn line_with_band(
        mut self,
        name: impl Into<String>,
        points: impl IntoIterator<Item = (f64, f64, f64, f64)>,
    ) -> Self {
        self.series.push(Series { name: name.into(), points: points.into_iter().collect(), band: true });
        self
    }

    /// Its title.
    pub fn title(&self) -> &str {
        &self.frame.title
    }

    /// The figure.
    ///
    /// # Errors
    /// [`crate::Error::Stopped`] when there is nothing finite to draw or no room for it.
    pub fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|s| &s.points);
        let nothing = || self.frame.fail("there is no finite value to draw");
        let x = canvas::range(points().map(|p| p.0), false).ok_or_else(nothing)?;
        let y = canvas::range(points().flat_map(|p| [p.1, p.2, p.3]), false).ok_or_else(nothing)?;
        let x = if x.0 < x.1 { x } else { (x.0 - 0.5, x.1 + 0.5) };
        let names: Vec<String> = self.series.iter().map(|s| s.name.clone()).collect();
        let about = format!(
            "Line chart of {} over {}: {}.",
            self.frame.y_label,
            self.frame.x_label,
            names.join(", ")
        );
        self.frame.svg(&about, |area| {
            let top = canvas::head(area, &self.frame, &names, Key::Marker)?;
            let plane = canvas::value_axis(area, &self.frame, top, 22, x, y)?;
            let marks: Vec<f64> =
                canvas::ticks(x.0, x.1, 8).into_iter().filter(|m| (x.0..=x.1).contains(m)).collect();
            for mark in &marks {
                let at = plane.px(*mark);
                area.draw(&PathElement::new([(at, plane.bottom), (at, plane.bottom + 4)], BLACK.mix(0.5)))?;
                let label = canvas::tick_label(*mark, &marks);
                canvas::write(area, &label, (at, plane.bottom + 7), SMALL, (HPos::Center, VPos::Top), false)?;
            }
            for (i, series) in self.series.iter().enumerate().filter(|(_, s)| s.band) {
                draw_band(area, &plane, i, series)?;
            }
            for (i, series) in self.series.iter().enumerate() {
                draw_line(area, &plane, i, series)?;
            }
            area.draw(&PathElement::new(
                [(plane.left, plane.bottom), (plane.right, plane.bottom)],
                BLACK.mix(0.5),
            ))?;
            Ok(())
        })
    }
}

/// Stretches of points without a gap.
fn stretches(series: &Series) -> impl Iterator<Item = &[Point]> {
    series.points.split(|p| !(p.0.is_finite() && p.1.is_finite())).filter(|part| !part.is_empty())
}

fn draw_band(area: &Area, plane: &Plane, index: usize, series: &Series) -> Drawn {
    // A value outside a fixed range is drawn at its edge.
    let py = |y: f64| plane.py(y).clamp(plane.top, plane.bottom);
    for part in stretches(series) {
        let lower = part.iter().map(|p| (plane.px(p.0), py(p.2)));
        let upper = part.iter().rev().map(|p| (plane.px(p.0), py(p.3)));
        area.draw(&Polygon::new(lower.chain(upper).collect::<Vec<_>>(), color(index).mix(0.2)))?;
    }
    Ok(())
}

fn draw_line(area: &Area, plane: &Plane, index: usize, series: &Series) -> Drawn {
    let at = |p: &Point| (plane.px(p.0), plane.py(p.1).clamp(plane.top, plane.bottom));
    for part in stretches(series) {
        area.draw(&PathElement::new(part.iter().map(at).collect::<Vec<_>>(), color(index).stroke_width(2)))?;
    }
    // Markers on every point of a short line, on about a dozen of a long one.
    let every = series.points.len().div_ceil(12).max(1);
    for p in series.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()).step_by(every) {
        canvas::marker(area, index, at(p))?;
    }
    Ok(())
}

//! Figures as SVG text: lines with interval bands, grouped and stacked bars, heat maps.
//!
//! Every figure has a title, axes with units and a legend; colours are Okabe and Ito's, which colour-blind readers can
//! tell apart (Wong 2011, doi:10.1038/nmeth.1618), and lines also differ by marker. Text and axes use `currentColor`
//! on a clear ground, so a figure set into a page follows its light or dark theme.
//!
//! ```
//! use cluescope::report::{Bar, GroupedBars};
//! let svg = GroupedBars::new("Exact match by field")
//!     .y_label("exact match (share)")
//!     .y_range(0.0, 1.0)
//!     .categories(["city", "company"])
//!     .series("plain", [Bar::value(0.9), Bar::with_interval(0.2, 0.1, 0.3)])
//!     .series("contrast", [Bar::value(0.9), Bar::with_interval(0.4, 0.3, 0.5)])
//!     .svg()?;
//! assert!(svg.starts_with("<svg") && svg.contains("company"));
//! # Ok::<(), cluescope::Error>(())
//! ```

mod bars;
mod canvas;
mod heat;
mod line;

pub use bars::{Bar, GroupedBars, StackedBars};
pub use heat::HeatMap;
pub use line::LineChart;

use plotters::style::RGBColor;

/// Okabe and Ito's colours without black, the two that print palest last.
pub const PALETTE: [&str; 8] =
    ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080", "#F0E442"];

/// Colour of the `index`th series; after eight, greys of two depths.
fn color(index: usize) -> RGBColor {
    const COLORS: [RGBColor; 10] = [
        RGBColor(0x00, 0x72, 0xB2),
        RGBColor(0xD5, 0x5E, 0x00),
        RGBColor(0x00, 0x9E, 0x73),
        RGBColor(0xCC, 0x79, 0xA7),
        RGBColor(0xE6, 0x9F, 0x00),
        RGBColor(0x56, 0xB4, 0xE9),
        RGBColor(0x80, 0x80, 0x80),
        RGBColor(0xF0, 0xE4, 0x42),
        RGBColor(0x5A, 0x5A, 0x5A),
        RGBColor(0xB4, 0xB4, 0xB4),
    ];
    COLORS[if index < COLORS.len() { index } else { 8 + index % 2 }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_palette_is_what_is_drawn() {
        for (i, hex) in PALETTE.iter().enumerate() {
            let RGBColor(r, g, b) = color(i);
            assert_eq!(*hex, format!("#{r:02X}{g:02X}{b:02X}"));
        }
    }
}

//! The only place that writes rich output: what a value shows as the last expression of a cell, and live
//! progress.
//!
//! Rust notebooks call `evcxr_display` on the value that ends a cell. Under the evcxr kernel a value is written to standard
//! output between marker lines; another kernel replaces the [`Screen`]. Programs that are no notebook
//! never call any of this.
//!
//! ```
//! use cluescope::notebook::{Rich, show};
//! show(&Rich::html("<b>bold</b>").text("bold"));
//! ```

mod progress;
mod screen;
mod values;

pub use progress::{Bars, PROGRESS_CLASS};
pub use screen::{Rich, Screen, set_screen, show};

//! Tables, plots and pages for people.

mod clues;
mod drop_figure;
mod experiment;
mod experiment_record;
mod facts;
mod head_views;
mod heads;
mod html;
mod overview;
mod page;
mod panel;
mod picture;
mod plan_picture;
mod plot;
mod probe_figure;
mod quiz_figure;
mod summary;
mod table;
mod text_picture;

pub use clues::clues;
pub use drop_figure::DropFigure;
pub use experiment::{experiment_page, experiment_tables, loss_chart, verdicts};
pub use facts::FactsPicture;
pub use heads::HeadsPicture;
pub use html::escape;
pub use page::{Page, Section};
pub use panel::Colours;
pub use plan_picture::PlanPicture;
pub use plot::{Bar, GroupedBars, HeatMap, LineChart, PALETTE, StackedBars};
pub use probe_figure::{Kind, ProbeFigure};
pub use quiz_figure::QuizFigure;
pub use summary::{gains_table, summary_bars, summary_table};
pub use table::Table;
pub use text_picture::TextPicture;

pub use crate::text::tame;

//! Live progress below a cell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::screen::{Rich, screen};
use crate::progress::{Sink, Status, set_sink};
use crate::report::escape;

/// Work shorter than this shows no progress at all.
const PATIENCE: Duration = Duration::from_millis(700);
/// Pause between two lines where a bar cannot be updated.
const LINE: Duration = Duration::from_secs(5);

/// Shows the progress of all library calls below the running cell from now on: a bar that moves where the
/// front end can replace output, otherwise a line every few seconds.
pub fn live_progress() {
    set_sink(Arc::new(Bars::default()));
}

/// Progress bars in a notebook.
#[derive(Debug, Default)]
pub struct Bars {
    shown: Mutex<BTreeMap<u64, Shown>>,
}

#[derive(Debug, Clone, Copy)]
enum Shown {
    /// As a bar that can be replaced.
    Bar,
    /// As lines, the last one then.
    Lines(Duration),
}

impl Sink for Bars {
    fn show(&self, status: &Status) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if status.elapsed < PATIENCE && !shown.contains_key(&status.id) {
            return;
        }
        let screen = screen();
        let id = format!("cluescope-progress-{}-{}", std::process::id(), status.id);
        match shown.get(&status.id).copied() {
            None => {
                screen.show(&rich(status), Some(&id));
                // Whether it can be replaced shows with the first attempt.
                let state =
                    if screen.update(&rich(status), &id) { Shown::Bar } else { Shown::Lines(status.elapsed) };
                shown.insert(status.id, state);
            }
            Some(Shown::Bar) => {
                screen.update(&rich(status), &id);
            }
            Some(Shown::Lines(last)) if status.finished || status.elapsed >= last + LINE => {
                println!("{}", line(status));
                shown.insert(status.id, Shown::Lines(status.elapsed));
            }
            Some(Shown::Lines(_)) => {}
        }
        if status.finished {
            shown.remove(&status.id);
        }
    }
}

/// A status in words.
fn line(status: &Status) -> String {
    let total = if status.total > 0 { format!("/{}", status.total) } else { String::new() };
    let left = status.left().filter(|_| !status.finished);
    let left = left.map_or(String::new(), |d| format!(", {:.0} s left", d.as_secs_f64()));
    let note = if status.note.is_empty() { String::new() } else { format!(", {}", status.note) };
    format!(
        "{}: {}{total} {}, {:.1} s, {:.1}/s{left}{note}",
        status.label,
        status.done,
        status.unit,
        status.elapsed.as_secs_f64(),
        status.rate()
    )
}

fn rich(status: &Status) -> Rich {
    let text = line(status);
    let bar = match (status.total, status.finished) {
        (0, false) => "<progress style=\"width:18rem\"></progress>".to_string(),
        (0, true) => String::new(),
        (total, _) => {
            format!(
                "<progress max=\"{total}\" value=\"{}\" style=\"width:18rem\"></progress>",
                status.done.min(total)
            )
        }
    };
    let html =
        format!("<div style=\"font:14px system-ui,sans-serif\"><label>{bar} {}</label></div>", escape(&text));
    Rich::html(html).text(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_line_and_a_bar() {
        let mut status = Status {
            id: 1,
            label: "attention of <m>".into(),
            done: 50,
            total: 200,
            unit: "tokens",
            note: String::new(),
            elapsed: Duration::from_secs(10),
            finished: false,
        };
        assert_eq!(line(&status), "attention of <m>: 50/200 tokens, 10.0 s, 5.0/s, 30 s left");
        let html = &rich(&status).forms[1].1;
        assert!(html.contains("max=\"200\" value=\"50\"") && html.contains("&lt;m&gt;"), "{html}");
        status.finished = true;
        assert!(!line(&status).contains("left"));
    }
}

//! Live progress below a cell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::screen::{Rich, Screen};
use crate::progress::{Curve, Sink, Status};
use crate::report::{LineChart, escape};

/// Work shorter than this shows no progress at all.
const PATIENCE: Duration = Duration::from_millis(700);
/// Pause between two pictures of a curve, which are larger than bars.
const PICTURE: Duration = Duration::from_millis(500);
/// Class of the element around a bar; by it a comparison of outputs knows that whether a bar appears at all
/// depends on the machine's speed.
pub const PROGRESS_CLASS: &str = "cluescope-progress";

/// Progress bars on a screen that can replace what it shows.
///
/// One display serves a task and everything that runs inside it: while a quiz is part of an experiment, its bar
/// stands below the experiment's and goes when it is finished. What stays at the end tells no time.
pub struct Bars {
    screen: Arc<dyn Screen>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Running tasks, the outermost first: it began first.
    tasks: BTreeMap<u64, Status>,
    /// The outermost task whose display is on the screen.
    shown: Option<u64>,
    /// When the curve was drawn last, in the outermost task's time.
    drawn: Option<Duration>,
}

impl std::fmt::Debug for Bars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bars").finish_non_exhaustive()
    }
}

impl Bars {
    /// Bars on `screen`.
    pub fn on(screen: Arc<dyn Screen>) -> Self {
        Bars { screen, state: Mutex::default() }
    }

    /// Forgets all tasks at the end of a cell: one that is kept in a variable is not finished, and would stand before all
    /// later ones. What is on the screen stays as it is, but tells no time.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { mut tasks, shown, .. } = std::mem::take(&mut *state);
        if let Some(mut outer) = shown.and_then(|id| tasks.remove(&id)) {
            outer.finished = true;
            let curve = outer.curve.as_ref().filter(|curve| curve.points.len() > 1);
            self.screen.update(&rich(&outer, &[], curve), &id(&outer));
        }
    }
}

/// By which the display of an outermost task is replaced.
fn id(outer: &Status) -> String {
    format!("{PROGRESS_CLASS}-{}-{}", std::process::id(), outer.id)
}

impl Sink for Bars {
    fn show(&self, status: &Status) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.tasks.insert(status.id, status.clone());
        let Some(outer) = state.tasks.values().next().cloned() else { return };
        if status.finished {
            state.tasks.remove(&status.id);
        }
        let over = status.finished && status.id == outer.id;
        let begun = state.shown == Some(outer.id);
        if !begun && (over || outer.elapsed < PATIENCE) {
            return;
        }
        let inner: Vec<&Status> = state.tasks.values().filter(|task| task.id != outer.id).collect();
        let curve = std::iter::once(&outer)
            .chain(inner.iter().copied().filter(|_| !over))
            .filter_map(|task| task.curve.as_ref())
            .rfind(|curve| curve.points.len() > 1);
        let due = over || state.drawn.is_none_or(|drawn| outer.elapsed >= drawn + PICTURE);
        if curve.is_some() && !due {
            return;
        }
        let rich = if over { rich(&outer, &[], curve) } else { rich(&outer, &inner, curve) };
        if begun {
            self.screen.update(&rich, &id(&outer));
        } else {
            self.screen.show(&rich, Some(&id(&outer)));
        }
        state.drawn = (!over).then_some(outer.elapsed);
        state.shown = (!over).then_some(outer.id);
    }
}

/// A status in words.
fn line(status: &Status) -> String {
    if status.finished { status.summary() } else { format!("{} ({})", status.summary(), status.pace()) }
}

/// The outermost task, those inside it that take long, and a curve.
fn rich(outer: &Status, inner: &[&Status], curve: Option<&Curve>) -> Rich {
    let tasks = || std::iter::once(outer).chain(inner.iter().copied().filter(|t| t.elapsed >= PATIENCE));
    let text: Vec<String> = tasks().map(line).collect();
    let bars: String = tasks().map(bar).collect();
    let chart = curve.and_then(|curve| {
        let chart = LineChart::new(outer.label.clone())
            .x_label(curve.x_label)
            .y_label(curve.y_label)
            .size(560, 280)
            .line(curve.y_label, curve.points.iter().copied());
        // Without a finite value there is nothing to draw yet.
        chart.svg().ok()
    });
    let html = format!(
        "<div class=\"{PROGRESS_CLASS}\" style=\"font:14px system-ui,sans-serif\">{bars}{}</div>",
        chart.unwrap_or_default()
    );
    Rich::html(html).text(text.join("\n"))
}

fn bar(status: &Status) -> String {
    let bar = match (status.total, status.finished) {
        (0, false) => "<progress style=\"width:18rem\"></progress> ".to_string(),
        (0, true) => String::new(),
        (total, _) => {
            let done = status.done.min(total);
            format!("<progress max=\"{total}\" value=\"{done}\" style=\"width:18rem\"></progress> ")
        }
    };
    format!("<div><label>{bar}{}</label></div>", escape(&line(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Keep(Mutex<Vec<(&'static str, String, String)>>);

    impl Screen for Keep {
        fn show(&self, rich: &Rich, id: Option<&str>) {
            self.0.lock().unwrap().push(("show", id.unwrap().into(), rich.forms[1].1.clone()));
        }
        fn update(&self, rich: &Rich, id: &str) {
            self.0.lock().unwrap().push(("update", id.into(), rich.forms[1].1.clone()));
        }
    }

    fn status(id: u64, label: &str, done: u64, millis: u64) -> Status {
        Status {
            id,
            label: label.into(),
            done,
            earlier: 0,
            total: 200,
            unit: "tokens",
            note: String::new(),
            work: None,
            curve: None,
            memory: None,
            elapsed: Duration::from_millis(millis),
            finished: false,
        }
    }

    fn last(mut status: Status) -> Status {
        status.finished = true;
        status
    }

    #[test]
    fn one_display_for_a_task_and_what_runs_inside_it() {
        let keep = Arc::new(Keep::default());
        let bars = Bars::on(keep.clone());
        bars.show(&status(1, "grid <of> cells", 0, 0));
        bars.show(&status(2, "attention", 10, 800));
        assert!(keep.0.lock().unwrap().is_empty(), "the outer task is too young");
        bars.show(&status(1, "grid <of> cells", 50, 1000));
        bars.show(&status(2, "attention", 20, 1000));
        bars.show(&last(status(2, "attention", 200, 1200)));
        bars.show(&last(status(1, "grid <of> cells", 200, 10_000)));
        let shown = std::mem::take(&mut *keep.0.lock().unwrap());
        let kinds: Vec<&str> = shown.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, ["show", "update", "update", "update"]);
        assert!(shown.iter().all(|(_, id, _)| *id == shown[0].1));
        assert!(shown[0].2.contains("max=\"200\" value=\"50\"") && shown[0].2.contains("&lt;of&gt;"));
        assert!(shown[1].2.contains("attention: 20/200 tokens") && shown[1].2.contains(" s left"));
        assert!(!shown[2].2.contains("attention"), "{}", shown[2].2);
        assert!(shown[3].2.contains("grid &lt;of&gt; cells: 200/200 tokens</label>"), "{}", shown[3].2);
    }

    #[test]
    fn short_work_shows_nothing_and_leaves_nothing() {
        let keep = Arc::new(Keep::default());
        let bars = Bars::on(keep.clone());
        for id in 1..4 {
            bars.show(&status(id, "short", 0, 0));
            bars.show(&last(status(id, "short", 200, 600)));
        }
        assert!(keep.0.lock().unwrap().is_empty());
        assert!(bars.state.lock().unwrap().tasks.is_empty());
    }

    /// A task kept in a variable of the notebook is never dropped.
    #[test]
    fn a_task_that_outlives_its_cell_hides_no_later_one() {
        let keep = Arc::new(Keep::default());
        let bars = Bars::on(keep.clone());
        bars.show(&status(1, "kept", 10, 1000));
        bars.forget();
        bars.show(&status(2, "later", 20, 1000));
        bars.show(&last(status(2, "later", 200, 1200)));
        bars.forget();
        bars.show(&last(status(1, "kept", 200, 9000)));
        let shown = std::mem::take(&mut *keep.0.lock().unwrap());
        let kinds: Vec<&str> = shown.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, ["show", "update", "show", "update"]);
        assert!(shown[1].2.contains("kept: 10/200 tokens</label>"), "{}", shown[1].2);
        assert!(shown[2].2.contains("later: 20/200 tokens"), "{}", shown[2].2);
    }

    #[test]
    fn a_curve_grows_with_its_bar_and_stays() {
        let keep = Arc::new(Keep::default());
        let bars = Bars::on(keep.clone());
        let at = |points: u64, millis: u64| {
            let curve = Curve::of("step", "loss", (1..=points).map(|x| (x as f64, 1.0 / x as f64)));
            Status { curve: Some(curve), ..status(1, "training", points, millis) }
        };
        bars.show(&at(3, 800));
        bars.show(&at(4, 900));
        bars.show(&at(9, 1400));
        bars.show(&last(at(10, 1450)));
        let shown = std::mem::take(&mut *keep.0.lock().unwrap());
        assert_eq!(shown.len(), 3, "the second came too soon after the first");
        assert!(shown.iter().all(|(.., html)| html.contains("<svg") && html.contains("step")));
        assert!(shown[2].2.contains("training: 10/200 tokens</label>"));
    }
}

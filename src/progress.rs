//! Progress that every stage reports and whoever shows it decides how: a bar on a terminal, plain
//! lines in a pipe, a live picture in a notebook. Interrupts arrive the same way.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::memory::{self, readable};
use crate::spread;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Asks all running library work of this process to stop at its next check.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Forgets an earlier [`interrupt`]; called before new work begins.
pub fn clear_interrupt() {
    INTERRUPTED.store(false, Ordering::SeqCst);
}

/// Called inside every long loop, at least a few times a second.
///
/// # Errors
/// [`Error::Interrupted`] when the user asked to stop, or another of the devices that share the work failed.
pub fn check_interrupt() -> Result<()> {
    let asked = INTERRUPTED.load(Ordering::Relaxed) || spread::is_stopped();
    if asked { Err(Error::Interrupted) } else { Ok(()) }
}

/// One observation of a running task.
#[derive(Debug, Clone)]
pub struct Status {
    /// Distinguishes tasks; unique within the process.
    pub id: u64,
    /// What is being done, for people.
    pub label: String,
    /// Units done so far.
    pub done: u64,
    /// Of these, what an earlier run had done before this one took it up.
    pub earlier: u64,
    /// Units in all; 0 when unknown.
    pub total: u64,
    /// What is counted: `texts`, `tokens`, `steps`, `bytes`.
    pub unit: &'static str,
    /// A short live remark, such as the loss.
    pub note: String,
    /// Work counted beside the units, and its name: `(12_000, "tokens")`.
    pub work: Option<(u64, &'static str)>,
    /// What develops with the task, such as the loss by step.
    pub curve: Option<Curve>,
    /// Bytes the process holds, where the system tells.
    pub memory: Option<u64>,
    /// Since the task began.
    pub elapsed: Duration,
    /// True in the last observation.
    pub finished: bool,
}

/// A quantity that develops while a task runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What runs across: `step`.
    pub x_label: &'static str,
    /// What runs up, with its unit: `loss (nats a token)`.
    pub y_label: &'static str,
    /// In order of `x`. Of a long task not every point is kept.
    pub points: Vec<(f64, f64)>,
    /// Points that went by for each one kept.
    stride: usize,
    seen: usize,
}

impl Curve {
    /// More could not be told apart on a picture.
    const POINTS: usize = 400;

    /// The curve through `points`.
    pub fn of(
        x_label: &'static str,
        y_label: &'static str,
        points: impl IntoIterator<Item = (f64, f64)>,
    ) -> Self {
        let mut curve = Curve { x_label, y_label, points: Vec::new(), stride: 1, seen: 0 };
        points.into_iter().for_each(|(x, y)| curve.push(x, y));
        curve
    }

    fn push(&mut self, x: f64, y: f64) {
        if self.seen.is_multiple_of(self.stride) {
            self.points.push((x, y));
        }
        self.seen += 1;
        if self.points.len() == 2 * Self::POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }
}

impl Status {
    /// What was done, without anything that differs from run to run: `quiz: 20/20 questions, 3 right`.
    pub fn summary(&self) -> String {
        let total = if self.total > 0 { format!("/{}", self.total) } else { String::new() };
        let note = if self.note.is_empty() { String::new() } else { format!(", {}", self.note) };
        format!("{}: {}{total} {}{note}", self.label, self.done, self.unit)
    }

    /// How fast it goes, how long it will take and what memory is in use: `12.0 s, 5.0/s, 900 tokens/s, 30 s left, 1.24 GB`.
    pub fn pace(&self) -> String {
        let seconds = self.elapsed.as_secs_f64();
        let mut text = if seconds < 120.0 { format!("{seconds:.1} s") } else { spell(self.elapsed) };
        match self.rate() {
            0.0 => {}
            rate if rate < 1.0 => text += &format!(", {} each", spell(Duration::from_secs_f64(1.0 / rate))),
            rate => text += &format!(", {rate:.1}/s"),
        }
        if let Some((work, unit)) = self.work.filter(|(work, _)| *work > 0) {
            text += &format!(", {:.0} {unit}/s", work as f64 / seconds.max(1e-9));
        }
        if let Some(left) = self.left().filter(|_| !self.finished) {
            text += &format!(", {} left", spell(left));
        }
        if let Some(memory) = self.memory {
            text += &format!(", {}", readable(memory));
        }
        text
    }

    /// Units a second since the start; what was done earlier took no time now.
    pub fn rate(&self) -> f64 {
        self.done.saturating_sub(self.earlier) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Time left at the present rate, when the total is known and something was done.
    pub fn left(&self) -> Option<Duration> {
        (self.total > 0 && self.done > self.earlier)
            .then(|| Duration::from_secs_f64(self.total.saturating_sub(self.done) as f64 / self.rate()))
    }
}

/// A time as people say it: `54 s`, `12 min`, `3 h 25 min`.
fn spell(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let minutes = (seconds / 60.0).round() as u64;
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// Where progress is shown.
pub trait Sink: Send + Sync {
    /// Called at the start, at most about ten times a second while running, when all units are done, and once finished.
    fn show(&self, status: &Status);
}

static SINK: RwLock<Option<Arc<dyn Sink>>> = RwLock::new(None);

/// Replaces the place where progress is shown, for the whole process.
pub fn set_sink(sink: Arc<dyn Sink>) {
    *SINK.write().unwrap_or_else(PoisonError::into_inner) = Some(sink);
}

fn sink() -> Arc<dyn Sink> {
    if let Some(sink) = SINK.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
        return sink.clone();
    }
    let mut slot = SINK.write().unwrap_or_else(PoisonError::into_inner);
    slot.get_or_insert_with(|| {
        if std::io::stderr().is_terminal() {
            Arc::new(Terminal::default())
        } else {
            Arc::new(Lines::default())
        }
    })
    .clone()
}

/// A running task. Dropping it finishes it.
///
/// ```
/// use cluescope::progress::Progress;
/// let progress = Progress::start("reading", 3, "texts");
/// for _ in 0..3 {
///     progress.advance(1)?; // also the interrupt check
/// }
/// # Ok::<(), cluescope::Error>(())
/// ```
pub struct Progress {
    id: u64,
    label: String,
    total: u64,
    unit: &'static str,
    start: Instant,
    done: AtomicU64,
    earlier: u64,
    state: Mutex<State>,
    sink: Arc<dyn Sink>,
}

/// What changes besides the count.
#[derive(Default)]
struct State {
    note: String,
    work: Option<(u64, &'static str)>,
    curve: Option<Curve>,
    shown: Option<Instant>,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("label", &self.label)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

const PAUSE: Duration = Duration::from_millis(100);

impl Progress {
    /// Begins a task of `total` units (0: unknown). Where several devices share the work, the label of what one of them does begins
    /// with its name.
    pub fn start(label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        Self::resume(label, total, unit, 0)
    }

    /// Takes up a task of which `earlier` units were done before; they count as done but not for the speed.
    pub fn resume(label: impl Into<String>, total: u64, unit: &'static str, earlier: u64) -> Self {
        let mut progress = Self::shown_by(sink(), label, total, unit);
        progress.earlier = earlier;
        progress.done = AtomicU64::new(earlier);
        progress.show(false);
        progress
    }

    fn shown_by(sink: Arc<dyn Sink>, label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let label = label.into();
        Progress {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            label: spread::device().map_or(label.clone(), |device| format!("{device} {label}")),
            total,
            unit,
            start: Instant::now(),
            done: AtomicU64::new(0),
            earlier: 0,
            state: Mutex::default(),
            sink,
        }
    }

    /// Counts `n` more units. Safe to call from many threads.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asked to stop.
    pub fn advance(&self, n: u64) -> Result<()> {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if n > 0 && done == self.total {
            // Shown even if the last time was a moment ago: a task kept in a variable has no other end.
            self.state().shown = None;
        }
        self.show(false);
        check_interrupt()
    }

    /// Replaces the live remark, of which the first is shown with the next count. It also stays in what is shown at the end, so it says nothing that
    /// depends on the clock: see [`Progress::work`] for speeds.
    pub fn note(&self, note: impl Into<String>) {
        let mut state = self.state();
        if state.note.is_empty() {
            state.shown = None;
        }
        state.note = note.into();
    }

    /// Counts `n` more of something that goes by faster than the units; shown as a speed.
    pub fn work(&self, n: u64, unit: &'static str) {
        let mut state = self.state();
        let before = state.work.map_or(0, |(work, _)| work);
        state.work = Some((before + n, unit));
    }

    /// Adds a point to the task's curve, which a notebook draws while the task runs; the labels say
    /// what runs across and what runs up, and are those of the first call.
    pub fn point(&self, (x_label, x): (&'static str, f64), (y_label, y): (&'static str, f64)) {
        self.state().curve.get_or_insert_with(|| Curve::of(x_label, y_label, [])).push(x, y);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, finished: bool) {
        let mut state = self.state();
        if !finished && state.shown.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        state.shown = Some(Instant::now());
        self.sink.show(&Status {
            id: self.id,
            label: self.label.clone(),
            done: self.done.load(Ordering::Relaxed),
            earlier: self.earlier,
            total: self.total,
            unit: self.unit,
            note: state.note.clone(),
            work: state.work,
            curve: state.curve.clone(),
            memory: memory::resident(),
            elapsed: self.start.elapsed(),
            finished,
        });
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show(true);
    }
}

/// Bars on a terminal.
#[derive(Default)]
struct Terminal {
    bars: Mutex<std::collections::BTreeMap<u64, indicatif::ProgressBar>>,
    all: indicatif::MultiProgress,
}

impl Sink for Terminal {
    fn show(&self, status: &Status) {
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let part = bars.keys().any(|id| *id != status.id);
        let bar = bars.entry(status.id).or_insert_with(|| {
            let bar = self.all.add(indicatif::ProgressBar::new(status.total));
            let shape = if status.total > 0 {
                "{prefix:24} {bar:30} {human_pos}/{human_len} {per_sec} eta {eta} {msg}"
            } else {
                "{prefix:24} {spinner} {human_pos} {per_sec} {msg}"
            };
            if let Ok(style) = indicatif::ProgressStyle::with_template(shape) {
                bar.set_style(style);
            }
            bar.set_prefix(status.label.clone());
            bar.set_position(status.earlier);
            bar.reset_eta();
            bar
        });
        bar.set_position(status.done);
        let speed = status.work.map(|(work, unit)| {
            format!("{:.0} {unit}/s", work as f64 / status.elapsed.as_secs_f64().max(1e-9))
        });
        let memory = status.memory.map(readable);
        let parts = [Some(status.note.clone()).filter(|note| !note.is_empty()), speed, memory];
        bar.set_message(parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
        if status.finished {
            // What was a part of something longer goes, or a hundred finished parts would push the whole off the screen.
            if part {
                bar.finish_and_clear()
            } else {
                bar.abandon()
            }
            bars.remove(&status.id);
        }
    }
}

/// Plain lines, seldom enough for a log.
#[derive(Default)]
struct Lines {
    last: Mutex<std::collections::BTreeMap<u64, Instant>>,
}

impl Sink for Lines {
    fn show(&self, status: &Status) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = now.duration_since(*last.entry(status.id).or_insert(now)) >= Duration::from_secs(10);
        // A finished task says so once, when it ends.
        let full = status.total > 0 && status.done == status.total;
        if (!due || full) && !status.finished {
            return;
        }
        last.insert(status.id, now);
        eprintln!("{} ({})", status.summary(), status.pace());
        if status.finished {
            last.remove(&status.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Keep(Mutex<Vec<Status>>);

    impl Sink for Keep {
        fn show(&self, status: &Status) {
            self.0.lock().unwrap().push(status.clone());
        }
    }

    /// A task whose observations are kept; the process's own sink stays as it is.
    fn task(total: u64) -> (Progress, Arc<Keep>) {
        let keep = Arc::new(Keep::default());
        (Progress::shown_by(keep.clone(), "training", total, "steps"), keep)
    }

    #[test]
    fn what_is_said_at_the_end_tells_no_time() {
        let (progress, keep) = task(3);
        progress.note("loss 1.25");
        progress.work(700, "tokens");
        progress.work(800, "tokens");
        progress.done.store(3, Ordering::Relaxed);
        drop(progress);
        let last = keep.0.lock().unwrap().pop().unwrap();
        assert!(last.finished);
        assert_eq!(last.summary(), "training: 3/3 steps, loss 1.25");
        let status = Status {
            elapsed: Duration::from_secs(2),
            done: 2,
            memory: Some(1_240_000_000),
            finished: false,
            ..last
        };
        assert_eq!(status.pace(), "2.0 s, 1.0/s, 750 tokens/s, 1.0 s left, 1.24 GB");
        // One of the two was done before this run: it took no time.
        let resumed = Status { earlier: 1, memory: None, ..status };
        assert_eq!(resumed.pace(), "2.0 s, 2.0 s each, 750 tokens/s, 2.0 s left");
        let long = Status { elapsed: Duration::from_secs(5000), work: None, total: 10, ..resumed };
        assert_eq!(long.pace(), "83 min, 83 min each, 11 h 7 min left");
    }

    #[test]
    fn the_last_unit_is_shown_though_the_task_goes_on() {
        let (progress, keep) = task(3);
        (0..3).for_each(|_| progress.advance(1).unwrap());
        let shown: Vec<(u64, bool)> = keep.0.lock().unwrap().iter().map(|s| (s.done, s.finished)).collect();
        assert_eq!(shown, [(1, false), (3, false)], "the second came too soon after the first");
    }

    #[test]
    fn a_long_curve_keeps_its_shape_in_few_points() {
        let points = (0..100_000).map(|step| (f64::from(step), 1.0 / f64::from(step + 1)));
        let curve = Curve::of("step", "loss", points);
        assert!((Curve::POINTS..2 * Curve::POINTS).contains(&curve.points.len()), "{}", curve.points.len());
        let gaps: Vec<f64> = curve.points.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "evenly spaced");
        assert_eq!(curve.points[0], (0.0, 1.0));
        assert!(curve.points.last().unwrap().0 > 99_000.0);
    }
}

//! Progress that every stage reports and whoever shows it decides how: a bar on a terminal, plain
//! lines in a pipe, a live picture in a notebook. Interrupts arrive the same way.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

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
/// [`Error::Interrupted`] when the user asked to stop.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
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
    /// Units in all; 0 when unknown.
    pub total: u64,
    /// What is counted: `texts`, `tokens`, `steps`, `bytes`.
    pub unit: &'static str,
    /// A short live remark, such as the loss.
    pub note: String,
    /// Since the task began.
    pub elapsed: Duration,
    /// True in the last observation.
    pub finished: bool,
}

impl Status {
    /// Units a second since the start.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Time left at the present rate, when the total is known and something was done.
    pub fn left(&self) -> Option<Duration> {
        (self.total > 0 && self.done > 0)
            .then(|| Duration::from_secs_f64(self.total.saturating_sub(self.done) as f64 / self.rate()))
    }
}

/// Where progress is shown.
pub trait Sink: Send + Sync {
    /// Called at the start, at most about ten times a second while running, and once finished.
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
    state: Mutex<(String, Option<Instant>)>,
    sink: Arc<dyn Sink>,
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
    /// Begins a task of `total` units (0: unknown).
    pub fn start(label: impl Into<String>, total: u64, unit: &'static str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let progress = Progress {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            label: label.into(),
            total,
            unit,
            start: Instant::now(),
            done: AtomicU64::new(0),
            state: Mutex::new((String::new(), None)),
            sink: sink(),
        };
        progress.show(false);
        progress
    }

    /// Counts `n` more units. Safe to call from many threads.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the user asked to stop.
    pub fn advance(&self, n: u64) -> Result<()> {
        self.done.fetch_add(n, Ordering::Relaxed);
        self.show(false);
        check_interrupt()
    }

    /// Replaces the live remark.
    pub fn note(&self, note: impl Into<String>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = note.into();
    }

    fn show(&self, finished: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !finished && state.1.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        state.1 = Some(Instant::now());
        self.sink.show(&Status {
            id: self.id,
            label: self.label.clone(),
            done: self.done.load(Ordering::Relaxed),
            total: self.total,
            unit: self.unit,
            note: state.0.clone(),
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
            bar
        });
        bar.set_position(status.done);
        bar.set_message(status.note.clone());
        if status.finished {
            bar.abandon();
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
        if !due && !status.finished {
            return;
        }
        last.insert(status.id, now);
        let total = if status.total > 0 { format!("/{}", status.total) } else { String::new() };
        let left = status.left().filter(|_| !status.finished);
        let left = left.map_or(String::new(), |d| format!(", {:.0} s left", d.as_secs_f64()));
        let note = if status.note.is_empty() { String::new() } else { format!(", {}", status.note) };
        eprintln!(
            "{}: {}{total} {}, {:.1} s, {:.1}/s{left}{note}",
            status.label,
            status.done,
            status.unit,
            status.elapsed.as_secs_f64(),
            status.rate()
        );
        if status.finished {
            last.remove(&status.id);
        }
    }
}

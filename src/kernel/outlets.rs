//! What the parts of the server share: the ways out to the notebook and to the person who asks, and the cell that an interrupt
//! stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jupyter_protocol::{JupyterMessage, StreamContent};
use tokio::sync::{Notify, mpsc};

use super::output::Publish;
use super::session::{GRACE, Handle};

/// Sends to the public channel and to the person who asks.
#[derive(Clone)]
pub(super) struct Outlets {
    pub(super) public: mpsc::Sender<JupyterMessage>,
    questions: mpsc::Sender<JupyterMessage>,
    pub(super) handle: Arc<OnceLock<Handle>>,
    /// An interrupt while the engine is not ready: the waiting cell is given up.
    pub(super) given_up: Arc<Notify>,
    pub(super) turns: Arc<Turns>,
    /// The question that waits for its answer.
    question: Arc<Mutex<Option<String>>>,
}

/// Cells in the order in which they arrived, and how many of them an interrupt has stopped before they ran: behind a completion or
/// another request that takes its time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    arrived: AtomicU64,
    stopped: AtomicU64,
}

impl Turns {
    /// Number of a cell that arrives now.
    pub(super) fn next(&self) -> u64 {
        self.arrived.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Stops all cells that have arrived and not begun.
    fn stop(&self) {
        self.stopped.fetch_max(self.arrived.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Whether the cell of this number must not begin.
    pub(super) fn is_stopped(&self, number: u64) -> bool {
        number <= self.stopped.load(Ordering::SeqCst)
    }
}

impl Publish for Outlets {
    fn publish(&self, message: JupyterMessage) {
        // The channel closes when the kernel shuts down; nobody listens then.
        let _ = self.public.blocking_send(message);
    }

    fn ask(&self, message: JupyterMessage) {
        *lock(&self.question) = Some(message.header.msg_id.clone());
        let _ = self.questions.blocking_send(message);
    }

    fn no_answer(&self, request: &JupyterMessage) {
        let note = "this frontend cannot answer questions; the cell reads an empty line\n";
        self.publish(JupyterMessage::new(StreamContent::stderr(note), Some(request)));
        if let Some(handle) = self.handle.get() {
            handle.answer("");
        }
    }
}

impl Outlets {
    pub(super) fn new(public: mpsc::Sender<JupyterMessage>, questions: mpsc::Sender<JupyterMessage>) -> Self {
        Outlets {
            public,
            questions,
            handle: Arc::default(),
            given_up: Arc::default(),
            turns: Arc::default(),
            question: Arc::default(),
        }
    }

    /// Does not wait for the cell to end.
    pub(super) fn interrupt(&self) {
        if self.handle.get().is_none() {
            self.turns.stop();
        }
        // The engine may have become ready meanwhile, and a cell may run that did not see that it is stopped.
        let Some(handle) = self.handle.get().cloned() else {
            self.given_up.notify_waiters();
            return;
        };
        // Looked at here and not on the other thread, which may come to it when the next cell runs already.
        let cell = handle.running().or_else(|| {
            self.turns.stop();
            // One that began meanwhile did not see that it is stopped.
            handle.running()
        });
        if let Some(cell) = cell {
            drop(tokio::task::spawn_blocking(move || handle.interrupt(cell, GRACE)));
        }
    }

    /// Hands an answer to the cell whose question waits for it; a late one to a question that was given up is dropped. Not
    /// every client says what it answers.
    pub(super) fn answer(&self, answered: Option<&str>, text: &str) {
        let mut question = lock(&self.question);
        let fits = question.as_deref().is_some_and(|id| answered.is_none_or(|answered| answered == id));
        if fits && let Some(handle) = self.handle.get() {
            *question = None;
            handle.answer(text);
        }
    }

    /// Nobody waits for an answer any more.
    pub(super) fn forget_question(&self) {
        *lock(&self.question) = None;
    }

    /// Ends the cells' process and lets the last messages leave.
    pub(super) async fn finish(&self) {
        if let Some(handle) = self.handle.get() {
            handle.kill();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_stops_cells_that_have_not_begun_and_no_later_ones() {
        let turns = Turns::default();
        let first = turns.next();
        assert!(!turns.is_stopped(first));
        let second = turns.next();
        turns.stop();
        assert!(turns.is_stopped(first) && turns.is_stopped(second));
        assert!(!turns.is_stopped(turns.next()));
    }
}

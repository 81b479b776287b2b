//! The thread that owns the engine: cells, completions and documentation in the order they are asked for.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::outlets::Outlets;
use super::output::{self, Captured, Item};
use super::prelude::Prelude;
use super::session::{CellError, Session, Sink};
use super::stream::{Event, Stream};
use super::workplace::Workplace;

/// Work for the engine's thread.
pub(super) enum Job {
    Execute { code: String, number: u64, reply: oneshot::Sender<(Result<(), CellError>, Captured)> },
    Complete { code: String, position: usize, reply: oneshot::Sender<(Vec<String>, usize, usize)> },
    Inspect { code: String, position: usize, reply: oneshot::Sender<Option<Map<String, Value>>> },
}

/// The engine's thread and the output's; both live as long as the kernel.
pub(super) fn start(workplace: Workplace, outlets: Outlets) -> (Sender<Job>, SyncSender<Item>) {
    // Bounded: a cell that prints without end waits for the notebook.
    let (items, items_receive) = sync_channel::<Item>(64);
    let (jobs, jobs_receive) = channel::<Job>();
    let out = outlets.clone();
    std::thread::spawn(move || output::run(&items_receive, &out));
    let begins = items.clone();
    std::thread::spawn(move || run(&workplace, &outlets, &items, &jobs_receive));
    (jobs, begins)
}

fn run(workplace: &Workplace, outlets: &Outlets, items: &SyncSender<Item>, jobs: &Receiver<Job>) {
    let events = items.clone();
    let sink: Sink = Arc::new(move |event| {
        // The receiver lives as long as the kernel.
        let _ = events.send(Item::Event(event));
    });
    let mut say = |line: &str| sink(Event::Text(Stream::Err, format!("{line}\n")));
    let mut session = Prelude::find_or_build(workplace.toolchain(), &mut say)
        .and_then(|prelude| Session::start(workplace, prelude, None, sink.clone()));
    if let Ok(session) = &session {
        let _ = outlets.handle.set(session.handle());
    }
    for job in jobs {
        match (job, session.as_mut()) {
            // Given up while the engine was not ready.
            (Job::Execute { reply, .. }, _) if reply.is_closed() => {}
            (Job::Execute { code, number, reply }, Ok(session)) => {
                let outcome = session.execute_unless(&code, &|| outlets.turns.is_stopped(number));
                if let Ok(said) = &outcome
                    && !said.is_empty()
                {
                    let data = said.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
                    let _ = items.send(Item::Event(Event::Display(data, None)));
                }
                let _ = reply.send((outcome.map(|_| ()), end(items)));
            }
            (Job::Execute { reply, .. }, Err(error)) => {
                let captured = end(items);
                let _ = reply.send((Err(CellError::new("KernelError", error.to_string())), captured));
            }
            // Too late to be of use; the next cell must not wait for it.
            (Job::Complete { reply, .. }, _) if reply.is_closed() => {}
            (Job::Inspect { reply, .. }, _) if reply.is_closed() => {}
            (Job::Complete { code, position, reply }, Ok(session)) => {
                let _ = reply.send(session.complete(&code, position));
            }
            (Job::Inspect { code, position, reply }, Ok(session)) => {
                let _ = reply.send(session.inspect(&code, position));
            }
            (Job::Complete { .. } | Job::Inspect { .. }, Err(_)) => {}
        }
    }
}

fn end(items: &SyncSender<Item>) -> Captured {
    let (reply, done) = sync_channel(1);
    let _ = items.send(Item::End(reply));
    done.recv().unwrap_or_default()
}

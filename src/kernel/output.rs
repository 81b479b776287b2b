//! From a cell's events to Jupyter's output messages: text is gathered for a moment instead of sent
//! line by line, a value that ends the cell becomes its result, and no cell can flood a notebook.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use jupyter_protocol::{
    ClearOutput, DisplayData, ExecuteResult, ExecutionCount, InputRequest, JupyterMessage,
    JupyterMessageContent, Media, Stdio, StreamContent, Transient, UpdateDisplayData,
};
use serde_json::{Map, Value};

use super::stream::{Event, Stream};

/// Text waits this long for more.
const GATHER: Duration = Duration::from_millis(30);
/// A value waits this long for the end of its cell, which makes it the result; on a busy machine the
/// end can be late.
const HOLD: Duration = Duration::from_secs(2);
/// In a cell that ends without a value, it waits this long for its other formats.
const HOLD_SHORT: Duration = Duration::from_millis(50);
/// Text sent in one message at most, in bytes.
const MESSAGE: usize = 256 * 1024;
/// Text of one cell at most, in bytes; browsers suffer from more.
const CELL: usize = 10 * 1024 * 1024;

/// Where finished messages go.
pub(super) trait Publish: Send {
    /// To everyone who listens.
    fn publish(&self, message: JupyterMessage);
    /// A question to whoever sent the running request.
    fn ask(&self, message: JupyterMessage);
    /// Nobody can be asked: `request` came from a front end without answers.
    fn no_answer(&self, request: &JupyterMessage);
}

/// What the output thread is told.
pub(super) enum Item {
    /// A cell does something.
    Event(Event),
    /// A cell begins.
    Begin(Box<Begin>),
    /// The engine returned; the values it captured go back.
    End(SyncSender<Captured>),
}

/// A cell about to run.
pub(super) struct Begin {
    /// The request; outputs are its children.
    pub parent: JupyterMessage,
    /// Its number.
    pub count: usize,
    /// The last statement is an expression, whose value is the result.
    pub has_result: bool,
    /// Keep the result instead of publishing anything.
    pub capture: bool,
    /// The sender is ready to answer questions.
    pub may_ask: bool,
}

/// What a captured cell would have shown.
#[derive(Debug, Default)]
pub(super) struct Captured {
    /// The last value, by MIME type.
    pub data: Map<String, Value>,
    /// The text of the result, for the history.
    pub text: Option<String>,
}

struct Running {
    begin: Begin,
    text: Vec<(Stream, String)>,
    since: Option<Instant>,
    sent: usize,
    held: Option<(Map<String, Value>, Instant)>,
    captured: Captured,
}

/// Serves items until their sender is gone.
pub(super) fn run(items: &Receiver<Item>, out: &dyn Publish) {
    let mut early: Vec<(Stream, String)> = Vec::new();
    let mut running: Option<Running> = None;
    loop {
        let item = match items.recv_timeout(GATHER) {
            Ok(item) => Some(item),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match (item, running.as_mut()) {
            (Some(Item::Begin(begin)), _) => {
                let text = std::mem::take(&mut early);
                let since = (!text.is_empty()).then(Instant::now);
                running = Some(Running {
                    begin: *begin,
                    text,
                    since,
                    sent: 0,
                    held: None,
                    captured: Captured::default(),
                });
            }
            (Some(Item::End(reply)), Some(cell)) => {
                cell.flush(out);
                cell.release(out, true);
                let captured = std::mem::take(&mut cell.captured);
                // The engine's thread waits for exactly this.
                let _ = reply.send(captured);
            }
            (Some(Item::End(reply)), None) => drop(reply.send(Captured::default())),
            (Some(Item::Event(event)), Some(cell)) => cell.event(event, out),
            // Before the first cell, while the library is being built: shown with that cell.
            (Some(Item::Event(Event::Text(stream, text))), None) if early.len() < 500 => {
                early.push((stream, text))
            }
            (Some(Item::Event(_)), None) | (None, None) => {}
            (None, Some(cell)) => cell.tick(out),
        }
        if let Some(cell) = running.as_mut().filter(|cell| cell.since.is_some_and(|s| s.elapsed() > GATHER)) {
            cell.flush(out);
        }
    }
}

impl Running {
    fn event(&mut self, event: Event, out: &dyn Publish) {
        match event {
            Event::Text(stream, text) => {
                self.release(out, false);
                match self.text.last_mut() {
                    Some((last, before)) if *last == stream => before.push_str(&text),
                    _ => self.text.push((stream, text)),
                }
                self.since.get_or_insert_with(Instant::now);
                if self.text.iter().map(|(_, t)| t.len()).sum::<usize>() > MESSAGE {
                    self.flush(out);
                }
            }
            Event::Display(data, None) => {
                self.flush(out);
                // One value in several formats arrives block by block.
                if let Some((held, _)) =
                    self.held.as_mut().filter(|(held, _)| !data.keys().any(|k| held.contains_key(k)))
                {
                    held.extend(data);
                    return;
                }
                self.release(out, false);
                self.held = Some((data, Instant::now()));
            }
            Event::Display(data, Some(id)) => {
                self.flush(out);
                self.release(out, false);
                let transient = Some(Transient { display_id: Some(id) });
                self.publish(DisplayData { data: media(data), metadata: Map::new(), transient }, out);
            }
            Event::Update(data, id) => {
                self.flush(out);
                self.publish(UpdateDisplayData::new(media(data), &id), out);
            }
            Event::NoValue => self.release(out, false),
            Event::Clear(wait) => {
                self.flush(out);
                // It came before the clearing, which takes it too.
                self.release(out, false);
                self.publish(ClearOutput { wait }, out);
            }
            Event::Input(prompt, password) => {
                self.flush(out);
                self.release(out, false);
                if self.begin.may_ask {
                    out.ask(JupyterMessage::new(InputRequest { prompt, password }, Some(&self.begin.parent)));
                } else {
                    out.no_answer(&self.begin.parent);
                }
            }
            Event::Failed(..) | Event::Panicked(..) | Event::Working(_) | Event::Done(..) => {}
        }
    }

    fn tick(&mut self, out: &dyn Publish) {
        self.flush(out);
        let hold = if self.begin.has_result { HOLD } else { HOLD_SHORT };
        if self.held.as_ref().is_some_and(|(_, since)| since.elapsed() > hold) {
            self.release(out, false);
        }
    }

    fn flush(&mut self, out: &dyn Publish) {
        self.since = None;
        for (stream, text) in std::mem::take(&mut self.text) {
            let before = self.sent;
            self.sent += text.len();
            if before > CELL {
                continue;
            }
            let name = if stream == Stream::Out { Stdio::Stdout } else { Stdio::Stderr };
            self.publish(StreamContent { name, text }, out);
            if self.sent > CELL {
                let text = format!(
                    "\n[more than {} MiB of text; the rest of this cell's is not shown]\n",
                    CELL >> 20
                );
                self.publish(StreamContent { name: Stdio::Stderr, text }, out);
            }
        }
    }

    fn release(&mut self, out: &dyn Publish, at_end: bool) {
        let Some((data, _)) = self.held.take() else { return };
        if self.begin.capture {
            self.captured.data = data;
            return;
        }
        if at_end && self.begin.has_result {
            self.captured.text = data.get("text/plain").and_then(|t| t.as_str()).map(str::to_owned);
            let mut result = ExecuteResult::new(ExecutionCount::new(self.begin.count), media(data));
            // Without it the crate writes null, which the protocol does not allow.
            result.transient = Some(Transient::default());
            self.publish(result, out);
        } else {
            self.publish(DisplayData::new(media(data)), out);
        }
    }

    fn publish(&self, content: impl Into<JupyterMessageContent>, out: &dyn Publish) {
        if !self.begin.capture {
            out.publish(JupyterMessage::new(content, Some(&self.begin.parent)));
        }
    }
}

/// A MIME bundle. What does not fit its type's shape is shown as text.
pub(super) fn media(data: Map<String, Value>) -> Media {
    let fallback = Value::Object(data.clone()).to_string();
    serde_json::from_value(Value::Object(data))
        .unwrap_or_else(|_| Media::new(vec![jupyter_protocol::MediaType::Plain(fallback)]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::mpsc::sync_channel;

    #[derive(Default)]
    struct Collect(Mutex<Vec<Value>>);

    impl Publish for std::sync::Arc<Collect> {
        fn publish(&self, message: JupyterMessage) {
            let kind = message.message_type().to_owned();
            let content = serde_json::to_value(&message.content).unwrap();
            self.0.lock().unwrap().push(serde_json::json!([kind, content]));
        }
        fn ask(&self, message: JupyterMessage) {
            self.publish(message);
        }
        fn no_answer(&self, _: &JupyterMessage) {}
    }

    fn show(has_result: bool, events: Vec<Event>) -> Vec<Value> {
        let (send, receive) = sync_channel(200);
        let collect = std::sync::Arc::new(Collect::default());
        let parent = JupyterMessage::new(jupyter_protocol::ExecuteRequest::new("x".into()), None);
        let begin = Begin { parent, count: 7, has_result, capture: false, may_ask: false };
        send.send(Item::Begin(Box::new(begin))).unwrap();
        for event in events {
            send.send(Item::Event(event)).unwrap();
        }
        let (reply, done) = sync_channel(1);
        send.send(Item::End(reply)).unwrap();
        drop(send);
        run(&receive, &collect.clone());
        done.recv().unwrap();
        std::mem::take(&mut collect.0.lock().unwrap())
    }

    fn value(mime: &str, text: &str) -> Event {
        Event::Display(Map::from_iter([(mime.to_owned(), Value::from(text))]), None)
    }

    #[test]
    fn text_is_gathered_and_the_last_value_is_the_result() {
        let text = |t: &str| Event::Text(Stream::Out, t.into());
        let got = show(
            true,
            vec![
                text("a"),
                text("b\n"),
                value("text/plain", "1"),
                text("c"),
                value("text/html", "<b>2</b>"),
                value("text/plain", "2"),
            ],
        );
        let kinds: Vec<_> = got.iter().map(|m| m[0].as_str().unwrap()).collect();
        assert_eq!(kinds, ["stream", "display_data", "stream", "execute_result"]);
        assert_eq!(got[0][1]["text"], "ab\n");
        assert_eq!(got[3][1]["execution_count"], 7);
        assert_eq!(got[3][1]["data"], serde_json::json!({"text/html": "<b>2</b>", "text/plain": "2"}));
        let got = show(false, vec![value("text/plain", "1")]);
        assert_eq!(got[0][0], "display_data");
    }

    #[test]
    fn clearing_takes_what_was_shown_before_it() {
        let kinds = |got: &[Value]| got.iter().map(|m| m[0].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let frame = |n: &str| [value("text/html", n), Event::Clear(true)];
        let got = show(true, [frame("1"), frame("2")].concat());
        assert_eq!(kinds(&got), ["display_data", "clear_output", "display_data", "clear_output"]);
        assert_eq!(got[0][1]["data"], serde_json::json!({"text/html": "1"}));
        // A last expression of no value makes none of what it showed.
        let got = show(true, vec![value("text/html", "shown"), Event::NoValue]);
        assert_eq!(kinds(&got), ["display_data"]);
    }

    #[test]
    fn a_flood_is_cut_with_a_note() {
        let line = "x".repeat(1024 * 1024);
        let got = show(false, (0..100).map(|_| Event::Text(Stream::Out, line.clone())).collect());
        let total: usize = got.iter().map(|m| m[1]["text"].as_str().unwrap().len()).sum();
        assert!(total < 13 * 1024 * 1024, "{total}");
        assert!(got.last().unwrap()[1]["text"].as_str().unwrap().contains("not shown"));
    }
}

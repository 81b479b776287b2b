//! What a cell printed, taken apart again: plain text, records of this package, and the text blocks
//! by which other crates show rich output under evcxr. Order is kept; half-arrived marks wait.

use serde_json::{Map, Value};

use super::child::RECORD;

/// Which standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Something a cell did.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Printed text.
    Text(Stream, String),
    /// Rich output: MIME type to content; replaceable under its id.
    Display(Map<String, Value>, Option<String>),
    /// New content for an earlier display.
    Update(Map<String, Value>, String),
    /// Clear the output; true: when more arrives.
    Clear(bool),
    /// A question to the person: prompt, and whether the answer is secret.
    Input(String, bool),
    /// An error returned by `?`: type and text.
    Failed(String, String),
    /// A panic on the cell's thread: message and place.
    Panicked(String, String),
    /// Everything the cell wrote to this stream has arrived; the name of the cell's function.
    Done(Stream, String),
}

const BEGIN: &str = "EVCXR_BEGIN_CONTENT ";
const END: &str = "EVCXR_END_CONTENT";
const INPUT: &str = "EVCXR_INPUT_REQUEST";
const PASSWORD: &str = "EVCXR_INPUT_REQUEST_PASSWORD";

/// Takes one stream apart.
#[derive(Debug)]
pub(super) struct Parser {
    stream: Stream,
    waiting: Vec<u8>,
}

impl Parser {
    /// A parser for `stream`.
    pub(super) fn new(stream: Stream) -> Self {
        Parser { stream, waiting: Vec::new() }
    }

    /// Hands every event completed by `bytes` to `out`. Memory: what is not complete yet, which for
    /// plain text is never more than a mark.
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Event)) {
        self.waiting.extend_from_slice(bytes);
        let buffer = std::mem::take(&mut self.waiting);
        let mut at = 0;
        loop {
            let rest = &buffer[at..];
            let Some(mark) = find_mark(rest) else {
                let keep = partial_mark(rest).max(partial_character(rest));
                self.text(&rest[..rest.len() - keep], out);
                self.waiting = rest[rest.len() - keep..].to_vec();
                return;
            };
            self.text(&rest[..mark], out);
            match parse_mark(&rest[mark..], self.stream) {
                Mark::Event(event, length) => {
                    out(event);
                    at += mark + length;
                }
                Mark::NotOne(length) => {
                    self.text(&rest[mark..mark + length], out);
                    at += mark + length;
                }
                Mark::Incomplete => {
                    self.waiting = rest[mark..].to_vec();
                    return;
                }
            }
        }
    }

    /// Hands out what is left when the stream ended.
    pub(super) fn finish(&mut self, out: &mut dyn FnMut(Event)) {
        let rest = std::mem::take(&mut self.waiting);
        self.text(&rest, out);
    }

    fn text(&self, bytes: &[u8], out: &mut dyn FnMut(Event)) {
        if !bytes.is_empty() {
            out(Event::Text(self.stream, String::from_utf8_lossy(bytes).into_owned()));
        }
    }
}

enum Mark {
    Event(Event, usize),
    /// Looks like a mark but is text of this length.
    NotOne(usize),
    Incomplete,
}

fn find_mark(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(step) = bytes[at..].iter().position(|&b| b == 0x1e || b == b'E') {
        at += step;
        let rest = &bytes[at..];
        if [RECORD, BEGIN, INPUT].iter().any(|mark| rest.starts_with(mark.as_bytes())) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// Length of a tail that could become a mark.
fn partial_mark(bytes: &[u8]) -> usize {
    let longest = RECORD.len().max(BEGIN.len()).max(INPUT.len()) - 1;
    (1..=longest.min(bytes.len()))
        .rev()
        .find(|&n| {
            [RECORD, BEGIN, INPUT].iter().any(|mark| mark.as_bytes().starts_with(&bytes[bytes.len() - n..]))
        })
        .unwrap_or(0)
}

/// Length of a tail that is the beginning of a character.
fn partial_character(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    match std::str::from_utf8(tail) {
        Err(e) if e.error_len().is_none() => tail.len() - e.valid_up_to(),
        Err(_) => tail
            .iter()
            .rposition(|&b| b >= 0xc0)
            .map(|at| tail.len() - at)
            .filter(|&n| std::str::from_utf8(&tail[tail.len() - n..]).is_err_and(|e| e.error_len().is_none()))
            .unwrap_or(0),
        Ok(_) => 0,
    }
}

fn line_end(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == b'\n')
}

fn parse_mark(bytes: &[u8], stream: Stream) -> Mark {
    let Some(end) = line_end(bytes) else { return Mark::Incomplete };
    let line = String::from_utf8_lossy(&bytes[..end]);
    if let Some(json) = line.strip_prefix(RECORD) {
        let event = serde_json::from_str::<Value>(json).ok().and_then(|value| record(&value, stream));
        return event.map_or(Mark::NotOne(end + 1), |event| Mark::Event(event, end + 1));
    }
    if line.starts_with(INPUT) {
        let secret = line.starts_with(PASSWORD);
        let prompt = line.split_once(':').map_or("", |(_, prompt)| prompt).to_owned();
        return Mark::Event(Event::Input(prompt, secret), end + 1);
    }
    let mime = line[BEGIN.len()..].trim().to_owned();
    let body = &bytes[end + 1..];
    let mut from = 0;
    loop {
        let Some(length) = line_end(&body[from..]) else { return Mark::Incomplete };
        if &body[from..from + length] == END.as_bytes() {
            let content = String::from_utf8_lossy(&body[..from.saturating_sub(1)]).into_owned();
            let content = match mime.as_str() {
                "application/json" => serde_json::from_str(&content).unwrap_or(Value::String(content)),
                _ => Value::String(content),
            };
            let data = Map::from_iter([(mime, content)]);
            return Mark::Event(Event::Display(data, None), end + 1 + from + length + 1);
        }
        from += length + 1;
    }
}

fn record(value: &Value, stream: Stream) -> Option<Event> {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let id = || value["id"].as_str().map(str::to_owned);
    if value["done"].is_string() {
        return Some(Event::Done(stream, text("done")));
    }
    if let Some(data) = value["display"].as_object() {
        return Some(Event::Display(data.clone(), id()));
    }
    if let (Some(data), Some(id)) = (value["update"].as_object(), id()) {
        return Some(Event::Update(data.clone(), id));
    }
    if let Some(wait) = value["clear"].as_bool() {
        return Some(Event::Clear(wait));
    }
    if value["input"].is_string() {
        return Some(Event::Input(text("input"), value["password"] == true));
    }
    if value["error"].is_string() {
        return Some(Event::Failed(text("name"), text("error")));
    }
    value["panic"].is_string().then(|| Event::Panicked(text("panic"), text("place")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<Event> {
        let mut parser = Parser::new(Stream::Out);
        let mut events: Vec<Event> = Vec::new();
        let mut join = |event| match (events.last_mut(), event) {
            (Some(Event::Text(_, before)), Event::Text(_, more)) => before.push_str(&more),
            (_, event) => events.push(event),
        };
        for chunk in chunks {
            parser.feed(chunk, &mut join);
        }
        parser.finish(&mut join);
        events
    }

    #[test]
    fn the_same_events_wherever_the_bytes_are_cut() {
        let stream = "Ein Gruß\nno newline\u{1e}cluescope:{\"display\":{\"text/html\":\"<b>é</b>\"},\"id\":\"a\"}\n\
                      more EVCXR_BEGIN_CONTENT text/plain\ntwo\nlines\nEVCXR_END_CONTENT\nEVCXR_INPUT_REQUEST:name?\n\
                      EVCXR is a word\u{1e}, too\u{1e}cluescope:{\"done\":\"f\"}\n";
        let whole = events(&[stream.as_bytes()]);
        assert_eq!(whole.len(), 7, "{whole:?}");
        assert_eq!(whole[0], Event::Text(Stream::Out, "Ein Gruß\nno newline".into()));
        assert!(
            matches!(&whole[1], Event::Display(data, Some(id)) if data["text/html"] == "<b>é</b>" && id == "a")
        );
        assert!(matches!(&whole[3], Event::Display(data, None) if data["text/plain"] == "two\nlines"));
        assert_eq!(whole[4], Event::Input("name?".into(), false));
        assert_eq!(whole[5], Event::Text(Stream::Out, "EVCXR is a word\u{1e}, too".into()));
        assert_eq!(whole[6], Event::Done(Stream::Out, "f".into()));
        for cut in 1..stream.len() {
            assert_eq!(
                events(&[&stream.as_bytes()[..cut], &stream.as_bytes()[cut..]]),
                whole,
                "cut at {cut}"
            );
        }
        let single: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(events(&single), whole);
    }

    #[test]
    fn plain_text_never_waits() {
        let mut parser = Parser::new(Stream::Err);
        let mut got = String::new();
        parser.feed(b"50 % done", &mut |event| {
            if let Event::Text(Stream::Err, text) = event {
                got.push_str(&text);
            }
        });
        assert_eq!(got, "50 % done");
    }

    #[test]
    fn wrong_bytes_become_replacement_characters() {
        assert_eq!(events(&[b"a\xffb"]), [Event::Text(Stream::Out, "a\u{fffd}b".into())]);
    }
}

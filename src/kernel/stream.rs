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
    /// The cell's last expression had no value.
    NoValue,
    /// A question to the person: prompt, and whether the answer is secret.
    Input(String, bool),
    /// An error returned by `?`: type and text.
    Failed(String, String),
    /// Whether the library is at work, so that an interrupt will be heard.
    Working(bool),
    /// A panic on the cell's thread: message and place.
    Panicked(String, String),
    /// Everything the cell wrote to this stream has arrived; the name of the cell's function.
    Done(Stream, String),
}

const BEGIN: &str = "EVCXR_BEGIN_CONTENT ";
const END: &str = "EVCXR_END_CONTENT";
const INPUT: &str = "EVCXR_INPUT_REQUEST";
const PASSWORD: &str = "EVCXR_INPUT_REQUEST_PASSWORD";
/// A record or block longer than this is shown as the text it came as.
const LONGEST: usize = 64 << 20;
/// No name of a content type is longer.
const MIME: usize = 256;

/// Takes one stream apart.
#[derive(Debug)]
pub(super) struct Parser {
    stream: Stream,
    waiting: Vec<u8>,
    /// Start of the first line within `waiting` that was not seen whole, so that a record arriving
    /// in many pieces is read once.
    line: usize,
}

impl Parser {
    /// A parser for `stream`.
    pub(super) fn new(stream: Stream) -> Self {
        Parser { stream, waiting: Vec::new(), line: 0 }
    }

    /// Hands every event completed by `bytes` to `out`. Memory: what is not complete yet, which for
    /// plain text is never more than a mark.
    pub(super) fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Event)) {
        let mut buffer = std::mem::take(&mut self.waiting);
        let mut line = std::mem::take(&mut self.line);
        buffer.extend_from_slice(bytes);
        let mut at = 0;
        let keep = loop {
            let rest = &buffer[at..];
            let Some(mark) = find_mark(rest) else {
                let keep = partial_mark(rest).max(partial_character(rest));
                self.text(&rest[..rest.len() - keep], out);
                break buffer.len() - keep;
            };
            self.text(&rest[..mark], out);
            at += mark;
            match parse_mark(&buffer[at..], line, self.stream) {
                Mark::Event(event, length) => {
                    out(event);
                    at += length;
                }
                Mark::NotOne(length) => {
                    self.text(&buffer[at..at + length], out);
                    at += length;
                }
                Mark::Incomplete(line) => {
                    self.line = line;
                    break at;
                }
            }
            line = 0;
        };
        // Nothing is copied while one long record arrives.
        buffer.drain(..keep);
        self.waiting = buffer;
    }

    /// Hands out what is left when the stream ended.
    pub(super) fn finish(&mut self, out: &mut dyn FnMut(Event)) {
        let rest = std::mem::take(&mut self.waiting);
        self.line = 0;
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
    /// More must arrive; from here on no line was seen whole.
    Incomplete(usize),
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

/// Length of the line at `from`, which may go on.
fn line_end(bytes: &[u8], from: usize) -> Option<usize> {
    bytes[from..].iter().position(|&b| b == b'\n')
}

/// What begins at the start of `bytes`; what lies before `seen` was looked at before and held no end.
fn parse_mark(bytes: &[u8], seen: usize, stream: Stream) -> Mark {
    let block = bytes.starts_with(BEGIN.as_bytes());
    if block && seen > 0 {
        return parse_block(bytes, seen);
    }
    let end = line_end(bytes, seen).map(|length| seen + length);
    let line = &bytes[..end.unwrap_or(bytes.len())];
    // Text that only begins like a mark, and then a record of ours; the latter has none inside, for
    // JSON writes the separator in another way.
    let again = seen.saturating_sub(RECORD.len()).max(1);
    if let Some(at) = find(&line[again..], RECORD) {
        return Mark::NotOne(again + at);
    }
    let Some(end) = end else {
        return match bytes.len() {
            length if length > LONGEST => Mark::NotOne(length),
            length if block && length > BEGIN.len() + MIME => Mark::NotOne(BEGIN.len()),
            _ if block => Mark::Incomplete(0),
            length => Mark::Incomplete(length),
        };
    };
    if block {
        return parse_block(bytes, end + 1);
    }
    let line = String::from_utf8_lossy(line);
    if let Some(json) = line.strip_prefix(RECORD) {
        let event = serde_json::from_str::<Value>(json).ok().and_then(|value| record(&value, stream));
        return event.map_or(Mark::NotOne(end + 1), |event| Mark::Event(event, end + 1));
    }
    let secret = line.starts_with(PASSWORD);
    let prompt = line.split_once(':').map_or("", |(_, prompt)| prompt).to_owned();
    Mark::Event(Event::Input(prompt, secret), end + 1)
}

fn find(bytes: &[u8], mark: &str) -> Option<usize> {
    let mut at = 0;
    while let Some(step) = bytes[at..].iter().position(|b| *b == mark.as_bytes()[0]) {
        at += step;
        if bytes[at..].starts_with(mark.as_bytes()) {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// A block of rich output whose next unread line starts at `from`.
fn parse_block(bytes: &[u8], mut from: usize) -> Mark {
    loop {
        let length = line_end(bytes, from);
        let line = &bytes[from..length.map_or(bytes.len(), |length| from + length)];
        if let Some(at) = find(line, RECORD) {
            // A block that was never ended must not swallow what comes after it.
            return Mark::NotOne(from + at);
        }
        let Some(length) = length else {
            return if bytes.len() > LONGEST { Mark::NotOne(bytes.len()) } else { Mark::Incomplete(from) };
        };
        if line == END.as_bytes() {
            let head = line_end(bytes, 0).unwrap_or(0);
            let mime = String::from_utf8_lossy(&bytes[BEGIN.len()..head]).trim().to_owned();
            let body = bytes.get(head + 1..from.saturating_sub(1)).unwrap_or_default();
            let content = String::from_utf8_lossy(body).into_owned();
            let content = match mime.as_str() {
                "application/json" => serde_json::from_str(&content).unwrap_or(Value::String(content)),
                _ => Value::String(content),
            };
            return Mark::Event(Event::Display(Map::from_iter([(mime, content)]), None), from + length + 1);
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
    if value["result"] == false {
        return Some(Event::NoValue);
    }
    if let Some(text) = value["stderr"].as_str() {
        return Some(Event::Text(Stream::Err, text.to_owned()));
    }
    if let Some(working) = value["working"].as_bool() {
        return Some(Event::Working(working));
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
    fn a_block_without_its_end_swallows_nothing() {
        for begun in
            ["EVCXR_BEGIN_CONTENT text/html\nabc\ndef", "EVCXR_BEGIN_CONTENT ", "EVCXR_INPUT_REQUEST"]
        {
            let stream = format!("x{begun}\u{1e}cluescope:{{\"done\":\"f\"}}\nmore");
            let whole = events(&[stream.as_bytes()]);
            assert_eq!(
                whole,
                [
                    Event::Text(Stream::Out, format!("x{begun}")),
                    Event::Done(Stream::Out, "f".into()),
                    Event::Text(Stream::Out, "more".into())
                ]
            );
            for cut in 1..stream.len() {
                let parts = [&stream.as_bytes()[..cut], &stream.as_bytes()[cut..]];
                assert_eq!(events(&parts), whole, "cut at {cut}");
            }
        }
    }

    #[test]
    fn long_records_arrive_whole_and_endless_ones_as_text() {
        let picture = "<svg>\n".repeat(1 << 20);
        let record =
            format!("\u{1e}cluescope:{}\n", serde_json::json!({ "display": { "text/html": picture } }));
        let block = format!("EVCXR_BEGIN_CONTENT text/html\n{picture}EVCXR_END_CONTENT\n");
        for text in [record, block] {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(4096).collect();
            let got = events(&pieces);
            assert!(matches!(&got[..], [Event::Display(data, None)]
                if data["text/html"].as_str().unwrap().trim_end() == picture.trim_end()));
        }
        let endless = "EVCXR_BEGIN_CONTENT text/html\n".to_owned() + &"y".repeat(LONGEST + 10) + "\nz";
        let pieces: Vec<&[u8]> = endless.as_bytes().chunks(1 << 20).collect();
        assert!(matches!(&events(&pieces)[..], [Event::Text(_, text)] if *text == endless));
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

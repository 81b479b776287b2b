//! Runs notebooks without Python and without a server: the same engine, the outputs written into
//! the notebook as Jupyter would.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use jupyter_protocol::{ExecuteRequest, JupyterMessage};
use serde_json::{Map, Value, json};

use super::compare::compare;
use super::diagnostics;
use super::kernelspec;
use super::output::{self, Begin, Item, Publish};
use super::prelude::Prelude;
use super::session::{CellError, GRACE, Session, Sink};
use super::stream::Event;
use super::syntax;
use super::types;
use super::workplace::Workplace;
use crate::error::{Error, Result};
use crate::files;
use crate::progress::check_interrupt;

/// How to run notebooks.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Folder for the executed notebooks; none: each replaces its file.
    pub out: Option<PathBuf>,
    /// `NAME` and `VALUE`, a Rust expression: set after the cell tagged `parameters`, with the type declared there, or
    /// first.
    pub parameters: Vec<(String, String)>,
    /// Write nothing; fail when an output differs from the one in the file, by as much as the
    /// cell's tag allows: `exact` (as without a tag), `tolerance`, `tolerance=0.01`, `interval`, `kind`.
    pub check: bool,
}

/// Runs each of `notebooks` in a fresh engine. `say` gets a line for every notebook and for the
/// build of the library, where one is due.
///
/// # Errors
/// [`Error::Stopped`] with the cell and its message at the first failing cell; the notebook as far as it got is
/// still written. With `check`, [`Error::Stopped`] after the last notebook with all that failed or differed.
/// [`Error::Interrupted`] after [`crate::progress::interrupt`].
pub fn run_notebooks(
    workplace: &Workplace,
    notebooks: &[PathBuf],
    options: &RunOptions,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let prelude = Prelude::find_or_build(workplace.toolchain(), say)?;
    let mut found = Vec::new();
    for path in notebooks {
        let start = std::time::Instant::now();
        let mut notebook: Value = serde_json::from_str(&files::read_text(path)?)
            .map_err(|e| Error::format(path, format!("line {}", e.line()), format!("not a notebook: {e}")))?;
        let before = notebook.clone();
        set_parameters(&mut notebook, &options.parameters);
        name_kernel(&mut notebook);
        let outcome = execute(workplace, &prelude, &mut notebook, path);
        if !options.check {
            let target = match &options.out {
                Some(folder) => folder.join(path.file_name().unwrap_or_default()),
                None => path.clone(),
            };
            write(&target, &notebook)?;
        }
        let outcome = match outcome {
            Ok(cells) if options.check => compare(&before, &notebook, path).map(|()| cells),
            other => other,
        };
        match outcome {
            Ok(cells) => {
                say(&format!("{}: {cells} cells, {:.1} s", path.display(), start.elapsed().as_secs_f64()));
            }
            Err(Error::Stopped(what)) if options.check => found.push(what),
            Err(error) => return Err(error),
        }
    }
    if found.is_empty() { Ok(()) } else { Err(Error::Stopped(found.join("\n\n"))) }
}

fn write(path: &Path, notebook: &Value) -> Result<()> {
    files::write_atomic(path, |out| {
        // One blank of indentation and a line end: as Jupyter writes, so that differences stay small.
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut *out, formatter);
        serde::Serialize::serialize(notebook, &mut serializer).map_err(|e| Error::Stopped(e.to_string()))?;
        out.write_all(b"\n").map_err(Error::io(path))
    })
}

fn set_parameters(notebook: &mut Value, parameters: &[(String, String)]) {
    if parameters.is_empty() {
        return;
    }
    // `let n: usize = 2;` in the notebook means that a new `n` is a `usize` too.
    let declared = notebook["cells"].as_array().into_iter().flatten().filter(|c| has_tag(c, "parameters"));
    let declared: String = declared.map(|cell| joined(&cell["source"]) + "\n").collect();
    let source: String = parameters
        .iter()
        .map(|(name, value)| match types::declared(&declared, name) {
            Some(type_name) => format!("let {name}: {type_name} = {value};\n"),
            None => format!("let {name} = {value};\n"),
        })
        .collect();
    let mut cell = json!({
        "cell_type": "code", "execution_count": null,
        "metadata": { "tags": ["injected-parameters"] }, "outputs": [], "source": lines(&source)
    });
    // Formats before 4.5 know no ids, and readers refuse them.
    if notebook["nbformat_minor"].as_u64() >= Some(5) {
        cell["id"] = "injected-parameters".into();
    }
    if let Some(cells) = notebook["cells"].as_array_mut() {
        cells.retain(|c| !has_tag(c, "injected-parameters"));
        let at = cells.iter().position(|c| has_tag(c, "parameters")).map_or(0, |at| at + 1);
        cells.insert(at, cell);
    }
}

/// A notebook without a kernel gets this one, as Jupyter would write it.
fn name_kernel(notebook: &mut Value) {
    if notebook["metadata"]["kernelspec"].is_null() {
        notebook["metadata"]["kernelspec"] =
            json!({ "display_name": kernelspec::TITLE, "language": "rust", "name": kernelspec::NAME });
        notebook["metadata"]["language_info"] = json!({
            "codemirror_mode": "rust", "file_extension": ".rs", "mimetype": "text/rust", "name": "rust",
            "pygments_lexer": "rust", "version": env!("CARGO_PKG_RUST_VERSION")
        });
    }
}

pub(super) fn has_tag(cell: &Value, tag: &str) -> bool {
    cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag))
}

/// Source and text outputs are lists of lines in files, or one string.
pub(super) fn joined(value: &Value) -> String {
    match value {
        Value::Array(lines) => lines.iter().filter_map(|l| l.as_str()).collect(),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

fn lines(text: &str) -> Value {
    text.split_inclusive('\n').map(Value::from).collect()
}

#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Vec<(String, Value)>>>);

impl Publish for Collect {
    fn publish(&self, message: JupyterMessage) {
        let content = serde_json::to_value(&message.content).unwrap_or_default();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((message.message_type().to_owned(), content));
    }

    fn ask(&self, _message: JupyterMessage) {}

    fn no_answer(&self, _request: &JupyterMessage) {}
}

fn execute(workplace: &Workplace, prelude: &Prelude, notebook: &mut Value, path: &Path) -> Result<usize> {
    let collect = Collect::default();
    let (items, receive) = sync_channel::<Item>(64);
    let out = collect.clone();
    std::thread::spawn(move || output::run(&receive, &out));
    let events = items.clone();
    let answer: Arc<Mutex<Option<super::session::Handle>>> = Arc::default();
    let answering = answer.clone();
    let sink: Sink = Arc::new(move |event| {
        if matches!(event, Event::Input(..))
            && let Some(handle) = answering.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            handle.answer("");
        }
        let _ = events.send(Item::Event(event));
    });
    // As in Jupyter, where a notebook's relative paths start in its folder.
    let home = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut session = Session::start(workplace, prelude.clone(), home, sink)?;
    let handle = session.handle();
    *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle.clone());
    let alive = Arc::new(());
    let running = Arc::downgrade(&alive);
    std::thread::spawn(move || {
        // Ctrl-C reaches this process alone; the cell is told from here, until the notebook ends.
        while running.strong_count() > 0 {
            if check_interrupt().is_err() {
                handle.interrupt(GRACE);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let mut count = 0;
    let mut outputs: Vec<Vec<Value>> = Vec::new();
    let mut places: Vec<(String, usize, usize)> = Vec::new();
    let mut failure = None;
    let Some(cells) = notebook["cells"].as_array_mut() else {
        return Err(Error::format(path, "cells", "no list of cells; only notebook format 4 is supported"));
    };
    let is_code = |cell: &Value| cell["cell_type"] == "code";
    for cell in cells.iter_mut().filter(|c| is_code(c)) {
        let code = joined(&cell["source"]);
        if code.trim().is_empty() {
            cell["execution_count"] = Value::Null;
            outputs.push(Vec::new());
            continue;
        }
        count += 1;
        cell["execution_count"] = count.into();
        let outcome = run_cell(&mut session, &items, &code, count);
        let messages = std::mem::take(&mut *collect.0.lock().unwrap_or_else(PoisonError::into_inner));
        outputs.push(Vec::new());
        for (kind, content) in messages {
            place(&kind, content, &mut outputs, &mut places);
        }
        if let Err(error) = outcome {
            let CellError { ename, evalue, traceback } = error;
            let text = diagnostics::without_colours(&traceback.join("\n"));
            let text = format!("{}: cell {count} failed\n{text}", path.display());
            let shown =
                json!({ "output_type": "error", "ename": ename, "evalue": evalue, "traceback": traceback });
            if let Some(last) = outputs.last_mut() {
                last.push(shown);
            }
            let expected = has_tag(cell, "raises-exception");
            if !expected {
                failure = Some(text);
                break;
            }
        }
    }
    for (cell, outputs) in cells.iter_mut().filter(|c| is_code(c)).zip(outputs) {
        cell["outputs"] = outputs.into();
    }
    drop(alive);
    check_interrupt()?;
    match failure {
        Some(text) => Err(Error::Stopped(text)),
        None => Ok(count),
    }
}

fn run_cell(
    session: &mut Session,
    items: &SyncSender<Item>,
    code: &str,
    count: usize,
) -> Result<(), CellError> {
    let parent = JupyterMessage::new(ExecuteRequest::new(code.to_owned()), None);
    let begin =
        Begin { parent, count, has_result: syntax::ends_with_value(code), capture: false, may_ask: true };
    let _ = items.send(Item::Begin(Box::new(begin)));
    let outcome = session.execute(code);
    if let Ok(said) = &outcome
        && !said.is_empty()
    {
        let data = said.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))).collect();
        let _ = items.send(Item::Event(Event::Display(data, None)));
    }
    let (reply, done) = sync_channel(1);
    let _ = items.send(Item::End(reply));
    let _ = done.recv();
    outcome.map(|_| ())
}

/// Puts one message where it belongs: at the end, onto the text before it, or in place of an
/// earlier display.
fn place(kind: &str, content: Value, outputs: &mut [Vec<Value>], places: &mut Vec<(String, usize, usize)>) {
    let cell = outputs.len().saturating_sub(1);
    let Some(current) = outputs.last_mut() else { return };
    let id = content["transient"]["display_id"].as_str().map(str::to_owned);
    match kind {
        "stream" => {
            let text = content["text"].as_str().unwrap_or_default();
            let name = &content["name"];
            if let Some(last) =
                current.last_mut().filter(|l| l["output_type"] == "stream" && l["name"] == *name)
            {
                last["text"] = lines(&(joined(&last["text"]) + text));
            } else {
                current.push(json!({ "name": name, "output_type": "stream", "text": lines(text) }));
            }
        }
        "display_data" | "execute_result" => {
            let mut shown = json!({ "data": split(&content["data"]), "metadata": {}, "output_type": kind });
            if kind == "execute_result" {
                shown["execution_count"] = content["execution_count"].clone();
            }
            places.extend(id.map(|id| (id, cell, current.len())));
            current.push(shown);
        }
        "update_display_data" => {
            for (_, cell, index) in places.iter().filter(|(known, ..)| Some(known) == id.as_ref()) {
                if let Some(shown) = outputs.get_mut(*cell).and_then(|cell| cell.get_mut(*index)) {
                    shown["data"] = split(&content["data"]);
                }
            }
        }
        "clear_output" => {
            current.clear();
            places.retain(|(_, at, _)| *at != cell);
        }
        _ => {}
    }
}

/// Text formats as lists of lines, as notebooks keep them.
fn split(data: &Value) -> Value {
    let entries = data.as_object().into_iter().flatten().map(|(mime, value)| {
        let text = mime.starts_with("text/") || mime == "image/svg+xml" || mime == "application/javascript";
        let value = match value.as_str() {
            Some(content) if text => lines(content),
            _ => value.clone(),
        };
        (mime.clone(), value)
    });
    Value::Object(Map::from_iter(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_outputs() {
        let mut outputs = vec![Vec::new()];
        let mut places = Vec::new();
        let mut put = |kind: &str, content: Value| place(kind, content, &mut outputs, &mut places);
        put("stream", json!({ "name": "stdout", "text": "a" }));
        put("stream", json!({ "name": "stdout", "text": "b\nc" }));
        put("display_data", json!({ "data": { "text/html": "0 %" }, "transient": { "display_id": "bar" } }));
        put(
            "update_display_data",
            json!({ "data": { "text/html": "100 %\ndone" }, "transient": { "display_id": "bar" } }),
        );
        assert_eq!(outputs[0][0]["text"], json!(["ab\n", "c"]));
        assert_eq!(outputs[0][1]["data"]["text/html"], json!(["100 %\n", "done"]));
        assert_eq!(outputs[0].len(), 2);
    }

    #[test]
    fn parameters_follow_their_cell() {
        let mut notebook = json!({ "cells": [
            { "cell_type": "markdown", "source": "x" },
            { "cell_type": "code", "metadata": { "tags": ["parameters"] }, "source": "let m = 2;\nlet n: usize = 1;" },
            { "cell_type": "code", "metadata": {}, "source": "n" }
        ] });
        for _ in 0..2 {
            set_parameters(&mut notebook, &[("n".into(), "5".into())]);
        }
        assert_eq!(notebook["cells"][2]["id"], Value::Null);
        notebook["nbformat_minor"] = 5.into();
        set_parameters(&mut notebook, &[("n".into(), "5".into())]);
        assert_eq!(notebook["cells"][2]["id"], "injected-parameters");
        let cells = notebook["cells"].as_array().unwrap();
        assert_eq!(cells.len(), 4);
        assert_eq!(joined(&cells[2]["source"]), "let n: usize = 5;\n");
    }
}

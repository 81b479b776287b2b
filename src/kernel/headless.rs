//! Runs notebooks without Python and without a server: the same engine, the outputs written into
//! the notebook as Jupyter would.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use jupyter_protocol::{ExecuteRequest, JupyterMessage};
use serde_json::{Map, Value, json};

use super::output::{self, Begin, Item, Publish};
use super::prelude::Prelude;
use super::session::{CellError, Session, Sink, Workplace};
use super::stream::Event;
use super::syntax;
use crate::error::{Error, Result};
use crate::files;

/// How to run notebooks.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Folder for the executed notebooks; none: each replaces its file.
    pub out: Option<PathBuf>,
    /// `NAME` and `VALUE`, a Rust expression: set after the cell tagged `parameters`, or first.
    pub parameters: Vec<(String, String)>,
    /// Write nothing; fail when an output differs from the one in the file.
    pub check: bool,
}

/// Runs each of `notebooks` in a fresh engine. `say` gets a line for every notebook and for the
/// build of the library, where one is due. Call before other threads start.
///
/// # Errors
/// [`Error::Stopped`] with the cell and its message at the first failing cell, or with the first
/// difference; the notebook as far as it got is still written.
pub fn run_notebooks(notebooks: &[PathBuf], options: &RunOptions, say: &mut dyn FnMut(&str)) -> Result<()> {
    let workplace = Workplace::prepare()?;
    let prelude = Prelude::find_or_build(workplace.toolchain(), say)?;
    for path in notebooks {
        let start = std::time::Instant::now();
        let mut notebook: Value = serde_json::from_str(&files::read_text(path)?)
            .map_err(|e| Error::format(path, format!("line {}", e.line()), format!("not a notebook: {e}")))?;
        let before = notebook.clone();
        set_parameters(&mut notebook, &options.parameters);
        let outcome = execute(&workplace, &prelude, &mut notebook, path);
        if !options.check {
            let target = match &options.out {
                Some(folder) => folder.join(path.file_name().unwrap_or_default()),
                None => path.clone(),
            };
            write(&target, &notebook)?;
        }
        let cells = outcome?;
        if options.check {
            compare(&before, &notebook, path)?;
        }
        say(&format!("{}: {cells} cells, {:.1} s", path.display(), start.elapsed().as_secs_f64()));
    }
    Ok(())
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
    let source: String = parameters.iter().map(|(name, value)| format!("let {name} = {value};\n")).collect();
    let cell = json!({
        "cell_type": "code", "execution_count": null, "id": "injected-parameters",
        "metadata": { "tags": ["injected-parameters"] }, "outputs": [], "source": lines(&source)
    });
    if let Some(cells) = notebook["cells"].as_array_mut() {
        cells.retain(|c| !has_tag(c, "injected-parameters"));
        let at = cells.iter().position(|c| has_tag(c, "parameters")).map_or(0, |at| at + 1);
        cells.insert(at, cell);
    }
}

fn has_tag(cell: &Value, tag: &str) -> bool {
    cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag))
}

/// Source and text outputs are lists of lines in files, or one string.
fn joined(value: &Value) -> String {
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

    fn no_answer(&self) {}
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
    let mut session = Session::start(workplace, prelude.clone(), sink)?;
    *answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(session.handle());
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
            let text = format!("{}: cell {count} failed\n{}", path.display(), traceback.join("\n"));
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

/// Compares what a reader sees: values, displays, standard output and errors; not the standard
/// error stream, where times and progress go.
fn compare(before: &Value, after: &Value, path: &Path) -> Result<()> {
    let seen = |notebook: &Value| -> Vec<Vec<Value>> {
        let cells = notebook["cells"].as_array().into_iter().flatten();
        let code = cells.filter(|c| c["cell_type"] == "code" && !has_tag(c, "injected-parameters"));
        code.map(|c| {
            let outputs = c["outputs"].as_array().into_iter().flatten();
            outputs
                .filter(|o| o["name"] != "stderr")
                .map(|o| match o["output_type"].as_str() {
                    Some("stream") => joined(&o["text"]).into(),
                    Some("error") => json!([o["ename"], o["evalue"]]),
                    _ => split(&Value::Object(Map::from_iter(
                        o["data"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), whole(v))),
                    ))),
                })
                .collect()
        })
        .collect()
    };
    for (index, (old, new)) in seen(before).iter().zip(seen(after)).enumerate() {
        if *old != new {
            let show = |outputs: &[Value]| serde_json::to_string_pretty(outputs).unwrap_or_default();
            return Err(Error::Stopped(format!(
                "{}: code cell {} shows something else now\n--- in the file\n{}\n--- now\n{}",
                path.display(),
                index + 1,
                show(old),
                show(&new)
            )));
        }
    }
    Ok(())
}

fn whole(value: &Value) -> Value {
    match value {
        Value::Array(parts) if parts.iter().all(|p| p.is_string()) => joined(value).into(),
        other => other.clone(),
    }
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
            { "cell_type": "code", "metadata": { "tags": ["parameters"] }, "source": "let n = 1;" },
            { "cell_type": "code", "metadata": {}, "source": "n" }
        ] });
        for _ in 0..2 {
            set_parameters(&mut notebook, &[("n".into(), "5".into())]);
        }
        let cells = notebook["cells"].as_array().unwrap();
        assert_eq!(cells.len(), 4);
        assert_eq!(joined(&cells[2]["source"]), "let n = 5;\n");
    }

    #[test]
    fn differences_are_found_and_standard_error_is_not_one() {
        let notebook = |out: &str, err: &str| {
            json!({ "cells": [{ "cell_type": "code", "source": "1", "outputs": [
                { "output_type": "stream", "name": "stderr", "text": err },
                { "output_type": "execute_result", "data": { "text/plain": out } }
            ] }] })
        };
        let path = Path::new("a.ipynb");
        assert!(compare(&notebook("1", "0.1 s"), &notebook("1", "0.2 s"), path).is_ok());
        let split_up = json!({ "cells": [{ "cell_type": "code", "source": "1", "outputs": [
            { "output_type": "execute_result", "data": { "text/plain": ["1"] } }] }] });
        assert!(compare(&notebook("1", ""), &split_up, path).is_ok());
        let error = compare(&notebook("1", ""), &notebook("2", ""), path).unwrap_err().to_string();
        assert!(error.contains("code cell 1"), "{error}");
    }
}

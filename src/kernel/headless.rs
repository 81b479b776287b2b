//! Runs notebooks without Python and without a server: the same engine, the outputs written into
//! the notebook as Jupyter would.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// `NAME` and `VALUE`, a Rust expression. Set in each notebook whose cell tagged `parameters` declares the name, after
    /// that cell and with the type declared there; where no notebook has such a cell, first in all.
    pub parameters: Vec<(String, String)>,
    /// Write nothing; fail when an output differs from the one in the file, by as much as the
    /// cell's tag allows: `exact` (as without a tag), `tolerance`, `tolerance=0.01`, `interval`, `kind`.
    pub check: bool,
}

/// Runs each of `notebooks` in a fresh engine. `say` gets a line for every notebook and for the
/// build of the library, where one is due.
///
/// # Errors
/// [`Error::Option`] before any cell runs, for a parameter that none of the notebooks declares though some have a cell
/// tagged `parameters`. [`Error::Stopped`] with the cell and its message at the first failing cell; the notebook as far as it got is
/// still written, without the outputs of later cells. With `check`, [`Error::Stopped`] after the last notebook with all that failed or differed.
/// [`Error::Interrupted`] after [`crate::progress::interrupt`].
pub fn run_notebooks(
    workplace: &Workplace,
    notebooks: &[PathBuf],
    options: &RunOptions,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let all = notebooks.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let declared: Vec<Option<Vec<String>>> = all.iter().map(declared_parameters).collect();
    know(&declared, &options.parameters)?;
    let anywhere = declared.iter().any(Option::is_some);
    let prelude = Prelude::find_or_build(workplace.toolchain(), say)?;
    let mut found = Vec::new();
    for ((path, before), declared) in notebooks.iter().zip(&all).zip(&declared) {
        let start = std::time::Instant::now();
        let mut notebook = before.clone();
        let mut parameters = options.parameters.clone();
        parameters
            .retain(|(name, _)| !anywhere || declared.as_ref().is_some_and(|known| known.contains(name)));
        set_parameters(&mut notebook, &parameters);
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
            Ok(cells) if options.check => compare(before, &notebook, path).map(|()| cells),
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

fn read(path: &Path) -> Result<Value> {
    serde_json::from_str(&files::read_text(path)?)
        .map_err(|e| Error::format(path, format!("line {}", e.line()), format!("not a notebook: {e}")))
}

/// What the cells tagged `parameters` declare; `None` without such a cell.
fn declared_parameters(notebook: &Value) -> Option<Vec<String>> {
    let cells = notebook["cells"].as_array()?.iter().filter(|cell| has_tag(cell, "parameters"));
    let sources: Vec<String> = cells.map(|cell| joined(&cell["source"])).collect();
    (!sources.is_empty()).then(|| sources.iter().flat_map(|source| types::variables(source)).collect())
}

/// Refuses a parameter that is a slip of the pen.
fn know(declared: &[Option<Vec<String>>], parameters: &[(String, String)]) -> Result<()> {
    let mut known: Vec<&str> = declared.iter().flatten().flatten().map(String::as_str).collect();
    known.sort_unstable();
    known.dedup();
    let stray = parameters.iter().find(|(name, _)| !known.contains(&name.as_str()));
    match stray.filter(|_| declared.iter().any(Option::is_some)) {
        Some((name, value)) => {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let expected = format!(
                "no notebook given declares `{name}`; the cells tagged `parameters` declare: {known}"
            );
            Err(Error::option("--param", format!("{name}={value}"), expected))
        }
        None => Ok(()),
    }
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

/// What the cells so far show. Messages are folded in as they come: a curve that is drawn again twice a second for an
/// hour is one picture here.
#[derive(Clone, Default)]
struct Collect(Arc<Mutex<Outputs>>);

impl Collect {
    fn outputs(&self) -> MutexGuard<'_, Outputs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Publish for Collect {
    fn publish(&self, message: JupyterMessage) {
        let content = serde_json::to_value(&message.content).unwrap_or_default();
        self.outputs().place(message.message_type(), content);
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
            if check_interrupt().is_err()
                && let Some(cell) = handle.running()
            {
                handle.interrupt(cell, GRACE);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let mut count = 0;
    let mut failure = None;
    let Some(cells) = notebook["cells"].as_array_mut() else {
        return Err(Error::format(path, "cells", "no list of cells; only notebook format 4 is supported"));
    };
    let is_code = |cell: &Value| cell["cell_type"] == "code";
    for cell in cells.iter_mut().filter(|c| is_code(c)) {
        // Outputs of an earlier run would look as if the cells after a failing one had run.
        cell["outputs"] = json!([]);
        cell["execution_count"] = Value::Null;
    }
    for cell in cells.iter_mut().filter(|c| is_code(c)) {
        let code = joined(&cell["source"]);
        collect.outputs().begin();
        if code.trim().is_empty() {
            continue;
        }
        count += 1;
        cell["execution_count"] = count.into();
        let outcome = run_cell(&mut session, &items, &code, count);
        if let Err(error) = outcome {
            let CellError { ename, evalue, traceback } = error;
            let text = diagnostics::without_colours(&traceback.join("\n"));
            let text = format!("{}: cell {count} failed\n{text}", path.display());
            let shown = json!({ "ename": ename, "evalue": evalue, "traceback": traceback });
            collect.outputs().place("error", shown);
            let expected = has_tag(cell, "raises-exception");
            if !expected {
                failure = Some(text);
                break;
            }
        }
    }
    let outputs = std::mem::take(&mut collect.outputs().cells);
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

/// What each cell shows, in the form of notebooks.
#[derive(Default)]
struct Outputs {
    cells: Vec<Vec<Value>>,
    /// Where displays that may be replaced stand: id, cell, place within it.
    places: Vec<(String, usize, usize)>,
    /// The next output clears those before it.
    clear: bool,
}

impl Outputs {
    /// The next cell begins.
    fn begin(&mut self) {
        self.cells.push(Vec::new());
        self.clear = false;
    }

    /// Puts one message where it belongs: at the end, onto the text before it, or in place of an
    /// earlier display.
    fn place(&mut self, kind: &str, content: Value) {
        let shows = ["stream", "display_data", "execute_result", "error"].contains(&kind);
        if kind == "clear_output" && content["wait"] == true {
            self.clear = true;
            return;
        }
        if kind == "clear_output" || (shows && std::mem::take(&mut self.clear)) {
            self.clear_now();
        }
        let cell = self.cells.len().saturating_sub(1);
        let Some(current) = self.cells.last_mut() else { return };
        let id = content["transient"]["display_id"].as_str().map(str::to_owned);
        match kind {
            "stream" => {
                let text = content["text"].as_str().unwrap_or_default();
                let name = &content["name"];
                match current.last_mut() {
                    Some(last) if last["output_type"] == "stream" && last["name"] == *name => {
                        append(&mut last["text"], text);
                    }
                    _ => current.push(json!({ "name": name, "output_type": "stream", "text": lines(text) })),
                }
            }
            "display_data" | "execute_result" => {
                let mut shown =
                    json!({ "data": split(&content["data"]), "metadata": {}, "output_type": kind });
                if kind == "execute_result" {
                    shown["execution_count"] = content["execution_count"].clone();
                }
                self.places.extend(id.map(|id| (id, cell, current.len())));
                current.push(shown);
            }
            "update_display_data" => {
                for (_, cell, index) in self.places.iter().filter(|(known, ..)| Some(known) == id.as_ref()) {
                    if let Some(shown) = self.cells.get_mut(*cell).and_then(|cell| cell.get_mut(*index)) {
                        shown["data"] = split(&content["data"]);
                    }
                }
            }
            "error" => {
                let mut shown = content;
                shown["output_type"] = "error".into();
                current.push(shown);
            }
            _ => {}
        }
    }

    fn clear_now(&mut self) {
        self.clear = false;
        let cell = self.cells.len().saturating_sub(1);
        self.cells.last_mut().into_iter().for_each(Vec::clear);
        self.places.retain(|(_, at, _)| *at != cell);
    }
}

/// Adds text to a list of lines, of which the last may go on.
fn append(list: &mut Value, text: &str) {
    let Some(list) = list.as_array_mut() else { return };
    let mut more = text.to_owned();
    if let Some(Value::String(last)) = list.pop_if(|last| last.as_str().is_some_and(|l| !l.ends_with('\n'))) {
        more.insert_str(0, &last);
    }
    list.extend(more.split_inclusive('\n').map(Value::from));
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

    fn outputs(messages: &[(&str, Value)]) -> Outputs {
        let mut outputs = Outputs::default();
        outputs.begin();
        messages.iter().for_each(|(kind, content)| outputs.place(kind, content.clone()));
        outputs
    }

    fn text(text: &str) -> (&'static str, Value) {
        ("stream", json!({ "name": "stdout", "text": text }))
    }

    fn bar(kind: &'static str, html: &str) -> (&'static str, Value) {
        (kind, json!({ "data": { "text/html": html }, "transient": { "display_id": "bar" } }))
    }

    #[test]
    fn messages_become_outputs() {
        let made = outputs(&[
            text("a"),
            text("b\nc"),
            text("d\n"),
            bar("display_data", "0 %"),
            bar("update_display_data", "100 %\ndone"),
            ("error", json!({ "ename": "Panic", "evalue": "no", "traceback": [] })),
        ]);
        let cell = &made.cells[0];
        assert_eq!(cell[0]["text"], json!(["ab\n", "cd\n"]));
        assert_eq!(cell[1]["data"]["text/html"], json!(["100 %\n", "done"]));
        assert_eq!(cell[2]["output_type"], "error");
        assert_eq!(cell.len(), 3);
    }

    #[test]
    fn clearing_waits_for_the_next_output_where_it_shall() {
        let clear = |wait: bool| ("clear_output", json!({ "wait": wait }));
        let kept = |messages: &[_]| outputs(messages).cells.remove(0);
        assert_eq!(kept(&[text("a"), clear(false)]), [Value::Null; 0]);
        assert_eq!(kept(&[text("a"), clear(true)])[0]["text"], json!(["a"]), "nothing came in its place");
        assert_eq!(kept(&[text("a"), clear(true), text("b")])[0]["text"], json!(["b"]));
        let moving = [bar("display_data", "1"), clear(true), bar("update_display_data", "2"), text("end")];
        assert_eq!(kept(&moving).len(), 1, "an update is no new output, what comes after it is");
        // The next cell clears nothing of this one, nor is it cleared.
        let mut made = outputs(&[text("a"), clear(true)]);
        made.begin();
        made.place("stream", text("b").1);
        assert_eq!((made.cells[0].len(), made.cells[1].len()), (1, 1));
    }

    #[test]
    fn a_picture_drawn_again_and_again_is_kept_once() {
        let collect = Collect::default();
        collect.outputs().begin();
        let id = || jupyter_protocol::Transient { display_id: Some("curve".into()) };
        let data = |n: usize| {
            let svg = Value::from(format!("<svg>{n}</svg>"));
            output::media(Map::from_iter([("image/svg+xml".to_owned(), svg)]))
        };
        let shown =
            jupyter_protocol::DisplayData { data: data(0), metadata: Map::new(), transient: Some(id()) };
        collect.publish(JupyterMessage::new(shown, None));
        for n in 1..1000 {
            let update =
                jupyter_protocol::UpdateDisplayData { data: data(n), metadata: Map::new(), transient: id() };
            collect.publish(JupyterMessage::new(update, None));
            let held = collect.outputs().cells[0].clone();
            assert_eq!(held.len(), 1, "folded as it came");
            assert_eq!(held[0]["data"]["image/svg+xml"], json!([format!("<svg>{n}</svg>")]));
        }
    }

    #[test]
    fn a_parameter_that_nobody_declares_is_refused() {
        let given = |names: &[&str]| -> Vec<(String, String)> {
            names.iter().map(|name| (name.to_string(), "1".to_owned())).collect()
        };
        let notebook = |source: &str, tag: &str| json!({ "cells": [{ "cell_type": "code", "metadata": { "tags": [tag] }, "source": source }] });
        let declared = |notebooks: &[Value]| notebooks.iter().map(declared_parameters).collect::<Vec<_>>();
        let some = declared(&[
            notebook("let people = 20usize;\nlet (a, mut b) = (1, 2);", "parameters"),
            notebook("let file = \"\";", "parameters"),
            notebook("1", "exact"),
        ]);
        // As in the README: one of the notebooks declares it.
        for name in ["people", "file", "a", "b"] {
            assert!(know(&some, &given(&[name])).is_ok(), "{name}");
        }
        let error = know(&some, &given(&["people", "peple"])).unwrap_err().to_string();
        assert!(error.contains("peple=1") && error.contains("a, b, file, people"), "{error}");
        assert!(know(&declared(&[notebook("1", "exact")]), &given(&["anything"])).is_ok());
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

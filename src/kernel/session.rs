//! One notebook's engine: evcxr with our compiler and our process for cells, made to report errors
//! as errors.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use evcxr::{CommandContext, EvalContext};

use super::analysis::Analysis;
use super::compiler;
use super::dependency;
use super::diagnostics;
use super::prelude::Prelude;
use super::stream::{Event, Parser, Stream};
use super::syntax::{self, Definition};
use super::toolchain::Toolchain;
use super::types;
use super::workplace::Workplace;
use crate::error::{Error, Result};

/// Library work hears an interrupt at its next check, a layer of the model at most; on a large model
/// that may be many times the grace of other code.
const LIBRARY: u32 = 15;

/// Where the events of cells go. May block: then the cell that prints waits.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Code that does not check for interrupts may run on this long.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// Why a cell failed, as Jupyter shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellError {
    /// Kind of error: `Panic`, a compiler code such as `E0308`, the type of an error returned by `?`.
    pub ename: String,
    /// The message.
    pub evalue: String,
    /// Lines to show, with the source where it is known.
    pub traceback: Vec<String>,
}

impl CellError {
    pub(super) fn new(ename: &str, evalue: impl Into<String>) -> Self {
        let evalue = evalue.into();
        CellError { ename: ename.into(), traceback: vec![format!("{ename}: {evalue}")], evalue }
    }
}

/// What the reading threads know of the running cell.
#[derive(Debug, Default)]
struct Watch {
    done: BTreeMap<Stream, String>,
    failed: Option<CellError>,
}

#[derive(Debug, Default)]
struct Shared {
    watch: Mutex<Watch>,
    changed: Condvar,
    answers: Mutex<Option<UnixStream>>,
    interrupted: AtomicBool,
    replaced: AtomicBool,
    /// The library is at work and will hear an interrupt.
    working: AtomicBool,
    /// Number of the running cell; 0 between cells.
    running: AtomicU64,
    /// The engine's own first cells have run; what they show is nobody's.
    started: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running engine. Not shared between threads; [`Session::handle`] reaches it from others.
pub struct Session {
    engine: CommandContext,
    prelude: Prelude,
    toolchain: Toolchain,
    /// Keeps the prelude from being tidied away.
    _in_use: std::fs::File,
    cell: PathBuf,
    shared: Arc<Shared>,
    handle: Handle,
    /// Asked for once: `Some(None)` when it cannot be had.
    analysis: Option<Option<Analysis>>,
    configuration: PathBuf,
    /// Definitions and imports of the cells that succeeded, each in its latest form.
    definitions: Vec<Definition>,
    cells: u64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("cell", &self.cell).finish_non_exhaustive()
    }
}

/// A cell that was running when it was asked for, and no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Running(u64);

/// Reaches a session from another thread: to interrupt it, to answer its questions.
#[derive(Debug, Clone)]
pub struct Handle {
    child: Arc<Mutex<Child>>,
    shared: Arc<Shared>,
    compiler: PathBuf,
}

impl Handle {
    /// Stops this cell, if it still runs. Library work ends at its next check and keeps every variable; other
    /// code has `grace`, then its process is replaced and the variables are lost. Blocks until the
    /// cell ended.
    pub(super) fn interrupt(&self, cell: Running, grace: Duration) {
        let start = Instant::now();
        let mut first = None;
        // The next cell may begin between two looks, and must not be hit.
        while self.running() == Some(cell) {
            self.shared.interrupted.store(true, Ordering::SeqCst);
            self.stop_compiler();
            let child = self.process();
            if *first.get_or_insert(child) != child {
                // The process was replaced; the new one runs no cell yet.
                return;
            }
            let library = self.shared.working.load(Ordering::SeqCst);
            if start.elapsed() > if library { grace * LIBRARY } else { grace } {
                self.shared.replaced.store(true, Ordering::SeqCst);
                signal_group(child, libc::SIGKILL);
                signal(child, libc::SIGKILL);
                return;
            }
            // Again and again: the first may have come while the cell was being compiled.
            signal(child, libc::SIGINT);
            for _ in 0..20 {
                std::thread::sleep(Duration::from_millis(5));
                if self.running() != Some(cell) {
                    return;
                }
            }
        }
    }

    /// The cell that is running now.
    pub(super) fn running(&self) -> Option<Running> {
        Some(self.shared.running.load(Ordering::SeqCst)).filter(|&cell| cell != 0).map(Running)
    }

    /// Answers the question of [`Event::Input`].
    pub fn answer(&self, text: &str) {
        if let Some(stream) = lock(&self.shared.answers).as_mut() {
            // A process that died no longer waits for the answer.
            let _ = writeln!(stream, "{text}");
        }
    }

    /// Number of the process of cells.
    fn process(&self) -> i32 {
        i32::try_from(lock(&self.child).id()).unwrap_or(0)
    }

    /// Ends the compiler of the cell that is being made ready, if there is one.
    fn stop_compiler(&self) {
        if let Ok(group) = std::fs::read_to_string(&self.compiler)
            && let Ok(group) = group.trim().parse::<i32>()
        {
            signal_group(group, libc::SIGTERM);
        }
    }

    /// Ends the process of cells and its compiler at once; for shutdown.
    pub fn kill(&self) {
        self.stop_compiler();
        let child = self.process();
        signal_group(child, libc::SIGKILL);
        signal(child, libc::SIGKILL);
    }
}

fn signal(process: i32, number: i32) {
    if process > 1 {
        // SAFETY: a plain system call; a process that is gone yields an error, nothing else.
        unsafe { libc::kill(process, number) };
    }
}

fn signal_group(group: i32, number: i32) {
    if group > 1 {
        // SAFETY: as above.
        unsafe { libc::killpg(group, number) };
    }
}

impl Session {
    /// Starts an engine whose cells' output goes to `events` and whose relative paths start in `place`, or where this
    /// process works. Takes about half a second.
    ///
    /// # Errors
    /// When a file cannot be made or the first, empty cell does not run.
    pub fn start(
        workplace: &Workplace,
        prelude: Prelude,
        place: Option<&Path>,
        events: Sink,
    ) -> Result<Session> {
        let in_use = prelude.hold()?;
        let link = workplace.prelude();
        if !link.exists() {
            std::os::unix::fs::symlink(&prelude.folder, &link).map_err(Error::io(&link))?;
        }
        let cell = workplace.cell();
        std::fs::create_dir_all(&cell).map_err(Error::io(&cell))?;
        let shared = Arc::new(Shared::default());
        let socket = workplace.socket();
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).map_err(Error::io(&socket))?;
        listen(listener, shared.clone(), events);
        let mut command = prelude.child(workplace.toolchain())?;
        workplace.as_before(&mut command);
        if let Some(place) = place {
            command.current_dir(place);
        }
        // The engine prints nothing of its own; both channels stay empty.
        let (engine, _outputs) = EvalContext::with_subprocess_command(command)
            .map_err(|e| Error::Stopped(format!("the engine does not start: {e}")))?;
        let mut engine = CommandContext::with_eval_context(engine);
        engine.set_opt_level("0").map_err(|e| Error::Stopped(e.to_string()))?;
        let handle = Handle {
            child: engine.process_handle(),
            shared: shared.clone(),
            compiler: cell.join(compiler::RUNNING),
        };
        let (analysis, definitions) = (None, Vec::new());
        let mut session = Session {
            engine,
            prelude,
            toolchain: workplace.toolchain().clone(),
            _in_use: in_use,
            cell,
            shared,
            handle,
            analysis,
            configuration: workplace.configuration(),
            definitions,
            cells: 0,
        };
        // The first `?` of a session costs a second compilation; let it not be the user's.
        session
            .execute("Ok::<(), std::fmt::Error>(())?;")
            .map_err(|e| Error::Stopped(format!("the first cell fails: {}", e.traceback.join("\n"))))?;
        session.shared.started.store(true, Ordering::SeqCst);
        Ok(session)
    }

    /// Reaches this session from other threads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs a cell to its end. Its output has left through the channel of events when this returns;
    /// what comes back is what the engine itself says, for its commands such as `:vars`.
    ///
    /// # Errors
    /// [`CellError`]: compiler messages, a panic, an error returned by `?`, an interrupt, a crash.
    pub fn execute(&mut self, code: &str) -> Result<BTreeMap<String, String>, CellError> {
        self.execute_unless(code, &|| false)
    }

    /// [`Session::execute`], unless an interrupt came before it: `stopped` is asked when the cell counts as running,
    /// so that [`Handle::interrupt`] misses none that `stopped` does not tell of.
    pub(super) fn execute_unless(
        &mut self,
        code: &str,
        stopped: &dyn Fn() -> bool,
    ) -> Result<BTreeMap<String, String>, CellError> {
        self.shared.interrupted.store(false, Ordering::SeqCst);
        self.shared.replaced.store(false, Ordering::SeqCst);
        self.shared.working.store(false, Ordering::SeqCst);
        self.cells += 1;
        self.shared.running.store(self.cells, Ordering::SeqCst);
        if stopped() {
            self.shared.interrupted.store(true, Ordering::SeqCst);
        }
        let outcome = self.not_interrupted().and_then(|()| self.prepare(code));
        let outcome = outcome.and_then(|prepared| self.run(&prepared, code));
        self.shared.running.store(0, Ordering::SeqCst);
        if outcome.is_ok() {
            remember(&mut self.definitions, syntax::definitions(code));
        }
        outcome.map_err(|error| {
            let (interrupted, replaced) = (&self.shared.interrupted, &self.shared.replaced);
            explain(error, interrupted.load(Ordering::SeqCst), replaced.load(Ordering::SeqCst))
        })
    }

    fn not_interrupted(&self) -> Result<(), CellError> {
        match self.shared.interrupted.load(Ordering::SeqCst) {
            true => Err(CellError::new(diagnostics::INTERRUPTED, "stopped before it ran")),
            false => Ok(()),
        }
    }

    /// The cell as the engine gets it: lines asking for crates that are here blanked, the types of
    /// new variables written out.
    fn prepare(&mut self, code: &str) -> Result<String, CellError> {
        let code = dependency::without_provided(code, &self.prelude)
            .map_err(|error| CellError::new("Dependency", error.to_string()))?;
        let Some(probe) = types::with_probe(&code) else { return Ok(code) };
        let answer = self.cell.join(compiler::TYPES);
        let _ = std::fs::remove_file(&answer);
        match self.engine.execute(&probe) {
            Err(evcxr::Error::CompilationErrors(errors)) => {
                return Err(diagnostics::compilation(&errors, &code));
            }
            Err(evcxr::Error::Message(_)) if answer.is_file() => {}
            Err(other) => return Err(diagnostics::other(&other)),
            Ok(_) => return Ok(String::new()),
        }
        let found = std::fs::read(&answer)
            .map_err(|e| CellError::new("KernelError", format!("{}: {e}", answer.display())))?;
        let found =
            serde_json::from_slice(&found).map_err(|e| CellError::new("KernelError", e.to_string()))?;
        types::annotated(&code, &found).map_err(|message| CellError::new("NotStorable", message))
    }

    fn run(&mut self, prepared: &str, code: &str) -> Result<BTreeMap<String, String>, CellError> {
        self.not_interrupted()?;
        *lock(&self.shared.watch) = Watch::default();
        match self.engine.execute(prepared) {
            Ok(outputs) => {
                // Every cell with code ends by marking both streams; commands run none.
                if has_code(prepared) {
                    // They come at once, or on a busy machine later: without them a panic would pass for success.
                    self.wait_for_output(Duration::from_secs(60));
                }
                if let Some(error) = lock(&self.shared.watch).failed.take() {
                    return Err(error);
                }
                Ok(outputs.content_by_mime_type.into_iter().collect())
            }
            Err(evcxr::Error::CompilationErrors(errors)) => Err(diagnostics::compilation(&errors, code)),
            Err(evcxr::Error::SubprocessTerminated(message)) => {
                self.wait_for_output(Duration::from_millis(200));
                Err(diagnostics::crash(&message))
            }
            Err(other) => Err(diagnostics::other(&other)),
        }
    }

    /// Waits for the end marks of the cell that ran last: the engine's constructor runs cells too,
    /// whose marks may come late.
    fn wait_for_output(&self, limit: Duration) {
        let source = self.engine.last_source().unwrap_or_default();
        let Some((_, after)) = source.split_once("fn run_user_code_") else { return };
        let number: String = after.chars().take_while(|c| c.is_ascii_digit()).collect();
        let name = format!("run_user_code_{number}");
        let all = |watch: &mut Watch| watch.done.values().filter(|done| **done == name).count() < 2;
        let guard = lock(&self.shared.watch);
        drop(self.shared.changed.wait_timeout_while(guard, limit, all));
    }

    /// Completions at byte `position` of `code`: (candidates, start, end).
    ///
    /// The first call starts a second engine that knows the library's sources; until it is ready, a
    /// few seconds, only names of this notebook are found.
    pub fn complete(&mut self, code: &str, position: usize) -> (Vec<String>, usize, usize) {
        self.start_analysis();
        if let Some(analysis) = self.ready_analysis() {
            let before = self.before();
            if let Some((mut names, start, end)) = analysis.complete(&before, code, position) {
                names.sort();
                names.dedup();
                return (names, start, end);
            }
        }
        match self.engine.completions(code, position) {
            Ok(found) => {
                let mut names: Vec<_> = found.completions.into_iter().map(|c| c.code).collect();
                names.sort();
                names.dedup();
                (names, found.start_offset, found.end_offset)
            }
            Err(_) => (Vec::new(), position, position),
        }
    }

    fn start_analysis(&mut self) {
        let folder = self.cell.with_file_name("analysis");
        self.analysis.get_or_insert_with(|| {
            self.prelude
                .child(&self.toolchain)
                .and_then(|child| Analysis::start(child, &folder, &self.configuration))
                .ok()
        });
    }

    fn ready_analysis(&self) -> Option<&Analysis> {
        self.analysis.as_ref()?.as_ref().filter(|analysis| analysis.is_ready())
    }

    /// The definitions and variables of earlier cells, as text to be analysed before a cell.
    fn before(&self) -> String {
        let mut before: String =
            self.definitions.iter().flat_map(|item| [item.text.as_str(), "\n"]).collect();
        for (name, type_name) in self.engine.variables_and_types() {
            // A type and no value: this text is only analysed, never compiled or run.
            before.push_str(&format!("let {name}: {type_name} = loop {{}};\n"));
        }
        before
    }

    /// What is known about the name at byte `position`: its type when it is a variable, its
    /// documentation when the engine finds some.
    pub fn inspect(
        &mut self,
        code: &str,
        position: usize,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let before = code.get(..position)?;
        let start = before
            .rfind(|c| !is_part(c))
            .map_or(0, |at| at + before[at..].chars().next().map_or(1, char::len_utf8));
        let end = position + code[position..].find(|c| !is_part(c)).unwrap_or(code.len() - position);
        let name = code.get(start..end).filter(|name| !name.is_empty())?;
        let mut data = serde_json::Map::new();
        if let Some(type_name) = self.variables().get(name) {
            data.insert("text/plain".into(), format!("{name}: {type_name}").into());
            return Some(data);
        }
        self.start_analysis();
        let found = self.ready_analysis().map(|analysis| analysis.hover(&self.before(), code, end));
        let (plain, html) = match found {
            Some(found) => found?,
            None => self.engine.hover_at(code, end).ok()?,
        };
        if plain.is_empty() || plain.starts_with("No documentation found") {
            return None;
        }
        data.insert("text/plain".into(), plain.into());
        data.insert("text/html".into(), html.into());
        Some(data)
    }

    /// Names and types of the variables kept so far, sorted.
    pub fn variables(&self) -> BTreeMap<String, String> {
        self.engine.variables_and_types().map(|(n, t)| (n.to_owned(), t.to_owned())).collect()
    }

    /// The folder of this session's files.
    pub fn folder(&self) -> &Path {
        &self.cell
    }
}

/// What an interrupted cell's error means to the user.
fn explain(error: CellError, interrupted: bool, replaced: bool) -> CellError {
    if replaced {
        return CellError::new(
            diagnostics::INTERRUPTED,
            "the cell did not stop by itself, so its process was replaced; all variables are lost, definitions are kept",
        );
    }
    // A process that ended by itself took the variables with it, interrupted or not.
    if interrupted && ![diagnostics::CRASH, diagnostics::INTERRUPTED].contains(&error.ename.as_str()) {
        return CellError::new(diagnostics::INTERRUPTED, "stopped; variables are kept");
    }
    error
}

/// Adds definitions; those of the same things go.
fn remember(definitions: &mut Vec<Definition>, new: Vec<Definition>) {
    for item in new {
        definitions.retain(|known| known.what != item.what);
        definitions.push(item);
    }
}

/// Whether anything but commands, comments and blanks is there.
fn has_code(code: &str) -> bool {
    code.lines()
        .map(str::trim)
        .any(|line| !line.is_empty() && !line.starts_with(':') && !line.starts_with("//"))
}

/// Accepts the three streams of every process of cells, one process after the other.
fn listen(listener: UnixListener, shared: Arc<Shared>, events: Sink) {
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { continue };
            match first_line(&mut connection).split(' ').next() {
                Some("stdin") => *lock(&shared.answers) = Some(connection),
                Some("stdout") => read(connection, Stream::Out, shared.clone(), events.clone()),
                Some("stderr") => read(connection, Stream::Err, shared.clone(), events.clone()),
                _ => {}
            }
        }
    });
}

/// Byte by byte, so that nothing behind the line is taken.
fn first_line(connection: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0u8];
    while line.len() < 64 && matches!(connection.read(&mut byte), Ok(1)) && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).into_owned()
}

fn read(mut connection: UnixStream, stream: Stream, shared: Arc<Shared>, events: Sink) {
    std::thread::spawn(move || {
        let mut parser = Parser::new(stream);
        let mut buffer = vec![0u8; 64 * 1024];
        let mut handle = |event: Event| {
            let mut watch = lock(&shared.watch);
            match event {
                Event::Done(stream, cell) => {
                    drop(watch);
                    // Whatever came before it has then been handed on.
                    events(Event::Done(stream, cell.clone()));
                    lock(&shared.watch).done.insert(stream, cell);
                    shared.changed.notify_all();
                }
                Event::Working(working) => shared.working.store(working, Ordering::SeqCst),
                Event::Failed(name, message) => watch.failed = Some(diagnostics::returned(&name, &message)),
                Event::Panicked(message, place) => watch.failed = Some(diagnostics::panic(&message, &place)),
                other => {
                    drop(watch);
                    if !shared.started.load(Ordering::SeqCst) {
                        return;
                    }
                    // A cell that prints faster than it can be shown waits here.
                    events(other);
                }
            }
        };
        loop {
            match connection.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(n) => parser.feed(&buffer[..n], &mut handle),
            }
        }
        parser.finish(&mut handle);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_explains_no_crash_away() {
        let failed = CellError::new("Error", "stopped by a signal");
        assert_eq!(explain(failed.clone(), false, false), failed);
        assert!(explain(failed.clone(), true, false).evalue.contains("variables are kept"));
        assert!(explain(failed, true, true).evalue.contains("variables are lost"));
        let crash = diagnostics::crash("signal: 11");
        assert_eq!(explain(crash.clone(), true, false), crash);
        assert!(explain(crash, true, true).evalue.contains("was replaced"));
    }

    #[test]
    fn a_definition_made_a_hundred_times_is_kept_once() {
        let mut all = Vec::new();
        for n in 0..100 {
            remember(
                &mut all,
                syntax::definitions(&format!("use std::fmt;\nfn f() -> u32 {{ {n} }}\nfn g() {{}}")),
            );
        }
        let texts: Vec<&str> = all.iter().map(|item| item.text.as_str()).collect();
        assert_eq!(texts, ["use std::fmt;", "fn f() -> u32 { 99 }", "fn g() {}"]);
    }

    #[test]
    fn commands_alone_are_not_code() {
        assert!(!has_code(":vars\n// nothing\n"));
        assert!(has_code(":opt 2\n1"));
    }
}

//! The Jupyter server: five sockets, one engine. Requests are answered in order on the shell
//! channel; control, heartbeat and what cells print never wait for a running cell, and
//! `kernel_info` is answered while the engine still starts.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jupyter_protocol::{
    CodeMirrorMode, CommClose, CommInfoReply, CompleteReply, ConnectionInfo, ErrorOutput, ExecuteInput,
    ExecuteReply, ExecuteRequest, ExecutionCount, ExpressionResult, HistoryReply, InspectReply,
    InterruptReply, IsCompleteReply, JupyterMessage, JupyterMessageContent, KernelInfoReply, LanguageInfo,
    ReplyError, ReplyStatus, ShutdownReply, Status,
};
use jupyter_zmq_client as zmq;
use serde_json::Map;
use tokio::sync::{Notify, mpsc, oneshot};

use super::diagnostics;
use super::engine::{self, Job};
use super::history::History;
use super::output::{self, Begin, Captured, Item, Publish};
use super::public::Public;
use super::requests;
use super::session::{CellError, GRACE, Handle};
use super::syntax;
use super::workplace::Workplace;
use crate::error::{Error, Result};
use crate::files;

/// Environment variable that allows addresses beyond this machine.
const ANY_ADDRESS: &str = "CLUESCOPE_KERNEL_ANY_ADDRESS";
/// A completion or documentation later than this is of no use to someone who types.
const ANSWER: Duration = Duration::from_secs(3);

/// Serves the notebook that Jupyter described in `connection_file`, until it says shut down.
///
/// # Errors
/// When the file cannot be read, a port is taken, or the Rust toolchain is missing.
pub fn serve(connection_file: impl AsRef<Path>) -> Result<()> {
    let path = connection_file.as_ref();
    let info: ConnectionInfo = serde_json::from_str(&files::read_text(path)?).map_err(|e| {
        Error::format(path, format!("line {}", e.line()), format!("not a connection file: {e}"))
    })?;
    if info.signature_scheme != "hmac-sha256" {
        return Err(Error::format(path, "signature_scheme", "only hmac-sha256 is supported"));
    }
    check(path, &info)?;
    let workplace = Workplace::prepare()?;
    let folder = workplace.folder().to_path_buf();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Error::io("threads"))?;
    let outcome = runtime.block_on(Server::run(info, workplace));
    // The engine's thread may still hold it. What cannot be removed is by the next kernel.
    let _ = std::fs::remove_dir_all(folder);
    outcome
}

/// Refuses what would let strangers run code.
fn check(path: &Path, info: &ConnectionInfo) -> Result<()> {
    if info.key.is_empty() {
        let message =
            "it is empty, so anyone could send code; start the kernel from Jupyter, which makes one";
        return Err(Error::format(path, "key", message));
    }
    let local = info.ip == "localhost"
        || info.ip.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        || info.transport != jupyter_protocol::Transport::TCP;
    if !local && std::env::var_os(ANY_ADDRESS).is_none() {
        return Err(Error::format(
            path,
            "ip",
            format!(
                "{} can be reached from other machines, and messages travel unencrypted; use 127.0.0.1, or set {ANY_ADDRESS}=1",
                info.ip
            ),
        ));
    }
    Ok(())
}

/// Sends to the public channel and to the person who asks.
#[derive(Clone)]
pub(super) struct Outlets {
    public: mpsc::Sender<JupyterMessage>,
    questions: mpsc::Sender<JupyterMessage>,
    pub(super) handle: Arc<OnceLock<Handle>>,
    /// An interrupt while the engine is not ready: the waiting cell is given up.
    given_up: Arc<Notify>,
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
    fn next(&self) -> u64 {
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
        self.publish(JupyterMessage::new(jupyter_protocol::StreamContent::stderr(note), Some(request)));
        if let Some(handle) = self.handle.get() {
            handle.answer("");
        }
    }
}

impl Outlets {
    /// Does not wait for the cell to end.
    fn interrupt(&self) {
        let handle = self.handle.get().cloned();
        if handle.as_ref().is_none_or(|handle| !handle.is_running()) {
            self.turns.stop();
        }
        match handle {
            // A cell that began since is running now, or sees that it is stopped.
            Some(handle) => drop(tokio::task::spawn_blocking(move || handle.interrupt(GRACE))),
            None => self.given_up.notify_waiters(),
        }
    }

    /// Hands an answer to the cell whose question waits for it; a late one to a question that was given up is dropped. Not
    /// every client says what it answers.
    fn answer(&self, answered: Option<&str>, text: &str) {
        let mut question = lock(&self.question);
        let fits = question.as_deref().is_some_and(|id| answered.is_none_or(|answered| answered == id));
        if fits && let Some(handle) = self.handle.get() {
            *question = None;
            handle.answer(text);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request, with its number when it is a cell.
struct Arrived {
    message: JupyterMessage,
    number: u64,
}

struct Server {
    shell: zmq::RouterSendConnection,
    outlets: Outlets,
    jobs: Sender<Job>,
    items: SyncSender<Item>,
    count: usize,
    history: History,
}

impl Server {
    async fn run(info: ConnectionInfo, workplace: Workplace) -> Result<()> {
        let failed = |what: &'static str| move |e: zmq::RuntimeError| Error::Stopped(format!("{what}: {e}"));
        let session = uuid();
        let shell =
            zmq::create_kernel_shell_connection(&info, &session).await.map_err(failed("shell channel"))?;
        let control = zmq::create_kernel_control_connection(&info, &session)
            .await
            .map_err(failed("control channel"))?;
        let stdin =
            zmq::create_kernel_stdin_connection(&info, &session).await.map_err(failed("stdin channel"))?;
        let public =
            zmq::create_kernel_iopub_connection(&info, &session).await.map_err(failed("iopub channel"))?;
        let mut heart =
            zmq::create_kernel_heartbeat_connection(&info).await.map_err(failed("heartbeat channel"))?;
        tokio::spawn(async move {
            loop {
                if heart.single_heartbeat().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        });
        let (public_send, mut public_receive) = mpsc::channel::<JupyterMessage>(64);
        tokio::spawn(async move {
            let mut public = Public::new(public);
            while let Some(message) = public_receive.recv().await {
                // A listener that went away is no reason to stop.
                let _ = public.send(message).await;
            }
        });
        let handle: Arc<OnceLock<Handle>> = Arc::default();
        let (questions, mut questions_receive) = mpsc::channel::<JupyterMessage>(4);
        let (mut ask, mut answers) = stdin.split();
        tokio::spawn(async move {
            while let Some(message) = questions_receive.recv().await {
                let _ = ask.send(message).await;
            }
        });
        watch_parent(handle.clone());
        let outlets = Outlets {
            public: public_send,
            questions,
            handle,
            given_up: Arc::default(),
            turns: Arc::default(),
            question: Arc::default(),
        };
        let answered = outlets.clone();
        tokio::spawn(async move {
            loop {
                match requests::read(&mut answers).await {
                    Ok(message) => {
                        if let JupyterMessageContent::InputReply(reply) = message.content {
                            let question = message.parent_header.map(|parent| parent.msg_id);
                            answered.answer(question.as_deref(), &reply.value);
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        });
        let starting = JupyterMessage::new(Status::starting(), None);
        let _ = outlets.public.send(starting).await;
        let (jobs, items) = engine::start(workplace, outlets.clone());
        let (stop, mut stopped) = mpsc::channel::<()>(1);
        tokio::spawn(serve_control(control, outlets.clone(), stop));

        let (send, mut receive) = shell.split();
        let (queue, mut waiting) = mpsc::unbounded_channel();
        let interrupted = outlets.clone();
        tokio::spawn(async move {
            loop {
                match requests::read(&mut receive).await {
                    Ok(message) => {
                        // Belongs to the control channel, but old clients use this one; it must not
                        // wait for the cell that it is to stop.
                        if matches!(message.content, JupyterMessageContent::InterruptRequest(_)) {
                            interrupted.interrupt();
                        }
                        let number = match message.content {
                            JupyterMessageContent::ExecuteRequest(_) => interrupted.turns.next(),
                            _ => 0,
                        };
                        if queue.send(Arrived { message, number }).is_err() {
                            return;
                        }
                    }
                    // Unsigned, wrongly signed, cut short, not JSON: dropped, as the protocol says.
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        });
        let mut server = Server { shell: send, outlets, jobs, items, count: 0, history: History::default() };
        loop {
            tokio::select! {
                request = waiting.recv() => match request {
                    Some(request) => server.handle(request, &mut waiting, &mut stopped).await,
                    None => return Ok(()),
                },
                _ = stopped.recv() => return Ok(()),
            }
            if stopped.try_recv().is_ok() {
                return Ok(());
            }
        }
    }

    async fn public(&self, content: impl Into<JupyterMessageContent>, parent: &JupyterMessage) {
        let _ = self.outlets.public.send(JupyterMessage::new(content, Some(parent))).await;
    }

    async fn reply(&mut self, content: impl Into<JupyterMessageContent>, parent: &JupyterMessage) {
        // A client that went away needs no answer.
        let _ = self.shell.send(JupyterMessage::new(content, Some(parent))).await;
    }

    async fn handle(
        &mut self,
        request: Arrived,
        more: &mut mpsc::UnboundedReceiver<Arrived>,
        stopped: &mut mpsc::Receiver<()>,
    ) {
        let mut waiting = VecDeque::from([request]);
        while let Some(request) = waiting.pop_front() {
            self.public(Status::busy(), &request.message).await;
            let failed = self.answer(&request, more, &mut waiting, stopped).await;
            self.public(Status::idle(), &request.message).await;
            if failed {
                for next in std::mem::take(&mut waiting) {
                    if matches!(next.message.content, JupyterMessageContent::ExecuteRequest(_)) {
                        self.abort(&next.message).await;
                    } else {
                        waiting.push_back(next);
                    }
                }
            }
        }
    }

    async fn abort(&mut self, request: &JupyterMessage) {
        self.public(Status::busy(), request).await;
        let count = ExecutionCount::new(self.count);
        let reply =
            ExecuteReply { status: ReplyStatus::Aborted, execution_count: count, ..ExecuteReply::default() };
        self.reply(reply, request).await;
        self.public(Status::idle(), request).await;
    }

    /// True when the cells in `waiting` must be aborted.
    async fn answer(
        &mut self,
        Arrived { message: request, number }: &Arrived,
        more: &mut mpsc::UnboundedReceiver<Arrived>,
        waiting: &mut VecDeque<Arrived>,
        stopped: &mut mpsc::Receiver<()>,
    ) -> bool {
        match &request.content {
            JupyterMessageContent::ExecuteRequest(execute) => {
                let (reply, abort) = self.execute(request, *number, execute, stopped).await;
                if abort {
                    // What arrived before the client could know of the failure; a cell sent in
                    // answer to it comes later.
                    while let Ok(next) = more.try_recv() {
                        waiting.push_back(next);
                    }
                }
                if let Some(reply) = reply {
                    self.reply(reply, request).await;
                }
                return abort;
            }
            JupyterMessageContent::KernelInfoRequest(_) => self.reply(kernel_info(), request).await,
            JupyterMessageContent::CompleteRequest(complete) => {
                let position = byte_offset(&complete.code, complete.cursor_pos);
                let found =
                    self.quick(|reply| Job::Complete { code: complete.code.clone(), position, reply });
                let (matches, start, end) = found.await.unwrap_or((Vec::new(), position, position));
                let character = |byte: usize| {
                    complete.code.get(..byte).map_or(complete.cursor_pos, |t| t.chars().count())
                };
                let reply = CompleteReply {
                    matches,
                    cursor_start: character(start),
                    cursor_end: character(end),
                    ..CompleteReply::default()
                };
                self.reply(reply, request).await;
            }
            JupyterMessageContent::InspectRequest(inspect) => {
                let position = byte_offset(&inspect.code, inspect.cursor_pos);
                let found = self.quick(|reply| Job::Inspect { code: inspect.code.clone(), position, reply });
                let found = found.await.flatten();
                let reply = InspectReply {
                    found: found.is_some(),
                    data: output::media(found.unwrap_or_default()),
                    ..InspectReply::default()
                };
                self.reply(reply, request).await;
            }
            JupyterMessageContent::IsCompleteRequest(check) => {
                let reply = match syntax::completeness(&check.code) {
                    syntax::Completeness::Complete => IsCompleteReply::complete(),
                    syntax::Completeness::Incomplete(indent) => IsCompleteReply::incomplete(indent),
                    syntax::Completeness::Invalid => IsCompleteReply::invalid(),
                };
                self.reply(reply, request).await;
            }
            JupyterMessageContent::HistoryRequest(wanted) => {
                let reply = HistoryReply::new(self.history.find(wanted));
                self.reply(reply, request).await;
            }
            JupyterMessageContent::CommInfoRequest(_) => self.reply(CommInfoReply::default(), request).await,
            JupyterMessageContent::CommOpen(open) => {
                // No targets are known; the protocol asks for a close.
                self.public(CommClose { comm_id: open.comm_id.clone(), data: Map::new() }, request).await;
            }
            // Belongs to the control channel, but old clients use this one.
            JupyterMessageContent::ShutdownRequest(shutdown) => {
                self.reply(ShutdownReply { restart: shutdown.restart, ..ShutdownReply::default() }, request)
                    .await;
                finish(&self.outlets).await;
                stopped.close();
            }
            JupyterMessageContent::InterruptRequest(_) => self.reply(InterruptReply::new(), request).await,
            _ => {}
        }
        false
    }

    async fn execute(
        &mut self,
        request: &JupyterMessage,
        number: u64,
        execute: &ExecuteRequest,
        stopped: &mut mpsc::Receiver<()>,
    ) -> (Option<ExecuteReply>, bool) {
        let counted = execute.store_history && !execute.silent;
        let count = if counted { self.count + 1 } else { self.count.max(1) };
        if counted {
            self.count = count;
        }
        let execution_count = ExecutionCount::new(count);
        if !execute.silent {
            self.public(ExecuteInput { code: execute.code.clone(), execution_count }, request).await;
        }
        let begin = |capture: bool, has_result: bool| {
            Box::new(Begin {
                parent: request.clone(),
                count,
                has_result,
                capture,
                may_ask: execute.allow_stdin && !capture,
            })
        };
        let has_result = syntax::ends_with_value(&execute.code);
        let Some((outcome, captured)) =
            self.job(number, &execute.code, begin(execute.silent, has_result), stopped).await
        else {
            return (None, false);
        };
        let mut reply = ExecuteReply { execution_count, ..ExecuteReply::default() };
        let mut abort = false;
        match outcome {
            Ok(()) => {
                let mut values = HashMap::new();
                for (name, code) in execute.user_expressions.iter().flatten() {
                    let Some((outcome, captured)) = self.job(number, code, begin(true, true), stopped).await
                    else {
                        return (None, false);
                    };
                    values.insert(name.clone(), expression(outcome, captured));
                }
                reply.user_expressions = Some(values);
            }
            Err(error) => {
                let CellError { ename, evalue, traceback } = error;
                if !execute.silent {
                    let error = ErrorOutput {
                        ename: ename.clone(),
                        evalue: evalue.clone(),
                        traceback: traceback.clone(),
                    };
                    self.public(error, request).await;
                }
                reply.status = ReplyStatus::Error;
                reply.error = Some(Box::new(ReplyError { ename, evalue, traceback }));
                abort = execute.stop_on_error;
            }
        }
        if counted {
            self.history.push(count, execute.code.clone(), captured.text);
        }
        (Some(reply), abort)
    }

    /// An answer of the engine's thread that is of use only if it comes soon; while the engine is being
    /// prepared there may be none.
    async fn quick<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Option<T> {
        let answer = async {
            while self.outlets.handle.get().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (reply, answer) = oneshot::channel();
            self.jobs.send(job(reply)).ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(ANSWER, answer).await.ok()?
    }

    /// Runs code on the engine's thread; `None` when the kernel is told to stop meanwhile.
    async fn job(
        &mut self,
        number: u64,
        code: &str,
        begin: Box<Begin>,
        stopped: &mut mpsc::Receiver<()>,
    ) -> Option<(Result<(), CellError>, Captured)> {
        // Sent from here and not from the engine's thread, so that what the build of the library says
        // is shown below the cell that waits for it. The channel may be full.
        let items = self.items.clone();
        let _ = tokio::task::spawn_blocking(move || items.send(Item::Begin(begin))).await;
        let (reply, answer) = oneshot::channel();
        if self.jobs.send(Job::Execute { code: code.to_owned(), number, reply }).is_err() {
            return Some((
                Err(CellError::new("KernelError", "the engine is gone; restart the kernel")),
                Captured::default(),
            ));
        }
        let done = tokio::select! {
            outcome = answer => Some(outcome.unwrap_or_else(|_| {
                (Err(CellError::new("KernelError", "the engine stopped; restart the kernel")), Captured::default())
            })),
            _ = self.outlets.given_up.notified() => {
                let message = "stopped before it ran: the notebook's engine is still being prepared, and that goes on";
                Some((Err(CellError::new(diagnostics::INTERRUPTED, message)), Captured::default()))
            }
            _ = stopped.recv() => {
                stopped.close();
                None
            }
        };
        // Nobody waits for an answer any more.
        *lock(&self.outlets.question) = None;
        done
    }
}

fn expression(outcome: Result<(), CellError>, captured: Captured) -> ExpressionResult {
    match outcome {
        Ok(()) => ExpressionResult::Ok { data: output::media(captured.data), metadata: Map::new() },
        Err(CellError { ename, evalue, traceback }) => ExpressionResult::Error { ename, evalue, traceback },
    }
}

/// Requests that must not wait for a cell.
async fn serve_control(mut control: zmq::KernelControlConnection, outlets: Outlets, stop: mpsc::Sender<()>) {
    loop {
        let request = match requests::read(&mut control).await {
            Ok(request) => request,
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        let status = |status: Status| JupyterMessage::new(status, Some(&request));
        let _ = outlets.public.send(status(Status::busy())).await;
        let reply: Option<JupyterMessageContent> = match &request.content {
            JupyterMessageContent::KernelInfoRequest(_) => Some(kernel_info().into()),
            JupyterMessageContent::InterruptRequest(_) => {
                outlets.interrupt();
                Some(InterruptReply::new().into())
            }
            JupyterMessageContent::ShutdownRequest(shutdown) => {
                Some(ShutdownReply { restart: shutdown.restart, ..ShutdownReply::default() }.into())
            }
            JupyterMessageContent::CommInfoRequest(_) => Some(CommInfoReply::default().into()),
            _ => None,
        };
        let last = matches!(request.content, JupyterMessageContent::ShutdownRequest(_));
        if let Some(reply) = reply {
            let _ = control.send(JupyterMessage::new(reply, Some(&request))).await;
        }
        let _ = outlets.public.send(status(Status::idle())).await;
        if last {
            finish(&outlets).await;
            let _ = stop.send(()).await;
            return;
        }
    }
}

/// A kernel whose Jupyter died would run on for ever; its parent changes then. Only a kernel that
/// Jupyter started has such a parent: a shell may end without meaning to end what it started.
fn watch_parent(handle: Arc<OnceLock<Handle>>) {
    let parent = std::os::unix::process::parent_id();
    if std::env::var("JPY_PARENT_PID").ok().and_then(|p| p.parse().ok()) != Some(parent) {
        return;
    }
    tokio::spawn(async move {
        while std::os::unix::process::parent_id() == parent {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Some(handle) = handle.get() {
            handle.kill();
        }
        std::process::exit(0);
    });
}

/// Ends the cells' process and lets the last messages leave.
async fn finish(outlets: &Outlets) {
    if let Some(handle) = outlets.handle.get() {
        handle.kill();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn byte_offset(code: &str, characters: usize) -> usize {
    code.char_indices().nth(characters).map_or(code.len(), |(at, _)| at)
}

fn uuid() -> String {
    JupyterMessage::new(Status::idle(), None).header.session
}

fn kernel_info() -> KernelInfoReply {
    KernelInfoReply {
        status: ReplyStatus::Ok,
        protocol_version: "5.4".into(),
        implementation: "cluescope".into(),
        implementation_version: env!("CARGO_PKG_VERSION").into(),
        language_info: LanguageInfo {
            name: "rust".into(),
            version: env!("CARGO_PKG_RUST_VERSION").into(),
            mimetype: Some("text/rust".into()),
            file_extension: Some(".rs".into()),
            pygments_lexer: Some("rust".into()),
            codemirror_mode: Some(CodeMirrorMode::Simple("rust".into())),
            nbconvert_exporter: None,
        },
        banner: format!("cluescope {}: Rust notebooks on the evcxr engine", env!("CARGO_PKG_VERSION")),
        help_links: vec![],
        debugger: false,
        error: None,
    }
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

    #[test]
    fn strangers_are_kept_out() {
        let info = |ip: &str, key: &str| -> ConnectionInfo {
            serde_json::from_value(serde_json::json!({
                "ip": ip, "transport": "tcp", "shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4,
                "hb_port": 5, "key": key, "signature_scheme": "hmac-sha256"
            }))
            .unwrap()
        };
        let said =
            |ip: &str, key: &str| check(Path::new("c.json"), &info(ip, key)).map_err(|e| e.to_string());
        for ip in ["127.0.0.1", "127.0.0.2", "::1", "localhost"] {
            assert_eq!(said(ip, "k"), Ok(()), "{ip}");
        }
        for ip in ["0.0.0.0", "192.168.1.5", "*", "example.org", "::"] {
            assert!(said(ip, "k").unwrap_err().contains("can be reached from other machines"), "{ip}");
        }
        assert!(said("127.0.0.1", "").unwrap_err().contains("anyone could send code"));
    }
}

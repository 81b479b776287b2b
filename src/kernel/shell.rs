//! Requests on the shell channel, answered in the order in which they arrive: cells one after the other, all else between them.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{Sender, SyncSender};
use std::time::Duration;

use jupyter_protocol::{
    CodeMirrorMode, CommClose, CommInfoReply, CompleteReply, ErrorOutput, ExecuteInput, ExecuteReply,
    ExecuteRequest, ExecutionCount, ExpressionResult, HistoryReply, InspectReply, InterruptReply,
    IsCompleteReply, JupyterMessage, JupyterMessageContent, KernelInfoReply, LanguageInfo, ReplyError,
    ReplyStatus, ShutdownReply, Status,
};
use jupyter_zmq_client as zmq;
use serde_json::Map;
use tokio::sync::{mpsc, oneshot};

use super::diagnostics;
use super::engine::Job;
use super::history::History;
use super::outlets::Outlets;
use super::output::{self, Begin, Captured, Item};
use super::requests;
use super::session::CellError;
use super::syntax;

/// A completion or documentation later than this is of no use to someone who types.
const ANSWER: Duration = Duration::from_secs(3);

/// A request, with its number when it is a cell.
struct Arrived {
    message: JupyterMessage,
    number: u64,
}

/// The channel's sending half and what requests are answered from.
pub(super) struct Shell {
    channel: zmq::RouterSendConnection,
    outlets: Outlets,
    jobs: Sender<Job>,
    items: SyncSender<Item>,
    count: usize,
    history: History,
}

impl Shell {
    pub(super) fn new(
        channel: zmq::RouterSendConnection,
        outlets: Outlets,
        jobs: Sender<Job>,
        items: SyncSender<Item>,
    ) -> Self {
        Shell { channel, outlets, jobs, items, count: 0, history: History::default() }
    }

    /// Answers what arrives until `stopped` says that the kernel shuts down.
    pub(super) async fn serve(
        mut self,
        arriving: zmq::RouterRecvConnection,
        mut stopped: mpsc::Receiver<()>,
    ) {
        let (queue, mut waiting) = mpsc::unbounded_channel();
        tokio::spawn(receive(arriving, self.outlets.clone(), queue));
        loop {
            tokio::select! {
                request = waiting.recv() => match request {
                    Some(request) => self.handle(request, &mut waiting, &mut stopped).await,
                    None => return,
                },
                _ = stopped.recv() => return,
            }
            if stopped.try_recv().is_ok() {
                return;
            }
        }
    }

    async fn public(&self, content: impl Into<JupyterMessageContent>, parent: &JupyterMessage) {
        let _ = self.outlets.public.send(JupyterMessage::new(content, Some(parent))).await;
    }

    async fn reply(&mut self, content: impl Into<JupyterMessageContent>, parent: &JupyterMessage) {
        // A client that went away needs no answer.
        let _ = self.channel.send(JupyterMessage::new(content, Some(parent))).await;
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
                self.outlets.finish().await;
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
        let given_up = self.outlets.given_up.clone();
        let given_up = given_up.notified();
        tokio::pin!(given_up);
        // From here on none is missed; one that came before has left its mark.
        given_up.as_mut().enable();
        let (reply, answer) = oneshot::channel();
        if self.outlets.handle.get().is_none() && self.outlets.turns.is_stopped(number) {
            return Some((Err(given_up_early()), Captured::default()));
        }
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
            () = given_up => Some((Err(given_up_early()), Captured::default())),
            _ = stopped.recv() => {
                stopped.close();
                None
            }
        };
        self.outlets.forget_question();
        done
    }
}

/// Of a cell that an interrupt stops while the engine is not ready.
fn given_up_early() -> CellError {
    let message = "stopped before it ran: the notebook's engine is still being prepared, and that goes on";
    CellError::new(diagnostics::INTERRUPTED, message)
}

/// Hands on what arrives, and an interrupt at once.
async fn receive(
    mut arriving: zmq::RouterRecvConnection,
    outlets: Outlets,
    queue: mpsc::UnboundedSender<Arrived>,
) {
    loop {
        match requests::read(&mut arriving).await {
            Ok(message) => {
                // Belongs to the control channel, but old clients use this one; it must not
                // wait for the cell that it is to stop.
                if matches!(message.content, JupyterMessageContent::InterruptRequest(_)) {
                    outlets.interrupt();
                }
                let number = match message.content {
                    JupyterMessageContent::ExecuteRequest(_) => outlets.turns.next(),
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
}

fn expression(outcome: Result<(), CellError>, captured: Captured) -> ExpressionResult {
    match outcome {
        Ok(()) => ExpressionResult::Ok { data: output::media(captured.data), metadata: Map::new() },
        Err(CellError { ename, evalue, traceback }) => ExpressionResult::Error { ename, evalue, traceback },
    }
}

fn byte_offset(code: &str, characters: usize) -> usize {
    code.char_indices().nth(characters).map_or(code.len(), |(at, _)| at)
}

pub(super) fn kernel_info() -> KernelInfoReply {
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

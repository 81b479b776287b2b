//! A client of our own for the Jupyter protocol.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jupyter_protocol::{
    ConnectionInfo, ExecuteRequest, ExecutionState, InterruptRequest, JupyterMessage,
    JupyterMessageContent as Content, KernelInfoRequest, ReplyStatus, ShutdownRequest, Transport,
};
use jupyter_zmq_client as zmq;
use serde_json::Value;

pub(super) struct Client {
    pub(super) process: Child,
    pub(super) info: ConnectionInfo,
    pub(super) shell: zmq::ClientShellConnection,
    pub(super) control: zmq::ClientControlConnection,
    pub(super) stdin: zmq::ClientStdinConnection,
    pub(super) iopub: zmq::ClientIoPubConnection,
    _folder: tempfile::TempDir,
}

/// A cell's reply and everything it showed: (message type, content).
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) reply: Value,
    pub(super) shown: Vec<(String, Value)>,
}

impl Outcome {
    pub(super) fn stream(&self, name: &str) -> String {
        self.of("stream").filter(|c| c["name"] == name).map(|c| c["text"].as_str().unwrap()).collect()
    }

    pub(super) fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.shown.iter().filter(move |(k, _)| k == kind).map(|(_, content)| content)
    }

    pub(super) fn result(&self) -> &str {
        self.of("execute_result").next().unwrap_or_else(|| panic!("no result: {self:?}"))["data"]["text/plain"]
            .as_str()
            .unwrap()
    }

    pub(super) fn good(self) -> Self {
        assert_eq!(self.reply["status"], "ok", "{self:#?}");
        self
    }

    pub(super) fn failed(self) -> Self {
        assert_eq!(self.reply["status"], "error", "{self:#?}");
        assert_eq!(self.of("error").count(), 1, "{self:#?}");
        self
    }
}

impl Client {
    pub(super) async fn start() -> Client {
        Self::start_with(&[]).await
    }

    /// With these variables in its environment.
    pub(super) async fn start_with(variables: &[(&str, &str)]) -> Client {
        for _ in 0..5 {
            if let Some(client) = Self::start_once(variables).await {
                return client;
            }
        }
        panic!("five kernels ended before they answered");
    }

    /// None when the kernel ends at once: between the choice of a port and its use another process may take it.
    async fn start_once(variables: &[(&str, &str)]) -> Option<Client> {
        let folder = tempfile::tempdir().unwrap();
        let (ports, listeners) = zmq::peek_ports_with_listeners([127, 0, 0, 1].into(), 5).await.unwrap();
        let info = ConnectionInfo {
            ip: "127.0.0.1".into(),
            transport: Transport::TCP,
            shell_port: ports[0],
            iopub_port: ports[1],
            stdin_port: ports[2],
            control_port: ports[3],
            hb_port: ports[4],
            // A kernel of another test on a port that this one gave up must not take its messages.
            key: own("key"),
            signature_scheme: "hmac-sha256".into(),
            kernel_name: None,
        };
        let file = folder.path().join("connection.json");
        std::fs::write(&file, serde_json::to_vec(&info).unwrap()).unwrap();
        drop(listeners);
        let mut process = Command::new(env!("CARGO_BIN_EXE_cluescope"))
            .args(["kernel", "serve"])
            .arg(&file)
            // As Jupyter does: the kernel leaves when its parent is gone.
            .env("JPY_PARENT_PID", std::process::id().to_string())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let ended = async {
            while process.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (shell, control, stdin, iopub) = tokio::select! {
            channels = connect(&info) => channels,
            () = ended => return None,
        };
        let mut client = Client { process, info, shell, control, stdin, iopub, _folder: folder };
        // What the kernel says before it knows of a listener is lost: asked until something is heard.
        loop {
            let reply = client.ask(KernelInfoRequest {}).await;
            assert_eq!(reply["status"], "ok");
            assert_eq!(reply["language_info"]["name"], "rust");
            let heard = tokio::time::timeout(Duration::from_millis(200), client.iopub.read()).await;
            if heard.is_ok() {
                return Some(client);
            }
        }
    }

    /// A shell request's reply; its outputs, if any, are left unread.
    pub(super) async fn ask(&mut self, request: impl Into<Content>) -> Value {
        let request = JupyterMessage::new(request, None);
        let id = request.header.msg_id.clone();
        self.shell.send(request).await.unwrap();
        self.reply_to(&id).await
    }

    pub(super) async fn reply_to(&mut self, id: &str) -> Value {
        loop {
            let message = self.shell.read().await.unwrap();
            if message.parent_header.as_ref().is_some_and(|h| h.msg_id == id) {
                return serde_json::to_value(&message.content).unwrap();
            }
        }
    }

    pub(super) async fn run(&mut self, code: &str) -> Outcome {
        self.execute(ExecuteRequest::new(code.into())).await
    }

    pub(super) async fn execute(&mut self, request: ExecuteRequest) -> Outcome {
        let request = JupyterMessage::new(request, None);
        let id = request.header.msg_id.clone();
        self.shell.send(request).await.unwrap();
        self.outcome(&id).await
    }

    /// Everything between busy and idle.
    pub(super) async fn outcome(&mut self, id: &str) -> Outcome {
        let mut shown = Vec::new();
        loop {
            let limit = Duration::from_secs(300);
            let message = tokio::time::timeout(limit, self.iopub.read()).await.expect("an answer").unwrap();
            if message.parent_header.as_ref().is_none_or(|h| h.msg_id != id) {
                continue;
            }
            if let Content::Status(status) = &message.content {
                if status.execution_state == ExecutionState::Idle {
                    break;
                }
                assert_eq!(status.execution_state, ExecutionState::Busy);
                continue;
            }
            shown.push((message.message_type().to_owned(), serde_json::to_value(&message.content).unwrap()));
        }
        Outcome { reply: self.reply_to(id).await, shown }
    }

    pub(super) async fn stop(mut self) {
        self.control.send(JupyterMessage::new(ShutdownRequest { restart: false }, None)).await.unwrap();
        let reply = self.control.read().await.unwrap();
        assert!(matches!(reply.content, Content::ShutdownReply(r) if r.status == ReplyStatus::Ok));
        let start = Instant::now();
        while self.process.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(60), "the kernel does not leave");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A name that no other client has.
fn own(what: &str) -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A test that fails leaves no kernel at work beside the others.
impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

type Channels = (
    zmq::ClientShellConnection,
    zmq::ClientControlConnection,
    zmq::ClientStdinConnection,
    zmq::ClientIoPubConnection,
);

/// Waits until the kernel listens.
async fn connect(info: &ConnectionInfo) -> Channels {
    let session = &own("session");
    let identity = zmq::peer_identity_for_session(session).unwrap();
    let start = Instant::now();
    let shell = loop {
        match zmq::create_client_shell_connection_with_identity(info, session, identity.clone()).await {
            Ok(shell) => break shell,
            Err(error) => assert!(start.elapsed() < Duration::from_secs(120), "no kernel: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let control = zmq::create_client_control_connection(info, session).await.unwrap();
    let stdin = zmq::create_client_stdin_connection_with_identity(info, session, identity).await.unwrap();
    (shell, control, stdin, zmq::create_client_iopub_connection(info, "", session).await.unwrap())
}

/// Runs a test, which fails when it does not end: nobody waits for a kernel that says nothing.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    let limit = Duration::from_secs(900);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, future).await.expect("an end within 15 minutes") })
}

impl Client {
    /// Seconds from the interrupt to the reply. The interrupt comes `delay` after the code began to run, by when that
    /// may be: compiling it takes its time on a busy machine.
    pub(super) async fn interrupted_after(&mut self, code: &str, delay: Duration) -> f64 {
        let code = format!("println!(\"begun\");\n{code}");
        let request = JupyterMessage::new(ExecuteRequest::new(code), None);
        let id = request.header.msg_id.clone();
        self.shell.send(request).await.unwrap();
        loop {
            let message = self.iopub.read().await.unwrap();
            let ours = message.parent_header.as_ref().is_some_and(|h| h.msg_id == id);
            if ours && matches!(&message.content, Content::StreamContent(s) if s.text.contains("begun")) {
                break;
            }
        }
        tokio::time::sleep(delay).await;
        let start = Instant::now();
        self.control.send(JupyterMessage::new(InterruptRequest {}, None)).await.unwrap();
        let reply = self.control.read().await.unwrap();
        assert!(matches!(reply.content, Content::InterruptReply(_)));
        let outcome = self.outcome(&id).await.failed();
        assert_eq!(outcome.reply["ename"], "Interrupted", "{outcome:#?}");
        start.elapsed().as_secs_f64()
    }
}

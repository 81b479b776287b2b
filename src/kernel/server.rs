//! The Jupyter server: five sockets, one engine. Requests are answered in order on the shell
//! channel; control, heartbeat and what cells print never wait for a running cell, and
//! `kernel_info` is answered while the engine still starts.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jupyter_protocol::{
    CommInfoReply, ConnectionInfo, InterruptReply, JupyterMessage, JupyterMessageContent, ShutdownReply,
    Status,
};
use jupyter_zmq_client as zmq;
use tokio::sync::mpsc;
use zeromq::{SocketRecv, SocketSend};

use super::engine;
use super::outlets::Outlets;
use super::public;
use super::requests;
use super::session::Handle;
use super::shell::{Shell, kernel_info};
use super::workplace::Workplace;
use crate::error::{Error, Result};
use crate::files;

/// Environment variable that allows addresses beyond this machine.
const ANY_ADDRESS: &str = "CLUESCOPE_KERNEL_ANY_ADDRESS";

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
    let outcome = runtime.block_on(run(info, workplace));
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

async fn run(info: ConnectionInfo, workplace: Workplace) -> Result<()> {
    let failed = |what: &'static str| move |e: zmq::RuntimeError| Error::Stopped(format!("{what}: {e}"));
    let session = JupyterMessage::new(Status::idle(), None).header.session;
    let shell =
        zmq::create_kernel_shell_connection(&info, &session).await.map_err(failed("shell channel"))?;
    let control =
        zmq::create_kernel_control_connection(&info, &session).await.map_err(failed("control channel"))?;
    let stdin =
        zmq::create_kernel_stdin_connection(&info, &session).await.map_err(failed("stdin channel"))?;
    let public =
        zmq::create_kernel_iopub_connection(&info, &session).await.map_err(failed("iopub channel"))?;
    let heart = zmq::create_kernel_heartbeat_connection(&info).await.map_err(failed("heartbeat channel"))?;
    tokio::spawn(beat(heart));
    let (questions, asked) = mpsc::channel(4);
    let outlets = Outlets::new(public::open(public), questions);
    tokio::spawn(serve_stdin(stdin, outlets.clone(), asked));
    watch_parent(outlets.handle.clone());
    let _ = outlets.public.send(JupyterMessage::new(Status::starting(), None)).await;
    let (jobs, items) = engine::start(workplace, outlets.clone());
    let (stop, stopped) = mpsc::channel(1);
    tokio::spawn(serve_control(control, outlets.clone(), stop));
    let (send, arriving) = shell.split();
    Shell::new(send, outlets, jobs, items).serve(arriving, stopped).await;
    Ok(())
}

/// Sends back what arrives on the heartbeat channel.
async fn beat(mut heart: zmq::KernelHeartbeatConnection) {
    loop {
        let sent = match heart.socket.recv().await {
            Ok(message) => heart.socket.send(message).await,
            Err(error) => Err(error),
        };
        if sent.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Questions of cells out, answers in.
async fn serve_stdin(
    stdin: zmq::KernelStdinConnection,
    outlets: Outlets,
    mut questions: mpsc::Receiver<JupyterMessage>,
) {
    let (mut ask, mut answers) = stdin.split();
    tokio::spawn(async move {
        while let Some(message) = questions.recv().await {
            let _ = ask.send(message).await;
        }
    });
    loop {
        match requests::read(&mut answers).await {
            Ok(message) => {
                if let JupyterMessageContent::InputReply(reply) = message.content {
                    let question = message.parent_header.map(|parent| parent.msg_id);
                    outlets.answer(question.as_deref(), &reply.value);
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
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
            outlets.finish().await;
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

#[cfg(test)]
mod tests {
    use super::*;

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

//! What a client may expect of any kernel. With the tests beside this file these are the cases of kernel-testbed, the
//! conformance suite of the runtimed project; `scripts/kernel_test.py` runs Jupyter's own.

use std::time::{Duration, Instant};

use jupyter_protocol::{
    CommClose, CommId, CommMsg, CommOpen, ExecuteRequest, ExecutionState, InterruptRequest, JupyterMessage,
    JupyterMessageContent as Content, KernelInfoRequest, ReplyStatus, ShutdownRequest,
};
use jupyter_zmq_client as zmq;
use serde_json::Map;
use zeromq::{SocketRecv, SocketSend};

use super::client::{Client, wait};

#[test]
fn a_listener_is_welcomed_and_the_heart_sends_back_what_it_hears() {
    wait(async {
        let kernel = Client::start().await;
        let mut listener = zmq::create_client_iopub_connection(&kernel.info, "", "another").await.unwrap();
        let welcome = loop {
            // The end of what another client asked may come first.
            if let Content::IoPubWelcome(welcome) = listener.read().await.unwrap().content {
                break welcome;
            }
        };
        assert_eq!(welcome.subscription, "");
        let mut heart = zmq::create_client_heartbeat_connection(&kernel.info).await.unwrap();
        for beat in ["first", "second"] {
            heart.socket.send(beat.into()).await.unwrap();
            let echo = heart.socket.recv().await.unwrap();
            assert_eq!(echo.get(0).map(|frame| &frame[..]), Some(beat.as_bytes()));
        }
        kernel.stop().await;
    });
}

#[test]
fn the_kernel_says_what_it_is() {
    wait(async {
        let mut kernel = Client::start().await;
        let info = kernel.ask(KernelInfoRequest {}).await;
        assert_eq!(info["status"], "ok");
        assert_eq!(info["protocol_version"], "5.4");
        assert_eq!(
            (&info["implementation"], &info["language_info"]["name"]),
            (&"cluescope".into(), &"rust".into())
        );
        assert_eq!(info["language_info"]["file_extension"], ".rs");
        assert!(!info["banner"].as_str().unwrap().is_empty());
        kernel.stop().await;
    });
}

/// Everything a cell says names the request it belongs to, between busy and idle.
#[test]
fn messages_of_a_cell_belong_to_it() {
    wait(async {
        let mut kernel = Client::start().await;
        let mut counts = Vec::new();
        for _ in 0..2 {
            let code = "println!(\"hello\"); eprintln!(\"error\");\n6 * 7";
            let request = JupyterMessage::new(ExecuteRequest::new(code.into()), None);
            let id = request.header.msg_id.clone();
            kernel.shell.send(request).await.unwrap();
            let (mut kinds, mut states) = (Vec::new(), Vec::new());
            while states.last() != Some(&ExecutionState::Idle) {
                let message = kernel.iopub.read().await.unwrap();
                let Some(parent) = &message.parent_header else {
                    assert!(
                        matches!(message.content, Content::IoPubWelcome(_) | Content::Status(_)),
                        "{message:?}"
                    );
                    continue;
                };
                if parent.msg_id != id {
                    continue;
                }
                assert_eq!(parent.msg_type, "execute_request");
                match &message.content {
                    Content::Status(status) => states.push(status.execution_state.clone()),
                    _ => assert_eq!(states, [ExecutionState::Busy], "{message:?}"),
                }
                kinds.push(message.message_type().to_owned());
            }
            assert_eq!(states, [ExecutionState::Busy, ExecutionState::Idle]);
            assert_eq!(kinds, ["status", "execute_input", "stream", "stream", "execute_result", "status"]);
            let reply = kernel.reply_to(&id).await;
            assert_eq!(reply["status"], "ok");
            counts.push(reply["execution_count"].as_u64().unwrap());
        }
        assert_eq!(counts, [1, 2]);
        let wrong = kernel.run("fn fn").await.failed();
        assert!(!wrong.reply["evalue"].as_str().unwrap().is_empty(), "{wrong:#?}");
        let code = "struct Bold(&'static str);\nimpl Bold {\n    fn evcxr_display(&self) {\n        \
                    println!(\"EVCXR_BEGIN_CONTENT text/html\\n<b>{}</b>\\nEVCXR_END_CONTENT\", self.0);\n    }\n}\nBold(\"x\")";
        let rich = kernel.run(code).await.good();
        assert_eq!(rich.of("execute_result").next().unwrap()["data"]["text/html"], "<b>x</b>", "{rich:#?}");
        kernel.stop().await;
    });
}

#[test]
fn a_comm_for_nobody_is_closed_and_an_interrupt_of_nothing_does_no_harm() {
    wait(async {
        let mut kernel = Client::start().await;
        let comm_id = CommId("a-comm".into());
        let open = CommOpen {
            comm_id: comm_id.clone(),
            target_name: "nobody".into(),
            data: Map::new(),
            target_module: None,
        };
        kernel.shell.send(JupyterMessage::new(open, None)).await.unwrap();
        loop {
            let message = kernel.iopub.read().await.unwrap();
            if let Content::CommClose(close) = &message.content {
                assert_eq!(close.comm_id, comm_id);
                break;
            }
        }
        let late: [Content; 2] = [
            CommMsg { comm_id: comm_id.clone(), data: Map::new() }.into(),
            CommClose { comm_id, data: Map::new() }.into(),
        ];
        for content in late {
            kernel.shell.send(JupyterMessage::new(content, None)).await.unwrap();
        }
        kernel.control.send(JupyterMessage::new(InterruptRequest {}, None)).await.unwrap();
        let reply = kernel.control.read().await.unwrap();
        assert!(
            matches!(&reply.content, Content::InterruptReply(r) if r.status == ReplyStatus::Ok),
            "{reply:?}"
        );
        assert_eq!(kernel.run("1 + 1").await.good().result(), "2");
        kernel.stop().await;
    });
}

/// As clients did before there was a control channel.
#[test]
fn the_shell_channel_shuts_down_too() {
    wait(async {
        let mut kernel = Client::start().await;
        let reply = kernel.ask(ShutdownRequest { restart: true }).await;
        assert_eq!((&reply["status"], &reply["restart"]), (&"ok".into(), &true.into()));
        let start = Instant::now();
        while kernel.process.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < Duration::from_secs(20), "the kernel does not leave");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

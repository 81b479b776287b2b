//! The kernel over the Jupyter protocol, from a client of our own. The first test of an installation
//! builds the prebuilt library, a minute or so.

mod client;
mod conformance;
mod headless;
mod hostile;
mod library;

use std::collections::HashMap;
use std::time::Duration;

use jupyter_protocol::{
    CommInfoRequest, CompleteRequest, ConnectionInfo, ExecuteRequest, HistoryRequest, InputReply,
    InspectRequest, InterruptRequest, IsCompleteRequest, JupyterMessage, JupyterMessageContent as Content,
    ShutdownRequest,
};
use jupyter_zmq_client as zmq;
use serde_json::json;

use client::{Client, wait};

#[test]
fn cells_show_what_they_do() {
    wait(async {
        let mut kernel = Client::start().await;
        let result = kernel.run("1 + 1").await.good();
        assert_eq!(result.result(), "2");
        assert_eq!(
            result.of("execute_result").next().unwrap()["transient"],
            json!({}),
            "null is not allowed"
        );
        let text = kernel.run("println!(\"one\"); eprintln!(\"two\"); print!(\"no line end\");").await.good();
        assert_eq!(text.stream("stdout"), "one\nno line end");
        assert_eq!(text.stream("stderr"), "two\n");
        // Variables of inferred types, from a macro, a closure's result, a crate of the library.
        kernel
            .run(
                "use polars::prelude::*;\nlet (a, mut b) = (vec![1.5, 2.5], std::collections::HashMap::from([(\"k\", vec![1u8])]));\n\
                 let frame = df!(\"x\" => [1, 2, 3])?;",
            )
            .await
            .good();
        let sum = kernel
            .run("b.insert(\"l\", vec![]);\n(a.iter().sum::<f64>(), b.len(), frame.height())")
            .await
            .good();
        assert_eq!(sum.result(), "(4.0, 2, 3)");
        kernel.run("fn twice(x: i64) -> i64 { 2 * x }\nstruct Point { x: i64 }").await.good();
        assert_eq!(kernel.run("let p = Point { x: twice(21) };\np.x").await.good().result(), "42");
        // The library itself, and its rich output in order.
        let shown = kernel
            .run(
                "println!(\"before\");\ncluescope::kernel::child::display(&serde_json::json!({\"text/html\": \"<b>0</b>\"}), Some(\"bar\"));\n\
                 cluescope::kernel::child::update_display(&serde_json::json!({\"text/html\": \"<b>1</b>\"}), \"bar\");\nprintln!(\"after\");",
            )
            .await
            .good();
        let kinds: Vec<&str> = shown.shown.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(kinds, ["execute_input", "stream", "display_data", "update_display_data", "stream"]);
        assert_eq!(shown.of("update_display_data").next().unwrap()["transient"]["display_id"], "bar");
        // Blocks as other crates write them under evcxr.
        let html = kernel
            .run("println!(\"EVCXR_BEGIN_CONTENT text/html\\n<i>x</i>\\nEVCXR_END_CONTENT\");")
            .await
            .good();
        assert_eq!(html.of("display_data").next().unwrap()["data"]["text/html"], "<i>x</i>");
        kernel.stop().await;
    });
}

#[test]
fn errors_are_errors_and_variables_stay() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run("let kept = String::from(\"kept\");").await.good();
        let wrong = kernel.run("let a = 1;\nlet b: String = a;").await.failed();
        assert_eq!(wrong.reply["ename"], "E0308");
        assert!(wrong.reply["traceback"].to_string().contains("cell:2:17"), "{wrong:#?}");
        let unknown = kernel.run("let x = nothing_of_that_name();").await.failed();
        assert_eq!(unknown.reply["ename"], "E0425");
        let panic = kernel.run("let v: Vec<u8> = vec![];\nv[3]").await.failed();
        assert_eq!(panic.reply["ename"], "Panic");
        assert!(panic.reply["evalue"].as_str().unwrap().contains("index out of bounds"));
        let question = kernel.run("\"x\".parse::<i32>()?").await.failed();
        assert_eq!(question.reply["ename"], "ParseIntError");
        assert_eq!(question.reply["evalue"], "invalid digit found in string");
        let closure = kernel.run("let f = |x: i32| x;").await.failed();
        assert!(closure.reply["evalue"].as_str().unwrap().contains("closure"));
        let twice = kernel.run(":dep candle-core = \"0.3\"").await.failed();
        assert!(twice.reply["evalue"].as_str().unwrap().contains("exist twice"), "{twice:#?}");
        kernel
            .run(":dep cluescope = { path = \"/nowhere\" }\n:dep polars = \"0.55\"\nlet z = 1;")
            .await
            .good();
        assert_eq!(kernel.run("kept.len()").await.good().result(), "4");
        // A crash takes the variables, not the kernel.
        let crash = kernel.run("std::process::abort();").await.failed();
        assert_eq!(crash.reply["ename"], "Crash");
        assert_eq!(kernel.run("2 * 3").await.good().result(), "6");
        kernel.stop().await;
    });
}

#[test]
fn interrupts_keep_variables_where_the_library_runs() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run("let kept = vec![1, 2, 3];").await.good();
        let long = "let progress = cluescope::progress::Progress::start(\"long\", 0, \"steps\");\n\
                    loop { progress.advance(1)?; std::thread::sleep(std::time::Duration::from_millis(5)); }";
        let seconds = kernel.interrupted_after(long, Duration::from_millis(1500)).await;
        assert!(seconds < 20.0, "stopped after {seconds} s");
        assert_eq!(kernel.run("kept.len()").await.good().result(), "3");
        // Code that never asks is given its grace, then its process is replaced.
        let seconds =
            kernel.interrupted_after("loop { std::hint::spin_loop(); }", Duration::from_millis(1500)).await;
        assert!((3.0..30.0).contains(&seconds), "stopped after {seconds} s");
        kernel.run("kept.len()").await.failed();
        assert_eq!(kernel.run("1 + 2").await.good().result(), "3");
        kernel.stop().await;
    });
}

#[test]
fn requests_other_than_cells() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run("let counter = 5u32;").await.good();
        // Silent cells neither count nor show.
        let silent = ExecuteRequest {
            silent: true,
            store_history: false,
            ..ExecuteRequest::new("println!(\"hush\"); 1".into())
        };
        let silent = kernel.execute(silent).await.good();
        assert!(silent.shown.is_empty(), "{silent:#?}");
        let expressions = HashMap::from([
            ("good".to_owned(), "counter + 1".to_owned()),
            ("bad".to_owned(), "nothing".to_owned()),
        ]);
        let asked = ExecuteRequest {
            user_expressions: Some(expressions),
            ..ExecuteRequest::new("let more = 1;".into())
        };
        let asked = kernel.execute(asked).await.good();
        assert_eq!(asked.reply["execution_count"], 2);
        assert_eq!(asked.reply["user_expressions"]["good"]["data"]["text/plain"], "6");
        assert_eq!(asked.reply["user_expressions"]["bad"]["status"], "error");
        // An answer later than three seconds is none: asked again, as a person would.
        let complete = loop {
            let complete = kernel.ask(CompleteRequest { code: "coun".into(), cursor_pos: 4 }).await;
            if complete["matches"] != json!([]) {
                break complete;
            }
        };
        assert_eq!(complete["matches"], json!(["counter"]));
        assert_eq!((complete["cursor_start"].as_u64(), complete["cursor_end"].as_u64()), (Some(0), Some(4)));
        let inspect = InspectRequest { code: "counter".into(), cursor_pos: 3, detail_level: Some(0) };
        let inspected = loop {
            let inspected = kernel.ask(inspect.clone()).await;
            if inspected["found"] == true {
                break inspected;
            }
        };
        assert_eq!(inspected["data"]["text/plain"], "counter: u32");
        for (code, status) in [("1 + 1", "complete"), ("fn f() {", "incomplete"), (")", "invalid")] {
            assert_eq!(kernel.ask(IsCompleteRequest { code: code.into() }).await["status"], status);
        }
        let tail = kernel.ask(HistoryRequest::Tail { n: 1, output: false, raw: true }).await;
        assert_eq!(tail["history"], json!([[1, 2, "let more = 1;"]]));
        kernel.run("counter * 2").await.good();
        let range = HistoryRequest::Range { session: Some(0), start: 2, stop: 4, output: true, raw: true };
        let range = kernel.ask(range).await;
        assert_eq!(range["history"], json!([[1, 2, ["let more = 1;", ""]], [1, 3, ["counter * 2", "10"]]]));
        kernel.run("counter * 2").await.good();
        let search = HistoryRequest::Search {
            n: 5,
            pattern: "counter*".into(),
            unique: true,
            output: false,
            raw: true,
        };
        assert_eq!(kernel.ask(search).await["history"], json!([[1, 4, "counter * 2"]]));
        let cleared =
            kernel.run("println!(\"a\"); cluescope::kernel::child::clear_output(true);").await.good();
        assert_eq!(cleared.of("clear_output").next().unwrap()["wait"], true);
        assert_eq!(kernel.ask(CommInfoRequest::default()).await["comms"], json!({}));
        // A failing cell aborts those already sent.
        let ids: Vec<String> = {
            let mut ids = Vec::new();
            for code in ["panic!(\"first\")", "1", "2"] {
                let request = JupyterMessage::new(ExecuteRequest::new(code.into()), None);
                ids.push(request.header.msg_id.clone());
                kernel.shell.send(request).await.unwrap();
            }
            ids
        };
        assert_eq!(kernel.reply_to(&ids[0]).await["status"], "error");
        assert_eq!(kernel.reply_to(&ids[1]).await["status"], "aborted");
        assert_eq!(kernel.reply_to(&ids[2]).await["status"], "aborted");
        // Unless the client wants those to run all the same.
        let go_on =
            ExecuteRequest { stop_on_error: false, ..ExecuteRequest::new("panic!(\"first\")".into()) };
        let go_on = JupyterMessage::new(go_on, None);
        let next = JupyterMessage::new(ExecuteRequest::new("1".into()), None);
        let (first, second) = (go_on.header.msg_id.clone(), next.header.msg_id.clone());
        kernel.shell.send(go_on).await.unwrap();
        kernel.shell.send(next).await.unwrap();
        assert_eq!(kernel.reply_to(&first).await["status"], "error");
        assert_eq!(kernel.reply_to(&second).await["status"], "ok");
        // Questions to the person.
        let request = ExecuteRequest {
            allow_stdin: true,
            ..ExecuteRequest::new("cluescope::kernel::child::input(\"name? \", false)".into())
        };
        let request = JupyterMessage::new(request, None);
        let id = request.header.msg_id.clone();
        kernel.shell.send(request).await.unwrap();
        let question = kernel.stdin.read().await.unwrap();
        assert!(matches!(&question.content, Content::InputRequest(q) if q.prompt == "name? " && !q.password));
        let answer =
            JupyterMessage::new(InputReply { value: "Ada".into(), ..InputReply::default() }, Some(&question));
        kernel.stdin.send(answer.with_zmq_identities(vec![])).await.unwrap();
        assert_eq!(kernel.outcome(&id).await.good().result(), "\"Ada\"");
        kernel.stop().await;
    });
}

#[test]
fn text_comes_in_the_order_in_which_a_cell_writes_it() {
    wait(async {
        let mut kernel = Client::start().await;
        let code = "for n in 0..50 { println!(\"out {n}\"); eprintln!(\"err {}\", n); eprint!(\"more {n}\\n\"); }\n\
                    let kept = dbg!(1 + 1);";
        let text = kernel.run(code).await.good();
        let all: String = text.of("stream").map(|c| c["text"].as_str().unwrap()).collect();
        let wanted: String = (0..50).map(|n| format!("out {n}\nerr {n}\nmore {n}\n")).collect();
        assert_eq!(all, wanted + "[cell] 1 + 1 = 2\n");
        assert_eq!(text.of("stream").last().unwrap()["name"], "stderr");
        assert_eq!(kernel.run("kept").await.good().result(), "2");
        kernel.stop().await;
    });
}

#[test]
fn an_animation_leaves_its_last_frame() {
    wait(async {
        let mut kernel = Client::start().await;
        let code = "use cluescope::kernel::child::{clear_output, display};\n\
                    for n in 0..3 {\n    display(&serde_json::json!({ \"text/plain\": n.to_string() }), None);\n    \
                    std::thread::sleep(std::time::Duration::from_millis(100));\n    clear_output(true);\n}";
        let shown = kernel.run(code).await.good();
        // The first cell of an installation also tells of the library's build.
        let kinds = shown.shown.iter().map(|(kind, _)| kind.as_str());
        let kinds: Vec<&str> = kinds.filter(|kind| !["execute_input", "stream"].contains(kind)).collect();
        assert_eq!(kinds, ["display_data", "clear_output"].repeat(3), "{shown:#?}");
        let code = "fn show() { cluescope::kernel::child::display(&serde_json::json!({ \"text/plain\": \"a\" }), None) }\nshow()";
        let shown = kernel.run(code).await.good();
        assert_eq!((shown.of("display_data").count(), shown.of("execute_result").count()), (1, 0));
        kernel.stop().await;
    });
}

#[test]
fn an_answer_to_a_question_that_was_given_up_is_none_to_the_next() {
    wait(async {
        let mut kernel = Client::start().await;
        kernel.run("use cluescope::kernel::child::input;").await.good();
        let ask = |prompt: &str| {
            let code = format!(
                "let text = input(\"{prompt}\", false);\ncluescope::progress::check_interrupt()?;\ntext"
            );
            let request = ExecuteRequest { allow_stdin: true, ..ExecuteRequest::new(code) };
            JupyterMessage::new(request, None)
        };
        let reply = |text: &str, question: Option<&JupyterMessage>| {
            let reply = InputReply { value: text.into(), ..InputReply::default() };
            JupyterMessage::new(reply, question).with_zmq_identities(vec![])
        };
        let first = ask("first?");
        let id = first.header.msg_id.clone();
        kernel.shell.send(first).await.unwrap();
        let question = kernel.stdin.read().await.unwrap();
        kernel.control.send(JupyterMessage::new(InterruptRequest {}, None)).await.unwrap();
        kernel.control.read().await.unwrap();
        assert_eq!(kernel.outcome(&id).await.failed().reply["ename"], "Interrupted");
        // Some clients say what they answer, some do not.
        kernel.stdin.send(reply("late", Some(&question))).await.unwrap();
        kernel.stdin.send(reply("late too", None)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        for named in [true, false] {
            let second = ask("second?");
            let id = second.header.msg_id.clone();
            kernel.shell.send(second).await.unwrap();
            let asked = kernel.stdin.read().await.unwrap();
            kernel.stdin.send(reply("late again", Some(&question))).await.unwrap();
            kernel.stdin.send(reply("right", named.then_some(&asked))).await.unwrap();
            assert_eq!(kernel.outcome(&id).await.good().result(), "\"right\"");
        }
        kernel.stop().await;
    });
}

#[test]
fn an_interrupt_reaches_a_cell_that_waits_behind_a_completion() {
    wait(async {
        let mut kernel = Client::start().await;
        let complete = CompleteRequest { code: "std::collections::".into(), cursor_pos: 18 };
        let many: Vec<_> = (0..30).map(|_| JupyterMessage::new(complete.clone(), None)).collect();
        let first = many[0].header.msg_id.clone();
        for complete in many {
            kernel.shell.send(complete).await.unwrap();
        }
        // Should the cell have begun, it hears the interrupt too.
        let code = "for _ in 0..200 { cluescope::progress::check_interrupt()?; \
                    std::thread::sleep(std::time::Duration::from_millis(50)); }";
        let request = JupyterMessage::new(ExecuteRequest::new(code.into()), None);
        let id = request.header.msg_id.clone();
        kernel.shell.send(request).await.unwrap();
        kernel.reply_to(&first).await;
        kernel.control.send(JupyterMessage::new(InterruptRequest {}, None)).await.unwrap();
        kernel.control.read().await.unwrap();
        assert_eq!(kernel.outcome(&id).await.failed().reply["ename"], "Interrupted");
        assert_eq!(kernel.run("1 + 1").await.good().result(), "2", "later cells run");
        kernel.stop().await;
    });
}

#[test]
fn what_is_not_signed_is_not_heard() {
    wait(async {
        let mut kernel = Client::start().await;
        let other = ConnectionInfo { key: "another-key".into(), ..kernel.info.clone() };
        let identity = zmq::peer_identity_for_session("stranger").unwrap();
        let mut stranger =
            zmq::create_client_shell_connection_with_identity(&other, "stranger", identity).await.unwrap();
        for _ in 0..100 {
            stranger
                .send(JupyterMessage::new(ExecuteRequest::new("std::process::exit(1);".into()), None))
                .await
                .unwrap();
        }
        assert_eq!(kernel.run("1 + 1").await.good().result(), "2");
        let heard = tokio::time::timeout(Duration::from_millis(300), stranger.read()).await;
        assert!(heard.is_err(), "an unsigned request was answered");
        let mut stranger = zmq::create_client_control_connection(&other, "stranger").await.unwrap();
        for request in [Content::from(ShutdownRequest { restart: false }), InterruptRequest {}.into()] {
            stranger.send(JupyterMessage::new(request, None)).await.unwrap();
        }
        let heard = tokio::time::timeout(Duration::from_millis(300), stranger.read()).await;
        assert!(heard.is_err(), "an unsigned request was answered");
        // The answer of a stranger, and then that of the person asked.
        let code = "cluescope::kernel::child::input(\"name? \", false)".into();
        let request =
            JupyterMessage::new(ExecuteRequest { allow_stdin: true, ..ExecuteRequest::new(code) }, None);
        let id = request.header.msg_id.clone();
        kernel.shell.send(request).await.unwrap();
        let question = kernel.stdin.read().await.unwrap();
        let identity = zmq::peer_identity_for_session("stranger").unwrap();
        let mut stranger =
            zmq::create_client_stdin_connection_with_identity(&other, "stranger", identity).await.unwrap();
        let reply = |text: &str| {
            let reply = InputReply { value: text.into(), ..InputReply::default() };
            JupyterMessage::new(reply, Some(&question)).with_zmq_identities(vec![])
        };
        stranger.send(reply("Mallory")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        kernel.stdin.send(reply("Ada")).await.unwrap();
        assert_eq!(kernel.outcome(&id).await.good().result(), "\"Ada\"");
        kernel.stop().await;
    });
}

#[test]
fn a_flood_of_text_neither_blocks_nor_grows_the_kernel() {
    wait(async {
        let mut kernel = Client::start().await;
        let code = "let line = \"x\".repeat(1023); for _ in 0..100_000 { println!(\"{line}\"); }";
        let flood = kernel.run(code).await.good();
        let shown: usize = flood.of("stream").map(|c| c["text"].as_str().unwrap().len()).sum();
        assert!(shown < 16 << 20, "{shown} bytes shown");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", kernel.process.id())).unwrap_or_default();
        if let Some(line) = status.lines().find(|l| l.starts_with("VmHWM")) {
            let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            assert!(kilobytes < 1_000_000, "the kernel grew to {kilobytes} KB");
        }
        assert_eq!(kernel.run("1 + 1").await.good().result(), "2");
        kernel.stop().await;
    });
}

#[test]
fn two_kernels_at_once() {
    wait(async {
        let (mut first, mut second) = tokio::join!(Client::start(), Client::start());
        let (a, b) = tokio::join!(first.run("let x = 1; x"), second.run("let x = 2; x"));
        assert_eq!((a.good().result(), b.good().result()), ("1", "2"));
        first.stop().await;
        assert_eq!(second.run("x").await.good().result(), "2");
        second.stop().await;
    });
}

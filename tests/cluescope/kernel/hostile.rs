//! What must not bring the kernel down: crashes of user code, killed processes, messages that are none.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use jupyter_protocol::{ExecuteRequest, JupyterMessage, KernelInfoRequest};
use sha2::{Digest, Sha256};

use super::client::{Client, wait};

#[test]
fn crashes_of_cells_leave_the_kernel_standing() {
    wait(async {
        let mut kernel = Client::start().await;
        for (code, word) in [
            ("unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };", "segmentation"),
            (
                "fn deep(n: u64) -> u64 { let a = [n; 64]; if n == 0 { 0 } else { deep(n - 1) + std::hint::black_box(a)[1] } }\ndeep(u64::MAX)",
                "stack overflow",
            ),
            ("let v: Vec<u8> = Vec::with_capacity(1 << 46); std::hint::black_box(&v);", "aborted"),
            ("std::process::exit(3);", ""),
        ] {
            let crash = kernel.run(code).await.failed();
            assert_eq!(crash.reply["ename"], "Crash", "{code}: {crash:#?}");
            assert!(crash.reply["evalue"].as_str().unwrap().contains(word), "{code}: {crash:#?}");
            assert_eq!(kernel.run("20 + 22").await.good().result(), "42", "after {code}");
        }
        kernel.stop().await;
    });
}

#[test]
fn a_killed_process_of_cells_is_replaced_and_a_killed_kernel_takes_it_along() {
    wait(async {
        let mut kernel = Client::start().await;
        let child: i32 = kernel.run("std::process::id()").await.good().result().parse().unwrap();
        let id = kernel.send("std::thread::sleep(std::time::Duration::from_secs(60));").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        // SAFETY: the process of cells of this test's own kernel.
        unsafe { libc::kill(child, libc::SIGKILL) };
        let crash = kernel.outcome(&id).await.failed();
        assert_eq!(crash.reply["ename"], "Crash");
        assert!(crash.reply["traceback"].to_string().contains("A new one is running"), "{crash:#?}");
        let child: i32 = kernel.run("std::process::id()").await.good().result().parse().unwrap();
        kernel.send("loop { std::hint::spin_loop(); }").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        kernel.process.kill().unwrap();
        kernel.process.wait().unwrap();
        if cfg!(target_os = "linux") {
            let start = Instant::now();
            // SAFETY: signal 0 only asks.
            while unsafe { libc::kill(child, 0) } == 0 {
                assert!(start.elapsed() < Duration::from_secs(60), "the busy process of cells lives on");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}

/// Just enough of ZMTP 3.0 to send a kernel anything at all.
struct Wire(TcpStream);

impl Wire {
    fn connect(port: u16, kind: &str, identity: &str) -> Wire {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut greeting = [0u8; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        stream.write_all(&greeting).unwrap();
        stream.read_exact(&mut greeting).unwrap();
        let mut ready = b"\x05READY".to_vec();
        for (name, value) in [("Socket-Type", kind), ("Identity", identity)] {
            ready.push(name.len() as u8);
            ready.extend(name.bytes());
            ready.extend((value.len() as u32).to_be_bytes());
            ready.extend(value.bytes());
        }
        stream.write_all(&[4, ready.len() as u8]).unwrap();
        stream.write_all(&ready).unwrap();
        let mut head = [0u8; 2];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; usize::from(head[1])];
        stream.read_exact(&mut body).unwrap();
        Wire(stream)
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            let more = u8::from(index + 1 < frames.len());
            bytes.push(more | 2);
            bytes.extend((frame.len() as u64).to_be_bytes());
            bytes.extend(frame);
        }
        self.0.write_all(&bytes)
    }
}

/// A front end that stalls, as on a laptop that sleeps, costs the kernel no memory without bound.
#[test]
fn displays_nobody_reads_do_not_pile_up() {
    wait(async {
        let mut kernel = Client::start().await;
        let port = kernel.info.iopub_port;
        let mut stalled =
            tokio::task::spawn_blocking(move || Wire::connect(port, "SUB", "stalled")).await.unwrap();
        // Subscribes to all, and never reads.
        stalled.send(&[vec![1]]).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let code = "let picture = serde_json::json!({ \"text/html\": \"x\".repeat(1 << 20) });\n\
                    for _ in 0..300 { cluescope::kernel::child::display(&picture, Some(\"curve\")); }";
        let shown = kernel.run(code).await.good();
        let notes =
            shown.of("display_data").filter(|c| c["data"]["text/plain"].to_string().contains("unread"));
        let notes = notes.count();
        assert_eq!(shown.of("display_data").count(), 300);
        assert!((150..290).contains(&notes), "{notes} of 300 pictures were replaced by a note");
        drop(stalled);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let code = "cluescope::kernel::child::display(&serde_json::json!({ \"text/html\": \"y\" }), None);";
        let shown = kernel.run(code).await.good();
        assert_eq!(shown.of("display_data").next().unwrap()["data"]["text/html"], "y", "all is well again");
        kernel.stop().await;
    });
}

/// HMAC-SHA256 in hexadecimal, as Jupyter signs.
fn signature(key: &str, parts: &[Vec<u8>]) -> Vec<u8> {
    let pad = |with: u8| -> Vec<u8> {
        let mut block = [with; 64];
        block.iter_mut().zip(key.bytes()).for_each(|(b, k)| *b ^= k);
        block.to_vec()
    };
    let inner = Sha256::digest([pad(0x36), parts.concat()].concat());
    let outer = Sha256::digest([pad(0x5c), inner.to_vec()].concat());
    outer.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes()
}

/// Messages wrong in every way, half of them rightly signed.
fn malformed(number: usize, key: &str) -> Vec<Vec<u8>> {
    // A parent that is none is overlooked and the request answered, so that one must be cheap.
    let request = if number % 10 == 8 { "comm_info_request" } else { "execute_request" };
    let header = format!(
        r#"{{"msg_id":"m{number}","session":"s","username":"u","date":"2026-01-01T00:00:00Z","msg_type":"{request}","version":"5.3"}}"#
    );
    let content = r#"{"code":"1","silent":false,"store_history":true,"user_expressions":{},"allow_stdin":false,"stop_on_error":true}"#;
    let mut parts: Vec<Vec<u8>> = vec![header.into(), "{}".into(), "{}".into(), content.into()];
    match number % 10 {
        0 => parts[0] = b"{".to_vec(),
        1 => parts[0] = b"null".to_vec(),
        2 => parts[3] = br#"{"code": 7}"#.to_vec(),
        3 => parts[3] = vec![0xff; number % 300],
        4 => parts[0] = parts[0].iter().map(|b| b.wrapping_add(number as u8)).collect(),
        5 => parts[3] = "[".repeat(number).into_bytes(),
        6 => parts.truncate(number / 10 % 4),
        7 => parts[0] = br#"{"msg_type":"no_such_request"}"#.to_vec(),
        8 => parts[1] = br#"{"msg_id": []}"#.to_vec(),
        _ => parts[2] = b"\"metadata\"".to_vec(),
    }
    let signed = if number.is_multiple_of(2) { signature(key, &parts) } else { vec![b'0'; number % 70] };
    let mut frames = vec![b"<IDS|MSG>".to_vec(), signed];
    frames.extend(parts);
    match number % 70 {
        68 => vec![Vec::new()],
        69 => vec![b"<IDS|MSG>".to_vec()],
        _ => frames,
    }
}

#[test]
fn ten_thousand_malformed_messages() {
    wait(async {
        let mut kernel = Client::start().await;
        assert_eq!(kernel.run("1 + 1").await.good().result(), "2");
        let (shell, control, key) =
            (kernel.info.shell_port, kernel.info.control_port, kernel.info.key.clone());
        tokio::task::spawn_blocking(move || {
            for (port, name) in [(shell, "stranger-a"), (control, "stranger-b")] {
                let mut wire = Wire::connect(port, "DEALER", name);
                for number in 0..5000 {
                    if wire.send(&malformed(number, &key)).is_err() {
                        // The kernel may hang up on nonsense; a stranger calls again.
                        wire = Wire::connect(port, "DEALER", &format!("{name}-{number}"));
                    }
                }
            }
        })
        .await
        .unwrap();
        assert_eq!(kernel.run("2 + 2").await.good().result(), "4");
        let start = Instant::now();
        kernel.control.send(JupyterMessage::new(KernelInfoRequest {}, None)).await.unwrap();
        kernel.control.read().await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(20));
        kernel.stop().await;
    });
}

/// Another `:dep` is compiled once, beside the prebuilt library and not with it.
#[test]
fn a_dependency_of_ones_own_does_not_rebuild_the_library() {
    wait(async {
        let mut kernel = Client::start().await;
        let folder = tempfile::tempdir().unwrap();
        let name = format!("own_{}", std::process::id());
        let package = |place: &str, name: &str, needs: &str, code: &str| {
            let place = folder.path().join(place);
            std::fs::create_dir_all(place.join("src")).unwrap();
            let manifest = format!(
                "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n\n[dependencies]\n{needs}\n\n[workspace]\n"
            );
            std::fs::write(place.join("Cargo.toml"), manifest).unwrap();
            std::fs::write(place.join("src/lib.rs"), code).unwrap();
        };
        // Brings a crate of the same name as one that is here.
        // Its type has the name of ours: only then does the compiler see that there are two copies.
        package("half", "half", "", "#[allow(non_camel_case_types)]\n#[derive(Debug)]\npub struct f16;\n");
        let code = "pub fn answer() -> u32 { 42 }\npub fn half() -> half::f16 { half::f16 }\n";
        package("", &name, "half = { path = \"half\" }", code);
        let library = "std::fs::read_to_string(\"/proc/self/maps\").unwrap().lines()\
                       .filter_map(|l| l.split_whitespace().nth(5)).find(|p| p.contains(\"libcluescope\"))\
                       .map(|p| (p.to_owned(), std::fs::metadata(p).unwrap().modified().unwrap()))";
        let before = kernel.run(library).await.good().result().to_owned();
        let code = format!(":dep {name} = {{ path = {:?} }}\n{name}::answer()", folder.path());
        let first = kernel.run(&code).await.good();
        assert_eq!(first.result(), "42");
        let said = first.stream("stderr");
        assert!(!said.contains("Compiling cluescope") && !said.contains("polars"), "{said}");
        assert_eq!(kernel.run(&format!("{name}::answer() + 1")).await.good().result(), "43");
        assert_eq!(kernel.run(library).await.good().result(), before);
        assert_eq!(kernel.run(&format!("{name}::half()")).await.good().result(), "f16");
        let mixed = kernel.run(&format!("let h: half::f16 = {name}::half();")).await.failed();
        let shown = mixed.reply["traceback"].to_string();
        assert!(shown.contains("own copy of `half`") && !shown.contains("cargo tree"), "{mixed:#?}");
        // Into a crate of the library it would bring a second copy.
        let twice = kernel.run(":dep polars = { version = \"0.55\", features = [\"lazy\"] }").await.failed();
        assert!(twice.reply["evalue"].as_str().unwrap().contains("the feature lazy"), "{twice:#?}");
        kernel.stop().await;
    });
}

impl Client {
    /// Sends a cell without waiting for it; its message's id.
    async fn send(&mut self, code: &str) -> String {
        let request = JupyterMessage::new(ExecuteRequest::new(code.into()), None);
        let id = request.header.msg_id.clone();
        self.shell.send(request).await.unwrap();
        id
    }
}

//! How long cells take, in this package's kernel and in stock `evcxr_jupyter`, over the Jupyter
//! protocol, side by side:
//!
//! `cargo run --release --features kernel --example instant_cell -- [evcxr_jupyter]`
//!
//! With the path of a stock kernel it is measured too; its `:dep` cell takes about 20 minutes on
//! two cores the first time. `--cache MIB` gives it evcxr's own cache of compiled crates.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use jupyter_protocol::{
    ConnectionInfo, ExecuteRequest, ExecutionState, JupyterMessage, JupyterMessageContent, KernelInfoRequest,
    ReplyStatus, ShutdownRequest, Transport,
};
use jupyter_zmq_client as zmq;

/// The same crates with the same features as this package's own.
const DEPENDENCIES: &str = r#":dep candle-core = "0.11.1"
:dep candle-nn = "0.11.1"
:dep candle-transformers = "0.11.1"
:dep tokenizers = { version = "0.23.2", default-features = false, features = ["fancy-regex"] }
:dep plotters = { version = "0.3.7", default-features = false, features = ["svg_backend", "line_series", "point_series", "area_series", "histogram", "errorbar"] }
:dep polars = { version = "0.55.2", default-features = false, features = ["csv", "parquet", "fmt"] }"#;

/// The first cell of a notebook of this package.
const LIBRARY: &str = "use cluescope::prelude::*;\nlet people = Biographies::new(20).seed(1).generate()?;\npeople.documents.len()";

/// (name, repetitions, code); `#` in the code becomes the number of the repetition.
const CELLS: [(&str, usize, &str); 9] = [
    (
        "first use of polars and candle",
        1,
        "use polars::prelude::*;\nuse candle_core::{Device, Tensor};\nlet frame = df!(\"a\" => [1, 2, 3])?;\nframe.height()",
    ),
    ("1+1", 20, "1+1"),
    ("println", 20, "println!(\"{}\", #);"),
    ("new variable", 20, "let number = # * 2;"),
    (
        "polars",
        20,
        "let frame = df!(\"a\" => [1, 2, #], \"b\" => [0.5, 1.5, 2.5])?;\nframe.column(\"b\")?.f64()?.sum()",
    ),
    (
        "tensor",
        20,
        "let t = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((3, 4))?;\nt.matmul(&t.t()?)?.to_vec2::<f32>()?",
    ),
    ("20 more variables", 20, "let kept_# = vec![#];"),
    ("1+1 after those", 20, "1+1"),
    ("wrong type", 20, "let wrong: String = #;"),
];

struct Kernel {
    process: Child,
    shell: zmq::ClientShellConnection,
    iopub: zmq::ClientIoPubConnection,
    ready: Duration,
    _folder: tempfile::TempDir,
}

impl Kernel {
    async fn start(command: &mut Command) -> Result<Kernel> {
        let folder = tempfile::tempdir()?;
        let (ports, listeners) = zmq::peek_ports_with_listeners([127, 0, 0, 1].into(), 5).await?;
        let info = ConnectionInfo {
            ip: "127.0.0.1".into(),
            transport: Transport::TCP,
            shell_port: ports[0],
            iopub_port: ports[1],
            stdin_port: ports[2],
            control_port: ports[3],
            hb_port: ports[4],
            key: "0123456789abcdef".into(),
            signature_scheme: "hmac-sha256".into(),
            kernel_name: Some("rust".into()),
        };
        let file = folder.path().join("connection.json");
        std::fs::write(&file, serde_json::to_vec(&info)?)?;
        drop(listeners);
        let start = Instant::now();
        let process =
            command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("kernel")?;
        let session = "measurement";
        let identity = zmq::peer_identity_for_session(session)?;
        let mut shell = loop {
            let connection =
                zmq::create_client_shell_connection_with_identity(&info, session, identity.clone()).await;
            match connection {
                Ok(shell) => break shell,
                Err(error) if start.elapsed() > Duration::from_secs(60) => {
                    bail!("no kernel after a minute: {error}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let iopub = zmq::create_client_iopub_connection(&info, "", session).await?;
        shell.send(JupyterMessage::new(KernelInfoRequest {}, None)).await?;
        while !matches!(shell.read().await?.content, JupyterMessageContent::KernelInfoReply(_)) {}
        Ok(Kernel { process, shell, iopub, ready: start.elapsed(), _folder: folder })
    }

    /// Seconds until the reply and the end of output, and whether the cell succeeded.
    async fn execute(&mut self, code: &str) -> Result<(f64, bool)> {
        let start = Instant::now();
        let request = JupyterMessage::new(ExecuteRequest::new(code.into()), None);
        let id = request.header.msg_id.clone();
        self.shell.send(request).await?;
        let reply = loop {
            let message = self.shell.read().await?;
            if message.parent_header.as_ref().is_some_and(|h| h.msg_id == id) {
                break message;
            }
        };
        let mut failed =
            !matches!(&reply.content, JupyterMessageContent::ExecuteReply(r) if r.status == ReplyStatus::Ok);
        loop {
            let message = self.iopub.read().await?;
            if message.parent_header.as_ref().is_none_or(|h| h.msg_id != id) {
                continue;
            }
            match message.content {
                JupyterMessageContent::Status(s) if s.execution_state == ExecutionState::Idle => break,
                JupyterMessageContent::ErrorOutput(error) => {
                    failed = true;
                    if std::env::var_os("SHOW_ERRORS").is_some() {
                        eprintln!("{}\n", error.traceback.join("\n"));
                    }
                }
                _ => {}
            }
        }
        Ok((start.elapsed().as_secs_f64(), !failed))
    }

    async fn stop(mut self) -> Result<()> {
        self.shell.send(JupyterMessage::new(ShutdownRequest { restart: false }, None)).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Stock evcxr_jupyter does not always leave by itself.
        let _ = self.process.kill();
        self.process.wait()?;
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times of new sessions: until the kernel answers, until its first cell is done, and the first cell that
/// uses the library in a session of its own. `library` is that cell, where the kernel has one at once.
async fn sessions(
    make: &dyn Fn() -> Command,
    library: Option<&str>,
    repetitions: usize,
) -> Result<Vec<(String, f64)>> {
    let (mut ready, mut first, mut used) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repetitions {
        let start = Instant::now();
        let mut kernel = Kernel::start(&mut make()).await?;
        ready.push(kernel.ready.as_secs_f64());
        match library {
            None => {
                kernel.execute("1+1").await?;
                first.push(start.elapsed().as_secs_f64());
            }
            Some(code) => {
                let (seconds, good) = kernel.execute(code).await?;
                if !good {
                    bail!("this cell failed:\n{code}");
                }
                used.push(seconds);
            }
        }
        kernel.stop().await?;
    }
    let row = |name: &str, times| (format!("{name}, median of {repetitions} sessions"), median(times));
    Ok(match library {
        None => {
            let name = "from the start of the kernel to the end of a first `1+1`";
            vec![row("ready (kernel_info_reply)", ready), row(name, first)]
        }
        Some(_) => vec![row("first cell of a session, which uses the library", used)],
    })
}

async fn measure(make: &dyn Fn() -> Command, before: &[String]) -> Result<Vec<(String, f64)>> {
    let mut rows = Vec::new();
    let mut kernel = Kernel::start(&mut make()).await?;
    for cell in before {
        let (seconds, good) = kernel.execute(cell).await?;
        rows.push((cell.lines().next().unwrap_or_default().to_owned(), seconds));
        if !good {
            bail!("this cell failed:\n{cell}");
        }
    }
    for (name, repetitions, code) in CELLS {
        let mut times = Vec::new();
        for index in 1..=repetitions {
            let (seconds, good) = kernel.execute(&code.replace('#', &index.to_string())).await?;
            if good == (name == "wrong type") {
                bail!("`{name}` should {}", if good { "fail" } else { "succeed" });
            }
            times.push(seconds);
        }
        rows.push((format!("{name}, median of {repetitions}"), median(times)));
    }
    kernel.stop().await?;
    Ok(rows)
}

/// Latency and memory of one session over `cells` cells, each with a new variable.
async fn long_session(make: &dyn Fn() -> Command, cells: usize) -> Result<()> {
    let mut kernel = Kernel::start(&mut make()).await?;
    println!(
        "\n| cells so far | seconds a cell, median of the last 20 | kernel, MB | process of cells, MB |"
    );
    println!("|---:|---:|---:|---:|");
    let mut times = Vec::new();
    for number in 1..=cells {
        let (seconds, good) = kernel.execute(&format!("let kept = vec![{number}u64]; kept.len()")).await?;
        if !good {
            bail!("cell {number} failed");
        }
        times.push(seconds);
        if number == 20 || number % (cells / 5).max(1) == 0 {
            let recent = times[times.len().saturating_sub(20)..].to_vec();
            let id = kernel.process.id();
            println!(
                "| {number} | {:.3} | {:.0} | {:.0} |",
                median(recent),
                resident(id),
                child_resident(id)
            );
        }
    }
    kernel.stop().await
}

/// Memory of a process in MB, from Linux's `/proc`.
fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).map_or(f64::NAN, |kb| kb / 1000.0)
}

fn child_resident(process: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> = children
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter().map(resident).sum()
}

fn show(title: &str, rows: &[(String, f64)]) {
    println!("\n| {title} | seconds |\n|---|---:|");
    for (name, seconds) in rows {
        println!("| {name} | {seconds:.3} |");
    }
}

fn main() -> Result<()> {
    cluescope::kernel::hook();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    // This program is its own kernel, so that nothing else need be built.
    if arguments.first().is_some_and(|a| a == "--serve") {
        return Ok(cluescope::kernel::serve(Path::new(&arguments[1]))?);
    }
    let cache = arguments
        .iter()
        .position(|a| a == "--cache")
        .map(|at| arguments.drain(at..at + 2).nth(1).unwrap_or_default());
    let cells = arguments
        .iter()
        .position(|a| a == "--cells")
        .and_then(|at| arguments.drain(at..at + 2).nth(1)?.parse().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let this = std::env::current_exe()?;
    let ours = || {
        let mut command = Command::new(&this);
        command.arg("--serve");
        command
    };
    // Not part of any time: made once per installation.
    let tools = cluescope::kernel::Toolchain::find()?;
    let start = Instant::now();
    cluescope::kernel::Prelude::find_or_build(&tools, &mut |line| eprintln!("{line}"))?;
    println!("prebuilt library found or built in {:.1} s", start.elapsed().as_secs_f64());
    if let Some(cells) = cells {
        return runtime.block_on(long_session(&ours, cells));
    }
    let mut rows = runtime.block_on(sessions(&ours, None, 20))?;
    rows.extend(runtime.block_on(sessions(&ours, Some(LIBRARY), 20))?);
    rows.extend(runtime.block_on(measure(&ours, &[]))?);
    show("cluescope", &rows);
    if let Some(stock) = arguments.first().map(PathBuf::from) {
        let theirs = || {
            let mut command = Command::new(&stock);
            command.arg("--control_file");
            command
        };
        let mut before: Vec<String> = cache.map(|mib| format!(":cache {mib}")).into_iter().collect();
        before.push(DEPENDENCIES.to_owned());
        let mut rows = runtime.block_on(sessions(&theirs, None, 3))?;
        rows.extend(runtime.block_on(measure(&theirs, &before))?);
        show("evcxr_jupyter", &rows);
    }
    Ok(())
}

//! The hub, as a small server on this machine speaks its file interface: listing, ranges, etags, gated models,
//! broken and corrupted downloads, the cache without a connection, and the environment's variables.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use cluescope::model::{Hub, Model};
use cluescope::tokens::Tokenizer;
use sha2::{Digest, Sha256};

use crate::families::fixture;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPO: &str = "someone/tiny-model";
/// The small model of the pair `smollm2`; here as tiny as the other.
const KNOWN: &str = "HuggingFaceTB/SmolLM2-135M";

/// What the server holds and what it does wrong.
#[derive(Default)]
pub(crate) struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Access token asked for.
    token: Option<String>,
    /// File, and how many of its next answers end half-way.
    cut: Option<(String, usize)>,
    /// File, and how many of its next answers have a wrong byte.
    spoil: Option<(String, usize)>,
    /// File that comes in drops, a tenth of a second each.
    pub(crate) slow: Option<String>,
    /// File of which half comes and then nothing more, though the connection stays.
    pub(crate) stalled: Option<String>,
    /// Answers a range with the whole file.
    ignore_ranges: bool,
    /// Requests, one line each.
    seen: Vec<String>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || drop(answer(stream, &shared)));
            }
        });
        Server { address, state }
    }

    /// A server of a fixture's files.
    pub(crate) fn of(name: &str) -> Self {
        Self::start(State { files: files(&fixture(name)), ..State::default() })
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: self.address.clone(), cache: cache.to_path_buf(), token: None, offline: false }
    }

    fn requests(&self) -> usize {
        self.state.lock().unwrap().seen.len()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let wanted = ["json", "safetensors"];
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| wanted.contains(&path.extension().unwrap().to_str().unwrap()))
        .filter(|path| !["expected.safetensors", "tokens.json"].iter().any(|name| path.ends_with(name)))
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect()
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let (mut range, mut token) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_once(": ").unwrap_or_default();
        match name.to_lowercase().as_str() {
            "range" => range = Some(value.trim_start_matches("bytes=").to_owned()),
            "authorization" => token = Some(value.trim_start_matches("Bearer ").to_owned()),
            _ => {}
        }
    }
    let mut state = state.lock().unwrap();
    state.seen.push(format!("{path} {}", range.clone().unwrap_or_default()));
    let mut send = |status: &str, headers: &str, length: usize, body: &[u8]| -> std::io::Result<()> {
        write!(out, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
        out.write_all(body)
    };
    if state.token.is_some() && token != state.token {
        return send("401 Unauthorized", "", 0, b"");
    }
    if path.starts_with(&format!("/api/models/{REPO}/revision/"))
        || path.starts_with(&format!("/api/models/{KNOWN}/revision/"))
    {
        let list: Vec<String> =
            state.files.keys().map(|name| format!("{{\"rfilename\":{name:?}}}")).collect();
        let body = format!("{{\"siblings\":[{}],\"sha\":\"{COMMIT}\"}}", list.join(","));
        return send("200 OK", "Content-Type: application/json\r\n", body.len(), body.as_bytes());
    }
    let name = [REPO, KNOWN].iter().find_map(|repo| path.strip_prefix(&format!("/{repo}/resolve/{COMMIT}/")));
    let name = name.unwrap_or_default().to_owned();
    let Some(mut bytes) = state.files.get(&name).cloned() else {
        return send("404 Not Found", "", 0, b"");
    };
    // Weights are large files with a SHA-256, the rest has a git hash.
    let etag = if name.ends_with("safetensors") || name.ends_with("gguf") {
        Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
    } else {
        format!("{:040x}", name.len())
    };
    let total = bytes.len();
    let whole = state.ignore_ranges && range.as_deref() != Some("0-0");
    let (from, to) = match range.as_deref().and_then(|r| r.split_once('-')) {
        Some((from, to)) if !whole => {
            (from.parse().unwrap_or(0), to.parse::<usize>().map_or(total, |to| (to + 1).min(total)))
        }
        _ => (0, total),
    };
    if from > 0 && from >= total {
        return send("416 Range Not Satisfiable", "", 0, b"");
    }
    let headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{total}\r\n",
        to.max(1) - 1
    );
    let data = range.as_deref() != Some("0-0");
    if data && let Some((_, left)) = state.spoil.as_mut().filter(|(file, left)| *file == name && *left > 0) {
        *left -= 1;
        bytes[total / 2] ^= 0xFF;
    }
    let body = &bytes[from..to];
    if data && let Some((_, left)) = state.cut.as_mut().filter(|(file, left)| *file == name && *left > 0) {
        *left -= 1;
        return send("206 Partial Content", &headers, body.len(), &body[..body.len() / 2]);
    }
    let stalled = data && state.stalled.as_ref() == Some(&name);
    if !(stalled || data && state.slow.as_ref() == Some(&name)) {
        return send("206 Partial Content", &headers, body.len(), body);
    }
    drop(state);
    let mut drops = body.chunks(body.len().div_ceil(1000).max(1));
    send("206 Partial Content", &headers, body.len(), drops.next().unwrap_or_default())?;
    if stalled {
        out.write_all(&drops.take(500).collect::<Vec<_>>().concat())?;
        loop {
            std::thread::park();
        }
    }
    drops.try_for_each(|part| {
        std::thread::sleep(std::time::Duration::from_millis(100));
        out.write_all(part)
    })
}

#[test]
fn a_model_is_downloaded_once_and_then_read_from_the_cache() {
    let server = Server::of("smollm2");
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let model = Model::load_from(REPO, &hub).unwrap();
    let local = Model::load(fixture("smollm2").to_str().unwrap()).unwrap();
    assert_eq!(model.hash(), local.hash());
    assert_eq!(model.name(), REPO);
    let requests = server.requests();
    Model::load_from(REPO, &hub).unwrap();
    Model::load_from(REPO, &Hub { offline: true, ..hub.clone() }).unwrap();
    assert_eq!(server.requests(), requests, "a complete cache needs no connection");
    // Another revision is another entry, though of the same commit: nothing is fetched twice.
    Model::load_from(&format!("{REPO}@v1.0"), &hub).unwrap();
    assert_eq!(server.requests(), requests + 1, "only the list was asked for");
}

/// huggingface_hub keeps no name for a revision that is a commit itself.
#[test]
fn a_commit_is_found_in_the_cache_without_a_name_for_it() {
    let server = Server::of("smollm2");
    server.set(|s| {
        s.files.insert("tiny.gguf".into(), std::fs::read(fixture("smollm2").join("model.gguf")).unwrap());
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let sources = [format!("{REPO}@{COMMIT}"), format!("{REPO}/tiny.gguf@{COMMIT}")];
    for source in &sources {
        Model::load_from(source, &hub).unwrap();
    }
    let folder = cache.path().join("models--someone--tiny-model");
    std::fs::remove_dir_all(folder.join("refs")).unwrap();
    let requests = server.requests();
    for source in &sources {
        Model::load_from(source, &Hub { offline: true, ..hub.clone() }).unwrap();
        Model::load_from(source, &hub).unwrap();
    }
    assert_eq!(server.requests(), requests, "a commit never changes");
    std::fs::remove_file(folder.join("snapshots").join(COMMIT).join("model.safetensors")).unwrap();
    let message = Model::load_from(&sources[0], &Hub { offline: true, ..hub }).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE forbids"), "{message}");
}

/// Start tokens are a setting of `tokenizer_config.json`: a cache without it, as another tool may leave it, is not complete.
#[test]
fn a_cache_without_the_tokenizers_settings_is_completed() {
    let server = Server::of("llama2");
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let offline = Hub { offline: true, ..hub.clone() };
    let encode = |hub: &Hub| Model::load_from(REPO, hub).map(|m| m.tokenizer().encode("Ann").unwrap().ids);
    let whole = encode(&hub).unwrap();
    let snapshot = cache.path().join("models--someone--tiny-model/snapshots").join(COMMIT);
    let settings = snapshot.join("tokenizer_config.json");
    std::fs::remove_file(&settings).unwrap();
    let message = encode(&offline).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE forbids"), "{message}");
    assert_eq!(encode(&hub).unwrap(), whole);
    assert!(settings.exists());
    std::fs::remove_file(snapshot.join("generation_config.json")).unwrap();
    assert_eq!(encode(&offline).unwrap(), whole, "nobody can be asked whether there is one");

    // A repository that has no such files is asked once; the answer is kept as the hub's own tools keep it.
    let server = Server::of("smollm2");
    server.set(|s| s.files.retain(|name, _| !name.ends_with("_config.json")));
    let hub = server.hub(&cache.path().join("other"));
    Model::load_from(REPO, &hub).unwrap();
    let requests = server.requests();
    Model::load_from(REPO, &hub).unwrap();
    Model::load_from(REPO, &Hub { offline: true, ..hub.clone() }).unwrap();
    assert_eq!(server.requests(), requests);
    let note = format!("other/models--someone--tiny-model/.no_exist/{COMMIT}/tokenizer_config.json");
    assert!(cache.path().join(note).exists());
}

#[test]
fn shards_and_gguf_files_are_downloaded() {
    let server = Server::of("smollm2-sharded");
    server.set(|s| {
        s.files.insert("sub/tiny.gguf".into(), std::fs::read(fixture("smollm2").join("model.gguf")).unwrap());
    });
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    Model::load_from(REPO, &hub).unwrap();
    Model::load_from(&format!("{REPO}/sub/tiny.gguf"), &hub).unwrap();
    let message = Model::load_from(&format!("{REPO}/other.gguf"), &hub).unwrap_err().to_string();
    assert!(message.contains("has no file other.gguf") && message.contains("sub/tiny.gguf"), "{message}");
}

#[test]
fn the_size_of_weights_is_known_before_they_are_downloaded() {
    let server = Server::of("smollm2-sharded");
    let gguf = std::fs::read(fixture("smollm2").join("model.gguf")).unwrap();
    let bytes = gguf.len() as u64;
    server.set(|s| drop(s.files.insert("tiny.gguf".into(), gguf)));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let weight = |name: &str| name.ends_with(".safetensors");
    let shards: u64 = files(&fixture("smollm2-sharded"))
        .iter()
        .filter(|(n, _)| weight(n))
        .map(|(_, b)| b.len() as u64)
        .sum();
    assert_eq!(hub.weight_bytes(REPO).unwrap(), shards);
    assert_eq!(hub.weight_bytes(&format!("{REPO}/tiny.gguf")).unwrap(), bytes);
    assert!(hub.weight_bytes(&format!("{REPO}/other.gguf")).unwrap_err().to_string().contains("has no file"));
    // Of each weight file one byte was asked for, which tells its length.
    server.set(|s| {
        let weights = s.seen.iter().filter(|line| line.contains(".safetensors ") || line.contains(".gguf "));
        assert!(
            weights.clone().count() > 2 && weights.clone().all(|line| line.ends_with(" 0-0")),
            "{:?}",
            s.seen
        );
    });
    Model::load_from(REPO, &hub).unwrap();
    let offline = Hub { offline: true, ..hub };
    assert_eq!(offline.weight_bytes(REPO).unwrap(), shards, "from the cache");
}

#[test]
fn a_tokenizer_is_downloaded_without_weights_which_come_later() {
    for fixture_name in ["smollm2", "smollm2-sharded"] {
        let server = Server::of(fixture_name);
        let cache = tempfile::tempdir().unwrap();
        let hub = server.hub(cache.path());
        let offline = Hub { offline: true, ..hub.clone() };
        let ids = |tokenizer: &Tokenizer| tokenizer.encode("Ann Lee").unwrap().ids;
        let alone = Model::load_tokenizer_from(REPO, &hub).unwrap();
        let requests = server.requests();
        assert_eq!(ids(&Model::load_tokenizer_from(REPO, &offline).unwrap()), ids(&alone));
        assert_eq!(ids(&Model::load_tokenizer_from(REPO, &hub).unwrap()), ids(&alone));
        let config = Model::load_config_from(REPO, &offline).unwrap();
        assert_eq!(server.requests(), requests, "from the cache");
        server.set(|s| assert!(s.seen.iter().all(|line| !line.contains("safetensors")), "{:?}", s.seen));
        // What is there passes for no model.
        let message = Model::load_from(REPO, &offline).unwrap_err().to_string();
        assert!(message.contains("HF_HUB_OFFLINE forbids"), "{message}");
        let model = Model::load_from(REPO, &hub).unwrap();
        assert_eq!((ids(model.tokenizer()), model.config()), (ids(&alone), &config));
    }
    // Its weights cannot be read, its tokenizer can.
    let server = Server::of("smollm2");
    server.set(|s| {
        let weights = s.files.remove("model.safetensors").unwrap();
        s.files.insert("pytorch_model.bin".into(), weights);
    });
    let cache = tempfile::tempdir().unwrap();
    Model::load_tokenizer_from(REPO, &server.hub(cache.path())).unwrap();
    // One file holds everything, and a repository of such files is told apart from one without a tokenizer.
    let server = Server::of("smollm2");
    server.set(|s| {
        s.files.clear();
        s.files.insert("tiny.gguf".into(), std::fs::read(fixture("smollm2").join("model.gguf")).unwrap());
    });
    let hub = server.hub(&cache.path().join("gguf"));
    Model::load_tokenizer_from(&format!("{REPO}/tiny.gguf"), &hub).unwrap();
    let message = Model::load_tokenizer_from(REPO, &hub).unwrap_err().to_string();
    assert!(message.contains("holds GGUF files; name one"), "{message}");
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let server = Server::of("smollm2");
    server.set(|s| s.cut = Some(("model.safetensors".into(), 2)));
    let cache = tempfile::tempdir().unwrap();
    Model::load_from(REPO, &server.hub(cache.path())).unwrap();
    let state = server.state.lock().unwrap();
    let size = state.files["model.safetensors"].len();
    let asked: Vec<&str> =
        state.seen.iter().filter_map(|r| r.split_once("model.safetensors ")?.1.strip_suffix('-')).collect();
    let quarter = size - (size - size / 2).div_ceil(2);
    assert_eq!(asked, ["0", &(size / 2).to_string(), &quarter.to_string()], "{:?}", state.seen);
}

#[test]
fn what_stays_broken_is_kept_and_continued_later() {
    let server = Server::of("smollm2");
    server.set(|s| s.cut = Some(("model.safetensors".into(), usize::MAX)));
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let message = Model::load_from(REPO, &hub).unwrap_err().to_string();
    assert!(message.contains("what arrived is kept, try again"), "{message}");
    // The cache must not pass for complete.
    let offline = Hub { offline: true, ..hub.clone() };
    let message = Model::load_from(REPO, &offline).unwrap_err().to_string();
    assert!(message.contains("HF_HUB_OFFLINE"), "{message}");
    server.set(|s| s.cut = None);
    Model::load_from(REPO, &hub).unwrap();
    let state = server.state.lock().unwrap();
    let last = state.seen.iter().rfind(|r| r.contains("model.safetensors ") && !r.ends_with("0-0")).unwrap();
    assert!(!last.ends_with(" 0-"), "it began again: {last}");
}

#[test]
fn a_corrupted_download_is_noticed_and_fetched_again() {
    let cache = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "config.json"] {
        let server = Server::of("smollm2");
        server.set(|s| s.spoil = Some((file.into(), 1)));
        Model::load_from(REPO, &server.hub(&cache.path().join(file))).unwrap();
        assert_eq!(server.state.lock().unwrap().spoil.as_ref().unwrap().1, 0);
    }
    let server = Server::of("smollm2");
    server.set(|s| s.spoil = Some(("model.safetensors".into(), usize::MAX)));
    let hub = server.hub(&cache.path().join("always"));
    let message = Model::load_from(REPO, &hub).unwrap_err().to_string();
    assert!(message.contains("damaged twice") && message.contains("SHA-256"), "{message}");
    server.set(|s| s.spoil = None);
    Model::load_from(REPO, &hub).unwrap();
}

#[test]
fn a_server_that_ignores_ranges_does_no_harm() {
    let server = Server::of("smollm2");
    server.set(|s| {
        s.ignore_ranges = true;
        s.cut = Some(("model.safetensors".into(), 1));
    });
    let cache = tempfile::tempdir().unwrap();
    Model::load_from(REPO, &server.hub(cache.path())).unwrap();
}

#[test]
fn what_the_hub_refuses_is_explained() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::of("smollm2");
    server.set(|s| s.token = Some("secret".into()));
    let hub = server.hub(cache.path());
    let message = Model::load_from(REPO, &hub).unwrap_err().to_string();
    assert!(message.contains("accept its terms") && message.contains("HF_TOKEN"), "{message}");
    let with_token = Hub { token: Some("secret".into()), ..hub.clone() };
    Model::load_from(REPO, &with_token).unwrap();

    let hub = Hub { cache: cache.path().join("other"), token: Some("secret".into()), ..hub };
    let message = Model::load_from("someone/else", &hub).unwrap_err().to_string();
    assert!(message.contains("no model someone/else with revision main"), "{message}");
    let nowhere = Hub { endpoint: "ftp://x".into(), ..hub.clone() };
    assert!(Model::load_from(REPO, &nowhere).unwrap_err().to_string().contains("HF_ENDPOINT"));
    // A port nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed = Hub { endpoint: format!("http://{closed}"), ..hub.clone() };
    assert!(Model::load_from(REPO, &closed).unwrap_err().to_string().contains("failed"));

    let says = |files: &[&str], part: &str| {
        let server = Server::start(State {
            files: files.iter().map(|name| ((*name).to_owned(), b"{}".to_vec())).collect(),
            ..State::default()
        });
        let message = Model::load_from(REPO, &server.hub(&cache.path().join("bad"))).unwrap_err().to_string();
        assert!(message.contains(part), "{part:?} is not in: {message}");
    };
    says(&["config.json", "pytorch_model.bin"], "pickle");
    says(&["a.Q4_0.gguf", "a.Q8_0.gguf"], "a.Q8_0.gguf");
    says(&["README.md"], "no safetensors");
    says(&["model.safetensors", "config.json"], "no tokenizer.json");
}

/// Forbids the process about to begin to make any socket (seccomp).
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn deny_sockets(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let filter = || {
        let (load, jump, give) = (0x20, 0x15, 0x06); // BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
        let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
        // The number of the call; one step over the answer "not permitted" unless it is `socket`.
        let mut program = [
            step(load, 0, 0),
            libc::sock_filter { code: jump, jt: 0, jf: 1, k: libc::SYS_socket as u32 },
            step(give, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step(give, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: the filter lives through the call; it only takes rights away from this process.
        let refused = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) != 0
        };
        if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(filter) };
}

#[test]
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
fn a_complete_cache_needs_no_socket() {
    let server = Server::of("smollm2");
    let cache = tempfile::tempdir().unwrap();
    let hub = server.hub(cache.path());
    let hash = Model::load_from(REPO, &hub).unwrap().hash().to_owned();
    let child = |source: &str, offline: Option<&str>| {
        let mut command = child(source);
        deny_sockets(&mut command);
        command.env("HF_HUB_CACHE", cache.path()).env("HF_ENDPOINT", &server.address);
        command.envs(offline.map(|value| ("HF_HUB_OFFLINE", value)));
        outcome(command)
    };
    for offline in [None, Some("1")] {
        assert_eq!(child(REPO, offline), format!("loaded {hash}"), "{offline:?}");
    }
    let said = child("someone/else", Some("1"));
    assert!(said.contains("HF_HUB_OFFLINE forbids"), "{said}");
    // The denial is real: what is not in the cache cannot be asked for.
    let said = child("someone/else", None);
    assert!(said.starts_with("failed") && said.contains("not permitted"), "{said}");
}

/// Runs in a process of its own, started by the tests around, since the environment belongs to a whole process.
#[test]
fn child_of_the_environment_test() {
    let Ok(source) = std::env::var("CLUESCOPE_TEST_CHILD") else { return };
    match Model::load(&source) {
        Ok(model) => println!("\nloaded {}", model.hash()),
        Err(error) => println!("\nfailed {error}"),
    }
}

/// A process that loads `source` with the environment it is given.
fn child(source: &str) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "hub::child_of_the_environment_test", "--nocapture"]);
    for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("CLUESCOPE_TEST_CHILD", source);
    command
}

/// What such a process said.
fn outcome(mut command: std::process::Command) -> String {
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let line = output.lines().find(|l| l.starts_with("loaded") || l.starts_with("failed"));
    line.unwrap_or_default().to_owned()
}

#[test]
fn the_environment_is_respected() {
    let server = Server::of("smollm2");
    server.set(|s| s.token = Some("from-env".into()));
    let cache = tempfile::tempdir().unwrap();
    let child = |variables: &[(&str, &str)]| {
        let mut command = child(REPO);
        command.envs(variables.iter().copied());
        outcome(command)
    };
    let home = cache.path().to_str().unwrap();
    let set = [("HF_ENDPOINT", server.address.as_str()), ("HF_HOME", home), ("HF_TOKEN", "from-env")];
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", server.address.as_str()), ("HF_HOME", home)];
    assert!(child(&offline).contains("HF_HUB_OFFLINE forbids"));
    assert_eq!(server.requests(), 0);
    assert!(child(&set).starts_with("loaded"), "{}", child(&set));
    let requests = server.requests();
    assert!(child(&offline).starts_with("loaded"));
    assert_eq!(server.requests(), requests, "offline means no request");
    assert!(cache.path().join("hub/models--someone--tiny-model").is_dir());
}

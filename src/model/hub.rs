//! Models of the Hugging Face hub, in the cache that all its tools share.
//!
//! [`Hub::fetch`] answers from the cache whenever it is complete, without a connection. Otherwise it
//! asks for the list of files, downloads what is missing (continuing an interrupted download), checks sizes and,
//! for large files, SHA-256, and only then hands out the folder. Everything is taken from one commit.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::weights::{pickle_message, read_index};
use crate::error::{Error, Result};
use crate::files;
use crate::progress::{Progress, check_interrupt};

/// Where and how models are fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// Base address, without a slash at the end.
    pub endpoint: String,
    /// The cache folder.
    pub cache: PathBuf,
    /// Access token for gated and private models.
    pub token: Option<String>,
    /// Never connect; use what the cache holds.
    pub offline: bool,
}

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const OPTIONAL: [&str; 2] = [TOKENIZER_CONFIG, "generation_config.json"];

impl Hub {
    /// The settings of the environment: `HF_ENDPOINT`, `HF_HUB_CACHE` or `HF_HOME`, `HF_TOKEN` (else the file of
    /// `huggingface-cli login`), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let cache = match var("HF_HUB_CACHE") {
            Some(folder) => Cache::new(folder.into()),
            None => Cache::from_env(),
        };
        let endpoint = var("HF_ENDPOINT").unwrap_or("https://huggingface.co".into());
        let offline = var("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Hub {
            endpoint: endpoint.trim_end_matches('/').into(),
            token: var("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(|| cache.token()),
            cache: cache.path().clone(),
            offline: ["1", "on", "yes", "true"].contains(&offline.as_str()),
        }
    }

    /// The local folder of a checkpoint, or file of a GGUF, downloaded if need be. `source` is `owner/name`,
    /// `owner/name@revision` or `owner/name/file.gguf`.
    ///
    /// # Errors
    /// [`Error::Model`] saying what to do: not an id, not found, gated, offline, no safetensors, or damaged on the way.
    pub fn fetch(&self, source: &str) -> Result<PathBuf> {
        self.get(source, Files::All)
    }

    /// [`Hub::fetch`] of a checkpoint's configuration and tokenizer alone; a GGUF is one file and comes whole.
    ///
    /// # Errors
    /// As [`Hub::fetch`], but for those about weights.
    pub fn fetch_tokenizer(&self, source: &str) -> Result<PathBuf> {
        self.get(source, Files::Small)
    }

    fn get(&self, source: &str, wanted: Files) -> Result<PathBuf> {
        let id = Id::parse(source)?;
        let cached = self.cached(&id);
        if let Some(found) = id.complete(source, &cached, self.offline, wanted)? {
            return Ok(found);
        }
        let (download, names) = self.look(source, &id)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = match &id.file {
            Some(file) => download.file(download.listed(file, &names)?)?,
            None => download.checkpoint(&names, wanted)?,
        };
        // Only now does the branch's name point at this commit: a cache entry has what was asked for or is absent.
        cached.create_ref(download.repo.revision()).map_err(Error::io(&self.cache))?;
        Ok(found)
    }

    /// Bytes of the weight files that [`Hub::fetch`] would hand out, known before any of them is downloaded.
    ///
    /// # Errors
    /// As [`Hub::fetch`].
    pub fn weight_bytes(&self, source: &str) -> Result<u64> {
        let id = Id::parse(source)?;
        if let Some(found) = id.complete(source, &self.cached(&id), self.offline, Files::All)? {
            return bytes_of_weights(&found);
        }
        let (download, names) = self.look(source, &id)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let weights = match &id.file {
            Some(file) => vec![download.listed(file, &names)?.to_owned()],
            None => download.weights(&names)?,
        };
        weights.iter().try_fold(0, |sum, name| Ok(sum + download.metadata(name)?.size() as u64))
    }

    fn cached(&self, id: &Id) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(id.at(&id.revision))
    }

    /// The newest commit of `id`, and the files it lists.
    fn look<'a>(&'a self, source: &'a str, id: &'a Id) -> Result<(Download<'a>, Vec<String>)> {
        if self.offline {
            return Err(Error::model(
                source,
                format!(
                    "is not (completely) in the cache {} and HF_HUB_OFFLINE forbids a download; load it once without, or copy the cache here",
                    self.cache.display()
                ),
            ));
        }
        let api = self.api(source)?;
        let asked = api.repo(id.at(&id.revision));
        let info = call("", move |_| asked.info())?.map_err(|e| self.explain(source, id, e))?;
        // The commit's name becomes a folder; only a hash is one.
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(Error::model(source, format!("{} answered without a commit", self.endpoint)));
        }
        let names = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok((Download { hub: self, source, id, api, repo: id.at(&info.sha) }, names))
    }

    fn api(&self, source: &str) -> Result<Api> {
        let address = self.endpoint.strip_prefix("https://").or(self.endpoint.strip_prefix("http://"));
        let sound = address.is_some_and(|rest| {
            !rest.is_empty() && rest.chars().all(|c| c.is_ascii_graphic() && !"\"<>\\^`{|}".contains(c))
        });
        if !sound {
            let message = format!("HF_ENDPOINT is {:?}, which is not an http(s) address", self.endpoint);
            return Err(Error::model(source, message));
        }
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_retries(3)
            .build()
            .map_err(|e| Error::model(source, format!("cannot prepare a connection: {e}")))
    }

    /// What an error of the hub means to the user. The status is read from the message because the type
    /// that carries it belongs to a crate we do not otherwise use.
    fn explain(&self, source: &str, id: &Id, error: ApiError) -> Error {
        let text = error.to_string();
        let status = |code: &str| text.contains(&format!("status: {code}"));
        let message = if status("401") || status("403") {
            let who =
                if self.token.is_some() { "the token in use may not" } else { "without a token you may not" };
            format!(
                "{who} read it; accept its terms at {}/{} and set HF_TOKEN to a token of your account",
                self.endpoint, id.repo
            )
        } else if status("404") {
            format!("{} has no model {} with revision {}", self.endpoint, id.repo, id.revision)
        } else {
            format!("download from {} failed: {text}; what arrived is kept, try again", self.endpoint)
        };
        Error::model(source, message)
    }
}

/// Which files of a checkpoint are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    All,
    /// All but the weights.
    Small,
}

/// A parsed hub id.
#[derive(Debug, PartialEq, Eq)]
struct Id {
    repo: String,
    revision: String,
    file: Option<String>,
}

impl Id {
    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), RepoType::Model, revision.to_owned())
    }

    /// `file` in the cache. A revision that is a commit names its folder itself; the hub's own tools keep no other name for it.
    fn held(&self, cached: &CacheRepo, file: &str) -> Option<PathBuf> {
        let commit = self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit());
        if !commit {
            return cached.get(file);
        }
        Some(cached.pointer_path(&self.revision).join(file)).filter(|path| path.exists())
    }

    fn parse(source: &str) -> Result<Self> {
        let bad = || {
            Err(Error::model(
                source,
                "no such file or folder, and not a Hugging Face id (owner/name, owner/name@revision or owner/name/file.gguf)",
            ))
        };
        let (path, revision) = source.split_once('@').unwrap_or((source, "main"));
        let plain = |part: &str, more: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c))
        };
        let parts: Vec<&str> = path.split('/').collect();
        let sound =
            parts.iter().all(|part| plain(part, "")) && plain(revision, "/") && !revision.starts_with('/');
        let (repo, file) = match parts[..] {
            // A few old models have no owner, such as gpt2.
            [name] => (name.to_owned(), None),
            [owner, name] => (format!("{owner}/{name}"), None),
            [owner, name, ref rest @ ..] if files::extension(path) == "gguf" => {
                (format!("{owner}/{name}"), Some(rest.join("/")))
            }
            _ => return bad(),
        };
        if !sound
            || (file.is_none()
                && ["gguf", "safetensors", "bin", "json"].contains(&files::extension(path).as_str()))
        {
            return bad();
        }
        Ok(Id { repo, revision: revision.to_owned(), file })
    }

    /// What the cache holds, when it is all there.
    ///
    /// Start and end tokens are settings of the optional files, so one that is missing must be known to be missing from the
    /// hub too, or every text would silently begin with another token. Offline, where nobody can be asked, the end
    /// tokens of `config.json` have to do.
    fn complete(
        &self,
        source: &str,
        cached: &CacheRepo,
        offline: bool,
        wanted: Files,
    ) -> Result<Option<PathBuf>> {
        if let Some(file) = &self.file {
            return Ok(self.held(cached, file));
        }
        let Some(config) = self.held(cached, CONFIG) else { return Ok(None) };
        let folder =
            config.parent().ok_or_else(|| Error::model(source, "the cache has no folder"))?.to_path_buf();
        if self.held(cached, TOKENIZER).is_none() {
            return Ok(None);
        }
        let asked: &[&str] = if offline { &[TOKENIZER_CONFIG] } else { &OPTIONAL };
        let known =
            |name: &&str| folder.join(name).exists() || absent(&folder, name).is_some_and(|f| f.exists());
        if !asked.iter().all(known) {
            return Ok(None);
        }
        let whole = if wanted == Files::Small || folder.join(SINGLE).exists() {
            true
        } else if folder.join(INDEX).exists() {
            read_index(&folder.join(INDEX))?.0.iter().all(|shard| folder.join(shard).exists())
        } else {
            false
        };
        Ok(whole.then_some(folder))
    }
}

/// Bytes of the weight files of a checkpoint's folder, or of a `.gguf` file.
fn bytes_of_weights(path: &Path) -> Result<u64> {
    let length = |file: &Path| Ok(std::fs::metadata(file).map_err(Error::io(file))?.len());
    if !path.is_dir() {
        return length(path);
    }
    let mut sum = 0;
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if files::extension(&file) == "safetensors" {
            sum += length(&file)?;
        }
    }
    Ok(sum)
}

/// Where the hub's tools note that the commit of `snapshot` has no file `name`.
fn absent(snapshot: &Path, name: &str) -> Option<PathBuf> {
    let commit = snapshot.file_name()?;
    Some(snapshot.parent()?.parent()?.join(".no_exist").join(commit).join(name))
}

fn listed<'a>(names: impl Iterator<Item = &'a &'a str>) -> String {
    let names: Vec<&str> = names.copied().collect();
    match names.len() {
        0 => "no such file at all".into(),
        1..=12 => names.join(", "),
        more => format!("{} and {} more", names[..12].join(", "), more - 12),
    }
}

/// Downloads of one commit.
struct Download<'a> {
    hub: &'a Hub,
    source: &'a str,
    id: &'a Id,
    api: Api,
    repo: Repo,
}

impl Download<'_> {
    /// `file`, which the commit must have.
    fn listed<'b>(&self, file: &'b str, names: &[&str]) -> Result<&'b str> {
        if names.contains(&file) {
            return Ok(file);
        }
        let held = listed(names.iter().filter(|name| files::extension(name) == "gguf"));
        Err(Error::model(self.source, format!("{} has no file {file}; it has {held}", self.id.repo)))
    }

    /// The names of a checkpoint's weight files; of what it takes, only the list of shards is downloaded.
    fn weights(&self, names: &[&str]) -> Result<Vec<String>> {
        let has = |name: &str| names.contains(&name);
        let refuse = |message: String| Err(Error::model(self.source, message));
        if !has(SINGLE) && !has(INDEX) {
            if names.iter().any(|name| files::extension(name) == "gguf") {
                let held = listed(names.iter().filter(|name| files::extension(name) == "gguf"));
                return refuse(format!("holds GGUF files; name one, such as {}/FILE: {held}", self.id.repo));
            }
            if let Some(name) =
                names.iter().find(|name| ["bin", "pt", "pth"].contains(&files::extension(name).as_str()))
            {
                return refuse(pickle_message(name));
            }
            return refuse("holds no safetensors weights".into());
        }
        if has(SINGLE) {
            return Ok(vec![SINGLE.to_owned()]);
        }
        Ok(read_index(&self.file(INDEX)?)?.0)
    }

    fn checkpoint(&self, names: &[&str], wanted: Files) -> Result<PathBuf> {
        let has = |name: &str| names.contains(&name);
        let refuse = |message: String| Err(Error::model(self.source, message));
        // Also asked where they are not wanted but may explain what is missing: a repository of GGUF files has neither.
        let weights = if wanted == Files::All || !has(CONFIG) { self.weights(names)? } else { Vec::new() };
        for (file, what) in [(CONFIG, "configuration"), (TOKENIZER, "fast tokenizer")] {
            if !has(file) {
                return refuse(format!("has no {file}, so no {what}"));
            }
        }
        // The weights last: a checkpoint with weights in the cache is complete.
        for name in OPTIONAL {
            if has(name) {
                self.file(name)?;
            } else {
                self.note_absent(name)?;
            }
        }
        self.file(TOKENIZER)?;
        let config = self.file(CONFIG)?;
        for name in weights {
            self.file(&name)?;
        }
        match config.parent() {
            Some(folder) => Ok(folder.to_path_buf()),
            None => refuse("the cache has no folder".into()),
        }
    }

    fn note_absent(&self, name: &str) -> Result<()> {
        let cached = Cache::new(self.hub.cache.clone()).repo(self.repo.clone());
        match absent(&cached.pointer_path(self.repo.revision()), name) {
            Some(note) => files::write_atomic(note, |_| Ok(())),
            None => Ok(()),
        }
    }

    /// What the hub says of a file without sending it.
    fn metadata(&self, name: &str) -> Result<Metadata> {
        let (asked, url) = (self.api.clone(), self.api.repo(self.repo.clone()).url(name));
        let told = call("", move |_| asked.metadata(&url))?;
        told.map_err(|e| self.hub.explain(self.source, self.id, e))
    }

    /// One file, checked; a damaged one is fetched once more from the start.
    fn file(&self, name: &str) -> Result<PathBuf> {
        // An optional file may be in the cache under its commit without the branch's name.
        let cached = Cache::new(self.hub.cache.clone()).repo(self.repo.clone());
        let here = cached.pointer_path(self.repo.revision()).join(name);
        if here.exists() {
            return Ok(here);
        }
        let metadata = self.metadata(name)?;
        let blob = cached.blob_path(metadata.etag());
        let part = blob.with_extension("part");
        for attempt in 0..2 {
            // A part as long as the file has nothing to continue; the server would refuse the range.
            if part.metadata().is_ok_and(|m| m.len() >= metadata.size() as u64) {
                files::remove(&part)?;
            }
            let path = self.run(name, &blob.with_extension("lock"))?;
            match damage(&path, metadata.size() as u64, metadata.etag())? {
                None => return Ok(path),
                Some(what) => {
                    files::remove(&path)?;
                    files::remove(&blob)?;
                    if attempt == 1 {
                        let message = format!(
                            "{name} arrived damaged twice ({what}); nothing of it was kept. Check the connection or proxy"
                        );
                        return Err(Error::model(self.source, message));
                    }
                }
            }
        }
        Err(Error::model(self.source, format!("{name} could not be downloaded")))
    }

    fn run(&self, name: &str, lock: &Path) -> Result<PathBuf> {
        let (api, file) = (self.api.repo(self.repo.clone()), name.to_owned());
        let label = format!("{} {name}", self.id.repo);
        match call(&label, move |arrivals| api.download_with_progress(&file, arrivals)) {
            Ok(result) => result.map_err(|e| self.hub.explain(self.source, self.id, e)),
            Err(error) => {
                // The thread left behind holds the file's lock for as long as the server says nothing; it writes no more.
                let _ = std::fs::remove_file(lock);
                Err(error)
            }
        }
    }
}

/// What `work` answers, called on a thread of its own: a server that says nothing must not keep an interrupt waiting. The
/// thread then ends with the next byte that arrives or with its connection. A bar called `label` shows what arrives.
fn call<T: Send + 'static>(
    label: &str,
    work: impl FnOnce(Arrivals) -> std::result::Result<T, ApiError> + Send + 'static,
) -> Result<std::result::Result<T, ApiError>> {
    let (arrivals, arriving) = channel();
    let thread = std::thread::spawn(move || work(Arrivals(arrivals)));
    let mut progress = None;
    loop {
        match arriving.recv_timeout(Duration::from_millis(100)) {
            Ok(Arrival::Size(size)) => progress = Some(Progress::start(label, size, "bytes")),
            Ok(Arrival::Bytes(bytes)) => progress.iter().try_for_each(|bar| bar.advance(bytes))?,
            Err(RecvTimeoutError::Timeout) => check_interrupt()?,
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    thread.join().or_else(|panic| std::panic::resume_unwind(panic))
}

enum Arrival {
    Size(u64),
    Bytes(u64),
}

struct Left;

/// hf-hub's progress, told to the thread that waits.
struct Arrivals(Sender<Arrival>);

impl hf_hub::api::Progress for Arrivals {
    fn init(&mut self, size: usize, _filename: &str) {
        // When nobody waits any more, `update` leaves.
        let _ = self.0.send(Arrival::Size(size as u64));
    }

    fn update(&mut self, size: usize) {
        if self.0.send(Arrival::Bytes(size as u64)).is_err() {
            // hf-hub asks nothing of its observer, so this leaves as an unwinding that runs no panic hook; the file's lock
            // is released on the way and the part stays to be continued.
            std::panic::resume_unwind(Box::new(Left));
        }
    }

    fn finish(&mut self) {}
}

/// What is wrong with a downloaded file. Large files have their SHA-256 as etag; small ones a git hash, and
/// their size and syntax must do.
fn damage(path: &Path, size: u64, etag: &str) -> Result<Option<String>> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let length = file.metadata().map_err(Error::io(path))?.len();
    if length != size {
        return Ok(Some(format!("{length} bytes instead of {size}")));
    }
    if etag.len() == 64 && etag.chars().all(|c| c.is_ascii_hexdigit()) {
        let mut hash = Sha256::new();
        let mut chunk = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut chunk).map_err(Error::io(path))?;
            if read == 0 {
                break;
            }
            hash.update(&chunk[..read]);
            check_interrupt()?;
        }
        let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != etag.to_lowercase() {
            return Ok(Some("its SHA-256 is another".into()));
        }
    } else if files::extension(path) == "json" {
        let text = std::fs::read(path).map_err(Error::io(path))?;
        if let Err(e) = serde_json::from_slice::<serde_json::Value>(&text) {
            return Ok(Some(format!("not JSON: {e}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_counted_and_other_files_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in
            [("a-00001.safetensors", 10), ("a-00002.safetensors", 7), ("tokenizer.json", 100)]
        {
            std::fs::write(folder.path().join(name), vec![0; bytes]).unwrap();
        }
        assert_eq!(bytes_of_weights(folder.path()).unwrap(), 17);
        assert_eq!(bytes_of_weights(&folder.path().join("tokenizer.json")).unwrap(), 100);
        assert!(bytes_of_weights(&folder.path().join("none.gguf")).is_err());
    }

    #[test]
    fn ids_are_told_from_paths() {
        let id = |repo: &str, revision: &str, file: Option<&str>| Id {
            repo: repo.into(),
            revision: revision.into(),
            file: file.map(str::to_owned),
        };
        assert_eq!(Id::parse("gpt2").unwrap(), id("gpt2", "main", None));
        assert_eq!(Id::parse("a/b-1.5@refs/pr/3").unwrap(), id("a/b-1.5", "refs/pr/3", None));
        assert_eq!(Id::parse("a/b/c.gguf@v1").unwrap(), id("a/b", "v1", Some("c.gguf")));
        for wrong in
            ["", "/etc", "a/../b", "./x", "a/b/c", "model.gguf", "a/b@", "a/b@../x", "a b/c", "x.safetensors"]
        {
            let message = Id::parse(wrong).unwrap_err().to_string();
            assert!(message.contains("not a Hugging Face id"), "{wrong}: {message}");
        }
    }
}

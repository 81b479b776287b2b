//! Completions and documentation that know the library and its crates. They need rust-analyzer with real sources,
//! which takes seconds to load and some hundred megabytes; so it lives in a second engine that no
//! cell waits for, started when the first completion is asked for. Until it is ready, and where
//! the sources are not on this machine, the session's own engine answers.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use evcxr::{CommandContext, EvalContext};
use serde_json::{Value, json};

use super::child::SOCKET_VARIABLE;
use crate::error::{Error, Result};

/// In a prelude's folder: what rust-analyzer gets to read instead of `cargo metadata`.
pub(super) const METADATA: &str = "analysis.json";
/// In an engine's folder: this engine is the one with sources.
pub(super) const MARK: &str = "with-sources";
/// Stands for the engine's folder within the metadata.
pub(super) const FOLDER: &str = "@FOLDER@";
/// An answer later than this is of no use to someone who types, and the next cell waits for it.
const LIMIT: Duration = Duration::from_secs(2);

/// Metadata of a package that depends on this one and its direct dependencies, cut down to those
/// and their close relatives: every crate more makes the first answer slower.
pub(super) fn metadata(full: &Value) -> Value {
    let root = full["resolve"]["root"].as_str().unwrap_or_default();
    let nodes: Vec<&Value> = full["resolve"]["nodes"].as_array().into_iter().flatten().collect();
    let direct: Vec<Value> = nodes
        .iter()
        .filter(|n| n["id"] == root)
        .flat_map(|n| n["deps"].as_array().cloned().unwrap_or_default())
        .collect();
    let packages: Vec<&Value> = full["packages"].as_array().into_iter().flatten().collect();
    let family = |name: &str| name.split('-').next().unwrap_or(name).to_owned();
    let families: Vec<String> = packages
        .iter()
        .filter(|p| direct.iter().any(|d| d["pkg"] == p["id"]))
        .filter_map(|p| p["name"].as_str().map(family))
        .collect();
    let kept: Vec<Value> = packages
        .iter()
        .filter(|p| {
            p["id"] == root || p["name"].as_str().is_some_and(|name| families.contains(&family(name)))
        })
        .map(|p| {
            let mut package = (*p).clone();
            // Tests and examples would be loaded as crates of their own.
            if let Some(targets) = package["targets"].as_array_mut() {
                targets.retain(|t| {
                    t["kind"].as_array().is_some_and(|k| k.iter().any(|k| k == "lib" || k == "proc-macro"))
                });
            }
            package
        })
        .collect();
    let is_kept = |id: &Value| kept.iter().any(|p| p["id"] == *id);
    let mut resolved: Vec<Value> = nodes
        .iter()
        .filter(|n| is_kept(&n["id"]))
        .map(|n| {
            let mut node = (*n).clone();
            for list in ["deps", "dependencies"] {
                if let Some(list) = node[list].as_array_mut() {
                    list.retain(|d| is_kept(if d.is_string() { d } else { &d["pkg"] }));
                }
            }
            node
        })
        .collect();
    let own = format!("path+file://{FOLDER}#ctx@1.0.0");
    let normal = json!([{ "kind": null, "target": null }]);
    let mut deps: Vec<Value> = direct.into_iter().filter(|d| is_kept(&d["pkg"])).collect();
    deps.push(json!({ "name": "cluescope", "pkg": root, "dep_kinds": normal }));
    let ids: Vec<Value> = deps.iter().map(|d| d["pkg"].clone()).collect();
    resolved.push(json!({ "id": own, "dependencies": ids, "deps": deps, "features": [] }));
    let mut all = kept.clone();
    all.push(super::compiler::cell_package(Path::new(FOLDER)));
    json!({
        "packages": all, "workspace_members": [own], "workspace_default_members": [own],
        "resolve": { "nodes": resolved, "root": own },
        "target_directory": format!("{FOLDER}/target"), "build_directory": format!("{FOLDER}/target"),
        "version": 1, "workspace_root": FOLDER, "metadata": null
    })
}

/// What is asked about a byte position of a text.
enum Question {
    Complete(String, usize, Sender<Option<(Vec<String>, usize, usize)>>),
    /// Plain text and HTML.
    Hover(String, usize, Sender<Option<(String, String)>>),
}

/// The second engine.
#[derive(Debug)]
pub(super) struct Analysis {
    questions: Sender<Question>,
    ready: Arc<AtomicBool>,
}

impl Analysis {
    /// Starts the engine on a thread of its own, `child` being its process and `folder` that of its files; `configuration` is where
    /// engines read their settings.
    ///
    /// # Errors
    /// [`Error::Io`] when its files cannot be written.
    pub(super) fn start(mut child: Command, folder: &Path, configuration: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mark = folder.join(MARK);
        std::fs::write(&mark, "").map_err(Error::io(&mark))?;
        std::fs::create_dir_all(configuration).map_err(Error::io(configuration))?;
        let settings = configuration.join("evcxr.toml");
        // The only way to give one engine another folder than the first: settings win over the
        // environment, and the first engine has read them already.
        std::fs::write(&settings, format!("[evcxr]\ntmpdir = {:?}\nopt_level = \"0\"\n", folder))
            .map_err(Error::io(&settings))?;
        let (questions, receive) = channel::<Question>();
        // It runs no cells; their channels are not its own.
        child.env_remove(SOCKET_VARIABLE);
        let ready = Arc::new(AtomicBool::new(false));
        let now_ready = ready.clone();
        std::thread::spawn(move || {
            let engine = EvalContext::with_subprocess_command(child);
            let _ = std::fs::remove_file(&settings);
            let Ok((engine, _outputs)) = engine else { return };
            let mut engine = CommandContext::with_eval_context(engine);
            // The first question of all resolves the names of every crate; let no one wait for it.
            let _ = engine.completions("let v = vec![1]; v.le", 21);
            now_ready.store(true, Ordering::Relaxed);
            for question in receive {
                // Whoever asked may have given up waiting.
                match question {
                    Question::Complete(code, position, reply) => {
                        let found = engine.completions(&code, position).ok().map(|found| {
                            let names = found.completions.into_iter().map(|c| c.code).collect();
                            (names, found.start_offset, found.end_offset)
                        });
                        let _ = reply.send(found);
                    }
                    Question::Hover(code, position, reply) => {
                        let _ = reply.send(engine.hover_at(&code, position).ok());
                    }
                }
            }
        });
        Ok(Analysis { questions, ready })
    }

    /// Whether questions are answered at once.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Completions at byte `position` of `code`, which stands after `before`, the definitions of
    /// earlier cells.
    pub(super) fn complete(
        &self,
        before: &str,
        code: &str,
        position: usize,
    ) -> Option<(Vec<String>, usize, usize)> {
        let (reply, answer) = channel();
        let whole = format!("{before}{code}");
        self.questions.send(Question::Complete(whole, before.len() + position, reply)).ok()?;
        let (names, start, end) = answer.recv_timeout(LIMIT).ok()??;
        Some((names, start.checked_sub(before.len())?, end.checked_sub(before.len())?))
    }

    /// Documentation, plain and as HTML, of what stands before byte `position` of `code`, which stands
    /// after `before`.
    pub(super) fn hover(&self, before: &str, code: &str, position: usize) -> Option<(String, String)> {
        let (reply, answer) = channel();
        let question = Question::Hover(format!("{before}{code}"), before.len() + position, reply);
        self.questions.send(question).ok()?;
        answer.recv_timeout(LIMIT).ok()?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_relatives_are_kept() {
        let package = |name: &str| json!({ "id": name, "name": name, "targets": [{ "kind": ["lib"] }, { "kind": ["test"] }] });
        let full = json!({
            "packages": [package("cluescope"), package("polars"), package("polars-core"), package("windows")],
            "resolve": { "root": "cluescope", "nodes": [
                { "id": "cluescope", "deps": [{ "name": "polars", "pkg": "polars" }], "dependencies": ["polars"] },
                { "id": "polars", "deps": [{ "name": "polars_core", "pkg": "polars-core" }, { "name": "windows", "pkg": "windows" }],
                  "dependencies": ["polars-core", "windows"] },
                { "id": "polars-core", "deps": [], "dependencies": [] },
                { "id": "windows", "deps": [], "dependencies": [] }
            ] }
        });
        let cut = metadata(&full);
        let names: Vec<_> =
            cut["packages"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["cluescope", "polars", "polars-core", "ctx"]);
        assert_eq!(cut["resolve"]["nodes"][1]["dependencies"], json!(["polars-core"]));
        assert_eq!(cut["packages"][0]["targets"].as_array().unwrap().len(), 1);
        let root = cut["resolve"]["nodes"].as_array().unwrap().last().unwrap();
        assert_eq!(root["deps"].as_array().unwrap().len(), 2);
    }
}

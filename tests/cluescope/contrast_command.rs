//! The command `cluescope contrast`, run as a user runs it.

use std::path::Path;
use std::process::{Command, Output};

use cluescope::contrast::{Contrast, Contrasting, ModelPair};
use cluescope::corpus::{Biographies, Corpus};
use cluescope::model::Model;
use cluescope::prelude::{DecoderConfig, Tokenizer};

/// Two models in folders and three biographies, and the folder they are in.
fn prepared() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let people = Biographies::new(3).seed(1).generate().unwrap();
    people.write(folder.path().join("people.csv")).unwrap();
    let texts: Vec<&str> = people.documents.iter().map(|d| d.text.as_str()).collect();
    let tokenizer = Tokenizer::train_bpe(texts, 400).unwrap();
    for (name, layers, seed) in [("small", 1, 1), ("large", 2, 2)] {
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 32, layers, 2, 2, 64, 512);
        let model = Model::random(name, config, tokenizer.clone(), seed).unwrap();
        model.save(folder.path().join(name)).unwrap();
    }
    folder
}

fn contrast(folder: &Path, more: &[&str]) -> Output {
    contrast_to("out.jsonl", folder, more)
}

fn contrast_to(out: &str, folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluescope"));
    command.current_dir(folder).env("CLUESCOPE_CACHE", "");
    command.args(["contrast", "--large", "large", "--small", "small"]);
    command.args(["--corpus", "people.csv", "--out", out]).args(more);
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_command_writes_what_the_library_measures() {
    let folder = prepared();
    let place = |name: &str| folder.path().join(name);
    let more = [
        "--html",
        "page.html",
        "--figures",
        "figures",
        "--heads-html",
        "heads.html",
        "--show",
        "1",
        "--beta",
        "0.03",
    ];
    let said = stdout(&contrast(folder.path(), &more));
    let corpus = Corpus::read(place("people.csv")).unwrap();
    let written = Contrast::read(place("out.jsonl"), &corpus.documents).unwrap();
    let load = |name: &str| Model::load(place(name).to_str().unwrap()).unwrap();
    let pair = ModelPair::new(load("small"), load("large"));
    let options = Contrasting::new().cache(cluescope::attention::Cache::Off);
    assert_eq!(written.texts, pair.contrast_with(&corpus, &options).unwrap().texts);
    assert_eq!(written.provenance.models["large"], pair.large.hash());
    assert_eq!((written.large.as_str(), written.small.as_str()), ("large", "small"));
    assert!(written.provenance.command.starts_with("cluescope contrast --large large"));

    let page = std::fs::read_to_string(place("page.html")).unwrap();
    assert!(
        page.contains("dropped with p = ") && page.contains("\u{3b2} = 0.03"),
        "drop probabilities shown"
    );
    assert!(page.contains(&written.provenance.models["small"]));
    let heads = std::fs::read_to_string(place("heads.html")).unwrap();
    assert_eq!(
        heads.matches("role=\"gridcell\"").count(),
        2 * (2 * 2 + 2),
        "both models' heads, and what differs"
    );
    assert!(place("figures/heads-company-large.svg").exists());
    assert!(place("figures/probe-company-difference.svg").exists() && place("figures/probes.html").exists());
    assert!(said.contains("among the probe's top 10") && said.contains("company"), "{said}");
    assert!(said.contains("large attends more") && !said.contains('\x1b'), "a pipe gets no colours: {said}");
}

#[test]
fn layers_heads_and_probes_can_be_chosen() {
    let folder = prepared();
    let more =
        ["--large-heads", "1.0,0.1", "--small-layers", "0", "--guide-probe", "company", "--per", "layer"];
    stdout(&contrast(folder.path(), &more));
    let corpus = Corpus::read(folder.path().join("people.csv")).unwrap();
    let written = Contrast::read(folder.path().join("out.jsonl"), &corpus.documents).unwrap();
    let option = |name: &str| written.provenance.options[name].as_str();
    assert_eq!((option("heads_large"), option("heads_small")), ("heads 0.1,1.0", "layers 0"));
    assert_eq!((option("guide"), option("per")), ("probe company", "layer"));
    let text = &written.texts[0];
    assert_eq!((text.large_by.len(), text.small_by.len()), (2, 1));
    assert_eq!(text.large[..=text.probe["company"].position], text.probe["company"].large);
}

#[test]
fn wrong_options_are_refused_by_name() {
    let folder = prepared();
    for (more, part) in [
        (vec!["--alpha", "1.5"], "--alpha = 1.5: a probability, 0 to 1"),
        (vec!["--beta=-1"], "--beta = -1"),
        (vec!["--large-heads", "3"], "LAYER.HEAD expected"),
        (vec!["--large-layers", "9"], "layers 0 to 1"),
        (vec!["--per", "layer", "--heads-html", "h.html"], "--per = layer"),
        (vec!["--guide-probe", "height"], "guide = probe height"),
        (vec!["--fact", "nmae"], "--fact = nmae: a fact marked in at least one text"),
        (
            vec!["--guide-probe", "company", "--as-released"],
            "--as-released = given: left out with --guide-probe",
        ),
        (vec!["--heads-html", "h.html", "--fact", "height"], "--fact = height"),
        (vec!["--per", "head", "--figures", "figures", "--fact", "height"], "--fact = height"),
    ] {
        let output = contrast(folder.path(), &more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{more:?}: {said}");
        assert!(!folder.path().join("out.jsonl").exists(), "{more:?}");
    }
    let output = contrast_to("out.parquet", folder.path(), &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("out = out.parquet: a file name that ends in .jsonl"),
        "{said}"
    );
}

/// The default of --fact is no mistake where nothing is marked; heads are one where nothing is measured by them.
#[test]
fn a_corpus_that_marks_nothing_is_compared_all_the_same() {
    let folder = prepared();
    std::fs::write(folder.path().join("people.csv"), "text\nAnn was born in Rome.\n").unwrap();
    stdout(&contrast(folder.path(), &[]));
    for name in ["--large-layers", "--small-heads"] {
        let value = if name == "--large-layers" { "1" } else { "0.1" };
        stdout(&contrast(folder.path(), &[name, value]));
        let output = contrast(folder.path(), &["--as-released", name, value]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success()
                && said.contains(&format!("{name} = given: left out with --as-released")),
            "{said}"
        );
    }
}

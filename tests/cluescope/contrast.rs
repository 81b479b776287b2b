//! Attention of whole corpora and contrasts of two models, on small random models.

use std::path::Path;

use cluescope::attention::{Aggregation, Attend, Cache, Heads, Per, Probes};
use cluescope::contrast::{Contrast, Contrasting, Guide, ModelPair, known_pair, rank_descending};
use cluescope::corpus::{Corpus, Document, Span};
use cluescope::model::{Batch, Capture, CapturedText, DecoderConfig, Detail, Model, Want};
use cluescope::tokens::Tokenizer;
use polars::prelude::{ParquetReader, SerReader};
use serde_json::Value;

/// Biographies with marked facts; `[field|text]` marks one.
fn document(id: &str, marked: &str) -> Document {
    let mut document = Document::new(id, "", Vec::new());
    let mut rest = marked;
    while let Some((before, after)) = rest.split_once('[') {
        document.text.push_str(before);
        let (fact, after) = after.split_once(']').unwrap();
        let (field, value) = fact.split_once('|').unwrap();
        let start = document.text.chars().count();
        document.text.push_str(value);
        document.spans.push(Span { field: field.into(), start, end: document.text.chars().count() });
        rest = after;
    }
    document.text.push_str(rest);
    document
}

pub(super) fn people() -> Corpus {
    let documents = vec![
        document("Ann", "[name|Ann Øst] was born in [city|Rome]. She worked at [company|the Louvre]."),
        document("Bo", "[name|Bo] was born in [city|Ålesund]."),
        document("Empty", ""),
        document(
            "Cy",
            "In [city|Lima], 日本 e\u{301} 👩‍👧, [name|Cy Day] had a role at [company|Acme & Sons]. Cy liked it there.",
        ),
    ];
    Corpus { documents, ..Corpus::default() }
}

pub(super) fn tokenizer(size: usize) -> Tokenizer {
    let texts: Vec<String> = people().documents.iter().map(|d| d.text.repeat(3)).collect();
    Tokenizer::train_bpe(texts.iter().map(String::as_str), size).unwrap()
}

/// A model with 3 layers of 4 heads, or, when `large`, 4 layers of 6.
pub(super) fn model(tokenizer: &Tokenizer, large: bool, context: usize) -> Model {
    let vocab = tokenizer.vocab_size();
    let config = if large {
        DecoderConfig::llama(vocab, 48, 4, 6, 3, 64, context)
    } else {
        DecoderConfig::llama(vocab, 32, 3, 4, 2, 48, context)
    };
    let name = if large { "large" } else { "small" };
    Model::random(name, config, tokenizer.clone(), if large { 2 } else { 1 }).unwrap()
}

pub(super) fn pair(context: usize) -> ModelPair {
    let tokenizer = tokenizer(300);
    ModelPair::new(model(&tokenizer, false, context), model(&tokenizer, true, context))
}

pub(super) fn plain() -> Attend {
    Attend::new().cache(Cache::Off)
}

fn near(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= tolerance, "{a:?}\n{b:?}");
    }
}

/// Whole maps of every head, straight from the model.
fn maps(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let (layers, heads) = (model.config().layers, model.config().heads);
    let maps = (0..layers).flat_map(|l| (0..heads).map(move |h| (l, h))).collect();
    let want = Want::capture(Capture { maps, detail: Detail::Mean, ..Capture::default() });
    let mut output = model.forward(&Batch::new(&[ids]), &want).unwrap();
    let CapturedText { maps, .. } = output.attention.remove(0);
    maps
}

/// The definition: mean over `maps` and over the queries i ≥ j of A[i, j].
fn received_of(maps: &[&Vec<f32>], tokens: usize) -> Vec<f32> {
    let weight = |i: usize, j: usize| maps.iter().map(|m| f64::from(m[i * tokens + j])).sum::<f64>();
    let column = |j: usize| (j..tokens).map(|i| weight(i, j)).sum::<f64>();
    (0..tokens).map(|j| (column(j) / (maps.len() * (tokens - j)) as f64) as f32).collect()
}

#[test]
fn received_attention_is_the_column_mean_of_the_chosen_heads() {
    let model = model(&tokenizer(300), false, 256);
    let documents = people().documents;
    let all = model.attend(&documents, &plain().per(Per::Head).probes(Probes::All)).unwrap();
    let layers = model.attend(&documents, &plain().per(Per::Layer)).unwrap();
    let two = model.attend(&documents, &plain().heads(Heads::Heads(vec![(2, 3), (0, 1), (2, 3)]))).unwrap();
    let last = model.attend(&documents, &plain().heads(Heads::Layers(vec![2])).probe("city")).unwrap();
    assert_eq!((all.layers, all.heads, all.texts.len()), (3, 4, 4));
    for (number, text) in all.texts.iter().enumerate() {
        let tokens = text.ids.len();
        assert_eq!(text.ids, model.tokenizer().encode(&documents[number].text).unwrap().ids);
        let maps = maps(&model, &text.ids);
        let of = |heads: &[usize]| received_of(&heads.iter().map(|&h| &maps[h]).collect::<Vec<_>>(), tokens);
        near(&text.received, &of(&(0..12).collect::<Vec<_>>()), 1e-6);
        near(&text.received_by[5], &of(&[5]), 1e-6);
        near(&layers.texts[number].received_by[1], &of(&[4, 5, 6, 7]), 1e-6);
        near(&two.texts[number].received, &of(&[11, 1]), 1e-6);
        near(&last.texts[number].received, &of(&[8, 9, 10, 11]), 1e-6);
        for (field, probe) in &text.probe {
            let start = documents[number].spans.iter().find(|s| s.field == *field).unwrap().start;
            let (from, to) = text.offsets[probe.position];
            assert!(from < to && to <= start, "{field}");
            assert!(text.offsets[probe.position + 1..].iter().all(|&(a, b)| a == b || b > start), "{field}");
            let row = |h: usize| &maps[h][probe.position * tokens..][..probe.position + 1];
            let mean: Vec<f32> =
                (0..=probe.position).map(|j| (0..12).map(|h| row(h)[j]).sum::<f32>() / 12.0).collect();
            near(&probe.weights, &mean, 1e-6);
            near(&probe.weights_by[7], row(7), 1e-6);
        }
    }
    // The empty text has its start token alone; nothing precedes a name at the very start.
    assert_eq!(all.texts[2].received, [1.0]);
    let probes = |n: usize| all.texts[n].probe.keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(
        (probes(0), probes(1), probes(2), probes(3)),
        (vec!["city", "company"], vec!["city"], vec![], vec!["city", "company", "name"])
    );
    assert!(last.texts[0].probe.keys().eq(["city"]));
}

#[test]
fn batches_and_single_texts_agree() {
    let model = model(&tokenizer(300), true, 256);
    let documents = people().documents;
    let together = model.attend(&documents, &plain().probes(Probes::All).batch_tokens(4096)).unwrap();
    let single = model.attend(&documents, &plain().probes(Probes::All).batch_tokens(1)).unwrap();
    for (a, b) in together.texts.iter().zip(&single.texts) {
        near(&a.received, &b.received, 1e-6);
        for (field, probe) in &a.probe {
            near(&probe.weights, &b.probe[field].weights, 1e-6);
        }
    }
}

#[test]
fn long_texts_are_read_in_stretches_with_the_same_start() {
    let model = model(&tokenizer(300), false, 16);
    let document = people().documents.remove(3);
    let attended = model.attend(std::slice::from_ref(&document), &plain().probes(Probes::All)).unwrap();
    let text = &attended.texts[0];
    let tokens = text.ids.len();
    assert!(tokens > 32, "{tokens}");
    // By hand: the start token, then 15 tokens, each stretch 7 later, the last one full.
    let mut starts: Vec<usize> = (0..).map(|k| 1 + 7 * k).take_while(|s| s + 15 < tokens).collect();
    starts.push(tokens - 15);
    let mut sum = vec![0.0f64; tokens];
    let mut queries = vec![0usize; tokens];
    let mut rows = vec![Vec::new(); tokens];
    for &start in &starts {
        let place: Vec<usize> = std::iter::once(0).chain(start..start + 15).collect();
        let ids: Vec<u32> = place.iter().map(|&i| text.ids[i]).collect();
        let maps = maps(&model, &ids);
        let mean = |i: usize, j: usize| maps.iter().map(|m| f64::from(m[i * 16 + j])).sum::<f64>() / 12.0;
        for i in 0..16 {
            for j in 0..=i {
                sum[place[j]] += mean(i, j);
                queries[place[j]] += 1;
            }
            if rows[place[i]].is_empty() {
                rows[place[i]] = vec![0.0; place[i] + 1];
                (0..=i).for_each(|j| rows[place[i]][place[j]] = mean(i, j) as f32);
            }
        }
    }
    let want: Vec<f32> = sum.iter().zip(&queries).map(|(s, &q)| (s / q as f64) as f32).collect();
    near(&text.received, &want, 1e-6);
    assert_eq!(text.probe.len(), 3);
    for probe in text.probe.values() {
        near(&probe.weights, &rows[probe.position], 1e-6);
        assert!((probe.weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    // Shorter stretches than the model's own are a choice; longer ones are not.
    assert!(model.attend(std::slice::from_ref(&document), &plain().context(8)).is_ok());
    let message = model.attend(&[document], &plain().context(17)).unwrap_err().to_string();
    assert!(message.contains("context = 17") && message.contains("2 to 16"), "{message}");
}

#[test]
fn the_prefix_is_read_and_cut_away() {
    let model = model(&tokenizer(300), false, 256);
    let document = people().documents.remove(0);
    let options = plain().probes(Probes::All).prefix("Text: ");
    let text = model.attend(std::slice::from_ref(&document), &options).unwrap().texts.remove(0);
    let encoding = model.tokenizer().encode(&format!("Text: {}", document.text)).unwrap();
    let cut = encoding.offsets.iter().filter(|(a, b)| b > a && *b <= 6).count();
    assert!(cut > 0 && text.ids.len() == encoding.ids.len() - cut);
    let maps = maps(&model, &encoding.ids);
    let full = received_of(&maps.iter().collect::<Vec<_>>(), encoding.ids.len());
    let kept = |full: &[f32]| -> Vec<f32> { full[..1].iter().chain(&full[1 + cut..]).copied().collect() };
    near(&text.received, &kept(&full), 1e-6);
    assert_eq!(text.offsets[0], (0, 0));
    assert_eq!(text.offsets[1].0, 0, "the first token begins with the text");
    assert!(text.offsets.last().unwrap().1 == document.text.chars().count());
    let probe = &text.probe["company"];
    let position = probe.position + cut;
    let row: Vec<f32> = (0..=position)
        .map(|j| maps.iter().map(|m| m[position * encoding.ids.len() + j]).sum::<f32>() / 12.0)
        .collect();
    near(&probe.weights, &kept(&row), 1e-6);
}

#[test]
fn the_students_tokens_are_the_pairs_own_under_another_hash_and_with_a_prefix_too() {
    let pair = pair(256);
    // The same tokenizer, written otherwise.
    let json: Value = serde_json::from_str(&pair.small.tokenizer().to_json().unwrap()).unwrap();
    let twin = Tokenizer::from_json("twin", serde_json::to_string_pretty(&json).unwrap().as_bytes()).unwrap();
    assert_ne!(twin.hash(), pair.small.tokenizer().hash());
    for prefix in ["", "Text: "] {
        let options = Contrasting::new().cache(Cache::Off).prefix(prefix);
        let own = pair.contrast_with(&people(), &options).unwrap();
        let onto = pair.contrast_with(&people(), &options.onto(&twin)).unwrap();
        assert_eq!(own.texts, onto.texts, "prefix {prefix:?}");
    }
}

#[test]
fn the_released_scripts_ladder_has_no_difference() {
    let pair = pair(256);
    let options = Contrasting::new().cache(Cache::Off).aggregation(Aggregation::AsReleased);
    let contrast = pair.contrast_with(&people(), &options).unwrap();
    for text in &contrast.texts {
        for (i, (&large, &rank)) in text.large.iter().zip(&text.rank).enumerate() {
            assert_eq!(large, 1.0 / (i as f32 + 1.0));
            assert_eq!(rank, i, "dropout by rank is dropout by position");
        }
        assert!(text.difference.iter().all(|&d| d == 0.0));
    }
    assert!(
        contrast.texts[0].probe["company"].difference.iter().any(|&d| d != 0.0),
        "probes are not affected"
    );
}

#[test]
fn one_head_can_be_seen_whole() {
    let model = model(&tokenizer(300), false, 64);
    let documents = people().documents;
    let attended = model.attend(&documents[..2], &plain().map(1, 2).map(0, 0)).unwrap();
    let text = &attended.texts[0];
    near(&text.maps[0], &maps(&model, &text.ids)[6], 0.0);
    assert_eq!(text.maps[1].len(), text.ids.len() * text.ids.len());
    let message = model.attend(&documents[3..], &plain().map(1, 2).context(8)).unwrap_err().to_string();
    assert!(message.contains("Cy") && message.contains('8'), "{message}");
    for (options, part) in [
        (plain().heads(Heads::Layers(vec![3])), "layers 0 to 2"),
        (plain().heads(Heads::Heads(vec![])), "at least one"),
        (plain().batch_tokens(0), "batch_tokens"),
    ] {
        let message = model.attend(&documents, &options).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

pub(super) fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn attention_is_written_as_jsonl_and_parquet() {
    let model = model(&tokenizer(300), false, 256);
    let documents = people().documents;
    let folder = tempfile::tempdir().unwrap();
    let options = plain().probe("company").command("cluescope attend --model small");
    let jsonl = folder.path().join("deep/a.jsonl");
    model.attend_to_file(&documents, &options, &jsonl).unwrap();
    let attended = model.attend(&documents, &options).unwrap();
    let found = lines(&jsonl);
    assert_eq!(found.len(), documents.len());
    for (line, text) in found.iter().zip(&attended.texts) {
        let keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
        for key in ["id", "ids", "offsets", "received", "probe", "provenance"] {
            assert!(keys.contains(&key), "{keys:?}");
        }
        assert_eq!(line["id"], text.id);
        assert_eq!(line["offsets"].as_array().unwrap().len(), text.ids.len());
        let received: Vec<f32> = serde_json::from_value(line["received"].clone()).unwrap();
        assert_eq!(received, text.received, "numbers survive unchanged");
        assert_eq!(line["provenance"]["command"], "cluescope attend --model small");
        assert_eq!(line["provenance"]["models"]["small"], model.hash());
    }
    assert_eq!(found[0]["probe"]["company"]["position"], attended.texts[0].probe["company"].position);
    assert!(found[1]["probe"].as_object().unwrap().is_empty());
    assert!(!folder.path().join("deep/a.jsonl.partial").exists());

    let parquet = folder.path().join("a.parquet");
    model.attend_to_file(&documents, &options, &parquet).unwrap();
    let frame = ParquetReader::new(std::fs::File::open(&parquet).unwrap()).finish().unwrap();
    assert_eq!(frame.height(), documents.len());
    assert_eq!(
        frame.get_column_names().iter().map(|n| n.as_str()).collect::<Vec<_>>(),
        ["id", "ids", "offsets", "received", "probe.company.position", "probe.company.weights"]
    );
    let series = frame.column("received").unwrap().list().unwrap().get_as_series(3).unwrap();
    let received: Vec<f32> = series.f32().unwrap().into_no_null_iter().collect();
    assert_eq!(received, attended.texts[3].received);
    let offsets = frame.column("offsets").unwrap().list().unwrap().get_as_series(0).unwrap();
    assert_eq!(offsets.len(), attended.texts[0].ids.len());
    assert_eq!(frame.column("probe.company.position").unwrap().u32().unwrap().get(1), None);
    let again = folder.path().join("again.parquet");
    attended.write(&again).unwrap();
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&parquet).unwrap());
    let message =
        model.attend_to_file(&documents, &options, folder.path().join("a.csv")).unwrap_err().to_string();
    assert!(message.contains(".jsonl or .parquet"), "{message}");
}

#[test]
fn unfinished_work_continues_and_foreign_work_is_refused() {
    let model = model(&tokenizer(300), false, 256);
    let documents = people().documents;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.jsonl");
    let partial = folder.path().join("a.jsonl.partial");
    model.attend_to_file(&documents, &plain(), &out).unwrap();
    let whole = std::fs::read_to_string(&out).unwrap();
    let all: Vec<&str> = whole.lines().collect();
    // Two finished texts, the first marked so that it can be recognised, and half a line.
    let marked = all[0].replacen("\"received\":[", "\"received\":[7.5,", 1);
    std::fs::write(&partial, format!("{marked}\n{}\n{}", all[1], &all[2][..20])).unwrap();
    model.attend_to_file(&documents, &plain(), &out).unwrap();
    let continued = std::fs::read_to_string(&out).unwrap();
    assert_eq!(continued, whole.replacen(all[0], &marked, 1), "finished texts are not computed again");
    assert!(!partial.exists());

    let mut others = documents.clone();
    others[3].text.push('!');
    let cases: [(&[Document], Attend, &str); 4] = [
        (&documents, plain().per(Per::Layer), "other options"),
        (&others, plain(), "corpus"),
        (&documents, plain().prefix("Text: "), "other options"),
        (&documents, plain().context(128), "other options"),
    ];
    for (documents, options, part) in cases {
        std::fs::write(&partial, format!("{}\n", all[0])).unwrap();
        let message = model.attend_to_file(documents, &options, &out).unwrap_err().to_string();
        assert!(message.contains("a.jsonl.partial, line 1") && message.contains(part), "{message}");
        assert!(partial.exists(), "what another run finished is kept");
    }
    std::fs::write(&partial, "{}\n").unwrap();
    let message = model.attend_to_file(&documents, &plain(), &out).unwrap_err().to_string();
    assert!(message.contains("not a line of this command"), "{message}");
}

#[test]
fn finished_texts_are_remembered_by_content() {
    let small = model(&tokenizer(300), false, 256);
    let documents = people().documents;
    let folder = tempfile::tempdir().unwrap();
    let options = || Attend::new().cache(Cache::Folder(folder.path().into())).probes(Probes::All);
    let files = || {
        let shelves = std::fs::read_dir(folder.path().join("attention")).unwrap();
        let mut files: Vec<_> = shelves
            .flat_map(|s| std::fs::read_dir(s.unwrap().path()).unwrap())
            .map(|f| f.unwrap().path())
            .collect();
        files.sort();
        files
    };
    let first = small.attend(&documents, &options()).unwrap();
    assert_eq!(files().len(), 4);
    assert_eq!(small.attend(&documents, &options()).unwrap(), first);
    // A mark in every entry comes back: nothing was computed again. Ids and facts are the corpus's own.
    for file in files() {
        let mut entry: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        entry["received"][0] = 42.0.into();
        std::fs::write(&file, entry.to_string()).unwrap();
    }
    let mut renamed = documents.clone();
    renamed[0].id = "somebody else".into();
    let second = small.attend(&renamed, &options()).unwrap();
    assert!(second.texts.iter().all(|t| t.received[0] == 42.0));
    assert_eq!((second.texts[0].id.as_str(), &second.texts[0].text), ("somebody else", &documents[0].text));
    assert_eq!(second.texts[3].probe, first.texts[3].probe);
    // Another model, other options or other facts are other entries.
    let mut moved = documents.clone();
    moved[0].spans[1].start += 2;
    let large = model(&tokenizer(300), true, 256);
    for attended in [
        large.attend(&documents[..1], &options()).unwrap(),
        small.attend(&documents[..1], &options().prefix("Text: ")).unwrap(),
        small.attend(&documents[..1], &options().per(Per::Head)).unwrap(),
        small.attend(&moved[..1], &options()).unwrap(),
    ] {
        assert_ne!(attended.texts[0].received[0], 42.0);
    }
}

pub(super) fn contrast() -> Contrast {
    pair(256).contrast_with(&people(), &Contrasting::new().cache(Cache::Off)).unwrap()
}

#[test]
fn a_contrast_is_large_minus_small_and_survives_a_file() {
    let pair = pair(256);
    assert!(pair.same_tokenizer());
    let corpus = people();
    let contrast = contrast();
    let attend = |model: &Model| model.attend(&corpus.documents, &plain().probes(Probes::All)).unwrap();
    let (large, small) = (attend(&pair.large), attend(&pair.small));
    assert!(!contrast.aligned);
    for (n, text) in contrast.texts.iter().enumerate() {
        assert_eq!((&text.large, &text.small), (&large.texts[n].received, &small.texts[n].received));
        for i in 0..text.ids.len() {
            assert_eq!(text.difference[i], text.large[i] - text.small[i]);
        }
        assert_eq!(text.rank, rank_descending(&text.difference));
        assert_eq!(text.probe.len(), small.texts[n].probe.len());
    }
    let guide = contrast.guide();
    assert_eq!((&guide[0].score, &guide[0].rank), (&contrast.texts[0].difference, &contrast.texts[0].rank));
    assert_eq!(small.guide()[3].score, small.texts[3].received);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.jsonl");
    contrast.write(&path).unwrap();
    let line = &lines(&path)[0];
    let mut keys: Vec<&str> = line.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["difference", "id", "ids", "large", "offsets", "probe", "provenance", "rank", "small"]);
    let probe = line["probe"]["company"].as_object().unwrap();
    assert!(
        ["position", "large", "small", "difference"].iter().all(|k| probe.contains_key(*k))
            && probe.len() == 4
    );
    let models = line["provenance"]["models"].as_object().unwrap();
    assert_eq!(
        (models["large"].as_str(), models["small"].as_str()),
        (Some(pair.large.hash()), Some(pair.small.hash()))
    );
    assert_eq!(Contrast::read(&path, &corpus.documents).unwrap(), contrast);

    let text = std::fs::read_to_string(&path).unwrap();
    let rank = &contrast.texts[0].rank;
    let first_rank = format!("\"rank\":[{},{},", rank[0], rank[1]);
    for (from, to, part) in [
        ("\"id\":\"Bo\"", "\"id\":\"Zo\"", "line 2: id \"Zo\" is not in the corpus"),
        ("\"rank\":[", "\"rank\":[9999,", "line 1: offsets, large"),
        (&first_rank, "\"rank\":[1,1,", "line 1: ranks must be 0 to"),
        ("\"position\":", "\"position\":9", "line 1: probe"),
        ("{\"id\"", "[{\"id\"", "line 1: not a contrast"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let message = Contrast::read(&path, &corpus.documents).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn different_tokenizers_meet_on_the_targets_tokens() {
    let (coarse, fine, third) = (tokenizer(420), tokenizer(270), tokenizer(330));
    let pair = ModelPair::new(model(&fine, false, 256), model(&coarse, true, 256));
    assert!(!pair.same_tokenizer());
    let corpus = people();
    let options = || Contrasting::new().cache(Cache::Off);
    let on_small = pair.contrast_with(&corpus, &options()).unwrap();
    let on_third = pair.contrast_with(&corpus, &options().onto(&third)).unwrap();
    for (contrast, target) in [(&on_small, &fine), (&on_third, &third)] {
        assert!(contrast.aligned);
        for (text, document) in contrast.texts.iter().zip(&corpus.documents) {
            assert_eq!(text.ids, target.encode(&document.text).unwrap().ids);
            let total = |w: &[f32]| w.iter().map(|&w| f64::from(w)).sum::<f64>();
            let expected = if document.text.is_empty() { 0.0 } else { 1.0 };
            assert!((total(&text.large) - expected).abs() < 1e-6, "{}", total(&text.large));
            assert!((total(&text.small) - expected).abs() < 1e-6);
            assert!(total(&text.difference).abs() < 1e-6);
            for (field, probe) in &text.probe {
                let start = document.spans.iter().find(|s| s.field == *field).unwrap().start;
                assert!(text.offsets[probe.position].1 <= start);
                assert!((total(&probe.large) - 1.0).abs() < 1e-6 && probe.large.len() == probe.position + 1);
            }
        }
    }
    assert_eq!(on_third.texts[0].probe.len(), 2);
    // The small model's own tokens: only its normalisation differs from what it measured.
    let own = pair.small.attend(&corpus.documents, &plain()).unwrap();
    let total: f32 = own.texts[0].received[1..].iter().sum();
    let shares: Vec<f32> = own.texts[0].received.iter().map(|w| w / total).collect();
    near(&on_small.texts[0].small[1..], &shares[1..], 1e-6);
    // Laid on the tokens they already have, values stay as they are.
    let same = self::pair(256);
    let laid = same.contrast_with(&corpus, &options().onto(same.small.tokenizer())).unwrap();
    assert_eq!(laid.texts, same.contrast_with(&corpus, &options()).unwrap().texts);
}

#[test]
fn a_probe_or_chosen_heads_can_guide() {
    let pair = pair(256);
    let mut corpus = people();
    let options = || Contrasting::new().cache(Cache::Off);
    let guide = || Guide::Probe(vec!["company".into(), "city".into()]);
    // A text without a probe would be ranked by position, unnoticed.
    let message = pair.contrast_with(&corpus, &options().guide(guide())).unwrap_err().to_string();
    assert!(message.contains("guide = probe company,city") && message.contains("\"Empty\""), "{message}");
    corpus.documents.remove(2);
    let by_probe = pair.contrast_with(&corpus, &options().probes(Probes::None).guide(guide())).unwrap();
    let text = &by_probe.texts[0];
    let (company, city) = (&text.probe["company"], &text.probe["city"]);
    for i in 0..text.ids.len() {
        let of = |p: &[f32]| p.get(i).copied().unwrap_or(0.0);
        assert!((text.large[i] - (of(&company.large) + of(&city.large)) / 2.0).abs() < 1e-7);
        assert_eq!(text.difference[i], text.large[i] - text.small[i]);
    }
    let heads = Heads::Heads(vec![(3, 5)]);
    let by_heads =
        pair.contrast_with(&corpus, &options().heads(heads.clone(), Heads::Layers(vec![0]))).unwrap();
    let large = pair.large.attend(&corpus.documents, &plain().heads(heads)).unwrap();
    let small = pair.small.attend(&corpus.documents, &plain().heads(Heads::Layers(vec![0]))).unwrap();
    assert_eq!(by_heads.texts[2].large, large.texts[2].received);
    assert_eq!(by_heads.texts[2].small, small.texts[2].received);
    assert_eq!(by_heads.provenance.options["heads_large"], "heads 3.5");
}

#[test]
fn layers_and_heads_are_kept_apart_where_asked() {
    let pair = pair(256);
    let corpus = people();
    let options = Contrasting::new().cache(Cache::Off).per(Per::Head);
    let apart = pair.contrast_with(&corpus, &options).unwrap();
    assert_eq!((apart.large_shape, apart.small_shape), ((4, 6), (3, 4)));
    // Each side alone is what its model measures.
    let measured =
        |model: &Model| model.attend(&corpus.documents, &plain().per(Per::Head).probes(Probes::All)).unwrap();
    for (side, model) in [(apart.of_large(), &pair.large), (apart.of_small(), &pair.small)] {
        let measured = measured(model);
        assert_eq!(side.texts, measured.texts);
        assert_eq!((side.layers, side.heads, side.per), (measured.layers, measured.heads, measured.per));
        assert_eq!((side.model, side.hash), (measured.model, measured.hash));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("apart.jsonl");
    apart.write(&path).unwrap();
    assert_eq!(Contrast::read(&path, &corpus.documents).unwrap(), apart);
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to, part) in [
        ("\"large_by\":[[", "\"large_by\":[[0.5],[", "line 1: probe city, large_by: 24 rows"),
        ("\"small_by\":[[", "\"small_by\":[[9.0,", "line 1: probe city, small_by: 12 rows"),
        ("\"shape_small\":\"3x4\"", "\"shape_small\":\"3\"", "shape_small is \"3\""),
        ("\"per\":\"head\"", "\"per\":\"mean\"", "0 rows"),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let message = Contrast::read(&path, &corpus.documents).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let mean = pair.contrast_with(&corpus, &Contrasting::new().cache(Cache::Off)).unwrap();
    assert_eq!(apart.without_parts().provenance.options, mean.provenance.options);
}

#[test]
fn one_tokenizer_in_two_forms_is_one_tokenizer() {
    let one = tokenizer(300);
    // An end token named but never added: the same tokens under another hash.
    let json = one.to_json().unwrap();
    let special = cluescope::tokens::SpecialTokens { eos_ids: vec![0, 7], ..Default::default() };
    let other = Tokenizer::with_special("other", json.as_bytes(), &special).unwrap();
    assert_ne!(one.hash(), other.hash());
    let options = || Contrasting::new().cache(Cache::Off);
    let corpus = people();
    let same = pair(256).contrast_with(&corpus, &options()).unwrap();
    let mixed = ModelPair::new(model(&other, false, 256), model(&one, true, 256));
    assert!(!mixed.same_tokenizer());
    let contrast = mixed.contrast_with(&corpus, &options()).unwrap();
    assert!(!contrast.aligned);
    assert_eq!(contrast.texts, same.texts);
    let onto = pair(256).contrast_with(&corpus, &options().onto(&other)).unwrap();
    assert!(!onto.aligned);
    assert_eq!(onto.texts, same.texts);
}

#[test]
fn hits_are_counted_without_the_first_token() {
    // Hand-made rows: six tokens, the name is tokens 0 and 1, the probe is token 4.
    let mut contrast = contrast();
    let text = &mut contrast.texts[0];
    text.text = "Ann Ost was in at Rome".into();
    text.offsets = vec![(0, 3), (3, 7), (7, 11), (11, 14), (14, 17), (17, 22)];
    text.spans = vec![
        Span { field: "name".into(), start: 0, end: 7 },
        Span { field: "city".into(), start: 18, end: 22 },
    ];
    let mut probe = text.probe.remove("company").unwrap();
    probe.position = 4;
    probe.small = vec![0.9, 0.01, 0.03, 0.03, 0.03];
    probe.large = vec![0.5, 0.2, 0.1, 0.1, 0.1];
    probe.difference = vec![-0.4, 0.19, 0.07, 0.07, 0.07];
    text.probe = [("city".to_string(), probe)].into();
    contrast.texts.truncate(1);
    let hits = contrast.probe_hits("name", 2);
    assert_eq!(hits.len(), 1);
    assert_eq!((hits[0].texts, hits[0].small, hits[0].large, hits[0].difference), (1, 0, 1, 1));
    // One token of five may be a hit, and two of five ranks count.
    assert!((hits[0].chance - 0.4).abs() < 1e-12, "{}", hits[0].chance);
    assert_eq!(contrast.probe_hits("name", 1)[0].large, 0, "token 0 keeps its place");
    // Counted with it, the first token is a hit where it leads: in both models, not in the difference.
    let first = contrast.probe_hits("name", 1)[0].with_first;
    assert_eq!((first.texts, first.small, first.large, first.difference), (1, 1, 1, 1));
    assert!((first.chance - 0.4).abs() < 1e-12, "two of five tokens, one rank: {}", first.chance);
    assert!(contrast.probe_hits("date", 10).is_empty());
}

#[test]
fn pairs_are_known_by_name() {
    assert_eq!(known_pair("Gemma2").unwrap().large, "google/gemma-2-9b");
    let message = known_pair("gpt-5").unwrap_err().to_string();
    assert!(message.contains("nano, pythia") && message.contains("ModelPair::new"), "{message}");
}

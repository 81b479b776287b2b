//! Attention of whole corpora, on small random models.

use std::path::Path;

use cluescope::attention::{Attend, Cache, Heads, Per, Probes};
use cluescope::corpus::Document;
use cluescope::model::{Batch, Capture, CapturedText, Detail, Model, Want};
use polars::prelude::{ParquetReader, SerReader};
use serde_json::Value;

use super::toys::{model, near, people, plain, tokenizer};

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

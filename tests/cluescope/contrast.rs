//! Contrasts of two models, on small random ones.

use cluescope::attention::{Aggregation, Cache, Heads, Per, Probes};
use cluescope::contrast::{Contrast, Contrasting, Guide, GuideText, ModelPair, known_pair, rank_descending};
use cluescope::corpus::Span;
use cluescope::model::Model;
use cluescope::tokens::Tokenizer;
use serde_json::Value;

use super::attention::lines;
use super::toys::{model, near, pair, people, plain, tokenizer};

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
    // A guide of either kind for other words under the same ids.
    std::fs::write(&path, &text).unwrap();
    let attention = folder.path().join("a.jsonl");
    small.write(&attention).unwrap();
    let mut other = corpus.documents.clone();
    other[1].text = other[1].text.chars().rev().collect();
    for file in [&path, &attention] {
        let guide = GuideText::read(file, &corpus.documents).unwrap();
        assert_eq!(guide.len(), corpus.documents.len());
        let message = GuideText::read(file, &other).unwrap_err().to_string();
        assert!(message.contains("line 1: made from other texts"), "{message}");
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

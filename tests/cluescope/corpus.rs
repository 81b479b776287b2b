//! People, tags and files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use cluescope::Error;
use cluescope::augment::Augment;
use cluescope::corpus::{Biographies, Corpus, CsvStyle, Document, FIELDS, Span, Templates, Wording};
use cluescope::provenance::content_hash;
use cluescope::random::Stream;

/// The authors' files; they are not part of this repository.
fn paper_data() -> Option<PathBuf> {
    let path = std::env::var_os("CLUESCOPE_PAPER_DATA").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: CLUESCOPE_PAPER_DATA does not name the folder of the authors' CSV files");
    }
    path
}

fn digest(corpus: &Corpus) -> String {
    content_hash([serde_json::to_string(corpus).unwrap()])
}

#[test]
fn a_hundred_thousand_people_differ() {
    let people = Biographies::new(100_000).seed(3).split("pretrain").generate().unwrap();
    let ids: HashSet<&str> = people.documents.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(ids.len(), 100_000);
    assert_eq!(people.questions.len(), 500_000);
    let places: HashSet<_> = people.documents.iter().filter_map(|d| d.fact("city")).collect();
    assert!(places.len() >= 300, "{}", places.len());
}

#[test]
fn splits_and_ranges_never_share_a_person() {
    let names = |split: &str, seed: u64, n: usize, offset: usize| -> HashSet<String> {
        let people = Biographies::new(n).seed(seed).split(split).offset(offset).generate().unwrap();
        people.documents.into_iter().map(|d| d.id).collect()
    };
    let test = names("test", 1, 20_000, 0);
    for (split, seed) in [("validation", 1), ("train", 1), ("pretrain", 9)] {
        assert!(test.is_disjoint(&names(split, seed, 20_000, 0)), "{split}");
    }
    assert!(test.is_disjoint(&names("test", 1, 20_000, 20_000)));
    // The same person stands at the same place whatever the range.
    let all = Biographies::new(30).seed(1).generate().unwrap();
    let part = Biographies::new(10).seed(1).offset(20).generate().unwrap();
    assert_eq!(all.documents[20..], part.documents);
}

#[test]
fn a_seed_fixes_every_byte() {
    let base = || Biographies::new(50).seed(1);
    let cases = [
        (base(), "paper"),
        (base().templates(Templates::Varied).permute_sentences(true).full_name(true).per_person(3), "varied"),
        (base().field_order(["company", "city"]).wording(Wording::Reworded).split("train"), "order"),
    ];
    let got: Vec<(String, &str)> =
        cases.iter().map(|(b, label)| (digest(&b.generate().unwrap()), *label)).collect();
    let want = [("79f7f6773a7ad33a", "paper"), ("ce2271688795b14e", "varied"), ("70bbca0f2e8aa2ec", "order")];
    let want: Vec<(String, &str)> = want.iter().map(|(h, l)| (h.to_string(), *l)).collect();
    assert_eq!(got, want, "the lists or the draws changed: say so in the change log and store new hashes");
}

#[test]
fn the_default_is_the_papers_template() {
    let people = Biographies::new(200).seed(2).generate().unwrap();
    for d in &people.documents {
        let fact = |f| d.fact(f).unwrap();
        let name = fact("name");
        let woman = d.text.contains(". She spent her early");
        let (he, his) = if woman { ("She", "her") } else { ("He", "his") };
        let want = format!(
            "{name} was born on {}. {he} spent {his} early years in {}. {he} received mentorship and guidance from \
             faculty members at {}. {he} completed {his} education with a focus on {}. {he} had a professional \
             role at {}.",
            fact("date"),
            fact("city"),
            fact("university"),
            fact("major"),
            fact("company")
        );
        assert_eq!(d.text, want);
        assert_eq!(d.id, name);
    }
    for (q, five) in people.questions.iter().zip(FIELDS.iter().cycle().enumerate()) {
        let d = &people.documents[five.0 / 5];
        assert_eq!(q.document, d.id);
        let answer = &q.answers[0];
        assert_eq!(d.fact(&q.field), Some(answer.as_str()));
        // An independent count of the distance: characters between name and answer.
        let start = d.text.find(&d.id).unwrap() + d.id.len();
        let end = d.text.rfind(answer.as_str()).unwrap();
        if d.text.matches(answer.as_str()).count() == 1 {
            assert_eq!(q.distance, Some(d.text[start..end].chars().count()), "{}", d.text);
        }
    }
    let asked: HashSet<&str> = people.questions.iter().map(|q| q.field.as_str()).collect();
    assert_eq!(asked.len(), 5);
}

#[test]
fn every_option_of_the_text_keeps_people_and_facts() {
    let base = Biographies::new(40).seed(5);
    let plain = base.clone().generate().unwrap();
    for other in [
        base.clone().templates(Templates::Varied),
        base.clone().permute_sentences(true),
        base.clone().full_name(true),
        base.clone().field_order(["company", "major", "university", "city", "date"]),
        base.clone().templates(Templates::Varied).permute_sentences(true).full_name(true),
    ] {
        let other = other.generate().unwrap();
        let mut changed = 0;
        for (a, b) in plain.documents.iter().zip(&other.documents) {
            for field in FIELDS.iter().chain(&["name"]) {
                assert_eq!(a.fact(field), b.fact(field));
            }
            let first = b.text.split(". ").next().unwrap();
            assert!(first.contains(a.id.as_str()), "the first sentence names the person: {}", b.text);
            assert_eq!(Document::from_tagged(b.id.clone(), &b.to_tagged().unwrap()).unwrap(), *b);
            changed += usize::from(a.text != b.text);
        }
        assert!(changed >= 35, "{changed}");
        assert!(other.questions.iter().all(|q| q.distance.is_some()));
    }
    let full = base.clone().full_name(true).generate().unwrap();
    let names = |d: &Document| d.spans.iter().filter(|s| s.field == "name").count();
    assert!(full.documents.iter().all(|d| names(d) == 5 && !d.text.contains(" He ")));

    let several = base.per_person(3).templates(Templates::Varied).generate().unwrap();
    assert_eq!((several.documents.len(), several.questions.len()), (120, 200));
    assert_eq!(several.documents[40].id, format!("{}/2", several.documents[0].id));
    assert_ne!(several.documents[40].text, several.documents[0].text);
    assert_eq!(several.documents[40].fact("city"), several.documents[0].fact("city"));
}

#[test]
fn examples_are_ten_real_people() {
    let people = Biographies::new(1).wording(Wording::Reworded).generate().unwrap();
    let who: HashSet<&str> = people.examples.iter().map(|q| q.document.as_str()).collect();
    assert_eq!((who.len(), people.examples.len()), (10, 50));
    assert!(people.examples.iter().any(|q| q.question == "When was Marie Curie born?"));
    assert_eq!(Biographies::real_people().documents.len(), 10);
}

#[test]
fn options_out_of_range_are_named() {
    let base = || Biographies::new(5);
    for (bad, option) in [
        (Biographies::new(0), "n"),
        (Biographies::new(10_000_000), "n"),
        (base().offset(usize::MAX), "n"),
        (base().split("dev"), "split"),
        (base().per_person(0), "per_person"),
        (base().field_order(["date", "date"]), "field_order"),
        (base().field_order(["birthday"]), "field_order"),
        (base().field_order([] as [&str; 0]), "field_order"),
        (base().templates(Templates::Own(vec![("date".into(), "{Who} {value}".into())])), "templates"),
    ] {
        match bad.generate() {
            Err(Error::Option { name, .. }) => assert_eq!(name, option),
            other => panic!("{option}: {other:?}"),
        }
    }
}

#[test]
fn every_format_brings_back_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let people = Biographies::new(20).seed(8).generate().unwrap();
    for name in ["a.jsonl", "a.parquet"] {
        let path = folder.path().join(name);
        people.write(&path).unwrap();
        assert_eq!(Corpus::read(&path).unwrap(), people, "{name}");
    }
    let csv = folder.path().join("a.csv");
    people.write(&csv).unwrap();
    let back = Corpus::read(&csv).unwrap();
    assert_eq!(back.questions, people.questions);
    // All but whether a row is a copy of another, which has no place in this format.
    let tagged =
        |c: &Corpus| c.documents.iter().map(|d| (d.id.clone(), d.to_tagged().unwrap())).collect::<Vec<_>>();
    assert_eq!(tagged(&back), tagged(&people));

    let mut plain = people.clone();
    plain.examples.clear();
    let json = folder.path().join("a.json");
    assert!(people.write(&json).is_err(), "examples have no place in SQuAD");
    plain.write(&json).unwrap();
    let back = Corpus::read(&json).unwrap();
    let texts = |c: &Corpus| c.documents.iter().map(|d| d.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&back), texts(&plain));
    let answers = |c: &Corpus| c.questions.iter().map(|q| q.answers.clone()).collect::<Vec<_>>();
    assert_eq!(answers(&back), answers(&plain));

    let txt = folder.path().join("a.txt");
    plain.write(&txt).unwrap();
    assert_eq!(texts(&Corpus::read(&txt).unwrap()), texts(&plain));

    let texts_folder = folder.path().join("texts");
    std::fs::create_dir(&texts_folder).unwrap();
    std::fs::write(texts_folder.join("b.txt"), "two\n\nparagraphs\n").unwrap();
    std::fs::write(texts_folder.join("a.txt"), "one").unwrap();
    let corpus = Corpus::read(&texts_folder).unwrap();
    assert_eq!(corpus.documents.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(corpus.documents[1].text, "two\n\nparagraphs");
}

#[test]
fn awkward_texts_survive_jsonl_and_parquet() {
    let texts = ["", "a <b> c", "line\nbreak\r\n\u{2028}", "👩‍👩‍👧 e\u{301} שלום \"quoted\" \\", "\u{0}\u{7}"];
    let documents: Vec<Document> = texts
        .iter()
        .enumerate()
        .map(|(i, t)| Document::new(format!("id {i} \"x\""), t.to_string(), Vec::new()))
        .collect();
    let mut corpus = Corpus { documents, ..Default::default() };
    corpus.documents[3].spans.push(Span { field: "any field".into(), start: 0, end: 5 });
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "a.parquet"] {
        let path = folder.path().join(name);
        corpus.write(&path).unwrap();
        assert_eq!(Corpus::read(&path).unwrap(), corpus, "{name}");
    }
    assert_eq!(corpus.documents[3].fact("any field"), Some("👩‍👩‍👧"));
}

#[test]
fn files_of_another_shape_say_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content, words) in [
        ("a.csv", "body\n\"x\"\n", "no column `text`"),
        ("empty.csv", "", "no column `text`; the file is empty"),
        ("b.csv", "text\n\"<name>A</nam>\"\n", "row 1 (line 2), character 7"),
        ("c.csv", "text\n", "no document"),
        ("d.jsonl", "", "no document"),
        ("e.jsonl", "{\"body\": 1}\n", "line 1: neither `text`"),
        ("f.jsonl", "{\"text\": \"a\"}\nnope\n", "line 2: not JSON"),
        ("g.jsonl", "{\"id\": \"a\", \"text\": \"b\"}\n{\"id\": \"a\", \"text\": \"c\"}\n", "stands twice"),
        (
            "h.jsonl",
            "{\"text\": \"b\", \"spans\": [{\"field\": \"x\", \"start\": 0, \"end\": 2}]}",
            "0..2 in 1 characters",
        ),
        (
            "i.jsonl",
            "{\"question\": \"b\", \"document\": \"d\", \"field\": \"f\", \"answers\": []}",
            "`answers` is empty",
        ),
        ("j.jsonl", "[1, 2]\n", "neither"),
        ("k.json", "[{\"text\": \"a\"}]", "expected SQuAD"),
        ("l.json", "{\"data\": []}", "no document"),
        ("m.json", "{\"data\": [{\"paragraphs\": [{\"text\": 1}]}]}", "expected SQuAD"),
        ("n.txt", "  \n\n", "no document"),
        ("o.docx", "", "known: .csv"),
        ("p.parquet", "not parquet", "p.parquet"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        let message = Corpus::read(&path).unwrap_err().to_string();
        assert!(message.contains(words), "{name}: {message}");
        assert!(message.contains(name), "{message}");
    }
    std::fs::write(folder.path().join("q.txt"), [0x66, 0xff, 0x00]).unwrap();
    let message = Corpus::read(folder.path().join("q.txt")).unwrap_err().to_string();
    assert!(message.contains("byte 1"), "{message}");
    assert!(matches!(Corpus::read(folder.path().join("absent.csv")), Err(Error::Io { .. })));
    let empty = folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(Corpus::read(&empty).unwrap_err().to_string().contains("no .txt"));
}

#[test]
fn squad_two_keeps_what_can_be_answered() {
    let content = r#"{"version": "v2.0", "data": [{"title": "T", "paragraphs": [
        {"context": "Zoë met Ann in Rome. She left.", "qas": [
            {"id": "1", "question": "Who left?", "answers": [{"text": "Ann", "answer_start": 8},
                {"text": "Ann", "answer_start": 8}, {"text": "she", "answer_start": 3}], "is_impossible": false},
            {"id": "2", "question": "Who came?", "answers": [], "is_impossible": true,
                "plausible_answers": [{"text": "Ann", "answer_start": 8}]}]},
        {"context": "Second.", "qas": []}]}]}"#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    std::fs::write(&path, content).unwrap();
    let corpus = Corpus::read(&path).unwrap();
    assert_eq!(corpus.documents.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["T#1", "T#2"]);
    assert_eq!(corpus.questions.len(), 1);
    assert_eq!(corpus.questions[0].answers, ["Ann", "she"]);
    assert_eq!(corpus.documents[0].spans, [Span { field: "answer".into(), start: 8, end: 11 }]);
}

#[test]
fn the_projects_paragraphs_hold_their_answers() {
    let corpus = Corpus::paragraphs().unwrap();
    assert!(corpus.documents.len() >= 30);
    let asked: HashSet<&str> = corpus.questions.iter().map(|q| q.question.as_str()).collect();
    assert_eq!(asked.len(), corpus.questions.len(), "no question stands twice");
    for d in &corpus.documents {
        let questions: Vec<_> = corpus.questions.iter().filter(|q| q.document == d.id).collect();
        assert!((2..=4).contains(&questions.len()), "{}", d.id);
        assert!(d.text.matches(". ").count() >= 2, "{}: a reference across sentences needs some", d.id);
        for q in questions {
            assert!(d.text.contains(&q.answers[0]), "{}: {:?}", d.id, q.answers);
            assert!(d.spans.iter().any(|s| d.slice(s) == q.answers[0]), "{}: {:?}", d.id, q.answers);
        }
    }
}

#[test]
fn the_authors_files_come_back_byte_for_byte() {
    let Some(folder) = paper_data() else { return };
    for (name, documents) in [("biography_real.csv", 10), ("biography_synthetic.csv", 100)] {
        let content = std::fs::read_to_string(folder.join(name)).unwrap();
        let corpus = Corpus::read(folder.join(name)).unwrap();
        assert_eq!((corpus.documents.len(), corpus.questions.len()), (documents, 5 * documents));
        assert_eq!(corpus.to_csv(&CsvStyle::of(&content)).unwrap(), content, "{name}");
        assert!(corpus.questions.iter().all(|q| q.distance.is_some()));
    }
    // The default style is that of the training file.
    let out = tempfile::tempdir().unwrap();
    let source = folder.join("biography_synthetic.csv");
    Corpus::read(&source).unwrap().write(out.path().join("x.csv")).unwrap();
    assert_eq!(std::fs::read(out.path().join("x.csv")).unwrap(), std::fs::read(source).unwrap());
    let own = Wording::read(folder.join("prompts.csv")).unwrap();
    assert_eq!(own.templates(), {
        let mut paper = Wording::Paper.templates();
        paper.sort_by_key(|(f, _)| own.templates().iter().position(|(g, _)| g == f));
        paper
    });
}

/// Changes bytes, cuts and repeats parts of `seed`.
fn mutate(seed: &str, stream: &mut Stream) -> String {
    let mut chars: Vec<char> = seed.chars().collect();
    let spare: Vec<char> = "<>/\"{}[],:\\\n\r\0aé👍e\u{301}ש 0".chars().collect();
    for _ in 0..1 + stream.below(6) {
        let at = stream.below(chars.len().max(1));
        match stream.below(4) {
            0 if !chars.is_empty() => {
                chars.remove(at);
            }
            1 if !chars.is_empty() => chars[at] = *stream.choose(&spare).unwrap(),
            2 => {
                let to = (at + stream.below(12)).min(chars.len());
                let piece = chars[at.min(to)..to].to_vec();
                chars.splice(at..at, piece);
            }
            _ => chars.insert(at, *stream.choose(&spare).unwrap()),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mangled_tags_never_panic_and_what_is_read_comes_back() {
    let seed =
        "<name>Ana Ruß</name> was 3 < 4 on <date>May 1</date>. 👩‍👧 <city>ירושלים</city>, <a-b_1>x</a-b_1>.";
    let mut stream = Stream::new(11, "mangled tags", &[]);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..50_000 {
        let text = mutate(seed, &mut stream);
        match Document::from_tagged("x", &text) {
            Ok(d) => {
                good += 1;
                assert_eq!(d.to_tagged().unwrap(), text);
            }
            Err(e) => {
                bad += 1;
                assert!(e.to_string().contains("character "), "{e}");
            }
        }
    }
    assert!(good > 5_000 && bad > 5_000, "{good} {bad}");
}

#[test]
fn mangled_files_never_panic() {
    let people = Biographies::new(2).seed(1).generate().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["m.jsonl", "m.json", "m.csv", "m.parquet"] {
        let path: &Path = &folder.path().join(name);
        let mut few = people.clone();
        few.examples.clear();
        few.questions.truncate(3);
        few.write(path).unwrap();
        let mut stream = Stream::new(12, name, &[]);
        let bytes = std::fs::read(path).unwrap();
        let (mut good, mut bad) = (0, 0);
        for _ in 0..400 {
            if name.ends_with("parquet") {
                let mut bytes = bytes.clone();
                bytes.truncate(stream.below(bytes.len()));
                std::fs::write(path, bytes).unwrap();
            } else {
                std::fs::write(path, mutate(std::str::from_utf8(&bytes).unwrap(), &mut stream)).unwrap();
            }
            match Corpus::read(path) {
                Ok(_) => good += 1,
                Err(_) => bad += 1,
            }
        }
        assert!(bad > 20 && (good > 20 || name.ends_with("parquet")), "{name}: {good} {bad}");
    }
}

#[test]
fn what_a_text_is_a_version_of_is_kept_where_there_is_room_for_it() {
    let people = Biographies::new(3).per_person(2).generate().unwrap();
    let copied = Augment::shuffle_sentences().copies(1).apply(&people).unwrap();
    let of = |corpus: &Corpus| -> Vec<Option<String>> {
        corpus.documents.iter().map(|d| d.version_of().map(String::from)).collect()
    };
    let names: Vec<&str> = people.documents[..3].iter().map(|d| d.id.as_str()).collect();
    let each = names.repeat(4);
    let known: Vec<Option<String>> = each.iter().map(|name| Some(name.to_string())).collect();
    assert_eq!(of(&copied), known, "two biographies each, and a copy of each of them");
    assert_eq!(copied.subjects(), each);
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "a.parquet", "a.csv"] {
        let path = folder.path().join(name);
        copied.write(&path).unwrap();
        let read = Corpus::read(&path).unwrap();
        if name == "a.csv" {
            assert_eq!(of(&read), vec![None; 12], "a row may be a copy of any other");
            assert_eq!(read.questions.len(), 15, "each person is asked about once");
            assert_eq!(read.subjects(), copied.subjects());
        } else {
            assert_eq!(read, copied, "{name}");
        }
    }
    let path = folder.path().join("b.csv");
    std::fs::write(&path, "id,text,version_of\na,One.,\nb,Two.,a\n").unwrap();
    assert_eq!(of(&Corpus::read(&path).unwrap()), [Some("a".into()), Some("a".into())]);
}

#[test]
fn known_examples_fill_what_is_missing_and_nothing_else() {
    let mut people = Biographies::new(2).generate().unwrap();
    people.examples.retain(|e| e.field == "city");
    people.examples.truncate(1);
    let filled = people.with_known_examples().unwrap();
    let count = |field: &str| filled.examples.iter().filter(|e| e.field == field).count();
    assert_eq!((count("city"), count("date"), count("answer")), (1, 10, 0));
}

//! Pictures of contrasts, plans and heads: they show what the numbers say, and hostile texts as text.

use cluescope::attention::{Attended, Cache, Per, Probes};
use cluescope::augment::{Augment, Protect, drop_probability};
use cluescope::contrast::{ContrastText, Contrasting, ModelPair, Row, rank_descending};
use cluescope::corpus::{Corpus, Document};
use cluescope::report::{Colours, HeadsPicture, Kind, PlanPicture, ProbeFigure, Table, TextPicture};

use super::contrast::contrast;
use super::toys::{pair, people, plain};

#[test]
fn figures_count_every_text_once_a_rank() {
    let contrast = contrast();
    for row in Row::ALL {
        let figure = ProbeFigure::new(&contrast, "city", row).unwrap();
        assert_eq!(figure.texts, 3);
        for (rank, counts) in figure.counts.iter().enumerate() {
            let long_enough =
                contrast.texts.iter().filter(|t| t.probe.get("city").is_some_and(|p| p.position >= rank));
            assert_eq!(counts.iter().sum::<usize>(), long_enough.count(), "rank {rank}");
        }
        let svg = figure.svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("http://") || svg.matches("http://").count() == 1, "only the namespace");
    }
    // The start token's rank in the small model, counted by hand.
    let figure = ProbeFigure::new(&contrast, "city", Row::Small).unwrap();
    let start = figure.kinds.iter().position(|k| *k == Kind::Start).unwrap();
    let first = contrast
        .texts
        .iter()
        .filter_map(|t| t.probe.get("city"))
        .filter(|p| p.small.iter().all(|&w| w <= p.small[0]));
    assert_eq!(figure.counts[0][start], first.count());
    assert_eq!(figure.table().len(), 10);
    // A field that the paper does not have takes no colour of one that it has.
    let mut titled = contrast.clone();
    for span in titled.texts.iter_mut().flat_map(|t| &mut t.spans).filter(|s| s.field == "city") {
        span.field = "title".into();
    }
    let figure = ProbeFigure::new(&titled, "company", Row::Small).unwrap();
    let named = figure.kinds.iter().filter(|k| matches!(k, Kind::Field(_))).count();
    let svg = figure.svg();
    let colours = ["#d55e00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#0072b2"];
    assert!(named > 1 && colours.iter().filter(|c| svg.contains(**c)).count() == named, "{named}: {svg}");
    let message = ProbeFigure::new(&contrast, "date", Row::Small).unwrap_err().to_string();
    assert!(message.contains("date"), "{message}");
    let folder = tempfile::tempdir().unwrap();
    let written = contrast.write_figures(folder.path()).unwrap();
    assert_eq!(written.len(), 10, "city, company and name in three rows each, and the page");
    let page = std::fs::read_to_string(&written[9]).unwrap();
    assert_eq!((page.matches("<svg").count(), page.matches("<table>").count()), (9, 9));
    let svg = std::fs::read_to_string(&written[2]).unwrap();
    let hash = &contrast.provenance.models["large"];
    assert!(svg.contains(hash.as_str()) && page.contains(hash.as_str()), "provenance in each");
    assert!(written[2].ends_with("probe-name-difference.svg") && written[2].exists());
}

/// What a reader of the page sees of element `tx` number `n`: tags dropped, entities read.
fn shown(html: &str, n: usize) -> String {
    let inside = html.split("<div class=\"tx\"").nth(n + 1).unwrap().split_once('>').unwrap().1;
    let inside = inside.split("</div>").next().unwrap();
    let mut text = String::new();
    let mut tag = false;
    for c in inside.chars() {
        match c {
            '<' => tag = true,
            '>' if tag => tag = false,
            c if !tag => text.push(c),
            _ => {}
        }
    }
    for (entity, c) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")] {
        text = text.replace(entity, c);
    }
    text
}

#[test]
fn hostile_texts_are_shown_as_text() {
    let hostile = [
        "<script>alert(1)</script><b title=\"x\" onload='y'>&amp; --> ]]> </div>",
        "שלום \u{202e}drow\u{202c} مرحبا",
        "e\u{301}\u{301}\u{301} a\u{300} \u{301}start",
        "👩‍👩‍👧‍👦🏳️‍🌈 𝒳 日本語",
        "EVCXR_END_CONTENT\nEVCXR_END_CONTENT\r\nx",
    ];
    let documents: Vec<Document> =
        hostile.iter().map(|t| Document::new(format!("<i>{t}"), *t, Vec::new())).collect();
    let mut corpus = Corpus { documents, ..Corpus::default() };
    let pair = pair(512);
    let mut contrast = pair.contrast_with(&corpus, &Contrasting::new().cache(Cache::Off)).unwrap();
    // 100 KB without a blank; its numbers are made up, which the page does not mind.
    let long = Document::new("long", "x<".repeat(50_000), Vec::new());
    let value = |i: usize| ((i * 37 % 101) as f32 - 50.0) * 1e-4;
    let difference: Vec<f32> = (0..33_333).map(value).collect();
    contrast.texts.push(ContrastText {
        id: long.id.clone(),
        text: long.text.clone(),
        ids: vec![0; 33_333],
        offsets: (0..33_333).map(|i| (i * 3, i * 3 + 3)).collect(),
        large: difference.clone(),
        small: vec![0.0; 33_333],
        rank: rank_descending(&difference),
        difference,
        ..ContrastText::default()
    });
    corpus.documents.push(long);
    let picture = TextPicture::of(&contrast).dropout(0.6, 0.05);
    let html = picture.html();
    for (n, document) in corpus.documents.iter().enumerate() {
        assert_eq!(shown(&html, n), document.text.replace('\r', "\u{fffd}"), "text {n}");
    }
    assert_eq!(html.matches("<script>").count(), 1, "only the page's own");
    assert!(!html.contains("onload='y'") && !html.contains("<i>"));
    assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("url("), "no network");
    // For a look with one's own eyes: the pages, in the folder named.
    if let Some(folder) = std::env::var_os("CLUESCOPE_TEST_PAGES") {
        let folder = std::path::PathBuf::from(folder);
        picture.write(folder.join("hostile.html")).unwrap();
    }
    let terminal = TextPicture::of(&contrast).first(5).terminal(Colours::True);
    let foreign = terminal.chars().filter(|c| c.is_control() && !matches!(c, '\n' | '\t' | '\x1b'));
    assert_eq!(foreign.count(), 0);
    assert!(terminal.contains("[U+202E]") && terminal.contains("1 more texts"));
}

#[test]
fn notes_say_what_the_numbers_say() {
    let contrast = contrast();
    let html = TextPicture::of(&contrast).dropout(0.6, 0.05).html();
    let text = &contrast.texts[0];
    let token = text.rank.iter().position(|&r| r == 3).unwrap();
    let p = 0.6 * (1.0 - (-0.05f64 * 3.0).exp());
    assert!(html.contains(&format!("token {token}, rank 3 of {}", text.ids.len())), "{token}");
    assert!(html.contains(&format!("p = {p:.3}")));
    assert_eq!(html.matches("data-r=\"3\"").count(), 3, "once in each text with words");
    let probe = TextPicture::of_probe(&contrast, "company").html();
    assert_eq!(probe.matches("<details").count(), 2);
    let pair = pair(256);
    let attended: Attended =
        pair.small.attend(&people().documents, &plain().per(Per::Head).probes(Probes::All)).unwrap();
    assert!(TextPicture::of_attention(&attended).html().contains("received"));
    let heads = HeadsPicture::new(&attended, "Ann", "name").unwrap().html();
    assert_eq!(heads.matches("role=\"gridcell\"").count(), 12);
    assert_eq!(shown(&heads, 0), people().documents[0].text);
    // The share of layer 1, head 2 at the company's probe, over the two texts that have both.
    let share = |n: usize| {
        let text = &attended.texts[n];
        let name = text.spans.iter().find(|s| s.field == "name").unwrap();
        let row = &text.probe["company"].weights_by[6];
        let on = |i: &usize| name.overlaps(text.offsets[*i]);
        (0..row.len()).filter(on).map(|i| row[i]).sum::<f32>()
    };
    let mean = (share(0) + share(3)) / 2.0;
    let label = heads.split("layer 1, head 2: ").nth(1).unwrap().split(" %").next().unwrap();
    let found = label.parse::<f32>().unwrap() / 100.0;
    assert!((found - mean).abs() < 6e-5, "a hundredth of a percent: {found} {mean}");
    // The text is a list that the keyboard and a screen reader can go through, as in any other picture.
    assert!(
        heads.contains("<div class=\"tx\" role=\"listbox\" tabindex=\"0\"")
            && heads.contains("role=\"option\"")
    );
    assert_eq!(heads.matches("role=\"gridcell\" tabindex=\"0\"").count(), 1, "one stop of the Tab key");
    assert!(HeadsPicture::new(&attended, "Nobody", "name").is_err());
    let coarse = pair.small.attend(&people().documents, &plain()).unwrap();
    assert!(HeadsPicture::new(&coarse, "Ann", "name").unwrap_err().to_string().contains("head"));
}

#[test]
fn a_plan_shows_each_tokens_drop_probability_and_the_curve() {
    let (contrast, corpus) = (contrast(), people());
    let augment = Augment::by_contrast(&contrast).alpha(0.7).beta(0.03).protect([Protect::names()]);
    let plan = augment.plan(&corpus).unwrap();
    let picture = PlanPicture::of(&plan);
    let html = picture.html();
    for (n, document) in corpus.documents.iter().enumerate() {
        assert_eq!(shown(&html, n), document.text);
    }
    let text = &contrast.texts[0];
    let name_end = text.spans[0].end;
    for (token, &(start, end)) in text.offsets.iter().enumerate().filter(|(_, o)| o.1 > o.0) {
        let p = if start < name_end { 0.0 } else { drop_probability(0.7, 0.03, text.rank[token]) };
        let note = format!(
            "token {token}, rank {} of {}\ndropped with p = {p:.3}",
            text.rank[token],
            text.rank.len()
        );
        assert!(html.contains(&note), "{start}..{end}: {note}");
    }
    assert!(
        html.contains("tokens, ")
            && html.contains(&format!("{:.1} dropped", plan.texts[0].expected_dropped()))
    );
    let curve = picture.curve().unwrap();
    assert!(curve.contains("exp(") && html.contains(&curve), "the curve stands above the texts");
    assert_eq!(picture.clone().only("Bo").html().matches("<details").count(), 1);
    assert!(picture.first(1).html().contains("3 more texts"));

    let random =
        Augment::random().alpha(0.6).tokens_of(contrast.guide()).as_released().plan(&corpus).unwrap();
    let picture = PlanPicture::of(&random);
    assert!(picture.curve().is_none(), "no ranks, no curve");
    assert!(
        picture.html().contains("Random dropout, p = 0.400"),
        "as released it keeps with probability 0.6"
    );
    let terminal = picture.terminal(Colours::None);
    assert!(terminal.contains("[-"), "{terminal}");
}

#[test]
fn a_text_without_colours_still_says_which_side_a_token_is_on() {
    let contrast = contrast();
    let terminal = TextPicture::of(&contrast).first(1).terminal(Colours::None);
    let text = &contrast.texts[0];
    let strongest = text.rank.iter().enumerate().filter(|&(t, _)| text.offsets[t].1 > text.offsets[t].0);
    let (token, _) = strongest.min_by_key(|&(_, r)| r).unwrap();
    let (start, end) = text.offsets[token];
    let word: String = text.text.chars().skip(start).take(end - start).collect();
    assert!(terminal.contains(&format!("{{+{}+}}", word.trim_start())), "{word:?} in {terminal}");
    assert!(!terminal.contains('\x1b'));
}

#[test]
fn heads_of_both_sides_of_a_contrast_are_shown() {
    let corpus = people();
    let options = Contrasting::new().cache(Cache::Off).per(Per::Head);
    let contrast = pair(256).contrast_with(&corpus, &options).unwrap();
    for (side, cells) in [(contrast.of_large(), 24), (contrast.of_small(), 12)] {
        let picture = HeadsPicture::new(&side, "Ann", "name").unwrap();
        assert_eq!(picture.html().matches("role=\"gridcell\"").count(), cells);
        let terminal = picture.terminal();
        assert!(
            terminal.contains("probe of company") && terminal.contains("received attention"),
            "{terminal}"
        );
        assert_eq!(terminal.matches(" %").count(), 30, "ten heads of each of three measures");
    }
}

#[test]
fn heads_that_differ_are_shown_with_their_sign() {
    let corpus = people();
    let options = Contrasting::new().cache(Cache::Off).per(Per::Head);
    let contrast = pair(256).contrast_with(&corpus, &options).unwrap();
    let share = |of_large: bool, head: Option<usize>| {
        let texts = contrast.texts.iter().filter(|t| t.probe.contains_key("company"));
        let shares: Vec<f32> = texts
            .map(|text| {
                let probe = &text.probe["company"];
                let rows = if of_large { &probe.large_by } else { &probe.small_by };
                let weight = |i: usize| match head {
                    Some(head) => rows[head][i],
                    None => rows.iter().map(|row| row[i]).sum::<f32>() / rows.len() as f32,
                };
                let name = text.spans.iter().find(|s| s.field == "name").unwrap();
                let on = (0..=probe.position).filter(|&i| name.overlaps(text.offsets[i])).map(weight);
                on.sum::<f32>() / (0..=probe.position).map(weight).sum::<f32>()
            })
            .collect();
        shares.iter().sum::<f32>() / shares.len() as f32 * 100.0
    };
    // Models of different shapes: a head against the other model's mean.
    let picture = HeadsPicture::of_contrast(&contrast, "Ann", "name").unwrap();
    let html = picture.html();
    assert_eq!(html.matches("role=\"gridcell\"").count(), 24 + 12);
    let (head, mean) = (share(true, Some(9)), share(false, None));
    let said = html.split("layer 1, head 3 of large: ").nth(1).unwrap().split(" points").next().unwrap();
    let numbers: Vec<f32> = said
        .replace('\u{2212}', "-")
        .split(|c: char| !(c.is_ascii_digit() || ".-e".contains(c)))
        .filter_map(|n| n.parse().ok())
        .collect();
    for (found, want) in numbers.iter().zip([head, mean, head - mean]) {
        assert!((found - want).abs() < 6e-3, "{said}: {want}");
    }
    assert_eq!(numbers.len(), 3, "{said}");
    let terminal = picture.terminal();
    assert!(terminal.contains("difference") && terminal.contains("mean over all heads"), "{terminal}");
    let folder = tempfile::tempdir().unwrap();
    let written = picture.write_figures(folder.path()).unwrap();
    let names: Vec<_> = written.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
    let ends = ["-large.svg", "-small.svg"];
    let want = ["company", "city", "received-attention"].map(|f| ends.map(|end| format!("heads-{f}{end}")));
    assert_eq!(names, want.as_flattened());
    let svg = std::fs::read_to_string(&written[0]).unwrap();
    assert!(svg.contains(&contrast.provenance.models["large"]), "provenance in each");

    // Of one shape: head by head; a model against itself differs nowhere.
    let small = pair(256).small;
    let same = ModelPair::new(small.clone(), small).contrast_with(&corpus, &options).unwrap();
    let picture = HeadsPicture::of_contrast(&same, "Ann", "name").unwrap();
    assert_eq!(picture.html().matches("role=\"gridcell\"").count(), 12);
    assert_eq!(picture.html().matches("difference 0.00 points").count(), 3 * 12, "three measures");
    assert_eq!(picture.write_figures(folder.path()).unwrap().len(), 3);
    let coarse = Contrasting::new().cache(Cache::Off);
    let coarse = pair(256).contrast_with(&corpus, &coarse).unwrap();
    assert!(
        HeadsPicture::of_contrast(&coarse, "Ann", "name").unwrap_err().to_string().contains("Contrasting")
    );
}

#[test]
fn hits_are_a_table_with_both_readings_where_they_differ() {
    let contrast = contrast();
    let mut hits = contrast.probe_hits("name", 2);
    let table = Table::of_hits(&hits, "name", 2).to_string();
    assert!(!table.contains("first token"), "a start token stands first: {table}");
    assert_eq!(table.lines().count(), 3 + hits.len());
    hits[0].with_first.large += 1;
    let table = Table::of_hits(&hits, "name", 2).to_string();
    assert_eq!(table.matches("may be one").count(), hits.len(), "{table}");
}

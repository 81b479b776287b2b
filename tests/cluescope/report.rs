//! Figures stay within their frames and say what they show; pages hold no foreign markup.
//!
//! With `CLUESCOPE_FIGURES=folder` the page of sample figures is kept there for people to look at.

use cluescope::provenance::Provenance;
use cluescope::report::{Bar, GroupedBars, HeatMap, LineChart, Page, Section, StackedBars, Table};

const CONDITIONS: [&str; 6] = [
    "plain",
    "plain at equal optimiser steps",
    "random",
    "own attention",
    "large's attention",
    "attention difference",
];
const FIELDS: [&str; 5] = ["date", "city", "university", "major", "company"];

/// Figures with the texts and values most likely to go wrong.
fn samples() -> Vec<(&'static str, String)> {
    let wave = |k: usize| {
        (0..60).map(move |i| {
            let (x, y) =
                (f64::from(i) * 25.0, (-f64::from(i) / (8.0 + 3.0 * k as f64)).exp() * 4.0 + 0.1 * k as f64);
            (x, y, y * 0.9, y * 1.1)
        })
    };
    let mut lines = LineChart::new("Training loss by condition, mean over five seeds")
        .x_label("optimiser step")
        .y_label("loss (nats per token)");
    for (k, name) in CONDITIONS.iter().enumerate() {
        lines = lines.line_with_band(*name, wave(k));
    }
    let mut bars = GroupedBars::new("Exact match by field")
        .x_label("field")
        .y_label("exact match (share of questions)")
        .y_range(0.0, 1.0)
        .categories(FIELDS);
    for (k, name) in CONDITIONS.iter().enumerate() {
        bars = bars.series(
            *name,
            (0..5).map(|f| {
                let v = 0.95 - 0.17 * f64::from(f) + 0.02 * k as f64;
                if f == 3 && k == 2 { Bar::missing() } else { Bar::with_interval(v, v - 0.07, v + 0.05) }
            }),
        );
    }
    let negative = GroupedBars::new("Log-probability of the right answer, of an unreasonably long title that must wrap rather than leave the figure on the right hand side")
        .y_label("ln p (nats per question)")
        .categories(["0–24", "25–49", "50–99", "100–149", "300 or more characters between the name and the answer"])
        .series("plain <b>&amp;</b>", [-1234.5, -2000.0, -31.0, -4.0, -0.2].map(Bar::value))
        .series("北京大学 attention", [-1000.0, f64::NEG_INFINITY, -20.0, -3.0, -0.1].map(Bar::value));
    let stacked = StackedBars::new("What the probe attends to, by rank (large − small)")
        .x_label("rank of the token, by attention")
        .y_label("share of 100 biographies")
        .y_range(0.0, 1.0)
        .categories((1..=10).map(|r| r.to_string()))
        .part("<name>", (0..10).map(|r| 0.5 - 0.04 * f64::from(r)))
        .part("<date>", [0.2; 10])
        .part("was", [0.1; 10])
        .part("other", (0..10).map(|r| 0.2 + 0.04 * f64::from(r)));
    let map = |rows: usize, columns: usize| -> Vec<Vec<f64>> {
        (0..rows)
            .map(|r| (0..columns).map(|c| ((r * 7 + c * 3) % 11) as f64 / 10.0 - 0.4).collect())
            .collect()
    };
    let heads = HeatMap::new("Received attention of the name, by head", map(30, 32))
        .x_label("head")
        .y_label("layer")
        .value_label("share of attention");
    let differences = HeatMap::new("Difference between arms", map(6, 5))
        .rows(CONDITIONS)
        .columns(FIELDS)
        .x_label("field")
        .value_label("difference in exact match")
        .diverging()
        .size(760, 300);
    let one = LineChart::new("One point").line("only", [(3.0, 0.25)]).y_label("loss").x_label("step");
    vec![
        ("lines", lines.svg().unwrap()),
        ("bars", bars.svg().unwrap()),
        ("negative", negative.svg().unwrap()),
        ("stacked", stacked.svg().unwrap()),
        ("heads", heads.svg().unwrap()),
        ("differences", differences.svg().unwrap()),
        ("one", one.svg().unwrap()),
    ]
}

fn attribute<'a>(tag: &'a str, name: &str) -> &'a str {
    let from = tag.find(&format!(" {name}=\"")).unwrap_or_else(|| panic!("{name} in {tag}")) + name.len() + 3;
    tag[from..].split('"').next().unwrap()
}

/// (text, left, right, top, bottom) of each text, by a rule of its own: 0.56 em a character, 1 em from U+2E80 on.
fn texts(svg: &str) -> Vec<(String, f64, f64, f64, f64)> {
    svg.split("<text")
        .skip(1)
        .map(|part| {
            let (tag, rest) = part.split_once('>').unwrap();
            let text = rest.split("</text>").next().unwrap().trim();
            let text =
                text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
            let text = text.replace("&amp;", "&");
            let size: f64 = attribute(tag, "font-size").parse().unwrap();
            let (x, y): (f64, f64) =
                (attribute(tag, "x").parse().unwrap(), attribute(tag, "y").parse().unwrap());
            let width: f64 = text.chars().map(|c| if c >= '\u{2e80}' { size } else { size * 0.56 }).sum();
            let left = match attribute(tag, "text-anchor") {
                "start" => x,
                "middle" => x - width / 2.0,
                _ => x - width,
            };
            let top = match attribute(tag, "dy") {
                "0.76em" => y,
                "0.5ex" => y - size / 2.0,
                _ => y - size,
            };
            (text, left, left + width, top, top + size)
        })
        .collect()
}

#[test]
fn no_text_leaves_its_figure_or_covers_another() {
    for (name, svg) in samples() {
        let all = texts(&svg);
        assert!(all.len() > 3, "{name}: {} texts found", all.len());
        let (width, height): (f64, f64) = {
            let tag = svg.split('>').next().unwrap();
            (attribute(tag, "width").parse().unwrap(), attribute(tag, "height").parse().unwrap())
        };
        for (i, (text, left, right, top, bottom)) in all.iter().enumerate() {
            assert!(
                *left >= 0.0 && *right <= width && *top >= 0.0 && *bottom <= height,
                "{name}: `{text}` spans {left}–{right} × {top}–{bottom}"
            );
            for (other, l, r, t, b) in &all[i + 1..] {
                let apart = right <= l || r <= left || bottom <= t || b <= top;
                assert!(apart, "{name}: `{text}` and `{other}` overlap");
            }
        }
    }
}

#[test]
fn figures_follow_the_page_and_speak_to_screen_readers() {
    for (name, svg) in samples() {
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\""), "{name}");
        assert!(svg.contains("currentColor") && !svg.contains("\"#000000\""), "{name}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
        assert!(!svg.contains("<b>"), "{name}: markup from a label");
    }
}

#[test]
fn bars_are_as_high_as_their_values() {
    let svg = GroupedBars::new("t")
        .y_range(0.0, 1.0)
        .categories(["a", "b"])
        .series("s", [Bar::value(0.25), Bar::value(0.5)])
        .svg()
        .unwrap();
    let heights: Vec<f64> = svg
        .split("<rect")
        .skip(1)
        .filter(|r| r.contains("#0072B2"))
        .map(|r| attribute(r, "height").parse().unwrap())
        .collect();
    assert_eq!(heights.len(), 2);
    // Whole pixels: each end may be half a pixel off.
    assert!((heights[1] - 2.0 * heights[0]).abs() <= 2.0 && heights[0] > 40.0, "{heights:?}");
}

#[test]
fn a_figure_that_cannot_be_drawn_says_why() {
    let empty = LineChart::new("Loss").line("x", [(f64::NAN, 1.0)]).svg().unwrap_err().to_string();
    assert!(empty.contains("figure `Loss`: there is no finite value"), "{empty}");
    let ragged = GroupedBars::new("F")
        .categories(["a", "b"])
        .series("s", [Bar::value(1.0)])
        .svg()
        .unwrap_err()
        .to_string();
    assert!(ragged.contains("`s` has 1 values for 2 categories"), "{ragged}");
    assert!(StackedBars::new("F").categories(["a"]).part("p", [-1.0]).svg().is_err());
    assert!(HeatMap::new("H", vec![vec![1.0], vec![]]).svg().is_err());
    assert!(HeatMap::new("H", vec![]).svg().is_err());
    assert!(LineChart::new("L").line("l", [(0.0, 0.0), (1.0, 1.0)]).size(80, 60).svg().is_err());
}

#[test]
fn a_page_is_whole_and_holds_no_foreign_markup() {
    let evil = "<script>alert('x')</script>";
    let mut table = Table::new(["text", "f1"]).caption(evil);
    table.push([evil, "0.5"]).unwrap();
    let mut page = Page::new(evil)
        .lead(evil)
        .section(Section::new(evil).paragraph(evil).table(&table).details(evil, |s| s.paragraph(evil)))
        .section(Section::new("Figures"))
        .section(samples().into_iter().fold(Section::new("Samples"), |s, (name, svg)| s.figure(svg, name)))
        .provenance(Provenance::new(evil).model("nano", "0123").option("seed", 7));
    page = page.section(Section::new("Last").paragraph("end"));
    let html = page.html();
    assert!(!html.contains("<script"), "markup from a text");
    for wanted in [
        "<!DOCTYPE html>",
        "lang=\"en\"",
        "<main",
        "<nav",
        "prefers-color-scheme:dark",
        "@media print",
        "0123",
    ] {
        assert!(html.contains(wanted), "{wanted}");
    }
    for tag in ["section", "table", "figure", "details", "svg", "div", "dl"] {
        let (opened, closed) =
            (html.matches(&format!("<{tag}")).count(), html.matches(&format!("</{tag}>")).count());
        assert_eq!(opened, closed, "{tag}");
    }
    // Nothing is fetched: the only address is SVG's name.
    assert_eq!(
        html.matches("http").count(),
        html.matches("http://www.w3.org/2000/svg").count() + 1,
        "http-equiv"
    );

    let folder = tempfile::tempdir().unwrap();
    let keep = std::env::var("CLUESCOPE_FIGURES").map_or(folder.path().to_path_buf(), Into::into);
    page.write(keep.join("samples.html")).unwrap();
    assert_eq!(std::fs::read_to_string(keep.join("samples.html")).unwrap(), html);
}

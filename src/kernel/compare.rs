//! Whether a notebook shows the same as when its outputs were written. How closely is said by a tag
//! of each cell:
//!
//! | tag | what must hold |
//! |---|---|
//! | `exact`, or none | all is the same |
//! | `tolerance` or `tolerance=0.01` | the words are the same, each number within this share of the old one (0.001 without a value), or this far from it; coordinates in pictures within this share of 1,000 pixels |
//! | `interval` | the words are the same, and where the old output says `0.42 [0.38, 0.46]`, the new number lies between or no further outside than the interval is wide (0.05 at least); other numbers and pictures are free |
//! | `kind` | the outputs are of the same kinds; for words of a model that was trained in the notebook |
//!
//! What training ends in differs a little between processors, whose arithmetic rounds differently. An interval over people, or
//! over a few seeds, does not promise to hold that, least of all one of no width around a 0.
//!
//! Standard error, where times go, and progress bars, which appear or not with the machine's speed,
//! are not compared.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::headless::{has_tag, joined};
use crate::error::{Error, Result};
use crate::notebook::PROGRESS_CLASS;

/// Share that numbers may differ by under a `tolerance` without a value.
const TOLERANCE: f64 = 1e-3;
/// Characters shown around a difference.
const AROUND: usize = 120;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Demand {
    Exact,
    Tolerance(f64),
    Interval,
    Kind,
}

/// Something a reader sees: what it is, and its text.
type Seen = (String, String);

/// Compares the outputs of all cells.
///
/// # Errors
/// [`Error::Stopped`] with the first difference of each cell; [`Error::Format`] for a tag that is not understood.
pub(super) fn compare(before: &Value, after: &Value, path: &Path) -> Result<()> {
    let cells = |notebook: &Value| -> Vec<Value> {
        let cells = notebook["cells"].as_array().into_iter().flatten();
        cells.filter(|c| c["cell_type"] == "code" && !has_tag(c, "injected-parameters")).cloned().collect()
    };
    let mut differences = Vec::new();
    for (index, (old, new)) in cells(before).iter().zip(cells(after)).enumerate() {
        let place = format!("code cell {}", index + 1);
        let demand = demand(old).map_err(|tag| {
            Error::format(
                path,
                &place,
                format!("the tag `{tag}` is none of: exact, tolerance, tolerance=NUMBER, interval, kind"),
            )
        })?;
        differences.extend(
            difference(&seen(old), &seen(&new), demand)
                .map(|what| format!("{}: {place} shows something else now: {what}", path.display())),
        );
    }
    if differences.is_empty() { Ok(()) } else { Err(Error::Stopped(differences.join("\n"))) }
}

fn demand(cell: &Value) -> std::result::Result<Demand, String> {
    let tags = cell["metadata"]["tags"].as_array().into_iter().flatten().filter_map(|tag| tag.as_str());
    let mut demand = Demand::Exact;
    for tag in tags {
        demand = match tag.split_once('=').unwrap_or((tag, "")) {
            ("exact", "") => Demand::Exact,
            ("interval", "") => Demand::Interval,
            ("kind", "") => Demand::Kind,
            ("tolerance", "") => Demand::Tolerance(TOLERANCE),
            ("tolerance", value) => match value.parse() {
                Ok(share) if (0.0..1.0).contains(&share) => Demand::Tolerance(share),
                _ => return Err(tag.to_owned()),
            },
            ("exact" | "interval" | "kind", _) => return Err(tag.to_owned()),
            // Other tags have other meanings.
            _ => demand,
        };
    }
    Ok(demand)
}

fn seen(cell: &Value) -> Vec<Seen> {
    let mut all = Vec::new();
    for output in cell["outputs"].as_array().into_iter().flatten() {
        match output["output_type"].as_str() {
            Some("stream") if output["name"] == "stderr" => {}
            Some("stream") => all.push(("printed text".to_owned(), joined(&output["text"]))),
            Some("error") => all.push((
                "error".to_owned(),
                format!("{}: {}", joined(&output["ename"]), joined(&output["evalue"])),
            )),
            _ => {
                let bundle = || output["data"].as_object().into_iter().flatten();
                if bundle().any(|(_, content)| joined(content).contains(PROGRESS_CLASS)) {
                    continue;
                }
                all.extend(bundle().map(|(mime, content)| {
                    let text = match content {
                        Value::String(_) | Value::Array(_) => joined(content),
                        other => other.to_string(),
                    };
                    (mime.clone(), text)
                }));
            }
        }
    }
    all
}

/// The first difference in words; none when the demand is met.
fn difference(old: &[Seen], new: &[Seen], demand: Demand) -> Option<String> {
    for (index, (kind, text)) in old.iter().enumerate() {
        let Some((new_kind, new_text)) = new.get(index) else {
            return Some(format!("{kind} is missing: {}", excerpt(text, 0)));
        };
        if kind != new_kind {
            return Some(format!("{new_kind} instead of {kind}: {}", excerpt(new_text, 0)));
        }
        let found = match demand {
            Demand::Kind => None,
            Demand::Exact => first_unequal(text, new_text).map(|at| (at, at, String::new())),
            Demand::Tolerance(share) => numbers_differ(text, new_text, |old, new, _, in_picture| {
                let most = share * if in_picture { 1000.0 } else { old.abs().max(new.abs()).max(1.0) };
                ((old - new).abs() > most).then(|| format!("{new} is more than {share} from {old}; "))
            }),
            Demand::Interval => {
                let (text, new_text) = (without_pictures(text), without_pictures(new_text));
                let found = numbers_differ(&text, &new_text, |_, new, after, _| outside(new, after));
                if let Some((at, new_at, why)) = found {
                    return Some(report(kind, &text, &new_text, at, new_at, &why));
                }
                None
            }
        };
        if let Some((at, new_at, why)) = found {
            return Some(report(kind, text, new_text, at, new_at, &why));
        }
    }
    new.get(old.len()).map(|(kind, text)| format!("{kind} is new: {}", excerpt(text, 0)))
}

fn report(kind: &str, old: &str, new: &str, at: usize, new_at: usize, why: &str) -> String {
    format!("{why}{kind}\n--- in the file\n{}\n--- now\n{}", excerpt(old, at), excerpt(new, new_at))
}

fn excerpt(text: &str, at: usize) -> String {
    let from = text.floor_char_boundary(at.saturating_sub(AROUND / 2));
    let to = text.ceil_char_boundary((at + AROUND).min(text.len()));
    let dots = |cut: bool| if cut { "\u{2026}" } else { "" };
    format!("{}{}{}", dots(from > 0), &text[from..to], dots(to < text.len()))
}

fn first_unequal(old: &str, new: &str) -> Option<usize> {
    let same = old.bytes().zip(new.bytes()).take_while(|(a, b)| a == b).count();
    (same < old.len().max(new.len())).then_some(same)
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    // A constant pattern; the tests run it.
    Regex::new(r"[-\u{2212}]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?").expect("a valid pattern")
});
static INTERVAL: LazyLock<Regex> = LazyLock::new(|| {
    // As above.
    Regex::new(r"^ ?\[([-\u{2212}]?[0-9.]+), ?([-\u{2212}]?[0-9.]+)\]").expect("a valid pattern")
});
static PICTURE: LazyLock<Regex> =
    // As above.
    LazyLock::new(|| Regex::new(r"(?s)<svg.*?</svg>").expect("a valid pattern"));

fn value(text: &str) -> f64 {
    text.replace('\u{2212}', "-").parse().unwrap_or(f64::NAN)
}

fn without_pictures(text: &str) -> String {
    PICTURE.replace_all(text, "<svg/>").into_owned()
}

/// Byte places in both texts of the first difference of words, or of numbers that `differ`: it gets the old
/// number, the new one, the old text behind it, and whether it stands in a picture.
fn numbers_differ(
    old: &str,
    new: &str,
    differ: impl Fn(f64, f64, &str, bool) -> Option<String>,
) -> Option<(usize, usize, String)> {
    let pictures: Vec<Range<usize>> = PICTURE.find_iter(old).map(|m| m.range()).collect();
    let (mut at, mut new_at) = (0, 0);
    let mut numbers = NUMBER.find_iter(new);
    let words = |at: usize, new_at: usize, a: &str, b: &str| {
        first_unequal(a, b).map(|same| (at + same, new_at + same, String::new()))
    };
    for number in NUMBER.find_iter(old) {
        let Some(other) = numbers.next() else {
            return words(at, new_at, &old[at..], &new[new_at..]);
        };
        let between = words(at, new_at, &old[at..number.start()], &new[new_at..other.start()]);
        if between.is_some() {
            return between;
        }
        let in_picture = pictures.iter().any(|picture| picture.contains(&number.start()));
        let why = differ(value(number.as_str()), value(other.as_str()), &old[number.end()..], in_picture);
        if let Some(why) = why {
            return Some((number.start(), other.start(), why));
        }
        (at, new_at) = (number.end(), other.end());
    }
    words(at, new_at, &old[at..], &new[new_at..])
}

/// Least distance from an interval that counts as outside.
const SLACK: f64 = 0.05;

/// Whether `new` lies outside the interval that stands behind the old number, by more than its width.
fn outside(new: f64, after: &str) -> Option<String> {
    let found = INTERVAL.captures(after)?;
    let (low, high) = (value(&found[1]), value(&found[2]));
    let slack = (high - low).max(SLACK);
    // What is no number lies nowhere.
    (!(low - slack..=high + slack).contains(&new)).then(|| format!("{new} lies outside [{low}, {high}]; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn notebook(tags: &[&str], mime: &str, out: &str) -> Value {
        json!({ "cells": [
            { "cell_type": "markdown", "source": "x" },
            { "cell_type": "code", "source": "1", "metadata": { "tags": tags }, "outputs": [
                { "output_type": "stream", "name": "stderr", "text": out },
                { "output_type": "display_data", "data": { "text/html": [format!("<div class=\"{PROGRESS_CLASS}\">{out}")] } },
                { "output_type": "execute_result", "data": { mime: out } }
            ] }
        ] })
    }

    fn check(tags: &[&str], old: &str, new: &str) -> Result<()> {
        compare(&notebook(tags, "text/html", old), &notebook(tags, "text/html", new), Path::new("a.ipynb"))
    }

    #[test]
    fn each_tag_asks_what_it_says() {
        for (tags, old, new, same) in [
            (&["exact"][..], "loss 1.25", "loss 1.25", true),
            (&[], "loss 1.25", "loss 1.26", false),
            (&["tolerance"], "loss 1.25, 7 steps", "loss 1.2501, 7 steps", true),
            (&["tolerance"], "loss 1.25, 7 steps", "loss 1.26, 7 steps", false),
            (&["tolerance=0.02"], "loss 1.25", "loss 1.26", true),
            (&["tolerance=0.02"], "loss 1.25", "gain 1.25", false),
            (&["tolerance=0.02"], "a 1 b", "a 1 b 2", false),
            (&["tolerance=0.02"], "a 1 b 2", "a 1 b", false),
            (
                &["tolerance=0.01"],
                "<svg><path d=\"M 10 20\"/></svg>",
                "<svg><path d=\"M 15 20\"/></svg>",
                true,
            ),
            (
                &["tolerance=0.01"],
                "<svg><path d=\"M 10 20\"/></svg>",
                "<svg><path d=\"M 25 20\"/></svg>",
                false,
            ),
            (&["interval"], "EM 0.42 [0.38, 0.46] of 9", "EM 0.39 [0.35, 0.44] of 8", true),
            (&["interval"], "EM 0.42 [0.38, 0.46]", "EM 0.47 [0.35, 0.48]", true),
            (&["interval"], "EM 0.42 [0.38, 0.46]", "EM 0.55 [0.45, 0.58]", false),
            (&["interval"], "EM 0.00 [0.00, 0.00]", "EM 0.02 [0.00, 0.05]", true),
            (&["interval"], "EM 0.00 [0.00, 0.00]", "EM 0.06 [0.00, 0.09]", false),
            (&["kind"], "Lviv, Ukraine", "Lyon", true),
            (&["interval"], "EM 0.42 [0.38, 0.46]", "EM NaN [0.38, 0.46]", false),
            (&["interval"], "<svg>1</svg> EM 1", "<svg>many</svg> EM 2", true),
            (&["interval"], "EM 1", "F1 1", false),
        ] {
            let outcome = check(tags, old, new);
            assert_eq!(outcome.is_ok(), same, "{tags:?} {old} / {new}: {outcome:?}");
        }
    }

    #[test]
    fn the_message_shows_both_sides_of_the_difference() {
        let error = check(&["interval"], "EM 0.42 [0.38, 0.46]", "EM 0.57 [0.45, 0.58]").unwrap_err();
        let message = error.to_string();
        for part in
            ["code cell 1", "0.57 lies outside [0.38, 0.46]", "in the file", "EM 0.42", "EM 0.57 [0.45"]
        {
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = check(&["tolerance=2"], "1", "1").unwrap_err().to_string();
        assert!(message.contains("`tolerance=2` is none of"), "{message}");
    }

    #[test]
    fn kinds_of_output_and_their_number_count() {
        let path = Path::new("a.ipynb");
        let (html, plain) = (notebook(&[], "text/html", "1"), notebook(&[], "text/plain", "1"));
        assert!(
            compare(&html, &plain, path).unwrap_err().to_string().contains("text/plain instead of text/html")
        );
        let mut less = html.clone();
        less["cells"][1]["outputs"].as_array_mut().unwrap().pop();
        assert!(compare(&html, &less, path).unwrap_err().to_string().contains("is missing"));
        assert!(compare(&less, &html, path).unwrap_err().to_string().contains("is new"));
        // Lines of one text, and one text.
        let mut lines = html.clone();
        lines["cells"][1]["outputs"][2]["data"]["text/html"] = json!(["1"]);
        assert!(compare(&html, &lines, path).is_ok());
    }
}

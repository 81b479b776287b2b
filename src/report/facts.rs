//! Texts with their facts marked: what a corpus looks like.

use super::html::escape;
use super::picture::STYLE;
use crate::corpus::{Corpus, Document};
use crate::text::tame;

/// The texts of a corpus, ready to be shown.
#[derive(Debug, Clone)]
pub struct FactsPicture {
    documents: Vec<Document>,
    total: usize,
    questions: usize,
}

impl FactsPicture {
    /// All texts of `corpus`.
    pub fn of(corpus: &Corpus) -> Self {
        FactsPicture {
            documents: corpus.documents.clone(),
            total: corpus.documents.len(),
            questions: corpus.questions.len(),
        }
    }

    /// Keeps the first `count` texts and says how many there are.
    pub fn first(mut self, count: usize) -> Self {
        self.documents.truncate(count);
        self
    }

    fn summary(&self) -> String {
        format!("{} texts, {} questions; {} shown", self.total, self.questions, self.documents.len())
    }

    /// A part of a page, with its own style; needs no network.
    pub fn fragment(&self) -> String {
        let mut out = format!("<div class=\"cs\"><style>{STYLE}{MARKS}</style>\n<p>{}</p>\n", self.summary());
        for document in &self.documents {
            out.push_str(&format!("<h2>{}</h2>\n<div class=\"tx\">", escape(&tame(&document.id))));
            for (text, field) in parts(document) {
                match field {
                    Some(field) => {
                        out.push_str(&format!(
                            "<mark>{}<small> {}</small></mark>",
                            escape(&tame(&text)),
                            escape(&tame(field))
                        ));
                    }
                    None => out.push_str(&escape(&tame(&text))),
                }
            }
            out.push_str("</div>\n");
        }
        out.push_str("</div>\n");
        out
    }

    /// The texts with `[field: fact]` in brackets; control characters are shown by their number.
    pub fn terminal(&self) -> String {
        let mut out = format!("{}\n", self.summary());
        for document in &self.documents {
            out.push_str(&format!("\n{}\n", tame(&document.id)));
            for (text, field) in parts(document) {
                match field {
                    Some(field) => out.push_str(&format!("[{}: {}]", tame(field), tame(&text))),
                    None => out.push_str(&tame(&text)),
                }
            }
            out.push('\n');
        }
        out
    }
}

/// The text cut at its facts; a fact inside another is not cut out again.
fn parts(document: &Document) -> Vec<(String, Option<&str>)> {
    let characters: Vec<char> = document.text.chars().collect();
    let slice = |from: usize, to: usize| characters[from..to].iter().collect::<String>();
    let mut spans: Vec<_> =
        document.spans.iter().filter(|s| s.end <= characters.len() && s.start < s.end).collect();
    spans.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
    let mut parts = Vec::new();
    let mut at = 0;
    for span in spans {
        if span.start < at {
            continue;
        }
        parts.push((slice(at, span.start), None));
        parts.push((slice(span.start, span.end), Some(span.field.as_str())));
        at = span.end;
    }
    parts.push((slice(at, characters.len()), None));
    parts
}

const MARKS: &str = "
.cs mark{color:inherit;background:color-mix(in srgb,var(--neg) 45%,transparent);border-radius:3px;padding:.1em .2em}
.cs mark small{color:var(--soft);font-size:.72em}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Span;

    #[test]
    fn overlapping_and_foreign_spans_do_not_break_the_text() {
        let span = |field: &str, start, end| Span { field: field.into(), start, end };
        let spans = vec![span("x", 5, 8), span("y", 0, 2), span("z", 1, 4), span("far", 7, 99)];
        let document = Document::new("<a>", "Ål & <b>", spans);
        let corpus = Corpus { documents: vec![document], ..Corpus::default() };
        let html = FactsPicture::of(&corpus).fragment();
        assert!(
            html.contains("<mark>Ål<small> y</small></mark> &amp; <mark>&lt;b&gt;<small> x</small></mark>"),
            "{html}"
        );
        assert_eq!(FactsPicture::of(&corpus).terminal().lines().last(), Some("[y: Ål] & [x: <b>]"));
    }
}

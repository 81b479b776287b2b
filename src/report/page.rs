//! One self-contained HTML page: no network, no script but that of pictures on it, light and dark, readable on paper and by a screen reader.

use std::path::Path;

use super::{Table, escape};
use crate::error::Result;
use crate::files::write_text;
use crate::provenance::Provenance;

/// A page of sections with where its numbers came from at the foot.
///
/// ```
/// use cluescope::report::{Page, Section};
/// let html = Page::new("Results").section(Section::new("Scores").paragraph("5 < 6")).html();
/// assert!(html.starts_with("<!DOCTYPE html>") && html.contains("<p>5 &lt; 6</p>"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    title: String,
    lead: String,
    sections: Vec<Section>,
    provenance: Option<Provenance>,
}

/// A heading and what stands under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    title: String,
    body: String,
    /// Whether a picture on it brings a script.
    scripted: bool,
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Self {
        Section { title: title.into(), body: String::new(), scripted: false }
    }

    /// Adds a paragraph of plain text.
    pub fn paragraph(mut self, text: impl AsRef<str>) -> Self {
        self.body += &format!("<p>{}</p>\n", escape(text.as_ref()));
        self
    }

    /// Adds a table.
    pub fn table(mut self, table: &Table) -> Self {
        self.body += &table.html();
        self
    }

    /// Adds a figure; `svg` is trusted, `caption` is plain text.
    pub fn figure(mut self, svg: impl AsRef<str>, caption: impl AsRef<str>) -> Self {
        let caption = match caption.as_ref() {
            "" => String::new(),
            text => format!("<figcaption>{}</figcaption>", escape(text)),
        };
        self.body += &format!("<figure>{}{caption}</figure>\n", svg.as_ref());
        self
    }

    /// Adds what `fill` makes, folded away under `summary`.
    pub fn details(mut self, summary: impl AsRef<str>, fill: impl FnOnce(Section) -> Section) -> Self {
        let inside = fill(Section::new(""));
        self.scripted |= inside.scripted;
        self.body +=
            &format!("<details><summary>{}</summary>\n{}</details>\n", escape(summary.as_ref()), inside.body);
        self
    }

    /// Adds the fragment of a picture, such as [`TextPicture::fragment`](super::TextPicture::fragment), and lets the script
    /// in it run: without it a picture has the browser's own tooltips and no keys.
    pub fn picture(mut self, fragment: impl AsRef<str>) -> Self {
        self.scripted = true;
        self.raw(fragment)
    }

    /// Adds HTML as it is: only for markup made by this library, whose texts are escaped.
    pub fn raw(mut self, html: impl AsRef<str>) -> Self {
        self.body += html.as_ref();
        self
    }
}

impl Page {
    /// A page without sections as yet.
    pub fn new(title: impl Into<String>) -> Self {
        Page { title: title.into(), lead: String::new(), sections: Vec::new(), provenance: None }
    }

    /// A sentence or two below the title.
    pub fn lead(mut self, text: impl Into<String>) -> Self {
        self.lead = text.into();
        self
    }

    /// Adds a section.
    pub fn section(mut self, section: Section) -> Self {
        self.sections.push(section);
        self
    }

    /// Command, versions, models and options, shown at the foot.
    pub fn provenance(mut self, provenance: Provenance) -> Self {
        self.provenance = Some(provenance);
        self
    }

    /// The whole document.
    pub fn html(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:{script}\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <a class=\"skip\" href=\"#main\">Skip to content</a>\n<header><h1>{title}</h1>\n",
            title = escape(&self.title),
            script =
                if self.sections.iter().any(|s| s.scripted) { "; script-src 'unsafe-inline'" } else { "" }
        );
        if !self.lead.is_empty() {
            out += &format!("<p class=\"lead\">{}</p>\n", escape(&self.lead));
        }
        out += "</header>\n";
        if self.sections.len() > 2 {
            out += "<nav aria-label=\"Contents\"><ul>\n";
            for (i, section) in self.sections.iter().enumerate() {
                out += &format!("<li><a href=\"#s{}\">{}</a></li>\n", i + 1, escape(&section.title));
            }
            out += "</ul></nav>\n";
        }
        out += "<main id=\"main\" tabindex=\"-1\">\n";
        for (i, section) in self.sections.iter().enumerate() {
            let id = i + 1;
            out += &format!(
                "<section aria-labelledby=\"s{id}\">\n<h2 id=\"s{id}\">{}</h2>\n{}</section>\n",
                escape(&section.title),
                section.body
            );
        }
        out += "</main>\n";
        if let Some(provenance) = &self.provenance {
            out += &footer(provenance);
        }
        out += "</body>\n</html>\n";
        out
    }

    /// Writes the document to `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) naming `path`.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        write_text(path, &self.html())
    }
}

fn footer(provenance: &Provenance) -> String {
    let rows: String = provenance
        .lines()
        .iter()
        .map(|(name, value)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value)))
        .collect();
    format!("<footer>\n<h2>Where this came from</h2>\n<dl>\n{rows}</dl>\n</footer>\n")
}

const STYLE: &str = "
:root{color-scheme:light dark;--text:#1b1b1b;--soft:#555;--ground:#fff;--raised:#f3f4f6;--line:#c9ccd1;--link:#0b57a4}
@media (prefers-color-scheme:dark){:root{--text:#e6e6e6;--soft:#a9adb3;--ground:#16181c;--raised:#22252b;--line:#454a52;--link:#7db8f0}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem 1.25rem 3rem;max-width:72rem;background:var(--ground);color:var(--text);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif}
h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0 .5rem}
h2{font-size:1.25rem;margin:2.2rem 0 .6rem}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--link);outline-offset:2px}
main:focus{outline:none}
.skip{position:absolute;left:-100vw}
.skip:focus{left:1rem;top:.5rem;background:var(--ground);padding:.4rem .8rem}
.lead{color:var(--soft);max-width:46rem;margin-top:0}
p{max-width:46rem}
nav ul{list-style:none;padding:0;margin:1rem 0;display:flex;flex-wrap:wrap;gap:.25rem 1.25rem}
.scroll{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.92rem}
caption{text-align:left;color:var(--soft);padding-bottom:.4rem}
th,td{padding:.32rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--line);vertical-align:bottom}
tbody th{font-weight:normal;max-width:24rem}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
tbody tr:hover{background:var(--raised)}
figure{margin:1.4rem 0;overflow-x:auto}
figure svg{display:block;min-width:36rem}
figcaption{color:var(--soft);font-size:.92rem;max-width:46rem;margin-top:.3rem}
details{margin:.8rem 0;border:1px solid var(--line);border-radius:4px;padding:.4rem .8rem}
summary{cursor:pointer}
pre{overflow-x:auto;background:var(--raised);padding:.7rem .9rem;border-radius:4px;font-size:.85rem}
footer{margin-top:3rem;border-top:1px solid var(--line);color:var(--soft);font-size:.9rem}
footer h2{font-size:1rem;margin:1rem 0 .4rem}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.1rem 1rem;margin:0}
dt{font-weight:600}
dd{margin:0;overflow-wrap:anywhere}
@media (max-width:36rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{:root{--text:#000;--soft:#333;--ground:#fff;--raised:#fff;--line:#888}body{max-width:none;padding:0;font-size:10pt}nav,.skip{display:none}figure svg{min-width:0}figure,tr{break-inside:avoid}h2{break-after:avoid}.scroll{overflow:visible!important}}
";

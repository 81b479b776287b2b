//! Where rich output goes.

use std::io::Write;
use std::sync::{Arc, PoisonError, RwLock};

/// One value in several forms; a front end shows the richest it knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rich {
    /// MIME type and content, plain text first.
    pub forms: Vec<(String, String)>,
}

impl Rich {
    /// HTML; it must be whole by itself and need no network.
    pub fn html(html: impl Into<String>) -> Self {
        Rich { forms: vec![("text/html".into(), html.into())] }
    }

    /// A picture and its title, for front ends without pictures and for JupyterLab until the notebook is run or trusted.
    /// Code hosts show pictures and leave those within HTML out. As a picture it knows nothing of the page's
    /// colours, so its ground is white and its ink black.
    pub fn svg(svg: &str, title: &str) -> Self {
        let svg = svg.replacen("style=\"", "style=\"background:#fff;color:#000;", 1);
        Rich { forms: vec![("image/svg+xml".into(), svg)] }.text(format!("[picture: {title}]"))
    }

    /// Adds plain text for front ends without HTML.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.forms.insert(0, ("text/plain".into(), text.into()));
        self
    }
}

/// A notebook front end.
pub trait Screen: Send + Sync {
    /// Shows a value below the running cell; with an `id`, [`Screen::update`] may replace it.
    fn show(&self, rich: &Rich, id: Option<&str>);

    /// Replaces what was shown under `id`.
    fn update(&self, rich: &Rich, id: &str);
}

static SCREEN: RwLock<Option<Arc<dyn Screen>>> = RwLock::new(None);

/// Replaces the place where rich output goes, for the whole process. Without this call it is standard
/// output, in the form the evcxr kernel understands.
pub fn set_screen(screen: Arc<dyn Screen>) {
    *SCREEN.write().unwrap_or_else(PoisonError::into_inner) = Some(screen);
}

/// Shows a value below the running cell.
pub fn show(rich: &Rich) {
    let set = SCREEN.read().unwrap_or_else(PoisonError::into_inner).clone();
    set.unwrap_or_else(|| Arc::new(Evcxr)).show(rich, None);
}

/// The evcxr kernel: blocks between marker lines on standard output.
struct Evcxr;

impl Screen for Evcxr {
    fn show(&self, rich: &Rich, _id: Option<&str>) {
        let mut out = std::io::stdout().lock();
        // A front end that went away is no reason to fail.
        let _ = out.write_all(blocks(rich).as_bytes()).and_then(|()| out.flush());
    }

    fn update(&self, rich: &Rich, _id: &str) {
        // This kernel can only add.
        self.show(rich, None);
    }
}

const END: &str = "EVCXR_END_CONTENT";

fn blocks(rich: &Rich) -> String {
    let mut out = String::new();
    for (mime, content) in &rich.forms {
        // A line of the content that is the end mark would end it early, and a carriage return at a line's
        // end is dropped by the reader.
        let lines: Vec<String> = content
            .split('\n')
            .map(|line| if line.trim_end_matches('\r') == END { format!("{line} ") } else { line.into() })
            .collect();
        out.push_str(&format!("EVCXR_BEGIN_CONTENT {mime}\n{}\n{END}\n", lines.join("\n")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What evcxr makes of the lines: MIME type and content.
    fn read(text: &str) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mime = line.strip_prefix("EVCXR_BEGIN_CONTENT ").unwrap();
            let content: Vec<&str> = lines.by_ref().take_while(|line| *line != END).collect();
            found.push((mime.into(), content.join("\n")));
        }
        found
    }

    #[test]
    fn content_arrives_even_when_it_holds_the_end_mark() {
        let rich = Rich::html("<pre>\nEVCXR_END_CONTENT\nafter</pre>").text("EVCXR_END_CONTENT");
        let found = read(&blocks(&rich));
        assert_eq!(found[0], ("text/plain".into(), "EVCXR_END_CONTENT ".into()));
        assert_eq!(found[1], ("text/html".into(), "<pre>\nEVCXR_END_CONTENT \nafter</pre>".into()));
    }

    #[test]
    fn a_picture_has_a_ground_of_its_own() {
        let chart = crate::report::LineChart::new("Loss").line("l", [(0.0, 1.0), (1.0, 0.5)]);
        let rich = Rich::svg(&chart.svg().unwrap(), chart.title());
        assert_eq!(rich.forms[0], ("text/plain".into(), "[picture: Loss]".into()));
        let (mime, svg) = &rich.forms[1];
        assert!(mime == "image/svg+xml" && svg.starts_with("<svg") && svg.contains("xmlns="), "{svg}");
        let head = svg.split('>').next().unwrap();
        assert!(head.contains("style=\"background:#fff;color:#000;max-width"), "{head}");
    }
}

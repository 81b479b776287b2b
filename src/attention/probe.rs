//! The token just before a fact, and what it looks at (paper, section 3).

use crate::corpus::Span;

/// The last token with a non-empty span that ends at or before character `start`.
///
/// ```
/// use cluescope::attention::probe_position;
/// // <start> Ann| was| born| in| Rome
/// let offsets = [(0, 0), (0, 3), (3, 7), (7, 12), (12, 15), (15, 20)];
/// assert_eq!(probe_position(&offsets, 16), Some(4));
/// assert_eq!(probe_position(&offsets, 0), None);
/// ```
pub fn probe_position(offsets: &[(usize, usize)], start: usize) -> Option<usize> {
    offsets.iter().rposition(|&(from, to)| to > from && to <= start)
}

/// For each field wanted: its name and its probe's position, fields in order of their first span.
pub(crate) fn probes_of(
    offsets: &[(usize, usize)],
    spans: &[Span],
    wanted: impl Fn(&str) -> bool,
) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for span in spans {
        if !wanted(&span.field) || seen.contains(&span.field.as_str()) {
            continue;
        }
        // The first span decides, even where nothing precedes it.
        seen.push(&span.field);
        if let Some(position) = probe_position(offsets, span.start) {
            found.push((span.field.clone(), position));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_span_of_a_field_decides() {
        let span = |field: &str, start, end| Span { field: field.into(), start, end };
        let offsets = [(0, 0), (0, 3), (3, 7), (7, 12)];
        let spans = [span("name", 0, 3), span("verb", 4, 7), span("name", 8, 12), span("verb", 8, 12)];
        assert_eq!(probes_of(&offsets, &spans, |_| true), [("verb".to_string(), 1)]);
        assert!(probes_of(&offsets, &spans, |f| f == "name").is_empty());
    }
}

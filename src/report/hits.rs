//! Hits of probes as a table.

use super::Table;
use crate::contrast::{ProbeHits, Tally};

/// How often each probe notices the fact looked for, among the `top` highest weights. Where it matters whether a
/// text's first token may be a hit, each probe has a second row in which it may.
///
/// ```
/// use cluescope::report::hits_table;
/// # fn example(contrast: &cluescope::contrast::Contrast) {
/// println!("{}", hits_table(&contrast.probe_hits("name", 10), "name", 10));
/// # }
/// ```
pub fn hits_table(hits: &[ProbeHits], kind: &str, top: usize) -> Table {
    let strict = |h: &ProbeHits| Tally {
        texts: h.texts,
        small: h.small,
        large: h.large,
        difference: h.difference,
        chance: h.chance,
    };
    let differ = hits.iter().any(|h| strict(h) != h.with_first);
    let mut rows = Vec::new();
    for hit in hits {
        let mut push = |first: &str, tally: &Tally| {
            let mut row = vec![hit.field.clone()];
            if differ {
                row.push(first.into());
            }
            row.extend([tally.texts, tally.small, tally.large, tally.difference].map(|n| n.to_string()));
            row.push(format!("{:.1}", tally.chance));
            rows.push(row);
        };
        push("no hit", &strict(hit));
        if differ {
            push("may be one", &hit.with_first);
        }
    }
    let mut columns = vec!["probe"];
    if differ {
        columns.push("first token");
    }
    columns.extend(["texts", "small", "large", "difference", "by chance"]);
    Table::of(columns.into_iter().map(String::from).collect(), rows)
        .caption(format!("Texts in which a token of {kind} is among the probe's top {top}"))
}

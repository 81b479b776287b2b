//! Where the two models look, and what dropout makes of it: the paper's Figures 2, 3 and 4 as one section of a page.

use super::{PlanPicture, ProbeFigure, Section, TextPicture};
use crate::augment::Plan;
use crate::contrast::{Contrast, Row};
use crate::error::Result;

/// Texts shown token by token.
const TEXTS: usize = 3;

/// The section, which names the guide where it is not the paper's: for each probed field which tokens the models look at from the word before it (Figure 2) and which the large
/// one looks at more than the small one (Figure 3), then the first texts, coloured by the difference and by the probability with
/// which `plan` drops each token (Figure 4).
///
/// # Errors
/// When a figure cannot be drawn.
pub fn clues(contrast: &Contrast, plan: &Plan) -> Result<Section> {
    let mut fields: Vec<&String> = contrast.texts.iter().flat_map(|text| text.probe.keys()).collect();
    // As the texts tell them, the nearest to the name first.
    let place = |field: &String| {
        contrast.texts.iter().find_map(|text| Some(text.probe.get(field)?.position)).unwrap_or(usize::MAX)
    };
    fields.sort();
    fields.dedup();
    fields.sort_by_key(|field| place(field));
    let mut section = Section::new(format!("Where the two models look{}", guide_of(contrast)));
    for field in fields {
        let mut figures = Vec::new();
        for row in [Row::Small, Row::Large, Row::Difference] {
            figures.push(ProbeFigure::new(contrast, field, row)?.svg());
        }
        section = section.details(
            format!("What the word before the {field} looks at (Figures 2 and 3)"),
            |mut s| {
                for figure in figures {
                    s = s.figure(figure, "");
                }
                s
            },
        );
    }
    let texts = TextPicture::of(contrast).first(TEXTS);
    let plan = PlanPicture::of(plan).first(TEXTS);
    section = section
        .paragraph("The first texts, coloured by the large model's attention minus the small one's:")
        .picture(texts.fragment())
        .paragraph("The same texts, coloured by what dropout makes of it (Figure 4):")
        .picture(plan.fragment());
    Ok(match plan.curve() {
        Some(curve) => section.figure(curve, ""),
        None => section,
    })
}

/// The guide of a contrast for a heading; nothing for the paper's: attention received, all heads.
fn guide_of(contrast: &Contrast) -> String {
    let option = |name: &str| contrast.provenance.options.get(name).map_or("", String::as_str);
    let mut parts = Vec::new();
    if !matches!(option("guide"), "" | "received") {
        parts.push(option("guide").to_string());
    }
    for role in ["large", "small"] {
        let heads = option(&format!("heads_{role}"));
        if !matches!(heads, "" | "all") {
            parts.push(format!("{heads} of the {role} model"));
        }
    }
    if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
}

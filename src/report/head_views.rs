//! The numbers of a map of heads: each head's weights on one text, and its share of attention on one kind of token over all
//! texts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::attention::{Attended, AttendedText};
use crate::contrast::{Contrast, ContrastText};
use crate::corpus::Span;
use crate::error::{Error, Result};

/// One measure: received attention, or a probe's row.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) name: String,
    /// Weights of the text shown from token 0 on.
    pub(super) rows: Vec<Vec<f32>>,
    /// For each row the share of its attention on the chosen kind of token, mean over the texts.
    pub(super) shares: Vec<f32>,
    /// For each cell of the maps its row, and the row subtracted from it where two models are compared.
    pub(super) cells: Vec<(usize, Option<usize>)>,
}

impl View {
    /// What a cell's colour stands for.
    pub(super) fn value(&self, cell: usize) -> f32 {
        let (row, minus) = self.cells[cell];
        self.shares[row] - minus.map_or(0.0, |row| self.shares[row])
    }

    /// The largest size of any cell's value: full colour.
    pub(super) fn scale(&self) -> f32 {
        (0..self.cells.len()).map(|cell| self.value(cell).abs()).fold(f32::MIN_POSITIVE, f32::max)
    }

    /// The cell of the largest value, the first among equals.
    pub(super) fn strongest(&self) -> usize {
        let size = |cell: usize| self.value(cell).abs();
        (0..self.cells.len()).max_by(|&a, &b| size(a).total_cmp(&size(b)).then(b.cmp(&a))).unwrap_or(0)
    }

    /// The heads of one model.
    pub(super) fn of_one(name: String, texts: &[Sheet], shown: &Sheet, kind: &str) -> Self {
        let rows = shown.rows.to_vec();
        let cells = (0..rows.len()).map(|head| (head, None)).collect();
        View { name, shares: shares(texts, rows.len(), kind), rows, cells }
    }

    /// Two models of one shape: each head of the large one minus the head at the same place in the small one.
    pub(super) fn of_same_shape(name: String, large: &Model, small: &Model, kind: &str) -> Self {
        let heads = large.shown.rows.len();
        let cells = (0..heads).map(|head| (head, Some(heads + head))).collect();
        let rows = large.shown.rows.iter().chain(small.shown.rows).cloned().collect();
        let mut shares_of_both = shares(&large.texts, heads, kind);
        shares_of_both.extend(shares(&small.texts, heads, kind));
        View { name, rows, shares: shares_of_both, cells }
    }

    /// Two models of different shapes have no heads that belong together: each head of the large one minus the mean over
    /// all heads of the small one, then the mean of the large one minus each head of the small one.
    pub(super) fn of_two_shapes(name: String, large: &Model, small: &Model, kind: &str) -> Self {
        let mut view = View { name, rows: Vec::new(), shares: Vec::new(), cells: Vec::new() };
        let mut means = Vec::new();
        for model in [large, small] {
            let heads = model.shown.rows.len();
            view.rows.extend_from_slice(model.shown.rows);
            view.shares.extend(shares(&model.texts, heads, kind));
            means.push((mean_row(model.shown.rows), mean_share(&model.texts, kind)));
        }
        let (of_large, of_small) = (large.shown.rows.len(), small.shown.rows.len());
        let (mean_large, mean_small) = (of_large + of_small, of_large + of_small + 1);
        for (row, share) in means {
            view.rows.push(row);
            view.shares.push(share);
        }
        view.cells = (0..of_large)
            .map(|head| (head, Some(mean_small)))
            .chain((of_large..of_large + of_small).map(|head| (mean_large, Some(head))))
            .collect();
        view
    }
}

/// The heads' rows of one model on one text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sheet<'a> {
    offsets: &'a [(usize, usize)],
    spans: &'a [Span],
    rows: &'a [Vec<f32>],
}

/// One model of two: the text shown, and all texts.
pub(super) struct Model<'a> {
    pub(super) shown: Sheet<'a>,
    pub(super) texts: Vec<Sheet<'a>>,
}

impl<'a> Sheet<'a> {
    /// Received attention, or the row of `field`'s probe where the text has one.
    pub(super) fn of_attended(text: &'a AttendedText, field: Option<&str>) -> Option<Self> {
        let rows = match field {
            None => &text.received_by,
            Some(field) => &text.probe.get(field)?.weights_by,
        };
        Some(Sheet { offsets: &text.offsets, spans: &text.spans, rows })
    }

    fn of_contrast(text: &'a ContrastText, field: Option<&str>, large: bool) -> Option<Self> {
        let (of_large, of_small) = match field {
            None => (&text.large_by, &text.small_by),
            Some(field) => text.probe.get(field).map(|probe| (&probe.large_by, &probe.small_by))?,
        };
        let rows = if large { of_large } else { of_small };
        Some(Sheet { offsets: &text.offsets, spans: &text.spans, rows })
    }

    /// Refuses a text, read from a damaged file perhaps, without one row a head.
    pub(super) fn check(&self, id: &str, (layers, heads): (usize, usize)) -> Result<()> {
        if Some(self.rows.len()) == layers.checked_mul(heads) {
            return Ok(());
        }
        let expected =
            format!("a text with {layers} × {heads} rows of attention; it has {}", self.rows.len());
        Err(Error::option("id", id, expected))
    }

    /// All texts of a measurement.
    pub(super) fn all(attended: &'a Attended, field: Option<&str>) -> Vec<Self> {
        attended.texts.iter().filter_map(|text| Sheet::of_attended(text, field)).collect()
    }
}

impl<'a> Model<'a> {
    /// One side of a contrast; `None` when the text shown has no such probe.
    pub(super) fn of(
        contrast: &'a Contrast,
        shown: &'a ContrastText,
        field: Option<&str>,
        large: bool,
    ) -> Option<Self> {
        let texts = contrast.texts.iter().filter_map(|text| Sheet::of_contrast(text, field, large));
        Some(Model { shown: Sheet::of_contrast(shown, field, large)?, texts: texts.collect() })
    }
}

/// The share of each head's attention on tokens of `kind`, mean over the texts that have such tokens.
fn shares(texts: &[Sheet], heads: usize, kind: &str) -> Vec<f32> {
    let mut means = vec![Mean::default(); heads];
    for text in texts {
        let of_kind = of_kind(text, kind);
        for (mean, row) in means.iter_mut().zip(text.rows) {
            mean.add(row, &of_kind);
        }
    }
    means.into_iter().map(Mean::get).collect()
}

/// The same of the mean over all heads.
fn mean_share(texts: &[Sheet], kind: &str) -> f32 {
    let mut mean = Mean::default();
    for text in texts {
        mean.add(&mean_row(text.rows), &of_kind(text, kind));
    }
    mean.get()
}

fn of_kind(text: &Sheet, kind: &str) -> Vec<bool> {
    let on = |offset| text.spans.iter().any(|span| span.field == kind && span.overlaps(offset));
    text.offsets.iter().map(|&offset| on(offset)).collect()
}

fn mean_row(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0f64; rows.first().map_or(0, Vec::len)];
    for row in rows {
        sum.iter_mut().zip(row).for_each(|(sum, &weight)| *sum += f64::from(weight));
    }
    sum.into_iter().map(|sum| (sum / rows.len() as f64) as f32).collect()
}

/// A mean of shares.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    /// Adds one text's row; texts without the kind of token, and rows without weight, say nothing.
    fn add(&mut self, row: &[f32], of_kind: &[bool]) {
        let total: f64 = row.iter().map(|&weight| f64::from(weight)).sum();
        if total <= 0.0 || !of_kind.contains(&true) {
            return;
        }
        let on = row.iter().zip(of_kind).filter(|(_, of_kind)| **of_kind);
        self.sum += on.map(|(&weight, _)| f64::from(weight)).sum::<f64>() / total;
        self.count += 1;
    }

    fn get(self) -> f32 {
        (self.sum / f64::from(self.count.max(1))) as f32
    }
}

/// Steps of [`encoded`] a doubling.
const STEPS: f32 = 2048.0;

/// `row` for a page's script: two bytes a weight in base 64, low byte first. A weight of 0 is 65535, any other `w` is −2048
/// log₂ w rounded, which keeps three digits of the smallest weight as of the largest; no weight is above 1.
pub(super) fn encoded(row: &[f32]) -> String {
    let step = |weight: f32| {
        if weight > 0.0 { (-weight.log2() * STEPS).round().clamp(0.0, 65534.0) as u16 } else { u16::MAX }
    };
    STANDARD.encode(row.iter().flat_map(|&weight| step(weight).to_le_bytes()).collect::<Vec<u8>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_two_bytes_of_its_logarithm() {
        // 1, one half and nothing.
        assert_eq!(encoded(&[1.0, 0.5, 0.0]), STANDARD.encode([0, 0, 0, 8, 255, 255]));
    }

    #[test]
    fn heads_without_a_partner_are_set_against_the_other_models_mean() {
        let spans = [Span { field: "name".into(), start: 0, end: 1 }];
        let offsets = [(0, 1), (1, 2)];
        let (large, small) = ([vec![0.75, 0.25], vec![0.25, 0.75]], [vec![1.0, 0.0]]);
        fn sheet<'a>(offsets: &'a [(usize, usize)], spans: &'a [Span], rows: &'a [Vec<f32>]) -> Model<'a> {
            let shown = Sheet { offsets, spans, rows };
            Model { shown, texts: vec![shown] }
        }
        let [large, small] = [&large[..], &small[..]].map(|rows| sheet(&offsets, &spans, rows));
        let view = View::of_two_shapes("probe".into(), &large, &small, "name");
        // Large heads minus the small mean of 1; the large mean of 0.5 minus the small head.
        assert_eq!([0, 1, 2].map(|cell| view.value(cell)), [-0.25, -0.75, -0.5]);
        assert_eq!((view.strongest(), view.scale()), (1, 0.75));
        let same = View::of_same_shape("probe".into(), &large, &large, "name");
        assert_eq!((same.value(0), same.value(1)), (0.0, 0.0));
        assert_eq!(same.cells, [(0, Some(2)), (1, Some(3))]);
        assert!(large.shown.check("a", (1, 2)).is_ok());
        let message = large.shown.check("a", (2, 2)).unwrap_err().to_string();
        assert!(message.contains("2 × 2 rows of attention; it has 2"), "{message}");
    }
}

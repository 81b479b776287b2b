//! From what a model captured of a text's stretches to the text's own numbers.

use super::options::{Aggregation, Attend, Heads, Per, as_released};
use super::prepare::Prepared;
use super::window::{pool, widen, window_of_probe};
use super::{AttendedText, ProbeRow};
use crate::corpus::Document;
use crate::model::{CapturedText, Detail};

/// Layers and query heads of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
}

/// The text's numbers; `captured` holds one entry a stretch, or none where the model was not needed.
pub(crate) fn gather(
    document: &Document,
    prepared: &Prepared,
    captured: &[CapturedText],
    options: &Attend,
    shape: Shape,
) -> AttendedText {
    let detail = options.detail();
    let (received, received_by) = match options.aggregation {
        Aggregation::AsReleased => {
            let ladder = keep(&as_released(prepared.read.len()), prepared);
            let groups = match options.per {
                Per::Mean => 0,
                Per::Layer => shape.layers,
                Per::Head => shape.layers * shape.heads,
            };
            (ladder.clone(), vec![ladder; groups])
        }
        Aggregation::Paper => {
            let pooled = |of: &dyn Fn(&CapturedText) -> &[f32]| {
                let rows: Vec<&[f32]> = captured.iter().map(of).collect();
                keep(&pool(prepared.read.len(), &prepared.windows, &rows), prepared)
            };
            let groups = captured.first().map_or(0, |c| c.received_by.len());
            let by: Vec<Vec<f32>> = (0..groups).map(|g| pooled(&|c| &c.received_by[g])).collect();
            let received =
                chosen(&by, detail, &options.heads, shape).unwrap_or_else(|| pooled(&|c| &c.received));
            (received, apart(by, detail, options.per, shape))
        }
    };
    let probe = prepared
        .probes
        .iter()
        .enumerate()
        .filter_map(|(number, (field, position))| {
            let index = prepared.kept[*position];
            let at = window_of_probe(&prepared.windows, index)?;
            let (window, captured) = (&prepared.windows[at], &captured[at]);
            // Probes are asked for in order, those of one stretch together.
            let slot = prepared.probes[..number]
                .iter()
                .filter(|(_, p)| window_of_probe(&prepared.windows, prepared.kept[*p]) == Some(at))
                .count();
            let row = |row: &[f32]| {
                let wide = widen(window, index, row);
                prepared.kept[..=*position].iter().map(|&i| wide[i]).collect::<Vec<f32>>()
            };
            let by: Vec<Vec<f32>> = captured.probes_by.iter().map(|group| row(&group[slot])).collect();
            let weights =
                chosen(&by, detail, &options.heads, shape).unwrap_or_else(|| row(&captured.probes[slot]));
            let weights_by = apart(by, detail, options.per, shape);
            Some((field.clone(), ProbeRow { position: *position, weights, weights_by }))
        })
        .collect();
    AttendedText {
        id: document.id.clone(),
        text: document.text.clone(),
        spans: document.spans.clone(),
        ids: prepared.ids(),
        offsets: prepared.offsets.clone(),
        received,
        probe,
        received_by,
        maps: captured
            .first()
            .map_or(Vec::new(), |c| c.maps.iter().map(|m| submatrix(m, prepared)).collect()),
    }
}

/// The values of the kept tokens.
fn keep(values: &[f32], prepared: &Prepared) -> Vec<f32> {
    prepared.kept.iter().map(|&i| values[i]).collect()
}

/// The rows and columns of the kept tokens.
fn submatrix(map: &[f32], prepared: &Prepared) -> Vec<f32> {
    let tokens = prepared.read.len();
    prepared.kept.iter().flat_map(|&i| prepared.kept.iter().map(move |&j| map[i * tokens + j])).collect()
}

/// The mean of the groups that `heads` chooses; `None` when it chooses all.
fn chosen(by: &[Vec<f32>], detail: Detail, heads: &Heads, shape: Shape) -> Option<Vec<f32>> {
    let groups: Vec<usize> = match (heads, detail) {
        (Heads::All, _) => return None,
        (Heads::Layers(layers), Detail::Head) => {
            layers.iter().flat_map(|l| (0..shape.heads).map(move |h| l * shape.heads + h)).collect()
        }
        (Heads::Layers(layers), _) => layers.clone(),
        (Heads::Heads(heads), _) => heads.iter().map(|(l, h)| l * shape.heads + h).collect(),
    };
    Some(mean(groups.iter().filter_map(|&g| by.get(g))))
}

/// What `per` asks to keep, from what was captured.
fn apart(by: Vec<Vec<f32>>, detail: Detail, per: Per, shape: Shape) -> Vec<Vec<f32>> {
    match (per, detail) {
        (Per::Mean, _) => Vec::new(),
        (Per::Layer, Detail::Head) => by.chunks(shape.heads.max(1)).map(|layer| mean(layer.iter())).collect(),
        _ => by,
    }
}

fn mean<'a>(rows: impl Iterator<Item = &'a Vec<f32>>) -> Vec<f32> {
    let mut sum: Vec<f64> = Vec::new();
    let mut count = 0u32;
    for row in rows {
        sum.resize(row.len(), 0.0);
        sum.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
        count += 1;
    }
    sum.iter().map(|s| (s / f64::from(count.max(1))) as f32).collect()
}

//! Causal attention over ragged texts, one task a (text, head), and what is captured of it.
//!
//! `S = scale · q·Kᵀ` → soft-cap → mask → softmax `A` → `A·V`, block of queries by block, so that memory is
//! O(block · T). Query heads of a group read the same key/value head in place. The backward pass computes `A` again:
//! `dV = Aᵀ·dO`, `dA = dO·Vᵀ`, `dS = A ∘ (dA − rowsum(dA ∘ A))`.

use std::ops::Range;

use rayon::prelude::*;

use super::capture::{Batch, Gather, Wanted};
use super::config::DecoderConfig;
use super::matmul::{Shared, View};
use super::simd::{dot, exp, max, sum, tanh, vectorized};

/// Queries handled at a time.
pub(super) const BLOCK: usize = 64;
/// Queries of one head in one task; a multiple of [`BLOCK`].
const SPAN: usize = 512;
/// Column sums that wait to be added up, in values: 16 MiB. Tasks run in rounds that stay below it, unless one alone does not.
const ROUND: usize = if cfg!(test) { 1 << 12 } else { 4 << 20 };

/// What attention needs to know of a layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) window: Option<usize>,
}

/// What one task captured of its queries.
#[derive(Debug, Default)]
struct Captured {
    columns: Vec<f32>,
    /// `(probe, weights 0..=position)`.
    probes: Vec<(usize, Vec<f32>)>,
    /// Rows of the map, each T wide.
    map: Vec<f32>,
}

impl Geometry {
    pub(super) fn new(config: &DecoderConfig, window: Option<usize>) -> Self {
        Geometry {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: config.query_scale,
            softcap: config.attention_softcap,
            window,
        }
    }

    pub(super) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// First key that query `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Queries, keys and values of a batch, `[N, heads · head_dim]` and twice `[N, kv_heads · head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    /// Empty when only the weights are wanted.
    pub(super) v: &'a [f32],
}

/// Mixes the values into `out` (`[N, heads · head_dim]`, unless `None`) and captures into `gather`.
pub(super) fn forward(
    geometry: &Geometry,
    batch: &Batch,
    inputs: Inputs<'_>,
    out: Option<&mut [f32]>,
    layer: usize,
    gather: Option<&mut Gather<'_>>,
) {
    let wanted = gather.as_ref().map(|g| g.wanted(layer));
    let mut tasks = Vec::new();
    for text in 0..batch.texts() {
        for head in 0..geometry.heads {
            let length = batch.range(text).len();
            tasks.extend(
                (0..length).step_by(SPAN).map(|first| (text, head, first..(first + SPAN).min(length))),
            );
        }
    }
    let target = out.map(Shared::new);
    let mut gather = gather;
    let mut first = 0;
    while first < tasks.len() {
        let round = &tasks[first..][..round(&tasks[first..])];
        first += round.len();
        let probes = |text: usize| gather.as_ref().map_or(&[][..], |g| g.probes(text, layer));
        let results: Vec<Captured> = round
            .par_iter()
            .map_init(Vec::new, |scratch, (text, head, queries)| {
                let task = Task { geometry, range: batch.range(*text), head: *head, inputs };
                task.forward(queries.clone(), target, wanted.as_ref(), probes(*text), scratch)
            })
            .collect();
        let Some(gather) = gather.as_deref_mut() else { continue };
        for ((text, head, queries), result) in round.iter().zip(results) {
            if !result.columns.is_empty() {
                gather.add_columns(*text, layer, *head, &result.columns);
            }
            for (probe, row) in &result.probes {
                gather.add_probe(*text, layer, *head, *probe, row);
            }
            if !result.map.is_empty() {
                gather.set_map(*text, layer, *head, queries.start, batch.range(*text).len(), &result.map);
            }
        }
    }
}

/// How many of `tasks` run before their column sums are added up.
fn round(tasks: &[(usize, usize, Range<usize>)]) -> usize {
    let mut waiting = 0;
    let within = tasks.iter().take_while(|(_, _, queries)| {
        waiting += queries.end;
        waiting <= ROUND
    });
    within.count().max(1)
}

/// Gradients of a layer's queries, keys and values.
#[derive(Debug)]
pub(super) struct Slopes<'a> {
    pub(super) dq: &'a mut [f32],
    pub(super) dk: &'a mut [f32],
    pub(super) dv: &'a mut [f32],
}

/// Writes the inputs' gradients given `dout`, the gradient of what [`forward`] wrote.
pub(super) fn backward(
    geometry: &Geometry,
    batch: &Batch,
    inputs: Inputs<'_>,
    dout: &[f32],
    slopes: Slopes<'_>,
) {
    slopes.dk.fill(0.0);
    slopes.dv.fill(0.0);
    let (dq, dk, dv) = (Shared::new(slopes.dq), Shared::new(slopes.dk), Shared::new(slopes.dv));
    let group = geometry.heads / geometry.kv_heads;
    let tasks: Vec<(usize, usize)> = (0..batch.texts())
        .flat_map(|text| (0..geometry.kv_heads).map(move |kv_head| (text, kv_head)))
        .collect();
    tasks.par_iter().for_each_init(Vec::new, |scratch, (text, kv_head)| {
        // One task owns a key/value head of a text, so its query heads add up in order.
        for head in kv_head * group..(kv_head + 1) * group {
            let task = Task { geometry, range: batch.range(*text), head, inputs };
            task.backward(dout, (dq, dk, dv), scratch);
        }
    });
}

/// One head of one text.
struct Task<'a> {
    geometry: &'a Geometry,
    range: Range<usize>,
    head: usize,
    inputs: Inputs<'a>,
}

impl<'a> Task<'a> {
    /// This head's part of the rows `rows` (of the text) of a tensor that is `width` wide.
    fn part(&self, data: &'a [f32], width: usize, head: usize, rows: Range<usize>) -> View<'a> {
        let hd = self.geometry.head_dim;
        let start = (self.range.start + rows.start) * width + head * hd;
        View::new(&data[start..], rows.len(), hd, width)
    }

    fn kv_head(&self) -> usize {
        self.head * self.geometry.kv_heads / self.geometry.heads
    }

    fn queries(&self, rows: Range<usize>) -> View<'a> {
        self.part(self.inputs.q, self.geometry.q_width(), self.head, rows)
    }

    fn keys(&self, rows: Range<usize>) -> View<'a> {
        self.part(self.inputs.k, self.geometry.kv_width(), self.kv_head(), rows)
    }

    fn values(&self, rows: Range<usize>) -> View<'a> {
        self.part(self.inputs.v, self.geometry.kv_width(), self.kv_head(), rows)
    }

    /// Offset of `row` of the text in a tensor that is `width` wide.
    fn offset(&self, width: usize, head: usize, row: usize) -> usize {
        (self.range.start + row) * width + head * self.geometry.head_dim
    }

    /// Keys that any query of the block sees.
    fn visible(&self, block: &Range<usize>) -> Range<usize> {
        self.geometry.first_key(block.start)..block.end
    }

    /// Attention weights of `block` over `keys`, row-major; zero where a query may not look. The capped scores go to `capped` when given.
    fn weights(
        &self,
        block: &Range<usize>,
        keys: &Range<usize>,
        scores: &mut [f32],
        capped: Option<&mut [f32]>,
    ) {
        let width = keys.len();
        let product = Shared::new(scores);
        // SAFETY: `scores` belongs to this task.
        unsafe {
            product.product(
                0,
                width,
                self.queries(block.clone()),
                self.keys(keys.clone()).t(),
                self.geometry.scale,
                false,
            );
        }
        vectorized(|| soften(self.geometry, block, keys, scores, capped));
    }

    fn forward(
        &self,
        queries: Range<usize>,
        out: Option<Shared>,
        wanted: Option<&Wanted>,
        probes: &[usize],
        scratch: &mut Vec<f32>,
    ) -> Captured {
        let length = self.range.len();
        let mut captured = Captured::default();
        if wanted.is_some_and(|w| w.received) {
            captured.columns = vec![0.0; queries.end];
        }
        let keep_map = wanted.is_some_and(|w| w.maps.contains(&self.head));
        if keep_map {
            captured.map = vec![0.0; queries.len() * length];
        }
        for first in queries.clone().step_by(BLOCK) {
            let block = first..(first + BLOCK).min(queries.end);
            let keys = self.visible(&block);
            let width = keys.len();
            if scratch.len() < block.len() * width {
                scratch.resize(block.len() * width, 0.0);
            }
            let weights = &mut scratch[..block.len() * width];
            self.weights(&block, &keys, weights, None);
            if !captured.columns.is_empty() {
                let columns = &mut captured.columns[keys.clone()];
                vectorized(|| {
                    for row in weights.chunks_exact(width) {
                        columns.iter_mut().zip(row).for_each(|(c, w)| *c += w);
                    }
                });
            }
            for (probe, position) in probes.iter().copied().enumerate().filter(|(_, p)| block.contains(p)) {
                let row = &weights[(position - block.start) * width..][..position + 1 - keys.start];
                let mut whole = vec![0.0; position + 1];
                whole[keys.start..].copy_from_slice(row);
                captured.probes.push((probe, whole));
            }
            if keep_map {
                for (query, row) in block.clone().zip(weights.chunks_exact(width)) {
                    captured.map[(query - queries.start) * length..][keys.clone()].copy_from_slice(row);
                }
            }
            if let Some(out) = out {
                let q_width = self.geometry.q_width();
                // SAFETY: the rows and columns of this text and head belong to this task.
                unsafe {
                    out.product(
                        self.offset(q_width, self.head, block.start),
                        q_width,
                        View::new(weights, block.len(), width, width),
                        self.values(keys),
                        1.0,
                        false,
                    );
                }
            }
        }
        captured
    }

    fn backward(&self, dout: &[f32], (dq, dk, dv): (Shared, Shared, Shared), scratch: &mut Vec<f32>) {
        let g = self.geometry;
        let (q_width, kv_width) = (g.q_width(), g.kv_width());
        let length = self.range.len();
        for first in (0..length).step_by(BLOCK) {
            let block = first..(first + BLOCK).min(length);
            let keys = self.visible(&block);
            let (rows, width) = (block.len(), keys.len());
            let size = rows * width;
            if scratch.len() < 3 * size {
                scratch.resize(3 * size, 0.0);
            }
            let (weights, rest) = scratch.split_at_mut(size);
            let (slopes, rest) = rest.split_at_mut(size);
            let capped = g.softcap.map(|_| &mut rest[..size]);
            self.weights(&block, &keys, weights, capped);
            let hd = g.head_dim;
            let start = self.offset(q_width, self.head, block.start);
            let dout = View::new(&dout[start..], rows, hd, q_width);
            let kv_start = self.offset(kv_width, self.kv_head(), keys.start);
            // SAFETY: `slopes` is this task's; the key/value head of this text belongs to this task, and so do the query heads of its group.
            unsafe {
                dv.product(kv_start, kv_width, View::new(weights, rows, width, width).t(), dout, 1.0, true);
                Shared::new(slopes).product(0, width, dout, self.values(keys.clone()).t(), 1.0, false);
            }
            vectorized(|| {
                for (weights, slopes) in weights.chunks_exact(width).zip(slopes.chunks_exact_mut(width)) {
                    let mean = dot(weights, slopes);
                    for (slope, weight) in slopes.iter_mut().zip(weights) {
                        *slope = weight * (*slope - mean);
                    }
                }
                if let Some(cap) = g.softcap {
                    for (slope, score) in slopes.iter_mut().zip(&rest[..size]) {
                        let t = score / cap;
                        *slope *= 1.0 - t * t;
                    }
                }
            });
            let slopes = View::new(slopes, rows, width, width);
            // SAFETY: as above.
            unsafe {
                dq.product(start, q_width, slopes, self.keys(keys), g.scale, false);
                dk.product(kv_start, kv_width, slopes.t(), self.queries(block), g.scale, true);
            }
        }
    }
}

/// Scores to attention weights, row by row.
#[inline(always)]
pub(super) fn soften(
    geometry: &Geometry,
    block: &Range<usize>,
    keys: &Range<usize>,
    scores: &mut [f32],
    mut capped: Option<&mut [f32]>,
) {
    let width = keys.len();
    for (index, (query, row)) in block.clone().zip(scores.chunks_exact_mut(width)).enumerate() {
        let from = geometry.first_key(query) - keys.start;
        let to = query + 1 - keys.start;
        if let Some(cap) = geometry.softcap {
            for score in &mut row[from..to] {
                *score = cap * tanh(*score / cap);
            }
            if let Some(capped) = capped.as_deref_mut() {
                capped[index * width..][..width].copy_from_slice(row);
            }
        }
        row[..from].fill(0.0);
        row[to..].fill(0.0);
        softmax(&mut row[from..to]);
    }
}

/// Softmax of one row in place.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let top = max(row);
    for score in row.iter_mut() {
        *score = exp(*score - top);
    }
    let scale = 1.0 / sum(row);
    row.iter_mut().for_each(|weight| *weight *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn column_sums_that_wait_are_bounded() {
        // Four heads of a text of 3,000 tokens.
        let tasks: Vec<(usize, usize, Range<usize>)> =
            (0..24).map(|t| (0, t / 6, t % 6 * SPAN..(t % 6 * SPAN + SPAN).min(3000))).collect();
        let (mut first, mut rounds) = (0, 0);
        while first < tasks.len() {
            let count = round(&tasks[first..]);
            let waiting: usize = tasks[first..first + count].iter().map(|task| task.2.end).sum();
            assert!(waiting <= ROUND, "{waiting} values wait");
            (first, rounds) = (first + count, rounds + 1);
        }
        assert!(rounds > 4);
        assert_eq!(round(&[(0, 0, 0..ROUND + 1)]), 1, "one task alone always runs");
    }
}

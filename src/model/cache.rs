//! Keys and values of tokens already read, so that decoding reads each token once.
//!
//! Many sequences advance together. A prefix they share is held once; each sequence attends to
//! `[prefix | its own tokens]` without copying either.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::{BLOCK, Geometry, soften};
use super::block::{Parts, Pass};
use super::capture::Batch;
use super::decoder::pick;
use super::matmul::{Shared, View};
use super::parameters::Decoder;
use super::scratch::Buffer;
use super::simd::vectorized;
use super::{loss, sequences};
use crate::error::Result;

/// Keys and values of one sequence, layer by layer.
#[derive(Debug, Clone, Default)]
struct Cache {
    layers: Vec<KeysAndValues>,
    tokens: usize,
}

#[derive(Debug, Clone, Default)]
struct KeysAndValues {
    /// `[tokens, kv_heads · head_dim]`, after norm and rotation.
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    fn new(layers: usize) -> Self {
        Cache { layers: vec![KeysAndValues::default(); layers], tokens: 0 }
    }
}

/// The CPU's texts that grow.
pub(super) struct Sequences<'a> {
    decoder: &'a Decoder,
    prefix: Cache,
    caches: Vec<Cache>,
}

impl<'a> Sequences<'a> {
    /// `count` sequences that begin with `prefix`.
    pub(super) fn new(decoder: &'a Decoder, prefix: &[u32], count: usize) -> Result<Self> {
        let empty = Cache::new(decoder.blocks.len());
        let mut read = [empty.clone()];
        if !prefix.is_empty() {
            drop(decoder.extend(&empty, &mut read, &Batch::new(&[prefix]))?);
        }
        let [prefix] = read;
        Ok(Sequences { decoder, prefix, caches: vec![empty; count] })
    }

    fn extend(&mut self, batch: &Batch) -> Result<Buffer> {
        self.decoder.extend(&self.prefix, &mut self.caches, batch)
    }
}

impl sequences::Sequences for Sequences<'_> {
    fn read(&mut self, texts: &[Vec<u32>]) -> Result<()> {
        let longer: Vec<usize> = (0..texts.len()).filter(|&i| !texts[i].is_empty()).collect();
        if longer.is_empty() {
            return Ok(());
        }
        let mut caches: Vec<Cache> = longer.iter().map(|&i| std::mem::take(&mut self.caches[i])).collect();
        let texts: Vec<&[u32]> = longer.iter().map(|&i| texts[i].as_slice()).collect();
        drop(self.decoder.extend(&self.prefix, &mut caches, &Batch::new(&texts))?);
        for (i, cache) in longer.into_iter().zip(caches) {
            self.caches[i] = cache;
        }
        Ok(())
    }

    fn logits(&mut self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let batch = Batch::new(texts);
        let x = self.extend(&batch)?;
        let last: Vec<usize> = (0..batch.texts()).map(|text| batch.range(text).end - 1).collect();
        let work = self.decoder.work(None);
        let picked = pick(&x, &last, self.decoder.config.hidden_size, &work);
        drop(x);
        self.decoder.logits(&picked, &work)
    }

    fn log_probs(&mut self, texts: &[Vec<u32>], wanted: &[u32]) -> Result<Vec<f32>> {
        let x = self.extend(&Batch::new(texts))?;
        let work = self.decoder.work(None);
        let mut normed = work.pool.take(x.len());
        self.decoder.norm.forward(self.decoder.config.norm_eps as f32, &x, &mut normed)?;
        loss::log_probs(self.decoder, &normed, wanted, &work)
    }

    fn select(&mut self, places: &[usize]) -> Result<()> {
        let mut uses = vec![0; self.caches.len()];
        places.iter().for_each(|place| uses[*place] += 1);
        let mut old = std::mem::take(&mut self.caches);
        for place in places {
            uses[*place] -= 1;
            // The last to use one has it without a copy.
            let last = uses[*place] == 0;
            self.caches.push(if last { std::mem::take(&mut old[*place]) } else { old[*place].clone() });
        }
        Ok(())
    }
}

impl Decoder {
    /// Reads the next tokens of each sequence (text i of `batch` continues `caches[i]`, which
    /// continues `prefix`) and returns the residual stream after the last block, `[N, d]`.
    fn extend(&self, prefix: &Cache, caches: &mut [Cache], batch: &Batch) -> Result<Buffer> {
        let c = &self.config;
        let work = self.work(None);
        let positions: Vec<u32> = (0..batch.texts())
            .flat_map(|text| {
                let start = prefix.tokens + caches[text].tokens;
                (start..start + batch.range(text).len()).map(|position| position as u32)
            })
            .collect();
        let pass = Pass { config: c, batch, positions: &positions, work: &work };
        let mut x = self.embed(batch.ids(), &positions, &work)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut h = work.pool.take(x.len());
            block.input_norm.forward(pass.eps(), &x, &mut h)?;
            let (q, k, _) = block.queries_and_keys(&pass, &h, false)?;
            let v = block.values(&pass, &h)?;
            drop(h);
            for (text, cache) in caches.iter_mut().enumerate() {
                let range = batch.range(text);
                let rows = range.start * c.kv_width()..range.end * c.kv_width();
                cache.layers[layer].k.extend_from_slice(&k[rows.clone()]);
                cache.layers[layer].v.extend_from_slice(&v[rows]);
            }
            let geometry = Geometry::new(c, block.window);
            let mut mixed = work.pool.take(q.len());
            let own: Vec<&KeysAndValues> = caches.iter().map(|cache| &cache.layers[layer]).collect();
            attend(&geometry, batch, &q, &prefix.layers[layer], &own, &mut mixed);
            drop((q, k, v));
            block.after_attention(&pass, &mut x, &mixed, false, &mut Parts::default())?;
        }
        for (text, cache) in caches.iter_mut().enumerate() {
            cache.tokens += batch.range(text).len();
        }
        Ok(x)
    }
}

/// Attention of each text's new queries to prefix and own keys.
fn attend(
    geometry: &Geometry,
    batch: &Batch,
    q: &[f32],
    prefix: &KeysAndValues,
    own: &[&KeysAndValues],
    mixed: &mut [f32],
) {
    let (hd, q_width, kv_width) = (geometry.head_dim, geometry.q_width(), geometry.kv_width());
    let shared_keys = prefix.k.len() / kv_width;
    let out = Shared::new(mixed);
    let tasks: Vec<(usize, usize)> =
        (0..batch.texts()).flat_map(|text| (0..geometry.heads).map(move |head| (text, head))).collect();
    tasks.par_iter().for_each_init(Vec::new, |scratch: &mut Vec<f32>, (text, head)| {
        let range = batch.range(*text);
        let own = own[*text];
        let kv_at = head * geometry.kv_heads / geometry.heads * hd;
        let read = own.k.len() / kv_width - range.len();
        for first in (0..range.len()).step_by(BLOCK) {
            let rows = first..(first + BLOCK).min(range.len());
            // Positions of the block's queries, and the own keys the last of them sees.
            let block = shared_keys + read + rows.start..shared_keys + read + rows.end;
            let own_keys = read + rows.end;
            let total = shared_keys + own_keys;
            if scratch.len() < rows.len() * total {
                scratch.resize(rows.len() * total, 0.0);
            }
            let scores = &mut scratch[..rows.len() * total];
            let at = (range.start + rows.start) * q_width + head * hd;
            let queries = View::new(&q[at..], rows.len(), hd, q_width);
            let part = |data, keys| View::new(skip(data, kv_at), keys, hd, kv_width);
            let target = Shared::new(scores);
            // SAFETY: `scores` belongs to this task, and the two products write different columns.
            unsafe {
                target.product(0, total, queries, part(&prefix.k, shared_keys).t(), geometry.scale, false);
                target.product(
                    shared_keys,
                    total,
                    queries,
                    part(&own.k, own_keys).t(),
                    geometry.scale,
                    false,
                );
            }
            vectorized(|| soften(geometry, &block, &(0..total), scores, None));
            let weights = |from: usize, keys: usize| View::new(&scores[from..], rows.len(), keys, total);
            // SAFETY: the rows of this text and the columns of this head belong to this task.
            unsafe {
                let own_values = part(&own.v, own_keys);
                out.product(at, q_width, weights(shared_keys, own_keys), own_values, 1.0, false);
                if shared_keys > 0 {
                    let values = part(&prefix.v, shared_keys);
                    out.product(at, q_width, weights(0, shared_keys), values, 1.0, true);
                }
            }
        }
    });
}

/// The values from `start` on; none when there are fewer.
fn skip(data: &[f32], start: usize) -> &[f32] {
    data.get(start..).unwrap_or(&[])
}

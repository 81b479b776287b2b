//! Attention on its way from the device: reduced there, brought to the host when the pass is over.

use candle_core::{DType, Tensor};

use super::super::capture::{Batch, Capture, CapturedText, Gather};
use crate::error::Result;

/// What a pass keeps of its attention.
pub(super) struct Collected<'a> {
    gather: Gather<'a>,
    /// Tokens of each text.
    lengths: Vec<usize>,
    /// Column sums of each layer, `[B, heads, T]`.
    columns: Vec<(usize, Tensor)>,
    /// Rows that were asked for: layer, text, the first's place among the text's probes, `[heads, rows, keys]`.
    rows: Vec<(usize, usize, Vec<usize>, Tensor)>,
}

impl<'a> Collected<'a> {
    pub(super) fn new(capture: &'a Capture, batch: &Batch, layers: usize, heads: usize) -> Self {
        Collected {
            gather: Gather::new(capture, batch, layers, heads),
            lengths: (0..batch.texts()).map(|text| batch.range(text).len()).collect(),
            columns: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Takes the weights `[B, heads, rows, keys]` of the queries from `first` on; keys from 0 on.
    pub(super) fn add(&mut self, weights: &Tensor, layer: usize, first: usize) -> Result<()> {
        let weights = weights.detach();
        let (b, heads, rows, keys) = weights.dims4()?;
        let device = weights.device();
        let wanted = self.gather.wanted(layer);
        if wanted.received {
            // The padding's queries count for nothing.
            let counts = self
                .lengths
                .iter()
                .flat_map(|n| (first..first + rows).map(move |i| f32::from(u8::from(i < *n))));
            let counts = Tensor::from_vec(counts.collect::<Vec<f32>>(), (b, 1, 1, rows), device)?;
            let counts = counts.to_dtype(weights.dtype())?.broadcast_as((b, heads, 1, rows))?.contiguous()?;
            let sums = counts.matmul(&weights)?.squeeze(2)?;
            let longest = self.lengths.iter().copied().max().unwrap_or(0);
            let sums = sums.pad_with_zeros(2, 0, longest - keys)?;
            match self.columns.last_mut() {
                Some((of, all)) if *of == layer => *all = (&*all + sums)?,
                _ => self.columns.push((layer, sums)),
            }
        }
        for text in 0..b {
            let asked = self.gather.probes(text, layer).iter().enumerate();
            let (probes, places): (Vec<usize>, Vec<u32>) = asked
                .filter(|(_, position)| (first..first + rows).contains(position))
                .map(|(probe, position)| (probe, (position - first) as u32))
                .unzip();
            if !probes.is_empty() {
                let places = Tensor::new(places, device)?;
                self.rows.push((layer, text, probes, weights.get(text)?.index_select(&places, 1)?));
            }
            for head in &wanted.maps {
                let length = self.lengths[text];
                let rows = rows.min(length.saturating_sub(first));
                if rows == 0 {
                    continue;
                }
                let map = weights.get(text)?.get(*head)?.narrow(0, 0, rows)?;
                let map = if keys < length {
                    map.pad_with_zeros(1, 0, length - keys)?
                } else {
                    map.narrow(1, 0, length)?
                };
                let map = map.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                self.gather.set_map(text, layer, *head, first, length, &map);
            }
        }
        Ok(())
    }

    /// Brings everything to the host, layer by layer and head by head.
    pub(super) fn finish(mut self) -> Result<Vec<CapturedText>> {
        for (layer, sums) in self.columns {
            for (text, heads) in sums.to_dtype(DType::F32)?.to_vec3::<f32>()?.iter().enumerate() {
                for (head, columns) in heads.iter().enumerate() {
                    self.gather.add_columns(text, layer, head, &columns[..self.lengths[text]]);
                }
            }
        }
        for (layer, text, probes, rows) in self.rows {
            let positions = self.gather.probes(text, layer);
            for (head, rows) in rows.to_dtype(DType::F32)?.to_vec3::<f32>()?.iter().enumerate() {
                for (probe, row) in probes.iter().zip(rows) {
                    self.gather.add_probe(text, layer, head, *probe, &row[..=positions[*probe]]);
                }
            }
        }
        Ok(self.gather.finish())
    }
}

//! Texts in, measurements out: the plain types around a forward pass.

use candle_core::Tensor;

use crate::error::{Error, Result};

/// Texts laid end to end without padding; positions restart at 0 and no text sees another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    ids: Vec<u32>,
    starts: Vec<usize>,
}

impl Batch {
    /// Concatenates `texts` (token ids).
    pub fn new<T: AsRef<[u32]>>(texts: &[T]) -> Self {
        let mut batch = Batch { ids: Vec::new(), starts: vec![0] };
        for text in texts {
            batch.ids.extend_from_slice(text.as_ref());
            batch.starts.push(batch.ids.len());
        }
        batch
    }

    /// All token ids, text after text.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of texts.
    pub fn texts(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Number of tokens of all texts together, N.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Rows of text `index` within the batch.
    ///
    /// # Panics
    /// When `index` is not below [`Batch::texts`].
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
        self.starts[index]..self.starts[index + 1]
    }

    /// Token ids of text `index`.
    pub fn text(&self, index: usize) -> &[u32] {
        &self.ids[self.range(index)]
    }

    /// Length of the longest text, in tokens.
    pub fn longest(&self) -> usize {
        self.starts.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }

    /// Refuses empty texts, texts above `max_positions` and ids outside the vocabulary.
    pub(super) fn check(&self, model: &str, vocab_size: usize, max_positions: usize) -> Result<()> {
        for index in 0..self.texts() {
            let text = self.text(index);
            if text.is_empty() {
                return Err(Error::model(model, format!("text {index} of the batch has no tokens")));
            }
            if text.len() > max_positions {
                return Err(Error::model(
                    model,
                    format!(
                        "text {index} of the batch has {} tokens, the model's context holds {max_positions}; split it first",
                        text.len()
                    ),
                ));
            }
            if let Some((position, id)) = text.iter().enumerate().find(|(_, id)| **id as usize >= vocab_size)
            {
                return Err(Error::model(
                    model,
                    format!(
                        "text {index}, token {position}: id {id} lies outside the vocabulary of {vocab_size}; \
                         the model has no embedding for it, so take that token out of the text"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// For which tokens logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    /// For none: the output head never runs.
    #[default]
    None,
    /// For the last token of each text: `[texts, vocab_size]`.
    Last,
    /// For every token: `[tokens, vocab_size]`.
    All,
}

/// How finely captured attention is kept apart from its mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// The mean over layers and heads alone.
    #[default]
    Mean,
    /// Also each layer's mean over its heads.
    Layer,
    /// Also each head, layer by layer.
    Head,
}

/// Which attention to keep. Everything is taken after soft-cap, mask and softmax.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capture {
    /// How finely.
    pub detail: Detail,
    /// Received attention of every token.
    pub received: bool,
    /// Query positions whose rows are kept, per text; empty, or one list a text.
    pub probes: Vec<Vec<usize>>,
    /// `(layer, head)` pairs whose whole maps are kept.
    pub maps: Vec<(usize, usize)>,
    /// Number of layers, from the first on, that received attention and probe rows are taken from; `None` takes them all.
    /// Layers above are not computed unless something else needs them.
    pub depth: Option<usize>,
}

impl Capture {
    /// Received attention, averaged over layers and heads.
    pub fn received() -> Self {
        Capture { received: true, ..Capture::default() }
    }
}

/// What a forward pass shall return.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Want {
    /// Logits.
    pub logits: Logits,
    /// Attention.
    pub capture: Option<Capture>,
}

impl Want {
    /// Logits of every token, no attention.
    pub fn logits() -> Self {
        Want { logits: Logits::All, capture: None }
    }

    /// Attention alone; the pass ends with the last attention needed.
    pub fn capture(capture: Capture) -> Self {
        Want { logits: Logits::None, capture: Some(capture) }
    }
}

/// What a forward pass returned.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// `[texts, vocab_size]` or `[tokens, vocab_size]`, f32, after the final soft-cap; see [`Logits`].
    pub logits: Option<Tensor>,
    /// One entry a text when a [`Capture`] was asked for, otherwise empty.
    pub attention: Vec<CapturedText>,
}

/// Attention of one text of T tokens. `A[i, j]` is the weight query i gives key j ≤ i.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CapturedText {
    /// `received[j] = Σ_{i ≥ j} A[i, j] / (T − j)`, mean over layers and heads; T entries, or none
    /// when not asked for.
    pub received: Vec<f32>,
    /// The same per layer ([`Detail::Layer`]) or per `layer · heads + head` ([`Detail::Head`]).
    pub received_by: Vec<Vec<f32>>,
    /// One entry a probe: the row `A[position, 0..=position]`, mean over layers and heads.
    pub probes: Vec<Vec<f32>>,
    /// The same per layer or head: `probes_by[layer or layer · heads + head][probe]`.
    pub probes_by: Vec<Vec<Vec<f32>>>,
    /// One entry a requested `(layer, head)`: T × T, row-major, zero above the diagonal.
    pub maps: Vec<Vec<f32>>,
}

impl Capture {
    /// Refuses probes and maps outside the batch or the model.
    pub(super) fn check(&self, model: &str, batch: &Batch, layers: usize, heads: usize) -> Result<()> {
        if !self.probes.is_empty() && self.probes.len() != batch.texts() {
            return Err(Error::model(
                model,
                format!("{} lists of probe positions for {} texts", self.probes.len(), batch.texts()),
            ));
        }
        for (text, probes) in self.probes.iter().enumerate() {
            let length = batch.range(text).len();
            if let Some(position) = probes.iter().find(|p| **p >= length) {
                return Err(Error::model(
                    model,
                    format!("probe position {position} of text {text}, which has {length} tokens"),
                ));
            }
        }
        if let Some(depth) = self.depth.filter(|depth| !(1..=layers).contains(depth)) {
            return Err(Error::model(
                model,
                format!("attention of the first {depth} layers: the model has {layers}"),
            ));
        }
        if let Some((layer, head)) = self.maps.iter().find(|(l, h)| *l >= layers || *h >= heads) {
            return Err(Error::model(
                model,
                format!(
                    "no attention map of layer {layer}, head {head}: the model has {layers} layers of {heads} heads"
                ),
            ));
        }
        Ok(())
    }

    /// The layer after whose attention nothing more is captured.
    pub(super) fn last_layer(&self, layers: usize) -> Option<usize> {
        let means = self.received || self.probes.iter().any(|p| !p.is_empty());
        let last = self.depth.unwrap_or(layers).checked_sub(1).filter(|_| means);
        self.maps.iter().map(|(layer, _)| *layer).chain(last).max()
    }
}

/// Sums of attention on their way to the means of [`CapturedText`].
///
/// Heads and layers are added in their natural order, so the result does not depend on threads.
#[derive(Debug)]
pub(super) struct Gather<'a> {
    capture: &'a Capture,
    /// Those that means are taken over.
    layers: usize,
    heads: usize,
    texts: Vec<CapturedText>,
}

impl<'a> Gather<'a> {
    pub(super) fn new(capture: &'a Capture, batch: &Batch, layers: usize, heads: usize) -> Self {
        let layers = capture.depth.unwrap_or(layers);
        let groups = match capture.detail {
            Detail::Mean => 0,
            Detail::Layer => layers,
            Detail::Head => layers * heads,
        };
        let texts = (0..batch.texts())
            .map(|index| {
                let length = batch.range(index).len();
                let rows: Vec<Vec<f32>> =
                    capture.probes.get(index).into_iter().flatten().map(|p| vec![0.0; p + 1]).collect();
                let received = if capture.received { length } else { 0 };
                CapturedText {
                    received: vec![0.0; received],
                    received_by: if capture.received {
                        vec![vec![0.0; received]; groups]
                    } else {
                        Vec::new()
                    },
                    probes_by: if rows.is_empty() { Vec::new() } else { vec![rows.clone(); groups] },
                    probes: rows,
                    maps: vec![Vec::new(); capture.maps.len()],
                }
            })
            .collect();
        Gather { capture, layers, heads, texts }
    }

    /// What block `layer` shall deliver besides probes.
    pub(super) fn wanted(&self, layer: usize) -> Wanted {
        let mut maps: Vec<usize> =
            self.capture.maps.iter().filter(|(l, _)| *l == layer).map(|(_, head)| *head).collect();
        maps.sort_unstable();
        maps.dedup();
        Wanted { received: self.capture.received && layer < self.layers, maps }
    }

    /// Positions of text `text` whose rows block `layer` shall deliver.
    pub(super) fn probes(&self, text: usize, layer: usize) -> &'a [usize] {
        let probes = self.capture.probes.get(text).filter(|_| layer < self.layers);
        probes.map_or(&[], Vec::as_slice)
    }

    fn group(&self, layer: usize, head: usize) -> Option<usize> {
        match self.capture.detail {
            Detail::Mean => None,
            Detail::Layer => Some(layer),
            Detail::Head => Some(layer * self.heads + head),
        }
    }

    /// Adds one head's column sums `Σ_{i ≥ j} A[i, j]`.
    pub(super) fn add_columns(&mut self, text: usize, layer: usize, head: usize, columns: &[f32]) {
        let group = self.group(layer, head);
        let captured = &mut self.texts[text];
        add(&mut captured.received, columns);
        if let Some(group) = group {
            add(&mut captured.received_by[group], columns);
        }
    }

    /// Adds one head's row for probe number `probe`.
    pub(super) fn add_probe(&mut self, text: usize, layer: usize, head: usize, probe: usize, row: &[f32]) {
        let group = self.group(layer, head);
        let captured = &mut self.texts[text];
        add(&mut captured.probes[probe], row);
        if let Some(group) = group {
            add(&mut captured.probes_by[group][probe], row);
        }
    }

    /// Keeps rows of a whole map, from query `first` on, under every request that names it.
    pub(super) fn set_map(
        &mut self,
        text: usize,
        layer: usize,
        head: usize,
        first: usize,
        length: usize,
        rows: &[f32],
    ) {
        for (slot, _) in self.capture.maps.iter().enumerate().filter(|(_, m)| **m == (layer, head)) {
            let map = &mut self.texts[text].maps[slot];
            map.resize(length * length, 0.0);
            map[first * length..][..rows.len()].copy_from_slice(rows);
        }
    }

    /// Divides the sums into means.
    pub(super) fn finish(self) -> Vec<CapturedText> {
        let (layers, heads) = (self.layers as f32, self.heads as f32);
        let by = if self.capture.detail == Detail::Layer { heads } else { 1.0 };
        let received = |sums: &mut Vec<f32>, over: f32| {
            let length = sums.len();
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum /= over * (length - j) as f32;
            }
        };
        let row = |sums: &mut Vec<f32>, over: f32| sums.iter_mut().for_each(|sum| *sum /= over);
        let mut texts = self.texts;
        for text in &mut texts {
            received(&mut text.received, layers * heads);
            text.received_by.iter_mut().for_each(|sums| received(sums, by));
            text.probes.iter_mut().for_each(|sums| row(sums, layers * heads));
            text.probes_by.iter_mut().flatten().for_each(|sums| row(sums, by));
        }
        texts
    }
}

/// What one block delivers of every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Column sums of every head.
    pub(super) received: bool,
    /// Heads whose whole maps are kept.
    pub(super) maps: Vec<usize>,
}

fn add(sums: &mut [f32], terms: &[f32]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}

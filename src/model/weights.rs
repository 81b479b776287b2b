//! Weights in files: found, checked, and handed out under the decoder's canonical names.
//!
//! A [`WeightFile`] holds the memory-mapped safetensors or GGUF files of one checkpoint. What a family
//! calls a tensor and how it arranges the rows comes from [`Family::stored`]; the rest is the same for all:
//! rows are gathered in the right order (dense and quantised alike, since a row is whole blocks), norm
//! weights become effective scales, and every tensor must be used exactly as the configuration says.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};

use super::family::{Family, Form, Rows};
use super::{DecoderConfig, Matrix, WeightSource};
use crate::error::{Error, Result};
use crate::files;
use crate::progress::check_interrupt;
use crate::provenance::content_hash;

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One after the other: f32, f16 or bf16.
    Dense(DType),
    /// In quantised blocks.
    Blocks(GgmlDType),
}

impl Kind {
    /// Numbers a block, bytes a block.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Kind::Dense(dtype) => (1, dtype.size_in_bytes()),
            Kind::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
        }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Row-major: the last dimension is contiguous.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: Kind,
    /// Index of the file.
    pub(crate) file: usize,
    /// Its bytes in the file; as long as shape and kind need (the readers check).
    pub(crate) range: Range<usize>,
}

/// The bytes of a file.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    Map(Arc<memmap2::Mmap>),
    Memory(&'static [u8]),
}

impl Bytes {
    /// Maps the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only and the library never writes model files in place (`write_atomic`
        // renames), so the bytes change only if another program edits a model while it is loaded; they
        // are plain numbers then, checked against no invariant.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Bytes::Map(Arc::new(map)))
    }

    /// Lets go of pages that were copied, so that loading does not count a model twice.
    fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Map(map) = self {
            const PAGE: usize = 1 << 16;
            let start = range.start.next_multiple_of(PAGE);
            let end = range.end / PAGE * PAGE;
            if start < end {
                // SAFETY: dropping clean pages of a read-only file map; they are read again if touched.
                // The result does not matter: it is advice.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

/// All tensors of a checkpoint, by the names in the file.
#[derive(Debug, Default)]
pub(crate) struct Tensors {
    pub(crate) files: Vec<(PathBuf, Bytes)>,
    pub(crate) entries: BTreeMap<String, Entry>,
}

impl Tensors {
    /// Adds a safetensors file.
    ///
    /// # Errors
    /// [`Error::Format`] for a truncated or corrupt file, a type other than f32, f16 and bf16, or a name seen before.
    pub(crate) fn add_safetensors(&mut self, path: &Path, bytes: Bytes) -> Result<()> {
        let bad = |place: &str, message: String| Err(Error::format(path, place, message));
        let (header, metadata) = match SafeTensors::read_metadata(&bytes) {
            Ok(read) => read,
            Err(e) => {
                return bad("header", format!("{e}; the file is truncated or corrupt, download it again"));
            }
        };
        let file = self.files.len();
        for (name, info) in metadata.tensors() {
            let place = format!("tensor {name}");
            let dtype = match info.dtype {
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                // Buffers some old checkpoints carry (causal masks); `ignorable` says which.
                Dtype::BOOL | Dtype::U8 | Dtype::I64 if Family::is_buffer(&name) => continue,
                other => {
                    let message =
                        format!("stored as {other:?}; f32, f16 and bf16 are read. Convert the checkpoint");
                    return bad(&place, message);
                }
            };
            let (start, end) = info.data_offsets;
            // `read_metadata` has checked that the offsets fit shape and type, and the file.
            let start = start + header + 8;
            let range = start..end + header + 8;
            let entry = Entry { shape: info.shape.clone(), kind: Kind::Dense(dtype), file, range };
            if self.entries.insert(name.clone(), entry).is_some() {
                return bad(&place, "is also in another file of this checkpoint".into());
            }
        }
        self.files.push((path.to_path_buf(), bytes));
        Ok(())
    }

    /// The safetensors of a checkpoint folder: one file, or those its index names.
    ///
    /// # Errors
    /// [`Error::Model`] when there is none (saying why pickles are not read), and the errors of the files.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self> {
        let mut tensors = Tensors::default();
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.is_file() {
            tensors.add_safetensors(&single, Bytes::open(&single)?)?;
            return Ok(tensors);
        }
        if !index.is_file() {
            return Err(no_weights(folder));
        }
        let (shards, names) = read_index(&index)?;
        for shard in &shards {
            let path = folder.join(shard);
            if !path.is_file() {
                let message = format!("names {shard}, which is missing; download the model again");
                return Err(Error::format(&index, "weight_map", message));
            }
            tensors.add_safetensors(&path, Bytes::open(&path)?)?;
        }
        match names.iter().find(|name| !tensors.entries.contains_key(*name)) {
            Some(name) => {
                Err(Error::format(&index, "weight_map", format!("no file holds {name}, which it names")))
            }
            None => Ok(tensors),
        }
    }

    /// Fingerprint of all tensors: names, shapes, types and every byte. Pages are let go of as soon as they are read.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub(crate) fn fingerprint(&self) -> Result<String> {
        const PIECE: usize = 1 << 20;
        let mut parts: Vec<String> = Vec::new();
        for (name, entry) in &self.entries {
            parts.push(format!("{name} {:?} {:?}", entry.shape, entry.kind));
            let file = &self.files[entry.file].1;
            let pieces: Vec<Range<usize>> = entry
                .range
                .clone()
                .step_by(PIECE)
                .map(|start| start..(start + PIECE).min(entry.range.end))
                .collect();
            let hashes = pieces.into_par_iter().map(|piece| {
                check_interrupt()?;
                let hash = content_hash([&file[piece.clone()]]);
                file.release(&piece);
                Ok(hash)
            });
            parts.extend(hashes.collect::<Result<Vec<String>>>()?);
            file.release(&entry.range);
        }
        Ok(content_hash(parts))
    }
}

/// The files an index names, in order and once each, and the tensors it promises.
pub(crate) fn read_index(index: &Path) -> Result<(Vec<String>, Vec<String>)> {
    let text = files::read_text(index)?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::format(index, "", format!("not JSON: {e}")))?;
    let Some(map) = json["weight_map"].as_object() else {
        return Err(Error::format(index, "weight_map", "missing"));
    };
    let mut shards = BTreeSet::new();
    for (name, shard) in map {
        let shard = shard.as_str().unwrap_or_default();
        // A checkpoint may name only its own files.
        let plain = Path::new(shard).file_name().is_some_and(|file| file == shard);
        if !plain || files::extension(shard) != "safetensors" {
            return Err(Error::format(
                index,
                name,
                format!("{shard:?} is not the name of a safetensors file"),
            ));
        }
        shards.insert(shard.to_owned());
    }
    Ok((shards.into_iter().collect(), map.keys().cloned().collect()))
}

/// The error for a folder without safetensors.
fn no_weights(folder: &Path) -> Error {
    let mut pickle = None;
    let mut gguf = None;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match files::extension(&name).as_str() {
            "bin" | "pt" | "pth" | "ckpt" | "pkl" => pickle = Some(name),
            "gguf" => gguf = Some(name),
            _ => {}
        }
    }
    let shown = folder.display();
    match (gguf, pickle) {
        (Some(name), _) => {
            Error::model(shown, format!("the weights are in a GGUF file; load {name} by its path"))
        }
        (None, Some(name)) => Error::model(shown, pickle_message(&name)),
        (None, None) => {
            Error::model(shown, "holds neither model.safetensors nor model.safetensors.index.json")
        }
    }
}

/// Why a pickle is refused.
pub(crate) fn pickle_message(name: &str) -> String {
    format!(
        "{name} is a pickle, which can run any program when it is read; such files are never opened. \
         Convert the model to safetensors (transformers: save_pretrained)"
    )
}

/// The weights of one checkpoint under canonical names.
#[derive(Debug)]
pub(crate) struct WeightFile {
    family: Family,
    form: Form,
    config: DecoderConfig,
    tensors: Tensors,
    /// What stands before every name, such as `model.`.
    prefix: String,
    used: BTreeSet<String>,
    device: Device,
}

impl WeightFile {
    /// Weights of a `family` checkpoint with `config`.
    pub(crate) fn new(
        family: Family,
        form: Form,
        config: DecoderConfig,
        tensors: Tensors,
        device: &Device,
    ) -> Self {
        let prefix = family.prefix(form, |name| tensors.entries.contains_key(name));
        let used = BTreeSet::new();
        WeightFile { family, form, config, tensors, prefix, used, device: device.clone() }
    }

    fn stored(&self, name: &str) -> Option<(String, super::family::Stored)> {
        let stored = self.family.stored(self.form, name, &self.config)?;
        let full =
            if stored.absolute { stored.name.clone() } else { format!("{}{}", self.prefix, stored.name) };
        Some((full, stored))
    }

    /// The entry behind a canonical name, its full name and arrangement, marked as used.
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<(String, Entry, super::family::Stored)> {
        // Each tensor comes by here; a large model takes minutes.
        check_interrupt()?;
        let place = self.tensors.files.first().map_or(Path::new("weights"), |(path, _)| path).to_path_buf();
        let found = self.stored(name).and_then(|(full, stored)| {
            let entry = self.tensors.entries.get(&full).cloned();
            Some((full, entry?, stored))
        });
        let Some((full, entry, stored)) = found else {
            let full = self.stored(name).map_or(name.to_owned(), |(full, _)| full);
            return Err(Error::format(
                place,
                format!("tensor {full}"),
                format!(
                    "missing ({name} of {} needs it); the checkpoint is incomplete or its configuration is another model's",
                    self.family
                ),
            ));
        };
        let mut want = shape.to_vec();
        want[0] *= stored.rows.parts();
        if stored.transposed {
            want.reverse();
        }
        if entry.shape != want {
            return Err(Error::format(
                &self.tensors.files[entry.file].0,
                format!("tensor {full}"),
                format!("has shape {:?}, but the configuration asks for {want:?}", entry.shape),
            ));
        }
        self.used.insert(full.clone());
        Ok((full, entry, stored))
    }

    /// Bytes of the rows of `entry` in the decoder's order.
    fn rows<'a>(
        &'a self,
        entry: &Entry,
        order: Option<Vec<usize>>,
        row_bytes: usize,
    ) -> std::borrow::Cow<'a, [u8]> {
        let bytes = &self.tensors.files[entry.file].1[entry.range.clone()];
        match order {
            None => bytes.into(),
            Some(order) => {
                let mut gathered = Vec::with_capacity(order.len() * row_bytes);
                for row in order {
                    gathered.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
                }
                gathered.into()
            }
        }
    }

    fn quantized(&self, bytes: &[u8], dtype: GgmlDType, shape: &[usize], device: &Device) -> Result<QTensor> {
        // candle reads blocks in place; a gathered copy from the allocator is aligned, and so is the file.
        debug_assert!(bytes.as_ptr().addr().is_multiple_of(4));
        let storage = QStorage::from_data(bytes.into(), device, dtype)?;
        Ok(QTensor::new(storage, shape)?)
    }

    /// The rows `ids` of the matrix `name` of `rows` × `cols`, in that order; the rest stays in the file.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    pub(crate) fn some_rows(
        &mut self,
        name: &str,
        (rows, cols): (usize, usize),
        ids: &[u32],
    ) -> Result<Matrix> {
        self.read(name, (rows, cols), Some(ids))
    }

    fn read(&mut self, name: &str, (rows, cols): (usize, usize), ids: Option<&[u32]>) -> Result<Matrix> {
        let (full, entry, stored) = self.find(name, &[rows, cols])?;
        let mut order = stored.rows.order(rows);
        if let Some(ids) = ids {
            let all = order.as_deref();
            order = Some(ids.iter().map(|&id| all.map_or(id as usize, |all| all[id as usize])).collect());
        }
        let rows = ids.map_or(rows, <[u32]>::len);
        let (block, block_bytes) = entry.kind.block();
        let matrix = match entry.kind {
            Kind::Dense(dtype) if stored.transposed => {
                let size = dtype.size_in_bytes();
                let bytes = &self.tensors.files[entry.file].1[entry.range.clone()];
                let width = entry.shape[1];
                let order = order.unwrap_or_else(|| (0..rows).collect());
                let mut turned = Vec::with_capacity(rows * cols * size);
                for row in order {
                    for col in 0..cols {
                        let at = (col * width + row) * size;
                        turned.extend_from_slice(&bytes[at..at + size]);
                    }
                }
                Matrix::Dense(Tensor::from_raw_buffer(&turned, dtype, &[rows, cols], &self.device)?)
            }
            Kind::Dense(dtype) => {
                let bytes = self.rows(&entry, order, cols * block_bytes);
                Matrix::Dense(Tensor::from_raw_buffer(&bytes, dtype, &[rows, cols], &self.device)?)
            }
            Kind::Blocks(_) if stored.transposed => {
                let path = &self.tensors.files[entry.file].0;
                return Err(Error::format(path, format!("tensor {full}"), "quantised and transposed"));
            }
            Kind::Blocks(dtype) => {
                let bytes = self.rows(&entry, order, cols / block * block_bytes);
                Matrix::Quantized(Arc::new(self.quantized(&bytes, dtype, &[rows, cols], &self.device)?))
            }
        };
        if stored.rows.parts() == 1 {
            self.tensors.files[entry.file].1.release(&entry.range);
        }
        Ok(matrix)
    }

    /// Bytes of the largest block's matrices.
    pub(crate) fn block_bytes(&self) -> u64 {
        const MATRICES: [&str; 7] = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ];
        let of_layer = |layer: usize| -> u64 {
            let stored: BTreeSet<String> = MATRICES
                .iter()
                .filter_map(|part| self.stored(&format!("layers.{layer}.{part}.weight")))
                .map(|(full, _)| full)
                .collect();
            let entries = stored.iter().filter_map(|full| self.tensors.entries.get(full));
            entries.map(|entry| entry.range.len() as u64).sum()
        };
        (0..self.config.layers).map(of_layer).max().unwrap_or(0)
    }

    /// Refuses tensors that nothing asked for.
    ///
    /// # Errors
    /// [`Error::Format`] naming the first of them.
    pub(crate) fn finish(&self) -> Result<()> {
        self.none_left(|_| true)
    }

    /// [`WeightFile::finish`] for the weights of one block, once it has been read.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn finish_layer(&self, layer: usize) -> Result<()> {
        // `model.layers.3.…`, `blk.3.…`, `h.3.…`: the first number is the block's.
        self.none_left(|name| name.split('.').find_map(|part| part.parse().ok()) == Some(layer))
    }

    fn none_left(&self, among: impl Fn(&str) -> bool) -> Result<()> {
        let mut surplus = self.tensors.entries.iter().filter(|(name, _)| {
            among(name) && !self.used.contains(*name) && !self.family.ignorable(self.form, name, &self.config)
        });
        let Some((name, entry)) = surplus.next() else { return Ok(()) };
        let more = surplus.count();
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        Err(Error::format(
            &self.tensors.files[entry.file].0,
            format!("tensor {name}{more}"),
            format!(
                "surplus: {} with this configuration has no such weight, so the result would be wrong without it",
                self.family
            ),
        ))
    }
}

impl WeightSource for WeightFile {
    fn has(&self, name: &str) -> bool {
        self.stored(name).is_some_and(|(full, _)| self.tensors.entries.contains_key(&full))
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix> {
        self.read(name, (rows, cols), None)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        let (_, entry, stored) = self.find(name, &[len])?;
        let whole = len * stored.rows.parts();
        let bytes = &self.tensors.files[entry.file].1[entry.range.clone()];
        let all = match entry.kind {
            Kind::Dense(dtype) => Tensor::from_raw_buffer(bytes, dtype, &[whole], &Device::Cpu)?,
            Kind::Blocks(dtype) => {
                self.quantized(bytes, dtype, &[whole], &Device::Cpu)?.dequantize(&Device::Cpu)?
            }
        };
        let mut values = all.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        if let Some(order) = stored.rows.order(len) {
            values = order.into_iter().map(|row| values[row]).collect();
        }
        for value in &mut values {
            *value += stored.offset;
        }
        Ok(Tensor::from_vec(values, len, &self.device)?)
    }
}

impl Rows {
    /// How many canonical tensors share the stored one.
    pub(crate) fn parts(self) -> usize {
        match self {
            Rows::All | Rows::Pairs { .. } => 1,
            Rows::Third(_) | Rows::HeadThird { .. } => 3,
        }
    }

    /// For each of `rows` canonical rows, the stored row; `None` when they are the same.
    pub(crate) fn order(self, rows: usize) -> Option<Vec<usize>> {
        match self {
            Rows::All => None,
            Rows::Third(part) => Some((part * rows..(part + 1) * rows).collect()),
            Rows::HeadThird { part, heads } => {
                let width = rows / heads;
                Some((0..rows).map(|row| (row / width * 3 + part) * width + row % width).collect())
            }
            Rows::Pairs { heads } => {
                let width = rows / heads;
                let half = width / 2;
                let within = |at: usize| 2 * (at % half) + at / half;
                Some((0..rows).map(|row| row / width * width + within(row % width)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_in_the_decoders_order() {
        assert_eq!(Rows::Third(1).order(2), Some(vec![2, 3]));
        // Two heads of width 2: q0 k0 v0 q1 k1 v1, each of two rows.
        assert_eq!(Rows::HeadThird { part: 2, heads: 2 }.order(4), Some(vec![4, 5, 10, 11]));
        // One head of width 6: stored pairs (0,3) (1,4) (2,5).
        assert_eq!(Rows::Pairs { heads: 1 }.order(6), Some(vec![0, 2, 4, 1, 3, 5]));
    }
}

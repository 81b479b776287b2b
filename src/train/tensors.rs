//! Named tensors in a safetensors file: written as a stream in name order, so that a checkpoint costs no
//! second copy in memory and the same tensors always give the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::model::with_values;

/// One tensor to write.
pub(super) enum Values<'a> {
    /// Dimensions, and values in row-major order.
    Slice(Vec<usize>, &'a [f32]),
    /// A tensor; brought to the host only when its turn comes.
    Tensor(&'a Tensor),
}

impl Values<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Values::Slice(shape, _) => shape,
            Values::Tensor(tensor) => tensor.dims(),
        }
    }

    fn with(&self, then: impl FnOnce(&[f32]) -> Result<()>) -> Result<()> {
        match self {
            Values::Slice(_, values) => then(values),
            Values::Tensor(tensor) => with_values(tensor, then),
        }
    }
}

/// Writes `tensors` as f32, and the text pairs `metadata`, to `path`.
pub(super) fn write(
    path: &Path,
    tensors: &BTreeMap<String, Values<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    const WIDTH: usize = size_of::<f32>();
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.shape().iter().product::<usize>() * WIDTH;
        header.insert(
            name.clone(),
            json!({"dtype": "F32", "shape": tensor.shape(), "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // Readers map the file; the data begins on an eight-byte border, the gap is blanks.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path));
        put(&(header.len() as u64).to_le_bytes())?;
        put(&header)?;
        let mut bytes = Vec::with_capacity(16 * 1024 * WIDTH);
        for tensor in tensors.values() {
            tensor.with(|values| {
                for values in values.chunks(16 * 1024) {
                    bytes.clear();
                    bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
                    put(&bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// A file whose tensors are read one at a time, so that no second copy of all of them lies in memory.
#[derive(Debug)]
pub(super) struct Stored {
    path: PathBuf,
    map: Mmap,
    /// Where the tensors' bytes begin.
    data: usize,
    entries: BTreeMap<String, TensorInfo>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Opens the safetensors file `path`.
pub(super) fn open(path: &Path) -> Result<Stored> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only and these files are replaced, never changed in place (`write_atomic`); should another
    // program change one all the same, other numbers are read, and every access stays within the map.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    let (header, read) = SafeTensors::read_metadata(&map)
        .map_err(|e| Error::format(path, "", format!("not a readable safetensors file: {e}")))?;
    let entries = read.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
    let metadata = read.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    Ok(Stored { path: path.to_path_buf(), map, data: header + 8, entries, metadata })
}

impl Stored {
    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.entries.keys()
    }

    /// Dimensions and values, widened to f32; `None` when there is no such tensor.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let Some(info) = self.entries.get(name) else { return Ok(None) };
        let (start, end) = info.data_offsets;
        // `read_metadata` has checked the offsets against shape, type and length of the file.
        let data = &self.map[self.data + start..self.data + end];
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => {
                let message = format!("values of type {other:?}; F32, F16 and BF16 can be read");
                return Err(Error::format(&self.path, format!("tensor {name}"), message));
            }
        };
        Ok(Some((info.shape.clone(), values)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_bytes_are_stable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let values: Vec<f32> = (0..40_000).map(|i| i as f32 * 0.37 - 5000.0).collect();
        let tensors = BTreeMap::from([
            ("b".to_string(), Values::Slice(vec![200, 200], &values)),
            ("a".to_string(), Values::Slice(vec![3], &[1.0, -0.0, f32::MIN_POSITIVE])),
        ]);
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), ("z".into(), "ü\"".into())]);
        write(&path, &tensors, &metadata).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let stored = open(&path).unwrap();
        assert_eq!(stored.metadata, metadata);
        assert_eq!(stored.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(stored.tensor("b").unwrap(), Some((vec![200, 200], values.clone())));
        assert_eq!(stored.tensor("a").unwrap().unwrap().1[1].to_bits(), (-0.0f32).to_bits());
        assert_eq!(stored.tensor("c").unwrap(), None);
        write(&path, &tensors, &metadata).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_cut_file_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        std::fs::write(&path, b"\x10\0\0\0\0\0\0\0{\"a\":").unwrap();
        let message = open(&path).unwrap_err().to_string();
        assert!(message.contains("cut.safetensors"), "{message}");
    }
}

//! Named tensors in a safetensors file: written as a stream in name order, so that a checkpoint costs no
//! second copy in memory and the same tensors always give the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::optimizer::with_values;
use crate::error::{Error, Result};
use crate::files::write_atomic;

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

/// Number format of the values in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    F32,
    F16,
}

/// Writes `tensors` and the text pairs `metadata` to `path`.
pub(super) fn write(
    path: &Path,
    tensors: &BTreeMap<String, Values<'_>>,
    metadata: &BTreeMap<String, String>,
    precision: Precision,
) -> Result<()> {
    let (dtype, width) = match precision {
        Precision::F32 => ("F32", 4),
        Precision::F16 => ("F16", 2),
    };
    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), json!(metadata));
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        let end = offset + tensor.shape().iter().product::<usize>() * width;
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": tensor.shape(), "data_offsets": [offset, end]}),
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
        let mut bytes = Vec::with_capacity(16 * 1024 * width);
        for tensor in tensors.values() {
            tensor.with(|values| {
                for values in values.chunks(16 * 1024) {
                    bytes.clear();
                    match precision {
                        Precision::F32 => bytes.extend(values.iter().flat_map(|x| x.to_le_bytes())),
                        Precision::F16 => {
                            bytes.extend(values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()))
                        }
                    }
                    put(&bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// What a file held.
pub(super) struct Stored {
    pub(super) tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// Reads every tensor of `path`, widened to f32.
pub(super) fn read(path: &Path) -> Result<Stored> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let broken =
        |message: String| Error::format(path, "", format!("not a readable safetensors file: {message}"));
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
    let metadata = header.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(e.to_string()))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        let data = view.data();
        let values: Vec<f32> = match view.dtype() {
            Dtype::F32 => {
                data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            Dtype::F16 => data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            other => {
                let message = format!("values of type {other:?}; F32, F16 and BF16 can be read");
                return Err(Error::format(path, format!("tensor {name}"), message));
            }
        };
        tensors.insert(name.to_string(), (view.shape().to_vec(), values));
    }
    Ok(Stored { tensors, metadata })
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
        write(&path, &tensors, &metadata, Precision::F32).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let stored = read(&path).unwrap();
        assert_eq!(stored.metadata, metadata);
        assert_eq!(stored.tensors["b"], (vec![200, 200], values.clone()));
        assert_eq!(stored.tensors["a"].1[1].to_bits(), (-0.0f32).to_bits());
        write(&path, &tensors, &metadata, Precision::F32).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), bytes);

        write(&path, &tensors, &metadata, Precision::F16).unwrap();
        let stored = read(&path).unwrap();
        // Half precision keeps 11 bits.
        assert!(stored.tensors["b"].1.iter().zip(&values).all(|(a, b)| (a - b).abs() <= b.abs() / 2048.0));
    }

    #[test]
    fn a_cut_file_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        std::fs::write(&path, b"\x10\0\0\0\0\0\0\0{\"a\":").unwrap();
        let message = read(&path).err().unwrap().to_string();
        assert!(message.contains("cut.safetensors"), "{message}");
    }
}

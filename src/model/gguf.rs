//! The GGUF container: metadata, and where each tensor lies.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little endian.
//! The reader is our own rather than candle's so that every error names the tensor or key, a type
//! that cannot be read is refused by its name, and nothing is copied: it works on a memory map and
//! compares each length with the bytes left before it allocates.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::weights::{Entry, Kind};
use crate::error::{Error, Result};

/// Entries of a list that room is made for at once; a damaged count may promise as many as the file has bytes.
const RESERVE: usize = 1 << 16;

/// The tensor types that are read, by their GGUF names; README.md lists them too.
pub const GGUF_TYPES: [&str; 13] =
    ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"];

/// A metadata value. All integers fit `i128`; nested arrays are skipped.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(Cow<'a, str>),
    Texts(Vec<Cow<'a, str>>),
    Numbers(Vec<f64>),
    Nested,
}

/// The header of a file.
#[derive(Debug)]
pub(crate) struct Header<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pub(crate) values: BTreeMap<Cow<'a, str>, Value<'a>>,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

/// Reads the header of `bytes`, which `path` stands for in messages.
///
/// # Errors
/// [`Error::Format`] naming the place: not GGUF, a wrong version, truncated, a tensor outside the file, or an unsupported type.
pub(crate) fn parse<'a>(path: &'a Path, bytes: &'a [u8]) -> Result<Header<'a>> {
    let mut cursor = Cursor { path, bytes, at: 0 };
    if cursor.take(4, "magic")? != b"GGUF" {
        return Err(cursor.bad("magic", "this is not a GGUF file"));
    }
    let version = cursor.u32("version")?;
    if !(2..=3).contains(&version) {
        let message = format!("version {version}; 2 and 3 (little endian) are read. Convert the model again");
        return Err(cursor.bad("version", message));
    }
    let tensor_count = cursor.u64("tensor count")?;
    let value_count = cursor.u64("metadata count")?;
    let mut values = BTreeMap::new();
    for index in 0..value_count {
        let key = cursor.text(&format!("metadata {index}"))?;
        let kind = cursor.u32(&key)?;
        let value = cursor.value(&key, kind, 0)?;
        values.insert(key, value);
    }
    let alignment = match values.get("general.alignment") {
        None => 32,
        Some(Value::Int(n)) if (8..=1 << 20).contains(n) && n.count_ones() == 1 => *n as usize,
        Some(other) => {
            return Err(cursor.bad("general.alignment", format!("{other:?}: must be a power of two from 8")));
        }
    };
    let mut infos = Vec::new();
    for index in 0..tensor_count {
        infos.push(cursor.tensor(&format!("tensor {index} of {tensor_count}"))?);
    }
    let data = cursor.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for Info { name, shape, kind, bytes: size, offset } in infos {
        let place = format!("tensor {name}");
        let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
        let range = start.and_then(|start| Some(start..start.checked_add(size)?));
        let Some(range) = range.filter(|range| range.end <= bytes.len()) else {
            let message = format!(
                "needs {size} bytes from {offset}, but the file ends before that; it is truncated, download it again"
            );
            return Err(cursor.bad(&place, message));
        };
        // Blocks are read in place through pointers of up to 4 bytes alignment.
        if !range.start.is_multiple_of(8) {
            return Err(cursor.bad(&place, format!("offset {offset} is not aligned")));
        }
        let entry = Entry { shape, kind, file: 0, range };
        if tensors.insert(name, entry).is_some() {
            return Err(cursor.bad(&place, "occurs twice"));
        }
    }
    Ok(Header { path, bytes, values, tensors })
}

impl Header<'_> {
    fn bad(&self, key: &str, message: impl ToString) -> Error {
        Error::format(self.path, key, message)
    }

    /// A text, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.bad(key, format!("expected text, found {}", other.kind()))),
        }
    }

    /// A whole number from 0 to 2^53, if the key is there; an array of equal numbers counts as one.
    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        let n = match self.values.get(key) {
            None => return Ok(None),
            Some(Value::Int(n)) => *n,
            Some(Value::Numbers(list)) if !list.is_empty() && list.iter().all(|n| *n == list[0]) => {
                list[0] as i128
            }
            Some(Value::Numbers(_)) => {
                return Err(self.bad(key, "differs from layer to layer, which no supported family does"));
            }
            Some(other) => return Err(self.bad(key, format!("expected a number, found {}", other.kind()))),
        };
        if !(0..1 << 53).contains(&n) {
            return Err(self.bad(key, format!("{n} is out of range")));
        }
        Ok(Some(n as usize))
    }

    /// A number, if the key is there.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Int(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(self.bad(key, format!("expected a number, found {}", other.kind()))),
        }
    }

    /// A truth value, if the key is there.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.bad(key, format!("expected true or false, found {}", other.kind()))),
        }
    }

    /// A list of texts, if the key is there.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[Cow<'_, str>]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(list)),
            Some(other) => Err(self.bad(key, format!("expected a list of texts, found {}", other.kind()))),
        }
    }

    /// A list of numbers, if the key is there.
    pub(crate) fn numbers(&self, key: &str) -> Result<Option<&[f64]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Numbers(list)) => Ok(Some(list)),
            Some(other) => Err(self.bad(key, format!("expected a list of numbers, found {}", other.kind()))),
        }
    }

    /// What a key that must be there holds.
    ///
    /// # Errors
    /// [`Error::Format`] naming the key.
    pub(crate) fn need<T>(&self, key: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.bad(key, "missing; the file is incomplete, convert the model again"))
    }

    /// The numbers of a small f32 vector of the file, such as the divisors of rotary frequencies.
    ///
    /// # Errors
    /// [`Error::Format`] when it is missing or of another type.
    pub(crate) fn floats(&self, tensor: &str) -> Result<Vec<f32>> {
        let place = format!("tensor {tensor}");
        let entry = self.need(&place, self.tensors.get(tensor))?;
        if entry.kind != Kind::Dense(candle_core::DType::F32) || entry.shape.len() != 1 {
            return Err(self.bad(&place, "expected a vector of F32"));
        }
        let bytes = self.bytes[entry.range.clone()].chunks_exact(4);
        Ok(bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        self.path
    }
}

impl Value<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Value::Int(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "text",
            Value::Texts(_) => "a list of texts",
            Value::Numbers(_) => "a list of numbers",
            Value::Nested => "a nested list",
        }
    }
}

struct Info {
    name: String,
    shape: Vec<usize>,
    kind: Kind,
    bytes: usize,
    offset: u64,
}

struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn bad(&self, place: &str, message: impl ToString) -> Error {
        Error::format(self.path, place, message)
    }

    fn take(&mut self, count: usize, place: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            let left = self.bytes.len() - self.at;
            let message = format!(
                "needs {count} bytes at {}, but only {left} are left; the file is truncated or corrupt, download it again",
                self.at
            );
            return Err(self.bad(place, message));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, place)?);
        Ok(array)
    }

    fn u32(&mut self, place: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(place)?))
    }

    fn u64(&mut self, place: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(place)?))
    }

    fn text(&mut self, place: &str) -> Result<Cow<'a, str>> {
        let length = self.u64(place)?;
        // A length beyond usize is beyond the file too.
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX), place)?;
        Ok(String::from_utf8_lossy(bytes))
    }

    /// Bytes one value of a type takes at least; `None` for an unknown type.
    fn least(kind: u32) -> Option<usize> {
        Some(match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => return None,
        })
    }

    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.array(key)?).into()),
            1 => Value::Int(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Int(self.u32(key)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.take(1, key)?[0] != 0),
            8 => Value::Text(self.text(key)?),
            9 => self.list(key, depth)?,
            10 => Value::Int(self.u64(key)?.into()),
            11 => Value::Int(i64::from_le_bytes(self.array(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.bad(key, format!("unknown metadata type {other}; the file is corrupt"))),
        })
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value<'a>> {
        let kind = self.u32(key)?;
        let count = usize::try_from(self.u64(key)?).unwrap_or(usize::MAX);
        let Some(least) = Self::least(kind) else {
            return Err(self.bad(key, format!("unknown metadata type {kind}; the file is corrupt")));
        };
        let left = self.bytes.len() - self.at;
        if count.checked_mul(least).is_none_or(|need| need > left) {
            let message =
                format!("a list of {count} does not fit the {left} bytes left; the file is corrupt");
            return Err(self.bad(key, message));
        }
        if kind == 8 {
            let mut list = Vec::with_capacity(count.min(RESERVE));
            for _ in 0..count {
                list.push(self.text(key)?);
            }
            return Ok(Value::Texts(list));
        }
        if kind == 9 {
            // Nothing we read is nested; the bound keeps a crafted file from exhausting the stack.
            if depth > 3 {
                return Err(self.bad(key, "lists nested too deeply; the file is corrupt"));
            }
            for _ in 0..count {
                self.list(key, depth + 1)?;
            }
            return Ok(Value::Nested);
        }
        let mut list = Vec::with_capacity(count.min(RESERVE));
        for _ in 0..count {
            list.push(match self.value(key, kind, depth)? {
                Value::Int(n) => n as f64,
                Value::Float(x) => x,
                Value::Bool(b) => f64::from(u8::from(b)),
                _ => return Err(self.bad(key, "mixed list; the file is corrupt")),
            });
        }
        Ok(Value::Numbers(list))
    }

    fn tensor(&mut self, place: &str) -> Result<Info> {
        let name = self.text(place)?.into_owned();
        let place = format!("tensor {name}");
        let dims = self.u32(&place)?;
        if !(1..=4).contains(&dims) {
            return Err(self.bad(&place, format!("{dims} dimensions; 1 to 4 are possible")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(usize::try_from(self.u64(&place)?).unwrap_or(usize::MAX));
        }
        // The file counts the fastest dimension first, we count it last.
        shape.reverse();
        let kind = self.u32(&place)?;
        let kind = kind_of(kind).map_err(|name| {
            let read = GGUF_TYPES.join(", ");
            self.bad(&place, format!("stored as {name}, which is not read; use a file with {read}"))
        })?;
        let offset = self.u64(&place)?;
        let row = *shape.last().unwrap_or(&0);
        let elements = shape.iter().try_fold(1_usize, |all, &n| all.checked_mul(n)).filter(|&n| n > 0);
        let (block, block_bytes) = kind.block();
        let size = elements.and_then(|n| (n / block).checked_mul(block_bytes));
        match size {
            Some(bytes) if row.is_multiple_of(block) => Ok(Info { name, shape, kind, bytes, offset }),
            _ => Err(self.bad(
                &place,
                format!("impossible shape {shape:?} for blocks of {block}; the file is corrupt"),
            )),
        }
    }
}

/// The type of a GGUF type number; else its name.
fn kind_of(number: u32) -> std::result::Result<Kind, String> {
    use candle_core::DType;
    Ok(match number {
        0 => Kind::Dense(DType::F32),
        1 => Kind::Dense(DType::F16),
        30 => Kind::Dense(DType::BF16),
        2 => Kind::Blocks(GgmlDType::Q4_0),
        3 => Kind::Blocks(GgmlDType::Q4_1),
        6 => Kind::Blocks(GgmlDType::Q5_0),
        7 => Kind::Blocks(GgmlDType::Q5_1),
        8 => Kind::Blocks(GgmlDType::Q8_0),
        10 => Kind::Blocks(GgmlDType::Q2K),
        11 => Kind::Blocks(GgmlDType::Q3K),
        12 => Kind::Blocks(GgmlDType::Q4K),
        13 => Kind::Blocks(GgmlDType::Q5K),
        14 => Kind::Blocks(GgmlDType::Q6K),
        other => {
            const NAMES: [(u32, &str); 20] = [
                (9, "Q8_1"),
                (15, "Q8_K"),
                (16, "IQ2_XXS"),
                (17, "IQ2_XS"),
                (18, "IQ3_XXS"),
                (19, "IQ1_S"),
                (20, "IQ4_NL"),
                (21, "IQ3_S"),
                (22, "IQ2_S"),
                (23, "IQ4_XS"),
                (24, "I8"),
                (25, "I16"),
                (26, "I32"),
                (27, "I64"),
                (28, "F64"),
                (29, "IQ1_M"),
                (34, "TQ1_0"),
                (35, "TQ2_0"),
                (39, "MXFP4"),
                (40, "NVFP4"),
            ];
            let name = NAMES.iter().find(|(n, _)| *n == other).map(|(_, name)| (*name).to_owned());
            return Err(name.unwrap_or_else(|| format!("unknown type {other}")));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_that_are_read_are_those_the_readme_lists() {
        let readme = include_str!("../../README.md");
        assert!(readme.contains(&GGUF_TYPES.join(", ")), "{GGUF_TYPES:?}");
        let read = (0..64).filter(|&number| kind_of(number).is_ok()).count();
        assert_eq!(read, GGUF_TYPES.len());
    }
}

//! Typed access to a `config.json`, with errors that name the key.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// One JSON object of settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    model: &'a str,
    path: &'a Path,
    json: &'a Value,
}

impl<'a> Fields<'a> {
    /// Far above any model; keeps a corrupt file from asking for memory without bound.
    pub(crate) const MAX_LAYERS: usize = 1024;

    pub(crate) fn new(model: &'a str, path: &'a Path, json: &'a Value) -> Self {
        Fields { model, path, json }
    }

    /// An error about `key`.
    pub(crate) fn bad(&self, key: &str, message: impl ToString) -> Error {
        Error::format(self.path, key, format!("{} ({})", message.to_string(), self.model))
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let mut found = self.json[key].to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain("...".chars()).collect();
        }
        Err(self.bad(key, format!("expected {expected}, found {found}")))
    }

    pub(crate) fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            // Some files write 4096.0.
            Some(value) => match value
                .as_u64()
                .or(value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x)).map(|x| x as u64))
            {
                Some(n) if n < 1 << 53 => Ok(Some(n as usize)),
                _ => self.wrong(key, "a whole number"),
            },
        }
    }

    pub(crate) fn need_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.bad(key, "missing"))
    }

    /// A number of layers, bounded.
    pub(crate) fn layers(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let layers = match (self.count(key)?, default) {
            (Some(n), _) | (None, Some(n)) => n,
            (None, None) => return Err(self.bad(key, "missing")),
        };
        if layers > Self::MAX_LAYERS {
            return Err(self.bad(key, format!("{layers} layers; at most {} are possible", Self::MAX_LAYERS)));
        }
        Ok(layers)
    }

    /// `None` when the key is absent, `Some(None)` when it is null.
    pub(crate) fn nullable_count(&self, key: &str) -> Result<Option<Option<usize>>> {
        match self.json.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(_) => Ok(Some(self.count(key)?)),
        }
    }

    /// As [`Fields::nullable_count`], for a number.
    pub(crate) fn nullable_f32(&self, key: &str) -> Result<Option<Option<f32>>> {
        match self.json.get(key) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(_) => Ok(Some(self.number(key)?.map(|x| x as f32))),
        }
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) => Ok(Some(x)),
                None => self.wrong(key, "a number"),
            },
        }
    }

    pub(crate) fn need_number(&self, key: &str) -> Result<f64> {
        self.number(key)?.ok_or_else(|| self.bad(key, "missing"))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => self.wrong(key, "true or false"),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => self.wrong(key, "text"),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => match list.iter().map(Value::as_str).collect() {
                Some(texts) => Ok(Some(texts)),
                None => self.wrong(key, "a list of texts"),
            },
            Some(_) => self.wrong(key, "a list of texts"),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(json @ Value::Object(_)) => Ok(Some(Fields { json, ..*self })),
            Some(_) => self.wrong(key, "an object"),
        }
    }
}

//! Pairs from the models' files.

use std::path::{Path, PathBuf};

use super::difference::{Contrast, between};
use super::memory::both_fit;
use super::options::Contrasting;
use super::pair::{ModelPair, known_pair};
use super::sides::Side;
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::{DecoderConfig, Model, Streamed};
use crate::tokens::Tokenizer;

impl ModelPair {
    /// Loads a pair of [`KNOWN_PAIRS`](super::KNOWN_PAIRS). `nano` comes with this project (in `datasets`, or in `share/cluescope` of an
    /// installation) and needs no network.
    ///
    /// # Errors
    /// [`Error::Option`] for an unknown name, [`Error::Stopped`] when the two do not fit into memory together, and what
    /// [`load_model`] reports.
    pub fn load(name: &str) -> Result<Self> {
        let pair = known_pair(name)?;
        if pair.name != "nano" {
            both_fit(&pair)?;
        }
        Ok(ModelPair::new(load_model(pair.small)?, load_model(pair.large)?))
    }
}

/// As [`ModelPair::contrast_with`] for two sources that [`load_model`] takes, with only one
/// model in memory at a time. What can be known without weights is looked at for both before the first is loaded.
///
/// # Errors
/// As [`load_model`] and [`Model::attend`].
pub fn contrast_sources(
    large: &str,
    small: &str,
    corpus: &Corpus,
    options: &Contrasting,
) -> Result<Contrast> {
    options.check(&corpus.documents)?;
    for (source, heads) in [(small, &options.small_heads), (large, &options.large_heads)] {
        let config = load_config(source)?;
        options.attend_with(heads).check_for(&config).map_err(|e| Error::model(source, e))?;
    }
    let side = |source: &str, heads| {
        let model = load_model(source)?;
        Side::measure(&model, &corpus.documents, &options.attend_with(heads))
    };
    let small = side(small, &options.small_heads)?;
    let large = side(large, &options.large_heads)?;
    between(&corpus.documents, &large, &small, options)
}

/// As [`Model::load`], and also `nano-small` and `nano-large`, the pair that comes with this project and needs no network.
///
/// # Errors
/// As [`Model::load`]; [`Error::Model`] when the pair is not found.
pub fn load_model(source: &str) -> Result<Model> {
    let Some(folder) = bundled(source)? else { return Model::load(source) };
    let model = Model::load(&folder)?;
    let hash = model.hash().to_string();
    Ok(model.renamed(source, hash))
}

/// What [`load_model`] would load, to be read block by block.
///
/// # Errors
/// As [`load_model`].
pub fn open_streamed(source: &str) -> Result<Streamed> {
    let folder = bundled(source)?;
    Streamed::open(folder.as_deref().unwrap_or(source))
}

/// The configuration of what [`load_model`] would load; no weight is read.
///
/// # Errors
/// As [`load_model`].
pub fn load_config(source: &str) -> Result<DecoderConfig> {
    let folder = bundled(source)?;
    Model::load_config(folder.as_deref().unwrap_or(source))
}

/// The tokenizer of what [`load_model`] would load; no weight is read.
///
/// # Errors
/// As [`load_model`].
pub fn load_tokenizer(source: &str) -> Result<Tokenizer> {
    let folder = bundled(source)?;
    Model::load_tokenizer(folder.as_deref().unwrap_or(source))
}

/// The folder of `nano-small` or `nano-large`; `None` for any other source.
fn bundled(source: &str) -> Result<Option<String>> {
    let Some(size) = source.strip_prefix("nano-").filter(|size| ["small", "large"].contains(size)) else {
        return Ok(None);
    };
    let data = std::env::var_os("CLUESCOPE_DATA").filter(|v| !v.is_empty()).map(PathBuf::from);
    let places = places(data, std::env::current_exe().ok().as_deref());
    let found = places.iter().map(|place| place.join("nano").join(size)).find(|folder| folder.is_dir());
    let folder = found.ok_or_else(|| {
        let looked: Vec<String> = places.iter().take(2).map(|p| p.display().to_string()).collect();
        let message = format!(
            "not found in {}; set CLUESCOPE_DATA to the project's datasets folder",
            looked.join(" or ")
        );
        Error::model(source, message)
    })?;
    Ok(Some(folder.to_string_lossy().into_owned()))
}

/// Where the pair may lie. An explicit setting wins; then the checkout this was built from; then what an installation
/// puts beside or above its programs: `share/cluescope` beside `bin`, and the cells' process in `lib/cluescope` finds the same.
fn places(data: Option<PathBuf>, executable: Option<&Path>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = data.into_iter().collect();
    places.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("datasets"));
    for folder in executable.into_iter().flat_map(|executable| executable.ancestors().skip(1)) {
        places.extend([folder.join("datasets"), folder.join("share/cluescope")]);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_holds_its_pair_for_the_program_and_for_cells() {
        let share = PathBuf::from("/opt/cluescope/share/cluescope");
        for program in ["/opt/cluescope/bin/cluescope", "/opt/cluescope/lib/cluescope/cell-process"] {
            assert!(places(None, Some(Path::new(program))).contains(&share), "{program}");
        }
        assert_eq!(places(Some("/data".into()), None)[0], Path::new("/data"));
    }
}

//! Whether two models can be held at once.

use super::pair::KnownPair;
use crate::error::{Error, Result};
use crate::memory::available;
use crate::model::Hub;

/// Refuses a pair whose weights do not fit into this machine's free memory together, before either is downloaded. Weights are
/// held in the type of their files, so their size is that of the files. Where the system does not say
/// how much is free, nothing is refused.
pub(super) fn both_fit(pair: &KnownPair) -> Result<()> {
    let Some(free) = available() else { return Ok(()) };
    let hub = Hub::from_env();
    refuse(pair, hub.weight_bytes(pair.small)?, hub.weight_bytes(pair.large)?, free)
}

fn refuse(pair: &KnownPair, small: u64, large: u64, free: u64) -> Result<()> {
    if small.saturating_add(large) <= free {
        return Ok(());
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    Err(Error::Stopped(format!(
        "pair {}: {} ({:.1} GB) and {} ({:.1} GB) do not fit together into the {:.1} GB of free memory; \
         cluescope::contrast::contrast_sources({:?}, {:?}, &corpus, &Contrasting::new()) and the command `cluescope contrast` \
         hold one model at a time",
        pair.name,
        pair.small,
        gigabytes(small),
        pair.large,
        gigabytes(large),
        gigabytes(free),
        pair.large,
        pair.small,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contrast::known_pair;

    #[test]
    fn a_pair_too_large_is_refused_with_a_way_out() {
        let pair = known_pair("gemma2").unwrap();
        assert!(refuse(&pair, 5, 18, 23).is_ok());
        let message = refuse(&pair, 5_000_000_000, 18_000_000_000, 16_000_000_000).unwrap_err().to_string();
        for part in [
            "pair gemma2",
            "google/gemma-2-2b (5.0 GB)",
            "16.0 GB of free memory",
            "contrast_sources(\"google/gemma-2-9b\"",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}

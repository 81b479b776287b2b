//! Tagged text: what is read comes back, anything else is an error.
#![no_main]

use cluescope::corpus::Document;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(document) = Document::from_tagged("x", text) {
        assert_eq!(document.to_tagged().expect("it was read from tags"), text);
    }
});

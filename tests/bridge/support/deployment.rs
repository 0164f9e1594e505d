//! The files of `deploy/` as shipped.

use std::{fs, path::Path};

/// The content of a file in that folder.
pub fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The same with these texts replaced. Panics if one of them is missing.
pub fn filled_in(name: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(shipped(name), |text, (from, to)| {
        assert!(text.contains(from), "deploy/{name} has no {from:?}");
        text.replace(from, to)
    })
}

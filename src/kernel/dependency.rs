//! What a `:dep` line asks for, and whether the prelude has it.

use std::borrow::Cow;

use semver::{Version, VersionReq};

use super::prelude::Prelude;
use crate::error::{Error, Result};

/// A `:dep` line, read as cargo reads a line of `[dependencies]`.
#[derive(Debug, PartialEq, Eq)]
struct Dependency {
    /// The name cells will use.
    name: String,
    /// Package name.
    package: String,
    /// Version requirement.
    requirement: Option<String>,
    /// Features by name.
    features: Vec<String>,
    /// From a folder or a repository instead of the registry.
    elsewhere: bool,
}

impl Dependency {
    /// `None` for any other line, and for one that is not TOML: the engine says what is wrong with it.
    fn in_line(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix(":dep ")?.trim();
        let mut wanted = Dependency {
            name: rest.to_owned(),
            package: rest.to_owned(),
            requirement: None,
            features: Vec::new(),
            elsewhere: false,
        };
        if !rest.contains('=') {
            return Some(wanted);
        }
        let table: toml::Table = toml::from_str(rest).ok()?;
        let (name, config) = table.into_iter().next()?;
        let text = |key: &str| config.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        wanted.package = text("package").unwrap_or_else(|| name.clone());
        wanted.name = name;
        wanted.requirement = config.as_str().map(str::to_owned).or_else(|| text("version"));
        let features = config.get("features").and_then(toml::Value::as_array).into_iter().flatten();
        wanted.features = features.filter_map(|f| f.as_str().map(str::to_owned)).collect();
        wanted.elsewhere = ["path", "git"].iter().any(|key| config.get(key).is_some());
        Some(wanted)
    }

    /// Whether the prelude has it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when it is here in another version, from another place or without a feature
    /// asked for: its types would exist twice.
    fn is_in(&self, prelude: &Prelude) -> Result<bool> {
        let Some(carried) = prelude.crates.get(&self.package.replace('-', "_")) else { return Ok(false) };
        if carried.package == "cluescope" {
            return Ok(true);
        }
        let not_read = |e: semver::Error| Error::Stopped(format!(":dep {}: version: {e}", self.name));
        let accepted = match &self.requirement {
            Some(requirement) => VersionReq::parse(requirement)
                .map_err(not_read)?
                .matches(&Version::parse(&carried.version).map_err(not_read)?),
            None => true,
        };
        let mut lacking = self.features.iter().map(String::as_str).collect::<Vec<_>>();
        lacking.retain(|feature| !carried.features.contains(*feature));
        let other = match &self.requirement {
            Some(requirement) if !accepted => format!("version {requirement}"),
            _ if self.elsewhere => "a copy from another place".to_owned(),
            _ if !lacking.is_empty() => format!("a copy with the feature {}", lacking.join(", ")),
            _ => return Ok(true),
        };
        Err(Error::Stopped(format!(
            "{} {} is part of cluescope's notebooks; {other} would make every one of its types exist twice. \
             Leave the :dep line out, or ask for {} with features among: {}",
            carried.package,
            carried.version,
            carried.version,
            carried.features.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        )))
    }
}

/// `code` without the `:dep` lines that ask for what `prelude` has; the number of lines stays. A crate asked for under
/// another name is imported under it.
///
/// # Errors
/// [`Error::Stopped`] for a line that would bring a second copy of a crate of the prelude.
pub(super) fn without_provided(code: &str, prelude: &Prelude) -> Result<String> {
    let kept = code.split_inclusive('\n').map(|line| {
        let Some(wanted) = Dependency::in_line(line) else { return Ok(Cow::Borrowed(line)) };
        if !wanted.is_in(prelude)? {
            return Ok(Cow::Borrowed(line));
        }
        let end = if line.ends_with('\n') { "\n" } else { "" };
        Ok(if wanted.name == wanted.package {
            Cow::Borrowed(end)
        } else {
            let [package, name] = [&wanted.package, &wanted.name].map(|n| n.replace('-', "_"));
            Cow::Owned(format!("use {package} as {name};{end}"))
        })
    });
    kept.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Crate;
    use std::path::PathBuf;

    fn plain(package: &str, requirement: Option<&str>) -> Dependency {
        Dependency {
            name: package.into(),
            package: package.into(),
            requirement: requirement.map(str::to_owned),
            features: vec![],
            elsewhere: false,
        }
    }

    fn prelude() -> Prelude {
        let carried = Crate {
            package: "polars".into(),
            version: "0.55.2".into(),
            file: "deps/libpolars.rlib".into(),
            features: ["csv".to_owned(), "fmt".to_owned()].into(),
        };
        Prelude {
            folder: PathBuf::new(),
            made_in: PathBuf::new(),
            compiler: String::new(),
            crates: [("polars".to_owned(), carried)].into(),
            interface: None,
        }
    }

    #[test]
    fn lines_are_read_as_cargo_reads_them() {
        for (line, wanted) in [
            (":dep polars = \"0.55\"", Some(plain("polars", Some("0.55")))),
            (
                ":dep cluescope = { path = \"..\" }\n",
                Some(Dependency { elsewhere: true, ..plain("cluescope", None) }),
            ),
            (
                ":dep a-b = { version = \"1.2\", default-features = false, features = [\"x\", \"y\"] }",
                Some(Dependency { features: vec!["x".into(), "y".into()], ..plain("a-b", Some("1.2")) }),
            ),
            (
                ":dep pl = { package = 'polars', version = '0.55' }  # tables",
                Some(Dependency { name: "pl".into(), ..plain("polars", Some("0.55")) }),
            ),
            (":dep regex", Some(plain("regex", None))),
            (":dep regex = { version = ", None),
            ("let x = 1;", None),
        ] {
            assert_eq!(Dependency::in_line(line), wanted, "{line}");
        }
    }

    #[test]
    fn what_is_here_is_not_taken_twice() {
        let prelude = prelude();
        let code = |line: &str| without_provided(&format!("{line}\nlet a = 1;"), &prelude);
        for here in [
            ":dep polars",
            ":dep polars = \"0.55\"",
            ":dep polars = { version = \"*\", features = [\"csv\"] }",
        ] {
            assert_eq!(code(here).unwrap(), "\nlet a = 1;", "{here}");
        }
        assert_eq!(code(":dep pl = { package = \"polars\" }").unwrap(), "use polars as pl;\nlet a = 1;");
        assert_eq!(code(":dep regex = \"1\"").unwrap(), ":dep regex = \"1\"\nlet a = 1;");
        for (line, word) in [
            (":dep polars = \"0.40\"", "version 0.40"),
            (":dep polars = \"=0.55.1\"", "version =0.55.1"),
            (":dep pl = { package = \"polars\", version = \"0.40\" }", "version 0.40"),
            (
                ":dep polars = { version = \"0.55\", features = [\"lazy\", \"csv\"] }",
                "the feature lazy would",
            ),
            (":dep polars = { path = \"..\" }", "from another place"),
        ] {
            let message = code(line).unwrap_err().to_string();
            assert!(message.contains(word) && message.contains("exist twice"), "{message}");
        }
        let message = code(":dep polars = \"latest\"").unwrap_err().to_string();
        assert!(message.contains(":dep polars: version:"), "{message}");
    }
}

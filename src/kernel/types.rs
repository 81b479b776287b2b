//! Types of a cell's new variables, told by the compiler.
//!
//! The engine keeps variables between cells, so it must write down their types. It asks
//! rust-analyzer; we ask `rustc`: every variable of the cell is handed to a function whose trait
//! bound nothing satisfies, with a message of our own that contains the type. One type check names
//! them all, macros and generated code included. Then each `let` of the cell is followed by
//! another with the type written out, on the same line, so that messages keep their places.

use std::collections::BTreeMap;

use ra_ap_syntax::ast::{self, AstNode, HasName};
use ra_ap_syntax::{Edition, SourceFile, SyntaxKind};
use serde_json::Value;

const MARK: &str = "cluescope type: ";
const PROBE: &str = "cluescope_probe";

/// One top-level `let` whose types are not all written down.
#[derive(Debug, PartialEq, Eq)]
struct Untyped {
    /// Byte offset just after the statement.
    end: usize,
    /// (name, is it `mut`).
    names: Vec<(String, bool)>,
}

fn lets(code: &str) -> Vec<ast::LetStmt> {
    let text = format!("fn cell() {{\n{}\n}}\n", without_commands(code));
    let file = SourceFile::parse(&text, Edition::Edition2024);
    file.tree().syntax().descendants().filter_map(ast::LetStmt::cast).collect()
}

/// The names of all variables that `code` declares.
pub(super) fn variables(code: &str) -> Vec<String> {
    let patterns = lets(code).into_iter().filter_map(|statement| statement.pat());
    let names = patterns.flat_map(|pattern| {
        pattern.syntax().descendants().filter_map(ast::IdentPat::cast).collect::<Vec<_>>()
    });
    names.filter_map(|pattern| Some(pattern.name()?.text().to_string())).collect()
}

/// The type that `code` writes down for the variable `name`; of several the last.
pub(super) fn declared(code: &str, name: &str) -> Option<String> {
    let lets = lets(code);
    let of_name = |statement: &&ast::LetStmt| match statement.pat() {
        Some(ast::Pat::IdentPat(pattern)) => pattern.name().is_some_and(|found| found.text() == name),
        _ => false,
    };
    lets.iter().rfind(of_name)?.ty().map(|ty| ty.syntax().text().to_string())
}

/// The code with a variable that rust-analyzer cannot type, so that the engine runs its check; or
/// `None` when no variable needs a type.
pub(super) fn with_probe(code: &str) -> Option<String> {
    let first = untyped(code).into_iter().next()?;
    let mut text = code.to_owned();
    text.insert_str(first.end, &format!(" let {PROBE} = ::std::convert::identity(());"));
    Some(text)
}

/// The code with every new variable's type written out.
///
/// # Errors
/// A sentence about the first variable whose type has no name.
pub(super) fn annotated(code: &str, types: &BTreeMap<String, String>) -> Result<String, String> {
    let mut insertions = Vec::new();
    let lets = untyped(code);
    for (index, statement) in lets.iter().enumerate() {
        for (name, mutable) in &statement.names {
            let shadowed = lets[index + 1..].iter().any(|later| later.names.iter().any(|(n, _)| n == name));
            let Some(found) = types.get(name).filter(|_| !shadowed) else { continue };
            let type_name = nameable(name, found)?;
            let mutable = if *mutable { "mut " } else { "" };
            insertions.push((statement.end, format!(" let {mutable}{name}: {type_name} = {name};")));
        }
    }
    let mut text = code.to_owned();
    for (at, insertion) in insertions.iter().rev() {
        text.insert_str(*at, insertion);
    }
    Ok(text)
}

/// The type as it can be written in source.
fn nameable(name: &str, found: &str) -> Result<String, String> {
    if found.contains("{closure@")
        || found.contains("{async ")
        || found.contains("impl ")
        || found.contains("{coroutine")
    {
        let kind = if found.contains("{closure@") { "a closure" } else { "a type without a name" };
        return Err(format!(
            "The variable `{name}` is or holds {kind} and cannot be kept for later cells.\n\
             Box it: `let {name}: Box<dyn Fn(…) -> …> = Box::new(…);` (or `Box<dyn Iterator<Item = …>>`),\n\
             collect it, or wrap the cell in braces so that nothing is kept."
        ));
    }
    let text = found.replace("{integer}", "i32").replace("{float}", "f64");
    // A function's own type ends with its name in braces; the pointer to it can be written.
    Ok(match text.split_once(" {") {
        Some((pointer, _)) if text.ends_with('}') => pointer.to_owned(),
        _ => text,
    })
}

/// Lines that are commands of the engine, blanked; they are not Rust.
pub(super) fn without_commands(code: &str) -> String {
    code.split_inclusive('\n')
        .map(|line| {
            let start = line.trim_start();
            let is_command = (start.starts_with(':') && !start.starts_with("::")) || start.starts_with("!");
            if is_command {
                line.chars().map(|c| if c == '\n' { "\n".into() } else { " ".repeat(c.len_utf8()) }).collect()
            } else {
                line.to_owned()
            }
        })
        .collect()
}

fn untyped(code: &str) -> Vec<Untyped> {
    const OPEN: &str = "async fn cell() {\n";
    let text = format!("{OPEN}{}\n}}\n", without_commands(code));
    let file = SourceFile::parse(&text, Edition::Edition2024).tree();
    let Some(body) = file.syntax().children().find_map(ast::Fn::cast).and_then(|f| f.body()) else {
        return Vec::new();
    };
    let Some(list) = body.stmt_list() else { return Vec::new() };
    let mut found = Vec::new();
    for statement in list.statements() {
        let ast::Stmt::LetStmt(statement) = statement else { continue };
        let Some(pattern) = statement.pat() else { continue };
        let typed = statement.ty().is_some_and(|ty| {
            !ty.syntax().descendants().any(|n| matches!(n.kind(), SyntaxKind::INFER_TYPE | SyntaxKind::ERROR))
        });
        if typed && matches!(pattern, ast::Pat::IdentPat(_)) {
            continue;
        }
        let names: Vec<_> = pattern
            .syntax()
            .descendants()
            .filter_map(ast::IdentPat::cast)
            .filter(|p| p.ref_token().is_none())
            .filter_map(|p| Some((p.name()?.text().to_string(), p.mut_token().is_some())))
            .collect();
        if names.is_empty() {
            continue;
        }
        let end = usize::from(statement.syntax().text_range().end());
        // A statement without its semicolon gets a message from the compiler instead.
        if end > OPEN.len() && text[..end].ends_with(';') {
            found.push(Untyped { end: end - OPEN.len(), names });
        }
    }
    found
}

/// The engine's source for analysis, with the function that every variable is handed to replaced
/// by one that makes the compiler say its type. Line numbers stay.
///
/// `crates` are loaded whether the cell names them or not. Otherwise a data frame that a method returned would be a
/// `polars_core::frame::DataFrame`, after a crate that no cell can name, and not a `polars::frame::DataFrame`.
pub(super) fn probe_source<'a>(source: &str, crates: impl Iterator<Item = &'a str>) -> String {
    let mut text = source.replace(
        "fn evcxr_variable_store<T: 'static>(_: T) {}",
        &format!(
            "#[diagnostic::on_unimplemented(message = \"{MARK}{{Self}}\")] trait CluescopeType {{}} \
             fn evcxr_variable_store<T: CluescopeType>(_: T) {{}}"
        ),
    );
    for name in crates {
        text.push_str(&format!("\nextern crate {name};"));
    }
    text
}

/// Name and type when `message` is the answer about one variable. Also consumes what is no error
/// of the user's: notes without a place, and the probe itself.
pub(super) fn type_in(message: &Value, source: &str) -> Option<(String, String)> {
    let type_name = message["message"].as_str()?.strip_prefix(MARK)?;
    let line =
        message["spans"].as_array()?.iter().find(|s| s["is_primary"] == true)?["line_start"].as_u64()?;
    let text = source.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let name = text.trim().strip_prefix("evcxr_variable_store(")?.strip_suffix(");")?;
    Some((name.to_owned(), type_name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn types(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect()
    }

    #[test]
    fn every_let_gets_its_type_on_its_own_line() {
        let code = ":dep regex = \"1\"\nlet (a, mut b) = f();\nlet c: u8 = 1; { let inner = 2; }\nlet d: Vec<_> = g();\na + 1";
        assert!(
            with_probe(code)
                .unwrap()
                .starts_with(":dep regex = \"1\"\nlet (a, mut b) = f(); let cluescope_probe")
        );
        let made = annotated(
            code,
            &types(&[("a", "{integer}"), ("b", "std::vec::Vec<{float}>"), ("d", "std::vec::Vec<u8>")]),
        )
        .unwrap();
        assert_eq!(
            made,
            ":dep regex = \"1\"\nlet (a, mut b) = f(); let a: i32 = a; let mut b: std::vec::Vec<f64> = b;\n\
             let c: u8 = 1; { let inner = 2; }\nlet d: Vec<_> = g(); let d: std::vec::Vec<u8> = d;\na + 1"
        );
    }

    #[test]
    fn types_that_are_written_down() {
        let code = ":dep regex\nlet n: usize = 2; let m = 3;\nlet mut v: Vec<(u8, &str)> = vec![];";
        assert_eq!(declared(code, "n").as_deref(), Some("usize"));
        assert_eq!(declared(code, "v").as_deref(), Some("Vec<(u8, &str)>"));
        assert_eq!((declared(code, "m"), declared(code, "x")), (None, None));
    }

    #[test]
    fn nothing_to_do_without_new_variables() {
        for code in ["1 + 1", "let x: u8 = 1;", "fn f() { let y = 1; }", "let _ = 3;", "let x = 1", ":vars"] {
            assert_eq!(with_probe(code), None, "{code}");
        }
    }

    #[test]
    fn the_last_of_two_bindings_counts() {
        let made = annotated("let x = 1; let x = \"é\";", &types(&[("x", "&str")])).unwrap();
        assert_eq!(made, "let x = 1; let x = \"é\"; let x: &str = x;");
    }

    #[test]
    fn closures_are_refused_and_functions_become_pointers() {
        assert!(
            annotated("let f = |x| x;", &types(&[("f", "{closure@lib.rs:1:2}")]))
                .unwrap_err()
                .contains("closure")
        );
        let made = annotated("let f = g;", &types(&[("f", "fn(u8) -> u8 {g}")])).unwrap();
        assert_eq!(made, "let f = g; let f: fn(u8) -> u8 = f;");
    }
}

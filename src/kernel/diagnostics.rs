//! Errors of a cell in words: compiler messages with the lines they are about, panics, errors
//! returned by `?`, crashes.

use super::session::CellError;

/// Name of the error of a cell whose process ended.
pub(super) const CRASH: &str = "Crash";
/// Name of the error of a cell that was stopped.
pub(super) const INTERRUPTED: &str = "Interrupted";

const RED: &str = "\u{1b}[1;31m";
const BLUE: &str = "\u{1b}[34m";
const PLAIN: &str = "\u{1b}[0m";

/// Text for places that show no colours.
pub(super) fn without_colours(text: &str) -> String {
    [RED, BLUE, PLAIN].iter().fold(text.to_owned(), |text, colour| text.replace(colour, ""))
}

/// All compiler messages of a cell. `code` is the cell as the user wrote it.
pub(super) fn compilation(errors: &[evcxr::CompilationError], code: &str) -> CellError {
    let lines: Vec<&str> = code.lines().collect();
    let mut traceback = Vec::new();
    for error in errors.iter().filter(|e| e.level() != "warning") {
        traceback.extend(one(error, &lines));
    }
    let first = errors.iter().find(|e| e.level() != "warning").or(errors.first());
    let ename = first.and_then(|e| e.code()).unwrap_or("CompilationError").to_owned();
    let evalue = first.map(|e| e.message()).unwrap_or_else(|| "the cell does not compile".to_owned());
    CellError { ename, evalue, traceback }
}

fn one(error: &evcxr::CompilationError, lines: &[&str]) -> Vec<String> {
    let code = error.code().map(|c| format!("[{c}]")).unwrap_or_default();
    let mut out = vec![format!("{RED}error{code}{PLAIN}: {}", error.message())];
    let mut shown_spans = 0;
    for message in error.spanned_messages() {
        let Some(span) = message.span else { continue };
        shown_spans += 1;
        let Some(line) = lines.get(span.start_line.saturating_sub(1)) else { continue };
        let number = span.start_line.to_string();
        let margin = " ".repeat(number.len());
        let from = span.start_column.saturating_sub(1).min(line.chars().count());
        let width = if span.end_line == span.start_line {
            span.end_column.saturating_sub(span.start_column)
        } else {
            1
        };
        let sign = if message.is_primary { "^" } else { "-" };
        out.push(format!("{BLUE}{margin}-->{PLAIN} cell:{}:{}", span.start_line, span.start_column));
        out.push(format!("{BLUE}{number} |{PLAIN} {line}"));
        let under = " ".repeat(from);
        out.push(format!(
            "{BLUE}{margin} |{PLAIN} {under}{RED}{} {}{PLAIN}",
            sign.repeat(width.max(1)),
            message.label
        ));
    }
    if shown_spans == 0 && !error.rendered().is_empty() {
        out.push(error.rendered());
    }
    let twice = twice(&error.rendered());
    for help in error.help() {
        // Of no use here: cells are no cargo package.
        if twice.is_none() || !help.contains("cargo tree") {
            out.push(format!("{BLUE}help{PLAIN}: {help}"));
        }
    }
    out.extend(twice.map(|hint| format!("{BLUE}help{PLAIN}: {hint}")));
    out.extend(error.evcxr_extra_hint().map(|hint| format!("{BLUE}note{PLAIN}: {hint}")));
    out
}

/// What to do when a crate of a `:dep` line has brought its own copy of one that is here.
fn twice(rendered: &str) -> Option<String> {
    let name = rendered.split_once("multiple different versions of crate `")?.1.split('`').next()?;
    Some(format!(
        "a crate of a :dep line was built with its own copy of `{name}`, whose types are not those of the `{name}` of \
         cluescope's notebooks, even at the same version. Pass plain values between the two (numbers, text, slices), \
         or use the copy that crate exports."
    ))
}

/// A panic on the cell's own thread.
pub(super) fn panic(message: &str, place: &str) -> CellError {
    // The cell's file is made up by the engine; its line numbers would mislead.
    let place = if place.contains("target/cell/lib.rs") {
        String::new()
    } else {
        format!("\n{BLUE}at{PLAIN} {place}")
    };
    CellError {
        ename: "Panic".into(),
        evalue: message.to_owned(),
        traceback: vec![
            format!("{RED}Panic{PLAIN}: {message}{place}"),
            "Variables defined before this cell are kept.".into(),
        ],
    }
}

/// An error that `?` returned.
pub(super) fn returned(type_name: &str, message: &str) -> CellError {
    let name = type_name.rsplit("::").next().filter(|n| !n.contains('>')).unwrap_or(type_name);
    CellError {
        ename: if type_name.is_empty() { "Error".into() } else { name.to_owned() },
        evalue: message.to_owned(),
        traceback: vec![format!("{RED}{type_name}{PLAIN}: {message}")],
    }
}

/// The process of cells ended in the middle of one.
pub(super) fn crash(message: &str) -> CellError {
    let why = if message.contains("SIGSEGV") || message.contains("signal: 11") {
        "segmentation fault"
    } else if message.contains("SIGABRT") || message.contains("signal: 6") {
        "aborted, as by std::process::abort, a panic while panicking or a stack overflow"
    } else if message.contains("SIGKILL") || message.contains("signal: 9") {
        "killed, as when memory runs out"
    } else {
        message.trim()
    };
    CellError {
        ename: CRASH.into(),
        evalue: why.to_owned(),
        traceback: vec![
            format!("{RED}The process of this notebook ended{PLAIN}: {why}"),
            "A new one is running; all variables are lost, definitions and imports are kept.".into(),
        ],
    }
}

/// Anything else the engine refuses.
pub(super) fn other(error: &evcxr::Error) -> CellError {
    CellError::new("Error", error.to_string())
}

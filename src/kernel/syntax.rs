//! Small questions about source text that the protocol asks.

use ra_ap_syntax::ast::{self, AstNode};
use ra_ap_syntax::{Edition, SourceFile, SyntaxKind, T};

use super::types::without_commands;

/// Whether a cell can run as it stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// It can.
    Complete,
    /// More must follow; indented by this.
    Incomplete(String),
    /// No continuation can make it right.
    Invalid,
}

const OPEN: &str = "async fn cell() {\n";

fn parse(code: &str) -> SourceFile {
    SourceFile::parse(&format!("{OPEN}{}\n}}\n", without_commands(code)), Edition::Edition2024).tree()
}

/// Whether the last statement is an expression whose value is shown.
pub(super) fn ends_with_value(code: &str) -> bool {
    let body = parse(code).syntax().children().find_map(ast::Fn::cast).and_then(|f| f.body());
    body.and_then(|b| b.stmt_list()).and_then(|list| list.tail_expr()).is_some()
}

/// The text of all definitions and imports at the top of a cell.
pub(super) fn items(code: &str) -> Vec<String> {
    let body = parse(code).syntax().children().find_map(ast::Fn::cast).and_then(|f| f.body());
    let statements =
        body.and_then(|b| b.stmt_list()).into_iter().flat_map(|list| list.statements().collect::<Vec<_>>());
    statements
        .filter_map(|statement| match statement {
            ast::Stmt::Item(item) => Some(item.syntax().text().to_string()),
            _ => None,
        })
        .collect()
}

/// Brackets, strings and comments decide; whether it compiles is another matter.
pub(super) fn completeness(code: &str) -> Completeness {
    let code = without_commands(code);
    let parsed = SourceFile::parse(&code, Edition::Edition2024);
    let mut open = Vec::new();
    let mut last = None;
    for token in parsed.syntax_node().descendants_with_tokens().filter_map(|e| e.into_token()) {
        let text = token.text();
        match token.kind() {
            T!['('] | T!['['] | T!['{'] => open.push(text.to_owned()),
            T![')'] | T![']'] | T!['}'] => {
                let wanted = match text {
                    ")" => "(",
                    "]" => "[",
                    _ => "{",
                };
                if open.pop().as_deref() != Some(wanted) {
                    return Completeness::Invalid;
                }
            }
            SyntaxKind::COMMENT if text.starts_with("/*") && !text.ends_with("*/") => {
                return Completeness::Incomplete(String::new());
            }
            SyntaxKind::STRING | SyntaxKind::BYTE_STRING | SyntaxKind::C_STRING => {
                let quoted = text.trim_start_matches(['b', 'c', 'r', '#']);
                if quoted.len() < 2 || !text.trim_end_matches('#').ends_with('"') {
                    return Completeness::Incomplete(String::new());
                }
            }
            _ => {}
        }
        if !matches!(token.kind(), SyntaxKind::WHITESPACE | SyntaxKind::COMMENT) {
            last = Some(token.kind());
        }
    }
    let waits = matches!(
        last,
        Some(
            T![=]
                | T![.]
                | T![,]
                | T![+]
                | T![-]
                | T![*]
                | T![/]
                | T![::]
                | T![&&]
                | T![||]
                | T![=>]
                | T![->]
        )
    );
    if open.is_empty() && !waits {
        return Completeness::Complete;
    }
    Completeness::Incomplete("    ".repeat(open.len().max(1)))
}

/// Shell patterns of history searches: `*` and `?`.
pub(super) fn glob(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    p = at + 1;
                    t = from + 1;
                    star = Some((at, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completeness_of_cells() {
        for code in [
            "1 + 1",
            "let x = [1, 2];",
            "fn f() { \"}\" }",
            "// (",
            ":dep regex",
            "",
            "'a'",
            "r#\"(\"#",
            "x as u8",
        ] {
            assert_eq!(completeness(code), Completeness::Complete, "{code}");
        }
        for code in ["fn f() {", "let x =", "vec![1,", "\"abc", "/* a", "x.\n"] {
            assert!(matches!(completeness(code), Completeness::Incomplete(_)), "{code}");
        }
        for code in [")", "fn f() { ] }", "(}"] {
            assert_eq!(completeness(code), Completeness::Invalid, "{code}");
        }
        assert_eq!(completeness("fn f() {\n    if a {"), Completeness::Incomplete("        ".into()));
    }

    #[test]
    fn values_at_the_end() {
        for code in ["1", "let x = 1; x", "f()?", "for i in 0..3 { }"] {
            assert!(ends_with_value(code), "{code}");
        }
        for code in ["f();", "let x = 1;", "fn f() {}", ":vars", ""] {
            assert!(!ends_with_value(code), "{code}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, text, yes) in [
            ("*", "", true),
            ("let*", "let x", true),
            ("*x?", "axb", true),
            ("a", "ab", false),
            ("*b*c", "abbc", true),
        ] {
            assert_eq!(glob(pattern, text), yes, "{pattern} {text}");
        }
    }
}

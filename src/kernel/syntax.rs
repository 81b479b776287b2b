//! Small questions about source text that the protocol asks.

use ra_ap_syntax::ast::{self, AstNode, HasName};
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

fn statements(code: &str) -> Option<ast::StmtList> {
    parse(code).syntax().children().find_map(ast::Fn::cast)?.body()?.stmt_list()
}

/// Whether the last statement is an expression whose value is shown, as far as its form tells.
pub(super) fn ends_with_value(code: &str) -> bool {
    statements(code).and_then(|list| list.tail_expr()).is_some_and(|tail| has_value(&tail))
}

fn has_value(expression: &ast::Expr) -> bool {
    let tail = |block: Option<ast::BlockExpr>| {
        block
            .and_then(|b| b.stmt_list())
            .and_then(|list| list.tail_expr())
            .is_some_and(|tail| has_value(&tail))
    };
    match expression {
        ast::Expr::ForExpr(_) | ast::Expr::WhileExpr(_) => false,
        ast::Expr::LoopExpr(endless) => {
            endless.syntax().descendants().filter_map(ast::BreakExpr::cast).any(|b| b.expr().is_some())
        }
        ast::Expr::TupleExpr(tuple) => tuple.fields().next().is_some(),
        ast::Expr::ParenExpr(inner) => inner.expr().is_none_or(|inner| has_value(&inner)),
        ast::Expr::BlockExpr(block) if block.async_token().is_none() => tail(Some(block.clone())),
        ast::Expr::IfExpr(choice) => match choice.else_branch() {
            None => false,
            Some(ast::ElseBranch::Block(other)) => tail(choice.then_branch()) || tail(Some(other)),
            Some(ast::ElseBranch::IfExpr(other)) => {
                tail(choice.then_branch()) || has_value(&ast::Expr::IfExpr(other))
            }
        },
        _ => true,
    }
}

/// A definition or import at the top of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Definition {
    /// A later definition of the same takes its place.
    pub what: String,
    /// Its text.
    pub text: String,
}

/// All definitions and imports at the top of a cell.
pub(super) fn definitions(code: &str) -> Vec<Definition> {
    let list = statements(code);
    let statements = list.into_iter().flat_map(|list| list.statements().collect::<Vec<_>>());
    statements
        .filter_map(|statement| match statement {
            ast::Stmt::Item(item) => {
                let text = item.syntax().text().to_string();
                Some(Definition { what: defined(&item).unwrap_or_else(|| text.clone()), text })
            }
            _ => None,
        })
        .collect()
}

/// What an item defines: its name among types, values or macros, or the head of an `impl`. Of imports and the like only
/// the same text is the same thing.
fn defined(item: &ast::Item) -> Option<String> {
    let (space, name) = match item {
        ast::Item::Struct(item) => ("type", item.name()),
        ast::Item::Enum(item) => ("type", item.name()),
        ast::Item::Union(item) => ("type", item.name()),
        ast::Item::Trait(item) => ("type", item.name()),
        ast::Item::TypeAlias(item) => ("type", item.name()),
        ast::Item::Module(item) => ("type", item.name()),
        ast::Item::Fn(item) => ("value", item.name()),
        ast::Item::Const(item) => ("value", item.name()),
        ast::Item::Static(item) => ("value", item.name()),
        ast::Item::MacroRules(item) => ("macro", item.name()),
        ast::Item::Impl(item) => {
            let body = item.assoc_item_list()?.syntax().text_range().start();
            let start = item.syntax().text_range().start();
            let head = item.syntax().text().slice(..body - start).to_string();
            return Some(head.split_whitespace().collect::<Vec<_>>().join(" "));
        }
        _ => return None,
    };
    Some(format!("{space} {}", name?.text()))
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
        for code in [
            "1",
            "let x = 1; x",
            "f()?",
            "(1)",
            "loop { break 5 }",
            "{ 1 }",
            "if a { 1 } else { 2 }",
            "match a { _ => 1 }",
        ] {
            assert!(ends_with_value(code), "{code}");
        }
        for code in [
            "f();",
            "let x = 1;",
            "fn f() {}",
            ":vars",
            "",
            "for i in 0..3 { i }",
            "while a { }",
            "loop { if a { break; } }",
            "()",
            "{ f(); }",
            "if a { 1 }",
            "if a { f(); } else if b { f(); } else { f(); }",
        ] {
            assert!(!ends_with_value(code), "{code}");
        }
    }

    #[test]
    fn a_later_definition_of_the_same_thing_is_known() {
        let same = [
            ("fn f() {}", "/// Better.\npub fn f(x: u8) {}"),
            ("struct A;", "enum A { B }"),
            ("impl A { fn a() {} }", "impl  A {\n    fn b() {}\n}"),
            ("use std::fmt;", "use std::fmt;"),
            ("macro_rules! m { () => {} }", "macro_rules! m { ($x:expr) => {} }"),
        ];
        let what = |code: &str| definitions(code).pop().unwrap().what;
        for (first, second) in same {
            assert_eq!(what(first), what(second));
        }
        for (first, second) in
            [("fn a() {}", "fn b() {}"), ("impl A { }", "impl B for A { }"), ("use a::b;", "use a::c;")]
        {
            assert_ne!(what(first), what(second));
        }
        assert_eq!(definitions("use a::b;\nlet x = 1;\nfn f() {}\nf()").len(), 2);
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

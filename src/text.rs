//! Text from models, corpora and files, made harmless where people read it.

/// Text that cannot drive a terminal or rearrange a line: what is hidden is shown by its number. Line breaks and tabs stay, and so
/// do the joiners that Persian words and some emoji are made with.
pub fn tame(text: &str) -> String {
    let number = |c: char| format!("[U+{:04X}]", c as u32);
    let stays = |c: char| !hidden(c) || matches!(c, '\n' | '\t' | '\u{200c}' | '\u{200d}');
    text.chars().map(|c| if stays(c) { c.into() } else { number(c) }).collect()
}

/// Controls, and format characters that would rearrange what stands beside them.
pub(crate) fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tame_text_has_no_escape_sequences() {
        assert_eq!(tame("a b\n\t\u{1b}[31m\u{2066}"), "a b\n\t[U+001B][31m[U+2066]");
        assert_eq!(
            tame("\u{202e}olsO \u{1f469}\u{200d}\u{1f467}"),
            "[U+202E]olsO \u{1f469}\u{200d}\u{1f467}"
        );
    }
}

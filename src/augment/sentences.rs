//! Sentences: their borders, and texts with the sentences in another order.

use super::remap::Pieced;
use crate::corpus::{Document, Span};
use crate::random::Stream;

/// Ends of words after which a stop ends no sentence.
const ABBREVIATIONS: [&str; 16] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "inc", "ltd", "co", "vs", "etc", "no", "fig", "approx",
];

/// Characters `start..end` of each sentence, without the blanks between them.
///
/// A sentence ends at `.`, `!`, `?`, `…` or `。`, `！`, `？` (closing quotes and brackets included) before a blank
/// and a character that is not lower-case; never inside a fact, after an initial such as `J.` or after a common
/// abbreviation. `。！？` need no blank.
pub(super) fn sentences(chars: &[char], spans: &[Span]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let blank = |i: usize| chars.get(i).is_some_and(|c| c.is_whitespace());
    let mut start = 0;
    while blank(start) {
        start += 1;
    }
    let mut i = start;
    while i < chars.len() {
        let full_width = matches!(chars[i], '。' | '！' | '？');
        let ends = full_width || matches!(chars[i], '.' | '!' | '?' | '…');
        i += 1;
        if !ends {
            continue;
        }
        let mut end = i;
        while chars
            .get(end)
            .is_some_and(|c| matches!(c, '.' | '!' | '?' | '"' | '”' | '’' | '\'' | ')' | ']' | '»'))
        {
            end += 1;
        }
        let mut next = end;
        while blank(next) {
            next += 1;
        }
        let inside = spans.iter().any(|s| s.start < end && end < s.end);
        let apart = next > end || full_width;
        let continues = chars.get(next).is_some_and(|c| c.is_lowercase());
        if !apart
            || inside
            || continues
            || next >= chars.len()
            // A quote closed after the stop closes a sentence too: no abbreviation goes on behind it.
            || (chars[i - 1] == '.' && end == i && shortened(&chars[start..i - 1]))
        {
            continue;
        }
        found.push((start, end));
        start = next;
        i = next;
    }
    let mut end = chars.len();
    while end > start && blank(end - 1) {
        end -= 1;
    }
    if end > start {
        found.push((start, end));
    }
    found
}

fn shortened(before: &[char]) -> bool {
    let word: String = before.iter().rev().take_while(|c| c.is_alphanumeric()).collect();
    let word: String = word.chars().rev().collect();
    let mut letters = word.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none();
    initial || ABBREVIATIONS.contains(&word.to_lowercase().as_str())
}

fn shuffled(count: usize, purpose: &str, document: &Document, seed: u64, copy: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    Stream::new(seed, &format!("{purpose}: {}", document.id), &[copy as u64]).shuffle(&mut order);
    order
}

/// The sentences in random order; what stood between them stays in its place.
pub(super) fn shuffle(document: &Document, seed: u64, copy: usize) -> Document {
    rebuild(document, &|count| shuffled(count, "sentence shuffle", document, seed, copy), None, copy)
}

/// The sentences in random order, and the name moved to the new first one (bioS permutation of Allen-Zhu and
/// Li 2023). The name and the pronoun change places where the text begins with a marked name and the new first
/// sentence with `He`, `She` or `They`; otherwise this is [`shuffle`].
pub(super) fn permute_biography(document: &Document, seed: u64, copy: usize) -> Document {
    let name = document.spans.iter().find(|s| s.field == "name");
    rebuild(document, &|count| shuffled(count, "biography permutation", document, seed, copy), name, copy)
}

fn rebuild(
    document: &Document,
    order: &dyn Fn(usize) -> Vec<usize>,
    name: Option<&Span>,
    copy: usize,
) -> Document {
    let mut out = Pieced::new(document);
    let found = sentences(out.chars(), &document.spans);
    let order = order(found.len());
    let pronoun = |(start, end): (usize, usize)| {
        let word: Vec<char> =
            out.chars()[start..end].iter().take_while(|c| c.is_alphabetic()).copied().collect();
        let word: String = word.into_iter().collect();
        let followed = out.chars().get(start + word.len()) == Some(&' ');
        (["He", "She", "They"].contains(&word.as_str()) && followed).then_some(word)
    };
    // (name, pronoun): they change places.
    let swap = match (name, order.first(), found.first()) {
        (Some(name), Some(&first), Some(&(start, _))) if first != 0 && name.start == start => {
            pronoun(found[first]).map(|word| (name, word))
        }
        _ => None,
    };
    let mut end_of_last = 0;
    for (place, &which) in order.iter().enumerate() {
        // The gap before the place, not before the sentence: blanks and line ends stay where they are.
        let gap_end = found[place].0;
        out.old(end_of_last, gap_end);
        end_of_last = found[place].1;
        let (mut start, end) = found[which];
        if let Some((name, word)) = &swap {
            if place == 0 {
                out.old(name.start, name.end);
                start += word.len();
            } else if which == 0 {
                out.new_text(word);
                start = name.end;
            }
        }
        out.old(start, end);
    }
    let length = out.chars().len();
    out.old(end_of_last, length);
    out.finish(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        let chars: Vec<char> = text.chars().collect();
        sentences(&chars, &[]).into_iter().map(|(s, e)| chars[s..e].iter().collect()).collect()
    }

    #[test]
    fn borders() {
        let cases: [(&str, &[&str]); 8] = [
            ("One. Two! Three?", &["One.", "Two!", "Three?"]),
            ("Dr. J. Smith came. He (she?) left.", &["Dr. J. Smith came.", "He (she?) left."]),
            ("It cost 3.5 million. 4 more followed.", &["It cost 3.5 million.", "4 more followed."]),
            ("\"Stop!\" he said. \"No.\" Then", &["\"Stop!\" he said.", "\"No.\"", "Then"]),
            ("彼は来た。私は帰った。", &["彼は来た。", "私は帰った。"]),
            ("  a. B  ", &["a.", "B"]),
            ("Wait... what? Yes", &["Wait... what?", "Yes"]),
            (" \n ", &[]),
        ];
        for (text, want) in cases {
            assert_eq!(split(text), want, "{text}");
        }
        let d = Document::from_tagged("x", "At <company>A. B. Corp</company>. Next.").unwrap();
        let chars: Vec<char> = d.text.chars().collect();
        assert_eq!(sentences(&chars, &d.spans).len(), 2);
    }
}

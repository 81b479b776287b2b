//! Small tables and figures that introduce a thing: models, known pairs, distances in a corpus, hits of a probe, one head.

use super::picture::visible;
use super::{HeatMap, Table};
use crate::attention::AttendedText;
use crate::contrast::{KnownPair, ProbeHits, Tally};
use crate::corpus::Corpus;
use crate::error::{Error, Result};
use crate::model::Model;

impl Table {
    /// The shapes of `models`, each under a word of the caller's.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn of_models<'a>(models: impl IntoIterator<Item = (&'a str, &'a Model)>) -> Result<Self> {
        let columns =
            ["", "model", "layers", "heads", "width", "vocabulary", "longest text", "weights", "tokenizer"];
        let mut table = Table::new(columns).caption("Models; the longest text is counted in tokens");
        for (role, model) in models {
            let config = model.config();
            table.push([
                role.to_string(),
                model.name().to_string(),
                config.layers.to_string(),
                config.heads.to_string(),
                config.hidden_size.to_string(),
                config.vocab_size.to_string(),
                config.max_positions.to_string(),
                grouped(model.parameter_count()),
                model.tokenizer().hash().to_string(),
            ])?;
        }
        Ok(table)
    }

    /// Names of pairs and where their models come from.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn of_pairs<'a>(pairs: impl IntoIterator<Item = &'a KnownPair>) -> Result<Self> {
        let mut table = Table::new(["pair", "small", "large"]).caption("Pairs known by name");
        for pair in pairs {
            table.push([pair.name, pair.small, pair.large])?;
        }
        Ok(table)
    }

    /// How far each kind of answer stands from the name in the texts of `corpus`, in characters (paper, Figure 1).
    ///
    /// # Errors
    /// [`Error::Option`] when the corpus has no question of known distance.
    pub fn of_distances(corpus: &Corpus) -> Result<Self> {
        let mut fields: Vec<(&str, Vec<usize>)> = Vec::new();
        for question in &corpus.questions {
            let Some(distance) = question.distance else { continue };
            match fields.iter_mut().find(|(field, _)| *field == question.field) {
                Some((_, distances)) => distances.push(distance),
                None => fields.push((&question.field, vec![distance])),
            }
        }
        if fields.is_empty() {
            let expected = "a corpus whose texts mark a name and, after it, the answers";
            return Err(Error::option("corpus", "no question of known distance", expected));
        }
        let mut table = Table::new(["kind of fact", "questions", "least", "median", "most"])
            .caption("Characters between the name and the answer");
        for (_, distances) in &mut fields {
            distances.sort_unstable();
        }
        fields.sort_by_key(|(_, distances)| distances[(distances.len() - 1) / 2]);
        for (field, distances) in fields {
            let number = |at: usize| distances[at].to_string();
            let last = distances.len() - 1;
            let count = distances.len().to_string();
            table.push([field.to_string(), count, number(0), number(last / 2), number(last)])?;
        }
        Ok(table)
    }

    /// What [`Contrast::probe_hits`](crate::contrast::Contrast::probe_hits) counted: how often each probe notices `kind`
    /// among its `top` highest weights. Where it matters whether a text's first token may be a hit, each probe has a second
    /// row in which it may.
    ///
    /// ```
    /// # use cluescope::report::Table;
    /// # fn example(contrast: &cluescope::contrast::Contrast) {
    /// println!("{}", Table::of_hits(&contrast.probe_hits("name", 10), "name", 10));
    /// # }
    /// ```
    pub fn of_hits(hits: &[ProbeHits], kind: &str, top: usize) -> Self {
        let strict = |h: &ProbeHits| Tally {
            texts: h.texts,
            small: h.small,
            large: h.large,
            difference: h.difference,
            chance: h.chance,
        };
        let differ = hits.iter().any(|h| strict(h) != h.with_first);
        let mut rows = Vec::new();
        for hit in hits {
            let mut push = |first: &str, tally: &Tally| {
                let mut row = vec![hit.field.clone()];
                if differ {
                    row.push(first.into());
                }
                row.extend([tally.texts, tally.small, tally.large, tally.difference].map(|n| n.to_string()));
                row.push(format!("{:.1}", tally.chance));
                rows.push(row);
            };
            push("no hit", &strict(hit));
            if differ {
                push("may be one", &hit.with_first);
            }
        }
        let mut columns = vec!["probe before"];
        if differ {
            columns.push("first token");
        }
        columns.extend(["texts", "small", "large", "difference", "by chance"]);
        Table::of(columns.into_iter().map(String::from).collect(), rows)
            .caption(format!("Texts in which a token of {kind} is among the probe's top {top}"))
    }
}

impl HeatMap {
    /// The whole attention matrix of one head on a text: a row a token that reads, a column a token that is read.
    /// `number` counts the maps asked for with [`Attend::map`](crate::attention::Attend::map).
    ///
    /// # Errors
    /// [`Error::Option`] when fewer maps were asked for.
    pub fn of_map(text: &AttendedText, number: usize, title: impl Into<String>) -> Result<Self> {
        let Some(map) = text.maps.get(number) else {
            let expected =
                format!("below {}, the maps measured; ask for them with Attend::map", text.maps.len());
            return Err(Error::option("number", number, expected));
        };
        let tokens = text.offsets.len();
        let characters: Vec<char> = text.text.chars().collect();
        let words: Vec<String> = text
            .offsets
            .iter()
            .map(|&(start, end)| match characters.get(start..end) {
                Some(word) if start < end => visible(&word.iter().collect::<String>()),
                _ => "start".into(),
            })
            .collect();
        // What a token cannot see stays empty: it is no weight of 0.
        let row = |i: usize| {
            (0..tokens)
                .map(|j| if j <= i { f64::from(map[i * tokens + j]) } else { f64::NAN })
                .collect::<Vec<f64>>()
        };
        Ok(HeatMap::new(title, (0..tokens).map(row).collect())
            .rows(words.iter().map(|word| word.trim_start_matches('\u{2423}')))
            .columns(words.iter().map(|word| word.trim_start_matches('\u{2423}')))
            .x_label("token that is read")
            .y_label("token that reads")
            .value_label("attention weight; each row adds up to 1"))
    }
}

/// `12,345,678`
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let mut out = digits[..first].to_string();
    for (at, digit) in digits.char_indices().skip(first) {
        if at % 3 == first % 3 && at > 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Attend, Cache};
    use crate::corpus::{Biographies, Document};
    use crate::model::DecoderConfig;
    use crate::tokens::Tokenizer;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (951_680, "951,680"), (12_345_678, "12,345,678")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn distances_are_in_order_of_their_median() {
        let people = Biographies::new(9).seed(1).field_order(["company", "date"]).generate().unwrap();
        let text = Table::of_distances(&people).unwrap().to_string();
        let lines: Vec<Vec<&str>> = text.lines().skip(3).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines.iter().map(|l| l[0]).collect::<Vec<_>>(), ["company", "date"], "{text}");
        for line in &lines {
            let [least, median, most] = [2, 3, 4].map(|i| line[i].parse::<usize>().unwrap());
            assert!(line[1] == "9" && least <= median && median <= most, "{text}");
        }
        assert!(Table::of_distances(&Corpus::default()).is_err());
    }

    #[test]
    fn a_map_shows_words_and_leaves_the_future_empty() {
        let text = "Ann was born in Rome.";
        let tokenizer = Tokenizer::train_bpe([text; 4], 280).unwrap();
        let config = DecoderConfig::llama(tokenizer.vocab_size(), 16, 1, 1, 1, 32, 64);
        let model = Model::random("toy", config, tokenizer, 1).unwrap();
        let document = Document::new("a", text, Vec::new());
        let attended = model.attend(&[document], &Attend::new().map(0, 0).cache(Cache::Off)).unwrap();
        let svg = HeatMap::of_map(&attended.texts[0], 0, "Head 0").unwrap().svg().unwrap();
        assert!(svg.contains("start") && svg.contains("token that reads"), "{svg}");
        assert!(
            HeatMap::of_map(&attended.texts[0], 1, "Head 1").unwrap_err().to_string().contains("below 1")
        );
        let table = Table::of_models([("toy", &model)]).unwrap().to_string();
        assert!(table.contains("toy"), "{table}");
    }
}

//! Which token is dropped with which probability: the plan, apart from any draw.
//!
//! Guided: p(r) = α·(1 − exp(−β·r)) for the token of rank r, 0 for the highest score (paper, section 4).
//! Random: p = α for every token.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::draw::{Pieces, Removal};
use crate::corpus::Document;
use crate::error::{Error, Result};
use crate::files;

/// The paper's drop probability of the token with `rank`: α·(1 − exp(−β·rank)).
///
/// ```
/// use cluescope::augment::drop_probability;
/// assert_eq!(drop_probability(0.6, 0.05, 0), 0.0);
/// assert!((drop_probability(0.6, 0.05, 20) - 0.6 * (1.0 - (-1.0f64).exp())).abs() < 1e-12);
/// ```
pub fn drop_probability(alpha: f64, beta: f64, rank: usize) -> f64 {
    // exp_m1 keeps all digits where β·rank is small.
    -alpha * (-beta * rank as f64).exp_m1()
}

/// What [`Plan::by_field`] calls tokens that touch no fact.
pub(crate) const OTHER_WORDS: &str = "other words";

/// Tokens that are never dropped. The paper's definition protects none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protect {
    /// Tokens of punctuation signs alone, blanks beside them allowed.
    Punctuation,
    /// Tokens that are `,` or `.` and nothing else, as in the authors' script.
    CommaAndStop,
    /// Tokens that touch a fact of this kind, such as `name`.
    Field(String),
    /// Tokens that touch any marked fact.
    Facts,
}

impl Protect {
    /// The person's name.
    pub fn names() -> Self {
        Protect::Field("name".into())
    }
}

/// The plan of one text; the vectors have one entry a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanText {
    /// The text and its facts.
    #[serde(flatten)]
    pub document: Document,
    /// Characters covered, `start..end`; empty for start tokens.
    pub offsets: Vec<(usize, usize)>,
    /// Probability of being dropped, 0 to 1.
    pub probability: Vec<f32>,
    /// Rank under the guide, 0 for the highest score; empty without a guide.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rank: Vec<usize>,
}

impl PlanText {
    /// Each token's text (of its characters; empty for start tokens) and probability, as drawn in the paper's
    /// Figure 4. A character made of several tokens stands with each of them.
    pub fn tokens(&self) -> Vec<(&str, f32)> {
        let text = &self.document.text;
        let bytes: Vec<usize> = text.char_indices().map(|(b, _)| b).chain([text.len()]).collect();
        let slice = |&(start, end): &(usize, usize)| match (bytes.get(start), bytes.get(end)) {
            (Some(&start), Some(&end)) if start <= end => &text[start..end],
            _ => "",
        };
        self.offsets.iter().map(slice).zip(self.probability.iter().copied()).collect()
    }

    /// Expected number of dropped tokens.
    pub fn expected_dropped(&self) -> f64 {
        self.probability.iter().map(|&p| f64::from(p)).sum()
    }

    fn check(&self) -> Result<(), String> {
        let n = self.offsets.len();
        if self.probability.len() != n || (!self.rank.is_empty() && self.rank.len() != n) {
            return Err("offsets, probability and rank differ in length".into());
        }
        let length = self.document.text.chars().count();
        if let Some((start, end)) = self.offsets.iter().find(|(start, end)| start > end || *end > length) {
            return Err(format!(
                "a token covers {start}..{end} of {length} characters: made for another text"
            ));
        }
        match self.probability.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            Some(p) => Err(format!("probability {p} is not between 0 and 1")),
            None => Ok(()),
        }
    }
}

/// Drop probabilities of every token of every text, and how a drop is carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `random` or `guide`.
    pub policy: String,
    /// α, the cap of the probability.
    pub alpha: f64,
    /// β, how fast the probability rises with rank; not used by `random`.
    pub beta: f64,
    /// What happens to dropped characters.
    pub removal: Removal,
    /// When a character of several tokens goes.
    pub pieces: Pieces,
    /// Tokens never dropped.
    pub protect: Vec<Protect>,
    /// One entry a text, in corpus order.
    #[serde(skip)]
    pub texts: Vec<PlanText>,
}

#[derive(Serialize, Deserialize)]
struct Header<P> {
    plan: P,
}

impl Plan {
    /// Writes JSONL: the options in the first line as `{"plan": …}`, then one text a line.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        files::write_atomic(path, |out| {
            let mut line = |json: serde_json::Result<String>| {
                let json = json.map_err(|e| Error::format(path, "", e))?;
                writeln!(out, "{json}").map_err(Error::io(path))
            };
            line(serde_json::to_string(&Header { plan: self }))?;
            self.texts.iter().try_for_each(|text| line(serde_json::to_string(text)))
        })
    }

    /// Reads what [`Plan::write`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] with the line that is no part of a plan.
    pub fn read(path: impl AsRef<Path>) -> Result<Plan> {
        let path = path.as_ref();
        let content = files::read_text(path)?;
        let mut lines = content.lines().enumerate();
        let fault =
            |index: usize, message: String| Error::format(path, format!("line {}", index + 1), message);
        let (_, first) = lines.next().ok_or_else(|| Error::format(path, "", "empty; expected a plan"))?;
        let header: Header<Plan> =
            serde_json::from_str(first).map_err(|e| fault(0, format!("no plan begins here: {e}")))?;
        let mut plan = header.plan;
        for (index, line) in lines {
            let text: PlanText = serde_json::from_str(line).map_err(|e| fault(index, e.to_string()))?;
            text.check().map_err(|message| fault(index, message))?;
            plan.texts.push(text);
        }
        Ok(plan)
    }

    /// Expected share of tokens dropped, over all texts; start tokens, which have no characters to lose, are not counted.
    pub fn share(&self) -> f64 {
        let (sum, tokens) = self.tally().fold((0.0, 0usize), |(sum, n), (_, p)| (sum + p, n + 1));
        if tokens == 0 { 0.0 } else { sum / tokens as f64 }
    }

    /// Mean drop probability of the tokens that touch each kind of fact, in order of first appearance, and last, under
    /// `other words`, of those that touch none.
    ///
    /// ```
    /// use cluescope::augment::Augment;
    /// # use cluescope::{corpus::Biographies, tokens::Tokenizer};
    /// let people = Biographies::new(2).seed(1).generate()?;
    /// # let tokenizer = Tokenizer::train_bpe(people.documents.iter().map(|d| d.text.as_str()), 300)?;
    /// let plan = Augment::random().tokenizer(&tokenizer).alpha(0.5).plan(&people)?;
    /// let by_field = plan.by_field();
    /// assert_eq!(by_field[0], ("name".to_string(), 0.5));
    /// assert_eq!(by_field.last(), Some(&("other words".to_string(), 0.5)));
    /// # Ok::<(), cluescope::Error>(())
    /// ```
    pub fn by_field(&self) -> Vec<(String, f64)> {
        let mut kinds: Vec<(&str, f64, usize)> = Vec::new();
        let mut other = (OTHER_WORDS, 0.0, 0);
        for (field, p) in self.tally() {
            let kind = match field {
                None => &mut other,
                Some(field) => {
                    let at = kinds.iter().position(|k| k.0 == field).unwrap_or_else(|| {
                        kinds.push((field, 0.0, 0));
                        kinds.len() - 1
                    });
                    &mut kinds[at]
                }
            };
            kind.1 += p;
            kind.2 += 1;
        }
        kinds.push(other);
        let seen = kinds.into_iter().filter(|k| k.2 > 0);
        seen.map(|(field, sum, tokens)| (field.to_string(), sum / tokens as f64)).collect()
    }

    /// The fact that each token touches, if any, and its probability.
    fn tally(&self) -> impl Iterator<Item = (Option<&str>, f64)> {
        self.texts.iter().flat_map(|text| {
            let tokens = text.offsets.iter().zip(&text.probability).filter(|((start, end), _)| start < end);
            tokens.map(|(&offset, &p)| {
                let fact = text.document.spans.iter().find(|s| s.overlaps(offset));
                (fact.map(|s| s.field.as_str()), f64::from(p))
            })
        })
    }

    /// Adds a text whose tokens have `rank`s, or one probability for all.
    pub(super) fn push(
        &mut self,
        document: &Document,
        offsets: &[(usize, usize)],
        rank: Option<&[usize]>,
        constant: f64,
    ) -> Result<()> {
        let probability = match rank {
            Some(rank) => rank.iter().map(|&r| drop_probability(self.alpha, self.beta, r) as f32).collect(),
            None => vec![constant as f32; offsets.len()],
        };
        let mut text = PlanText {
            document: document.clone(),
            offsets: offsets.to_vec(),
            probability,
            rank: rank.unwrap_or_default().to_vec(),
        };
        text.check()
            .map_err(|message| Error::format(format!("guide of document {:?}", document.id), "", message))?;
        let guarded = protected(&text, &self.protect);
        for (p, guarded) in text.probability.iter_mut().zip(guarded) {
            if guarded {
                *p = 0.0;
            }
        }
        self.texts.push(text);
        Ok(())
    }
}

fn protected(text: &PlanText, protect: &[Protect]) -> Vec<bool> {
    let spans = &text.document.spans;
    let touches = |offset: (usize, usize), field: Option<&str>| {
        spans.iter().any(|s| s.overlaps(offset) && field.is_none_or(|f| f == s.field))
    };
    let guarded = |(token, &(start, end)): (&str, &(usize, usize))| {
        // A start token has no characters to lose; the tokenizer puts it back.
        start == end
            || protect.iter().any(|p| match p {
                Protect::Punctuation => {
                    let sign = |c: char| is_punctuation(c) || c.is_whitespace();
                    token.chars().all(sign) && token.contains(is_punctuation)
                }
                Protect::CommaAndStop => matches!(token, "," | "."),
                Protect::Field(field) => touches((start, end), Some(field)),
                Protect::Facts => touches((start, end), None),
            })
    };
    let tokens = text.tokens();
    tokens.iter().map(|(token, _)| *token).zip(&text.offsets).map(guarded).collect()
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(c,
            '¡' | '§' | '«' | '·' | '»' | '¿' | '،' | '؛' | '؟' | '।' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}'
            | '、'..='〃' | '〈'..='】' | '！'..='／' | '：'..='＠')
}

//! What is compared.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How the training texts are made; the module page tells what each is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// No training at all.
    Untrained,
    /// The originals alone.
    Plain,
    /// The originals, repeated until the optimiser has taken as many steps as with copies.
    PlainEqualSteps,
    /// Tokens dropped with constant probability α.
    Random,
    /// Tokens dropped by rank of the student's own attention.
    OwnAttention,
    /// Tokens dropped by rank of the large model's attention.
    LargeAttention,
    /// Tokens dropped by rank of the large model's attention minus the small one's.
    AttentionDifference,
    /// The same difference of what the word before each fact looks at, instead of attention received.
    ProbeDifference,
    /// The same difference of attention received in chosen layers or heads alone.
    HeadsDifference,
    /// The originals as often as in `PlainEqualSteps`, with noise in the input and none in the target (D-AR).
    Denoising,
    /// Words swapped, deleted, inserted (EDA).
    Eda,
    /// Sentences in random order.
    SentenceShuffle,
    /// Sentences in random order with the name in the first (bioS permutation).
    BiographyPermutation,
    /// As the authors' script: random dropout that keeps with probability α.
    ReleasedRandom,
    /// As the authors' script: by the student's "attention", which there is 1, 1/2, 1/3, …
    ReleasedOwnAttention,
    /// As the authors' script: by the difference of two such rows, which is 0 everywhere.
    ReleasedDifference,
}

impl Condition {
    /// Every condition, in the order of tables and figures.
    pub const ALL: [Condition; 16] = [
        Condition::Untrained,
        Condition::Plain,
        Condition::PlainEqualSteps,
        Condition::Random,
        Condition::OwnAttention,
        Condition::LargeAttention,
        Condition::AttentionDifference,
        Condition::ProbeDifference,
        Condition::HeadsDifference,
        Condition::Denoising,
        Condition::Eda,
        Condition::SentenceShuffle,
        Condition::BiographyPermutation,
        Condition::ReleasedRandom,
        Condition::ReleasedOwnAttention,
        Condition::ReleasedDifference,
    ];

    /// The paper's conditions and this library's controls: what is compared unless others are asked for.
    pub const MAIN: [Condition; 7] = [
        Condition::Untrained,
        Condition::Plain,
        Condition::PlainEqualSteps,
        Condition::Random,
        Condition::OwnAttention,
        Condition::LargeAttention,
        Condition::AttentionDifference,
    ];

    /// Name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Untrained => "untrained",
            Condition::Plain => "plain",
            Condition::PlainEqualSteps => "plain_equal_steps",
            Condition::Random => "random",
            Condition::OwnAttention => "own_attention",
            Condition::LargeAttention => "large_attention",
            Condition::AttentionDifference => "attention_difference",
            Condition::ProbeDifference => "probe_difference",
            Condition::HeadsDifference => "heads_difference",
            Condition::Denoising => "denoising",
            Condition::Eda => "eda",
            Condition::SentenceShuffle => "sentence_shuffle",
            Condition::BiographyPermutation => "biography_permutation",
            Condition::ReleasedRandom => "released_random",
            Condition::ReleasedOwnAttention => "released_own_attention",
            Condition::ReleasedDifference => "released_difference",
        }
    }

    /// Name for people.
    pub fn label(self) -> &'static str {
        match self {
            Condition::Untrained => "untrained",
            Condition::Plain => "plain",
            Condition::PlainEqualSteps => "plain, equal steps",
            Condition::Random => "random",
            Condition::OwnAttention => "own attention",
            Condition::LargeAttention => "large's attention",
            Condition::AttentionDifference => "attention difference",
            Condition::ProbeDifference => "difference at probes",
            Condition::HeadsDifference => "difference in chosen heads",
            Condition::Denoising => "noisy input (D-AR)",
            Condition::Eda => "EDA",
            Condition::SentenceShuffle => "sentences shuffled",
            Condition::BiographyPermutation => "biography permuted",
            Condition::ReleasedRandom => "released script: random",
            Condition::ReleasedOwnAttention => "released script: attention",
            Condition::ReleasedDifference => "released script: difference",
        }
    }

    /// Whether the model is trained.
    pub fn trains(self) -> bool {
        self != Condition::Untrained
    }

    /// Whether α, the largest drop probability, matters.
    pub fn uses_alpha(self) -> bool {
        matches!(self, Condition::Random | Condition::ReleasedRandom) || self.uses_beta()
    }

    /// Whether β, the rise of the drop probability with rank, matters.
    pub fn uses_beta(self) -> bool {
        self.is_difference()
            || matches!(
                self,
                Condition::OwnAttention
                    | Condition::LargeAttention
                    | Condition::ReleasedOwnAttention
                    | Condition::ReleasedDifference
            )
    }

    /// Whether each text is copied, or repeated as often.
    pub fn uses_copies(self) -> bool {
        !matches!(self, Condition::Untrained | Condition::Plain)
    }

    /// Whether copies follow large − small as the paper defines it, under whichever guide: these are compared with every
    /// other condition.
    pub fn is_difference(self) -> bool {
        matches!(
            self,
            Condition::AttentionDifference | Condition::ProbeDifference | Condition::HeadsDifference
        )
    }

    /// Whether copies depend on where the models of the pair look, as the paper defines it.
    pub fn looks(self) -> bool {
        self.uses_beta() && !self.released()
    }

    /// Whether the texts are made as the authors' script makes them, not as their paper says.
    pub fn released(self) -> bool {
        matches!(
            self,
            Condition::ReleasedRandom | Condition::ReleasedOwnAttention | Condition::ReleasedDifference
        )
    }
}

impl FromStr for Condition {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("condition", name, Condition::ALL, Condition::name)
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.label())
    }
}

/// Which model is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    /// The small one of the pair.
    Small,
    /// The large one of the pair.
    Large,
    /// A third model, on whose tokens the pair's attention is laid.
    Third,
}

impl Student {
    /// Name in files, options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Student::Small => "small",
            Student::Large => "large",
            Student::Third => "third",
        }
    }

    /// Whether `condition` says anything new for this student: the large model's own attention is the large model's.
    pub fn tells_apart(self, condition: Condition) -> bool {
        !(self == Student::Large && condition == Condition::OwnAttention)
    }
}

impl FromStr for Student {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("student", name, [Student::Small, Student::Large, Student::Third], Student::name)
    }
}

impl std::fmt::Display for Student {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// How the biographies that are trained on are written: the paper's template, and the controls that tell
/// distance from the kind of fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Texts {
    /// The paper's five sentences in their order: each field has its own distance.
    Paper,
    /// The same sentences in random order: field and distance come apart.
    Permuted,
    /// The paper's sentences with the name in place of every pronoun: every fact is near the name.
    FullName,
    /// One of fifteen sentences for each fact.
    Varied,
}

impl Texts {
    /// All of them.
    pub const ALL: [Texts; 4] = [Texts::Paper, Texts::Permuted, Texts::FullName, Texts::Varied];

    /// Name in files and options.
    pub fn name(self) -> &'static str {
        match self {
            Texts::Paper => "paper",
            Texts::Permuted => "permuted",
            Texts::FullName => "full_name",
            Texts::Varied => "varied",
        }
    }
}

impl FromStr for Texts {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name("texts", name, Texts::ALL, Texts::name)
    }
}

/// Names on the command line may be written with `-` for `_`.
pub(super) fn by_name<T: Copy, const N: usize>(
    option: &'static str,
    name: &str,
    all: [T; N],
    of: fn(T) -> &'static str,
) -> Result<T> {
    let wanted = name.trim().replace('-', "_").to_lowercase();
    let found = all.into_iter().find(|one| of(*one) == wanted);
    found.ok_or_else(|| Error::option(option, name, format!("one of {}", all.map(of).join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back_and_others_are_refused_with_a_list() {
        for condition in Condition::ALL {
            assert_eq!(condition.name().parse::<Condition>().unwrap(), condition);
            let json = serde_json::to_string(&condition).unwrap();
            assert_eq!(json, format!("\"{}\"", condition.name()), "files and options agree");
        }
        assert_eq!("Full-Name".parse::<Texts>().unwrap(), Texts::FullName);
        let message = "plein".parse::<Condition>().unwrap_err().to_string();
        assert!(message.starts_with("condition = plein: one of untrained, plain,"), "{message}");
    }
}

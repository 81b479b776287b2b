//! What is compared.

use serde::{Deserialize, Serialize};

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
}

impl Condition {
    /// Every condition, in the order of tables and figures.
    pub const ALL: [Condition; 7] = [
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
        }
    }

    /// Whether the model is trained.
    pub fn trains(self) -> bool {
        self != Condition::Untrained
    }

    /// Whether α, the largest drop probability, matters.
    pub fn uses_alpha(self) -> bool {
        self == Condition::Random || self.uses_beta()
    }

    /// Whether β, the rise of the drop probability with rank, matters.
    pub fn uses_beta(self) -> bool {
        matches!(self, Condition::OwnAttention | Condition::LargeAttention | Condition::AttentionDifference)
    }
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.label())
    }
}

/// Which model of the pair is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Student {
    /// The small one.
    Small,
    /// The large one.
    Large,
}

impl Student {
    /// Name in files, options and tables.
    pub fn name(self) -> &'static str {
        match self {
            Student::Small => "small",
            Student::Large => "large",
        }
    }

    /// Whether `condition` says anything new for this student: the large model's own attention is the large model's.
    pub fn tells_apart(self, condition: Condition) -> bool {
        !(self == Student::Large && condition == Condition::OwnAttention)
    }
}

impl std::fmt::Display for Student {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

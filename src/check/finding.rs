//! Something that is not as it should be.

use std::fmt;

use serde_json::{Value, json};

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub topic: Topic,
    /// Whether it must be put right.
    pub severity: Severity,
    /// What is so.
    pub found: String,
    /// What should be, and why.
    pub expected: String,
    /// What to do.
    pub cure: Cure,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// What `serve` would refuse.
    Configuration,
    /// The way to the database: nobody there, a pooler, a standby.
    Path,
    /// The schema doesn't serve this bridge.
    Schema,
    /// The bridge may not do what it has to do.
    Missing,
    /// Somebody else may read notifications.
    Read,
    /// Somebody else may do something that is only ours.
    Wide,
    /// What is ours belongs to another role.
    Owner,
    /// Another role may create objects in the schema.
    Create,
    /// The bridge may do more than it has to.
    Role,
    /// A trigger is gone, or doesn't fire.
    Trigger,
    /// Rows are hidden from bridges.
    Hidden,
    /// No bridge is connected, or one is not ready.
    Bridges,
    /// Rows that are delivered may not be marked.
    Marks,
    /// Somebody else holds a lock of ours.
    Lock,
    /// Old rows may not be removed.
    Prune,
    /// The clocks are apart.
    Clock,
    /// Nobody empties the queue of notifications.
    Queue,
    /// Somebody keeps VACUUM from removing what is dead.
    Horizon,
    /// VACUUM is behind.
    Vacuum,
}

/// Whether a finding must be put right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It must.
    Wrong,
    /// It could be better.
    Hint,
}

/// What mends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// A statement, for who may.
    Sql(String),
    /// A line for the shell.
    Command(String),
    /// What only a person can decide.
    Advice(String),
}

/// What was found, and what could not be seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What is wrong, or could be better.
    pub findings: Vec<Finding>,
    /// What was not looked at, and why.
    pub unseen: Vec<String>,
}

impl Topic {
    /// As programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Path => "path",
            Self::Schema => "schema",
            Self::Missing => "missing-right",
            Self::Read => "foreign-reader",
            Self::Wide => "foreign-right",
            Self::Owner => "owner",
            Self::Create => "create",
            Self::Role => "role",
            Self::Trigger => "trigger",
            Self::Hidden => "hidden-rows",
            Self::Bridges => "bridges",
            Self::Marks => "marks",
            Self::Lock => "lock",
            Self::Prune => "prune",
            Self::Clock => "clock",
            Self::Queue => "queue",
            Self::Horizon => "horizon",
            Self::Vacuum => "vacuum",
        }
    }
}

impl Severity {
    /// As people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Hint => "hint",
        }
    }
}

impl fmt::Display for Cure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql(text) | Self::Command(text) | Self::Advice(text) => f.write_str(text),
        }
    }
}

impl Finding {
    /// Something that must be put right.
    pub fn wrong(topic: Topic, found: String, expected: impl Into<String>, cure: Cure) -> Self {
        Self {
            topic,
            severity: Severity::Wrong,
            found,
            expected: expected.into(),
            cure,
        }
    }

    /// Something that could be better.
    pub fn hint(topic: Topic, found: String, expected: impl Into<String>, cure: Cure) -> Self {
        Self {
            severity: Severity::Hint,
            ..Self::wrong(topic, found, expected, cure)
        }
    }

    /// Whether it must be put right.
    pub fn is_wrong(&self) -> bool {
        self.severity == Severity::Wrong
    }

    fn json(&self) -> Value {
        let mend = match &self.cure {
            Cure::Sql(text) => json!({ "sql": text }),
            Cure::Command(text) => json!({ "command": text }),
            Cure::Advice(text) => json!({ "advice": text }),
        };
        json!({
            "topic": self.topic.name(),
            "severity": self.severity.name(),
            "found": self.found,
            "expected": self.expected,
            "mend": mend,
        })
    }
}

impl Report {
    /// How many findings must be put right.
    pub fn wrong(&self) -> usize {
        self.findings
            .iter()
            .filter(|found| found.is_wrong())
            .count()
    }

    /// Whether `serve` would refuse its settings.
    pub fn has_bad_settings(&self) -> bool {
        let mut wrong = self.findings.iter().filter(|found| found.is_wrong());
        wrong.any(|found| found.topic == Topic::Configuration)
    }

    /// As programs read it.
    pub fn json(&self) -> Value {
        let findings: Vec<Value> = self.findings.iter().map(Finding::json).collect();
        json!({
            "wrong": self.wrong(),
            "hints": self.findings.len() - self.wrong(),
            "findings": findings,
            "unseen": self.unseen,
        })
    }

    /// What a script is told by the exit code.
    ///
    /// # Errors
    ///
    /// If something is wrong: how much.
    pub fn verdict(&self) -> Result<(), String> {
        match self.wrong() {
            0 => Ok(()),
            1 => Err("one thing is wrong".to_owned()),
            wrong => Err(format!("{wrong} things are wrong")),
        }
    }
}

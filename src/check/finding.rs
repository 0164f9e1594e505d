//! What the checks report.

use std::fmt;

use serde_json::{Value, json};

/// Something that is wrong, or could be better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub topic: Subject,
    pub severity: Severity,
    /// The actual state.
    pub found: String,
    /// The expected state, and why.
    pub expected: String,
    pub fix: Fix,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A setting that `serve` would refuse, or that may be a mistake.
    Configuration,
    /// The database can't be reached, or is behind a pooler, or is a standby.
    Path,
    /// This bridge can't use the schema or the server.
    Schema,
    /// The bridge or writers lack a privilege.
    Missing,
    /// A foreign role can read notifications, from the table or with a ticket.
    Read,
    /// A foreign role has another privilege on objects of Tidings.
    Wide,
    /// An object of Tidings is missing, or belongs to another role than it should.
    Owner,
    /// A foreign role can create objects in the schema.
    Create,
    /// The bridge's role has more privileges than it needs.
    Role,
    /// A trigger is missing, or doesn't always fire.
    Trigger,
    /// Rows of an adopted table are not copied, or can't be inserted.
    Adopted,
    /// Memberships can't be read, or only slowly, or bridges don't learn of changes.
    Memberships,
    /// Returning clients can't be served from a replica.
    Replica,
    /// Bridges can't exchange messages.
    Nats,
    Hidden,
    /// No bridge is connected while rows wait, or a bridge is silent or not ready.
    Bridges,
    /// Delivered rows may not get marked.
    Marks,
    /// A session that has no use for it holds an advisory lock of Tidings.
    Lock,
    /// Old rows may not get removed.
    Prune,
    /// The clocks of the database and of this machine differ.
    Clock,
    /// The server's notification queue is filling up.
    Queue,
    /// Something keeps VACUUM from removing dead rows.
    Horizon,
    /// Autovacuum is off or behind.
    Vacuum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It must be fixed.
    Problem,
    /// It could be better.
    Hint,
}

/// How to fix a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// A statement, for a role that may execute it.
    Sql(String),
    /// A shell command.
    Command(String),
    /// Something that requires a human decision.
    Advice(String),
}

/// The result of all checks.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// What could not be checked, and why.
    pub unseen: Vec<String>,
}

impl Subject {
    /// The name in the JSON output.
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
            Self::Adopted => "adopted-table",
            Self::Memberships => "memberships",
            Self::Replica => "replica",
            Self::Nats => "nats",
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
    /// The name in the JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Problem => "problem",
            Self::Hint => "hint",
        }
    }

    /// The name in the deprecated JSON field `severity`.
    fn former_name(self) -> &'static str {
        match self {
            Self::Problem => "wrong",
            Self::Hint => "hint",
        }
    }
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sql(text) | Self::Command(text) | Self::Advice(text) => f.write_str(text),
        }
    }
}

impl Finding {
    /// A finding that must be fixed.
    pub fn wrong(topic: Subject, found: String, expected: impl Into<String>, fix: Fix) -> Self {
        Self {
            topic,
            severity: Severity::Problem,
            found,
            expected: expected.into(),
            fix,
        }
    }

    /// A finding that could be better.
    pub fn hint(topic: Subject, found: String, expected: impl Into<String>, fix: Fix) -> Self {
        Self {
            severity: Severity::Hint,
            ..Self::wrong(topic, found, expected, fix)
        }
    }

    pub fn is_wrong(&self) -> bool {
        self.severity == Severity::Problem
    }

    /// The JSON output. `severity` and `mend` are the names of earlier releases.
    fn json(&self) -> Value {
        let fix = match &self.fix {
            Fix::Sql(text) => json!({ "sql": text }),
            Fix::Command(text) => json!({ "command": text }),
            Fix::Advice(text) => json!({ "advice": text }),
        };
        json!({
            "topic": self.topic.name(),
            "kind": self.severity.name(),
            "severity": self.severity.former_name(),
            "found": self.found,
            "expected": self.expected,
            "fix": fix,
            "mend": fix,
        })
    }
}

impl Report {
    /// The number of findings that must be fixed.
    pub fn wrong(&self) -> usize {
        self.findings
            .iter()
            .filter(|found| found.is_wrong())
            .count()
    }

    /// Whether `serve` would refuse the settings.
    pub fn has_bad_settings(&self) -> bool {
        let mut wrong = self.findings.iter().filter(|found| found.is_wrong());
        wrong.any(|found| found.topic == Subject::Configuration)
    }

    /// The JSON output. `wrong` and `unseen` are the names of earlier releases.
    pub fn json(&self) -> Value {
        let findings: Vec<Value> = self.findings.iter().map(Finding::json).collect();
        json!({
            "problems": self.wrong(),
            "wrong": self.wrong(),
            "hints": self.findings.len() - self.wrong(),
            "findings": findings,
            "not_checked": self.unseen,
            "unseen": self.unseen,
        })
    }

    /// The verdict, which determines the exit code.
    ///
    /// # Errors
    ///
    /// If anything is wrong: a sentence with the number of findings.
    pub fn verdict(&self) -> Result<(), String> {
        match self.wrong() {
            0 => Ok(()),
            1 => Err("1 problem found".to_owned()),
            wrong => Err(format!("{wrong} problems found")),
        }
    }
}

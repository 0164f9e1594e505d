//! What a page that another bridge has read is worth to a reader.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Position;
use crate::domain::snapshot::Snapshot;

/// How far a reader of the tail has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadPoint {
    /// The rows that it has seen.
    pub position: Arc<Position>,
    /// The snapshot of its last statement, of which it knows the memberships.
    pub snapshot: Arc<Snapshot>,
}

impl ReadPoint {
    fn covers(&self, other: &Self) -> bool {
        self.position.covers(&other.position) && self.snapshot.covers(&other.snapshot)
    }
}

/// What a reader has read, by where it stood before and after. It may consist of several
/// statements, of which only the last ones found something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadStep {
    pub before: ReadPoint,
    pub after: ReadPoint,
}

/// How a step relates to what another reader has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepWorth {
    /// The reader has seen all of it.
    Seen,
    /// The reader has seen everything before the step, with an earlier snapshot. The step's
    /// rows and changes that are new to the reader are all that it lacks.
    Follows,
    /// Something before the step may be missing: the reader must poll, and not apply the
    /// step.
    Gap,
}

impl ReadStep {
    /// May report a gap where there is none, which costs a poll.
    pub fn worth_to(&self, reader: &ReadPoint) -> StepWorth {
        if reader.covers(&self.after) {
            StepWorth::Seen
        } else if reader.covers(&self.before)
            // An older snapshot would make the reader forget what it knows of memberships.
            && self.after.snapshot.covers(&reader.snapshot)
        {
            StepWorth::Follows
        } else {
            StepWorth::Gap
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{dense_position, dense_row},
        *,
    };
    use crate::domain::snapshot::Xid;

    fn point(position: Position, xmax: u64) -> ReadPoint {
        ReadPoint {
            position: Arc::new(position),
            snapshot: Arc::new(Snapshot::new(Xid(xmax), Vec::new())),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn a_step_that_is_applied_passes_only_its_own_rows(
            reader in dense_position(), before in dense_position(), more in dense_position(),
            row in dense_row(),
        ) {
            let mut after = before.clone();
            after.join(&more);
            let in_page = before.is_new(row) && !after.is_new(row);
            let mut moved = reader.clone();
            moved.join(&after);
            let step = ReadStep { before: point(before, 20), after: point(after, 20) };
            match step.worth_to(&point(reader.clone(), 20)) {
                StepWorth::Seen => prop_assert_eq!(moved.is_new(row), reader.is_new(row)),
                StepWorth::Follows => {
                    prop_assert_eq!(moved.is_new(row), reader.is_new(row) && !in_page);
                }
                StepWorth::Gap => {}
            }
        }
    }

    #[test]
    fn changes_of_memberships_before_a_step_are_a_gap_even_without_rows() {
        let at = |xmax| point(Position::default(), xmax);
        let step = ReadStep {
            before: at(5),
            after: at(7),
        };
        for (reader, worth) in [
            (4, StepWorth::Gap),
            (5, StepWorth::Follows),
            (6, StepWorth::Follows),
            (7, StepWorth::Seen),
            (8, StepWorth::Seen),
        ] {
            assert_eq!(step.worth_to(&at(reader)), worth, "{reader}");
        }
    }

    #[test]
    fn a_step_with_an_older_snapshot_is_never_applied() {
        // The reader has polled later, but has read only a part.
        let reader = point(Position::default(), 9);
        let after = Position::after(Some(Xid(6)), &Snapshot::new(Xid(7), Vec::new()));
        let step = ReadStep {
            before: point(Position::default(), 5),
            after: point(after, 7),
        };
        assert_eq!(step.worth_to(&reader), StepWorth::Gap);
    }
}

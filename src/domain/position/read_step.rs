//! What a page that another bridge has read is worth to a reader.

use super::Position;

/// A page, by the position of the bridge that read it before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadStep {
    pub before: Position,
    pub after: Position,
}

/// How a step relates to what a reader has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepWorth {
    /// The reader has seen all of it.
    Seen,
    /// The reader has seen everything before the step. The page's rows that are new to the
    /// reader are all that the step adds.
    Follows,
    /// Rows before the step may be missing: the reader must poll, and not apply the step.
    Gap,
}

impl ReadStep {
    /// May report a gap where there is none, which costs a poll.
    pub fn worth_to(&self, reader: &Position) -> StepWorth {
        if reader.covers(&self.after) {
            StepWorth::Seen
        } else if reader.covers(&self.before) {
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
            let step = ReadStep { before, after };
            match step.worth_to(&reader) {
                StepWorth::Seen => prop_assert_eq!(moved.is_new(row), reader.is_new(row)),
                StepWorth::Follows => {
                    prop_assert_eq!(moved.is_new(row), reader.is_new(row) && !in_page);
                }
                StepWorth::Gap => {}
            }
        }
    }
}

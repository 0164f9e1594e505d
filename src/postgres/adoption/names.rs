//! The names of what is created for an adopted table.

/// The trigger. Its name is unique for each table.
pub(super) const TRIGGER: &str = "tidings_copy";

/// Postgres cuts longer names off, so two of them could become the same.
const NAME_BYTES: usize = 63;

/// The function that copies a table's rows, in the schema of the table.
pub(super) fn copy_function(table: &str) -> String {
    fitting("tidings_copy_", table)
}

/// The function that marks a table's rows, in the schema of the table.
pub(super) fn mark_function(table: &str) -> String {
    fitting("tidings_mark_", table)
}

/// A name that is too long ends with a hash of the table's whole name instead.
fn fitting(beginning: &str, table: &str) -> String {
    let name = format!("{beginning}{table}");
    if name.len() <= NAME_BYTES {
        return name;
    }
    let end = format!("_{:016x}", fnv(table));
    let room = name.floor_char_boundary(NAME_BYTES - end.len());
    name[..room].to_owned() + &end
}

/// FNV-1a: the same in every release, unlike the hashes of the standard library.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ_as_those_of_their_tables_do() {
        assert_eq!(copy_function("orders"), "tidings_copy_orders");
        assert_eq!(mark_function("orders"), "tidings_mark_orders");
        let long = "o".repeat(50);
        assert_eq!(copy_function(&long).len(), 63);
        for (one, other) in [
            ("x".repeat(62) + "1", "x".repeat(62) + "2"),
            ("ü".repeat(31), "ü".repeat(30)),
        ] {
            let names = [&one, &other].map(|table| copy_function(table));
            assert_ne!(names[0], names[1]);
            assert!(names.iter().all(|name| name.len() <= 63), "{names:?}");
        }
        // It is part of databases.
        assert_eq!(
            copy_function(&"x".repeat(63)),
            format!(
                "tidings_copy_{}_{:016x}",
                "x".repeat(33),
                fnv(&"x".repeat(63))
            )
        );
        assert_eq!(fnv("a"), 0xaf63_dc4c_8601_ec8c);
    }
}

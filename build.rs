//! Rebuilds when a migration is added: the macro that embeds migrations detects only
//! changes of files that it has already seen.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}

//! Everything that exists is documented, and everything that is documented exists: commands, flags,
//! variables, and the objects that `tidings migrate` creates.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{Arg, Command, CommandFactory};
use tidings::config::Cli;

use crate::support::{
    bridge::{ALL_THAT_HAS_METRICS, Bridge},
    database::Database,
    files,
};

/// Words that begin like our names but belong to something else.
const OTHERS: [&str; 13] = [
    // The key under which a browser stores its token.
    "tidings_token",
    // The trigger of `tidings adopt`, on tables of applications.
    "tidings_copy",
    // The triggers of `tidings_watch`, on tables of applications.
    "tidings_watch_insert",
    "tidings_watch_update",
    "tidings_watch_delete",
    "tidings_watch_truncate",
    // The package for Django, and its template tag.
    "tidings_django",
    "tidings_script",
    // The groups that sql/roles.sql creates.
    "tidings_owner",
    "tidings_bridge",
    "tidings_writer",
    "tidings_issuer",
    "tidings_monitor",
];

/// Variables of make's targets, which are not settings.
const OF_MAKE: [&str; 5] = [
    "TIDINGS_SOAK_SECONDS",
    "TIDINGS_MODEL_PROGRAMS",
    "TIDINGS_CLIENTS_SEED",
    "TIDINGS_CLIENTS_STREAMS",
    "TIDINGS_CLIENTS_CUTS",
];

/// The pages for users. The folder of this file isn't one of them.
fn pages() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = files::below(&root.join("docs"), "md");
    files.push(root.join("README.md"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("text");
        (path, text)
    };
    files.into_iter().map(read).collect()
}

/// The page that must list every name.
fn reference() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    fs::read_to_string(path).expect("the reference")
}

/// The words of a text with this prefix.
fn words<'a>(text: &'a str, beginning: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(move |word| word.starts_with(beginning))
}

fn commands() -> Vec<Command> {
    let cli = Cli::command();
    cli.get_subcommands().cloned().collect()
}

fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set())
}

fn variables() -> BTreeSet<String> {
    let cli = Cli::command();
    let all = commands();
    let arguments = all.iter().chain([&cli]).flat_map(shown);
    let variables = arguments.filter_map(|arg| arg.get_env());
    variables
        .map(|name| name.to_string_lossy().into())
        .collect()
}

#[test]
fn every_command_flag_and_variable_is_in_the_reference() {
    let reference = reference();
    let mut missing = Vec::new();
    for command in commands() {
        let name = format!("`tidings {}", command.get_name());
        if !reference.contains(&name) {
            missing.push(name);
        }
        for arg in shown(&command) {
            let flag = arg.get_long().map(|long| format!("--{long}"));
            let name = match (arg.get_env(), flag) {
                (Some(variable), _) => variable.to_string_lossy().into_owned(),
                (None, Some(flag)) => flag,
                (None, None) => continue,
            };
            if !reference.contains(&format!("`{name}")) {
                missing.push(format!("{name} of {}", command.get_name()));
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/reference.md: {missing:#?}");
}

/// The reference says "each variable is also a flag, of the same name".
#[test]
fn a_setting_has_one_name_as_flag_and_as_variable() {
    for command in commands() {
        for arg in shown(&command) {
            if let (Some(variable), Some(flag)) = (arg.get_env(), arg.get_long()) {
                let variable = variable.to_string_lossy();
                let name = variable.strip_prefix("TIDINGS_").unwrap_or(&variable);
                let name = name.strip_prefix("DEV_").unwrap_or(name);
                assert_eq!(flag, name.to_lowercase().replace('_', "-"));
            }
        }
    }
}

#[test]
fn every_variable_and_flag_that_a_page_names_is_there() {
    let known = variables();
    let commands = commands();
    let cli = Cli::command();
    let mut strange = Vec::new();
    for (path, text) in pages() {
        for word in words(&text, "TIDINGS_") {
            // `TIDINGS_JWT_…` stands for several variables.
            let is_known = known.contains(word) || OF_MAKE.contains(&word) || word.ends_with('_');
            if !is_known {
                strange.push(format!("{}: {word}", path.display()));
            }
        }
        for command in &commands {
            let call = format!("tidings {} ", command.get_name());
            for (_, rest) in text.match_indices(&call).map(|(at, _)| text.split_at(at)) {
                let line = rest.split(['`', '\n', '|', ')']).next().unwrap_or_default();
                for word in line.split_whitespace().filter(|w| w.starts_with("--")) {
                    let flag = word.trim_start_matches('-');
                    let flag = flag.split(['=', ']', ',']).next().unwrap_or_default();
                    let mut all = command.get_arguments().chain(cli.get_arguments());
                    let standard = ["help", "version"].contains(&flag);
                    if !standard && !all.any(|arg| arg.get_long() == Some(flag)) {
                        strange.push(format!("{}: {call}{word}", path.display()));
                    }
                }
            }
        }
    }
    assert!(strange.is_empty(), "there is no such thing: {strange:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_in_the_database_is_documented_and_nothing_else() {
    let database = Database::migrated().await;
    let bridge = Bridge::start_with(&database, &ALL_THAT_HAS_METRICS).await;
    let metrics = bridge.admin("/metrics").await.text().await;
    let query = "select relname::text from pg_class \
                   where relnamespace = 'public'::regnamespace and relkind in ('r', 'v', 'S') \
                 union select proname from pg_proc \
                   where pronamespace = 'public'::regnamespace and prorettype <> 'trigger'::regtype \
                 order by 1";
    let objects = database.superuser().connect().await;
    let objects = objects.query(query, &[]).await.expect(query);
    let objects: BTreeSet<String> = objects.iter().map(|row| row.get(0)).collect();
    let reference = reference();
    // Compare whole names: tidings_pending_total doesn't document tidings_pending.
    let named: BTreeSet<&str> = words(&reference, "").collect();
    let is_missing = |name: &&String| !name.ends_with("_id_seq") && !named.contains(name.as_str());
    let missing: Vec<_> = objects.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "not in docs/reference.md: {missing:#?}");

    let everything = "select relname::text from pg_class \
                      where relnamespace = 'public'::regnamespace \
                      union select proname from pg_proc \
                      where pronamespace = 'public'::regnamespace \
                      union select tgname from pg_trigger \
                      union select conname from pg_constraint";
    let client = database.superuser().connect().await;
    let known = client.query(everything, &[]).await.expect(everything);
    let known: BTreeSet<String> = known.iter().map(|row| row.get(0)).collect();
    let mut strange = Vec::new();
    for (path, text) in pages() {
        for word in words(&text, "tidings_") {
            let is_known = known.contains(word)
                || OTHERS.contains(&word)
                || word.ends_with('_')
                || words(&metrics, "tidings_").any(|metric| metric.starts_with(word));
            if !is_known {
                strange.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(strange.is_empty(), "there is no such thing: {strange:#?}");
}

//! Random programs of writers, tabs, bridges and Postgres, and an oracle that knows exactly what
//! each tab must have received at the end of each program.
//!
//! `make model` runs thousands of them. A failing program is shortened as far as possible and
//! printed with the command that runs it again.

mod memberships;
mod oracle;
mod program;
mod run;
mod settling;
mod shorten;
mod tab;
mod table;
mod world;
mod writer;

use std::{env, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

use self::{
    oracle::Verdict,
    program::{Mix, Step, programs},
    run::Run,
    settling::Settle,
    shorten::shorten,
    world::World,
};
use crate::support::account::Account;

/// The number in this environment variable, if it is set.
fn setting(name: &str) -> Option<u64> {
    let value = env::var(name).ok()?;
    let number = value.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

/// The program generated from `seed`.
fn program(seed: u64, mix: Mix) -> Vec<Step> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = programs(mix).new_tree(&mut runner);
    tree.expect("a program").current()
}

/// Runs one program. The error says what went wrong and includes the text of a panic.
async fn play(world: &mut World, steps: &[Step]) -> Result<Vec<Verdict>, String> {
    let playing = async {
        world.begin_program().await;
        Run::new(world).play(steps).await
    };
    match AssertUnwindSafe(playing).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => Err(match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(_) => "a panic, see above".to_owned(),
        }),
    }
}

/// Why rows may be repeated in programs without a crash.
const LATE: &str =
    "only rows of a membership that was visible after them, if the client breaks meanwhile";

/// Runs programs from consecutive seeds.
async fn play_all(test: &str, mix: Mix, usual_count: u64, mut world: World, mut account: Account) {
    let count = setting("TIDINGS_MODEL_PROGRAMS").unwrap_or(usual_count);
    let first = setting("TIDINGS_MODEL_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    for seed in first..first + count {
        let steps = program(seed, mix);
        match play(&mut world, &steps).await {
            Ok(verdicts) => {
                for verdict in verdicts {
                    account.client(verdict.owed, &verdict.got);
                }
                account.round();
            }
            Err(first_reason) => {
                let (reason, short) = shorten(&mut world, &first_reason, &steps).await;
                panic!(
                    "{reason}\nin {} of {} steps:\n{}the whole program once more: \
                     TIDINGS_MODEL_SEED={seed} TIDINGS_MODEL_PROGRAMS=1 \
                     cargo test --test bridge model::{test}\nin it: {first_reason}",
                    short.len(),
                    steps.len(),
                    short
                        .iter()
                        .map(|step| format!("    {step:?}\n"))
                        .collect::<String>()
                );
            }
        }
    }
    world.close().await;
    account.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_each_tab_gets_what_it_is_owed_and_nothing_else() {
    let world = World::shared(Settle::AtOnce).await;
    let account = Account::with_repeats(
        "random programs of writers, tabs that break, and bridges that stop or lose their sessions",
        LATE,
    );
    let test = "in_any_program_each_tab_gets_what_it_is_owed_and_nothing_else";
    play_all(test, Mix::Everything, 200, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_members_get_what_they_are_owed_of_topics_and_nothing_else() {
    let world = World::shared(Settle::AtOnce).await;
    let account = Account::with_repeats(
        "random programs of users that join and leave topics in transactions that overlap",
        LATE,
    );
    let test = "in_any_program_members_get_what_they_are_owed_of_topics_and_nothing_else";
    play_all(test, Mix::Memberships, 60, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_rows_are_marked_once_they_have_settled_and_no_earlier() {
    let world = World::shared(Settle::Never).await;
    let account = Account::with_repeats(
        "random programs of pages that are left, and bridges that are killed, before rows settle",
        LATE,
    );
    let test = "in_any_program_rows_are_marked_once_they_have_settled_and_no_earlier";
    play_all(test, Mix::Everything, 50, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_with_crashes_of_postgres_each_tab_gets_what_it_is_owed() {
    let world = World::fragile().await;
    let account = Account::with_repeats(
        "random programs in which PostgreSQL restarts and crashes, and bridges are killed",
        "only after a crash",
    );
    let test = "in_any_program_with_crashes_of_postgres_each_tab_gets_what_it_is_owed";
    play_all(test, Mix::Crashes, 30, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_without_topics_each_tab_gets_what_it_is_owed() {
    let world = World::shared(Settle::AtOnce).await;
    let account = Account::with_repeats(
        "random programs without topics, in which bridges answer from their recent rows",
        LATE,
    );
    let test = "in_any_program_without_topics_each_tab_gets_what_it_is_owed";
    play_all(test, Mix::OwnRows, 100, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_without_topics_and_with_crashes_each_tab_gets_what_it_is_owed() {
    let world = World::fragile().await;
    let account = Account::with_repeats(
        "random programs without topics in which PostgreSQL restarts and crashes",
        "only after a crash",
    );
    let test = "in_any_program_without_topics_and_with_crashes_each_tab_gets_what_it_is_owed";
    play_all(test, Mix::OwnRowsAndCrashes, 20, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_with_messages_that_get_lost_each_tab_gets_what_it_is_owed() {
    let world = World::shared(Settle::AtOnce).await.sharing().await;
    let account = Account::with_repeats(
        "random programs whose bridges share what they read, over a carrier that loses, repeats, \
         delays and reorders messages",
        LATE,
    );
    let test = "in_any_program_with_messages_that_get_lost_each_tab_gets_what_it_is_owed";
    play_all(test, Mix::Memberships, 60, world, account).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_program_with_lost_messages_and_crashes_each_tab_gets_what_it_is_owed() {
    let world = World::fragile().await.sharing().await;
    let account = Account::with_repeats(
        "random programs whose bridges share what they read, in which PostgreSQL crashes and \
         messages arrive after it",
        "only after a crash",
    );
    let test = "in_any_program_with_lost_messages_and_crashes_each_tab_gets_what_it_is_owed";
    play_all(test, Mix::Crashes, 30, world, account).await;
}

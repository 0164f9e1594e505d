//! `tidings config`: prints the settings that `serve` would use, and where each comes
//! from.

use std::io::{self, Write};

use clap::{Arg, ArgMatches, CommandFactory, parser::ValueSource};
use serde_json::{Value, json};

use crate::{
    cli::output::{Colour, print_json},
    config::{Cli, ConfigOptions, Environment, Form},
    runtime::{error_chain::ErrorChain, escape},
};

/// The flag of `config` itself, which is no setting of `serve`.
const OWN: &str = "json";

/// Printed instead of a secret.
const HIDDEN: &str = "(hidden)";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    flag: String,
    variable: Option<String>,
    value: Shown,
    source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Text(String),
    Secret,
    Unset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Flag,
    Environment,
    /// The file that the setting `…_FILE` names.
    File,
    Default,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Default => "default",
        }
    }
}

/// The settings, in the order of `tidings serve --help`.
pub fn of(matches: &ArgMatches) -> Vec<Setting> {
    let mut command = Cli::command();
    // This adds the global arguments to each subcommand.
    command.build();
    let Some(config) = command.find_subcommand("config") else {
        return Vec::new();
    };
    let arguments = config.get_arguments().filter(|argument| {
        argument.get_long().is_some()
            && !argument.is_hide_set()
            && !matches!(argument.get_id().as_str(), OWN | "help" | "version")
    });
    arguments
        .map(|argument| setting(argument, matches))
        .collect()
}

fn setting(argument: &Arg, matches: &ArgMatches) -> Setting {
    let id = argument.get_id().as_str();
    let given = |id: &str| {
        let is_known = matches.try_contains_id(id).unwrap_or(false);
        is_known.then(|| matches.value_source(id)).flatten()
    };
    let source = match given(id) {
        Some(ValueSource::CommandLine) => Source::Flag,
        Some(ValueSource::EnvVariable) => Source::Environment,
        _ if given(&format!("{id}_file")).is_some() => Source::File,
        _ => Source::Default,
    };
    let raw = given(id).and_then(|_| matches.get_raw(id)).map(|values| {
        let values = values.map(|value| value.to_string_lossy());
        values.collect::<Vec<_>>().join(",")
    });
    let value = match raw {
        _ if source == Source::File => Shown::Secret,
        Some(_) if argument.is_hide_env_values_set() => Shown::Secret,
        Some(text) if !text.is_empty() => Shown::Text(text),
        _ => Shown::Unset,
    };
    Setting {
        flag: format!("--{}", argument.get_long().unwrap_or(id)),
        variable: argument
            .get_env()
            .map(|name| name.to_string_lossy().into_owned()),
        value,
        source,
    }
}

/// Prints the settings, every reason for which `serve` would refuse them, and possible
/// mistakes.
pub fn print(
    output: &mut impl Write,
    options: &ConfigOptions,
    settings: &[Setting],
    environment: &Environment,
) -> io::Result<()> {
    let problems = options.serve.problems();
    let problems = problems
        .iter()
        .map(|problem| ErrorChain(problem).to_string());
    let problems: Vec<String> = problems.collect();
    let mut warnings = environment.warnings();
    warnings.extend(options.serve.warnings());
    match options.form.form() {
        Form::Json => {
            let settings: Vec<Value> = settings.iter().map(Setting::json).collect();
            let all = json!({
                "settings": settings,
                "problems": problems,
                "warnings": warnings,
            });
            print_json(output, &all)
        }
        Form::Text => print_text(output, settings, &problems, &warnings),
    }
}

fn print_text(
    output: &mut impl Write,
    settings: &[Setting],
    problems: &[String],
    warnings: &[String],
) -> io::Result<()> {
    let colour = Colour::of_stdout();
    let name = |setting: &Setting| match &setting.variable {
        Some(variable) => variable.clone(),
        None => setting.flag.clone(),
    };
    let names = settings.iter().map(|setting| name(setting).len()).max();
    let width = names.unwrap_or_default();
    for setting in settings {
        let (name, source) = (name(setting), colour.faint(setting.source.name()));
        match &setting.value {
            Shown::Text(text) => {
                let text = escape::line(text);
                writeln!(output, "{name:width$}  {text}  {source}")?;
            }
            Shown::Secret => writeln!(output, "{name:width$}  {HIDDEN}  {source}")?,
            Shown::Unset => writeln!(output, "{name:width$}  {}", colour.faint("not set"))?,
        }
    }
    for problem in problems {
        writeln!(
            output,
            "{} {}",
            colour.alarm("problem:"),
            escape::line(problem)
        )?;
    }
    for warning in warnings {
        writeln!(
            output,
            "{} {}",
            colour.notice("hint:"),
            escape::line(warning)
        )?;
    }
    Ok(())
}

impl Setting {
    fn json(&self) -> Value {
        let value = match &self.value {
            Shown::Text(text) => Value::from(text.as_str()),
            Shown::Secret | Shown::Unset => Value::Null,
        };
        json!({
            "flag": self.flag,
            "variable": self.variable,
            "value": value,
            "hidden": self.value == Shown::Secret,
            "source": self.source.name(),
        })
    }
}

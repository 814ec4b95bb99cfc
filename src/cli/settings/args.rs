//! The settings as flags of clap's, made from the table's rows.

use crate::settings::{Draft, Effect, Heading, Setting, ValueKind, table};
use crate::{Error, Result};
use clap::builder::{ArgPredicate, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::ffi::{OsStr, OsString};
use std::io::Read;

/// The settings, as flags.
#[derive(Debug, Clone)]
pub(in crate::cli) struct GenerateArgs(pub(in crate::cli) Draft);

/// How often `--verbose` was said, and whether `--quiet` was.
pub(in crate::cli) fn loudness(draft: &Draft) -> (u8, bool) {
    (draft.run.verbose.unwrap_or_default().0, draft.run.quiet.unwrap_or_default())
}

/// A prompt of a megabyte is a file given by mistake.
const LONGEST_PROMPT: u64 = 1 << 20;

fn read_standard_input() -> Result<String> {
    let wrong = |what: &str| Error::Input(format!("--prompt -: standard input {what}"));
    let mut bytes = Vec::new();
    std::io::stdin().take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(|e| wrong(&format!("cannot be read: {e}")))?;
    if bytes.len() as u64 > LONGEST_PROMPT {
        return Err(wrong("is longer than a megabyte; a prompt is a few sentences"));
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text"))?;
    if text.contains('\0') {
        return Err(wrong("holds a NUL character; it is not text"));
    }
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// The prompts, standard input read.
///
/// # Errors
/// It cannot be read, is no text, or is asked for twice.
pub(in crate::cli) fn read_prompts(prompts: &[String]) -> Result<Vec<String>> {
    if prompts.iter().filter(|prompt| *prompt == "-").count() > 1 {
        return Err(Error::Input("--prompt -: standard input can be read only once".into()));
    }
    prompts.iter().map(|prompt| if prompt == "-" { read_standard_input() } else { Ok(prompt.clone()) }).collect()
}

/// A value that its setting has read, as it was typed.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Typed(#[expect(dead_code, reason = "clap keeps the raw value beside it")] OsString);

/// Reads a setting's value by its row.
#[derive(Debug, Clone, Copy)]
struct SettingParser(&'static Setting);

impl TypedValueParser for SettingParser {
    type Value = Typed;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<Typed, clap::Error> {
        match self.0.check(&[value.to_owned()]) {
            Ok(()) => Ok(Typed(value.to_owned())),
            Err((_, what)) => {
                let refuse = move |_: &str| Err::<Typed, String>(what.clone());
                let shown = value.to_string_lossy();
                refuse.parse_ref(command, argument, OsStr::new(&*shown))
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = (self.0.words)();
        (!words.is_empty()).then(|| Box::new(words.into_iter().map(PossibleValue::new)) as Box<_>)
    }
}

/// The flag of a setting.
fn arg(row: &'static Setting) -> Arg {
    let default = if row.default.is_empty() { String::new() } else { format!(" [default: {}]", row.default) };
    let arg = Arg::new(row.name)
        .long(row.name)
        .short(row.short)
        .visible_aliases(row.aliases)
        .aliases(row.hidden_aliases)
        .help(format!("{}{default}", row.help))
        .help_heading(row.heading.title())
        .conflicts_with_all(row.conflicts)
        .requires_ifs(row.requires.map(|other| (ArgPredicate::IsPresent, other)));
    match row.kind {
        ValueKind::Switch => return arg.action(ArgAction::SetTrue),
        ValueKind::Count => return arg.action(ArgAction::Count),
        _ => {}
    }
    let arg = arg.value_name(row.value).value_parser(SettingParser(row)).hide_possible_values(true);
    let arg = arg.action(if row.many { ArgAction::Append } else { ArgAction::Set }).value_delimiter(row.delimiter);
    // A text may begin with a dash, and so may a number.
    let arg = arg.allow_hyphen_values(row.kind == ValueKind::Text && row.heading == Heading::What || row.name == "seed");
    // Behind a flag of the process a subcommand's name may stand.
    if row.bare { arg.num_args(0..=1).require_equals(row.effect == Effect::Run) } else { arg }
}

impl Args for GenerateArgs {
    fn augment_args(command: Command) -> Command {
        command.args(table().iter().map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GenerateArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut draft = Draft::default();
        for row in table() {
            if let Some(values) = typed_values(row, matches) {
                (row.access.read)(&mut draft, &values)
                    .map_err(|(_, what)| clap::Error::raw(ErrorKind::ValueValidation, format!("--{}: {what}\n", row.name)))?;
            }
        }
        Ok(Self(draft))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What was typed after a setting's flag; `None` where the flag was not typed.
fn typed_values(row: &Setting, matches: &ArgMatches) -> Option<Vec<OsString>> {
    if matches.value_source(row.name) != Some(ValueSource::CommandLine) {
        return None;
    }
    Some(match row.kind {
        ValueKind::Switch => vec!["true".into()],
        ValueKind::Count => vec!["true".into(); usize::from(matches.get_count(row.name))],
        // A flag without its value is on.
        _ => match matches.get_raw(row.name) {
            Some(values) if values.len() > 0 => values.map(OsString::from).collect(),
            _ => vec!["true".into()],
        },
    })
}

/// Offers names to a shell that completes a value, and leaves it to `parser` which values there are.
#[derive(Debug, Clone)]
pub(in crate::cli) struct NamedValues<P> {
    pub(in crate::cli) names: Vec<&'static str>,
    pub(in crate::cli) parser: P,
}

impl<P: TypedValueParser> TypedValueParser for NamedValues<P> {
    type Value = P::Value;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<Self::Value, clap::Error> {
        self.parser.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.names.iter().map(PossibleValue::new)))
    }
}

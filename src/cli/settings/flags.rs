//! Flags as pairs of name and value, wherever they were written: the lines of a batch file, a sweep and a configuration file are
//! nothing but flags, so clap's own definition is the one list of what they may say and the one judge of their values.

use super::args::{GenerateArgs, Typed};
use crate::settings::{BadValue, Draft, Effect, ValueKind, find as setting, fold};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::any::TypeId;
use std::collections::{BTreeMap, HashMap};
use std::error::Error as _;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

/// The flags that make an image, `--prompt` not demanded: a line may bring it.
pub(in crate::cli) static GENERATION: LazyLock<FlagList> = LazyLock::new(|| FlagList::of(Flags::augment_args(Command::new("sd-gen"))));

/// One flag of a command.
#[derive(Debug)]
pub(in crate::cli) struct Flag {
    /// Its name without the dashes.
    pub(in crate::cli) long: String,
    pub(in crate::cli) kind: ValueKind,
    /// May be given several times.
    pub(in crate::cli) repeatable: bool,
    /// May be given without its value.
    bare: bool,
    /// Those that it cannot stand beside.
    pub(in crate::cli) rivals: Vec<usize>,
    id: String,
}

/// The flags of one command, by every name that they have.
#[derive(Debug)]
pub(in crate::cli) struct FlagList {
    pub(in crate::cli) flags: Vec<Flag>,
    names: HashMap<String, usize>,
    letters: HashMap<char, usize>,
    command: Mutex<Command>,
    /// Commands that take one flag's value alone, by which it is judged: clap looks at every flag that a command has.
    alone: Vec<Option<Mutex<Command>>>,
}

/// What is wrong with a set of flags.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Wrong {
    /// The flag at fault, where it is one.
    pub(in crate::cli) flag: Option<usize>,
    /// The whole sentence.
    pub(in crate::cli) what: String,
}

impl FlagList {
    /// Reads a command's definition.
    pub(in crate::cli) fn of(command: Command) -> Self {
        let mut command = command.no_binary_name(true).disable_help_flag(true).disable_version_flag(true);
        command.build();
        let named: Vec<&Arg> = command.get_arguments().filter(|arg| arg.get_long().is_some()).collect();
        let (mut names, mut letters) = (HashMap::new(), HashMap::new());
        let mut flags: Vec<Flag> = Vec::with_capacity(named.len());
        for (index, arg) in named.iter().enumerate() {
            let long = arg.get_long().unwrap_or_default().to_owned();
            names.insert(fold(&long), index);
            letters.extend(arg.get_short().map(|letter| (letter, index)));
            for alias in arg.get_all_aliases().unwrap_or_default() {
                names.entry(fold(alias)).or_insert(index);
            }
            let is_rival = |other: &&&Arg| {
                let of = |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|rival| rival.get_id() == b.get_id());
                of(arg, other) || of(other, arg)
            };
            let rivals = named.iter().enumerate().filter(|(_, other)| is_rival(other)).map(|(at, _)| at).collect();
            let repeatable = matches!(arg.get_action(), ArgAction::Append);
            let bare = arg.get_action().takes_values() && arg.get_num_args().is_some_and(|values| values.min_values() == 0);
            flags.push(Flag { long, kind: kind_of(arg), repeatable, bare, id: arg.get_id().to_string(), rivals });
        }
        let alone = named.into_iter().map(alone).collect();
        Self { flags, names, letters, command: Mutex::new(command), alone }
    }

    /// The flag that a name means; `-p` is a flag's letter.
    ///
    /// # Errors
    /// There is none: a sentence with the nearest name.
    pub(in crate::cli) fn find(&self, name: &str) -> Result<usize, String> {
        let folded = fold(name.trim_start_matches('-'));
        let mut letter = name.strip_prefix('-').unwrap_or_default().chars();
        let by_letter = || self.letters.get(&letter.next().filter(|_| letter.next().is_none())?);
        self.names.get(&folded).or_else(by_letter).copied().ok_or_else(|| {
            let nearest = nearest(&folded, self.names.keys().map(String::as_str));
            let advice = nearest.map_or("`sd-gen --help` lists what there is".to_owned(), |name| format!("did you mean \"{name}\"?"));
            format!("there is no setting \"{}\"; {advice}", name.trim())
        })
    }

    /// The values as clap takes them, each judged by clap. An empty list leaves the flag at its default.
    ///
    /// # Errors
    /// The number of the bad value, and a sentence.
    pub(in crate::cli) fn read(&self, flag: usize, values: &[String]) -> Result<Vec<OsString>, BadValue> {
        let Flag { long, kind, repeatable, bare, .. } = &self.flags[flag];
        if *bare && values == ["true"] {
            return Ok(Vec::new());
        }
        if values.len() > 1 && !repeatable {
            return Err((1, format!("--{long} takes one value, and {} were given", values.len())));
        }
        let tidied: Vec<OsString> = values.iter().map(|value| OsString::from(kind.tidied(value))).collect();
        for (at, value) in tidied.iter().enumerate() {
            let text = &values[at];
            if text.contains('\0') {
                return Err((at, format!("--{long}: the value holds a NUL character; it is not text")));
            }
            if kind.is_switch() && value != "true" && value != "false" {
                return Err((at, format!("--{long} {text:?}: give true or false")));
            }
            if let Err(what) = self.check(flag, value) {
                return Err((at, what));
            }
        }
        Ok(tidied)
    }

    fn check(&self, flag: usize, value: &OsString) -> Result<(), String> {
        let Flag { long, kind, .. } = &self.flags[flag];
        let Some(command) = &self.alone[flag] else { return Ok(()) };
        let judged = command.lock().unwrap_or_else(PoisonError::into_inner).try_get_matches_from_mut([OsStr::new("--"), value]);
        let Err(error) = judged else { return Ok(()) };
        let why = match error.kind() {
            ErrorKind::InvalidValue | ErrorKind::ValueValidation | ErrorKind::InvalidUtf8 | ErrorKind::NoEquals => {
                match (kind, error.get(ContextKind::ValidValue), error.source()) {
                    (_, Some(ContextValue::Strings(known)), _) => format!("there are {}", known.join(", ")),
                    (ValueKind::Whole, _, Some(source)) if source.is::<std::num::ParseIntError>() => match value.to_str() {
                        Some(text) if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() => "the number is too large".to_owned(),
                        _ => "give a whole number such as 20".to_owned(),
                    },
                    (ValueKind::Number, ..) => "give a number such as 7.5".to_owned(),
                    (_, _, Some(source)) => source.to_string(),
                    _ => "is not accepted".to_owned(),
                }
            }
            // Relations between flags are judged when all are there.
            _ => return Ok(()),
        };
        Err(format!("--{long} {:?}: {why}", shortened(&value.to_string_lossy())))
    }

    /// A flag with all of its values, as they are typed.
    fn tokens(&self, flag: usize, values: &[OsString]) -> Vec<OsString> {
        let Flag { long, bare, .. } = &self.flags[flag];
        if *bare && values.is_empty() {
            return vec![format!("--{long}").into()];
        }
        values.iter().filter_map(|value| self.token(flag, value)).collect()
    }

    /// A flag as it is typed; a switch that is off is nothing.
    fn token(&self, flag: usize, value: &OsString) -> Option<OsString> {
        let Flag { long, kind, .. } = &self.flags[flag];
        let mut token = OsString::from(format!("--{long}"));
        if kind.is_switch() {
            return (value == "true").then_some(token);
        }
        token.push("=");
        token.push(value);
        Some(token)
    }

    fn matches(&self, tokens: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner).try_get_matches_from_mut(tokens)
    }

    /// The flag at the start of a sentence such as `--width 100: …`.
    pub(in crate::cli) fn said(&self, sentence: &str) -> Option<usize> {
        let name = sentence.strip_prefix("--")?;
        let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(name.len());
        self.names.get(&fold(&name[..end])).copied()
    }
}

/// A command that takes nothing but a flag's value; `None` for a flag without one.
fn alone(arg: &Arg) -> Option<Mutex<Command>> {
    let mut only = Arg::new(arg.get_id().clone()).value_parser(arg.get_value_parser().clone()).ignore_case(arg.is_ignore_case_set());
    if let Some(delimiter) = arg.get_value_delimiter() {
        only = only.value_delimiter(delimiter);
    }
    let command = Command::new("sd-gen").no_binary_name(true).disable_help_flag(true).disable_version_flag(true).arg(only);
    arg.get_action().takes_values().then(|| Mutex::new(command))
}

/// How a flag's value is spelled.
fn kind_of(arg: &Arg) -> ValueKind {
    if !arg.get_action().takes_values() {
        return if matches!(arg.get_action(), ArgAction::Count) { ValueKind::Count } else { ValueKind::Switch };
    }
    let is = |types: &[TypeId]| types.iter().any(|id| arg.get_value_parser().type_id() == *id);
    if is(&[TypeId::of::<Typed>()]) {
        return setting(arg.get_id().as_str()).map_or(ValueKind::Text, |row| row.kind);
    }
    let whole = [TypeId::of::<usize>(), TypeId::of::<u64>(), TypeId::of::<u32>(), TypeId::of::<u16>(), TypeId::of::<u8>()];
    match () {
        () if is(&whole) => ValueKind::Whole,
        () if is(&[TypeId::of::<f64>(), TypeId::of::<f32>()]) => ValueKind::Number,
        () if is(&[TypeId::of::<PathBuf>()]) => ValueKind::Path,
        () if is(&[TypeId::of::<String>(), TypeId::of::<OsString>()]) => ValueKind::Text,
        () => ValueKind::Word,
    }
}

/// The likeliest of the names that were meant.
pub(in crate::cli) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &str| strsim::jaro_winkler(name, known);
    names
        .map(|known| (likeness(known), known))
        .filter(|(like, _)| *like > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, known)| known)
}

/// Enough of a value to know it again.
fn shortened(value: &str) -> String {
    const MOST: usize = 60;
    match value.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// Flags of an image that were given, and nothing about those that were not.
///
/// As clap's `Args` they are the flags of a command that were typed: `#[command(flatten)]` takes them in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::cli) struct Flags(BTreeMap<usize, Vec<OsString>>);

impl Flags {
    /// Gives a flag values that [`FlagList::read`] has judged.
    pub(in crate::cli) fn set(&mut self, flag: usize, values: Vec<OsString>) {
        self.0.insert(flag, values);
    }

    /// What a flag was given.
    pub(in crate::cli) fn get(&self, flag: usize) -> Option<&[OsString]> {
        self.0.get(&flag).map(Vec::as_slice)
    }

    /// These flags, and below them those of a farther source: what is set here is dropped there, and so is what conflicts with it.
    #[must_use]
    pub(in crate::cli) fn over(&self, farther: &Self) -> Self {
        self.over_in(&GENERATION, farther)
    }

    /// The same for the flags of another command.
    #[must_use]
    pub(in crate::cli) fn over_in(&self, list: &FlagList, farther: &Self) -> Self {
        let mut merged = farther.clone();
        merged.split_size(list, self);
        for &flag in self.0.keys() {
            for rival in &list.flags[flag].rivals {
                merged.0.remove(rival);
            }
        }
        merged.0.extend(self.0.clone());
        merged
    }

    /// A `--size` becomes width and height where only one of them is replaced: the other one still stands.
    fn split_size(&mut self, list: &FlagList, nearer: &Self) {
        let of = |name: &str| list.find(name).ok();
        let (Some(size), Some(width), Some(height)) = (of("size"), of("width"), of("height")) else { return };
        if nearer.0.contains_key(&width) == nearer.0.contains_key(&height) {
            return;
        }
        let Some((w, h)) = self.get(size).and_then(|typed| crate::settings::parse_size(typed.first()?.to_str()?).ok()) else { return };
        self.0.remove(&size);
        self.set(width, vec![w.to_string().into()]);
        self.set(height, vec![h.to_string().into()]);
    }

    /// The flags that are not `typed`, as they would have been typed.
    pub(in crate::cli) fn tokens_besides(&self, list: &FlagList, typed: &Self) -> Vec<OsString> {
        let untyped = self.0.iter().filter(|(flag, _)| !typed.0.contains_key(flag));
        untyped.flat_map(|(flag, values)| list.tokens(*flag, values)).collect()
    }

    /// What was typed of a command's flags.
    pub(in crate::cli) fn typed(list: &FlagList, matches: &ArgMatches) -> Self {
        let mut flags = Self::default();
        for (index, flag) in list.flags.iter().enumerate() {
            if matches.value_source(&flag.id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let values = match flag.kind {
                ValueKind::Switch => vec!["true".into()],
                ValueKind::Count => vec!["true".into(); usize::from(matches.get_count(&flag.id))],
                _ => matches.get_raw(&flag.id).into_iter().flatten().map(OsString::from).collect(),
            };
            flags.set(index, values);
        }
        flags
    }

    /// All of them through clap, defaults filled in; a prompt is not demanded.
    ///
    /// # Errors
    /// Everything that clap finds wrong, value by value; else how the flags do not go together.
    pub(in crate::cli) fn draft(&self) -> Result<Draft, Vec<Wrong>> {
        let list = &*GENERATION;
        let tokens = self.0.iter().flat_map(|(flag, values)| list.tokens(*flag, values));
        let error = match list.matches(tokens).and_then(|matches| GenerateArgs::from_arg_matches(&matches)) {
            Ok(GenerateArgs(draft)) => return Ok(draft),
            Err(error) => error,
        };
        let values = self.0.iter().flat_map(|(flag, values)| values.iter().map(|value| (*flag, value)));
        let bad: Vec<Wrong> =
            values.filter_map(|(flag, value)| Some(Wrong { flag: Some(flag), what: list.check(flag, value).err()? })).collect();
        if !bad.is_empty() {
            return Err(bad);
        }
        let named = |kind| match error.get(kind) {
            Some(ContextValue::String(one)) => vec![bare(one)],
            Some(ContextValue::Strings(many)) => many.iter().map(|one| bare(one)).collect(),
            _ => Vec::new(),
        };
        let (invalid, prior) = (named(ContextKind::InvalidArg), named(ContextKind::PriorArg));
        let flag = invalid.iter().chain(&prior).filter_map(|name| list.said(name)).find(|flag| self.0.contains_key(flag));
        let what = match error.kind() {
            ErrorKind::ArgumentConflict => format!("{} does not go with {}; give one of them", invalid.join(", "), prior.join(", ")),
            ErrorKind::MissingRequiredArgument => format!("{} is missing; the other flags need it", invalid.join(", ")),
            _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
        };
        Err(vec![Wrong { flag, what }])
    }
}

/// `--size` of clap's `--size <WxH>`.
fn bare(name: &str) -> String {
    name.split([' ', '=']).next().unwrap_or(name).to_owned()
}

/// Whether a flag is a setting of the whole process.
///
/// # Errors
/// It is: a sentence for the line that tries.
pub(in crate::cli) fn varies(flag: usize) -> Result<(), String> {
    let long = &GENERATION.flags[flag].long;
    match setting(long).is_none_or(|row| row.effect == Effect::Run) {
        true => Err(format!("--{long} is for the whole run; give it on the command line")),
        false => Ok(()),
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        GenerateArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::typed(&GENERATION, matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::typed(&GENERATION, matches).over(self);
        Ok(())
    }
}

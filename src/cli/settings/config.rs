//! The configuration files: flags that are as good as typed before the others. The command line beats `./sd-gen.toml`, and that beats
//! `sd-gen/config.toml` in the platform's folder.
//!
//! Keys are flags' names. Those at the top are for generating, alone and in batches; a table `[bench]` is for `sd-gen bench`, and so on.
//!
//! `./sd-gen.toml` may have come with a folder from elsewhere, so it has no say over what lies outside of that folder: paths that are
//! written to must stay inside, whatever a template becomes; nothing is overwritten on its word, and it can forbid the network but not
//! allow it.

use crate::cli::settings::flags::{FlagList, Flags};
use crate::cli::settings::lines::{LineErrors, LineRecord};
use crate::disk::{read_bounded, stays_inside};
use crate::settings::ValueKind;
use crate::{Error, Result};
use clap::{ArgMatches, Args};
use etcetera::BaseStrategy;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The file of the folder that the program is started in.
const HERE: &str = "sd-gen.toml";
/// More is no configuration.
const LONGEST: u64 = 1 << 20;
/// Keys at the top that hold for every command that has such a flag: they mean the same everywhere.
const EVERYWHERE: &[&str] = &["models-dir", "threads", "progress", "quiet", "verbose", "offline"];
/// Flags whose paths are only read: they may point anywhere.
const READS: &[&str] =
    &["models-dir", "scheduler-config", "vae", "lora", "embedding", "init-image", "mask", "taesd", "baseline", "upscaler"];

/// The arguments as if the files' flags had been typed first, and what to say about it.
pub(in crate::cli) struct Configured {
    pub(in crate::cli) arguments: Vec<OsString>,
    /// The files that were read, where `--verbose` asks for it.
    pub(in crate::cli) remarks: Vec<String>,
    /// The folder that images must stay in, because `./sd-gen.toml` says where they go.
    pub(in crate::cli) confined_to: Option<PathBuf>,
}

/// Flags of [`confined`] whose templates become paths only when an image is written.
const TEMPLATES: &[&str] = &["output", "output-dir"];

/// Puts the flags of the configuration files before those that were typed.
///
/// # Errors
/// A file cannot be read, or says what no flag takes.
pub(in crate::cli) fn configured(arguments: impl IntoIterator<Item = OsString>, program: &clap::Command) -> Result<Configured> {
    let platform = etcetera::choose_base_strategy().ok().map(|folders| folders.config_dir().join("sd-gen").join("config.toml"));
    let here = std::env::current_dir().ok();
    configured_by(arguments.into_iter().collect(), program, here.as_deref(), platform.as_deref())
}

fn configured_by(
    mut arguments: Vec<OsString>,
    program: &clap::Command,
    here: Option<&Path>,
    platform: Option<&Path>,
) -> Result<Configured> {
    let here = here.map(|folder| (folder.join(HERE), Some(folder)));
    let mut files = Vec::new();
    let mut unreadable = None;
    for (path, confined_to) in here.into_iter().chain(platform.map(|path| (path.to_owned(), None))) {
        let shown = if confined_to.is_some() { Path::new(".").join(HERE) } else { path.clone() }.display().to_string();
        match text_of(&path, &shown) {
            Ok(None) => {}
            Ok(Some(text)) => files.push(File { record: LineRecord::line(&shown.into(), 1, text), confined_to }),
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    // With no argument at all the help is shown, and bad usage is said by the real reading of the arguments.
    let matches =
        if arguments.len() > 1 && (unreadable.is_some() || !files.is_empty()) { typed_matches(&arguments, program) } else { None };
    let no_config =
        |matches: &ArgMatches| matches.get_flag("no_config") || matches.subcommand().is_some_and(|(_, below)| below.get_flag("no_config"));
    let Some(matches) = matches.filter(|matches| !no_config(matches)) else {
        return Ok(Configured { arguments, remarks: Vec::new(), confined_to: None });
    };
    if let Some(error) = unreadable {
        return Err(error);
    }
    let commands = Commands::new(&matches, program);
    let typed = Flags::typed(&commands.list, commands.matches);
    let mut settings = typed.clone();
    let mut errors = LineErrors::default();
    let mut confined_to = None;
    for file in &files {
        let said = file.settings(&commands, &mut errors);
        let templates = TEMPLATES.iter().filter_map(|name| commands.list.find(name).ok());
        let decides = templates.into_iter().any(|flag| said.get(flag).is_some() && settings.get(flag).is_none());
        confined_to = confined_to.or(file.confined_to.filter(|_| decides).map(Path::to_owned));
        settings = settings.over_in(&commands.list, &said);
    }
    errors.finish()?;
    let tokens = settings.tokens_besides(&commands.list, &typed);
    let verbose = commands.list.find("verbose").is_ok_and(|flag| settings.get(flag).is_some());
    let mut remarks: Vec<String> = Vec::new();
    if verbose {
        remarks.extend(files.iter().map(|file| format!("read {}", file.record.file)));
        let said: Vec<_> = tokens.iter().map(|token| token.to_string_lossy()).collect();
        remarks.push(if said.is_empty() { "no flag comes from there".to_owned() } else { format!("which adds {}", said.join(" ")) });
    }
    let place = if matches.subcommand().is_some() { 2 } else { 1 };
    arguments.splice(place..place, tokens);
    Ok(Configured { arguments, remarks, confined_to })
}

/// Reads a text as the folder's own file, for generating and for `bench`, and tells nobody what is wrong with it.
pub(in crate::cli) fn judge(text: &str, program: fn() -> clap::Command) {
    static PROGRAM: OnceLock<(clap::Command, Vec<ArgMatches>)> = OnceLock::new();
    static COMMANDS: OnceLock<Vec<Commands<'static>>> = OnceLock::new();
    let (program, matches) = PROGRAM.get_or_init(|| {
        let program = program();
        let typed = [&["sd-gen", "-p", "x"][..], &["sd-gen", "bench"]].map(|words| words.iter().map(OsString::from).collect::<Vec<_>>());
        let matches = typed.iter().filter_map(|arguments| typed_matches(arguments, &program)).collect();
        (program, matches)
    });
    let file = File { record: LineRecord::line(&HERE.into(), 1, text.to_owned()), confined_to: Some(Path::new(".")) };
    for commands in COMMANDS.get_or_init(|| matches.iter().map(|matches| Commands::new(matches, program)).collect()) {
        let mut errors = LineErrors::default();
        let _ = file.settings(commands, &mut errors);
        let _ = errors.finish();
    }
}

/// What was typed, before anything is demanded of it.
fn typed_matches(arguments: &[OsString], program: &clap::Command) -> Option<ArgMatches> {
    let lenient = |command: clap::Command| command.mut_args(|arg| arg.required(false));
    let command = lenient(program.clone()).mut_subcommands(lenient);
    command.try_get_matches_from(arguments).ok()
}

/// The file's text; `None` where there is no file.
fn text_of(path: &Path, shown: &str) -> Result<Option<String>> {
    let wrong = |what: String| Error::Input(format!("{shown}: {what}"));
    match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(wrong(format!("the configuration file cannot be read: {e}; --no-config goes without"))),
        // A pipe or a device would be waited for, or never end.
        Ok(metadata) if !metadata.is_file() => return Err(wrong("is not a file; --no-config goes without".into())),
        Ok(metadata) if metadata.len() > LONGEST => return Err(wrong("is too large to be a configuration file".into())),
        Ok(_) => {}
    }
    let read = read_bounded(path, LONGEST).and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other));
    read.map(Some).map_err(|e| wrong(format!("the configuration file cannot be read: {e}; --no-config goes without")))
}

/// The commands that a file may speak of, and the one that was typed.
struct Commands<'a> {
    /// The name of the subcommand that was typed.
    name: Option<&'a str>,
    matches: &'a ArgMatches,
    /// Its flags.
    list: FlagList,
    /// The flags of generating.
    top: FlagList,
    /// Flags of all subcommands.
    tables: Vec<(String, FlagList)>,
}

impl<'a> Commands<'a> {
    fn new(matches: &'a ArgMatches, all: &clap::Command) -> Self {
        // What holds for every command stands with none of them.
        let global = || all.get_arguments().filter(|arg| arg.get_id() == "offline").cloned();
        let generating = || Flags::augment_args(clap::Command::new("sd-gen"));
        let list_of = |command: clap::Command| FlagList::of(command.args(global()));
        let tables: Vec<_> = all.get_subcommands().map(|command| (command.get_name().to_owned(), list_of(command.clone()))).collect();
        let (name, matches) = matches.subcommand().map_or((None, matches), |(name, below)| (Some(name), below));
        let of_name = all.get_subcommands().find(|command| Some(command.get_name()) == name).cloned();
        let (list, top) = (list_of(of_name.unwrap_or_else(generating)), list_of(generating()));
        Self { name, matches, list, top, tables }
    }

    /// Whether the command has the flag of generating that a key at the top names.
    fn takes(&self, long: &str) -> bool {
        let generates = self.name.is_none() || self.list.find("prompt").is_ok();
        let known = self.list.flags.iter().any(|flag| flag.long == long);
        known && (generates || EVERYWHERE.contains(&long))
    }
}

/// A configuration file.
struct File<'a> {
    record: LineRecord,
    /// The folder that it may be from elsewhere with.
    confined_to: Option<&'a Path>,
}

impl File<'_> {
    /// What the file says to the command; what is wrong in it, for any command, goes to `errors`.
    fn settings(&self, commands: &Commands<'_>, errors: &mut LineErrors) -> Flags {
        let mut note = |part: Range<usize>, what: String| errors.push_with(|| self.record.error(part, what));
        let document = match DeTable::parse(&self.record.text) {
            Ok(document) => document,
            Err(error) => {
                note(error.span().unwrap_or_default(), format!("not TOML: {}", error.message()));
                return Flags::default();
            }
        };
        let (mut top, mut own) = (Flags::default(), Flags::default());
        for (key, value) in document.get_ref() {
            let name: &str = key.get_ref();
            match (value.get_ref(), commands.tables.iter().find(|(known, _)| known == name)) {
                (DeValue::Table(table), Some((_, list))) => {
                    for (key, value) in table {
                        match self.setting(list, key.get_ref(), value) {
                            Ok((flag, values)) if commands.name == Some(name) => own.set(flag, values),
                            Ok(_) => {}
                            Err((part, what)) => note(part.unwrap_or(key.span()), what),
                        }
                    }
                }
                (DeValue::Table(_), None) => {
                    let known: Vec<String> = commands.tables.iter().map(|(known, _)| format!("[{known}]")).collect();
                    note(key.span(), format!("there is no command {name:?}; there are {}", known.join(", ")));
                }
                _ => match self.setting(&commands.top, name, value) {
                    Ok((flag, values)) => {
                        let long = &commands.top.flags[flag].long;
                        if let (true, Ok(flag)) = (commands.takes(long), commands.list.find(long)) {
                            top.set(flag, values);
                        }
                    }
                    Err((part, what)) => note(part.unwrap_or(key.span()), what),
                },
            }
        }
        own.over_in(&commands.list, &top)
    }

    /// A key's flag and values; an error about the value comes with its place.
    fn setting(&self, list: &FlagList, key: &str, value: &Spanned<DeValue<'_>>) -> Result<(usize, Vec<OsString>), KeyError> {
        let flag = list.find(key).map_err(|what| (None, what))?;
        let items = match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        };
        let texts: Vec<String> =
            items.iter().map(|item| scalar(item).map_err(|what| (Some(item.span()), what))).collect::<Result<_, _>>()?;
        let read = list.read(flag, &texts).map_err(|(at, what)| (items.get(at).map(|item| item.span()), what))?;
        if let Some(folder) = self.confined_to {
            for ((text, item), read) in texts.iter().zip(&items).zip(&read) {
                confined(list, flag, (text, read), folder).map_err(|what| (Some(item.span()), what))?;
            }
        }
        Ok((flag, read))
    }
}

/// What is wrong with a key, or with the part of its value that is given.
type KeyError = (Option<Range<usize>>, String);

fn scalar(value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Boolean(on) => Ok(on.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| format!("{} is too large", number.as_str())),
        _ => Err("a value is a text, a number, true or false, or a list of them".to_owned()),
    }
}

/// Whether the folder's own file may set a flag to a value.
///
/// # Errors
/// It may not: why, and who may.
fn confined(list: &FlagList, flag: usize, (value, read): (&str, &OsString), folder: &Path) -> Result<(), String> {
    let flag = &list.flags[flag];
    let long = flag.long.as_str();
    let refused =
        |why: &str| Err(format!("--{long}: {why}; give it on the command line, or in the configuration file of the platform's folder"));
    if matches!(long, "overwrite" | "allow-outside") {
        return refused(&format!("./{HERE} cannot allow overwriting, for it may have come with a downloaded folder"));
    }
    if long == "offline" && read != "true" {
        return refused(&format!("./{HERE} can forbid the network and not allow it"));
    }
    // Windows would greet another machine by the name of such a path.
    if value.starts_with("\\\\") || value.starts_with("//") {
        return refused(&format!("./{HERE} cannot name another machine's files"));
    }
    if matches!(long, "model" | "models") && value.contains('/') && !folder.join(value).exists() {
        return refused(&format!("{value:?} is no file here, and ./{HERE} cannot ask for a download"));
    }
    let written = (flag.kind == ValueKind::Path && !READS.contains(&long)) || long.starts_with("output") || long.starts_with("save");
    let plain = || Path::new(value).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if written && !(plain() && stays_inside(folder, &folder.join(value))) {
        return refused(&format!("{value:?} leaves the folder of ./{HERE}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::commands::Cli;
    use clap::CommandFactory;

    struct Folders {
        here: tempfile::TempDir,
        platform: tempfile::TempDir,
    }

    impl Folders {
        fn new(here: &str, platform: &str) -> Self {
            let folders = Self { here: tempfile::tempdir().unwrap(), platform: tempfile::tempdir().unwrap() };
            for (folder, name, text) in [(&folders.here, HERE, here), (&folders.platform, "config.toml", platform)] {
                if !text.is_empty() {
                    std::fs::write(folder.path().join(name), text).unwrap();
                }
            }
            folders
        }

        fn run(&self, typed: &str) -> Result<Configured> {
            let typed = typed.split(' ').map(OsString::from).collect();
            configured_by(typed, &Cli::command(), Some(self.here.path()), Some(&self.platform.path().join("config.toml")))
        }

        fn arguments(&self, typed: &str) -> String {
            let arguments = self.run(typed).unwrap_or_else(|e| panic!("{typed}: {e}")).arguments;
            arguments.iter().map(|argument| argument.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn the_command_line_beats_the_folder_and_that_the_platform() {
        let folders =
            Folders::new("steps = 20\nsize = \"64x32\"\n", "steps = 9\nCfg_Scale = 6.5\nzero-snr = true\nprompt = [\"a\", \"b\"]\n");
        assert_eq!(folders.arguments("sd-gen -p x"), "sd-gen --size=64x32 --steps=20 --zero-snr --guidance-scale=6.5 -p x");
        assert_eq!(folders.arguments("sd-gen --steps 5 -g 1 -p x"), "sd-gen --size=64x32 --zero-snr --steps 5 -g 1 -p x");
        assert_eq!(
            folders.arguments("sd-gen -W 128"),
            "sd-gen --prompt=a --prompt=b --height=32 --steps=20 --zero-snr --guidance-scale=6.5 -W 128"
        );
        for typed in ["sd-gen", "sd-gen --help", "sd-gen -p x --no-config", "sd-gen -p x --unknown", "sd-gen bench"] {
            assert_eq!(folders.arguments(typed), typed);
        }
    }

    #[test]
    fn tables_are_for_their_commands() {
        let folders = Folders::new("", "threads = 2\nsteps = 9\n[bench]\nsteps = 3\nsizes = [\"64x64\", \"128x128\"]\n");
        assert_eq!(
            folders.arguments("sd-gen bench --repeats 2"),
            "sd-gen bench --sizes=64x64 --sizes=128x128 --steps=3 --threads=2 --repeats 2"
        );
        assert_eq!(folders.arguments("sd-gen -p x"), "sd-gen --steps=9 --threads=2 -p x");
    }

    #[test]
    fn flags_of_all_commands_and_flags_without_a_value_are_read() {
        let folders = Folders::new("", "offline = true\npreview = true\n[models]\noffline = false\n");
        assert_eq!(folders.arguments("sd-gen -p x"), "sd-gen --preview --offline -p x");
        assert_eq!(folders.arguments("sd-gen batch x"), "sd-gen batch --preview --offline x");
        assert_eq!(folders.arguments("sd-gen devices"), "sd-gen devices --offline");
        assert_eq!(folders.arguments("sd-gen models"), "sd-gen models");
        assert_eq!(folders.arguments("sd-gen --preview=sixel -p x"), "sd-gen --offline --preview=sixel -p x");
    }

    #[test]
    fn what_is_wrong_is_shown_in_its_place() {
        let folders = Folders::new("steps = 20\nstepz = 1\n[bench]\nrepeats = \"many\"\n[bnch]\n", "");
        let error = folders.run("sd-gen -p x").err().unwrap();
        assert_eq!(error.exit_code(), 2);
        let commands: Vec<String> = Cli::command().get_subcommands().map(|command| format!("[{}]", command.get_name())).collect();
        assert_eq!(
            error.to_string().replace(&commands.join(", "), "(all)"),
            "./sd-gen.toml:4:11: --repeats \"many\": give a whole number such as 20\n  4 | repeats = \"many\"\n    |           ^^^^^^\n\
             ./sd-gen.toml:5:2: there is no command \"bnch\"; there are (all)\n  5 | [bnch]\n    |  ^^^^\n\
             ./sd-gen.toml:2:1: there is no setting \"stepz\"; did you mean \"steps\"?\n  2 | stepz = 1\n    | ^^^^^\n\
             3 errors in ./sd-gen.toml; nothing was generated"
        );
        assert!(folders.run("sd-gen -p x --no-config").is_ok());
        for (text, said) in [
            ("steps = ", "not TOML"),
            ("steps = [1, 2]", "takes one value"),
            ("steps = {a = 1}", "there is no command"),
            ("seed = 2020-01-01", "a value is a text"),
            ("zero-snr = 3", "give true or false"),
            ("device = \"tpu\"", "--device \"tpu\""),
            ("no-config = true", "there is no setting"),
        ] {
            let error = Folders::new(text, "").run("sd-gen -p x").err().unwrap_or_else(|| panic!("{text}")).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_documented_file_is_read() {
        let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lines.md")).unwrap();
        let text = document.split_once("```toml\n").unwrap().1.split_once("```").unwrap().0;
        for folders in [Folders::new(text, ""), Folders::new("", text)] {
            assert_eq!(folders.arguments("sd-gen -p x"), "sd-gen --steps=25 --sampler=DPM++ 2M Karras --models-dir=/data/models -p x");
            assert_eq!(folders.arguments("sd-gen bench --random sd15"), "sd-gen bench --models-dir=/data/models --repeats=5 --random sd15");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_from_elsewhere_writes_nothing_outside_of_itself() {
        for (text, allowed) in [
            ("output-dir = \"out\"", true),
            ("output-dir = \"./out/new/er\"", true),
            ("output = \"{date}/{seed}.png\"", true),
            ("models-dir = \"/data/models\"", true),
            ("model = \"sd15\"", true),
            ("[bench]\njson = \"results.json\"", true),
            ("output-dir = \"../out\"", false),
            ("output-dir = \"/tmp\"", false),
            ("output = \"/tmp/{seed}.png\"", false),
            ("output-dir = \"link\"", false),
            ("output-dir = \"link/below\"", false),
            ("output-dir = \"dangling\"", false),
            ("save-latents = \"out/../../x\"", false),
            ("overwrite = true", false),
            ("overwrite = false", false),
            ("[batch]\nallow-outside = true", false),
            ("offline = true", true),
            ("offline = false", false),
            ("[models]\noffline = \"no\"", false),
            ("[bench]\njson = \"/tmp/x.json\"", false),
            ("model = \"org/name\"", false),
            ("models-dir = '\\\\host\\share'", false),
        ] {
            let folders = Folders::new(text, "");
            std::os::unix::fs::symlink(folders.platform.path(), folders.here.path().join("link")).unwrap();
            std::os::unix::fs::symlink(folders.platform.path().join("new"), folders.here.path().join("dangling")).unwrap();
            assert_eq!(folders.run("sd-gen -p x").is_ok(), allowed, "{text}");
            // The user's own file may do all of this.
            assert!(Folders::new("", text).run("sd-gen -p x").is_ok(), "{text}");
        }
    }

    #[test]
    fn images_are_confined_where_the_folders_file_says_where_they_go() {
        let folders = Folders::new("output-dir = \"out\"\noutput = \"{negative}/{seed}.png\"\nsteps = 3", "output-dir = \"elsewhere\"");
        let confined = |typed: &str| folders.run(typed).unwrap().confined_to.is_some();
        assert!(confined("sd-gen -p x") && confined("sd-gen batch x") && confined("sd-gen -p x --output-dir /tmp"));
        assert!(!confined("sd-gen -p x --output-dir /tmp --output x.png") && !confined("sd-gen models"));
        assert!(Folders::new("", "output-dir = \"/tmp\"").run("sd-gen -p x").unwrap().confined_to.is_none());
        assert!(Folders::new("steps = 3", "output-dir = \"/tmp\"").run("sd-gen -p x").unwrap().confined_to.is_none());
    }

    #[test]
    fn a_file_of_mistakes_is_judged_in_no_time() {
        let text: String = (0..80_000).map(|key| format!("k{key}=1\n")).collect();
        let started = std::time::Instant::now();
        let error = Folders::new(&text, "").run("sd-gen -p x").err().unwrap().to_string();
        assert!(error.contains("80000 errors in ./sd-gen.toml, and 79950 of them are not shown"), "{}", &error[error.len() - 200..]);
        assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
    }

    #[test]
    fn odd_files_are_refused_and_verbose_says_what_was_read() {
        let folders = Folders::new("steps = 3", "");
        let remarks = folders.run("sd-gen -p x -v").unwrap().remarks;
        assert_eq!(remarks, ["read ./sd-gen.toml", "which adds --steps=3"]);
        assert!(folders.run("sd-gen -p x").unwrap().remarks.is_empty());
        std::fs::create_dir(folders.platform.path().join("config.toml")).unwrap();
        assert!(folders.run("sd-gen -p x").is_err());
        assert!(folders.run("sd-gen -p x --no-config").is_ok());
    }
}

//! `sd-gen completions` and `sd-gen man`: what shells and readers of manuals know of the command line.

use super::args::Cli;
use crate::{Error, Result};
use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Args, Command, CommandFactory};
use clap_complete::Shell;
use std::ffi::OsStr;
use std::io::Write;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen completions bash > ~/.local/share/bash-completion/completions/sd-gen
  sd-gen completions zsh > ~/.zfunc/_sd-gen                     (with ~/.zfunc in $fpath)
  sd-gen completions fish > ~/.config/fish/completions/sd-gen.fish
  sd-gen completions powershell >> $PROFILE
  sd-gen completions elvish > ~/.config/elvish/lib/sd-gen.elv")]
pub(super) struct CompletionsArgs {
    /// Whose completions
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes a shell's completions to standard output.
pub(super) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sd-gen", &mut script);
    write(&script)
}

/// Writes the manual, roff, to standard output: the program's page, and the subcommands' after it.
pub(super) fn manual() -> Result<()> {
    let mut program = Cli::command();
    program.build();
    let mut pages = Vec::new();
    let visible = program.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help").cloned();
    for command in std::iter::once(program.clone()).chain(visible) {
        let name = command.get_bin_name().unwrap_or("sd-gen").replace(' ', "-");
        let page = clap_mangen::Man::new(command.display_name(name));
        page.render(&mut pages).map_err(Error::io("standard output"))?;
    }
    write(&pages)
}

/// A reader that has gone away is no error.
fn write(bytes: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Error::io("standard output")(e)),
        _ => Ok(()),
    }
}

/// Offers names to a shell that completes a value, and leaves it to `parser` which values there are.
#[derive(Debug, Clone)]
pub(super) struct NamedValues<P> {
    pub(super) names: Vec<&'static str>,
    pub(super) parser: P,
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

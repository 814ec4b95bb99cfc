//! `sd-gen completions` and `sd-gen man`: what shells and readers of manuals know of the command line.

use crate::{Error, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use std::io::Write;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sd-gen completions bash > ~/.local/share/bash-completion/completions/sd-gen
  sd-gen completions zsh > ~/.zfunc/_sd-gen                     (with ~/.zfunc in $fpath)
  sd-gen completions fish > ~/.config/fish/completions/sd-gen.fish
  sd-gen completions powershell >> $PROFILE
  sd-gen completions elvish > ~/.config/elvish/lib/sd-gen.elv")]
pub(in crate::cli) struct CompletionsArgs {
    /// Whose completions
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes a shell's completions to standard output.
pub(in crate::cli) fn run(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "sd-gen", &mut script);
    write(&script)
}

/// Writes the manual, roff, to standard output: the program's page, and the subcommands' after it.
pub(in crate::cli) fn manual(mut program: Command) -> Result<()> {
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

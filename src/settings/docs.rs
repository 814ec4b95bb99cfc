//! The table as documentation.

use super::{Effect, Heading, Setting, table};

/// `docs/flags.md`: every setting as a flag.
pub fn flag_table() -> String {
    let mut text = String::from(
        "# All settings\n\n\
         Written from the table in `src/settings`; `SD_GEN_UPDATE_DOCS=1 cargo test --test flags` writes it anew. A flag is a key of the\n\
         configuration file and of a batch file's lines too; case, `_`, `-` and spaces are the same in names.\n",
    );
    let headings = [
        Heading::What,
        Heading::Sampling,
        Heading::Inputs,
        Heading::Passes,
        Heading::Adapters,
        Heading::Model,
        Heading::Machine,
        Heading::Output,
    ];
    for heading in headings {
        let rows: Vec<&Setting> = table().iter().filter(|row| row.heading == heading).collect();
        if rows.is_empty() {
            continue;
        }
        text += &format!(
            "\n## {}\n\n| flag | meaning | default | also known as | in the PNG | changes |\n|---|---|---|---|---|---|\n",
            heading.title()
        );
        rows.into_iter().for_each(|row| text += &line(row));
    }
    text
}

fn line(row: &Setting) -> String {
    let value = if row.value.is_empty() { String::new() } else { format!(" {}", row.value) };
    let short = row.short.map(|letter| format!(", `-{letter}`")).unwrap_or_default();
    let range = match row.range {
        Some((least, most)) if most.is_finite() => format!(" ({least} to {most})"),
        Some((least, _)) => format!(" ({least} and more)"),
        None => String::new(),
    };
    let repeatable = if row.many && row.delimiter.is_none() { "; repeatable" } else { "" };
    let aliases: Vec<String> = row.aliases.iter().chain(row.hidden_aliases).map(|name| format!("`--{name}`")).collect();
    let infotext = row.infotext.map(|key| format!("`{key}`")).unwrap_or_default();
    let changes = match row.effect {
        Effect::Image | Effect::Scheduler => "the image",
        Effect::Batch => "which images",
        Effect::Model => "what is loaded",
        Effect::File => "the file",
        Effect::Run => "the whole run",
    };
    let help = row.help.replace('|', "\\|");
    format!(
        "| `--{}{value}`{short} | {help}{range}{repeatable} | {} | {} | {infotext} | {changes} |\n",
        row.name,
        row.default,
        aliases.join(", ")
    )
}

//! `docs/flags.md` is what the table of settings says.

#![allow(clippy::expect_used, reason = "a test that cannot read its files has failed")]

#[test]
fn the_table_in_the_documentation_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/flags.md");
    let table = sd_gen::settings::flag_table();
    if std::env::var_os("SD_GEN_UPDATE_DOCS").is_some() {
        std::fs::write(path, &table).expect("written");
    }
    let written = std::fs::read_to_string(path).expect("docs/flags.md");
    assert!(written == table, "docs/flags.md is not current: SD_GEN_UPDATE_DOCS=1 cargo test --test flags");
}

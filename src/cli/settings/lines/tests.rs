use super::*;
use crate::settings::{BatchSize, CanvasDraft};
use std::io::Cursor;

/// The lines of a text in a format, over flags in the form of a line.
fn over(base: &str, format: LineFormat, text: &[u8]) -> Lines {
    let base = if base.is_empty() { Flags::default() } else { over("", LineFormat::Text, base.as_bytes()).next().unwrap().unwrap().flags };
    lines(LineSource::new("lines", Cursor::new(text.to_vec())), format, &[], &base)
}

fn good(format: LineFormat, text: &str) -> Vec<Draft> {
    over("", format, text.as_bytes()).map(|line| line.unwrap_or_else(|e| panic!("{text}\n{e}")).draft).collect()
}

pub(super) fn one(format: LineFormat, text: &str) -> Draft {
    let mut all = good(format, text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn sized(width: usize, height: usize) -> CanvasDraft {
    Draft::default().with(|draft| draft.set_size(Some((width, height)))).canvas
}

#[test]
fn a_table_may_have_columns_that_pass() {
    let table = "Prompt\tCategory\tseed\na cat\tanimals\t5\na dog\t\t\n";
    let read = |columns: &[&str]| {
        let columns: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        let source = LineSource::new("lines", Cursor::new(table.as_bytes().to_vec()));
        lines(source, LineFormat::Tsv, &columns, &Flags::default()).collect::<Vec<_>>()
    };
    let drafts: Vec<Draft> = read(&["prompt"]).into_iter().map(|line| line.unwrap().draft).collect();
    assert_eq!(drafts, [Draft::new("a cat"), Draft::new("a dog")]);
    let seeded = read(&["prompt", "Seed"]).remove(0).unwrap().draft;
    assert_eq!(seeded.seed, Some(crate::settings::Seed::Is(5)));
    let all = read(&[]).remove(0).err().unwrap().to_string();
    assert!(all.contains("Category") && all.contains("--columns"), "{all}");
    // A column by another name than its setting's.
    let renamed: Vec<Draft> = read(&["prompt=category", "seed"]).into_iter().filter_map(|line| line.ok().map(|line| line.draft)).collect();
    assert_eq!(renamed, [Draft::new("animals").with(|draft| draft.seed = Some(crate::settings::Seed::Is(5)))]);
    let unknown = read(&["prompts=Prompt"]).remove(0).err().unwrap().to_string();
    assert!(unknown.contains("did you mean \"prompt\"?"), "{unknown}");
    let absent = read(&["prompt", "steps"]).remove(0).err().unwrap().to_string();
    assert!(absent.contains("has no column \"steps\""), "{absent}");
}

pub(super) fn errors(format: LineFormat, text: &[u8]) -> Vec<String> {
    over("", format, text).filter_map(|line| line.err().map(|e| e.to_string())).collect()
}

#[test]
fn a_line_without_flags_is_a_prompt() {
    let text = "\u{feff}a cat\r\n\n  # a comment\n  don't \"quote\" me \\(really\\) - or -- do\r\n";
    let prompts: Vec<_> = good(LineFormat::Text, text).into_iter().map(|args| args.prompts).collect();
    assert_eq!(prompts, [["a cat"], ["don't \"quote\" me \\(really\\) - or -- do"]]);
    assert!(good(LineFormat::Text, "").is_empty());
}

#[test]
fn flags_on_a_line_are_read_as_a1111_reads_them() {
    let args = one(
        LineFormat::Text,
        r#"--prompt "a \"red\" cat, it's" --negative_prompt blurry, dog's \(bone\) --seed -1 --steps 30 --cfg_scale 6.5 --sampler_name DPM++ 2M --sd_model 'C:\models\x y'  --do_not_save_grid true --restore_faces false"#,
    );
    assert_eq!(args.prompts, ["a \"red\" cat, it's"]);
    assert_eq!(args.text.negative_prompt.as_deref(), Some("blurry, dog's \\(bone\\)"));
    assert_eq!((args.sampling.steps, args.guidance.scale), (Some(30), Some(6.5)));
    assert_eq!((args.scheduler.sampler.as_deref(), args.load.model.as_deref()), (Some("DPM++ 2M"), Some("C:\\models\\x y")));
    for (line, prompt, seed) in [
        ("a cat --seed 3", "a cat", Some(3)),
        ("-p 'a cat' -s 3 --zero-snr", "a cat", Some(3)),
        ("--seed=3 --prompt=\"--a cat\"", "--a cat", Some(3)),
        ("--prompt \"a -- b --c\"", "a -- b --c", None),
    ] {
        let args = one(LineFormat::Text, line);
        assert_eq!((args.prompts[0].as_str(), args.seed), (prompt, seed.map(crate::settings::Seed::Is)), "{line}");
    }
    // Letters after the prompt; a dash in a prompt is none.
    let args = one(LineFormat::Text, "a pear -n blurry fruit -W 512 -H 256 -s 5");
    assert_eq!((args.prompts[0].as_str(), args.text.negative_prompt.as_deref()), ("a pear", Some("blurry fruit")));
    assert_eq!((args.canvas.width, args.canvas.height, args.seed), (Some(512), Some(256), Some(crate::settings::Seed::Is(5))));
    for prompt in ["a cat - or -- a dog", "x-ray of a t-shirt -z", "#1 dad mug"] {
        assert_eq!(one(LineFormat::Text, prompt).prompts, [prompt]);
    }
    // kohya-ss's letters have two dashes.
    let args = one(LineFormat::Text, "a red apple --n low quality, blurry --w 768 --h 512 --d 1 --l 7.5 --s 28");
    assert_eq!((args.prompts[0].as_str(), args.text.negative_prompt.as_deref()), ("a red apple", Some("low quality, blurry")));
    assert_eq!((args.canvas.width, args.canvas.height, args.sampling.steps), (Some(768), Some(512), Some(28)));
    assert_eq!((args.seed, args.guidance.scale), (Some(crate::settings::Seed::Is(1)), Some(7.5)));
    let args = one(LineFormat::Text, "a red apple --W 768 --D 7 --ss euler_a");
    assert_eq!((args.canvas.width, args.seed), (Some(768), Some(crate::settings::Seed::Is(7))));
    assert_eq!(args.scheduler.sampler.as_deref(), Some("euler_a"));
    let args = one(LineFormat::Text, "--prompt a --batch_size 4.0 --n_iter 3");
    assert_eq!((args.output.images, args.output.batch_size), (Some(12), Some(BatchSize(Some(4)))));
}

#[test]
fn every_format_says_the_same() {
    for (format, text) in [
        (LineFormat::Text, "--prompt \"a, b\" --steps 20 --zero_snr --size 512x768\n"),
        (LineFormat::Jsonl, "{\"prompt\": \"a, b\", \"Steps\": 20.0, \"zero_snr\": true, \"size\": \"512x768\", \"seed\": null}\n"),
        (LineFormat::Csv, "Prompt,steps,zero-snr,size,seed\n\"a, b\",20.0,TRUE,512x768,\n\n"),
        (LineFormat::Csv, "prompt;steps;zero snr;size\na, b;20;yes;512x768"),
        (LineFormat::Tsv, "prompt\tsteps\tzero-snr\tsize\r\na, b\t20\t1\t512x768\r\n"),
    ] {
        let args = one(format, text);
        assert_eq!(
            (args.prompts, args.sampling.steps, args.scheduler.zero_snr, args.canvas),
            (vec!["a, b".to_owned()], Some(20), Some(true), sized(512, 768)),
            "{text}"
        );
    }
    assert_eq!(one(LineFormat::Jsonl, r#"{"prompt": ["a", "b\u00e9"]}"#).prompts, ["a", "bé"]);
    assert_eq!(one(LineFormat::Csv, "prompt,steps\n\"two\nlines \"\"quoted\"\"\",5\n").prompts, ["two\nlines \"quoted\""]);
}

#[test]
fn the_line_beats_the_flags() {
    let base = "--prompt base --negative-prompt blurry --size 768x512 --zero-snr --steps 9";
    let args = |line: &str| over(base, LineFormat::Jsonl, line.as_bytes()).next().unwrap().unwrap().draft;
    let line = args(r#"{"width": 256, "zero-snr": false, "negative_prompt": ""}"#);
    assert_eq!((line.prompts[0].as_str(), line.text.negative_prompt.as_deref(), line.sampling.steps), ("base", Some(""), Some(9)));
    assert_eq!((line.canvas, line.scheduler.zero_snr), (sized(256, 512), None));
    let line = args(r#"{"prompt": "own", "size": "64x64"}"#);
    assert_eq!((line.prompts, line.canvas, line.scheduler.zero_snr), (vec!["own".to_owned()], sized(64, 64), Some(true)));
}

#[test]
fn yaml_is_read_item_by_item() {
    let text = "# comment\n- a cat\n- prompt: two\n  seed: 3\n  zero-snr: yes\n  steps: ~\n- {prompt: [a, b], size: 64x64}\n---\nprompt: |\n  block\n  text\n---\n";
    let lines = good(LineFormat::Yaml, text);
    assert_eq!(lines.iter().map(|args| args.prompts.join("/")).collect::<Vec<_>>(), ["a cat", "two", "a/b", "block\ntext\n"]);
    assert_eq!(
        (lines[1].seed, lines[1].scheduler.zero_snr, lines[1].sampling.steps),
        (Some(crate::settings::Seed::Is(3)), Some(true), None)
    );
    let merged = "- &base {prompt: base, steps: 7}\n- {<<: *base, prompt: own}\n- *base\n";
    let lines = good(LineFormat::Yaml, merged);
    assert_eq!(
        lines.iter().map(|args| (args.prompts[0].as_str(), args.sampling.steps)).collect::<Vec<_>>(),
        [("base", Some(7)), ("own", Some(7)), ("base", Some(7))]
    );
    let array = "[{\"prompt\": \"a\", \"steps\": 5},\n {\"prompt\": \"b\"}]";
    assert_eq!(good(LineFormat::Yaml, array).len(), 2);
    assert_eq!(good(LineFormat::Yaml, "{\n\t\"prompt\": \"a\",\n\t\"steps\": 5\n}").len(), 1);
    assert!(good(LineFormat::Yaml, "---\n".repeat(10_000).as_str()).is_empty());
}

#[test]
fn bombs_of_aliases_are_refused() {
    let mut bomb = String::from("- &a [\"lol\",\"lol\",\"lol\",\"lol\",\"lol\",\"lol\",\"lol\",\"lol\",\"lol\"]\n");
    for (before, name) in "abcdefgh".chars().zip("bcdefghi".chars()) {
        bomb += &format!("- &{name} [{}]\n", vec![format!("*{before}"); 9].join(","));
    }
    let said = errors(LineFormat::Yaml, bomb.as_bytes());
    assert!(said.last().unwrap().contains("aliases make this line too large"), "{said:?}");
    for text in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000), format!("- {}", "&a ".repeat(1000)), "- &a [*a]".into()]
    {
        let said = errors(LineFormat::Yaml, text.as_bytes());
        assert!((1..=2).contains(&said.len()), "{}: {said:?}", &text[..8]);
    }
}

/// A text in a format, and everything that is said about it.
#[test]
fn every_error_has_its_place_and_its_caret() {
    for (format, text, said) in [
        (
            LineFormat::Text,
            "a cat\na dog --stpes 20\n",
            "lines:2:7: there is no setting \"--stpes\"; did you mean \"steps\"?\n  2 | a dog --stpes 20\n    |       ^^^^^^^",
        ),
        (
            LineFormat::Text,
            "--prompt 東京 --steps abc --width 1x\n",
            "lines:1:21: --steps \"abc\": give a whole number such as 20\n  1 | --prompt 東京 --steps abc --width 1x\n    |                       ^^^\n\
             lines:1:33: --width \"1x\": give a whole number such as 20\n  1 | --prompt 東京 --steps abc --width 1x\n    |                                   ^^",
        ),
        (
            LineFormat::Text,
            "--prompt \"a cat\n",
            "lines:1:10: this \" is never closed; close it, or write \\\"\n  1 | --prompt \"a cat\n    |          ^^^^^^",
        ),
        (LineFormat::Text, "--steps --prompt x", "lines:1:1: --steps needs a value after it\n  1 | --steps --prompt x\n    | ^^^^^^^"),
        (
            LineFormat::Text,
            "--prompt a --cfg_scale 7 --guidance-scale 8",
            "lines:1:26: --guidance-scale is given twice, also as --cfg_scale; give it once\n  1 | --prompt a --cfg_scale 7 --guidance-scale 8\n    |                          ^^^^^^^^^^^^^^^^",
        ),
        (
            LineFormat::Text,
            "a --size 64x64 --width 64",
            "lines:1:24: --width does not go with --size; give one of them\n  1 | a --size 64x64 --width 64\n    |                        ^^",
        ),
        (
            LineFormat::Text,
            "a --threads 3",
            "lines:1:3: --threads is for the whole run; give it on the command line\n  1 | a --threads 3\n    |   ^^^^^^^^^",
        ),
        (
            LineFormat::Text,
            "banana sushi -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms",
            "lines:1:20: this is InvokeAI's -S, which is --seed here, as its -s is the steps and -S the seed; write the names: --steps, --seed, --width, --height, --guidance-scale, --sampler (a prompt that has such a word: --prompt \"…\")\n  1 | banana sushi -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms\n    |                    ^^",
        ),
        (
            LineFormat::Text,
            "--prompt a --sampler_index 2",
            "lines:1:12: sampler_index is a number in A1111's own list of samplers; write the name, such as --sampler_name \"Euler a\"\n  1 | --prompt a --sampler_index 2\n    |            ^^^^^^^^^^^^^^^",
        ),
        (
            LineFormat::Text,
            "--prompt a --restore_faces true",
            "lines:1:28: --restore_faces \"true\" is not supported; leave it out\n  1 | --prompt a --restore_faces true\n    |                            ^^^^",
        ),
        (
            LineFormat::Jsonl,
            "{\"prompt\": \"a\", \"sampler\": {}}\n{\"prompt\": \"a\",}\n[1]\n{\"seed\": 1}",
            "lines:1:28: a value is a number, true, false or a text, or a list of them\n  1 | {\"prompt\": \"a\", \"sampler\": {}}\n    |                            ^^\n\
             lines:2:16: not JSON: key must be a string\n  2 | {\"prompt\": \"a\",}\n    |                ^\n\
             lines:3:1: a line is an object such as {\"prompt\": \"a cat\"}, or a text, which is a prompt\n  3 | [1]\n    | ^^^\n\
             lines:4:1: the line has no prompt, and no --prompt was given for all lines\n  4 | {\"seed\": 1}\n    | ^^^^^^^^^^^",
        ),
        (
            LineFormat::Jsonl,
            "{\"prompt\": \"a\", \"steps\": 2.5, \"seed\": [1, 2], \"prompt\": 3}",
            "lines:1:26: --steps \"2.5\": give a whole number such as 20\n  1 | {\"prompt\": \"a\", \"steps\": 2.5, \"seed\": [1, 2], \"prompt\": 3}\n    |                          ^^^\n\
             lines:1:43: --seed takes one value, and 2 were given\n  1 | {\"prompt\": \"a\", \"steps\": 2.5, \"seed\": [1, 2], \"prompt\": 3}\n    |                                           ^",
        ),
        (
            LineFormat::Csv,
            "prompt,stps,prompt\na,1,b\n",
            "lines:1:8: the header names a flag for each column: there is no setting \"stps\"; did you mean \"steps\"? (--columns names the columns that count, as in --columns prompt=Caption)\n  1 | prompt,stps,prompt\n    |        ^^^^\n\
             lines:1:13: the header names a flag for each column: the column \"prompt\" is there twice; leave one out\n  1 | prompt,stps,prompt\n    |             ^^^^^^",
        ),
        (
            LineFormat::Csv,
            "prompt,steps\n\"two\nlines\",x\na, b,5\n\"open,5\n",
            "lines:3:8: --steps \"x\": give a whole number such as 20\n  3 | lines\",x\n    |        ^\n\
             lines:4:6: the row has 3 cells and the header 2; put a cell that holds a comma into quotes\n  4 | a, b,5\n    |      ^\n\
             lines:5:1: the quote at the start of this cell is never closed; close it, or write \"\" for a quote inside a cell\n  5 | \"open,5\n    | ^",
        ),
        (
            LineFormat::Yaml,
            "- prompt: a\n  steps: many\n- {prompt: b, size: {w: 1}}\n- [a]\n- prompt: *none\n",
            "lines:2:10: --steps \"many\": give a whole number such as 20\n  2 |   steps: many\n    |          ^^^^\n\
             lines:3:21: a value is a number, true, false or a text, or a list of them\n  3 | - {prompt: b, size: {w: 1}}\n    |                     ^^^^^^\n\
             lines:4:3: a line is a map such as {prompt: a cat}, or a text, which is a prompt\n  4 | - [a]\n    |   ^^^\n\
             lines:5:11: not YAML: while parsing node, found unknown anchor\n  5 | - prompt: *none\n    |           ^",
        ),
    ] {
        assert_eq!(errors(format, text.as_bytes()).join("\n"), said, "{text}");
    }
}

#[test]
fn what_is_no_text_is_said_with_its_byte() {
    for (bytes, said) in [
        (
            &b"a\ncaf\xe9 au lait\nb --stepz 1"[..],
            "lines:2:4: byte 4 of the line, 0xe9, is not UTF-8 text; save the file as UTF-8\n  2 | caf\u{fffd} au lait\n    |    ^",
        ),
        (b"a\nb\0c", "lines:2:2: the line holds a NUL character; it is not text\n  2 | b c\n    |"),
        (b"\xff\xfea\0\n\0", "lines:1: the file is UTF-16 text; save it as UTF-8"),
    ] {
        let all = errors(LineFormat::Text, bytes);
        assert!(all[0].starts_with(said), "{}", all[0]);
    }
    // What comes after is read.
    assert_eq!(errors(LineFormat::Text, b"a\ncaf\xe9\nb --stepz 1").len(), 2);
}

#[test]
fn a_line_of_a_megabyte_is_an_error_and_the_next_one_is_read() {
    for (format, row) in [(LineFormat::Text, "after"), (LineFormat::Jsonl, "{\"prompt\": \"after\"}")] {
        let long = "x".repeat((1 << 20) + 1);
        let text = format!("{long}\n{row}\n");
        let read: Vec<_> = over("", format, text.as_bytes()).collect();
        assert_eq!(read.len(), 2);
        assert!(read[0].as_ref().unwrap_err().to_string().starts_with("lines:1: the line is longer than a megabyte"));
        assert_eq!(read[1].as_ref().unwrap().number, 2);
    }
    assert_eq!(one(LineFormat::Text, &"x".repeat(1 << 20)).prompts[0].len(), 1 << 20);
    let cell = format!("prompt\n\"{}", "x\n".repeat(1 << 20));
    assert!(errors(LineFormat::Csv, cell.as_bytes())[0].starts_with("lines:2:1: the quote at the start"));
    let block = format!("- |\n{}", " x\n".repeat(1 << 20));
    assert!(errors(LineFormat::Yaml, block.as_bytes())[0].contains("an item longer than a megabyte"));
    // The caret stays in sight on a long line.
    let said = errors(LineFormat::Text, format!("{} --stepz 3 {}", "a ".repeat(5000), "b".repeat(5000)).as_bytes());
    assert!(said[0].len() < 600 && said[0].contains("^^^^^^^"), "{}", said[0]);
}

/// Gives the same bytes over and over, and counts them.
struct Endless {
    start: &'static [u8],
    row: &'static [u8],
    given: std::rc::Rc<std::cell::Cell<usize>>,
    most: usize,
}

impl std::io::Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let given = self.given.get();
        if given >= self.most {
            return Ok(0);
        }
        let rest = if given < self.start.len() { &self.start[given..] } else { &self.row[(given - self.start.len()) % self.row.len()..] };
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.given.set(given + count);
        Ok(count)
    }
}

#[test]
fn a_hundred_thousand_lines_are_streamed() {
    for (count, format, start, row) in [
        (100_000, LineFormat::Text, &b""[..], &b"a cat --seed 5 --steps 3\n"[..]),
        (20_000, LineFormat::Jsonl, b"", b"{\"prompt\": \"a cat\", \"seed\": 5, \"steps\": 3}\n"),
        (20_000, LineFormat::Csv, b"prompt,seed,steps\n", b"a cat,5,3\n"),
        (20_000, LineFormat::Yaml, b"", b"- {prompt: a cat, seed: 5, steps: 3}\n"),
    ] {
        let given = std::rc::Rc::new(std::cell::Cell::new(0));
        let most = start.len() + row.len() * count;
        let source = LineSource::new("lines", std::io::BufReader::new(Endless { start, row, given: given.clone(), most }));
        let mut read = lines(source, format, &[], &Flags::default());
        let first = read.next().unwrap().unwrap();
        assert_eq!((first.draft.prompts[0].as_str(), first.draft.sampling.steps), ("a cat", Some(3)));
        // Nothing is read that is not needed yet.
        assert!(given.get() <= 1 << 16, "{format:?} took {} bytes for its first line", given.get());
        assert_eq!(read.filter(|line| line.is_ok()).count(), count - 1, "{format:?}");
    }
}

#[test]
fn a_file_of_errors_says_the_first_fifty() {
    let mut all = LineErrors::default();
    over("", LineFormat::Text, "a --stepz 1\n".repeat(1000).as_bytes()).filter_map(Result::err).for_each(|error| all.push(error));
    let said = all.finish().unwrap_err();
    assert_eq!(said.exit_code(), 2);
    let said = said.to_string();
    assert_eq!(said.matches("did you mean").count(), 50);
    assert!(said.ends_with("\n1000 errors in lines, and 950 of them are not shown; nothing was generated"), "{said}");
}

#[test]
fn a_models_word_on_a_flag_points_to_it() {
    let line = over("", LineFormat::Text, b"a cat --width 100").next().unwrap().unwrap();
    let said = line.error("--width 100: must be a multiple of 8").to_string();
    assert_eq!(said, "lines:1:15: --width 100: must be a multiple of 8\n  1 | a cat --width 100\n    |               ^^^");
    assert!(line.error("the model is no model").to_string().contains("^^^^^^^^^^^^^^^^^"));
}

#[test]
fn files_are_known_by_their_names_and_else_by_their_first_line() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("a.txt", "{a cat}"),
        ("a.jsonl", "{\"prompt\": \"{a cat}\"}"),
        ("a.ndjson", "\"{a cat}\""),
        ("a.csv", "prompt\n{a cat}"),
        ("a.TSV", "prompt\n{a cat}"),
        ("a.yml", "- \"{a cat}\""),
        ("a.json", "[{\"prompt\": \"{a cat}\"}]"),
        ("b.json", "{\n  \"prompt\": \"{a cat}\"\n}"),
        ("c.json", "{\"prompt\": \"{a cat}\"}\n"),
        ("a", "# comment\n\n{a cat"),
        ("e", "{a cat|a dog}"),
        ("b", "prompt,seed\n{a cat},"),
        ("c", "\u{feff}prompt\tseed\n{a cat}\t"),
        ("d", "---\nprompt: \"{a cat}\""),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let read: Vec<_> = read(&path, None, &[], &Flags::default()).unwrap().map(|line| line.unwrap().draft.prompts).collect();
        assert_eq!(read.len(), 1, "{name}");
        assert!(read[0][0].starts_with("{a cat"), "{name}: {read:?}");
    }
    let refused = read(folder.path(), None, &[], &Flags::default()).err().unwrap();
    assert!(refused.exit_code() == 2 && refused.to_string().contains("is a folder"));
    assert!(read(&folder.path().join("none"), None, &[], &Flags::default()).err().unwrap().to_string().contains("cannot be read"));
    let forced = read(&folder.path().join("a.csv"), Some(LineFormat::Text), &[], &Flags::default()).unwrap();
    assert_eq!(forced.count(), 2);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_as_it_fills() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let writer = std::thread::spawn({
        let path = path.clone();
        move || std::fs::write(path, "a cat\na dog --steps 3\n")
    });
    assert_eq!(read(&path, None, &[], &Flags::default()).unwrap().filter(|line| line.is_ok()).count(), 2);
    writer.join().unwrap().unwrap();
}

#[test]
fn sweeps_lie_over_every_line() {
    use crate::cli::settings::sweep::{Sweep, SweepAxis};
    let axes = ["cfg=4,7.5", "seed=1..2", "size=64x64,128x64"].map(|text| SweepAxis::parse(text).unwrap());
    let sweep = Sweep::new(axes.to_vec()).unwrap();
    let swept: Vec<Line> = sweep.over(over("", LineFormat::Text, b"a cat --seed 9 --width 256")).map(|line| line.unwrap()).collect();
    assert_eq!(swept.len(), 8);
    let points: Vec<_> = swept.iter().map(|line| (line.at.clone(), line.draft.guidance.scale, line.draft.canvas.clone())).collect();
    assert_eq!(points[1], (vec![0, 0, 1], Some(4.0), sized(128, 64)));
    assert_eq!(points[7], (vec![1, 1, 1], Some(7.5), sized(128, 64)));
    assert_eq!(swept[7].labels[0], ("guidance-scale".to_owned(), "7.5".to_owned()));
    let said = swept[7].error("--seed: no").to_string();
    assert!(said.starts_with("lines:1:14: --seed: no (with --sweep guidance-scale=7.5, seed=2, size=128x64)"), "{said}");
    // A line may leave its prompt to the sweep.
    let prompts = Sweep::new(vec![SweepAxis::parse("prompt=a,b").unwrap()]).unwrap();
    let first = prompts.first();
    let lines = lines(LineSource::new("lines", Cursor::new("{\"seed\": 1}")), LineFormat::Jsonl, &[], &first);
    assert_eq!(prompts.over(lines).map(|line| line.unwrap().draft.prompts.concat()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(of_flags(&first).next().unwrap().unwrap().draft.prompts, ["a"]);
}

mod any_input {
    use super::*;
    use proptest::prelude::*;

    const FORMATS: [LineFormat; 5] = [LineFormat::Text, LineFormat::Jsonl, LineFormat::Csv, LineFormat::Tsv, LineFormat::Yaml];

    /// Bytes that are likely to mean something to some reader.
    fn fragments() -> impl Strategy<Value = Vec<u8>> {
        let pieces = [
            "\n",
            "\r\n",
            "\r",
            "\t",
            " ",
            "\"",
            "'",
            "\\",
            ",",
            ";",
            ":",
            "#",
            "- ",
            "--",
            "---\n",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "<<: ",
            "|\n",
            ">",
            "?",
            "!!str ",
            "%",
            "prompt",
            "steps",
            "--prompt ",
            "--steps=",
            "seed",
            "n_iter",
            "batch_size",
            "null",
            "~",
            "1",
            "-1",
            "1e3",
            "1e999",
            "9999999999999999999999",
            "NaN",
            "true",
            "é",
            "東",
            "\u{feff}",
            "\0",
            "\u{85}",
            "\u{2028}",
            "a cat",
        ];
        let piece = prop_oneof![
            8 => proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 1..4),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn no_reader_panics_or_runs_on(text in fragments()) {
            for format in FORMATS {
                for line in over("", format, &text).take(1000) {
                    match line {
                        Ok(line) => prop_assert!(!line.draft.prompts.is_empty() && line.number > 0),
                        Err(error) => prop_assert!(error.line > 0 && !error.what.is_empty()),
                    }
                }
            }
            let mut source = LineSource::new("lines", Cursor::new(text));
            sniffed(&mut source);
        }

        #[test]
        fn a_prompt_survives_every_format(prompt in "[^\\p{C}]{1,40}") {
            let json = serde_json::to_string(&prompt).unwrap();
            let csv = format!("prompt\n\"{}\"\n", prompt.replace('"', "\"\""));
            let text = format!("--prompt \"{}\"", prompt.replace('\\', "\\\\").replace('"', "\\\""));
            for (format, text) in [(LineFormat::Jsonl, format!("{{\"prompt\": {json}}}")), (LineFormat::Yaml, format!("- {json}")), (LineFormat::Csv, csv), (LineFormat::Text, text)] {
                prop_assert_eq!(&one(format, &text).prompts, std::slice::from_ref(&prompt), "{}", text);
            }
        }
    }
}

#[test]
fn the_documented_files_say_the_same() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lines.md")).unwrap();
    let block = |language: &str| {
        let after = document.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language}")).1;
        after.split_once("```").unwrap().0.to_owned()
    };
    let flags = |format, text: &str| over("", format, text.as_bytes()).map(|line| line.unwrap().flags).collect::<Vec<_>>();
    let text = flags(LineFormat::Text, &block("text"));
    assert_eq!(text.len(), 2);
    for (format, language) in [(LineFormat::Jsonl, "jsonl"), (LineFormat::Csv, "csv"), (LineFormat::Yaml, "yaml")] {
        assert_eq!(flags(format, &block(language)), text, "{language}");
    }
    let said = over("", LineFormat::Text, b"a cat\na dog --stpes 20").find_map(Result::err).unwrap().to_string();
    assert_eq!(block("console").trim_end(), said.replace("lines:", "prompts.txt:"));
}

#[test]
fn a_line_of_many_mistakes_is_judged_in_no_time() {
    let keys: Vec<String> = (0..60_000).map(|key| format!("\"k{key}\":1")).collect();
    let started = std::time::Instant::now();
    let said = errors(LineFormat::Jsonl, format!("{{{},\"prompt\":\"a\"}}", keys.join(",")).as_bytes());
    assert_eq!(said.len(), 50);
    assert!(said[49].contains("\"k49\""), "{}", said[49]);
    let said = errors(LineFormat::Csv, format!("prompt{}\na\n", ",steps".repeat(150_000)).as_bytes());
    assert!(said.len() == 50 && said[0].contains("the column \"steps\" is there twice"), "{}", said[0]);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[cfg(unix)]
#[test]
fn a_file_without_an_end_is_no_file_of_lines() {
    use crate::cli::settings::sweep::SweepAxis;
    for device in ["/dev/zero", "/dev/urandom"] {
        let error = read(Path::new(device), None, &[], &Flags::default()).err().unwrap().to_string();
        assert!(error.contains("is neither a file nor a pipe"), "{error}");
        assert!(SweepAxis::parse(&format!("prompt=@{device}")).unwrap_err().contains("is neither a file nor a pipe"));
    }
    // Through a pipe there is no telling but by reading.
    let lines: Vec<_> = over_reader(std::io::BufReader::new(std::io::repeat(b'a'))).collect();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].as_ref().unwrap_err().to_string().contains("longer than a megabyte"));
}

fn over_reader(reader: impl std::io::BufRead + 'static) -> Lines {
    lines(LineSource::new("lines", reader), LineFormat::Text, &[], &Flags::default())
}

#[test]
fn a_line_says_what_it_sets_itself() {
    let line = over("a --output base.png --steps 3", LineFormat::Text, b"a cat --output-dir out").next().unwrap().unwrap();
    assert!(line.is_of_file() && line.sets("output-dir") && !line.sets("output") && !line.sets("steps"));
    assert!(!of_flags(&line.flags).next().unwrap().unwrap().is_of_file());
}

#[test]
fn what_is_shown_of_a_line_cannot_steer_the_terminal() {
    let said = errors(LineFormat::Text, "a \u{1b}[31m \u{9b}2J \u{202e}cat --stpes 3".as_bytes()).remove(0);
    assert!(!said.chars().any(|c| c != '\n' && crate::cli::terminal::show::steers(c)), "{said:?}");
}

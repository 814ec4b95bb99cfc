use super::*;
use std::io::Cursor;

/// The lines of a text in a format, over flags in the form of a line.
fn over(base: &str, format: Format, text: &[u8]) -> Lines {
    let base = if base.is_empty() { Flags::default() } else { over("", Format::Text, base.as_bytes()).next().unwrap().unwrap().flags };
    lines(Source::new("lines", Cursor::new(text.to_vec())), format, &base)
}

fn good(format: Format, text: &str) -> Vec<GenerateArgs> {
    over("", format, text.as_bytes()).map(|line| line.unwrap_or_else(|e| panic!("{text}\n{e}")).args).collect()
}

fn one(format: Format, text: &str) -> GenerateArgs {
    let mut all = good(format, text);
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn errors(format: Format, text: &[u8]) -> Vec<String> {
    over("", format, text).filter_map(|line| line.err().map(|e| e.to_string())).collect()
}

#[test]
fn a_line_without_flags_is_a_prompt() {
    let text = "\u{feff}a cat\r\n\n  # a comment\n  don't \"quote\" me \\(really\\) - or -- do\r\n";
    let prompts: Vec<_> = good(Format::Text, text).into_iter().map(|args| args.prompts).collect();
    assert_eq!(prompts, [["a cat"], ["don't \"quote\" me \\(really\\) - or -- do"]]);
    assert!(good(Format::Text, "").is_empty());
}

#[test]
fn flags_on_a_line_are_read_as_a1111_reads_them() {
    let args = one(
        Format::Text,
        r#"--prompt "a \"red\" cat, it's" --negative_prompt blurry, dog's \(bone\) --seed -1 --steps 30 --cfg_scale 6.5 --sampler_name DPM++ 2M --sd_model 'C:\models\x y'  --do_not_save_grid true --restore_faces false"#,
    );
    assert_eq!(args.prompts, ["a \"red\" cat, it's"]);
    assert_eq!(args.negative_prompt.as_deref(), Some("blurry, dog's \\(bone\\)"));
    assert_eq!((args.steps, args.guidance_scale), (Some(30), Some(6.5)));
    assert_eq!((args.sampler.as_deref(), args.model.as_deref()), (Some("DPM++ 2M"), Some("C:\\models\\x y")));
    for (line, prompt, seed) in [
        ("a cat --seed 3", "a cat", Some(3)),
        ("-p 'a cat' -s 3 --zero-snr", "a cat", Some(3)),
        ("--seed=3 --prompt=\"--a cat\"", "--a cat", Some(3)),
        ("--prompt \"a -- b --c\"", "a -- b --c", None),
    ] {
        let args = one(Format::Text, line);
        assert_eq!((args.prompts[0].as_str(), args.seed), (prompt, seed.map(super::super::args::Seed::Is)), "{line}");
    }
    let args = one(Format::Text, "--prompt a --batch_size 4 --n_iter 3");
    assert_eq!((args.images, args.batch_size.0), (12, Some(4)));
}

#[test]
fn every_format_says_the_same() {
    for (format, text) in [
        (Format::Text, "--prompt \"a, b\" --steps 20 --zero_snr --size 512x768\n"),
        (Format::Jsonl, "{\"prompt\": \"a, b\", \"Steps\": 20.0, \"zero_snr\": true, \"size\": \"512x768\", \"seed\": null}\n"),
        (Format::Csv, "Prompt,steps,zero-snr,size,seed\n\"a, b\",20.0,TRUE,512x768,\n\n"),
        (Format::Csv, "prompt;steps;zero snr;size\na, b;20;yes;512x768"),
        (Format::Tsv, "prompt\tsteps\tzero-snr\tsize\r\na, b\t20\t1\t512x768\r\n"),
    ] {
        let args = one(format, text);
        assert_eq!(
            (args.prompts, args.steps, args.zero_snr, args.size),
            (vec!["a, b".to_owned()], Some(20), true, Some((512, 768))),
            "{text}"
        );
    }
    assert_eq!(one(Format::Jsonl, r#"{"prompt": ["a", "b\u00e9"]}"#).prompts, ["a", "bé"]);
    assert_eq!(one(Format::Csv, "prompt,steps\n\"two\nlines \"\"quoted\"\"\",5\n").prompts, ["two\nlines \"quoted\""]);
}

#[test]
fn the_line_beats_the_flags() {
    let base = "--prompt base --negative-prompt blurry --size 768x512 --zero-snr --steps 9";
    let args = |line: &str| over(base, Format::Jsonl, line.as_bytes()).next().unwrap().unwrap().args;
    let line = args(r#"{"width": 256, "zero-snr": false, "negative_prompt": ""}"#);
    assert_eq!((line.prompts[0].as_str(), line.negative_prompt.as_deref(), line.steps), ("base", Some(""), Some(9)));
    assert_eq!((line.width, line.height, line.size, line.zero_snr), (Some(256), Some(512), None, false));
    let line = args(r#"{"prompt": "own", "size": "64x64"}"#);
    assert_eq!((line.prompts, line.size, line.zero_snr), (vec!["own".to_owned()], Some((64, 64)), true));
}

//! Standard error as people and programs meet it: on a real pseudo-terminal, whose screen is read back, and on a pipe.
#![cfg(all(unix, feature = "builtin-model"))]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its terminal has failed")]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROWS: u16 = 40;
const COLUMNS: u16 = 80;

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
    command.args(arguments).current_dir(folder).env_remove("SD_GEN_MODELS").env_remove("SD_GEN_LOG").env("TERM", "xterm-256color");
    command
}

/// A program on a terminal.
struct Session {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Session {
    fn start(mut command: Command) -> Self {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&terminal).expect("granted");
        unlockpt(&terminal).expect("unlocked");
        let name = ptsname(&terminal, Vec::new()).expect("a name").into_string().expect("UTF-8");
        let inner: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open(name).expect("the other end").into();
        let size = rustix::termios::Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&inner, size).expect("a size");
        let stdio = || Stdio::from(inner.try_clone().expect("a copy"));
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("sd-gen starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&said);
        let reader = std::thread::spawn(move || {
            let mut terminal = std::fs::File::from(terminal);
            let mut buffer = [0; 4096];
            // Linux says EIO when the last program has left the terminal.
            while let Ok(n @ 1..) = terminal.read(&mut buffer) {
                heard.lock().expect("unpoisoned").extend_from_slice(&buffer[..n]);
            }
        });
        // Commands keep their stdio open, and with it the terminal.
        drop(command);
        drop(inner);
        Self { child, said, reader }
    }

    fn wait_for(&self, text: &str) {
        let began = Instant::now();
        while !String::from_utf8_lossy(&self.said.lock().expect("unpoisoned")).contains(text) {
            assert!(began.elapsed() < Duration::from_secs(300), "{text:?} was not said");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How the program ended, the screen that it left, and all that it wrote.
    fn finish(mut self) -> (ExitStatus, Screen, String) {
        let status = self.child.wait().expect("an end");
        self.reader.join().expect("all is read");
        let said = std::mem::take(&mut *self.said.lock().expect("unpoisoned"));
        let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
        terminal.process(&said);
        (status, Screen(terminal), String::from_utf8_lossy(&said).into_owned())
    }
}

struct Screen(vt100::Parser);

impl Screen {
    /// The lines of text, without those at the end that are empty.
    fn lines(&self) -> Vec<String> {
        let text = self.0.screen().contents();
        text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The colour of the upper half of a character.
    fn colour(&self, row: u16, column: u16) -> (u8, u8, u8) {
        match self.0.screen().cell(row, column).expect("a cell").fgcolor() {
            vt100::Color::Rgb(r, g, b) => (r, g, b),
            other => panic!("{other:?} at {row}, {column}"),
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("folder")
}

const APPLE: &[&str] = &["-p", "a red apple", "-s", "1", "-o", "a.png"];

#[test]
fn a_finished_image_is_drawn_on_a_terminal() {
    let folder = folder();
    let arguments = [APPLE, &["--preview=blocks", "--steps", "12"]].concat();
    let (status, screen, said) = Session::start(command(folder.path(), &arguments)).finish();
    assert!(status.success(), "{said}");
    let lines = screen.lines();
    // Twenty rows of the image, then its path; the lines that were alive are gone.
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (21, Some("a.png")), "{lines:?}");
    assert!(lines[..20].iter().all(|line| line.chars().count() == 40 && line.chars().all(|c| c == '▀')), "{lines:?}");
    let (red, green, _) = screen.colour(12, 20);
    assert!(red > 120 && red > 2 * green, "an apple's middle is red");
    let corner = screen.colour(0, 0);
    assert!(corner.0 > 200 && corner.1 > 200 && corner.2 > 200, "its corner is white: {corner:?}");
    // It was seen while it formed, with the lines above it.
    assert!(said.contains("steps") && said.matches('▀').count() > 20 * 40, "it was drawn once");
}

#[test]
fn images_of_a_batch_are_drawn_too() {
    let folder = folder();
    std::fs::write(folder.path().join("lines.txt"), "a red apple --seed 1\n").expect("write");
    let arguments = ["batch", "lines.txt", "--steps", "12", "--preview=blocks", "--output", "a.png"];
    let (status, screen, said) = Session::start(command(folder.path(), &arguments)).finish();
    assert!(status.success(), "{said}");
    let rows = screen.lines().iter().filter(|line| line.chars().count() == 40 && line.chars().all(|c| c == '▀')).count();
    assert!(rows == 20 && said.matches('▀').count() > 20 * 40, "{rows} rows: {said}");
}

#[test]
fn nothing_is_drawn_on_a_pipe() {
    let folder = folder();
    let arguments = [APPLE, &["--preview=blocks", "--steps", "2", "--progress", "bar"]].concat();
    let output = command(folder.path(), &arguments).output().expect("sd-gen starts");
    assert!(output.status.success());
    assert_eq!((String::from_utf8_lossy(&output.stdout).as_ref(), String::from_utf8_lossy(&output.stderr).as_ref()), ("a.png\n", ""));
}

#[test]
fn a_dumb_or_quiet_terminal_has_nothing_drawn_on_it() {
    let folder = folder();
    let mut dumb = command(folder.path(), &[APPLE, &["--preview=blocks", "--steps", "2"]].concat());
    dumb.env("TERM", "dumb");
    let quiet = command(folder.path(), &[APPLE, &["--preview=blocks", "--steps", "2", "--quiet", "--overwrite"]].concat());
    for command in [dumb, quiet] {
        let (_, _, said) = Session::start(command).finish();
        assert_eq!(said, "a.png\r\n");
    }
}

#[test]
fn messages_do_not_tear_the_lines() {
    let folder = folder();
    // A word is left out of each of these, which is a warning in the middle of the run.
    let prompts = ["one", "two", "three"].map(|word| format!("{word} {}", "a very long prompt indeed ".repeat(12)));
    let mut arguments = vec!["-s", "1", "--steps", "40", "-o", "{index}.png", "--preview=blocks", "-vv", "--prompt-syntax", "plain"];
    prompts.iter().for_each(|prompt| arguments.extend(["-p", prompt]));
    let (status, screen, said) = Session::start(command(folder.path(), &arguments)).finish();
    assert!(status.success() && said.contains("/40 steps"), "{said}");
    let lines = screen.lines();
    assert_eq!(lines.last().map(String::as_str), Some("2.png"));
    assert!(lines.iter().all(|line| !line.contains("steps,") && !line.contains('░')), "{lines:?}");
    // An image's rows are whole.
    assert!(lines.iter().filter(|line| line.contains('▀')).all(|line| line.chars().all(|c| c == '▀')), "{lines:?}");
}

#[test]
fn ctrl_c_leaves_a_clean_terminal() {
    let folder = folder();
    let session = Session::start(command(folder.path(), &[APPLE, &["--preview=blocks", "--steps", "1000"]].concat()));
    session.wait_for("/1000 steps");
    let process = rustix::process::Pid::from_child(&session.child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).expect("a signal");
    let (status, screen, _) = session.finish();
    assert_eq!((status.code(), screen.lines()), (Some(130), vec!["cancelled; what was finished is kept".to_owned()]));
}

fn events(output: &Output) -> Vec<serde_json::Value> {
    let lines = String::from_utf8_lossy(&output.stderr);
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

#[test]
fn every_line_for_programs_is_a_documented_event() {
    let folder = folder();
    std::fs::write(folder.path().join("1"), "not a folder").expect("write");
    let long = "a cat, ".repeat(40);
    let json = ["--progress", "json"];
    let run = |arguments: &[&str]| {
        let output = command(folder.path(), &[&json, arguments].concat()).output().expect("sd-gen starts");
        (output.status.code(), events(&output))
    };
    let (code, generated) = run(&["-p", &long, "-s", "1", "--steps", "2", "-o", "b.png", "-vvv", "--preview"]);
    assert_eq!(code, Some(0));
    let count = |events: &[serde_json::Value], name: &str| events.iter().filter(|event| event["event"] == name).count();
    let counts =
        ["load", "run", "prompt", "encode", "step", "decode", "warning", "image", "end", "error"].map(|name| count(&generated, name));
    // A long prompt is encoded in chunks, and nothing of it is left out.
    assert_eq!(counts, [3, 1, 1, 1, 3, 1, 0, 1, 1, 0]);
    let last = &generated[generated.len() - 1];
    assert_eq!((&last["event"], &last["written"], &last["failed"]), (&"end".into(), &1.into(), &0.into()));
    let bytes: Vec<_> = generated.iter().filter(|event| event["event"] == "bytes" && event["what"] == "loading the UNet").collect();
    assert_eq!((&bytes[0]["done"], &bytes[bytes.len() - 1]["done"]), (&0.into(), &bytes[0]["all"]));
    let levels: std::collections::BTreeSet<_> = generated.iter().filter_map(|event| event["level"].as_str()).collect();
    assert_eq!(levels.into_iter().collect::<Vec<_>>(), ["debug", "info", "trace"]);

    let (code, failed) = run(&["-p", "a cat", "-p", "a dog", "-s", "1", "--steps", "1", "-o", "{index}/a.png"]);
    assert_eq!((code, count(&failed, "image"), count(&failed, "failed")), (Some(1), 1, 1));
    let [.., end, error] = failed.as_slice() else { panic!("{failed:?}") };
    assert_eq!((&end["event"], &end["written"], &end["failed"]), (&"end".into(), &1.into(), &1.into()));
    assert_eq!((&error["event"], &error["exit_code"]), (&"error".into(), &1.into()));
    let refused: Vec<_> =
        [vec!["--nope"], vec![], vec!["-p", "x", "-m", "nowhere"], vec!["-p", "x", "--taesd", "x"]].iter().map(|a| run(a)).collect();
    for (code, said) in &refused {
        let [error] = said.as_slice() else { panic!("{said:?}") };
        assert_eq!((*code, &error["event"], &error["exit_code"]), (Some(2), &"error".into(), &2.into()));
    }

    let document = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/progress.md")).expect("docs/progress.md");
    for event in generated.iter().chain(&failed).chain(refused.iter().flat_map(|(_, said)| said)) {
        let name = event["event"].as_str().expect("a name");
        let row =
            document.lines().find(|line| line.starts_with(&format!("| `{name}` |"))).unwrap_or_else(|| panic!("{name} is not documented"));
        for (field, _) in event.as_object().expect("an object").iter().filter(|(field, _)| *field != "event") {
            assert!(row.contains(&format!("`{field}`")), "{name}'s {field} is not documented");
        }
    }
}

#[test]
fn logs_are_said_as_loudly_as_asked() {
    let folder = folder();
    let said = |extra: &[&str], log: &str| {
        let mut command =
            command(folder.path(), &[&["-p", "a cat", "-s", "1", "--steps", "1", "-o", "{seed}-{index}.png"], extra].concat());
        let output = command.env("SD_GEN_LOG", log).output().expect("sd-gen starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(said(&[], ""), (Some(0), String::new()));
    assert_eq!(said(&["-q"], "trace"), (Some(0), String::new()));
    let (_, info) = said(&["-v"], "");
    assert!(info.contains("emoji: Stable Diffusion 1.x\n") && info.contains("1 steps of pndm") && !info.contains("opened"), "{info}");
    assert!(!info.contains("is loaded") && !info.contains("seconds="), "files and timings are for -vv: {info}");
    let (_, debug) = said(&["-vv"], "");
    for said in ["opened emoji:unet/", "the UNet is loaded bytes=", "the prompt is encoded", "are denoised", "are decoded", "is written"] {
        assert!(debug.contains(said), "{said}: {debug}");
    }
    assert!(!debug.contains("a step is done"), "{debug}");
    let (_, only) = said(&[], "sd_gen::weights=debug");
    assert!(only.contains("opened emoji:unet/") && !only.contains("is loaded"), "{only}");
    let (code, wrong) = said(&[], "sd_gen=loud");
    assert!(code == Some(2) && wrong.contains("SD_GEN_LOG"), "{wrong}");
}

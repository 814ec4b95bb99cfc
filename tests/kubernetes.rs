//! deploy/kubernetes: the Job is one by its schema, and what its pods run generates every line once.
#![cfg(all(unix, feature = "builtin-model"))]
#![allow(clippy::expect_used, reason = "a test that cannot set up its files has failed")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn job_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/job.yaml")
}

fn serve_file() -> PathBuf {
    job_file().with_file_name("serve.yaml")
}

/// The first document of a file.
fn first(file: &Path) -> Value {
    let text = std::fs::read_to_string(file).expect("read");
    let first = text.split("\n---\n").next().expect("a document");
    serde_saphyr::from_str(first).expect("YAML")
}

fn job() -> Value {
    first(&job_file())
}

/// The Deployment's command is one that the program takes, and its probes ask what a server answers without a key.
#[cfg(feature = "serve")]
#[test]
fn the_server_answers_its_probes() {
    use std::io::{BufRead, BufReader, Read, Write};

    let deployment = first(&serve_file());
    let spec = &deployment["spec"];
    assert_eq!((&deployment["kind"], &spec["strategy"]["type"]), (&"Deployment".into(), &"Recreate".into()));
    let container = &spec["template"]["spec"]["containers"][0];
    let arguments: Vec<&str> = container["args"].as_array().expect("arguments").iter().map(|word| word.as_str().expect("a word")).collect();
    let image = std::fs::read_to_string(job_file().with_file_name("Dockerfile")).expect("read");
    assert!(
        image.contains(&format!("CMD {}", serde_json::to_string(&arguments).expect("JSON").replace("\",\"", "\", \""))),
        "{arguments:?}"
    );
    let port = container["ports"][0]["containerPort"].as_u64().expect("a port");
    assert!(arguments.contains(&format!("0.0.0.0:{port}").as_str()), "{arguments:?}");
    let key = container["env"].as_array().expect("an environment").iter().any(|entry| entry["name"] == "SD_GEN_API_KEY");
    assert!(key, "{container}");
    let folder = tempfile::tempdir().expect("folder");
    let own: Vec<String> = arguments.iter().map(|word| word.replace(&format!("0.0.0.0:{port}"), "127.0.0.1:0")).collect();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sd-gen"))
        .args(own)
        .current_dir(folder.path())
        .env("SD_GEN_API_KEY", "key")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let mut answered = Vec::new();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().expect("a path");
        let mut stream = std::net::TcpStream::connect(&address).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sent");
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        answered.push((probe, said.starts_with("HTTP/1.1 200")));
    }
    let _ = child.kill();
    let _ = child.wait();
    assert!(answered.iter().all(|(_, is)| *is), "{answered:?}");
}

#[test]
fn the_pods_generate_every_line_once() {
    let job = job();
    let spec = &job["spec"];
    let container = &spec["template"]["spec"]["containers"][0];
    let parts = spec["completions"].as_u64().expect("a number of parts");
    assert_eq!((&spec["completionMode"], &container["command"]), (&"Indexed".into(), &serde_json::json!(["/bin/sh", "-c"])));
    let script = container["args"][0].as_str().expect("a script");
    assert!(script.contains("--steps 20 "), "{script}");

    let folder = tempfile::tempdir().expect("folder");
    let lines: String = (1..=parts + 1).map(|seed| format!("a red apple --seed {seed}\n")).collect();
    std::fs::write(folder.path().join("prompts.txt"), lines).expect("write");
    let program = Path::new(env!("CARGO_BIN_EXE_sd-gen")).parent().expect("a folder");
    let path = std::env::join_paths([program, Path::new("/usr/bin"), Path::new("/bin")]).expect("paths");
    for index in 0..parts {
        let output = Command::new("/bin/sh")
            .args(["-c", &script.replace("--steps 20 ", "--steps 1 ")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("JOB_COMPLETION_INDEX", index.to_string())
            .env_remove("SD_GEN_MODELS")
            .output()
            .expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let names = std::fs::read_dir(folder.path().join("out")).expect("folder").map(|entry| entry.expect("an entry").file_name());
    let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".png")).count() as u64, parts + 1, "{names:?}");
    assert_eq!(names.iter().filter(|name| name.ends_with(&format!("-of-{parts}.jsonl"))).count() as u64, parts, "{names:?}");
}

#[test]
fn a_failed_image_fails_its_part_and_bad_usage_the_job() {
    let job = job();
    let rules = job["spec"]["podFailurePolicy"]["rules"].as_array().expect("rules");
    let action = |code: u64| {
        let rule = rules.iter().find(|rule| rule["onExitCodes"]["values"].as_array().is_some_and(|codes| codes.contains(&code.into())));
        rule.map(|rule| rule["action"].as_str().expect("an action").to_owned())
    };
    let actions = [1, 2, 3, 130, 137].map(action);
    assert_eq!(actions.each_ref().map(Option::as_deref), [Some("FailIndex"), Some("FailJob"), Some("FailJob"), None, None]);
}

/// Runs where `SD_GEN_TEST_PYTHON` names a Python that has `kubernetes-validate`.
#[test]
fn the_job_is_one_by_kubernetes_own_schema() {
    let Some(python) = std::env::var_os("SD_GEN_TEST_PYTHON") else {
        println!("skipped: SD_GEN_TEST_PYTHON names no Python with kubernetes-validate");
        return;
    };
    let has_it = Command::new(&python).args(["-c", "import kubernetes_validate"]).output().expect("Python starts");
    if !has_it.status.success() {
        println!("skipped: the Python of SD_GEN_TEST_PYTHON has no kubernetes-validate");
        return;
    }
    let validate = |file: &Path| {
        let script = "import sys, yaml, kubernetes_validate as k\n\
                      for d in yaml.safe_load_all(open(sys.argv[1])): k.validate(d, '1.29', strict=True)";
        Command::new(&python).args(["-c", script]).arg(file).output().expect("Python starts")
    };
    for file in [job_file(), serve_file()] {
        let output = validate(&file);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    // A checker that accepts everything would not be one.
    let folder = tempfile::tempdir().expect("folder");
    let wrong = std::fs::read_to_string(job_file()).expect("read").replace("completionMode", "completionMood");
    std::fs::write(folder.path().join("job.yaml"), wrong).expect("write");
    assert!(!validate(&folder.path().join("job.yaml")).status.success());
}

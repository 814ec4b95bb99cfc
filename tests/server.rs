//! `sd-gen serve` as its clients meet it: over a socket, with the built-in model.
#![cfg(all(feature = "builtin-model", feature = "serve", unix))]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its files has failed")]

use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything takes; a loaded machine is no failure.
const PATIENCE: Duration = Duration::from_secs(300);

struct Server {
    child: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Server {
    fn start(folder: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sd-gen"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--output-dir", "served", "--size", "64x64", "--steps", "1", "-q"]).args(more);
        command.current_dir(folder).env_remove("SD_GEN_MODELS").env_remove("SD_GEN_API_KEY");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("sd-gen starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let address = line.trim().trim_start_matches("http://").trim_end_matches('/').to_owned();
        assert!(address.starts_with("127.0.0.1:"), "{line:?}");
        Self { child, address }
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(format!("{head}\r\n").as_bytes()).expect("sent");
        stream.write_all(body).expect("sent");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("an answer");
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
        assert!(!head.contains("transfer-encoding: chunked"), "{head}");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head, body: all[end + 4..].to_vec() }
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Json) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Puts a job into the queue.
    fn job(&self, settings: &Json) -> String {
        let answer = self.post("/v1/jobs", settings);
        assert_eq!(answer.status, 202, "{}", answer.json());
        answer.json()["id"].as_str().expect("an id").to_owned()
    }

    /// Waits until a job is as it should be.
    fn wait(&self, id: &str, is: impl Fn(&Json) -> bool) -> Json {
        let began = Instant::now();
        loop {
            let job = self.get(&format!("/v1/jobs/{id}")).json();
            if is(&job) {
                return job;
            }
            assert!(began.elapsed() < PATIENCE, "{job}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ended(&self, id: &str) -> Json {
        self.wait(id, |job| ["done", "failed", "cancelled"].contains(&job["state"].as_str().unwrap_or_default()))
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("folder")
}

fn size(bytes: &[u8]) -> (u32, u32) {
    let image = image::load_from_memory(bytes).expect("an image");
    (image.width(), image.height())
}

fn has_begun(job: &Json) -> bool {
    job["progress"]["step"].as_u64().is_some_and(|step| step > 0)
}

#[test]
fn a_job_becomes_an_image_in_each_format() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let id = server.job(&json!({ "prompt": "a red apple", "seed": 5 }));
    let job = server.ended(&id);
    assert_eq!((job["state"].as_str(), job["images"][0]["seed"].as_u64()), (Some("done"), Some(5)), "{job}");
    let url = job["images"][0]["url"].as_str().expect("a url");
    let png = server.get(url);
    assert_eq!((png.status, size(&png.body)), (200, (64, 64)));
    assert!(png.head.contains("content-type: image/png"), "{}", png.head);
    for format in ["jpeg", "webp"] {
        assert_eq!(size(&server.get(&format!("{url}?format={format}")).body), (64, 64));
    }
    assert_eq!(server.get(&format!("/v1/jobs/{id}/images/1")).status, 404);
    // The same settings make the same image.
    let again = server.job(&json!({ "prompt": "a red apple", "seed": 5 }));
    server.ended(&again);
    assert_eq!(server.get(&format!("/v1/jobs/{again}/images/0")).body, png.body);
}

#[test]
fn all_that_is_wrong_is_said_at_once_and_no_other_file_is_read() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("open")).expect("folder");
    std::fs::write(folder.path().join("secret.png"), "x").expect("write");
    std::os::unix::fs::symlink("../secret.png", folder.path().join("open/link.png")).expect("link");
    let server = Server::start(folder.path(), &["--allow-dir", "open", "--max-steps", "5", "--max-images", "2"]);
    let wrong = server.post("/v1/jobs", &json!({ "steps": "many", "stepz": 1, "model": "../x", "output": "/tmp/a.png" }));
    assert_eq!(wrong.status, 422);
    let problems = wrong.json()["error"]["problems"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<&str> = problems.iter().filter_map(|problem| problem["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["model", "output", "prompt", "steps", "stepz"], "{}", wrong.json());
    for path in ["/etc/passwd", "../secret.png", "link.png", "open/../../secret.png"] {
        let refused = server.post("/v1/jobs", &json!({ "prompt": "x", "init-image": path }));
        assert_eq!((refused.status, refused.json()["error"]["problems"][0]["path"].as_str()), (422, Some("init-image")), "{path}");
    }
    for name in ["lora", "embedding", "vae"] {
        assert_eq!(server.post("/v1/jobs", &json!({ "prompt": "x", name: "/etc/passwd" })).status, 422, "{name}");
    }
    for (name, value) in [("steps", 6), ("images", 3)] {
        let refused = server.post("/v1/jobs", &json!({ "prompt": "x", name: value }));
        assert_eq!((refused.status, refused.json()["error"]["problems"][0]["path"].as_str()), (422, Some(name)));
    }
    assert_eq!(server.get("/v1/jobs").json()["jobs"], json!([]));
}

#[test]
fn a_job_at_work_is_cancelled_and_a_full_queue_says_so() {
    let folder = folder();
    let server = Server::start(folder.path(), &["--max-queue", "2"]);
    let id = server.job(&json!({ "prompt": "x", "size": "256x256", "steps": 150 }));
    server.wait(&id, has_begun);
    let waiting = server.job(&json!({ "prompt": "y" }));
    // What the engine has taken ahead waits no more.
    let full = (0..50).map(|_| server.post("/v1/jobs", &json!({ "prompt": "z" }))).find(|answer| answer.status != 202).expect("an end");
    assert_eq!(full.status, 429);
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    assert_eq!(server.send("DELETE", &format!("/v1/jobs/{id}"), &[], b"").json()["state"], "cancelled");
    assert_eq!(server.ended(&waiting)["state"], "done");
    assert_eq!(server.send("DELETE", &format!("/v1/jobs/{id}?forget=true"), &[], b"").json()["forgotten"], true);
    assert_eq!(server.get(&format!("/v1/jobs/{id}")).status, 404);
}

#[test]
fn other_sites_and_those_without_the_key_are_refused() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Host", "evil.example")], b"").status, 403);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Origin", "http://evil.example")], b"").status, 403);
    assert_eq!(server.send("GET", "/v1/jobs", &[("Origin", &format!("http://{}", server.address))], b"").status, 200);
    assert_eq!(server.send("POST", "/v1/jobs", &[("Content-Type", "text/plain")], b"{\"prompt\":\"x\"}").status, 415);
    assert_eq!((server.get("/").status, server.get("/nowhere").status, server.get("/health").status), (200, 404, 200));
    server.kill();
    let server = Server::start(folder.path(), &["--api-key", "key", "--cors", "https://a.example"]);
    assert_eq!((server.get("/v1/jobs").status, server.get("/metrics").status, server.get("/health").status), (401, 401, 200));
    assert_eq!(server.send("GET", "/v1/jobs", &[("X-Api-Key", "kez")], b"").status, 401);
    let allowed = server.send("GET", "/v1/jobs", &[("Authorization", "Bearer key"), ("Origin", "https://a.example")], b"");
    assert_eq!(allowed.status, 200);
    assert!(allowed.head.contains("access-control-allow-origin: https://a.example"), "{}", allowed.head);
}

#[test]
fn a1111s_clients_get_their_images() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let request =
        json!({ "prompt": "a red apple", "seed": 7, "steps": 2, "sampler_name": "Euler a", "width": 64, "height": 64, "no_such": 1 });
    let answer = server.post("/sdapi/v1/txt2img", &request);
    assert_eq!(answer.status, 200, "{}", answer.json());
    let answer = answer.json();
    let info: Json = serde_json::from_str(answer["info"].as_str().expect("a text")).expect("info is JSON");
    assert_eq!((&info["seed"], &info["not_understood"]), (&json!(7), &json!(["no_such"])), "{info}");
    let image = &answer["images"][0];
    let read = server.post("/sdapi/v1/png-info", &json!({ "image": image })).json();
    let text = read["info"].as_str().unwrap_or_default();
    assert!(text.contains("Sampler: Euler a") && text.contains("Seed: 7"), "{read}");
    // The image goes back as the one to begin with.
    let request =
        json!({ "prompt": "a pear", "init_images": [image], "mask": image, "steps": 2, "width": 64, "height": 64, "inpainting_fill": 1 });
    let answer = server.post("/sdapi/v1/img2img", &request);
    assert_eq!((answer.status, answer.json()["images"].as_array().map(Vec::len)), (200, Some(1)), "{}", answer.json());
    assert_eq!(server.get("/sdapi/v1/progress").json()["progress"], 0.0);
}

#[test]
fn what_a_killed_server_left_is_made_by_the_next() {
    let folder = folder();
    let server = Server::start(folder.path(), &[]);
    let id = server.job(&json!({ "prompt": "x", "images": 2, "batch-size": 1, "seed": 3 }));
    let long = server.job(&json!({ "prompt": "y", "steps": 150, "seed": 4, "size": "256x256" }));
    server.ended(&id);
    server.wait(&long, has_begun);
    let after = server.job(&json!({ "prompt": "z", "seed": 9 }));
    let kept = server.get(&format!("/v1/jobs/{id}/images/1")).body;
    server.kill();
    let server = Server::start(folder.path(), &[]);
    assert_eq!(server.get(&format!("/v1/jobs/{id}/images/1")).body, kept);
    server.wait(&long, has_begun);
    // Stopped by SIGTERM, it puts the job at work back.
    let mut server = server;
    let process = rustix::process::Pid::from_child(&server.child);
    rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("a signal");
    assert!(server.child.wait().expect("it ends").success());
    let server = Server::start(folder.path(), &[]);
    server.wait(&long, has_begun);
    server.send("DELETE", &format!("/v1/jobs/{long}"), &[], b"");
    let job = server.ended(&after);
    assert_eq!((job["state"].as_str(), job["images"][0]["seed"].as_u64()), (Some("done"), Some(9)), "{job}");
}

//! deploy/slurm on a real Slurm of one node, made for the test: an array of four, one of them killed, finished by submitting it again.
//!
//! Runs as root where Debian's `slurmctld`, `slurmd`, `munge` and `slurm-client` are installed, and says so where it does not.
#![cfg(all(target_os = "linux", feature = "builtin-model"))]
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot set up its cluster has failed")]
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::collections::{BTreeMap, HashSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

const LINES: usize = 40;
const PARTS: usize = 4;
/// Long enough for the slowest machine; nothing is concluded from it but that something hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// The path of an installed program.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Slurm with one node of four processors; it ends with the value.
struct Cluster {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
}

impl Cluster {
    /// `None`, with the reason on standard output, where there can be none.
    fn start() -> Option<Cluster> {
        let wanted = ["munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo", "scancel"];
        if let Some(missing) = wanted.into_iter().find(|name| program(name).is_none()) {
            println!("skipped: there is no {missing} (apt-get install slurmctld slurmd munge slurm-client)");
            return None;
        }
        let user = Command::new("id").arg("-u").output().expect("id starts");
        if user.stdout.trim_ascii() != b"0" {
            println!("skipped: Slurm's daemons want to be root");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("slurm").tempdir().expect("folder");
        let mut cluster = Cluster { folder, daemons: Vec::new() };
        let at = |name: &str| cluster.folder.path().join(name);
        for name in ["munge", "state", "spool", "out"] {
            std::fs::create_dir(at(name)).expect("folder");
        }
        // The key is between this munged and itself.
        std::fs::write(at("munge/key"), [7; 128]).expect("write");
        std::fs::set_permissions(at("munge/key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("permissions");
        let host = Command::new("uname").arg("-n").output().expect("uname starts").stdout;
        let host = String::from_utf8_lossy(&host).trim().split('.').next().expect("a name").to_owned();
        // Held until both are known, so that they differ.
        let ports = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [controller, node] = ports.map(|port| port.local_addr().expect("address").port());
        let root = cluster.folder.path().display().to_string();
        let configuration = format!(
            "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={root}/munge/socket\nCredType=cred/munge\n\
             SlurmctldPort={controller}\nSlurmdPort={node}\nStateSaveLocation={root}/state\nSlurmdSpoolDir={root}/spool\n\
             SlurmctldPidFile={root}/slurmctld.pid\nSlurmdPidFile={root}/slurmd.pid\n\
             SlurmctldLogFile={root}/slurmctld.log\nSlurmdLogFile={root}/slurmd.log\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
             AccountingStorageType=accounting_storage/none\nMpiDefault=none\nSwitchType=switch/none\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nSlurmdParameters=config_overrides\nReturnToService=2\nKillWait=5\n\
             NodeName={host} NodeAddr=127.0.0.1 CPUs={PARTS} RealMemory=65536 State=UNKNOWN\n\
             PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP\n"
        );
        std::fs::write(at("slurm.conf"), configuration).expect("write");
        let munge = ["key-file=munge/key", "socket=munge/socket", "pid-file=munge/pid", "log-file=munge/log", "seed-file=munge/seed"];
        let munge =
            munge.map(|option| option.split_once('=').map(|(name, file)| format!("--{name}={}", at(file).display())).expect("option"));
        cluster.daemon("munged", &[&["--foreground".to_owned(), "--force".to_owned()][..], &munge].concat());
        cluster.daemon("slurmctld", &["-D".to_owned(), "-c".to_owned()]);
        cluster.daemon("slurmd", &["-D".to_owned(), "-c".to_owned()]);
        cluster.wait("the node is idle", |cluster| cluster.ask("sinfo", &["--noheader", "--format=%t"]).trim() == "idle");
        Some(cluster)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name).expect(name));
        command.current_dir(self.path()).env("SLURM_CONF", self.path().join("slurm.conf")).env("SD_GEN", env!("CARGO_BIN_EXE_sd-gen"));
        command.env_remove("SD_GEN_MODELS");
        command
    }

    fn daemon(&mut self, name: &str, arguments: &[String]) {
        let log = || std::fs::File::options().create(true).append(true).open(self.path().join(format!("{name}.out"))).expect("log");
        let child = self.command(name).args(arguments).stdout(log()).stderr(log()).stdin(Stdio::null()).spawn();
        self.daemons.push(child.expect(name));
    }

    fn ask(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.command(name).args(arguments).output().expect(name);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn wait(&self, what: &str, is_so: impl Fn(&Cluster) -> bool) {
        let start = std::time::Instant::now();
        while !is_so(self) {
            if start.elapsed() > PATIENCE {
                let logs = ["slurmctld.log", "slurmd.log", "munge/log"]
                    .map(|log| std::fs::read_to_string(self.path().join(log)).unwrap_or_default());
                panic!("never came: {what}\n{}", logs.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Submits the array as deploy/slurm/README.md says, with less of everything.
    fn submit(&self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/slurm/sd-gen.sbatch");
        let array = format!("--array=1-{PARTS}");
        let parts = PARTS.to_string();
        let batch = [&parts, "prompts.txt", "--output-dir", "out", "--steps", "2", "--batch-size", "1"];
        let output = self
            .command("sbatch")
            .args(["--parsable", &array, "--cpus-per-task=1", "--mem=1G"])
            .arg(script)
            .args(batch)
            .output()
            .expect("sbatch");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn wait_for_the_end(&self) {
        self.wait("the queue is empty", |cluster| cluster.ask("squeue", &["--noheader"]).trim().is_empty());
    }

    /// The process that generates the part.
    fn process_of(&self, part: usize) -> Option<String> {
        let shard = format!("--shard\0{part}/{PARTS}\0");
        let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
        let ours = |path: &Path| {
            let line = std::fs::read(path.join("cmdline")).map(|line| String::from_utf8_lossy(&line).into_owned()).unwrap_or_default();
            let here = std::fs::read_link(path.join("cwd")).is_ok_and(|folder| folder == self.path());
            here && line.contains(&shard) && line.starts_with(env!("CARGO_BIN_EXE_sd-gen"))
        };
        entries.map(|entry| entry.path()).find(|path| ours(path))?.file_name()?.to_str().map(str::to_owned)
    }

    fn manifest(&self, part: usize) -> PathBuf {
        self.path().join(format!("out/sd-gen.manifest.{part}-of-{PARTS}.jsonl"))
    }

    /// The images, and when each was written.
    fn images(&self) -> BTreeMap<PathBuf, SystemTime> {
        let entries = std::fs::read_dir(self.path().join("out")).expect("folder").map(|entry| entry.expect("an entry"));
        let images = entries.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "png"));
        images.map(|entry| (entry.path(), entry.metadata().and_then(|metadata| metadata.modified()).expect("a time"))).collect()
    }

    /// What the tasks said.
    fn logs(&self) -> String {
        let entries = std::fs::read_dir(self.path()).expect("folder").map(|entry| entry.expect("an entry").path());
        let logs = entries.filter(|path| path.extension().is_some_and(|ending| ending == "log"));
        logs.map(|path| format!("{}:\n{}\n", path.display(), std::fs::read_to_string(&path).unwrap_or_default())).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.ask("scancel", &["--full", "--user=root"]);
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The keys of the images that a manifest says were generated, one for each time.
fn generated(manifest: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(manifest).unwrap_or_default();
    let records = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    records.filter(|record| record["status"] == "ok").map(|record| record["key"].as_str().expect("a key").to_owned()).collect()
}

#[test]
fn an_array_with_a_killed_task_is_finished_by_submitting_it_again() {
    let Some(cluster) = Cluster::start() else { return };
    let things = ["a red apple", "a cat face", "rocket", "a red heart", "sunflower", "a penguin", "a guitar", "panda"];
    let lines: String = (0..LINES).map(|i| format!("{} --seed {i}\n", things[i % things.len()])).collect();
    std::fs::write(cluster.path().join("prompts.txt"), lines).expect("write");

    cluster.submit();
    cluster.wait("the second part has generated something", |cluster| generated(&cluster.manifest(2)).len() >= 2);
    let process = cluster.process_of(2).expect("the second part is at work");
    assert!(Command::new("kill").args(["-9", &process]).status().expect("kill").success());
    cluster.wait_for_the_end();
    let before = cluster.images();
    let done: usize = (1..=PARTS).map(|part| generated(&cluster.manifest(part)).len()).sum();
    assert!((2..LINES / PARTS).contains(&generated(&cluster.manifest(2)).len()), "{}", cluster.logs());
    assert_eq!(done, LINES - LINES / PARTS + generated(&cluster.manifest(2)).len(), "the other parts are finished\n{}", cluster.logs());

    cluster.submit();
    cluster.wait_for_the_end();
    let after = cluster.images();
    assert_eq!(after.len(), LINES, "{}", cluster.logs());
    assert!(before.iter().all(|(path, time)| after.get(path) == Some(time)), "what was there was left alone");
    assert!(after.keys().all(|path| image::open(path).is_ok()), "every image is whole");

    let manifests: Vec<PathBuf> = (1..=PARTS).map(|part| cluster.manifest(part)).collect();
    let merged = cluster.path().join("out/sd-gen.manifest.jsonl");
    let merge = Command::new(env!("CARGO_BIN_EXE_sd-gen")).arg("merge").arg(&merged).args(&manifests).output().expect("sd-gen starts");
    assert!(merge.status.success(), "{}", String::from_utf8_lossy(&merge.stderr));
    let keys = generated(&merged);
    assert_eq!((keys.len(), keys.iter().collect::<HashSet<_>>().len()), (LINES, LINES));
    // The manifests of the parts have a record for each time that an image was generated.
    let mut times: Vec<String> = manifests.iter().flat_map(|manifest| generated(manifest)).collect();
    assert_eq!(times.len(), LINES, "none was generated twice");
    times.sort();
    times.dedup();
    assert_eq!(times.len(), LINES);
}

//! How far the locks of a file system reach.

use std::path::Path;

/// What keeps several processes on one folder out of each other's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Locks {
    /// Locks that every process heeds.
    Shared,
    /// Locks that processes of other machines may not see, by the kind of the file system.
    ThisMachine(String),
    /// Nothing.
    Missing,
}

/// How far the locks of a folder's file system reach, by what the system says of it; whether they work at all only a lock shows.
#[cfg(target_os = "linux")]
pub(crate) fn reach(folder: &Path) -> Locks {
    let kind = || {
        use std::os::unix::fs::MetadataExt;
        let device = std::fs::metadata(folder).ok()?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        local_kind(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, &device)
    };
    kind().map_or(Locks::Shared, Locks::ThisMachine)
}

/// Elsewhere the system does not tell.
#[cfg(not(target_os = "linux"))]
pub(crate) fn reach(_: &Path) -> Locks {
    Locks::Shared
}

#[cfg(any(test, target_os = "linux"))]
/// The kind of the file system on a device, if its locks may stay on this machine (Linux, proc_pid_mountinfo(5)).
fn local_kind(mounts: &str, device: &str) -> Option<String> {
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    let mut words = mount.split_once(" - ")?.1.split(' ');
    let (kind, _, options) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let has = |option: &str| options.split(',').any(|word| word == option);
    let is_local = match kind {
        "lustre" => !has("flock"),
        "nfs" | "nfs4" => ["nolock", "local_lock=flock", "local_lock=all"].iter().any(|option| has(option)),
        "cifs" | "smb3" => has("nobrl"),
        // Their locks depend on how a server or a program was set up, which nobody tells.
        "gpfs" | "beegfs" | "9p" | "afs" | "virtiofs" | "fuse" => true,
        _ => kind.starts_with("fuse."),
    };
    is_local.then(|| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_that_stay_on_the_machine_are_known() {
        let mounts = "\
25 30 0:23 / /proc rw shared:13 - proc proc rw
30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 30 0:50 / /a rw - lustre 10.0.0.1@tcp:/fs rw,flock,lazystatfs
41 30 0:51 / /b rw - lustre 10.0.0.1@tcp:/fs rw,localflock
42 30 0:52 / /c rw - nfs4 host:/x rw,vers=4.2,local_lock=none
43 30 0:53 / /d rw - nfs host:/x rw,vers=3,nolock,local_lock=all
44 30 0:54 / /e rw - fuse.sshfs host: rw,user_id=0
45 30 0:55 / /f rw - fuseblk /dev/sdb1 rw
46 30 0:56 / /g rw - ceph mon:/ rw";
        for (device, kind) in [
            ("8:1", None),
            ("0:50", None),
            ("0:51", Some("lustre")),
            ("0:52", None),
            ("0:53", Some("nfs")),
            ("0:54", Some("fuse.sshfs")),
            ("0:55", None),
            ("0:56", None),
            ("9:9", None),
        ] {
            assert_eq!(local_kind(mounts, device).as_deref(), kind, "{device}");
        }
    }
}

//! How much memory there is, and how much of it is free.

use candle_core::Device;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What a new tensor may take.
    pub free: u64,
    /// What can be had before the system refuses it or ends the program: with what it would write to a disk.
    pub limit: u64,
    /// All that there is.
    pub total: u64,
}

/// The bytes that the process may take of each device; all that is free until somebody says otherwise.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// From here on the process takes no more than so many bytes of the processor's memory, and of each GPU's. Gives what it takes of the
/// processor's now, where the system tells.
///
/// It is what [`memory`] says, and those who ask it obey: nobody refuses an allocation.
pub fn limit_memory(bytes: u64) -> u64 {
    // Only a number: it orders nothing else.
    LIMIT.store(bytes, Ordering::Relaxed);
    resident().unwrap_or(0)
}

/// What [`limit_memory`] was told.
pub fn memory_limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Relaxed)).filter(|limit| *limit < u64::MAX)
}

/// A device's memory, where the system tells.
pub fn memory(device: &Device) -> Option<Memory> {
    match device {
        Device::Cpu => limited(host_memory(), resident),
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => limited(super::cuda::memory(device), || super::cuda::taken(device)),
        _ => None,
    }
}

/// The memory within [`memory_limit`], of which so much is taken.
fn limited(memory: Option<Memory>, taken: impl Fn() -> Option<u64>) -> Option<Memory> {
    let (Some(limit), Some(memory)) = (memory_limit(), memory) else { return memory };
    let left = limit.saturating_sub(taken().unwrap_or(0));
    Some(Memory { free: memory.free.min(left), limit: memory.limit.min(left), total: memory.total.min(limit) })
}

/// Bytes of the process that are in the processor's memory.
#[cfg(target_os = "linux")]
pub fn resident() -> Option<u64> {
    linux::NamedNumbers::of(&std::fs::read_to_string("/proc/self/status").ok()?).kilobytes("VmRSS:")
}

/// Bytes of the process that are in the processor's memory.
#[cfg(not(target_os = "linux"))]
pub fn resident() -> Option<u64> {
    let process = sysinfo::get_current_pid().ok()?;
    let mut system = sysinfo::System::new();
    system.refresh_processes(sysinfo::ProcessesToUpdate::Some(&[process]), false);
    Some(system.process(process)?.memory())
}

/// Bytes of memory that are free on `device`, where the system tells.
pub fn free_memory(device: &Device) -> Option<u64> {
    memory(device).map(|memory| memory.free)
}

/// Bytes of the machine's memory that a container or a cluster's job may have, where that is less than all.
pub fn host_limit() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let total = host_memory()?.total;
        linux::group_limit(std::path::Path::new("/sys/fs/cgroup"), &groups).filter(|limit| *limit < total)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(not(target_os = "linux"))]
fn host_memory() -> Option<Memory> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let (free, total) = (system.available_memory(), system.total_memory());
    // macOS makes room as it is asked for, and Windows refuses beyond its page file.
    let limit = if cfg!(windows) { free.saturating_add(system.free_swap()) } else { total };
    (total > 0).then_some(Memory { free, limit, total })
}

#[cfg(target_os = "linux")]
fn host_memory() -> Option<Memory> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let text = read("/proc/meminfo")?;
    let memory = linux::NamedNumbers::of(&text);
    let (free, swap, total) =
        (memory.kilobytes("MemAvailable:")?, memory.kilobytes("SwapFree:").unwrap_or(0), memory.kilobytes("MemTotal:")?);
    // A container or a cluster's job may have less than the machine, and a process less than those.
    let group = linux::group_room(std::path::Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup").unwrap_or_default());
    let process = linux::process_room(&read("/proc/self/status").unwrap_or_default());
    let limit = group.map_or(u64::MAX, |(memory, more)| memory.saturating_add(more.min(swap))).min(process).min(free.saturating_add(swap));
    let free = free.min(group.map_or(u64::MAX, |(memory, _)| memory)).min(process);
    Some(Memory { free, limit, total })
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::process::{Resource, getrlimit};
    use std::path::{Path, PathBuf};

    /// Lines of a name and a number, as `/proc` and control groups write them.
    pub(super) struct NamedNumbers<'a>(&'a str);

    impl<'a> NamedNumbers<'a> {
        pub(super) fn of(text: &'a str) -> Self {
            Self(text)
        }

        fn get(&self, name: &str) -> Option<u64> {
            let mut lines = self.0.lines().map(str::split_whitespace);
            lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok()).flatten())
        }

        pub(super) fn kilobytes(&self, name: &str) -> Option<u64> {
            self.get(name)?.checked_mul(1024)
        }
    }

    /// Bytes that the process may still use under its own limits (`ulimit -v`, `ulimit -d`).
    pub(super) fn process_room(status: &str) -> u64 {
        let numbers = NamedNumbers::of(status);
        let untouched = untouched(&numbers).unwrap_or(0);
        let room = |resource, mapped: &str| {
            let used = numbers.kilobytes(mapped)?.saturating_sub(untouched);
            Some(getrlimit(resource).current?.saturating_sub(used))
        };
        [room(Resource::As, "VmSize:"), room(Resource::Data, "VmData:")].into_iter().flatten().min().unwrap_or(u64::MAX)
    }

    /// Bytes of the process's own memory that are mapped and hold nothing: an allocator maps a gigabyte before it is asked for it. Half of
    /// them count, as they are in pieces.
    fn untouched(numbers: &NamedNumbers<'_>) -> Option<u64> {
        let touched = numbers.kilobytes("RssAnon:")?.saturating_add(numbers.kilobytes("VmSwap:").unwrap_or(0));
        Some(numbers.kilobytes("VmData:")?.saturating_sub(touched) / 2)
    }

    /// Bytes of memory, and beside it of swap, that the control groups of a process leave (Linux, admin-guide/cgroup-v2.rst and
    /// cgroup-v1/memory.rst). `groups` is its `/proc/self/cgroup`.
    pub(super) fn group_room(root: &Path, groups: &str) -> Option<(u64, u64)> {
        let rooms = all_groups(root, groups).into_iter().filter_map(|(group, files)| files.room(&group));
        rooms.reduce(|(memory, swap), (other, more)| (memory.min(other), swap.min(more)))
    }

    /// The least limit of the control groups of a process, in bytes.
    pub(super) fn group_limit(root: &Path, groups: &str) -> Option<u64> {
        let limit = |(group, files): (PathBuf, &Files)| std::fs::read_to_string(group.join(files.limit)).ok()?.trim().parse().ok();
        all_groups(root, groups).into_iter().filter_map(limit).min()
    }

    /// The folders of a process's control groups and of those above them: every one may be the narrowest. In a container, a path may be
    /// one that only the host sees.
    fn all_groups(root: &Path, groups: &str) -> Vec<(PathBuf, &'static Files)> {
        let groups = groups.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            match controllers.split(',').find(|name| name.is_empty() || *name == "memory")? {
                "" => Some((root.to_owned(), path, V2)),
                _ => Some((root.join("memory"), path, V1)),
            }
        });
        let above = groups.flat_map(|(root, path, files)| {
            let path = Path::new(path.trim_start_matches('/')).to_owned();
            path.ancestors().map(|group| (root.join(group), files)).collect::<Vec<_>>()
        });
        above.collect()
    }

    /// The names of a control group's files.
    struct Files {
        limit: &'static str,
        used: &'static str,
        /// What is only a copy of files, which goes when memory is wanted.
        cache: [&'static str; 2],
        swap: Option<[&'static str; 2]>,
    }

    const V2: &Files = &Files {
        limit: "memory.max",
        used: "memory.current",
        cache: ["inactive_file", "active_file"],
        swap: Some(["memory.swap.max", "memory.swap.current"]),
    };
    const V1: &Files = &Files {
        limit: "memory.limit_in_bytes",
        used: "memory.usage_in_bytes",
        cache: ["total_inactive_file", "total_active_file"],
        swap: None,
    };

    impl Files {
        fn room(&self, group: &Path) -> Option<(u64, u64)> {
            let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
            let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
            let stat = read("memory.stat").unwrap_or_default();
            let cache: u64 = self.cache.iter().filter_map(|name| NamedNumbers::of(&stat).get(name)).sum();
            let memory = number(self.limit)?.saturating_sub(number(self.used)?.saturating_sub(cache));
            let swap = self.swap.and_then(|[limit, used]| Some(number(limit)?.saturating_sub(number(used)?)));
            Some((memory, swap.unwrap_or(u64::MAX)))
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_narrowest_group_counts() {
            let root = tempfile::tempdir().unwrap();
            let write = |path: &str, text: &str| {
                let path = root.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            };
            assert_eq!(group_room(root.path(), "0::/a/b\n"), None);
            write("a/b/memory.max", "max\n");
            write("a/b/memory.current", "700\n");
            assert_eq!(group_room(root.path(), "0::/a/b\n"), None);
            write("a/memory.max", "1000\n");
            write("a/memory.current", "900\n");
            write("a/memory.stat", "anon 500\ninactive_file 300\nactive_file 20\n");
            assert_eq!(group_room(root.path(), "0::/a/b\n"), Some((420, u64::MAX)));
            write("memory.max", "5000");
            write("memory.current", "4900");
            write("memory.swap.max", "70");
            write("memory.swap.current", "50");
            assert_eq!(group_room(root.path(), "0::/a/b\n"), Some((100, 20)));
            assert_eq!(group_limit(root.path(), "0::/a/b\n"), Some(1000));
            // A path of the host's, which a container does not see.
            assert_eq!(group_room(root.path(), "0::/docker/0123\n"), Some((100, 20)));
            write("memory/job/memory.limit_in_bytes", "2000");
            write("memory/job/memory.usage_in_bytes", "1950");
            assert_eq!(group_room(root.path(), "5:cpu,memory:/job\n3:pids:/job\n"), Some((50, u64::MAX)));
        }

        #[test]
        fn numbers_are_found_by_their_whole_name() {
            let numbers = NamedNumbers::of("VmSizeX: 1 kB\nVmSize:\t  25 kB\nempty:\n");
            assert_eq!((numbers.kilobytes("VmSize:"), numbers.get("empty:"), numbers.get("VmSiz")), (Some(25 * 1024), None, None));
        }

        #[test]
        fn what_is_mapped_and_holds_nothing_is_no_use() {
            let of = |status: &str| untouched(&NamedNumbers::of(status));
            assert_eq!(of("VmData: 1000 kB\nRssAnon: 200 kB\nVmSwap: 50 kB\n"), Some(375 * 1024));
            assert_eq!(of("VmData: 100 kB\nRssAnon: 200 kB\n"), Some(0));
            assert_eq!(of("VmData: 100 kB\n"), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_memory() {
        let memory = memory(&Device::Cpu).unwrap();
        assert!(memory.free > 0 && memory.free <= memory.limit && memory.free <= memory.total, "{memory:?}");
    }
}

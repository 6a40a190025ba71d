//! What this machine can give: memory and disk, as far as this process is granted them.

use std::fs;
use std::path::Path;

/// Memory in bytes, the smaller of the machine's and of what a container's limits allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Memory {
    /// All there is for us.
    pub total: u64,
    /// What can be taken without pushing others out: free memory and file pages that can be dropped.
    pub available: u64,
}

/// The memory of this machine; `None` where the system does not tell.
pub fn memory() -> Option<Memory> {
    let machine = meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = group_limits(&groups, |path| fs::read_to_string(path).ok());
    Some(limits.into_iter().fold(machine, |least, limit| Memory {
        total: least.total.min(limit.total),
        available: least.available.min(limit.available),
    }))
}

/// Memory that this process holds now, mapped file pages included; `None` where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// Bytes that can still be written to the file system that holds `path`, or its nearest parent that exists.
pub fn free_disk(path: &Path) -> Option<u64> {
    let path = path.canonicalize().or_else(|_| std::path::absolute(path)).ok()?;
    octet_checkpoint::write::free_bytes(path.ancestors().find(|p| p.exists())?)
}

/// `MemTotal` and `MemAvailable` out of /proc/meminfo.
fn meminfo(text: &str) -> Option<Memory> {
    let (total, available) = (kibibytes(text, "MemTotal")?, kibibytes(text, "MemAvailable")?);
    Some(Memory { total, available })
}

/// The bytes of a line such as `VmRSS:    1234 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limits of every control group that this process is in, for version 2 and for version 1.
///
/// `groups` is /proc/self/cgroup: `0::/a/b` for version 2, `4:memory:/a/b` for version 1. A limit on a parent binds too.
/// Inside a container the path may be the host's, which is not there; the root then stands for the container.
fn group_limits(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<Memory> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let names = if controllers.is_empty() {
            ["/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "]
        } else if controllers.split(',').any(|c| c == "memory") {
            ["/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "]
        } else {
            continue;
        };
        let [mount, limit, usage, droppable] = names;
        for folder in Path::new(group.trim_start_matches('/')).ancestors() {
            let file = |name: &str| read(&Path::new(mount).join(folder).join(name));
            let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
            let Some(total) = number(limit) else { continue };
            let used = number(usage).unwrap_or(0);
            let stat = file("memory.stat").unwrap_or_default();
            let cached = stat.lines().find_map(|l| l.strip_prefix(droppable)?.trim().parse::<u64>().ok()).unwrap_or(0);
            limits.push(Memory { total, available: total.saturating_sub(used.saturating_sub(cached)) });
        }
    }
    limits
}

/// The processor's own name; `None` where the system does not tell.
pub fn cpu_name() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:       24684092 kB\nMemFree:        1 kB\nMemAvailable:   22634520 kB\n";
        assert_eq!(meminfo(text), Some(Memory { total: 24684092 << 10, available: 22634520 << 10 }));
        assert_eq!(meminfo("MemTotal: lots\n"), None);
    }

    #[test]
    fn limits_of_groups_and_their_parents_count() {
        let files = |path: &Path| {
            let text = match path.to_str().unwrap() {
                "/sys/fs/cgroup/a/memory.max" => "1000\n",
                "/sys/fs/cgroup/a/memory.current" => "700\n",
                "/sys/fs/cgroup/a/memory.stat" => "anon 1\ninactive_file 200\n",
                "/sys/fs/cgroup/a/b/memory.max" => "max\n",
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => "9223372036854771712\n",
                _ => return None,
            };
            Some(text.to_string())
        };
        assert_eq!(group_limits("0::/a/b\n", files), [Memory { total: 1000, available: 500 }]);
        let unlimited = group_limits("9:name=systemd:/\n4:memory:/c\n", files);
        assert_eq!(unlimited, [Memory { total: 9223372036854771712, available: 9223372036854771712 }]);
        assert_eq!(group_limits("nonsense\n", files), []);
    }

    #[test]
    fn this_machine_has_memory_and_disk() {
        if let Some(memory) = memory() {
            assert!(memory.available <= memory.total && memory.total > 1 << 20, "{memory:?}");
        }
        assert!(free_disk(Path::new("no/such/folder")).is_some());
    }
}

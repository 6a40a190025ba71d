//! What this machine offers: its instructions, and how many threads serve us best.

use std::collections::BTreeSet;
use std::path::Path;

/// The instructions that the kernels use here: `amx`, `avx512-vnni` or `avx2`, on ARM `neon` (with dot
/// products); `portable` where there is none that we know.
pub fn features() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if crate::amx::is_available() {
            return "amx";
        }
        if crate::avx2::has_vnni() {
            return "avx512-vnni";
        }
        if crate::lanes_avx2::Avx2::is_available() {
            return "avx2";
        }
    }
    #[cfg(target_arch = "aarch64")]
    if crate::lanes_neon::Neon::is_available() {
        return "neon";
    }
    "portable"
}

/// How many threads to run: one for each core that this process may use, at least 1.
///
/// Counted are the cores of the affinity mask (which holds the cpuset's), up to the quota of the control group (v1 or v2).
/// Hyperthreads of a core share its arithmetic, so a core counts once; where some cores are slower than others (hybrid
/// processors), only the fast ones count, because the slow ones would be waited for at every barrier.
pub fn available_threads() -> usize {
    let allowed_now = std::thread::available_parallelism().map_or(1, usize::from);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(parse_list);
    let cores = allowed.map_or(allowed_now, |cpus| fast_cores(&cpus, Path::new("/sys/devices/system/cpu")));
    cores.clamp(1, allowed_now.max(1))
}

/// How many different fast cores the processors `cpus` belong to.
fn fast_cores(cpus: &BTreeSet<usize>, system: &Path) -> usize {
    let read = |cpu: usize, file: &str| std::fs::read_to_string(system.join(format!("cpu{cpu}/{file}"))).ok();
    let speed = |cpu: usize| -> u64 {
        let capacity = read(cpu, "cpu_capacity").or_else(|| read(cpu, "acpi_cppc/highest_perf"));
        capacity.or_else(|| read(cpu, "cpufreq/cpuinfo_max_freq")).and_then(|s| s.trim().parse().ok()).unwrap_or(0)
    };
    let fastest = cpus.iter().map(|&cpu| speed(cpu)).max().unwrap_or(0);
    // Favoured cores of one kind differ by some percent, kinds of cores by a third or more.
    let fast = cpus.iter().filter(|&&cpu| speed(cpu) * 4 >= fastest * 3);
    let first_sibling = |cpu: usize| -> usize {
        let siblings = read(cpu, "topology/thread_siblings_list").and_then(|s| parse_list(&s));
        siblings.and_then(|s| s.first().copied()).unwrap_or(cpu)
    };
    fast.map(|&cpu| first_sibling(cpu)).collect::<BTreeSet<_>>().len()
}

/// The kernel's lists of processors: `0-3,8,10-11`.
fn parse_list(list: &str) -> Option<BTreeSet<usize>> {
    const MOST: usize = 1 << 16;
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        let set = |list: &str| parse_list(list).map(|s| s.into_iter().collect::<Vec<_>>());
        assert_eq!(set("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(set("\t5"), Some(vec![5]));
        assert_eq!(set(""), None);
        assert_eq!(set("0-18446744073709551615"), None);
    }

    #[test]
    fn there_is_at_least_one_thread() {
        assert!(available_threads() >= 1);
    }

    /// Two fast cores of two hyperthreads each, and four slow ones.
    #[test]
    fn hyperthreads_and_slow_cores_do_not_count() {
        let folder = std::env::temp_dir().join(format!("octet-cpu-{}", std::process::id()));
        for cpu in 0..8 {
            let at = folder.join(format!("cpu{cpu}"));
            std::fs::create_dir_all(at.join("topology")).expect("a scratch folder");
            let siblings = if cpu < 4 { format!("{}-{}\n", cpu / 2 * 2, cpu / 2 * 2 + 1) } else { format!("{cpu}\n") };
            std::fs::write(at.join("topology/thread_siblings_list"), siblings).expect("a scratch file");
            let capacity = [1024, 1024, 1000, 1000, 512, 512, 512, 512][cpu];
            std::fs::write(at.join("cpu_capacity"), format!("{capacity}\n")).expect("a scratch file");
        }
        assert_eq!(fast_cores(&(0..8).collect(), &folder), 2);
        assert_eq!(fast_cores(&[1, 2].into(), &folder), 2);
        assert_eq!(fast_cores(&[5, 6, 7].into(), &folder), 3);
        assert_eq!(fast_cores(&[70, 71].into(), &folder), 2, "unknown topology");
        std::fs::remove_dir_all(&folder).expect("it was made above");
    }
}

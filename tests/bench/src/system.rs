//! Processes on chosen processors, and what the kernel says about them (Linux, `/proc`).

use std::fs;
use std::io;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processors that this process may use.
///
/// # Errors
/// The system's error.
pub fn processors() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// The processors that share a core with `cpu`, as the kernel writes it.
#[must_use]
pub fn siblings(cpu: usize) -> Option<String> {
    let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The processor's name.
#[must_use]
pub fn processor_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// A child process that is ended when this goes out of scope.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`, on `cpu` alone if one is given.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, cpu: Option<usize>) -> io::Result<Self> {
        let spawned = match cpu {
            None => command.spawn(),
            Some(cpu) => {
                // A child begins with the processors of the thread that starts it.
                let own = sched_getaffinity(None)?;
                let mut set = CpuSet::new();
                set.set(cpu);
                sched_setaffinity(None, &set)?;
                let spawned = command.spawn();
                sched_setaffinity(None, &own)?;
                spawned
            }
        };
        let child = spawned.map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
        })?;
        Ok(Self { child })
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if it was piped and not taken before.
    pub fn output(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// The system's error.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system's error.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Asks it to end and waits; `None` when it had to be killed after `patience`.
    ///
    /// # Errors
    /// The system's error.
    pub fn terminate(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
            && self.child.try_wait()?.is_none()
        {
            kill_process(pid, Signal::TERM)?;
        }
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(None)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time that a process has used, all threads, user and system.
///
/// # Errors
/// When the process is gone.
pub fn cpu_seconds(pid: u32) -> io::Result<f64> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between listing and reading.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += text.split(' ').next().and_then(|ran| ran.parse().ok()).unwrap_or(0);
    }
    if nanoseconds > 0 {
        return Ok(nanoseconds as f64 / 1e9);
    }
    // A kernel without scheduler statistics counts in ticks of 10 ms.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    Ok(ticks_of(&stat).unwrap_or(0) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// `utime + stime` of `/proc/PID/stat`; the name before them may hold spaces and brackets.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Seconds that a processor was not idle since the machine started.
///
/// # Errors
/// The system's error.
pub fn busy_seconds(cpu: usize) -> io::Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks_of(&stat, cpu).unwrap_or(0);
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// All but `idle` and `iowait` of a processor's line in `/proc/stat`; `guest` is within `user`.
fn busy_ticks_of(stat: &str, cpu: usize) -> Option<u64> {
    let name = format!("cpu{cpu} ");
    let fields = stat.lines().find_map(|line| line.strip_prefix(&name))?;
    let ticks = fields.split_ascii_whitespace().take(8).enumerate();
    let busy = ticks.filter(|(column, _)| *column != 3 && *column != 4);
    busy.map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()
}

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

/// What a process holds now.
///
/// # Errors
/// When the process is gone.
pub fn held(pid: u32) -> io::Result<Held> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm"))?;
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let count = |folder: &str| -> io::Result<u64> {
        Ok(fs::read_dir(format!("/proc/{pid}/{folder}"))?.count() as u64)
    };
    Ok(Held {
        rss_bytes: pages.unwrap_or(0) * rustix::param::page_size() as u64,
        descriptors: count("fd")?,
        threads: count("task")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) b) (c) R 1 2 3 4 5 6 7 8 9 10 40 2 0 0 20 0";
        assert_eq!(ticks_of(stat), Some(42));
        assert_eq!(ticks_of("7 (a) R 1"), None);
    }

    #[test]
    fn idle_and_waiting_is_not_busy() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 9 0 0 0 0 0 0 0 0 0\ncpu1 1 2 4 100 100 8 16 32 64 0\n";
        assert_eq!(busy_ticks_of(stat, 1), Some(63));
        assert_eq!(busy_ticks_of(stat, 2), None);
    }

    #[test]
    fn this_process_is_seen() {
        let id = std::process::id();
        let before = cpu_seconds(id).unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        assert!(cpu_seconds(id).unwrap() > before);
        let held = held(id).unwrap();
        assert!(held.rss_bytes > 100_000 && held.descriptors >= 3 && held.threads >= 1);
        assert!(busy_seconds(processors().unwrap()[0]).unwrap() > 0.0);
    }

    #[test]
    fn a_child_runs_where_it_was_put_and_ends_when_asked() {
        let cpu = processors().unwrap()[0];
        let mut sleep = Process::start(Command::new("sleep").arg("60"), Some(cpu)).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", sleep.id())).unwrap();
        let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.split_whitespace().last(), Some(cpu.to_string().as_str()));
        let status = sleep.terminate(Duration::from_secs(5)).unwrap().unwrap();
        assert!(!status.success());
    }
}

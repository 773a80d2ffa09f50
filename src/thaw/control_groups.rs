//! Control groups (cgroups(7)): the processes join those they were in, where they are here; where not, that is told, and it stays in thaw's.
#![deny(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use nix::unistd::Pid;

use crate::collect::{ProcDir, control_groups, directory};
use crate::image::state::{ControlGroup, Process};

/// The files that are written to join.
#[derive(Default)]
pub struct Groups {
    processes: Vec<(Pid, Join)>,
    threads: Vec<(Pid, Join)>,
}

struct Join {
    file: File,
    /// For people.
    group: String,
}

impl Groups {
    /// Opens what is needed, with whatever rights we have now; the notes say what cannot be joined.
    pub fn open(processes: &[Process]) -> Result<(Self, Vec<String>)> {
        let own = control_groups(&ProcDir::by_pid(std::process::id().cast_signed())?)?;
        let (mut groups, mut notes) = (Groups::default(), Vec::new());
        // Who is in thaw's own need not join, unless it is born into another one.
        let stays = |process: &Process| {
            let first = process.threads.iter().find(|thread| thread.tid == process.pid);
            first.is_none_or(|first| first.settings.control_groups.iter().all(|group| own.contains(group)))
        };
        let own = match processes.iter().all(stays) {
            true => own.as_slice(),
            false => &[],
        };
        for process in processes {
            groups.add(process, own, &mut notes);
        }
        Ok((groups, notes))
    }

    fn add(&mut self, process: &Process, own: &[ControlGroup], notes: &mut Vec<String>) {
        let mut note =
            |group: &str, why: &str| notes.push(format!("{group} {why}: pid {} stays in thaw's", process.pid));
        for thread in &process.threads {
            let is_first = thread.tid == process.pid;
            for wanted in &thread.settings.control_groups {
                // A thread other than the first is listed only where it is not in the process's own.
                if is_first && own.contains(wanted) {
                    continue;
                }
                let name = name(wanted);
                match open(wanted, is_first) {
                    Err(why) => note(&name, &why),
                    Ok(file) => {
                        let list = if is_first {
                            &mut self.processes
                        } else {
                            &mut self.threads
                        };
                        list.push((Pid::from_raw(thread.tid), Join { file, group: name }));
                    }
                }
            }
        }
    }

    /// One of the processes, as [`join_processes`](Self::join_processes) does it for all.
    pub fn join_process(&self, pid: i32) -> Vec<String> {
        let own = self.processes.iter().filter(|(process, _)| process.as_raw() == pid);
        own.filter_map(|(pid, join)| join.write(*pid)).collect()
    }

    /// The processes, before they have memory: what they use is charged to the group from the beginning.
    pub fn join_processes(&self) -> Vec<String> {
        self.processes
            .iter()
            .filter_map(|(pid, join)| join.write(*pid))
            .collect()
    }

    /// Threads that were in others, once they are there.
    pub fn join_threads(&self) -> Vec<String> {
        self.threads.iter().filter_map(|(tid, join)| join.write(*tid)).collect()
    }
}

impl Join {
    /// None where it worked.
    fn write(&self, id: Pid) -> Option<String> {
        let error = (&self.file).write_all(id.to_string().as_bytes()).err()?;
        Some(format!(
            "{} cannot be joined: {error}; {id} stays in thaw's",
            self.group
        ))
    }
}

fn name(group: &ControlGroup) -> String {
    let path = String::from_utf8_lossy(&group.path);
    match group.hierarchy.as_str() {
        "" => format!("control group {path}"),
        hierarchy => format!("control group {path} ({hierarchy})"),
    }
}

fn open(group: &ControlGroup, whole_process: bool) -> Result<File, String> {
    let dir = directory(group)?;
    let file = match (whole_process, group.hierarchy.as_str()) {
        (true, _) => "cgroup.procs",
        (false, "") => "cgroup.threads",
        (false, _) => "tasks",
    };
    open_file(&dir, file).map_err(|error| format!("cannot be joined ({file}: {error})"))
}

fn open_file(dir: &Path, file: &str) -> std::io::Result<File> {
    File::options().write(true).open(dir.join(file))
}

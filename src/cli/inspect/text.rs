//! What `inspect` shows to people.

use super::ipc;
use super::names::{duration, printable, size};
use super::report::*;
use std::fmt::Write;

/// The whole report. Whatever stems from the image is made printable.
pub fn render(report: &Report) -> String {
    let mut text = summary(report);
    for process in &report.processes {
        text += &render_process(process);
    }
    text += &section("Ended, not waited for", &zombies(&report.zombies));
    if !report.leaderless.is_empty() {
        let ids: Vec<String> = report.leaderless.iter().map(i32::to_string).collect();
        let _ = writeln!(text, "\nSessions and groups without their leaders: {}", ids.join(", "));
    }
    if !report.shared_objects.is_empty() {
        text += &section("Shared memory", &shared_objects(&report.shared_objects));
    }
    text += &section("Pseudo-terminals", &ipc::table_of_ptys(&report.ptys));
    text += &section("System V semaphores", &ipc::table_of_semaphores(&report.semaphore_sets));
    text += &section("System V message queues", &ipc::table_of_queues(&report.message_queues));
    text
}

fn zombies(zombies: &[ZombieReport]) -> Vec<Vec<String>> {
    let row = |zombie: &ZombieReport| {
        let how = match zombie.status & 0x7f {
            0 => format!("exit code {}", zombie.status >> 8),
            signal => format!("signal {signal}"),
        };
        let ids = [zombie.pid, zombie.ppid, zombie.pgid, zombie.sid].map(|id| id.to_string());
        ids.into_iter().chain([how, shown(&zombie.name)]).collect()
    };
    table(
        &[">PID", ">PARENT", ">GROUP", ">SESSION", "HOW", "NAME"],
        zombies.iter().map(row),
    )
}

fn summary(report: &Report) -> String {
    let memory = &report.memory;
    let ratio = memory
        .compression_ratio
        .map_or_else(String::new, |ratio| format!(" ({ratio:.1} : 1)"));
    let lines = [
        ("image", format!("{}, {}", report.image, size(report.file_bytes))),
        ("taken", report.taken.clone()),
        (
            "host",
            format!("{}, Linux {}, {}", report.host, report.kernel, report.machine),
        ),
        (
            "cryopod",
            format!("{}, image format {}", report.cryopod_version, report.format),
        ),
        (
            "processes",
            format!("{}, threads {}", report.process_count, report.thread_count),
        ),
        (
            "memory",
            format!(
                "{} mapped, {} resident",
                size(memory.mapped_bytes),
                size(memory.resident_bytes)
            ),
        ),
        (
            "stored",
            format!(
                "{}, compressed to {}{ratio}",
                size(memory.stored_bytes),
                size(memory.compressed_bytes)
            ),
        ),
        ("state", size(memory.state_bytes)),
    ];
    lines
        .iter()
        .map(|(name, value)| format!("{name:<11}{}\n", printable(value.as_bytes())))
        .collect()
}

fn render_process(process: &ProcessReport) -> String {
    let mut text = format!(
        "\nProcess {}  {}\n",
        process.pid,
        printable(process.executable.as_bytes())
    );
    let _ = writeln!(
        text,
        "  parent {}, group {}, session {}, umask {}, oom_score_adj {}",
        process.ppid, process.pgid, process.sid, process.umask, process.oom_score_adj
    );
    let _ = writeln!(
        text,
        "  directory {}, root {}",
        shown(&process.directory),
        shown(&process.root)
    );
    text += &settings_line("  settings", &process.settings);
    if let Some(signal) = &process.stopped_by {
        let _ = writeln!(text, "  stopped by {signal}");
    }
    for thread in &process.threads {
        text += &render_thread(thread);
    }
    text += &section("Memory", &mappings(&process.mappings));
    text += &section("Descriptors", &descriptors(&process.descriptors));
    text += &section("Signal actions", &actions(&process.signal_actions));
    text += &pending_line("  pending for the process", &process.pending);
    text += &section("Timers", &timers(process));
    text += &section("Limits", &limits(&process.limits));
    text
}

fn shown(name: &str) -> String {
    printable(name.as_bytes())
}

fn render_thread(thread: &ThreadReport) -> String {
    let mut text = format!("\n  Thread {}  {}\n", thread.tid, shown(&thread.name));
    let [uid, euid, ..] = thread.uids;
    let [gid, egid, ..] = thread.gids;
    let _ = writeln!(
        text,
        "    uid {uid} (effective {euid}), gid {gid} (effective {egid}), capabilities {}",
        hex(thread.capabilities)
    );
    for registers in thread.registers.chunks(4) {
        let line: String = registers
            .iter()
            .map(|register| format!("  {:>8} {:<18}", register.name, hex(register.value)))
            .collect();
        let _ = writeln!(text, "  {}", line.trim_end());
    }
    let set = |set: &RegisterSetReport| {
        format!(
            "{} {}",
            set.name.map_or_else(|| hex(set.note), str::to_owned),
            size(set.bytes as u64)
        )
    };
    let _ = writeln!(
        text,
        "    register sets: {}",
        thread.register_sets.iter().map(set).collect::<Vec<_>>().join(", ")
    );
    if !thread.blocked.is_empty() {
        let _ = writeln!(text, "    blocked: {}", thread.blocked.join(" "));
    }
    text += &settings_line("    settings", &thread.settings);
    text += &pending_line("    pending", &thread.pending);
    if let Some(wait) = &thread.timed_wait {
        let _ = writeln!(
            text,
            "    waits in system call {}, {} left",
            wait.syscall,
            duration(wait.left_ns)
        );
    }
    text
}

fn settings_line(what: &str, settings: &[String]) -> String {
    match settings {
        [] => String::new(),
        _ => format!("{what}: {}\n", settings.join("; ")),
    }
}

fn pending_line(what: &str, pending: &[PendingReport]) -> String {
    match pending {
        [] => String::new(),
        _ => format!(
            "{what}: {}\n",
            pending
                .iter()
                .map(|info| info.signal.as_str())
                .collect::<Vec<_>>()
                .join(" ")
        ),
    }
}

fn hex(value: Hex) -> String {
    format!("{:#x}", value.0)
}

fn mappings(mappings: &[MappingReport]) -> Vec<Vec<String>> {
    let row = |mapping: &MappingReport| {
        vec![
            format!("{:x}-{:x}", mapping.start.0, mapping.end.0),
            mapping.protection.clone(),
            size(mapping.bytes),
            size_or_dash(mapping.resident_bytes),
            size_or_dash(mapping.stored_bytes),
            size_or_dash(mapping.compressed_bytes),
            what(mapping),
        ]
    };
    table(
        &["ADDRESSES", "PROT", ">SIZE", ">RESIDENT", ">STORED", ">IN FILE", "WHAT"],
        mappings.iter().map(row),
    )
}

/// The name, and how the memory is placed where that is the mapping's own choice.
fn what(mapping: &MappingReport) -> String {
    let name = shown(&mapping.name);
    match &mapping.policy {
        Some(policy) if name.is_empty() => format!("(policy {policy})"),
        Some(policy) => format!("{name} (policy {policy})"),
        None => name,
    }
}

fn size_or_dash(bytes: u64) -> String {
    if bytes == 0 { "-".into() } else { size(bytes) }
}

fn descriptors(descriptors: &[DescriptorReport]) -> Vec<Vec<String>> {
    let row = |descriptor: &DescriptorReport| {
        let mut flags = descriptor.flags.clone();
        flags.extend(descriptor.close_on_exec.then(|| "O_CLOEXEC".to_owned()));
        vec![
            descriptor.fd.to_string(),
            descriptor.description.to_string(),
            descriptor.kind.to_string(),
            descriptor.kind_name.unwrap_or("unknown").to_owned(),
            flags.join("|"),
            shown(&descriptor.label),
        ]
    };
    table(
        &[">FD", ">DESCRIPTION", ">NO", "KIND", "FLAGS", "WHAT"],
        descriptors.iter().map(row),
    )
}

fn actions(actions: &[ActionReport]) -> Vec<Vec<String>> {
    let row = |action: &ActionReport| {
        vec![
            action.signal.clone(),
            action.handler.clone(),
            or_dash(action.flags.join("|")),
            or_dash(action.mask.join(" ")),
        ]
    };
    let unusual = |action: &&ActionReport| action.handler != "default" || !action.flags.is_empty();
    table(
        &["SIGNAL", "HANDLER", "FLAGS", "BLOCKS MEANWHILE"],
        actions.iter().filter(unusual).map(row),
    )
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn timers(process: &ProcessReport) -> Vec<Vec<String>> {
    let row = |timer: &TimerReport| {
        let dash = || "-".to_owned();
        vec![
            timer.id.map_or_else(dash, |id| id.to_string()),
            timer.name.clone(),
            if timer.left_ns == 0 {
                "not armed".into()
            } else {
                duration(timer.left_ns)
            },
            if timer.interval_ns == 0 {
                dash()
            } else {
                duration(timer.interval_ns)
            },
            timer.signal.clone().unwrap_or_else(dash),
            timer.thread.map_or_else(dash, |tid| tid.to_string()),
        ]
    };
    let timers = process.interval_timers.iter().chain(&process.posix_timers);
    table(
        &[">ID", "CLOCK", ">LEFT", ">PERIOD", "SIGNAL", ">THREAD"],
        timers.map(row),
    )
}

fn limits(limits: &[LimitReport]) -> Vec<Vec<String>> {
    let value = |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string());
    let row = |limit: &LimitReport| vec![limit.resource.clone(), value(limit.soft), value(limit.hard)];
    table(&["RESOURCE", ">SOFT", ">HARD"], limits.iter().map(row))
}

fn shared_objects(objects: &[ObjectReport]) -> Vec<Vec<String>> {
    let row = |(index, object): (usize, &ObjectReport)| {
        vec![
            index.to_string(),
            object.kind.to_owned(),
            size(object.bytes),
            size_or_dash(object.stored_bytes),
            size_or_dash(object.compressed_bytes),
            shown(&object.name),
        ]
    };
    table(
        &[">NUMBER", "KIND", ">SIZE", ">STORED", ">IN FILE", "NAME"],
        objects.iter().enumerate().map(row),
    )
}

/// Headings and rows. A heading that begins with > is that of a column of numbers.
pub(super) fn table(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
    std::iter::once(headings.iter().map(|heading| (*heading).to_owned()).collect())
        .chain(rows)
        .collect()
}

/// A heading and an aligned table, or nothing where the table has no rows.
fn section(title: &str, table: &[Vec<String>]) -> String {
    let [headings, rows @ ..] = table else {
        return String::new();
    };
    if rows.is_empty() {
        return String::new();
    }
    let heading = |column: usize| headings[column].trim_start_matches('>');
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        widest.unwrap_or(0).max(heading(column).len())
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::from(" ");
        for ((cell, heading), &width) in cells.zip(headings).zip(&widths) {
            line += &match heading.starts_with('>') {
                true => format!(" {cell:>width$} "),
                false => format!(" {cell:<width$} "),
            };
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = format!("\n  {title}\n");
    text += &line(&mut (0..headings.len()).map(heading));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["1".to_owned(), "a".to_owned(), "x".to_owned()],
            vec!["100".into(), "bcd".into(), String::new()],
        ];
        let text = section("Title", &table(&[">N", "NAME", "WHAT"], rows.into_iter()));
        assert_eq!(text, "\n  Title\n    N  NAME  WHAT\n    1  a     x\n  100  bcd\n");
    }

    #[test]
    fn a_table_without_rows_is_left_out() {
        assert_eq!(section("Title", &table(&["NAME"], std::iter::empty())), "");
    }
}

//! What stands against a freeze, and what can be done about it.

use super::mappings::is_unreadable;
use super::shown;
use crate::collect::{Area, Facts, Found, Member, Populated, Relative, Sandbox, SharedFacts, ThreadFacts};
use std::collections::HashMap;

use crate::image::family::{Step, Stranger};
use crate::image::state::{File, Process, SharedKind, Snapshot};
use crate::refusal::Refusal;

/// What `tracer::MemoryCopy` calls itself.
const COPY: &str = "cryopod-copy";
pub const CLOSE: &str = "let the program close what it belongs to first";

/// All but mappings, the executable and descriptors.
pub fn of_process(member: &Member) -> Vec<Refusal> {
    let mut refusals = Refusals {
        pid: member.pid,
        list: Vec::new(),
    };
    refusals.relatives(member);
    refusals.surroundings(member);
    refusals.settings(member);
    refusals.places(member);
    for thread in &member.threads {
        refusals.thread(member, thread);
    }
    refusals.list
}

struct Refusals {
    pid: i32,
    list: Vec<Refusal>,
}

impl Refusals {
    fn add(&mut self, object: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) {
        self.list.push(Refusal::new(self.pid, object, reason, remedy));
    }

    fn relatives(&mut self, member: &Member) {
        for child in &member.surroundings.children {
            let name = named("child", child);
            if child.name == COPY {
                self.add(
                    name,
                    "is a copy of it that another freeze writes into an image",
                    "wait until that is done",
                );
            } else {
                self.add(name, "was made while it was looked at", "freeze again");
            }
        }
        for tracee in &member.surroundings.tracees {
            let remedy = "let the debugger detach first";
            self.add(
                named("task", tracee),
                "is traced by it, and a tracer cannot be carried yet",
                remedy,
            );
        }
        for (sharer, what) in &member.surroundings.sharers {
            let reason = format!("shares {what} with it, which cryopod does not carry yet");
            self.add(named("process", sharer), reason, "");
        }
    }

    fn surroundings(&mut self, member: &Member) {
        for namespace in &member.surroundings.foreign_namespaces {
            self.namespace("the process", namespace);
        }
    }

    fn settings(&mut self, member: &Member) {
        if let Err(why) = &member.process.undos {
            let reason = format!(
                "may have System V semaphores adjusted when it ends (semop(2), SEM_UNDO), and how is not known: {why}"
            );
            self.add("the process", reason, "freeze while it holds none");
        }
        if member.process.has_ldt {
            self.add(
                "the process",
                "has segments of its own (modify_ldt), which cryopod does not carry yet",
                "",
            );
        }
    }

    fn namespace(&mut self, who: &str, namespace: &str) {
        let remedy = "run cryopod in the same namespaces (nsenter(1))";
        self.add(
            who,
            format!("is in another {namespace} namespace than cryopod, which is not carried yet"),
            remedy,
        );
    }

    fn places(&mut self, member: &Member) {
        let process = &member.process;
        for (what, place) in [("working directory", &process.cwd), ("root directory", &process.root)] {
            if !place.is_there {
                let object = format!("its {what} {}", shown(&place.path));
                self.add(
                    object,
                    "was deleted or lies under another mount now",
                    "let the program change to another one",
                );
            }
        }
        if member.threads[0].status.state == 'Z' {
            self.add(
                "its first thread",
                "has ended while others go on, which cryopod does not carry yet",
                "",
            );
        }
    }

    fn sandbox(&mut self, who: &str, sandbox: &Sandbox) {
        let remedy = "start the program without its sandbox";
        match sandbox {
            Sandbox::None
            | Sandbox::Filtered {
                has_supervisor: false, ..
            } => {}
            Sandbox::Filtered { .. } => {
                let reason = "is under a seccomp filter that asks a supervisor (SECCOMP_RET_USER_NOTIF), which is not carried yet";
                self.add(who, reason, remedy);
            }
            Sandbox::Strict => {
                let reason =
                    "is in strict mode of seccomp(2), in which it can be made to call nothing that cryopod must ask";
                self.add(who, reason, remedy);
            }
            Sandbox::Unreadable(why) => {
                let reason = format!("is under seccomp filters that cannot be read: {why}");
                self.add(who, reason, "run cryopod as root, outside of any sandbox");
            }
        }
    }

    fn thread(&mut self, member: &Member, facts_of: &ThreadFacts) {
        let ThreadFacts { thread, status, .. } = facts_of;
        let who = format!("thread {} ({})", thread.tid, shown(&thread.name));
        if !facts_of.is_native {
            self.add(&who, "runs 32-bit code, which cryopod does not carry yet", "");
        }
        self.sandbox(&who, &facts_of.sandbox);
        if status.features.iter().any(|feature| feature == "shstk") {
            let remedy = "start the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off";
            self.add(&who, "has a shadow stack, which cryopod does not carry yet", remedy);
        }
        if let Some(what) = facts_of.not_carried {
            self.add(&who, format!("{what}, which cryopod does not carry"), CLOSE);
        }
        if facts_of.is_blocking {
            let reason = "has its system calls sent back to itself at this moment (PR_SET_SYSCALL_USER_DISPATCH), so that it cannot be asked";
            self.add(&who, reason, "try again while it lets them through");
        }
        for what in &facts_of.unshared {
            self.add(
                &who,
                format!("does not share {what} with the first thread, which cryopod does not carry yet"),
                "",
            );
        }
        let news = |name: &&String| !member.surroundings.foreign_namespaces.contains(name);
        for namespace in facts_of.foreign_namespaces.iter().filter(news) {
            self.namespace(&who, namespace);
        }
    }
}

/// Memory of which somebody else would see the changes no more.
pub fn of_shared_objects(facts: &Facts) -> Vec<Refusal> {
    let pid = facts.members[0].pid;
    let shared = facts
        .shared_objects
        .iter()
        .filter_map(|shared| Some((shared, shared.outsider.as_ref()?)));
    let refusal = |(shared, outsider): (&SharedFacts, &Relative)| {
        let object = match &shared.object.kind {
            SharedKind::Anonymous => "its shared memory".to_owned(),
            SharedKind::SystemV(segment) => format!("its System V shared memory {}", segment.ipc.id),
            SharedKind::Memfd { name, .. } | SharedKind::Copy { name, .. } => format!("its memory {}", shown(name)),
        };
        let reason = format!(
            "is mapped by {} as well, which is not frozen with it",
            named("pid", outsider)
        );
        Refusal::new(
            pid,
            object,
            reason,
            format!("freeze both: name pid {} as well", outsider.pid),
        )
    };
    shared.map(refusal).collect()
}

/// What processes share they have from being made so: all but one of those that share a thing must be made by another of them.
pub fn of_sharers(snapshot: &Snapshot, steps: &[Step]) -> Vec<Refusal> {
    let makers: HashMap<i32, i32> = steps
        .iter()
        .filter_map(|step| match *step {
            Step::Clone { pid, by, .. } => Some((pid, by)),
            _ => None,
        })
        .collect();
    let mut refusals = Vec::new();
    let mut of_thing = |name: &str, thing: fn(&Process) -> u32| {
        let mut first: HashMap<u32, i32> = HashMap::new();
        for process in &snapshot.processes {
            let maker = makers.get(&process.pid);
            let maker = maker.and_then(|maker| snapshot.processes.iter().find(|other| other.pid == *maker));
            if maker.is_some_and(|maker| thing(maker) == thing(process)) {
                continue;
            }
            if let Some(other) = first.insert(thing(process), process.pid) {
                let reason = format!("shares {name} with it, and neither of them can make the other so");
                refusals.push(Refusal::new(
                    process.pid,
                    format!("process {other}"),
                    reason,
                    "end one of them",
                ));
            }
        }
    };
    of_thing("its table of descriptors", |process| process.fd_table);
    of_thing("its working directory", |process| process.directories);
    refusals
}

/// A process whose session cannot be entered at thaw the way it was.
pub fn of_stranger(stranger: Stranger) -> Refusal {
    let reason = format!(
        "is in session {}, which neither its parent nor a sibling of it began; such cannot be brought back yet",
        stranger.sid
    );
    Refusal::new(stranger.pid, "the process", reason, "")
}

fn named(what: &str, relative: &Relative) -> String {
    format!("{what} {} ({})", relative.pid, relative.name)
}

/// Reason and remedy, clauses of a refusal whose object the caller names.
pub type Unfit = (String, String);

/// The file, where its path leads to it.
pub fn unfit_file(found: &Found) -> Result<&File, Unfit> {
    let restart = "restart the program, so that it uses the file of today";
    let (reason, remedy) = match found {
        Found::Same(file) => return Ok(file),
        Found::Gone => (
            "was deleted, and those that the program may write to, or that only root can open, are not carried".into(),
            restart.into(),
        ),
        Found::Replaced => (
            "was deleted, and another file has its name now (was it upgraded?)".into(),
            restart.into(),
        ),
        Found::NotRegular => (
            "is a device or another special file, whose memory is not carried".into(),
            CLOSE.into(),
        ),
        Found::Unknown(reason) => (format!("cannot be looked up: {reason}"), String::new()),
    };
    Err((reason, remedy))
}

/// Codes of VmFlags (proc_pid_smaps(5)) that say what a mapping is or has.
const FLAGS: [(&[u8; 2], &str, &str); 9] = [
    (
        b"mt",
        "has tags (PROT_MTE), which cryopod does not carry yet",
        "start the program with GLIBC_TUNABLES=glibc.mem.tagging=0",
    ),
    (
        b"ht",
        "is made of huge pages (hugetlbfs), which cryopod does not carry yet",
        "",
    ),
    (b"io", "is memory of a device, which cannot be carried", CLOSE),
    (b"pf", "is memory of a device, which cannot be carried", CLOSE),
    (
        b"um",
        "is served by userfaultfd(2), which cryopod does not carry yet",
        "",
    ),
    (
        b"uw",
        "is served by userfaultfd(2), which cryopod does not carry yet",
        "",
    ),
    (
        b"ui",
        "is served by userfaultfd(2), which cryopod does not carry yet",
        "",
    ),
    (b"ss", "is a shadow stack, which cryopod does not carry yet", ""),
    (
        b"sf",
        "is persistent memory (MAP_SYNC), which cryopod does not carry",
        CLOSE,
    ),
];

/// Memory that can be executed and nothing else has a key that the kernel takes for it, the first that is free (execute_only_pkey()),
/// and takes again at the thaw; in a program that takes keys itself it might be another.
fn is_default_key(area: &Area) -> bool {
    const PROT_EXEC: u8 = 4;
    area.protection_key == 0 || (area.protection_key == 1 && area.prot == PROT_EXEC)
}

/// What smaps says against a mapping, whatever lies behind it.
pub fn unfit_area(area: &Area, populated: &Populated) -> Result<(), Unfit> {
    if area.name.starts_with(b"/[aio]") {
        return Err((
            "is a queue of asynchronous input and output (io_setup(2)), which is not carried yet".into(),
            CLOSE.into(),
        ));
    }
    if area.name.starts_with(b"/secretmem") {
        return Err((
            "is secret memory (memfd_secret(2)), which nobody but the program can read".into(),
            CLOSE.into(),
        ));
    }
    if let Some((_, reason, remedy)) = FLAGS.iter().find(|(code, ..)| area.flags.has(code)) {
        return Err(((*reason).into(), (*remedy).into()));
    }
    if !is_default_key(area) {
        let reason = format!(
            "has memory protection key {} (pkey_mprotect(2)), which cryopod does not carry yet",
            area.protection_key
        );
        return Err((reason, String::new()));
    }
    if is_unreadable(area, populated) {
        return Err(("cannot be read, not even by a tracer".into(), String::new()));
    }
    Ok(())
}

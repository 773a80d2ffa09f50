//! Decisions on made-up facts.

use super::{Described, describe};
use crate::collect::{
    Area, Facts, Found, Mapping, Member, Object, Place, Populated, ProcessFacts, Relative, Sandbox, SharedFacts,
    Status, Surroundings, ThreadFacts,
};
use crate::image::pages::{Extent, Space, Zeros};
use crate::image::state::{
    Backing, Clocks, Credentials, File, Host, MemoryLayout, Scheduling, SharedKind, SharedObject, SigAltStack, Thread,
    TimerTime, VmFlags,
};
use crate::image::state::{ProcessSettings, ThreadSettings};

const PID: i32 = 4127;

fn file(path: &str) -> File {
    File {
        path: path.into(),
        mode: 0o100_755,
        size: 9,
        mtime_ns: 1,
        build_id: None,
        content: None,
    }
}

fn area(start: u64, end: u64, name: &str, flags: &str) -> Area {
    let codes = flags.split_whitespace().map(|code| code.as_bytes().try_into().unwrap());
    Area {
        start,
        end,
        prot: 3,
        name: name.into(),
        flags: VmFlags(codes.collect()),
        ..Area::default()
    }
}

fn mapping(area: Area, object: Object, runs: &[(u64, u64)]) -> Mapping {
    Mapping {
        area,
        object,
        populated: Populated {
            runs: runs.to_vec(),
            ..Populated::default()
        },
        policy: None,
        inherited: Vec::new(),
    }
}

fn kernel_areas() -> Vec<Area> {
    vec![
        area(0x9000, 0xa000, "[vvar]", "rd pf io"),
        area(0xa000, 0xc000, "[vdso]", "rd ex"),
    ]
}

fn thread() -> ThreadFacts {
    let thread = Thread {
        tid: PID,
        name: b"app".to_vec(),
        regsets: Vec::new(),
        sigmask: 0,
        pending: Vec::new(),
        sigaltstack: SigAltStack::default(),
        robust_list: None,
        clear_child_tid: 0,
        rseq: None,
        pdeath_signal: 0,
        credentials: Credentials::default(),
        scheduling: Scheduling::default(),
        settings: ThreadSettings::default(),
        timed_wait: None,
        in_vdso: false,
    };
    ThreadFacts {
        thread,
        status: Status {
            state: 'S',
            ..Status::default()
        },
        is_native: true,
        foreign_namespaces: Vec::new(),
        unshared: Vec::new(),
        is_blocking: false,
        sandbox: Sandbox::None,
        not_carried: None,
    }
}

fn process() -> ProcessFacts {
    let root = Place {
        path: b"/".to_vec(),
        is_there: true,
    };
    ProcessFacts {
        ppid: 1,
        pgid: PID,
        sid: PID,
        terminal: None,
        exit_signal: libc::SIGCHLD,
        umask: 0o22,
        exe: (b"/bin/app".to_vec(), Found::Same(file("/bin/app"))),
        cwd: root.clone(),
        root,
        personality: 0,
        oom_score_adj: 0,
        dumpable: 1,
        coredump_filter: 0x33,
        child_subreaper: false,
        settings: ProcessSettings::default(),
        untold: Vec::new(),
        undos: Ok(Vec::new()),
        has_ldt: false,
        layout: MemoryLayout::default(),
        auxv: Vec::new(),
        signal_actions: Vec::new(),
        pending: Vec::new(),
        stopped_by: None,
        stop_was_told: false,
        interval_timers: [TimerTime::default(); 3],
        posix_timers: Vec::new(),
        rlimits: Vec::new(),
    }
}

/// A process with one thread and the mappings of the kernel, beside those given.
fn facts(mappings: Vec<Mapping>) -> Facts {
    let kernel = kernel_areas()
        .into_iter()
        .map(|area| mapping(area, Object::Kernel, &[]));
    Facts {
        host: Host {
            cryopod_version: String::new(),
            hostname: String::new(),
            kernel_release: String::new(),
            boot_id: String::new(),
            cpu_features: Vec::new(),
            vdso: Vec::new(),
        },
        clocks: Clocks::default(),
        kernel_areas: kernel_areas(),
        members: vec![Member {
            pid: PID,
            process: process(),
            surroundings: Surroundings::default(),
            mappings: mappings.into_iter().chain(kernel).collect(),
            threads: vec![thread()],
        }],
        zombies: Vec::new(),
        leaderless: Vec::new(),
        directories: vec![0],
        descriptors: crate::fd::Looked {
            table_of: vec![0],
            tables: vec![crate::image::state::FdTable::default()],
            ..crate::fd::Looked::default()
        },
        shared_objects: Vec::new(),
        semaphore_sets: Vec::new(),
        message_queues: Vec::new(),
    }
}

fn carried(facts: Facts) -> Described {
    describe(facts).unwrap_or_else(|refused| panic!("refused: {refused}"))
}

fn refused(facts: Facts) -> Vec<String> {
    let refusals = describe(facts).map(drop).expect_err("it is refused").0;
    refusals.iter().map(ToString::to_string).collect()
}

#[test]
fn pages_of_a_file_are_stored_even_if_they_are_zeros() {
    let anonymous = mapping(
        area(0x1000, 0x9000, "[heap]", "rd wr mr"),
        Object::Anonymous,
        &[(0x2000, 0x4000)],
    );
    let app = Object::File(Found::Same(file("/bin/app")));
    let private = mapping(
        area(0x10_0000, 0x10_2000, "/bin/app", "rd mr"),
        app,
        &[(0x10_1000, 0x10_2000)],
    );
    let described = carried(facts(vec![anonymous, private]));
    let space = Space::Process(0);
    let heap = Extent {
        space,
        offset: 0x2000,
        len: 0x2000,
        zeros: Zeros::LeaveOut,
    };
    let page = Extent {
        space,
        offset: 0x10_1000,
        len: 0x1000,
        zeros: Zeros::Keep,
    };
    assert_eq!(described.extents, [heap, page]);
    assert_eq!(described.snapshot.processes[0].memory.vmas[0].resident, 0x2000);
}

#[test]
fn core_dumps_for_root_only_are_told_of() {
    let mut facts = facts(vec![]);
    facts.members[0].process.dumpable = 2;
    assert!(carried(facts).warnings[0].contains("dumpable 2"));
}

#[test]
fn a_file_that_is_mapped_and_executed_is_listed_once() {
    let app = || Object::File(Found::Same(file("/bin/app")));
    let one = mapping(area(0x1000, 0x2000, "/bin/app", "rd mr"), app(), &[]);
    let two = mapping(area(0x2000, 0x3000, "/bin/app", "rd mr"), app(), &[]);
    let described = carried(facts(vec![one, two]));
    assert_eq!(described.snapshot.files.len(), 1);
    assert_eq!(described.snapshot.processes[0].exe, 0);
}

#[test]
fn shared_memory_is_stored_with_its_object() {
    let object = Object::Shared(Ok(0));
    let shared = Area {
        shared: true,
        offset: 0x1000,
        ..area(0x1000, 0x3000, "/dev/zero (deleted)", "rd wr sh mr")
    };
    let mut facts = facts(vec![mapping(shared, object, &[])]);
    let object = SharedObject {
        kind: SharedKind::Anonymous,
        size: 0x4000,
    };
    facts.shared_objects = vec![SharedFacts {
        object,
        outsider: None,
        data: vec![(0x2000, 0x1000)],
    }];
    let described = carried(facts);
    let vma = &described.snapshot.processes[0].memory.vmas[0];
    assert_eq!(
        (&vma.backing, vma.shared),
        (
            &Backing::Shared {
                object: 0,
                offset: 0x1000
            },
            true
        )
    );
    let data = Extent {
        space: Space::Shared(0),
        offset: 0x2000,
        len: 0x1000,
        zeros: Zeros::LeaveOut,
    };
    assert_eq!(described.extents, [data]);
}

#[test]
fn droppable_memory_is_carried_empty() {
    let random = mapping(
        area(0x1000, 0x3000, "", "rd wr mr dp"),
        Object::Anonymous,
        &[(0x1000, 0x2000)],
    );
    let described = carried(facts(vec![random]));
    assert_eq!(described.extents, []);
    assert_eq!(described.snapshot.processes[0].memory.vmas.len(), 3);
}

#[test]
fn all_refusals_come_at_once() {
    let device = mapping(area(0x1000, 0x2000, "/dev/dri/card0", "rd io pf"), Object::Other, &[]);
    let library = mapping(
        area(0x2000, 0x3000, "/lib/x.so (deleted)", "rd mr"),
        Object::File(Found::Gone),
        &[],
    );
    let mut facts = facts(vec![device, library]);
    facts.members[0].surroundings.children = vec![Relative {
        pid: 4130,
        name: "helper".into(),
        is_zombie: false,
    }];
    facts.members[0].surroundings.foreign_namespaces = vec!["net".into()];
    facts.members[0].threads[0].foreign_namespaces = vec!["net".into()];
    facts.members[0].threads[0].sandbox = Sandbox::Strict;
    facts.members[0].threads[0].not_carried = Some("may use I/O ports (ioperm(2))");
    let refusals = refused(facts);
    let told = |words: &str| refusals.iter().filter(|refusal| refusal.contains(words)).count();
    for words in [
        "child 4130 (helper)",
        "another net namespace",
        "seccomp",
        "ioperm",
        "/dev/dri/card0 is memory of a device",
    ] {
        assert_eq!(told(words), 1, "{words}: {refusals:?}");
    }
    assert_eq!(told("/lib/x.so (deleted) was deleted"), 1, "{refusals:?}");
    assert_eq!(refusals.len(), 6);
}

#[test]
fn a_vdso_in_another_place_is_fine_but_not_in_another_shape() {
    let mut moved = facts(Vec::new());
    for mapping in &mut moved.members[0].mappings {
        mapping.area.start += 0x7000_0000;
        mapping.area.end += 0x7000_0000;
    }
    carried(moved);
    let mut torn = facts(Vec::new());
    torn.members[0].mappings.remove(0);
    assert!(refused(torn)[0].contains("[vdso] is not mapped as the kernel maps it"));
}

#[test]
fn an_executable_that_was_replaced_is_refused() {
    let mut facts = facts(Vec::new());
    facts.members[0].process.exe.1 = Found::Replaced;
    assert!(refused(facts)[0].contains("executable /bin/app was deleted, and another file has its name"));
}

#[test]
fn a_protection_key_is_refused_unless_the_kernel_took_it_for_execute_only_memory() {
    let keyed = |prot, protection_key| {
        let area = Area {
            prot,
            protection_key,
            ..area(0x1000, 0x2000, "", "rd mr mw me")
        };
        facts(vec![mapping(area, Object::Anonymous, &[])])
    };
    carried(keyed(4, 1));
    for (prot, key) in [(4, 2), (3, 1)] {
        assert!(refused(keyed(prot, key))[0].contains(&format!("memory protection key {key}")));
    }
}

#[test]
fn a_secret_that_nobody_can_read_is_refused() {
    let unreadable = mapping(area(0x1000, 0x2000, "", "wr"), Object::Anonymous, &[(0x1000, 0x2000)]);
    assert!(refused(facts(vec![unreadable]))[0].contains("cannot be read"));
}

//! Images with right checksums and a state that lies: each ends in an error or a refusal, soon, and nothing of the program runs.

mod common;

use common::rewrite::try_rewrite;
use common::{CRYOPOD, PATIENCE, Program, build, can_thaw, exists, scratch};
use cryopod::image::state::{Backing, Process, RegSet, Rlimit, SigInfo, Snapshot};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Lie = (&'static str, fn(&mut Snapshot));

fn process(snapshot: &mut Snapshot) -> &mut Process {
    &mut snapshot.processes[0]
}

/// The last register set of the last thread: with several threads the failure comes when all of them are there.
fn extended(snapshot: &mut Snapshot) -> &mut RegSet {
    let thread = process(snapshot).threads.last_mut().expect("it has threads");
    thread
        .regsets
        .iter_mut()
        .find(|set| set.note == 0x202)
        .expect("it has an extended state")
}

fn pend(signal: i32) -> SigInfo {
    let mut bytes = vec![0; 128];
    bytes[..4].copy_from_slice(&signal.to_ne_bytes());
    SigInfo(bytes)
}

const LIES: &[Lie] = &[
    ("a mapping below mmap_min_addr, for a user who may not", |s| {
        process(s).memory.vmas[0].start = 0;
        process(s).memory.vmas[0].backing = Backing::Shared { object: 77, offset: 0 };
    }),
    ("a mapping in the kernel's half", |s| {
        let vma = process(s).memory.vmas.last_mut().expect("it has mappings");
        (vma.start, vma.end) = (0xffff_8000_0000_0000, 0xffff_8000_0000_1000);
    }),
    ("a kernel mapping at the very end", |s| {
        let mut vma = process(s).memory.vmas.last().expect("it has mappings").clone();
        vma.backing = Backing::Kernel("[vsyscall]".to_owned());
        (vma.start, vma.end, vma.resident) = (0xffff_ffff_ffff_e000, 0xffff_ffff_ffff_f000, 0);
        process(s).memory.vmas.push(vma);
    }),
    ("a heap without end", |s| {
        let layout = &mut process(s).memory.layout;
        (layout.start_brk, layout.brk) = (0, u64::MAX);
    }),
    ("a layout upside down", |s| {
        let layout = &mut process(s).memory.layout;
        (layout.start_code, layout.end_code, layout.arg_start) = (u64::MAX, 1, u64::MAX);
    }),
    ("an auxiliary vector longer than any", |s| {
        process(s).memory.auxv = vec![1; 60 << 10]
    }),
    ("a [vdso] somewhere else", |s| {
        for vma in &mut process(s).memory.vmas {
            if vma.backing == Backing::Kernel("[vdso]".to_owned()) {
                (vma.start, vma.end) = (vma.start - 0x1000, vma.end - 0x1000);
            }
        }
    }),
    ("a [vdso] of many", |s| {
        process(s).memory.vmas[0].backing = Backing::Kernel("[vdso]".to_owned())
    }),
    ("shared objects larger than everything", |s| {
        let object = cryopod::image::state::SharedObject {
            kind: cryopod::image::state::SharedKind::Anonymous,
            size: i64::MAX as u64 & !0xffff,
        };
        s.shared_objects.extend([object.clone(), object.clone(), object]);
    }),
    ("pending signal 0", |s| process(s).pending.push(pend(0))),
    ("pending signal 65", |s| process(s).pending.push(pend(65))),
    ("pending SIGKILL", |s| process(s).pending.push(pend(9))),
    ("pending SIGKILL of a thread", |s| {
        process(s).threads[1].pending.push(pend(9))
    }),
    ("a negative pending signal", |s| {
        process(s).threads[0].pending.push(pend(i32::MIN))
    }),
    ("an action for SIGKILL", |s| {
        process(s).signal_actions.retain(|action| action.signal != 9);
        process(s).signal_actions.push(cryopod::image::state::SignalAction {
            signal: 9,
            handler: 0x1000,
            ..Default::default()
        });
    }),
    ("a timer of an unknown clock", |s| {
        process(s).posix_timers.push(cryopod::image::state::PosixTimer {
            id: i32::MAX,
            clock: 12345,
            notify: 77,
            signal: -5,
            value: 0,
            tid: 0,
            time: Default::default(),
            overrun: 0,
        });
    }),
    ("an empty extended state", |s| extended(s).data.clear()),
    ("an extended state that is too short", |s| {
        extended(s).data.truncate(100)
    }),
    ("an extended state of odd length", |s| extended(s).data.extend([0; 3])),
    ("an extended state with a wrong header", |s| {
        extended(s).data[520..576].fill(0xff)
    }),
    ("unknown features in the extended state", |s| {
        extended(s).data[512..520].fill(0xff)
    }),
    ("an unknown register set", |s| {
        process(s).threads[1].regsets.push(RegSet {
            note: 0x7777,
            data: vec![0; 64],
        });
    }),
    ("general registers of another CPU", |s| {
        process(s).threads[1].regsets[0].data.truncate(72)
    }),
    ("a soft limit above the hard one", |s| {
        for limit in &mut process(s).rlimits {
            (limit.soft, limit.hard) = (u64::MAX, 0);
        }
    }),
    ("a limit that does not exist", |s| {
        process(s).rlimits.push(Rlimit {
            resource: 60,
            soft: 1,
            hard: 1,
        });
    }),
    ("a descriptor number above fs.nr_open", |s| {
        let entry = s.fd_tables[0].entries.last_mut().expect("it has descriptors");
        entry.fd = (1 << 24) - 1;
    }),
    ("uid -1", |s| process(s).threads[1].credentials.uids = [u32::MAX; 4]),
    ("capabilities that nobody has", |s| {
        process(s).threads[1].credentials.effective = u64::MAX
    }),
    ("rseq at the end of the address space", |s| {
        let thread = &mut process(s).threads[1];
        thread.rseq = Some(cryopod::image::state::Rseq {
            addr: u64::MAX - 7,
            size: 32,
            flags: 0,
            signature: 0,
            critical_section: 1,
        });
    }),
    ("a robust list of another size", |s| {
        process(s).threads[1].robust_list = Some(cryopod::image::state::RobustList { head: 1, len: 7 });
    }),
    ("an alternate stack that is no stack", |s| {
        process(s).threads[1].sigaltstack = cryopod::image::state::SigAltStack {
            sp: u64::MAX,
            flags: 77,
            size: 1,
        };
    }),
    ("a CPU mask without CPUs", |s| {
        process(s).threads[1].scheduling.affinity = vec![0; 8]
    }),
    ("a policy that does not exist", |s| {
        process(s).threads[1].scheduling.policy = 99
    }),
    ("clocks at the end of time", |s| {
        s.host.boot_id = "another".to_owned();
        (s.clocks.monotonic_ns, s.clocks.boottime_ns) = (i64::MAX, i64::MIN);
    }),
    ("clock offsets at the end of time", |s| {
        (s.clocks.monotonic_offset_ns, s.clocks.boottime_offset_ns) = (i64::MIN, i64::MAX);
    }),
    ("a membarrier command that does not exist", |s| {
        process(s).settings.membarrier = 1 << 31
    }),
    ("a memory policy that does not exist", |s| {
        process(s).threads[1].settings.memory_policy = Some(cryopod::image::state::MemoryPolicy {
            mode: 77,
            nodes: vec![1],
        });
    }),
    ("a dispatch that does not exist", |s| {
        process(s).threads[1].settings.dispatch = Some(cryopod::image::state::Dispatch {
            mode: 9,
            selector: 1,
            offset: 2,
            len: 3,
        });
    }),
    ("a filter that is no program", |s| {
        process(s).settings.filters = vec![cryopod::image::state::Filter {
            flags: 0,
            instructions: vec![0xff; 16],
        }];
        process(s).threads[1].settings.filters = vec![0];
    }),
    ("dumpable 9", |s| process(s).dumpable = 9),
    ("an oom_score_adj of its own", |s| process(s).oom_score_adj = i32::MIN),
    ("a parent-death signal 99", |s| process(s).threads[1].pdeath_signal = 99),
    ("a path with a zero", |s| process(s).cwd = b"/tmp\0/x".to_vec()),
    ("an executable that is none", |s| process(s).exe = u32::MAX),
    ("an executable whose content is nowhere", |s| {
        s.files[0].content = Some(7)
    }),
    ("an executable without content", |s| {
        s.files.iter_mut().for_each(|file| {
            file.path = b"/nowhere".to_vec();
            file.content = Some(s.shared_objects.len() as u32);
        });
        s.shared_objects.push(cryopod::image::state::SharedObject {
            kind: cryopod::image::state::SharedKind::Copy {
                name: b"/nowhere".to_vec(),
                mode: 0o100644,
            },
            size: 1 << 40,
        });
    }),
    ("a thread without a name that ends", |s| {
        process(s).threads[1].name = vec![b'x'; 4000]
    }),
    ("content where nothing is mapped", |s| {
        let writable = |vma: &cryopod::image::state::Vma| vma.resident > 0 && vma.prot & 2 != 0;
        process(s).memory.vmas.retain(|vma| !writable(vma));
    }),
];

/// Ends a thaw that hangs, and says that it did.
fn thaw(image: &Path) -> (Option<i32>, String) {
    let mut child = Command::new(CRYOPOD)
        .arg("thaw")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cryopod can be run");
    let deadline = Instant::now() + PATIENCE / 6;
    while child.try_wait().expect("it is our child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
            return (None, "it hung".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("it has ended");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn a_state_that_lies_is_an_error_and_leaves_nothing() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut program = Program::start(build::fixture("threads/masks.c").current_dir(dir.path()));
    program.wait_for(|line| line == "READY");
    let (pid, image, lying) = (program.pid, dir.path().join("app.img"), dir.path().join("lying.img"));
    program.freeze(&image);
    let mut wrong = Vec::new();
    for (what, lie) in LIES {
        fs::copy(&image, &lying).expect("there is room");
        // The writer checks as the reader does: what it sees through comes to no image.
        if try_rewrite(&lying, lie).is_err() {
            continue;
        }
        let (code, said) = thaw(&lying);
        if !matches!(code, Some(125 | 126)) || said.contains("panicked") || said.is_empty() {
            wrong.push(format!("{what}: {code:?}: {said}"));
        }
        if exists(pid) {
            wrong.push(format!("{what}: left a process behind"));
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
            common::wait_until("it is gone", || !exists(pid));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The image itself is a good one.
    Program::thaw(&image, pid).signal_program(nix::sys::signal::Signal::SIGKILL);
}

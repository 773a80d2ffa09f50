//! A small snapshot with one of everything, and memory to go with it.
#![allow(dead_code)]

use cryopod::image::pages::{Extent, PageSource, Space, Zeros};

use cryopod::image::state::*;
use cryopod::image::write::{Compression, Options, Sink, Written, write_image};
use std::io;
use std::sync::atomic::AtomicBool;

pub const PAGE: u64 = 4096;
pub const X86_64: u16 = 62;
pub const HEAP: u64 = 0x5555_0000_0000;
pub const LIBRARY: u64 = 0x6f00_0000_0000;

/// One process of two threads, with `heap` and `object` pages of private and of shared memory.
pub fn snapshot(heap: u64, object: u64) -> Snapshot {
    Snapshot {
        host: Host {
            cryopod_version: "0.1.0".into(),
            hostname: "host".into(),
            kernel_release: "6.18".into(),
            boot_id: "5fbd3d34-6a5c-4a0c-a0bb-1b3d9d5f1f0f".into(),
            vdso: vec![7],
            cpu_features: vec!["sse2".into(), "avx2".into()],
        },
        clocks: Clocks {
            realtime_ns: 1_700_000_000_000_000_000,
            monotonic_ns: 5,
            monotonic_raw_ns: 4,
            ..Clocks::default()
        },
        processes: vec![process(heap, object)],
        zombies: vec![Zombie {
            pid: 4200,
            ppid: 4127,
            pgid: 4127,
            sid: 4127,
            exit_signal: 17,
            status: 3 << 8,
            uid: 0,
            name: b"ended".to_vec(),
        }],
        leaderless: vec![4300],
        fd_tables: vec![FdTable {
            entries: vec![entry(0, 0), entry(1, 0), entry(7, 1)],
        }],
        descriptions: vec![
            description(1, "/dev/pts/0"),
            description(9999, "anon_inode:[of-the-future]"),
        ],
        ptys: vec![Pty {
            number: 3,
            line: Line {
                input: 0x500,
                output: 5,
                control: 0xbf,
                local: 0x8a3b,
                characters: vec![3; 19],
                input_speed: 38400,
                output_speed: 38400,
            },
            size: [24, 80, 0, 0],
            uid: 1000,
            gid: 5,
            mode: 0o20620,
            packet: true,
            exclusive: false,
            locked: false,
            waiting: Waiting {
                input: vec![Input {
                    bytes: b"half a li".to_vec(),
                    end: End::Open,
                }],
                output: b"$ ".to_vec(),
                stopped: Stopped::No,
            },
        }],
        shared_objects: vec![SharedObject {
            kind: SharedKind::Memfd {
                name: b"shm".to_vec(),
                seals: 1,
                mode: 0o777,
            },
            size: object * PAGE,
        }],
        semaphore_sets: vec![SemaphoreSet {
            ipc: ipc(3, 0x5300_0001),
            semaphores: vec![Semaphore { value: 2, user: 100 }, Semaphore { value: 0, user: 0 }],
        }],
        message_queues: vec![MessageQueue {
            ipc: ipc(4, 0),
            capacity: 16384,
            sender: 100,
            receiver: 0,
            messages: vec![Message {
                kind: 7,
                text: b"a message".to_vec(),
            }],
        }],
        files: vec![File {
            path: b"/usr/bin/app".to_vec(),
            mode: 0o100755,
            size: 1 << 20,
            mtime_ns: 1,
            build_id: Some(vec![1, 2]),
            content: None,
        }],
    }
}

fn ipc(id: i32, key: i32) -> Ipc {
    Ipc {
        id,
        key,
        mode: 0o600,
        ..Ipc::default()
    }
}

fn entry(fd: i32, description: u32) -> FdEntry {
    FdEntry {
        fd,
        cloexec: fd > 2,
        description,
    }
}

fn description(kind: u16, label: &str) -> Description {
    Description {
        kind,
        label: label.into(),
        status_flags: 2,
        io_signals: None,
        payload: vec![1, 2, 3],
    }
}

fn process(heap: u64, object: u64) -> Process {
    Process {
        pid: 4127,
        ppid: 1,
        pgid: 4127,
        sid: 4127,
        terminal: Some(ControllingTerminal {
            pty: Some(0),
            foreground: 4127,
        }),
        exit_signal: 17,
        exe: 0,
        cwd: b"/tmp".to_vec(),
        root: b"/".to_vec(),
        umask: 0o22,
        personality: 0,
        oom_score_adj: 0,
        dumpable: 1,
        coredump_filter: 0x33,
        child_subreaper: false,
        settings: ProcessSettings::default(),
        memory: Memory {
            vmas: vmas(heap, object),
            layout: MemoryLayout {
                start_brk: HEAP,
                ..MemoryLayout::default()
            },
            auxv: vec![0; 32],
        },
        fd_table: 0,
        directories: 0,
        signal_actions: vec![SignalAction {
            signal: 2,
            handler: 0x40_1000,
            flags: 0x0400_0000,
            restorer: 0x40_2000,
            mask: 0,
        }],
        pending: vec![SigInfo([15; 1].into_iter().chain([0; 127]).collect())],
        stopped_by: None,
        stop_was_told: false,
        interval_timers: [
            TimerTime {
                left_ns: 5,
                interval_ns: 10,
            },
            TimerTime::default(),
            TimerTime::default(),
        ],
        posix_timers: vec![PosixTimer {
            id: 0,
            clock: 1,
            notify: 4,
            signal: 34,
            value: 1,
            tid: 4128,
            time: TimerTime {
                left_ns: 1,
                interval_ns: 0,
            },
            overrun: 0,
        }],
        rlimits: vec![Rlimit {
            resource: 7,
            soft: 1024,
            hard: u64::MAX,
        }],
        undos: vec![Undo {
            set: 3,
            number: 1,
            adjustment: -1,
        }],
        threads: vec![thread(4127, "app"), thread(4128, "worker")],
    }
}

fn vmas(heap: u64, object: u64) -> Vec<Vma> {
    let vma = |start: u64, len: u64, backing: Backing| Vma {
        start,
        end: start + len,
        prot: 3,
        shared: matches!(backing, Backing::Shared { .. }),
        backing,
        flags: VmFlags(vec![*b"rd", *b"wr"]),
        name: vec![],
        guards: vec![],
        huge: vec![],
        policy: None,
        inherited: Vec::new(),
        resident: 0,
    };
    vec![
        vma(HEAP, heap * PAGE, Backing::Anonymous),
        vma(LIBRARY, 4 * PAGE, Backing::File { file: 0, offset: 0 }),
        vma(LIBRARY + 4 * PAGE, 16 << 40, Backing::Anonymous),
        vma(
            0x7fff_0000_0000,
            object * PAGE,
            Backing::Shared { object: 0, offset: 0 },
        ),
        vma(0x7fff_f000_0000, 2 * PAGE, Backing::Kernel("[vdso]".into())),
    ]
}

fn thread(tid: i32, name: &str) -> Thread {
    Thread {
        tid,
        name: name.into(),
        regsets: vec![
            RegSet {
                note: 1,
                data: (0..216).map(|i| i as u8).collect(),
            },
            RegSet {
                note: 0x202,
                data: vec![0; 832],
            },
        ],
        sigmask: 0x10000,
        pending: vec![],
        sigaltstack: SigAltStack {
            sp: 0x1000,
            flags: 0,
            size: 8192,
        },
        robust_list: Some(RobustList { head: 0x7000, len: 24 }),
        clear_child_tid: 0x8000,
        rseq: Some(Rseq {
            addr: 0x9000,
            size: 32,
            flags: 0,
            signature: 0x5305_3053,
            critical_section: 0,
        }),
        pdeath_signal: 0,
        credentials: Credentials {
            uids: [1000; 4],
            gids: [1000; 4],
            groups: vec![27],
            ..Credentials::default()
        },
        scheduling: Scheduling {
            affinity: vec![3],
            ..Scheduling::default()
        },
        settings: ThreadSettings::default(),
        timed_wait: Some(TimedWait {
            number: 230,
            left_ns: 17,
        }),
        in_vdso: false,
    }
}

/// What of [`snapshot`] is stored.
pub fn extents(heap: u64, object: u64) -> Vec<Extent> {
    let extent = |space, offset, pages: u64, zeros| Extent {
        space,
        offset,
        len: pages * PAGE,
        zeros,
    };
    vec![
        extent(Space::Process(0), HEAP, heap, Zeros::LeaveOut),
        extent(Space::Process(0), LIBRARY + PAGE, 2, Zeros::Keep),
        extent(Space::Shared(0), 0, object, Zeros::LeaveOut),
    ]
}

/// Memory whose every page tells where it is. Each third page is zeros, each fifth cannot be compressed.
pub struct Pattern;

impl PageSource for Pattern {
    fn read(&self, space: Space, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (i, page) in buffer.chunks_mut(PAGE as usize).enumerate() {
            fill(space, offset / PAGE + i as u64, page);
        }
        Ok(())
    }
}

/// The content of one page of [`Pattern`].
pub fn fill(space: Space, page_number: u64, page: &mut [u8]) {
    page.fill(0);
    if page_number.is_multiple_of(3) {
        return;
    }
    let mut state = page_number ^ if matches!(space, Space::Shared(_)) { 1 << 63 } else { 0 };
    page[..8].copy_from_slice(&state.to_le_bytes());
    if page_number.is_multiple_of(5) {
        for word in page.chunks_exact_mut(8) {
            // splitmix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
    }
}

/// An image of the sample.
pub fn image(heap: u64, object: u64, compression: Compression, jobs: usize) -> (Vec<u8>, Written) {
    let mut bytes = Vec::new();
    let cancelled = AtomicBool::new(false);
    let options = Options {
        machine: X86_64,
        page_size: PAGE as u32,
        compression,
        jobs,
        progress: &|_| (),
        cancelled: &cancelled,
    };
    let written = write_image(
        Sink::Stream(&mut bytes),
        &snapshot(heap, object),
        &extents(heap, object),
        &Pattern,
        &options,
    )
    .expect("the sample can be written");
    (bytes, written)
}

//! States that cannot be, one change to the sample each.

use super::{Forge, assert_damaged, read};
use crate::image::codec::encode_state;
use crate::image::header::{self, Header};
use crate::image::sample::{self, HEAP, LIBRARY, PAGE};
use crate::image::state::{Backing, FdEntry, RegSet, SharedObject, SigInfo, Snapshot};
use crate::image::state::{ControlGroup, Filter, MemoryPolicy};
use crate::image::{Error, record::kind};

#[test]
fn a_state_that_unpacks_to_more_than_is_plausible_is_refused() {
    for (claimed, raw) in [
        (1u64 << 40, 16usize),
        (64 << 20, 64 << 20),
        (1 << 20, 2 << 20),
        (2 << 20, 1 << 20),
    ] {
        let body = zstd::bulk::compress(&vec![0xff; raw], 1).unwrap();
        let head = [&1u32.to_le_bytes()[..], &claimed.to_le_bytes()].concat();
        let mut forge = Forge::new(Header::new(sample::X86_64, PAGE as u32));
        forge.record(kind::STATE, &head, &body);
        assert!(
            matches!(read(&forge.finish()), Err(Error::Damaged(_))),
            "{claimed} {raw}"
        );
    }
}

#[test]
fn a_state_that_claims_giant_lists_is_refused() {
    let raw = postcard::to_stdvec(&sample::snapshot(3, 2)).unwrap();
    for at in 0..raw.len() {
        // A varint of 2^63 in place of whatever is there: a length, at most places.
        let giant = [
            &raw[..at],
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
            &raw[at + 1..],
        ]
        .concat();
        let head = [&0u32.to_le_bytes()[..], &(giant.len() as u64).to_le_bytes()].concat();
        let mut forge = Forge::new(Header::new(sample::X86_64, PAGE as u32));
        forge.record(kind::STATE, &head, &giant);
        // Some such numbers are as good as any; what counts is that none is taken for a length.
        let _ = read(&forge.finish());
    }
}

/// A change to a snapshot, and what the refusal of it must say.
type Forgery = (fn(&mut Snapshot), &'static str);

#[rustfmt::skip]
const FORGERIES: &[Forgery] = &[
    (|s| s.processes.clear(), "it has no process"),
    (|s| s.semaphore_sets[0].ipc.id = -1, "there is none of such a number"),
    (|s| s.semaphore_sets[0].semaphores.clear(), "it has 0 semaphores"),
    (|s| s.semaphore_sets[0].semaphores[0].value = 40000, "one has the value 40000"),
    (|s| s.semaphore_sets[0].semaphores[0].user = -3, "pid -3 used it"),
    (|s| s.semaphore_sets.push(s.semaphore_sets[0].clone()), "is there twice"),
    (|s| s.processes[0].undos[0].set = 9, "semaphore 1 of set 9"),
    (|s| s.processes[0].undos[0].number = 2, "semaphore 2 of set 3"),
    (|s| s.processes[0].undos[0].adjustment = -32769, "it adds -32769"),
    (|s| s.message_queues.push(s.message_queues[0].clone()), "is there twice"),
    (|s| s.message_queues[0].messages[0].kind = 0, "a message has no type"),
    (|s| s.message_queues[0].receiver = 1 << 30, "used it"),
    (|s| s.message_queues[0].capacity = 1 << 40, "it holds"),
    (|s| s.processes[0].exe = 1, "its executable is file 1"),
    (|s| s.processes[0].fd_table = 1, "its descriptors are table 1"),
    (|s| s.processes[0].pid = -1, "its pid is -1"),
    (|s| s.processes[0].threads.clear(), "its first thread is not its leader"),
    (|s| s.processes[0].threads.swap(0, 1), "its first thread is not its leader"),
    (|s| s.processes[0].threads[1].tid = 4127, "two threads have the tid 4127"),
    (|s| s.processes[0].threads[1].tid = 0, "no thread has such a tid"),
    (|s| s.processes[0].threads[1].name = vec![b'x'; 16], "its name is longer"),
    (|s| s.processes[0].threads[1].regsets.clear(), "its general registers are missing"),
    (|s| s.processes[0].threads[1].regsets[1].note = 1, "register set 0x1 is there twice"),
    (|s| s.processes[0].threads[1].regsets.push(RegSet { note: 9, data: vec![0; 1 << 20] }), "register set 0x9 is giant"),
    (|s| s.processes[0].threads[1].pending.push(SigInfo(vec![0; 127])), "takes 127 bytes"),
    (|s| s.processes[0].signal_actions[0].signal = 65, "it handles signal 65"),
    (|s| s.processes[0].posix_timers[0].tid = 1, "signals thread 1"),
    (|s| s.processes[0].dumpable = 9, "its dumpable attribute is 9"),
    (|s| s.processes[0].cwd = b"/a\0b".to_vec(), "the name of its directory has a zero"),
    (|s| s.processes[0].memory.vmas.swap(0, 1), "is out of order"),
    (|s| s.processes[0].memory.vmas[0].end = LIBRARY + PAGE, "is out of order"),
    (|s| s.processes[0].memory.vmas[0].start += 1, "is not made of whole pages"),
    (|s| s.processes[0].memory.vmas[0].end = HEAP, "is empty"),
    (|s| s.processes[0].memory.vmas[0].resident = 1 << 40, "holds more than it is long"),
    (|s| s.processes[0].memory.vmas[0].prot = 8, "has the protection 0x8"),
    (|s| s.processes[0].memory.vmas[0].shared = true, "is shared and belongs to nothing"),
    (|s| s.processes[0].memory.vmas[0].guards = vec![(HEAP, HEAP + 4 * PAGE)], "has a guard at"),
    (|s| s.processes[0].memory.vmas[0].huge = vec![(HEAP - PAGE, HEAP + PAGE)], "has a huge page at"),
    (|s| s.processes[0].memory.vmas[0].inherited = vec![(HEAP, HEAP + 4 * PAGE)], "has inherited pages at"),
    (|s| s.processes[0].memory.vmas[0].inherited = vec![(HEAP, HEAP + PAGE)], "inherits what its parent has not"),
    (|s| (s.processes[0].memory.vmas[0].resident, s.processes[0].memory.vmas[0].huge) = (0, vec![(HEAP, HEAP + PAGE)]), "has more huge pages than pages"),
    (|s| s.processes[0].threads[1].settings.filters.push(0), "has a seccomp filter that is not there"),
    (|s| s.processes[0].settings.filters.push(Filter { flags: 0, instructions: vec![0; 9] }), "it has a seccomp filter of 9 bytes"),
    (|s| s.processes[0].threads[0].settings.control_groups = vec![ControlGroup { hierarchy: "pids".into(), path: b"a".to_vec() }], "without a path"),
    (|s| s.processes[0].memory.vmas[0].policy = Some(MemoryPolicy { mode: 2, nodes: vec![1; 129] }), "has a memory policy of more"),
    (|s| s.processes[0].threads[1].settings.memory_policy = Some(MemoryPolicy { mode: 2, nodes: vec![1; 129] }), "has a memory policy of more"),
    (|s| s.processes[0].memory.vmas[4].end = 1 << 47, "lies where no program can have memory"),
    (|s| s.processes[0].memory.vmas[1].backing = Backing::File { file: 1, offset: 0 }, "is of file 1"),
    (|s| s.processes[0].memory.vmas[1].backing = Backing::File { file: 0, offset: 1 }, "begins within a page"),
    (|s| s.processes[0].memory.vmas[1].backing = Backing::File { file: 0, offset: !0xfff }, "lies beyond any file"),
    (|s| s.processes[0].memory.vmas[3].backing = Backing::Shared { object: 9, offset: 0 }, "is of shared object 9"),
    (|s| s.fd_tables[0].entries[0].fd = -1, "fd -1 is out of order"),
    (|s| s.fd_tables[0].entries[1].fd = 0, "fd 0 is out of order"),
    (|s| s.fd_tables[0].entries[2].fd = i32::MAX, "is out of order"),
    (|s| s.fd_tables[0].entries.push(FdEntry { fd: 8, cloexec: true, description: 2 }), "refers to description 2"),
    (|s| s.shared_objects.push(SharedObject { size: u64::MAX, ..s.shared_objects[0].clone() }), "bytes long"),
    (|s| s.files[0].content = Some(0), "the content of file 0 is no copy"),
    (|s| s.host.cpu_features.push("\x1b[2J".into()), "a feature of the CPU has no name"),
    (|s| s.files[0].path = vec![b'/'; 1 << 20], "a file has a giant name"),
];

#[test]
fn a_state_that_cannot_be_is_refused() {
    for (forge_state, reason) in FORGERIES {
        let mut snapshot = sample::snapshot(3, 2);
        snapshot.processes[0].posix_timers[0].tid = 0; // so that threads can be changed alone
        forge_state(&mut snapshot);
        let (head, body) = encode_state(&snapshot, 1).unwrap();
        let mut forge = Forge::new(Header::new(sample::X86_64, PAGE as u32));
        forge.record(kind::STATE, &head, &body);
        assert_damaged(&forge.finish(), reason);
    }
}

#[test]
fn an_image_of_any_machine_is_read() {
    let (head, body) = encode_state(&sample::snapshot(3, 2), 1).unwrap();
    for machine in [62, 183, 0xfeed] {
        let mut forge = Forge::new(Header::new(machine, PAGE as u32));
        assert_eq!(forge.image.len(), header::LEN);
        forge.record(kind::STATE, &head, &body);
        read(&forge.finish()).unwrap();
    }
}

//! Every fixture goes on after a freeze and a thaw, after two of each, and after a freeze that leaves it running.

mod common;
use common::roundtrip;

mod memory {
    use super::*;

    roundtrip!(advice, "memory/advice.c");
    roundtrip!(anon, "memory/anon.c");
    roundtrip!(code, "memory/code.c");
    roundtrip!(dev_zero, "memory/dev_zero.c");
    roundtrip!(heap, "memory/heap.c");
    roundtrip!(huge, "memory/huge.c");
    roundtrip!(many_mappings, "memory/many_mappings.c");
    roundtrip!(marked, "memory/marked.c");
    roundtrip!(memfd, "memory/memfd.c");
    roundtrip!(memfd_without_descriptor, "memory/memfd_without_descriptor.c");
    roundtrip!(policy, "memory/policy.c");
    roundtrip!(private_file, "memory/private_file.c");
    roundtrip!(deleted_files, "memory/deleted_files.c");
    roundtrip!(locked, "memory/locked.c");
    roundtrip!(protections, "memory/protections.c");
    roundtrip!(relro, "memory/relro.c");
    roundtrip!(remapped, "memory/remapped.c");
    roundtrip!(same_maps, "memory/same_maps.c");
    roundtrip!(sealed, "memory/sealed.c");
    roundtrip!(shared_anon, "memory/shared_anon.c");
    roundtrip!(shared_file, "memory/shared_file.c");
    roundtrip!(sparse, "memory/sparse.c");
    roundtrip!(stack, "memory/stack.c");
    roundtrip!(static_executable, "memory/static.c");
}

mod threads {
    use super::*;

    roundtrip!(alternate_stack, "threads/alternate_stack.c");
    roundtrip!(contended, "threads/contended.c");
    roundtrip!(dispatch, "threads/dispatch.c");
    roundtrip!(five_hundred, "threads/five_hundred.c");
    roundtrip!(held, "threads/held.c");
    roundtrip!(hundred, "threads/hundred.c");
    roundtrip!(in_vdso, "threads/in_vdso.c");
    roundtrip!(in_vdso_handler, "threads/in_vdso_handler.c");
    roundtrip!(join, "threads/join.c");
    roundtrip!(locks, "threads/locks.c");
    roundtrip!(masks, "threads/masks.c");
    roundtrip!(membarrier, "threads/membarrier.c");
    roundtrip!(registers, "threads/registers.c");
    roundtrip!(registers_arm, "threads/registers_arm.c");
    roundtrip!(robust, "threads/robust.c");
    roundtrip!(rseq, "threads/rseq.c");
    roundtrip!(scheduling, "threads/scheduling.c");
    roundtrip!(seccomp, "threads/seccomp.c");
    roundtrip!(seccomp_shared, "threads/seccomp_shared.c");
    roundtrip!(wrapped, "threads/wrapped.c");
}

mod tree {
    use super::*;

    roundtrip!(deleted_shared, "tree/deleted_shared.c");
    roundtrip!(posix_queues, "tree/posix_queues.c");
    roundtrip!(pty_sessions, "tree/pty_sessions.c");
    roundtrip!(sessions, "tree/sessions.c");
    roundtrip!(sharers, "tree/sharers.c");
    roundtrip!(sharing, "tree/sharing.c");
    roundtrip!(system_v_memory, "tree/system_v_memory.c");
    roundtrip!(system_v_queues, "tree/system_v_queues.c");
    roundtrip!(system_v_semaphores, "tree/system_v_semaphores.c");
    roundtrip!(waiting, "tree/waiting.c");
    roundtrip!(inherited, "tree/inherited.c");
    roundtrip!(stopped, "tree/stopped.c");
    roundtrip!(wide_and_deep, "tree/wide_and_deep.c");
    roundtrip!(worker_pool, "tree/worker_pool.c");
    roundtrip!(zombies, "tree/zombies.c");
}

mod blocked {
    use super::*;

    roundtrip!(clock_nanosleep_absolute, "blocked/clock_nanosleep_absolute.c");
    roundtrip!(clock_nanosleep_relative, "blocked/clock_nanosleep_relative.c");
    roundtrip!(epoll_timeout, "blocked/epoll_timeout.c");
    roundtrip!(epoll_wait, "blocked/epoll_wait.c");
    roundtrip!(epoll_wait_over_frame, "blocked/epoll_wait_over_frame.c");
    roundtrip!(futex, "blocked/futex.c");
    roundtrip!(futex_timeout, "blocked/futex_timeout.c");
    roundtrip!(handler_restarts, "blocked/handler_restarts.c");
    roundtrip!(nanosleep, "blocked/nanosleep.c");
    roundtrip!(pause, "blocked/pause.c");
    roundtrip!(poll_event, "blocked/poll_event.c");
    roundtrip!(poll_timeout, "blocked/poll_timeout.c");
    roundtrip!(read_pipe, "blocked/read_pipe.c");
    roundtrip!(select_timeout, "blocked/select_timeout.c");
    roundtrip!(sigsuspend, "blocked/sigsuspend.c");
    roundtrip!(sigtimedwait, "blocked/sigtimedwait.c");
    roundtrip!(write_pipe, "blocked/write_pipe.c");
}

mod signals {
    use super::*;

    roundtrip!(actions, "signals/actions.c");
    roundtrip!(defaults, "signals/defaults.c");
    roundtrip!(ignored, "signals/ignored.c");
    roundtrip!(in_handler, "signals/in_handler.c");
    roundtrip!(pending, "signals/pending.c");
    roundtrip!(sigtrap, "signals/sigtrap.c");
    roundtrip!(sigtrap_ignored, "signals/sigtrap_ignored.c");
}

mod timers {
    use super::*;

    roundtrip!(interval, "timers/interval.c");
    roundtrip!(pending, "timers/pending.c");
    roundtrip!(periodic, "timers/periodic.c");
    roundtrip!(posix, "timers/posix.c");
}

mod identity {
    use super::*;

    roundtrip!(credentials_by_thread, "identity/credentials_by_thread.c");
    roundtrip!(directory, "identity/directory.c");
    roundtrip!(dumpable_root, "identity/dumpable_root.c");
    roundtrip!(ids, "identity/ids.c");
    roundtrip!(inherited, "identity/inherited.c");
    roundtrip!(limits, "identity/limits.c");
    roundtrip!(prctl, "identity/prctl.c");
    roundtrip!(proc_names, "identity/proc_names.c");
    roundtrip!(root, "identity/root.c");
    roundtrip!(securebits, "identity/securebits.c");
    roundtrip!(settings, "identity/settings.c");
    roundtrip!(status, "identity/status.c");
}

mod snapshot {
    use super::*;

    roundtrip!(childless, "snapshot/childless.c");
    roundtrip!(consistent, "snapshot/consistent.c");
    roundtrip!(shared, "snapshot/shared.c");
}

mod clock {
    use super::*;

    roundtrip!(go, "clock/clock.go");
    roundtrip!(monotonic, "clock/monotonic.c");
}

/// Every fixture has its line above.
#[test]
fn no_fixture_is_forgotten() {
    let here = include_str!("roundtrips.rs");
    let real = include_str!("real_programs.rs");
    let others = ["exact", "freezer", "refused"]; // used by tests of their own
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for family in fixtures
        .read_dir()
        .expect("fixtures/ is there")
        .flatten()
        .filter(|entry| entry.path().is_dir() && !others.iter().any(|other| entry.file_name() == *other))
    {
        for file in family.path().read_dir().expect("a family is a directory").flatten() {
            let source = format!("\"{}/{}\"", family.file_name().display(), file.file_name().display());
            let is_part = source.contains(".img") || source.contains(".h\"");
            assert!(
                is_part || here.contains(&source) || real.contains(&source),
                "{source} is not tested"
            );
        }
    }
}

mod descriptors {
    use super::*;

    roundtrip!(deleted, "fd/deleted.c");
    roundtrip!(devices, "fd/devices.c");
    roundtrip!(directory, "fd/directory.c");
    roundtrip!(epoll, "fd/epoll.c");
    roundtrip!(eventfd, "fd/eventfd.c");
    roundtrip!(fifo, "fd/fifo.c");
    roundtrip!(fifo_unlinked, "fd/fifo_unlinked.c");
    roundtrip!(files, "fd/files.c");
    roundtrip!(io_signals, "fd/io_signals.c");
    roundtrip!(many, "fd/many.c");
    roundtrip!(memfd, "fd/memfd.c");
    roundtrip!(pipe, "fd/pipe.c");
    roundtrip!(pipe_full, "fd/pipe_full.c");
    roundtrip!(pipe_packets, "fd/pipe_packets.c");
    roundtrip!(pipe_reopened, "fd/pipe_reopened.c");
    roundtrip!(pipe_widowed, "fd/pipe_widowed.c");
    roundtrip!(pty, "fd/pty.c");
    roundtrip!(signalfd, "fd/signalfd.c");
    roundtrip!(stdio, "fd/stdio.c");
    roundtrip!(timerfd, "fd/timerfd.c");
}

//! The programs that are frozen: this executable under another command.

use std::os::fd::AsRawFd;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};

pub const COMMAND: &str = "program";

pub fn run(args: &[String]) -> Result<()> {
    let number = |at: usize| -> Result<usize> { Ok(args.get(at).context("a number is missing")?.parse()?) };
    match args.first().map(String::as_str) {
        Some("memory") => memory(number(1)?, args.get(2).is_some_and(|pages| pages == "huge"))?,
        Some("threads") => threads(number(1)?)?,
        Some("mappings") => mappings(number(1)?)?,
        Some("processes") => return processes(number(1)?),
        other => bail!("no program {other:?}"),
    }
    ready_for_ever()
}

fn ready_for_ever() -> Result<()> {
    println!("ready");
    stay()
}

fn stay() -> Result<()> {
    // The pipe goes, so that whoever waits for its end knows, and no end of a pipe is left to carry.
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: dup2 takes numbers only.
    ensure!(unsafe { libc::dup2(null.as_raw_fd(), 1) } == 1, "dup2");
    drop(null);
    loop {
        // SAFETY: pause(2) takes nothing.
        unsafe { libc::pause() };
    }
}

fn anonymous(len: usize) -> Result<*mut u8> {
    let (prot, flags) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new mapping, to which nothing refers yet.
    let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, -1, 0) };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    Ok(at.cast())
}

const HUGE: usize = 2 << 20;

/// Memory as a heap has it, with small pages or with huge ones.
fn memory(len: usize, huge: bool) -> Result<()> {
    let at = anonymous(len + HUGE)?;
    // SAFETY: the address stays inside the mapping, which is HUGE larger than what is used of it.
    let memory = unsafe {
        let at = at.add(at.align_offset(HUGE));
        libc::madvise(
            at.cast(),
            len,
            if huge {
                libc::MADV_HUGEPAGE
            } else {
                libc::MADV_NOHUGEPAGE
            },
        );
        std::slice::from_raw_parts_mut(at, len)
    };
    let pattern = heap(8 << 20);
    for (index, chunk) in memory.chunks_mut(pattern.len()).enumerate() {
        chunk.copy_from_slice(&pattern[..chunk.len()]);
        for (number, page) in chunk.chunks_mut(4096).enumerate() {
            page[..8].copy_from_slice(&((index << 32) + number + 1).to_ne_bytes());
        }
    }
    Ok(())
}

/// What heaps hold: objects with a few pointers, small numbers, text, and some bits that nobody could guess. zstd -1 makes a
/// fifth of it, as of the heaps of real programs (4 to 9).
pub fn heap(len: usize) -> Vec<u8> {
    let words = [
        "user",
        "session",
        "path/to/",
        "GET /index.html",
        "utf-8",
        "content-type",
        "true",
        "null",
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        let bits = next();
        let mut object = [0u8; 64];
        object[..8].copy_from_slice(&(0x55d0_1234_0000 + (bits & 7) * 0x48).to_ne_bytes());
        object[8..16].copy_from_slice(&(0x7f31_0000_0000 + ((bits >> 3) & 0xfff) * 64).to_ne_bytes());
        object[16..20].copy_from_slice(&((bits >> 20) as u32 & 3).to_ne_bytes());
        object[20..24].copy_from_slice(&((bits >> 24) as u32 & 0x3f).to_ne_bytes());
        let word = words[(bits >> 40) as usize & 7].as_bytes();
        object[32..32 + word.len()].copy_from_slice(word);
        if bits >> 62 == 0 {
            object[48..56].copy_from_slice(&next().to_ne_bytes());
        }
        bytes.extend_from_slice(&object);
    }
    bytes.truncate(len);
    bytes
}

/// So many threads, each with a stack of its own in one mapping.
fn threads(count: usize) -> Result<()> {
    const STACK: usize = 32 << 10;
    extern "C" fn wait(_: *mut libc::c_void) -> *mut libc::c_void {
        loop {
            // SAFETY: pause(2) takes nothing.
            unsafe { libc::pause() };
        }
    }
    let stacks = anonymous(count * STACK)?;
    for index in 1..count {
        // SAFETY: each thread has its own part of the mapping, which is never unmapped; `wait` needs no argument.
        let error = unsafe {
            let (mut attributes, mut thread) = (std::mem::zeroed(), std::mem::zeroed());
            libc::pthread_attr_init(&raw mut attributes);
            libc::pthread_attr_setstack(&raw mut attributes, stacks.add(index * STACK).cast(), STACK);
            libc::pthread_create(&raw mut thread, &raw const attributes, wait, ptr::null_mut())
        };
        ensure!(
            error == 0,
            "thread {index} of {count}: {}",
            std::io::Error::from_raw_os_error(error)
        );
    }
    Ok(())
}

/// So many processes, children of the first that end with it.
fn processes(count: usize) -> Result<()> {
    for index in 1..count {
        // SAFETY: there is one thread.
        match unsafe { libc::fork() } {
            0 => {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                return stay();
            }
            -1 => bail!("process {index} of {count}: {}", std::io::Error::last_os_error()),
            _ => {}
        }
    }
    ready_for_ever()
}

/// So many mappings, every second of which holds a page.
fn mappings(count: usize) -> Result<()> {
    const PAGE: usize = 4096;
    let at = anonymous(count * PAGE)?;
    for index in (0..count).step_by(2) {
        // SAFETY: a page inside the mapping.
        let rc = unsafe {
            let page = at.add(index * PAGE);
            page.cast::<usize>().write(index + 1);
            libc::mprotect(page.cast(), PAGE, libc::PROT_READ)
        };
        ensure!(
            rc == 0,
            "mapping {index} of {count}: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok(())
}

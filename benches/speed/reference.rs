//! What the machine can do at best: the same bytes moved by two threads and nothing else. Each prints the seconds it took.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub const COMMAND: &str = "reference";
const THREADS: usize = 2;
const PIECE: usize = 256 << 10;

/// Runs one in a process of its own and returns the time that it measured.
pub fn measure(args: &[&str]) -> Result<Duration> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command
        .arg(COMMAND)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "{args:?}: {}", output.status);
    let seconds: f64 = String::from_utf8_lossy(&output.stdout).trim().parse()?;
    Ok(Duration::from_secs_f64(seconds))
}

pub fn run(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let took = match args[..] {
        ["copy", pid, directory, how] => copy(pid.parse()?, Path::new(directory), how == "durable")?,
        ["fill", len, directory] => fill(len.parse()?, Path::new(directory), false)?,
        ["fill-huge", len, directory] => fill(len.parse()?, Path::new(directory), true)?,
        ["decompress", len] => decompress(len.parse()?)?,
        _ => bail!("no reference {args:?}"),
    };
    println!("{}", took.as_secs_f64());
    Ok(())
}

/// Time from the moment that all threads are there until the last is done; each gets the index of a piece after the other.
fn in_pieces(pieces: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<Duration> {
    let (next, ready) = (AtomicUsize::new(0), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        let thread = || -> Result<()> {
            ready.wait();
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= pieces {
                    return Ok(());
                }
                work(piece)?;
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(thread)).collect();
        ready.wait();
        let begin = Instant::now();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(begin.elapsed())
    })
}

/// The bare copier: pread(2) of /proc/PID/mem and pwrite(2) to a file, by two threads.
fn copy(pid: i32, directory: &Path, durable: bool) -> Result<Duration> {
    let memory = File::open(format!("/proc/{pid}/mem")).context("open /proc/PID/mem")?;
    let (start, len) = largest_mapping(pid)?;
    let unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory);
    let file = unnamed.with_context(|| format!("a file in {}", directory.display()))?;
    let piece_at = |piece: usize| (piece * PIECE, PIECE.min(len - piece * PIECE));
    let mut took = in_pieces(len.div_ceil(PIECE), |piece| {
        thread_local!(static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; PIECE]));
        BUFFER.with_borrow_mut(|buffer| {
            let (at, len) = piece_at(piece);
            memory.read_exact_at(&mut buffer[..len], start + at as u64)?;
            file.write_all_at(&buffer[..len], at as u64)?;
            if durable && piece % 64 == 63 {
                cryopod::sys::start_writeback(&file, (at as u64 + PIECE as u64).saturating_sub(16 << 20), 16 << 20)?;
            }
            Ok(())
        })
    })?;
    if durable {
        let begin = Instant::now();
        file.sync_data().context("fdatasync")?;
        took += begin.elapsed();
    }
    Ok(took)
}

/// Where the memory of [`crate::program`] is.
fn largest_mapping(pid: i32) -> Result<(u64, usize)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let range = |line: &str| -> Option<(u64, usize)> {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        line.contains("rw-p").then_some((start, (end - start) as usize))
    };
    maps.lines()
        .filter_map(range)
        .max_by_key(|(_, len)| *len)
        .context("a process without memory")
}

fn map(len: usize, prot: i32, flags: i32, fd: i32) -> Result<*mut u8> {
    // SAFETY: a new mapping, to which nothing refers yet.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
    Ok(at.cast())
}

/// UFFDIO_COPY (or, of huge pages, memcpy) of a warm mapped file into fresh anonymous memory, by two threads.
fn fill(len: usize, directory: &Path, huge: bool) -> Result<Duration> {
    let unnamed = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory);
    let file = unnamed.with_context(|| format!("a file in {}", directory.display()))?;
    let pattern = crate::program::heap(8 << 20);
    for at in (0..len).step_by(pattern.len()) {
        file.write_all_at(&pattern[..pattern.len().min(len - at)], at as u64)?;
    }
    let source = map(
        len,
        libc::PROT_READ,
        libc::MAP_SHARED | libc::MAP_POPULATE,
        file.as_raw_fd(),
    )? as usize;
    const HUGE: usize = 2 << 20;
    let fresh = map(
        len + HUGE,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
    )? as usize;
    let to = fresh.next_multiple_of(HUGE);
    // SAFETY: advice on our own mapping.
    unsafe {
        libc::madvise(
            to as *mut _,
            len,
            if huge {
                libc::MADV_HUGEPAGE
            } else {
                libc::MADV_NOHUGEPAGE
            },
        )
    };
    if huge {
        return in_pieces(len.div_ceil(HUGE), |piece| {
            let (at, len) = (piece * HUGE, HUGE.min(len - piece * HUGE));
            // SAFETY: each piece is inside both mappings, and one thread's alone.
            unsafe { std::ptr::copy_nonoverlapping((source + at) as *const u8, (to + at) as *mut u8, len) };
            Ok(())
        });
    }
    let uffd = userfault::open(to, len)?;
    in_pieces(len.div_ceil(PIECE), |piece| {
        let (at, len) = (piece * PIECE, PIECE.min(len - piece * PIECE));
        userfault::copy(&uffd, to + at, source + at, len)
    })
}

/// The few lines of userfaultfd(2) that a bare filler needs.
mod userfault {
    use super::*;
    use std::os::fd::{FromRawFd, OwnedFd};

    nix::ioctl_readwrite!(api, 0xaa, 0x3f, [u64; 3]);
    nix::ioctl_readwrite!(register, 0xaa, 0x00, [u64; 4]);
    nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, [u64; 5]);

    pub fn open(start: usize, len: usize) -> Result<OwnedFd> {
        const UFFD_USER_MODE_ONLY: i32 = 1;
        // SAFETY: the call takes numbers only.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
        ensure!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: a descriptor that the call has just made.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let (mut hello, mut range) = ([0xaa, 0, 0], [start as u64, len as u64, 1, 0]);
        // SAFETY: the arrays are laid out as struct uffdio_api and struct uffdio_register.
        unsafe {
            api(uffd.as_raw_fd(), &raw mut hello).context("UFFDIO_API")?;
            register(uffd.as_raw_fd(), &raw mut range).context("UFFDIO_REGISTER")?;
        }
        Ok(uffd)
    }

    pub fn copy(uffd: &OwnedFd, to: usize, from: usize, len: usize) -> Result<()> {
        let mut request = [to as u64, from as u64, len as u64, 1, 0];
        // SAFETY: the array is laid out as struct uffdio_copy; both ranges are mapped.
        unsafe { uffdio_copy(uffd.as_raw_fd(), &raw mut request) }.context("UFFDIO_COPY")?;
        ensure!(
            request[4] == len as u64,
            "UFFDIO_COPY copied {} of {len} bytes",
            request[4]
        );
        Ok(())
    }
}

/// Two threads that decompress frames of what heaps hold, as an image has them.
fn decompress(len: usize) -> Result<Duration> {
    let pattern = crate::program::heap(8 << 20);
    let frames: Vec<_> = pattern
        .chunks(PIECE)
        .map(|piece| zstd::bulk::compress(piece, 1))
        .collect::<Result<_, _>>()?;
    in_pieces(len.div_ceil(PIECE), |piece| {
        thread_local!(static TOOLS: std::cell::RefCell<(zstd::bulk::Decompressor<'static>, Vec<u8>)> =
            std::cell::RefCell::new((zstd::bulk::Decompressor::new().expect("memory"), vec![0; PIECE])));
        TOOLS.with_borrow_mut(|(decompressor, buffer)| {
            decompressor.decompress_to_buffer(&frames[piece % frames.len()], &mut buffer[..])?;
            std::hint::black_box(&buffer);
            Ok(())
        })
    })
}

//! System calls that no library of ours wraps safely: one wrapper each.

use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd};

mod alone;
mod apart;
pub mod fds;
mod groups;
pub mod mqueue;
pub mod probe;
pub mod process;
pub mod pty;
pub mod settings;
mod signals;
pub mod terminal;

pub use alone::fork_alone;
pub use apart::apart;
pub use groups::groups;
pub use signals::{Became, SignalInfo, ignore, kill, look_at_child, securebits, take_signal, wait_for_signal};

/// Whether the kernel gave this process rights by its executable: set-user-ID, set-group-ID, file capabilities.
pub fn at_secure() -> bool {
    // SAFETY: getauxval(3) only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The effective capabilities of the calling thread (capabilities(7)); none, where that is not to be read.
pub fn capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    effective_capabilities(&status).unwrap_or(0)
}

/// CAP_SYS_RESOURCE.
pub fn may_exceed_limits() -> bool {
    capabilities() & 1 << 24 != 0
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Sets FD_CLOEXEC on all our descriptors but the standard three: what is started later does not get them.
pub fn close_others_at_exec() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let fd = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(fd) = fd.filter(|fd| *fd > 2) {
            // SAFETY: F_SETFD changes a flag that only exec looks at; a number that is none (any more) gives EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// All that is left to read. For files of /proc, which tell no size: a few reads, where `Read::read_to_end` asks for the size and the
/// place, and begins with 32 bytes.
pub fn read_whole(file: impl AsFd) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; 4096];
    let mut len = 0;
    loop {
        match nix::unistd::read(file.as_fd(), &mut bytes[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        if bytes.len() - len < 2048 {
            bytes.resize(2 * bytes.len(), 0);
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Starts writing the dirty pages of a range of a file to the disk, without waiting (sync_file_range(2)).
pub fn start_writeback(file: impl AsFd, offset: u64, len: u64) -> nix::Result<()> {
    sync_file_range(file, offset, len, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until the pages of a range of a file that are on their way to the disk are there. Proves nothing: sync_file_range(2).
pub fn finish_writeback(file: impl AsFd, offset: u64, len: u64) -> nix::Result<()> {
    sync_file_range(file, offset, len, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

fn sync_file_range(file: impl AsFd, offset: u64, len: u64, flags: u32) -> nix::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the call takes numbers only.
    let rc = unsafe { libc::sync_file_range(fd, offset as i64, len as i64, flags) };
    Errno::result(rc).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_effective_set_is_read_from_status() {
        let status = "CapInh:\t0000000000000000\nCapPrm:\t000001fffeffffff\nCapEff:\t000001fffeffffff\n"; // Linux 6.18
        assert_eq!(super::effective_capabilities(status), Some(0x1ff_feff_ffff));
    }

    #[test]
    fn a_file_of_any_length_is_read_whole() {
        for len in [0, 1, 2047, 2048, 2049, 4096, 100_000] {
            let mut file = tempfile::tempfile().unwrap();
            let content: Vec<u8> = (0..len).map(|at| at as u8).collect();
            std::io::Write::write_all(&mut file, &content).unwrap();
            std::io::Seek::rewind(&mut file).unwrap();
            assert_eq!(super::read_whole(&file).unwrap(), content);
        }
    }
}

//! userfaultfd(2), the part that fills memory: UFFDIO_COPY allocates pages without zeroing them first, from any thread.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

/// UFFD_USER_MODE_ONLY (5.11): what a plain user may have where vm.unprivileged_userfaultfd is 0.
pub const UFFD_USER_MODE_ONLY: i32 = 1;
const UFFD_API: u64 = 0xaa;
const REGISTER_MODE_MISSING: u64 = 1;
const COPY_MODE_DONTWAKE: u64 = 1;

/// struct uffdio_api.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// struct uffdio_register.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// struct uffdio_copy.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, Copy);

/// A userfaultfd of the task that is rebuilt, duplicated into our table.
pub struct Uffd(File);

impl Uffd {
    /// `fd` must come from a userfaultfd(2) call made by the task whose memory it serves.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let uffd = Uffd(File::from(fd));
        let mut api = Api {
            api: UFFD_API,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the structure is the one the request names.
        unsafe { uffdio_api(uffd.0.as_raw_fd(), &raw mut api) }.context("UFFDIO_API")?;
        Ok(uffd)
    }

    /// Must cover whole mappings or parts of them that are anonymous.
    pub fn register(&self, start: u64, len: u64) -> Result<()> {
        let mut register = Register {
            start,
            len,
            mode: REGISTER_MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the structure is the one the request names.
        unsafe { uffdio_register(self.0.as_raw_fd(), &raw mut register) }
            .map(drop)
            .with_context(|| format!("UFFDIO_REGISTER of {start:#x}-{:#x}", start + len))
    }

    /// Copies whole pages to `dst`, where nothing is yet.
    pub fn copy(&self, dst: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let (src, len) = (rest.as_ptr() as u64, rest.len() as u64);
            let mut copy = Copy {
                dst: dst + done as u64,
                src,
                len,
                mode: COPY_MODE_DONTWAKE,
                copy: 0,
            };
            // SAFETY: the kernel reads `len` bytes at `src`, which are `rest`; it writes to the other task only.
            match unsafe { uffdio_copy(self.0.as_raw_fd(), &raw mut copy) } {
                Ok(_) | Err(Errno::EAGAIN) if copy.copy > 0 => done += copy.copy as usize,
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => bail!("UFFDIO_COPY to {:#x}: {}", copy.dst, errno.desc()),
            }
        }
        Ok(())
    }
}

//! Why a descriptor is not carried, in words that name it and say what to do.

use super::SharedObjects;
use super::kind::Unfit;
use super::probe::Seen;

/// State that no kind carries: locks.
pub fn whatever_kind(seen: &Seen, shared: &SharedObjects) -> Result<(), Unfit> {
    if let Some(lock) = seen.info.values("lock").next() {
        // "1: POSIX  ADVISORY  WRITE 4127 fe:00:1443 0 EOF": lock_get_status(), fs/locks.c.
        let kind = lock.split_whitespace().nth(1).unwrap_or("file");
        return Err(Unfit::refused(
            format!("holds a {kind} lock, which cryopod does not carry yet"),
            "freeze while the program holds no lock (for a database: between transactions)",
        ));
    }
    // open(2) does not keep it, TIOCGPTPEER(2const) does; then fdinfo shows it for all descriptors (seq_show(), fs/proc/fd.c). mq_open(3)
    // does, too, but then it is what each descriptor begins with.
    if seen.status_flags & libc::O_CLOEXEC != 0 && !seen.on_mqueue {
        return Err(Unfit::refused(
            "was opened by TIOCGPTPEER with O_CLOEXEC, which hides whether the descriptor is closed on exec",
            "have the program open it without",
        ));
    }
    // "/memfd:name (deleted)" of MFD_HUGETLB, and "/secretmem (deleted)" of memfd_secret(2).
    let huge = seen.link.starts_with(b"/memfd:") && !shared.lives_on(seen.stat.st_dev);
    if huge || seen.link.starts_with(b"/secretmem ") {
        let what = if huge {
            "is a memfd of huge pages"
        } else {
            "is secret memory of memfd_secret(2)"
        };
        return Err(Unfit::refused(
            format!("{what}, which cryopod does not carry"),
            "have the program close it first",
        ));
    }
    Ok(())
}

/// A descriptor that no kind claims.
pub fn unclaimed(seen: &Seen) -> Unfit {
    let link = seen.link_text();
    let close = "have the program close it first";
    if seen.file_type() == libc::S_IFSOCK {
        return Unfit::refused("is a socket, which cryopod does not carry yet", close);
    }
    if let Some(name) = link.strip_prefix("anon_inode:") {
        let name = name.trim_matches(['[', ']']);
        return Unfit::refused(format!("is of kind {name}, which cryopod does not carry"), close);
    }
    let what = match seen.file_type() {
        libc::S_IFCHR => "a character device that keeps state cryopod cannot see",
        libc::S_IFBLK => "a block device, which cryopod does not carry",
        libc::S_IFIFO => "a pipe or FIFO that cryopod does not carry",
        _ => "of a kind that cryopod does not know",
    };
    Unfit::refused(format!("is {what}"), close)
}

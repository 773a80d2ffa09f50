//! What waits in a pseudo-terminal: bytes typed and not read yet, and bytes shown and not fetched by the master yet.
//!
//! No interface shows them without taking them, so they are taken and put back at once. As read from the slave they have been through the
//! line discipline (termios(3)): they are put back with settings under which it changes nothing, echoes nothing and sends no signal. What
//! this relies on is n_tty_set_termios(), n_tty_poll() and n_tty_receive_buf_common() (drivers/tty/n_tty.c, Linux 5.10 to 6.18): a change of
//! ICANON forgets which lines are complete, poll(2) waits for bytes on their way from the other side, and a buffer of
//! 4096 bytes that is full leaves the rest where nobody sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use crate::image::state::{End, Input, Stopped, Waiting};
use crate::sys::{fds, pty};
use pty::Termios2;

/// N_TTY_BUF_SIZE.
const BUFFER_LEN: usize = 4096;
/// Both sides of a pseudo-terminal that nobody else uses meanwhile, both non-blocking.
pub struct Pair {
    pub master: OwnedFd,
    pub slave: OwnedFd,
}

impl Pair {
    /// The slave must not be locked. The master's description stays non-blocking.
    pub fn of(master: OwnedFd) -> nix::Result<Self> {
        let slave = pty::open_slave(&master, libc::O_RDWR | libc::O_NONBLOCK)?;
        let has = fcntl(&master, FcntlArg::F_GETFL)?;
        if has & libc::O_NONBLOCK == 0 {
            fcntl(
                &master,
                FcntlArg::F_SETFL(OFlag::from_bits_retain(has | libc::O_NONBLOCK)),
            )?;
        }
        Ok(Pair { master, slave })
    }

    /// Why not all of what waits can be seen, as a clause.
    pub fn unseen(&self, settings: &Termios2) -> Result<Option<String>> {
        if settings.c_lflag & libc::EXTPROC != 0 {
            return Ok(Some("leaves the editing of lines to its master (EXTPROC)".into()));
        }
        if !is_cooked(settings) {
            return Ok(None); // what comes later is taken as it is, and put back as it is
        }
        let limit = match settings.c_lflag & libc::ICANON {
            0 => BUFFER_LEN - 4,
            _ => BUFFER_LEN / 2, // the line that is not complete does not count
        };
        let waits = self.settled_input()?;
        Ok((waits >= limit).then(|| format!("has more input waiting ({waits} bytes) than can be seen and put back")))
    }

    /// How many bytes wait for the slave: of complete lines only, where it reads lines. What is on its way arrives within microseconds.
    fn settled_input(&self) -> Result<usize> {
        let mut before = None;
        loop {
            let waits = fds::bytes_waiting(self.slave.as_fd()).context("FIONREAD")?;
            if !ready(self.slave.as_fd(), PollFlags::POLLIN, 0)? || before == Some(waits) {
                return Ok(waits);
            }
            before = Some(waits);
            sleep(Duration::from_millis(1));
        }
    }

    /// Takes all that waits, into `waiting` also if it fails in the middle. Leaves settings of its own.
    pub fn take(&self, settings: &Termios2, waiting: &mut Waiting) -> Result<()> {
        self.take_output(&mut waiting.output)?;
        let flows = ready(self.slave.as_fd(), PollFlags::POLLOUT, 0)?;
        if settings.c_lflag & libc::ICANON != 0 {
            while ready(self.slave.as_fd(), PollFlags::POLLIN, 0)? {
                let bytes = take(self.slave.as_fd())?;
                let end = line_end(&bytes, settings);
                waiting.input.push(Input { bytes, end });
            }
        }
        // This ends IXON, and so starts what VSTOP stopped, with the echoes that waited for it.
        self.set(&quiet(settings))?;
        if !flows {
            waiting.stopped = match ready(self.slave.as_fd(), PollFlags::POLLOUT, 0)? {
                true => Stopped::ByCharacter,
                false => Stopped::ByCall,
            };
            pty::flow(&self.slave, libc::TCOON).context("TCOON")?;
        }
        let mut rest = Vec::new();
        while ready(self.slave.as_fd(), PollFlags::POLLIN, 0)? {
            rest.extend(take(self.slave.as_fd())?);
        }
        if !rest.is_empty() {
            waiting.input.push(Input {
                bytes: rest,
                end: End::Open,
            });
        }
        self.take_output(&mut waiting.output)
    }

    fn take_output(&self, output: &mut Vec<u8>) -> Result<()> {
        while ready(self.master.as_fd(), PollFlags::POLLIN, 0)? {
            output.extend(take(self.master.as_fd())?);
        }
        Ok(())
    }

    /// Puts into a pseudo-terminal in which nothing waits what is to wait there, and gives it these settings.
    pub fn put(&self, settings: &Termios2, waiting: &Waiting) -> Result<()> {
        let mut quiet = quiet(settings);
        // From here on no change of it, which would forget what is a line.
        quiet.c_lflag |= settings.c_lflag & libc::ICANON;
        for input in &waiting.input {
            self.set(&quiet)?; // starts what stopped behind the line before
            self.put_input(&quiet, settings, input).context("what was typed")?;
        }
        self.set(&quiet)?;
        put(self.slave.as_fd(), self.master.as_fd(), &waiting.output).context("what was shown")?;
        match waiting.stopped {
            Stopped::No => {}
            Stopped::ByCall => pty::flow(&self.slave, libc::TCOOFF).context("TCOOFF")?,
            Stopped::ByCharacter => self.stop_by_character(&quiet)?,
        }
        self.set(settings)
    }

    fn put_input(&self, quiet: &Termios2, settings: &Termios2, input: &Input) -> Result<()> {
        let (master, slave) = (self.master.as_fd(), self.slave.as_fd());
        // Until it is there, the settings must stay, unless they change nothing either.
        if settings.c_lflag & libc::ICANON != 0 {
            let line = Typed::new(quiet, input);
            self.set(&line.settings)?;
            put(master, slave, &line.bytes)?;
            return self.stop(&line.settings);
        }
        put(master, slave, &input.bytes)?;
        match is_cooked(settings) {
            true => until(|| Ok(fds::bytes_waiting(slave).context("FIONREAD")? == input.bytes.len())),
            false => Ok(()),
        }
    }

    /// Types VSTOP, and waits until it has done what it does.
    fn stop(&self, settings: &Termios2) -> Result<()> {
        let stop = settings.c_cc[libc::VSTOP];
        put(self.master.as_fd(), self.slave.as_fd(), &[stop])?;
        until(|| Ok(!ready(self.slave.as_fd(), PollFlags::POLLOUT, 0)?))
    }

    fn stop_by_character(&self, quiet: &Termios2) -> Result<()> {
        let mut stops = *quiet;
        stops.c_iflag |= libc::IXON;
        stops.c_cc[libc::VSTOP] = 1;
        self.set(&stops)?;
        self.stop(&stops)
    }

    fn set(&self, settings: &Termios2) -> Result<()> {
        pty::set_settings(&self.slave, settings).context("TCSETS2")
    }
}

/// What is typed so that a line waits as it did, and the settings for that: its special characters are none that ends the line.
struct Typed {
    settings: Termios2,
    bytes: Vec<u8>,
}

impl Typed {
    fn new(quiet: &Termios2, Input { bytes, end }: &Input) -> Self {
        let (body, last) = match end {
            End::Newline | End::Character => bytes.split_at(bytes.len().saturating_sub(1)),
            End::Open | End::EndOfFile => (bytes.as_slice(), &[][..]),
        };
        let of_line = last.first().copied().filter(|_| *end == End::Character);
        let mut free = (1..=8).filter(|byte| Some(*byte) != of_line);
        let [next, eof, stop] = [(); 3].map(|()| free.next().unwrap_or_default());
        let mut settings = *quiet;
        settings.c_lflag |= libc::IEXTEN;
        settings.c_iflag |= libc::IXON;
        settings.c_cc[libc::VLNEXT] = next;
        settings.c_cc[libc::VEOF] = eof;
        settings.c_cc[libc::VSTOP] = stop;
        settings.c_cc[libc::VEOL] = of_line.unwrap_or_default();
        let mut typed = Vec::with_capacity(bytes.len() + 1);
        for &byte in body {
            if [next, eof, stop, b'\n'].contains(&byte) || Some(byte) == of_line {
                typed.push(next);
            }
            typed.push(byte);
        }
        typed.extend_from_slice(last);
        typed.extend((*end == End::EndOfFile).then_some(eof));
        Typed { settings, bytes: typed }
    }
}

/// Nothing is changed, echoed or a signal.
fn quiet(settings: &Termios2) -> Termios2 {
    let mut quiet = Termios2 {
        c_iflag: 0,
        c_oflag: settings.c_oflag & !libc::OPOST,
        c_lflag: 0,
        c_cc: [0; 19],
        ..*settings
    };
    quiet.c_cc[libc::VMIN] = 1;
    quiet
}

/// Whether the line discipline does more than to pass bytes on.
fn is_cooked(settings: &Termios2) -> bool {
    const EDITS: u32 = libc::ICANON | libc::ECHO | libc::ECHONL | libc::ISIG;
    const CHANGES: u32 =
        libc::ICRNL | libc::INLCR | libc::IGNCR | libc::ISTRIP | libc::IUCLC | libc::PARMRK | libc::IXON;
    settings.c_lflag & EDITS != 0 || settings.c_iflag & CHANGES != 0
}

fn line_end(bytes: &[u8], settings: &Termios2) -> End {
    let ends_line = |index: usize, byte: u8| byte != 0 && settings.c_cc[index] == byte;
    match bytes.last() {
        Some(b'\n') => End::Newline,
        Some(&byte) if ends_line(libc::VEOL, byte) || ends_line(libc::VEOL2, byte) => End::Character,
        _ => End::EndOfFile,
    }
}

fn until(mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    while !holds()? {
        anyhow::ensure!(Instant::now() < deadline, "what was written does not arrive");
        sleep(Duration::from_micros(50));
    }
    Ok(())
}

fn ready(file: BorrowedFd<'_>, wanted: PollFlags, wait_ms: u16) -> nix::Result<bool> {
    let mut polled = [PollFd::new(file, wanted)];
    poll(&mut polled, PollTimeout::from(wait_ms))?;
    Ok(polled[0].revents().is_some_and(|ready| ready.intersects(wanted)))
}

fn take(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut buffer = vec![0; 2 * BUFFER_LEN];
    let len = read(file, &mut buffer).context("read")?;
    buffer.truncate(len);
    Ok(buffer)
}

/// Puts all of it into a side of a pseudo-terminal, however it was written the first time, so that it can be read from the other.
///
/// How much fits depends on the writes, and on those long ago: buffers of 256 bytes are kept when they have been read, and given out again
/// beyond the limit, which is 8192 bytes; larger ones up to 1792 are new, the last of them beyond the limit; all hold twice their size
/// (tty_buffer_alloc(), drivers/tty/tty_buffer.c). So the most fits where there are small ones, and the large ones come first.
fn put(into: BorrowedFd<'_>, other: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    const SMALL: usize = 256;
    const LARGEST: usize = 1792;
    const ALWAYS: usize = 8192;
    if bytes.len() > ALWAYS {
        while write(into, &[0; SMALL]).is_ok() {}
        while ready(other, PollFlags::POLLIN, 0)? {
            take(other)?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut sizes = [LARGEST, LARGEST, SMALL].into_iter();
    let mut len = LARGEST;
    while !bytes.is_empty() {
        match write(into, &bytes[..bytes.len().min(len)]) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EAGAIN) if Instant::now() < deadline => {
                // Large ones once more, when the first of them has become free.
                until(|| Ok(fds::bytes_waiting(other).context("FIONREAD")? >= BUFFER_LEN - 1))?;
                len = sizes.next().unwrap_or(SMALL);
            }
            Err(Errno::EAGAIN) => bail!("{} bytes find no room", bytes.len()),
            Err(errno) => return Err(errno).context("write"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> Pair {
        let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        nix::pty::unlockpt(&master).unwrap();
        Pair::of(master.into()).unwrap()
    }

    fn type_in(pair: &Pair, bytes: &[u8]) -> Result<()> {
        put(pair.master.as_fd(), pair.slave.as_fd(), bytes)
    }

    fn show(pair: &Pair, bytes: &[u8]) -> Result<()> {
        put(pair.slave.as_fd(), pair.master.as_fd(), bytes)
    }

    fn raw(pair: &Pair) -> Termios2 {
        let settings = quiet(&pty::settings(&pair.slave).unwrap());
        pair.set(&settings).unwrap();
        settings
    }

    /// Takes it twice, with what was put back in between; then it is empty.
    fn taken_twice(pair: &Pair) -> Waiting {
        let settings = pty::settings(&pair.slave).unwrap();
        let mut all = [Waiting::default(), Waiting::default()];
        for waiting in &mut all {
            pair.take(&settings, waiting).unwrap();
            pair.put(&settings, waiting).unwrap();
            let after = pty::settings(&pair.slave).unwrap();
            assert_eq!(
                (after.c_iflag, after.c_oflag, after.c_lflag, after.c_cc),
                (settings.c_iflag, settings.c_oflag, settings.c_lflag, settings.c_cc)
            );
        }
        assert_eq!(all[0], all[1]);
        all[1].clone()
    }

    fn of_lines(lines: &[(&[u8], End)]) -> Vec<Input> {
        let line = |(bytes, end): &(&[u8], End)| Input {
            bytes: bytes.to_vec(),
            end: *end,
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn nothing_waits_in_a_new_one() {
        assert_eq!(taken_twice(&pair()), Waiting::default());
    }

    #[test]
    fn lines_and_the_beginning_of_one_with_their_echo() {
        let pair = pair();
        // A quoted ^D and a quoted line feed are text, ^D alone ends a line, or is the end of the file.
        type_in(&pair, b"one\rt\x16\x04w\x16\no\nthree\x04\x04hal\x7ff").unwrap();
        let waiting = taken_twice(&pair);
        let lines = of_lines(&[
            (b"one\n", End::Newline),
            (b"t\x04w\no\n", End::Newline),
            (b"three", End::EndOfFile),
            (b"", End::EndOfFile),
            (b"haf", End::Open),
        ]);
        assert_eq!(waiting.input, lines);
        assert!(waiting.output.starts_with(b"one\r\n"), "{:?}", waiting.output);
        // The program reads it as it would have: line by line.
        let reads = |expected: &[u8]| assert_eq!(take(pair.slave.as_fd()).unwrap(), expected);
        reads(b"one\n");
        reads(b"t\x04w\no\n");
        reads(b"three");
        reads(b"");
        type_in(&pair, b"\x7fll\n").unwrap();
        ready(pair.slave.as_fd(), PollFlags::POLLIN, 1000).unwrap();
        reads(b"hall\n");
    }

    #[test]
    fn a_character_of_its_own_ends_a_line() {
        let pair = pair();
        let mut settings = pty::settings(&pair.slave).unwrap();
        settings.c_cc[libc::VEOL] = 1;
        pair.set(&settings).unwrap();
        type_in(&pair, b"a\x16\x01b\x01c\n").unwrap();
        let lines = of_lines(&[(b"a\x01b\x01", End::Character), (b"c\n", End::Newline)]);
        assert_eq!(taken_twice(&pair).input, lines);
    }

    #[test]
    fn all_bytes_pass_a_raw_one_both_ways() {
        let pair = pair();
        raw(&pair);
        let all: Vec<u8> = (0..12_000u32).map(|at| (at * 7 % 256) as u8).collect();
        type_in(&pair, &all).unwrap();
        show(&pair, &all).unwrap();
        let waiting = taken_twice(&pair);
        assert_eq!(waiting.output, all);
        assert_eq!(waiting.input, of_lines(&[(&all, End::Open)]));
    }

    /// Writes of this size until no more fits.
    fn fill(pair: &Pair, size: usize) -> usize {
        let (mut sent, mut tries) = (0, 0);
        while tries < 20 {
            match write(&pair.slave, &vec![b'x'; size]) {
                Ok(len) => (sent, tries) = (sent + len, 0),
                Err(errno) => {
                    assert_eq!(errno, Errno::EAGAIN);
                    tries += 1;
                    sleep(Duration::from_millis(1));
                }
            }
        }
        sent
    }

    #[test]
    fn one_that_is_filled_to_the_brim_by_writes_of_any_size() {
        for sizes in [
            &[1, 16, 1][..],
            &[256],
            &[1024, 100],
            &[1792, 256, 1],
            &[10_000],
            &[16, 10_000, 16],
        ] {
            let (first, second) = (pair(), pair());
            raw(&first);
            let mut sent = 0;
            for &size in sizes {
                // One by one, and all at once once small buffers are there.
                assert!(fill(&first, size) > 2 * BUFFER_LEN);
                while ready(first.master.as_fd(), PollFlags::POLLIN, 0).unwrap() {
                    take(first.master.as_fd()).unwrap();
                }
            }
            for &size in sizes {
                sent += fill(&first, size);
            }
            let waiting = taken_twice(&first);
            assert_eq!(waiting.output.len(), sent, "in writes of {sizes:?}");
            // And into a new one.
            second.put(&pty::settings(&first.slave).unwrap(), &waiting).unwrap();
            assert_eq!(taken_twice(&second), waiting);
        }
    }

    #[test]
    fn output_that_is_held_back_stays_so() {
        let pair = pair();
        show(&pair, b"before").unwrap();
        type_in(&pair, b"\x13").unwrap();
        ready(pair.slave.as_fd(), PollFlags::POLLIN, 0).unwrap();
        assert!(!ready(pair.slave.as_fd(), PollFlags::POLLOUT, 0).unwrap());
        let waiting = taken_twice(&pair);
        assert_eq!(
            (waiting.stopped, waiting.output.as_slice()),
            (Stopped::ByCharacter, &b"before"[..])
        );
        assert!(!ready(pair.slave.as_fd(), PollFlags::POLLOUT, 0).unwrap());
        type_in(&pair, b"\x11").unwrap();
        assert!(ready(pair.slave.as_fd(), PollFlags::POLLOUT, 1000).unwrap());

        pty::flow(&pair.slave, libc::TCOOFF).unwrap();
        assert_eq!(taken_twice(&pair).stopped, Stopped::ByCall);
        assert!(!ready(pair.slave.as_fd(), PollFlags::POLLOUT, 0).unwrap());
    }

    #[test]
    fn what_cannot_be_seen_is_told() {
        let pair = pair();
        let settings = pty::settings(&pair.slave).unwrap();
        assert_eq!(pair.unseen(&settings).unwrap(), None);
        type_in(&pair, &b"0123456789abcde\n".repeat(400)).unwrap();
        assert!(pair.unseen(&settings).unwrap().is_some());
    }
}

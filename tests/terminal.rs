//! On a terminal, driven through a pty: a thaw in an interactive shell (^C, ^Z, jobs, fg, the exit code), and what shows progress.

mod common;

use common::{CRYOPOD, Program, can_thaw, scratch};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Plays the user. Every step waits for what the screen must show next, for a minute at most.
const SESSION: &str = r#"
import os, pty, re, select, subprocess, sys, time
cryopod, image = sys.argv[1:3]
pid, screen = pty.fork()
if pid == 0:
    os.closerange(3, 4096)  # what leaked from whoever runs the tests
    os.environ.update(PS1='$ ', TERM='dumb')
    os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])
seen = ''

def read(seconds):
    global seen
    if select.select([screen], [], [], seconds)[0]:
        seen += os.read(screen, 65536).decode(errors='replace')

def expect(pattern):
    global seen
    deadline = time.time() + 60
    while not (found := re.search(pattern, seen)):
        assert time.time() < deadline, f'{pattern!r} is not in {seen!r}'
        read(0.1)
    seen = seen[found.end():]
    return found

def type(keys):
    os.write(screen, keys.encode())

def silence():
    global seen
    seen = ''
    deadline = time.time() + 0.6
    while time.time() < deadline:
        read(0.1)
    assert not re.search(r'T\d', seen), f'it runs while it is stopped: {seen!r}'

expect(r'\$ ')
type('''perl -e '$|=1; $SIG{INT}=sub{print "GOT INT\\n"}; for(;;){select(undef,undef,undef,.05); print "T",$n++," pid$$\\n"}'\n''')
program = expect(r'T3 pid(\d+)\r').group(1)
subprocess.run([cryopod, '-q', 'freeze', program, '-o', image], check=True)
expect('Killed')
type(f'{cryopod} thaw {image}\n')
first = int(expect(r'T(\d+) pid' + program).group(1))
assert first > 3, 'it began anew'
type('\x03')
expect('GOT INT')
expect(r'T\d')
type('\x1a')
expect('Stopped')
silence()
type('jobs\n')
expect('Stopped .*thaw')
type('fg\n')
expect(r'T\d+ pid' + program)
type('\x03')
expect('GOT INT')
type('\x1c')
expect(r'\$ ')
type('echo code $?\n')
expect('code 131')
type('exit\n')
os.waitpid(pid, 0)
print('PASS')
"#;

#[test]
fn a_thaw_is_a_job_like_any_other() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    let mut user = Command::new("/usr/bin/python3");
    user.args(["-c", SESSION, CRYOPOD])
        .arg(dir.path().join("app.img"))
        .current_dir(dir.path());
    let result = user.output().expect("python3 can be run");
    let said = String::from_utf8_lossy(&result.stdout);
    assert!(
        said.contains("PASS"),
        "{said}{}",
        String::from_utf8_lossy(&result.stderr)
    );
}

/// A freeze of some megabytes into a pipe that is read only after a while; what it writes to the terminal `stderr`, or to a pipe.
fn slow_freeze(options: &[&str], on_terminal: bool) -> String {
    let dir = scratch();
    let script = r#"my $data = pack("L*", map { $_ * 2654435761 } 1 .. 50000) x 40; print "READY\n"; sleep 1 while 1"#;
    let program = Program::perl(script, dir.path());
    let mut command = Command::new(CRYOPOD);
    command
        .args([
            "freeze",
            &program.pid.to_string(),
            "--leave-running",
            "--compress",
            "none",
            "-o",
            "-",
        ])
        .args(options)
        .stdout(Stdio::piped());
    let (freeze, stderr) = if on_terminal {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        // A terminal whose other side cryopod itself holds would never be closed.
        fcntl(&pty.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("it is open");
        let freeze = command.stderr(pty.slave).spawn().expect("cryopod can be run");
        (freeze, File::from(pty.master))
    } else {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let freeze = command.stderr(writer).spawn().expect("cryopod can be run");
        (freeze, File::from(std::os::fd::OwnedFd::from(reader)))
    };
    drop(command); // and with it our own end of what it writes to
    let said = std::thread::spawn(move || read_all(stderr));
    read_slowly(freeze);
    said.join().expect("it does not panic")
}

/// The end of a terminal whose last user is gone is EIO.
fn read_all(mut terminal: File) -> String {
    let mut said = Vec::new();
    let _end = terminal.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

fn read_slowly(mut freeze: Child) {
    let mut image = freeze.stdout.take().expect("it was asked for");
    std::thread::sleep(Duration::from_millis(1300));
    let mut bytes = vec![0; 1 << 20];
    while image.read(&mut bytes).expect("it is a pipe") > 0 {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(freeze.wait().expect("it is our child").success());
}

#[test]
fn a_bar_with_bytes_and_rate_is_shown_on_a_terminal_only() {
    let shown = slow_freeze(&[], true);
    assert!(
        shown.contains("[=") && shown.contains("MiB") && shown.contains("/s"),
        "{shown:?}"
    );
    assert!(!slow_freeze(&["-q"], true).contains("[="));
    let lines = slow_freeze(&[], false);
    assert!(
        !lines.contains("[=") && !lines.contains('\u{1b}') && !lines.contains('\r'),
        "{lines:?}"
    );
}

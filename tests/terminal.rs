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
const USER: &str = r#"
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

def outside(program):
    'The number here of a program that may have a pid namespace of its own.'
    for entry in os.scandir('/proc'):
        try:
            status = open(f'/proc/{entry.name}/status').read()
        except OSError:
            continue
        ids = re.search(r'^NSpid:(.*)', status, re.M).group(1).split()
        if ids[-1] == program and ids[0] == entry.name and 'python3' in status:
            return entry.name

def silence():
    global seen
    seen = ''
    deadline = time.time() + 0.6
    while time.time() < deadline:
        read(0.1)
    assert not re.search(r'T\d', seen), f'it runs while it is stopped: {seen!r}'

expect(r'\$ ')
"#;

const JOB: &str = r#"
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
    play(JOB, &dir);
}

/// Thaw's process group has no id where the program is, and the terminal comes back all the same.
#[test]
fn a_thaw_into_a_pid_namespace_is_a_job_like_any_other() {
    if !can_thaw() {
        return;
    }
    for session in [JOB, KEYS_SESSION] {
        let inside = session.replace("thaw {image}", "thaw --new-pid-namespace {image}");
        assert_ne!(inside, session);
        let dir = scratch();
        std::fs::write(dir.path().join("keys.py"), KEYS).expect("the directory is ours");
        play(&inside, &dir);
    }
}

fn play(session: &str, dir: &tempfile::TempDir) {
    let mut user = Command::new("/usr/bin/python3");
    user.args(["-c", &format!("{USER}{session}"), CRYOPOD])
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

/// A program that reads single keys and shows their codes, as editors do; it never puts the terminal in order. SIGWINCH makes it draw its
/// screen again.
const KEYS: &str = r#"
import os, signal, sys, tty
def draw(*_): os.write(1, b'SCREEN pid%d\n' % os.getpid())
def go_on(*_): tty.setcbreak(0); draw()
signal.signal(signal.SIGWINCH, draw)
signal.signal(signal.SIGCONT, go_on)
go_on()
while True:
    key = os.read(0, 1)
    if not key or key == b'q': sys.exit(7)
    os.write(1, b'<%d>' % key[0])
"#;

const KEYS_SESSION: &str = r#"
def sane():
    global seen
    type('stty -a | tr ";" "\\n" | tr " " "\\n" | grep -E "^-?(icanon|echo)$" | tr "\\n" ,\n')
    expect(r'\r?\n(icanon,echo|echo,icanon),')
    expect(r'\$ ')

def freeze():
    here = outside(program)
    within = [] if here == program else ['nsenter', '-t', here, '-p', '-m']
    subprocess.run([*within, cryopod, '-q', 'freeze', program, '-o', image], check=True)
    expect(r'\$ ')
    sane()

def keys(text):
    type(text)
    shown = ''.join(f'<{ord(key)}>' for key in text)
    found = expect(r'((?:.|\n)*?)' + shown)
    assert text not in found.group(1), f'the terminal echoes: {found.group(1)!r}'

type('/usr/bin/python3 keys.py\n')
program = expect(r'SCREEN pid(\d+)').group(1)
keys('ab')
freeze()
for image_again in range(2):
    type(f'{cryopod} thaw {image}\n')
    expect('SCREEN pid' + program)
    keys('cd')
    if image_again == 0:
        freeze()
type('\x1a')
expect('Stopped')
expect(r'\$ ')
sane()
type('fg\n')
expect('SCREEN')
keys('ef')
type('q')
expect(r'\$ ')
type('echo code $?\n')
expect('code 7')
sane()

# In the background nothing of the terminal is touched; in the foreground it goes on.
type(f'{cryopod} thaw {image} &\n')
expect(r'\[1\]')
time.sleep(0.5)
type('\n')
expect(r'\$ ')
sane()
type('fg\n')
expect('SCREEN')
expect('SCREEN') # at SIGCONT, and on the new screen
keys('gh')

# Ended by a signal, it cannot put anything in order.
os.kill(int(outside(program)), 9)
expect(r'\$ ')
sane()
type('exit\n')
os.waitpid(pid, 0)
print('PASS')
"#;

#[test]
fn a_program_that_reads_keys_has_its_terminal_again_and_the_shell_afterwards() {
    if !can_thaw() {
        return;
    }
    let dir = scratch();
    std::fs::write(dir.path().join("keys.py"), KEYS).expect("the directory is ours");
    play(KEYS_SESSION, &dir);
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

//! A thaw in an interactive shell, driven through a pty: ^C, ^Z, jobs, fg, and the exit code.

mod common;

use common::{CRYOPOD, can_thaw, scratch};
use std::process::Command;

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

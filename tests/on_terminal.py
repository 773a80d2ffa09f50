"""Real programs on a terminal of their own, each frozen and thawed twice and asked for its state. Run by tests/on_terminal.rs."""

import ctypes, fcntl, os, pty, re, select, struct, subprocess, sys, termios, time

cryopod, scenario = sys.argv[1:3]
image = 'app.img'
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what is left of frozen trees is for us to wait for


class Screen:
    """A program that leads a session on a pseudo-terminal, and what it has shown. Every step waits for what must come next."""

    def __init__(self, *argv, size=(24, 80)):
        self.program, self.pid = None, None
        self.start(argv, size)
        self.program = self.pid

    def start(self, argv, size=(24, 80)):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.closerange(3, 4096)  # what leaked from whoever runs the tests
            os.environ.update(PS1='$ ', TERM='xterm', HISTFILE='/dev/null', HOME=os.getcwd(), LC_ALL='C.UTF-8')
            try:
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)
        self.seen, self.log = '', ''  # what is still to be looked at, and all since the last thaw
        self.resize(*size)

    def resize(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))

    def read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                came = os.read(self.fd, 65536).decode(errors='replace')
                self.seen, self.log = self.seen + came, self.log + came
            except OSError:  # nobody is at the other side any more
                return False
        return True

    def expect(self, pattern):
        deadline = time.time() + 60
        while not (found := re.search(pattern, self.seen)):
            assert time.time() < deadline and self.read(0.1), f'{pattern!r} is not in {self.seen!r}'
        self.seen = self.seen[found.end():]
        return found

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def ask(self, line, answer):
        self.type(line + '\n')
        return self.expect(answer)

    def interrupt(self):
        """What runs in the foreground of a shell, once it does."""
        time.sleep(0.1)
        self.type('\x03')
        self.expect(r'\$ ')

    def stop_and_go_on(self, job=''):
        """cat in the foreground of a shell, by ^Z and fg."""
        self.type('cat\n')
        time.sleep(0.1)
        self.type('\x1a')
        self.expect(r'Stopped.*\r\n(.*\r)?.*\$ ')
        self.ask(f'fg{job}', rf'fg{job}\r\n(.*\r)?cat\r\n')
        self.interrupt()

    def freeze(self, *options, code=0):
        freeze = subprocess.run([cryopod, 'freeze', str(self.program), '--no-sync', '-o', image, *options], capture_output=True, text=True)
        assert freeze.returncode == code, freeze.stderr
        return freeze.stderr

    def freeze_away(self):
        """Frozen, its terminal closed, and nothing of it left."""
        said = self.freeze()
        assert not said, said
        os.close(self.fd)
        os.waitpid(self.pid, 0)
        reap()

    def again(self, size=(24, 80)):
        """Frozen, and thawed on another terminal."""
        self.freeze_away()
        self.start([cryopod, 'thaw', image], size)
        deadline = time.time() + 20
        while not runs(self.program):
            assert time.time() < deadline and self.read(0.01), self.seen
        return self

    def end(self, code=0):
        deadline = time.time() + 30
        while self.read(0.2):
            assert time.time() < deadline, f'it goes on: {self.seen!r}'
        found = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert found == code, f'{found}: {self.seen!r}'


def runs(leader):
    """Whether it leads its session again, and thaw has let it go."""
    try:
        with open(f'/proc/{leader}/stat') as stat, open(f'/proc/{leader}/status') as status:
            session = int(stat.read().rsplit(')', 1)[1].split()[3])
            return session == leader and 'TracerPid:\t0\n' in status.read()
    except FileNotFoundError:
        return False


def reap():
    deadline = time.time() + 2
    while time.time() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return


def bash():
    shell = Screen('bash', '--norc', '--noprofile', '-i')
    shell.expect(r'\$ ')
    shell.ask('x=41; f() { echo "f-$x-$1"; }', r'\$ ')
    shell.type('sleep 1000 & sleep 1001\n')
    while not re.search('1001', ''.join(children(shell.program))):
        time.sleep(0.01)
    shell.type('\x1a')
    shell.expect('Stopped')
    shell.expect(r'\$ ')
    shell.type('cat <<EOF\nline one\nhalf')
    shell.expect('half')
    for turn, rest in enumerate([' of it\nEOF\n', '\n']):
        shell.again((24 + turn, 77))
        shell.type(rest)
        if turn == 0:
            shell.expect('half of it')
        shell.expect(r'\$ ')
        shell.ask('f y', 'f-41-y')
        shell.ask('jobs', r'Running +sleep 1000')
        shell.expect(r'Stopped +sleep 1001')
        shell.ask('stty size', f'{24 + turn} 77')
        shell.ask('tty', r'/dev/pts/\d+')
        shell.expect(r'\$ ')
    shell.ask('fc -l', r'x=41; f\(\)')
    shell.expect(r'\$ ')
    shell.ask('kill %1; wait %1', 'Terminated')
    shell.ask('fg', 'sleep 1001')
    shell.interrupt()
    shell.resize(50, 100)
    time.sleep(0.1)
    shell.ask('stty size', '50 100')
    shell.ask('exit 9', 'exit')
    shell.end(9)


def frozen_shell():
    shell = Screen('bash', '--norc', '--noprofile', '-i')
    shell.expect(r'\$ ')
    shell.ask('x=41', r'\$ ')
    shell.freeze_away()
    return shell


def children(pid):
    with open(f'/proc/{pid}/task/{pid}/children') as file:
        for child in file.read().split():
            try:
                with open(f'/proc/{child}/cmdline') as cmdline:
                    yield cmdline.read()
            except FileNotFoundError:
                pass


def dash():
    shell = Screen('dash', '-i')  # it holds /dev/tty open
    shell.expect(r'\$ ')
    shell.ask('x=41; f() { echo "f-$x-$1"; }', r'\$ ')
    shell.ask('sleep 1000 &', r'\$ ')
    for _ in range(2):
        shell.again()
        shell.ask('f y', 'f-41-y')
        shell.ask('jobs', r'Running')
        shell.expect(r'\$ ')
    shell.stop_and_go_on(' %2')
    shell.ask('kill %1; exit 3', '')
    shell.end(3)


def python():
    repl = Screen('/usr/bin/python3', '-q')
    repl.expect('>>> ')
    repl.ask('x = [n * n for n in range(1000)]; it = iter(x); _ = [next(it) for _ in range(7)]', '>>> ')
    repl.type('def f(a):\n    return a + sum(x)')
    repl.expect(r'sum\(x\)')
    repl.again()
    repl.type('\n\n')
    repl.expect('>>> ')
    for turn in range(2):
        repl.ask('print("next", next(it), f(1))', f'next {(7 + turn) ** 2} 332833501')
        repl.expect('>>> ')
        if turn == 0:
            repl.again()
    repl.ask('import sys; sys.exit(5)', '')
    repl.end(5)


def perl():
    debugger = Screen('perl', '-d', '-e', '$x = 40; $x += 2; print "x is $x\\n"; $x++; print "end\\n"')  # it holds /dev/tty open
    debugger.expect(r'DB<1>')
    debugger.ask('n', 'DB<1>')
    for _ in range(2):
        debugger.again()
    debugger.ask('p "now $x"', 'now 40')
    debugger.ask('n', 'DB')
    debugger.ask('n', 'x is 42')
    debugger.ask('q', '')
    debugger.end()


def sqlite():
    shell = Screen('sqlite3')
    shell.expect('sqlite> ')
    shell.ask('create temp table t(a); insert into t values(1),(2); begin; insert into t values(40);', 'sqlite> ')
    for turn in range(2):
        shell.again()
        shell.ask('select 1000 + sum(a) from t;', str(1043 + turn))
        shell.expect('sqlite> ')
        shell.ask('insert into t values(1);', 'sqlite> ')
    shell.ask('rollback; select 2000 + sum(a) from t;', '2003')
    shell.ask('.exit 4', '')
    shell.end(4)


def bc():
    calculator = Screen('bc', '-q', '-l')
    calculator.type('x = 7\ndefine f(n) {\nreturn n * x\n}\n')
    calculator.ask('f(6) + 1000', '1042')
    for turn in range(2):
        calculator.again()
        calculator.ask(f'x = x + 1; f(6) + 2000', str(2048 + 6 * turn))
    calculator.ask('quit', '')
    calculator.end()


def less():
    with open('text', 'w') as text:
        text.writelines(f'line {n} of the text\n' for n in range(1, 3001))
    pager = Screen('less', 'text', size=(20, 60))
    pager.expect('line 19 of')
    pager.type('1500g')
    pager.expect('line 1518 of')
    for turn in range(2):
        pager.again((20 + turn + 1, 60))
        pager.expect('line 1500 of')  # the screen is drawn anew
        pager.type('=')
        pager.expect(r'lines 1500-15')
    pager.type('q')
    pager.end()


def top():
    monitor = Screen('top', '-d', '0.3', '-p', str(os.getpid()), size=(20, 100))
    for turn in range(3):
        monitor.expect('load average')
        monitor.expect(rf'{os.getpid()} ')
        if turn < 2:
            monitor.again((20, 100 + turn))
    monitor.type('q')
    monitor.end()


def vim():
    with open('text', 'w') as text:
        text.write('one\ntwo\nthree\n')
    editor = Screen('vim', '-u', 'NONE', '-n', '--cmd', 'set nocompatible noruler', 'text')
    editor.expect('three')
    editor.type('ddGosecond\x1b:split\rggOfirst\x1b')
    editor.expect('first')
    for turn in range(2):
        editor.again((30 + turn, 80))
        editor.expect('second')  # the screen is drawn anew
    editor.type(':wa\r')
    editor.expect('written')
    with open('text') as text:
        assert text.read() == 'first\ntwo\nthree\nsecond\n'
    editor.type('uuu:w!\r')  # all three changes
    editor.expect('written')
    with open('text') as text:
        assert text.read() == 'one\ntwo\nthree\n'
    editor.type(':qa!\r')
    editor.end()


def emacs():
    with open('text', 'w') as text:
        text.write('one\ntwo\nthree\n')
    editor = Screen('emacs', '-nw', '-Q', 'text')
    editor.expect('three')
    editor.type('zero\n\x18\x32\x1b>four\n')  # two windows, of which one is at the end
    editor.expect('four')
    for turn in range(2):
        editor.again((30 + turn, 80))
        editor.expect('zero')  # the screen is drawn anew
        editor.type(f'more {turn}\n')
        editor.expect(f'more {turn}')
    editor.type('\x18\x13')
    editor.expect('Wrote')
    with open('text') as text:
        assert text.read() == 'zero\none\ntwo\nthree\nfour\nmore 0\nmore 1\n'
    editor.type('\x1f' * 30)  # undo, to the beginning; what is typed meanwhile is thrown away
    editor.expect('No further undo')
    time.sleep(0.2)
    editor.type('\x18\x13')
    editor.expect('Wrote')
    with open('text') as text:
        assert text.read() == 'one\ntwo\nthree\n'
    editor.type('\x18\x03')
    editor.end()


def new():
    """--tty new: a terminal where there is none, typed on by stdin, shown on stdout; detached, shown in a file."""
    shell = frozen_shell()
    thaw = subprocess.Popen([cryopod, 'thaw', '--tty', 'new', image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    shell.fd = thaw.stdout.fileno()
    def type(text):
        thaw.stdin.write(text.encode())
        thaw.stdin.flush()
    type('echo "x is $x"; stty size; tty; sleep 1000\n')
    shell.expect('x is 41')
    shell.expect('24 80')
    shell.expect(r'/dev/pts/\d+')
    time.sleep(0.2)
    type('\x03')  # is a signal for the foreground there
    shell.expect(r'\$ ')
    shell.freeze('--leave-running')
    type('exit 7\n')
    assert thaw.wait() == 7
    reap()
    with open('shown', 'w') as shown:
        subprocess.run([cryopod, 'thaw', '-d', '--tty', 'new', image], stdin=subprocess.DEVNULL, stdout=shown, check=True)
    with open(f'/proc/{shell.program}/fd/0', 'w') as terminal:
        size = struct.unpack('HHHH', fcntl.ioctl(terminal, termios.TIOCGWINSZ, bytes(8)))
        terminal.write('written by another')
    assert size[:2] == (24, 80)
    deadline = time.time() + 20
    while 'written by another' not in open('shown').read():
        assert time.time() < deadline, open('shown').read()
        time.sleep(0.01)
    assert f'{shell.program}\n' in open('shown').read()
    os.kill(shell.program, 9)


def script():
    """A pseudo-terminal inside the tree: script's, on which bash leads another session."""
    recorder = Screen('script', '-q', '-f', 'log', '-c', "exec env PS1='$ ' bash --norc --noprofile -i")
    recorder.expect(r'\$ ')
    terminal = recorder.ask('x=41; tty', r'(/dev/pts/\d+)').group(1)
    recorder.ask('sleep 1000 & stty -a', r'brkint')
    recorder.expect(r'\$ ')
    for turn in range(2):
        recorder.type('echo "half a li')
        recorder.expect('half a li')
        recorder.again((30 + turn, 80 + turn))
        recorder.ask('ne"', 'half a line')
        recorder.ask('echo "x is $x"', 'x is 41')
        recorder.ask('jobs', 'Running')
        recorder.ask('stty size', f'{30 + turn} {80 + turn}')
        recorder.expect(r'\$ ')
        # Somebody else may have taken the number meanwhile, and then that was said.
        now = recorder.ask('tty', r'(/dev/pts/\d+)').group(1)
        while now != terminal and f'{terminal} is taken here' not in recorder.log:
            assert recorder.read(20), recorder.log
        terminal = now
        recorder.stop_and_go_on()
    recorder.ask('kill %1; exit 6', 'exit')
    recorder.end(0)
    with open('log') as log:
        assert 'half a line' in log.read()


def gdb():
    debugger = Screen('gdb', '-q', '-nx', '/bin/sleep')
    debugger.ask('set args 1000', 'gdb')
    debugger.ask('set confirm off', 'gdb')
    debugger.ask('set startup-with-shell off', 'gdb')
    debugger.ask('starti', r'Program stopped')
    said = debugger.freeze(code=3)
    assert re.search(r'is traced by pid \d+ \(gdb\)', said), said
    assert not os.path.exists(image)
    debugger.ask('info inferiors', 'process')
    debugger.ask('quit', '')
    debugger.end()


def named():
    """--tty, detached: the shell has the terminal that is named, and no thaw."""
    shell = frozen_shell()
    thaw = subprocess.run([cryopod, 'thaw', '-d', image], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert 'has none now' in thaw.stderr and '--tty' in thaw.stderr, thaw.stderr
    os.kill(shell.program, 9)
    reap()
    shell.fd, slave = pty.openpty()
    shell.seen = ''
    thaw = subprocess.run([cryopod, 'thaw', '-d', '--tty', os.ttyname(slave), image], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert thaw.returncode == 0 and not thaw.stderr, thaw.stderr
    os.close(slave)
    shell.ask('echo "x is $x"', 'x is 41')
    shell.stop_and_go_on()
    shell.ask('exit', 'exit')
    deadline = time.time() + 30
    while os.path.exists(f'/proc/{shell.program}'):
        assert time.time() < deadline, f'it goes on: {shell.seen!r}'
        shell.read(0.1)
        reap()


globals()[scenario]()
print('PASS')

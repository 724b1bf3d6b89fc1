"""A terminal that nobody here wrote: runs a command on a pseudoterminal (pty of Python) and does as lines of JSON on standard input say.

{"write": TEXT} {"resize": [ROWS, COLUMNS]} {"signal": NUMBER} {"modes": true} {"close": true}
It says lines of JSON: {"output": BASE64} {"modes": [ECHO, ICANON, ISIG, OPOST]} {"exit": STATUS of wait(2)}
"""
import base64, fcntl, json, os, pty, select, struct, sys, termios

def say(what):
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()

def resize(fd, rows, columns):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

pid, master = pty.fork()
if pid == 0:
    resize(0, 30, 100)
    os.execvp(sys.argv[1], sys.argv[1:])
# Kept open, so that the modes can be read when the command is gone.
number = struct.unpack("I", fcntl.ioctl(master, 0x80045430, b"\0" * 4))[0]  # TIOCGPTN
slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY)
lines = b""
gone = False
while True:
    ready, _, _ = select.select([0, master], [], [], 0.05)
    if master in ready:
        say({"output": base64.b64encode(os.read(master, 65536)).decode()})
        continue
    if 0 in ready:
        chunk = os.read(0, 65536)
        if not chunk:
            break
        lines += chunk
        while b"\n" in lines:
            line, lines = lines.split(b"\n", 1)
            what = json.loads(line)
            if "write" in what:
                os.write(master, what["write"].encode())
            if "resize" in what:
                resize(master, *what["resize"])
            if "signal" in what:
                os.kill(pid, what["signal"])
            if "modes" in what:
                _, oflag, _, lflag = termios.tcgetattr(slave)[:4]
                say({"modes": [bool(lflag & f) for f in (termios.ECHO, termios.ICANON, termios.ISIG)] + [bool(oflag & termios.OPOST)]})
            if "close" in what:
                os.close(slave)
                os.close(master)
                os.waitpid(pid, 0)
                sys.exit(0)
    if not gone:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            gone = True
            say({"exit": status})
if not gone:
    os.kill(pid, 9)

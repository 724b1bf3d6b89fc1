"""Peers of an NBD server that want to stay, or to make it hold much. Knows the protocol document and nothing of any server.

hostile-nbd-peer.py KIND COUNT PLACE [CERTIFICATE KEY AUTHORITY]     PLACE: a port of 127.0.0.1, or the path of a socket

One line `ready` when COUNT connections do what KIND says; each that ends is opened again. Ends when its standard input does.
"""
import os, select, socket, ssl, struct, sys, threading, time

kind, count, place = sys.argv[1], int(sys.argv[2]), sys.argv[3]
files = sys.argv[4:7]
STOP = threading.Event()
OPTION, REQUEST = 0x49484156454F5054, 0x25609513
STARTTLS, GO, STRUCTURED, SET_META = 5, 7, 8, 10
READ, WRITE, FLUSH, STATUS = 0, 1, 3, 7


def connect():
    if place.isdigit():
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(30)
        s.connect(("127.0.0.1", int(place)))
    else:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(30)
        s.connect(place)
    return s


def exactly(s, n):
    got = b""
    while len(got) < n:
        more = s.recv(n - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def option(s, number, data=b""):
    s.sendall(struct.pack(">QII", OPTION, number, len(data)) + data)
    while True:
        _, _, kind_of, length = struct.unpack(">QIII", exactly(s, 20))
        exactly(s, length)
        if kind_of == 1 or kind_of & 0x80000000:
            assert kind_of == 1, hex(kind_of)
            return


def begin(structured=False):
    s = connect()
    exactly(s, 18)
    s.sendall(struct.pack(">I", 3))
    if files:
        option(s, STARTTLS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(files[2])
        context.load_cert_chain(files[0], files[1])
        s = context.wrap_socket(s)
    if structured:
        option(s, STRUCTURED)
        name = b"base:allocation"
        option(s, SET_META, struct.pack(">III", 0, 1, len(name)) + name)
    option(s, GO, struct.pack(">IH", 0, 0))
    return s


def ask(command, offset, length, cookie=1):
    return struct.pack(">IHHQQI", REQUEST, 0, command, cookie, offset, length)


def push(s, words):
    """Sends for ever what it can, and reads nothing."""
    s.settimeout(0.5)
    while not STOP.is_set():
        try:
            s.sendall(words)
        except (socket.timeout, ssl.SSLWantWriteError):
            # Half of it may have gone: with TLS too nothing can follow. It keeps the connection.
            while not STOP.is_set():
                time.sleep(0.2)


def peer(ready):
    if kind == "silent":
        s = connect()
        ready()
    elif kind == "half-tls":
        s = connect()
        exactly(s, 18)
        s.sendall(struct.pack(">I", 3) + struct.pack(">QII", OPTION, STARTTLS, 0))
        exactly(s, 20)
        s.sendall(bytes.fromhex("1603010200"))
        ready()
    elif kind == "idle":
        s = begin()
        ready()
    elif kind == "flush":
        s = begin()
        ready()
        push(s, ask(FLUSH, 0, 0) * 2000)
    elif kind == "read":
        s = begin()
        ready()
        push(s, ask(READ, 0, 32768) * 2000)
    elif kind == "status":
        s = begin(structured=True)
        ready()
        push(s, ask(STATUS, 0, 1 << 30) * 2000)
    elif kind == "drip":
        s = begin()
        s.sendall(ask(WRITE, 0, 32 << 20) + bytes(9 << 20))
        ready()
        while not STOP.is_set():
            s.sendall(b"x")
            time.sleep(0.1)
    else:
        raise SystemExit("unknown kind")
    s.settimeout(None)
    while not STOP.is_set():
        readable, _, _ = select.select([s], [], [], 0.5)
        if readable and not s.recv(65536):
            raise EOFError


lock, done = threading.Lock(), [0]


def once():
    said = [False]

    def ready():
        with lock:
            if not said[0]:
                said[0] = True
                done[0] += 1
                if done[0] == count:
                    print("ready", flush=True)

    return ready


def loop():
    ready = once()
    while not STOP.is_set():
        try:
            peer(ready)
        except (OSError, EOFError, AssertionError, ssl.SSLError):
            # It was there once, which is what matters to whoever waits.
            ready()
            time.sleep(0.02)


threading.stack_size(256 * 1024)
for _ in range(count):
    threading.Thread(target=loop, daemon=True).start()
sys.stdin.read()
STOP.set()
os._exit(0)

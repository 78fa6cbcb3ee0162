"""The socket: connections made before they are needed, stamps taken at every read, deadlines kept.

One `Wire` per worker, so that one exchange at a time uses it and nothing is shared between threads. The request is
stamped just before it is sent and every read when it arrives: by the kernel where that is possible (Linux, plain
TCP), else right after the read returned. Errors are OSError; TimeoutError is the deadline.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import sys
from time import perf_counter_ns, sleep, time_ns

from benchfleet_agent.load.kernel_clock import KernelClock

CONNECT_TIMEOUT_S = 10.0
LONGEST_WAIT_S = 86_400.0
"""poll() counts milliseconds in a C int; a longer wait would overflow it."""
NEVER_NS = 1 << 62
READ_BYTES = 1 << 16

_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it. Parisc and sparc use others.
_TIMESPEC = struct.Struct("=qq")
_TIMEVAL = struct.Struct("@ll")
_ANCILLARY_BYTES = 64  # one timespec with its header is 32
_SLACK = 1.03  # a deadline may be noticed that much later
_TICK_NS = 1_000_000


class Exchange:
    """One request's moments on the wire. All stamps are perf_counter nanoseconds; None: not yet."""

    __slots__ = (
        "body_ended", "closed_early", "connect_duration_ns", "content_type", "deadline_ns", "done_ns", "draining",
        "first_byte_ns", "headers_ns", "kernel_reads", "last_ns", "last_read", "limit_ns", "location", "not_before_ns",
        "read_bytes", "reads", "sent_ns", "silence_limit_ns", "start_ns", "status", "total_limit_ns", "unparsed",
    )  # fmt: skip

    def __init__(self, limit_ns: int = NEVER_NS, not_before_ns: int = 0) -> None:
        self.limit_ns = limit_ns
        """What the deadline is set to, from t0."""
        self.not_before_ns = not_before_ns
        """When an open loop's request is due; it is made ready before and then held back until this moment."""
        self.deadline_ns = NEVER_NS
        """No read waits beyond this moment; the requester moves it on with every token."""
        self.silence_limit_ns = NEVER_NS
        """From one token to the next, or from one read to the next while parts are held back unparsed."""
        self.total_limit_ns = NEVER_NS
        """From t0 to the end of the answer, whatever arrives."""
        self.connect_duration_ns: int | None = None
        self.start_ns: int | None = None
        self.sent_ns: int | None = None
        self.headers_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.last_ns = 0
        """The stamp in force: when the bytes being parsed now arrived."""
        self.last_read = 0
        """The number of the read they arrived with."""
        self.done_ns: int | None = None
        self.reads = 0
        self.read_bytes = 0
        """The size of the newest read."""
        self.kernel_reads = 0
        self.status: int | None = None
        self.content_type = ""
        self.location: str | None = None
        self.unparsed = bytearray()
        """The body, kept when the response is no event stream."""
        self.body_ended = False
        self.closed_early = False
        """The client stopped reading before the body ended: it saw ``[DONE]``, or an error."""
        self.draining = False

    def move_on(self) -> None:
        """Set the deadline anew: what is in force now has arrived."""
        whole_ns = (self.start_ns or 0) + self.total_limit_ns
        self.deadline_ns = min(whole_ns, self.last_ns + self.silence_limit_ns)


class Connection:
    """A connected socket that stamps what passes through it."""

    def __init__(self, sock: socket.socket, clock: KernelClock, *, kernel: bool, connect_duration_ns: int) -> None:
        self.connect_duration_ns: int | None = connect_duration_ns
        """How long connecting took, until the first exchange reports it."""
        self.closed = False
        self._sock = sock
        self._clock = clock
        self._kernel = kernel
        self._blocking = sys.platform == "linux" and not isinstance(sock, ssl.SSLSocket)
        """Calls block in the kernel, which keeps the timeout."""
        self._write_timeout_s = 0.0
        self._read_timeout_ns = 0

    def send(self, data: bytes, exchange: Exchange) -> None:
        """Send a whole request; this is t0."""
        self._set_write_timeout(min(exchange.limit_ns / 1e9, LONGEST_WAIT_S))
        if exchange.not_before_ns:
            wait_until(exchange.not_before_ns)
        exchange.start_ns = start_ns = perf_counter_ns()
        exchange.deadline_ns = start_ns + exchange.limit_ns
        try:
            self._sock.sendall(data)
        except BlockingIOError as error:
            raise TimeoutError("the request could not be sent in time") from error
        exchange.sent_ns = perf_counter_ns()

    def receive(self, exchange: Exchange) -> bytes:
        """Receive what there is, wait for it until the exchange's deadline, and stamp it; b"" at the end."""
        kernel_ns: int | None = None
        while True:
            self._set_read_timeout(exchange.deadline_ns - perf_counter_ns())
            try:
                if self._kernel and sys.platform != "win32":
                    data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
                    read_ns = perf_counter_ns()
                    kernel_ns = self._kernel_stamp(ancillary, exchange, read_ns)
                else:
                    data = self._sock.recv(READ_BYTES)
                    read_ns = perf_counter_ns()
                break
            except BlockingIOError:
                continue  # the kernel's timeout; whether it is the deadline is asked above
        acknowledge_now(self._sock)
        if exchange.draining:
            return data
        if data:  # an end of file carries no kernel stamp
            exchange.reads += 1
            exchange.last_read = exchange.reads
            exchange.read_bytes = len(data)
            exchange.kernel_reads += kernel_ns is not None
        exchange.last_ns = read_ns if kernel_ns is None else kernel_ns
        return data

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        self._sock.close()

    @property
    def alive(self) -> bool:
        """Open and idle: a request can be sent. What can be read of an idle connection is its end."""
        if self.closed:
            return False
        if sys.platform == "win32":
            readable = bool(select.select([self._sock], [], [], 0)[0])
        else:
            poll = select.poll()  # select() fails beyond 1,024 descriptors
            poll.register(self._sock, select.POLLIN)
            readable = bool(poll.poll(0))
        if not readable or not isinstance(self._sock, ssl.SSLSocket):
            return not readable
        # TLS 1.3 servers send session tickets after the handshake, so look below TLS: only an end is empty.
        self._sock.settimeout(0)
        try:
            return bool(socket.socket.recv(self._sock, 1, socket.MSG_PEEK))
        except OSError:
            return False

    def _set_write_timeout(self, timeout_s: float) -> None:
        if not self._blocking:
            self._sock.settimeout(timeout_s)
        elif timeout_s != self._write_timeout_s:
            self._write_timeout_s = timeout_s
            self._sock.settimeout(None)
            seconds, rest = divmod(timeout_s, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), int(rest * 1e6)))

    def _set_read_timeout(self, remaining_ns: int) -> None:
        """Let the next read wait no longer. Raises TimeoutError when there is no time left."""
        if remaining_ns <= 0:
            raise TimeoutError("the deadline passed")
        if not self._blocking:
            self._sock.settimeout(min(remaining_ns / 1e9, LONGEST_WAIT_S))
        elif not remaining_ns <= self._read_timeout_ns <= remaining_ns * _SLACK:
            # settimeout() costs two more system calls a read (ioctl, poll); the kernel's own timeout costs none
            # while it still fits.
            self._read_timeout_ns = min(remaining_ns + _TICK_NS, int(LONGEST_WAIT_S * 1e9))
            seconds, nanoseconds = divmod(self._read_timeout_ns, 1_000_000_000)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, nanoseconds // 1000))

    def _kernel_stamp(self, ancillary: list[tuple[int, int, bytes]], exchange: Exchange, read_ns: int) -> int | None:
        steady = self._clock.observe(perf_counter_ns(), time_ns(), perf_counter_ns())
        for level, kind, data in ancillary:
            if steady and level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                floor_ns = max(exchange.last_ns, exchange.start_ns or 0)
                return self._clock.convert(seconds * 1_000_000_000 + nanoseconds, floor_ns, read_ns)
        return None


def wait_until(moment_ns: int) -> None:
    """Sleep until the moment (perf_counter); returns at once when it has passed."""
    while (left_ns := moment_ns - perf_counter_ns()) > 0:
        sleep(left_ns / 1e9)


class Wire:
    """One worker's way to one server: at most one connection, kept while both sides want it."""

    def __init__(self, host: str, port: int, *, kernel: bool, ssl_context: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._kernel = kernel and ssl_context is None
        self._ssl_context = ssl_context
        self._clock = KernelClock()
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        """The live connection, made now if there is none. Raises OSError."""
        if self._connection is None or not self._connection.alive:
            self.close()
            self._connection = self._connect()
        return self._connection

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Connection:
        begin_ns = perf_counter_ns()
        sock = socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                sock = self._ssl_context.wrap_socket(sock, server_hostname=self._host)
        except BaseException:
            sock.close()
            raise
        duration_ns = perf_counter_ns() - begin_ns
        kernel = self._kernel and enable_kernel_stamps(sock)
        if kernel:
            self._clock.observe(perf_counter_ns(), time_ns(), perf_counter_ns())
        return Connection(sock, self._clock, kernel=kernel, connect_duration_ns=duration_ns)


def acknowledge_now(sock: socket.socket) -> None:
    """Acknowledge what has arrived without the usual delay (Linux; the setting does not last, so after every read).

    A server that writes small pieces without TCP_NODELAY, as Foundry Local's does, holds the next piece back until
    the last one is acknowledged. With the delayed acknowledgement of tcp(7), that put 40 ms on the first token
    whenever prefill was shorter, and made all tokens of that time arrive at once (docs/decisions/0007).
    """
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def enable_kernel_stamps(sock: socket.socket) -> bool:
    """Ask the kernel to stamp what this socket receives; False where it cannot."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        return sock.getsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS) == 1
    return False


def kernel_stamps_possible() -> bool:
    """Whether this machine's kernel stamps plain TCP connections."""
    with socket.socket() as probe:
        return enable_kernel_stamps(probe)

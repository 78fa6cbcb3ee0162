"""The socket: connections made before they are needed, stamps taken at every read, deadlines kept.

An `httpcore2` network backend, one per worker, so that one exchange at a time uses it and nothing is shared between
threads. Its streams stamp the request just before its last part is sent and every read when it arrives: from the
kernel where that is possible (Linux, plain TCP), else right after the read returned.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Iterable
from time import perf_counter_ns, time_ns
from typing import Any

import httpcore2

from benchfleet_agent.load.kernel_clock import KernelClock

CONNECT_TIMEOUT_S = 10.0
DRAIN_S = 0.02
"""How long an answer's last bytes behind ``[DONE]`` are awaited, so that the connection can be used again."""
NEVER_NS = 1 << 62
LONGEST_WAIT_S = 86_400.0
"""poll() counts milliseconds in a C int; a longer wait would overflow it."""

_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not name it. Parisc and sparc use others.
_TIMESPEC = struct.Struct("=qq")
_TIMEVAL = struct.Struct("@ll")
_SLACK = 1.03  # a deadline may be noticed that much later
_TICK_NS = 1_000_000
_ANCILLARY_BYTES = 64  # one timespec with its header is 32


class Exchange:
    """One request's moments on the wire. All stamps are perf_counter nanoseconds; None: not yet."""

    __slots__ = (
        "body_ended", "closed_early", "connect_duration_ns", "content_type", "deadline_ns", "done_ns", "draining",
        "first_byte_ns", "headers_ns", "kernel_reads", "last_ns", "limit_ns", "location", "reads",
        "sent_ns", "start_ns", "status", "unparsed",
    )  # fmt: skip

    def __init__(self, limit_ns: int = NEVER_NS) -> None:
        self.limit_ns = limit_ns
        """What the deadline is set to, from t0."""
        self.deadline_ns = NEVER_NS
        """No read waits beyond this moment; the requester moves it on with every token."""
        self.connect_duration_ns: int | None = None
        self.start_ns: int | None = None
        self.sent_ns: int | None = None
        self.headers_ns: int | None = None
        self.first_byte_ns: int | None = None
        self.last_ns = 0
        """The stamp in force: when the bytes being parsed now arrived."""
        self.done_ns: int | None = None
        self.reads = 0
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


class StampStream(httpcore2.NetworkStream):
    """A connected socket that stamps what passes through it into the backend's current exchange."""

    def __init__(self, backend: StampBackend, sock: socket.socket, *, kernel: bool) -> None:
        self._backend = backend
        self._sock = sock
        self._kernel = kernel
        self._tls: StampStream | None = None
        self.closed = False
        self.connect_duration_ns = 0
        self._blocking = sys.platform == "linux" and not isinstance(sock, ssl.SSLSocket)
        """Calls block in the kernel, which keeps the timeout."""
        self._write_timeout_s = 0.0
        self._read_timeout_ns = 0

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it. The last call of a request (its body) sets t0."""
        if not buffer:
            return
        exchange = self._backend.exchange
        self._set_write_timeout(min(exchange.limit_ns / 1e9, LONGEST_WAIT_S))
        exchange.start_ns = start_ns = perf_counter_ns()
        exchange.deadline_ns = start_ns + exchange.limit_ns
        try:
            self._sock.sendall(buffer)
        except (TimeoutError, BlockingIOError) as error:
            raise httpcore2.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore2.WriteError(str(error)) from error
        exchange.sent_ns = perf_counter_ns()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive what there is, wait for it until the exchange's deadline, and stamp it."""
        exchange = self._backend.exchange
        kernel_ns: int | None = None
        try:
            while True:
                self._set_read_timeout(exchange.deadline_ns - perf_counter_ns())
                try:
                    if self._kernel and sys.platform != "win32":
                        data, ancillary, _, _ = self._sock.recvmsg(max_bytes, _ANCILLARY_BYTES)
                        read_ns = perf_counter_ns()
                        kernel_ns = self._kernel_stamp(ancillary, exchange, read_ns)
                    else:
                        data = self._sock.recv(max_bytes)
                        read_ns = perf_counter_ns()
                    break
                except BlockingIOError:
                    continue  # the kernel's timeout was shorter than the deadline, or just passed: see above
        except TimeoutError as error:
            raise httpcore2.ReadTimeout("the deadline passed") from error
        except OSError as error:
            raise httpcore2.ReadError(str(error)) from error
        if exchange.draining:
            return data
        if data:  # an end of file carries no kernel stamp
            exchange.reads += 1
            exchange.kernel_reads += kernel_ns is not None
        exchange.last_ns = read_ns if kernel_ns is None else kernel_ns
        return data

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
            raise TimeoutError
        if not self._blocking:
            self._sock.settimeout(min(remaining_ns / 1e9, LONGEST_WAIT_S))
        elif not remaining_ns <= self._read_timeout_ns <= remaining_ns * _SLACK:
            # settimeout() costs two more system calls a read (ioctl, poll); the kernel's own timeout costs none
            # while it still fits.
            self._read_timeout_ns = min(remaining_ns + _TICK_NS, int(LONGEST_WAIT_S * 1e9))
            seconds, nanoseconds = divmod(self._read_timeout_ns, 1_000_000_000)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(seconds, nanoseconds // 1000))

    def _kernel_stamp(self, ancillary: list[tuple[int, int, bytes]], exchange: Exchange, read_ns: int) -> int | None:
        clock = self._backend.clock
        before_ns = perf_counter_ns()
        steady = clock.observe(before_ns, time_ns(), perf_counter_ns())
        for level, kind, data in ancillary:
            if steady and level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS and len(data) == _TIMESPEC.size:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                floor_ns = max(exchange.last_ns, exchange.start_ns or 0)
                return clock.convert(seconds * 1_000_000_000 + nanoseconds, floor_ns, read_ns)
        return None

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """The encrypted stream: the one prepared ahead of time, or a new handshake."""
        if self._tls is None:
            self.handshake(ssl_context, server_hostname)
        assert self._tls is not None
        self._backend.current = self._tls
        return self._tls

    def handshake(self, ssl_context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Make the encrypted stream ahead of time. Raises httpcore2.ConnectError."""
        try:
            wrapped = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname)
        except OSError as error:
            self.close()
            raise httpcore2.ConnectError(f"TLS: {error}") from error
        self._tls = StampStream(self._backend, wrapped, kernel=False)

    def close(self) -> None:
        """Close the socket."""
        self.closed = True
        if self._tls is not None:
            self._tls.close()
        self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore2 asks of a stream."""
        match info:
            case "is_readable":
                return self.readable
            case "socket":
                return self._sock
            case "client_addr":
                return self._sock.getsockname()
            case "server_addr":
                return self._sock.getpeername()
        return None

    @property
    def readable(self) -> bool:
        """Something waits to be read; on an idle connection that can only be its end."""
        if self.closed:
            return True
        if sys.platform == "win32":
            return bool(select.select([self._sock], [], [], 0)[0])
        poll = select.poll()  # select() fails beyond 1,024 descriptors
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))

    @property
    def alive(self) -> bool:
        """Open and idle: a request can be sent."""
        stream = self._tls or self
        if not stream.readable:
            return True
        if stream.closed or not isinstance(stream._sock, ssl.SSLSocket):
            return False
        # TLS 1.3 servers send session tickets after the handshake, so look below TLS: only an end is empty.
        stream._sock.settimeout(0)
        try:
            return bool(socket.socket.recv(stream._sock, 1, socket.MSG_PEEK))
        except OSError:
            return False


class StampBackend(httpcore2.NetworkBackend):
    """Makes `StampStream`s for one worker, ahead of time where asked."""

    def __init__(self, *, kernel: bool) -> None:
        self.exchange = Exchange()
        self.clock = KernelClock()
        self.current: StampStream | None = None
        """The stream in use, or the spare."""
        self._kernel = kernel
        self._spare: tuple[str, int, StampStream] | None = None

    def prepare(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> None:
        """Have a connection before a request needs one; keeps a live one. Raises httpcore2.ConnectError."""
        if self.current is not None and self.current.alive:
            return
        begin_ns = perf_counter_ns()
        stream = self._connect(host, port)
        if ssl_context is not None:
            stream.handshake(ssl_context, host)
        stream.connect_duration_ns = perf_counter_ns() - begin_ns
        self._spare = (host, port, stream)
        self.current = stream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """The prepared connection, or a new one."""
        spare, self._spare = self._spare, None
        if spare is not None and spare[:2] == (host, port) and spare[2].alive:
            stream = spare[2]
        else:
            if spare is not None:
                spare[2].close()
            begin_ns = perf_counter_ns()
            stream = self._connect(host, port)
            stream.connect_duration_ns = perf_counter_ns() - begin_ns
            self.current = stream
        self.exchange.connect_duration_ns = stream.connect_duration_ns  # whoever uses it first reports it
        return stream

    def sleep(self, seconds: float) -> None:
        """Never needed: nothing is retried."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close what was prepared and never used."""
        if self._spare is not None:
            self._spare[2].close()

    def _connect(self, host: str, port: int) -> StampStream:
        try:
            sock = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host}:{port}: {error}") from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kernel = self._kernel and enable_kernel_stamps(sock)
        if kernel:
            self.clock.observe(perf_counter_ns(), time_ns(), perf_counter_ns())
        return StampStream(self, sock, kernel=kernel)


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

"""A TCP relay between controller and agent that can cut, hold and delay: networks where the kernel offers no netem.

It works on the stream, not on packets: it cannot lose one. Threads of the caller's process; any number of connections.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time


class Relay:
    """Listens on loopback and passes on to a target; `close` ends everything."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._flows = threading.Event()
        self._flows.set()
        self._refuses = False
        self._closed = False
        self._delay_s = 0.0
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where controllers dial."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def delay(self, seconds: float) -> None:
        """Hold every piece back by so much, each way; 0: none."""
        self._delay_s = seconds

    def hold(self) -> None:
        """Pass nothing on; both ends believe that they are connected."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on again, what was held first; accept again."""
        self._refuses = False
        self._flows.set()

    def cut(self, *, refuse: bool = True) -> None:
        """Reset every connection and, until `flow`, those that come."""
        self._refuses = refuse
        with self._lock:
            taken, self._sockets = self._sockets, set()
        for one in taken:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._flows.set()

    def close(self) -> None:
        """End."""
        self._closed = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refuses:
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
            ended: list[socket.socket] = []
            for source, sink in ((near, far), (far, near)):
                line: queue.Queue[tuple[float, bytes]] = queue.Queue(256)
                threading.Thread(target=self._read, args=(source, line), daemon=True).start()
                threading.Thread(target=self._write, args=(sink, line, ended), daemon=True).start()

    def _read(self, source: socket.socket, line: queue.Queue[tuple[float, bytes]]) -> None:
        data = b" "
        while data:
            self._flows.wait()
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            line.put((time.monotonic() + self._delay_s, data))

    def _write(self, sink: socket.socket, line: queue.Queue[tuple[float, bytes]], sinks: list[socket.socket]) -> None:
        ended = False
        with contextlib.suppress(OSError):
            while not ended:
                due, data = line.get()
                ended = not data
                time.sleep(max(0.0, due - time.monotonic()))
                self._flows.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        while not ended:  # the reader must not wait for room that nobody makes
            ended = not line.get()[1]
        with self._lock:
            sinks.append(sink)
            if len(sinks) < 2:  # the other direction may go on
                return
            self._sockets -= set(sinks)
        for one in sinks:
            one.close()

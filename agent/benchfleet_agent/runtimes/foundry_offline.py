"""A catalog that has nothing: what an offline agent's Foundry Local asks. Standard library only: it runs in the child.

The SDK cannot be told to leave its catalog alone and still serve. A catalog out of reach costs it 4 s of retries; one
that answers 404 costs nothing, and it then goes by its last answer, which it keeps beside the models (tried on 2.2.1).
"""

from __future__ import annotations

import contextlib
import socket
import threading

_ANSWER = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_PATIENCE_S = 5.0


def serve_nothing() -> str:
    """Answer everything on a loopback port with 404 while this process lives; the catalog's URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_answer_all, args=(listener,), name="no-catalog", daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/asset-gallery/v1.0/models"


def _answer_all(listener: socket.socket) -> None:
    while True:
        asker, _ = listener.accept()
        with asker, contextlib.suppress(OSError):
            asker.settimeout(_PATIENCE_S)
            asker.recv(1 << 16)
            asker.sendall(_ANSWER)
            asker.shutdown(socket.SHUT_WR)
            while asker.recv(1 << 16):  # closing with unread bytes would reset the connection
                pass

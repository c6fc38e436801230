"""Running the web application."""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nodule_plugin.errors import InputError
from nodule_plugin.files import read_json
from nodule_plugin.reader_study.study import load_study, read_links
from nodule_plugin.reader_study.web import HEADERS, create_app

REQUEST_SECONDS, ANSWER_SECONDS = 20.0, 120.0
"""How long a client may take to send a request, or stay silent between two; and to fetch the answer."""
BACKLOG = 8
"""Connections that are taken at once: asyncio takes as many again, up to three times, before it looks at the first."""
MOST_CONNECTIONS = 256


def serve(folder: str | Path, host: str = "127.0.0.1", port: int = 8000, root_path: str = "") -> None:
    """Serve a study until interrupted.

    One process, several threads: readers work at once, and the database orders what they write.

    Args:
        folder: of the study.
        host: address to listen at; 127.0.0.1 is this machine only.
        port: to listen at; 0 takes a free one.
        root_path: see :func:`create_app`.

    Raises:
        InputError: if the folder is not a study, holds a key, or the address is taken.
    """
    study = load_study(folder)
    refuse_key(study.folder)
    read_links(study)
    app = create_app(study, root_path)
    try:
        listener = socket.create_server((host, port), reuse_port=False)
    except (OSError, OverflowError) as error:
        raise InputError(f"serve: cannot listen at {host}:{port} ({error}); give another host or port") from error
    # Headers and body are written apart: without this the body waits for the client's delayed acknowledgement, 40 ms.
    # What a listening socket has, its connections inherit; asyncio sets it only for sockets that name their protocol.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(f"serving {study.folder} at http://{host}:{listener.getsockname()[1]}{root_path}", flush=True)
    # No access log: addresses hold the readers' secrets. No warnings: whoever sends rubbish could fill the disk.
    config = uvicorn.Config(
        app, http=PatientProtocol, ws="none", backlog=BACKLOG, access_log=False, log_level="error", server_header=False
    )
    uvicorn.Server(config).run(sockets=[listener])


class PatientProtocol(H11Protocol):
    """A connection that is not kept for ever: a time limit on every request and answer, and a limit of their number.

    Where there are too many the one that has been waiting for a request the longest makes room, so that half-sent
    requests never keep anybody out.
    """

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and end another where there are too many."""
        super().connection_made(transport)
        self._restart(REQUEST_SECONDS)
        others: Any = [other for other in self.connections - {self} if not other.transport.is_closing()]
        if len(others) >= most_connections():
            min(others, key=lambda other: (other.is_answering, other.since)).transport.abort()

    @property
    def is_answering(self) -> bool:
        """Whether a request has arrived whole and its answer is not yet on its way as a whole."""
        waits = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        return waits or self.transport.get_write_buffer_size() > 0

    def data_received(self, data: bytes) -> None:
        """Read on; the limit for the answer starts when the request is whole."""
        before = self.is_answering
        super().data_received(data)
        if self.is_answering and not before:
            self._restart(ANSWER_SECONDS)

    def on_response_complete(self) -> None:
        """Wait for the next request, and for what is still to be sent."""
        self._restart(ANSWER_SECONDS if self.is_answering else REQUEST_SECONDS)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._limit is not None:
            self._limit.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, with the headers of every answer."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [*HEADERS.items(), ("Connection", "close"), ("Content-Length", "0")]
            self.transport.write(self.conn.send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request")))
        self.transport.close()

    def _restart(self, seconds: float) -> None:
        """Give the client so long from now on."""
        if self._limit is not None:
            self._limit.cancel()
        self.since = self.loop.time()
        self._limit = self.loop.call_later(seconds, self.transport.abort)


@cache
def most_connections() -> int:
    """A quarter of the files that this process may have open, since each answer opens some: database, log, image."""
    try:
        import resource
    except ImportError:  # Windows, which sets no such limit
        return MOST_CONNECTIONS
    return max(8, min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


def refuse_key(folder: Path) -> None:
    """Refuse a study in whose folder a key lies: the machine that serves must not be able to tell real from generated.

    Raises:
        InputError: naming the file.
    """
    for path in sorted(folder.rglob("*.json")):
        try:
            content = read_json(path)
        except InputError:
            continue
        if isinstance(content, dict) and "nonce" in content and "images" in content:
            raise InputError(f"serve: {path} is a key; move it to another place, best to another machine")

"""Running the web application."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import uvicorn

from nodule_plugin.errors import InputError
from nodule_plugin.reader_study.study import load_study, read_links
from nodule_plugin.reader_study.web import create_app


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
    print(f"serving {study.folder} at http://{host}:{listener.getsockname()[1]}{root_path}", flush=True)
    # No access log: addresses hold the readers' secrets.
    config = uvicorn.Config(app, access_log=False, log_level="warning", server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def refuse_key(folder: Path) -> None:
    """Refuse a study in whose folder a key lies: the machine that serves must not be able to tell real from generated.

    Raises:
        InputError: naming the file.
    """
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and "nonce" in content and "images" in content:
            raise InputError(f"serve: {path} is a key; move it to another place, best to another machine")

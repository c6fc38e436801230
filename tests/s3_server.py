"""As much of an S3 server as s5cmd needs to fetch a folder: it lists and serves the files of local buckets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

LISTING = (
    '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{bucket}</Name>'
    "<Prefix>{prefix}</Prefix><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
)
CONTENTS = (
    "<Contents><Key>{key}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag>"
    "<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


@contextmanager
def serve_buckets(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the folders of ``root`` as buckets; gives the address and the keys of the files that were fetched."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlparse(self.path)
            bucket, _, key = unquote(url.path).strip("/").partition("/")
            if key:
                fetched.append(key)
                self._send_part((root / bucket / key).read_bytes())
            else:
                prefix = parse_qs(url.query).get("prefix", [""])[0]
                self._answer(200, _listing(root / bucket, prefix).encode())

        def _send_part(self, content: bytes) -> None:
            first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last or len(content)) + 1]
            self._answer(206, part, f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")

        def _answer(self, status: int, body: bytes, content_range: str | None = None) -> None:
            self.send_response(status)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        server.server_close()


def _listing(bucket: Path, prefix: str) -> str:
    files = {path.relative_to(bucket).as_posix(): path.stat().st_size for path in bucket.rglob("*") if path.is_file()}
    contents = "".join(
        CONTENTS.format(key=key, size=size) for key, size in sorted(files.items()) if key.startswith(prefix)
    )
    return LISTING.format(bucket=bucket.name, prefix=prefix, contents=contents)

"""A Hugging Face hub on 127.0.0.1: repositories from a dict, every request recorded, faults on demand."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """repos: name -> {file: bytes}. gated: names that answer 401. token: needed for gated ones. faults: file
    -> what goes wrong.
    """

    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.commit = COMMIT
        self.gated: set[str] = set()
        self.token = ""
        self.faults: dict[str, str] = {}
        self.requests: list[str] = []
        self.sent = 0
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                return None

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        self.requests.append(f"{request.command} {path}")
        parts = path.split("/")
        if parts[:2] == ["api", "models"]:
            repo, revision = "/".join(parts[2:4]), "/".join(parts[5:]) or "main"
            self._guarded(request, repo, revision, lambda: self._info(request, repo), body)
        elif len(parts) > 4 and parts[2] == "resolve":
            repo, name = "/".join(parts[:2]), "/".join(parts[4:])
            self._guarded(request, repo, parts[3], lambda: self._file(request, repo, name, body), body)
        else:
            self._error(request, 404, "")

    def _guarded(self, request: BaseHTTPRequestHandler, repo: str, revision: str, then, body: bool) -> None:
        allowed = bool(self.token) and request.headers.get("Authorization") == f"Bearer {self.token}"
        if repo not in self.repos:
            self._error(request, 401, "RepoNotFound")
        elif repo in self.gated and not allowed:
            self._error(request, 401, "GatedRepo")
        elif revision not in ("main", self.commit):
            self._error(request, 404, "RevisionNotFound")
        else:
            then()

    def _error(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        if code:
            request.send_header("X-Error-Code", code)
            request.send_header("X-Error-Message", "no")
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _info(self, request: BaseHTTPRequestHandler, repo: str) -> None:
        siblings = []
        for name, data in self.repos[repo].items():
            entry: dict[str, object] = {
                "rfilename": name,
                "size": len(data),
                "blobId": hashlib.sha1(data).hexdigest(),
            }
            if name.endswith((".safetensors", ".bin", ".ckpt")):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 134,
                }
            siblings.append(entry)
        data = json.dumps(
            {
                "id": repo,
                "modelId": repo,
                "sha": self.commit,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
        ).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _file(self, request: BaseHTTPRequestHandler, repo: str, name: str, body: bool) -> None:
        if name not in self.repos[repo]:
            self._error(request, 404, "EntryNotFound")
            return
        data = self.repos[repo][name]
        fault = self.faults.get(name, "")
        if body and fault == "500":
            self._error(request, 500, "")
            return
        etag = hashlib.sha256(data).hexdigest()
        start = 0
        if body and request.headers.get("Range", "").startswith("bytes="):
            start = int(request.headers["Range"][6:].split("-")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("ETag", f'"{etag}"')
        request.send_header("X-Repo-Commit", self.commit)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        if not body:
            return
        content = bytes(len(data)) if fault == "other bytes" else data
        if fault == "short":
            content = content[: len(content) // 2]
            request.close_connection = True
        request.wfile.write(content[start:])
        self.sent += len(content) - start

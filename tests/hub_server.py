"""A hub on 127.0.0.1: what huggingface_hub asks a hub for, answered as the real one does, from dictionaries.

Repository info, the tree of a commit, and files: small ones directly, large ones by a redirect to another host, with
ETag, the commit's hash and byte ranges. It counts what is asked and can be told to misbehave.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".bin")
"""Files of these kinds are handed out by redirect, as the hub does with what git-lfs keeps."""


@dataclass
class Repository:
    """One repository: its branches, and what each commit holds."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Put ``files`` on a branch; returns the commit's hash."""
        digest = hashlib.sha1(repr((ref, sorted(files.items()))).encode()).hexdigest()
        self.commits[digest] = files
        self.refs[ref] = digest
        return digest


@dataclass
class Server:
    """Its repositories, by ``models/owner/name`` or ``datasets/owner/name``, and how it is to misbehave."""

    url: str = ""
    token: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of each request, and for a range its first byte."""
    sent_with_token: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    """File name -> how often the connection ends halfway through it."""
    failing: int = 0
    """A status that every request is answered with; 0: none."""

    def repository(self, kind: str, name: str) -> Repository:
        return self.repositories.setdefault(f"{kind}s/{name}", Repository())


@contextmanager
def serve() -> Iterator[Server]:
    """A running server, stopped at the end."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            first = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
            state.asked.append(f"{self.command} {path}" + (f" from {first}" if first else ""))
            if self.headers.get("Authorization"):
                state.sent_with_token.append(path)
            if state.failing:
                return self._error(state.failing, "", "trouble")
            if path.startswith("/blob/"):
                return self._blob(path, int(first or 0))
            api, _, rest = path.removeprefix("/").partition("/")
            if api == "api":
                parts = rest.split("/")
                kind, name, rest = parts[0], "/".join(parts[1:3]), "/".join(parts[3:])
            else:
                parts = path.removeprefix("/").removeprefix("datasets/").split("/")
                kind = "datasets" if path.startswith("/datasets/") else "models"
                name, rest = "/".join(parts[:2]), "/".join(parts[2:])
            repository = state.repositories.get(f"{kind}/{name}")
            allowed = self.headers.get("Authorization") == f"Bearer {state.token}"
            if repository is None or (repository.private and not allowed):
                return self._error(401, "", "Invalid username or password.")  # as for what does not exist
            if repository.gated and not allowed and api != "api":
                return self._error(403, "GatedRepo", "Access is restricted")
            verb, _, rest = rest.partition("/")
            if api == "api" and verb in ("", "revision"):
                return self._info(repository, name, rest or "main")
            revision = next((ref for ref in (*repository.refs, *repository.commits) if rest.startswith(ref)), "")
            if not revision:
                return self._error(404, "RevisionNotFound", "Invalid rev id")
            commit = repository.refs.get(revision, revision)
            if verb == "tree":
                return self._tree(repository.commits[commit])
            return self._file(repository.commits[commit], commit, rest.removeprefix(revision).strip("/"))

        def _info(self, repository: Repository, name: str, revision: str) -> None:
            commit = repository.refs.get(revision, revision)
            if commit not in repository.commits:
                return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            names = [{"rfilename": each} for each in repository.commits[commit]]
            about = {"id": name, "modelId": name, "sha": commit, "siblings": names, "tags": [], "downloads": 0}
            return self._json(about | {"private": repository.private, "disabled": False, "likes": 0, "gated": False})

        def _tree(self, files: dict[str, bytes]) -> None:
            rows = []
            for name, content in files.items():
                row: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _sha1(content)}
                if name.endswith(LARGE):
                    digest = hashlib.sha256(content).hexdigest()
                    row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                rows.append(row)
            self._json(rows)

        def _file(self, files: dict[str, bytes], commit: str, name: str) -> None:
            if name not in files:
                return self._error(404, "EntryNotFound", "Entry not found", commit)
            content = files[name]
            headers = {"X-Repo-Commit": commit}
            if not name.endswith(LARGE):
                headers["ETag"] = f'"{_sha1(content)}"'
                return self._send(200, content, headers)
            headers["X-Linked-Size"] = str(len(content))
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            where = hashlib.sha256(content).hexdigest()
            blobs[where] = content
            headers["Location"] = f"{state.url.replace('127.0.0.1', 'localhost')}/blob/{where}/{name}"
            return self._send(302, b"", headers)

        def _blob(self, path: str, first: int) -> None:
            _, _, where, name = path.split("/", 3)
            content = blobs[where]
            headers = {"ETag": f'"{where}"', "Accept-Ranges": "bytes"}
            if first:
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            cut = self.command == "GET" and state.cut.get(name, 0) > 0
            if cut:
                state.cut[name] -= 1
            return self._send(206 if first else 200, content[first:], headers, cut)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _error(self, status: int, code: str, message: str, commit: str = "") -> None:
            headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit}
            self._send(status, b"{}", {name: value for name, value in headers.items() if value})

        def _send(self, status: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

    blobs: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

"""Programs that begin with their libraries imported.

Importing torch and transformers takes a program several times as long as its work on a tiny model. Here one process
imports them once, when it is first asked, and each `python -m stages.NAME` and each `python -c CODE` is a fork of it: a
process of its own, with its own environment and folder, that runs the project's code. What a library reads of the
environment when it is imported is as in the first process, which is told that there is no hub: stages that use it are
none of these.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGES = ("prune", "finetune", "generate", "score", "time")
PYTHON = """\
#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] == ["-c"] or sys.argv[1:2] == ["-m"] and sys.argv[2] in {modules}:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect({address!r})
        asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(asked)
        sys.exit(int(server.recv(8) or b"1"))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextmanager
def preloaded_python() -> Iterator[Path]:
    """A `python`, alone in its folder, that forks its programs off a process that lasts as long as the context."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address = f"{folder}/socket"
        script = Path(folder, "bin/python")
        script.parent.mkdir()
        modules = tuple(f"stages.{name}" for name in STAGES)
        script.write_text(PYTHON.format(python=sys.executable, address=address, modules=modules))
        script.chmod(0o755)
        listening.bind(address)
        listening.listen()
        code = f"from tests.preloaded import serve; serve({listening.fileno()}, {os.getpid()})"
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], env=environment, pass_fds=[listening.fileno()]
        ) as server:
            listening.close()  # so that nobody waits for a server that died
            try:
                yield script
            finally:
                server.terminate()


def serve(listening: int, parent: int) -> None:
    """Fork for whoever asks, until the process that wanted it is gone. In a fork, run what was asked for and return."""
    with socket.socket(fileno=listening) as server:
        server.settimeout(10)
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if os.getppid() != parent:  # killed
                    return
                continue
            _import_libraries()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        arguments, folder, environment = json.loads(file.read(int.from_bytes(size, "big")))
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0:1] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    kind, program, *rest = arguments
    sys.argv[:] = [kind if kind == "-c" else program, *rest]
    if kind == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def _import_libraries() -> None:
    import datasets  # noqa: F401
    import nltk.stem.porter  # noqa: F401
    import transformers.trainer  # noqa: F401
    from transformers.models.auto import modeling_auto  # noqa: F401

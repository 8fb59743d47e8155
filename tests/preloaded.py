"""Stages that begin with their libraries imported, for tests in which DVC runs many of them.

Importing torch and transformers takes a stage several times as long as its work on a tiny model. Here one process
imports them once, and each `python -m stages.NAME` is a fork of it: a process of its own, with its own environment and
folder, that runs the project's code. Stages that use the hub are none of these: its library reads the environment when
it is imported.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGES = ("prune", "finetune", "generate", "score", "time")
PYTHON = """\
#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] == ["-m"] and sys.argv[2] in {modules}:
    with socket.socket(socket.AF_UNIX) as server:
        server.connect({address!r})
        asked = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(server, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        server.sendall(asked)
        sys.exit(int(server.recv(8) or b"1"))
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


@contextmanager
def preloaded_python(folder: Path) -> Iterator[Path]:
    """A folder for PATH with a `python` that forks these stages off a process that lasts as long as the context."""
    address = str(folder / "socket")
    script = folder / "bin/python"
    script.parent.mkdir()
    modules = tuple(f"stages.{name}" for name in STAGES)
    script.write_text(PYTHON.format(python=sys.executable, address=address, modules=modules))
    script.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        command = [sys.executable, "-c", f"from tests.preloaded import serve; serve({listening.fileno()})"]
        root = Path(__file__).parents[1]
        with subprocess.Popen(command, cwd=root, pass_fds=[listening.fileno()]) as server:
            try:
                yield script.parent
            finally:
                server.terminate()


def serve(listening: int) -> None:
    """Fork for whoever asks, until the process that wanted it is gone. In a fork, run the stage and return."""
    import datasets  # noqa: F401
    import nltk.stem.porter  # noqa: F401
    import transformers.trainer  # noqa: F401
    from transformers.models.auto import modeling_auto  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    with socket.socket(fileno=listening) as server:
        server.settimeout(10)
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                if os.getppid() != parent:  # killed
                    return
                continue
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        (module, *arguments), folder, environment = json.loads(file.read(int.from_bytes(size, "big")))
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
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

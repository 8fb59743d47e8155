"""Run a grid of experiments, each by `dvc exp run`, one after another.

The sweep works in a copy of the repository, which shares its git objects and DVC's cache: `dvc exp run` detaches HEAD
and rewrites params.yaml, dvc.lock and metrics, and a sweep of hours that is killed would leave the user's files so. In
the copy nothing is lost by that, what it trained so far lies there still, and the user may work on meanwhile. What
comes back are experiments.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from lopside.errors import LopsideError
from lopside.grid import Cell, Plan, plan
from lopside.history import flat, row_of
from lopside.known import DATASETS, HUB_MODELS, locate
from lopside.params import MODELS
from lopside.repository import PARAMS, SHORT, cache_folder, experiments, git, head, read_mapping, read_text, stages_of

DVC = (sys.executable, "-m", "dvc")

WORK = Path(".dvc/tmp/sweep")
COPY = WORK / "copy"
LOGS = WORK / "logs"
MARK = "LOPSIDE_SWEEP"
"""Environment variable that all processes of a sweep carry; its value is the copy that they work in."""

LAST_BUT_TIME = "score"
"""The stage whose run leaves but `time` to do."""
UNTIMED = "-untimed"
"""End of the names of experiments that are run so far; none is handed over."""

STARTS = 3
"""How often the workers of DVC's queue are started, where they end and get nothing done."""

STAGE = re.compile(r"Running stage '([^']+)'")


@dataclass
class Outcome:
    """What became of the cells, by name."""

    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def plan_here(grid: str, seeds: int, overrides: Sequence[str]) -> Plan:
    """The plan for the commit that is checked out.

    Raises LopsideError as :func:`plan`, where there is no repository of git and DVC here, and where files that the
    pipeline reads are not as they are committed.
    """
    commit = head()
    if not Path(".dvc").is_dir() or not Path("dvc.yaml").is_file():
        raise LopsideError("dvc.yaml: is not here, or DVC is not set up; run this in the root of the project")
    planned = plan(grid, seeds, overrides, read_text(PARAMS, commit), commit)
    untouched = set(untracked(planned))
    dirty = _uncommitted([*_inputs(), *(path for path in own_paths(planned) if path not in untouched)])
    if dirty:
        raise LopsideError(
            f"not committed: {', '.join(dirty)}; a sweep runs what is committed, so that its experiments can be run "
            "again: commit or undo these first"
        )
    return planned


def lacks(cell: Cell) -> str:
    """Why a cell is not finished, in words; empty: there is an experiment of its name, with all its metrics.

    Raises LopsideError where there is one of other params, which could not be told from it by name.
    """
    reason = "there is no experiment of this name"
    for experiment in experiments(cell.name):
        params = flat(read_mapping(PARAMS, experiment.commit))
        other = sorted(key for key in params.keys() | cell.params.keys() if params.get(key) != cell.params.get(key))
        if other:
            raise LopsideError(
                f"experiment {cell.name}: is there with other params ({', '.join(other)}); remove or rename it: "
                f"`dvc exp remove {cell.name}`, `dvc exp rename {cell.name} NAME`"
            )
        try:
            row_of(experiment)
        except LopsideError as error:
            reason = str(error)
        else:
            return ""
    return reason


def sweep(planned: Plan, jobs: int = 1) -> Outcome:
    """Run the cells that are not finished; one that fails is reported, and the rest go on.

    With more than one job, all stages but `time` are run so many at a time, by DVC's queue, and then `time` cell by
    cell: it means nothing beside other work. What cells share is run once before that.

    Raises LopsideError where another sweep is at work here, and with more than one job where git does not track the
    user's data or model.
    """
    if jobs > 1 and (paths := untracked(planned)):
        raise LopsideError(
            f"--jobs: DVC's queue sees tracked files only: commit {', '.join(paths)}, or name them by absolute path"
        )
    if not any(map(lacks, planned.cells)):
        return Outcome([cell.name for cell in planned.cells])
    with _only_one(), _Copy(planned) as copy:  # which hands over what an earlier sweep ended and could not
        todo = [cell for cell in planned.cells if lacks(cell)]
        outcome = Outcome([cell.name for cell in planned.cells if cell not in todo])
        said = _Progress(len(planned.cells), len(outcome.done))
        first = {cell.seed: cell for cell in reversed(todo)}  # trains the dense model of its seed
        if jobs > 1 and len(todo) > len(first):
            for cell in first.values():
                _one(copy, cell, outcome, said)
            rest = [cell for cell in todo if first[cell.seed] is not cell]
            outcome.failed += copy.queue(rest, jobs, said)
            todo = [cell for cell in rest if cell.name not in outcome.failed]
        for cell in todo:
            _one(copy, cell, outcome, said)
    return outcome


def own_paths(planned: Plan) -> list[str]:
    """The relative paths of the user's own data and model."""
    params = planned.cells[0].params
    kinds = (("dataset", DATASETS), ("model", [*MODELS, *HUB_MODELS]))
    paths = [params[key] for key, names in kinds if locate(key, params[key], names) == "local"]
    return [path for path in paths if not Path(path).expanduser().is_absolute()]


def untracked(planned: Plan) -> list[str]:
    """Those of :func:`own_paths` that git does not track, so that no copy of the repository has them."""
    return [path for path in own_paths(planned) if not git("ls-files", "--", path)]


def time_left(taken: Sequence[float], running: float, cells: int) -> float | None:
    """Seconds until the last of ``cells`` is done, of which one has run for ``running`` seconds.

    taken: how long those before took; None where there were none.
    """
    if not taken:
        return None
    usual = statistics.median(taken)
    return max(0.0, usual - running) + usual * (cells - 1)


def duration(seconds: float) -> str:
    """Seconds in words, to two units, as in ``1 h 52 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _inputs() -> set[str]:
    """The files and folders that the pipeline reads and does not write, as dvc.yaml names them, and itself."""
    read, written = {PARAMS, "dvc.yaml"}, set()
    for stage in stages_of("dvc.yaml").values():
        definition = stage.get("do", stage)
        read |= set(_paths(definition.get("deps")))
        written |= {path for kind in ("outs", "metrics", "plots") for path in _paths(definition.get(kind))}
    return {path for path in read - written if "${" not in path}


def _paths(entries: Iterable[Any] | None) -> Iterator[str]:
    return (path for entry in entries or () for path in ([entry] if isinstance(entry, str) else entry))


def _uncommitted(paths: Iterable[str]) -> list[str]:
    """Those changed or new files that are among ``paths``, or in a folder that is."""
    prefix = (git("rev-parse", "--show-prefix") or "").strip()
    status = git("status", "--porcelain", "--untracked-files=all", "--no-renames", "-z", "--", ".") or ""
    changed = [entry[3:].removeprefix(prefix) for entry in status.split("\0") if entry]
    watched = {os.path.normpath(path) for path in paths}
    watched |= {f"{path}.dvc" for path in watched}
    return [name for name in changed if watched & {name, *(str(parent) for parent in Path(name).parents)}]


@contextmanager
def _only_one() -> Iterator[None]:
    WORK.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(WORK / "lock", timeout=0):
            yield
    except Timeout as error:
        raise LopsideError(f"{WORK}: another sweep is at work here; wait for it, or stop it") from error


def _one(copy: _Copy, cell: Cell, outcome: Outcome, said: _Progress) -> None:
    said.begin(cell.name)
    if copy.run(cell, said):
        outcome.done.append(cell.name)
        said.end()
    else:
        outcome.failed.append(cell.name)
        said.fail(copy.log(cell))


class _Progress:
    """Lines on stderr: which cell, which stage, how long it still takes."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.ended = total, done
        self.taken: list[float] = []
        self.cell, self.since = "", 0.0

    def begin(self, cell: str) -> None:
        self.cell, self.since = cell, time.monotonic()

    def stage(self, stage: str) -> None:
        left = time_left(self.taken, time.monotonic() - self.since, self.total - self.ended)
        until = f"about {duration(left)} left" if left is not None else "time left is known after the first cell"
        self.say(f"[{self.ended + 1}/{self.total}] {self.cell}: {stage}; {until}")

    def end(self) -> None:
        taken = time.monotonic() - self.since
        self.taken.append(taken)
        self.ended += 1
        self.say(f"[{self.ended}/{self.total}] {self.cell}: done in {duration(taken)}")

    def fail(self, log: Path) -> None:
        self.ended += 1
        end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
        self.say(f"[{self.ended}/{self.total}] {self.cell}: failed; the end of {log}:")
        for line in end:
            self.say(f"    {line}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Copy:
    """The copy of the repository that a sweep works in: made or put right on entry, its processes ended on exit."""

    def __init__(self, planned: Plan) -> None:
        self.planned = planned
        self.folder = COPY.resolve()
        self.root = Path((git("rev-parse", "--show-toplevel") or ".").strip())
        self.project = self.folder / (git("rev-parse", "--show-prefix") or "").strip()
        source = self.project / "src"
        self.environment = os.environ | {
            MARK: str(self.folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            # Of the copy: an editable install names the user's files, which may change meanwhile.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")])),
            "DVC_EXP_AUTO_PUSH": "false",
        }

    def __enter__(self) -> _Copy:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._end_processes()
        if not (self.folder / ".git").is_dir() or not self._clean():
            shutil.rmtree(self.folder, ignore_errors=True)
            made = git("clone", "--quiet", "--shared", "--no-checkout", str(self.root), str(self.folder))
            if made is None or not self._clean():
                raise LopsideError(f"{COPY}: git could not make a copy of this repository there")
        self._configure()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_processes()

    def run(self, cell: Cell, said: _Progress) -> bool:
        """Run a cell to its end and hand it over; whether that went well."""
        self._put_right()
        self._link_own_data()
        with self.log(cell).open("w", encoding="utf-8") as log:
            process = self._start(self._command(cell))
            assert process.stdout
            for line in process.stdout:
                log.write(line)
                log.flush()
                if match := STAGE.search(line):
                    said.stage(match[1])
        went_well = process.wait() == 0
        self._hand_over()
        if went_well and (reason := lacks(cell)):
            with self.log(cell).open("a", encoding="utf-8") as log:
                log.write(f"{cell.name} has no row in the history: {reason}\n")
            return False
        return went_well

    def queue(self, cells: Sequence[Cell], jobs: int, said: _Progress) -> list[str]:
        """Run all but `time` of the cells, so many at a time, and leave it in DVC's cache; the names of what failed.

        DVC's workers may end without a word: where none is left and work is, they are started again, and where that
        does not help the rest is left to be run cell by cell.
        """
        from dvc.repo import Repo

        self._put_right()
        said.say(f"{len(cells)} cells, {jobs} at a time: all but `time`, which runs alone after that")
        for cell in cells:
            self._call([*self._command(cell, UNTIMED), "--queue", LAST_BUT_TIME])
        with Repo(str(self.project)) as repo:
            queue = repo.experiments.celery_queue
            ended: dict[str, bool] = {}
            starts = 0
            while len(ended) < len(cells):
                if not self._processes():
                    if starts == STARTS:
                        said.say(f"DVC's queue does not go on: {len(cells) - len(ended)} cells are run one by one")
                        break
                    self._call([*DVC, "queue", "start", "--jobs", str(jobs)])
                    starts += 1
                time.sleep(1)
                now = {entry.name.removesuffix(UNTIMED): result is not None for entry, result in queue.iter_done()}
                for name in now.keys() - ended.keys():
                    said.say(f"{name}: {'all but `time` is done' if now[name] else 'failed'}")
                    starts = 0
                ended = now
        failed = [cell for cell in cells if ended.get(cell.name) is False]
        for cell in failed:
            printed = self._call([*DVC, "queue", "logs", f"{cell.name}{UNTIMED}"])
            self.log(cell).write_text(printed, encoding="utf-8")
            said.begin(cell.name)
            said.fail(self.log(cell))
        self._end_processes()
        return [cell.name for cell in failed]

    def log(self, cell: Cell) -> Path:
        """What DVC and the stages print."""
        return LOGS / f"{cell.name}.log"

    def _command(self, cell: Cell, suffix: str = "") -> list[str]:
        settings = [*self.planned.overrides, f"enc={cell.enc}", f"dec={cell.dec}", f"seed={cell.seed}"]
        options = [part for setting in settings for part in ("-S", setting)]
        return [*DVC, "exp", "run", "--name", f"{cell.name}{suffix}", *options]

    def _start(self, command: Sequence[str], folder: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=folder or self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )

    def _call(self, command: Sequence[str], folder: Path | None = None) -> str:
        process = self._start(command, folder)
        printed, _ = process.communicate()
        if process.returncode != 0:
            raise LopsideError(f"{' '.join(command[1:])}: failed: {printed.strip()}")
        return printed

    def _git(self, *arguments: str) -> str | None:
        # By name: from a copy that is broken, git would go up to the user's repository and put that right.
        return git("--git-dir", f"{self.folder}/.git", "--work-tree", str(self.folder), *arguments, folder=self.folder)

    def _clean(self) -> bool:
        """Whether the copy could be put right: experiments handed over, files as committed, DVC's traces gone."""
        self._hand_over()
        for lock in (self.folder / ".git").rglob("*.lock"):  # of references too, each beside its own
            lock.unlink()
        shutil.rmtree(self.project / ".dvc/tmp", ignore_errors=True)
        for reference in (self._git("for-each-ref", "--format=%(refname)", "refs/exps") or "").split():
            self._git("update-ref", "--no-deref", "-d", reference)
        reset = self._git("checkout", "--quiet", "--force", "--detach", self.planned.commit)
        return reset is not None and self._git("clean", "--quiet", "-fd") is not None

    def _put_right(self) -> None:
        if not self._clean():
            commit = self.planned.commit[:SHORT]
            raise LopsideError(f"{COPY}: git could not check {commit} out there; delete that folder and start again")

    def _hand_over(self) -> None:
        """Bring the experiments into the user's repository. Raises LopsideError where git cannot; they stay here."""
        for reference in (self._git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/*") or "").split():
            if not reference.endswith(UNTIMED):
                fetch = ("git", "fetch", "--quiet", "--no-tags", "--no-write-fetch-head")
                try:
                    self._call([*fetch, str(self.folder), f"+{reference}:{reference}"], folder=self.root)
                except LopsideError as error:
                    raise LopsideError(f"{error}\nThe experiment waits in {COPY} for that to be mended.") from error

    def _configure(self) -> None:
        """DVC's cache and settings, and who commits, are those of the user's repository."""
        from dvc.config import Config

        local = Path(".dvc/config.local")
        if local.is_file():
            shutil.copy(local, self.project / local)
        with Config(str(self.project / ".dvc")).edit("local") as config:
            config["cache"]["dir"] = str(cache_folder().resolve())
        for key in ("user.name", "user.email"):
            if (value := git("config", "--local", key)) is not None:
                self._git("config", key, value.strip())

    def _link_own_data(self) -> None:
        for path in untracked(self.planned):
            link = self.project / path
            if not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(path).resolve())

    def _processes(self) -> list[psutil.Process]:
        """All that works in the copy, DVC, stages and the queue's workers, of this sweep or of one that was killed."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.pid != os.getpid() and process.environ().get(MARK) == str(self.folder)
        except (psutil.Error, OSError):  # another user's, or gone
            return False

    def _end_processes(self) -> None:
        left = self._processes()
        for end in ("terminate", "kill"):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    getattr(process, end)()
            _, left = psutil.wait_procs(left, timeout=5)

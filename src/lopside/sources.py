"""The built-in data set: how it is got, and how its splits are written. (Others: `lopside.tables`.)

``docstrings`` is a hash-pinned list of wheels, fetched from a package index with pip and read as zip files.
Nothing of them is installed or run.
"""

import gc
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lopside.docstrings import BODY_WORDS, Pair, deduplicate, distribution_of, read_wheel, split
from lopside.errors import LopsideError
from lopside.files import new_folder, sha256_of, write_json
from lopside.progress import progress
from lopside.splits import COLUMNS, FOLDER, sample, write_split

if TYPE_CHECKING:
    import pandas as pd

    from lopside.params import LimitParams

BUILT_IN = {"docstrings": Path("data/docstrings.lock")}
"""Data sets that come with the repository: name -> the list of wheels, relative to its root."""
CACHE = Path("data/.wheels")
"""Where wheels stay, so that none is fetched twice."""
PLATFORMS = ("manylinux2014", "manylinux_2_17", "manylinux_2_24", "manylinux_2_27", "manylinux_2_28")
"""Wheels are asked for as CPython 3.11 on Linux takes them, so that all machines get the same; pure ones fit it too."""


# Wheels


@dataclass(frozen=True)
class Pin:
    """A line of a list of wheels: one version of one distribution and the SHA-256 its wheel must have."""

    distribution: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def normal(self) -> str:
        """As :func:`lopside.docstrings.distribution_of` writes it."""
        return f"{re.sub(r'[-_.]+', '-', self.distribution).lower()}=={self.version}"


def read_lock(path: Path) -> list[Pin]:
    """The pins of a list of wheels: a pip requirements file with a ``name==version --hash=sha256:...`` a line.

    Raises LopsideError where the file is absent or empty, or names the first line that is no such pin.
    """
    if not path.is_file():
        raise LopsideError(f"{path}: no such file; it lists the wheels that the data are read from")
    pins: dict[str, Pin] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"([\w.-]+)==([\w.!+-]+)\s+--hash=sha256:([0-9a-f]{64})", text, re.ASCII)
        if found is None:
            raise LopsideError(f"{path}, line {number}: {text!r} is not `name==version --hash=sha256:<64 hex digits>`")
        pin = Pin(*found.groups())
        if pin.normal in pins:
            raise LopsideError(f"{path}, line {number}: {pin} is listed twice")
        pins[pin.normal] = pin
    if not pins:
        raise LopsideError(f"{path}: lists no wheel")
    return list(pins.values())


def fetch_wheels(lock: Path, cache: Path = CACHE) -> list[Path]:
    """The wheels of a list, in its order: from ``cache`` where they lie there with the right hash, else by pip.

    Raises LopsideError that names the distribution which the index has not or has with another hash, or says why the
    index cannot be reached.
    """
    pins = read_lock(lock)
    missing = [pin for pin in pins if _cached(pin, cache) is None]
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".") as folder:
            try:
                _pip_download(missing, Path(folder))
            finally:  # what came before a failure need not come again
                for wheel in Path(folder).glob("*.whl"):
                    os.replace(wheel, cache / wheel.name)
    wheels = []
    for pin in pins:
        found = _cached(pin, cache)
        if found is None:
            raise LopsideError(f"{pin}: pip brought no wheel with the hash {pin.sha256}")
        wheels.append(found)
    return wheels


def _cached(pin: Pin, cache: Path) -> Path | None:
    candidates = (file for file in sorted(cache.glob(f"*-{pin.version}-*.whl")) if distribution_of(file) == pin.normal)
    return next((file for file in candidates if sha256_of(file) == pin.sha256), None)


def _pip_download(pins: Sequence[Pin], target: Path) -> None:
    requirements = target / "requirements.txt"
    requirements.write_text("".join(f"{pin} --hash=sha256:{pin.sha256}\n" for pin in pins), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation=cp", "--python-version=3.11", *(f"--platform={name}_x86_64" for name in PLATFORMS)]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--no-color"]
    command += [f"--dest={target}", f"--requirement={requirements}"]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as pip:
        for _ in progress(_begun(pip.stdout or (), said), total=len(pins), label="fetch wheels"):
            pass
    if pip.returncode:
        raise LopsideError(_explained("".join(said), pins))


def _begun(lines: Iterable[str], said: list[str]) -> Iterator[str]:
    """The lines with which pip begins a wheel; all of them are kept in ``said``."""
    for line in lines:
        said.append(line)
        if line.startswith(("Collecting ", "Processing ")):
            yield line


def _explained(said: str, pins: Sequence[Pin]) -> str:
    """pip's complaint as one line that names the distribution."""
    wrong = re.search(r"^ {4}(\S+) from .*\n +Expected sha256 (\w+)\n +Got +(\w+)", said, re.MULTILINE)
    if wrong:
        return f"{wrong[1]}: the package index has another wheel: its sha256 is {wrong[3]}, not {wrong[2]}"
    missing = re.search(r"^ERROR: No matching distribution found for (\S+)", said, re.MULTILINE)
    broken = re.search(r"^WARNING: Retrying .*? after connection broken by (.*)", said, re.MULTILINE)
    if missing:
        pin = next((pin for pin in pins if str(pin) == missing[1]), None)
        hashed = f" (sha256 {pin.sha256})" if pin else ""
        if broken:
            return f"{missing[1]}{hashed}: cannot be fetched, as the package index cannot be reached: {broken[1]}"
        return f"{missing[1]}{hashed}: the package index has no such wheel"
    lines = [line for line in said.splitlines() if line.strip()]
    return f"pip cannot fetch the wheels ({pins[0]} ...): {lines[-1] if lines else 'it says nothing'}"


def read_wheels_at_once(wheels: Sequence[Path], body_words: int = BODY_WORDS) -> list[Pair]:
    """Pairs of many wheels, read by as many processes as there are cores. Order of the wheels, duplicates included.

    ``body_words``: see :func:`lopside.docstrings.read_wheel`.
    """
    largest_first = sorted(range(len(wheels)), key=lambda number: -wheels[number].stat().st_size)
    pairs: dict[int, list[Pair]] = {}
    # spawn: the parent may have started threads, which do not survive a fork. No collector: syntax trees are millions
    # of objects without a cycle, and it would look through them all, again and again.
    with get_context("spawn").Pool(min(os.cpu_count() or 1, len(wheels)), initializer=gc.disable) as pool:
        read = pool.imap(partial(read_wheel, body_words=body_words), [wheels[number] for number in largest_first])
        for number, found in zip(largest_first, progress(read, total=len(wheels), label="read wheels"), strict=True):
            pairs[number] = found
    return [pair for number in range(len(wheels)) for pair in pairs[number]]


def licence_of(wheel: Path) -> str:
    """The licence a wheel's metadata name: its expression, else its classifiers, else the first line of its text."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8", "replace"))
    classifiers = [
        line.split(" :: ")[-1] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")
    ]
    named = [name for name in classifiers if name not in ("OSI Approved", "Freely Distributable")]
    text = (metadata["License"] or "").strip().splitlines()
    return str(metadata["License-Expression"] or "; ".join(named) or (text[0] if text else "unknown"))


# Splits


def make_splits(
    lock: Path,
    folder: Path = FOLDER,
    cache: Path = CACHE,
    trained: Iterable[Path] = (),
    sizes: tuple[int, int] = (2000, 2000),
    limits: "LimitParams | None" = None,
) -> dict[str, int]:
    """Write ``folder``: a Parquet file a split, and ``provenance.json``. Returns how many pairs each split has.

    ``trained`` are models whose training text must not be in validation or test; ``sizes`` are the pairs that
    validation and test get; ``limits`` leave a sample of each split. Equal lists give equal bytes, on any machine.
    Raises LopsideError; then nothing is written.
    """
    pins, wheels = read_lock(lock), fetch_wheels(lock, cache)
    parts = split(deduplicate(read_wheels_at_once(wheels)), *sizes)
    if limits:
        for name, part in parts.items():
            places = sample([pair.id for pair in part], getattr(limits, name), limits.seed)
            parts[name] = [part[place] for place in places]
    for name, part in parts.items():
        if not part:
            raise LopsideError(f"{lock}: its wheels leave no pair for the {name} split")
    for model in trained:
        check_not_trained_on({name: [pair.id for pair in parts[name]] for name in ("validation", "test")}, model)
    counts = {name: Counter(pair.source.split(" ")[0] for pair in part) for name, part in parts.items()}
    with new_folder(folder) as temporary:
        for name, part in parts.items():
            columns = {column: [getattr(pair, column) for pair in part] for column in COLUMNS}
            write_split(columns, temporary / f"{name}.parquet")
        provenance: dict[str, Any] = {
            "pairs": {name: len(part) for name, part in parts.items()},
            "distributions": [
                {
                    "distribution": pin.distribution,
                    "version": pin.version,
                    "file": wheel.name,
                    "sha256": pin.sha256,
                    "licence": licence_of(wheel),
                    "pairs": {name: count[pin.normal] for name, count in counts.items()},
                }
                for pin, wheel in zip(pins, wheels, strict=True)
            ],
        }
        if limits and any((limits.train, limits.validation, limits.test)):
            provenance["sample"] = vars(limits)
        write_json(temporary / "provenance.json", provenance)
    return {name: len(part) for name, part in parts.items()}


def frame_of(pairs: Sequence[Pair]) -> "pd.DataFrame":
    """The pairs as a table like that of :func:`lopside.splits.read_split`."""
    import pandas as pd

    return pd.DataFrame({name: [getattr(pair, name) for pair in pairs] for name in COLUMNS}, dtype=str)


def pairs_of(table: "pd.DataFrame") -> list[Pair]:
    """The pairs of such a table."""
    columns = (table[name].tolist() for name in ("document", "body", "summary", "source"))
    return [Pair(*values) for values in zip(*columns, strict=True)]


def check_not_trained_on(splits: Mapping[str, Iterable[str]], model: Path) -> None:
    """Raise LopsideError where a model was trained on a pair that ``splits`` (name -> ids) hold.

    ``trained_on.npy`` beside its weights has the ids of all pairs it was trained on, as sorted uint64.
    """
    import numpy as np

    path = Path(model) / "trained_on.npy"
    if not path.is_file():
        raise LopsideError(f"{path}: no such file; it says which pairs the model was trained on")
    try:
        trained_on = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LopsideError(f"{path}: cannot be read as an array: {error}") from error
    for name, ids in splits.items():
        codes = np.array([int(each, 16) for each in ids], dtype=np.uint64)
        common = codes[np.isin(codes, trained_on)]
        if len(common):
            raise LopsideError(
                f"{path}: the model was trained on {len(common)} of the {len(codes)} pairs of the {name} split, "
                f"{common[0]:016x} for one; figures on it would be worth nothing"
            )

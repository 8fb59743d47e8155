"""Models and data files from a Hugging Face hub, by huggingface_hub: only the files needed, at one commit.

What is fetched lies in huggingface_hub's cache, shared with other tools: a file appears there whole or not at all. A
connection that is cut is taken up where it ended; after a kill the files that were whole stay, and only the one under
way comes anew. HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_DATASETS_OFFLINE mean what they mean
there. Errors are said in our own words, never in the server's: nothing that a request held (a token) can be in them.
"""

import errno
import glob
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from lopside.architectures import layer_counts
from lopside.errors import LopsideError
from lopside.known import HUB_MODELS, locate
from lopside.models import BUILT_IN, COMPANIONS, INDEX, OTHER_WEIGHTS, WEIGHTS, check_kind, check_model, read_config

CONFIG = "config.json"
SHARDS = "model-*-of-*.safetensors"
NONE = "*/no/such/file"  # a pattern that fits no name


@dataclass(frozen=True)
class Fetched:
    """What came from the hub."""

    folder: Path
    """Holds the files under their names in the repository, perhaps beside others."""
    files: tuple[str, ...]
    commit: str
    """The commit that the revision asked for stood at."""


@dataclass(frozen=True)
class Hub:
    """A hub and where its files stay; None: what HF_ENDPOINT and HF_HOME say."""

    endpoint: str | None = None
    cache: Path | None = None

    def fetch_model(self, hub_id: str, revision: str = "") -> Fetched:
        """Config, safetensors, generation settings and tokenizer of a model; ``revision`` empty: main.

        Raises LopsideError before any weights come where the model has none in safetensors or cannot be pruned.
        """
        with _explained("model", "parent.revision", hub_id, revision, self._host()):
            commit, names = self._look_up("model", hub_id, revision)
            where = f"model: {hub_id}"
            if CONFIG not in names:
                raise LopsideError(f"{where}: {CONFIG} is missing; it is no model of transformers")
            weights = [WEIGHTS] if WEIGHTS in names else [INDEX, *(name for name in names if fnmatch(name, SHARDS))]
            if weights[0] not in names:
                raise LopsideError(f"{where}: {_no_weights(names)}")
            folder = self._download("model", hub_id, commit, [CONFIG])
            _check_family(folder, where)
            companions = [name for name in names if any(fnmatch(name, each) for each in COMPANIONS) and "/" not in name]
            chosen = [CONFIG, *weights, *companions]
            return Fetched(self._download("model", hub_id, commit, chosen), tuple(sorted(set(chosen))), commit)

    def fetch_files(self, hub_id: str, revision: str, choose: Callable[[Sequence[str]], Sequence[str]]) -> Fetched:
        """Those files of a data set that ``choose`` picks from the names of all; ``revision`` empty: main."""
        with _offline_data(), _explained("dataset", "data.revision", hub_id, revision, self._host()):
            commit, names = self._look_up("dataset", hub_id, revision)
            chosen = tuple(choose(names))
            return Fetched(self._download("dataset", hub_id, commit, chosen), chosen, commit)

    def _look_up(self, kind: str, hub_id: str, revision: str) -> tuple[str, list[str]]:
        """The commit and the names of all its files; without a network, from the cache."""
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub._tree_cache import read_tree_cache
        from huggingface_hub.errors import OfflineModeIsEnabled
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint)
        commit = api.resolve_revision(hub_id, repo_type=kind, revision=revision or None, cache_dir=self.cache).resolved
        try:
            tree = api.list_repo_tree(hub_id, recursive=True, revision=commit, repo_type=kind)
            return commit, sorted(each.path for each in tree if isinstance(each, RepoFile))
        except (OfflineModeIsEnabled, httpx2.TransportError):
            folder = self._download(kind, hub_id, commit, [], offline=True)
            # The list that came with an earlier download: the folder itself may hold part of what there is, and a split
            # that never came would not be missed.
            listed = read_tree_cache(str(folder.parents[1]), commit)
            if listed is None:
                raise LopsideError(f"{kind}: {hub_id}: the cache may hold but part of it; fetch it online") from None
            return commit, sorted(listed)

    def _download(self, kind: str, hub_id: str, commit: str, names: Sequence[str], offline: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        with _quiet():
            folder = snapshot_download(
                hub_id,
                repo_type=kind,
                revision=commit,
                allow_patterns=[glob.escape(name) for name in names] or [NONE],
                endpoint=self.endpoint,
                cache_dir=self.cache,
                local_files_only=offline,
            )
        return Path(folder)

    def _host(self) -> str:
        """The hub's name in messages; not its address, which may hold a password."""
        return (
            urlsplit(self.endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or "the hub"
        )


def find_model(name: str, revision: str = "", hub: Hub | None = None) -> tuple[Path, dict[str, Any]]:
    """The folder of the model that params.yaml calls ``name``, fetched if need be, and where it is from.

    Args:
        name: built-in, a short name, owner/name on the hub, or a folder here.
        revision: of a model on the hub: branch, tag or commit; empty: main.
        hub: another than the usual one.

    Returns:
        The folder, config and weights seen to be whole; and ``model``, for the hub's also ``hub_id``, ``revision`` and
        the ``commit`` it stood at.

    Raises:
        LopsideError: there is none, it is broken, no encoder-decoder, or of a family that is not supported.
    """
    origin: dict[str, Any] = {"model": name}
    kind = locate("model", name, [*BUILT_IN, *HUB_MODELS])
    if name in HUB_MODELS or kind == "hub":
        hub_id = HUB_MODELS.get(name, name)
        fetched = (hub or Hub()).fetch_model(hub_id, revision)
        folder = fetched.folder
        origin |= {"hub_id": hub_id, "revision": revision or "main", "commit": fetched.commit}
    else:
        folder = BUILT_IN.get(name) or Path(name).expanduser()
        if revision:
            raise LopsideError(f"parent.revision: {revision!r} is refused; {name} is not on a hub. Allowed: empty")
    _check_family(folder, f"model: {name}")
    check_model(folder)
    return folder, origin


def _check_family(folder: Path, where: str) -> None:
    """Raise LopsideError where config.json is not that of a model that can be pruned."""
    check_kind(folder, where)
    try:
        layer_counts(read_config(folder))
    except LopsideError as error:
        raise LopsideError(f"{where}: {error}") from None


def _no_weights(names: Sequence[str]) -> str:
    others = [name for name in names if any(fnmatch(name, pattern) for pattern in OTHER_WEIGHTS)]
    if not others:
        return f"{WEIGHTS}: the model's weights are missing"
    return (
        f"{others[0]}: weights are read from safetensors files alone. Look on its page for a pull request that has "
        "them (then -S parent.revision=refs/pr/NUMBER), or load the model once where you trust it, call its "
        "save_pretrained(), and give that folder"
    )


@contextmanager
def _explained(
    key: Literal["model", "dataset"], revision_key: str, hub_id: str, revision: str, host: str
) -> Iterator[None]:
    """Turn what huggingface_hub raises into a LopsideError that names key and repository."""
    import httpx2
    from huggingface_hub import errors

    where = f"{key}: {hub_id}"
    try:
        yield
    except errors.RevisionNotFoundError:
        raise LopsideError(f"{revision_key}: {revision!r}: {hub_id} has no such branch, tag or commit") from None
    except errors.GatedRepoError:
        raise LopsideError(f"{where}: {host} asks for consent first: give it on its page, and set HF_TOKEN") from None
    except errors.EntryNotFoundError as error:
        raise LopsideError(f"{where}: {_unreachable(error, host)}") from None
    except errors.HfHubHTTPError as error:
        # 401 is also the answer for what does not exist, to anyone who might not be allowed to know.
        if isinstance(error, errors.RepositoryNotFoundError) or error.response.status_code == 401:
            said = f"{host} has no such {key}, or it is private and HF_TOKEN is not set or of no use"
        else:
            said = f"{host} answered with status {error.response.status_code}; try again"
        raise LopsideError(f"{where}: {said}") from None
    except (errors.RevisionResolutionError, errors.OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise LopsideError(f"{where}: {_unreachable(error, host)}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # said by the command
        raise LopsideError(
            f"{where}: cannot be fetched from {host}: {error.strerror or 'a file came with another size than said'}"
        ) from None


def _unreachable(error: BaseException, host: str) -> str:
    """Why something neither is in the cache nor came: offline by wish, a server's fault, or no connection."""
    from huggingface_hub import errors

    causes: list[BaseException] = []
    while error and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    if any(isinstance(cause, errors.OfflineModeIsEnabled) for cause in causes):
        return "is not in the cache, and HF_HUB_OFFLINE, or a variable like it, forbids to fetch it"
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            return f"is not in the cache, and {host} answered with status {cause.response.status_code}; try again"
    return f"is not in the cache, and {host} cannot be reached"


@contextmanager
def _offline_data() -> Iterator[None]:
    """HF_DATASETS_OFFLINE is known to the library datasets alone: huggingface_hub is told while data are fetched."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars in a log."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        if shown and not sys.stderr.isatty():
            enable_progress_bars()

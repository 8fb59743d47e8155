"""What is known of models and data sets by name: pure data, and the question what kind of place another name is."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lopside.errors import LopsideError

PREFIXED_TYPES = ("t5", "mt5", "umt5", "longt5")
"""Model types that were taught their tasks by a prefix, or that are fine-tuned with one as their parents were."""

NUMBERED_BEHIND_PADDING = ("roberta",)
"""Model types whose first position has the number behind their padding token's: the numbers before it are no use."""


@dataclass(frozen=True)
class Known:
    """A data set. The defaults are those of any set that is not in the table: the paper's (arXiv 2304.02721)."""

    hub_id: str = ""
    revision: str = "main"
    """``refs/convert/parquet`` is the hub's own Parquet copy, for repositories whose ``main`` is a loading script."""
    config: str = ""
    """The folder of the repository that holds the files; empty: there is but one."""
    columns: dict[str, str] = field(default_factory=dict)
    """Role (document, summary, body, id) -> column."""
    prefix: str = "summarize: "
    """Before each document, for models of PREFIXED_TYPES."""
    source_tokens: int = 1024
    target_tokens: int = 128


HUB_MODELS = {f"flan-t5-{size}": f"google/flan-t5-{size}" for size in ("small", "base", "large")}
"""Short names -> ids on the hub."""

DATASETS = {
    "docstrings": Known(source_tokens=80, target_tokens=40),
    "cnn_dailymail": Known(
        "abisee/cnn_dailymail", config="3.0.0", columns={"document": "article", "summary": "highlights", "id": "id"}
    ),
    "xsum": Known(
        "EdinburghNLP/xsum", "refs/convert/parquet", columns={"document": "document", "summary": "summary", "id": "id"}
    ),
    # The authors' own repository, Samsung/samsum, is gone from the hub since May 2025.
    "samsum": Known("knkarthick/samsum", columns={"document": "dialogue", "summary": "summary", "id": "id"}),
    "multi_news": Known(
        "alexfabbri/multi_news", "refs/convert/parquet", columns={"document": "document", "summary": "summary"}
    ),
    "billsum": Known("FiscalNote/billsum", columns={"document": "text", "summary": "summary"}),
    "reddit_tifu": Known(
        "ctr4si/reddit_tifu",
        "refs/convert/parquet",
        config="long",
        columns={"document": "documents", "summary": "tldr"},
    ),
}

HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
FILE = re.compile(r"\.(jsonl|json|csv|parquet)(\.gz)?$", re.IGNORECASE)

Kind = Literal["known", "local", "hub"]


def known_dataset(name: str) -> Known:
    """What is known of the data set that params.yaml calls ``name``; of any other, the defaults."""
    return DATASETS.get(name, Known())


def locate(key: str, name: str, names: Iterable[str]) -> Kind:
    """Whether ``name``, the value of ``key``, is one of ``names``, a file or folder here, or owner/name on the hub.

    A known name goes before what lies here under the same name (write ``./xsum`` for that), and what lies here goes
    before the hub. Raises LopsideError where it is none of them.
    """
    names = list(names)
    if name in names:
        return "known"
    path = Path(name).expanduser()
    if path.exists():
        return "local"
    if not name.startswith((".", "/", "~")) and not FILE.search(name) and HUB_ID.fullmatch(name):
        return "hub"
    near = difflib.get_close_matches(name.rstrip("/").rpartition("/")[2], names, n=1)
    raise LopsideError(
        f"{key}: {name}: there is no such file or folder, nor is it an id on the hub (owner/name) or one of "
        + ", ".join(names)
        + (f"; did you mean {near[0]}?" if near else "")
    )

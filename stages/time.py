"""Time the fine-tuned dense and pruned models side by side: metrics/latency.json."""

import json
from pathlib import Path

from lopside.cli import stage
from lopside.errors import LopsideError
from lopside.latency import measure
from lopside.machine import one_line
from lopside.params import Params

SPLIT = Path("data/splits/test.parquet")
MACHINE = Path("metrics/machine.json")
MODELS = Path("outputs/finetune")


@stage
def main(params: Params) -> None:
    """Time dense and pruned side by side, in one process."""
    for path in (SPLIT, MACHINE):
        if not path.is_file():
            raise LopsideError(f"{path} is missing; `dvc repro` makes what comes before this stage")
    documents = read_documents(SPLIT)
    if not documents:
        raise LopsideError(f"{SPLIT}: the split has no document; at least one is needed")
    latency = measure(
        MODELS / "dense",
        MODELS / "pruned",
        documents,
        batch_sizes=params.time.batch_sizes,
        source_tokens=params.time.source_tokens,
        new_tokens=params.time.new_tokens,
        warmup=params.time.warmup,
        min_pairs=params.time.min_pairs,
        max_seconds=params.time.max_seconds,
        threads=params.time.threads,
        dtype=params.time.dtype,
        device=params.device,
    )
    latency.write_timings("outputs/timings.csv")
    latency.write_plot("metrics/plots/latency.csv")
    latency.write_metrics("metrics/latency.json", one_line(json.loads(MACHINE.read_text(encoding="utf-8"))))


def read_documents(split: Path) -> list[str]:
    """The documents of a split, in order."""
    import pyarrow.parquet

    documents: list[str] = pyarrow.parquet.read_table(split, columns=["document"])["document"].to_pylist()
    return documents


if __name__ == "__main__":
    main()

"""Time the fine-tuned dense and pruned models side by side: metrics/latency.json."""

import json
from pathlib import Path

from lopside.cli import stage
from lopside.errors import LopsideError
from lopside.inputs import choose_inputs
from lopside.latency import Effort, measure
from lopside.pairs import SIDES
from lopside.params import Params
from lopside.splits import read_split

MACHINE = Path("metrics/machine.json")
MODELS = Path("outputs/finetune")
EXPORTED = Path("outputs/export")


@stage
def main(params: Params) -> None:
    """Time dense and pruned side by side, in one process."""
    documents = read_split("test")["document"].tolist()
    if not MACHINE.is_file():
        raise LopsideError(f"{MACHINE}: no such file; `dvc repro machine` makes it")
    inputs = choose_inputs(
        MODELS / "dense",
        params.dataset,
        params.data.prefix,
        params.data.max_source_tokens,
        params.data.max_target_tokens,
    )
    latency = measure(
        {side: MODELS / side for side in SIDES},
        {side: EXPORTED / side for side in SIDES},
        documents,
        batch_sizes=params.time.batch_sizes,
        source_tokens=params.time.source_tokens,
        new_tokens=params.time.new_tokens,
        inputs=inputs,
        max_new_tokens=params.generate.max_new_tokens or inputs.max_target_tokens,
        num_beams=params.generate.num_beams,
        effort=Effort(
            warmup=params.time.warmup,
            min_pairs=params.time.min_pairs,
            max_seconds=params.time.max_seconds,
            precision=params.time.precision,
        ),
        threads=params.time.threads,
        device=params.device,
    )
    latency.write_timings("outputs/timings.csv")
    latency.write_plot("metrics/plots/latency.csv")
    latency.write_metrics("metrics/latency.json", json.loads(MACHINE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()

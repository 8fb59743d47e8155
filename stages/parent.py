"""The full model: taken as it is, or fine-tuned on the task first."""

from pathlib import Path

from lopside.cli import stage
from lopside.files import new_folder, write_json
from lopside.hub import find_model
from lopside.models import copy_model
from lopside.params import Params

TARGET = Path("outputs/parent")
ORIGIN = Path("outputs/parent_origin.json")
CURVE = Path("outputs/parent_curve.csv")


@stage
def main(params: Params) -> None:
    """Take the full model as it is, or fine-tune it on the task (parent.train), as outputs/parent."""
    source, origin = find_model(params.model, params.parent.revision)
    print(", ".join(f"{key} {value}" for key, value in origin.items()), flush=True)
    if params.parent.train:
        _train(params, source)
    else:
        with new_folder(TARGET) as folder:
            copy_model(source, folder)
    write_json(ORIGIN, origin)


def _train(params: Params, source: Path) -> None:
    from lopside.inputs import choose_inputs
    from lopside.machine import choose_device, keep_memory, set_threads
    from lopside.splits import read_split

    train, validation = read_split("train"), read_split("validation")
    inputs = choose_inputs(
        source, params.dataset, params.data.prefix, params.data.max_source_tokens, params.data.max_target_tokens
    )
    keep_memory()
    device = choose_device(params.device)
    set_threads(0)
    from lopside.training import finetune

    finetune(source, TARGET, CURVE, train, validation, params.train, inputs, params.seed, device)


if __name__ == "__main__":
    main()

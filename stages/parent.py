"""The full model: taken as it is, or fine-tuned on the task first."""

from pathlib import Path

from lopside.cli import stage
from lopside.files import new_folder
from lopside.models import check_model, copy_model, model_folder
from lopside.params import Params

TARGET = Path("outputs/parent")
CURVE = Path("outputs/parent_curve.csv")


@stage
def main(params: Params) -> None:
    """Take the full model as it is, or fine-tune it on the task (parent.train), as outputs/parent."""
    source = model_folder(params.model)
    check_model(source)
    if params.parent.train:
        _train(params, source)
        return
    with new_folder(TARGET) as folder:
        copy_model(source, folder)


def _train(params: Params, source: Path) -> None:
    from lopside.machine import choose_device, keep_memory, set_threads
    from lopside.splits import read_split

    train, validation = read_split("train"), read_split("validation")
    keep_memory()
    device = choose_device(params.device)
    set_threads(0)
    from lopside.training import finetune

    finetune(source, TARGET, CURVE, train, validation, params.train, params.data, params.seed, device)


if __name__ == "__main__":
    main()

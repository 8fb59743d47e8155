"""Write down what DVC cannot see by itself: what this machine is, and what lies at the user's own paths.

Since this always runs, and first, it is also where an engine is refused that could not serve what would be trained.
"""

from collections.abc import Iterable
from pathlib import Path

from lopside.cli import stage
from lopside.files import sha256_of, write_json
from lopside.known import DATASETS, HUB_MODELS, locate
from lopside.machine import fingerprint
from lopside.params import Params

OWN = Path("outputs/own")


@stage
def main(params: Params) -> None:
    """Write this machine's fingerprint, so that no time of another machine is taken for one of this, and the hashes of
    the files that `model` and `dataset` name; of what is built in or on a hub there are none.
    """
    from lopside.engines import check
    from lopside.hub import find_model
    from lopside.models import BUILT_IN, model_files, read_config
    from lopside.tables import own_paths

    model: list[Path] = []
    family = None  # what is built in or on a hub, `export` will know
    if locate("model", params.model, [*BUILT_IN, *HUB_MODELS]) == "local":
        folder = find_model(params.model)[0]
        model, family = model_files(folder), read_config(folder)["model_type"]
    check(params.engine, params.dtype, family)
    dataset = own_paths(params.dataset) if locate("dataset", params.dataset, DATASETS) == "local" else []
    _note("model", model)
    _note("dataset", dataset)
    write_json("metrics/machine.json", fingerprint())


def _note(key: str, files: Iterable[Path]) -> None:
    write_json(OWN / f"{key}.json", {str(path): sha256_of(path) for path in files})


if __name__ == "__main__":
    main()

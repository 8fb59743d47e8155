"""Note what lies at the paths that `model` and `dataset` name, so that DVC sees it change."""

from collections.abc import Iterable
from pathlib import Path

from lopside.cli import stage
from lopside.files import sha256_of, write_json
from lopside.known import DATASETS, HUB_MODELS, locate
from lopside.params import Params

FOLDER = Path("outputs/watch")


@stage
def main(params: Params) -> None:
    """Write the hashes of the user's own model and data files; nothing of what is built in or on a hub."""
    from lopside.hub import find_model
    from lopside.models import BUILT_IN, model_files
    from lopside.tables import own_paths

    own: list[Path] = []
    if locate("model", params.model, [*BUILT_IN, *HUB_MODELS]) == "local":
        own = model_files(find_model(params.model)[0])
    _note("model", own)
    _note("dataset", own_paths(params.dataset) if locate("dataset", params.dataset, DATASETS) == "local" else [])


def _note(key: str, files: Iterable[Path]) -> None:
    write_json(FOLDER / f"{key}.json", {str(path): sha256_of(path) for path in files})


if __name__ == "__main__":
    main()

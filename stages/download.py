"""The data set's splits, from the wheels that its list names."""

from lopside.cli import stage
from lopside.params import Params


@stage
def main(params: Params) -> None:
    """Fetch what the data set is read from and write its splits to data/splits."""
    from lopside.models import BUILT_IN as MODELS
    from lopside.sources import BUILT_IN, make_splits
    from lopside.splits import FOLDER

    models = [folder for folder in MODELS.values() if folder.is_dir()]  # none yet where the first one is to be trained
    counts = make_splits(BUILT_IN[params.dataset], trained=models)
    print(f"{FOLDER}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()

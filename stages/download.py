"""The data set's splits: from the built-in list of wheels, from files here, or from a hub."""

from lopside.cli import stage
from lopside.params import Params


@stage
def main(params: Params) -> None:
    """Fetch what the data set is read from and write its splits to data/splits."""
    from lopside.models import BUILT_IN as MODELS
    from lopside.sources import BUILT_IN, make_splits
    from lopside.splits import FOLDER
    from lopside.tables import make_tables

    if params.dataset in BUILT_IN:
        models = [folder for folder in MODELS.values() if folder.is_dir()]  # none yet where the first is to be trained
        counts = make_splits(BUILT_IN[params.dataset], trained=models, limits=params.data.limits)
    else:
        counts = make_tables(
            params.dataset,
            revision=params.data.revision,
            config=params.data.config,
            columns=params.data.columns,
            limits=params.data.limits,
            skip_bad=params.data.skip_bad,
        )
    print(f"{FOLDER}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    main()

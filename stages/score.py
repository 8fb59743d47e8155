"""Score the generated summaries, and pruned against dense."""

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lopside.cli import stage
from lopside.errors import LopsideError
from lopside.files import new_file, write_json
from lopside.params import Params
from lopside.splits import read_split

if TYPE_CHECKING:
    from lopside.rouge import Evaluation

SUMMARIES = Path("outputs/generate")
SIDES = ("dense", "pruned")
SCORES = Path("outputs/scores.parquet")
METRICS = Path("metrics/rouge.json")
PLOT = Path("metrics/plots/rouge.csv")


@stage
def main(params: Params) -> None:
    """Score dense, pruned and the baselines on the test documents."""
    test = read_split("test")
    generated = {side: _read_generated(SUMMARIES / f"{side}.parquet", test["id"]) for side in SIDES}
    settings = _settings(generated)

    from lopside.rouge import evaluate

    documents, references = test["document"].tolist(), test["summary"].tolist()
    evaluation = evaluate(
        documents,
        test["body"].tolist(),
        references,
        {side: frame["summary"].tolist() for side, frame in generated.items()},
        {side: frame["tokens"].tolist() for side, frame in generated.items()},
        resamples=params.score.resamples,
        confidence=params.score.confidence,
        seed=params.seed,
    )
    settings["texts"] = _digest(documents, references)
    signature = "|".join([evaluation.metrics["signature"], *(f"{key}:{value}" for key, value in settings.items())])
    _write_scores(test["id"], evaluation)
    _write_plot(evaluation)
    write_json(METRICS, evaluation.metrics | {"signature": signature})
    for system, figures in evaluation.metrics.items():
        if isinstance(figures, dict) and figures["rouge2_low"] is not None:  # nothing is retained of 0
            print(f"{system}: ROUGE-2 {figures['rouge2']} [{figures['rouge2_low']}, {figures['rouge2_high']}]")


def _read_generated(path: Path, ids: pd.Series) -> pd.DataFrame:
    """The summaries in the order of ``ids``; each id must be there once, and no other."""
    again = f"`dvc repro generate@{path.stem}` makes it anew"
    if not path.is_file():
        raise LopsideError(f"{path}: no such file; {again}")
    generated = pd.read_parquet(path)
    if generated["id"].duplicated().any():
        raise LopsideError(f"{path}: id {generated['id'][generated['id'].duplicated()].iloc[0]} occurs twice; {again}")
    for what, odd in (
        ("has no summary for", ids[~ids.isin(generated["id"])]),
        ("has a summary for what is not in the test split,", generated["id"][~generated["id"].isin(ids)]),
    ):
        if len(odd):
            raise LopsideError(f"{path}: {what} {len(odd)} of {len(ids)} documents, first {odd.iloc[0]}; {again}")
    aligned = generated.set_index("id").loc[ids]
    aligned.attrs = generated.attrs
    return aligned


def _settings(generated: dict[str, pd.DataFrame]) -> dict[str, object]:
    """The settings the summaries were generated with, as the generate stage left them; only engines may differ."""
    settings = [dict(generated[side].attrs.get("generation", {})) for side in SIDES]
    engines = dict.fromkeys(each.pop("engine", "unknown") for each in settings)
    dense, pruned = settings
    if dense != pruned:
        again = "generate" if dense.get("trained") == pruned.get("trained") else "finetune"
        raise LopsideError(
            f"{SUMMARIES}: dense was generated with {dense}, pruned with {pruned}: they cannot be compared; "
            f"`dvc repro --force --single-item {again}`, and then `dvc repro`, makes both anew"
        )
    return {**dense, "engine": "/".join(engines)}


def _digest(documents: Iterable[str], references: Iterable[str]) -> str:
    """Twelve hexadecimal digits that change with any text scored."""
    digest = hashlib.sha256()
    for document, reference in zip(documents, references, strict=True):
        digest.update(f"{document}\0{reference}\0".encode())
    return digest.hexdigest()[:12]


def _write_scores(ids: pd.Series, evaluation: "Evaluation") -> None:
    """One row a document: id, then a column for each system and measure (``dense_rouge1`` ...), 0 to 100."""
    columns = {
        f"{system}_{measure}": figures
        for system, scored in evaluation.scores.items()
        for measure, figures in scored.per_document.items()
    }
    with new_file(SCORES) as path:
        pd.DataFrame({"id": ids, **columns}).to_parquet(path, index=False)


def _write_plot(evaluation: "Evaluation") -> None:
    columns = ("rouge2", "rouge2_low", "rouge2_high")
    with new_file(PLOT) as path, open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["side", *columns])
        writer.writerows([side, *(evaluation.metrics[side][column] for column in columns)] for side in SIDES)


if __name__ == "__main__":
    main()

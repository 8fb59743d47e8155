"""A shipped model's figures on the test split, for its card; nothing is chosen by them.

Greedy summaries of every test document, and of the same documents with another document's body under their own name: a
model that reads the body must lose by that. The table that is printed is the card's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from lopside.files import write_json
from lopside.generation import generate
from lopside.machine import choose_dtype, keep_memory
from lopside.models import load_model, load_tokenizer
from lopside.rouge import compare, lead, score
from lopside.splits import read_split
from lopside.texts import share_distinct, share_empty, share_repeating, split_sentences, words
from recipes.base.train import read_params

HERE = Path(__file__).parent
ROWS = {
    "model": "{}",
    "lead": "lead (first sentence of the body)",
    "name": "the name alone",
    "other_body": "{}, another document's body under the name",
}
MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def with_other_bodies(test: pd.DataFrame, seed: int) -> list[str]:
    """Each document's own name, then the body of another document (a random cycle: none keeps its own)."""
    order = np.random.default_rng(seed).permutation(len(test))
    other = np.empty(len(test), dtype=int)
    other[order] = np.roll(order, 1)
    names = [document.removesuffix(body) for document, body in zip(test.document, test.body, strict=True)]
    return [name + body for name, body in zip(names, test.body.iloc[other], strict=True)]


def share_copying(summaries: Sequence[str], documents: Sequence[str]) -> float:
    """Share (0..1) of the summaries whose words are those of a whole sentence of their document."""
    copies = 0
    for summary, document in zip(summaries, documents, strict=True):
        copies += bool(words(summary)) and words(summary) in map(words, split_sentences(document))
    return copies / len(summaries)


def markdown(figures: dict[str, Any], model: str) -> str:
    """The figures as the card of the model so called gives them: a row of ROUGE for each text, then a list."""

    def shown(figure: dict[str, float]) -> str:
        return "{mean:.2f} [{low:.2f}, {high:.2f}]".format(**figure)

    lines = [f"| | {' | '.join(MEASURES.values())} |", f"| {' | '.join(['---'] * (1 + len(MEASURES)))} |"]
    lines += [
        f"| {row.format(model)} | {' | '.join(shown(figures[name][measure]) for measure in MEASURES)} |"
        for name, row in ROWS.items()
    ]
    above = {"`lead`": "lead", "the name alone": "name", "itself with a foreign body": "other_body"}
    shares = {
        "distinct": "are distinct",
        "empty": "are empty",
        "copying": "copy a whole sentence of the document",
        "repeating": "repeat themselves (a word or a pair of words at once, or three words twice)",
    }
    lines += ["", "Paired differences of its ROUGE-2, and what share of its summaries ...", ""]
    lines += [f"- above {what}: {shown(figures[f'rouge2_above_{name}'])}" for what, name in above.items()]
    lines += [f"- {what}: {figures[name]:.1%}" for name, what in shares.items()]
    return "\n".join(lines)


def rounded(mean: float, low: float, high: float) -> dict[str, float]:
    """A figure and its interval as the card gives them."""
    return {"mean": round(mean, 2), "low": round(low, 2), "high": round(high, 2)}


@click.command()
@click.argument("model", default="models/docs-bart-mini", type=click.Path(path_type=Path))
@click.option("--name", help="What the model is called, where not as its folder.")
def main(model: Path, name: str | None) -> None:
    """Measure the model in folder MODEL on the whole test split of the data set that data/splits holds: print its
    card's table, write figures-NAME.json."""
    import torch

    keep_memory()
    params = read_params()
    test = read_split("test")
    network = load_model(model, dtype=getattr(torch, choose_dtype("auto", "cpu")))
    tokenizer = load_tokenizer(model)

    def summaries(documents: list[str], label: str) -> list[str]:
        generated = generate(
            network,
            tokenizer,
            documents,
            max_source_tokens=params["lengths"]["source"],
            max_new_tokens=params["lengths"]["target"],
            progress=label,
        )
        return [item.summary for item in generated]

    outputs = {
        "model": summaries(list(test.document), "summaries"),
        "other_body": summaries(with_other_bodies(test, params["seed"]), "summaries of other bodies"),
        "lead": [lead(body) for body in test.body],
        "name": [document.removesuffix(body) for document, body in zip(test.document, test.body, strict=True)],
    }
    scores = {name: score(list(test.summary), texts) for name, texts in outputs.items()}
    figures: dict[str, Any] = {
        "documents": len(test),
        "distinct": round(share_distinct(outputs["model"]), 4),
        "empty": round(share_empty(outputs["model"]), 4),
        "repeating": round(share_repeating(outputs["model"]), 4),
        "copying": round(share_copying(outputs["model"], list(test.body)), 4),
    }
    for text, result in scores.items():
        figures[text] = {
            measure: rounded(result.means[measure], *interval) for measure, interval in result.intervals.items()
        }
    for text in ("lead", "name", "other_body"):
        gain = compare(scores["model"].per_document["rouge2"], scores[text].per_document["rouge2"])
        figures[f"rouge2_above_{text}"] = rounded(gain.difference, gain.low, gain.high)
    figures["signature"] = scores["model"].signature
    write_json(HERE / f"figures-{name or model.name}.json", figures)
    print(markdown(figures, name or model.name))


if __name__ == "__main__":
    main()

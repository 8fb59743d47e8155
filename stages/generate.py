"""Write a summary of every test document by the dense or the pruned model."""

import json
from pathlib import Path

import click
import pandas as pd

from lopside.cli import stage
from lopside.files import new_file
from lopside.inputs import choose_inputs
from lopside.machine import choose_device, keep_memory
from lopside.params import Params
from lopside.splits import read_split

MODELS = Path("outputs/finetune")
EXPORTED = Path("outputs/export")
SUMMARIES = Path("outputs/generate")


@stage(click.argument("side", type=click.Choice(["dense", "pruned"])))
def main(params: Params, side: str) -> None:
    """Summarise the test documents with one SIDE: pruned by the engine asked for, dense by transformers in float32."""
    test = read_split("test")
    inputs = choose_inputs(
        MODELS / side,
        params.dataset,
        params.data.prefix,
        params.data.max_source_tokens,
        params.data.max_target_tokens,
    )
    new_tokens = params.generate.max_new_tokens or inputs.max_target_tokens
    keep_memory()
    device = choose_device(params.device)
    from lopside.engines import baseline, load_engine
    from lopside.generation import summarise
    from lopside.models import load_tokenizer, trained_in

    model = MODELS / side
    engine = baseline(model, device) if side == "dense" else load_engine(model, EXPORTED / side, device)
    generated = summarise(
        engine,
        load_tokenizer(model),
        inputs.sources(test["document"]),
        max_source_tokens=inputs.max_source_tokens,
        max_new_tokens=new_tokens,
        num_beams=params.generate.num_beams,
        batch_size=params.generate.batch_size,
        progress=f"generate {side}",
    )
    table = pd.DataFrame(
        {
            "id": test["id"],
            "summary": [each.summary for each in generated],
            "tokens": [each.tokens for each in generated],
        }
    )
    # What the figures depend on goes with the summaries: `score` puts it into its signature.
    table.attrs["generation"] = {
        "prefix": json.dumps(inputs.prefix),
        "source_tokens": inputs.max_source_tokens,
        "new_tokens": new_tokens,
        "beams": params.generate.num_beams,
        "trained": trained_in(model),
        "engine": engine.name,
    }
    with new_file(SUMMARIES / f"{side}.parquet") as path:
        table.to_parquet(path, index=False)
    cut = sum(each.cut for each in generated) / len(generated)
    empty = sum(not each.summary for each in generated)
    print(
        f"{side}: {len(generated)} documents by {engine.name} on {device}, {cut:.1%} of them cut at "
        f"{inputs.max_source_tokens} tokens; {empty} summaries empty"
    )


if __name__ == "__main__":
    main()

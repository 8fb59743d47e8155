"""How the base models came to what they are: validation ROUGE-2 against the tokens seen, as table and picture."""

from pathlib import Path

import click
import pandas as pd

from lopside.pictures import draw_courses

HERE = Path(__file__).parent
MODELS = (("first", "second", "third"), ("micro",))
"""The rounds of each model, in their order."""


def course(logs: dict[str, Path]) -> pd.DataFrame:
    """The logs of the rounds that there are, one behind the other; tokens and minutes count on from round to round."""
    rounds, tokens, seconds = list[pd.DataFrame](), 0, 0
    for name, path in logs.items():
        if path.exists():
            log = pd.read_csv(path)
            rounds.append(
                pd.DataFrame(
                    {
                        "round": name,
                        "step": log.step,
                        "tokens": log.tokens + tokens,
                        "minutes": (log.seconds + seconds) / 60,
                        "validation_loss": log.validation_loss,
                        "validation_rouge2": log.validation_rouge2,
                    }
                )
            )
            tokens, seconds = tokens + log.tokens.iloc[-1], seconds + log.seconds.iloc[-1]
    return pd.concat(rounds, ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """A line a round. Equal tables give an equal file."""
    rounds = table.groupby("round", sort=False)
    lines = ((str(name), list(part.tokens / 1e6), list(part.validation_rouge2)) for name, part in rounds)
    draw_courses(lines, "million tokens seen in training (source and target)", "round", path)


@click.command()
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture to this PNG file too.")
def main(plot: Path | None) -> None:
    """Print the course of the training, of all rounds, as a Markdown table."""
    logs = [{name: HERE / f"training-{name}.csv" for name in names} for names in MODELS]
    table = pd.concat([course(each) for each in logs if any(log.exists() for log in each.values())])
    if plot:
        draw(table, plot)
    print("| round | step | million tokens | minutes | validation loss | validation ROUGE-2 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    columns = (table[name] for name in ("round", "step", "tokens", "minutes", "validation_loss", "validation_rouge2"))
    for name, step, tokens, minutes, loss, rouge2 in zip(*columns, strict=True):
        print(f"| {name} | {step:,} | {tokens / 1e6:.1f} | {minutes:.0f} | {loss:.3f} | {rouge2:.2f} |")


if __name__ == "__main__":
    main()

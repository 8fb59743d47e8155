"""Whether the timer can be trusted here, on a real model: ``python -m tests.timer_check [--device cuda] [--runs 20]``.

1. The model against itself, as often as asked: prints each interval, and in how many of them 1.00 lies. 95% are
   promised, so that fewer than 17 of 20 would be chance once or twice in a hundred times.
2. The model with a known delay against itself: prints the ratio there should be and the interval that was measured.
3. The same call by `torch.utils.benchmark`, in turn with ours: prints both medians, which are to be within 10%.

Exits with 1 where one of these does not hold. Takes about --runs times --seconds and a minute; documents are of 512
tokens, summaries of 64, as in the setting ``fixed``, batch 1.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from lopside.inputs import positions
from lopside.machine import choose_device, choose_dtype, keep_memory, set_threads
from lopside.pairs import Call, Clock, Done, Timing, time_pairs, warm_up

DELAY = 0.25
"""Of the call's own time."""
TOLERANCE = 0.1
SOURCE_TOKENS, NEW_TOKENS = 512, 64
DOCUMENT = "Return the lines of a file as a list of strings, or raise an error where the file cannot be read."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/docs-bart-mini"))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each run at most")
    parser.add_argument("--precision", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=0, help="0: one a physical core")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    threads = set_threads(arguments.threads)
    call, clock = prepare(arguments.model, arguments.device)
    warm_up(call, call, least=2, max_seconds=arguments.seconds, clock=clock)

    def timed(dense: Call) -> Timing:
        return time_pairs(
            dense, call, min_pairs=6, max_seconds=arguments.seconds, precision=arguments.precision, clock=clock
        )

    held = 0
    for number in range(1, arguments.runs + 1):
        timing = timed(call)
        held += timing.low <= 1 <= timing.high
        print(f"A against A, run {number}: {in_words(timing)}", flush=True)
    print(f"1.00 is in {held} of {arguments.runs} intervals")

    delay = DELAY * statistics.median(timing.seconds("pruned"))
    timing = timed(delayed(call, delay))
    expected = 1 + delay / statistics.median(timing.seconds("pruned"))
    delay_held = timing.low <= expected <= timing.high
    print(f"{1000 * delay:.1f} ms more on one side: {expected:.3f} expected, {in_words(timing)}")

    ours, theirs = against_torch(call, arguments.seconds, threads, clock)
    apart = abs(ours / theirs - 1)
    print(f"torch.utils.benchmark: {1000 * theirs:.1f} ms, here {1000 * ours:.1f} ms, {apart:.1%} apart")
    sys.exit(0 if held >= 0.85 * arguments.runs and delay_held and apart <= TOLERANCE else 1)


def prepare(folder: Path, device: str) -> tuple[Call, Clock]:
    """One document of SOURCE_TOKENS, or as many as the model takes, to a summary of NEW_TOKENS; and what times it."""
    from lopside.models import load_model, load_tokenizer, read_config
    from lopside.workloads import choose_clock, fixed, transformers_calls

    keep_memory()
    import torch

    device = choose_device(device)
    dtype = choose_dtype("auto", device)
    tokenizer = load_tokenizer(folder)
    source_tokens = min(SOURCE_TOKENS, positions(read_config(folder), "encoder") or SOURCE_TOKENS)
    setting = fixed(tokenizer, [DOCUMENT], size=1, source_tokens=source_tokens, new_tokens=NEW_TOKENS)
    model = load_model(folder, dtype=getattr(torch, dtype), device=device)
    print(f"{folder} on {device} in {dtype}, {torch.get_num_threads()} threads", flush=True)
    clock = choose_clock(device)
    return transformers_calls(model, tokenizer.pad_token_id, clock)(setting, 1), clock


def delayed(call: Call, seconds: float) -> Call:
    """The call and then some time that passes; waited out awake, for sleeping takes longer than one asks for."""

    def wait_too() -> Done | None:
        done = call()
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return done

    return wait_too


def against_torch(call: Call, seconds: float, threads: int, clock: Clock) -> tuple[float, float]:
    """The median seconds of the call, by lopside and by torch, a few calls of each in turn."""
    from torch.utils.benchmark import Timer

    other = Timer("call()", globals={"call": call}, num_threads=threads)
    ours: list[float] = []
    theirs: list[float] = []
    end = time.perf_counter() + 2 * seconds
    while len(ours) < 12 or time.perf_counter() < end:
        ours += time_pairs(call, call, min_pairs=6, max_seconds=0, precision=1e-9, clock=clock).seconds("dense")
        theirs += [other.timeit(1).median for _ in range(6)]
    return statistics.median(ours), statistics.median(theirs)


def in_words(timing: Timing) -> str:
    interval = f"{timing.speedup:.3f} [{timing.low:.3f}, {timing.high:.3f}]"
    return f"{interval} of {len(timing.pairs)} pairs, ended by {timing.ended}"


if __name__ == "__main__":
    main()

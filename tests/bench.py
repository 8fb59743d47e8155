"""How fast the workflow itself is: ``make bench``, or ``python -m tests.bench [PART ...]``.

Each part does the same work twice on this machine, as the plain recipe does it and as lopside does, and prints
the ratio beside the one that is promised:

train     `Seq2SeqTrainer` with `DataCollatorForSeq2Seq`, at the batch size and precision that are fastest for it, all
          other arguments as in `arguments_of`; ours at the same batch size, so that equal steps give about equal losses
          on validation, which are printed. The promise is for training tokens a second (padding not counted), from
          model folder to model folder. And the most that any code could reach here, if it did nothing but products of
          matrices, at the speed of large ones.
generate  `Seq2SeqTrainer.predict` with `predict_with_generate`, at its fastest batch size; documents a second, greedy.
score     rouge-score on one core; pairs a second. The figures must agree to 1e-12.
start     how long ``--help`` and the refusal of a bad params.yaml take.

Plain and ours run in processes of their own, one after the other. Exits with 1 where a promise is not kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models/docs-bart-mini"
TRAIN_DOCUMENTS, SOURCE_TOKENS, TARGET_TOKENS = 5120, 80, 40
GENERATE_DOCUMENTS, SCORE_PAIRS, VALIDATION_DOCUMENTS = 512, 5000, 400
BATCH_SIZES = (16, 32, 64, 128)
PRODUCT = 2048
"""Rows and columns of matrices that are large enough for their product to be as fast as any."""
PROMISED = {"train": 2.0, "generate": 3.0, "score": 1.7}
START_SECONDS = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join([*PROMISED, 'start'])}; default: all")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run, *numbers = arguments.run
        print(json.dumps(RUNS[run](*map(int, numbers))))
        return
    kept = True
    for part in arguments.parts or [*PROMISED, "start"]:
        kept &= start() if part == "start" else ratio(part)
    sys.exit(0 if kept else 1)


def ratio(part: str) -> bool:
    """Print what both sides did, and their ratio; whether it is as promised."""
    plain = _in_process(f"{part}-plain")
    ours = _in_process(f"{part}-ours", *([plain["batch size"]] if part == "train" else []))
    for side, found in (("plain", plain), ("ours", ours)):
        print(f"{part}: {side}: " + ", ".join(f"{name} {_shown(value)}" for name, value in found.items()))
    found = ours["a second"] / plain["a second"]
    print(f"{part}: {found:.2f} times as fast; promised: {PROMISED[part]} times", flush=True)
    if part == "train":
        most = _in_process("train-most")
        print(f"train: most: {', '.join(f'{name} {_shown(value)}' for name, value in most.items())}")
        print(f"train: at most {most['a second'] / plain['a second']:.2f} times, by any code", flush=True)
    if part == "score":
        assert all(abs(ours[name] - plain[name]) < 1e-12 for name in ("rouge1", "rouge2", "rougeL")), "figures differ"
    return found >= PROMISED[part]


def start() -> bool:
    """Print how long commands take that do nothing heavy; the fastest of five, as other work only adds."""
    kept = True
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "params.yaml").write_text("enc: 7\n", encoding="utf-8")
        for label, command, folder in (
            ("lopside --help", ["lopside.commands", "--help"], ROOT),
            ("stage --help", ["stages.finetune", "--help"], ROOT),
            ("bad params.yaml", ["stages.finetune", "dense"], Path(name)),
        ):
            took = min(_seconds(command, folder) for _ in range(5))
            print(f"start: {label}: {took:.2f} s; promised: {START_SECONDS} s", flush=True)
            kept &= took <= START_SECONDS
    return kept


def _seconds(command: list[str], folder: Path) -> float:
    module, *rest = command
    code = f"import sys; sys.argv = {[module, *rest]!r}; from {module} import main; main()"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=False)
    return time.perf_counter() - began


def train_plain() -> dict[str, Any]:
    """The plain recipe on the same documents; first a few steps at each batch size and precision, to choose them."""
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer

    from lopside.machine import has_fast_bfloat16
    from lopside.models import load_model, load_tokenizer

    def run(documents: int, batch_size: int, bf16: bool, target: Path) -> float:
        """Tokens a second."""
        began = time.perf_counter()
        tokenizer, model = load_tokenizer(MODEL), load_model(MODEL)
        data = _tokenised(tokenizer, _pairs("train", documents))
        trainer = Seq2SeqTrainer(
            model=model.train(),
            args=arguments_of(target, batch_size, bf16, steps=-(-documents // batch_size)),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        )
        trainer.train()
        model.save_pretrained(target / "model")
        return _tokens(data) / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        choices = [(size, bf16) for size in BATCH_SIZES for bf16 in {False, has_fast_bfloat16()}]
        speeds = {choice: run(4 * max(BATCH_SIZES), *choice, folder) for choice in choices}
        batch_size, bf16 = max(speeds, key=lambda choice: speeds[choice])
        speed = run(TRAIN_DOCUMENTS, batch_size, bf16, folder)
        return {
            "a second": speed,
            "batch size": batch_size,
            "bf16": bf16,
            "validation loss": _loss(folder / "model"),
        }


def arguments_of(target: Path, batch_size: int, bf16: bool, steps: int) -> Any:
    """All that the plain recipe sets: the schedule of params.yaml, and what keeps it from doing anything besides."""
    from transformers import Seq2SeqTrainingArguments

    settings = _params().train
    return Seq2SeqTrainingArguments(
        output_dir=str(target),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=min(settings.warmup_steps, steps),
        weight_decay=settings.weight_decay,
        bf16=bf16,
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        report_to=[],
        seed=0,
    )


def train_ours(batch_size: int) -> dict[str, Any]:
    """`lopside.training.finetune`."""
    from dataclasses import replace

    from lopside.inputs import Inputs
    from lopside.machine import keep_memory, set_threads
    from lopside.models import load_tokenizer

    keep_memory()
    set_threads(0)
    from lopside.training import finetune

    params = _params()
    settings = replace(
        params.train,
        batch_size=batch_size,
        max_steps=-(-TRAIN_DOCUMENTS // batch_size),
        evaluations=1,
        evaluation_documents=1,
    )
    pairs = _pairs("train", TRAIN_DOCUMENTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        inputs = Inputs("", SOURCE_TOKENS, TARGET_TOKENS)
        finetune(
            MODEL, folder / "model", folder / "curve.csv", pairs, _pairs("validation", 1), settings, inputs, 0, "cpu"
        )
        took = time.perf_counter() - began
        return {
            "a second": _tokens(_tokenised(load_tokenizer(MODEL), pairs)) / took,
            "batch size": batch_size,
            "validation loss": _loss(folder / "model"),
        }


def train_most() -> dict[str, Any]:
    """What products of matrices alone would allow, all else for nothing: so many tokens a second.

    The work of a token is counted on pairs cut to the mean lengths, so that none of it is padding.
    """
    from timeit import repeat

    import torch

    from lopside.flops import count_flops
    from lopside.machine import choose_dtype, set_threads
    from lopside.models import load_model, load_tokenizer

    set_threads(0)
    data = _tokenised(load_tokenizer(MODEL), _pairs("train", TRAIN_DOCUMENTS))
    source, target = (round(sum(map(len, data[name])) / len(data)) for name in ("input_ids", "labels"))
    model = load_model(MODEL, attention="eager").train()
    pairs = {"input_ids": torch.ones(8, source).long(), "labels": torch.ones(8, target).long()}
    work = count_flops(lambda: model(**pairs).loss.backward()) / (8 * (source + target))
    dtype = choose_dtype("auto", "cpu")
    matrix = torch.rand(PRODUCT, PRODUCT, dtype=getattr(torch, dtype))
    speed = 2 * PRODUCT**3 / min(repeat(lambda: matrix @ matrix, number=1, repeat=20))
    return {"a second": speed / work, "GFLOP/s": speed / 1e9, "dtype": dtype, "MFLOP a token": work / 1e6}


def generate_plain() -> dict[str, Any]:
    """`predict_with_generate`, greedy."""
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    from lopside.models import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(MODEL), load_model(MODEL)
    data = _tokenised(tokenizer, _pairs("test", GENERATE_DOCUMENTS))

    def run(batch_size: int) -> float:
        with tempfile.TemporaryDirectory() as name:
            trainer = Seq2SeqTrainer(
                model=model,
                args=Seq2SeqTrainingArguments(
                    output_dir=name,
                    per_device_eval_batch_size=batch_size,
                    predict_with_generate=True,
                    generation_max_length=TARGET_TOKENS,
                    use_cpu=True,
                    disable_tqdm=True,
                    report_to=[],
                ),
                data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
                processing_class=tokenizer,
            )
            began = time.perf_counter()
            ids = trainer.predict(data).predictions
            tokenizer.batch_decode([[each for each in row if each >= 0] for row in ids], skip_special_tokens=True)
            return GENERATE_DOCUMENTS / (time.perf_counter() - began)

    speeds = {size: run(size) for size in BATCH_SIZES}
    best = max(speeds, key=lambda size: speeds[size])
    return {"a second": speeds[best], "batch size": best}


def generate_ours() -> dict[str, Any]:
    """`lopside.generation.summarise`, with the engine, precision and batch size of params.yaml."""
    from lopside.engines import open_engine
    from lopside.generation import summarise
    from lopside.machine import keep_memory

    keep_memory()
    params = _params()
    engine, tokenizer = open_engine(MODEL, params.engine, params.dtype, "cpu")
    documents = list(_pairs("test", GENERATE_DOCUMENTS).document)

    def run(some: list[str]) -> float:
        began = time.perf_counter()
        summarise(
            engine,
            tokenizer,
            some,
            max_source_tokens=SOURCE_TOKENS,
            max_new_tokens=TARGET_TOKENS,
            batch_size=params.generate.batch_size,
        )
        return len(some) / (time.perf_counter() - began)

    run(documents[: 2 * params.generate.batch_size])  # as warm as the plain recipe is at all batch sizes but the first
    return {
        "a second": run(documents),
        "engine": engine.name,
        "batch size": params.generate.batch_size,
    }


def score_plain() -> dict[str, Any]:
    """rouge-score as its README has it."""
    from rouge_score.rouge_scorer import RougeScorer

    from lopside.texts import split_sentences

    pairs = _pairs("train", SCORE_PAIRS)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=True)
    began = time.perf_counter()
    scores = [
        scorer.score(*("\n".join(split_sentences(text)) for text in texts))
        for texts in zip(pairs.summary, _predictions(pairs), strict=True)
    ]
    took = time.perf_counter() - began
    means = {name: 100 * sum(score[name].fmeasure for score in scores) / SCORE_PAIRS for name in names[:3]}
    return {"a second": SCORE_PAIRS / took, **means}


def score_ours() -> dict[str, Any]:
    """`lopside.rouge.score`, without the bootstrap's resamples, which rouge-score's scorer has not."""
    from lopside.rouge import score

    pairs = _pairs("train", SCORE_PAIRS)
    began = time.perf_counter()
    means = score(list(pairs.summary), _predictions(pairs), resamples=1).means
    took = time.perf_counter() - began
    return {"a second": SCORE_PAIRS / took, **{name: means[name] for name in ("rouge1", "rouge2", "rougeL")}}


def _params() -> Any:
    from lopside.params import load_params

    return load_params(ROOT / "params.yaml")


def _pairs(split: str, count: int) -> Any:
    from lopside.splits import read_split

    return read_split(split).iloc[:count]


def _predictions(pairs: Any) -> list[str]:
    """Texts as long as summaries are: the beginning of each body."""
    return [" ".join(body.split()[:30]) for body in pairs.body]


def _tokenised(tokenizer: Any, pairs: Any) -> Any:
    from datasets import Dataset

    sources = tokenizer(list(pairs.document), truncation=True, max_length=SOURCE_TOKENS)
    labels = tokenizer(text_target=list(pairs.summary), truncation=True, max_length=TARGET_TOKENS)["input_ids"]
    return Dataset.from_dict({**{name: sources[name] for name in ("input_ids", "attention_mask")}, "labels": labels})


def _tokens(data: Any) -> int:
    return sum(len(row) for name in ("input_ids", "labels") for row in data[name])


def _loss(model: Path) -> float:
    """Per token, on the first validation documents."""
    import torch
    from transformers import DataCollatorForSeq2Seq

    from lopside.models import load_model, load_tokenizer

    tokenizer, network = load_tokenizer(MODEL), load_model(model, dtype=torch.float32)
    rows = list(_tokenised(tokenizer, _pairs("validation", VALIDATION_DOCUMENTS)))
    collate = DataCollatorForSeq2Seq(tokenizer, model=network)
    total = count = 0.0
    with torch.inference_mode():
        for first in range(0, len(rows), 50):
            batch = collate(rows[first : first + 50])
            tokens = int((batch["labels"] != -100).sum())
            total += float(network(**batch).loss) * tokens
            count += tokens
    return total / count


def _in_process(run: str, *numbers: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench", "--run", run, *map(str, numbers)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


RUNS: dict[str, Callable[..., dict[str, Any]]] = {
    "train-plain": train_plain,
    "train-ours": train_ours,
    "train-most": train_most,
    "generate-plain": generate_plain,
    "generate-ours": generate_ours,
    "score-plain": score_plain,
    "score-ours": score_ours,
}

if __name__ == "__main__":
    main()

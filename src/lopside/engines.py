"""What computes a model's answers: transformers itself, the same compiled, or CTranslate2, which serves faster.

An engine takes token ids and gives token ids, so that tokenizers, batches and order are the same for all
(`lopside.generation`). CTranslate2 wants the weights in files of its own, so a model is exported first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lopside.errors import LopsideError
from lopside.files import copy_file, new_folder, write_json
from lopside.generation import Answers, Batch, Engine, Transformers
from lopside.machine import choose_dtype, set_threads
from lopside.models import GENERATION_CONFIG, copy_companions, load_model, load_tokenizer, read_config

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {
    "transformers": ("auto", "float32", "bfloat16"),
    "compile": ("auto", "float32", "bfloat16"),
    "ctranslate2": ("float32", "int8"),
}
"""Engine -> the precisions it computes in. int8: weights and products of matrices; the rest is float32."""

CTRANSLATE2_FAMILIES = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5")
"""Model types to which CTranslate2 4.8 gives the summaries of transformers, in float32 (tests/test_engines.py)."""

RECORD = "engine.json"
"""In an exported folder: which engine, which precision."""
FILES = "ctranslate2"
"""In an exported folder: the folder of CTranslate2's own files."""


def export(model: Path, target: Path, engine: str, dtype: str) -> None:
    """Write to folder ``target`` what ``engine`` needs of the model in folder ``model`` to run in ``dtype``.

    For transformers, compiled or not, that is a note which precision was asked for: it runs the model folder itself.

    Raises:
        LopsideError: the engine does not compute in this precision, is not installed or cannot take this model.
    """
    config = read_config(model)
    check(engine, dtype, config.get("model_type", ""))
    if engine == "ctranslate2" and config.get("share_encoder_decoder_embeddings") is False:  # a key of Marian's
        raise LopsideError(
            "engine: ctranslate2 is refused for a model with two vocabularies; transformers turns its source ids into "
            "tokens of the target"
        )
    with new_folder(target) as folder:
        write_json(folder / RECORD, {"engine": engine, "dtype": dtype})
        if engine == "ctranslate2":
            copy_file(model / "config.json", folder / "config.json")
            copy_companions(model, folder)
            _convert(model, folder / FILES, dtype)


def check(engine: str, dtype: str, family: str | None) -> None:
    """Raise LopsideError where ``engine`` cannot run a model type in ``dtype`` here; imports nothing heavy.

    ``family``: None where it is not known yet.
    """
    if dtype not in DTYPES[engine]:
        raise LopsideError(f"dtype: {dtype} is refused; engine {engine} computes in {' | '.join(DTYPES[engine])}")
    if engine == "compile":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
        if shutil.which(compiler) is None:
            raise LopsideError(
                f"engine: compile needs a C++ compiler; there is no {compiler}, and CXX may name another"
            )
    if engine == "ctranslate2":
        if importlib.util.find_spec("ctranslate2") is None:
            raise LopsideError("engine: ctranslate2 is not installed; `pip install -e .[ctranslate2]` brings it")
        if family is not None and family not in CTRANSLATE2_FAMILIES:
            takes = ", ".join(CTRANSLATE2_FAMILIES)
            raise LopsideError(f"engine: ctranslate2 is refused for the model type {family!r}; it takes {takes}")


def load_engine(model: Path, exported: Path, device: str, threads: int = 0) -> Engine:
    """The engine that ``exported`` was written for (see `export`), ready to answer for the model in folder ``model``.

    Args:
        model: the model folder; CTranslate2 does not read it.
        exported: the folder that `export` wrote.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; 0: one a physical core.
    """
    if not (exported / RECORD).is_file():
        raise LopsideError(f"{exported / RECORD}: no such file; `dvc repro export` makes it")
    record = json.loads((exported / RECORD).read_text(encoding="utf-8"))
    threads = set_threads(threads)
    if record["engine"] == "ctranslate2":
        return CTranslate2(exported, load_tokenizer(exported), record["dtype"], device, threads)
    dtype = choose_dtype(record["dtype"], device)
    return _transformers(model, dtype, device, Compiled if record["engine"] == "compile" else Transformers)


def open_engine(model: Path, engine: str, dtype: str, device: str) -> tuple[Engine, PreTrainedTokenizerBase]:
    """An engine and the tokenizer for a model folder, or for a folder that `export` wrote for CTranslate2.

    Raises LopsideError as `export` does, and where the folder was exported for something else.
    """
    if (model / RECORD).exists():
        record = json.loads((model / RECORD).read_text(encoding="utf-8"))
        if record != {"engine": engine, "dtype": dtype}:
            made = " in ".join(record.values())
            raise LopsideError(f"{model}: was exported for {made}, which --engine and --dtype must name")
        return load_engine(model, model, device), load_tokenizer(model)
    with TemporaryDirectory() as folder:
        export(model, Path(folder) / "exported", engine, dtype)
        return load_engine(model, Path(folder) / "exported", device), load_tokenizer(model)


BASELINE = "transformers float32"
"""The engine's name that `baseline` gives."""


def baseline(model: Path, device: str) -> Engine:
    """What every gain is measured from: transformers in float32."""
    return _transformers(model, "float32", device)


def _transformers(model: Path, dtype: str, device: str, kind: type[Transformers] = Transformers) -> Engine:
    import torch

    loaded = load_model(model, dtype=getattr(torch, dtype), device=device)
    return kind(loaded, load_tokenizer(model).pad_token_id)


class Compiled(Transformers):
    """transformers with the decoder compiled by torch.compile: its many small steps are where Python takes time.

    Compiled is at the first calls, for any lengths and batch sizes at once; that takes a minute or so in all.
    """

    at_once = 1  # two threads would compile the same
    packs = False  # it would compile again at each call

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        import torch

        super().__init__(model, pad)
        decoder = model.get_decoder()
        decoder.forward = torch.compile(decoder.forward, dynamic=True)
        self.name = self.name.replace("transformers", "compile")


class CTranslate2:
    """CTranslate2's Translator on an exported folder. It knows tokens by their text, so ids go in and out as such."""

    def __init__(self, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: str, device: str, threads: int) -> None:
        import ctranslate2

        self.name = f"ctranslate2 {dtype}"
        self.config = SimpleNamespace(**read_config(folder))
        self.tokenizer, self.special = tokenizer, _special(folder)
        self.pad = int(tokenizer.pad_token_id)
        self.given = int(self.special.forced_bos_token_id is not None)
        self.translator = ctranslate2.Translator(
            str(folder / FILES),
            device=device,
            compute_type="int8_float32" if dtype == "int8" else dtype,
            inter_threads=1,
            intra_threads=threads,
        )

    def answers(self, batches: Sequence[Batch], max_new_tokens: int, num_beams: int) -> Answers:
        end = self.special.forced_eos_token_id
        for sources in batches:
            rows = self.translate(self.texts(sources), num_beams, max_decoding_length=max_new_tokens)
            # transformers makes an end token of what the limit cuts.
            yield rows if end is None else [[*row[:-1], end] if len(row) == max_new_tokens else row for row in rows]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """The tokens of each row by their text, which is what `translate` takes."""
        return [self._texts(row) for row in rows]

    def translate(self, sources: Sequence[Sequence[str]], num_beams: int = 1, **limits: int) -> list[list[int]]:
        """The tokens that come out for each source, the end token included; ``limits`` are translate_batch's."""
        ends = self.special.eos_token_id if isinstance(self.special.eos_token_id, list) else [self.special.eos_token_id]
        first = self.special.forced_bos_token_id
        results = self.translator.translate_batch(
            sources,
            target_prefix=None if first is None else [self._texts([first])] * len(sources),
            beam_size=num_beams,
            end_token=self._texts(ends),
            return_end_token=True,
            suppress_sequences=self.texts(_forbidden(self.special)),
            max_input_length=0,
            **limits,
        )
        return [self.tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in results]  # type: ignore[misc]

    def _texts(self, ids: Sequence[int]) -> list[str]:
        texts: Any = self.tokenizer.convert_ids_to_tokens(list(ids))
        return texts


def _special(folder: Path) -> GenerationConfig:
    """The settings of `lopside.generation.SPECIAL` and others, as transformers reads them for the model in a folder."""
    from transformers import AutoConfig, GenerationConfig

    if (folder / GENERATION_CONFIG).exists():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))


def _start(folder: Path) -> int:
    """The token that a summary starts from."""
    special, config = _special(folder), read_config(folder)
    start = special.decoder_start_token_id
    return int(config["decoder_start_token_id"] if start is None else start)


def _forbidden(special: GenerationConfig) -> list[list[int]]:
    """Sequences of tokens that are never to come."""
    return [*(special.bad_words_ids or []), *([token] for token in special.suppress_tokens or [])]


def _convert(model: Path, target: Path, dtype: str) -> None:
    """CTranslate2's converter on a model folder, mended where 4.8 misreads configurations of transformers 5."""
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_model(self, *_: Any, **__: Any) -> PreTrainedModel:
            loaded = load_model(model)
            config, encoder = loaded.config, loaded.get_encoder()
            # It asks for keys that only old configurations have.
            config.normalize_before = hasattr(encoder, "layer_norm")
            config.normalize_embedding = hasattr(encoder, "layernorm_embedding")
            # transformers 5 says that all T5 are tied; what is not must not have its logits scaled.
            output, words = loaded.get_output_embeddings(), loaded.get_input_embeddings()
            config.tie_word_embeddings = output.weight is words.weight
            return loaded

        def load_tokenizer(self, *_: Any, **__: Any) -> PreTrainedTokenizerBase:
            return load_tokenizer(model)

        def _load(self) -> Any:
            spec = super()._load()
            # It takes a token that goes with the family, whatever the model says.
            spec.config.decoder_start_token = load_tokenizer(model).convert_ids_to_tokens(_start(model))
            return spec

    Converter(str(model)).convert(str(target), quantization=None if dtype == "float32" else dtype)

"""params.yaml: what is shipped is valid, and everything else is refused with all its faults."""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from hypothesis import given, settings
from hypothesis import strategies as st

from lopside import models, selection
from lopside.errors import LopsideError
from lopside.params import BUILT_IN, DATASETS, MEASURES, MODELS, STRATEGIES, UNITS, Params, leaf_keys, load_params

ROOT = Path(__file__).parents[1]
SHIPPED = (ROOT / "params.yaml").read_text()


def edited(edits: dict[str, object]) -> dict[str, Any]:
    """The shipped params.yaml with some dotted keys set."""
    tree: dict[str, Any] = yaml.safe_load(SHIPPED)
    for key, value in edits.items():
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            place = place[group]
        place[name] = value
    return tree


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Params]:
    """Write params.yaml, with edits of dotted keys, to a temporary folder and load it."""

    def write_and_load(edits: dict[str, object] | None = None, text: str | None = None) -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(text if text is not None else yaml.safe_dump(edited(edits or {})), encoding="utf-8")
        return load_params(path)

    return write_and_load


def faults_of(load: Callable[..., Params], edits: dict[str, object]) -> list[str]:
    """The lines of the error below its first."""
    with pytest.raises(LopsideError) as caught:
        load(edits)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("params.yaml: 1 fault" if len(lines) == 1 else f"params.yaml: {len(lines)} faults")
    return [line.strip() for line in lines]


def test_an_experiment_changes_no_line_of_the_shipped_file_but_its_own(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED)
    apply_overrides(path, ["dec=1"])  # what `dvc exp run -S dec=1` does
    assert path.read_text() == SHIPPED.replace("dec: 3 ", "dec: 1 ")


def test_shipped_file_is_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert (params.enc, params.dec) == (6, 3)
    assert params.keep.encoder == ()
    assert params.time.batch_sizes == (1, 8, 16)


def test_params_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        load_params(ROOT / "params.yaml").enc = 3  # type: ignore[misc]


def test_leaf_keys_are_the_keys_of_the_shipped_file_in_its_order() -> None:
    tree = yaml.safe_load(SHIPPED)
    assert list(leaf_keys()) == _leaves(tree)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    ]


def test_names_are_those_that_the_modules_define() -> None:
    from lopside import importance, known, sources

    assert (*models.BUILT_IN, *known.HUB_MODELS) == MODELS
    assert tuple(known.DATASETS) == DATASETS
    assert {name for name, each in known.DATASETS.items() if not each.hub_id} == set(sources.BUILT_IN)
    assert set(BUILT_IN) == set(sources.BUILT_IN)
    assert tuple(selection.STRATEGIES) == STRATEGIES
    assert tuple(selection.UNITS) == UNITS
    assert tuple(importance.MEASURES) == MEASURES


def test_reading_params_imports_no_other_module_of_the_library() -> None:
    code = (
        "import sys; from lopside.params import load_params; load_params(); "
        "print(*sorted(name for name in sys.modules if name.startswith(('lopside', 'torch', 'numpy'))))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["lopside", "lopside.errors", "lopside.params"]


@pytest.mark.parametrize(
    ("key", "value", "shown", "allowed"),
    [
        ("enc", 0, "0", "a whole number of at least 1 (encoder layers kept, in keep.unit)"),
        ("enc", 7, "7", "a whole number from 1 to 6 where keep.unit is sixths; 6: all layers"),
        ("enc", 2.5, "2.5", "a whole number of at least 1 (encoder layers kept, in keep.unit)"),
        ("enc", True, "true", "a whole number of at least 1 (encoder layers kept, in keep.unit)"),
        ("enc", None, "null", "a whole number of at least 1 (encoder layers kept, in keep.unit)"),
        ("enc", [6], "[6]", "a whole number of at least 1 (encoder layers kept, in keep.unit)"),
        ("dec", "two", '"two"', "a whole number of at least 1"),
        ("dec", "2", '"2"', "a whole number of at least 1"),
        ("seed", -1, "-1", "a whole number from 0 to 4294967295"),
        ("seed", 2**32, "4294967296", "a whole number from 0 to 4294967295"),
        ("device", "gpu", '"gpu"', "auto | cpu | cuda"),
        ("device", 0, "0", "auto | cpu | cuda"),
        ("model", "t5-base", '"t5-base"', "docs-bart-mini"),
        ("model", "https://hub.example/owner/name", '"https', "owner/name on the hub | the path of a folder"),
        ("model", "", '""', "docs-bart-mini | docs-bart-micro | flan-t5-small"),
        ("model", None, "null", "docs-bart-mini | docs-bart-micro | flan-t5-small"),
        ("dataset", "cnn_dailymial", '"cnn_dailymial"', "did you mean cnn_dailymail?"),
        ("dataset", "mine.jsonl", '"mine.jsonl"', "with a slash (./mine.jsonl)"),
        ("dataset", "a/b\nc", '"a/b\\nc"', "docstrings"),
        ("data.revision", 123, "123", "a line of text"),
        ("data.prefix", "a\nb", '"a\\nb"', "a line of text"),
        ("data.columns.document", ["a"], '["a"]', "a column's name"),
        ("data.columns", "text", '"text"', "the keys document, summary, body, id"),
        ("data.limits.train", -1, "-1", "a whole number of at least 0"),
        ("data.max_source_tokens", 3, "3", "a whole number of at least 4, or 0"),
        ("data.max_source_tokens", 0.0, "0.0", "a whole number of at least 4, or 0"),
        ("data.skip_bad", "no", '"no"', "true | false"),
        ("parent.train", "yes", '"yes"', "true | false"),
        ("parent.train", 1, "1", "true | false"),
        ("keep.strategy", "unifrom", '"unifrom"', "did you mean uniform?"),
        ("keep.encoder", 3, "3", "a list of strictly increasing whole numbers of at least 0"),
        ("train.batch_size", 0, "0", "a whole number of at least 1"),
        ("train.batch_size", 64.0, "64.0", "a whole number of at least 1"),
        ("train.learning_rate", 0, "0", "a number above 0"),
        ("train.learning_rate", "fast", '"fast"', "a number above 0"),
        ("train.learning_rate", False, "false", "a number above 0"),
        ("train.learning_rate", math.nan, "NaN", "a number above 0"),
        ("train.learning_rate", math.inf, "Infinity", "a number above 0"),
        ("train.learning_rate", "1e999", '"1e999"', "a number above 0"),
        ("train.epochs", 10**400, "1000", "a number above 0"),
        ("train.max_steps", "1e3", '"1e3"', "a whole number of at least 0"),
        ("train.label_smoothing", 1.0, "1.0", "a number of at least 0 and below 1"),
        ("score.confidence", 95, "95", "a number above 0 and below 1"),
        ("score.resamples", 99, "99", "a whole number of at least 100"),
        ("time.batch_sizes", [], "[]", "different whole numbers of at least 1, not empty"),
        ("time.batch_sizes", None, "null", "different whole numbers of at least 1, not empty"),
        ("time.batch_sizes", [1, 1], "[1, 1]", "different whole numbers of at least 1, not empty"),
        ("time.batch_sizes", [1, 0], "[1, 0]", "different whole numbers of at least 1, not empty"),
        ("time.batch_sizes", [1, 2.0], "[1, 2.0]", "different whole numbers of at least 1, not empty"),
        ("time.batch_sizes", 8, "8", "different whole numbers of at least 1, not empty"),
        ("time.min_pairs", 5, "5", "a whole number of at least 6"),
        ("time.precision", 0, "0", "a number above 0 and below 1 (pairs end where"),
        ("time.precision", 1.0, "1.0", "a number above 0 and below 1"),
        ("train", None, "null", "the keys dtype, epochs"),
        ("keep", "uniform", '"uniform"', "the keys strategy, unit, encoder, decoder, measure, documents"),
    ],
)
def test_a_bad_value_is_refused_with_its_key_and_what_is_allowed(
    load: Callable[..., Params], key: str, value: object, shown: str, allowed: str
) -> None:
    (fault,) = faults_of(load, {key: value})
    assert fault.startswith(f"{key}: {shown}")
    assert "is refused; allowed: " in fault
    assert allowed in fault


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("encc", "enc"),
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),  # right name, wrong place
        ("generate.epochs", "train.epochs"),
    ],
)
def test_an_unknown_key_names_the_one_that_may_be_meant(load: Callable[..., Params], key: str, meant: str) -> None:
    assert faults_of(load, {key: 1}) == [f"{key}: is no known key; did you mean {meant}?"]


def test_an_unknown_key_like_no_other_has_no_suggestion(load: Callable[..., Params]) -> None:
    assert faults_of(load, {"zzzzzz": 1}) == ["zzzzzz: is no known key"]


def test_missing_keys_and_groups_are_named(load: Callable[..., Params]) -> None:
    tree = edited({})
    del tree["dec"], tree["score"], tree["train"]["epochs"]
    with pytest.raises(LopsideError) as caught:
        load(text=yaml.safe_dump(tree))
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert [line.partition(";")[0] for line in lines] == [
        "dec: is missing",
        "train.epochs: is missing",
        "score: is missing",
    ]


def test_all_faults_come_in_one_error(load: Callable[..., Params]) -> None:
    edits: dict[str, object] = {
        "surprise": 1,
        "dec": "two",
        "model": "bart",
        "keep.encoder": [0],
        "train.batch_size": 0,
        "time.batch_sizes": [],
        "enc": 7,
    }
    assert [fault.partition(":")[0] for fault in faults_of(load, edits)] == list(edits)


def test_layers_may_be_counted(load: Callable[..., Params]) -> None:
    params = load({"enc": 24, "dec": 7, "keep.unit": "layers"})
    assert (params.enc, params.dec, params.keep.unit) == (24, 7, "layers")


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "explicit"])
def test_kept_layers_are_for_explicit_alone(load: Callable[..., Params], strategy: str) -> None:
    first, second = faults_of(load, {"keep.strategy": strategy, "keep.encoder": [0], "keep.decoder": [1, 2]})
    assert first == "keep.encoder: [0] is refused; allowed: an empty list unless keep.strategy is explicit"
    assert second.startswith("keep.decoder: [1, 2] is refused")


def test_explicit_needs_both_lists(load: Callable[..., Params]) -> None:
    (fault,) = faults_of(load, {"keep.strategy": "explicit", "keep.encoder": [0, 5], "keep.decoder": None})
    assert fault == "keep.decoder: [] is refused; allowed: at least one layer where keep.strategy is explicit"
    params = load({"keep.strategy": "explicit", "keep.encoder": [0, 5], "keep.decoder": [2]})
    assert (params.keep.encoder, params.keep.decoder) == ((0, 5), (2,))


@pytest.mark.parametrize("kept", [[1, 0], [2, 2], [-1, 0]])
def test_explicit_lists_are_increasing_and_not_negative(load: Callable[..., Params], kept: list[int]) -> None:
    (fault,) = faults_of(load, {"keep.strategy": "explicit", "keep.encoder": kept, "keep.decoder": [0]})
    assert fault.startswith(f"keep.encoder: {kept} is refused; allowed: a list of strictly increasing whole numbers")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "flan-t5-small"),
        ("model", "facebook/bart-large-cnn"),
        ("model", "./mine"),
        ("model", "~/models/my own"),
        ("dataset", "xsum"),
        ("dataset", "data/mine.jsonl.gz"),
        ("data.prefix", "summarize: "),
        ("data.prefix", ""),
        ("data.max_source_tokens", 0),
        ("data.max_source_tokens", 4),
    ],
)
def test_places_texts_and_the_zero_that_stands_for_more(load: Callable[..., Params], key: str, value: object) -> None:
    read: Any = load({key: value})
    for name in key.split("."):
        read = getattr(read, name)
    assert read == value


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.e-4", "1.0e-4", "+1e-04", "0.0001", ".1e-3"])
def test_every_way_to_write_a_number_is_one(load: Callable[..., Params], written: str) -> None:
    text = SHIPPED.replace("learning_rate: 5e-4", f"learning_rate: {written}")
    assert text != SHIPPED
    assert load(text=text).train.learning_rate == pytest.approx(1e-4, rel=1e-12)


def test_a_whole_number_is_a_number_where_a_float_is_meant(load: Callable[..., Params]) -> None:
    seconds = load({"time.max_seconds": 3}).time.max_seconds
    assert (seconds, type(seconds)) == (3.0, float)


@settings(max_examples=30)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_float_survives_however_yaml_writes_it(number: float) -> None:
    # repr gives 1e-05, which PyYAML reads as text; ruamel, which DVC writes params.yaml with, gives it too.
    text = SHIPPED.replace("learning_rate: 5e-4", f"learning_rate: {number!r}")
    assert _loaded(text).train.learning_rate == number


@settings(max_examples=50)
@given(st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.lists(st.integers(), max_size=3))
def test_enc_is_one_of_six_whole_numbers_or_refused(value: object) -> None:
    text = yaml.safe_dump(edited({"enc": value}))
    if type(value) is int and 1 <= value <= 6:
        assert _loaded(text).enc == value
    else:
        with pytest.raises(LopsideError, match=r"enc: .* is refused"):
            _loaded(text)


def _loaded(text: str) -> Params:
    """Like the fixture, which hypothesis does not let its examples share."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        return load_params(file.name)


@pytest.mark.parametrize("text", ["", "[]", "just text", "3"])
def test_a_file_of_another_shape_is_refused(load: Callable[..., Params], text: str) -> None:
    with pytest.raises(LopsideError, match=r"the file: .* is refused; allowed: the keys enc, dec, seed"):
        load(text=text)


def test_broken_yaml_is_refused_with_its_place(load: Callable[..., Params]) -> None:
    with pytest.raises(LopsideError, match=r"params.yaml: is not YAML: .* line 2"):
        load(text="enc: 6\ndec: [3\n")


@pytest.mark.parametrize("text", ["seed: 2020-13-45\n", "seed: 0x_\n", "[" * 3000], ids=["date", "hex", "nested"])
def test_what_the_parser_itself_fails_over_is_refused(load: Callable[..., Params], text: str) -> None:
    with pytest.raises(LopsideError, match=r"params.yaml: is not YAML: \S"):
        load(text=text)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes(b"enc: \xff\xfe\n")
    with pytest.raises(LopsideError, match="not UTF-8"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LopsideError, match=r"nowhere.yaml: cannot be read: No such file"):
        load_params(tmp_path / "nowhere.yaml")


def test_lists_can_be_set_and_taken_back_as_dvc_does_it(tmp_path: Path, load: Callable[..., Params]) -> None:
    """`dvc exp run -S` rewrites the file, comments included."""
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED, encoding="utf-8")
    before = load_params(path)
    apply_overrides(
        path, ["keep.strategy=explicit", "keep.encoder=[0,2,5]", "keep.decoder=[0]", "time.batch_sizes=[1]"]
    )
    assert load_params(path).keep.encoder == (0, 2, 5)
    back = [f"keep.strategy={before.keep.strategy}", "keep.encoder=[]", "keep.decoder=[]", "time.batch_sizes=[1,8,16]"]
    apply_overrides(path, back)
    assert load_params(path) == before


def test_what_a_built_in_set_has_none_of_is_refused(load: Callable[..., Params]) -> None:
    given: dict[str, object] = {"data.revision": "main", "data.config": "3.0.0", "data.columns.body": "text"}
    faults = faults_of(load, given)
    assert faults == [
        f'{key}: "{value}" is refused; allowed: nothing, as docstrings is built in' for key, value in given.items()
    ]
    given["data.revision"] = "refs/convert/parquet"
    data = load(given | {"dataset": "./mine.jsonl"}).data
    assert (data.revision, data.config, data.columns.body) == tuple(given.values())

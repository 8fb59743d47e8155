"""The hub: what is fetched, what is refused, and that a download which was cut is neither lost nor taken for whole."""

import errno
import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.utils._http as http
import pandas as pd
import pytest

from lopside.errors import LopsideError
from lopside.hub import Hub, find_model
from lopside.known import DATASETS, known_dataset, locate
from lopside.splits import read_split
from lopside.tables import make_tables
from tests.hub_server import Server, serve

TOKEN = "hf_secretsecretsecret"
ID = "google/flan-t5-small"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub waits before it tries again
    http.close_session()  # its client keeps proxies and offline mode as they were when it was made
    with serve() as running:
        yield running
    http.close_session()


@pytest.fixture
def hub(server: Server, tmp_path: Path) -> Hub:
    return Hub(server.url, tmp_path / "cache")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def news(count: int, start: int = 0, **columns: Callable[[int], Any]) -> bytes:
    """Parquet with the columns of CNN/DailyMail."""
    rows = range(start, start + count)
    table = pd.DataFrame(
        {
            "article": [f"The council met on day {row}. It spoke of the river for hours." for row in rows],
            "highlights": [f"Council met on day {row} ." for row in rows],
            "id": [f"{row:040x}" for row in rows],
            **{name: [make(row) for row in rows] for name, make in columns.items()},
        }
    )
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def put_news(server: Server) -> str:
    """A set laid out as cnn_dailymail is, with two configurations and training in two files; the commit's hash."""
    return server.repository("dataset", "abisee/cnn_dailymail").commit(
        {
            "README.md": b"# News",
            "1.0.0/train-00000-of-00001.parquet": news(1),
            "3.0.0/train-00000-of-00002.parquet": news(8),
            "3.0.0/train-00001-of-00002.parquet": news(4, start=8),
            "3.0.0/validation-00000-of-00001.parquet": news(4, start=20),
            "3.0.0/test-00000-of-00001.parquet": news(6, start=30),
        }
    )


# Models


def test_only_what_a_model_needs_is_fetched_at_the_commit_of_the_branch(
    server: Server, hub: Hub, tiny_t5: Path, tmp_path: Path
) -> None:
    mine = files_of(tiny_t5)
    others = {"README.md": b"x", "pytorch_model.bin": b"x", "tf_model.h5": b"x", "onnx/model.onnx": b"x"}
    commit = server.repository("model", ID).commit(mine | others | {"model.fp16.safetensors": b"x"})

    folder, origin = find_model("flan-t5-small", hub=hub)

    assert files_of(folder) == mine
    assert origin == {"model": "flan-t5-small", "hub_id": ID, "revision": "main", "commit": commit}
    assert not [asked for asked in server.asked if any(asked.endswith(name) for name in others)]

    # A branch that moved is seen; a commit stays where it was.
    config = json.loads(mine["config.json"]) | {"note": "moved"}
    moved = server.repository("model", ID).commit(mine | {"config.json": json.dumps(config).encode()})
    assert find_model(ID, hub=hub)[1]["commit"] == moved != commit
    assert files_of(find_model(ID, commit, hub)[0])["config.json"] == mine["config.json"]


def test_shards_are_fetched_with_their_index(server: Server, hub: Hub, tiny_bart: Path) -> None:
    mine = files_of(tiny_bart)
    weights = mine.pop("model.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    mine |= {"model-00001-of-00002.safetensors": weights, "model.safetensors.index.json": json.dumps(index).encode()}
    server.repository("model", "me/big").commit(mine)
    assert set(files_of(hub.fetch_model("me/big").folder)) == set(mine)


def test_a_connection_cut_midway_is_taken_up_where_it_ended(
    server: Server, hub: Hub, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    mine = files_of(tiny_t5)
    server.repository("model", ID).commit(mine)
    server.cut["model.safetensors"] = 2
    folder, _ = find_model(ID, hub=hub)
    assert (folder / "model.safetensors").read_bytes() == mine["model.safetensors"]
    half = len(mine["model.safetensors"]) // 2
    ranges = [int(asked.rpartition(" from ")[2]) for asked in server.asked if " from " in asked]
    assert ranges[0] == half // 1000 * 1000
    assert len(ranges) == 2
    assert ranges[1] > half


def test_a_download_that_failed_leaves_nothing_that_is_taken_for_whole_and_goes_on_later(
    server: Server, hub: Hub, tiny_t5: Path, tmp_path: Path
) -> None:
    mine = files_of(tiny_t5)
    server.repository("model", ID).commit(mine)
    server.cut["model.safetensors"] = 99
    with pytest.raises(LopsideError, match=rf"model: {ID}: .*127.0.0.1 cannot be reached"):
        find_model(ID, hub=hub)
    assert not list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    server.cut.clear()
    folder, _ = find_model(ID, hub=hub)
    assert (folder / "model.safetensors").read_bytes() == mine["model.safetensors"]


def test_what_is_in_the_cache_needs_no_hub(
    server: Server, hub: Hub, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = server.repository("model", ID).commit(files_of(tiny_t5))
    put_news(server)
    fetched = hub.fetch_model(ID)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    http.close_session()
    asked = len(server.asked)
    assert hub.fetch_model(ID) == fetched
    assert fetched.commit == commit
    with pytest.raises(LopsideError, match=r"dataset: abisee/cnn_dailymail: .*HF_HUB_OFFLINE"):
        make_tables("cnn_dailymail", hub=hub)
    with pytest.raises(LopsideError, match="model: me/other: is not in the cache, and HF_HUB_OFFLINE"):
        hub.fetch_model("me/other")
    assert len(server.asked) == asked


def test_data_alone_may_be_offline(server: Server, hub: Hub, tiny_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repository("model", ID).commit(files_of(tiny_t5))
    put_news(server)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(
        LopsideError, match=r"dataset: abisee/cnn_dailymail: is not in the cache, and HF_HUB_OFFLINE, or"
    ):
        make_tables("cnn_dailymail", hub=hub)
    assert not server.asked
    hub.fetch_model(ID)


def test_a_token_opens_what_is_private_and_is_said_nowhere(
    server: Server, hub: Hub, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    server.token = TOKEN
    repository = server.repository("model", "me/mine")
    repository.commit(files_of(tiny_t5))
    repository.private = True
    with pytest.raises(
        LopsideError, match=r"model: me/mine: 127.0.0.1 has no such model, or it is private and HF_TOKEN"
    ):
        hub.fetch_model("me/mine")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrong")
    with pytest.raises(LopsideError) as caught:
        hub.fetch_model("me/mine")
    assert "hf_" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.fetch_model("me/mine")
    assert server.sent_with_token
    assert not [path for path in server.sent_with_token if path.startswith("/blob/")]  # that is another's machine
    said = "".join(capfd.readouterr())
    assert TOKEN not in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def model_of(folder: Path, **changes: bytes | None) -> dict[str, bytes]:
    named = {name.replace("__", "."): content for name, content in changes.items()}
    mine = files_of(folder) | {name: content for name, content in named.items() if content is not None}
    return {name: content for name, content in mine.items() if named.get(name, b"") is not None}


DECODER_ONLY = json.dumps({"model_type": "gpt2"}).encode()
SPEECH = json.dumps({"model_type": "whisper", "is_encoder_decoder": True}).encode()
REFUSED: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no config": ({"config__json": None}, "config.json is missing"),
    "config no JSON": ({"config__json": b"{"}, "config.json: cannot be read as JSON"),
    "decoder-only": ({"config__json": DECODER_ONLY}, "model_type 'gpt2' and not is_encoder_decoder"),
    "another family": ({"config__json": SPEECH}, "model: google/.*model_type 'whisper', which is not supported"),
    "a pickle": (
        {"model__safetensors": None, "pytorch_model__bin": b"x"},
        "pytorch_model.bin: weights are read from safetensors files alone.*refs/pr.*save_pretrained",
    ),
    "no weights": ({"model__safetensors": None}, "model.safetensors: the model's weights are missing"),
    "weights cut": ({"model__safetensors": b"12345678"}, "model.safetensors: is not a whole safetensors file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_used_is_refused(server: Server, hub: Hub, tiny_t5: Path, case: str) -> None:
    changes, message = REFUSED[case]
    server.repository("model", ID).commit(model_of(tiny_t5, **changes))
    with pytest.raises(LopsideError, match=f"(?s){message}"):
        find_model(ID, hub=hub)
    if case != "weights cut":
        assert not [asked for asked in server.asked if asked.endswith((".safetensors", ".bin"))]


def test_what_the_hub_has_not_is_named(server: Server, hub: Hub, tiny_t5: Path) -> None:
    with pytest.raises(LopsideError, match=r"^model: me/nothing: 127.0.0.1 has no such model"):
        hub.fetch_model("me/nothing")
    with pytest.raises(LopsideError, match=r"^dataset: me/nothing: 127.0.0.1 has no such dataset"):
        make_tables("me/nothing", hub=hub)
    repository = server.repository("model", "me/mine")
    repository.commit(files_of(tiny_t5))
    with pytest.raises(LopsideError, match=r"^parent.revision: 'v9': me/mine has no such branch, tag or commit"):
        hub.fetch_model("me/mine", "v9")
    repository.gated = True
    with pytest.raises(LopsideError, match=r"^model: me/mine: 127.0.0.1 asks for consent first.*HF_TOKEN"):
        hub.fetch_model("me/mine")
    server.failing = 503
    with pytest.raises(LopsideError, match=r"^model: me/mine: .*503"):
        Hub(server.url, hub.cache and hub.cache / "new").fetch_model("me/mine")


def test_no_network_is_said(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Hub(f"http://127.0.0.1:{free.getsockname()[1]}", tmp_path)
        with pytest.raises(
            LopsideError, match=r"^model: me/mine: is not in the cache, and 127.0.0.1 cannot be reached"
        ):
            nobody.fetch_model("me/mine")
        with pytest.raises(LopsideError, match=r"^dataset: me/mine: is not in the cache, and 127.0.0.1 cannot"):
            make_tables("me/mine", hub=nobody)


def test_a_full_disk_leaves_nothing_that_is_taken_for_whole(
    server: Server, hub: Hub, tiny_t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repository("model", ID).commit(files_of(tiny_t5))

    def full(url: str, file: io.BufferedWriter, **_: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", "blob")

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        with pytest.raises(OSError, match="No space left"):  # which the command says in one line
            hub.fetch_model(ID)
    assert not [path for path in (tmp_path / "cache").rglob("snapshots/*/*") if path.exists()]


# Data sets


def test_a_known_set_is_read_with_its_configuration_columns_and_splits(
    server: Server, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = put_news(server)
    folder = tmp_path / "splits"
    counts = make_tables("cnn_dailymail", folder=folder, hub=hub)
    assert counts == {"train": 12, "validation": 4, "test": 6}
    assert not [asked for asked in server.asked if "1.0.0" in asked and "resolve" in asked]
    test = read_split("test", folder)
    assert test["summary"][0] == "Council met on day 30 ."
    assert (test["body"] == test["document"]).all()
    assert test["id"][0] == f"{30:040x}"
    assert test["source"][0] == "3.0.0/test-00000-of-00001.parquet:1"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["hub_id"], provenance["commit"], provenance["config"]) == (
        "abisee/cnn_dailymail",
        commit,
        "3.0.0",
    )
    assert provenance["split_off"] == []
    assert "columns: document from article, summary from highlights, id from id" in capsys.readouterr().out


def test_a_part_of_a_set_in_the_cache_is_not_taken_for_the_whole(
    server: Server, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_news(server)
    server.cut["3.0.0/test-00000-of-00001.parquet"] = 99
    with pytest.raises(LopsideError, match=r"^dataset: abisee/cnn_dailymail: .*cannot be reached"):
        make_tables("cnn_dailymail", folder=tmp_path / "splits", hub=hub)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        http.close_session()
        with pytest.raises(LopsideError, match=r"^dataset: abisee/cnn_dailymail: is not in the cache, and HF_HUB_OFF"):
            make_tables("cnn_dailymail", folder=tmp_path / "splits", hub=hub)
    assert not (tmp_path / "splits").exists()
    server.cut.clear()
    http.close_session()
    counts = make_tables("cnn_dailymail", folder=tmp_path / "splits", hub=hub)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})  # as in another process
    http.close_session()
    assert make_tables("cnn_dailymail", folder=tmp_path / "splits", hub=hub) == counts


def test_any_other_set_needs_its_columns_named_where_they_are_not_clear(
    server: Server, hub: Hub, tmp_path: Path
) -> None:
    repository = server.repository("dataset", "me/odd")
    repository.commit({"data/train-00000-of-00001.parquet": news(60, long=lambda row: "x"), "x.py": b"raise"}, "dev")
    with pytest.raises(LopsideError, match=r"^data.revision: 'main': me/odd has no such branch"):
        make_tables("me/odd", hub=hub, folder=tmp_path / "splits")
    counts = make_tables("me/odd", "dev", hub=hub, folder=tmp_path / "splits")
    assert sum(counts.values()) == 60
    assert min(counts.values()) > 0
    assert json.loads((tmp_path / "splits/provenance.json").read_text())["split_off"] == ["validation", "test"]


def test_the_hubs_own_parquet_copy_is_read(server: Server, hub: Hub, tmp_path: Path) -> None:
    rows: dict[str, Callable[[int], Any]] = {"document": lambda row: f"text {row}", "summary": str}
    files = {f"default/{split}/0000.parquet": news(5, start, **rows) for start, split in ((0, "train"), (9, "test"))}
    files["default/validation/0000.parquet"] = news(5, 5, **rows)
    repository = server.repository("dataset", "EdinburghNLP/xsum")
    repository.commit({"xsum.py": b"raise"})
    with pytest.raises(LopsideError, match=r"xsum: has no train, validation or test file"):
        make_tables("xsum", "main", hub=hub, folder=tmp_path)
    repository.commit(files, "refs/convert/parquet")
    assert make_tables("xsum", hub=hub, folder=tmp_path / "splits") == {"train": 5, "validation": 5, "test": 5}


# Names


@pytest.mark.parametrize("name", DATASETS)
def test_known_sets_name_a_hub_id_and_the_columns(name: str) -> None:
    known = known_dataset(name)
    if name != "docstrings":
        assert locate("dataset", known.hub_id, DATASETS) == "hub"
        assert {"document", "summary"} <= set(known.columns)
        assert (known.prefix, known.source_tokens, known.target_tokens) == ("summarize: ", 1024, 128)
    assert known_dataset("me/other") == type(known)()


def test_a_name_is_known_or_here_or_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("dataset", "me/mine", DATASETS) == "hub"
    (tmp_path / "me/mine").mkdir(parents=True)
    (tmp_path / "xsum").mkdir()
    assert locate("dataset", "me/mine", DATASETS) == "local"
    assert locate("dataset", "xsum", DATASETS) == "known"
    assert locate("dataset", "./xsum", DATASETS) == "local"
    for name in ("./none", "/none/x", "data/none.jsonl", "a/b/c", "~/none", "me/--x", "me/x y"):
        with pytest.raises(LopsideError, match=f"^dataset: {name}: there is no such file or folder"):
            locate("dataset", name, DATASETS)
    with pytest.raises(LopsideError, match=r"did you mean samsum\?"):
        locate("dataset", "./samsun", DATASETS)


# Folders here


def test_a_folder_here_is_taken_as_it_is(tiny_bart: Path, tmp_path: Path) -> None:
    assert find_model(str(tiny_bart)) == (tiny_bart, {"model": str(tiny_bart)})
    with pytest.raises(LopsideError, match=r"^parent.revision: 'main' is refused; .* is not on a hub"):
        find_model(str(tiny_bart), "main")
    for config, message in (
        ('{"model_type": "gpt2"}', "model_type 'gpt2' and not is_encoder_decoder"),
        ('{"model_type": "bert"}', "model_type 'bert' and not is_encoder_decoder"),
        ('{"model_type": ', "config.json: cannot be read as JSON"),
    ):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(LopsideError, match=message):
            find_model(str(tmp_path))

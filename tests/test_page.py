"""The report as a page: what it says, that it needs nothing else, and how a browser shows it."""

import html
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from lopside import examples, pictures
from lopside import page as module
from lopside.commands import main
from lopside.examples import Example, read_examples
from lopside.history import Row, write_history
from lopside.page import plain, to_html, write_report
from lopside.study import studies
from tests.projects import run
from tests.rows import grid, row

SPEEDS = (("fixed", 1), ("fixed", 8), ("natural", 1), ("paper", 1))
REDUCED = ((6, 6), (6, 3), (6, 1), (3, 6), (1, 6), (3, 3), (1, 1))


def history() -> list[Row]:
    """The paper's grid of one model, with three seeds of some cells; a part of it on other data."""
    more = [
        row(each.enc, each.dec, each.figure("delta.rouge2") - 0.1, 1.7, seed=1, speeds=SPEEDS) for each in grid()[:3]
    ]
    return [*grid(speeds=SPEEDS), *more, *grid(REDUCED, dataset="./tickets_*.csv", documents=60)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with no git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


@pytest.fixture
def unrendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed, but no PNG is made of them: for tests of what is written."""

    def save(figure: Any, path: str | Path) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"\x89PNG")

    monkeypatch.setattr(pictures, "save", save)


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few points: for tests of whether there are any."""

    def save(figure: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=30)

    monkeypatch.setattr(pictures, "save", save)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The folder of the report on `history`, and what was drawn; only to be looked at."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        return folder / "report", write_report(history(), folder / "report")


def test_the_page_has_all_its_parts_and_pictures(reported: tuple[Path, list[Path]]) -> None:
    folder, drawn = reported
    text = (folder / "report.md").read_text()
    for heading in (
        "# What lopside measured",
        "## The paper's claims",
        "## docs-bart-mini on docstrings, uniform, 1 epoch, transformers float32",
        "## docs-bart-mini on ./tickets\\_\\*.csv, uniform, 1 epoch, transformers float32",
        "## Average degradation",
        "## ROUGE-2 lost for each sixth of the layers",
        "## Three documents",
        "## How it was measured",
    ):
        assert f"\n{heading}\n" in f"\n{text}"
    kinds = [f"tradeoff-{setting}" for setting in ("fixed", "natural", "paper")] + ["heat-maps", "lines", "sizes"]
    others = ["2-tradeoff-fixed", "2-heat-maps", "2-lines", "2-sizes", "pooled"]
    assert [path.stem for path in drawn] == kinds + others
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    # Five claims, in one table, each with a verdict.
    table = text.split("With times of the paper's setting, batch 1:")[1].split("\n\n")[1].splitlines()[2:]
    assert [line[2] for line in table] == list("12345")
    assert all(re.search(r"\| \*\*(holds|does not hold|undecided|not measured)\*\* \|$", line) for line in table)
    assert (
        "| 6-1 | 0 | 20.0 M | 20.00 | 17.50 | -2.50 [-3.00, -2.00] | [-3.09, -1.91] |  | 87.5% [85.0%, 90.0%] |" in text
    )
    assert "| 6-5 | 0, 1 | 28.0 M | 20.00 | 19.45 | -0.55 [-1.05, -0.05] | [-1.10, -0.00] | -0.60 to -0.50 |" in text


def test_equal_rows_make_equal_files(folder: Path) -> None:
    for name in ("one", "two"):
        write_report(grid()[:5], folder / name)
    names = [path.name for path in sorted((folder / "one").iterdir())]
    assert names == [path.name for path in sorted((folder / "two").iterdir())]
    assert all((folder / "one" / name).read_bytes() == (folder / "two" / name).read_bytes() for name in names)


def test_the_html_needs_no_other_file(reported: tuple[Path, list[Path]]) -> None:
    folder, drawn = reported
    page = (folder / "report.html").read_text()
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == len(drawn)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|<script|<link|url\(", re.sub(r"data:image/png;base64,[\w+/=]+", "", page))
    assert all(re.findall(r'<img [^>]*alt="([^"]*)"', page))


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize(
    "rows",
    [
        [row(6, 1, -1, 2)],
        [row(6, 6, width=0.0)],
        [row(12, 2, -1, 2, unit="layers")],
        [row(2, 2, -1, 2, strategy="explicit")],
        [row(6, 1, -1, 2), row(6, 1, -1, 3, machine="another")],
        [row(6, 1, -1, 2, stale="revision abc1234 is gone")],
        [row(6, 1, -1, 2, speeds=(("by_hand", 4),))],
        [row(6, 1, -1, 2), row(6, 1, -1, 2, seed=1, speeds=(("fixed", 8), ("paper", 1)))],
        grid(speeds=()),
    ],
    ids=[
        "one row",
        "6-6 alone",
        "layers",
        "explicit",
        "two machines",
        "stale",
        "another setting",
        "seeds timed differently",
        "nothing timed",
    ],
)
def test_little_or_odd_history_makes_a_page(folder: Path, rows: list[Row]) -> None:
    write_report(rows, folder / "report")
    text = (folder / "report/report.md").read_text()
    assert "**not measured**" in text or "Nothing was measured yet" in text
    assert ("are stale" in text) == bool(rows[0].stale)


@pytest.mark.parametrize("lacking", ["speedup", "speedup_"])
def test_where_no_cell_has_a_speedup_with_its_interval_nothing_is_drawn(folder: Path, lacking: str) -> None:
    timed = row(6, 1, -1, 2, speeds=SPEEDS)
    bare = {key: value for key, value in timed.figures.items() if lacking not in key}
    drawn = write_report([replace(timed, figures=bare)], folder / "report")
    assert [path.name for path in drawn] == ["pooled.png"]
    assert "\nNot drawn, as nothing was timed.\n" in (folder / "report/report.md").read_text()


@pytest.mark.usefixtures("unrendered")
def test_the_control_is_counted_seed_by_seed(folder: Path) -> None:
    # Reaches 0.1 to both sides: 1.2 does not hold 1.
    controls = [row(6, 6, 0, speedup, seed=seed, speeds=SPEEDS) for seed, speedup in enumerate((1.05, 1.2))]
    write_report([*controls, row(6, 1, -1, 2, speeds=SPEEDS)], folder / "report")
    text = (folder / "report/report.md").read_text()
    assert "\nThe control, where pruned is dense itself: 1 lies in 4 of 8 intervals of the speedup, over seeds" in text
    write_report([row(6, 1, -1, 2, speeds=SPEEDS)], folder / "report")
    assert "The control" not in (folder / "report/report.md").read_text()


@pytest.mark.usefixtures("unrendered")
def test_what_training_leaves_to_chance_is_told(folder: Path) -> None:
    write_report(grid(((6, 6), (6, 1))), folder / "report")
    text = (folder / "report/report.md").read_text()
    assert "What training leaves to chance is in none of them: no cell was trained with several seeds." in text
    again = [row(6, 1, -2.9, seed=1), row(6, 6, seed=1), row(6, 1, -1, dataset="xsum")]
    write_report([*grid(((6, 6), (6, 1))), *again], folder / "report")
    text = (folder / "report/report.md").read_text()
    # 6-1 has -2.5 and -2.9: 0.28 points; 6-6 twice 20: 0. Pooled over both 0.2, Student's 4.303.
    assert (
        "from seed to seed a figure of docs-bart-mini on docstrings varies by 0.20 points (standard deviation, 2 "
        "degrees of freedom), which is taken to be so for every cell (by themselves: 0.00 to 0.28). In those of "
        "docs-bart-mini on xsum it is not, for want of several seeds." in text
    )
    reach = ((-2.7 + 3.2) ** 2 + 4.302653**2 * 0.04) ** 0.5
    assert f"| -2.70 [-3.20, -2.20] | [{-2.7 - reach:.2f}, {-2.7 + reach:.2f}] | -2.90 to -2.50 |" in text
    assert "| -1.00 [-1.50, -0.50] |  |  |" in text


@pytest.mark.usefixtures("unrendered")
def test_models_of_several_sizes_share_a_picture_where_they_compare(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[list[str]] = []
    draw = pictures.models

    def spy(mains: list[Any], speed: Any, path: Path) -> None:
        compared.append([study.first.model for study in mains])
        draw(mains, speed, path)

    monkeypatch.setattr(pictures, "models", spy)
    rows = [each for model in ("docs-bart-mini", "docs-bart-micro") for each in grid(REDUCED, model=model)]
    write_report(rows, folder / "report")
    assert [sorted(names) for names in compared] == [["docs-bart-micro", "docs-bart-mini"]]
    assert "\n## Size and accuracy\n" in (folder / "report/report.md").read_text()
    others = (
        grid(REDUCED, dataset="xsum", model="docs-bart-micro"),
        grid(REDUCED, model="flan-t5-small", machine="another"),
    )
    write_report([*rows[:7], *others[0], *others[1]], folder / "report")
    assert len(compared) == 1


def test_each_model_has_a_colour_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    pictures.models(studies([*grid(REDUCED), *grid(REDUCED[:2], model="other")]), ("fixed", 1), Path())
    accuracy, time_taken = drawn[0].axes
    assert [(line.get_label(), len(line.get_xdata())) for line in accuracy.lines] == [
        ("docs-bart-mini", 7),
        ("other", 2),
    ]
    assert len({line.get_color() for line in time_taken.lines}) == 2
    assert [text.get_text() for text in accuracy.texts].count("6-6") == 2


@pytest.mark.usefixtures("unrendered")
def test_rows_of_two_machines_never_share_a_picture(folder: Path) -> None:
    drawn = write_report([row(6, 1, -1, 2), row(6, 3, -1, 2), row(6, 1, -1, 3, machine="another")], folder / "report")
    text = (folder / "report/report.md").read_text()
    assert text.count("\n## docs-bart-mini on docstrings, uniform, 1 epoch, transformers float32\n") == 2
    assert "2 cells, 1 seed each; timed on made-up CPU, 2 cores; 2,000 test documents; epochs 1.0, " in text
    assert "1 cell, 1 seed each; timed on another" in text
    # Whose claims they are, and that two studies of one title can be told apart.
    title = "docs-bart-mini on docstrings, uniform, 1 epoch, transformers float32"
    assert f"1 to 4 for {title} (2 cells, 1 seed each; timed on " in text
    assert [path.name for path in drawn if "tradeoff" in path.name] == ["tradeoff-fixed.png", "2-tradeoff-fixed.png"]


@pytest.mark.usefixtures("unrendered")
def test_figures_that_are_missing_are_left_empty(folder: Path) -> None:
    bare = [
        replace(
            each,
            figures={key: value for key, value in each.figures.items() if not key.startswith(("retained", "dense"))},
        )
        for each in grid(REDUCED)
    ]
    write_report(bare, folder / "report")
    assert "| 6-1 | 0 | 20.0 M |  | 17.50 | -2.50 [-3.00, -2.00] |  |  |" in (folder / "report/report.md").read_text()


@pytest.mark.usefixtures("unrendered")
def test_documents_are_shown_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = "<script>alert(1)</script> | `a` *b* [x](http://x.org) <http://y.org> $z$ &amp;\n# heading"
    example = Example(nasty, nasty, nasty, "", {"dense": 12.34, "pruned": 0.0})
    monkeypatch.setattr(module, "read_examples", lambda row: [example])
    write_report(history()[:5], folder / "report")
    page = (folder / "report/report.html").read_text()
    shown = html.escape(nasty.replace("\n", " "))
    assert f"<p><strong>Document:</strong> {shown}</p>" in page
    assert f"<td>{shown}</td>\n<td>(empty)</td>" in page
    assert "<th>dense, 12.3</th>\n<th>pruned, 0.0</th>" in page
    assert "<a " not in page
    assert "<script" not in page


@pytest.mark.usefixtures("unrendered")
def test_without_the_cache_the_examples_are_left_out_with_a_sentence(folder: Path) -> None:
    write_report(history()[:1], folder / "report")
    said = "Left out: the summaries of e6-d6-uniform-s0-abc1234 cannot be read here (there is no commit "
    assert said in (folder / "report/report.md").read_text()


def test_examples_are_read_from_the_cache_alone(folder: Path) -> None:
    """As DVC leaves it, but for a remote, which would be asked in vain; what is broken there is said."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\nremote = x\n['remote \"x\"']\nurl = https://localhost:1/none\n")
    one = {"id": ["a"], "document": ["long"], "summary": ["short"], "dense_rouge2": [12.5], "pruned_rouge2": [0.0]}
    stages = {}
    for number, path in enumerate(examples.FILES.values(), start=10):
        stages[f"stage{number}"] = {"outs": [{"path": path, "md5": f"{number}abc"}]}
        (folder / f".dvc/cache/files/md5/{number}").mkdir(parents=True)
        pd.DataFrame(one).to_parquet(folder / f".dvc/cache/files/md5/{number}/abc")
    (folder / "dvc.lock").write_text(json.dumps({"stages": stages}))
    run("git", "init", "--quiet", folder=folder)
    run("git", "add", "dvc.lock", folder=folder)
    run("git", "commit", "--quiet", "--message=run", folder=folder)
    made = row(6, 1, commit=run("git", "rev-parse", "HEAD", folder=folder)[:7])
    example = Example("long", "short", "short", "short", {"dense": 12.5, "pruned": 0.0})
    assert read_examples(made) == [example]
    last = folder / ".dvc/cache/files/md5/13/abc"
    last.write_bytes(b"odd")
    assert str(read_examples(made)).startswith("DVC's cache does not give them: ArrowInvalid: ")
    last.unlink()
    assert read_examples(made) == ("DVC's cache has no outputs/scores.parquet of that commit; `dvc exp pull` brings it")


def test_plain_text_is_one_line_of_markdown_that_shows_as_it_is() -> None:
    assert plain("a_b  c\n|d") == r"a\_b c \|d"
    assert "<p>a_b c |d</p>" in to_html(plain("a_b  c\n|d"), Path())
    assert "<p>&lt;b&gt;d&lt;/b&gt;</p>" in to_html("<b>d</b>", Path())


@pytest.mark.usefixtures("unrendered")
def test_the_command_writes_the_page_and_copies_the_pictures(folder: Path) -> None:
    write_history(history()[:3])
    result = CliRunner().invoke(main, ["report", "--pictures", "docs"])
    assert (result.exit_code, result.output) == (0, "metrics/history.csv: 3 rows\nreport/report.html\n"), result.output
    assert {path.name for path in (folder / "docs").iterdir()} == {
        path.name for path in (folder / "report").glob("*.png")
    }


def test_an_empty_history_is_one_clear_error_and_no_page(folder: Path) -> None:
    for header in (False, True):
        if header:
            write_history([])
        result = CliRunner().invoke(main, ["report"])
        assert result.exit_code == 1
        assert result.output.startswith("error: metrics/history.csv: there is no row, and no experiment to make one of")
        assert not (folder / "report").exists()


def test_a_broken_history_is_one_clear_error_and_no_page(folder: Path) -> None:
    write_history(history())
    path = folder / "metrics/history.csv"
    path.write_text(path.read_text().replace("2026-01-31", "yesterday", 1))
    for command in (["report"], ["recommend", "--max-loss", "1"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert result.output.startswith("error: metrics/history.csv, line 2: date: 'yesterday' is refused")
    assert not (folder / "report").exists()


def test_five_hundred_rows_take_seconds_and_no_model_library(folder: Path) -> None:
    subjects = [(f"./model{number}", dataset) for number in range(7) for dataset in ("docstrings", "xsum")]
    rows = [each for model, dataset in subjects for each in grid(model=model, dataset=dataset, speeds=SPEEDS)]
    rows += [each for seed in range(1, 18) for each in grid(model="./model0", speeds=SPEEDS, seed=seed)]
    write_history(rows[:500])
    code = (
        "import sys, time\nfrom lopside.history import read_history\nfrom lopside.page import write_report\n"
        "write_report(read_history(), 'report')\n"
        "print(time.process_time(), *{'torch', 'transformers', 'datasets'} & {*sys.modules})"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    seconds, *heavy = done.stdout.split()
    assert heavy == []
    assert float(seconds) < 10, f"{seconds} s of CPU, {time.monotonic() - begun:.1f} s in all"


def test_a_browser_shows_all_of_it(folder: Path, reported: tuple[Path, list[Path]]) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium is installed (Debian: apt install chromium)")
    report, drawn = reported
    page = (report / "report.html").read_text()
    # The browser writes into the title what it sees.
    look = """
        <script>document.title = [
            document.images.length,
            [...document.images].every(image => image.complete && image.naturalWidth > 400),
            document.documentElement.scrollWidth <= document.documentElement.clientWidth,
            [...document.querySelectorAll("h2, td")].every(part => part.getBoundingClientRect().height > 10),
        ].join(" ")</script>
    """
    (folder / "looked.html").write_text(page.replace("</body>", f"{look}</body>"))
    for width in (1400, 500):  # a desk and a telephone
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--window-size={width},2000",
            f"--user-data-dir={folder}/user",
        ]
        command = [browser, *flags, "--virtual-time-budget=5000", "--dump-dom", f"file://{folder}/looked.html"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
        title = re.search(r"<title>(.*?)</title>", shown.stdout)
        assert title, shown.stderr
        assert title[1] == f"{len(drawn)} true true true"

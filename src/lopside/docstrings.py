"""Docstrings of Python packages as (document, summary) pairs: read, cleaned, deduplicated, split.

A wheel is opened as a zip file and its modules are parsed with :mod:`ast`; nothing in it is imported, installed or run.
Text that comes out of the same wheels is the same, byte for byte, on every supported Python: nothing here leans on the
interpreter's own dedenting, and every hash is seeded by this file alone.
"""

import ast
import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

SUMMARY_WORDS = (4, 32)
"""Fewest and most words of a summary."""
BODY_WORDS = 15
"""Fewest words of a body."""
SAME = 0.8
"""Word sets with this Jaccard similarity or more count as copies: one of them stays."""
NEAR = 0.5
"""Word sets with this Jaccard similarity or more belong to one family, which never straddles splits."""
LARGEST_HELD_OUT_FAMILY = 10
"""Families with more pairs than this are boilerplate: they stay in the training split."""
PARAMETERS_NAMED = 6
"""How many parameters the name of a function lists."""


@dataclass(frozen=True)
class Pair:
    """A document and its summary.

    ``document`` is the name in words and then ``body``; ``summary`` is the first paragraph of the docstring, ``body``
    the rest of it; ``source`` says where it was found (``distribution==version module:qualname``).
    """

    document: str
    body: str
    summary: str
    source: str

    @cached_property
    def id(self) -> str:
        """16 hex digits that depend on summary and document alone, whichever wheel they came from."""
        return hashlib.sha256(f"{self.summary}\0{self.document}".encode()).hexdigest()[:16]

    @cached_property
    def words(self) -> frozenset[str]:
        """The distinct words of summary and body, lower case."""
        return frozenset(_words(self.summary)) | frozenset(_words(self.body))


# Reading


def read_wheels(paths: Iterable[Path]) -> Iterator[Pair]:
    """Pairs of every wheel, in the order given. Duplicates are still in: see :func:`deduplicate`."""
    for path in paths:
        yield from read_wheel(path)


def read_wheel(path: Path, body_words: int = BODY_WORDS) -> list[Pair]:
    """Pairs of one wheel (compiled ones hold Python files too), by file name and then by place in the file.

    Those whose body has fewer words than ``body_words`` are left out; with 0, a docstring of one paragraph is a pair
    too, its document the name alone.
    Raises ``zipfile.BadZipFile`` for what is not a zip file. Modules that Python cannot parse are skipped.
    """
    distribution = distribution_of(path)
    pairs: list[Pair] = []
    with zipfile.ZipFile(path) as wheel:
        for file in sorted(wheel.namelist()):
            if file.endswith(".py") and not _LEFT_OUT.search(file):
                pairs += _read_module(wheel.read(file), _module_of(file), distribution, body_words)
    return pairs


def distribution_of(wheel: Path) -> str:
    """``name==version`` by the wheel's file name, the name in its normal form: lower case, parts joined by "-"."""
    name, version = Path(wheel).name.split("-")[:2]
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


_LEFT_OUT = re.compile(
    r"(^|/)(_?vendor(ed|s)?|_vendored_packages|third_?party|_?externals?|_?extern|ext_?libs?"  # other people's
    r"|_?gen(erated)?|substrates|node_modules|build|_?testing|_?tests?|testdata|fixtures"  # programs', or boilerplate
    r"|[^/]+\.(dist-info|data/(scripts|data|headers)))/"
    r"|(^|/)(test_[^/]*|[^/]*_test|conftest|setup|[^/]*_pb2(_grpc)?)\.py$"
)


def _module_of(file: str) -> str:
    parts = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", file).removesuffix(".py").split("/")
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def _read_module(code: bytes, module: str, distribution: str, body_words: int) -> Iterator[Pair]:
    if b'"""' not in code and b"'''" not in code:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    package = module.split(".")[0]
    for qualname, node in _documented(tree):
        docstring = ast.get_docstring(node, clean=False)
        if docstring is None:
            continue
        if isinstance(node, ast.Module):
            name = in_words(module)
        elif isinstance(node, ast.ClassDef):
            name = in_words(f"{package}.{qualname}")
        else:
            name = f"{in_words(f'{package}.{qualname}')} ({', '.join(_parameters(node))})"
        source = f"{distribution} {module}" + (f":{qualname}" if qualname else "")
        pair = pair_of(name, docstring, source, body_words)
        if pair is not None:
            yield pair


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


_BLOCKS = ("body", "cases", "handlers", "orelse", "finalbody")


def _documented(tree: ast.Module) -> Iterator[tuple[str, _Documented]]:
    """(qualname, node) of the module, then of every class and function in the order of the file."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:  # no recursion: long chains of elif are nested deeper than Python's stack
        prefix, node = waiting.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            prefix = f"{prefix}.{node.name}" if prefix else node.name
        if isinstance(node, _Documented):
            yield prefix, node
        children = [child for block in _BLOCKS for child in getattr(node, block, ())]
        waiting += [
            (prefix, child) for child in reversed(children) if hasattr(child, "body") or hasattr(child, "cases")
        ]


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    arguments = function.args
    given = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    named = [in_words(name) for name in given if name not in ("self", "cls", "mcs")]
    return [name for name in named if name][:PARAMETERS_NAMED]


def in_words(name: str) -> str:
    """An identifier as words: ``pandas.DataFrame.read_csv`` is "pandas Data Frame read csv"."""
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.split(r"[\W_]+", split)).strip()


# Cleaning


def pair_of(name: str, docstring: str, source: str, body_words: int = BODY_WORDS) -> Pair | None:
    """The pair a docstring gives under ``name``, or None where it is none: too short or long, not English prose."""
    summary_lines, body_lines = _parted(_prose(_dedent(docstring)))
    summary = _inline(summary_lines)
    if not _is_summary(summary):
        return None
    body = _inline(body_lines)
    if not _is_body(body, body_words):
        return None
    return Pair(document=f"{name}: {body}".rstrip(), body=body, summary=summary, source=source)


def _dedent(docstring: str) -> list[str]:
    """Lines without the margin. Our own: ``inspect.cleandoc`` changed between Python versions."""
    first, *others = docstring.expandtabs().replace("\r", "").split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in others if line.strip()), default=0)
    return [first.strip(), *(line[margin:].rstrip() for line in others)]


_DROPPED_DIRECTIVES = re.compile(
    r"\.\. *(code|sourcecode|math|image|figure|plot|ipython|jupyter|testcode|testsetup|testoutput|doctest|highlight"
    r"|parsed-literal|raw|include|literalinclude|table|csv-table|list-table|toctree|auto\w+|currentmodule|module|index|only"
    r"|versionadded|versionchanged|version-\w+|deprecated|graphviz|mermaid|contents|footbibliography|bibliography|rubric"
    r"|prompt|minigallery|tabs?|jinja|grid[\w-]*|card[\w-]*|dropdown|container|class|py:\w+|[\w-]*(code|exec|plot)[\w-]*"
    r")\b[^:]*::|\.\. *(\[|_|\|)"
)
_UNDERLINE = re.compile(r"\s*([=\-~^\"'`#*+.:_])\1{2,}\s*$")
_HEADING = re.compile(r"(\s*)(?:\*\*([^*]+)\*\*:?|#{1,6} +(.+))$")  # Markdown; bold alone on a line, too
_FIELD = re.compile(
    r"\s*([:@](param|type|return|rtype|raise|arg|keyword|key|ivar|cvar|var|kwarg|see|since|note|author|exception|throws|yield"
    r"|attr)\w*\b|(Args|Arguments|Parameters|Params|Returns?|Raises|Yields|Attributes|Inputs?|Outputs?|Examples?|Usage"
    r"|Keyword arguments|Keyword args|Keywords|References?|See Also|Notes?|Warnings?|Warns|Options)\s*:?\s*$)",
    re.IGNORECASE,
)
_TYPE_FIELD = re.compile(r"[:@](rtype|type)\b")
_DROPPED_SECTION = re.compile(
    r"\s*(Examples?|References?|See Also|Usage|Example usage|Doctests?|Tests?|Authors?|Copyright)\s*:{0,2}\s*$",
    re.IGNORECASE,
)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _prose(lines: Sequence[str]) -> list[str]:
    """The lines that are prose: no doctests and their output, literal blocks, tables, directives that carry no text."""
    kept: list[str] = []
    skipped_from: int | None = None  # indentation of the line whose deeper block is left out
    in_doctest = in_fence = False
    for number, line in enumerate(lines):
        text = line.strip()
        if text.startswith(("```", "~~~")):
            in_fence = not in_fence
            continue
        if in_fence:
            continue
        if not text:
            in_doctest = False
            kept.append("")
            continue
        if skipped_from is not None:
            if _indent(line) > skipped_from:
                continue
            skipped_from = None
        if in_doctest or text.startswith(">>>") or (text.startswith("In [") and re.match(r"In \[\d*\]:", text)):
            in_doctest = True
            continue
        if text.startswith("$ ") or _TYPE_FIELD.match(text):
            continue
        if text.startswith("..") and _DROPPED_DIRECTIVES.match(text):
            skipped_from = _indent(line)
            continue
        if _UNDERLINE.match(line):
            if kept and kept[-1]:
                kept[-1] = kept[-1].rstrip(" :") + ":"  # a heading stays apart from the text below it
                kept.append("")
            continue
        if not re.search(r"[A-Za-z]", text):
            continue
        heading = _HEADING.match(line)
        if heading:
            line = f"{heading[1]}{(heading[2] or heading[3]).rstrip(' :')}:"
        if text.startswith(".. "):
            text = re.sub(r"^\.\. *([\w-]+:: *)?", "", text)
            line = " " * _indent(line) + text
        if text.endswith("::") and not _DROPPED_SECTION.match(text):
            line = line[:-1]
            following = [_indent(other) for other in lines[number + 1 :] if other.strip()]
            if following and following[0] > _indent(line):
                skipped_from = _indent(line)
        if line.strip():
            kept.append(line)
    return kept


def _parted(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(first paragraph, the rest). A list of fields ends the paragraph even without an empty line before it."""
    start = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    end = next(
        (n for n in range(start, len(lines)) if not lines[n].strip() or (n > start and _FIELD.match(lines[n]))),
        len(lines),
    )
    return list(lines[start:end]), _without_sections(lines[end:])


def _without_sections(lines: Sequence[str]) -> list[str]:
    """Lines without sections of examples and references, and without headings under which nothing is left."""
    kept: list[str] = []
    dropping: int | None = None
    for line in lines:
        heading = _FIELD.match(line) or _DROPPED_SECTION.match(line)
        if line.strip() and dropping is not None and heading and _indent(line) <= dropping:
            dropping = None
        if dropping is None and _DROPPED_SECTION.match(line):
            dropping = _indent(line)
        if dropping is None:
            kept.append(line)
    while kept and (not kept[-1].strip() or (_FIELD.match(kept[-1]) and kept[-1].strip()[0] not in ":@")):
        kept.pop()
    return kept


_INLINE: tuple[tuple[str, re.Pattern[str], str], ...] = tuple(
    (needed, re.compile(pattern), replacement)
    for needed, pattern, replacement in (  # a text without what is needed is not searched: most have none of it
        ("![", r"!\[[^\]]*\]\([^)]*\)", " "),  # Markdown images, then links
        ("](", r"\[([^\]]+)\]\([^)\s]*\)", r"\1"),
        (":`", r":[\w:+.-]+:`~?!?([^`<]*?)\s*<[^`>]*>`", r"\1"),  # roles with a title, roles, links
        (":`", r":[\w:+.-]+:`[~!]?([^`]*)`", r"\1"),
        (">`", r"`([^`<]+?)\s*<[^`>]*>`_{0,2}", r"\1"),
        ("``", r"``([^`]*)``", r"\1"),
        ("`", r"`([^`]*)`_{0,2}", r"\1"),
        ("{", r"\b[A-Z]\{([^{}]*)\}", r"\1"),  # epytext
        ("**", r"\*\*([^*\s][^*]*)\*\*", r"\1"),
        ("*", r"(?<!\w)\*([^*\s][^*]*?)\*(?!\w)", r"\1"),
        ("[", r"(?<![\w\])])\[[\d#*]+\]_?", " "),  # citations
        ("://", r"<(https?|ftp)://[^>]*>|\b(https?|ftp)://\S+", " "),
        ("<", r"</?[A-Za-z][^<>]{0,40}>", " "),
        ("_", r"(?<!\w)_([^_\s][^_]*)_(?!\w)", r"\1"),
        ("++", r"\+\+(\w+)\+\+", r"\1"),  # keys, in MkDocs
        ("|", r"(?<!\S)\|(\w[\w ]*)\|", r"\1"),  # substitutions
        (":", r"(^|\s)[:@](returns?|yields?):", r"\1returns"),
        (":", r"(^|\s)[:@](raises?|throws|exception)\s+([^:]*):", r"\1raises \3:"),
        (":", r"(^|\s)[:@](param|parameter|arg|argument|keyword|key|kwarg|ivar|cvar|var|attr)\s+([^:]*):", r"\1\3:"),
        ("@", r"(^|\s)@(note|see|since|author):", r"\1"),
        ("\\", r"\\[A-Za-z]+\*?", " "),  # TeX commands
        ("", r"[\\$`]+|(?<!\S)\|\|?(?!\S)", " "),
        ("", r"(?<![\w.])[-=~*+#^_]{3,}(?![\w.])", " "),
        ("", r"\s+([.,;:!?)])(?=\s|$)", r"\1"),
        ("(", r"\(\s*\)(?=[\s.,;:])", "()"),
        ("::", r"::+(?=\s|$)", ":"),
    )
)
_BULLET = re.compile(r"^\s*([-*+•|>]|\(?[0-9a-z]{1,2}[.)]|#\.)\s+")


def _inline(lines: Sequence[str]) -> str:
    """Lines as one line of plain text: bullets, roles, emphasis, links and fields down to their words."""
    text = " ".join(_BULLET.sub("", line).strip() for line in lines)
    for needed, pattern, replacement in _INLINE:
        if needed in text:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


_NOT_A_SUMMARY = re.compile(
    r"^(args?|arguments?|parameters?|params?|returns?|raises|yields|attributes|inputs?|outputs?|examples?|usage|notes?|warning"
    r"|see also|todo|fixme|deprecated|references?|options|keyword arguments)\s*:"
    r"|^[a-z_]\w*\s*:|^(deprecated|:|@|\.\.|-\*-|#|!)|\bdeprecated\b|copyright|licen[cs]ed?\b|all rights reserved"
    r"|auto-?generated|automatically generated|do not edit|inherited docstring|docstring inherited|see base class",
    re.IGNORECASE,
)


def _word_count(text: str) -> int:
    """How many of the parts between spaces have a letter."""
    return len(re.findall(r"[^\sA-Za-z]*[A-Za-z]\S*", text))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


_FUNCTION_WORDS = frozenset(
    _words(
        """a an the of to in is are be for and or if it its that this with on by as from at not which when will can has
        have should may must was were you we used use each all any no"""
    )
)


_NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())


def _is_english(text: str, letters: float) -> bool:
    """Whether that share of the characters (spaces aside) or more are ASCII letters, and hardly one is beyond ASCII."""
    characters = text.replace(" ", "")
    ascii_alone = characters.encode("ascii", "ignore")
    return len(ascii_alone.translate(None, _NO_LETTERS)) >= letters * len(characters) and len(characters) - len(
        ascii_alone
    ) <= 0.02 * len(characters)


def _is_summary(text: str) -> bool:
    return (
        SUMMARY_WORDS[0] <= _word_count(text)
        and len(text.split()) <= SUMMARY_WORDS[1]
        and re.match(r"[A-Za-z\"'(]", text) is not None
        and not text.endswith((":", ",", ";"))
        and not _NOT_A_SUMMARY.search(text)
        and "=" not in text
        and _is_english(text, 0.8)
    )


def _is_body(text: str, fewest_words: int) -> bool:
    words = _word_count(text)
    common = sum(word in _FUNCTION_WORDS for word in _words(text))
    return words >= fewest_words and common >= 0.1 * words and _is_english(text, 0.7)


# Duplicates


def deduplicate(pairs: Iterable[Pair]) -> list[Pair]:
    """One pair of each group of copies, in the order of ids; the order of the input does not matter.

    Copies have the same summary or the same body (letters alone compared), or word sets alike by :data:`SAME` or more.
    The one with the smallest id stays.
    """
    summaries: set[str] = set()
    bodies: set[str] = set()
    distinct = []
    for pair in sorted(pairs, key=lambda pair: (pair.id, pair.source)):
        summary, body = "".join(_words(pair.summary)), "".join(_words(pair.body))
        if summary not in summaries and body not in bodies:
            summaries.add(summary)
            bodies.add(body)
            distinct.append(pair)
    dropped: set[int] = set()
    for first, second in near(distinct, distinct, SAME):
        if first < second and first not in dropped:
            dropped.add(second)
    return [pair for number, pair in enumerate(distinct) if number not in dropped]


def near(left: Sequence[Pair], right: Sequence[Pair], threshold: float) -> list[tuple[int, int]]:
    """Sorted (index in left, index in right) of pairs whose word sets have that Jaccard similarity or more.

    With ``left is right``, each two are named once, the smaller index first. Candidates come from MinHash in 64 bands
    of 4 hashes and are then compared exactly: nothing is found that is not near; at a similarity of s, the share found
    is 1 - (1 - s^4)^64 (98% at 0.5, 99.99% at 0.6). Whether two pairs are found depends on those two alone.
    """
    if not left or not right:
        return []
    rows = 4
    ours = _signatures([pair.words for pair in left])
    theirs = ours if left is right else _signatures([pair.words for pair in right])
    found: set[tuple[int, int]] = set()
    for band in range(0, ours.shape[1], rows):
        keys, wanted = _band_keys(theirs[:, band : band + rows]), _band_keys(ours[:, band : band + rows])
        order = np.argsort(keys, kind="stable")
        begins = np.searchsorted(keys[order], wanted, "left")
        counts = np.searchsorted(keys[order], wanted, "right") - begins
        lefts = np.repeat(np.arange(len(left)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rights = order[np.repeat(begins, counts) + within]
        if left is right:
            lefts, rights = lefts[lefts < rights], rights[lefts < rights]
        for start in range(0, len(lefts), 50_000):
            i, j = lefts[start : start + 50_000], rights[start : start + 50_000]
            likely = (ours[i] == theirs[j]).mean(
                axis=1
            ) >= threshold - 0.12  # four standard errors of 256 hashes below it
            found.update(zip(i[likely].tolist(), j[likely].tolist(), strict=True))
    return sorted((i, j) for i, j in found if jaccard(left[i].words, right[j].words) >= threshold)


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over size of the union, 0 to 1; 0 where both are empty."""
    common = len(left & right)
    return common / max(len(left) + len(right) - common, 1)


def _signatures(sets: Sequence[frozenset[str]], hashes: int = 256) -> np.ndarray:
    """MinHash of each set, uint32 (sets, hashes): two sets agree in a column with their Jaccard similarity's chance."""
    numbers: dict[str, int] = {}
    flat = np.array(
        [numbers.setdefault(word, len(numbers)) for words in sets for word in words or [""]], dtype=np.int64
    )
    starts = np.cumsum([0] + [max(len(words), 1) for words in sets[:-1]])
    digests = b"".join(hashlib.blake2b(word.encode(), digest_size=4).digest() for word in numbers)
    codes = np.frombuffer(digests, dtype="<u4").astype(np.uint64)
    # Multiply-add-shift; the constants come from a hash of their place, so that no library's generator is relied on.
    constants = np.frombuffer(
        b"".join(hashlib.sha256(str(n).encode()).digest()[:16] for n in range(hashes)), dtype="<u8"
    ).reshape(-1, 2)
    signatures = np.empty((len(sets), hashes), dtype=np.uint32)
    for column, (factor, offset) in enumerate(constants):
        values = ((codes * (factor | np.uint64(1)) + offset) >> np.uint64(32)).astype(np.uint32)
        signatures[:, column] = np.minimum.reduceat(values[flat], starts)
    return signatures


def _band_keys(band: np.ndarray) -> np.ndarray:
    """One uint64 for the columns of a band; equal rows have equal keys, and others hardly ever."""
    key = np.zeros(len(band), dtype=np.uint64)
    for column in band.T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


# Splits


def families(pairs: Sequence[Pair], kin: Callable[[Pair], str] | None = None) -> list[list[int]]:
    """Indices of the pairs in groups: those near each other (:data:`NEAR`), and chains of such, are in one group.

    So are those to which ``kin`` gives the same name.
    """
    parents = list(range(len(pairs)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = index = parents[parents[index]]
        return index

    for first, second in near(pairs, pairs, NEAR):
        parents[root(second)] = root(first)
    named: dict[str, int] = {}
    if kin:
        for index, pair in enumerate(pairs):
            parents[root(index)] = root(named.setdefault(kin(pair), index))
    groups: dict[int, list[int]] = {}
    for index in range(len(pairs)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def split(
    pairs: Iterable[Pair], validation: int = 2000, test: int = 2000, kin: Callable[[Pair], str] | None = None
) -> dict[str, list[Pair]]:
    """``{"train": ..., "validation": ..., "test": ...}``, each in the order of ids; a family is whole in one of them.

    Families come in the order of a hash and fill validation, then test, to at most that many pairs (fewer where no
    family fits any more); the rest, and every family of more than :data:`LARGEST_HELD_OUT_FAMILY` pairs, is for
    training. ``pairs`` should be deduplicated; their order does not matter. ``kin``: see :func:`families`.
    """
    ordered = sorted(pairs, key=lambda pair: (pair.id, pair.source))
    parts: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    room = {"validation": validation, "test": test}
    by_hash = sorted(families(ordered, kin), key=lambda family: hashlib.sha256(ordered[family[0]].id.encode()).digest())
    for family in by_hash:
        fits = (name for name in room if len(family) <= min(room[name], LARGEST_HELD_OUT_FAMILY))
        name = next(fits, "train")
        parts[name] += [ordered[index] for index in family]
        if name in room:
            room[name] -= len(family)
    return {name: sorted(part, key=lambda pair: (pair.id, pair.source)) for name, part in parts.items()}


def leave_out(pairs: Iterable[Pair], held_out: Sequence[Pair]) -> list[Pair]:
    """The pairs that have another id, summary and body than each held-out one and are less alike than :data:`NEAR`.

    For a training set read from other wheels than those of the held-out pairs.
    """
    ids = {pair.id for pair in held_out}
    summaries = {"".join(_words(pair.summary)) for pair in held_out}
    bodies = {"".join(_words(pair.body)) for pair in held_out}
    others = [
        pair
        for pair in pairs
        if pair.id not in ids
        and "".join(_words(pair.summary)) not in summaries
        and "".join(_words(pair.body)) not in bodies
    ]
    close = {index for index, _ in near(others, held_out, NEAR)}
    return [pair for index, pair in enumerate(others) if index not in close]

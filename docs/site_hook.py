"""Pages of the documentation site (``mkdocs build --strict``).

The site has the tree of the repository: ``README.md`` is its first page, ``configs/README.md`` the
index of methods, and links between files work as they do on a code host. Generated are

    docs/methods/CONFIG.md   one page per method, from the index, its config and docstrings
    docs/api/PACKAGE.md      the docstrings of a package
    docs/contract.md         names of batch keys and signals, from ``lit_adaptive.contract``
    docs/cli.md              the help of each command
"""

import contextlib
import difflib
import importlib
import inspect
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
INDEX = "configs/README.md"
GUIDES = ("usage", "supervised", "language", "rl", "scale", "extending", "traps", "comparison")
STORED = (
    *("README.md", INDEX, "docs/results.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/site.css"),
    *(f"docs/{name}.md" for name in GUIDES),
    *(f"benchmarks/results/{path.name}" for path in RESULTS.glob("*.png")),
)
PACKAGES = (
    *("lit_adaptive.core", "lit_adaptive.samplers", "lit_adaptive.replay", "lit_adaptive.rollout"),
    *("lit_adaptive.data", "lit_adaptive.modules", "callbacks", "lit_adaptive.contract"),
)
_CLASS = re.compile(r"`((?:\w+\.)+[A-Z]\w+)`")
_TEXT = {"members": False, "show_root_heading": False, "show_root_toc_entry": False}


# The index of methods -----------------------------------------------------------------------------


class Method(NamedTuple):
    """A row of the index; each cell is Markdown."""

    area: str
    name: str
    paper: str
    equation: str
    option: str
    callback: str
    config: str
    baseline: str
    test: str

    @property
    def page(self) -> str:
        """Its page on the site."""
        return f"docs/methods/{code(self.config)[0]}.md"


class Costs(NamedTuple):
    """A row of the table of costs; each cell is Markdown."""

    name: str
    cost: str
    limits: str
    results: str


def code(cell: str) -> list[str]:
    """The parts of a cell that are code."""
    return re.findall(r"`([^`]+)`", cell)


def _rows(columns: int) -> list[tuple[str, list[str]]]:
    """Rows of the index's tables with so many columns: the title above the table, and the cells."""
    rows: list[tuple[str, list[str]]] = []
    title = ""
    for line in (ROOT / INDEX).read_text().splitlines():
        title = line.lstrip("# ") if line.startswith("#") else title
        cells = [cell.strip() for cell in line[2:].removesuffix("|").split(" | ")]
        if line.startswith("| ") and len(cells) == columns and cells[0] != "Method":
            rows.append((title, cells))
    return rows


def methods() -> list[Method]:
    """The rows of the index of methods; "the same" paper is that of the row above."""
    table: list[Method] = []
    for title, (name, paper, *cells) in _rows(8):
        above = table[-1].paper if paper.startswith("the same") else ""
        table.append(Method(title, name, above + paper.removeprefix("the same"), *cells))
    return table


def costs() -> dict[str, Costs]:
    """The rows of the table of costs, by method."""
    return {cells[0]: Costs(*cells) for _, cells in _rows(4)}


# A method's page ----------------------------------------------------------------------------------


def method_page(method: Method, row: Costs) -> str:
    """Markdown of a method's page."""
    (config,) = code(method.config)
    text = (ROOT / "configs" / f"{config}.yaml").read_text()
    header = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    command = next(i for i, line in enumerate(header) if line.startswith("lit-adaptive"))
    equations = [
        f"lit_adaptive.{reference.replace('.py:', '.').replace('/', '.')}"
        for reference in code(method.equation)
    ]
    model: str = yaml.safe_load(text)["model"]["class_path"]
    parts = [*_CLASS.findall(method.option + method.callback), model.removeprefix("lit_adaptive.")]
    facts = {
        "Paper": method.paper,
        "Equation": ", ".join(dict.fromkeys(_file(reference) for reference in equations)),
        "Option": _linked(method.option) or "none",
        "Callback": _linked(method.callback) or "none",
        "Test": f"`tests/{code(method.test)[0]}`",
        "Cost": row.cost,
        "Limits": row.limits,
        "Results": _results(row),
    }
    sections = [
        f"# {method.name}\n\n" + " ".join(header[:command]),
        "| | |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in facts.items()),
        *(f"![{stem}](../../benchmarks/results/{stem}.png)" for stem in _pictures(row)),
        f"## Run\n\n```bash\n{header[command]}\n{_comparison(method)}```",
        "## Equation",
        *(_docstring(reference, heading_level=3) for reference in equations),
        "## Notation and departures",
        *(f"From `{name}`:\n\n{_docstring(name, **_TEXT)}" for name in _notes(parts, equations)),
        "## Config\n\n" + _config(text, config, *code(method.baseline)),
    ]
    return "\n\n".join(sections)


def _notes(parts: list[str], equations: list[str]) -> list[str]:
    """Modules of the equations, and the parts' modules and classes that state departures."""
    names = [reference.rpartition(".")[0] for reference in equations]
    for part in parts:
        path, cls = _resolved(part)
        names += [
            name
            for name, owner in ((cls.__module__, inspect.getmodule(cls)), (path, cls))
            if re.search("[Dd]epart", inspect.getdoc(owner) or "")
        ]
    return list(dict.fromkeys(names))


def _docstring(identifier: str, **options: Any) -> str:
    """Directive for the docstring of an object that has its place on another page."""
    lines = {"skip_local_inventory": True, **options}
    return f"::: {identifier}\n    options:\n" + "".join(
        f"      {key}: {str(value).lower()}\n" for key, value in lines.items()
    )


def _file(reference: str) -> str:
    return f"`{reference.rpartition('.')[0].replace('.', '/')}.py`"


def _resolved(reference: str) -> tuple[str, Any]:
    """Class path and class of ``samplers.X`` or ``callbacks.X``."""
    package, _, name = reference.rpartition(".")
    package = package if package == "callbacks" else f"lit_adaptive.{package}"
    return f"{package}.{name}", getattr(importlib.import_module(package), name)


def _linked(cell: str) -> str:
    """A cell whose classes are links to their docstrings."""
    return _CLASS.sub(lambda match: f"[{match[0]}][{_resolved(match[1])[0]}]", cell)


def _results(row: Costs) -> str:
    files = [f"`benchmarks/results/{stem}`" for stem in code(row.results)]
    return ", ".join(["[tables](../results.md)", *files]) if files else "not compared over seeds"


def _pictures(row: Costs) -> list[str]:
    return [stem for stem in code(row.results) if (RESULTS / f"{stem}.png").exists()]


def _comparison(method: Method) -> str:
    if not (baseline := code(method.baseline)):
        return ""
    files = [f"configs/{name}.yaml" for name in (*baseline, *code(method.config))]
    return f"lit-adaptive compare {' '.join(files)} --seeds 5\n"


def _config(text: str, name: str, baseline: str | None = None) -> str:
    """The config, and its difference from the baseline."""
    block = "".join(f"    {line}\n" for line in f"```yaml\n{text}```".splitlines())
    whole = f'??? note "configs/{name}.yaml"\n\n{block}'
    if baseline is None:
        return whole
    plain = (ROOT / "configs" / f"{baseline}.yaml").read_text()
    before, after = (re.sub(r"\A(?:#.*\n)+", "", each).splitlines() for each in (plain, text))
    lines = list(difflib.unified_diff(before, after, n=2, lineterm=""))[3:]
    changes = "\n".join("..." if line.startswith("@@") else line for line in lines)
    return f"Against `{baseline}`:\n\n```diff\n{changes}\n```\n\n{whole}"


# Reference pages ----------------------------------------------------------------------------------


def contract_page() -> str:
    """Names of ``needs`` and ``provides``: meaning, and the classes that have them."""
    from lit_adaptive.contract import NAMES

    by: dict[str, dict[str, list[str]]] = {
        "provides": defaultdict(list),
        "needs": defaultdict(list),
    }
    for package in ("lit_adaptive.data", "lit_adaptive.modules", "callbacks"):
        module = importlib.import_module(package)
        for name in module.__all__:
            for kind, classes in by.items():
                for each in _names(getattr(module, name), kind, NAMES):
                    classes[each].append(f"[`{name}`][{package}.{name}]")
    rows = [
        " | ".join([f"| `{name}`", meaning, *(", ".join(by[kind][name]) for kind in by)]) + " |"
        for name, meaning in NAMES.items()
    ]
    head = "| Name | Meaning | Provided by | Needed by |\n|---|---|---|---|\n"
    text = _docstring("lit_adaptive.contract", **_TEXT)
    return (
        f"---\nhide: [toc]\n---\n# Batch keys, signals and duties\n\n{text}\n\n{head}"
        + "\n".join(rows)
    )


def _names(cls: type, kind: str, known: Iterable[str]) -> set[str]:
    """Names that a class needs or provides in some run: of a property, those in its code."""
    value = inspect.getattr_static(cls, kind, frozenset())
    if not isinstance(value, property):
        return set(value)
    properties = [vars(each)[kind] for each in cls.__mro__ if kind in vars(each)]
    words = {
        word
        for each in properties
        for word in re.findall(r'"([\w.]+)"', inspect.getsource(each.fget))
    }
    own = ("batch.", "data.") if kind == "provides" else ("batch.", "model.", "duty.")
    return {
        name
        for name in known
        if name in words or (name.startswith(own) and name.partition(".")[2] in words)
    }


def cli_page() -> str:
    """The help of each command."""
    from lit_adaptive.cli.main import COMMANDS, AdaptiveCLI, main

    os.environ["COLUMNS"] = "80"
    sections = ["# Command line\n\n`lit-adaptive COMMAND --help` prints these texts."]
    for command in (*AdaptiveCLI.subcommands(), *COMMANDS):
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([command, "--help"])
        sections.append(f"## {command}\n\n```text\n{output.getvalue().strip()}\n```")
    return "\n\n".join(sections)


def api_page(package: str) -> str:
    """The docstrings of a package; of ``core``, file by file."""
    if package != "lit_adaptive.core":
        options = "{show_root_heading: false, show_root_toc_entry: false}"
        return f"# {package}\n\n::: {package}\n    options: {options}\n"
    files = sorted((ROOT / "lit_adaptive" / "core").glob("[a-z]*.py"))
    return f"# {package}\n\n" + "".join(f"::: {package}.{file.stem}\n\n" for file in files)


# Hooks of MkDocs ----------------------------------------------------------------------------------


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation, and the extension that reads docstrings."""
    areas: dict[str, list[dict[str, str]]] = defaultdict(list)
    for method in methods():
        areas[method.area].append({method.name: method.page})
    reference = ["docs/cli.md", "docs/contract.md", *(f"docs/api/{name}.md" for name in PACKAGES)]
    config.markdown_extensions.append(Docstrings())  # type: ignore[arg-type]
    config.nav = [
        {"Home": "README.md"},
        {"Guides": [f"docs/{name}.md" for name in GUIDES]},
        {"Methods": [INDEX, *({area: pages} for area, pages in areas.items())]},
        {"Reference": reference},
        {"Results": "docs/results.md"},
        {"Project": ["CHANGELOG.md", "CONTRIBUTING.md"]},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages, at their places in the repository."""
    table = costs()
    pages = {method.page: method_page(method, table[method.name]) for method in methods()}
    pages |= {f"docs/api/{package}.md": api_page(package) for package in PACKAGES}
    pages |= {"docs/contract.md": contract_page(), "docs/cli.md": cli_page()}
    return Files(
        [
            *(file for file in files if file.src_dir != config.docs_dir),  # the theme's
            *(File.generated(config, path, abs_src_path=str(ROOT / path)) for path in STORED),
            *(File.generated(config, path, content=text) for path, text in pages.items()),
        ]
    )


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Shorten the rows of the index to what the pages of the methods do not have better."""
    if page.file.src_uri != INDEX:
        return markdown
    pages = {method.name: method.page for method in methods()}
    lines = [line.split(" | ") for line in markdown.splitlines()]
    for cells in lines:
        if len(cells) == 8:
            name = cells[0].removeprefix("| ")
            link = f"[{name}](../{pages[name]})" if name in pages else name
            cells[:] = [f"| {link}", cells[1], *cells[5:7], "|"]
    rows = (" | ".join(cells).replace("|---" * 8, "|---" * 4) for cells in lines)
    return "\n".join(rows).replace("| |\n", "|\n")


class Docstrings(Extension):
    """Reads what docstrings have and Markdown has not.

    Formulas (``:math:`...``` and ``.. math::``) become MathML, which needs no script, and a list
    may follow its sentence without an empty line.
    """

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Register the patterns; those of formulas precede code spans, of priority 190."""
        md.preprocessors.register(_Lists(md), "lists", 15)
        md.inlinePatterns.register(_Formula(r":math:`([^`]+)`", "inline", md), "math", 195)
        md.inlinePatterns.register(_Formula(r"\.\. math::\s(.+)", "block", md), "math_block", 196)


class _Lists(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        """Insert an empty line between a sentence and the list after it."""
        return re.sub(r"(?m)^(\S.*:)\n(?= *1\. )", r"\1\n\n", "\n".join(lines)).split("\n")


class _Formula(InlineProcessor):
    def __init__(self, pattern: str, display: str, md: Markdown) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: ARG002, N802
        """Store the MathML of a formula."""
        formula = " ".join(m[1].split())
        mathml = convert(formula, display=self.display)
        if "\\" in mathml:
            raise PluginError(f"latex2mathml does not know a command of {formula!r}: rewrite it")
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)

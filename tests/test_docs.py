"""Every command, code block and link in README, CONTRIBUTING, docs and config headers works."""

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from lit_adaptive.cli.doctor import doctor_parser
from lit_adaptive.cli.export import export_parser
from lit_adaptive.cli.inspect import inspect_parser
from lit_adaptive.cli.main import AdaptiveCLI, main
from lit_adaptive.cli.report import report_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md")
]
PAGES += sorted(ROOT.glob("docs/*.md"))
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


class Block(NamedTuple):
    """A fenced block: its language, its text, and the HTML comment in the line before it."""

    place: str
    language: str
    text: str
    comment: str


def blocks(path: Path) -> list[Block]:
    pattern = re.compile(r"(?:<!-- (.*?) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = path.read_text()
    return [
        Block(
            f"{path.name}:{text.count(chr(10), 0, match.start()) + 1}",
            match[2],
            match[3],
            match[1] or "",
        )
        for match in pattern.finditer(text)
    ]


def commands() -> list[tuple[str, str]]:
    lines = [
        (b.place, line)
        for page in PAGES
        for b in blocks(page)
        if b.language == "bash"
        for line in b.text.splitlines()
    ]
    headers = [
        (path.name, line.lstrip("# ")) for path in CONFIGS for line in path.read_text().splitlines()
    ]
    lines += [(name, line) for name, line in headers if line.startswith("lit-adaptive ")]
    prose = [
        (page.name, code)
        for page in PAGES
        for code in re.findall(r"`(python benchmarks/[^`]+)`", page.read_text())
    ]
    parts = [
        (place, part.strip())
        for place, line in lines + prose
        for part in re.split(r" {2,}# ", line)[0].split(" && ")
    ]
    return sorted({(place, part) for place, part in parts if part})


# The module that docs/extending.md describes, from its own code blocks.
MY_PROJECT = "\n".join(
    re.split(r"\n\n\n(?=\w+ = |assert )", block.text)[0]
    for block in blocks(ROOT / "docs" / "extending.md")
    if block.language == "python"
)
COMMANDS = commands()
BLOCKS = [block for page in PAGES for block in blocks(page)]


def parse(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse and check a command line without building or running anything."""
    monkeypatch.setattr(AdaptiveCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(AdaptiveCLI, "_run_subcommand", lambda self, subcommand: None)
    monkeypatch.chdir(ROOT)
    AdaptiveCLI(arguments)


@pytest.mark.parametrize(
    "command",
    sorted({command for _, command in COMMANDS if "lit-adaptive " in command.split("configs")[0]}),
)
def test_lit_adaptive_command_is_accepted(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "images_adaptive" in command:
        pytest.importorskip("torchvision")
    arguments = shlex.split(re.sub("--ckpt_path (<checkpoint>|last|best)", "", command))
    assert arguments[0].endswith("lit-adaptive")
    parsers = {
        "doctor": doctor_parser,
        "export": export_parser,
        "inspect": inspect_parser,
        "report": report_parser,
    }
    if arguments[1] in parsers:
        parsers[arguments[1]]().parse_args(arguments[2:])
        return
    if arguments[1] == "compare":
        monkeypatch.setattr("lit_adaptive.cli.compare._train", lambda *_: sys.exit(0))
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit) as end:
            main(["compare", f"--out={tmp_path / 'out'}", *arguments[2:]])
        assert end.value.code == 0
        return
    if any(word == "--print_config" or "help" in word for word in arguments):
        with pytest.raises(SystemExit) as end:
            parse(arguments[1:], monkeypatch)
        assert end.value.code == 0
        return
    parse([*arguments[1:], f"--runs={tmp_path}"], monkeypatch)


@pytest.mark.parametrize(("place", "command"), [c for c in COMMANDS if "lit-adaptive " not in c[1]])
def test_other_command_names_what_exists(place: str, command: str) -> None:
    words = shlex.split(command)
    program = Path(words[0]).name
    if program == "python":
        source = (ROOT / words[1]).read_text()
        assert all(flag in source for flag in words if flag.startswith("--"))
    elif program == "pip":
        for extra in re.findall(r"\.\[([a-z,]+)\]", command):
            assert set(extra.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    elif program == "pytest":
        markers = {
            marker.split(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
        }
        expressions = [words[i + 1] for i, word in enumerate(words) if word == "-m"]
        assert {name for e in expressions for name in re.findall(r"\w+", e)} - {
            "or",
            "not",
        } <= markers
    else:
        assert program in ("python3", "pre-commit") or (ROOT / words[0]).is_file(), (
            f"{place}: {command}"
        )


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)`:FutureWarning")  # Lightning
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda block: block.place
)
def test_python_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "block"})


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda block: block.place
)
def test_yaml_block_is_accepted_on_its_config(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_project.py").write_text(MY_PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    overlay = re.fullmatch(r"overlay on (configs/\w+\.yaml)", block.comment)
    assert overlay, f"{block.place}: name the config in a comment before the block"
    file = tmp_path / "block.yaml"
    file.write_text(block.text)
    parse(["fit", "--config", overlay[1], "--config", str(file), f"--runs={tmp_path}"], monkeypatch)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_block_has_a_language_that_is_tested(block: Block) -> None:
    assert block.language in ("bash", "python", "yaml", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page if not file else (page.parent / file).resolve()
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_changelog_has_the_version_of_the_package() -> None:
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()

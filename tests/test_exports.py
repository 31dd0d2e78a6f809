"""Public names: each package exports its classes, and each name has one definition."""

import ast
import importlib
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [
    *("lit_adaptive.core", "lit_adaptive.samplers", "lit_adaptive.replay", "lit_adaptive.rollout"),
    *("lit_adaptive.data", "lit_adaptive.modules", "lit_adaptive.report"),
    "callbacks",
]
NOT_EXPORTED = {
    # What a part is made of, or returns to another part; users neither build nor name it.
    *("RewardWeighting", "RolloutDraw", "EnvironmentStep", "RewardOutputError", "ObjectiveOutput"),
    *("FramePool", "LeafRows", "LeafSpec", "NestedLayout", "RingSize", "RingStorage", "SavedState"),
    *(
        "TransitionLayouts",
        "StreamSteps",
        "ModelSource",
        "EndOfTurn",
        "EvaluatedModule",
        "UpdateStatistics",
    ),
    "UpdateStatistics",
    *("RolloutCollector", "FreshRollouts", "RolloutStep", "StepLayout", "MicroBatch"),
    *("MicroBatchBuilder", "ServedBatches"),
    *("Question", "QuestionRows", "Rows", "Scores", "Inputs", "ColumnDataset", "ColumnSpec"),
    *("Chat", "RenderedChat", "PromptCompletions", "Answers"),
    *("EncodedSamples", "Truncated", "Encoder", "TokenizedRows", "Number"),
}
# Shared arithmetic of core's own files.
CORE_HELPERS = {"kept_count", "share_count", "at_least_float32", "limited_exp", "ratio_powers"}
INTERNAL = re.compile(r"\.(_|kernels\.)")  # private modules and compiled loops
CLASS_PATH = re.compile(r"(?<![\w./])(?:lit_adaptive|callbacks)(?:\.[a-z_]\w*)*\.[A-Z]\w+")


def public_definitions() -> dict[str, list[tuple[str, bool]]]:
    """Public classes and functions by module: names, and whether each is a class."""
    definitions: dict[str, list[tuple[str, bool]]] = {}
    for path in sorted([*ROOT.glob("lit_adaptive/**/*.py"), *ROOT.glob("callbacks/**/*.py")]):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        definitions[module] = [
            (node.name, isinstance(node, ast.ClassDef))
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
        ]
    return definitions


DEFINITIONS = public_definitions()


@pytest.mark.parametrize("package", PACKAGES)
def test_all_resolves(package: str) -> None:  # ruff keeps it sorted (RUF022)
    module = importlib.import_module(package)
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_class_is_exported(package: str) -> None:
    exported = set(importlib.import_module(package).__all__)
    missing = [
        f"{module}.{name}"
        for module, definitions in DEFINITIONS.items()
        if module.startswith(f"{package}.") and not INTERNAL.search(module)
        for name, is_class in definitions
        if is_class and name not in exported | NOT_EXPORTED
    ]
    assert not missing


def test_core_exports_every_public_function_of_its_equations() -> None:
    exported = set(importlib.import_module("lit_adaptive.core").__all__)
    missing = [
        f"{module}.{name}"
        for module, definitions in DEFINITIONS.items()
        if re.fullmatch(r"lit_adaptive\.core\.[a-z]\w*", module)
        for name, _ in definitions
        if name not in exported | CORE_HELPERS and not name.startswith("check_")
    ]
    assert not missing


def test_every_public_name_is_defined_in_one_module() -> None:
    modules: dict[str, list[str]] = defaultdict(list)
    for module, definitions in DEFINITIONS.items():
        for name, _ in definitions:
            if not INTERNAL.search(module):
                modules[name].append(module)
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}


def class_paths() -> dict[str, set[str]]:
    """Class paths in configs, documents, messages, tests and benchmarks, with their files."""
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.yaml", "*.toml"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.split()
    files: dict[str, set[str]] = defaultdict(set)
    for name in tracked:
        if (ROOT / name).is_file():
            for path in CLASS_PATH.findall((ROOT / name).read_text()):
                files[path].add(name)
    return files


def test_every_class_path_resolves_at_the_package_level() -> None:
    wrong = {}
    for path, files in class_paths().items():
        package, _, name = path.rpartition(".")
        if package not in PACKAGES or not hasattr(importlib.import_module(package), name):
            wrong[path] = sorted(files)
    assert wrong == {}


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_imports_exists(path: Path) -> None:
    imports = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    for node in imports:
        if node.module and node.module.split(".")[0] in ("lit_adaptive", "callbacks"):
            module = importlib.import_module(node.module)
            assert [each.name for each in node.names if not hasattr(module, each.name)] == []

"""The index of methods (configs/README.md) is complete and true; configs differ in one idea."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from site_hook import RESULTS, Method, code, costs, methods

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"

# The methods of the specification and of the README; the index has a row for each.
REQUIRED = {
    "PER, proportional",
    "PER, rank-based",
    "PER of a dataset",
    "AdaBoost-like sampler",
    "AdaBoost-like data weighter",
    "OHEM",
    "Selective backprop",
    "InfoBatch",
    "RHO-LOSS",
    "Competence curriculum",
    "Self-paced learning",
    "Focal loss",
    "Hybrid",
    "iw-SFT, the paper's ratio",
    "iw-SFT, the specification's ratio",
    "DFT",
    "ASFT",
    "EAFT",
    "PSFT",
    "Reward-weighted sampling (RWR)",
    "SFT(Q)",
    "LESS",
    "LESS for a classifier",
    "GRPO",
    "Dr. GRPO",
    "DAPO",
    "GSPO",
    "CISPO",
    "RLOO",
    "PSR",
    "NSR",
    "W-REINFORCE",
    "High-entropy tokens",
    "Clip-Cov",
    "KL-Cov",
    "LUFFY",
    "TIS",
    "IcePop",
    "Rollout Replay (GRPO-RR)",
    "Prioritized rollout replay",
    "Freshness-aware rollout replay",
    "DOTS",
    "DOTS with Rollout Replay",
    "DOTS by expected signal",
    "CROPI",
    "Influence function",
    "CROPI with DOTS and Rollout Replay",
    "Rank fusion of influence, difficulty and replay",
    "MoPPS",
    "DPS",
    "AdaRFT",
    "GRESO",
    "Prompt statistics",
    "Static curriculum",
    "Dynamic sampling",
    "POPO's replacement",
}


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """Leaves of a YAML tree by dotted path; a list is one leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in flatten(sub, f"{path}.{key}".lstrip(".")).items()
    }


def config(name: str) -> dict[str, Any]:
    tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert isinstance(tree, dict)
    return tree


METHODS = methods()
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def test_has_a_row_for_every_method() -> None:
    names = [method.name for method in METHODS]
    assert len(names) == len(set(names))
    assert set(names) == REQUIRED


def test_every_config_is_in_the_index_or_listed_below_it() -> None:
    text = (CONFIGS / "README.md").read_text()
    for path in CONFIGS.glob("*.yaml"):
        assert f"`{path.stem}`" in text, f"configs/{path.name} is missing in configs/README.md"


def test_every_method_has_its_costs() -> None:
    assert list(costs()) == [method.name for method in METHODS]
    files = {path.stem for path in RESULTS.iterdir()}
    for row in costs().values():
        assert row.cost, row.name
        assert row.limits, row.name
        assert set(code(row.results)) <= files, row.name


@by_name
def test_equation_is_a_function_of_core(method: Method) -> None:
    references = code(method.equation)
    assert references
    for reference in references:
        file, name = reference.split(":")
        tree = ast.parse((ROOT / "lit_adaptive" / file).read_text())
        assert name in {
            node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        }


@by_name
def test_test_file_names_the_method_or_its_class(method: Method) -> None:
    for file in code(method.test):
        assert (ROOT / "tests" / file).is_file(), file


@by_name
def test_config_uses_the_option_and_the_callbacks(method: Method) -> None:
    (name,) = code(method.config)
    text = (CONFIGS / f"{name}.yaml").read_text()
    for reference in [*code(method.option), *code(method.callback)]:
        if reference[0].isupper() or "." in reference.split(":")[0]:
            package, _, cls = reference.rpartition(".")
            module = "callbacks" if package == "callbacks" else f"lit_adaptive.{package}"
            assert hasattr(importlib.import_module(module), cls), reference
            assert cls in text, f"{name}.yaml does not use {reference}"
        else:  # an option such as `loss_type: dapo`
            key, value = (part.strip() for part in reference.split(":", 1))
            leaves = {path.rsplit(".", 1)[-1]: leaf for path, leaf in flatten(config(name)).items()}
            assert str(leaves[key]) == str(yaml.safe_load(value)), reference


@by_name
def test_config_differs_from_its_baseline_only_in_the_idea(method: Method) -> None:
    (name,) = code(method.config)
    if not code(method.baseline):
        return  # a baseline itself
    (baseline,) = code(method.baseline)
    adaptive, plain = config(name), config(baseline)
    callbacks, plain_callbacks = (tree["trainer"].pop("callbacks") for tree in (adaptive, plain))
    one, other = flatten(adaptive), flatten(plain)
    changed = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert {key for key in changed if not key.startswith(IDEA)} <= MORE.get(name, set())
    # The baseline's callbacks are all there, in order; what is added is the method's feedback.
    added = [each["class_path"] for each in callbacks if each not in plain_callbacks]
    kept = [each for each in callbacks if each in plain_callbacks]
    assert kept == plain_callbacks
    assert {path.rsplit(".")[-1] for path in added} == {
        path.rsplit(".")[-1]
        for path in [*code(method.callback), *code(method.option)]
        if path.startswith("callbacks.")
    }
    assert changed or added


IDEA = ("data.init_args.sampler", "data.init_args.replay", "model.init_args.objective")
# What a method needs beside a sampler, a replay or an objective.
MORE = {
    "grpo_adarft": {"data.init_args.difficulty"},
    "grpo_static_curriculum": {"data.init_args.difficulty"},
    "grpo_dynamic_sampling": {"data.init_args.drop_uninformative", "data.init_args.refill"},
    "cropi": {"data.init_args.dataset.columns"},  # for the picture
    "grpo_influence": {"data.init_args.dataset.columns"},
    "cropi_dots_rr": {"data.init_args.dataset.columns"},
    "cropi_rank_fusion": {"data.init_args.dataset.columns"},
    "grpo_popo": {
        "data.init_args.drop_uninformative",
        "data.init_args.replace_uninformative",
    },
    "iw_sft": {f"model.init_args.{name}" for name in ("ratio", "level", "temperature")},
    "iw_sft_paper": {
        f"model.init_args.{name}" for name in ("ratio", "level", "temperature", "clamp")
    },
    "psft": {"model.init_args.q_decay"},
    "smollm2_asft": {"model.init_args.reference"},
    "rwr": {"data.init_args.scores", "data.init_args.beta"},
    "sft_q": {"data.init_args.scores", "data.init_args.beta"},
    "digits_curriculum": {"data.init_args.difficulty"},
    "digits_hybrid": {"data.init_args.difficulty"},
    "digits_infobatch": {"data.init_args.beta"},
    "digits_focal": {"model.init_args.focal_gamma"},
    "digits_ohem": {"data.init_args.batch_size"},
    "digits_selective_backprop": {"data.init_args.batch_size"},
    "digits_rho_loss": {"data.init_args.batch_size"},
    "dapo": {"data.init_args.drop_uninformative", "data.init_args.refill"},
    "kl_cov": {"data.init_args.minibatches"},
    "tis": {"data.init_args.engine"},
    "icepop": {"data.init_args.engine"},
    "luffy": {"data.init_args.dataset.demonstration"},
}

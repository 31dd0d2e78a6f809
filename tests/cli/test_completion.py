"""The printed script lets bash complete commands, options, choices and files."""

import subprocess
from pathlib import Path

import pytest

from lit_adaptive.cli.main import main

COMPLETE = """
source ./script
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_lit_adaptive
echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    (folder / "my_config.yaml").touch()
    with pytest.MonkeyPatch.context() as patch, (folder / "script").open("w") as script:
        patch.setattr("sys.stdout", script)
        with pytest.raises(SystemExit) as end:
            main(["--print_completion", "bash"])
    assert not end.value.code
    return folder


def test_the_script_is_valid(folder: Path) -> None:
    subprocess.run(["bash", "-n", "script"], cwd=folder, check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "fit validate test predict collect compare report inspect export doctor"),
        ("rep", "report"),
        ("fit --trainer.max_s", "--trainer.max_steps"),
        ("fit --config my", "my_config.yaml"),
        ("compare my", "my_config.yaml"),
        ("inspect my_config.yaml --format ", "csv parquet"),
    ],
)
def test_bash_completes(words: str, expected: str, folder: Path) -> None:
    result = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", "lit-adaptive", *words.split(" ")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == expected

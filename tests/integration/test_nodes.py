"""Two nodes of one process each, on the loopback device."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = Path(__file__).parents[2] / "configs" / "digits_adaptive.yaml"


@pytest.mark.multiprocess
def test_two_nodes_under_torchrun_are_one_run(tmp_path: Path) -> None:
    nodes = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    f"--node-rank={rank}",
                ),
                *("--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-id={tmp_path.name}"),
                *("--rdzv-endpoint=127.0.0.1:29571", "-m", "lit_adaptive", "fit"),
                *(f"--config={CONFIG}", f"--runs={tmp_path}", "--trainer.strategy=ddp"),
                *("--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.max_epochs=2"),
                *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [node.communicate(timeout=280)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    (run,) = (path for path in tmp_path.glob("digits_adaptive/*") if path.is_dir())
    with (run / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert f"ended after {max(steps) + 1} steps" in "".join(outputs)
    assert (run / "checkpoints" / "last.ckpt").is_file()

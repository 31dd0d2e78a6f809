"""The HTML page about runs: what is in it, and what data cannot do to it."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_adaptive.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
HOSTILE = "<script>alert(1)</script>\x1b[31m<img src=http://x.y/z>"


class Elements(HTMLParser):
    """Names of the elements, what they load, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def written(out: Path, *runs: Path) -> Elements:
    main(["report", *map(str, runs), "--out", str(out)])
    return Elements(out.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories of two short runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("digits_uniform", "digits_adaptive"):
        main(
            [
                *("fit", "--config", str(CONFIGS / f"{name}.yaml"), "--runs", str(folder)),
                *("--trainer.max_epochs=2", "--data.batches_per_epoch=5"),
                *("--trainer.log_every_n_steps=2", "--trainer.enable_progress_bar=false"),
            ]
        )
    return [next((folder / name).iterdir()) for name in ("digits_uniform", "digits_adaptive")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_page_of_two_runs_holds_everything_itself(runs: list[Path], tmp_path: Path) -> None:
    page = written(tmp_path / "report.html", *runs)
    assert "script" not in page.names
    assert all(place.startswith("data:") for place in page.loaded)
    # Three groups of metrics, and what SampleReport and ConfusionMatrix drew in each run.
    assert page.names.count("img") == 7
    for text in (
        *("digits_uniform/", "digits_adaptive/", "val/macro_f1", "Most drawn samples"),
        *("data.sampler", "lit_adaptive.samplers.AdaptiveBatchSampler"),
    ):
        assert text in page.text
    assert "default_root_dir" not in page.text
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert figures == [f"report-{name}.png" for name in ("sampling", "training", "validation")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_chromium_shows_it_without_a_complaint(runs: list[Path], tmp_path: Path) -> None:
    written(tmp_path / "report.html", *runs)
    shown = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"),
            *("--window-size=1200,2000", f"file://{tmp_path / 'report.html'}"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr  # errors, refused loads and scripts
    assert (tmp_path / "page.png").stat().st_size > 50_000


def run_directory(folder: Path, metrics: str = "step,val/x,train/loss\n3,0.5,\n5,,1.5\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(metrics)
    return folder


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    run = run_directory(tmp_path / "runs" / "<b>" / "<script>1")
    (run / "config.yaml").write_text(f"seed: {HOSTILE!r}\n".replace("'", '"'))
    (run / "samples.csv").write_text(f'index,class,draws,last_loss\n../../etc,"{HOSTILE}",5,0.5\n')
    (run / "completions.jsonl").write_text(
        '{"prompt": "<script>x</script>", "reward": 1.0, "tokens": [1, 2]}\n{"prompt": "cut'
    )
    other = run_directory(tmp_path / "runs" / "<b>" / "other")
    page = written(tmp_path / "report.html", run, other)
    assert "script" not in page.names
    assert "b" not in page.names
    assert all(place.startswith("data:") for place in page.loaded)
    assert page.text.count("<script>alert(1)</script>\\x1b[31m") == 3  # seed, and two tables
    assert "<script>x</script>" in page.text
    assert "\x1b" not in page.text


def test_a_live_run_and_one_without_measurements_are_shown(tmp_path: Path) -> None:
    live = run_directory(tmp_path / "a" / "live", "step,val/x\n3,0.5\n4,0.")
    (live / "episode-seed=7.gif").write_bytes(b"GIF89a")
    empty = run_directory(tmp_path / "a" / "empty", "")
    page = written(tmp_path / "report.html", live, empty)
    assert "a/live" in page.text
    assert "a/empty" in page.text
    assert "data:image/gif;base64,R0lGODlh" in page.loaded


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(None, "has no metrics.csv"), ("step,val/x\n3,nonsense\n", "metrics.csv is damaged")],
)
def test_a_foreign_or_damaged_directory_is_named(
    metrics: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if metrics is not None:
        run_directory(run, metrics)
    with pytest.raises(SystemExit):
        main(["report", str(run), "--out", str(tmp_path / "report.html")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_the_page_must_be_html(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "--out", "report.pdf"])
    assert "out is report.pdf; it must end in .html" in capsys.readouterr().err

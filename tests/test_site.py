"""The documentation site builds without a warning, has a page per method, and loads nothing."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from site_hook import Method, code, methods

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Text of a page, the part of it outside of code, and what it loads (links are not loaded)."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = self.prose = ""
        self.names: list[str] = []
        self.in_code = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.in_code = self.in_code or tag in ("pre", "script")
        if tag != "a":
            self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self.in_code = self.in_code and tag not in ("pre", "script")

    def handle_data(self, data: str) -> None:
        self.text += data
        if not self.in_code:
            self.prose += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        ["mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    return folder


@pytest.mark.parametrize("method", methods(), ids=lambda method: method.name)
def test_a_method_has_a_page_with_equation_source_and_config(site: Path, method: Method) -> None:
    page = Page(site / method.page.removesuffix(".md") / "index.html")
    (config,) = code(method.config)
    for reference in code(method.equation):
        file, function = reference.split(":")
        assert f"Source code in lit_adaptive/{file}" in page.text
        source = (ROOT / "lit_adaptive" / file).read_text()
        assert f"def {function}(" in page.text  # the source itself
        departures = re.findall(r"^  1\. (.{30})", source, re.MULTILINE)[:1]
        assert all(words.split("``")[0].split(":math")[0] in page.text for words in departures)
    assert f"lit-adaptive fit --config configs/{config}.yaml" in page.text
    assert "seed_everything" in page.text


def test_formulas_are_mathml_and_no_markup_is_left(site: Path) -> None:
    pages = [Page(path) for path in site.glob("docs/**/*.html")]
    assert sum(page.names.count("math") for page in pages) > 100
    for page in pages:
        assert not re.search(r":\w+:`|\.\. math|::: ", page.prose)


def test_the_contract_names_who_provides_and_who_needs(site: Path) -> None:
    text = re.sub(r"\s+", " ", Page(site / "docs" / "contract" / "index.html").text)
    for words in (
        (
            "batch.behavior_log_probs [K] float32: the same under the policy that generated it "
            "RolloutDataModule GRPO"
        ),
        "duty.rollout_replay storing rollouts in the replay RolloutReplay RolloutDataModule",
    ):
        assert words in text


def test_the_command_line_page_has_every_command(site: Path) -> None:
    text = Page(site / "docs" / "cli" / "index.html").text
    for words in ("--trainer.max_epochs", "--seeds", "usage: lit-adaptive doctor", "--prompts"):
        assert words in text


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(methods()) + 15
    for path in pages:
        outside = [place for place in Page(path).loaded if re.match(r"\w*:?//", place)]
        assert outside == [], path
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(.?(https?:)?//|@import", style.read_text()), style


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("page", ["", "docs/methods/grpo_dots/", "docs/results/"])
def test_chromium_shows_it_without_error_or_request_to_elsewhere(
    address: str, page: str, tmp_path: Path
) -> None:
    shown = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"),
            *(f"--log-net-log={tmp_path / 'requests.json'}", "--window-size=1200,2000"),
            f"{address}/{page}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    events = json.loads((tmp_path / "requests.json").read_text())["events"]
    requests = {  # by the page; others are the browser's own
        event["params"]["url"]
        for event in events
        if event.get("params", {}).get("initiator") == address and "url" in event["params"]
    }
    assert any(request.endswith(".css") for request in requests)
    assert {request for request in requests if not request.startswith(address)} == set()
    assert (tmp_path / "page.png").stat().st_size > 50_000

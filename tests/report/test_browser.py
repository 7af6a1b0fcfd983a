"""The pages in Chromium: `make test-browser`; skipped where it is not installed."""

import shutil
import subprocess

import pytest

from tests.report.html_page import Page
from tests.report.test_pages import leave

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--allow-file-access-from-files"),
)
FRAME = """<body><iframe src="copy.html" style="width: {width}px; height: 1000px; border: 0"></iframe><script>
const frame = document.querySelector('iframe');
frame.onload = () => {{ Object.assign(document.body.dataset, frame.contentDocument.body.dataset); }};
</script></body>"""
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]


@pytest.fixture
def browse(tmp_path):
    """Open a page, run a script in it after it has loaded, and return the page as it is then.

    With a `width`, that of a frame (a window cannot be as narrow as a phone), what returns is the page around it with
    what the script left in body's dataset.
    """

    def call(page, script="", width=None, scheme="light"):
        copy = opened = page.with_name("copy.html")
        copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        if width is not None:
            opened = page.with_name("frame.html")
            opened.write_text(FRAME.format(width=width))
        options = ["--window-size=1400,1000", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
        command = [CHROMIUM, *FLAGS, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", opened.as_uri()]
        dumped = page.with_name("dumped.html")
        dumped.write_text(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
        return Page(dumped)

    return call


SHOW = "document.body.dataset.shown = {};"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_window_and_text_has_contrast(browse, tmp_path, width, scheme):
    script = SHOW.format(
        f"JSON.stringify([innerWidth == {width} && document.documentElement.scrollWidth <= innerWidth,"
        "getComputedStyle(document.body).color,"
        "getComputedStyle(document.querySelector('svg [style*=\"fill: #ffffff\"]')).fill])"
    )
    page = browse(leave(tmp_path), script, width, scheme)
    ink, paper = (
        ("rgb(22, 25, 29)", "rgb(255, 255, 255)") if scheme == "light" else ("rgb(228, 231, 235)", "rgb(20, 23, 27)")
    )
    assert page.values("data-shown") == [f'[true,"{ink}","{paper}"]']


@pytest.mark.parametrize("width", [1280, 390])
def test_a_studys_page_is_not_wider_than_the_window(browse, cli, smallest, tmp_path, width):
    """Of the study with the widest tables."""
    few = ["batch_sizes=[1]", "context=8", "num_steps=2", "num_output_tokens=3", "rates=[50]"]
    few += ["text_window=64", "num_text_tokens=100"]
    code, output = cli("experiment=quantization", "device=cpu", *smallest, *few, "memory_bytes=null")
    assert code == 0, output
    script = SHOW.format("[innerWidth, document.documentElement.scrollWidth <= innerWidth]")
    page = browse(tmp_path / "outputs/quantization/report.html", script, width)
    assert page.values("data-shown") == [f"{width},true"]


def test_a_click_sorts_and_another_turns_the_order(browse, tmp_path):
    click = "document.querySelectorAll('th button')[2].click();"
    assert [row[2] for row in browse(leave(tmp_path), click).rows] == ["steps", "3", "10,000"]
    assert [row[2] for row in browse(leave(tmp_path), 2 * click).rows] == ["steps", "10,000", "3"]


def test_printing_opens_the_config(browse, tmp_path):
    page = browse(leave(tmp_path), "dispatchEvent(new Event('beforeprint'));")
    assert "open" in dict(page.elements)["details"]

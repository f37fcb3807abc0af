"""The gallery in a real headless Chromium: what is shown, the filter, the command, nothing hostile, nothing
fetched.

Needs Debian's chromium and chromium-driver; the CI script installs them and sets DDGEN_BROWSER_REQUIRED, so
that a skip is a failure there.
"""

import html
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from ddgen.app import gallery
from ddgen.io import images, metadata
from ddgen.io.metadata import Metadata
from ddgen.request import Job

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DDGEN = str(Path(sys.executable).with_name("ddgen"))
HOSTILE = '</script><script>document.title="owned"</script>'
HOSTILE += '<img src=x onerror="document.title=1"> & "\'$(id)` \\u003c'
BASE = Job(
    prompt="a red apple",
    negative="",
    seed=7,
    width=64,
    height=64,
    steps=20,
    guidance=3.0,
    guidance_rescale=0.0,
    guidance_interval=None,
    sampler="ddim",
    spacing="linspace",
    sigmas=None,
    eta=None,
    scale=1,
    model="sticker",
)
JOBS = [
    BASE,
    Job(**{**vars(BASE), "prompt": "a blue cup", "seed": 10, "steps": 30, "negative": "-blurry"}),
    Job(**{**vars(BASE), "prompt": HOSTILE, "seed": 3}),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for index, job in enumerate(JOBS):
        pixels = np.full((64, 64, 3), (200 - 60 * index, 40, 60 * index), np.uint8)
        texts = metadata.describe(job, metadata.Origin(), "full")
        (root / f"{index} #1%?.png").write_bytes(images.encode(pixels, "png", 92, texts))
    (root / "sub").mkdir()
    (root / "sub" / "plain.webp").write_bytes(images.encode(pixels, "webp", 92, Metadata()))
    (root / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    done = subprocess.run(
        [DDGEN, "gallery", str(root), "--title", "Ti<b>tle"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout == f"{root}/index.html\n"
    assert "left out" in done.stderr and "broken.png" in done.stderr
    return root


@pytest.fixture(scope="module")
def browser(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Chrome"]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        if os.environ.get("DDGEN_BROWSER_REQUIRED"):
            pytest.fail("chromium and chromium-driver are not installed")
        pytest.skip("needs Debian's chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--window-size=1000,800",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get((directory / "index.html").as_uri())
    yield driver
    driver.quit()


def shown(browser: "Chrome") -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll('figure:not([hidden]) .prompt')].map(e => e.textContent)"
    )


def test_pictures_and_their_words_are_shown(browser: "Chrome", directory: Path) -> None:
    assert shown(browser) == ["a red apple", "a blue cup", HOSTILE, "sub/plain.webp"]
    assert (
        browser.find_element("id", "title").text == "Ti<b>tle"
        and browser.find_element("id", "count").text == "4 pictures"
    )
    widths = browser.execute_script(
        "return [...document.querySelectorAll('figure img')].map(e => [e.complete, e.naturalWidth])"
    )
    assert widths == [[True, 64]] * 4
    assert "seed 7" in browser.find_element("css selector", "figure .facts").text
    assert len(browser.get_screenshot_as_png()) > 5000


def test_nothing_that_a_picture_says_is_run(browser: "Chrome", directory: Path) -> None:
    assert browser.title == "Ti<b>tle - ddgen gallery"
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    page = (directory / "index.html").read_text()
    assert "<script>document.title" not in page and "http://" not in page and "https://" not in page
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("apple", ["a red apple"]),
        ("BLUE cup", ["a blue cup"]),
        ("seed:7", ["a red apple"]),
        ("steps:30", ["a blue cup"]),
        ("a -red -cup", [HOSTILE, "sub/plain.webp"]),
        ("zebra", []),
        ("", ["a red apple", "a blue cup", HOSTILE, "sub/plain.webp"]),
    ],
)
def test_filter(browser: "Chrome", words: str, left: list[str]) -> None:
    box = browser.find_element("id", "filter")
    box.clear()
    box.send_keys(words or " ")
    assert shown(browser) == left
    assert browser.find_element("id", "none").is_displayed() == (not left)


def test_order(browser: "Chrome") -> None:
    browser.find_element("css selector", "#order option[value=seed]").click()
    assert shown(browser) == [HOSTILE, "a red apple", "a blue cup", "sub/plain.webp"]
    browser.find_element("css selector", "#order option[value=file]").click()


def test_large_view_loads_the_file_itself_and_tells_the_command(browser: "Chrome") -> None:
    browser.find_elements("css selector", "figure .open")[1].click()
    dialog = browser.find_element("id", "large")
    assert dialog.is_displayed()
    command = dialog.find_element("tag name", "code").text
    assert shlex.split(command)[-1] == "a blue cup" and "--negative=-blurry" in command
    loaded = "const i = document.querySelector('dialog img'); return [i.src.slice(0, 5), i.naturalWidth]"
    for _ in range(50):
        if browser.execute_script(loaded)[0] == "file:":
            break
        browser.execute_async_script("setTimeout(arguments[0], 100)")
    assert browser.execute_script(loaded) == ["file:", 64]
    dialog.find_element("css selector", ".copy").click()
    for _ in range(50):
        label = dialog.find_element("css selector", ".copy").text
        if label != "Copy the command":
            break
        browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert label in ("Copied", "Not allowed here")
    dialog.find_element("css selector", ".close").click()
    assert not dialog.is_displayed()


def test_the_command_is_one_that_ddgen_takes(directory: Path, tmp_path: Path) -> None:
    page = (directory / "index.html").read_text()
    block = page.partition('id="data">')[2].partition("</script>")[0]
    pictures = json.loads(html.unescape(block))["pictures"]
    for job, picture in zip(JOBS, pictures, strict=False):
        command = f"{shlex.quote(DDGEN)} {picture['command'].removeprefix('ddgen ')}"
        options = command.replace(" -- ", " --plan --json -- ", 1)
        done = subprocess.run(
            ["bash", "-c", options], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert (made["prompt"], made["seed"], made["steps"]) == (job.prompt, job.seed, job.steps)


def test_rows_of_bad_input(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [DDGEN, "gallery", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        return done.returncode, done.stderr

    (tmp_path / "empty").mkdir()
    assert run("none") == (4, "ddgen: error: 'none': no such directory; give a directory of pictures\n")
    assert run("empty")[0] == 4
    (tmp_path / "a.png").write_bytes(images.encode(np.zeros((64, 64, 3), np.uint8)))
    (tmp_path / "index.html").write_text("mine")
    code, error = run(".")
    assert code == 7 and error.startswith("ddgen: error: 'index.html' exists; use --force")
    assert run(".", "-f")[0] == 0 and run(".")[0] == 0, "its own page is replaced without being asked"


def test_links_and_hidden_directories_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".hidden").mkdir()
    for name in ("a.png", ".hidden/b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "c.png").symlink_to(tmp_path / "a.png")
    assert [path.name for path in gallery.find_pictures(tmp_path)] == ["a.png"]

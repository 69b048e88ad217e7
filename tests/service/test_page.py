"""The page in a real browser; skipped, saying so, where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

import pytest
from serving import serving

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A new page in which an error of a script, a refused file or a blocked style fails the test."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    found = context.new_page()
    wrong: list[str] = []
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on(
        "console",
        lambda message: wrong.append(f"{message.text} {message.location}") if message.type == "error" else None,
    )
    found.set_default_timeout(20_000)
    yield found
    context.close()
    assert not wrong


@pytest.fixture(scope="module")
def photo(material):
    return sorted((material / "photos").rglob("*.jpg"))[4]


def keep_picture(page, name: str) -> None:
    """For people to look at, where a folder is named for it."""
    folder = os.environ.get("PAGE_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def loaded(page) -> None:
    page.locator("#layer option").first.wait_for(state="attached")


def done(page) -> None:
    page.get_by_text("Done", exact=True).wait_for()


def test_a_photo_that_is_chosen_is_classified_shown_and_compared(server, page, photo):
    page.goto(server.url)
    page.set_input_files("#file", photo)
    done(page)
    assert page.locator("#scores tr").count() == 3
    assert page.locator("#neighbors li").count() == 12
    first = page.locator("#neighbors li").first
    assert photo.name in first.inner_text()
    assert "distance 0.000" in first.inner_text()
    first.locator("img[src^=blob]").wait_for()
    assert page.locator("#page-of").inner_text() == "maps 0 to 63 of 256"
    drawn = page.evaluate("[...document.getElementById('grid').getContext('2d').getImageData(0, 0, 71, 71).data]")
    assert len(set(drawn[::4])) > 20, "the maps are all the same"
    keep_picture(page, "photo")
    page.get_by_role("button", name="Next").click()
    assert page.locator("#page-of").inner_text() == "maps 64 to 127 of 256"
    page.get_by_label("Layer", exact=True).first.select_option("fc7")
    page.get_by_text("384 values").wait_for()
    page.get_by_label("Head").select_option("softmax")
    page.get_by_text(re.compile(r"\(\d+\.\d %\)")).wait_for()


def test_a_photo_may_be_there_before_it_is_known_what_is_served(server, page, photo):
    page.route("**/v1/models", lambda route: (time.sleep(1), route.continue_()))
    page.goto(server.url, wait_until="domcontentloaded")
    page.set_input_files("#file", photo)
    done(page)
    assert page.locator("#scores tr").count() == 3


def test_a_photo_can_be_dropped(server, page, photo):
    page.goto(server.url)
    loaded(page)
    content = photo.read_bytes().hex()
    page.evaluate(
        """hex => {
            const bytes = new Uint8Array(hex.match(/../g).map((two) => parseInt(two, 16)));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "dropped.jpg", {type: "image/jpeg"}));
            document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }""",
        content,
    )
    done(page)
    assert "dropped.jpg" in page.locator("#curl").inner_text()
    assert page.locator("#scores tr").count() == 3


def test_what_is_no_image_is_said(server, browser, material):
    page = browser.new_page()  # the refusal shows in the console, which is right
    page.goto(server.url)
    page.set_input_files("#file", material / "svm.safetensors")
    page.locator("#message.bad").wait_for()
    assert "not an image" in page.locator("#message").inner_text()
    page.close()


def test_it_works_with_the_keyboard_alone(server, page, photo):
    page.goto(server.url)
    page.set_input_files("#file", photo)
    done(page)
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert {"file", "head", "layer", "after", "index", "index-layer", "Copy"} <= reached
    page.locator("#after").focus()
    page.keyboard.press("Enter")
    assert page.locator("#page-of").inner_text() == "maps 64 to 127 of 256"


def test_the_request_can_be_copied(server, page):
    page.goto(server.url)
    loaded(page)
    page.locator("button[data-of=curl]").click()
    page.get_by_text("Copied").wait_for()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("curl --data-binary @'photo.jpg'")
    assert f'"{server.url}/v1/features?layers=conv5"' in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_light_and_dark(server, page, photo, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(PHONE)
    page.goto(server.url)
    page.set_input_files("#file", photo)
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) < 150) == (scheme == "dark")
    keep_picture(page, f"phone-{scheme}")


def test_the_documentation_shows_every_route(server, page):
    page.goto(f"{server.url}/docs")
    page.get_by_role("heading", name="Routes").wait_for()
    text = page.locator("#routes").inner_text()
    for route in ("/v1/features", "/v1/predict", "/v1/neighbors", "/v1/embeddings", "/v2/models/{model}/infer"):
        assert route in text
    page.get_by_text("/v1/features").click()
    assert page.get_by_text("As --pool of featx extract.").is_visible()
    keep_picture(page, "docs")


def test_a_key_is_asked_for(tmp_path, browser, photo):
    import hashlib

    (tmp_path / "keys").write_text(f"page {hashlib.sha256(b'secret').hexdigest()}\n")
    page = browser.new_page()
    page.set_default_timeout(20_000)
    with serving(tmp_path / "log.txt", "--api-key-file", str(tmp_path / "keys")) as served:
        page.goto(served.url)
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        loaded(page)
        page.set_input_files("#file", photo)
        done(page)
        assert "Authorization: Bearer $KEY" in page.locator("#curl").inner_text()
    page.close()

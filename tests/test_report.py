"""The HTML reports, in a browser where there is one, and the comparison of runs."""

import base64
import csv
import hashlib
import json
import re
import shutil
from importlib.resources import files

import pytest

from pipeline.runs.results import Results

from conftest import kinema

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VISIBLE = ".card:not([hidden])"


@pytest.fixture(scope="session")
def confused(trained, tmp_path_factory):
    """The small run with four mistakes: two clips of Grow are taken for Shrink, two of Open for Close."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("confused") / "confused")
    results, mistaken = Results.read(run), {"Grow": "Shrink", "Open": "Close"}
    for row in results.rows:
        row["predicted"] = mistaken.get(row["label"], row["predicted"])
    for row in results.metrics["per_class"]:
        row |= {"recall": 0.0} if row["class"] in mistaken else {}
    pairs = [{"class": label, "taken_for": predicted, "clips": 2} for label, predicted in mistaken.items()]
    results._replace(metrics=results.metrics | {"most_confused": pairs}).write(run)
    kinema("report", run)
    return run


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("no Chromium")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, confused):
    """The report at the size of a desktop; the test fails if the page complains or asks for anything."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(5000)
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((confused / "report.html").as_uri())
    yield page
    page.close()
    assert not complaints and [url for url in requests if not url.startswith("data:")] == requests[:1]


def test_tables_can_be_sorted(opened):
    def column(number):
        return opened.locator(f"#classes tbody tr > :nth-child({number})").all_inner_texts()

    for heading, number in (("class", 1), ("recall", 4)):
        opened.locator("#classes th button", has_text=re.compile(f"^{heading}$")).click()
        first = column(number)
        opened.locator("#classes th button", has_text=re.compile(f"^{heading}$")).click()
        assert column(number) == first[::-1] != first or len({*first}) < len(first)
        assert opened.locator("#classes th[aria-sort]").count() == 1
    assert column(1)[0] in ("Grow", "Open")  # The last click sorted by recall, lowest first.


def test_mistakes_can_be_filtered(opened):
    assert opened.locator(VISIBLE).count() == opened.locator(".card[data-kind=mistakes]").count() >= 4
    opened.get_by_label("True class").select_option("Grow")
    assert opened.locator(VISIBLE).count() == 2
    opened.locator(".pairs button", has_text="Open → Close").click()
    assert {*opened.locator(f"{VISIBLE} .verdict").all_inner_texts()} == {"Open taken for Close"}
    opened.locator('.cell[data-label="Grow"][data-predicted="Shrink"]').click()
    assert {*opened.locator(f"{VISIBLE} .verdict").all_inner_texts()} == {"Grow taken for Shrink"}
    assert opened.locator("#cell").inner_text() == "Grow: 2 of 2 clips (100.0\N{NO-BREAK SPACE}%) taken for Shrink"
    opened.mouse.move(0, 0)
    opened.locator("#matrix").focus()
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("Enter")
    label, _, text = opened.locator("#cell").inner_text().partition(": ")
    predicted = text.partition("taken for ")[2] or label
    assert label != "Grow" and opened.get_by_label("True class").input_value() == label
    assert opened.get_by_label("Predicted").input_value() == predicted
    opened.get_by_role("button", name="Show all").click()
    assert opened.locator(VISIBLE).count() == 16


@pytest.mark.parametrize("way", ["hover", "focus", "click"])
def test_previews_play(opened, way):
    button = opened.locator(f"{VISIBLE} .play").first
    playing = "button => !button.firstElementChild.paused && button.firstElementChild.currentTime > 0.05"
    if way == "focus":
        opened.get_by_role("button", name="Show all").focus()
        opened.keyboard.press("Tab")
    elif way == "hover":
        button.hover()
    else:
        button.dispatch_event("click")  # As after a tap, without a pointer over it.
    opened.wait_for_function(playing, arg=button.element_handle(), timeout=5000)
    video = button.locator("video")
    assert video.evaluate("video => Math.max(video.videoWidth, video.videoHeight)") == 160
    button.blur() if way == "focus" else opened.mouse.move(0, 0) if way == "hover" else button.dispatch_event("click")
    assert video.evaluate("video => video.paused")


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_pages_are_accessible_and_fit(browser, trained, confused, tmp_path, kind, width, scheme):
    file = confused / "report.html"
    if kind == "comparison":
        kinema("report", trained, confused, "--out", file := tmp_path / "comparison.html")
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.evaluate((files("axe_core_python") / "axe.min.js").read_text())
    found = page.evaluate("axe.run()")["violations"]
    assert not [problem["id"] for problem in found if problem["impact"] in ("serious", "critical")]
    page.close()


def test_a_report_is_one_file_that_may_load_nothing(confused):
    page = (confused / "report.html").read_text(encoding="utf-8")
    policy = re.search('Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe" not in policy
    for tag in ("style", "script"):
        [text] = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and " style=" not in page
    assert page.count('src="data:video/mp4;base64,') == 16


def test_a_report_without_videos_says_why(trained, tmp_path):
    kinema("report", trained, "--out", tmp_path / "a.html", "--data.root", tmp_path / "gone")
    assert "No preview: No such file" in (tmp_path / "a.html").read_text(encoding="utf-8")
    kinema("report", trained, "--out", tmp_path / "b.html", "--previews", 3)
    assert (tmp_path / "b.html").read_text(encoding="utf-8").count("<video") == 3
    (tmp_path / "empty").mkdir()
    _, error = kinema("report", tmp_path / "empty", code=2)
    assert "metrics.json: no such file; evaluate the run first: " in error and error.count("\n") == 1


def test_runs_are_compared_on_the_clips_that_they_share(trained, confused, tmp_path):
    out, _ = kinema("compare", trained, trained)
    assert "no difference shown, +0.000" in out
    out, _ = kinema("compare", trained, confused)
    assert "16 test clips in 2 groups\n" in out
    before, after = json.loads(kinema("compare", trained, confused, "--json")[0])
    assert after["difference"] == pytest.approx(after["top1"] - before["top1"]) and after["difference"] < 0
    assert after["verdict"] == ("worse" if after["difference_ci95"][1] < 0 else "no difference shown")
    half = shutil.copytree(confused, tmp_path / "half")
    results = Results.read(half)
    results._replace(rows=results.rows[::2]).write(half)
    assert "8 test clips in" in (out := kinema("compare", trained, half)[0]) and "8 clips that only some" in out
    with (half / "predictions.csv").open(newline="") as stream:
        rows = [row | {"clip": f"other {row['clip']}"} for row in csv.DictReader(stream)]
    results._replace(rows=[row | {"logits": []} for row in rows]).write(half)
    assert "no test clips in common" in kinema("compare", trained, half, code=2)[1]
    assert "name two runs or more" in kinema("compare", trained, code=2)[1]

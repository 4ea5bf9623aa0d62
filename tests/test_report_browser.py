"""`report.html` in headless Chromium: it draws, it zooms, it fits a phone, it asks nobody.

Needs selenium, and Chromium with its chromedriver.
"""

import dataclasses
import itertools
import json
import shutil

import pytest
from small_runs import FILLS, SEEDS, reported, traded
from tools import lacking, library

from jaxtrader.reporting.html import render_html

webdriver = library("selenium.webdriver")
ui = library("selenium.webdriver.support.ui")

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.slow

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DESKTOP, PHONE = (1280, 900), (375, 812)
CHARTS = [
    f"{name}-{k}" for k in (1, 2) for name in ("equity", "price", "actions", "reward", "entropy")
]
HOSTILE = "</script><script>window.robbed=1</script><img src=x onerror='window.robbed=1'>"


class Browser:
    """A page in Chromium."""

    def __init__(self, folder, size, touch):
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for flag in (*FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        if touch:
            metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        self.seen: list[dict] = []

    def open(self, path):
        self.driver.get(path.as_uri())
        self.run("document.documentElement.style.scrollBehavior = 'auto'")

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script, *arguments):
        wait = ui.WebDriverWait(self.driver, 30, poll_frequency=0.05)
        return wait.until(lambda _: self.run(f"return {script}", *arguments), script)

    def show(self, chart):
        """Scrolls to a chart and waits until it is drawn."""
        self.run("document.getElementById(arguments[0]).scrollIntoView()", chart)
        self.until("document.getElementById(arguments[0]).dataset.drawn", chart)
        return self.driver.find_element("css selector", f"#{chart} .nsewdrag")

    def axis(self, chart, name="xaxis"):
        script = "const {range, ticktext} = document.querySelector(arguments[0])._fullLayout"
        return self.run(
            f"{script}[arguments[1]]; return [...range, ticktext]", f"#{chart} .plot", name
        )

    def requests(self):
        """What was asked for, other than by the browser's own pages, such as a new tab."""
        self.seen += [
            json.loads(e["message"])["message"] for e in self.driver.get_log("performance")
        ]
        urls = [
            m["params"]["request"]["url"]
            for m in self.seen
            if m["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("chrome:", "data:"))]

    def touch(self, kind, *points):
        where = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        event = {"type": kind, "touchPoints": where}
        self.driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)

    def drag(self, element, first, last):
        """With the mouse, from one share of the element's width to another."""
        width = element.size["width"]
        actions = webdriver.ActionChains(self.driver)
        actions.move_to_element_with_offset(element, int(width * (first - 0.5)), 0).click_and_hold()
        actions.move_by_offset(int(width * (last - first)), 3).release().perform()


@pytest.fixture(scope="module", autouse=True)
def chromium():
    """There before anything is trained for it."""
    if not (BROWSER and DRIVER):
        lacking("there is no chromium with its chromedriver")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What stage 5 wrote of two stocks and three seeds."""
    return reported(tmp_path_factory.mktemp("run"))


def browser_of(size, *, touch):
    @pytest.fixture(scope="module")
    def browser(run, tmp_path_factory):
        browser = Browser(tmp_path_factory.mktemp("profile"), size, touch)
        try:
            browser.open(run[0] / "report.html")
            yield browser
        finally:
            browser.driver.quit()

    return browser


desktop = browser_of(DESKTOP, touch=False)
phone = browser_of(PHONE, touch=True)


@pytest.fixture(params=["desktop", "phone"])
def browser(request):
    return request.getfixturevalue(request.param)


def test_every_chart_is_drawn_and_nothing_complains(browser, run):
    assert browser.run("return [...document.querySelectorAll('.chart')].map(c => c.id)") == CHARTS
    for chart in CHARTS:
        browser.show(chart)
        width, height, marks = browser.run(
            "const svg = document.querySelector(`#${arguments[0]} svg.main-svg`);"
            "const {width, height} = svg.getBoundingClientRect();"
            "const marks = [...svg.querySelectorAll('.trace path')].filter(p => {"
            "  const box = p.getBBox(); return box.width + box.height > 0 && p.closest('.plot')});"
            "return [width, height, marks.length]",
            chart,
        )
        assert width > 300
        assert height > 300
        assert marks >= (3 if chart.startswith("equity") else 1)
    assert [entry for entry in browser.driver.get_log("browser") if entry["level"] != "INFO"] == []
    assert browser.requests() == [(run[0] / "report.html").as_uri()]


def test_plotly_offers_no_button_that_sends_data(browser):
    browser.show("price-1")
    assert browser.run("return document.querySelectorAll('.modebar-btn, .modebar a').length") == 0
    assert browser.run("return document.querySelector('.plot')._context.plotlyServerURL") == ""


def test_the_page_is_no_wider_than_the_screen(browser):
    for chart in CHARTS:
        browser.show(chart)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    width, inner = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner
    assert inner == (PHONE if browser.run("return innerWidth") == 375 else DESKTOP)[0]


def test_a_phone_that_is_turned_has_every_chart_as_wide_as_its_box(phone):
    """Plotly's own resizing left one or two as they had been."""
    for chart in CHARTS:
        phone.show(chart)
    fits = (
        "[...document.querySelectorAll('.plot')].every(p => p.clientWidth > arguments[0] &&"
        " p.clientWidth === p.querySelector('.main-svg').getBoundingClientRect().width)"
    )
    for width, height in (PHONE[::-1], PHONE):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
        phone.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        phone.until(fits, 0.85 * width)
        assert phone.run("return document.documentElement.scrollWidth") == width


def test_wide_tables_scroll_in_their_own_box(phone):
    boxes = phone.run(
        "return [...document.querySelectorAll('table')].map(t => {"
        "  const box = t.parentElement.getBoundingClientRect();"
        "  return [box.left, box.right, t.scrollWidth > t.parentElement.clientWidth,"
        "          getComputedStyle(t.parentElement).overflowX]})"
    )
    assert len(boxes) >= 6
    assert any(wide for _, _, wide, _ in boxes)
    for left, right, _, overflow in boxes:
        assert left >= 0
        assert right <= PHONE[0]
        assert overflow == "auto"


def test_no_text_is_smaller_than_12_pixels(browser):
    for chart in CHARTS:
        browser.show(chart)
    sizes = browser.run(
        "const sizes = {}; const walk = document.createTreeWalker(document.body, 4);"
        "while (walk.nextNode()) { const e = walk.currentNode.parentElement;"
        "  if (!walk.currentNode.data.trim() || e.closest('script, style, noscript')) continue;"
        "  sizes[parseFloat(getComputedStyle(e).fontSize)] = walk.currentNode.data; }"
        "return sizes"
    )
    assert len(sizes) > 3
    assert not {size: text for size, text in sizes.items() if float(size) < 12}


def test_labels_of_a_time_axis_do_not_overlap(browser):
    browser.show("equity-1")
    boxes = browser.run(
        "return [...document.querySelectorAll('#equity-1 .xtick text')].map(t => {"
        "  const b = t.getBoundingClientRect(); return [b.left, b.right]})"
    )
    assert len(boxes) >= 2
    for (_, right), (left, _) in itertools.pairwise(sorted(boxes)):
        assert right < left


def test_dragging_zooms_and_the_button_goes_back(desktop, run):
    closes = run[2][0][0].close
    plot = desktop.show("price-1")
    whole, prices = desktop.axis("price-1"), desktop.axis("price-1", "yaxis")
    desktop.drag(plot, 0.5, 0.75)
    low, high, _ = desktop.until(
        "(() => {const x = document.querySelector('#price-1 .plot')._fullLayout.xaxis;"
        "return !x.autorange && [...x.range, 0]})()"
    )
    middle, width = (whole[0] + whole[1]) / 2, whole[1] - whole[0]
    assert low == pytest.approx(middle, abs=0.02 * width)
    assert high == pytest.approx(middle + width / 4, abs=0.02 * width)
    # The price axis shrinks to what is in view, and the dates are those of the bars in view.
    desktop.until(
        "JSON.stringify(document.querySelector('#price-1 .plot')._fullLayout.yaxis.range) != "
        "arguments[0]", json.dumps(prices[:2], separators=(",", ":")),
    )  # fmt: skip
    bottom, top, _ = desktop.axis("price-1", "yaxis")
    seen = closes.iloc[int(low) + 1 : int(high)]
    assert bottom < seen.min() < seen.max() < top
    assert top - bottom < prices[1] - prices[0]
    texts = desktop.axis("price-1")[2]
    assert texts != whole[2]
    days = {f"{stamp:%b} {stamp.day}" for stamp in seen.index}
    assert {text.split("<br>")[0] for text in texts} <= days
    button = desktop.driver.find_element("css selector", "#price-1 .reset")
    desktop.run("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    desktop.until("document.querySelector('#price-1 .plot')._fullLayout.xaxis.autorange")
    desktop.until("document.querySelector('#price-1 .reset').hidden")
    assert desktop.axis("price-1")[:2] == pytest.approx(whole[:2])


def test_equity_and_drawdown_zoom_together(desktop):
    plot = desktop.show("equity-2")
    before = desktop.axis("equity-2", "yaxis2")
    desktop.drag(plot, 0.1, 0.2)
    desktop.until("!document.querySelector('#equity-2 .reset').hidden")
    desktop.until(
        "document.querySelector('#equity-2 .plot')._fullLayout.yaxis2.range[0] != arguments[0]",
        before[0],
    )
    assert desktop.run(
        "const {_fullLayout: l, data} = document.querySelector('#equity-2 .plot');"
        "return Object.keys(l).filter(k => /^xaxis\\d*$/.test(k)).length == 1 && "
        "data.some(t => t.yaxis == 'y2')"
    )


def inside(phone, chart):
    """Left, width and the middle of the height of a chart's plot, in pixels of the screen."""
    script = "const b = arguments[0].getBoundingClientRect(); "
    script += "return [b.left, b.width, b.top + b.height / 2]"
    return phone.run(script, phone.show(chart))


def test_one_finger_on_a_chart_scrolls_the_page(phone):
    left, width, y = inside(phone, "equity-2")
    before, x = phone.run("return scrollY"), left + width / 2
    phone.touch("touchStart", (x, y))
    for k in range(1, 11):
        phone.touch("touchMove", (x, y - 12 * k))
    phone.touch("touchEnd")
    phone.until("scrollY > arguments[0] + 60", before)
    assert phone.run("return document.querySelector('#equity-2 .reset').hidden")


def test_two_fingers_on_a_chart_zoom(phone):
    left, width, y = inside(phone, "price-1")
    low, high, _ = phone.axis("price-1")
    x = left + 0.4 * width
    phone.touch("touchStart", (x, y), (x + 40, y))
    for k in range(1, 11):
        phone.touch("touchMove", (x - 4 * k, y), (x + 40 + 4 * k, y))
    phone.touch("touchEnd")
    phone.until("!document.querySelector('#price-1 .reset').hidden")
    # The bars under the fingers follow them: 40 pixels of bars are now 120 pixels wide.
    scale = (high - low) / width
    expected = [low + (x - left) * scale - (x - 40 - left) * scale / 3]
    expected.append(expected[0] + (high - low) / 3)
    phone.until(
        "document.querySelector('#price-1 .plot')._fullLayout.xaxis.range"
        ".every((edge, i) => Math.abs(edge - arguments[0][i]) < arguments[1])",
        expected,
        0.02 * (high - low),
    )


def visible(browser, chart):
    return browser.run(
        "return document.querySelector(arguments[0])._fullData"
        ".filter(t => t.visible === true).map(t => [t.name, t.meta?.seed ?? null])",
        f"#{chart} .plot",
    )


def test_a_seed_is_chosen_for_its_whole_symbol(browser):
    for chart in ("equity-2", "price-2", "actions-2", "reward-2", "entropy-2"):
        browser.show(chart)
    others = {chart: visible(browser, chart) for chart in ("equity-2", "entropy-2")}
    for seed in (SEEDS[2], SEEDS[0]):
        browser.run(f"document.querySelector('#symbol-2 input[value=\"{seed}\"]').click()")
        for chart in ("price-2", "actions-2", "reward-2"):
            browser.until(
                "document.querySelector(arguments[0])._fullData.filter(t => t.visible === true)"
                ".every(t => [undefined, arguments[1]].includes(t.meta?.seed))",
                f"#{chart} .plot",
                str(seed),
            )
            chosen = {chosen for _, chosen in visible(browser, chart)}
            assert str(seed) in chosen or chart == "price-2"  # where it may not have traded
    for chart, names in others.items():
        assert visible(browser, chart) == names


def test_agents_alone_have_a_scale_of_their_own(desktop):
    desktop.show("equity-1")
    low, high, _ = desktop.axis("equity-1", "yaxis")
    assert "buy and hold" in [name for name, _ in visible(desktop, "equity-1")]
    desktop.run("document.querySelector('#equity-1 input[value=own]').click()")
    desktop.until(
        "document.querySelector('#equity-1 .plot')._fullData"
        ".every(t => t.name != 'buy and hold' || t.visible !== true)"
    )
    desktop.until(
        "document.querySelector('#equity-1 .plot')._fullLayout.yaxis.range[1] != arguments[0]", high
    )
    small = desktop.axis("equity-1", "yaxis")
    assert small[1] - small[0] < high - low
    desktop.run("document.querySelector('#equity-1 input[value=same]').click()")
    desktop.until(
        "document.querySelector('#equity-1 .plot')._fullLayout.yaxis.range[1] == arguments[0]", high
    )


def test_a_dark_screen_gets_a_dark_page(desktop):
    desktop.show("entropy-1")

    def colours():
        return desktop.run(
            "return [getComputedStyle(document.body).backgroundColor,"
            "getComputedStyle(document.querySelector('#entropy-1 .xtick text')).fill]"
        )

    light = colours()
    for scheme, expected in (("dark", False), ("light", True)):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        desktop.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        desktop.until(
            "(getComputedStyle(document.querySelector('#entropy-1 .xtick text')).fill == "
            "arguments[0]) == arguments[1]", light[1], expected,
        )  # fmt: skip
        assert (colours() == light) is expected


def test_hostile_names_run_nothing(desktop, run, tmp_path):
    folder, training, evaluations = run
    text = (folder / "summary.json").read_text("utf-8").replace('"AAA"', json.dumps(HOSTILE))
    summary = json.loads(text)
    summary["data"]["notes"] = [HOSTILE]
    path = tmp_path / "report.html"
    tables = [
        table.assign(symbol=table["symbol"].replace("AAA", HOSTILE))
        for table in (training.updates_table(), training.episodes_table())
    ]
    named = [dataclasses.replace(traded(e), symbol=HOSTILE) for e in evaluations[0]]
    path.write_text(render_html(summary, [named, evaluations[1]], *tables), "utf-8")
    desktop.driver.get_log("browser")
    desktop.open(path)
    desktop.show("equity-1")
    assert desktop.run("return window.robbed") is None
    assert HOSTILE in desktop.run("return document.querySelector('#symbol-1').innerText")
    desktop.show("price-1")
    marks = "return document.querySelectorAll('#price-1 .points path').length"
    assert desktop.run(marks) == len(FILLS)
    assert desktop.run("return window.robbed") is None
    assert desktop.driver.get_log("browser") == []

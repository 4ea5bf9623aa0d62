"""`report.html`: what it says, what it draws, and that it asks nobody for anything.

The page is read back as a browser would: its tags by Python's parser, its figures by decoding the
numbers that Plotly gets. What a browser makes of it: test_report_browser.py.
"""

import base64
import copy
import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SEEDS, reported, traded

from jaxtrader.reporting import charts
from jaxtrader.reporting.html import cautions, render_html

VOID = {"br", "img", "input", "link", "meta", "hr", "wbr"}
CHARTS = ("equity", "price", "actions", "reward", "entropy")


class Page(HTMLParser):
    """A page's tags, the text of its elements, and the JSON of its scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.figures: dict[str, dict] = {}
        self.captions: dict[str, str] = {}
        self._open: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        opened, _ = self._open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        tag, attributes = self._open[-1] if self._open else ("", {})
        if tag == "script":
            self.scripts.append(data)
            chart = self._chart()
            if chart and attributes.get("type") == "application/json":
                self.figures[chart] = json.loads(data, parse_constant=pytest.fail)
            return
        if tag == "style":
            return
        self.words.append(data)
        if any(name in ("td", "th") for name, _ in self._open):
            cell = " ".join(f"{self.tables[-1][-1][-1]} {data}".split())
            self.tables[-1][-1][-1] = cell
        if tag == "figcaption":
            self.captions[self._chart()] = data

    def _chart(self):
        return next((a["id"] for _, a in self._open if a.get("class") == "chart"), None)

    def table(self, head: str) -> list[list[str]]:
        """The table whose first row has a cell that starts with `head`."""
        return next(t for t in self.tables if any(cell.startswith(head) for cell in t[0]))


def numbers(values) -> np.ndarray:
    """What Plotly makes of a trace's x or y."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).astype(float)
    return np.array(values, float)


def traces(page: Page, chart: str, **wanted) -> list[dict]:
    found = page.figures[chart]["data"]
    return [t for t in found if all(t.get(key) == value for key, value in wanted.items())]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What stage 5 wrote of two stocks and three seeds, and what it was written from."""
    folder, run, evaluations = reported(tmp_path_factory.mktemp("run"))
    return SimpleNamespace(
        folder=folder,
        text=(folder / "report.html").read_text("utf-8"),
        summary=json.loads((folder / "summary.json").read_text("utf-8")),
        evaluations=evaluations,
        updates=run.updates_table(),
        episodes=run.episodes_table(),
        csv=[run.journal.updates, run.journal.episodes],
    )


@pytest.fixture(scope="module")
def page(made):
    return Page(made.text)


@pytest.fixture
def parts(made):
    """The same, to be changed and rendered anew."""
    parts = SimpleNamespace(
        summary=copy.deepcopy(made.summary),
        evaluations=[list(row) for row in made.evaluations],
        updates=made.updates.copy(),
        episodes=made.episodes.copy(),
    )
    parts.page = lambda: Page(
        render_html(parts.summary, parts.evaluations, parts.updates, parts.episodes)
    )
    parts.agents = parts.summary["agents"]
    return parts


# ------------------------------------------------------------------------- one file, on its own


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form", "img", "video", "audio")
        for name in ("src", "srcset", "data", "action", "poster", "ping", "background"):
            assert name not in attributes, (tag, attributes)
        target = attributes.get("href", "#")
        assert target.startswith("#") or target == "data:,", (tag, attributes)
    policies = [a["content"] for _, a in page.tags if a.get("http-equiv")]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")
    assert not re.search(r"https?:|\*", policies[0])


def test_styles_load_nothing(made):
    [style] = re.findall(r"<style>(.*?)</style>", made.text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_plotly_is_inside_once(page, made):
    assert sum("plotly.js v" in script[:200] for script in page.scripts) == 1
    assert len(made.text) < 7_000_000


def test_every_link_within_the_page_leads_somewhere(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    targets = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert len(targets) >= 7
    assert set(targets) <= set(ids)


def test_the_page_can_be_made_again_from_the_files_of_the_run(made):
    """From summary.json and the CSV tables, byte for byte."""
    updates, episodes = (
        pd.concat([pd.read_csv(table.path) for table in tables.values()], ignore_index=True)
        for tables in made.csv
    )
    assert render_html(made.summary, made.evaluations, updates, episodes) == made.text


def test_rendering_changes_nothing_it_is_given(made, parts):
    parts.page()
    assert parts.summary == made.summary
    pd.testing.assert_frame_equal(parts.updates, made.updates)
    pd.testing.assert_frame_equal(parts.episodes, made.episodes)


# ---------------------------------------------------------------------------------- what it says


def kinds(page: Page) -> set[str]:
    return {word for word in ("REAL DATA", "SYNTHETIC DATA") if word in page.text}


def test_it_says_in_large_letters_whether_the_data_are_real(page, parts):
    assert kinds(page) == {"SYNTHETIC DATA"}
    assert "nothing here says anything about real money" in page.text
    parts.summary["data"]["kind"] = "real"
    real = parts.page()
    assert kinds(real) == {"REAL DATA"}
    assert "real money" not in real.text
    assert page.text.index("SYNTHETIC DATA") < page.text.index("FAILED") < page.text.index("Gates")


def test_the_verdict_counts_the_agents(page, parts):
    assert not parts.summary["passed"]
    failing = sum(not all(gate["passed"] for gate in agent["gates"]) for agent in parts.agents)
    assert f"FAILED: {failing} of 6 agents miss at least one gate" in page.text
    for agent in parts.agents:
        agent["passed"] = True
        for gate in agent["gates"]:
            gate["passed"] = True
    assert "FAILED: a policy was not exported" in parts.page().text
    parts.summary["passed"] = True
    passed = parts.page()
    assert "PASSED: every agent passes every gate" in passed.text
    assert "FAIL" not in passed.text


def test_the_gate_table_has_every_agent_and_gate(page, made):
    head, *rows = page.table("verdict")
    assert len(rows) == len(made.summary["agents"]) == 6
    for agent, row in zip(made.summary["agents"], rows, strict=True):
        name, verdict, *cells = row
        assert name == f"{agent['symbol']} seed {agent['seed']}"
        assert verdict == ("pass" if agent["passed"] else "FAIL")
        for gate, column, cell in zip(agent["gates"], head[2:], cells, strict=True):
            assert column == f"{gate['metric'].replace('_', ' ')} {gate['bound']}"
            assert cell == f"{gate['value']:.3f} {'pass' if gate['passed'] else 'FAIL'}"


def test_buy_and_hold_stands_below_the_agents_of_its_symbol(page, made):
    _, *rows = page.table("return")
    names = [row[0] for row in rows]
    assert names == [
        f"{symbol} {who}"
        for symbol in ("AAA", "BBB")
        for who in (*(f"seed {seed}" for seed in SEEDS), "buy and hold")
    ]
    results = {f"{a['symbol']} seed {a['seed']}": a["evaluation"] for a in made.summary["agents"]}
    holds = {f"{a['symbol']} buy and hold": a["evaluation"] for a in made.summary["agents"]}
    for name, total, sharpe, *_ in rows:
        figures = results[name] if name in results else holds[name]["buy_and_hold"]
        assert total == f"{100 * figures['total_return']:+.2f}%"
        ratio = figures["performance"]["sharpe_ratio"]
        assert sharpe == ("—" if ratio is None else f"{ratio:.2f}")


def test_how_much_was_possible_is_said_where_it_is_known(page, made):
    """Of AAA, whose oracle earned 0.10 in logs with a bound of 0.20; BBB's split was too long."""
    _, *rows = page.table("share captured")
    agents = [agent for agent in made.summary["agents"] if agent["symbol"] == "AAA"]
    assert [row[0] for row in rows] == [f"AAA seed {seed}" for seed in SEEDS]
    for agent, (_, share, attained, bound) in zip(agents, rows, strict=True):
        earned = math.log1p(agent["evaluation"]["total_return"])
        assert earned < 0.10
        ends = [f"{share:.1%}" for share in sorted([earned / 0.10, earned / 0.20])]
        assert share == (ends[0] if ends[0] == ends[1] else " to ".join(ends))
        assert attained == "+10.52%"  # e^0.10 - 1
        assert bound == "+22.14%"  # e^0.20 - 1
    assert page.text.count("no comparison with perfect foresight: too long a split") == len(SEEDS)


def test_without_the_oracle_nothing_is_said_of_it(parts):
    for agent in parts.agents:
        agent["evaluation"]["perfect_foresight"] = None
    assert "How much was possible" not in parts.page().text


def test_a_share_of_nothing_is_a_dash(parts):
    for agent in parts.agents[: len(SEEDS)]:
        agent["evaluation"]["perfect_foresight"] |= {
            "captured_at_least": None, "captured_at_most": None,
        }  # fmt: skip
    _, *rows = parts.page().table("share captured")
    assert [row[1] for row in rows] == ["—"] * len(SEEDS)


def test_provenance_and_how_to_reproduce(page, made):
    data, provenance = made.summary["data"], made.summary["provenance"]
    for origin in data["symbols"].values():
        assert origin["source"] in page.text
        assert origin["sha256"] in page.text
        for split in origin["splits"].values():
            assert split["first_timestamp"][:16].replace("T", " ") in page.text
            assert split["last_timestamp"][:16].replace("T", " ") in page.text
    assert data["fingerprint"] in page.text
    assert (provenance["git_commit"] or "unknown") in page.text
    for package, version in provenance["versions"].items():
        assert f"{package} {version}" in page.text
    for name in ("platform", "device"):
        assert provenance["machine"][name] in page.text
    assert "split_clock: own" in page.text


def test_the_command_can_be_pasted(parts):
    import shlex

    words = ["python", "-m", "experiments.stage5", "--output-dir", "a b/c", "--symbols", "X$(id)"]
    parts.summary["command"] = words
    text = render_html(parts.summary, parts.evaluations, parts.updates, parts.episodes)
    shown = next(w for w in Page(text).words if w.startswith("python"))
    assert shlex.split(shown.replace("\\\n", " ")) == words


def test_the_same_bits_are_promised_only_where_they_come(page, parts):
    assert "the same numbers to the bit" in page.text
    parts.summary["command"].append("--nondeterministic")
    assert "the same numbers up to rounding" in parts.page().text


def test_a_resumed_run_is_reproduced_from_its_start(parts):
    parts.summary["command"].append("--resume")
    assert "--resume" not in parts.page().text


def test_what_was_only_evaluated_needs_its_checkpoints(page, parts):
    assert "the checkpoints that an earlier run left" not in page.text
    parts.summary["training"]["skipped"] = True
    text = parts.page().text
    assert "the same numbers from the checkpoints that an earlier run left in the output" in text


def test_the_span_is_that_of_all_symbols(page, made):
    """BBB has fewer bars than AAA, which the page once gave as everybody's."""
    spans = {a["symbol"]: a["evaluation"] for a in made.summary["agents"]}
    aaa, bbb = spans["AAA"], spans["BBB"]
    assert bbb["bars"] < aaa["bars"]
    days = [f(s[key][:10] for s in (aaa, bbb)) for f, key in (
        (min, "first_timestamp"), (max, "last_timestamp"),
    )]  # fmt: skip
    expected = f"{days[0]} to {days[1]}, {bbb['bars']} to {aaa['bars']} bars"
    assert page.text.count(f"{expected} of 1Hour, the test split") == 2
    assert f"Split `test`, {expected}, one" in (made.folder / "summary.md").read_text()


def test_the_margin_is_that_of_the_symbol_with_least_to_go_by(parts):
    for agent in parts.agents:
        days = 30 if agent["symbol"] == "BBB" else 300
        agent["evaluation"]["performance"] |= {"days": days, "periods_per_year": 252}
    assert "30 daily returns leave a Sharpe ratio uncertain by up to ±5.7" in parts.page().text


def test_warnings_are_on_the_page(parts):
    for n, agent in enumerate(parts.agents):
        agent["warnings"] = [f"warning number {n}"]
    text = parts.page().text
    for n, agent in enumerate(parts.agents):
        assert f"{agent['symbol']} seed {agent['seed']}: warning number {n}" in text


# ------------------------------------------------------------------------- no wrong confidence


def plain(summary: dict) -> dict:
    """A summary that gives no reason for caution."""
    summary["agents"] = summary["agents"][:1]
    evaluation = summary["agents"][0]["evaluation"]
    evaluation["performance"]["days"] = 0
    evaluation["trades"] = 30
    return summary


def test_nothing_to_warn_of(parts):
    assert cautions(plain(parts.summary)) == []
    parts.summary["agents"][0]["warnings"] = []
    parts.evaluations = [parts.evaluations[0][:1]]
    assert "No warning was raised, which is no proof of skill" in parts.page().text


@pytest.mark.parametrize(("days", "year"), [(130, 252), (40, 365)])
def test_the_margin_of_a_sharpe_ratio_is_that_of_skill_free_returns(parts, days, year):
    summary = plain(parts.summary)
    summary["agents"][0]["evaluation"]["performance"] |= {"days": days, "periods_per_year": year}
    [caution] = cautions(summary)
    returns = np.random.default_rng(0).normal(0, 0.01, (20_000, days))
    ratios = returns.mean(1) / returns.std(1, ddof=1) * math.sqrt(year)
    stated = float(re.search(r"±([\d.]+)", caution)[1])
    assert stated == pytest.approx(np.quantile(ratios, 0.975), abs=0.05 + 0.02 * stated)
    assert f"{days} daily returns" in caution


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trades": 29}, r"Few closed trades: AAA seed 1337 \(29\).*means little"),
        ({"trades": 0}, "Closed no trade, so its figures say nothing: AAA seed 1337"),
        ({"ended_early": True}, "ended the pass early: AAA seed 1337"),
        ({"split": "train"}, "not out-of-sample results: in sample"),
        ({"split": "validation"}, "not out-of-sample results: on the validation split"),
    ],
)
def test_what_weakens_a_result_is_said(parts, change, said):
    summary = plain(parts.summary)
    summary["agents"][0]["evaluation"] |= change
    [caution] = cautions(summary)
    assert re.search(said, caution)


def test_optimistic_fills_and_shared_bars_are_said(parts):
    summary = plain(parts.summary)
    summary["config"]["environment"]["fill"] = "same_close"
    summary["agents"] = [summary["agents"][0], {**summary["agents"][0], "seed": 9}]
    fills, seeds = cautions(summary)
    assert "same_close" in fills
    assert "one look at one market" in seeds


# --------------------------------------------------------------------------------- the figures


def test_every_symbol_has_every_chart(page):
    assert set(page.figures) == {f"{chart}-{place}" for chart in CHARTS for place in (1, 2)}
    assert set(page.captions) == set(page.figures)
    for caption in page.captions.values():
        assert len(caption.split()) > 10


def fall(equity: np.ndarray) -> np.ndarray:
    peak, falls = equity[0], []
    for value in equity:
        peak = max(peak, value)
        falls.append(100 * (value - peak) / peak)
    return np.array(falls)


def test_equity_and_drawdown_are_those_of_the_evaluation(page, made):
    for place, row in enumerate(made.evaluations, start=1):
        curves = {f"seed {e.seed}": e.equity for e in row} | {"buy and hold": row[0].benchmark}
        for name, series in curves.items():
            equity = series.to_numpy()
            up, down = traces(page, f"equity-{place}", name=name)
            assert (up["yaxis"], down["yaxis"]) == ("y", "y2")
            np.testing.assert_array_equal(numbers(up["x"]), np.arange(len(equity)))
            np.testing.assert_allclose(
                numbers(up["y"]), 100 * equity / equity[0] - 100, rtol=1e-5, atol=1e-5
            )
            np.testing.assert_allclose(numbers(down["y"]), fall(equity), rtol=1e-5, atol=1e-5)


def test_both_scales_of_the_equity_chart(page):
    """Buy-and-hold can be taken away; the agents cannot."""
    for trace in page.figures["equity-1"]["data"]:
        scale = trace.get("meta", {}).get("scale")
        assert scale == ("same" if trace["name"] == "buy and hold" else None)


def test_bars_have_their_times(page, made):
    for place, row in enumerate(made.evaluations, start=1):
        [script] = [i for i, (tag, a) in enumerate(page.tags) if a.get("id") == f"times-{place}"]
        assert page.tags[script][0] == "script"
        stamps = pd.DatetimeIndex(row[0].equity.index)
        found = re.search(rf'id="times-{place}">(.*?)</script>', made.text)
        times = pd.to_datetime(np.array(json.loads(found[1])) * 60, unit="s", utc=True)
        assert (times == stamps).all()
        for chart in ("equity", "price"):
            [attributes] = [a for _, a in page.tags if a.get("id") == f"{chart}-{place}"]
            assert attributes["data-times"] == f"times-{place}"


def fills(page: Page, place: int, seed: int) -> set[tuple[str, int, float]]:
    """(what, bar, price) of every mark."""
    return {
        (trace["name"].split(" (")[0], int(x), float(y))
        for trace in traces(page, f"price-{place}", meta={"seed": str(seed)})
        for x, y in zip(numbers(trace["x"]), numbers(trace["y"]), strict=True)
    }


def test_every_fill_is_marked_where_it_was(page, made):
    for place, row in enumerate(made.evaluations, start=1):
        for evaluation in row:
            steps, bars = evaluation.steps, list(evaluation.equity.index)
            expected = {
                (bars.index(fill.fill_time), float(np.float32(fill.fill_price)))
                for fill in steps[steps["fill_shares"] != 0].itertuples()
            }
            assert {mark[1:] for mark in fills(page, place, evaluation.seed)} == expected


def test_a_fill_is_marked_as_what_it_was(parts):
    parts.evaluations[0][1] = traded(parts.evaluations[0][1])
    page = parts.page()
    assert fills(page, 1, SEEDS[1]) == {  # an order fills in the bar after its decision
        ("buy", 1, 90.0),
        ("add", 6, 91.0),
        ("partial sale", 11, 92.0),
        ("sale", 16, 93.0),
        ("buy", 21, 94.0),
        ("forced sale", 26, 95.0),
        ("buy", 31, 96.0),
        ("sale at the end", 36, 97.0),
    }
    own = traces(page, "price-1", meta={"seed": str(SEEDS[1])})
    assert [t["name"] for t in own if t["name"].startswith("buy")] == ["buy (3)"]
    [forced] = [t for t in own if t["name"] == "forced sale (1)"]
    time = parts.evaluations[0][1].steps["fill_time"].iloc[25]
    assert forced["text"] == [
        f"{time:%Y-%m-%d %H:%M} UTC<br>SELL_ALL: 1.5 shares at $95<br>$600.00, costs $0.25<br>"
        "by STOP_LOSS<br>trade closed, profit $+12.50"
    ]
    sizes = {t["name"]: numbers(t["marker"]["size"]).max() for t in own}
    assert sizes["sale at the end (1)"] == max(sizes.values())  # most money


def test_the_line_of_closes_is_the_price(page, made):
    """Buy-and-hold is proportional to it between its two fills."""
    [line] = traces(page, "price-1", name="close")
    hold = made.evaluations[0][0].benchmark.to_numpy()
    price = numbers(line["y"])
    np.testing.assert_allclose(price[2:-1] / price[1], hold[2:-1] / hold[1], rtol=1e-5)


@pytest.mark.parametrize("kind", ["policy", "executed"])
def test_action_shares_are_those_of_the_evaluation_episodes(page, made, kind):
    for place, row in enumerate(made.evaluations, start=1):
        for evaluation in row:
            [bars] = traces(
                page, f"actions-{place}", name=kind, meta={"seed": str(evaluation.seed)}
            )
            shares = dict(zip(bars["y"], numbers(bars["x"]), strict=True))
            assert sum(shares.values()) == pytest.approx(100)
            table = evaluation.episodes
            for action, share in shares.items():
                count = table[f"{kind}_{action}"].sum() / table["steps"].sum()
                assert share == pytest.approx(100 * count, abs=1e-4)


def test_overrides_are_counted_by_reason(parts):
    tables = [e.episodes.assign(reason_REPEAT_LIMIT=500) for e in parts.evaluations[0]]
    parts.evaluations[0] = [
        dataclasses.replace(e, episodes=t)
        for e, t in zip(parts.evaluations[0], tables, strict=True)
    ]
    head, *rows = parts.page().table("why another action")
    assert head[1:] == [f"seed {seed}" for seed in SEEDS]
    assert rows[0][0] == "REPEAT_LIMIT"  # the most frequent one comes first
    assert "NONE" not in [row[0] for row in rows]
    for reason, *counts in rows:
        expected = [table[f"reason_{reason}"].sum() for table in tables]
        assert [int(count.replace(",", "")) for count in counts] == expected


def entropies(table: pd.DataFrame, seed: int, kind: str) -> np.ndarray:
    return table.loc[table["seed"] == seed, f"{kind}_action_entropy"].to_numpy()


def test_entropy_is_that_of_every_update(page, made):
    table = made.updates[made.updates["symbol"] == "BBB"]
    for seed in SEEDS:
        lines = traces(page, "entropy-2", name=f"seed {seed}")
        for kind, line in zip(("policy", "executed"), lines, strict=True):
            np.testing.assert_array_equal(numbers(line["x"]), [128, 256])
            np.testing.assert_allclose(numbers(line["y"]), entropies(table, seed, kind), rtol=1e-6)
    assert "never had to step in" in page.captions["entropy-2"]


def test_what_the_guard_did_is_marked(parts):
    table = parts.updates
    hit = (table["symbol"] == "AAA") & (table["seed"] == SEEDS[1]) & (table["update"] == 2)
    assert hit.sum() == 1
    parts.updates = table.assign(guard_triggered=hit, halt=hit.astype(int))
    page = parts.page()
    for name in ("guard", "halted"):
        [marks] = traces(page, "entropy-1", name=f"{name}, seed {SEEDS[1]}")
        assert numbers(marks["x"]).tolist() == [256]
        expected = table.loc[hit, "executed_action_entropy"]
        np.testing.assert_allclose(numbers(marks["y"]), expected, rtol=1e-6)
    assert "stepped in 1 time (triangles)" in page.captions["entropy-1"]
    assert f"Halted (crosses): seed {SEEDS[1]}" in page.captions["entropy-1"]
    assert "never had to step in" in page.captions["entropy-2"]
    [line] = page.figures["entropy-1"]["layout"]["shapes"]
    assert (line["y0"], line["y1"]) == (0.22, 0.22)
    parts.summary["config"]["guard"]["enabled"], parts.updates = False, table
    off = parts.page()
    assert "switched off" in off.captions["entropy-1"]
    assert not off.figures["entropy-1"]["layout"].get("shapes")


def test_a_seed_halted_by_a_loss_that_is_not_finite_is_marked(parts):
    hit = (parts.updates["symbol"] == "AAA") & (parts.updates["seed"] == SEEDS[0])
    parts.updates.loc[hit, ["policy_action_entropy", "executed_action_entropy"]] = np.nan
    parts.updates["halt"] = hit.astype(int)
    [marks] = traces(parts.page(), "entropy-1", name=f"halted, seed {SEEDS[0]}")
    assert (numbers(marks["x"]), numbers(marks["y"])) == ([128], [0])


def long_training(episodes: pd.DataFrame, updates: int) -> pd.DataFrame:
    """Episodes of as many updates, whose rewards differ from update to update."""
    parts = []
    for update in range(1, updates + 1):
        part = episodes.assign(update=update, steps_done=128 * update)
        for column in [c for c in episodes if c.startswith("reward")]:
            part[column] = episodes[column] + 0.01 * update
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_reward_by_component_is_a_mean_over_updates(parts):
    parts.episodes = long_training(parts.episodes, 70)
    page = parts.page()
    assert "each 3 updates" in page.captions["reward-1"]
    seed = SEEDS[2]
    own = parts.episodes[(parts.episodes["symbol"] == "AAA") & (parts.episodes["seed"] == seed)]
    stacks = traces(page, "reward-1", type="bar", meta={"seed": str(seed)})
    names = {c.removeprefix("reward_") for c in own if c.startswith("reward_")}
    assert {t["name"] for t in stacks} == names
    assert len(names) == 6
    for trace in [
        *stacks,
        *traces(page, "reward-1", mode="lines+markers", meta={"seed": str(seed)}),
    ]:
        column = f"reward_{trace['name']}" if trace["type"] == "bar" else "reward"
        x, y = numbers(trace["x"]), numbers(trace["y"])
        assert len(x) == math.ceil(70 / 3)
        for k in (0, 5, len(x) - 1):
            within = own[(own["update"] > 3 * k) & (own["update"] <= 3 * k + 3)]
            assert y[k] == pytest.approx(within[column].mean(), rel=1e-5)
            assert x[k] == within["steps_done"].max()


def test_reward_components_of_the_evaluation(page, made):
    _, *rows = page.table("weighted component")
    table = {name: cells for name, *cells in rows}
    for name in ("realized_pnl", "diversity_bonus"):
        for cell, evaluation in zip(table[name], made.evaluations[0], strict=True):
            mean, share = cell.split()
            assert mean == f"{evaluation.episodes[f'reward_{name}'].mean():+.3f}"
            size = {
                c: evaluation.episodes[c].abs().sum()
                for c in evaluation.episodes if c.startswith("magnitude_")
            }  # fmt: skip
            expected = size[f"magnitude_{name}"] / max(sum(size.values()), 1e-12)
            assert share == f"{100 * expected:.0f}%"


# ------------------------------------------------------------------------------- nothing to show


def idle(evaluation):
    """An agent that held cash from the first bar to the last."""
    steps = evaluation.steps.assign(action="HOLD", executed="HOLD", reason="NONE", closed=False)
    for column in ("fill_shares", "fill_value", "costs", "trade_profit", "shares"):
        steps[column] = 0.0
    steps["cash"] = steps["equity"] = 1e5
    return dataclasses.replace(
        evaluation,
        steps=steps,
        trades=evaluation.trades.head(0),
        equity=0 * evaluation.equity + 1e5,
    )


def test_agents_that_never_traded(parts):
    parts.evaluations[0] = [idle(e) for e in parts.evaluations[0]]
    parts.evaluations[1] = [traded(e) for e in parts.evaluations[1]]
    for agent in parts.agents[:3]:
        agent["evaluation"] |= {"trades": 0, "total_return": 0.0, "mean_exposure": 0.0}
        agent["evaluation"]["performance"] |= dict.fromkeys(
            ("sharpe_ratio", "hit_rate", "profit_factor")
        )
    page = parts.page()
    assert [t["name"] for t in page.figures["price-1"]["data"]] == ["close"]
    assert f"Seed {', '.join(map(str, SEEDS))} never traded." in page.captions["price-1"]
    assert "never traded" not in page.captions["price-2"]
    up, down = traces(page, "equity-1", name=f"seed {SEEDS[0]}")
    assert not numbers(up["y"]).any()
    assert not numbers(down["y"]).any()
    assert "Closed no trade" in page.text


def test_without_a_record_of_training(parts):
    parts.updates = parts.episodes = pd.DataFrame()
    page = parts.page()
    assert set(page.figures) == {f"{c}-{p}" for c in CHARTS[:3] for p in (1, 2)}
    assert "No training episode is on record" in page.captions["reward-1"]
    assert "No record of training" in page.captions["entropy-1"]


def test_a_seed_without_training_episodes(parts):
    parts.episodes = parts.episodes[parts.episodes["seed"] != SEEDS[0]]
    page = parts.page()
    assert f"No training episode of seed {SEEDS[0]}" in page.captions["reward-1"]
    for seed in SEEDS:
        drawn = traces(page, "reward-1", meta={"seed": str(seed)})
        assert bool(drawn) == (seed != SEEDS[0])


def test_components_without_weight_are_named(page, parts):
    for name in ("unrealized_pnl", "forced_exit", "log_wealth"):
        assert name in page.captions["reward-1"].split("Weight 0")[1]
    assert "hold" not in re.split(r"[ ,.]+", page.captions["reward-1"].split("Weight 0")[1])


def test_a_run_outside_a_checkout_with_nothing_exported_and_nothing_defined(parts):
    parts.summary["provenance"]["git_commit"] = None
    parts.summary["training"] |= {"steps_per_second": None, "skipped": True}
    for agent in parts.agents:
        agent["policy"] = None
        agent["checkpoint"]["validation_sharpe"] = None
        agent["evaluation"]["performance"] |= {"sharpe_ratio": None, "days": 0}
        agent["evaluation"]["reward_audit"]["rank_correlation"] = None
        for gate in agent["gates"]:
            gate["value"] = None
    text = parts.page().text
    assert "unknown: not run from a checkout" in text
    assert "not exported" in text
    assert "only evaluated" in text
    assert "nan" not in re.split(r"\W+", text.lower())
    assert "None" not in text


def test_files_that_differ_from_the_commit_are_said(parts):
    parts.summary["provenance"]["git_commit"] = "f" * 40
    assert "differed from this commit" not in parts.page().text
    parts.summary["provenance"]["git_commit"] += "+dirty"
    assert "differed from this commit" in parts.page().text


def test_one_agent_needs_no_choice_of_seeds(parts):
    parts.evaluations = [parts.evaluations[0][:1]]
    parts.summary["agents"] = parts.agents[:1]
    page = parts.page()
    assert [a["value"] for tag, a in page.tags if tag == "input"] == ["same", "own"]


# --------------------------------------------------------------------------------- hostile text


HOSTILE = "\"'><img src=x onerror=alert(1)></script><script>alert(1)</script>&amp;{{7*7}}"


def hostile(parts) -> SimpleNamespace:
    """Every text that a stranger's files and arguments decide."""
    summary = parts.summary
    symbols = summary["data"]["symbols"]
    symbols[HOSTILE] = symbols.pop("AAA")
    symbols[HOSTILE] |= {"source": HOSTILE, "notes": [HOSTILE]}
    symbols[HOSTILE]["sentiment"] = {"source": HOSTILE, "sha256": "0" * 64}
    summary["data"]["symbols"] = {HOSTILE: symbols.pop(HOSTILE), **symbols}
    summary["data"]["notes"] = [HOSTILE]
    summary["command"] = ["python", HOSTILE]
    summary["provenance"]["machine"]["device"] = HOSTILE
    for agent in parts.agents:
        agent["symbol"] = HOSTILE if agent["symbol"] == "AAA" else agent["symbol"]
        agent["warnings"] = [HOSTILE]
    parity = dict.fromkeys(("passed", "largest_logit_difference"), 1)
    parts.agents[0]["policy"] = {"path": HOSTILE, "sha256": "0" * 64, "parity": parity}
    parts.evaluations[0] = [dataclasses.replace(e, symbol=HOSTILE) for e in parts.evaluations[0]]
    for name in ("updates", "episodes"):
        table = getattr(parts, name)
        table["symbol"] = table["symbol"].replace("AAA", HOSTILE)
    return parts


def test_text_from_outside_stays_text(page, parts):
    bad = hostile(parts).page()
    assert [tag for tag, _ in bad.tags].count("script") == [t for t, _ in page.tags].count("script")
    assert "img" not in [tag for tag, _ in bad.tags]
    assert not [a for _, a in bad.tags if any(name.startswith("on") for name in a)]
    assert bad.text.count(HOSTILE) > 20
    assert {**bad.figures} == page.figures  # no figure has a word of it


# ------------------------------------------------------------------------------- long series


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400),
    points=st.integers(8, 60),
)
def test_thinning_keeps_ends_and_extremes(values, points):
    values = np.array(values)
    at = charts.extremes(values, points)
    assert len(at) <= points or len(values) <= points
    assert (np.diff(at) > 0).all()
    assert (at[0], at[-1]) == (0, len(values) - 1)
    assert values[at].min() == values.min()
    assert values[at].max() == values.max()
    if len(values) <= points:
        assert len(at) == len(values)


def test_a_long_split_is_thinned_and_said_to_be(parts, monkeypatch):
    whole = parts.page()
    monkeypatch.setattr(charts, "POINTS", 40)
    thin = parts.page()
    bars = len(parts.evaluations[0][0].equity)
    assert "shows the lowest and the highest" not in whole.captions["equity-1"]
    for chart in ("equity-1", "price-1"):
        assert (
            f"Of {bars} bars, every line shows the lowest and the highest" in thin.captions[chart]
        )
    for name in ("buy and hold", f"seed {SEEDS[0]}"):
        for full, few in zip(
            traces(whole, "equity-1", name=name), traces(thin, "equity-1", name=name), strict=True
        ):
            x, y = numbers(few["x"]).astype(int), numbers(few["y"])
            assert len(x) <= 40
            np.testing.assert_array_equal(y, numbers(full["y"])[x])
            assert (y.min(), y.max()) == (numbers(full["y"]).min(), numbers(full["y"]).max())
    marks = [t for t in whole.figures["price-1"]["data"] if t["name"] != "close"]
    assert [t for t in thin.figures["price-1"]["data"] if t["name"] != "close"] == marks

"""The playground in a real browser, against the real gateway over a stub model."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.gateway import screenshots
from tests.gateway.browsing import PHONE, Scorer, Visit, chromium, visit
from tests.gateway.policies import KEY, UNKNOWN_KEY, FixedSource, policy_of
from tests.gateway.served import Served, served, service_over
from tests.gateway.stub_backend import FORMAT, StubBackend

from rheostat.control import ControlFormat
from rheostat.errors import EndpointError
from rheostat.gateway.app import build_app
from rheostat.gateway.backend import ServedModel
from rheostat.gateway.keys import new_key
from rheostat.gateway.policy_source import CallerSource, LocalSource
from rheostat.records import Attribute

FORMATS = {"stub": FORMAT}
ATTACK = "<img src=x onerror=alert(1)><script>alert(2)</script>"
FIGURES: dict[str, Any] = {
    "schema": 1,
    "model": "stub",
    "method": "exmate",
    "headline": "exmate moves every dial.",
    "dials": [
        {"name": "helpfulness", "low": "unhelpful", "high": "helpful"},
        {"name": "safety", "low": "unsafe", "high": "safe"},
    ],
    "evaluations": [
        {
            "title": "Optimization evaluation",
            "note": "Held-out prompts.",
            "prompts": 48,
            "methods": [
                {
                    "name": name,
                    "fluency": None,
                    "dials": {
                        dial: {
                            **{
                                metric: {"value": value, "low": value - 0.02, "high": value + 0.02}
                                for metric in ("MP", "BT", "Err")
                            },
                            "reach": None,
                            "cross_effects": {other: {"value": -0.05, "low": -0.06, "high": -0.04}},
                        }
                        for dial, other in (("helpfulness", "safety"), ("safety", "helpfulness"))
                    },
                }
                for name, value in (("base", 0.02), ("exmate", 0.87))
            ],
            "curves": {
                dial: [
                    {"requested": level, "achieved": 0.1 + 0.8 * level, "low": 0.05, "high": 0.95}
                    for level in (0, 0.5, 1)
                ]
                for dial in ("helpfulness", "safety")
            },
        }
    ],
}  # fmt: skip


def policed(limits: str) -> FixedSource:
    """The callers of a policy of one tenant with these limits, and KEY."""
    return FixedSource(policy_of(limits, FORMATS))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@contextmanager
def gateway(
    backend: StubBackend | None = None,
    *,
    callers: CallerSource | None = None,
    figures: dict[str, Any] | None = None,
) -> Iterator[Served]:
    service = service_over(backend or StubBackend(), callers=callers, guard=Scorer())
    app = build_app(service, figures=lambda model: figures)
    with served(service, app=app) as found:
        yield found


@contextmanager
def playground(
    browser: Any, backend: StubBackend | None = None, *, callers: CallerSource | None = None, **how: Any
) -> Iterator[Visit]:
    """A visit of a fresh gateway, which ends without errors, and without a request that left the server."""
    with gateway(backend, callers=callers, figures=FIGURES) as found, visit(browser, found.url, **how) as visited:
        visited.page.wait_for_selector("body[data-ready]")
        yield visited
        assert visited.outside() == []
        assert visited.errors == []


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expectation

    return expectation(locator, "")


def ask(page: Any, text: str) -> None:
    page.locator("#prompt").fill(text)
    page.locator("#ask").click()
    expect(page.locator(".card.now[data-state=whole]")).to_have_count(1)


def drag(page: Any, dial: str, share: float) -> None:
    """Takes the slider's thumb to a share of the whole track, and lets it go."""
    thumb = page.locator(f"#dial-{dial}").bounding_box()
    track = page.locator(f".track:has(#dial-{dial})").bounding_box()
    low, high = (float(page.locator(f"#dial-{dial}").get_attribute(name)) for name in ("min", "max"))
    value = float(page.locator(f"#dial-{dial}").input_value())
    x = thumb["x"] + 8 + (thumb["width"] - 16) * (value - low) / (high - low)
    y = thumb["y"] + thumb["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(track["x"] + share * track["width"], y, steps=4)
    page.mouse.up()


def test_a_dial_that_is_let_go_has_the_answer_written_again(browser: Any) -> None:
    backend = StubBackend()
    with playground(browser, backend) as visited:
        page = visited.page
        ask(page, "How do I boil an egg?")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=1][harmless=1] How do I boil an egg?")
        drag(page, "safety", 0.24)
        expect(page.locator(".card.now .answer-text")).to_have_text(
            "[helpful=1][harmless=0.25] How do I boil an egg?"
        )
        expect(page.locator(".card.before .answer-text")).to_have_text(
            "[helpful=1][harmless=1] How do I boil an egg?"
        )
        expect(page.locator(".card.now mark")).to_have_text("[helpful=1][harmless=0.25]")
        expect(page.locator("[data-dial=safety] .dial-granted")).to_have_text("granted 0.25")
        expect(page.locator(".card.now .meter").nth(1)).to_have_text("safetyasked 0.25, achieved 0.30")
        page.locator(".more summary").click()
        page.locator("#reask").uncheck()
        drag(page, "safety", 1)
        expect(page.locator("[data-dial=safety] .dial-number")).to_have_text("1")
    assert [each.control["safety"] for each in backend.asks] == [1.0, 0.25]
    assert {each.seed for each in backend.asks} == {0}, "one seed, so that only the dials change the answer"


def test_the_packaged_model_answers_as_its_dials_stand(browser: Any) -> None:
    shop, lab = new_key(), new_key()
    with screenshots.gateway(shop, lab) as found, visit(browser, found.url, at=f"/#key={shop}") as visited:
        page = visited.page
        page.wait_for_selector("body[data-ready]")
        screenshots.talk(page)
        now, before = (page.locator(f".card.{when}") for when in ("now", "before"))
        assert now.locator(".answer-text").text_content() != before.locator(".answer-text").text_content()
        safety = [float(card.locator(".meter b").nth(1).text_content()) for card in (now, before)]
        assert safety[0] < safety[1]
        expect(page.locator("[data-dial=safety] .dial-granted")).to_have_text("granted 0.25")
        screenshots.measure(page)
        expect(page.locator(".served th").first).to_contain_text("exmate")
        expect(page.locator(".picture svg")).to_have_count(6)
        assert visited.errors == [] and visited.outside() == []


def test_a_conversation_goes_on_from_the_answer_that_stands(browser: Any) -> None:
    backend = StubBackend()
    with playground(browser, backend) as visited:
        page = visited.page
        page.locator(".more summary").click()
        page.locator("#system").fill("Be brief.")
        ask(page, "One?")
        drag(page, "helpfulness", 0)
        expect(page.locator(".card.before")).to_have_count(1)
        ask(page, "Two?")
        expect(page.locator(".turn.past")).to_have_count(1)
        said = [(turn.role, turn.content) for turn in backend.asks[-1].messages]
        assert said == [
            ("system", "Be brief."), ("user", "One?"), ("assistant", "[helpful=0][harmless=1] One?"), ("user", "Two?"),
        ]  # fmt: skip
        page.locator("#restart").click()
        expect(page.locator(".turn")).to_have_count(0)
        ask(page, "Three?")
        assert len(backend.asks[-1].messages) == 2


def test_no_thumb_enters_a_floor_or_a_ceiling(browser: Any) -> None:
    backend = StubBackend()
    callers = policed("floors: {safety: 0.5}, ceilings: {helpfulness: 0.75}")
    with playground(browser, backend, callers=callers, at=f"/#key={KEY}") as visited:
        page = visited.page
        expect(page.locator("[data-dial=safety]")).to_contain_text("Your floor is 0.5.")
        expect(page.locator("[data-dial=helpfulness]")).to_contain_text("Your ceiling is 0.75.")
        ask(page, "Hm?")
        drag(page, "safety", 0)
        expect(page.locator(".card.now .answer-text")).to_contain_text("[harmless=0.5]")
        page.locator("#dial-safety").press("Home")
        page.locator("#dial-safety").press("ArrowLeft")
        expect(page.locator("#dial-safety")).to_have_attribute("aria-valuetext", "0.5, between unsafe and safe")
        drag(page, "helpfulness", 0)
        expect(page.locator(".card.now .answer-text")).to_contain_text("[helpful=0]")
        drag(page, "helpfulness", 1)
        expect(page.locator(".card.now .answer-text")).to_contain_text("[helpful=0.75]")
        zone = page.locator("[data-dial=safety] .zone.floor").bounding_box()
        thumb = page.locator("#dial-safety").bounding_box()
        assert zone["width"] > 100 and thumb["x"] + 8 >= zone["x"] + zone["width"] - 1
    assert {each.control["safety"] for each in backend.asks} == {1.0, 0.5}
    assert all(each.control["helpfulness"] <= 0.75 for each in backend.asks)


def test_compare_fills_the_grid_and_says_each_number(browser: Any) -> None:
    backend = StubBackend()
    with playground(browser, backend) as visited:
        page = visited.page
        ask(page, "How do I boil an egg?")
        page.locator("#tab-compare").click()
        expect(page.locator("#compare-prompt")).to_have_value("How do I boil an egg?")
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)
        assert page.locator(".cell-number").all_text_contents()[:5] == ["0.10", "0.30", "0.50", "0.70", "0.90"]
        assert page.locator(".cell").evaluate_all("cells => cells.map((cell) => cell.dataset.band)")[:5] == [*"01345"]
        page.locator("#compare-colour").select_option("helpfulness")
        assert page.locator(".cell-number").all_text_contents()[::5] == ["0.90", "0.70", "0.50", "0.30", "0.10"]
        page.locator(".cell").nth(0).focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#cell-title")).to_have_text("helpfulness 0.75, safety 0.25")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#cell-text")).to_have_text("[helpful=0.5][harmless=0.25] How do I boil an egg?")
        page.keyboard.press("Escape")
        expect(page.locator("#cell-dialog")).to_be_hidden()
        expect(page.locator(".cell").nth(11)).to_be_focused()
    asked = {tuple(each.control.values()) for each in backend.asks[1:]}
    assert len(asked) == len(backend.asks[1:]) == 25


def test_compare_is_stopped_with_few_asked_at_once(browser: Any) -> None:
    backend = StubBackend()
    with gateway(backend, figures=FIGURES) as found, visit(browser, found.url) as visited:
        page = visited.page
        page.wait_for_selector("body[data-ready]")
        backend.gate = asyncio.Event()
        page.locator("#tab-compare").click()
        page.locator("#compare-prompt").fill("Well?")
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=writing]")).to_have_count(4)
        page.keyboard.press("Escape")
        expect(page.locator("#compare-status")).to_have_text("Stopped after 0 of 25 answers.")
        expect(page.locator(".cell[data-state=waiting], .cell[data-state=writing]")).to_have_count(0)
        assert page.locator(".cell[data-state=empty]").count() >= 21, "what had text keeps it, the rest is empty"
        expect(page.locator("#compare-run")).to_be_visible()
        backend.gate = None
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)


def test_an_answer_is_stopped(browser: Any) -> None:
    backend = StubBackend()
    with playground(browser, backend) as visited:
        page = visited.page
        backend.gate = asyncio.Event()
        page.locator("#prompt").fill("One two three")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=1][harmless=1]")
        expect(page.locator("#stop")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".card.now .card-note")).to_have_text("Stopped.")
        expect(page.locator("#stop")).to_be_hidden()
        backend.gate = None
        page.locator("#dial-safety").press("ArrowLeft")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=1][harmless=0.75] One two three")


def test_measure_shows_the_figures(browser: Any) -> None:
    with playground(browser) as visited:
        page = visited.page
        page.locator("#tab-measure").click()
        expect(page.locator(".served").first).to_contain_text("exmate")
        expect(page.locator(".served .value").first).to_have_text("0.87")
        expect(page.locator(".served .interval").first).to_have_text("0.85 to 0.89")
        expect(page.locator(".picture svg")).to_have_count(2)
        name = page.locator(".picture svg").first.get_attribute("aria-label")
        assert "0 gives 0.10, 0.5 gives 0.50, 1 gives 0.90" in name
        expect(page.locator(".words dt").first).to_have_text("MP")


def test_measure_says_where_nothing_was_measured(browser: Any) -> None:
    with gateway() as found, visit(browser, found.url) as visited:
        visited.page.wait_for_selector("body[data-ready]")
        visited.page.locator("#tab-measure").click()
        expect(visited.page.locator("#measured h1")).to_have_text("Nothing was measured for this model.")


def test_all_is_done_with_the_keyboard_alone(browser: Any) -> None:
    with playground(browser) as visited:
        page = visited.page
        expect(page.locator("#prompt")).to_be_focused()
        page.keyboard.type("How?")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".card.now[data-state=whole]")).to_have_count(1)
        expect(page.locator("#live")).to_have_text("[helpful=1][harmless=1] How?")
        reached = set()
        for _ in range(16):
            page.keyboard.press("Tab")
            focused = page.evaluate(
                "() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
            )
            reached.add(focused[0])
            assert focused[1] != "none" or focused[0].startswith("dial-") or focused[0] == "", focused
        assert {"tab-talk", "key-button", "theme-button", "dial-helpfulness", "restart", "code"} <= reached
        page.locator("#dial-helpfulness").focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=0.5][harmless=1] How?")
        page.locator("#tab-talk").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#panel-compare")).to_be_visible()
        expect(page.locator("#tab-compare")).to_be_focused()
        page.keyboard.press("End")
        expect(page.locator("#panel-measure")).to_be_visible()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#panel-talk")).to_be_visible()


def test_a_phone_needs_no_scrolling_sideways(browser: Any) -> None:
    with playground(browser, size=PHONE) as visited:
        page = visited.page

        def is_as_wide_as_the_screen() -> bool:
            return bool(page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"))

        assert is_as_wide_as_the_screen()
        ask(page, "Averyveryverylongwordthatnobodywouldeverbreakinthemiddle" * 3)
        drag(page, "safety", 0.5)
        expect(page.locator(".card.before")).to_have_count(1)
        assert is_as_wide_as_the_screen()
        page.locator(".more summary").click()
        assert is_as_wide_as_the_screen()
        page.locator("#tab-compare").click()
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)
        assert is_as_wide_as_the_screen()
        expect(page.locator(".cell-number").nth(24)).to_be_visible()
        page.locator(".cell").nth(3).click()
        assert is_as_wide_as_the_screen()
        page.keyboard.press("Escape")
        page.locator("#tab-measure").click()
        expect(page.locator(".served").first).to_be_visible()
        assert is_as_wide_as_the_screen()


def test_what_is_asked_and_answered_stays_text(browser: Any) -> None:
    with playground(browser) as visited:
        page = visited.page
        ask(page, ATTACK)
        drag(page, "safety", 0)
        expect(page.locator(".card.now .answer-text")).to_have_text(f"[helpful=1][harmless=0] {ATTACK}")
        expect(page.locator(".question")).to_have_text(ATTACK)
        page.locator("#code").click()
        expect(page.locator("#panel-curl pre")).to_contain_text("onerror=alert(1)")
        page.keyboard.press("Escape")
        page.locator("#tab-compare").click()
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)
        page.locator(".cell").nth(0).click()
        expect(page.locator("#cell-text")).to_contain_text(ATTACK)
        assert page.locator("img, main script").count() == 0
        assert page.locator("[style*=expression], [onerror]").count() == 0


def test_a_wrong_key_is_said_and_a_right_one_is_kept_in_the_tab_only(browser: Any) -> None:
    with gateway(callers=LocalSource(FORMATS, key=KEY)) as found:
        with visit(browser, found.url, at=f"/#key={UNKNOWN_KEY}") as visited:
            page = visited.page
            expect(page.locator("#key-title")).to_have_text("The server does not know this key")
            assert page.url == f"{found.url}/"
            page.locator("#key-input").fill(KEY)
            page.keyboard.press("Enter")
            page.wait_for_selector("body[data-ready]")
            ask(page, "Hm?")
            kept = page.evaluate("() => [JSON.stringify({...localStorage}), document.cookie, {...sessionStorage}]")
            assert kept == ["{}", "", {"rheostat-key": KEY}]
            page.locator("#code").click()
            assert KEY not in page.content()
        with visit(browser, found.url) as visited:
            expect(visited.page.locator("#key-message")).to_contain_text("gives you one")
            expect(visited.page.locator("#key-input")).to_be_focused()
        with visit(browser, found.url, at=f"/#key={KEY}") as visited:
            visited.page.wait_for_selector("body[data-ready]")
            assert visited.page.url == f"{found.url}/" and visited.errors == []


def test_too_many_requests_are_waited_for_and_said(browser: Any) -> None:
    callers = policed("requests_per_minute: 1")
    with gateway(callers=callers) as found, visit(browser, found.url, at=f"/#key={KEY}") as visited:
        page = visited.page
        page.wait_for_selector("body[data-ready]")
        ask(page, "One?")
        page.locator("#dial-safety").press("ArrowLeft")
        expect(page.locator(".card.now .card-note")).to_contain_text("The server is busy. Asking again in ")
        expect(page.locator(".card.before")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator(".card.now .card-note")).to_have_text("Stopped.")


@pytest.mark.parametrize("after", [0, 1])
def test_a_model_that_fails_is_said_in_place(browser: Any, after: int) -> None:
    fault = EndpointError("refused", hint="look", status=500)
    backend = StubBackend(fails_with=fault, fails_after=after)
    with gateway(backend) as found, visit(browser, found.url) as visited:
        page = visited.page
        page.wait_for_selector("body[data-ready]")
        page.locator("#prompt").fill("Hm?")
        page.locator("#ask").click()
        note = page.locator(".card.now .card-note.failed")
        expect(note).to_contain_text("The answer broke off." if after else "The model behind the server failed.")
        backend.fails_with = None
        page.locator("#dial-safety").press("ArrowLeft")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=1][harmless=0.75] Hm?")


def test_a_server_that_is_gone_is_said(browser: Any) -> None:
    with gateway() as found, visit(browser, found.url) as visited:
        page = visited.page
        page.wait_for_selector("body[data-ready]")
        found.stop()
        found.thread.join(30)
        page.locator("#prompt").fill("Hm?")
        page.locator("#ask").click()
        expect(page.locator(".card.now .card-note")).to_have_text("The server cannot be reached. Is it still running?")


def test_a_third_dial_has_its_slider_and_its_place_in_the_grid(browser: Any) -> None:
    tone = Attribute("tone", "polite", 2, "how polite it is", "rude", "polite", {})
    levels = {"helpfulness": (0.0, 1.0), "safety": (0.0, 0.5, 1.0), "tone": (0.0, 0.1, 1.0)}
    dials = ControlFormat((*FORMAT.attributes, tone), levels)

    class Three(StubBackend):
        @staticmethod
        def text(ask: Any) -> str:
            return dials.render(ask.control)

    backend = Three(models={"stub": ServedModel("stub", dials, 1024)})
    with playground(browser, backend) as visited:
        page = visited.page
        ask(page, "Hm?")
        page.locator("#dial-tone").press("ArrowLeft")
        expect(page.locator(".card.now .answer-text")).to_have_text("[helpful=1][harmless=1][polite=0.1]")
        page.locator("#tab-compare").click()
        page.locator("#compare-columns").select_option("tone")
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(6)
        page.locator("#compare-rows").select_option("tone")
        expect(page.locator("#compare-columns")).to_have_value("helpfulness")
    assert {(each.control["helpfulness"], each.control["tone"]) for each in backend.asks[2:]} == {
        (h, t) for h in (0, 1) for t in (0, 0.1, 1)
    }
    assert {each.control["safety"] for each in backend.asks} == {1}


def test_a_tenant_without_system_turns_or_scores_is_offered_none(browser: Any) -> None:
    callers = policed("system_turn: refuse, scores: false")
    with playground(browser, callers=callers, at=f"/#key={KEY}") as visited:
        page = visited.page
        page.locator(".more summary").click()
        expect(page.locator("#system-field")).to_be_hidden()
        expect(page.locator("#score-field")).to_be_hidden()
        ask(page, "Hm?")
        expect(page.locator(".card.now .meter").nth(0)).to_have_text("helpfulnessasked 1")
        page.locator("#tab-compare").click()
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)
        expect(page.locator("#compare-legend")).to_be_hidden()
        expect(page.locator("[data-band].cell")).to_have_count(0)


def test_the_code_shown_asks_the_same(browser: Any) -> None:
    with playground(browser) as visited:
        page = visited.page
        page.locator("#dial-safety").press("ArrowLeft")
        page.locator("#prompt").fill("It's \"so\"?")
        page.locator("#code").click()
        curl = page.locator("#panel-curl pre").text_content()
        assert "Authorization: Bearer $RHEOSTAT_KEY" in curl and "It'\\''s" in curl
        body = json.loads(curl.split("-d '", 1)[1][:-1].replace("'\\''", "'"))
        assert body["safety"] == 0.75 and body["messages"] == [{"role": "user", "content": 'It\'s "so"?'}]
        page.locator("#tab-curl").press("ArrowRight")
        program = page.locator("#panel-python pre").text_content()
        compile(program, "shown", "exec")
        assert 'extra_body={"helpfulness": 1, "safety": 0.75}' in program


CONTRAST = """() => {
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const over = (colours) => {
    paint.clearRect(0, 0, 1, 1);
    for (const colour of colours) { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); }
    return [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim() || !node.checkVisibility() || node.closest('.unseen')) continue;
    const behind = [];
    for (let each = node; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const isText = node instanceof SVGElement ? 'fill' : 'color';
    const back = over(behind);
    const fore = over([`rgb(${back})`, getComputedStyle(node)[isText]]);
    const [a, b] = [light(fore), light(back)].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walk.currentNode.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(browser: Any, theme: str) -> None:
    """WCAG's contrast ratio, 4.5 at least, of every text that is shown."""
    with playground(browser, theme=theme) as visited:
        page = visited.page

        def faint() -> list[tuple[float, str]]:
            found = page.evaluate(CONTRAST)
            assert len(found) > 10
            return [(round(ratio, 2), text) for ratio, text in found if ratio < 4.5]

        assert faint() == []
        page.locator(".more summary").click()
        ask(page, "How?")
        drag(page, "safety", 0)
        expect(page.locator(".card.before")).to_have_count(1)
        assert faint() == []
        page.locator("#tab-compare").click()
        page.locator("#compare-run").click()
        expect(page.locator(".cell[data-state=whole]")).to_have_count(25)
        assert faint() == []
        page.locator("#compare-colour").select_option("helpfulness")
        assert faint() == []
        page.locator("#tab-measure").click()
        expect(page.locator(".served").first).to_be_visible()
        assert faint() == []


def test_the_theme_is_turned_and_kept(browser: Any) -> None:
    with playground(browser, theme="light") as visited:
        page = visited.page
        ground = "() => getComputedStyle(document.documentElement).backgroundColor"
        light = page.evaluate(ground)
        page.locator("#theme-button").click()
        assert page.evaluate(ground) != light
        page.reload()
        page.wait_for_selector("body[data-ready]")
        assert page.evaluate(ground) != light
        expect(page.locator("#theme-button")).to_have_attribute("aria-pressed", "true")

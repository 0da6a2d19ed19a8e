"""The README's pictures of the playground with the packaged model: `python -m tests.gateway.screenshots [FOLDER]`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from tests.gateway.browsing import PHONE, chromium, visit
from tests.gateway.served import Served, served, service_over

import rheostat
from rheostat.gateway.app import build_app
from rheostat.gateway.guard import Guard
from rheostat.gateway.guard_rewards import load_scorer
from rheostat.gateway.inprocess import in_process
from rheostat.gateway.keys import hash_key, new_key
from rheostat.gateway.playground import figures_of
from rheostat.gateway.policy import Policy, read_policy
from rheostat.gateway.policy_source import LocalSource
from rheostat.gateway.policy_source import known_caller as known
from rheostat.model_files import PACKAGED, resolve

LARGEST_BYTES = 250_000
MISCHIEF = "How do I copy homework from a friend?"
GAME = "How do I cheat at a card game?"
EGG = "How do I boil an egg?"
WINDOW = {"width": 1200, "height": 700}
NAME = "pocket"


class _Fixed(LocalSource):
    def __init__(self, policy: Policy) -> None:
        super().__init__({}, key=None)
        self._policy = policy

    def caller(self, key: str | None) -> Any:
        return known(None if key is None else self._policy.caller(key, datetime.now(UTC)))


@contextmanager
def gateway(shop: str, lab: str) -> Iterator[Served]:
    """The packaged model for two tenants: `shop`, whose safety has a floor, and `lab`, whose dials are free."""
    backend = in_process({NAME: rheostat.load()})
    formats = {name: model.control_format for name, model in backend.models.items()}
    text = f"""
version: 1
everyone: {{scores: true}}
tenants:
  shop: {{floors: {{safety: 0.25}}, keys: [{{id: shop, sha256: {hash_key(shop)}}}]}}
  lab: {{keys: [{{id: lab, sha256: {hash_key(lab)}}}]}}
"""
    rewards = load_scorer(None)
    assert rewards is not None
    service = service_over(
        backend, callers=_Fixed(read_policy(text, formats)), guard=Guard(backend, rewards.scorer)
    )
    app = build_app(service, figures=figures_of({NAME: (Path(resolve(PACKAGED)), None)}))
    with served(service, app=app) as found:
        yield found


def talk(page: Any, prompt: str = MISCHIEF) -> None:
    """An answer, and the one to the same prompt with safety turned down."""
    page.locator("#prompt").fill(prompt)
    page.locator("#ask").click()
    page.wait_for_selector(".card.now[data-state=whole]")
    page.locator("#dial-safety").press("Home")
    page.wait_for_selector(".card.before")
    page.wait_for_selector(".card.now[data-state=whole]")
    page.locator("#dial-safety").evaluate("slider => slider.blur()")


def talk_of_an_egg(page: Any) -> None:
    """The same of a harmless matter."""
    talk(page, EGG)


def compare(page: Any) -> None:
    """The whole grid."""
    page.locator("#tab-compare").click()
    page.locator("#compare-prompt").fill(GAME)
    page.locator("#compare-run").click()
    page.wait_for_selector("#compare-run", state="visible")
    page.wait_for_selector(".cell:not([data-state=whole])", state="detached")
    page.mouse.move(0, 0)


def measure(page: Any) -> None:
    """The figures, from the top."""
    page.locator("#tab-measure").click()
    page.wait_for_selector(".figures")


def keep(page: Any, path: Path) -> None:
    """Saves a picture of 256 colours, which a page of flat colours does not miss."""
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")  # noqa: T201
    assert size <= LARGEST_BYTES, (path, size)


def main(folder: Path) -> None:
    """Takes all pictures."""
    shop, lab = new_key(), new_key()
    with gateway(shop, lab) as found, chromium() as browser:
        for name, key, show, how in (
            ("playground", shop, talk, {"size": WINDOW}),
            ("playground-compare", lab, compare, {"size": {"width": 1200, "height": 900}}),
            ("playground-measure", lab, measure, {"size": {"width": 1200, "height": 940}}),
            ("playground-phone", shop, talk_of_an_egg, {"size": PHONE}),
            ("playground-dark", shop, talk, {"size": WINDOW, "theme": "dark"}),
        ):
            with visit(browser, found.url, at=f"/#key={key}", scale=2, **how) as visited:
                visited.page.wait_for_selector("body[data-ready]")
                show(visited.page)
                keep(visited.page, folder / f"{name}.png")
                assert visited.errors == [], visited.errors


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs"))

"""The suite's prompts: harmful ones, and harmless ones that look harmful, from files of either or from one of both."""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rheostat.config import RunConfig, SourceConfig, SuiteConfig
from rheostat.errors import InputError, PromptFileError
from rheostat.model_files import identity
from rheostat.models import load_reader
from rheostat.prompt_fit import fits
from rheostat.prompt_sources import digest, listed
from rheostat.prompts import prompt_id, read_prompts
from rheostat.records import Message, Prompt
from rheostat.rundir import RunDirectory, Stage

HARMFUL, HARMLESS = "harmful", "harmless"
KINDS = (HARMFUL, HARMLESS)
STAGE = "suite/prompts"
_LABELS = {"unsafe": HARMFUL, "harmful": HARMFUL, "safe": HARMLESS, "harmless": HARMLESS}

_logger = logging.getLogger(__name__)


def collect_suite(run: RunDirectory, config: RunConfig) -> Stage:
    """Write the suite's prompts, a shard a kind: those that fit the model and are no training prompts.

    A stage of its own: nothing that is generated or trained depends on it. Raises `PromptFileError`, and `InputError`
    where a kind has no prompt.
    """
    assert config.suite is not None
    options = config.suite
    trained_on = run.finished("prompts")
    stage = run.stage(
        STAGE,
        inputs={
            "suite": options.model_dump(include={"prompts", "harmful", "harmless", "limit"}),
            "files": {source.source: digest(source) for _, source in suite_sources(options)},
            "prompts": trained_on.fingerprint,
            "model": identity(config.model),
        },
    )
    if stage.done:
        return stage
    seen = {prompt.id for prompt in trained_on.rows(Prompt, prefix="train")}
    reader = load_reader(config.model)
    left_out = dict.fromkeys(("in_training", "too_long"), 0)
    counts = {}
    for kind, prompts in read_suite(config).items():
        fresh = [prompt for prompt in prompts if prompt.id not in seen]
        fitting = [prompt for prompt in fresh if fits(prompt, reader, config)]
        left_out["in_training"] += len(prompts) - len(fresh)
        left_out["too_long"] += len(fresh) - len(fitting)
        chosen = fitting[: options.limit]
        if not chosen:
            raise InputError(
                f"suite: got {len(prompts)} {kind} prompts, none of them usable ({left_out['in_training']} prompts of "
                f"the suite are training prompts, {left_out['too_long']} are too long); allowed is at least one",
                hint="give the suite prompts of its own, apart from those of `prompts.train`",
            )
        stage.write(chosen, Prompt, prefix=kind)
        counts[kind] = len(chosen)
    if any(left_out.values()):
        _logger.warning(
            "suite: left out %d prompts that are training prompts and %d that are too long", *left_out.values()
        )
    stage.finish({**counts, **left_out})
    return stage


def read_suite(config: RunConfig) -> dict[str, list[Prompt]]:
    """All prompts of each kind in sampling order: every prefix is an even sample. Raises `PromptFileError`."""
    options = config.suite
    assert options is not None
    if options.prompts is not None:
        return _labelled(Path(options.prompts))
    strict, mix = config.prompts.strict, config.prompts.mix
    given = {HARMFUL: options.harmful, HARMLESS: options.harmless}
    return {
        kind: list(read_prompts(sources, split=kind, strict=strict, mix=mix).prompts)
        for kind, sources in given.items()
        if sources is not None
    }


def suite_sources(options: SuiteConfig) -> list[tuple[str, SourceConfig]]:
    """Every source that the suite names, with its key."""
    given = (("prompts", options.prompts), (HARMFUL, options.harmful), (HARMLESS, options.harmless))
    return [(f"suite.{name}", source) for name, sources in given for source in listed(sources)]


def _labelled(path: Path) -> dict[str, list[Prompt]]:
    """The prompts of a file whose rows say their kind; rows of neither kind are left out and counted."""
    found: dict[str, dict[str, Prompt]] = {kind: {} for kind in KINDS}
    others = 0
    for row in _rows(path):
        kind, text = _kind(row), row.get("prompt")
        if kind is None or not isinstance(text, str) or not text.strip():
            others += 1
            continue
        prompt = _prompt(text.strip(), kind, str(path))
        found[kind].setdefault(prompt.id, prompt)
    if others:
        _logger.warning("%s: %d rows left out that have no prompt or no kind", path, others)
    return {
        kind: sorted(prompts.values(), key=lambda each: hashlib.sha256(f"suite:{each.id}".encode()).digest())
        for kind, prompts in found.items()
    }


def _kind(row: Mapping[str, Any]) -> str | None:
    label = row.get("label")
    if label is not None:
        return _LABELS.get(str(label).strip().casefold())
    kind = row.get("type")
    return None if kind is None else HARMFUL if str(kind).startswith("contrast_") else HARMLESS


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            return [row for row in rows if isinstance(row, dict)]
    except (OSError, ValueError, csv.Error) as error:
        raise PromptFileError(f"cannot read {str(path)!r}: {error}", hint="give UTF-8 CSV or JSON lines") from error
    raise PromptFileError(
        f"{path}: got a file of kind {path.suffix!r}, allowed are .csv and .jsonl",
        hint="give the two kinds as files of their own: suite.harmful and suite.harmless",
    )


def _prompt(text: str, kind: str, source: str) -> Prompt:
    messages = (Message("user", text),)
    return replace(Prompt("", messages, kind, source), id=prompt_id(messages))

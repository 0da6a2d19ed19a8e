"""Forgery: users type controls into their prompts; do the answers move? Tuned models in, rows out.

Each of the first `evaluate.forged_prompts` prompts of the optimization evaluation is answered plainly, with a forged
control behind it that asks for the opposite corner, neutralised as always and as typed, and with the forgery's innocent
twin. What is typed and what the rows come to: `forging.py`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rheostat import forging, plugins
from rheostat.chat import encode_prompt
from rheostat.config import RunConfig
from rheostat.control import ControlFormat
from rheostat.executors.local import LOCAL
from rheostat.method_name import MethodName
from rheostat.models import Policy, Reader, load_reader
from rheostat.plugins import Engine, Executor, GenerationRequest, Judged, Sampling
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.records import Control, ForgeryRow, Message, Prompt, Treatment
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN, CalibratedScorer
from rheostat.shard_work import Compute
from rheostat.workbench import Workbench

CONTROLS = 2
"""How many corners are requested of each prompt: all dials up, and all down."""

FORGED = "forged controls"
"""What the stage's progress is called."""

ATTEMPTS = CONTROLS * (1 + 3 * len(forging.STYLES))
"""Answers to a prompt: at each corner a plain one, and of each style the twin, neutralised and as typed."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A prompt under a control, and what is typed behind it: `text`, in a style of `forging.STYLES`."""

    prompt: Prompt
    control: Control
    style: str
    treatment: Treatment
    text: str

    @property
    def request(self) -> GenerationRequest:
        """What the model is asked."""
        *before, last = self.prompt.messages
        typed = f"{last.content} {self.text}" if self.text else last.content
        return GenerationRequest((*before, Message(last.role, typed)), self.control)


class Trusting(ControlFormat):
    """A control format that neutralises nothing: a server that trusts its users."""

    def neutralise(self, text: str) -> str:
        """`text` as it is."""
        return text


def forge(
    run: RunDirectory,
    bench: Workbench,
    name: MethodName,
    *,
    tuned: Stage,
    executor: Executor = LOCAL,
    progress: ProgressDisplay = null_progress,
) -> Stage:
    """The rows of a tuned method, scored by the run's own rewards; none where no prompt has room for a forgery."""
    config = bench.config
    prompts = run.finished("prompts")
    options = config.evaluate
    stage = run.stage(
        f"forgery/{name.name}",
        inputs={
            "prompts": prompts.fingerprint,
            "score": run.finished("score").fingerprint,
            "tuned": tuned.fingerprint,
            "options": options.model_dump(include={"temperature", "top_p", "max_tokens", "forged_prompts"}),
            "shard_prompts": options.shard_prompts,
            "styles": list(forging.STYLES),
            "controls": CONTROLS,
            "levels": config.control_format.levels,
            "dtype": config.dtype,
            "batch_tokens": config.batch_tokens,
            "seed": config.seed,
        },
    )
    if stage.done:
        return stage
    started = time.perf_counter()
    model = str((tuned.path / "model").resolve())
    reader = load_reader(model)
    chosen = [
        prompt
        for prompt in prompts.read(Prompt, prefix="optimization")
        if leaves_room(prompt, reader, config)
    ]
    chosen = chosen[: options.forged_prompts]
    stage.map(
        chosen,
        ForgeryWork(bench, model, CONTROLS),
        key=lambda prompt: prompt.id,
        row_type=ForgeryRow,
        shard_size=options.shard_prompts,
        seed=config.seed,
        label=f"{FORGED} {name.name}",
        unit="prompts",
        progress=progress,
        executor=executor,
    )
    stage.finish({"prompts": len(chosen)})
    run.record_timing(stage.name, time.perf_counter() - started, prompts=len(chosen))
    return stage


@dataclass(frozen=True, slots=True)
class ForgeryWork:
    """Prompts in; out come the answers of the tuned model in the folder `tuned` to every attempt."""

    bench: Workbench
    tuned: str
    controls: int

    def open(self) -> Compute[Prompt]:
        """Loads the model and the rewards."""
        bench = self.bench
        arena = Arena(bench.tuned(self.tuned), bench.config, bench.scorer(OWN))
        return lambda shard, seed: arena.answer(shard, self.controls, seed)


class Arena:
    """A tuned model behind a server that neutralises, and behind one that does not."""

    def __init__(self, policy: Policy, config: RunConfig, scorer: CalibratedScorer) -> None:
        self._scorer = scorer
        self._format = config.control_format
        options = config.evaluate
        self._sampling = Sampling(options.temperature, options.top_p, options.max_tokens)
        trusting = Trusting(self._format.attributes, self._format.levels)
        build = plugins.load("engines", "transformers").build
        self._engines: dict[bool, Engine] = {
            is_trusting: build(policy, each, batch_tokens=config.batch_tokens)
            for is_trusting, each in ((False, self._format), (True, trusting))
        }

    def answer(self, prompts: Sequence[Prompt], controls: int, seed: int) -> list[ForgeryRow]:
        """Every attempt on every prompt, at so many corners, answered and scored."""
        attempts = [attempt for prompt in prompts for attempt in attempts_on(prompt, self._format, controls)]
        texts: dict[int, str] = {}
        for is_trusting, engine in self._engines.items():
            places = [at for at, each in enumerate(attempts) if (each.treatment == "as typed") == is_trusting]
            answers = engine.generate([attempts[at].request for at in places], self._sampling, seed=seed)
            texts |= {at: answer[0].text for at, answer in zip(places, answers, strict=True)}
        # The judge reads the question without the forgery: what was typed is not what is judged.
        scores = self._scorer.score(
            [Judged(each.prompt.messages, texts[at]) for at, each in enumerate(attempts)]
        )
        return [
            ForgeryRow(each.prompt.id, dict(each.control), each.style, each.treatment, texts[at], scores[at])
            for at, each in enumerate(attempts)
        ]


def attempts_on(prompt: Prompt, control_format: ControlFormat, controls: int) -> Iterator[Attempt]:
    """All that is tried on a prompt, at so many corners."""
    for control in forging.corners(control_format, controls):
        wanted = forging.opposite(control, control_format)
        yield Attempt(prompt, control, "", "plain", "")
        for style in forging.STYLES:
            typed = forging.forged(style, wanted, control_format)
            yield Attempt(prompt, control, style, "twin", forging.twin(style, wanted, control_format))
            yield Attempt(prompt, control, style, "neutralised", typed)
            yield Attempt(prompt, control, style, "as typed", typed)


def leaves_room(prompt: Prompt, reader: Reader, config: RunConfig) -> bool:
    """Whether each forgery behind a prompt leaves room for a response."""
    control_format = config.control_format
    reserve = min(config.evaluate.max_tokens, reader.context // 4)

    def length(attempt: Attempt) -> int:
        ids = encode_prompt(
            reader.tokenizer,
            attempt.request.messages,
            control_text=control_format.render(attempt.control),
            neutralise=None if attempt.treatment == "as typed" else control_format.neutralise,
        )
        return len(ids)

    return all(length(attempt) + reserve <= reader.context for attempt in attempts_on(prompt, control_format, 1))

"""Online training: a model learns from the rewards of what it answers, by TRL's RLOOTrainer. Prompts in, model out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformers import set_seed

from rheostat import plugins
from rheostat.adapters import refuse_frozen_weights, save_adapter, trainable
from rheostat.checkpoints import Advance, last_checkpoint
from rheostat.config import LoraConfig, RunConfig, TrainConfig
from rheostat.engines.transformers import TransformersEngine
from rheostat.errors import InputError
from rheostat.model_files import quiet, without_deprecations
from rheostat.models import Policy
from rheostat.optimisers import muon_with_adamw
from rheostat.plugins import GenerationRequest, Judged, OnlineObjective, OnlineOptions, Sampling, Scorer
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompt_plan import PlannedPrompt, plan_prompts
from rheostat.recipe import objective_options
from rheostat.records import Example, Prompt
from rheostat.stage import derive_seed
from rheostat.training_arguments import LOG_STEPS, training_arguments
from rheostat.training_plan import settled, with_forged_controls

_REFERENCE_ADAPTER = "ref"
"""What TRL calls the copy of an adapter that it keeps as its reference."""


def train_online(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    objective: str,
    config: RunConfig,
    scorer: Scorer,
    checkpoints: Path,
    adapter: Path | None = None,
    label: str = "train",
    progress: ProgressDisplay = null_progress,
) -> dict[str, Any]:
    """Train `policy.model` in place on its own answers to `prompts`; resumes from `checkpoints`.

    Prompts and controls are planned (`prompt_plan.py`); the engine answers them as it answers everything here, so that
    a prompt with its control is the tokens that a tuned model reads; `scorer` scores the answers. The reference of the
    KL penalty is the model as it comes, which TRL reads from where it was loaded. `train.forged_share` of the prompts
    hold a forged control too; answers to them are scored without it.

    Figures: steps, prompts a step and in all, generated tokens, and the log: per step, averaged over ten, the reward
    and its components, the divergence from the reference and the entropy in nats (of a response, of a token), tokens
    generated and seconds. Raises `InputError` where TRL is not installed, or where `train.accumulation` does not
    divide a step's responses; `ModelError` for weights that cannot be trained.
    """
    trl = _trl()
    parameters = policy.model.num_parameters()
    module: OnlineObjective = plugins.load("objectives", objective)
    train = settled(
        config.train.of(objective),
        parameters,
        is_quantized=config.quantization is not None,
        adapter=module.NEEDS.adapter,
    )
    config = config.model_copy(update={"train": train})
    refuse_frozen_weights(policy, train.lora is not None)
    options: OnlineOptions = objective_options(train, objective)
    asked = _Asked.of(policy, prompts, module, options, config)
    steps = len(asked.planned) // options.prompts
    set_seed(config.seed)  # adapters are initialised at random
    on_cpu = policy.device.type == "cpu"
    with (
        trainable(policy, train) as model,
        quiet(),
        without_deprecations(),  # TRL asks a model in transformers' older words
        progress.task(label, steps, unit="steps") as advance,
    ):
        trainer = trl.PlannedRLOOTrainer(
            model,
            trl.RLOOConfig(**_arguments(train, options, config, checkpoints, steps=steps, on_cpu=on_cpu)),
            planned=len(asked.planned),
            tokenizer=policy.tokenizer,
            answer=asked.answer,
            components=asked.components,
            rewarded=_Judge(asked, scorer),
            optimizer=_muon(model, train),
            callbacks=[Advance(advance)],
        )
        trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        trained_parameters = sum(each.numel() for each in model.parameters() if each.requires_grad)
        vars(policy.model).pop("forward", None)  # TRL's, beside the model's own
        if train.lora is not None:
            if options.beta:
                model.delete_adapter(_REFERENCE_ADAPTER)
            if adapter is not None:
                save_adapter(model, adapter)
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(log) == steps, (len(log), steps)
    return {
        "steps": steps,
        "prompts": len(prompts),
        "prompts_per_step": options.prompts,
        "responses": steps * options.prompts * options.samples,
        "generated_tokens": sum(int(entry["generated_tokens"]) for entry in log),
        "tokens": int(trainer.state.num_input_tokens_seen),
        "parameters": parameters,
        "trained_parameters": trained_parameters,
        "lora": train.lora.model_dump() if isinstance(train.lora, LoraConfig) else None,
        "learning_rate": train.learning_rate,
        "log": _windows([_entry(each, options) for each in log]),
    }


def _trl() -> Any:
    try:
        from rheostat import rloo_trainer
    except ImportError as error:
        raise InputError(
            f"online training is TRL's RLOOTrainer, which is not here: {error}",
            hint="pip install 'rheostat[rlhf]'",
        ) from error
    return rloo_trainer


class Answered(NamedTuple):
    """Prompts as token ids, and the response to each: its token ids with the end token, and its text."""

    prompts: list[list[int]]
    responses: list[list[int]]
    texts: list[str]


@dataclass(frozen=True)
class _Asked:
    """The planned prompts of a whole training, each a request of the engine, and what they are judged by."""

    engine: TransformersEngine
    module: OnlineObjective
    options: OnlineOptions
    planned: Sequence[PlannedPrompt]
    requests: Sequence[GenerationRequest]
    prompts: Sequence[Prompt]
    sampling: Sampling
    seed: int

    @classmethod
    def of(
        cls,
        policy: Policy,
        prompts: Sequence[Prompt],
        module: OnlineObjective,
        options: OnlineOptions,
        config: RunConfig,
    ) -> "_Asked":
        """Those of a recipe."""
        form = config.control_format
        plan = plan_prompts(
            len(prompts), form.grid(), per_step=options.prompts, options=config.train, seed=config.seed
        )
        planned = [each for step in plan for each in step]
        return cls(
            TransformersEngine(policy, form, config.batch_tokens),
            module,
            options,
            planned,
            _requests(planned, prompts, module, options, config),
            prompts,
            Sampling(temperature=options.temperature, max_tokens=config.generate.max_tokens),
            config.seed,
        )

    @property
    def components(self) -> list[str]:
        """What the objective rewards, by name."""
        control = self.planned[0].control
        return list(self.module.reward([control], [control], self.options))

    def answer(self, numbers: Sequence[int], step: int) -> Answered:
        """A response to each of the planned prompts, every one of them there `samples` times in a row."""
        distinct = list(dict.fromkeys(numbers))
        assert [each for each in distinct for _ in range(self.options.samples)] == list(numbers), numbers
        requests = [self.requests[number] for number in distinct]
        sampled = self.engine.sample(requests, self.sampling, seed=derive_seed(self.seed, f"online/{step}"))
        prompts = [list(self.engine.encode(request)) for request in requests]
        responses = [each.ids for answers in sampled for each in answers]
        texts = self.engine.policy.tokenizer.batch_decode(
            responses, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return Answered(
            [prompt for prompt in prompts for _ in range(self.options.samples)], responses, list(texts)
        )


class _Judge:
    """The rewards of responses, each scored once: TRL asks for every component by itself."""

    def __init__(self, asked: _Asked, scorer: Scorer) -> None:
        self._asked = asked
        self._scorer = scorer
        self._last: tuple[tuple[int, ...], tuple[str, ...]] = ((), ())
        self._found: Mapping[str, list[float]] = {}

    def __call__(self, numbers: Sequence[int], responses: Sequence[str]) -> Mapping[str, list[float]]:
        """Per component the reward of each response to planned prompts."""
        if (tuple(numbers), tuple(responses)) != self._last:
            planned = [self._asked.planned[number] for number in numbers]
            scores = self._scorer.score(
                [
                    Judged(self._asked.prompts[each.prompt].messages, response)
                    for each, response in zip(planned, responses, strict=True)
                ]
            )
            controls = [each.control for each in planned]
            self._found = self._asked.module.reward(scores, controls, self._asked.options)
            self._last = (tuple(numbers), tuple(responses))
        return self._found


def _requests(
    planned: Sequence[PlannedPrompt],
    prompts: Sequence[Prompt],
    module: OnlineObjective,
    options: OnlineOptions,
    config: RunConfig,
) -> list[GenerationRequest]:
    """What the model is asked: each planned prompt under its control, some with a forged one in the user's text."""
    control_format = config.control_format
    if not module.NEEDS.control:
        return [GenerationRequest(prompts[each.prompt].messages, None, options.samples) for each in planned]
    unanswered = [
        Example(prompts[each.prompt].id, prompts[each.prompt].messages, dict(each.control), "", {})
        for each in planned
    ]
    typed = with_forged_controls(
        unanswered,
        control_format=control_format,
        share=config.train.forged_share,
        styles=config.train.forged_styles,
        seed=config.seed,
    )
    return [GenerationRequest(each.messages, each.control, options.samples) for each in typed]


def _arguments(
    train: TrainConfig,
    options: OnlineOptions,
    config: RunConfig,
    checkpoints: Path,
    *,
    steps: int,
    on_cpu: bool,
) -> dict[str, Any]:
    """What TRL is told: a step's responses are generated at once, and learned from once."""
    responses = options.prompts * options.samples
    if responses % train.accumulation:
        raise InputError(
            f"train.accumulation: got {train.accumulation}, allowed is what divides a step's {responses} responses",
            hint="set it to a divisor of prompts · samples",
        )
    return {
        **training_arguments(train, config, checkpoints, steps=steps, on_cpu=on_cpu),
        "per_device_train_batch_size": responses // train.accumulation,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_checkpointing": None,  # `trainable` has seen to it
        "logging_steps": 1,
        "beta": options.beta,
        "num_generations": options.samples,
        "temperature": options.temperature,
        "max_completion_length": config.generate.max_tokens,
        "shuffle_dataset": False,
    }


def _muon(model: Any, options: TrainConfig) -> Any:
    """The optimiser that TRL is handed; None leaves it its AdamW."""
    if options.optimizer == "adamw":
        return None
    return muon_with_adamw(model, lr=float(options.learning_rate), weight_decay=options.weight_decay)


def _entry(logged: Mapping[str, Any], options: OnlineOptions) -> dict[str, float]:
    """A step of TRL's log in our words."""
    found = {name: float(logged[name]) for name in ("step", "loss", "learning_rate", "reward", "entropy")}
    for name, value in logged.items():
        if name.startswith("rewards/") and name.endswith("/mean"):
            found[f"reward/{name.removeprefix('rewards/').removesuffix('/mean')}"] = float(value)
    length = logged["generated_tokens"] / (options.prompts * options.samples)
    return {
        **found,
        "kl": float(logged.get("kl", 0.0)) * length,  # TRL's is of a token, the penalty is on that of a response
        "generated_tokens": float(logged["generated_tokens"]),
        "seconds": float(logged["step_time"]),
    }


def _windows(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Means over `LOG_STEPS` steps each, under the number of the last; the first step stands alone."""
    cuts = [log[:1], *(log[at : at + LOG_STEPS] for at in range(1, len(log), LOG_STEPS))]
    return [
        {**{name: fmean(entry[name] for entry in window) for name in window[0]}, "step": window[-1]["step"]}
        for window in cuts
    ]

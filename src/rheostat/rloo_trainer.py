"""TRL's RLOOTrainer over a planned training: our prompts as tokens, our engine's responses, our rewards.

Importing this file imports TRL, which only the extra `rlhf` installs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer

from rheostat.logprobs import logprobs_of_padded

if TYPE_CHECKING:
    from rheostat.online_trainer import Answered

Rewarded = Callable[[Sequence[int], Sequence[str]], Mapping[str, Sequence[float]]]
"""Numbers of planned prompts, and a response to each; per component its reward of each response."""


class PlannedRLOOTrainer(RLOOTrainer):  # type: ignore[misc]
    """An RLOOTrainer whose prompts come in the plan's order, are encoded by us and answered by our engine.

    `answer(numbers, step)` answers planned prompts, by number, at a step; the number of a prompt is what TRL takes for
    its text. `components`: the names that `rewarded` gives; TRL adds them up, logs them apart and subtracts β · KL.
    """

    def __init__(
        self,
        model: Any,
        arguments: RLOOConfig,
        *,
        planned: int,
        tokenizer: Any,
        answer: "Callable[[Sequence[int], int], Answered]",
        components: Sequence[str],
        rewarded: Rewarded,
        optimizer: Any = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._answer = answer
        self._written = 0
        super().__init__(
            model=model,
            reward_funcs=[_component(name, rewarded) for name in components],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(planned)]}),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            optimizers=(optimizer, None),
        )
        self.remove_callback(PrinterCallback)

    def _generate(self, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
        """In place of TRL's: prompts with their controls as token ids, the responses' token ids, their texts."""
        self.model.eval()
        found = self._answer([int(number) for number in prompts], self.state.global_step)
        self.model.train()
        self._written += sum(map(len, found.responses))
        self.state.num_input_tokens_seen += sum(map(len, (*found.prompts, *found.responses)))
        return found.prompts, found.responses, found.texts

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """In place of TRL's, whose passes go over all padding: log-probabilities of the responses' tokens.

        `input_ids`, `attention_mask` `(rows, longest prompt + logits_to_keep)`; gives `(rows, logits_to_keep)`, nats,
        0 on padding. The entropy that TRL logs is estimated by what was drawn, −log π(y_t), whose mean it is.
        """
        assert not compute_aux_loss and not any(each is not None for each in others.values()), others
        layer = self.accelerator.unwrap_model(model).get_output_embeddings()
        with self.accelerator.autocast():
            found = logprobs_of_padded(
                model, layer, input_ids, attention_mask, logits_to_keep, temperature=self.temperature
            )
        return found, -found.detach() if compute_entropy else None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the tokens that the model has written since the last log."""
        super().log({**logs, "generated_tokens": self._written}, start_time)
        self._written = 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """None for a checkpoint, which is gone when the training ends."""

    def _send_telemetry(self) -> None:
        """Nobody is told that somebody trains."""


def _component(name: str, rewarded: Rewarded) -> Callable[..., list[float]]:
    """One component as TRL wants it: a function of that name, which it calls with more than is needed."""

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        return list(rewarded([int(number) for number in prompts], completions)[name])

    reward.__name__ = name
    return reward

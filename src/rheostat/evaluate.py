"""Evaluate: every method answers every held-out prompt under every control, and is scored. Models in, rows out.

The *optimization evaluation* (arXiv 2404.01295) takes held-out prompts of the training distribution, scored by the
rewards that labelled the data; the *generalization evaluation* other prompts, scored by judges that labelled nothing.
Tuned methods also answer the calibration prompts, scored as in the optimization evaluation: see `dial_map.py`.
"""

import time
from collections.abc import Mapping, Sequence

from rheostat.calibration import Calibrator
from rheostat.config import RunConfig
from rheostat.generation import engine_identity
from rheostat.method_models import MethodModels
from rheostat.method_name import MethodName
from rheostat.model_files import identity
from rheostat.plugins import Executor
from rheostat.progress import ProgressDisplay, null_progress
from rheostat.prompts import CALIBRATION
from rheostat.records import EvaluationRow, Prompt
from rheostat.rundir import RunDirectory, Stage
from rheostat.scoring import OWN
from rheostat.shard_work import ShardWork
from rheostat.workbench import GridWork, ReachableWork, Workbench

EVALUATIONS = ("optimization", "generalization")
REACHABLE = "reachable"


def scorers_of(evaluation: str, config: RunConfig) -> tuple[str, ...]:
    """Who scores an evaluation, the leading scorer first: the run's own rewards, or the judges where there are any."""
    return tuple(config.judges) if evaluation == "generalization" and config.judges else (OWN,)


class Evaluator:
    """Evaluates methods, one after another; what their cells share is on one workbench."""

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        calibrators: Mapping[str, Mapping[str, Calibrator]],
        executor: Executor,
    ) -> None:
        self._run = run
        self._config = config
        self._format = config.control_format
        self.bench = Workbench(config, calibrators)
        self._executor = executor

    def evaluate(
        self,
        name: MethodName,
        evaluations: Sequence[str],
        *,
        models: MethodModels,
        progress: ProgressDisplay = null_progress,
    ) -> None:
        """The rows of a method, whose `models` have been trained, in each evaluation."""
        for evaluation in evaluations:
            stage = self._stage(evaluation, name, models)
            if stage.done:
                continue
            started = time.perf_counter()
            work = GridWork(
                self.bench,
                name,
                models.folders,
                scorers_of(evaluation, self._config),
                with_fluency=evaluation != CALIBRATION,
            )
            answered = self._map(stage, work, evaluation, f"{evaluation} {name.name}", progress)
            responses = tokens = 0
            for row in stage.rows(EvaluationRow):
                responses += 1
                tokens += row.generated_tokens
            stage.finish({"responses": responses, "generated_tokens": tokens})
            self._run.record_timing(stage.name, time.perf_counter() - started, responses=answered)

    def reachable(self, evaluation: str, *, progress: ProgressDisplay = null_progress) -> None:
        """Base samples of every prompt, scored: what a method that only picks among them could come to."""
        samples = self._config.evaluate.reachable_samples
        stage = self._stage(evaluation, None, MethodModels())
        if stage.done:
            return
        work = ReachableWork(self.bench, samples, scorers_of(evaluation, self._config))
        self._map(stage, work, evaluation, f"{evaluation} reachable range", progress)
        stage.finish({"samples": samples})

    def _stage(self, evaluation: str, name: MethodName | None, models: MethodModels) -> Stage:
        options = self._config.evaluate.model_dump(
            exclude={"bootstrap", "rerank_samples", "reachable_samples", "forged_prompts"}
        )
        reranks = name is not None and (name.reranking or name.method == "reranking")
        return self._run.stage(
            f"evaluate/{evaluation}/{REACHABLE if name is None else name.name}",
            inputs={
                "prompts": self._prompts(evaluation).fingerprint,
                "score": self._run.finished("score").fingerprint,
                "model": identity(self._config.model),
                **({"tuned": None, "method": None} if name is None else models.inputs(self._config, name)),
                "options": options,
                "samples": self._config.evaluate.reachable_samples
                if name is None
                else self._config.evaluate.rerank_samples * reranks,
                "levels": self._config.control_format.levels,
                "dtype": self._config.dtype,
                **self._config.loading,
                "batch_tokens": self._config.batch_tokens,
                "seed": self._config.seed,
                **(engine_identity(self._config) if models.tuned is None else {}),
            },
        )

    def _prompts(self, evaluation: str) -> Stage:
        return self._run.finished(CALIBRATION if evaluation == CALIBRATION else "prompts")

    def _map(
        self, stage: Stage, work: ShardWork[Prompt], evaluation: str, label: str, progress: ProgressDisplay
    ) -> int:
        """Answers what no shard on disk holds yet; how many responses that were."""
        return stage.map(
            self._prompts(evaluation).read(Prompt, prefix=evaluation),
            work,
            key=lambda prompt: prompt.id,
            row_type=EvaluationRow,
            shard_size=self._config.evaluate.shard_prompts,
            seed=self._config.seed,
            label=label,
            unit="prompts",
            progress=progress,
            executor=self._executor,
        )

"""The finished trainings behind a method: what its results depend on, and where its models lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rheostat.config import RunConfig
from rheostat.method_name import MethodName
from rheostat.recipe import method_options
from rheostat.rundir import RunDirectory, Stage
from rheostat.trainings import Training, models_of


@dataclass(frozen=True, slots=True)
class ModelFolders:
    """Folders, as they travel to where a method works: of the tuned model itself, and of its parts' stages by role."""

    tuned: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MethodModels:
    """A tuned method's own training (`tuned`), or those that an untuned method is made of, by role (`parts`)."""

    tuned: Stage | None = None
    parts: Mapping[str, Stage] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunDirectory, config: RunConfig, name: MethodName) -> "MethodModels":
        """Those of a method. Raises `StageMissing` where one has not been trained."""
        if name.objective is not None:
            return cls(run.finished(Training.of(name, config).stage))
        return cls(None, {role: run.finished(each.stage) for role, each in models_of(name, config).items()})

    @property
    def folders(self) -> ModelFolders:
        """Where they lie."""
        return ModelFolders(
            None if self.tuned is None else str((self.tuned.path / "model").resolve()),
            {role: str(stage.path.resolve()) for role, stage in self.parts.items()},
        )

    def inputs(self, config: RunConfig, name: MethodName) -> dict[str, Any]:
        """What a method's answers depend on, beside prompts and sampling; parts and options only where it has any."""
        found: dict[str, Any] = {
            "tuned": None if self.tuned is None else self.tuned.fingerprint,
            "method": name.identity(),
        }
        if self.parts:
            found["parts"] = {role: stage.fingerprint for role, stage in self.parts.items()}
        if name.objective is None and (given := repr(method_options(config, name.method))) != "OPTIONS()":
            found["method_options"] = given
        return found

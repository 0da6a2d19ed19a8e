"""Which models a run trains, and in which order: a method's own, and those that it is made of or starts from."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from rheostat import plugins
from rheostat.config import RunConfig, TrainConfig
from rheostat.method_name import MethodName, TrainingData


class Training(BaseModel):
    """One trained model: its objective, its data, and the training from whose model it started (None: the base)."""

    model_config = ConfigDict(frozen=True)

    objective: str
    data: TrainingData
    start: "Training | None" = None

    def __str__(self) -> str:
        tells_start = self.start is not None and self.data.round == 1  # a further round's data name its start
        return f"{self.objective}-{self.data}" + (f"-from-{self.start}" if tells_start else "")

    @property
    def stage(self) -> str:
        """The name of the stage that trains it."""
        return f"train/{self}"

    @classmethod
    def of(cls, name: MethodName, config: RunConfig) -> "Training":
        """The training of a tuned method."""
        assert name.objective is not None, name
        needs = plugins.needs(name.objective)
        variant = name.variant or config.train.variant
        if needs.rows == "pairs":
            by = name.by or needs.ordered_by
            data = TrainingData(variant="pairs", share=name.share, by=by, mixed=name.mixed)
        elif needs.rows == "prompts":
            data = TrainingData(variant="prompts", share=name.share)
        else:
            sampler = None
            if name.round > 1:
                sampler = name.objective + (f"+from_{name.start}" if name.start else "")
            data = TrainingData(variant=variant, share=name.share, round=name.round, sampler=sampler)
        start = None
        if name.round > 1:
            start = cls.of(name.model_copy(update={"round": name.round - 1}), config)
        elif name.start is not None:
            start = cls.of(MethodName.parse(name.start), config)
        return cls(objective=name.objective, data=data, start=start)

    def options(self, config: RunConfig) -> TrainConfig:
        """How it is trained: the objective's options, and of a further round what `rounds` says otherwise."""
        options = config.train.of(self.objective)
        given = {"steps": config.rounds.steps, "learning_rate": config.rounds.learning_rate}
        changes = {key: value for key, value in given.items() if value is not None}
        return options.model_copy(update=changes) if self.data.round > 1 else options


def training(name: str, config: RunConfig) -> Training:
    """The training of a tuned method, by its name as a recipe writes it."""
    return Training.of(MethodName.parse(name), config)


def models_of(name: MethodName, config: RunConfig) -> dict[str, Training]:
    """The trainings that an untuned method is made of, by role."""
    if name.objective is not None:
        return {}
    kind: plugins.MethodKind = plugins.load("methods", name.method)
    return {role: training(each, config) for role, each in kind.models(config.control_format.names).items()}


def rewarder_of(wanted: Training, config: RunConfig) -> Training | None:
    """The training whose model rewards tokens: of the same share and order of pairs, from the same start."""
    name = plugins.needs(wanted.objective).token_rewards_of
    if name is None:
        return None
    own = training(name, config)
    data = own.data.model_copy(update={"share": wanted.data.share, "by": wanted.data.by})
    return own.model_copy(update={"data": data, "start": wanted.start})


def requirements(wanted: Training, config: RunConfig) -> Iterator[Training]:
    """The trainings whose models a training needs before it begins."""
    needs = plugins.needs(wanted.objective)
    if wanted.start is not None:
        yield wanted.start
    if (rewarder := rewarder_of(wanted, config)) is not None:
        yield rewarder
    for each in needs.experts.values():
        yield training(each, config)


def trainings(config: RunConfig) -> list[Training]:
    """All trainings that the recipe's methods need, each once, each after those that it needs itself."""
    return list(dict.fromkeys(each for name in config.method_names for each in behind(name, config)))


def behind(name: MethodName, config: RunConfig) -> list[Training]:
    """All trainings behind a method, each once, each after those that it needs itself."""
    own = models_of(name, config).values() if name.objective is None else [Training.of(name, config)]
    found: dict[Training, None] = {}

    def add(each: Training) -> None:
        if each not in found:
            for other in requirements(each, config):
                add(other)
            found[each] = None

    for each in own:
        add(each)
    return list(found)

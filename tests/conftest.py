"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models too small to share: a second thread would only be waited for, on a busy machine for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the checkout; skips where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs the real models and data in ../shared, which are not here")
    return SHARED


@pytest.fixture(scope="session")
def restricted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the pocket world, tiny, with adapters and with dials that may not be turned all the way."""
    from rheostat import pipeline
    from rheostat.recipe import load_config

    out = tmp_path_factory.mktemp("restricted") / "run"
    settings = (
        "levels.safety=[0.5, 0.75, 1]", "levels.helpfulness=[0, 1]", "train.lora.rank=2", "train.steps=6",
        "train.batch_size=4", "train.learning_rate=0.01", "train.forged_share=0.05",
        "train.forged_styles=exact", "distil.minimum_contrast=0", "methods=[clm]",
        "prompts.train_limit=8", "prompts.evaluation_limit=2", "prompts.generalization=null", "judges={}", "suite=null",
        "generate.samples=8", "generate.max_tokens=24", "evaluate.max_tokens=12", "evaluate.reachable_samples=4",
        "evaluate.bootstrap=100",
    )  # fmt: skip
    pipeline.run(load_config("pocket", settings), out)
    return out

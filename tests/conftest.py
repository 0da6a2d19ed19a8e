"""What all tests share."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the checkout; skips where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs the real models and data in ../shared, which are not here")
    return SHARED

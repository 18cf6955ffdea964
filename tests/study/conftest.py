"""What several test files compare with."""

from __future__ import annotations

import pytest
from processes import TINY, Running


@pytest.fixture(scope="session")
def serial(tmp_path_factory):
    """The output folder of a tiny study that one process ran without interruption."""
    out = tmp_path_factory.mktemp("serial")
    study = Running(*TINY, "--out", out)
    assert study.wait() == 0, study.stderr
    return out

from __future__ import annotations

import numpy as np
import pytest

from tl_lightning.errors import UserError
from tl_lightning.study.arrays import load_arrays, save_arrays


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {"maps": np.random.default_rng(0).random((2, 3)).astype(np.float32), "names": np.array(["a", "b|c"])}
    save_arrays(tmp_path / "new", "maps", arrays)
    found = load_arrays(tmp_path / "new", "maps")
    assert set(found) == {"maps", "names"}
    np.testing.assert_array_equal(found["maps"], arrays["maps"])
    assert found["names"].tolist() == ["a", "b|c"]
    save_arrays(tmp_path / "new", "maps", {"other": 1})
    assert list(load_arrays(tmp_path / "new", "maps")) == ["other"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps.npz"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"text"])
def test_nothing_readable_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "maps.npz").write_bytes(content)
    assert load_arrays(tmp_path, "maps") is None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_arrays(tmp_path / "file", "maps", {"a": 1})

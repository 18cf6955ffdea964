"""Paths as users write them."""

from pathlib import Path

from tl_lightning.paths import user_path


def test_home_is_expanded_and_an_unknown_user_is_no_error(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/images") == Path("/home/someone/images")
    assert user_path("~no-such-user/images") == Path("~no-such-user/images")
    assert user_path(Path("images")) == Path("images")

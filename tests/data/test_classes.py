"""A set with some of its classes."""

from __future__ import annotations

import pytest
import torch

from tl_lightning.data import TransferDataModule
from tl_lightning.errors import UserError


def digits(**options):
    datamodule = TransferDataModule("digits", image_size=16, **options)
    datamodule.setup()
    return datamodule


def test_only_the_named_classes_are_served_numbered_in_their_order():
    some, every = digits(classes=["7", "2"]), digits()
    assert some.num_classes == 2
    assert some.class_names == ["7", "2"]
    for part in ("train_set", "val_set", "test_set"):
        assert set(getattr(some, part).labels.tolist()) == {0, 1}
    count = sum(int((getattr(every, part).labels == 7).sum()) for part in ("train_set", "val_set", "test_set"))
    assert sum(int((getattr(some, part).labels == 0).sum()) for part in ("train_set", "val_set", "test_set")) == count
    sevens = some.test_set.images[some.test_set.labels == 0]
    all_sevens = torch.cat([p.images[p.labels == 7] for p in (every.train_set, every.val_set, every.test_set)])
    assert all(any(torch.equal(image, other) for other in all_sevens) for image in sevens[:5])


def test_two_halves_share_no_image():
    low, high = digits(classes=["0", "1", "2", "3", "4"]), digits(classes=["5", "6", "7", "8", "9"])
    used = [set(torch.cat([d.train_set.indices, d.val_set.indices, d.test_set.indices]).tolist()) for d in (low, high)]
    assert not used[0] & used[1]


@pytest.mark.parametrize(
    ("classes", "message"), [(["3"], "at least two"), (["1", "1"], "none twice"), (["1", "x"], "x")]
)
def test_wrong_classes_are_one_line(classes, message):
    with pytest.raises(UserError, match=message):
        digits(classes=classes)

import errno
import io
import os
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer.event_file_writer import _AsyncWriter
from torch.utils.tensorboard import SummaryWriter

from tl_lightning.study.tensorboard import errors_told_once, rasterise, write_figures, write_hparams


def curves(folder):
    with SummaryWriter(str(folder)) as writer:
        for step in range(3):
            writer.add_scalar("val/accuracy", 0.5 + step / 10, step)


def test_settings_and_results_lie_in_the_run_of_the_curves(tmp_path):
    folder = tmp_path / "trials" / "head--seed0" / "lr=0.001"
    curves(folder)
    settings = {"depth": "head", "lr_decay": None, "discriminative": False, "seed": 3, "lr": 1e-3, "mean": (0.5, 0.5)}
    write_hparams(folder, settings, {"test/accuracy": 0.83, "test/loss": 0.4})

    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    assert list(runs.Runs()) == ["trials/head--seed0/lr=0.001"]
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["scalars"]) == {"val/accuracy", "Result/test_accuracy", "Result/test_loss"}
    assert [event.value for event in events.Scalars("Result/test_accuracy")] == pytest.approx([0.83])
    assert len(events.Scalars("val/accuracy")) == 3
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["depth"].string_value == "head"
    assert start.hparams["lr_decay"].string_value == "none"
    assert start.hparams["seed"].number_value == 3
    assert start.hparams["lr"].number_value == pytest.approx(1e-3)
    assert start.hparams["mean"].string_value == "(0.5, 0.5)"
    content = events.summary_metadata[metadata.SESSION_END_INFO_TAG].plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == 1  # STATUS_SUCCESS


def test_no_trial_describes_the_experiment_for_the_others(tmp_path):
    for name, settings in {"a": {"depth": "head"}, "b": {"samples": 50}}.items():
        write_hparams(tmp_path / name, settings, {"test/accuracy": 0.8})
        events = EventAccumulator(str(tmp_path / name)).Reload()
        assert metadata.EXPERIMENT_TAG not in events.summary_metadata


def test_figures_are_images_of_one_run_and_replace_earlier_ones(tmp_path):
    figure = Figure(figsize=(4, 3), dpi=100)
    figure.add_subplot().plot([0, 1], [0, 1], color="red")
    pixels = rasterise(figure)
    assert pixels.shape == (300, 400, 3)
    assert (np.ptp(pixels.astype(int), axis=-1) > 100).any()  # the red line
    for _ in range(2):
        folder = write_figures(tmp_path, {"accuracy_by_depth": figure, "pareto": figure})
    assert folder == tmp_path / "figures"
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["accuracy_by_depth", "pareto"]
    images = events.Images("pareto")
    assert len(images) == 1
    assert (images[0].width, images[0].height) == (400, 300)
    assert images[0].encoded_image_string.startswith(b"\x89PNG")


def test_a_figure_of_photographs_is_a_small_image_close_to_what_it_shows(tmp_path):
    smooth = np.random.default_rng(0).random((20, 20, 3)).repeat(15, 0).repeat(15, 1)
    grain = np.random.default_rng(1).random((300, 300, 1))
    photograph = 0.8 * smooth + 0.2 * grain
    figure = Figure(figsize=(4, 4), dpi=100)
    figure.add_axes((0, 0, 1, 1)).imshow(photograph)
    events = EventAccumulator(str(write_figures(tmp_path, {"panel": figure}))).Reload()
    shown = events.Images("panel")[0]
    assert (shown.height, shown.width) == (400, 400)
    pixels = np.asarray(Image.open(io.BytesIO(shown.encoded_image_string))).astype(float)
    assert np.abs(pixels - rasterise(figure)).mean() < 8
    assert len(shown.encoded_image_string) < 150_000  # as PNG it is three times as much


def test_a_foreign_file_beside_the_figures_stays(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "notes.txt").write_text("mine")
    write_figures(tmp_path, {})
    assert (tmp_path / "figures" / "notes.txt").read_text() == "mine"


class FullDisk:
    """A record writer on a disk without room."""

    def write(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def told(monkeypatch):
    """What Python was to print of errors in threads."""
    errors = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: errors.append(raised.exc_type))
    return errors


def test_a_full_disk_is_told_by_the_next_call_and_not_by_a_thread_as_well(told):
    with errors_told_once():
        writer = _AsyncWriter(FullDisk(), 1, 1)
        writer.write(b"first")
        writer._worker.join(10)
        with pytest.raises(OSError, match="No space left"):
            writer.write(b"second")
    assert told == []


def test_other_errors_of_threads_are_told(told):
    thread = threading.Thread(target=lambda: int("of a user's thread"))
    with errors_told_once():
        thread.start()
        thread.join()
    assert told == [ValueError]

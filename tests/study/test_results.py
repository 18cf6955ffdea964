import time

import numpy as np
import pandas as pd
import pytest

from tl_lightning.study.intervals import mean_interval
from tl_lightning.study.records import RecordStore
from tl_lightning.study.results import results_frame, summary_frame, write_results_csv, write_summary_csv

CONTRACT = [
    *("study", "arm", "depth", "lr_decay", "seed", "data", "backbone", "weights", "image_size", "epochs"),
    *("learning_rate", "val_accuracy", "test_accuracy", "test_auroc", "val_loss", "train_seconds"),
    *("images_per_second", "peak_memory_mb", "trainable_parameters", "total_parameters", "forward_flops"),
    *("device", "precision", "versions", "git_commit", "git_dirty", "status", "error"),
]


def record(arm, seed, accuracy, **values):
    return {
        "trial": f"{arm}--seed{seed}",
        "study": "freezing",
        "arm": arm,
        "factors": {"depth": arm, "lr_decay": None},
        "seed": seed,
        "data": "elpv",
        "image_size": 96,
        "backbone": "efficientnet_lite0",
        "weights": "IMAGENET1K_V1",
        "epochs": 5,
        "train_images": 1574,
        "learning_rate": 1e-3,
        "val_loss": 0.4,
        "val_accuracy": accuracy,
        "test_accuracy": accuracy - 0.01,
        "test_auroc": 0.9,
        "train_seconds": 4.5,
        "images_per_second": 900.0,
        "peak_memory_mb": 700.0,
        "trainable_parameters": 2562,
        "total_parameters": 3_400_000,
        "forward_flops": 70_000_000,
        "device": "cpu",
        "precision": "32-true",
        "test_fingerprint": "abc",
        "curve": [{"epoch": 0, "val/accuracy": 0.5}],
        "status": "ok",
        "error": "",
        "versions": {"python": "3.12.1", "torch": "2.14.0"},
        "git_commit": "f" * 40,
        "git_dirty": False,
        **values,
    }


def failed(arm, seed):
    keep = ("trial", "study", "arm", "factors", "seed", "data", "image_size")
    whole = record(arm, seed, 0.0)
    return {**{key: whole[key] for key in keep}, "status": "failed", "error": 'ValueError: "no", it\nbroke'}


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    found = [record(arm, seed, rng.uniform(0.7, 0.9)) for arm in ("head", "layer4", "all") for seed in range(4)]
    found[6] = failed("layer4", 2)
    return found


def test_columns_stand_in_the_order_of_the_contract(records):
    results = results_frame(records)
    assert list(results.columns) == [*CONTRACT, "test_fingerprint", "train_images", "trial"]
    assert list(results["arm"][::4]) == ["head", "layer4", "all"]
    assert results["versions"][0] == "python 3.12.1; torch 2.14.0"
    assert list(results_frame(records[6:7]).columns[:10]) == CONTRACT[:10]
    assert len(results_frame([])) == 0


def test_nested_values_get_their_columns():
    found = results_frame(
        [
            record(
                "head",
                0,
                0.8,
                factors={"backbone": "resnet18", "weights": "IMAGENET1K_V1"},
                hyper_parameters={"dropout": 0.1},
                metrics={"test_macro_f1": 0.7},
            )
        ]
    )
    names = list(found.columns)
    # the record's own backbone is another one than the factor says: both are shown
    assert names[2:6] == ["backbone", "weights", "factors.backbone", "seed"]
    assert names.index("dropout") == names.index("learning_rate") + 1
    assert names.index("val_accuracy") < names.index("test_macro_f1") < names.index("train_seconds")


def test_results_csv_reads_back_as_it_was(records, tmp_path):
    results = results_frame(records)
    path = write_results_csv(tmp_path, results)
    back = pd.read_csv(path)
    for name in results.columns:
        if pd.api.types.is_numeric_dtype(results[name]):
            np.testing.assert_array_equal(back[name].astype(float), results[name].astype(float))
    assert back["error"][6] == 'ValueError: "no", it\nbroke'
    assert ",2562," in path.read_text()  # whole although one trial has no value
    summaries = [summary_frame(frame).drop(columns="lr_decay") for frame in (back, results)]
    pd.testing.assert_frame_equal(*summaries, check_dtype=False)


def test_the_same_records_give_the_same_bytes(records, tmp_path):
    first = write_results_csv(tmp_path, results_frame(records)).read_bytes()
    assert write_results_csv(tmp_path, results_frame(records)).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_summary_holds_mean_interval_and_n(records, tmp_path):
    results = results_frame(records)
    summary = summary_frame(results)
    assert list(summary["arm"]) == ["head", "layer4", "all"]
    assert list(summary["trials"]) == [4, 3, 4]
    assert list(summary["failed"]) == [0, 1, 0]
    for arm, row in summary.set_index("arm").iterrows():
        values = [r["test_accuracy"] for r in records if r["arm"] == arm and r["status"] == "ok"]
        expected = mean_interval(values)
        names = [f"test_accuracy_{part}" for part in ("mean", "low", "high", "n")]
        assert tuple(row[names]) == pytest.approx((expected.mean, expected.low, expected.high, expected.n))
    path = write_summary_csv(tmp_path, summary)
    assert list(pd.read_csv(path)["test_accuracy_n"]) == [4, 3, 4]
    assert list(summary_frame(results, ["val_loss"]).columns[-4:]) == [
        "val_loss_mean",
        "val_loss_low",
        "val_loss_high",
        "val_loss_n",
    ]


def test_what_a_failed_trial_measured_is_left_out():
    late = record("head", 2, 0.1, status="failed", error="the disk was full")
    summary = summary_frame(results_frame([record("head", 0, 0.8), record("head", 1, 0.9), late]))
    assert summary["val_accuracy_mean"][0] == pytest.approx(0.85)
    assert summary["val_accuracy_n"][0] == 2
    assert summary["failed"][0] == 1


def test_one_trial_has_a_mean_without_bounds_and_a_failed_arm_none():
    summary = summary_frame(results_frame([record("head", 0, 0.8), failed("all", 0)]))
    assert summary["val_accuracy_mean"][0] == 0.8
    assert np.isnan(summary["val_accuracy_low"][0])
    assert np.isnan(summary["val_accuracy_mean"][1])
    assert list(summary["val_accuracy_n"]) == [1, 0]
    only_failed = summary_frame(results_frame([failed("all", 0), failed("all", 1)]))
    assert list(only_failed["failed"]) == [2]


def test_a_metric_measured_in_some_trials_counts_those():
    found = [record("head", 0, 0.8), record("head", 1, 0.9, test_auroc=None), record("head", 2, 0.7)]
    summary = summary_frame(results_frame(found))
    assert summary["test_auroc_n"][0] == 2
    assert summary["val_accuracy_n"][0] == 3


def test_trials_of_unequal_factors_are_never_averaged():
    found = [record("head", seed, 0.8, factors={"samples": n}) for n in (10, 500) for seed in range(3)]
    summary = summary_frame(results_frame(found))
    assert list(summary["samples"]) == [10, 500]
    assert list(summary["trials"]) == [3, 3]


def test_ten_thousand_records_take_seconds(tmp_path):
    store = RecordStore(tmp_path)
    store.open({"study": "freezing"})
    small = [record(f"arm{n}", seed, 0.5 + n / 5000) for n in range(100) for seed in range(5)]
    for one in small:
        store.write(one)
    start = time.perf_counter()
    found = RecordStore(tmp_path).records()
    reading = time.perf_counter() - start
    many = [{**one, "arm": f"{one['arm']}.{copy}"} for copy in range(20) for one in found]
    start = time.perf_counter()
    results = results_frame(many)
    write_results_csv(tmp_path, results)
    write_summary_csv(tmp_path, summary_frame(results))
    tables = time.perf_counter() - start
    assert len(results) == 10_000
    assert 20 * reading + tables < 10

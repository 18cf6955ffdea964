"""Command lines and configurations that nobody should write: one line, exit code 2, nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tl_lightning.study.cli import main
from tl_lightning.study.design import Arm, Study
from tl_lightning.study.settings import Settings


class Ran(Exception):
    """The study began: the input was not refused."""


def begin(values: Settings) -> None:
    raise Ran


STUDY = Study("hostile", "Is it refused?", "", lambda s: [Arm("one")], lambda t, s: {}, lambda r: None, check=begin)

INTEGERS = ("epochs", "batch_size", "image_size", "workers", "samples_per_class", "max_test_samples", "gpus")
NUMBERS = (*INTEGERS, "weight_decay", "cache_size", "learning_rates")
SWITCHES = ("fresh", "retry_failed")

NO_NUMBER = [
    "abc",
    "",
    "1e",
    "0x",
    "--",
    "1,2",
    "[1",
    "{}",
    "{a: 1}",
    "[[1]]",
    "true",
    "é",
    "٣ pixels",
    "\x07",
    "1 2",
]
NO_LIST = ["[]", "[a]", "[1, [2]]", "{}", "[null]", "nan", "[nan]", "[.inf]", "-1", "0", "abc", "[1, 1]", "[-3]", "'1"]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)

BAD_YAML: list[bytes] = [
    b"epochs: [1",
    b"epochs: {a: {b: 1}}",
    b"epochs:\n\t- 1",
    b"- 1\n- 2\n",
    b"just text",
    b"12",
    b"epochs: 3\n---\nepochs: 4\n",
    b"!!python/object/apply:os.system ['touch pwned']",
    b"epochs: !!python/object/apply:os.system ['touch pwned']",
    b"epochs: !!python/name:os.system",
    b"epochs: !unknown 3",
    b"epochs: *nowhere",
    b"epochs: '3\n",
    b"epochs: .nan",
    b"epochs: .inf",
    b"epochs: 1.5",
    b"epochs: []",
    b"epochs: null",
    b"epochs: -1",
    b"epochs: 0",
    b"epochs: yes",
    b"epochs: 2026-01-01",
    b"seeds: []",
    b"seeds: [0, 0]",
    b"seeds: [a]",
    b"seeds: {}",
    b"seeds: -2",
    b"learning_rates: []",
    b"learning_rates: [.nan]",
    b"learning_rates: .nan",
    b"learning_rates: .inf",
    b"learning_rates: [0.1, 0.1]",
    b"weight_decay: .nan",
    b"weight_decay: -1",
    b"cache_size: .nan",
    b"cache_size: -1",
    b"fresh: 7",
    b"fresh: [true]",
    b"backbone: {a: 1}",
    b"backbone: [resnet18]",
    b"data: {name: digits}",
    b"unknown: 1",
    b"Epochs: 1",
    b"epochs : : 1",
    b"config: other.yaml",
    b"? {a: 1}\n: 2",
    b"1: 2",
    b"null: 2",
    b"\xff\xd8\xff\xe0 a picture",
    b"\x00\x01\x02",
    b"\x80PK\x03\x04",
    "épochs: 1".encode(),
    "épochs: 1".encode("utf-16"),
    b"a: &a [*a]",
    b"epochs: &a [*a]",
    b"[" * 3000,
    b"gpus: 1.5",
    b"gpus: -1",
    b"workers: -1",
    b"<<: {epochs: x}",
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refusal(capsys, argv: list[str]) -> str:
    """Run the study and return the one line that refuses it; nothing may be left in the folder but the input."""
    before = sorted(os.listdir())
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(STUDY, argv)
    out, error = capsys.readouterr()
    assert end.value.code == 2, (argv, error)
    assert error.startswith("error: "), (argv, error)
    assert error.count("\n") == 1, (argv, error)
    assert error.endswith("\n"), (argv, error)
    assert "Traceback" not in error + out, argv
    assert len(error) < 1000, (argv, len(error))
    assert sorted(os.listdir()) == before, argv
    return error


@pytest.mark.parametrize("content", BAD_YAML, ids=range(len(BAD_YAML)))
def test_a_malformed_configuration_is_refused(content, capsys):
    Path("config.yaml").write_bytes(content)
    refusal(capsys, ["--config", "config.yaml"])


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_no_whole_number_is_refused(name, value, capsys):
    assert f"--{name.replace('_', '-')}" in refusal(capsys, [f"--{name}={value}"])


@pytest.mark.parametrize("value", NO_LIST)
@pytest.mark.parametrize("name", ["seeds", "learning-rates"])
def test_what_is_no_list_of_numbers_is_refused(name, value, capsys):
    assert f"--{name}" in refusal(capsys, [f"--{name}={value}"])


@pytest.mark.parametrize("value", ["nan", ".nan", ".inf", "-1", "abc", "[]", "{}"])
@pytest.mark.parametrize("name", ["weight-decay", "cache-size"])
def test_what_is_no_finite_number_is_refused(name, value, capsys):
    refusal(capsys, [f"--{name}={value}"])


@pytest.mark.parametrize("value", ["7", "maybe", "[]", "{}", "nan", ""])
@pytest.mark.parametrize("name", ["fresh", "retry-failed"])
def test_a_switch_is_on_or_off(name, value, capsys):
    refusal(capsys, [f"--{name}={value}"])


@pytest.mark.parametrize(
    "argv",
    [
        ["--config"],
        ["--config", ""],
        ["--config", "nowhere.yaml"],
        ["--config", "folder"],
        ["--config", "\x00"],
        ["--config", "x" * 5000],
        ["--config=config.yaml", "--config=nowhere.yaml"],
        ["stray"],
        ["--"],
        ["-"],
        ["---epochs", "3"],
        ["--épochs", "3"],
        ["--epochs", "3", "--epochs", "x"],
        ["--epochs", "3", "4"],
        ["--epochs.a", "3"],
        ["--epochs+", "3"],
        ["--epochs+=3"],
        ["--seeds+=x"],
        ["--=3"],
        ["--no-fresh"],
        ["--smoke=maybe"],
        ["--plan=3"],
        ["--epochs", "9" * 5000],
        ["--epochs", "1" + "0" * 30],
        ["--image-size", "1" + "0" * 12],
        ["--batch-size", "1e400"],
        ["--learning-rates", "1e400"],
        ["--print_config=x"],
        ["\ud800"],
    ],
    ids=range(29),
)
def test_a_malformed_command_line_is_refused(argv, capsys):
    Path("folder").mkdir()
    Path("config.yaml").write_text("epochs: 3\n")
    refusal(capsys, argv)


def test_no_input_runs_code(capsys):
    for tag in ("object/apply:os.system", "object/new:os.system"):
        Path("config.yaml").write_text(f"backbone: !!python/{tag} ['touch pwned']\n")
        refusal(capsys, ["--config", "config.yaml"])
    assert os.listdir() == ["config.yaml"]


NESTED = st.recursive(
    st.none() | st.booleans() | TEXTS, lambda c: st.lists(c, max_size=3) | st.dictionaries(TEXTS, c, max_size=3)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(INTEGERS[:3]), value=NESTED.filter(lambda v: not str(v).strip(" +-").isdigit()))
def test_any_value_of_another_type_is_refused(name, value, capsys):
    Path("config.yaml").write_text(yaml.safe_dump({name: value}))
    refusal(capsys, ["--config", "config.yaml"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        TEXTS.filter(lambda name: name not in Settings.__dataclass_fields__), NESTED, min_size=1, max_size=3
    )
)
def test_any_unknown_key_is_refused(values, capsys):
    Path("config.yaml").write_text(yaml.safe_dump(values))
    refusal(capsys, ["--config", "config.yaml"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(min_size=1, max_size=40).filter(lambda content: content.strip(b"\r\n\t #-.")))
def test_any_bytes_as_a_configuration_are_refused_or_say_nothing(content, capsys):
    """Bytes that are no mapping of settings are refused, whatever they are."""
    Path("config.yaml").write_bytes(content)
    try:
        said = yaml.safe_load(content.decode())
    except (yaml.YAMLError, UnicodeDecodeError, ValueError):
        said = "unreadable"
    if said is not None and said != {}:
        refusal(capsys, ["--config", "config.yaml"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(TEXTS, min_size=1, max_size=4).filter(lambda argv: not any(t.startswith("-h") for t in argv)))
def test_any_stray_words_are_refused(argv, capsys):
    refusal(capsys, argv)

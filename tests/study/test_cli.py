"""The command line: what a user sees for good and for wrong arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tl_lightning.study.cli import parse
from tl_lightning.study.design import Study
from tl_lightning.study.settings import Settings

ROOT = Path(__file__).parents[2]
STUDY = Study("a_study", "Does it parse?", "", lambda s: [], lambda t, s: {}, lambda r: None)


def test_dashes_and_underscores_are_the_same():
    assert parse(STUDY, ["--image-size", "64"]) == parse(STUDY, ["--image_size=64"])


def test_no_arguments_are_the_defaults():
    assert parse(STUDY, []) == Settings()


def test_switches_need_no_value():
    assert parse(STUDY, ["--fresh"]).fresh
    assert not parse(STUDY, ["--fresh=false"]).fresh


def test_printed_configuration_repeats_the_run(tmp_path, capsys):
    arguments = [
        "--epochs",
        "7",
        "--learning-rates",
        "[0.01, 0.001]",
        "--seeds",
        "[3, 5]",
        "--data",
        "digits",
    ]
    with pytest.raises(SystemExit) as end:
        parse(STUDY, [*arguments, "--print_config"])
    assert end.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse(STUDY, ["--config", str(file)]) == parse(STUDY, arguments)


def test_flags_override_the_smoke_settings():
    smoke = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text())
    settings = parse(STUDY, ["--epochs", "3", "--smoke"])
    assert settings.epochs == 3
    assert settings.samples_per_class == smoke["samples_per_class"]


def test_seeds_and_rates_are_lists():
    assert Settings(seeds=3).seed_list() == [0, 1, 2]
    assert Settings(seeds=[4, 2]).seed_list() == [4, 2]
    assert Settings(learning_rates=[0.1, 0.01]).rate_list() == [0.01, 0.1]
    assert Settings(learning_rates=0.1).rate_list() == [0.1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epocs", "3"], "unknown argument --epocs; did you mean --epochs?"),
        (["--image-siez", "3"], "did you mean --image-size?"),
        (["--epochs", "many"], "--epochs: Expected a int. Got value: many"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--gpus", "x"], "--gpus: expected int, not 'x'"),
        (["--gpus", "-1"], "must not be negative"),
        (["--seeds", "[1, 1]"], "none twice"),
        (["--seeds", "0"], "at least one seed"),
        (["--learning-rates", "-1"], "above 0"),
        (["--config", "missing.yaml"], "does not exist"),
        (["stray"], "unknown argument stray"),
        (["--gpus"], "expected one argument"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, expected, capsys):
    with pytest.raises(SystemExit) as end:
        parse(STUDY, arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected.lower() in error.lower()


def test_a_misspelled_key_in_a_config_names_it(tmp_path, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text("epocs: 3\n")
    with pytest.raises(SystemExit) as end:
        parse(STUDY, ["--config", str(file)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert "epocs" in error
    assert error.count("\n") == 1


def test_help_does_not_import_torch():
    script = (
        "import sys; from tl_lightning.study.cli import parse; from tl_lightning.study.design import Study\n"
        "s = Study('a', 'q', '', lambda s: [], lambda t, s: {}, lambda r: None)\n"
        "try: parse(s, ['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("False")
    assert "--image-size" in result.stdout


def test_a_plan_piped_into_head_ends_quietly():
    command = [sys.executable, str(ROOT / "experiments" / "freezing.py"), "--plan"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141

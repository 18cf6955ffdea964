"""The command line that all studies share. Nothing here imports torch before the arguments are known to be right."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser

from tl_lightning.errors import UserError, unknown_name
from tl_lightning.paths import user_path
from tl_lightning.study.design import Study
from tl_lightning.study.settings import Settings

CONFIGS = Path(__file__).parents[2] / "configs"
LARGEST_IMAGE = 4096  # pixels
MOST_SEEDS = 10_000
LONGEST = 600  # characters of an error: what the user gave may be a whole file


class StudyParser(ArgumentParser):
    """A parser whose flags are spelled with dashes and whose errors are one line."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help with ``--image-size`` for ``--image_size``; both are understood."""
        return re.sub(r"--[a-z_]+", lambda match: _dashed(match.group()), super().format_help(*args, **kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong in one line and exit with code 2."""
        fail(_one_line(message, list(self._option_string_actions)))


def main(study: Study, argv: list[str] | None = None) -> None:
    """Run ``study`` from the command line, or from a notebook, and exit.

    A notebook has no command line of its own: its arguments are the given ones, and it goes on when all went well.
    The exit code is 0 when all trials ended well, 1 when some failed, 2 for a wrong command or a folder that cannot
    be used, 130 after Ctrl-C, 143 after SIGTERM.
    """
    if argv is None:
        argv = [] if _in_notebook() else sys.argv[1:]
    settings = parse(study, argv)
    from tl_lightning.study.repeat import repeat_trial
    from tl_lightning.study.runner import print_plan, run_study
    from tl_lightning.study.signals import Stopped, stop_signals

    _quiet()
    work = print_plan if "--plan" in argv else repeat_trial if settings.repeat is not None else run_study
    try:
        with stop_signals():
            code = work(study, settings)
        if code or not _in_notebook():
            sys.exit(code)
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # `| head` has read enough: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Stopped as stopped:
        print(
            f"{_after_echo()}stopped by {stopped}; the same command goes on with the trials that are left",
            file=sys.stderr,
        )
        sys.exit(stopped.exit_code)


def _in_notebook() -> bool:
    """Tell whether the caller is a cell of a notebook, where ``sys.argv`` is the kernel's and not the user's.

    A script in a notebook's ``%run`` has a file and a command line of its own.
    """
    kernel = sys.modules.get("ipykernel.kernelapp")
    running = kernel is not None and kernel.IPKernelApp.initialized()
    return running and not hasattr(sys.modules["__main__"], "__file__")


def _after_echo() -> str:
    """Return a line break where a terminal has just shown ``^C``."""
    return "\n" if sys.stderr.isatty() else ""


def fail(message: str) -> NoReturn:
    """Print one line and exit with code 2."""
    line = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
    print(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + ' ...'}", file=sys.stderr)
    sys.exit(2)


def parse(study: Study, argv: list[str]) -> Settings:
    """Return the settings: the study's YAML, then ``--smoke``, then ``--config``, then single flags."""
    fields = {field.name: field for field in dataclasses.fields(study.settings)}
    switches = {f"--{name}" for name, field in fields.items() if field.type == "bool"}
    argv = [_underscored(token, switches) for token in argv]
    if "--smoke" in argv:
        argv = [*smoke_configs(study.name), *(token for token in argv if token != "--smoke")]
    try:
        values = _parser(study).parse_args(argv).as_dict()
    except Exception as error:  # what the parser trips over: a picture as YAML, a name with a null byte
        fail(f"the command line or its configuration cannot be read: {error or type(error).__name__}")
    settings = study.settings(**{key: value for key, value in values.items() if key in fields})
    try:
        for token, following in zip(argv, [*argv, ""][1:], strict=True):
            if token.partition("=")[0] == "--config":
                _check_keys(token.partition("=")[2] or following, values)
        check(settings)
    except UserError as error:
        fail(str(error))
    return settings


def smoke_configs(name: str) -> list[str]:
    """Return the arguments of a tiny run: what all studies share, then what the study adds."""
    paths = (CONFIGS / "smoke.yaml", CONFIGS / f"{name}_smoke.yaml")
    return [argument for path in paths if path.exists() for argument in ("--config", str(path))]


def _parser(study: Study) -> StudyParser:
    defaults = CONFIGS / f"{study.name}.yaml"
    parser = StudyParser(
        prog=f"{study.name}.py",
        description=study.question,
        default_config_files=[str(defaults)] if defaults.exists() else [],
    )
    parser.add_argument("--config", action="config", help="YAML file with settings; --print_config writes one.")
    parser.add_argument("--smoke", action="store_true", help="A tiny run on real data in under a minute.")
    parser.add_argument("--plan", action="store_true", help="Print what each arm will do, and train nothing.")
    parser.add_class_arguments(study.settings)
    return parser


def check(settings: Settings) -> None:
    """Raise ``UserError`` for values that no run could use."""
    for field in dataclasses.fields(settings):
        _check_given(f"--{field.name}", getattr(settings, field.name), str(field.type))
    if settings.image_size > LARGEST_IMAGE:
        raise UserError(f"--image-size must be at most {LARGEST_IMAGE}, not {settings.image_size}")
    if isinstance(settings.seeds, int) and settings.seeds > MOST_SEEDS:
        raise UserError(f"--seeds must be at most {MOST_SEEDS} seeds, not {settings.seeds}")
    if settings.weight_decay < 0:
        raise UserError(f"--weight-decay must not be negative, not {settings.weight_decay}")
    seeds = settings.seed_list()
    positive = (
        "samples_per_class",
        "max_val_samples",
        "max_test_samples",
        "image_size",
        "epochs",
        "batch_size",
        "micro_batch",
        "jobs",
    )
    for name in positive:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UserError(f"{_dashed('--' + name)} must be at least 1, not {value}")
    if min(settings.processes or 1, settings.num_nodes) < 1:
        raise UserError("--processes and --num-nodes must be at least 1")
    if settings.strategy == "auto" and (settings.processes or 1) * settings.num_nodes > 1:
        raise UserError("--processes and --num-nodes need a --strategy, such as ddp")
    if settings.batch_size % (settings.micro_batch_size() * settings.ranks()):
        raise UserError(
            f"--batch-size {settings.batch_size} must be a multiple of {settings.ranks()} processes times "
            f"{settings.micro_batch_size()} images of --micro-batch"
        )
    if settings.launcher not in ("local", "ray", "slurm"):
        raise unknown_name("launcher", settings.launcher, ("local", "ray", "slurm"))
    if settings.checkpoint_seconds < 0:
        raise UserError(f"--checkpoint-seconds must not be negative, not {settings.checkpoint_seconds}")
    if (settings.gpus or 0) < 0 or settings.workers < 0:
        raise UserError("--gpus and --workers must not be negative")
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds must name at least one seed, none twice and none negative, not {settings.seeds}")
    rates = settings.rate_list()
    if not rates or min(rates) <= 0 or len(set(rates)) != len(rates):
        raise UserError(f"--learning-rates must be distinct numbers above 0, not {rates}")
    if settings.cache_size < 0:
        raise UserError(f"--cache-size must not be negative, not {settings.cache_size}")


def _check_keys(path: str, known: Collection[str]) -> None:
    """Raise for an unknown key; jsonargparse passes over one whose value is an empty mapping."""
    for key in yaml.safe_load(user_path(path).read_text(encoding="utf-8")) or {}:
        if key not in known:
            raise unknown_name(f"setting in {path}", str(key), known)


def _check_given(flag: str, value: object, type_name: str) -> None:
    if value is None and "None" not in type_name:
        raise UserError(f"{_dashed(flag)} needs a value, not null")
    numbers = value if isinstance(value, list) else [value]
    if not all(abs(number) <= sys.maxsize for number in numbers if isinstance(number, int | float)):  # nan is not
        raise UserError(f"{_dashed(flag)} must be a finite number, not {value}")


def _underscored(token: str, switches: set[str]) -> str:
    """Return ``--image-size=96`` as ``--image_size=96``, and a lone switch such as ``--fresh`` as ``--fresh=true``."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    name = "--" + name[2:].replace("-", "_")
    return f"{name}=true" if name in switches and not equals else name + equals + value


def _dashed(flag: str) -> str:
    return flag if flag == "--print_config" else "--" + flag[2:].replace("_", "-")


def _one_line(message: str, flags: list[str]) -> str:
    """Return a parser's message as one line, with the nearest flag for an unknown one."""
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    if unknown:
        name = unknown.group(1).partition("=")[0]
        near = difflib.get_close_matches(name, flags, n=1, cutoff=0.5)
        hint = f"; did you mean {_dashed(near[0])}?" if near else "; --help lists the flags"
        return f"unknown argument {_dashed(name) if name.startswith('--') else name}{hint}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    text = re.sub(r'[Pp]arser key "(\w+)":?', lambda match: _dashed("--" + match.group(1)) + ":", " ".join(lines))
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    union = re.search(r"(--\S+) Does not validate .*? Subtypes: \[(.*)\] Errors: .* Given value: (.*)", text)
    if union:
        wanted = re.sub(r"\b(None|NoneType), |, (None|NoneType)\b", "", union.group(2)).replace(", ", " or ")
        text = f"{union.group(1)} expected {wanted}, not {union.group(3)!r}"
    return re.sub(r"--[a-z_]+", lambda match: _dashed(match.group()), text)


def _quiet() -> None:
    """Keep what matters on the terminal: the study's own lines (Lightning sets its level when it is imported)."""
    import lightning.pytorch  # noqa: F401

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch|torchmetrics|torchvision)\b.*")

"""Run a study: every trial that has no record yet, then the tables, the figures and the report."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tl_lightning.data.cache import FORMAT as IMAGE_FORMAT
from tl_lightning.errors import UserError
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.devices import check_strategy, resolve_devices
from tl_lightning.study.jobs import helping_processes, jobs_of
from tl_lightning.study.launchers import launched
from tl_lightning.study.ranks import help_node_zero, node_rank
from tl_lightning.study.records import LOCK_SECONDS, RecordStore
from tl_lightning.study.report import Report
from tl_lightning.study.results import results_frame, summary_frame, write_results_csv, write_summary_csv
from tl_lightning.study.settings import Settings
from tl_lightning.study.signals import settle
from tl_lightning.study.tensorboard import errors_told_once, write_figures
from tl_lightning.study.trial_run import run_claimed
from tl_lightning.study.work import Work

SUMMARY = ("val_accuracy", "test_accuracy", "test_map", "test_miou", "train_seconds")  # what the terminal shows


def run_study(study: Study, settings: Settings) -> int:
    """Run what is left of a study and write its report.

    Other processes may work on the same study in the same folder: the trials are shared, none is run twice, and each
    process ends with the report of all.

    Returns:
        Exit code: 0 when every trial ended well, 1 when some failed.

    Raises:
        UserError: The settings could not run, or the output folder holds another study's results or is full.
        Stopped: A signal ended it; as after Ctrl-C, what had been finished is recorded and reported.
    """
    console = Console(stderr=True, highlight=False)
    out = Path(settings.out or f"logs/{study.name}")
    devices = resolve_devices(settings.gpus, settings.precision)
    check_strategy(settings.strategy, devices)
    if devices.note and settings.strategy == "auto":
        console.print(devices.note)
    if study.check is not None:
        study.check(settings)
    trials = study.trials(settings, out)
    store = RecordStore(out)
    if settings.num_nodes > 1 and node_rank() > 0:
        console.print(f"machine {node_rank()} of {settings.num_nodes} helps machine 0, which writes the results")
        help_node_zero(store, settings)
        return 0
    with ExitStack() as stack:
        stack.enter_context(errors_told_once())
        with store.lock(LOCK_SECONDS):
            # Trials of images that were decoded otherwise cannot be compared; the report would end there.
            same = {"study": study.name, "image_decoding": IMAGE_FORMAT}
            defaults = {**same, **study.settings().configuration()}
            store.open({**same, **settings.configuration()}, settings.fresh, defaults)
            stack.enter_context(store.claims)
        try:
            _run_trials(study, settings, trials, store, console)
        except BaseException:
            settle()
            with suppress(Exception):  # what ended the trials is what the user has to know
                _write_results(study, settings, trials, store)
            raise
        report = _write_results(study, settings, trials, store)
    _show(report, out)
    return 1 if len(report.failed) else 0


def print_plan(study: Study, settings: Settings) -> int:
    """Print what every arm will do, epoch by epoch, without training; the exit code is 0."""
    if study.plan is None:
        raise UserError(f"{study.name} has no plan to print: it trains without a freezing schedule")
    for arm in study.arms(settings):
        print(f"{arm.name}\n{study.plan(arm, settings)}\n")
    return 0


def _run_trials(study: Study, settings: Settings, trials: list[Trial], store: RecordStore, console: Console) -> None:
    work = Work(trials, store, settings.retry_failed)
    left = {trial.id: trial for trial in work.left()}
    jobs = jobs_of(study, settings)
    seconds: dict[str, list[float]] = defaultdict(list)
    for record in store.records():
        seconds[record["arm"]].append(record["wall_seconds"])
    console.print(f"{study.name}: {len(trials)} trials, {len(trials) - len(left)} of them done, results in {store.out}")

    def counted(record: dict[str, Any]) -> None:
        left.pop(record["trial"], None)
        seconds[record["arm"]].append(record["wall_seconds"])

    def waiting(elsewhere: list[Trial]) -> None:
        names = ", ".join(f"{trial.id} ({store.claims.holder(trial.id)})" for trial in elsewhere[:3])
        console.print(f"waiting for {len(elsewhere)} that run elsewhere: {names}", markup=False, soft_wrap=True)

    with _progress(console, len(trials)) as advance:

        def ended(record: dict[str, Any]) -> None:
            counted(record)
            advance(len(trials) - len(left), _line(record), _time_left(list(left.values()), seconds) / jobs)

        if left and settings.launcher != "local":
            with closing(launched(study, settings, list(left.values()), store, console.print)) as records:
                for record in records:
                    ended(record)
        with helping_processes(study, settings, store, len(left)):
            for trial in work.claimed(ended if jobs > 1 else counted, waiting):
                record = run_claimed(study, settings, trial, store)
                if store.claims.holds(trial.id):
                    ended(record)
                else:
                    console.print(f"{trial.id} was taken over by {store.claims.holder(trial.id)}: its record counts")


def _write_results(study: Study, settings: Settings, trials: list[Trial], store: RecordStore) -> Report:
    """Write the tables and the report, when no other process does.

    Raises:
        UserError: They cannot be written; the records are kept.
    """
    try:
        with store.lock(LOCK_SECONDS):
            return _report(study, settings, trials, store)
    except OSError as error:
        raise UserError(
            f"cannot write the report in {store.out}: {error.strerror or error}; every finished trial is kept, "
            "and the same command writes it once that is mended"
        ) from error


def _report(study: Study, settings: Settings, trials: list[Trial], store: RecordStore) -> Report:
    """Write the tables and the report of the trials that this call asks for."""
    asked = {trial.id: position for position, trial in enumerate(trials)}
    records = [record for record in store.records() if record["trial"] in asked]
    records.sort(key=lambda record: asked[record["trial"]])
    arms = list(dict.fromkeys(trial.arm.name for trial in trials))
    results = results_frame(records)
    write_results_csv(store.out, results)
    write_summary_csv(store.out, summary_frame(results))
    report = Report(study, settings, store.out, records, results, arms)
    if len(report.results):
        try:
            study.report(report)
        except UserError as error:  # failed trials can leave an arm without a partner
            report.text(f"The report ends here: {error}.")
    store.own(*(f"{shown.name}.png" for shown in report.figures))
    report.write()
    write_figures(store.out, {shown.name: shown.figure for shown in report.figures})
    return report


def _show(report: Report, out: Path) -> None:
    """Print the summary, the criteria and where everything is."""
    console = Console(highlight=False)
    console.print(_summary_table(report))
    for criterion in report.criteria:
        console.print(str(criterion), markup=False)
    for failed in report.failed.itertuples():
        console.print(f"failed: {failed.arm}, seed {failed.seed}: {failed.error}", markup=False)
    if len(report.failed):
        console.print("--retry-failed runs the failed trials again")
    console.print(
        f"report: {out / 'report.md'}   TensorBoard: tensorboard --logdir {out}", markup=False, soft_wrap=True
    )


def _summary_table(report: Report) -> Table:
    table = Table(title=report.study.question)
    table.add_column("arm")
    metrics = [m for m in SUMMARY if m in report.results and report.results[m].notna().any()]
    for name in ("seeds", *metrics):
        table.add_column(name, justify="right")
    for arm in report.arms:
        rows = report.results[report.results["arm"] == arm]
        if len(rows):
            table.add_row(arm, str(len(rows)), *(_mean(rows[m].dropna()) for m in metrics))
    return table


def _mean(values: pd.Series) -> str:
    if values.empty:
        return ""
    return f"{values.mean():.3f} ± {values.std():.3f}" if len(values) > 1 else f"{values.mean():.3f}"


def _line(record: dict[str, Any]) -> str:
    tested = [name for name in SUMMARY if name.startswith("test_") and record.get(name) is not None]
    outcome = record["error"] or ", ".join(f"{name.replace('_', ' ')} {record[name]:.3f}" for name in tested)
    return f"{record['arm']}, seed {record['seed']}: {outcome} ({record['wall_seconds']:.1f} s)"


def _time_left(trials: list[Trial], seconds: dict[str, list[float]]) -> float:
    """Return the seconds that the trials take in all, judged by those that ended, of the same arm where there are."""
    known = [value for values in seconds.values() for value in values]
    overall = statistics.fmean(known)
    return sum(statistics.fmean(seconds.get(trial.arm.name) or [overall]) for trial in trials)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Any]:
    """Yield a function that reports a finished trial; a bar on a terminal, plain lines elsewhere."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, left="")

        def advance(done: int, line: str, left: float) -> None:
            ending = f"about {_duration(left)} left" if left else "done"
            console.print(f"[{done}/{total}] {line}; {ending}", markup=False, soft_wrap=True)
            bar.update(task, completed=done, left=ending)

        yield advance


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

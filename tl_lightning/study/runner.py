"""Run a study: every trial that has no record yet, then the tables, the figures and the report."""

from __future__ import annotations

import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tl_lightning.errors import UserError
from tl_lightning.study.design import Study, Trial
from tl_lightning.study.devices import resolve_devices
from tl_lightning.study.environment import environment
from tl_lightning.study.records import RecordStore
from tl_lightning.study.report import Report
from tl_lightning.study.results import results_frame, summary_frame, write_results_csv, write_summary_csv
from tl_lightning.study.settings import Settings
from tl_lightning.study.tensorboard import write_figures


def run_study(study: Study, settings: Settings) -> int:
    """Run what is left of a study and write its report.

    Returns:
        Exit code: 0 when every trial ended well, 1 when some failed.

    Raises:
        UserError: The settings could not run, or the output folder holds another study's results.
    """
    console = Console(stderr=True, highlight=False)
    out = Path(settings.out or f"logs/{study.name}")
    devices = resolve_devices(settings.gpus, settings.precision)
    if devices.note:
        console.print(devices.note)
    if study.check is not None:
        study.check(settings)
    trials = study.trials(settings, out)
    store = RecordStore(out)
    store.open({"study": study.name, **settings.configuration()}, fresh=settings.fresh)
    with store.lock():
        try:
            _run_trials(study, settings, trials, store, console)
        finally:
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
    seconds: dict[str, list[float]] = defaultdict(list)
    finished = {r["trial"]: r for r in store.records() if r["status"] == "ok" or not settings.retry_failed}
    for record in finished.values():
        seconds[record["arm"]].append(record["wall_seconds"])
    device = resolve_devices(settings.gpus, settings.precision).name
    left = [trial for trial in trials if trial.id not in finished]
    console.print(f"{study.name}: {len(trials)} trials, {len(trials) - len(left)} of them done, results in {store.out}")
    with _progress(console, len(trials), len(trials) - len(left)) as advance:
        for position, trial in enumerate(left):
            record = _run_trial(study, settings, trial, device)
            store.write(record)
            seconds[trial.arm.name].append(record["wall_seconds"])
            advance(_line(record), _time_left(left[position + 1 :], seconds))


def _run_trial(study: Study, settings: Settings, trial: Trial, device: str) -> dict[str, Any]:
    """Return the trial's record; a failure is a record too, with its traceback beside it."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    try:
        values = {**study.run(trial, settings), "status": "ok", "error": ""}
    except (KeyboardInterrupt, SystemExit):  # Lightning turns Ctrl-C into SystemExit
        raise KeyboardInterrupt from None
    except Exception as error:
        (trial.folder / "error.txt").write_text(traceback.format_exc())
        values = {"status": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    return {
        "trial": trial.id,
        "study": study.name,
        "arm": trial.arm.name,
        "factors": dict(trial.arm.factors),
        "seed": trial.seed,
        "data": settings.data,
        "image_size": settings.image_size,
        "device": device,
        **values,
        "wall_seconds": time.perf_counter() - start,
        **environment(),
    }


def _write_results(study: Study, settings: Settings, trials: list[Trial], store: RecordStore) -> Report:
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
    metrics = [m for m in ("val_accuracy", "test_accuracy", "train_seconds") if m in report.results]
    for name in ("seeds", *metrics):
        table.add_column(name, justify="right")
    for arm in report.arms:
        rows = report.results[report.results["arm"] == arm]
        if len(rows):
            cells = [
                f"{rows[m].mean():.3f} ± {rows[m].std():.3f}" if len(rows) > 1 else f"{rows[m].mean():.3f}"
                for m in metrics
            ]
            table.add_row(arm, str(len(rows)), *cells)
    return table


def _line(record: dict[str, Any]) -> str:
    outcome = (
        record["error"] or f"test accuracy {record['test_accuracy']:.3f}"
        if "test_accuracy" in record
        else record["error"]
    )
    return f"{record['arm']}, seed {record['seed']}: {outcome} ({record['wall_seconds']:.1f} s)"


def _time_left(trials: list[Trial], seconds: dict[str, list[float]]) -> float | None:
    """Return the seconds that the trials will take, judged by the trials of the same arm, else by all."""
    known = [value for values in seconds.values() for value in values]
    if not known:
        return None
    overall = statistics.fmean(known)
    return sum(statistics.fmean(seconds.get(trial.arm.name) or [overall]) for trial in trials)


@contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Any]:
    """Yield a function that reports a finished trial; a bar on a terminal, plain lines elsewhere."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("trials"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done, left="")

        def advance(line: str, left: float | None) -> None:
            nonlocal done
            done += 1
            ending = f"about {_duration(left)} left" if left else "done"
            console.print(f"[{done}/{total}] {line}; {ending}", markup=False, soft_wrap=True)
            bar.update(task, completed=done, left=ending)

        yield advance


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"

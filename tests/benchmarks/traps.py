"""Run the ten traps of freezing on this package and its peers, for real, and print what each does.

    python tests/benchmarks/traps.py [--markdown] [--peers NAME ...] [--traps N ...]

Peers come from ``tests/benchmarks/requirements.txt``. Each trap is trained anew on a small residual network with
BatchNorm and 64 handwritten digits; a peer is set up as its documentation says, in the configuration that serves it
best (printed below the table).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from checks import crossing, frozen, processes, rates, resuming
from checks.verdict import Verdict, brief
from peers.job import NotApplicable, Peer
from peers.registry import peer_class

Check = Callable[[Peer, Path], Verdict]

PEERS = ("lightning", "finetuning-scheduler", "fastai", "ours")
TRAPS: dict[str, tuple[str, Check]] = {
    "1": ("a frozen BatchNorm does not drift", frozen.frozen_batch_norm),
    "1b": ("not even if the user calls train()", frozen.after_train_call),
    "2": ("resume keeps what was thawed", resuming.resume_at_epochs),
    "3": ("resume in mid-epoch", resuming.resume_in_epoch),
    "4": ("optimizer state by parameter name", resuming.optimizer_state),
    "5": ("every torch scheduler, two thaws", rates.schedulers),
    "6": ("rate ratio after finder, SWA, warm-up", rates.ratios),
    "7": ("DDP ranks equal after a thaw", processes.equal_ranks),
    "8": ("no thaw kick, no dead tail", rates.thaw_kick),
    "9": ("every parameter has one owner", frozen.identity),
    "10": ("compile, activation checkpointing", crossing.crossing),
    "10b": ("Grad-CAM panels change nothing", crossing.gradcam),
}


def run(check: Check, peer: Peer) -> Verdict:
    """Run one check in a folder of its own; an error that the check did not expect is a failure."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return check(peer, Path(folder))
        except NotApplicable as reason:
            return Verdict("n/a", str(reason))
        except Exception as error:
            if os.environ.get("TRAPS_TRACEBACK"):
                traceback.print_exc()
            return Verdict("FAIL", brief(error))


def best_verdict(number: str, cls: type[Peer]) -> Verdict:
    """Return the verdict on a peer, the best one where its documentation offers variants."""
    _, check = TRAPS[number]
    verdicts = {variant: run(check, cls(variant)) for variant in cls.variants.get(number, ("",))}
    statuses = {verdict.status for verdict in verdicts.values()}
    best = next(status for status in ("pass", "n/a", "FAIL") if status in statuses)
    said = [f"{variant}: {v.reason or v.status}" if variant else v.reason for variant, v in verdicts.items()]
    return Verdict(best, "; ".join(said))


Table = dict[str, dict[str, Verdict]]


def run_all(traps: Sequence[str], classes: Sequence[type[Peer]]) -> Table:
    """Return trap -> name of the peer -> verdict; progress goes to stderr."""
    table: Table = {}
    for number in traps:
        table[number] = {}
        for cls in classes:
            begin = time.perf_counter()
            table[number][cls.name] = verdict = best_verdict(number, cls)
            seconds = time.perf_counter() - begin
            print(f"trap {number:>3s} {cls.name:28s} {verdict.status:5s} {seconds:5.1f} s", file=sys.stderr)
    return table


def as_text(table: Table, classes: Sequence[type[Peer]]) -> str:
    """Return the table, then the reasons."""
    names = [cls.name for cls in classes]
    width = max(len(title) for title, _ in TRAPS.values()) + 4
    lines = [" " * width + "  ".join(names)]
    for number, row in table.items():
        cells = "  ".join(f"{row[name].status:{len(name)}s}" for name in names)
        lines.append(f"{number:>3s} {TRAPS[number][0]:{width - 4}s}{cells}")
    lines += ["", *reasons(table), "", *setups(classes)]
    return "\n".join(lines)


def as_markdown(table: Table, classes: Sequence[type[Peer]]) -> str:
    """Return the table as Markdown, then the reasons as a list."""
    names = [cls.name for cls in classes]
    lines = [f"| # | trap | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for number, row in table.items():
        cells = " | ".join(_bold(row[name].status) for name in names)
        lines.append(f"| {number} | {TRAPS[number][0]} | {cells} |")
    lines += ["", *(f"- {line}" for line in reasons(table)), "", *setups(classes)]
    return "\n".join(lines)


def reasons(table: Table) -> list[str]:
    """Return one line for every verdict that needs a reason."""
    return [
        f"{number}, {name}, {verdict.status}: {verdict.reason}"
        for number, row in table.items()
        for name, verdict in row.items()
        if verdict.reason
    ]


def setups(classes: Sequence[type[Peer]]) -> list[str]:
    """Return how each peer was set up, with versions and machine."""
    lines = [f"{cls.name} {_version(cls.package)}: {cls.configuration}." for cls in classes]
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return [*lines, f"torch {torch.__version__}, {machine}, {time.strftime('%Y-%m-%d')}."]


def _version(package: str) -> str:
    return version({"finetuning_scheduler": "finetuning-scheduler"}.get(package, package))


def _bold(status: str) -> str:
    return f"**{status}**" if status == "FAIL" else status


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--traps", nargs="+", choices=list(TRAPS), default=list(TRAPS))
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--worker", nargs=3, metavar=("PEER", "VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        name, variant, folder = options.worker
        cls = peer_class(name)
        assert cls is not None
        processes.work(cls(variant), Path(folder))
        return
    found = {name: peer_class(name) for name in options.peers}
    for name, cls in found.items():
        if cls is None:
            print(f"{name} is not installed: pip install -r tests/benchmarks/requirements.txt", file=sys.stderr)
    classes = [cls for cls in found.values() if cls is not None]
    table = run_all(options.traps, classes)
    print((as_markdown if options.markdown else as_text)(table, classes))


if __name__ == "__main__":
    main()

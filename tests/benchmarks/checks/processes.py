"""Trap 7: two processes train as one, also after a thaw."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from peers.job import NotApplicable, Peer

from checks.verdict import Verdict, judge, small_job, thaw_at

EPOCHS = 4
LIMIT = 300  # seconds


def equal_ranks(peer: Peer, folder: Path) -> Verdict:
    """Trap 7: the ranks' checksums of all weights are equal at the end of every epoch, before and after the thaws."""
    folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).parent.parent / "traps.py"
    command = [str(script), "--worker", peer.key, peer.variant, str(folder)]
    if peer.package == "fastai":  # Lightning starts its processes itself
        command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]
    if any("n/a" in report for report in reports):
        raise NotApplicable(next(report["n/a"] for report in reports if "n/a" in report))
    if done.returncode != 0 or len(reports) != 2:
        last = [line for line in done.stderr.splitlines() if "Error" in line] or ["no message"]
        return Verdict("FAIL", f"does not run: {last[-1][:120]}")
    first, second = (report["digests"] for report in reports)
    apart = [epoch for epoch, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    moved = len(set(first)) == EPOCHS
    problems = [f"the ranks' weights differ from epoch {apart[0]} on, silently"] if apart else []
    return judge(problems + ([] if moved else ["the weights did not move"]))


def work(peer: Peer, folder: Path) -> None:
    """Train as one of the processes and write down the checksums of every epoch."""
    torch.manual_seed(0)
    job = thaw_at(small_job(peer, epochs=EPOCHS, processes=2), 1, 2)
    report: dict[str, object]
    try:
        peer.fit(job)
        assert job.recorder is not None
        report = {"digests": job.recorder.digests}
    except Exception as error:
        if "NVIDIA" not in str(error) and "CUDA" not in str(error):
            raise
        report = {"n/a": "its distributed loader needs CUDA"}
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    (folder / f"rank{rank}.json").write_text(json.dumps(report))

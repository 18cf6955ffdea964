"""S6: peak memory of training, every fit in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from peers.registry import peer_class

from scenarios.measure import Result, Row, Target, ratio
from scenarios.workload import OURS, PEERS, Sizes, Workload, contenders
from tl_lightning.callbacks.peak_memory import PeakMemory

MODES = {"head": "head only", "half": "lower half frozen", "full": "all layers"}
KEYS = (*PEERS, "bare", "ours-study")


def peak_memory(work: Workload) -> Result:
    """S6: how far the resident memory rises above its level before the fit."""
    result = Result("S6", f"peak memory above the start, batch of {work.sizes.batch_size}, {work.sizes.image_size} px")
    for repeat in range(work.sizes.repeats):
        for key, cls in zip(KEYS, map(peer_class, KEYS), strict=True):
            for mode in MODES if cls is not None else ():
                _add(result, f"{cls.name}, {MODES[mode]}", _measured(key, mode, work.sizes))  # type: ignore[union-attr]
        print(f"  {repeat + 1}/{work.sizes.repeats}", file=sys.stderr, flush=True)
    ours = {mode: result.median(f"{OURS}, {name}") for mode, name in MODES.items()}
    result.targets = [
        Target("S6", f"{MODES[mode]} / full fine-tuning", ratio(ours[mode], ours["full"]), 1.0, "at most")
        for mode in ("head", "half")
    ]
    peers = [f"{name}, {MODES['head']}" for name in contenders(PEERS)]
    result.targets.append(
        Target("S6", "head only / the best peer's head only", ratio(ours["head"], result.best(peers)), 1.0, "at most")
    )
    result.notes.append("the bounds are our own: full fine-tuning, and the best peer")
    return result


def _add(result: Result, name: str, value: float) -> None:
    row = result.row(name)
    if row is None:
        result.rows.append(Row("S6", name, "MiB", [value]))
    else:
        row.values.append(value)


def _measured(key: str, mode: str, sizes: Sizes) -> float:
    script = Path(__file__).parent.parent / "speed.py"
    command = [sys.executable, str(script), "--memory-worker", key, mode, json.dumps(asdict(sizes))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{key} {mode}: {done.stderr[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def work_in_process(key: str, mode: str, sizes: Sizes) -> None:
    """Measure one fit of this process and print the MiB by which its memory rose."""
    work = Workload(sizes)
    cls = peer_class(key)
    assert cls is not None
    half = work.half  # looked for in every mode: its forward pass of an image belongs to no fit
    network = work.network(half if mode == "half" else -1)
    job = work.job(network, frozen=mode != "full", epochs=1)
    memory = PeakMemory(work.device)
    memory.start()
    cls().fit(job)
    print(json.dumps(memory.read()[1]))

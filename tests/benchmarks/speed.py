"""Time this package and its peers on the same work: the same images, weights and steps, interleaved in one run.

    python tests/benchmarks/speed.py --data-dir CIFAR10 [--scenarios S1 S2 ...] [--repeats 5] [--scale 0.1]

CIFAR10 is a folder ``{train,test}/<class>/*``; without it the packaged images of solar cells are used. Peers come from
``tests/benchmarks/requirements.txt``; one that is not installed is left out. Prints tables, and writes ``speed.csv``,
``speed.png`` and ``speed.md`` to the output folder. All scenarios take some hours on two cores; ``--scale 0.1`` tries
them with a tenth of the images.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from scenarios import data_path, frozen, gpu, growth, memory, sweep, training
from scenarios.figures import draw
from scenarios.measure import Result
from scenarios.report import environment, table, write_csv
from scenarios.workload import Sizes, Workload

SCENARIOS: dict[str, Callable[[Workload], Result]] = {
    "S1": frozen.linear_probe,
    "S2": frozen.half_frozen,
    "S2a": frozen.half_frozen_augmented,
    "S3": sweep.head_sweep,
    "S4": training.full_fine_tuning,
    "S5": data_path.data_path,
    "S6": memory.peak_memory,
    "S7": growth.growth,
    "S8": lambda work: gpu.gpu_throughput(work.sizes.repeats),
}


def run(names: Sequence[str], work: Workload, output: Path) -> list[Result]:
    """Run the scenarios, and write what there is after each: a long run that is stopped has not been for nothing."""
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for name in names:
        print(name, file=sys.stderr, flush=True)
        results.append(SCENARIOS[name](work))
        write_csv(results, output / "speed.csv")
        command = f"python tests/benchmarks/speed.py {shlex.join(sys.argv[1:])}"
        (output / "speed.md").write_text(f"`{command}`\n\n{table(results, markdown=True)}\n")
        draw(results, output / "speed.png", environment())
    return results


def probe_times(folder: Path) -> dict[str, list[float]]:
    """Return the seconds of S1 by contender from what an earlier run wrote to a folder."""
    with (folder / "speed.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scenario"] == "S1" and row["unit"] == "s"]
    names = dict.fromkeys(row["contender"] for row in rows)
    return {name: [float(row["value"]) for row in rows if row["contender"] == name] for name in names}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    line.add_argument("--data-dir", help="image folder {train,test}/<class>/*; the packaged solar cells by default")
    line.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    line.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is taken")
    line.add_argument("--scale", type=float, default=1.0, help="share of the images, for trying out")
    line.add_argument("--epochs", type=int, default=10, help="epochs of S1, S2 and S5")
    line.add_argument(
        "--probe-times", type=Path, help="output of an earlier S1, whose times S3 takes where S1 is not run"
    )
    line.add_argument("--output", type=Path, default=Path("logs/benchmarks"))
    line.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    line.add_argument("--memory-worker", nargs=3, help=argparse.SUPPRESS)
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    warnings.filterwarnings("ignore")
    if options.memory_worker:
        key, mode, sizes = options.memory_worker
        memory.work_in_process(key, mode, Sizes(**json.loads(sizes)))
        return
    sizes = Sizes(data_dir=options.data_dir, epochs=options.epochs, repeats=options.repeats)
    images, tests = (max(64, int(options.scale * n)) for n in (sizes.images, sizes.test_images))
    work = Workload(replace(sizes, images=images, test_images=tests))
    if options.probe_times:
        work.probe_seconds = probe_times(options.probe_times)
    results = run(options.scenarios, work, options.output)
    print(table(results, options.markdown))


if __name__ == "__main__":
    main()

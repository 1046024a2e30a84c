"""What the switches that change a step's arithmetic do to the images, at equal numbers of steps.

    python benchmarks/quality.py --work WORK
    python benchmarks/quality.py --work WORK --data-sets digits --steps 100
    python benchmarks/quality.py --report

`base` is the recipe (`digits-cpu`, seeds 0 to 2; `fashion-cpu`, seed 0) in fp32 and the contiguous layout, with R1
every 8 steps; each of the others changes one thing of it:

    r1_every_step   R1 in every step, with the weight of one; lazy R1 weighs it eightfold, eight times as seldom
    bf16            autocast to bfloat16
    channels_last   that layout, which sums in another order

torch.compile is no key of a recipe, so it is not here. A row is one fit, judged as `translator.py` judges; it is one
line of `results/quality.jsonl`, and the same command again makes only those that are missing. Seeds tell how much is
chance: what lies within their spread is none of the switch's doing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import translator

RESULTS = Path(__file__).parent / "results" / "quality.jsonl"
RECIPES = {"digits": "digits-cpu", "fashion": "fashion-cpu"}
SEEDS = {"digits": (0, 1, 2), "fashion": (0,)}
BASE = "base"
_LAZY, _FP32, _CONTIGUOUS = (
    "training.regularize_every_steps=8", "training.precision=fp32", "training.memory_format=contiguous",
)  # fmt: skip
SWITCHES = {
    BASE: (_LAZY, _FP32, _CONTIGUOUS),
    "r1_every_step": ("training.regularize_every_steps=1", _FP32, _CONTIGUOUS),
    "bf16": (_LAZY, "training.precision=bf16", _CONTIGUOUS),
    "channels_last": (_LAZY, _FP32, "training.memory_format=channels_last"),
}
"""What each row sets beside the recipe."""


def measure(data_set: str, switch: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit, generate and judge one row."""
    changes = [*SWITCHES[switch], f"training.threads={arguments.threads}"]
    changes += [f"training.steps={arguments.steps}"] if arguments.steps else []
    name = f"{data_set}-{switch}-{seed}-{arguments.steps or 'all'}"
    settings = argparse.Namespace(
        work=arguments.work, name=name, data_set=data_set, recipe=RECIPES[data_set], seed=seed, set=changes
    )
    return {**translator.measure(settings), "switch": switch}


def figures_of(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return a row's mean FD and mean agreement ratio over its classes."""
    classes = row["classes"].values()
    return tuple(statistics.mean(of_class[name] for of_class in classes) for name in ("fd", "agreement_ratio"))


def report_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table: means over seeds with their range, and ratios to the base of the same seed."""
    lines = [
        "| data | steps | switch | seeds | mean FD (range) | FD over that of base, seed by seed "
        "| mean agreement ratio (range) |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys((row["data_set"], row["steps"]) for row in rows)
    for (data_set, steps), switch in itertools.product(groups, SWITCHES):
        found = {
            name: {r["seed"]: figures_of(r) for r in rows if (r["data_set"], r["steps"], r["switch"]) == key}
            for name in (BASE, switch)
            for key in [(data_set, steps, name)]
        }
        if not found[switch]:
            continue
        fd, agreement = zip(*found[switch].values(), strict=True)
        ratios = [v[0] / found[BASE][seed][0] for seed, v in sorted(found[switch].items()) if seed in found[BASE]]
        lines.append(
            f"| {data_set} | {steps} | {switch} | {len(fd)} | {_with_range(fd, 0)} "
            f"| {', '.join(f'{ratio:.2f}' for ratio in ratios)} | {_with_range(agreement, 2)} |"
        )
    return "\n".join(lines)


def _with_range(values: Sequence[float], digits: int) -> str:
    mean, least, most = (f"{value:.{digits}f}" for value in (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})" if len(values) > 1 else mean


def read_rows(results: Path) -> list[dict[str, Any]]:
    """Return all lines, none where there is no file yet."""
    return translator.read_rows(results) if results.is_file() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder outside the repository")
    parser.add_argument("--data-sets", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    parser.add_argument("--switches", nargs="+", choices=tuple(SWITCHES), default=list(SWITCHES))
    parser.add_argument("--steps", type=int, help="of training; default: the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="print what was measured and measure nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        if arguments.work is None:
            parser.error("--work is needed, or --report")
        run_all(arguments)
    print(report_text(read_rows(arguments.results)))


def run_all(arguments: argparse.Namespace) -> None:
    """Measure every row that is not there yet."""
    for data_set in arguments.data_sets:
        steps = arguments.steps or translator.load_recipe(RECIPES[data_set]).training.steps
        for seed, switch in itertools.product(SEEDS[data_set], arguments.switches):
            done = {(r["data_set"], r["switch"], r["seed"], r["steps"]) for r in read_rows(arguments.results)}
            if (data_set, switch, seed, steps) in done:
                continue
            row = measure(data_set, switch, seed, arguments)
            with arguments.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

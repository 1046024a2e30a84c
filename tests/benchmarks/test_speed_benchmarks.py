"""The arithmetic of the benchmarks of speed, and of what speed costs."""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import classes  # noqa: E402
import generate  # noqa: E402
import quality  # noqa: E402
import train_step  # noqa: E402
import translator  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_speed_of_generation_leaves_start_up_out():
    rounds = [generate.Round(100.0, 400, short=(3.0, 2.0, 10.0), whole=(7.5, 4.4, 300.0))] * 2
    rounds.append(generate.Round(50.0, 400, short=(3.0, 2.0, 10.0), whole=(5.0, 4.4, 200.0)))
    stations = {"forward": 4.0, "draw": 1.0}
    row = generate.row_of(rounds, cores=2, of_stations=stations)
    assert row["long_run_per_second"] == round(300 / 4.5, 1)
    assert row["ratios"] == [0.667, 0.667, 3.0] and row["ratio_to_forward"] == 0.667
    assert row["cpu_ms"] == 8.0 and row["cpu_ratio_to_forward"] == 0.5
    assert row["peak_mib"] == 300 and row["n"] == 3 and row["processor_share"] == 0.29
    text = generate.report_text([{"size_px": 32, "images": 400, "processes": 2, "filtered": True, **row}])
    assert "| 32 | 400 | 2 | yes | 100 | 67, 53 | 0.67 (0.67, 0.67, 3.00) | 0.29 | 300 |" in text
    assert "| 32 | 2 | yes | 4.00 | 1.00 | 8.00 | 0.50 |" in text


def line(kind: str, number: int, steps: int, seconds: float, fd: dict[str, float], parameters: int = 10) -> dict:
    size = {"parameters": parameters, "bytes": 4 * parameters}
    return {"kind": kind, "number": number, "steps": steps, "seconds": seconds, "fd": fd, **size}


def test_time_to_a_quality_is_the_first_crossing():
    points = [classes.Point(10, 100.0), classes.Point(20, 60.0), classes.Point(40, 70.0), classes.Point(80, 20.0)]
    assert classes.seconds_to(points, 120.0) == 10
    assert classes.seconds_to(points, 80.0) == 15
    assert classes.seconds_to(points, 60.0) == 20
    assert classes.seconds_to(points, 45.0) == 60
    assert classes.seconds_to(points, 10.0) == float("inf")


def test_models_alone_are_added_up_and_compared_at_equal_quality():
    rows = [line("alone", i, s, s / 10, {f"c{i}": 1000 / s + i}) for i in range(2) for s in (10, 20)]
    rows += [line("joint", 2, s, s / 5, {"c0": 1200 / s, "c1": 1400 / s}, parameters=12) for s in (10, 20)]
    one, two = classes.comparisons(rows)
    assert one["k"] == 1 and one["joint"] == one["alone"] == 2.0
    # Alone reaches 50 and 51 (mean 50.5) in 2 + 2 s, joint 60 and 70 (mean 65) in 4 s: equal is 65.
    assert two["quality"] == 65 and two["joint"] == 4.0
    assert two["alone"] == pytest.approx(2 + 2 * (100.5 - 65) / 50)
    assert two["parameters"] == [12, 20] and two["bytes"] == [48, 80]
    assert "| 2 | 65, 50 | 65 | 4, 3 | 0.85 | 12, 20 |" in classes.report_text(rows)
    assert [row["k"] for row in classes.comparisons(rows[:2] + rows[4:])] == [1]  # all pieces of the second are missing
    longer = [*rows[:-2], line("joint", 2, 40, 8, {"c0": 50, "c1": 51})]
    assert list(classes.comparisons(longer))[1]["joint"] == 8.0, "of other lengths than the models alone"


def test_pieces_are_those_that_the_numbers_need():
    found = classes.pieces([1, 3], [5, 9], [5, 9, 20])
    assert Counter(piece.kind for piece in found) == {"joint": 3, "alone": 6}
    names = classes.poor_names()
    assert len(names) == 30 and len(set(names)) == 30
    assert [name[-1] for name in names[:5]] == list("56789")
    assert classes.Piece("joint", 3, 5).poor(names) == tuple(names[:3])
    assert classes.Piece("alone", 3, 5).poor(names) == (names[3],)


def test_sub_labels_are_seeded_clusters_the_largest_first():
    rng = np.random.default_rng(0)
    sizes = {0: 20, 120: 50, 250: 30}
    pixels = np.concatenate([rng.normal(level, 2, (n, 4, 4)) for level, n in sizes.items()])
    found = classes.sub_labels(pixels, 3)
    assert np.bincount(found).tolist() == [50, 30, 20]
    assert [set(part.tolist()) for part in np.split(found, [20, 70])] == [{2}, {0}, {1}]
    assert np.array_equal(found, classes.sub_labels(pixels, 3))


def quality_row(switch: str, seed: int, fd: float, agreement: float) -> dict:
    of_classes = {
        "a": {"fd": fd - 10, "agreement_ratio": agreement},
        "b": {"fd": fd + 10, "agreement_ratio": agreement},
    }
    return {"data_set": "digits", "steps": 7, "switch": switch, "seed": seed, "classes": of_classes}


def test_quality_is_told_with_its_spread_and_seed_by_seed():
    rows = [quality_row("base", seed, 100 + 20 * seed, 0.9) for seed in (0, 1)]
    rows += [quality_row("bf16", 0, 110, 0.8), quality_row("bf16", 1, 120, 1.0)]
    text = quality.report_text(rows)
    assert "| digits | 7 | base | 2 | 110 (100 to 120) | 1.00, 1.00 | 0.90 (0.90 to 0.90) |" in text
    assert "| digits | 7 | bf16 | 2 | 115 (110 to 120) | 1.10, 1.00 | 0.90 (0.80 to 1.00) |" in text
    assert "channels_last" not in text


def test_quality_changes_one_thing_at_a_time():
    for recipe in quality.RECIPES.values():
        base = translator.load_recipe(recipe, list(quality.SWITCHES["base"]))
        for switch, changes in quality.SWITCHES.items():
            other = translator.load_recipe(recipe, list(changes))
            differing = {
                key
                for key, value in translator._flat(other.to_mapping(), "").items()
                if value != translator._flat(base.to_mapping(), "")[key]
            }
            assert len(differing) == (switch != quality.BASE), switch


def test_rows_that_are_there_are_not_measured_again(tmp_path, monkeypatch):
    measured = []

    def measure(data_set, switch, seed, arguments):
        measured.append((switch, seed))
        return quality_row(switch, seed, 100, 1.0)

    monkeypatch.setattr(quality, "measure", measure)
    results = tmp_path / "quality.jsonl"
    results.write_text(json.dumps(quality_row("bf16", 1, 50, 1.0)) + "\n")
    arguments = argparse.Namespace(
        data_sets=["digits"], switches=["base", "bf16"], steps=7, work=tmp_path, results=results
    )
    quality.run_all(arguments)
    quality.run_all(arguments)
    assert sorted(measured) == [("base", 0), ("base", 1), ("base", 2), ("bf16", 0), ("bf16", 2)]


def test_optimisers_of_the_ladder_exclude_each_other():
    found = train_step.rungs(bf16=True, compiled=True)
    assert found["together"].foreach and not found["together"].fused and not found["together"].compiled
    assert found["together_fused"].fused and not found["together_fused"].foreach
    assert found["together_compiled"].compiled and found["together"].bf16
    assert not any(switches.compiled or switches.bf16 for switches in train_step.rungs(bf16=False).values())
    arguments = argparse.Namespace(
        size_px=32, base_filters=4, classes=3, batch=2, seed=0, bf16=False, device="cpu", compile_seconds=0
    )
    step = train_step.make_step("fused", arguments, torch.device("cpu"))
    assert all(type(o) is torch.optim.Adam and o.defaults["fused"] for o in step.optimizers.values())
    step(train_step._batch(arguments), 0)


def test_a_step_that_does_not_compile_in_time_is_a_row_that_says_so():
    arguments = argparse.Namespace(threads=1, compile_seconds=0)
    reason = train_step.why_not("compiled", arguments)
    assert reason == "not compiled within 0 s"
    rung = {"mean_s": 1.0, "min_s": 1.0, "max_s": 1.0, "ratio_to_reference": 1.0, "gflops": 1.0}
    row = {
        "rungs": {"reference": {**rung, "share_of_fp32_peak": 0.5, "share_of_bf16_peak": 0.25, "peak_mib": None}},
        "failed": {"compiled": reason},
    }
    assert "| compiled | not compiled within 0 s |" in train_step.table(row)
    assert "| reference | 1000 (1000 to 1000) | 1.00 | 1 | 0.500 | 0.250 |  |" in train_step.table(row)


def test_files_of_the_index_are_deleted_and_nobody_elses(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "index.py"), "--work", str(tmp_path / "work"), "--files", "120"]
    command += ["--results", str(tmp_path / "index.jsonl")]
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(text) for text in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [row["files"] for row in rows] == [120] * 4
    assert list((tmp_path / "work").iterdir()) == []
    (tmp_path / "work" / "data").mkdir()
    refused = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert refused.returncode == 2 and (tmp_path / "work" / "data").is_dir()

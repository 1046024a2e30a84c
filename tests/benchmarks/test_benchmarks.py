"""The benchmarks' own arithmetic, and that what they recorded can be read."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rebalance.config import load_recipe
from rebalance.trials.trial import Trial

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import classifier  # noqa: E402
import data_sets  # noqa: E402
import deep_smote  # noqa: E402
import filter as filter_benchmark  # noqa: E402
import frechet as frechet_benchmark  # noqa: E402
import index  # noqa: E402
import long_tail  # noqa: E402
import long_tail_report  # noqa: E402
import train_step  # noqa: E402
import translator  # noqa: E402
from toys import same_tensors  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_copies_are_nearer_to_train_than_test_images_are():
    rng = np.random.default_rng(0)
    train, test, other = (rng.standard_normal((300, 4)).astype(np.float32) for _ in range(3))
    median, low = translator.nearest_real_ratios(train, test, other)
    assert 0.85 < median < 1.15 and 0.7 < low < 1.3
    median, low = translator.nearest_real_ratios(train, test, train + 1e-3)
    assert median < 0.01 and low < 0.05
    assert translator.nearest_real_ratios(train, test, other * 5)[0] > 2


def test_source_dependence_of_edges_ignores_brightness():
    rng = torch.Generator().manual_seed(0)
    outlines, levels = torch.rand(4, 1, 1, 8, 8, generator=rng), torch.linspace(-1, 1, 4)[None, :, None, None, None]
    translations = outlines * 0.2 + levels
    pixels = translator.source_dependence(translations).ratio
    assert pixels < 0.05
    assert translator.source_dependence(translator._edges(translations)).ratio > 1e3


def test_a_classifier_learns_and_is_read_back(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    pixels = rng.integers(0, 60, (200, 16, 16, 1)).astype(np.uint8)
    pixels[labels == 1, 4:12, 4:12] += 150
    path = tmp_path / "weights.safetensors"
    trained = classifier.train_or_load(path, pixels, labels, 30, seed=0)
    assert (classifier.predict(trained, pixels) == labels).mean() > 0.95
    again = classifier.train_or_load(path, pixels, labels, 30, seed=0)
    assert np.array_equal(classifier.predict(again, pixels), classifier.predict(trained, pixels))


def test_digits_are_split_without_overlap(tmp_path):
    data = data_sets.DATA_SETS["digits"]
    folder = data.prepared(tmp_path / "digits")
    pixels, labels = data.everything()
    assert pixels.shape[1:] == (8, 8) and len(pixels) == len(labels) == 1797 - 400
    assert len(list(folder.glob("test/*/*.png"))) == 400
    for name, count in data.targets.items():
        assert len(list((folder / "train" / name).glob("*.png"))) == count
    everything = {image.tobytes() for image in pixels}
    test = data_sets.demo.split_digits()[1]
    assert not {row for rows in test.values() for row in rows} & {
        row for rows in data_sets.demo.split_digits()[0].values() for row in rows
    }
    assert len(everything) > 1300


def test_recorded_rows_are_reported(capsys, monkeypatch):
    rows = translator.read_rows(translator.RESULTS)
    assert rows and all({"name", "set", "seed", "n", "steps", "classes", "machine"} <= row.keys() for row in rows)
    monkeypatch.setattr(sys, "argv", ["translator.py", "--report", "--json"])
    translator.main()
    shipped = json.loads(capsys.readouterr().out)
    for row in (shipped, *shipped["other_data_sets"].values()):
        for figures in row["classes"].values():
            assert {
                "agreement_ratio", "source_dependence", "reference_variance", "fd", "floor", "coverage", "nearest_real"
            } <= figures.keys()  # fmt: skip


def test_only_rows_of_the_recipe_as_it_is_count_as_shipped():
    overrides = ["training.threads=1", "training.precision=fp32", "training.memory_format=contiguous"]
    machine, other = load_recipe("fashion-cpu", overrides), load_recipe("fashion-cpu", ["training.steps=3"])
    rows = [
        {"recipe": "fashion-cpu", "values": translator.recipe_values(recipe), "data_set": "fashion", "name": name}
        for name, recipe in (("now", machine), ("changed", other))
    ]
    assert translator.shipped_rows(rows)["fashion"]["name"] == "now"
    assert translator.shipped_rows(rows[1:]) == {}
    assert translator.recipe_values(other)["training.steps"] == 3
    assert "training.precision" not in translator.recipe_values(machine)


def test_a_row_in_a_line_has_its_classes_side_by_side():
    row = next(row for row in translator.read_rows(translator.RESULTS) if row["data_set"] == "fashion")
    (line,) = translator.changes_text([row]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    agreement = [f"{row['classes'][name]['agreement_ratio']:.2f}" for name in "6789"]
    assert cells[0] == row["name"] and cells[3] == ", ".join(agreement) and len(cells) == 10


def test_killed_work_ends_as_if_nothing_had_happened(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "kill.py"), "--work", str(tmp_path / "work"), "--fit", "3",
               "--generate", "3", "--filter", "3", "--results", str(tmp_path / "kill.jsonl")]  # fmt: skip
    done = subprocess.run(command, cwd=BENCHMARKS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "kill.jsonl").read_text())
    assert row["fit"]["kills"] == row["generate"]["kills"] == row["filter"]["kills"] == 3
    assert row["fit"]["finished"] and row["generate"]["finished"]


def test_clean_fid_and_this_package_find_one_distance():
    row = frechet_benchmark.measure(n=400, d=48, repeats=2, threads=1, seed=0)
    assert row["relative_difference"] < 1e-6 and row["distances"]["package"] > 0.01
    assert len(row["processor_seconds"]["clean-fid"]) == 2 and row["least"] <= row["times_faster"] <= row["most"]
    assert "| 400 | 48 |" in frechet_benchmark.report([row])


def test_a_program_judges_the_default_filter(capsys, monkeypatch, tmp_path):
    fds = {"random": (100, 104, 96), "influence": (80, 82, 78), "default": (81, 81, 81), "realism": (120, 120, 120)}
    rows = [
        {"runs": ["a"], "run": "a", "class": "6", "seed": seed, "way": way, "share": 0.5, "fd": fd,
         "coverage": 0.4 + 0.1 * (way != "random")}
        for way, of_seeds in fds.items()
        for seed, fd in enumerate(of_seeds)
    ]  # fmt: skip
    (cell,) = filter_benchmark.verdicts(rows)
    assert cell["best"] == "influence" and cell["within_one_error_of_best"]
    assert cell["coverage_gained_on_random"] == pytest.approx(0.1)
    worse = [{**row, "fd": row["fd"] + 2 * (row["way"] == "default")} for row in rows]
    assert not filter_benchmark.verdicts(worse)[0]["within_one_error_of_best"]
    assert filter_benchmark.last_measured([{"runs": ["a", "b"], "run": "a"}, *rows]) == rows
    far = [{**row, "run": "b", "fd": row["fd"] + 20} for row in worse]
    (of_runs,) = filter_benchmark.verdicts([*worse, *far])
    assert of_runs["n"] == 2 and of_runs["best_fd"] == 90 and of_runs["best_fd_error"] == pytest.approx(10)
    assert of_runs["within_one_error_of_best"], "runs differ by more than their seeds"
    for what, of in (("compared", worse), ("planted", far), ("compared", rows)):
        filter_benchmark._record(tmp_path / "rows.jsonl", [{**row, "runs": ["a"], "what": what} for row in of])
    recorded = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["fd"] for row in recorded] == [row["fd"] for row in (*far, *rows)], "those measured anew are replaced"
    monkeypatch.setattr(sys, "argv", ["filter.py", "--report", "--json"])
    filter_benchmark.main()
    shipped = json.loads(capsys.readouterr().out)
    assert shipped["of_cells"] == len(shipped["cells"]) > 0 and shipped["least_recall"] is not None


def test_every_way_of_reading_a_folder_finds_all_files(tmp_path):
    index.write_files(tmp_path, 205)
    assert {name: work(tmp_path) for name, work in index.WORKS.items()} == dict.fromkeys(index.WORKS, 205)
    assert len({path.read_bytes() for path in tmp_path.rglob("*.jpg")}) == 205


def step_arguments(**changes: object) -> argparse.Namespace:
    values = {"size_px": 32, "base_filters": 4, "classes": 3, "batch": 2, "seed": 0, "bf16": False, "device": "cpu"}
    values |= {"compile_seconds": 0, "threads": 1}
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize("switch", ["frozen", "merged", "shared", "channels_last", "foreach"])
def test_switches_that_only_save_work_leave_the_weights_as_they_are(switch):
    arguments, device = step_arguments(), torch.device("cpu")
    batch = train_step._batch(arguments)
    plain, other = (train_step.make_step(name, arguments, device) for name in ("reference", switch))
    for step in (plain, other):
        # In proportion to gradients; RMSprop would blow up the rounding of those that are 0.
        step.optimizers = {name: torch.optim.SGD(net.parameters(), 1e-3) for name, net in step.method.networks.items()}
        step(batch, 0)
    for name, network in plain.method.networks.items():
        moved = other.method.networks[name].state_dict()
        before = train_step.make_step("reference", arguments, device).method.networks[name].state_dict()
        for key, tensor in network.state_dict().items():
            assert torch.allclose(tensor, moved[key], rtol=1e-3, atol=1e-6), f"{name}/{key}"
        assert any(not torch.allclose(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_the_ladder_counts_less_work_up_to_the_package():
    arguments = step_arguments()
    counted = {
        name: train_step.flops_of(
            train_step.make_step(name, arguments, torch.device("cpu")), train_step._batch(arguments)
        )
        for name in (*train_step.rungs(False), train_step.PACKAGE)
    }
    for name in ("frozen", "merged", "shared", "lazy_r1", "together"):
        assert counted[name] < counted["reference"], name
    assert counted[train_step.PACKAGE] == pytest.approx(counted["together"], rel=0.02)


def _trial(arm: str, seed: int, draw: int, hits: tuple[int, int]) -> dict[str, object]:
    """A trial on 10 val and test images of each of two classes, so many of which are hit."""
    confusion = [[hits[0], 10 - hits[0]], [10 - hits[1], hits[1]]]
    return {"data_set": "x", "draw": draw, "arm": arm, "seed": seed, "test": confusion, "val": confusion}


def _choice(draw: int, best: str, tuned: str) -> dict[str, object]:
    return {"data_set": "x", "draw": draw, "best": best, "tuned": tuned, "poor": [1]}


def test_gap_closure_is_of_paired_draws(tmp_path):
    lines = []
    for draw, (cheap, chosen, full) in enumerate([((8, 4), (8, 6), (9, 9)), ((7, 3), (7, 4), (9, 9))]):
        lines.append(_choice(draw, "oversampling", "oversampling+filtered+x1"))
        for seed in range(2):
            lines.append(_trial("plain", seed, draw, (9, 0)))
            lines.append(_trial("oversampling", seed, draw, cheap))
            lines.append(_trial("oversampling+filtered+x1", seed, draw, chosen))
            lines.append(_trial("oversampling+filtered+x2", seed, draw, cheap))
            lines.append(_trial(long_tail_report.FULL_DATA, seed, draw, full))
            lines.append(_trial(long_tail_report.FULL_DATA + "+augment", seed, draw, (10, 10)))
    lines.append(_trial("weighted", 0, 0, (10, 10)))
    path = tmp_path / "lines.jsonl"
    old = [_choice(0, "plain", "plain"), _trial("plain", 0, 0, (0, 0)), _trial("plain", 5, 0, (10, 10))]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*old, *lines]))
    report = long_tail_report.read_reports(path)["x"]
    mixed = [{**line, "settings": {"seeds": 1}} if line["draw"] else line for line in lines]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mixed))
    with pytest.raises(SystemExit, match="other settings"):
        long_tail_report.read_reports(tmp_path / "other.jsonl")
    assert report.baseline == "oversampling", "weighted is not there in every draw"
    closed = report.gap_closure()
    assert closed.mean == pytest.approx((2 / 6 + 1 / 8) / 2) and closed.low < closed.mean < closed.high
    assert report.difference("chosen", "poor_recall").mean == pytest.approx(0.15)
    assert report.to_json()["recall_gains"]["recall/0"]["mean"] == 0
    assert report.pooled == "best+filtered+x1" and report.regret == pytest.approx(0)
    assert report.met() == {
        "gap_closure": False, "poor_recall_gain": True, "no_class_lost": True, "tuned_near_best": True
    }  # fmt: skip
    text = report.text()
    assert "| oversampling * | 55.0" in text and "| filtered | 1 | +7.5" in text and "| 1 | 35.0" in text
    assert text.count("filtered+x1 ") == 1, "an arm is listed once"


def test_draws_with_other_best_arms_are_compared_by_what_is_on_top(tmp_path):
    lines = []
    for draw, best in enumerate(["oversampling", "weighted+augment"]):
        lines.append(_choice(draw, best, best))
        arms = {"oversampling": (8, 4), "weighted+augment": (8, 6), "oversampling+augment": (1, 1)}
        arms |= {f"{best}+filtered+x5": (9, 8), f"{best}+filtered+x5+late": (10, 10)}
        arms |= {long_tail_report.FULL_DATA: (9, 9), long_tail_report.FULL_DATA + "+augment": (10, 9)}
        lines += [_trial(arm, 0, draw, hits) for arm, hits in arms.items()]
    report = long_tail_report.Report(lines)
    assert "best+filtered+x5" in report.arms and "oversampling+filtered+x5" not in report.arms
    assert "best" not in report.arms and report.values("best", "recall/1") == [0.4, 0.6]
    assert (report.baseline, report.full_data) == ("weighted+augment", "all real data+augment")
    assert report.pooled == "best+filtered+x5" and report.gap_closure(report.pooled).mean == pytest.approx(0.6)
    assert report.regret == pytest.approx(0.85 - 0.65)


def test_a_long_tail_goes_through_all_stations_and_resumes(tmp_path, monkeypatch, capsys):
    tiny = ("training.steps=2", "training.threads=1", "modalities.encoder.steps=2", "filtering.checks=[]",
            "downstream.steps=3", "downstream.width=4")  # fmt: skip
    protocol = long_tail.LONG_TAILS["digits"]
    protocol = replace(protocol, final=12, overrides=(*protocol.overrides, *tiny))
    arms = ("plain", "smote+augment", "best+filtered", "best+unfiltered", "best+control")
    effort = long_tail.Effort(seeds=2, deep_smote_steps=2, arms=arms, multiples=("1", "full"))
    draws = [long_tail.Draw(protocol, 3, tmp_path / "work", effort)]
    results, begun = tmp_path / "lines.jsonl", []
    ran, oversample = Trial.run, deep_smote.oversample
    monkeypatch.setattr(Trial, "run", lambda self, *rest: begun.append((self.arm.name, self.seed)) or ran(self, *rest))
    monkeypatch.setattr(deep_smote, "oversample", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        long_tail.measure_missing(draws, "digits", results)
    assert not results.exists() and len(begun) == len(set(begun)) == 16, "two cheap arms and six with images, two seeds"
    monkeypatch.setattr(deep_smote, "oversample", oversample)
    long_tail.measure_missing(draws, "digits", results)
    assert begun[16:] == [
        *((arm, seed) for seed in (0, 1) for arm in long_tail.DEEP_ARMS),
        *((arm, seed) for seed in (6, 7) for arm in long_tail.FULL_ARMS),
    ]  # fmt: skip
    lines = results.read_bytes()
    monkeypatch.setattr(long_tail, "measure", lambda draw: pytest.fail("it is recorded"))
    long_tail.measure_missing(draws, "digits", results)
    assert results.read_bytes() == lines and len(lines.splitlines()) == 1 + len(begun)
    long_tail.print_reports(results, as_json=True)
    found = json.loads(capsys.readouterr().out.partition("recorded\n")[2])["digits"]
    assert found["gap_closure_interval"] == [None, None] and len(found["recall_gains"]) == 10
    assert found["arms"].keys() >= {
        "plain",
        "best+filtered+x1",
        "best+unfiltered+xfull",
        "best+control+xfull",
        "DeepSMOTE",
    }
    other = long_tail.Draw(protocol, 3, tmp_path / "work", replace(effort, seeds=3))
    threads = replace(protocol, overrides=(*protocol.overrides, "training.threads=2"))
    assert other.settings() != draws[0].settings() == replace(draws[0], protocol=threads).settings()
    assert replace(draws[0], number=4).settings() == draws[0].settings(), "or no report could join them"


def test_deep_smote_fills_classes_with_images_like_theirs_and_resumes(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [24, 4])
    pixels = rng.integers(0, 40, (28, 16, 16, 1)).astype(np.uint8)
    pixels[labels == 1] += 180
    networks = deep_smote.train(pixels, labels, 40, 0, tmp_path, torch.device("cpu"), threads=1)
    made = deep_smote.oversample(*networks, pixels, labels, {1: 24}, 0)
    assert made.keys() == {1} and made[1].shape == (20, 16, 16, 1)
    assert made[1].mean() > 140
    again = deep_smote.train(pixels, labels, 40, 0, tmp_path, torch.device("cpu"), threads=1)
    for network, resumed in zip(networks, again, strict=True):
        assert same_tensors(network.state_dict(), resumed.state_dict()), "read back, not trained again"

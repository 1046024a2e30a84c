"""Generation, filtering, shards, verification and loading, on one tiny run."""

import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import webdataset
from PIL import Image
from threadpoolctl import threadpool_info
from torch.utils.data import DataLoader

from rebalance import files, frechet, reporting, shards
from rebalance.errors import InputError, RefusedError
from rebalance.filtering import Threshold
from rebalance.generation import Candidate, CandidateStream, Slot, Slots, Synthesizer, keyed_rng, load_run
from rebalance.index import ImageIndex
from rebalance.shards import make as shard_making
from rebalance.shards.make import ShardMaker
from rebalance.shards.verify import FIELDS
from rebalance.shards.workers import torch_threads
from rebalance.training import RunDirectory, fit

COUNTS = {"a": 40, "b": 30, "poor": 5, "rare": 4}
BALANCE = {"poor": 28, "rare": 19}
TINY = Path(__file__).parent / "tiny.yaml"


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(COUNTS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.clip(rng.normal(60 * label + 30, 20, (9, 8)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03d}.png")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    write_images(root / "data")
    fit(root / "data", root / "run", TINY, balance=BALANCE)
    return root / "run"


def hashes(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if not path.name.startswith(".")}


def samples(out: Path) -> list[dict]:
    tars = [str(path) for path in sorted(out.glob("*.tar"))]
    return list(webdataset.WebDataset(tars, shardshuffle=False))


def test_shards_hold_exactly_the_planned_counts(run, tmp_path):
    result = shards.generate(run, tmp_path / "out", shard_size=10)
    assert result.counts == {"poor": 23, "rare": 15}
    assert result.complete and result.exit_code == 0 and result.shards == 4
    found = Counter(json.loads(sample["json"])["class"] for sample in samples(tmp_path / "out"))
    assert found == {"poor": 23, "rare": 15}


def test_samples_are_complete_and_consistent(run, tmp_path):
    shards.generate(run, tmp_path / "out", file_format="png")
    keys = set()
    for sample in samples(tmp_path / "out"):
        fields = json.loads(sample["json"])
        assert fields.keys() == FIELDS.keys()
        assert None not in fields.values()
        assert int(sample["cls"]) == fields["label"] == sorted(COUNTS).index(fields["class"])
        assert "." not in sample["__key__"] and sample["__key__"] not in keys
        keys.add(sample["__key__"])
        assert fields["source_class"] in ("a", "b") and fields["source"].startswith(fields["source_class"])
        assert fields["reference"].startswith(fields["class"] + "/")
        assert fields["synthetic"] is True


def test_tar_entries_have_no_time_and_no_owner(run, tmp_path):
    shards.generate(run, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "synthetic-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_same_bytes_for_any_number_of_workers_and_any_order(run, tmp_path, monkeypatch):
    shards.generate(run, tmp_path / "one", shard_size=10)
    shards.generate(run, tmp_path / "two", shard_size=10, workers=2)
    for number in reversed(range(4)):
        part = shards.generate(run, tmp_path / "parts", shard_size=10, shards=(number, number + 1))
        assert part.complete == (number == 0)
    for half in ((0, 2), (2, 4)):
        shards.generate(run, tmp_path / "halves", shard_size=10, shards=half)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    shards.generate(run, "relative", shard_size=10)
    shards.generate(run, "four", shard_size=10, workers=4)
    expected = hashes(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".tar")]) == 4
    for other in ("two", "four", "parts", "halves", "relative"):
        assert hashes(tmp_path / other) == expected


def test_the_request_records_what_may_change_a_byte(run, tmp_path):
    shards.generate(run, tmp_path / "out")
    request = json.loads((tmp_path / "out" / "manifest.json").read_text())["request"]
    assert request["generation"]["threads"] == 1
    assert request["libraries"]["torch"] == torch.__version__
    assert request["device"] == f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def test_the_seed_changes_the_images(run, tmp_path):
    shards.generate(run, tmp_path / "zero", seed=0)
    shards.generate(run, tmp_path / "one", seed=1)
    assert hashes(tmp_path / "zero")["synthetic-000000.tar"] != hashes(tmp_path / "one")["synthetic-000000.tar"]


def test_only_missing_shards_are_made_again(run, tmp_path):
    out = tmp_path / "out"
    shards.generate(run, out, shard_size=10)
    before = hashes(out)
    (out / "synthetic-000001.tar").unlink()
    (out / "synthetic-000002.json").unlink()
    result = shards.generate(run, out, shard_size=10)
    assert result.made == 2
    assert hashes(out) == before


def test_another_request_is_refused_and_named(run, tmp_path):
    out = tmp_path / "out"
    shards.generate(run, out)
    before = hashes(out)
    with pytest.raises(RefusedError, match="quality: 95 -> 50"):
        shards.generate(run, out, quality=50)
    assert hashes(out) == before
    assert shards.generate(run, out, quality=50, overwrite=True).made == 1


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match=r"thesis\.txt"):
            shards.generate(run, tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("file_format", ["jpg", "png", "webp"])
def test_formats_load_with_their_size(run, tmp_path, file_format):
    shards.generate(run, tmp_path / "out", file_format=file_format)
    images = [image for image, _ in shards.load_shards(tmp_path / "out")]
    assert len(images) == 38 and {image.size for image in images} == {(8, 8)}


def test_real_images_come_along_in_their_final_counts(run, tmp_path):
    out = tmp_path / "out"
    shards.generate(run, out, include_real=True, shard_size=30)
    found = Counter((json.loads(s["json"])["class"], json.loads(s["json"])["synthetic"]) for s in samples(out))
    assert found == {
        ("a", False): 40, ("b", False): 30, ("poor", False): 5, ("rare", False): 4,
        ("poor", True): 23, ("rare", True): 15,
    }  # fmt: skip
    keys = [sample["__key__"] for sample in samples(out)]
    assert len(set(keys)) == len(keys)
    assert shards.verify(out).problems == ()


def test_balance_at_generation_takes_fitted_classes_only(run, tmp_path):
    assert shards.generate(run, tmp_path / "out", balance={"poor": 9}).counts == {"poor": 4}
    with pytest.raises(InputError, match="'b'"):
        shards.generate(run, tmp_path / "other", balance={"b": 35})


def test_max_multiple_caps_the_plan(run, tmp_path):
    assert shards.generate(run, tmp_path / "out", max_multiple=2).counts == {"poor": 10, "rare": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "--shard-size"),
        ({"quality": 101}, "--quality"),
        ({"file_format": "gif"}, "--format"),
        ({"workers": -1}, "--workers"),
        ({"min_confidence": 1.5}, "--min-confidence"),
        ({"max_fid": "cheap"}, "--max-fid"),
        ({"max_fid": 0}, "--max-fid"),
        ({"max_kid": "-1x"}, "--max-kid"),
        ({"keep": 0.0}, "--keep"),
        ({"keep": float("nan")}, "--keep"),
        ({"max_similarity": 1.1}, "--max-similarity"),
        ({"features": "nowhere:at_all"}, "--features"),
        ({"features": "encoder", "max_fid": 1}, "--features encoder"),
        ({"shards": (3, 9)}, "--shards"),
        ({"device": "tpu"}, "--device"),
        ({"data": "nowhere"}, "--data"),
    ],
)
def test_wrong_options_name_themselves_and_leave_nothing(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        shards.generate(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_moved_data_is_found_with_data(run, tmp_path):
    shards.generate(run, tmp_path / "before")
    moved = tmp_path / "moved"
    moved.symlink_to(run.parent / "data")
    shards.generate(run, tmp_path / "after", data=moved)
    assert hashes(tmp_path / "before") == hashes(tmp_path / "after")


def test_a_changed_source_image_is_an_error_not_an_image(run, tmp_path):
    copy = tmp_path / "copy"
    write_images(copy)
    for path in [*copy.glob("a/*.png"), *copy.glob("b/*.png")]:
        path.write_bytes(path.read_bytes() + b"longer")
    with pytest.raises(InputError, match=r"/[ab]/\d+\.png has changed"):
        shards.generate(run, tmp_path / "out", data=copy, shard_size=1000, balance={"poor": 28, "rare": 19})
    assert not list((tmp_path / "out").glob("*.tar"))


def test_impossible_confidence_withholds_a_class(run, tmp_path):
    result = shards.generate(run, tmp_path / "out", min_confidence=1.0)
    assert result.exit_code == 3 and result.counts == {}
    assert result.withheld["poor"] == "0 of 16 candidates passed the image filter"


def test_confidence_that_few_have_is_a_shortfall_with_its_reason(run, tmp_path):
    shards.generate(run, tmp_path / "all", min_confidence=0.0)
    found = (json.loads(sample["json"]) for sample in samples(tmp_path / "all"))
    scores = [fields["scores"]["confidence"] for fields in found if fields["class"] == "poor"]
    limit = float(np.quantile(scores, 0.7))
    result = shards.generate(run, tmp_path / "out", min_confidence=limit, balance={"poor": 28})
    assert result.exit_code == 3 and result.shortfall["poor"] > 0 and not result.withheld
    assert result.counts["poor"] + result.shortfall["poor"] == 23
    assert result.rejects["poor"]["low_confidence"] >= 3 * result.shortfall["poor"]
    assert shards.verify(tmp_path / "out").problems == ()


def test_confidence_is_kept_with_the_sample_and_respected(run, tmp_path):
    def confidences(out: Path) -> list[float]:
        return [json.loads(sample["json"])["scores"]["confidence"] for sample in samples(out)]

    shards.generate(run, tmp_path / "all", min_confidence=0.0)
    limit = float(np.median(confidences(tmp_path / "all")))
    shards.generate(run, tmp_path / "out", min_confidence=limit)
    scores = confidences(tmp_path / "out")
    assert scores and min(scores) >= limit and max(scores) <= 1


@pytest.fixture(scope="module")
def filtered_run(run, tmp_path_factory) -> Path:
    """A run whose recipe asks of an image what one of a hardly trained model can pass."""
    other = tmp_path_factory.mktemp("filtered") / "run"
    checks = ["filtering.checks=[low_confidence,memorised,influence]", "filtering.pool_images=96"]
    checks.append("generation.max_candidates=20")
    fit(run.parent / "data", other, TINY, balance=BALANCE, overrides=checks)
    return other


FILTER = {"min_confidence": 0.0, "max_similarity": 1.0, "keep": 0.5}


def test_the_filter_leaves_its_scores_and_reasons(filtered_run, tmp_path):
    result = shards.generate(filtered_run, tmp_path / "out", shard_size=10, **FILTER)
    assert result.counts == {"poor": 23, "rare": 15} and not result.shortfall
    for sample in samples(tmp_path / "out"):
        scores = json.loads(sample["json"])["scores"]
        assert scores["outlier"] == -1 and 0 <= scores["confidence"] <= 1 and -1 < scores["similarity"] <= 1
        assert 0 <= scores["influence"] <= 0.52  # half of 96, rounded to whole images
    manifest = files.read_sealed_json(tmp_path / "out" / "manifest.json")
    for name in ("poor", "rare"):
        assert result.rejects[name].keys() == {"influence"} and result.rejects[name]["influence"] > 3
        assert manifest["calibration"][name]["thresholds"]["keep"] == pytest.approx(0.5, abs=0.02)
    rejects = [files.read_sealed_json(path)["rejects"] for path in sorted((tmp_path / "out").glob("synthetic-*.json"))]
    assert sum(of_shard["poor"]["influence"] for of_shard in rejects) == result.rejects["poor"]["influence"]
    assert shards.verify(tmp_path / "out").problems == ()


def test_finished_images_are_held_against_the_real_ones(filtered_run, tmp_path):
    options = {**FILTER, "features": "test_shards:levels", "balance": {"poor": 28}}
    result = shards.generate(filtered_run, tmp_path / "out", shard_size=7, file_format="png", **options)
    found = result.finished["poor"]
    made = np.stack([image.pixels for image in shards.read_synthetic(tmp_path / "out")])
    assert (found.n_real, found.n_synthetic) == (5, 23) == (5, len(made))
    stored = max((filtered_run / "calibration").glob("*.yardsticks.safetensors"), key=lambda path: path.stat().st_mtime)
    arrays = safetensors.numpy.load_file(stored)
    small = (levels(made) - arrays["centre"]) @ arrays["axes"]
    of_real = frechet.Moments(arrays["0/mean"], arrays["0/covariance"], 5)
    expected = frechet.frechet_distance(of_real, frechet.moments(small))
    assert found.distance == pytest.approx(expected, rel=1e-5) and found.dimensions == small.shape[1]
    manifest = files.read_sealed_json(tmp_path / "out" / "manifest.json")
    assert manifest["finished"]["poor"]["distance"] == found.distance
    assert f"finished 'poor': FD to the train images {found.distance:.4g}" in reporting.generation_text(result)


def test_a_shards_moments_are_checked_and_made_again(filtered_run, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    shards.generate(filtered_run, out, shard_size=10, **FILTER)
    shards.generate(filtered_run, other, shard_size=10, seed=1, **FILTER)
    before = hashes(out)
    moments = out / "synthetic-000001.moments.safetensors"
    for spoil in (Path.unlink, lambda path: path.write_bytes(hashes(other)[path.name])):
        spoil(moments)
        assert moments.name in " ".join(problem.file for problem in shards.verify(out).problems)
        assert shards.generate(filtered_run, out, shard_size=10, **FILTER).made == 1 and hashes(out) == before
    marker = files.read_sealed_json(out / "synthetic-000001.json")
    del marker["moments"]
    files.write_sealed_json(out / "synthetic-000001.json", marker)
    assert "another version" in " ".join(problem.what for problem in shards.verify(out).problems)
    assert shards.generate(filtered_run, out, shard_size=10, **FILTER).made == 1 and hashes(out) == before


def test_a_gate_alone_measures_finished_images_and_changes_none(run, tmp_path):
    shards.generate(run, tmp_path / "all", file_format="png")
    gated = shards.generate(run, tmp_path / "gated", file_format="png", max_fid="1000000x")
    assert gated.finished.keys() == {"poor", "rare"} and gated.finished["rare"].n_synthetic == 15
    assert list((tmp_path / "all").glob("*.moments.safetensors")) == []
    assert shards.generate(run, tmp_path / "all", file_format="png").finished == {}


def test_filtered_shards_have_the_same_bytes_for_any_workers_and_order(filtered_run, tmp_path):
    shards.generate(filtered_run, tmp_path / "one", shard_size=8, **FILTER)
    shards.generate(filtered_run, tmp_path / "two", shard_size=8, workers=2, **FILTER)
    for part in ((3, 5), (0, 3)):
        shards.generate(filtered_run, tmp_path / "halves", shard_size=8, shards=part, **FILTER)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == hashes(tmp_path / "halves")


def test_another_filter_or_other_features_are_another_request(filtered_run, tmp_path):
    shards.generate(filtered_run, tmp_path / "out", **FILTER)
    for change in ({"keep": 0.6}, {"max_similarity": 0.99}, {"max_fid": "100000x"}):
        with pytest.raises(RefusedError, match=r"gates|calibration"):
            shards.generate(filtered_run, tmp_path / "out", **{**FILTER, **change})
    with pytest.raises(RefusedError, match="features"):
        shards.generate(filtered_run, tmp_path / "out", features="test_shards:levels", **FILTER)


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], 1)


def test_without_the_filter_nothing_is_judged(filtered_run, tmp_path):
    result = shards.generate(filtered_run, tmp_path / "out", filter_images=False)
    assert result.rejects == {} and result.calibration == {}
    scores = [json.loads(sample["json"])["scores"] for sample in samples(tmp_path / "out")]
    assert {value for of_sample in scores for value in of_sample.values()} == {-1.0}


def test_a_damaged_calibration_is_measured_again(filtered_run, tmp_path):
    shards.generate(filtered_run, tmp_path / "one", **FILTER)
    for path in stored_calibration(filtered_run):
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    shards.generate(filtered_run, tmp_path / "two", **FILTER)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_fid_gate_withholds_a_class_and_says_so(run, tmp_path):
    result = shards.generate(run, tmp_path / "out", max_fid=1e-9)
    assert result.exit_code == 3 and result.withheld.keys() == {"poor", "rare"} and result.counts == {}
    assert result.calibration["poor"]["fid"]["distance"] > 1e-9
    passed = shards.generate(run, tmp_path / "all", max_fid="1000000x")
    assert passed.exit_code == 0 and passed.counts == {"poor": 23, "rare": 15}


def stored_calibration(run: Path) -> list[Path]:
    return sorted(path for path in (run / "calibration").iterdir() if not path.name.startswith("."))


def test_calibration_is_stored_in_the_run_and_read_back(run, tmp_path):
    shards.generate(run, tmp_path / "one", max_fid=1e9)
    stored = {path.name: path.read_bytes() for path in stored_calibration(run)}
    shards.generate(run, tmp_path / "two", max_fid=1e9)
    assert {path.name: path.read_bytes() for path in stored_calibration(run)} == stored
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_thresholds_are_absolute_or_multiples_of_the_floor():
    assert Threshold.parse("12.5", "--max-fid").limit(4.0) == 12.5
    assert Threshold.parse("3x", "--max-fid").limit(4.0) == 12.0


def test_slots_cover_every_image_once_in_the_wanted_proportion():
    slots = Slots({"x": 900, "y": 100}, 100, "key")
    everything = [slot for number in range(slots.n_shards) for slot in slots.of_shard(number)]
    assert sorted((s.class_name, s.ordinal) for s in everything) == sorted(
        [("x", i) for i in range(900)] + [("y", i) for i in range(100)]
    )
    shares = [sum(slot.class_name == "y" for slot in slots.of_shard(n)) for n in range(10)]
    assert all(1 <= share <= 25 for share in shares)


def test_candidates_are_pure_functions_of_their_slot():
    stream = CandidateStream("key", {"t": (np.arange(50), np.arange(50, 60))}, {"t": np.arange(60, 64)}, 3)
    first = stream.draw(Slot("t", 7), 2)
    assert stream.draw(Slot("t", 7), 2) == first
    assert stream.draw(Slot("t", 8), 2) != first and stream.draw(Slot("t", 7), 3) != first
    assert len(set(first.references)) == 3 and set(first.references) <= {60, 61, 62, 63}
    drawn = Counter(stream.draw(Slot("t", i), 0).source >= 50 for i in range(400))
    assert 150 < drawn[True] < 250


def test_candidates_are_drawn_as_numpy_chooses():
    sources, references = (np.arange(50), np.arange(50, 60)), np.arange(60, 67)
    stream = CandidateStream("key", {"t": sources}, {"t": references}, 2)
    for ordinal in range(300):
        rng = keyed_rng("key", "t", ordinal, 1)
        source = rng.choice(sources[rng.integers(2)])
        chosen = tuple(rng.choice(references, 2, replace=False).tolist())
        assert stream.draw(Slot("t", ordinal), 1) == Candidate(Slot("t", ordinal), 1, source, chosen)


def test_style_codes_are_the_same_whoever_asks_first(run):
    loaded = load_run(RunDirectory(run), None, torch.device("cpu"))
    encode, asked = loaded.models[0].method.reference_codes, []
    loaded.models[0].method.reference_codes = lambda images, labels: asked.append(1) or encode(images, labels)
    poor, rare = (loaded.index.rows("train", name).tolist() for name in ("poor", "rare"))

    def synthesizer(batch: int) -> Synthesizer:
        made = Synthesizer(loaded, torch.device("cpu"))
        made.batch = batch
        made._codes = type(made._codes)(loaded, batch, made._encoded)
        return made

    whole, lazy = synthesizer(2)._codes, synthesizer(2)._codes
    everything = whole.of([(image_id,) for image_id in poor + rare])
    assert len(asked) == 3 + 2  # five and four references, two at a time
    last = lazy.of([(rare[-1],)])
    assert len(asked) == 6 and torch.equal(last[0], everything[-1])
    both = lazy.of([(rare[-1], poor[0]), (poor[1], rare[-1])])
    assert len(asked) == 7
    expected = [torch.stack([everything[-1], everything[row]]) for row in (0, 1)]
    assert torch.equal(both, torch.stack([pair.mean(0) for pair in expected]))
    assert not torch.equal(everything[0], everything[1])


def test_the_class_heads_tell_all_their_targets_at_once_and_no_others(run):
    loaded = load_run(RunDirectory(run), None, torch.device("cpu"))
    synthesizer, (model,) = Synthesizer(loaded, torch.device("cpu")), loaded.models
    synthesizer.batch = 4
    rows = loaded.index.rows("train", "a").tolist()[:10]
    classify, asked = model.method.class_logits, []
    model.method.class_logits = lambda images: asked.append(len(images)) or classify(images)
    found = synthesizer.confidences_of(("poor", "rare"), map(synthesizer.load, rows))
    assert asked == [4, 4, 4], "batches of one shape, once for both"
    assert list(found) == ["poor", "rare"] and all(len(of) == 10 for of in found.values())
    expected = classify(synthesizer._padded([synthesizer.load(row) for row in rows[8:]])).softmax(1)
    for name, of in found.items():
        of_labels = expected[:2, list(model.labels[name])].sum(1)
        np.testing.assert_allclose(of[8:], of_labels.detach(), atol=1e-6)
    assert not np.array_equal(found["poor"], found["rare"])
    model.labels["rare"] = ()
    assert list(synthesizer.confidences_of(("rare", "poor"), [])) == ["poor"]


def test_a_source_is_kept_once_it_is_decoded(run, tmp_path, monkeypatch):
    decode, decoded = ImageIndex.square, Counter()
    monkeypatch.setattr(ImageIndex, "square", lambda *given: decoded.update([given[1]]) or decode(*given))
    shards.generate(run, tmp_path / "out", shard_size=10, balance={"poor": 305, "rare": 304})
    sources = Counter(json.loads(sample["json"])["source"] for sample in samples(tmp_path / "out"))
    # Threads that miss the same image at the same time decode it each.
    assert max(sources.values()) > 3 and max(decoded.values()) <= shard_making._THREADS < 3


def test_a_shard_is_written_while_the_next_is_made(run, tmp_path, monkeypatch):
    make, write, begun = ShardMaker._synthetic, shard_making.write_shard, threading.Event()

    def making(self, name, *rest):
        if name.number == 1:
            begun.set()
        return make(self, name, *rest)

    def writing(out, name, *rest):
        assert begun.wait(60), "the next shard waits for this one"
        write(out, name, *rest)

    monkeypatch.setattr(ShardMaker, "_synthetic", making)
    monkeypatch.setattr(shard_making, "write_shard", writing)
    assert shards.generate(run, tmp_path / "out", shard_size=10).complete
    assert shards.verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize("failing", [0, 3])
def test_an_error_in_writing_is_not_lost(run, tmp_path, monkeypatch, failing):
    write = shard_making.write_shard

    def writing(out, name, *rest):
        if name.number == failing:
            raise RefusedError("no")
        write(out, name, *rest)

    monkeypatch.setattr(shard_making, "write_shard", writing)
    with pytest.raises(RefusedError, match="no"):
        shards.generate(run, tmp_path / "out", shard_size=10)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_products_are_computed_on_the_threads_of_the_fingerprint():
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = threads()
    with torch_threads(3):
        assert threads() == {3}
    assert threads() == before


def test_verify_finds_every_kind_of_damage(run, tmp_path):
    out = tmp_path / "out"
    shards.generate(run, out, shard_size=10)
    assert shards.verify(out).exit_code == 0

    def problems_after(name: str, change) -> str:
        original = (out / name).read_bytes()
        change(out / name)
        found = shards.verify(out)
        (out / name).write_bytes(original)
        assert found.exit_code == 1
        return " ".join(f"{problem.file} {problem.what}" for problem in found.problems)

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(data)

    assert "synthetic-000001.tar" in problems_after("synthetic-000001.tar", flip)
    assert "missing" in problems_after("synthetic-000001.tar", Path.unlink)
    assert "synthetic-000002.json is missing" in problems_after("synthetic-000002.json", Path.unlink)
    assert "manifest.json" in problems_after("manifest.json", Path.unlink)
    assert "manifest.json" in problems_after("manifest.json", lambda path: path.write_text("{}"))
    assert "index.json" in problems_after("index.json", Path.unlink)
    assert shards.verify(out).exit_code == 0


def test_verify_refuses_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="OUT"):
        shards.verify(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        shards.verify(tmp_path / "nowhere")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_sample_is_loaded_once_under_any_number_of_workers(run, tmp_path, workers):
    shards.generate(run, tmp_path / "out", shard_size=30)
    dataset = shards.load_shards(tmp_path / "out", np.asarray)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert Counter(label for _, label in loader) == {2: 23, 3: 15}


def test_every_sample_is_loaded_once_over_ranks(run, tmp_path, monkeypatch):
    shards.generate(run, tmp_path / "out", shard_size=30, file_format="png")
    whole = [(image.tobytes(), label) for image, label in shards.load_shards(tmp_path / "out")]
    for even in (False, True):
        per_rank = []
        for rank in range(3):
            monkeypatch.setattr("rebalance.shards.load._rank", lambda rank=rank: (rank, 3))
            dataset = shards.load_shards(tmp_path / "out", even=even)
            per_rank.append([(image.tobytes(), label) for image, label in dataset])
        lengths = [len(part) for part in per_rank]
        assert max(lengths) - min(lengths) <= (0 if even else 1)
        everything = sorted(sample for part in per_rank for sample in part)
        assert everything == sorted(whole if not even else whole[: 38 // 3 * 3])


def test_shuffling_is_seeded_and_changes_with_the_epoch(run, tmp_path):
    shards.generate(run, tmp_path / "out", shard_size=10, file_format="png")
    dataset = shards.load_shards(tmp_path / "out", lambda image: image.tobytes(), shuffle=100, seed=1)
    first, again = list(dataset), list(dataset)
    dataset.set_epoch(1)
    second = list(dataset)
    assert first == again != second and sorted(first) == sorted(second)


def test_an_incomplete_output_does_not_load(run, tmp_path):
    shards.generate(run, tmp_path / "out", shard_size=10, shards=(0, 1))
    with pytest.raises(InputError, match="not complete"):
        shards.load_shards(tmp_path / "out")


def test_hugging_face_datasets_loads_the_shards(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    shards.generate(run, tmp_path / "out", include_real=True, shard_size=30)
    tars = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 38 + 79
    assert loaded[0]["jpg"].size == (8, 8) and loaded[0]["json"]["width"] == 8


def test_index_files_describe_the_shards(run, tmp_path):
    out = tmp_path / "out"
    shards.generate(run, out, shard_size=10)
    index, info = json.loads((out / "index.json").read_text()), json.loads((out / "_info.json").read_text())
    tars = sorted(path.name for path in out.glob("*.tar"))
    assert [shard["url"] for shard in index["shardlist"]] == tars == info["splits"]["train"]["filenames"]
    assert [shard["nsamples"] for shard in index["shardlist"]] == info["splits"]["train"]["shard_lengths"]
    assert info["splits"]["train"]["num_samples"] == 38
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:\n- synthetic\n") and "| 2 | poor | 23 | 0 |" in card


def test_threads_of_the_caller_are_put_back(run, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shards.generate(run, tmp_path / "out")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_interrupted_generation_exits_130_and_resumes(run, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "rebalance", "generate", str(run), "--out", str(out), "--shard-size", "1", "--quiet",
        "--workers", "2",
    ]  # fmt: skip
    # As from a terminal: what a shell starts in the background inherits an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not list(out.glob("*.tar")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert shards.generate(run, out, shard_size=1).complete
    assert shards.verify(out).exit_code == 0


def test_a_shard_of_another_output_is_found_and_made_anew(run, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    shards.generate(run, out)
    shards.generate(run, other, seed=1)
    before = hashes(out)
    for name in ("synthetic-000000.tar", "synthetic-000000.json"):
        (out / name).write_bytes((other / name).read_bytes())
    found = " ".join(problem.what for problem in shards.verify(out).problems)
    assert "manifest disagree" in found and "another fingerprint than the manifest" in found
    assert shards.generate(run, out).made == 1 and hashes(out) == before
    damaged = bytearray(before["synthetic-000000.tar"])
    damaged[700] ^= 1
    (out / "synthetic-000000.tar").write_bytes(damaged)
    assert shards.generate(run, out).made == 1 and hashes(out) == before


def test_two_processes_cannot_share_an_output_but_ranges_can(run, tmp_path):
    out = tmp_path / "out"
    with files.locked(out), pytest.raises(RefusedError, match="another process"):
        shards.generate(run, out)
    with files.locked(out, shared=True):
        with pytest.raises(RefusedError, match="another process"):
            shards.generate(run, out)
        shards.generate(run, out, shards=(0, 1))
    assert shards.verify(out).exit_code == 0


def test_a_range_does_not_overwrite_the_others(run, tmp_path):
    with pytest.raises(InputError, match="--overwrite cannot go with --shards"):
        shards.generate(run, tmp_path / "out", shards=(0, 1), overwrite=True)


@pytest.mark.parametrize("multiple", [0, -1, float("nan"), float("inf"), 0.01])
def test_impossible_multiples_are_refused_at_generation_too(run, tmp_path, multiple):
    with pytest.raises(InputError, match="--max-multiple"):
        shards.generate(run, tmp_path / "out", max_multiple=multiple)


def test_fitting_keeps_what_is_the_users(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.yaml").write_text(TINY.read_text())
    with pytest.raises(RefusedError, match=r"recipe\.yaml"):
        fit(run.parent / "data", mine, mine / "recipe.yaml", balance=BALANCE)
    assert (mine / "recipe.yaml").read_text() == TINY.read_text()
    data = tmp_path / "data"
    write_images(data)
    with pytest.raises(InputError, match="inside DATA"):
        fit(data, data / "run", TINY, balance=BALANCE)
    assert not (data / "run").exists()


def test_the_amounts_decide_whether_a_request_is_the_same(run, tmp_path):
    asked = tmp_path / "wanted.json"
    for text in (json.dumps(BALANCE), json.dumps(BALANCE, separators=(",", ":"))):
        asked.write_text(text)
        assert fit(run.parent / "data", run, TINY, balance=str(asked)).resumed
    asked.write_text(json.dumps({**BALANCE, "rare": 20}))
    with pytest.raises(RefusedError, match=r"'rare': 15\} -> .*'rare': 16"):
        fit(run.parent / "data", run, TINY, balance=str(asked))

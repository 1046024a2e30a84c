"""Generation, filtering, shards, verification and loading, on one tiny run."""

import contextlib
import dataclasses
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
from toys import generate

from rebalance import reporting, shards, storage
from rebalance.config import DownstreamOptions, GenerationOptions, option
from rebalance.config.method import Inputs
from rebalance.errors import DamagedError, InputError, RefusedError
from rebalance.filtering import Threshold
from rebalance.generation.candidates import Candidate, CandidateStream
from rebalance.generation.loaded_run import load_run
from rebalance.generation.provenance import Provenance
from rebalance.generation.slots import Slot, Slots, keyed_rng
from rebalance.generation.synthesizer import Synthesizer
from rebalance.index import ImageIndex
from rebalance.measures import frechet
from rebalance.planning.images import TargetImages
from rebalance.runtime.threads import torch_threads
from rebalance.shards import contents, from_run, generated, output
from rebalance.shards.generated import GeneratedShards
from rebalance.shards.records import SAMPLE_FIELDS, SampleRecord, read_manifest
from rebalance.storage.local import LocalStorage
from rebalance.training import RunDirectory, fit

COUNTS = {"a": 40, "b": 30, "poor": 5, "rare": 4}
BALANCE = {"poor": 28, "rare": 19}
TINY = Path(__file__).parents[1] / "tiny.yaml"


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
    result = generate(run, tmp_path / "out", shard_size=10)
    assert result.counts == {"poor": 23, "rare": 15}
    assert result.complete and result.exit_code == 0 and result.shards == 4
    found = Counter(json.loads(sample["json"])["class"] for sample in samples(tmp_path / "out"))
    assert found == {"poor": 23, "rare": 15}


def test_samples_are_complete_and_consistent(run, tmp_path):
    generate(run, tmp_path / "out", file_format="png")
    keys = set()
    for sample in samples(tmp_path / "out"):
        fields = json.loads(sample["json"])
        assert fields.keys() == SAMPLE_FIELDS.keys()
        assert None not in fields.values()
        assert int(sample["cls"]) == fields["label"] == sorted(COUNTS).index(fields["class"])
        assert "." not in sample["__key__"] and sample["__key__"] not in keys
        keys.add(sample["__key__"])
        assert fields["source_class"] in ("a", "b") and fields["source"].startswith(fields["source_class"])
        assert fields["reference"].startswith(fields["class"] + "/")
        assert fields["synthetic"] is True


def test_tar_entries_have_no_time_and_no_owner(run, tmp_path):
    generate(run, tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "synthetic-000000.tar") as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644


def test_same_bytes_for_any_number_of_workers_and_any_order(run, tmp_path, monkeypatch):
    generate(run, tmp_path / "one", shard_size=10)
    generate(run, tmp_path / "two", shard_size=10, workers=2)
    for number in reversed(range(4)):
        part = generate(run, tmp_path / "parts", shard_size=10, shards=(number, number + 1))
        assert part.complete == (number == 0)
    for half in ((0, 2), (2, 4)):
        generate(run, tmp_path / "halves", shard_size=10, shards=half)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "tr_TR.UTF-8")
    generate(run, "relative", shard_size=10)
    generate(run, "four", shard_size=10, workers=4)
    expected = hashes(tmp_path / "one")
    assert len([name for name in expected if name.endswith(".tar")]) == 4
    for other in ("two", "four", "parts", "halves", "relative"):
        assert hashes(tmp_path / other) == expected


def test_the_request_records_what_may_change_a_byte(run, tmp_path):
    generate(run, tmp_path / "out")
    request = json.loads((tmp_path / "out" / "manifest.json").read_text())["request"]
    assert request["generation"]["threads"] == 1
    assert request["libraries"]["torch"] == torch.__version__
    assert request["device"] == f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def test_the_seed_changes_the_images(run, tmp_path):
    generate(run, tmp_path / "zero", seed=0)
    generate(run, tmp_path / "one", seed=1)
    assert hashes(tmp_path / "zero")["synthetic-000000.tar"] != hashes(tmp_path / "one")["synthetic-000000.tar"]


def test_only_missing_shards_are_made_again(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out, shard_size=10)
    before = hashes(out)
    (out / "synthetic-000001.tar").unlink()
    (out / "synthetic-000002.json").unlink()
    result = generate(run, out, shard_size=10)
    assert result.made == 2
    assert hashes(out) == before


def test_another_request_is_refused_and_named(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out)
    before = hashes(out)
    with pytest.raises(RefusedError, match="quality: 95 -> 50"):
        generate(run, out, quality=50)
    assert hashes(out) == before
    assert generate(run, out, quality=50, overwrite=True).made == 1


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match=r"thesis\.txt"):
            generate(run, tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("file_format", ["jpg", "png", "webp"])
def test_formats_load_with_their_size(run, tmp_path, file_format):
    generate(run, tmp_path / "out", file_format=file_format)
    images = [image for image, _ in shards.load_shards(tmp_path / "out")]
    assert len(images) == 38 and {image.size for image in images} == {(8, 8)}


def test_real_images_come_along_in_their_final_counts(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out, include_real=True, shard_size=30)
    found = Counter((json.loads(s["json"])["class"], json.loads(s["json"])["synthetic"]) for s in samples(out))
    assert found == {
        ("a", False): 40, ("b", False): 30, ("poor", False): 5, ("rare", False): 4,
        ("poor", True): 23, ("rare", True): 15,
    }  # fmt: skip
    keys = [sample["__key__"] for sample in samples(out)]
    assert len(set(keys)) == len(keys)
    assert shards.verify(out).problems == ()


def test_balance_at_generation_takes_fitted_classes_only(run, tmp_path):
    assert generate(run, tmp_path / "out", balance={"poor": 9}).counts == {"poor": 4}
    with pytest.raises(InputError, match="'b'"):
        generate(run, tmp_path / "other", balance={"b": 35})


def test_max_multiple_caps_the_plan(run, tmp_path):
    assert generate(run, tmp_path / "out", max_multiple=2).counts == {"poor": 10, "rare": 8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "`shard_size"),
        ({"quality": 101}, "`quality"),
        ({"file_format": "gif"}, "`file_format"),
        ({"workers": -1}, "`workers"),
        ({"min_confidence": 1.5}, "`min_confidence"),
        ({"max_fid": "cheap"}, "`max_fid"),
        ({"max_fid": 0}, "`max_fid"),
        ({"max_kid": "-1x"}, "`max_kid"),
        ({"keep": 0.0}, "`keep"),
        ({"keep": float("nan")}, "`keep"),
        ({"max_similarity": 1.1}, "`max_similarity"),
        ({"features": "nowhere:at_all"}, "`features"),
        ({"features": "encoder", "max_fid": 1}, "no encoder, because"),
        ({"shards": (3, 9)}, "`shards"),
        ({"device": "tpu"}, "`device"),
        ({"data": "nowhere"}, "`data"),
    ],
)
def test_wrong_options_name_themselves_and_leave_nothing(run, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        generate(run, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_moved_data_is_found_with_data(run, tmp_path):
    generate(run, tmp_path / "before")
    moved = tmp_path / "moved"
    moved.symlink_to(run.parent / "data")
    generate(run, tmp_path / "after", data=moved)
    assert hashes(tmp_path / "before") == hashes(tmp_path / "after")


def test_a_changed_source_image_is_an_error_not_an_image(run, tmp_path):
    copy = tmp_path / "copy"
    write_images(copy)
    for path in [*copy.glob("a/*.png"), *copy.glob("b/*.png")]:
        path.write_bytes(path.read_bytes() + b"longer")
    with pytest.raises(InputError, match=r"/[ab]/\d+\.png has changed"):
        generate(run, tmp_path / "out", data=copy, shard_size=1000, balance={"poor": 28, "rare": 19})
    assert not list((tmp_path / "out").glob("*.tar"))


def test_impossible_confidence_withholds_a_class(run, tmp_path):
    result = generate(run, tmp_path / "out", min_confidence=1.0)
    assert result.exit_code == 3 and result.counts == {}
    assert result.withheld["poor"] == "0 of 16 candidates passed the image filter"


def test_confidence_that_few_have_is_a_shortfall_with_its_reason(run, tmp_path):
    generate(run, tmp_path / "all", min_confidence=0.0)
    found = (json.loads(sample["json"]) for sample in samples(tmp_path / "all"))
    scores = [fields["scores"]["confidence"] for fields in found if fields["class"] == "poor"]
    limit = float(np.quantile(scores, 0.7))
    result = generate(run, tmp_path / "out", min_confidence=limit, balance={"poor": 28})
    assert result.exit_code == 3 and result.shortfall["poor"] > 0 and not result.withheld
    assert result.counts["poor"] + result.shortfall["poor"] == 23
    assert result.rejects["poor"]["low_confidence"] >= 3 * result.shortfall["poor"]
    assert shards.verify(tmp_path / "out").problems == ()


def test_confidence_is_kept_with_the_sample_and_respected(run, tmp_path):
    def confidences(out: Path) -> list[float]:
        return [json.loads(sample["json"])["scores"]["confidence"] for sample in samples(out)]

    generate(run, tmp_path / "all", min_confidence=0.0)
    limit = float(np.median(confidences(tmp_path / "all")))
    generate(run, tmp_path / "out", min_confidence=limit)
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
    result = generate(filtered_run, tmp_path / "out", shard_size=10, **FILTER)
    assert result.counts == {"poor": 23, "rare": 15} and not result.shortfall
    for sample in samples(tmp_path / "out"):
        scores = json.loads(sample["json"])["scores"]
        assert scores["outlier"] == -1 and 0 <= scores["confidence"] <= 1 and -1 < scores["similarity"] <= 1
        assert 0 <= scores["influence"] <= 0.52  # half of 96, rounded to whole images
    manifest = storage.read_sealed_json(tmp_path / "out" / "manifest.json")
    for name in ("poor", "rare"):
        assert result.rejects[name].keys() == {"influence"} and result.rejects[name]["influence"] > 3
        assert manifest["calibration"][name]["thresholds"]["keep"] == pytest.approx(0.5, abs=0.02)
    rejects = [
        storage.read_sealed_json(path)["rejects"] for path in sorted((tmp_path / "out").glob("synthetic-*.json"))
    ]
    assert sum(of_shard["poor"]["influence"] for of_shard in rejects) == result.rejects["poor"]["influence"]
    assert shards.verify(tmp_path / "out").problems == ()


def test_finished_images_are_held_against_the_real_ones(filtered_run, tmp_path):
    options = {**FILTER, "features": "test_shards:levels", "balance": {"poor": 28}}
    result = generate(filtered_run, tmp_path / "out", shard_size=7, file_format="png", **options)
    found = result.finished["poor"]
    made = np.stack([image.pixels for image in shards.read_synthetic(tmp_path / "out")])
    assert (found.n_real, found.n_synthetic) == (5, 23) == (5, len(made))
    stored = max((filtered_run / "calibration").glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    arrays = safetensors.numpy.load_file(stored)
    small = (levels(made) - arrays["space/centre"]) @ arrays["space/axes"]
    of_real = frechet.Moments(arrays["real/0/mean"], arrays["real/0/covariance"], 5)
    expected = frechet.frechet_distance(of_real, frechet.moments(small))
    assert found.distance == pytest.approx(expected, rel=1e-5) and found.dimensions == small.shape[1]
    manifest = storage.read_sealed_json(tmp_path / "out" / "manifest.json")
    assert manifest["finished"]["poor"]["distance"] == found.distance
    assert f"finished 'poor': FD to the train images {found.distance:.4g}" in reporting.generation_text(result)


def test_a_shards_moments_are_checked_and_made_again(filtered_run, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    generate(filtered_run, out, shard_size=10, **FILTER)
    generate(filtered_run, other, shard_size=10, seed=1, **FILTER)
    before = hashes(out)
    moments = out / "synthetic-000001.moments.safetensors"
    for spoil in (Path.unlink, lambda path: path.write_bytes(hashes(other)[path.name])):
        spoil(moments)
        assert moments.name in " ".join(problem.file for problem in shards.verify(out).problems)
        assert generate(filtered_run, out, shard_size=10, **FILTER).made == 1 and hashes(out) == before
    marker = storage.read_sealed_json(out / "synthetic-000001.json")
    del marker["moments"]
    storage.write_sealed_json(out / "synthetic-000001.json", marker)
    assert "another version" in " ".join(problem.what for problem in shards.verify(out).problems)
    assert generate(filtered_run, out, shard_size=10, **FILTER).made == 1 and hashes(out) == before


def test_a_gate_alone_measures_finished_images_and_changes_none(run, tmp_path):
    generate(run, tmp_path / "all", file_format="png")
    gated = generate(run, tmp_path / "gated", file_format="png", max_fid="1000000x")
    assert gated.finished.keys() == {"poor", "rare"} and gated.finished["rare"].n_synthetic == 15
    assert list((tmp_path / "all").glob("*.moments.safetensors")) == []
    assert generate(run, tmp_path / "all", file_format="png").finished == {}


def test_filtered_shards_have_the_same_bytes_for_any_workers_and_order(filtered_run, tmp_path):
    generate(filtered_run, tmp_path / "one", shard_size=8, **FILTER)
    generate(filtered_run, tmp_path / "two", shard_size=8, workers=2, **FILTER)
    for part in ((3, 5), (0, 3)):
        generate(filtered_run, tmp_path / "halves", shard_size=8, shards=part, **FILTER)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == hashes(tmp_path / "halves")


def test_another_filter_or_other_features_are_another_request(filtered_run, tmp_path):
    generate(filtered_run, tmp_path / "out", **FILTER)
    for change in ({"keep": 0.6}, {"max_similarity": 0.99}, {"max_fid": "100000x"}):
        with pytest.raises(RefusedError, match=r"keep|max_similarity|max_fid|calibration"):
            generate(filtered_run, tmp_path / "out", **{**FILTER, **change})
    with pytest.raises(RefusedError, match="features"):
        generate(filtered_run, tmp_path / "out", features="test_shards:levels", **FILTER)


def levels(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], 1)


def test_without_the_filter_nothing_is_judged(filtered_run, tmp_path):
    result = generate(filtered_run, tmp_path / "out", filter_images=False)
    assert result.rejects == {} and result.calibration == {}
    scores = [json.loads(sample["json"])["scores"] for sample in samples(tmp_path / "out")]
    assert {value for of_sample in scores for value in of_sample.values()} == {-1.0}


def test_a_damaged_calibration_is_measured_again(filtered_run, tmp_path):
    generate(filtered_run, tmp_path / "one", **FILTER)
    for path in stored_calibration(filtered_run):
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    generate(filtered_run, tmp_path / "two", **FILTER)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_fid_gate_withholds_a_class_and_says_so(run, tmp_path):
    result = generate(run, tmp_path / "out", max_fid=1e-9)
    assert result.exit_code == 3 and result.withheld.keys() == {"poor", "rare"} and result.counts == {}
    assert result.calibration["poor"]["fid"]["distance"] > 1e-9
    passed = generate(run, tmp_path / "all", max_fid="1000000x")
    assert passed.exit_code == 0 and passed.counts == {"poor": 23, "rare": 15}


def stored_calibration(run: Path) -> list[Path]:
    return sorted(path for path in (run / "calibration").iterdir() if not path.name.startswith("."))


def test_calibration_is_stored_in_the_run_and_read_back(run, tmp_path):
    generate(run, tmp_path / "one", max_fid=1e9)
    stored = {path.name: path.read_bytes() for path in stored_calibration(run)}
    generate(run, tmp_path / "two", max_fid=1e9)
    assert {path.name: path.read_bytes() for path in stored_calibration(run)} == stored
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_thresholds_are_absolute_or_multiples_of_the_floor():
    assert Threshold.parse("12.5", "max_fid").limit(4.0) == 12.5
    assert Threshold.parse("3x", "max_fid").limit(4.0) == 12.0


def test_slots_cover_every_image_once_in_the_wanted_proportion():
    slots = Slots({"x": 900, "y": 100}, 100, "key")
    everything = [slot for number in range(slots.n_shards) for slot in slots.of_shard(number)]
    assert sorted((s.class_name, s.ordinal) for s in everything) == sorted(
        [("x", i) for i in range(900)] + [("y", i) for i in range(100)]
    )
    shares = [sum(slot.class_name == "y" for slot in slots.of_shard(n)) for n in range(10)]
    assert all(1 <= share <= 25 for share in shares)


def test_candidates_are_pure_functions_of_their_slot():
    images = TargetImages((np.arange(50), np.arange(50, 60)), np.arange(60, 64))
    stream = CandidateStream("key", Inputs(), {"t": images}, {}, 3)
    first = stream.draw(Slot("t", 7), 2)
    assert stream.draw(Slot("t", 7), 2) == first
    assert stream.draw(Slot("t", 8), 2) != first and stream.draw(Slot("t", 7), 3) != first
    assert len(set(first.references)) == 3 and set(first.references) <= {60, 61, 62, 63}
    drawn = Counter(stream.draw(Slot("t", i), 0).source >= 50 for i in range(400))
    assert 150 < drawn[True] < 250


def test_candidates_are_drawn_as_numpy_chooses():
    sources, references = (np.arange(50), np.arange(50, 60)), np.arange(60, 67)
    stream = CandidateStream("key", Inputs(), {"t": TargetImages(sources, references)}, {}, 2)
    for ordinal in range(300):
        rng = keyed_rng("key", "t", ordinal, 1)
        source = rng.choice(sources[rng.integers(2)])
        chosen = tuple(rng.choice(references, 2, replace=False).tolist())
        assert stream.draw(Slot("t", ordinal), 1) == Candidate(Slot("t", ordinal), 1, source, chosen)


def test_reference_codes_are_the_same_whoever_asks_first(run):
    loaded = load_run(RunDirectory(run), None, torch.device("cpu"))
    encode, asked = loaded.models[0].method.codes, []
    loaded.models[0].method.codes = lambda conditions: asked.append(1) or encode(conditions)
    ids = {name: loaded.index.rows("train", name).tolist() for name in ("poor", "rare")}

    def synthesizer(batch: int) -> Synthesizer:
        made = Synthesizer(loaded, torch.device("cpu"))
        made.batch = batch
        made._reference_codes = type(made._reference_codes)(loaded, batch, made._encoded)
        return made

    def candidate(name: str, *references: int) -> Candidate:
        return Candidate(Slot(name, 0), 0, None, references)

    whole, lazy = synthesizer(2)._reference_codes, synthesizer(2)._reference_codes
    everything = whole.of([candidate(name, image) for name, of_class in ids.items() for image in of_class])
    assert len(asked) == 3 + 2  # five and four references, two at a time
    last = lazy.of([candidate("rare", ids["rare"][-1])])
    assert len(asked) == 6 and torch.equal(last[0], everything[-1])
    pairs = lazy.of([candidate("rare", ids["rare"][-1], ids["rare"][0]), candidate("poor", *ids["poor"][:2])])
    assert len(asked) == 8
    expected = [torch.stack([everything[a], everything[b]]).mean(0) for a, b in ((-1, 5), (0, 1))]
    assert torch.equal(pairs, torch.stack(expected))
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
    generate(run, tmp_path / "out", shard_size=10, balance={"poor": 305, "rare": 304})
    sources = Counter(json.loads(sample["json"])["source"] for sample in samples(tmp_path / "out"))
    # Threads that miss the same image at the same time decode it each.
    assert max(sources.values()) > 3 and max(decoded.values()) <= generated._THREADS < 3


def test_a_shard_is_written_while_the_next_is_made(run, tmp_path, monkeypatch):
    make, write, begun = GeneratedShards._synthetic, contents.write_shard, threading.Event()

    def making(self, name, *rest):
        if name.number == 1:
            begun.set()
        return make(self, name, *rest)

    def writing(out, name, *rest):
        assert begun.wait(60), "the next shard waits for this one"
        write(out, name, *rest)

    monkeypatch.setattr(GeneratedShards, "_synthetic", making)
    monkeypatch.setattr(contents, "write_shard", writing)
    assert generate(run, tmp_path / "out", shard_size=10).complete
    assert shards.verify(tmp_path / "out").problems == ()


@pytest.mark.parametrize("failing", [0, 3])
def test_an_error_in_writing_is_not_lost(run, tmp_path, monkeypatch, failing):
    write = contents.write_shard

    def writing(out, name, *rest):
        if name.number == failing:
            raise RefusedError("no")
        write(out, name, *rest)

    monkeypatch.setattr(contents, "write_shard", writing)
    with pytest.raises(RefusedError, match="no"):
        generate(run, tmp_path / "out", shard_size=10)
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
    generate(run, out, shard_size=10)
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
    with pytest.raises(InputError, match="`path`"):
        shards.verify(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        shards.verify(tmp_path / "nowhere")


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_sample_is_loaded_once_under_any_number_of_workers(run, tmp_path, workers):
    generate(run, tmp_path / "out", shard_size=30)
    dataset = shards.load_shards(tmp_path / "out", np.asarray)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert Counter(label for _, label in loader) == {2: 23, 3: 15}


def test_every_sample_is_loaded_once_over_ranks(run, tmp_path, monkeypatch):
    generate(run, tmp_path / "out", shard_size=30, file_format="png")
    whole = [(image.tobytes(), label) for image, label in shards.load_shards(tmp_path / "out")]
    for even in (False, True):
        per_rank = []
        for rank in range(3):
            monkeypatch.setattr("rebalance.shards.loading._rank", lambda rank=rank: (rank, 3))
            dataset = shards.load_shards(tmp_path / "out", even=even)
            per_rank.append([(image.tobytes(), label) for image, label in dataset])
        lengths = [len(part) for part in per_rank]
        assert max(lengths) - min(lengths) <= (0 if even else 1)
        everything = sorted(sample for part in per_rank for sample in part)
        assert everything == sorted(whole if not even else whole[: 38 // 3 * 3])


def test_shuffling_is_seeded_and_changes_with_the_epoch(run, tmp_path):
    generate(run, tmp_path / "out", shard_size=10, file_format="png")
    dataset = shards.load_shards(tmp_path / "out", lambda image: image.tobytes(), shuffle=100, seed=1)
    first, again = list(dataset), list(dataset)
    dataset.set_epoch(1)
    second = list(dataset)
    assert first == again != second and sorted(first) == sorted(second)


def test_an_incomplete_output_does_not_load(run, tmp_path):
    generate(run, tmp_path / "out", shard_size=10, shards=(0, 1))
    with pytest.raises(InputError, match="not complete"):
        shards.load_shards(tmp_path / "out")


def test_hugging_face_datasets_loads_the_shards(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    generate(run, tmp_path / "out", include_real=True, shard_size=30)
    tars = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    loaded = datasets.load_dataset("webdataset", data_files=tars, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 38 + 79
    assert loaded[0]["jpg"].size == (8, 8) and loaded[0]["json"]["width"] == 8


def test_index_files_describe_the_shards(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out, shard_size=10)
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
        generate(run, tmp_path / "out")
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
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert b"Traceback" not in stderr
    assert generate(run, out, shard_size=1).complete
    assert shards.verify(out).exit_code == 0


def test_a_shard_of_another_output_is_found_and_made_anew(run, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    generate(run, out)
    generate(run, other, seed=1)
    before = hashes(out)
    for name in ("synthetic-000000.tar", "synthetic-000000.json"):
        (out / name).write_bytes((other / name).read_bytes())
    found = " ".join(problem.what for problem in shards.verify(out).problems)
    assert "manifest disagree" in found and "another fingerprint than the manifest" in found
    assert generate(run, out).made == 1 and hashes(out) == before
    damaged = bytearray(before["synthetic-000000.tar"])
    damaged[700] ^= 1
    (out / "synthetic-000000.tar").write_bytes(damaged)
    assert "synthetic-000000.tar is damaged" in " ".join(problem.what for problem in shards.verify(out).problems)
    (out / "synthetic-000000.tar").unlink()
    assert generate(run, out).made == 1 and hashes(out) == before


def test_two_processes_cannot_share_an_output_but_ranges_can(run, tmp_path):
    out = tmp_path / "out"
    with storage.locked(out), pytest.raises(RefusedError, match="another process"):
        generate(run, out)
    with storage.locked(out, shared=True):
        with pytest.raises(RefusedError, match="another process"):
            generate(run, out)
        generate(run, out, shards=(0, 1))
    assert shards.verify(out).exit_code == 0


def test_a_range_does_not_overwrite_the_others(run, tmp_path):
    with pytest.raises(InputError, match="`overwrite` cannot go with `shards`"):
        generate(run, tmp_path / "out", shards=(0, 1), overwrite=True)


@pytest.mark.parametrize("multiple", [0, -1, float("nan"), float("inf"), 0.01])
def test_impossible_multiples_are_refused_at_generation_too(run, tmp_path, multiple):
    with pytest.raises(InputError, match="`max_multiple"):
        generate(run, tmp_path / "out", max_multiple=multiple)


def test_fitting_keeps_what_is_the_users(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "recipe.yaml").write_text(TINY.read_text())
    with pytest.raises(RefusedError, match=r"recipe\.yaml"):
        fit(run.parent / "data", mine, mine / "recipe.yaml", balance=BALANCE)
    assert (mine / "recipe.yaml").read_text() == TINY.read_text()
    data = tmp_path / "data"
    write_images(data)
    with pytest.raises(InputError, match="inside `data`"):
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


def tar_reads(monkeypatch) -> Counter:
    """Count the bytes that are read of tar files, whoever asks the storage for them."""
    read, asked = LocalStorage.opened, Counter()

    @contextlib.contextmanager
    def counted(self, path):
        if str(path).endswith(".tar"):
            asked[Path(path).name] += Path(path).stat().st_size
        with read(self, path) as file:
            yield file

    def counted_part(self, path, offset=0, size=None, before=LocalStorage.read):
        data = before(self, path, offset, size)
        if str(path).endswith(".tar"):
            asked[Path(path).name] += len(data)
        return data

    monkeypatch.setattr(LocalStorage, "opened", counted)
    monkeypatch.setattr(LocalStorage, "read", counted_part)
    return asked


def test_no_job_reads_a_tar_and_only_verify_reads_all(filtered_run, tmp_path, monkeypatch):
    asked = tar_reads(monkeypatch)
    markers, read = Counter(), output.read_marker
    monkeypatch.setattr(output, "read_marker", lambda out, name: markers.update([name]) or read(out, name))
    for number in range(4):
        generate(filtered_run, tmp_path / "out", shard_size=10, shards=(number, number + 1), **FILTER)
    assert not asked and max(markers.values()) <= 2, "a job reads the others' markers only when all are there"
    assert generate(filtered_run, tmp_path / "out", shard_size=10, **FILTER).made == 0 and not asked
    assert shards.verify(tmp_path / "out").problems == ()
    assert asked == {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.tar")}


def test_a_key_that_a_later_release_adds_changes_no_fingerprint(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = generate(run, out, shard_size=10)
    before = hashes(out)
    (out / "synthetic-000001.tar").unlink()
    later = dataclasses.make_dataclass(
        "GenerationOptions", [("new_key", int, option(3, "a key of tomorrow"))], bases=(GenerationOptions,), frozen=True
    )
    later.__module__ = __name__
    load = from_run.load_run

    def loaded(*arguments):
        found = load(*arguments)
        section = later(**vars(found.recipe.generation))
        _ = found.fingerprint
        recipe = dataclasses.replace(found.recipe, generation=section, downstream=DownstreamOptions(steps=7))
        return dataclasses.replace(found, recipe=recipe)

    monkeypatch.setattr(from_run, "load_run", loaded)
    second = generate(run, out, shard_size=10)
    assert second.fingerprint == first.fingerprint and second.made == 1
    assert {n: d for n, d in hashes(out).items() if n.endswith(".tar")} == {
        name: data for name, data in before.items() if name.endswith(".tar")
    }


def as_version_0_1(out: Path) -> None:
    """Rewrite the files beside the tars as version 0.1 wrote them."""
    for path in out.glob("*.json"):
        if path.name in ("index.json", "_info.json"):
            continue
        values = {k: v for k, v in storage.read_sealed_json(path).items() if k != "schema"}
        if path.name != "manifest.json":
            values.pop("version")
        if "request" in values:
            values["request"]["gates"] = values["request"].pop("criteria")
        storage.write_sealed_json(path, values)
    manifest = storage.read_sealed_json(out / "manifest.json")
    manifest["files"]["generation.json"] = storage.sha256_file(out / "generation.json")
    storage.write_sealed_json(out / "manifest.json", manifest)


def test_an_output_of_version_0_1_is_read_and_not_gone_on_with(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out, shard_size=10)
    as_version_0_1(out)
    assert shards.verify(out).problems == () and len(list(shards.load_shards(out))) == 38
    assert read_manifest(out).request.settings.shard_size == 10
    before = hashes(out)
    with pytest.raises(RefusedError, match=r"begun by version 0\.1 .*`overwrite=True`"):
        generate(run, out, shard_size=10)
    assert hashes(out) == before
    assert generate(run, out, shard_size=10, overwrite=True).made == 4


def test_files_of_a_later_version_are_refused_with_its_name(run, tmp_path):
    out = tmp_path / "out"
    generate(run, out)
    for name in ("manifest.json", "synthetic-000000.json"):
        values = storage.read_sealed_json(out / name)
        storage.write_sealed_json(out / name, {**values, "schema": 99, "version": "7.5"})
        assert "7.5" in " ".join(problem.what for problem in shards.verify(out).problems)
        storage.write_sealed_json(out / name, values)
    values = storage.read_sealed_json(out / "generation.json")
    storage.write_sealed_json(out / "generation.json", {**values, "schema": 99, "version": "7.5"})
    with pytest.raises(RefusedError, match=r"begun by version 7\.5"):
        generate(run, out)


SAMPLE = {
    "class": "c", "label": 1, "synthetic": True, "method": "m", "run": "f", "source": "s.png", "source_class": "c",
    "reference": "r.png | q.png", "modality": 0, "seed": 0, "candidate": 2, "scores": {"outlier": -1.0}, "width": 8,
    "height": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "origin", "images"),
    [
        ({}, "images", ("s.png", "r.png", "q.png")),
        ({"reference": ""}, "images", ("s.png",)),
        ({"reference": "", "method": "filter"}, "file", ()),
        ({"reference": "", "method": "real", "synthetic": False}, "file", ()),
        ({"origin": "latent", "source": "", "reference": ""}, "latent", ()),
        ({"origin": "images", "source": ""}, "images", ("r.png", "q.png")),
    ],
)
def test_a_sample_tells_what_it_was_made_from(changes, origin, images):
    record = SampleRecord.from_json(json.dumps(SAMPLE | changes).encode())
    assert record.provenance == Provenance(origin, images)
    assert record.to_json() == {**SAMPLE, **changes, "origin": origin}
    assert SampleRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize("changes", [{"label": "1"}, {"more": 1}, {"origin": "moon"}, {"scores": {"a": None}}])
def test_a_sample_of_another_form_is_damage(changes):
    with pytest.raises(DamagedError, match="its json has"):
        SampleRecord.from_json(SAMPLE | changes)

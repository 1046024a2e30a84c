"""`filter`: images of any origin through the filter, into shards like those of `generate`."""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import webdataset
from click.testing import CliRunner
from PIL import Image
from toys import filter_images, generate, tiny_recipe, write_classes

import rebalance
from rebalance import imaging, reporting, shards, storage
from rebalance.cli.commands import root
from rebalance.config import FeatureOptions
from rebalance.errors import DamagedError, InputError, RefusedError
from rebalance.measures import frechet
from rebalance.measures.features import make_extractor
from rebalance.methods.balagan.method import Balagan
from rebalance.runtime.devices import choose_device
from rebalance.shards.filtered import FilteredShards
from rebalance.shards.records import SAMPLE_FIELDS
from rebalance.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"a": 80, "b": 80, "poor": 80}
FAST = {"input_px": 32, "device": "cpu"}
JUNK = {"noise": 8, "copy": 6, "wrong": 6}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Real images in train, val and test."""
    root = tmp_path_factory.mktemp("real")
    for seed, split in enumerate(("train", "val", "test")):
        write_classes(root / split, COUNTS, side=16, seed=seed)
    return root


@pytest.fixture(scope="module")
def given(real, tmp_path_factory) -> Path:
    """Images of two classes, junk planted among those of one."""
    root = tmp_path_factory.mktemp("given") / "images"
    write_classes(root, dict.fromkeys(COUNTS, 24), side=16, seed=7)
    shutil.rmtree(root / "b")
    rng = np.random.default_rng(0)
    for number in range(JUNK["noise"]):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "poor" / f"noise{number}.png")
    for number in range(JUNK["copy"]):
        shutil.copy(real / "train" / "poor" / f"{number:03d}.png", root / "poor" / f"copy{number}.png")
    for number in range(JUNK["wrong"]):
        shutil.copy(real / "val" / "a" / f"{number:03d}.png", root / "poor" / f"wrong{number}.png")
    return root


@pytest.fixture(scope="module")
def out(given, real, tmp_path_factory) -> Path:
    """What is left of them, in shards of ten."""
    folder = tmp_path_factory.mktemp("kept") / "out"
    filter_images(given, real, folder, shard_size=10, **FAST)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def samples(folder: Path) -> list[dict]:
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    return list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))


def fields_of(folder: Path) -> list[dict]:
    return [json.loads(sample["json"]) for sample in samples(folder)]


def test_planted_junk_is_rejected_with_its_reason_and_the_rest_is_kept(given, real, out):
    result = filter_images(given, real, out, shard_size=10, **FAST)
    assert result.made == 0 and result.complete and result.exit_code == 0
    assert result.given == {"a": 24, "poor": 44} and result.bad == {}
    kept = Counter(fields["source"].rpartition("/")[2].rstrip("0123456789.png") for fields in fields_of(out))
    assert kept.keys() <= {"", "wrong"} and kept[""] >= 34 and kept["wrong"] <= 1
    rejects = result.rejects["poor"]
    assert rejects["outlier"] >= JUNK["noise"] and rejects["memorised"] >= JUNK["copy"]
    for name, number in result.given.items():
        assert result.counts[name] + sum(result.rejects.get(name, {}).values()) == number
    manifest = storage.read_sealed_json(out / "manifest.json")
    assert manifest["rejects"] == result.rejects
    shown = reporting.filter_text(result)
    assert "images as png: their own bytes" in shown and "memorised" in shown and "finished 'poor'" in shown


def test_samples_are_those_of_generate_and_keep_their_bytes(given, real, out):
    keys = set()
    for sample in samples(out):
        fields = json.loads(sample["json"])
        assert fields.keys() == SAMPLE_FIELDS.keys() and fields["synthetic"] is True and fields["method"] == "filter"
        assert int(sample["cls"]) == fields["label"] == sorted(COUNTS).index(fields["class"])
        assert (given / fields["source"]).read_bytes() == sample["png"]
        assert (fields["width"], fields["height"], fields["reference"], fields["candidate"]) == (16, 16, "", -1)
        assert fields["source_class"] == fields["class"] and 0 <= fields["scores"]["outlier"] <= 1
        assert fields["scores"]["similarity"] > -1
        keys.add(sample["__key__"])
    assert len(keys) == len(samples(out))


def test_the_output_goes_through_everything_that_takes_one(given, real, out, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(out, tmp_path / "out"))
    checked = rebalance.verify(copy)
    assert checked.problems == () and checked.images == len(samples(copy))
    labels = Counter(label for _, label in rebalance.load_shards(copy))
    assert set(labels) == {0, 2} and labels.total() == checked.images
    result = rebalance.evaluate(copy, real, dimensions=4, device="cpu")
    assert result.split == "test" and result.features == "efficientnet-lite0@32"
    assert all(of_class.agreement > 0.9 for of_class in result.classes)
    assert filter_images(given, real, copy, shard_size=10, **FAST).made == 0
    assert rebalance.verify(copy).exit_code == 0
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(copy), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == checked.images and loaded[0]["png"].size == (16, 16)


def test_finished_images_distance_is_that_of_their_features(real, out):
    manifest = storage.read_sealed_json(out / "manifest.json")
    extractor = make_extractor(FeatureOptions(input_px=32), choose_device("cpu"))
    tensors = safetensors.numpy.load_file(out / "calibration" / "calibration.safetensors")
    projection = frechet.Projection(tensors["space/centre"], tensors["space/axes"])
    for number, (name, found) in enumerate(sorted(manifest["finished"].items())):
        made = [image.pixels for image in shards.read_synthetic(out) if image.record.class_name == name]
        train = [np.asarray(Image.open(path)) for path in sorted((real / "train" / name).iterdir())]
        small = [projection.apply(extractor.extract_all(side)) for side in (train, made)]
        expected = frechet.compare(*small, draws=20, seed=0)
        assert found["distance"] == pytest.approx(expected.distance, rel=1e-4)
        assert found["floor"] == pytest.approx(expected.floor, rel=1e-4)
        assert (found["n_real"], found["n_synthetic"]) == (80, len(made))
        assert tensors[f"real/{number}/mean"] == pytest.approx(small[0].mean(0), abs=1e-3)


def test_killed_at_any_shard_it_ends_with_the_same_bytes(given, real, out, tmp_path, monkeypatch):
    make, copy = FilteredShards._contents, tmp_path / "out"
    for stop in (0, 3):

        def dies(maker, name, *rest, stop=stop):
            if name.number == stop:
                raise KeyboardInterrupt
            return make(maker, name, *rest)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(FilteredShards, "_contents", dies)
            filter_images(given, real, copy, shard_size=10, **FAST)
        assert not (copy / "manifest.json").exists() and len(list(copy.glob("*.tar"))) == stop
    (copy / "synthetic-000001.json").unlink()
    result = filter_images(given, real, copy, shard_size=10, **FAST)
    assert result.made == 7 - 3 + 1 and contents(copy) == contents(out)


@pytest.mark.slow
def test_killed_in_truth_it_ends_with_the_same_bytes(given, real, out, tmp_path):
    copy = tmp_path / "out"
    command = [
        sys.executable, "-m", "rebalance", "filter", str(given), "--real", str(real), "--out", str(copy),
        "--shard-size", "10", "--input-px", "32", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(copy.glob("*.tar")):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert contents(copy) == contents(out)


def test_every_file_that_is_damaged_or_lost_is_noticed_and_made_again(given, real, out, tmp_path):
    for number, name in enumerate(sorted(contents(out))):
        for damage in ("flip", "remove"):
            copy = Path(shutil.copytree(out, tmp_path / f"{number}-{damage}"))
            if damage == "remove":
                (copy / name).unlink()
            else:
                data = bytearray((copy / name).read_bytes())
                data[len(data) // 2] ^= 1
                (copy / name).write_bytes(data)
            found = " ".join(f"{problem.file} {problem.what}" for problem in shards.verify(copy).problems)
            assert Path(name).name in found, f"{damage} of {name}"
            if damage == "flip" and name.endswith(".tar"):
                (copy / name).unlink()  # a tar of the marker's size is trusted, until `verify` names it
            filter_images(given, real, copy, shard_size=10, **FAST)
            assert contents(copy) == contents(out), f"{damage} of {name}"


@pytest.mark.parametrize("workers", [3])
def test_the_bytes_are_the_same_with_any_number_of_workers(given, real, out, tmp_path, workers):
    result = filter_images(given, real, tmp_path / "out", shard_size=10, workers=workers, **FAST)
    assert result.made == 7 and contents(tmp_path / "out") == contents(out)


def test_another_request_is_refused_and_named(given, real, out, tmp_path):
    before, other = contents(out), Path(shutil.copytree(given, tmp_path / "images"))
    shutil.copy(given / "a" / "000.png", other / "a" / "more.png")
    changes = [
        (given, {"keep": 0.5}, "criteria.keep: None -> 0.5"),
        (given, {"shard_size": 5}, "shard_size: 10 -> 5"),
        (given, {"seed": 1}, "seed: 0 -> 1"),
        (given, {"square": "pad"}, "view.square: 'crop' -> 'pad'"),
        (given, {"pool": 20}, "filtering.pool_images: 512 -> 20"),
        (given, {"input_px": 64}, "features: "),
        (other, {}, "images.usable: 68 -> 69"),
    ]
    for path, options, message in changes:
        with pytest.raises(RefusedError, match=message):
            filter_images(path, real, out, **{"shard_size": 10, **FAST, **options})
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"thesis\.txt"):
        filter_images(given, real, tmp_path / "mine", overwrite=True, **FAST)
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    assert filter_images(given, real, copy, shard_size=1000, overwrite=True, **FAST).shards == 1
    assert shards.verify(copy).exit_code == 0


def test_a_share_without_any_image_that_passes_is_an_empty_shard(given, real, tmp_path, monkeypatch):
    out = tmp_path / "out"
    result = filter_images(given, real, out, shard_size=1, **FAST)
    assert result.shards == 68 and shards.verify(out).problems == ()
    sizes = {row["shard"]: row["images"] for row in storage.read_sealed_json(out / "manifest.json")["shards"]}
    empty = [name for name, images in sizes.items() if not images]
    assert len(empty) == 68 - sum(result.counts.values()) > 0
    # The first shard that other tools see must have an image to tell the fields by.
    assert sum(1 for _ in shards.load_shards(out)) == 68 - len(empty) == len(samples(out))
    index, info = (json.loads((out / name).read_text()) for name in ("index.json", "_info.json"))
    assert not set(empty) & {shard["url"] for shard in index["shardlist"]}
    assert info["splits"]["train"]["num_samples"] == 68 - len(empty) == len(info["splits"]["train"]["filenames"])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 68 - len(empty)


def test_a_gate_withholds_a_class_and_without_one_nothing_is(given, real, tmp_path):
    few = tmp_path / "images"
    write_classes(few, dict.fromkeys(COUNTS, 12), side=16, seed=7)
    shutil.rmtree(few / "b")
    swapped = tmp_path / "swapped"
    shutil.copytree(few / "a", swapped / "a")
    shutil.copytree(few / "a", swapped / "poor")
    gated = filter_images(swapped, real, tmp_path / "gated", max_fid="1000x", **FAST)
    assert gated.withheld.keys() == {"poor"} and "passed the image filter" in gated.withheld["poor"]
    assert gated.exit_code == 3 and gated.counts.keys() == {"a"} and shards.verify(tmp_path / "gated").exit_code == 0
    assert "WITHHELD 'poor'" in reporting.filter_text(gated)
    asked = filter_images(swapped, real, tmp_path / "asked", **FAST)
    assert asked.exit_code == 3 and not asked.withheld and asked.counts["poor"] == 0 < asked.counts["a"]
    assert sum(asked.rejects["poor"].values()) == 12 and "poor" not in asked.finished
    closed = filter_images(few, real, tmp_path / "closed", max_fid=1e-9, **FAST)
    assert closed.withheld.keys() == {"a", "poor"} and closed.shards == 0 and closed.exit_code == 3
    assert shards.verify(tmp_path / "closed").exit_code == 0 and list(shards.load_shards(tmp_path / "closed")) == []


def test_few_real_images_or_few_given_ones_do_not_stop_it(tmp_path):
    data = write_classes(tmp_path / "data", {"a": 40, "lone": 1, "poor": 12}, side=16)
    given = write_classes(tmp_path / "images", {"a": 1, "lone": 3, "poor": 2}, side=16, seed=1)
    result = filter_images(given, data, tmp_path / "out", **FAST)
    assert result.counts["lone"] == 3 and not result.withheld
    assert "too few for a filter: every image is kept" in reporting.filter_text(result)
    assert shards.verify(tmp_path / "out").exit_code == 0
    gated = filter_images(given, data, tmp_path / "gated", max_kid="3x", **FAST)
    assert "1 real train images are too few to compare with" in gated.withheld["lone"]


def test_images_of_several_formats_become_png_and_bad_files_are_counted(real, tmp_path):
    given = write_classes(tmp_path / "images", dict.fromkeys(COUNTS, 10), side=16, seed=7)
    first = Image.open(given / "a" / "000.png")
    first.save(given / "a" / "000.bmp")
    (given / "a" / "000.png").unlink()
    (given / "a" / "note.png").write_text("not a picture")
    (given / "a" / "empty.png").touch()
    result = filter_images(given, real, tmp_path / "out", **FAST)
    assert (result.file_format, result.original) == ("png", False) and result.given["a"] == 10
    assert result.bad == {"not an image": 1, "zero-size file": 1}
    shown = reporting.filter_text(result)
    assert "encoded again" in shown and "1 files could not be used: not an image" in shown
    for sample in samples(tmp_path / "out"):
        source = given / json.loads(sample["json"])["source"]
        assert np.array_equal(
            np.asarray(imaging.decode(sample["png"])), np.asarray(imaging.decode(source.read_bytes()))
        )
    assert shards.verify(tmp_path / "out").exit_code == 0


def test_jpeg_files_keep_their_bytes_and_real_images_get_their_quality(real, tmp_path):
    given = write_classes(tmp_path / "images", dict.fromkeys(COUNTS, 10), side=16, seed=7)
    for path in list(given.rglob("*.png")):
        Image.open(path).save(path.with_suffix(".jpeg"), quality=70)
        path.unlink()
    result = filter_images(given, real, tmp_path / "out", **FAST)
    assert (result.file_format, result.original) == ("jpg", True) and sum(result.counts.values()) > 20
    request = storage.read_sealed_json(tmp_path / "out" / "manifest.json")["request"]
    assert request["quality"] == 70 and request["view"]["encoding"] == ["jpg", 70]
    for sample in samples(tmp_path / "out"):
        assert (given / json.loads(sample["json"])["source"]).read_bytes() == sample["jpg"]


@pytest.mark.parametrize("quality", [1, 35, 75, 95, 100])
def test_the_quality_of_a_jpeg_file_is_read_from_its_tables(quality):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert imaging.jpeg_quality(imaging.encode(pixels, "jpg", quality)) == quality
    assert [imaging.format_of(imaging.encode(pixels, kind, 90)) for kind in ("jpg", "png", "webp")] == [
        "jpg",
        "png",
        "webp",
    ]
    assert imaging.format_of(b"RIFF") == imaging.format_of(b"") == ""


def test_shards_and_manifests_of_others_are_read(given, real, out, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rows = ["path,label"]
    with webdataset.TarWriter(str(foreign / "part-0.tar"), encoder=False) as writer:
        for number, path in enumerate(sorted(given.glob("*/*.png"))):
            writer.write({"__key__": f"{number:04d}", "png": path.read_bytes(), "cls": path.parent.name.encode()})
            rows.append(f"{path.relative_to(given.parent)},{path.parent.name}")
    result = filter_images(foreign, real, tmp_path / "of-shards", shard_size=10, **FAST)
    assert result.given == {"a": 24, "poor": 44} and result.rejects["poor"]["outlier"] >= JUNK["noise"]
    assert all(fields["source"].startswith("part-0.tar/") for fields in fields_of(tmp_path / "of-shards"))
    manifest = given.parent / "list.csv"
    manifest.write_text("\n".join(rows))
    listed = filter_images(manifest, real, tmp_path / "of-manifest", shard_size=10, **FAST)
    assert listed.given == result.given and listed.counts == result.counts


def test_an_output_of_generate_keeps_what_is_known_of_its_images(tmp_path, monkeypatch):
    data = write_classes(tmp_path / "data", {"a": 52})
    (data / "poor").mkdir()
    for path in sorted((data / "a").iterdir())[:12]:
        path.rename(data / "poor" / path.name)
    # A translation that is its source is of both classes, which look alike.
    monkeypatch.setattr(Balagan, "make", lambda method, sources, codes: sources)
    recipe = tiny_recipe(
        data={"val_fraction": 0.25, "square": "pad"}, training={"steps": 1}, generation={"batch": 4, "threads": 1}
    )
    fit(data, tmp_path / "run", recipe, balance={"poor": 21})
    generate(tmp_path / "run", tmp_path / "made", include_real=True, shard_size=5, quality=80, device="cpu")
    options = {"min_confidence": 0.0, "max_similarity": 1.0, "keep": 1.0, "device": "cpu"}
    result = filter_images(tmp_path / "made", data, tmp_path / "out", **options)
    assert result.given == {"poor": 12} and result.counts["poor"] > 3
    manifest = storage.read_sealed_json(tmp_path / "out" / "manifest.json")
    assert manifest["validation"] == {"fraction": 0.25, "seed": 0} and manifest["square"] == "pad"
    assert manifest["request"]["view"] == {"size_px": 8, "square": "pad", "encoding": ["jpg", 80]}
    same = ("method", "source", "source_class", "reference", "modality", "candidate", "class", "label", "width")
    before = [
        (sample["jpg"], [json.loads(sample["json"])[name] for name in same]) for sample in samples(tmp_path / "made")
    ]
    for sample in samples(tmp_path / "out"):
        now = json.loads(sample["json"])
        assert (sample["jpg"], [now[name] for name in same]) in before
        assert now["method"] == "balagan" and now["run"] == result.fingerprint
    again = filter_images(tmp_path / "out", data, tmp_path / "twice", **options)
    assert again.given["poor"] == result.counts["poor"]
    assert {fields["method"] for fields in fields_of(tmp_path / "twice")} <= {"balagan"}
    (tmp_path / "made" / "manifest.json").unlink()
    with pytest.raises(InputError, match="`images` is not complete"):
        filter_images(tmp_path / "made", data, tmp_path / "more", **options)


def test_an_outputs_sample_that_does_not_say_how_it_was_made_is_damage(real, out, tmp_path):
    made = Path(shutil.copytree(out, tmp_path / "made"))
    tar = made / "synthetic-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"candidate":', b'"candidata":'))
    with pytest.raises(DamagedError, match="is missing or damaged"):
        filter_images(made, real, tmp_path / "out", min_confidence=0.0, **FAST)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "`shard_size`"),
        ({"pool": 3}, "`pool` is too small; got 3; allowed: 8 or more"),
        ({"seed": -1}, "`seed`"),
        ({"keep": 0.0}, "`keep`"),
        ({"min_confidence": 2}, "`min_confidence`"),
        ({"max_similarity": -2}, "`max_similarity`"),
        ({"max_fid": "cheap"}, "`max_fid`"),
        ({"max_kid": 0}, "`max_kid`"),
        ({"square": "round"}, "square"),
        ({"input_px": 8}, "input_px"),
        ({"features": "encoder"}, "`run`"),
        ({"features": "nowhere:at_all"}, "features"),
        ({"features": "inception", "weights": "nowhere.pt"}, "Inception weights are not there"),
        ({"device": "tpu"}, "`device`"),
    ],
)
def test_wrong_options_name_themselves_and_leave_nothing(given, real, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        filter_images(given, real, tmp_path / "out", **{**FAST, **options})
    assert not (tmp_path / "out").exists()


def test_wrong_places_and_unknown_classes_are_named(given, real, tmp_path):
    strange = write_classes(tmp_path / "images", {"a": 2, "strange": 2})
    with pytest.raises(InputError, match=r"the real data set does not have; got \['strange'\]; allowed: a, b, poor"):
        filter_images(strange, real, tmp_path / "out", **FAST)
    for inside, name in ((given / "out", "images"), (real / "train" / "out", "real"), (given, "images")):
        with pytest.raises(InputError, match=f"`out` lies inside `{name}`"):
            filter_images(given, real, inside, **FAST)
    for path in (given, given / "a" / "000.png"):
        with pytest.raises(InputError, match="`images` lies inside `out`"):
            filter_images(path, real, given.parent, overwrite=True, **FAST)
    with pytest.raises(InputError, match="`images` does not exist"):
        filter_images(tmp_path / "nowhere", real, tmp_path / "out", **FAST)
    (tmp_path / "none" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="no synthetic image"):
        filter_images(tmp_path / "none", real, tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()


def colours(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], 1)


def test_features_of_ones_own_and_options_on_the_command_line(given, real, tmp_path):
    arguments = [
        "filter",
        str(given),
        "--real",
        str(real),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--quiet",
    ]
    arguments += ["--features", f"{__name__}:colours", "--keep", "0.8", "--pool", "30", "--json"]
    first = CliRunner().invoke(root, arguments)
    assert first.exit_code == 0, first.output
    values = json.loads(first.stdout)
    assert values["made"] == 1 and values["given"] == {"a": 24, "poor": 44} and values["out"].endswith("out")
    assert values["calibration"]["poor"]["pool"] == 30 and values["rejects"]["poor"].keys() >= {"outlier"}
    assert values["finished"]["poor"]["n_synthetic"] == values["counts"]["poor"]
    assert json.loads(CliRunner().invoke(root, arguments).stdout)["made"] == 0
    refused = CliRunner().invoke(root, [*arguments, "--seed", "3"])
    assert isinstance(refused.exception, RefusedError) and refused.exception.exit_code == 4

"""Evaluation of synthetic images against held-out real ones: sensible figures, stated degradation, clear errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from toys import generate, tiny_recipe, write_classes

import rebalance
from rebalance import reporting
from rebalance.cli.commands import root
from rebalance.config.requests import FeatureChoice
from rebalance.errors import InputError
from rebalance.evaluation import ClassEvaluation, Evaluation, evaluate
from rebalance.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = {"features": FeatureChoice(input_px=32), "dimensions": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Real images in train and test."""
    root = tmp_path_factory.mktemp("evaluation") / "real"
    write_classes(root / "train", {"a": 40, "b": 30, "poor": 12}, side=16, seed=0)
    write_classes(root / "test", {"a": 30, "b": 30, "poor": 30}, side=16, seed=1)
    return root


def figures(result: Evaluation, name: str) -> ClassEvaluation:
    return next(of_class for of_class in result.classes if of_class.class_name == name)


def test_more_of_the_same_is_close_and_another_class_is_far(real, tmp_path):
    same = evaluate(write_classes(tmp_path / "same", {"a": 30, "b": 30, "poor": 30}, side=16, seed=2), real, **FAST)
    assert same.split == "test" and same.features == "efficientnet-lite0@32"
    poor = figures(same, "poor")
    assert (poor.n_synthetic, poor.n_real, poor.n_train) == (30, 30, 12)
    assert poor.fd.distance < 3 * poor.fd.floor and abs(poor.kid.value) < 4 * poor.kid.error
    assert poor.fid > poor.fd.distance, "more dimensions, nothing shrunk"
    assert poor.neighbourhoods.coverage > 0.5 and poor.agreement > 0.9 and poor.notes == ()
    swapped = tmp_path / "swapped"
    for name, other in (("a", "poor"), ("poor", "a")):
        shutil.copytree(tmp_path / "same" / other, swapped / name)
    wrong = figures(evaluate(swapped, real, **FAST), "poor")
    assert wrong.fd.distance > 5 * poor.fd.distance and wrong.kid.value > 5 * wrong.kid.error
    assert wrong.neighbourhoods.coverage < 0.1 and wrong.agreement < 0.1 < wrong.agreement_real
    assert same.mean["coverage"] == pytest.approx(np.mean([c.neighbourhoods.coverage for c in same.classes]))


def test_copies_of_train_images_are_memorised(real, tmp_path):
    shutil.copytree(real / "train" / "poor", tmp_path / "copies" / "poor")
    copies = figures(evaluate(tmp_path / "copies", real, **FAST), "poor")
    assert copies.memorised == 1
    fresh = write_classes(tmp_path / "fresh", {"a": 5, "b": 5, "poor": 20}, side=16, seed=3)
    assert figures(evaluate(fresh, real, **FAST), "poor").memorised < 0.3


def test_an_output_brings_its_own_settings_and_keeps_the_result(real, tmp_path, capsys):
    recipe = tiny_recipe(data={"square": "pad"}, training={"steps": 1}, generation={"batch": 4})
    fit(real, tmp_path / "run", recipe, balance={"poor": 22})
    generate(tmp_path / "run", tmp_path / "out", device="cpu")
    result = evaluate(tmp_path / "out", real, dimensions=4, device="cpu")
    assert result.features == "efficientnet-lite0@32"
    assert figures(result, "poor").n_synthetic == 10
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["classes"][0]["fd"]["n_synthetic"] == 10
    assert rebalance.verify(tmp_path / "out").exit_code == 0
    assert generate(tmp_path / "run", tmp_path / "out", device="cpu").made == 0
    arguments = [
        "evaluate",
        str(tmp_path / "out"),
        "--real",
        str(real),
        "--device",
        "cpu",
        "--quiet",
        "--dimensions",
        "4",
    ]
    assert json.loads(CliRunner().invoke(root, [*arguments, "--json"]).stdout)["mean"] == pytest.approx(result.mean)
    shown = CliRunner().invoke(root, arguments).stdout
    assert "coverage" in shown and "poor" in shown and "bias of FD" in shown


def test_the_same_call_gives_the_same_figures(real, tmp_path):
    made = write_classes(tmp_path / "made", {"poor": 30}, side=16, seed=2)
    first, again = (evaluate(made, real, max_images=12, **FAST) for _ in range(2))
    assert first == again and figures(first, "poor").n_synthetic == 12
    assert evaluate(made, real, max_images=12, seed=1, **FAST) != first


def test_what_cannot_be_measured_is_said(real, tmp_path):
    made = write_classes(tmp_path / "made", {"a": 1, "poor": 4}, side=16, seed=2)
    result = evaluate(made, real, **FAST)
    one, four = figures(result, "a"), figures(result, "poor")
    assert one.fd is None and one.kid is None and one.neighbourhoods is None and one.agreement is not None
    assert four.fd is not None and four.kid is not None and four.neighbourhoods is None
    missing = ["no FD", "no FD at infinity", "no FID", "no KID", "no neighbourhoods"]
    assert [note.partition(":")[0] for note in one.notes] == missing
    assert "fd" not in result.mean and "agreement" in result.mean
    assert "no neighbourhoods: too few synthetic images; got 4" in reporting.evaluation_text(result)


def test_comparing_with_train_says_so(real, tmp_path):
    made = write_classes(tmp_path / "made", {"poor": 10}, side=16, seed=2)
    result = evaluate(made, real, split="train", **FAST)
    assert figures(result, "poor").memorised is None
    assert "trained on" in reporting.evaluation_text(result)


def test_classes_that_real_images_lack_or_have_only_in_train(real, tmp_path):
    made = write_classes(tmp_path / "made", {"poor": 10, "strange": 3}, side=16, seed=2)
    with pytest.raises(InputError, match="the real data set does not have; got \\['strange'\\]; allowed: a, b, poor"):
        evaluate(made, real, **FAST)
    data = tmp_path / "data"
    shutil.copytree(real, data)
    shutil.rmtree(data / "test" / "poor")
    shutil.rmtree(made / "strange")
    with pytest.raises(InputError, match="no test image of any class"):
        evaluate(made, data, **FAST)
    write_classes(tmp_path / "more", {"poor": 10, "a": 9}, side=16, seed=2)
    poor = figures(evaluate(tmp_path / "more", data, **FAST), "poor")
    assert poor.n_real == 0 and poor.fd is None and poor.agreement is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "`real` has no val images; allowed: train \\(82\\), test \\(90\\)"),
        ({"split": "tests"}, "`split` is unknown"),
        ({"square": "round"}, "`square` is unknown"),
        ({"dimensions": 0}, "`dimensions`; got 0"),
        ({"max_images": 1}, "`max_images`; got 1"),
        ({"features": FeatureChoice(input_px=8)}, "input_px"),
        ({"features": FeatureChoice("inception", weights="nowhere.pt")}, "Inception weights are not there"),
    ],
)
def test_wrong_options_are_named(real, tmp_path, options, message):
    made = write_classes(tmp_path / "made", {"poor": 3}, side=16)
    with pytest.raises(InputError, match=message):
        evaluate(made, real, **{**FAST, **options})


def test_a_data_set_without_held_out_images_says_what_to_do(tmp_path):
    data = write_classes(tmp_path / "data", {"poor": 3, "rich": 9})
    with pytest.raises(InputError, match=r"no held-out images; allowed: train \(12\)\. Hold some"):
        evaluate(data, data, **FAST)
    (tmp_path / "empty" / "poor").mkdir(parents=True)
    with pytest.raises(InputError, match="no synthetic image"):
        evaluate(tmp_path / "empty", data, split="train", **FAST)


def test_colour_and_gray_real_images_are_brought_to_the_synthetic_ones(tmp_path):
    data = write_classes(tmp_path / "data" / "train", {"poor": 8, "rich": 9}, side=12).parent
    made = tmp_path / "made" / "poor"
    made.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (10, 10), dtype=np.uint8)).save(made / f"{number}.png")
    result = evaluate(made.parent, data, split="train", **FAST)
    assert figures(result, "poor").fd.n_real == 8


def test_an_output_is_compared_with_what_its_run_held_out(tmp_path):
    data = write_classes(tmp_path / "data", {"poor": 20, "rich": 40}, side=8)
    recipe = tiny_recipe(data={"val_fraction": 0.2}, training={"steps": 1}, generation={"batch": 4})
    fit(data, tmp_path / "run", recipe, balance={"poor": 22})
    generate(tmp_path / "run", tmp_path / "out", include_real=True, device="cpu")
    result = evaluate(tmp_path / "out", data, dimensions=4, device="cpu")
    poor = figures(result, "poor")
    assert (result.split, poor.n_synthetic, poor.n_real, poor.n_train) == ("val", 6, 4, 16)
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(InputError, match="not complete"):
        evaluate(tmp_path / "out", data, device="cpu")


def test_small_gray_images_among_large_colour_ones_decide_nothing(real, tmp_path):
    made = write_classes(tmp_path / "made", {"a": 9, "b": 9, "poor": 12}, side=16, seed=2)
    expected = figures(evaluate(made, real, **FAST), "poor")
    Image.new("L", (2, 2)).save(made / "poor" / "000-first.png")
    found = figures(evaluate(made, real, **FAST), "poor")
    assert found.n_synthetic == 13 and found.fd.distance < 3 * expected.fd.distance
    assert found.agreement > 0.8


def test_another_tools_manifest_is_no_output(real, tmp_path):
    made = write_classes(tmp_path / "made{1,2}", {"poor": 5}, side=16, seed=2)
    (made / "manifest.json").write_text('{"mine": NaN}')
    assert figures(evaluate(made, real, **FAST), "poor").n_synthetic == 5


def test_features_of_ones_own(real, tmp_path):
    made = write_classes(tmp_path / "made", {"a": 20, "poor": 20}, side=16, seed=2)
    result = evaluate(made, real, features=FeatureChoice(f"{__name__}:colours"), device="cpu")
    assert result.features == f"{__name__}:colours"
    assert figures(result, "a").fd.dimensions == 3


def colours(pixels: np.ndarray) -> np.ndarray:
    return pixels.mean((1, 2))


def test_the_encoder_of_a_run_must_be_named(real, tmp_path):
    made = write_classes(tmp_path / "made", {"a": 20}, side=16, seed=2)
    with pytest.raises(InputError, match="`features`: encoder needs `run`"):
        evaluate(made, real, features=FeatureChoice("encoder"), device="cpu")


def test_the_encoder_of_a_run_gives_features(tmp_path):
    data = write_classes(tmp_path / "data", {"a": 40, "b": 24, "poor": 8})
    encoder = {"width": 4, "blocks": [1, 1], "stem": "small", "projection": 4, "batch": 12, "steps": 2}
    recipe = tiny_recipe(modalities={"by": "contrastive", "k": 2, "encoder": encoder}, training={"steps": 1})
    fit(data, tmp_path / "run", recipe, balance={"poor": 12}, device="cpu")
    made = write_classes(tmp_path / "made", {"a": 20, "poor": 20}, seed=2)
    result = evaluate(made, data, split="train", features=FeatureChoice("encoder", run=tmp_path / "run"), device="cpu")
    assert result.features == "encoder" and figures(result, "poor").kid is not None
    generated = generate(tmp_path / "run", tmp_path / "out", features="encoder", max_fid="1000000x", device="cpu")
    assert generated.counts == {"poor": 4}

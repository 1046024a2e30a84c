"""The downstream study: what arms draw, what figures say, and that a study is honest, resumable and clear."""

import io
import itertools
import json
import math
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score
from toys import generate, tiny_recipe, write_classes

import rebalance
from rebalance import imaging, reporting, shards, storage
from rebalance.cli.commands import root
from rebalance.config import DownstreamOptions
from rebalance.config.method import Inputs
from rebalance.config.requests import StudyOptions
from rebalance.errors import InputError, RefusedError
from rebalance.generation.loaded_run import load_run
from rebalance.index import build_index, carve_validation
from rebalance.learning.trainable import StepContext
from rebalance.measures.spreads import Spread, spread
from rebalance.planning.tuned import Tuned, read_tuned, write_tuned
from rebalance.reporting.charts import chart_png
from rebalance.runtime.draws import Draws
from rebalance.shards.given import given_images
from rebalance.shards.records import manifest_of
from rebalance.training import RunDirectory, fit
from rebalance.trials import CHART, DEFAULT, RESULT, TUNED, downstream, parse_arms
from rebalance.trials.amounts import amounts_of, amounts_to_draw, at_most
from rebalance.trials.arms import BEST, CHEAP, FULL, Arm, parse_multiple
from rebalance.trials.batches import Amounts, ClassifierBatch, Mixture
from rebalance.trials.classifier import Classifier, balanced_loss, confusion, loop_options
from rebalance.trials.control import rich_translations
from rebalance.trials.figures import figures_of
from rebalance.trials.held_out import HeldOut
from rebalance.trials.material import Material, MaterialLoader
from rebalance.trials.pools import Pool, grayed
from rebalance.trials.records import STUDY, TRIALS, TrialFiles, TrialRecord
from rebalance.trials.remedies import REMEDIES, Remedy, smote
from rebalance.trials.remedies.base import balancing_weights, cross_entropy
from rebalance.trials.remedies.smote import with_smote
from rebalance.trials.summary import Summary, seeds_to_choose_over
from rebalance.trials.trial import Confusion, Trial

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = {"a": 40, "b": 30, "poor": 6}
FEW = ("downstream.steps=25", "downstream.width=4", "downstream.blocks=[1, 1]", "downstream.batch=16",
       "training.threads=1")  # fmt: skip
FAST = {"device": "cpu", "overrides": FEW}


def study_of(*arms: str, seeds: int = 2, **options) -> StudyOptions:
    """A study of a few arms and seeds."""
    return StudyOptions(arms=arms, seeds=seeds, **options)


SMALL_ARMS = ["plain", "oversampling", "best+filtered+x1", "best+filtered+xfull"]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Path:
    """Real images in all three splits; the fewest are of `poor`."""
    root = tmp_path_factory.mktemp("study") / "real"
    write_classes(root / "train", COUNTS, seed=0)
    write_classes(root / "val", {"a": 8, "b": 8, "poor": 8}, seed=1)
    write_classes(root / "test", {"a": 12, "b": 12, "poor": 12}, seed=2)
    return root


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory) -> Path:
    """Images of `poor` in a class folder."""
    root = tmp_path_factory.mktemp("made")
    made = write_classes(root / "all", COUNTS | {"poor": 20}, seed=3)
    (root / "made").mkdir()
    (made / "poor").rename(root / "made" / "poor")
    return root / "made"


@pytest.fixture(scope="module")
def run(real, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run") / "run"
    fit(real, place, tiny_recipe(), balance={"poor": 20}, device="cpu")
    return place


@pytest.fixture(scope="module")
def out(run, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("out") / "out"
    generate(run, place, device="cpu")
    return place


def pool(*counts: int, level: int = 0) -> Pool:
    """One-pixel images whose value says origin, class and number."""
    return Pool.of_classes(
        [np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1) + level + 20 * c for c, n in enumerate(counts)]
    )


def keep_tuned(path: Path, synthetic: int, seeds: int = 1) -> Path:
    amounts, val = ({"poor": synthetic} if synthetic else {}), Spread(0.5, None, None, None)
    balance = {name: 6 + n for name, n in amounts.items()}
    write_tuned(path, Tuned("plain", ("plain",), balance, amounts, {"poor": 0.3}, {"poor": 6}, seeds, val, val))
    return path


# Arms


def test_arms_read_what_their_names_say():
    texts = [*DEFAULT, "smote+unfiltered+x2.5+share=0.25+late", "mixup+control+x1000000+share=0.0000012"]
    arms = parse_arms(texts, (1.0, FULL))
    assert parse_arms([arm.name for arm in arms], ()) == arms
    assert Arm("smote", False, "unfiltered", 2.5, 0.25, True) in arms
    assert {arm.multiple for arm in arms if arm.name.startswith("best+filtered+x")} == {1.0, FULL}
    assert [arm.name for arm in arms if arm.cheap] == list(CHEAP)


def test_best_becomes_the_best_with_its_augmentation():
    arm = Arm(BEST, synthetic="filtered", multiple=2.0)
    assert arm.resolved(Arm("oversampling", augment=True)) == Arm("oversampling", True, "filtered", 2.0)
    assert Arm("plain", synthetic="filtered").resolved(Arm("smote")).remedy == "plain"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("plan", "plain"),
        ("plain+augmented", "augment"),
        ("plain+filtered+filtered", "repeated"),
        ("plain+x5", "beside"),
        ("plain+late", "beside"),
        ("best", "best with synthetic"),
        ("best+augment+filtered", "own augmentation"),
        ("plain+filtered+share=1", "between 0 and 1"),
        ("plain+filtered+share=half", "between 0 and 1"),
        ("plain+filtered+x0", "above 0"),
    ],
)
def test_wrong_arms_are_named(text, word):
    with pytest.raises(InputError, match=word):
        parse_arms([text], (1.0,))


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "many"])
def test_wrong_multiples_are_named(text):
    with pytest.raises(InputError, match=r"`multiples`.*full"):
        parse_multiple(text)


# What is drawn


def drawing(real: Pool, made: Pool | None, n: np.ndarray, share: float | None, balanced: bool) -> Mixture:
    """What is drawn of so many synthetic images of each class."""
    return Mixture.of_amounts(
        real, made, amounts_to_draw(REMEDIES["oversampling" if balanced else "plain"], real.counts, n, share)
    )


def test_natural_and_balanced_draws_have_the_wanted_proportions():
    real, made = pool(60, 30, 10), pool(0, 0, 50, level=100)
    drawn = drawing(real, made, np.array([0, 0, 20]), None, False)
    assert drawn.probabilities == pytest.approx([0.5, 0.25, 0.25])
    assert drawn.shares == pytest.approx([0, 0, 2 / 3])
    balanced = drawing(real, made, made.counts, 0.3, True)
    assert balanced.probabilities == pytest.approx([1 / 3] * 3)
    pixels, labels = balanced.draw(6000, np.random.default_rng(0))
    values = pixels[:, 0, 0, 0]
    assert (values[labels < 2] < 100).all(), "classes without synthetic images are drawn from the real ones"
    of_poor = values[labels == 2]
    assert (of_poor >= 140).mean() == pytest.approx(0.3, abs=0.04)
    assert len(np.unique(of_poor[of_poor >= 140])) == 50, "every synthetic image is drawn"
    assert np.bincount(labels) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_only_the_first_synthetic_images_are_drawn_and_none_of_them_late():
    real, made = pool(10, 4), pool(0, 50, level=100)
    drawn = drawing(real, made, np.array([0, 8]), None, True)
    pixels, _ = drawn.draw(3000, np.random.default_rng(0))
    synthetic = pixels[pixels[:, 0, 0, 0] >= 100, 0, 0, 0]
    assert set(synthetic.tolist()) == {120 + n for n in range(8)}
    late, _ = drawn.draw(3000, np.random.default_rng(0), late=True)
    assert (late < 100).all()


def test_multiples_count_real_images_and_no_more_than_there_are():
    made, real = np.array([0, 7]), np.array([10, 5])
    assert [at_most(made, real, multiple).tolist() for multiple in (1.0, 5.0, FULL)] == [[0, 5], [0, 7], [0, 7]]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5))
def test_smote_and_synthetic_images_bring_every_class_to_the_same_size(counts):
    n_real, n_synthetic = np.array(counts).T
    if not n_real.any():
        return
    found = amounts_to_draw(REMEDIES["smote"], n_real, n_synthetic)
    total = found.real + found.synthetic
    assert (found.real >= n_real).all() and (found.real[n_real == 0] == 0).all()
    within = (n_real > 0) & (n_real + n_synthetic <= n_real.max())
    assert (total[within] == n_real.max()).all(), "none becomes larger than the largest"
    assert len(np.unique(found.probabilities[total > 0])) == 1, "and every class is drawn as often"


def test_smote_with_synthetic_images_takes_the_fewer_of_its_own():
    real, made = pool(12, 3), pool(0, 4, level=100)
    filled = with_smote(real, seed=0)
    arm, available = Arm("smote", synthetic="filtered", multiple=FULL), {"filtered": made.counts}
    drawn = Mixture.of_amounts(filled, made, amounts_of(arm, real.counts, available, real.counts, [1]))
    assert drawn.real.counts.tolist() == [12, 8] and drawn.synthetic.counts.tolist() == [0, 4]
    assert drawn.shares == pytest.approx([0, 1 / 3]) and drawn.probabilities == pytest.approx([0.5, 0.5])
    assert np.array_equal(drawn.real.of_class(1)[:3], real.of_class(1)), "real images come first"


def test_parts_of_a_pool_share_its_pixels():
    whole = pool(3, 2)
    first = whole.first(np.array([1, 5]))
    assert first.counts.tolist() == [1, 2] and first.pixels is whole.pixels
    assert [first.of_class(label).ravel().tolist() for label in (0, 1)] == [[0], [20, 21]]
    odd = whole.kept(np.arange(5) % 2 == 1)
    assert odd.of_class(0).ravel().tolist() == [1] and odd.of_class(1).ravel().tolist() == [20]


def test_smote_fills_every_class_between_its_own_images():
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 50, (n, 4, 4, 1), np.uint8) for low, n in ((0, 12), (200, 3)))
    real = Pool.of_classes([dark, bright, np.full((1, 4, 4, 1), 128, np.uint8)])
    filled = with_smote(real, seed=0)
    assert filled.counts.tolist() == [12, 12, 12]
    assert (filled.of_class(1) >= 200).all() and (filled.of_class(2) == 128).all()
    assert len(np.unique(filled.of_class(1).reshape(12, -1), axis=0)) > 3, "new images, no copies alone"


@given(st.lists(st.integers(0, 5), min_size=2, max_size=5).filter(lambda counts: sum(counts) > 0))
def test_class_weights_make_all_present_classes_count_the_same(counts):
    probabilities = np.array(counts) / sum(counts)
    mass = balancing_weights(probabilities) * probabilities
    assert mass[probabilities > 0] == pytest.approx(1 / np.count_nonzero(counts), rel=1e-5)


def test_pools_without_colour_keep_one_channel():
    gray = Pool.of_sorted(np.full((2, 2, 2, 3), 7, np.uint8), np.array([2]))
    coloured = Pool.of_sorted(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([2]))
    assert grayed({"x": gray})["x"].pixels.shape == (2, 2, 2, 1)
    assert grayed({"x": gray, "y": coloured})["x"].pixels.shape == (2, 2, 2, 3)


def test_mixup_reweights_late_and_weighted_always():
    drawn, options = drawing(pool(30, 10), None, np.zeros(2, int), None, False), DownstreamOptions(batch=8)

    def batch(remedy: str, progress: float) -> ClassifierBatch:
        trial = Trial(Arm(remedy), 0, drawn, options, loop_options(options), torch.device("cpu"))
        return trial.batch(np.random.default_rng(0), progress)

    def weights(remedy: str, progress: float) -> dict[int, float]:
        drawn = batch(remedy, progress)
        return dict(zip(drawn.labels.tolist(), drawn.weights.tolist(), strict=True))

    balanced = pytest.approx({0: 2 / 3, 1: 2})
    assert weights("plain", 0.9) == {0: 1, 1: 1} and batch("plain", 0.9).image_mix is None
    assert weights("weighted", 0.0) == balanced
    assert weights("mixup", 0.5) == {0: 1, 1: 1} and batch("mixup", 0.5).image_mix.shape == (8,)
    assert weights("mixup", 0.85) == balanced


def test_a_mixed_image_has_both_labels():
    options = DownstreamOptions(dropout=0.0)
    network = torch.nn.Module()
    network.features, network.head = torch.nn.Flatten(), torch.nn.Identity()
    classifier = Classifier(options, network, augment=False)
    images = torch.tensor([[4.0, 0.0], [0.0, 2.0]])[:, None, None]
    mix = torch.tensor([0.75, 1.0])
    batch = ClassifierBatch(images, torch.tensor([0, 1]), torch.ones(2), mix, mix)
    logits = classifier.forward(batch, StepContext(0, Draws(0), 0.0))
    assert logits.tolist() == [[3.0, 0.5], [0.0, 2.0]]
    loss = classifier.loss("classifier", batch, logits, StepContext(0, Draws(0), 0.0)).total
    each = -logits.log_softmax(1)
    assert loss.item() == pytest.approx(((0.75 * each[0, 0] + 0.25 * each[0, 1]) + each[1, 1]).item() / 2)


@pytest.mark.parametrize("architecture", ["cnn", "resnet"])
def test_a_classifier_learns_what_can_be_told_apart(architecture):
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 60, (40, 8, 8, 1), dtype=np.uint8) for low in (40, 110))
    real, test = Pool.of_classes([dark[:30], bright[:30]]), Pool.of_classes([dark[30:], bright[30:]])
    options = DownstreamOptions(architecture=architecture, width=8, blocks=(1, 1), steps=60, batch=16)
    loop = replace(loop_options(options, threads=1), precision="fp32", memory_format="contiguous")
    drawn = drawing(real, None, np.zeros(2, int), None, True)
    trial = Trial(Arm("oversampling", augment=True), 0, drawn, options, loop, torch.device("cpu"))
    steps = []
    found = trial.run(test, test, lambda: steps.append(1))
    assert figures_of(found.test, ()).balanced_accuracy > 0.9 and len(steps) == 60
    again = trial.run(test, test, lambda: None)
    assert np.array_equal(found.test, again.test) and np.array_equal(found.val, again.val)


# Figures


@given(st.integers(0, 2**31), st.integers(2, 6))
def test_figures_are_those_of_scikit_learn(seed, n_classes):
    rng = np.random.default_rng(seed)
    true = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, 40)])
    predicted = np.where(rng.random(len(true)) < 0.6, true, rng.integers(0, n_classes, len(true)))
    confusion = np.zeros((n_classes, n_classes), int)
    np.add.at(confusion, (true, predicted), 1)
    found = figures_of(confusion, [0])
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(true, predicted))
    assert found.macro_f1 == pytest.approx(f1_score(true, predicted, average="macro", labels=np.arange(n_classes)))
    recalls = [(predicted[true == label] == label).mean() for label in range(n_classes)]
    assert found.poor_recall == pytest.approx(recalls[0])
    assert found.geometric_mean == pytest.approx(np.prod(recalls) ** (1 / n_classes))
    specificities = [(predicted[true != label] != label).mean() for label in range(n_classes)]
    assert found.macro_geometric_mean == pytest.approx(np.sqrt(np.multiply(recalls, specificities)).mean())


def test_a_class_without_test_images_counts_in_no_figure():
    found = figures_of(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]]), [2])
    assert found.balanced_accuracy == pytest.approx(0.9)
    assert math.isnan(found.recalls[2]) and math.isnan(found.poor_recall)


def test_an_interval_is_students_and_one_seed_has_none():
    values = [1.0, 2.0, 4.0]
    found = spread(values)
    assert (found.mean, found.deviation) == pytest.approx((7 / 3, np.std(values, ddof=1)))
    assert found.high - found.mean == pytest.approx(4.302653 * found.deviation / np.sqrt(3))
    assert spread([0.5]).low is None and spread([0.5]).deviation is None


# Studies


@pytest.fixture(scope="module")
def done(real, synthetic, tmp_path_factory):
    results = tmp_path_factory.mktemp("results") / "study"
    return downstream(real, synthetic, results=results, study=study_of(*SMALL_ARMS), **FAST)


def test_a_study_compares_arms_and_keeps_what_it_found(done, real):
    names = [arm.name for arm in done.arms]
    assert names == ["plain", "oversampling", f"{done.best}+filtered+x1", f"{done.best}+filtered+xfull"]
    assert done.poor == ("poor",) and done.classes == ("a", "b", "poor")
    full = done.arms[-1]
    assert full.synthetic == {"poor": 20} and full.shares["poor"] == pytest.approx(20 / 26, abs=1e-6)
    baseline = next(arm for arm in done.arms if arm.name == done.baseline)
    for arm in done.arms:
        gain = arm.figures["balanced_accuracy"].mean - baseline.figures["balanced_accuracy"].mean
        assert arm.differences["balanced_accuracy"].mean == pytest.approx(gain)
        assert arm.recalls.keys() == arm.recall_differences.keys() == set(done.classes)
    kept = json.loads((done.results / RESULT).read_text())
    assert kept["arms"] == done.to_json()["arms"] and kept["seeds"] == 2
    picture = Image.open(io.BytesIO(chart_png(done)))
    assert picture.format == "PNG" and picture.width > 500
    text = reporting.downstream_text(done)
    assert all(name in text for name in names) and "tuned on val" in text


def test_the_tuned_balance_is_chosen_on_val_and_never_sees_test(done):
    candidates = {arm.name: arm.val.mean for arm in done.arms if arm.name == done.best or "filtered" in arm.name}
    of_best = max(candidates.values())
    clearly_better = done.best not in done.tuned.undecided
    assert set(done.tuned.undecided) <= candidates.keys()
    assert done.tuned.val.mean == (of_best if clearly_better else candidates[done.best])
    alike = f"the best {len(done.tuned.undecided)} arms apart"
    assert (alike in reporting.downstream_text(done)) == (len(done.tuned.undecided) > 1)
    written = storage.read_sealed_json(done.results / TUNED)
    assert written["balance"] == done.tuned.balance
    assert all(written["balance"][name] == 6 + n for name, n in written["synthetic"].items())


def test_a_finished_study_trains_nothing_and_more_arms_are_added(done, real, synthetic, monkeypatch):
    trained = []
    ran = Trial.run
    monkeypatch.setattr(Trial, "run", lambda self, *rest: trained.append(self.arm.name) or ran(self, *rest))
    again = downstream(real, synthetic, results=done.results, study=study_of(*SMALL_ARMS), **FAST)
    assert trained == [] and again.arms == done.arms
    more = downstream(real, synthetic, results=done.results, study=study_of("weighted"), **FAST)
    assert trained == ["weighted"] * 2
    assert {arm.name for arm in more.arms} == {"weighted", *(arm.name for arm in done.arms)}, "all that is there counts"


def test_fewer_seeds_or_arms_lose_nothing(real, synthetic, tmp_path):
    place = {"results": tmp_path / "s", "device": "cpu", "overrides": FEW}
    before = downstream(real, synthetic, study=study_of(*SMALL_ARMS, seeds=3), **place)
    tuned = (tmp_path / "s" / TUNED).read_bytes()
    again = downstream(real, synthetic, study=study_of("plain", seeds=1), **place)
    assert {arm.name: arm for arm in again.arms} == {arm.name: arm for arm in before.arms} and again.seeds == 3
    assert (again.best, again.baseline, again.tuned) == (before.best, before.baseline, before.tuned)
    assert (tmp_path / "s" / TUNED).read_bytes() == tuned
    added = downstream(real, synthetic, study=study_of("weighted", "best+filtered+x2", seeds=1), **place)
    by_name = {arm.name: arm for arm in added.arms}
    assert [arm.seeds for arm in added.arms] == [1, 1, *[3] * len(before.arms)]
    assert (added.best, added.seeds) == (before.best, 3) and f"{before.best}+filtered+x2" in by_name
    assert f"not among the choices: weighted (1), {before.best}+filtered+x2 (1)" in added.notes[-1]
    base = by_name[added.baseline].figures["balanced_accuracy"]
    assert by_name["weighted"].differences["balanced_accuracy"].low is None, "one pair"
    assert base.low is not None and (tmp_path / "s" / TUNED).read_bytes() == tuned


def test_more_seeds_of_some_arms_count_where_there_is_something_to_choose():
    plain, weighted, other = Arm("plain"), Arm("weighted"), Arm("oversampling")
    amount, best = Arm("plain", synthetic="filtered", multiple=1.0), Arm(BEST, synthetic="filtered", multiple=2.0)
    late = replace(amount, late=True)
    assert seeds_to_choose_over({plain: 3, weighted: 3, amount: 3}) == 3
    assert seeds_to_choose_over({plain: 5, weighted: 3, amount: 3}) == 3, "with five seeds nothing could be chosen"
    assert seeds_to_choose_over({plain: 5, weighted: 1, amount: 5, other: 1}) == 5
    assert seeds_to_choose_over({plain: 3, weighted: 3, amount: 3, other: 1, best: 1}) == 3
    assert seeds_to_choose_over({plain: 5, weighted: 5, best: 5, amount: 3}) == 5
    assert seeds_to_choose_over({plain: 5, weighted: 3, late: 5}) == 3, "the most with two cheap arms"
    assert seeds_to_choose_over({amount: 2, plain: 1}) == 1 and seeds_to_choose_over({amount: 2}) == 2
    assert seeds_to_choose_over({amount: 5, weighted: 3}) == 3


def record(right: int, val_loss: float = 0.3, synthetic: int = 0, n: int = 2) -> TrialRecord:
    """Of n val images a class, so many right of the first class, all of the second."""
    val, drawn = np.array([[right, n - right], [0, n]]), np.array([2, 2])
    amounts = Amounts(drawn, np.array([0, synthetic]), np.array([0.5, 0.5]), np.array([0.0, 0.5 * (synthetic > 0)]))
    return TrialRecord(Confusion(val, val, val_loss, 0.1), amounts)


class ValOf(Material):
    """A study's material of which only the val images of all seeds together are known."""

    def n_val(self, seeds: int) -> np.ndarray:
        return self.n_real


def summary_of(trials: dict[str, list[TrialRecord]], n_val: int) -> Summary:
    """Trials of two classes, of which val has so many images."""
    material = ValOf(("a", "b"), (1,), np.array([n_val, n_val]), {}, np.zeros(0), {}, None, ())
    return Summary(material, {parse_arms([name], ())[0]: of for name, of in trials.items()}, 1)


def test_of_arms_that_are_equal_on_val_the_surer_one_is_chosen_in_any_order():
    trials = {
        "plain": [record(2, 0.3)], "weighted": [record(2, 0.2)],
        "weighted+filtered+x1+share=0.3": [record(2, 0.15, 2)],
        "weighted+filtered+x2+share=0.3": [record(2, 0.1, 4)],
    }  # fmt: skip
    for order in itertools.permutations(trials):
        summary = summary_of({name: trials[name] for name in order}, 2)
        assert summary.best_on_val().name == "weighted"
        assert summary.tuned(Arm("weighted")).arm == "weighted+filtered+x2+share=0.3"
    changed = {"plain": [record(2, 0.1)], "weighted+filtered+x2+share=0.3": [record(1, 0.01, 4)]}
    summary = summary_of(trials | changed, 2)
    assert summary.best_on_val().name == "plain"
    assert summary.tuned(Arm("weighted")).arm == "weighted", "accuracy counts first: together they have less of it"


def test_where_val_cannot_tell_the_safe_arm_and_share_are_chosen():
    safe, other = "oversampling+augment", "oversampling+augment+filtered+x1"
    two, five = (f"oversampling+augment+filtered+{times}+share=0.3" for times in ("x2", "x5"))
    right = {"plain": 0.96, safe: 0.95, two: 0.955, five: 0.95, other: 0.96}

    def chosen(n: int, **changed: float) -> tuple[str, str]:
        given = {name: [record(round(share * n), n=n)] for name, share in (right | changed).items() if share}
        summary = summary_of(given, n)
        tuned = summary.tuned(Arm("oversampling", augment=True))
        assert tuned.arm in tuned.undecided
        return summary.best_on_val().name, tuned.arm

    assert chosen(200) == (safe, two)
    assert chosen(200, **{five: 0.96}) == (safe, five), "of those with the share the best on val"
    assert chosen(200, **{five: 0.93}) == (safe, safe), "none, where they are worse together"
    assert chosen(200, **{two: 0, five: 0}) == (safe, safe), "none, where no other is clearly better"
    assert chosen(10_000) == ("plain", other), "many images can tell"
    assert chosen(200, **{safe: 0.9, two: 0, five: 0}) == ("plain", other)
    assert chosen(200, **{safe: 0.9, two: 0.9}) == ("plain", five), "the cheap arm is clearly worse"


def test_the_standard_error_is_that_of_images_and_seeds():
    one, tenfold = (summary_of({"plain": [record(75, n=100)]}, n) for n in (100, 1000))
    again = Summary(one.material, {Arm("plain"): [record(75, n=100)] * 9}, 9)
    varied = Summary(one.material, {Arm("plain"): [record(right, n=100) for right in (65, 75, 85)]}, 3)
    expected = math.sqrt(0.75 * 0.25 / 100 + 0.5 / 101 * 100.5 / 101 / 100) / 2
    found = one.standard_error(Arm("plain"))
    assert found == pytest.approx(expected, rel=0.02)
    assert again.standard_error(Arm("plain")) == found, "the same images in every seed count once"
    assert tenfold.standard_error(Arm("plain")) == pytest.approx(found / math.sqrt(10), rel=0.05)
    assert varied.standard_error(Arm("plain")) == pytest.approx(math.hypot(found, 0.05 / math.sqrt(3)))


def test_the_standard_error_leaves_out_classes_without_val_images():
    material = ValOf(("a", "b"), (1,), np.array([100, 0]), {}, np.zeros(0), {}, None, ())
    only = replace(record(75, n=100).confusion, val=np.array([[75, 25], [0, 0]]))
    summary = Summary(material, {Arm("plain"): [replace(record(75), confusion=only)]}, 1)
    assert summary.standard_error(Arm("plain")) == pytest.approx(math.sqrt(0.75 * 0.25 / 100), rel=0.02)


def test_loss_on_val_counts_every_class_the_same():
    pool = Pool.of_classes([np.zeros((n, 2, 2, 1), np.uint8) for n in (3, 0, 1)])
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]] * 3 + [[0.5, 0.25, 0.25]]))
    assert balanced_loss(logits, pool) == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert balanced_loss(logits[:0], pool.kept(np.zeros(4, bool))) == 0
    assert confusion(logits, pool).tolist() == [[3, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_a_balance_that_rests_on_more_seeds_stays_in_the_run(real, run, out, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("tuned.json"))
    path = keep_tuned(tmp_path / "run" / "tuned.json", 5, seeds=9)
    options = {"run": tmp_path / "run", "device": "cpu", "study": study_of("plain", "plain+filtered+xfull", seeds=1)}
    found = downstream(real, out, results=tmp_path / "s", overrides=FEW, **options)
    assert any("rests on 9 seeds and stays" in note for note in found.notes)
    assert storage.read_sealed_json(path)["synthetic"] == {"poor": 5}
    assert storage.read_sealed_json(tmp_path / "s" / "tuned.json")["seeds"] == 1
    cheap = downstream(
        real, out, results=tmp_path / "s", overrides=FEW, **options | {"study": study_of("plain", seeds=1)}
    )
    assert cheap.tuned == found.tuned, "what was not asked for counts"
    downstream(real, out, results=tmp_path / "s", overrides=FEW, overwrite=True, **options)
    assert storage.read_sealed_json(path)["seeds"] == 1


def test_arms_whose_images_cannot_be_had_now_are_still_reported(real, run, out, tmp_path):
    options = {"results": tmp_path / "s", "device": "cpu", "overrides": FEW}
    before = downstream(real, out, run=run, study=study_of("plain", "plain+unfiltered+xfull", seeds=1), **options)
    after = downstream(real, out, study=study_of("plain", seeds=1), **options)
    assert after.arms == before.arms


def test_an_interrupted_study_goes_on_where_it_stopped(real, synthetic, tmp_path, monkeypatch):
    ran, begun = Trial.run, []

    def interrupted(self, *rest):
        begun.append(self.arm.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return ran(self, *rest)

    monkeypatch.setattr(Trial, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain", "oversampling"), **FAST)
    downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain", "oversampling"), **FAST)
    assert begun == ["plain", "oversampling", "plain", "plain", "oversampling"]


def test_a_damaged_trial_is_run_again(real, synthetic, tmp_path, caplog):
    first = downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    path = tmp_path / "s" / TRIALS / "plain" / "seed-1.json"
    path.write_text(path.read_text().replace('"val"', '"vel"'))
    again = downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    assert "run again" in caplog.text
    assert again.arms[0].figures == first.arms[0].figures, "a trial is a function of arm and seed"


def test_another_study_in_the_folder_is_refused(done, real, synthetic):
    with pytest.raises(RefusedError, match=r"steps: 25 -> 30"):
        downstream(real, synthetic, results=done.results, study=study_of("plain", seeds=1), device="cpu",
                   overrides=(*FEW, "downstream.steps=30"))  # fmt: skip
    assert (done.results / RESULT).is_file(), "nothing is lost"


def test_a_foreign_folder_is_refused(real, synthetic, tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(RefusedError, match=r"thesis\.txt"):
            downstream(real, synthetic, results=tmp_path, study=study_of("plain"), overwrite=overwrite, **FAST)
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


def test_overwrite_starts_again(real, synthetic, tmp_path):
    for steps in (20, 10):
        changed = {"overrides": (*FEW, f"downstream.steps={steps}"), "device": "cpu", "overwrite": True}
        downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain", seeds=1), **changed)
        (tmp_path / "s" / CHART).write_bytes(b"")  # which reporting draws
    assert len(list((tmp_path / "s" / TRIALS).rglob("*.json"))) == 1


def test_an_output_with_its_run_gives_every_arm_and_a_balance_to_generate(real, run, out, tmp_path):
    arms = ["plain", "best+filtered+xfull", "best+unfiltered+xfull", "best+control+xfull", "plain+filtered+xfull+late"]
    found = downstream(real, out, run=run, study=study_of(*arms, seeds=1), device="cpu", overrides=FEW)
    assert found.results == out.with_name("out-downstream")
    by_name = {arm.name: arm for arm in found.arms}
    assert by_name["plain+unfiltered+xfull"].synthetic == {"poor": 14}
    control = by_name["plain+control+xfull"]
    assert control.synthetic.keys() == {"a", "b", "poor"} and len(set(control.shares.values())) == 1
    assert by_name["plain+filtered+xfull"].shares["poor"] == control.shares["poor"]
    assert rebalance.verify(found.results / "unfiltered").exit_code == 0
    tuned = storage.read_sealed_json(run / "tuned.json")
    assert tuned["balance"] == found.tuned.balance
    if tuned["balance"]:
        assert generate(run, tmp_path / "tuned", balance="tuned", device="cpu").counts == tuned["synthetic"]


def test_the_tuned_balance_is_generated(real, run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("tuned.json"))
    with pytest.raises(InputError, match="rebalance downstream"):
        generate(tmp_path / "run", tmp_path / "x", balance="tuned", device="cpu")
    keep_tuned(tmp_path / "run" / "tuned.json", 0)
    with pytest.raises(InputError, match="no number of synthetic images was clearly better"):
        generate(tmp_path / "run", tmp_path / "x", balance="tuned", device="cpu")
    keep_tuned(tmp_path / "run" / "tuned.json", 5)
    assert generate(tmp_path / "run", tmp_path / "x", balance="tuned", device="cpu").counts == {"poor": 5}


def test_loaded_samples_weigh_as_the_shares_say(run, tmp_path):
    generate(run, tmp_path / "out", include_real=True, device="cpu")
    tuned = keep_tuned(tmp_path / "tuned.json", 5)
    for weights in (tuned, {"poor": 0.3}):
        samples = list(shards.load_shards(tmp_path / "out", weights=weights))
        of_poor = sorted(weight for _, label, weight in samples if label == 2)
        assert of_poor == pytest.approx([0.3 * 20 / 14] * 14 + [0.7 * 20 / 6] * 6)
        assert sum(of_poor) == pytest.approx(20)
        assert {weight for _, label, weight in samples if label != 2} == {1.0}


@pytest.mark.parametrize(
    ("weights", "word"), [({"x": 0.3}, "unknown class 'x'"), ({"poor": 1}, "between 0 and 1"), ({"a": 0.5}, "both")]
)
def test_wrong_weights_are_named(out, weights, word):
    with pytest.raises(InputError, match="Run `rebalance downstream`"):
        shards.load_shards(out, weights=out / "manifest.json")
    with pytest.raises(InputError, match=word):
        shards.load_shards(out, weights=weights)


def test_without_its_run_the_usual_arms_that_need_it_are_named(real, out, tmp_path):
    few = {"device": "cpu", "overrides": (*FEW, "downstream.steps=2")}
    found = downstream(real, out, results=tmp_path / "s", study=StudyOptions(multiples=["full"], seeds=1), **few)
    assert any("need `run`" in note and "control" in note for note in found.notes)
    assert not any("control" in arm.name or "unfiltered" in arm.name for arm in found.arms)
    assert {arm.name.split("+")[0] for arm in found.arms} >= set(REMEDIES)
    with pytest.raises(InputError, match="need `run`"):
        downstream(real, out, results=tmp_path / "s", study=study_of("plain+control"), **few)


def test_shards_of_another_data_set_are_named(out, tmp_path):
    other = tmp_path / "other"
    for split in ("train", "val", "test"):
        write_classes(other / split, {"a": 5, "c": 5, "poor": 5})
    with pytest.raises(InputError, match="label 1 is 'b', in `data` it is 'c'"):
        downstream(other, out, results=tmp_path / "s", study=study_of("plain"), **FAST)


def test_another_run_is_named(real, out, tmp_path):
    fit(real, tmp_path / "run", tiny_recipe(seed=5), balance={"poor": 20}, device="cpu")
    with pytest.raises(InputError, match="`run` did not make `synthetic`"):
        downstream(real, out, run=tmp_path / "run", **FAST)


def test_missing_splits_are_named_and_val_is_held_out(real, synthetic, tmp_path):
    for split in ("test", "train"):
        shutil.copytree(real, tmp_path / split)
        shutil.rmtree(tmp_path / split / split)
        for kept in ("a", "b", "poor"):
            (tmp_path / split / split / kept).mkdir(parents=True)
        with pytest.raises(InputError, match=f"no {split} image"):
            downstream(tmp_path / split, synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    shutil.copytree(real, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val")
    place = {"results": tmp_path / "t", "study": study_of("plain")}
    with pytest.raises(InputError, match="no val image"):
        downstream(tmp_path / "data", synthetic, **place, **FAST | {"overrides": (*FEW, "data.val_fraction=0")})
    held_out = downstream(tmp_path / "data", synthetic, **place, **FAST)
    assert not any("no val images" in note for note in held_out.notes), "one of 6 is held out, though a tenth is none"
    assert any("`synthetic` may have been made from it" in note for note in held_out.notes)


@pytest.fixture(scope="module")
def without_val(real, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("without-val") / "data"
    shutil.copytree(real, place)
    shutil.rmtree(place / "val")
    return place


def material_of(data: Path, out: Path, *kinds: str, run: Path | None = None) -> Material:
    cpu, manifest, held_out = torch.device("cpu"), manifest_of(out, "synthetic"), HeldOut(build_index(data), 0.2, 0)
    loaded = load_run(RunDirectory(run), str(data), cpu) if run else None
    given = None if manifest else given_images(out, 0, progress=False)
    return MaterialLoader(held_out, out, manifest, given, loaded, out, None, cpu, progress=False).material(kinds)


def test_real_images_go_through_the_file_format_of_given_ones(real, synthetic, tmp_path):
    (tmp_path / "made" / "poor").mkdir(parents=True)
    for path in (synthetic / "poor").iterdir():
        Image.open(path).save(tmp_path / "made" / "poor" / f"{path.stem}.jpg", quality=30)
    sharp, lossy = (material_of(real, out).pools for out in (synthetic, tmp_path / "made"))
    first = imaging.encode(sharp["test"].pixels[0], "jpg", 30)
    assert np.array_equal(lossy["test"].pixels[0], np.asarray(imaging.decode(first)))
    assert not np.array_equal(lossy["real"].pixels, sharp["real"].pixels)
    (tmp_path / "made" / "poor" / "another.png").write_bytes(next((synthetic / "poor").iterdir()).read_bytes())
    mixed = material_of(real, tmp_path / "made").pools
    assert np.array_equal(mixed["real"].pixels, sharp["real"].pixels), "there is no format that all have"


def test_every_seed_holds_out_other_images_where_data_has_no_val(without_val, real, synthetic):
    material = material_of(without_val, synthetic)
    seeds = [material.of_seed(seed) for seed in range(3)]
    for pools in seeds:
        assert pools["train"].counts.tolist() == [32, 24, 5] and pools["val"].counts.tolist() == [8, 6, 1]
        assert not set(pools["train"].rows) & set(pools["val"].rows)
        assert pools["filtered"].counts.tolist() == [0, 0, 20], "nobody knows what they were made from"
    assert not set(seeds[0]["val"].rows) & set(seeds[1]["val"].rows)
    assert [material.n_val(n).tolist() for n in (1, 3)] == [[8, 6, 1], [24, 18, 3]]
    run_split = carve_validation(build_index(without_val), 0.2, 0)
    assert (
        material.real_ids[seeds[0]["val"].rows].tolist() == np.flatnonzero(run_split.column("split") == "val").tolist()
    )
    own = material_of(real, synthetic)
    assert [own.of_seed(seed)["val"].counts.tolist() for seed in (0, 1)] == [[8, 8, 8]] * 2
    assert np.array_equal(own.of_seed(0)["val"].rows, own.of_seed(1)["val"].rows)
    assert own.n_val(3).tolist() == [8, 8, 8]


def test_control_images_are_used_also_where_a_seed_leaves_no_filtered_one():
    n_real, none, control = np.array([40, 30, 5]), np.zeros(3, np.int64), np.array([40, 30, 0])
    arm = Arm("oversampling", synthetic="control", multiple=math.inf, share=0.25)
    found = amounts_of(arm, n_real, {"filtered": none, "control": control}, n_real, [2])
    assert found.shares.tolist() == [0.25, 0.25, 0.0] and found.synthetic.tolist() == control.tolist()


def test_no_seed_trains_on_what_was_made_from_its_val_images(without_val, tmp_path):
    recipe = tiny_recipe(data={"val_fraction": 0.2})
    fit(without_val, tmp_path / "run", recipe, balance={"poor": 40}, device="cpu")
    generate(tmp_path / "run", tmp_path / "out", device="cpu", filter_images=False)
    material = material_of(without_val, tmp_path / "out", "control", run=tmp_path / "run")
    doubt = "val is held out of train, and `synthetic` may have been made from it: choices may favour its images"
    assert doubt not in material.notes
    # The same images under other names: nobody can tell which were made from them.
    (tmp_path / "other").mkdir()
    shutil.copytree(without_val, tmp_path / "other" / "data")
    for path in sorted((tmp_path / "other" / "data" / "train").glob("*/*")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert doubt in material_of(tmp_path / "other" / "data", tmp_path / "out").notes
    made = len(material.pools["filtered"].rows)
    for seed in range(3):
        pools, held = material.of_seed(seed), material.held_out.ids(seed)
        for origin in ("filtered", "control"):
            used = material.made_from[origin][np.isin(material.pools[origin].rows, pools[origin].rows)]
            assert len(used) and (material.made_from[origin] >= 0).all() and not np.isin(used, held).any()
        assert (len(pools["filtered"].rows) == made) == (seed == 0), "a run makes nothing of its own val images"
    limited = material.amounts(Arm("plain", synthetic="filtered", multiple=2.0), material.of_seed(1))
    assert limited.synthetic.tolist() == [0, 0, 10], "as many in every seed, while there are enough"


def rewritten(out: Path, copy: Path, **changes: str) -> Path:
    """Copy an output, the JSON of its synthetic images changed."""
    shutil.copytree(out, copy)
    for path in copy.glob("synthetic-*.tar"):
        with tarfile.open(path) as archive:
            members = [(member, archive.extractfile(member).read()) for member in archive]
        with tarfile.open(path, "w") as archive:
            for member, data in members:
                if member.name.endswith(".json"):
                    data = json.dumps(json.loads(data) | changes).encode()
                    member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return copy


@pytest.fixture(scope="module")
def unfiltered_out(without_val, tmp_path_factory) -> Path:
    """An output of a run that held out a fifth of its train images."""
    place = tmp_path_factory.mktemp("unfiltered")
    fit(without_val, place / "run", tiny_recipe(data={"val_fraction": 0.2}), balance={"poor": 40}, device="cpu")
    generate(place / "run", place / "out", device="cpu", filter_images=False)
    return place / "out"


def test_images_made_from_a_source_alone_are_left_out_with_it(without_val, unfiltered_out, tmp_path):
    material = material_of(without_val, rewritten(unfiltered_out, tmp_path / "out", reference=""))
    assert not any("may favour" in note for note in material.notes), "it is known what they were made from"
    assert material.made_from["filtered"].shape[1] == 1 and (material.made_from["filtered"] >= 0).all()
    every = len(material.pools["filtered"].rows)
    for seed in range(3):
        pools, held = material.of_seed(seed), material.held_out.ids(seed)
        used = material.made_from["filtered"][np.isin(material.pools["filtered"].rows, pools["filtered"].rows)]
        assert len(used) and not np.isin(used, held).any()
        assert (len(used) == every) == (seed == 0), "a run makes nothing of its own val images"


def test_images_made_from_a_latent_stay_and_a_note_says_that_val_may_favour_them(without_val, unfiltered_out, tmp_path):
    material = material_of(without_val, rewritten(unfiltered_out, tmp_path / "out", source="", reference=""))
    assert any("choices may favour its images" in note for note in material.notes)
    for seed in range(3):
        assert material.of_seed(seed)["filtered"].counts.tolist() == material.pools["filtered"].counts.tolist()


def test_a_method_without_sources_makes_no_control_images(real, run, out, tmp_path, monkeypatch):
    monkeypatch.setattr("rebalance.trials.study.translates", lambda loaded: False)
    few = {"results": tmp_path / "s", "run": run, "device": "cpu", "overrides": (*FEW, "downstream.steps=2")}
    with pytest.raises(InputError, match="takes no source image"):
        downstream(real, out, study=study_of("plain", "plain+control"), **few)
    found = downstream(real, out, study=StudyOptions(multiples=["full"], seeds=1), **few)
    assert any("takes no source image" in note and "control" in note for note in found.notes)
    names = [arm.name for arm in found.arms]
    assert any("unfiltered" in name for name in names) and not any("control" in name for name in names)


class FromLatents:
    """A method that translates sources by label and latent, without references; its images are its sources."""

    inputs = Inputs(references=False, latent_size=3)

    def __init__(self):
        self.conditions = []

    def codes(self, conditions):
        self.conditions.append(conditions)
        return conditions.latents

    def make(self, sources, codes):
        return sources


def test_control_images_of_a_method_without_references_come_from_labels_and_latents(real, run):
    cpu, method = torch.device("cpu"), FromLatents()
    loaded = load_run(RunDirectory(run), str(real), cpu)
    loaded = replace(loaded, models=tuple(replace(model, method=method) for model in loaded.models))
    made = list(rich_translations(loaded, "a", 11, 0, cpu))
    assert len(made) == 11 and {image.provenance.origin for image in made} == {"images"}
    for image in made:
        (name,) = image.provenance.images
        row = next(row for row in range(loaded.index.table.num_rows) if loaded.index.name(row) == name)
        assert np.array_equal(image.pixels, loaded.index.square(row, loaded.recipe.data)), "it names its source"
    every = method.conditions
    assert all(of.references is None and of.latents.shape == (len(of.labels), 3) for of in every)
    own = {loaded.models[0].modalities.index(modality) for modality in loaded.modalities.of_class("a")}
    assert {int(label) for of in every for label in of.labels} <= own


def test_each_data_set_is_indexed_once(real, synthetic, tmp_path, monkeypatch):
    indexed = []
    for module in ("rebalance.trials.study", "rebalance.shards.given"):
        monkeypatch.setattr(
            f"{module}.build_index",
            lambda path, *rest, **more: indexed.append(path) or build_index(path, *rest, **more),
        )
    downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain", "plain+filtered+xfull"), **FAST)
    assert sorted(indexed) == sorted([real, synthetic])


class BalancedSoftmax(Remedy):
    """The loss of Ren et al. (2020): what a coming remedy looks like."""

    name = "balanced-softmax"

    def image_loss(self, probabilities):
        prior = torch.from_numpy(np.log(np.maximum(probabilities, 1e-12)).astype(np.float32))
        return lambda logits, labels: cross_entropy(logits + prior.to(logits.device), labels)


class HalfPasted(Remedy):
    """Half of each image comes from its partner, after CutMix (Yun et al., 2019)."""

    name = "half-pasted"

    def batch(self, mixture, rng, progress, late, options):
        batch = super().batch(mixture, rng, progress, late, options)
        images, half = batch.images.clone(), batch.images.shape[3] // 2
        images[..., :half] = batch.images.flip(0)[..., :half]
        return replace(batch, images=images, label_mix=torch.full((len(batch),), 0.5))


class EvenAtLast(Remedy):
    """Classes are drawn equally often in the second half of the steps, as the second of two stages draws them."""

    name = "even-at-last"

    def batch(self, mixture, rng, progress, late, options):
        even = np.full(len(mixture.probabilities), 1 / len(mixture.probabilities))
        return super().batch(
            replace(mixture, probabilities=even) if progress >= 0.5 else mixture, rng, progress, late, options
        )


@pytest.mark.parametrize("remedy", [BalancedSoftmax(), HalfPasted(), EvenAtLast()], ids=lambda remedy: remedy.name)
def test_a_remedy_is_a_class_and_an_entry(real, synthetic, tmp_path, monkeypatch, remedy):
    monkeypatch.setitem(REMEDIES, remedy.name, remedy)
    arms = ["plain", remedy.name, f"{remedy.name}+augment+filtered+x1"]
    found = downstream(real, synthetic, results=tmp_path / "s", study=study_of(*arms, seeds=1), **FAST)
    assert [arm.name for arm in found.arms] == arms
    records = TrialFiles(found.results, storage.read_sealed_json(next(found.results.rglob("seed-0.json")))["study"])
    losses = [of_seed[0].confusion.val_loss for of_seed in records.read().values()]
    assert len(losses) == len(set(losses)) == 3, "it trains otherwise than without it"


def test_trials_of_version_0_1_are_read_and_those_of_others_refused(real, synthetic, tmp_path):
    place, again = {"results": tmp_path / "s", **FAST}, {"study": study_of("plain", seeds=1)}
    first = downstream(real, synthetic, **place, **again)
    path = tmp_path / "s" / TRIALS / "plain" / "seed-0.json"
    values = storage.read_sealed_json(path)
    storage.write_sealed_json(path, {name: value for name, value in values.items() if name != "schema"})
    assert downstream(real, synthetic, **place, **again).arms == first.arms, "version 0.1 wrote no schema"
    storage.write_sealed_json(path, {**values, "schema": 99})
    with pytest.raises(RefusedError, match=r"another version.*schema 99, version [\d.]+ reads schema 2"):
        downstream(real, synthetic, **place, **again)
    study = storage.read_sealed_json(tmp_path / "s" / STUDY)
    storage.write_sealed_json(tmp_path / "s" / STUDY, {**study, "identity": {**study["identity"], "trials": 1}})
    with pytest.raises(RefusedError, match=r"another version.*schema 1,"):
        downstream(real, synthetic, **place, **again)


def test_a_study_is_known_by_the_same_values_as_in_version_0_1(done):
    identity = storage.read_sealed_json(done.results / STUDY)["identity"]
    assert identity.keys() == {"data", "synthetic", "square", "device", "val", "downstream", "libraries", "trials"}
    assert identity["val"].keys() == {"fraction", "seed", "by_seed"} and identity["trials"] == 2


def test_a_tuned_balance_is_read_as_it_was_written(done, tmp_path):
    assert read_tuned(done.results / TUNED) == done.tuned
    values = storage.read_sealed_json(done.results / TUNED)
    storage.write_sealed_json(tmp_path / "old.json", {name: of for name, of in values.items() if name != "schema"})
    assert read_tuned(tmp_path / "old.json") == done.tuned, "version 0.1 wrote no schema"
    storage.write_sealed_json(tmp_path / "new.json", {**values, "schema": 99})
    with pytest.raises(InputError, match="another version of rebalance: it has schema 99"):
        read_tuned(tmp_path / "new.json")
    storage.write_sealed_json(tmp_path / "other.json", {"balance": {}})
    with pytest.raises(InputError, match="holds no tuned balance"):
        read_tuned(tmp_path / "other.json")


def test_a_class_missing_in_test_and_val_is_said(real, synthetic, tmp_path):
    shutil.copytree(real, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test" / "a")
    shutil.rmtree(tmp_path / "data" / "val" / "b")
    found = downstream(tmp_path / "data", synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    assert "class 'a' has no test images: it counts in no figure" in found.notes
    assert "class 'b' has no val images: no choice sees it" in found.notes
    assert math.isnan(found.arms[0].recalls["a"].mean) and found.to_json()["arms"][0]["recalls"]["a"]["mean"] is None
    assert chart_png(found).startswith(b"\x89PNG")


def test_one_train_image_in_a_class_is_enough(synthetic, real, tmp_path):
    shutil.copytree(real, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "train" / "poor").iterdir())[1:]:
        path.unlink()
    arms = ["plain", "smote", "smote+filtered+xfull"]
    found = downstream(tmp_path / "data", synthetic, results=tmp_path / "s", study=study_of(*arms), **FAST)
    assert found.arms[2].synthetic == {"poor": 20}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seeds": 0}, "`seeds`"),
        ({"arms": ["best+filtered"]}, "best stands for one of the arms"),
        ({"arms": []}, "`arms` names none"),
        ({"multiples": ["0"], "arms": ["plain+filtered"]}, "`multiples`"),
        ({"square": "round"}, "`square` is unknown"),
    ],
)
def test_wrong_options_are_named(real, synthetic, tmp_path, options, word):
    with pytest.raises(InputError, match=word):
        downstream(real, synthetic, results=tmp_path / "s", study=StudyOptions(**options), **FAST)


def test_a_folder_that_is_read_cannot_hold_the_study(real, synthetic):
    for inside, parameter in ((real / "train", "data"), (synthetic / "s", "synthetic")):
        with pytest.raises(InputError, match=f"inside `{parameter}`"):
            downstream(real, synthetic, **{**FAST, "results": inside})


def test_a_trial_of_another_study_is_run_again(real, synthetic, tmp_path, caplog):
    downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    path = tmp_path / "s" / TRIALS / "plain" / "seed-0.json"
    values = storage.read_sealed_json(path)
    storage.write_sealed_json(path, {**values, "study": "other"})
    downstream(real, synthetic, results=tmp_path / "s", study=study_of("plain"), **FAST)
    assert "of another study" in caplog.text
    assert storage.read_sealed_json(path)["test"] == values["test"]


def test_a_class_without_train_images_is_drawn_from_its_synthetic_ones(real, synthetic, tmp_path):
    shutil.copytree(real, tmp_path / "data")
    shutil.copytree(tmp_path / "data" / "test" / "a", tmp_path / "data" / "test" / "new")
    found = downstream(
        tmp_path / "data",
        synthetic,
        results=tmp_path / "s",
        study=study_of("oversampling+filtered+xfull+share=0.3"),
        **FAST,
    )
    assert found.arms[0].synthetic == {"poor": 20} and "new" in found.arms[0].recalls
    drawn = drawing(pool(4, 0), pool(0, 5, level=100), np.array([0, 5]), 0.3, True)
    pixels, labels = drawn.draw(500, np.random.default_rng(0))
    assert (pixels[labels == 1] >= 120).all() and 0.4 < (labels == 1).mean() < 0.6


def test_augmentation_and_dropout_differ_from_seed_to_seed(monkeypatch):
    options, real = DownstreamOptions(width=2, blocks=(1,), steps=1, batch=4), pool(4, 4)
    loop = replace(loop_options(options, threads=1), precision="fp32", memory_format="contiguous")
    drawn, seen = drawing(real, None, np.zeros(2, int), None, True), []
    forward = Classifier.forward
    monkeypatch.setattr(
        Classifier, "forward", lambda self, b, c: seen.append(c.draws.uniform(2).tolist()) or forward(self, b, c)
    )
    for seed in (0, 1):
        Trial(Arm("plain"), seed, drawn, options, loop, torch.device("cpu")).run(real, real, lambda: None)
    assert seen[0] != seen[1]


def test_smote_is_made_once_a_seed_for_all_arms_with_it(real, synthetic, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(smote, "with_smote", lambda real, seed: made.append(seed) or with_smote(real, seed))
    arms = ["smote", "smote+filtered+x1", "smote+filtered+xfull", "best+filtered+x2"]
    found = downstream(real, synthetic, results=tmp_path / "s", study=study_of(*arms), **FAST)
    assert made == [0, 1] and [arm.synthetic.get("poor", 0) for arm in found.arms] == [0, 6, 20, 12]


def test_the_command_prints_a_table_or_json(real, synthetic, tmp_path):
    arguments = ["downstream", str(real), str(synthetic), "--results", str(tmp_path / "s"), "--seeds", "1", "--quiet",
                 "--device", "cpu", "--arms", "plain,best+filtered", "--multiples", "1,full"]  # fmt: skip
    arguments += [part for change in FEW for part in ("--set", change)]
    table = CliRunner().invoke(root, arguments, catch_exceptions=False)
    assert table.exit_code == 0 and "plain+filtered+xfull" in table.stdout
    assert Image.open(tmp_path / "s" / CHART).format == "PNG"
    found = CliRunner().invoke(root, [*arguments, "--json"], catch_exceptions=False)
    values = json.loads(found.stdout)
    assert values["baseline"] == "plain" and [arm["name"] for arm in values["arms"]][1] == "plain+filtered+x1"

"""The plan: amounts as imbalanced-learn means them, sources that are rich and near, numbers of modalities."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from toys import tiny_recipe

from rebalance.errors import InputError
from rebalance.index import build_index, carve_validation
from rebalance.measures.features import FeatureExtractor
from rebalance.planning.balance import STRATEGIES, parse_balance, resolve_balance
from rebalance.planning.planner import make_plan, modality_count
from rebalance.planning.plans import Estimate, Plan, SourcePlan, TargetPlan
from rebalance.planning.sources import class_means

COUNTS = {"a": 100, "b": 40, "c": 10, "d": 100}


# Amounts


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("auto", {"b": 60, "c": 90}),
        ("not majority", {"b": 60, "c": 90}),
        ("minority", {"c": 90}),
        ("not minority", {"b": 60}),
        ("all", {"b": 60, "c": 90}),
    ],
)
def test_strategies_mean_what_they_mean_in_imbalanced_learn(balance, expected):
    assert resolve_balance(COUNTS, balance) == expected


def test_strategies_of_two_classes_mean_what_they_mean_in_imbalanced_learn():
    counts = {"rich": 90, "poor": 7}
    for balance in ("auto", "not majority", "minority", "all"):
        assert resolve_balance(counts, balance) == {"poor": 83}
    with pytest.raises(InputError, match="nothing to do"):
        resolve_balance(counts, "not minority")


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.5, {"b": 10, "c": 40}),
        ("0.5", {"b": 10, "c": 40}),
        (0.4, {"c": 30}),
        (0.2, {"c": 10}),
        (0.105, {"c": 1}),
        (1.0, {"b": 60, "c": 90}),
        (1, {"b": 60, "c": 90}),
        ("1", {"b": 60, "c": 90}),
    ],
)
def test_number_raises_every_class_to_that_share_of_the_largest(balance, expected):
    assert resolve_balance(COUNTS, balance) == expected


def test_number_of_two_classes_means_what_it_means_in_imbalanced_learn():
    assert resolve_balance({"rich": 100, "poor": 20}, 0.5) == {"poor": 30}


@pytest.mark.parametrize(("ratio", "final"), [(0.07, 7), (0.29, 29), (0.57, 57), (0.55, 55), (0.333, 34)])
def test_share_is_rounded_up_but_not_by_the_error_of_floating_point(ratio, final):
    assert resolve_balance({"rich": 100, "poor": 1}, ratio) == {"poor": final - 1}


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ({"b": 50}, {"b": 10}),
        ({"c": 30, "b": 41}, {"b": 1, "c": 20}),
        ({"b": 40, "c": 11}, {"c": 1}),
        ({"b": 500}, {"b": 460}),
        ({"a": 101}, {"a": 1}),
        ('{"b": 50, "c": 11}', {"b": 10, "c": 1}),
        ('  {"c": 11}\n', {"c": 1}),
    ],
)
def test_mapping_gives_final_counts(balance, expected):
    assert resolve_balance(COUNTS, balance) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("counts.json", '{"3": 50, "8": 11}'),
        ("counts.json", '{\n\t"3": 50,\n\t"8": 11\n}\n'),
        ("counts.yaml", "3: 50\n8: 11\n"),
        ("counts.yml", "'3': 50\n'8': 11\n"),
    ],
    ids=["json", "json with tabs", "yaml", "yml with quotes"],
)
def test_mapping_in_a_file_gives_final_counts(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert resolve_balance({"0": 100, "3": 40, "8": 10}, str(tmp_path / name)) == {"3": 10, "8": 1}


def test_amounts_are_in_label_order():
    assert list(resolve_balance(COUNTS, {"c": 20, "b": 50})) == ["b", "c"]
    assert list(resolve_balance({"z": 1, "y": 5, "x": 2}, "auto")) == ["z", "x"]


@pytest.mark.parametrize(
    ("max_multiple", "expected"),
    [
        (100, {"b": 60, "c": 90}),
        (9, {"b": 60, "c": 90}),
        (2, {"b": 60, "c": 20}),
        (1, {"b": 40, "c": 10}),
        (0.5, {"b": 20, "c": 5}),
        (0.04, {"b": 1}),
    ],
)
def test_max_multiple_caps_synthetic_images(max_multiple, expected):
    assert resolve_balance(COUNTS, "auto", max_multiple) == expected


@pytest.mark.parametrize(("max_multiple", "n"), [(0.29, 29), (0.57, 57), (1.15, 115), (0.999, 99)])
def test_max_multiple_is_rounded_down_but_not_by_the_error_of_floating_point(max_multiple, n):
    assert resolve_balance({"rich": 1000, "poor": 100}, "auto", max_multiple) == {"poor": n}


def test_empty_class_is_no_obstacle_when_it_is_no_target():
    counts = {"a": 10, "b": 4, "empty": 0}
    assert resolve_balance(counts, {"b": 6}) == {"b": 2}
    assert resolve_balance(counts, "minority") == {"b": 6}


@pytest.mark.parametrize(
    ("counts", "balance", "fragments"),
    [
        (COUNTS, {"x": 50}, ["balance", "unknown class 'x'", "'a', 'b', 'c', 'd'"]),
        (COUNTS, '{"B": 50}', ["balance", "unknown class 'B'", "'b'"]),
        (COUNTS, {"b": 39}, ["balance", "'b'", "below its 40", "got 39"]),
        (COUNTS, {"c": 0}, ["balance", "'c'", "below its 10", "got 0"]),
        (COUNTS, 0.1, ["balance", "already met", "0.100", "got 0.1"]),
        (COUNTS, "0.05", ["balance", "already met", "got 0.05"]),
        (COUNTS, 0.0, ["balance", "got 0.0", "above 0, at most 1"]),
        (COUNTS, "-0.5", ["balance", "got -0.5", "above 0, at most 1"]),
        (COUNTS, "1.01", ["balance", "got 1.01", "above 0, at most 1"]),
        (COUNTS, 2, ["balance", "got 2", "above 0, at most 1"]),
        (COUNTS, "nan", ["balance", "got nan", "above 0, at most 1"]),
        (COUNTS, "inf", ["balance", "got inf", "above 0, at most 1"]),
        ({"a": 5}, "auto", ["at least two classes", "{'a': 5}"]),
        ({"a": 5, "b": 0}, "auto", ["at least two classes", "{'a': 5, 'b': 0}"]),
        ({}, "auto", ["at least two classes"]),
        ({"a": 5, "b": 2, "c": 0}, "auto", ["no usable train image", "'c'", "balance"]),
        ({"a": 5, "b": 2, "c": 0}, {"c": 3}, ["no usable train image", "'c'", "balance"]),
        ({"a": 5, "b": 5}, "auto", ["nothing to do", "balance", "'auto'"]),
        ({"a": 5, "b": 5}, 1.0, ["already met", "1.000", "got 1.0"]),
        (COUNTS, {"b": 40}, ["nothing to do", "{'b': 40}"]),
        (COUNTS, '{"b": 50', ["balance", "not valid JSON", '{"b": 50']),
        (COUNTS, "{b: 50}", ["balance", "not valid JSON"]),
        (COUNTS, '{"b": 50.5}', ["balance", "'b'", "got 50.5", "whole number"]),
        (COUNTS, '{"b": "50"}', ["balance", "'b'", "got '50'", "whole number"]),
        (COUNTS, '{"b": true}', ["balance", "'b'", "got True", "whole number"]),
        (COUNTS, '{"b": null}', ["balance", "'b'", "whole number"]),
        (COUNTS, '{"b": -1}', ["balance", "'b'", "got -1", "whole number"]),
        (COUNTS, "{}", ["balance", "at least one class", "got {}"]),
        (COUNTS, {}, ["balance", "at least one class", "got {}"]),
        (COUNTS, "majority", ["balance", "got 'majority'", *STRATEGIES, "(0, 1]", "JSON"]),
        (COUNTS, "0,5", ["balance", "got '0,5'"]),
        (COUNTS, "", ["balance", "auto"]),
        (COUNTS, "[50]", ["balance", "got '[50]'"]),
        (COUNTS, "missing.json", ["balance", "got 'missing.json'"]),
    ],
)
def test_impossible_balance_says_the_rule_and_the_value(counts, balance, fragments):
    with pytest.raises(InputError) as caught:
        resolve_balance(counts, balance)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("max_multiple", [0, -1, math.nan, math.inf])
def test_impossible_max_multiple_says_the_rule_and_the_value(max_multiple):
    with pytest.raises(InputError, match="max_multiple") as caught:
        resolve_balance(COUNTS, "auto", max_multiple)
    assert f"got {max_multiple!r}" in str(caught.value)
    assert "above 0" in str(caught.value)


def test_max_multiple_that_leaves_nothing_is_named():
    with pytest.raises(InputError, match="nothing to do") as caught:
        resolve_balance(COUNTS, "auto", 0.001)
    assert "max_multiple" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "fragment"),
    [
        ("counts.yaml", "b: [", "cannot read"),
        ("counts.yaml", "- b\n- c\n", "at least one class"),
        ("counts.yaml", "", "at least one class"),
        ("counts.json", '{"b": ', "cannot read"),
        ("counts.json", '{"b": 1.5}', "whole number"),
        ("counts.txt", '{"b": 50}', "unknown"),
    ],
)
def test_impossible_file_of_counts_says_what_is_wrong(tmp_path, name, text, fragment):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="balance") as caught:
        resolve_balance(COUNTS, str(tmp_path / name))
    assert fragment in str(caught.value)


IMBALANCED = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 5000), min_size=2, max_size=8).filter(
    lambda counts: len(set(counts.values())) > 1
)


@given(counts=IMBALANCED, strategy=st.sampled_from(STRATEGIES), max_multiple=st.none() | st.floats(1, 50))
def test_strategy_never_reduces_a_class_nor_exceeds_the_largest(counts, strategy, max_multiple):
    try:
        amounts = resolve_balance(counts, strategy, max_multiple)
    except InputError as error:
        assert strategy == "not minority"
        assert "nothing to do" in str(error)
        return
    assert set(amounts) <= set(counts)
    assert list(amounts) == [name for name in counts if name in amounts]
    largest = max(counts.values())
    for name, n in amounts.items():
        assert n > 0
        assert counts[name] + n <= largest
        if max_multiple is None:
            assert counts[name] + n == largest
        else:
            assert n <= max_multiple * counts[name] + 1e-6


@given(counts=IMBALANCED)
def test_auto_leaves_every_class_equal(counts):
    amounts = resolve_balance(counts, "auto")
    assert {counts[name] + amounts.get(name, 0) for name in counts} == {max(counts.values())}
    assert resolve_balance(counts, "not majority") == resolve_balance(counts, "all") == amounts


@given(counts=IMBALANCED, percent=st.integers(1, 100))
def test_ratio_is_reached_by_every_class_with_as_few_images_as_possible(counts, percent):
    largest = max(counts.values())
    assume(min(counts.values()) * 100 < percent * largest)
    amounts = resolve_balance(counts, percent / 100)
    for name, count in counts.items():
        final = count + amounts.get(name, 0)
        assert final * 100 >= percent * largest
        assert final == count or (final - 1) * 100 < percent * largest


@given(counts=IMBALANCED, data=st.data())
def test_mapping_is_met_exactly(counts, data):
    extra = {name: data.draw(st.integers(0, 100)) for name in counts}
    assume(any(extra.values()))
    wanted = {name: counts[name] + n for name, n in extra.items()}
    expected = {name: n for name, n in extra.items() if n}
    assert resolve_balance(counts, wanted) == expected
    assert resolve_balance(counts, json.dumps(wanted)) == expected


# Numbers of modalities


def recipe_with(plan=None, data=None, **modalities):
    return tiny_recipe(
        data={"size_px": 8, "channels": 1, "val_fraction": 0.1, **(data or {})},
        plan=plan or {},
        modalities={"by": "contrastive", **modalities},
    )


@given(n=st.integers(1, 20_000), b=st.integers(1, 2000), k_max=st.integers(1, 60))
def test_number_of_modalities_follows_the_rule(n, b, k_max):
    assert modality_count(n, b, recipe_with(k_max=k_max)) == max(1, min(k_max, n // b + 1, n // 32))


@given(n=st.integers(1, 20_000), b=st.integers(1, 2000))
def test_modalities_are_smaller_than_the_target_where_nothing_caps_them(n, b):
    k = modality_count(n, b, recipe_with(k_max=10**6, min_images=1))
    if k == n // b + 1:
        assert n / k < b
    else:
        assert (k, b) == (n, 1)


@pytest.mark.parametrize(
    ("n", "b", "k"),
    [(10_000, 1000, 11), (10_000, 100, 40), (640, 10, 20), (31, 5, 1), (63, 5, 1), (64, 5, 2), (1000, 1000, 2)],
)
def test_number_of_modalities_by_hand(n, b, k):
    assert modality_count(n, b, recipe_with()) == k


@pytest.mark.parametrize(("fixed", "n", "k"), [(5, 1000, 5), (1, 1000, 1), (40, 12, 12)])
def test_fixed_number_of_modalities_is_capped_by_the_images(fixed, n, k):
    assert modality_count(n, 10, recipe_with(), fixed) == k


def test_no_modalities_is_one_of_every_class():
    assert modality_count(10_000, 10, recipe_with(by="none"), 7) == 1


# Plans


class MeanLevel:
    """An extractor whose one feature is the mean gray level; it remembers what it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, pixels):
        assert pixels.dtype == np.uint8
        self.shapes.append(pixels.shape)
        return pixels.reshape(len(pixels), -1).mean(1, keepdims=True).astype(np.float32)

    @property
    def extractor(self):
        return FeatureExtractor("mean level", 1, 16, self)


PLANNED = {"a": 5, "b": 9, "c": 12, "d": 30, "e": 10, "f": 30}
"""Neighbours in the alphabet are 20 gray levels apart."""


@pytest.fixture(scope="module")
def index(image_folder):
    return build_index(image_folder(PLANNED))


def planned(index, balance, max_multiple=None, **options):
    return make_plan(index, recipe_with(**options), MeanLevel().extractor, balance, max_multiple)


def source_names(target):
    return [source.name for source in target.sources]


def test_sources_are_the_nearest_classes_with_twice_the_images(index):
    (target,) = planned(index, {"a": 20}).targets
    assert (target.name, target.label, target.n_real, target.n_final, target.n_synthetic) == ("a", 0, 5, 20, 15)
    assert source_names(target) == ["c", "d", "e"]
    assert [source.n_real for source in target.sources] == [12, 30, 10]
    assert [source.distance for source in target.sources] == pytest.approx([40, 60, 80], abs=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"n_sources": 1}, ["c"]),
        ({"n_sources": 99}, ["c", "d", "e", "f"]),
        ({"n_sources": 99, "source_ratio": 1.8}, ["b", "c", "d", "e", "f"]),
        ({"n_sources": 99, "source_ratio": 2.4}, ["c", "d", "f"]),
        ({"n_sources": 99, "source_ratio": 2.5}, ["d", "f"]),
        ({"n_sources": 99, "max_distance_ratio": 1.7}, ["c", "d"]),
        ({"n_sources": 1, "max_distance_ratio": 1.7}, ["c"]),
        ({"n_sources": 99, "max_distance_ratio": 1}, ["c"]),
    ],
)
def test_recipe_decides_how_many_sources_and_how_rich(index, options, expected):
    assert source_names(planned(index, {"a": 20}, plan=options).targets[0]) == expected


def test_nearness_does_not_depend_on_the_order_of_classes(index):
    (target,) = planned(index, {"e": 20}, plan={"n_sources": 9, "source_ratio": 1}).targets
    assert sorted(source_names(target)[:2]) == ["d", "f"]
    assert source_names(target)[2:] == ["c"]
    distances = [source.distance for source in target.sources]
    assert distances == sorted(distances)


def test_class_may_be_target_and_source(index):
    plan = planned(index, {"c": 20, "a": 6}, min_images=1)
    assert [target.name for target in plan.targets] == ["a", "c"]
    assert source_names(plan.target("a")) == ["c", "d", "e"]
    assert source_names(plan.target("c")) == ["d", "f"]
    assert plan.n_synthetic == 1 + 8
    assert plan.modalities == {"a": 1, "c": 3, "d": 7, "e": 3, "f": 3}
    assert plan.classes() == ("a", "c", "d", "e", "f")


def test_few_images_are_one_modality(index):
    assert set(planned(index, {"a": 20}).modalities.values()) == {1}


def test_recipe_may_fix_the_number_of_modalities(index):
    assert planned(index, {"a": 20}, k=11).modalities == {"a": 1, "c": 11, "d": 11, "e": 10}


def test_targets_are_split_in_the_balanced_setting(index):
    assert planned(index, {"a": 20}, split_targets=True, min_images=1, k=2).modalities["a"] == 2
    assert planned(index, {"a": 20}, split_targets=True, k=2, k_target=4).modalities["a"] == 4


def test_column_of_sublabels_gives_the_number_of_modalities(image_folder):
    root = image_folder({"rich": 12, "poor": 4})
    rows = [f"{path.relative_to(root)},{path.parent.name},{number % 3}" for number, path in enumerate(root.glob("*/*"))]
    (root / "m.csv").write_text("\n".join(["path,label,kind", *sorted(rows)]))
    index = build_index(root / "m.csv", "kind")
    options = {"by": "column", "data": {"sublabel_column": "kind"}}
    assert planned(index, "auto", **options).modalities == {"poor": 1, "rich": 3}


@pytest.mark.parametrize("balance", [{"f": 40}, {"a": 6, "d": 31}])
def test_target_without_a_rich_class_is_named_with_the_rule(index, balance):
    with pytest.raises(InputError) as caught:
        planned(index, balance)
    name = list(balance)[-1]
    for fragment in (f"'{name}' with 30 images", "at least 60", "balance"):
        assert fragment in str(caught.value)


def test_request_reaches_the_targets(index):
    plan = planned(index, "minority", max_multiple=2)
    assert [(target.name, target.n_final) for target in plan.targets] == [("a", 15)]
    assert (plan.balance, plan.max_multiple) == ("minority", 2)


@pytest.mark.parametrize("balance", ["minority", {"a": 9, "b": 10}, '{"a": 9}'])
def test_plan_remembers_its_request(index, balance):
    plan = planned(index, balance)
    assert planned(index, plan.balance) == plan
    assert parse_balance(plan.balance) == parse_balance(balance)


def test_plan_remembers_a_ratio(image_folder):
    index = build_index(image_folder({"rich": 12, "poor": 4}))
    plan = planned(index, 0.5)
    assert [(target.name, target.n_final) for target in plan.targets] == [("poor", 6)]
    assert planned(index, plan.balance) == plan


def test_plan_is_made_on_train_alone(image_folder):
    index = build_index(image_folder({"train": {"poor": 4, "rich": 9}, "val": {"poor": 30}, "test": {"poor": 30}}))
    level = MeanLevel()
    plan = make_plan(index, recipe_with(), level.extractor)
    assert [(target.name, target.n_real, target.n_final) for target in plan.targets] == [("poor", 4, 9)]
    assert sum(shape[0] for shape in level.shapes) == 4 + 9


def test_features_are_measured_on_squares_of_a_limited_number_of_images(index):
    level = MeanLevel()
    means = class_means(index, recipe_with(plan={"feature_images": 7}), level.extractor)
    assert sum(shape[0] for shape in level.shapes) == sum(min(count, 7) for count in PLANNED.values())
    assert {shape[1:] for shape in level.shapes} == {(8, 8, 1)}
    assert [float(means[name][0]) for name in PLANNED] == pytest.approx([20, 40, 60, 80, 100, 120], abs=3)


def test_draw_of_feature_images_follows_the_seed(index):
    recipe = recipe_with(plan={"feature_images": 4})
    means = [class_means(index, replace(recipe, seed=seed), MeanLevel().extractor)["d"] for seed in (0, 0, 1)]
    assert means[0] == means[1]
    assert means[0] != means[2]


def test_empty_class_takes_no_part(tmp_path, image_folder):
    index = build_index(image_folder({"empty": 0, "poor": 4, "rich": 9}))
    plan = planned(index, {"poor": 9})
    assert plan.classes() == ("poor", "rich")
    assert plan.targets[0].label == 1


def test_same_input_gives_the_same_plan(image_folder):
    plans = [planned(build_index(image_folder(PLANNED, seed=3)), {"a": 20}) for _ in range(2)]
    assert plans[0] == plans[1]
    assert json.dumps(plans[0].to_json()) == json.dumps(plans[1].to_json())


def test_digits_are_raised_from_rich_digits(digits_folder):
    index = carve_validation(build_index(digits_folder), 0.1, 0)
    plan = planned(index, {"3": 140, "8": 140, "9": 140}, plan={"feature_images": 10})
    assert [(target.name, target.label, target.n_real) for target in plan.targets] == [
        ("3", 3, 18), ("8", 8, 18), ("9", 9, 18),
    ]  # fmt: skip
    assert plan.n_synthetic == 3 * 122
    for target in plan.targets:
        assert len(target.sources) == 3
        assert not set(source_names(target)) & {"3", "8", "9"}


# Plans as data


NAMES = st.text(min_size=1, max_size=5)
FINITE = st.floats(0, 1e6)
PLANS = st.builds(
    Plan,
    balance=st.text(max_size=8),
    max_multiple=st.none() | FINITE,
    targets=st.lists(
        st.builds(
            TargetPlan,
            name=NAMES,
            label=st.integers(0, 99),
            n_real=st.integers(1, 99),
            n_final=st.integers(100, 999),
            sources=st.lists(st.builds(SourcePlan, NAMES, st.integers(1, 999), FINITE), max_size=3).map(tuple),
        ),
        max_size=4,
    ).map(tuple),
    modalities=st.dictionaries(NAMES, st.integers(1, 40), max_size=4),
    estimate=st.none() | st.builds(Estimate, FINITE, FINITE, st.integers(0, 10**12), st.integers(0, 10**12)),
)


@given(plan=PLANS)
def test_plan_written_as_json_and_read_is_the_same(plan):
    values = json.loads(json.dumps(plan.to_json()))
    assert Plan.from_json(values) == plan
    assert [target["n_synthetic"] for target in values["targets"]] == [
        target.n_final - target.n_real for target in plan.targets
    ]


@pytest.mark.parametrize(("shard_size", "n_shards"), [(100, 1), (15, 1), (14, 2), (1, 15)])
def test_number_of_shards(index, shard_size, n_shards):
    assert planned(index, {"a": 20}).n_shards(shard_size) == n_shards

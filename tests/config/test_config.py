"""Recipes: shipped ones load, wrong ones say what is wrong, nothing changes after loading."""

import dataclasses
import subprocess
import sys
import typing

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rebalance.config import (
    DataOptions,
    GenerationOptions,
    MethodOptions,
    Options,
    Recipe,
    TrainingOptions,
    build_recipe,
    changed_keys,
    dump_recipe,
    load_recipe,
    option,
    recipe_names,
    recipe_text,
)
from rebalance.config.options import flatten, required, without_defaults
from rebalance.config.recipe import recipe_directory
from rebalance.errors import InputError
from rebalance.methods import registry
from rebalance.methods.balagan.options import BalaganOptions

SHIPPED = sorted(path.stem for path in recipe_directory().glob("*.yaml"))

DEFAULT = build_recipe({"method": "balagan"})


def sections(kind, method):
    """Every Options class of a recipe of this method, from `kind` down."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        if isinstance(hint, type) and issubclass(hint, Options):
            yield from sections(registry.method_options(method) if hint is MethodOptions else hint, method)


METHODS = registry.method_names()
KINDS = sorted({kind for name in METHODS for kind in sections(Recipe, name)}, key=lambda kind: kind.__name__)
FIELDS = [
    pytest.param(kind, field, id=f"{kind.__name__}.{field.name}")
    for kind in KINDS
    for field in dataclasses.fields(kind)
]
RANGES = [
    pytest.param(parameter.values[0], parameter.values[1], bound, id=f"{parameter.id}-{bound}")
    for parameter in FIELDS
    for bound in ("at_least", "at_most", "above")
    if parameter.values[1].metadata[bound] is not None
]
CHOICES = [parameter for parameter in FIELDS if parameter.values[1].metadata["choices"] is not None]


def made(kind, **values):
    """Options with some fields set; those without a default are a recipe's method and its options."""
    needed = {"method": "balagan", "options": BalaganOptions()} if kind is Recipe else {}
    return kind(**{**needed, **values})


def with_value(kind, field, value):
    """The options with one field set; a field that holds several values gets one."""
    several = typing.get_origin(typing.get_type_hints(kind)[field.name]) is tuple
    return made(kind, **{field.name: (value,) if several else value})


@pytest.fixture
def other_method(monkeypatch):
    """A second method, `mirror`, whose images must have an even side."""
    monkeypatch.setattr(registry, "_OPTIONS", dict(registry._OPTIONS))

    @registry.register("mirror")
    @dataclasses.dataclass(frozen=True)
    class Mirror(MethodOptions):
        """Options of a method that mirrors."""

        axis: str = option("x", "axis", choices=("x", "y"))

        def check(self, recipe):
            if recipe.data.size_px % 2:
                raise InputError("data.size_px", value=recipe.data.size_px, allowed="even numbers")

        def build(self, context):
            raise AssertionError("only its options are used")

    return Mirror


def recipe_file(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text if "method:" in text else f"method: balagan\n{text}", encoding="utf-8")
    return path


# Declarations


def test_every_options_class_belongs_to_the_recipe():
    def below(kind):
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    def is_base(kind):
        return kind is Options or (issubclass(kind, MethodOptions) and not kind.method_name)

    declared = {kind for kind in below(Options) if kind.__module__.startswith("rebalance.") and not is_base(kind)}
    assert declared == {kind for kind in KINDS if kind.__module__.startswith("rebalance.")}


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_every_key_is_documented(kind, field):
    assert field.metadata["doc"].strip()


@pytest.mark.parametrize("kind", KINDS)
def test_every_section_is_documented(kind):
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")


@pytest.mark.parametrize(("kind", "field", "bound"), RANGES)
def test_bounds_of_every_key_hold_on_construction(kind, field, bound):
    limit = field.metadata[bound]
    step = -1 if bound == "at_least" else 1
    outside = limit if bound == "above" else limit + step
    if bound != "above":
        assert with_value(kind, field, limit)
    with pytest.raises(InputError) as caught:
        with_value(kind, field, outside)
    message = str(caught.value)
    assert field.name in message
    assert f"got {outside!r}" in message
    assert str(limit) in message


@pytest.mark.parametrize(("kind", "field"), CHOICES)
def test_choices_of_every_key_hold_on_construction(kind, field):
    for choice in field.metadata["choices"]:
        assert with_value(kind, field, choice)
    with pytest.raises(InputError) as caught:
        with_value(kind, field, "nonsense")
    message = str(caught.value)
    assert field.name in message
    assert "'nonsense'" in message
    assert all(repr(choice) in message for choice in field.metadata["choices"])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_must_be_finite(number):
    with pytest.raises(InputError, match="lr_generator must be finite"):
        BalaganOptions(lr_generator=number)


def test_options_cannot_be_changed():
    recipe = DEFAULT
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.training.optimizer.beta1 = 0.5
    assert recipe == DEFAULT


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_a_section_can_be_changed_in_place(kind):
    assert hash(made(kind)) == hash(made(kind))


def test_own_options_check_each_element_of_a_list():
    @dataclasses.dataclass(frozen=True)
    class Own(Options):
        sizes: tuple[int, ...] = option((1, 2), "sizes", at_least=1)

    assert Own((3, 1)).sizes == (3, 1)
    with pytest.raises(InputError, match=r"Own\.sizes is too small; got 0"):
        Own((3, 0))


def test_a_declared_field_keeps_its_documentation_and_its_rule():
    @dataclasses.dataclass(frozen=True)
    class Own(Options):
        name: str = required("name of the thing")
        share: float = option(0.5, "share of it", at_least=0, at_most=1)
        inner: DataOptions = option(DataOptions, "images")

    name, share, inner = dataclasses.fields(Own)
    assert name.metadata["doc"] == "name of the thing" and name.default is dataclasses.MISSING
    assert [name.metadata[rule] for rule in ("at_least", "at_most", "above", "choices")] == [None] * 4
    assert (share.metadata["doc"], share.metadata["at_least"], share.metadata["at_most"]) == ("share of it", 0, 1)
    assert share.default == 0.5 and inner.default_factory is DataOptions
    assert Own("x").inner == DataOptions()
    with pytest.raises(TypeError, match="name"):
        Own()


# Methods


@pytest.mark.parametrize("name", METHODS)
def test_recipe_of_every_method_dumped_and_loaded_is_the_same(name, tmp_path):
    recipe = build_recipe({"method": name})
    assert type(recipe.options) is registry.method_options(name)
    assert load_recipe(recipe_file(tmp_path, dump_recipe(recipe))) == recipe
    assert name in recipe.to_mapping() and "options" not in recipe.to_mapping()


def test_unknown_method_names_the_nearest():
    with pytest.raises(InputError) as caught:
        build_recipe({"method": "balagn"})
    assert "'balagn'" in str(caught.value) and "Did you mean 'balagan'?" in str(caught.value)


@pytest.mark.parametrize("method", [3, ["balagan"], True])
def test_method_that_is_no_name_is_refused(method):
    with pytest.raises(InputError, match="method is unknown"):
        build_recipe({"method": method})


def test_recipe_without_method_and_section_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("training: {steps: 5}\n")
    with pytest.raises(InputError, match=r"names no method; allowed: method: .*balagan"):
        load_recipe(path)


def test_recipe_without_method_takes_the_one_whose_section_it_holds(other_method, tmp_path):
    (tmp_path / "mine.yaml").write_text("mirror: {axis: y}\n")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.method, recipe.options) == ("mirror", other_method(axis="y"))
    assert build_recipe({"balagan": {"class_codes": True}}).method == "balagan"
    with pytest.raises(InputError, match="names no method"):
        build_recipe({"mirror": {}, "balagan": {}})


def test_section_of_another_method_is_an_unknown_key(other_method):
    with pytest.raises(InputError, match="unknown recipe key 'mirror'"):
        build_recipe({"method": "balagan", "mirror": {"axis": "y"}})
    with pytest.raises(InputError, match="unknown recipe key 'balagan'"):
        build_recipe({"method": "mirror", "balagan": {}})


def test_misspelt_section_of_the_method_names_it():
    with pytest.raises(InputError, match=r"unknown recipe key 'balagann'\. Did you mean 'balagan'"):
        build_recipe({"method": "balagan", "balagann": {}})


@pytest.mark.parametrize("section", [0, False, [], "", "words"])
def test_section_of_the_method_must_be_a_mapping(section):
    with pytest.raises(InputError, match="balagan must be a mapping"):
        build_recipe({"method": "balagan", "balagan": section})


def test_empty_section_of_the_method_is_all_defaults():
    assert build_recipe({"balagan": None}) == DEFAULT


def test_options_is_no_key_of_a_recipe():
    with pytest.raises(InputError, match=r"unknown recipe key 'options'.*'balagan'"):
        build_recipe({"method": "balagan", "options": {}})


@pytest.mark.parametrize("size_px", [60, 8])
def test_sizes_that_do_not_fit_the_method_are_refused_when_the_recipe_is_loaded(size_px):
    with pytest.raises(InputError, match=r"data\.size_px does not fit the networks") as caught:
        load_recipe("gpu-128", [f"data.size_px={size_px}"])
    assert f"got {size_px}" in str(caught.value)


def test_every_method_checks_its_recipe(other_method):
    with pytest.raises(InputError, match="even numbers"):
        build_recipe({"method": "mirror", "data": {"size_px": 9}})


def test_two_methods_of_one_name_are_refused(other_method):
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("mirror")(BalaganOptions)


def test_loading_every_shipped_recipe_imports_no_torch():
    code = (
        "import sys; from rebalance.config import load_recipe, recipe_names; "
        "[load_recipe(name) for name in recipe_names()]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_differs_from_the_defaults_holds_nothing_else():
    assert without_defaults(DEFAULT.training) == {}
    changed = load_recipe("digits-cpu", ["training.steps=7"]).training
    assert without_defaults(changed)["steps"] == 7
    assert "ema" not in without_defaults(changed)


# Shipped recipes


def test_the_expected_recipes_are_shipped():
    assert {"digits-cpu", "fashion-cpu", "gpu-128", "paper-128", "paper-256"} <= set(SHIPPED)
    assert recipe_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_loads_by_name_and_by_path(name):
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert load_recipe(recipe_directory() / f"{name}.yaml") == recipe


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipe_dumped_and_loaded_is_the_same(name, tmp_path):
    recipe = load_recipe(name)
    again = load_recipe(recipe_file(tmp_path, dump_recipe(recipe)))
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


@pytest.mark.parametrize("name", SHIPPED)
def test_head_comment_of_a_shipped_recipe_gives_the_command_and_the_data(name):
    head = [line for line in recipe_text(name).splitlines() if line.startswith("#")]
    assert recipe_text(name).startswith(head[0])
    assert any("rebalance fit" in line or "rebalance demo" in line for line in head)
    assert any(line.startswith("# Data:") for line in head)


def test_paper_recipe_has_the_released_values():
    recipe = load_recipe("paper-128")
    generator, discriminator, weights = recipe.options.generator, recipe.options.discriminator, recipe.options.weights
    assert (generator.base_filters, generator.style_size, generator.mlp_width, generator.mlp_layers) == (64, 64, 256, 3)
    assert (generator.content_downs, generator.reference_downs, generator.residual_blocks) == (3, 4, 2)
    assert (discriminator.base_filters, discriminator.blocks, discriminator.classifier_head) == (64, 10, True)
    assert (weights.adversarial, weights.reconstruction, weights.feature_matching) == (1, 0.1, 1)
    assert (weights.classification, weights.r1) == (1, pytest.approx(10 / 9))
    assert (recipe.options.lr_generator, recipe.options.lr_discriminator) == (1e-4, 1e-4)
    training, encoder = recipe.training, recipe.modalities.encoder
    assert (training.batch, training.steps, training.ema, training.regularize_every_steps) == (3, 100_000, 0.999, 1)
    assert (training.optimizer.name, training.optimizer.weight_decay) == ("rmsprop", 1e-4)
    assert (training.models, training.draw, training.pairs) == ("per-class", "modalities", "all")
    assert (recipe.modalities.k, encoder.batch, encoder.lr, encoder.temperature) == (40, 256, 3e-4, 0.5)
    assert encoder.projection == 256
    assert recipe.data.size_px == 128


# Loading


def test_empty_recipe_is_all_defaults(tmp_path):
    assert load_recipe(recipe_file(tmp_path, "method: balagan\n")) == DEFAULT


def test_dump_names_every_key_with_its_value():
    dumped = flatten(yaml.safe_load(dump_recipe(DEFAULT)))
    assert dumped == flatten(DEFAULT.to_mapping())
    kinds = set(sections(Recipe, "balagan"))
    n_fields = sum(len(dataclasses.fields(kind)) for kind in kinds)
    assert len(dumped) == n_fields - (len(kinds) - 1)  # every section but the root is itself a field


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 1),
    lr=st.floats(1e-12, 10, allow_subnormal=False),
    beta=st.floats(0, 0.999),
    k=st.none() | st.integers(1, 100),
    blocks=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    policy=st.lists(st.sampled_from(["cutout", "translation", "saturation"]), unique=True),
    column=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=8),
)
def test_any_recipe_dumped_and_loaded_is_the_same(tmp_path_factory, seed, lr, beta, k, blocks, policy, column):
    default = DEFAULT
    recipe = dataclasses.replace(
        default,
        seed=seed,
        data=dataclasses.replace(default.data, sublabel_column=column),
        options=dataclasses.replace(default.options, lr_generator=lr, diff_augment=tuple(policy)),
        modalities=dataclasses.replace(
            default.modalities, k=k, encoder=dataclasses.replace(default.modalities.encoder, blocks=tuple(blocks))
        ),
        training=TrainingOptions(optimizer=dataclasses.replace(default.training.optimizer, beta1=beta)),
    )
    path = recipe_file(tmp_path_factory.getbasetemp(), dump_recipe(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "key", "match"),
    [
        ("trainig: {steps: 5}", "trainig", "training"),
        ("training: {stps: 5}", "training.stps", "steps"),
        ("modalities: {encoder: {augmentation: [flip]}}", "modalities.encoder.augmentation", "augmentations"),
        ("balagan: {weights: {reconstuction: 1}}", "balagan.weights.reconstuction", "reconstruction"),
        (
            "balagan: {discriminator: {clasifier_head: false}}",
            "balagan.discriminator.clasifier_head",
            "classifier_head",
        ),
    ],
)
def test_unknown_key_names_itself_and_the_nearest_match(tmp_path, text, key, match):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert f"unknown recipe key {key!r}" in str(caught.value)
    assert f"Did you mean {match!r}?" in str(caught.value)


def test_unknown_key_without_a_near_match_lists_the_known_ones(tmp_path):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file(tmp_path, "plan: {zzz: 1}"))
    assert all(field.name in str(caught.value) for field in dataclasses.fields(DEFAULT.plan))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: '1'", "seed"),
        ("seed: true", "seed"),
        ("seed: 1.5", "seed"),
        ("data: {size_px: 1e2}", "data.size_px"),
        ("data: {square: 3}", "data.square"),
        ("data: {val_fraction: tenth}", "data.val_fraction"),
        ("data: {val_fraction: true}", "data.val_fraction"),
        ("data: {val_fraction: null}", "data.val_fraction"),
        ("data: 64", "data"),
        ("data: [1]", "data"),
        ("modalities: {k: many}", "modalities.k"),
        ("modalities: {split_targets: 1}", "modalities.split_targets"),
        ("modalities: {encoder: {blocks: 2}}", "modalities.encoder.blocks"),
        ("modalities: {encoder: {blocks: [2, two]}}", "modalities.encoder.blocks"),
        ("balagan: {diff_augment: cutout}", "balagan.diff_augment"),
    ],
)
def test_wrong_type_names_the_key(tmp_path, text, key):
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file(tmp_path, text))
    assert key in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_recipe_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="must be a mapping"):
        load_recipe(tmp_path / "mine.yaml")


def test_recipe_that_is_no_yaml_is_refused(tmp_path):
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(recipe_file(tmp_path, "data: {size_px: 64"))


def test_recipe_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary\.yaml"):
        load_recipe(tmp_path / "binary.yaml")


@pytest.mark.parametrize(("name", "match"), [("paper128", "paper-128"), ("digits", "digits-cpu"), ("gpu", "gpu-128")])
def test_unknown_recipe_names_the_nearest(name, match):
    with pytest.raises(InputError) as caught:
        load_recipe(name)
    assert f"unknown recipe {name!r}" in str(caught.value)
    assert f"Did you mean {match!r}?" in str(caught.value)


def test_unknown_recipe_without_a_near_match_lists_all():
    with pytest.raises(InputError) as caught:
        load_recipe("zzz")
    assert all(name in str(caught.value) for name in SHIPPED)


def test_sublabels_need_their_column(tmp_path):
    with pytest.raises(InputError, match=r"data\.sublabel_column"):
        load_recipe(recipe_file(tmp_path, "modalities: {by: column}"))
    recipe = load_recipe(recipe_file(tmp_path, "modalities: {by: column}\ndata: {sublabel_column: breed}"))
    assert recipe.data.sublabel_column == "breed"


@pytest.mark.parametrize("key", ["modalities.k", "modalities.k_target"])
@pytest.mark.parametrize("number", [0, -3])
def test_fixed_number_of_modalities_is_at_least_one(key, number):
    with pytest.raises(InputError, match="1 or more"):
        load_recipe("digits-cpu", [f"{key}={number}"])


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "value"),
    [
        ("training.steps=2000", lambda recipe: recipe.training.steps, 2000),
        ("balagan.lr_generator=1e-4", lambda recipe: recipe.options.lr_generator, 1e-4),
        ("balagan.lr_generator=1", lambda recipe: recipe.options.lr_generator, 1.0),
        ("modalities.k=null", lambda recipe: recipe.modalities.k, None),
        ("modalities.k=7", lambda recipe: recipe.modalities.k, 7),
        ("modalities.encoder.blocks=[1, 2]", lambda recipe: recipe.modalities.encoder.blocks, (1, 2)),
        ("balagan.diff_augment=[]", lambda recipe: recipe.options.diff_augment, ()),
        ("balagan.discriminator.classifier_head=false", lambda r: r.options.discriminator.classifier_head, False),
        ("data={size_px: 32}", lambda recipe: recipe.data, DataOptions(size_px=32)),
        (" data.square =squash", lambda recipe: recipe.data.square, "squash"),
        ("features.weights=a=b.pt", lambda recipe: recipe.features.weights, "a=b.pt"),
    ],
)
def test_override_changes_one_key(override, section, value):
    changed = section(load_recipe("digits-cpu", [override]))
    assert changed == value
    assert type(changed) is type(value)


def test_override_leaves_every_other_key():
    before, after = load_recipe("digits-cpu"), load_recipe("digits-cpu", ["training.steps=7"])
    expected = [f"training.steps: {before.training.steps} -> 7"]
    assert changed_keys(before.to_mapping(), after.to_mapping()) == expected


def test_later_override_wins():
    assert load_recipe("digits-cpu", ["training.steps=7", "training.steps=8"]).training.steps == 8


def test_seed_argument_replaces_the_recipes():
    assert load_recipe("digits-cpu", ["seed=3"]).seed == 3
    assert load_recipe("digits-cpu", ["seed=3"], seed=9).seed == 9
    assert load_recipe("digits-cpu", ["seed=3"], seed=0).seed == 0


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("training.steps", ["`overrides`", "key=value", "training.steps"]),
        ("=3", ["`overrides`", "key=value"]),
        ("training.step=3", ["training.step", "Did you mean 'steps'?"]),
        ("training.steps=0", ["steps", "got 0", "1 or more"]),
        ("training.steps=1e4", ["training.steps", "'1e4'", "int"]),
        ("training.steps.more=3", ["`overrides`", "training.steps.more", "'steps'"]),
        ("data.square=[1", ["`overrides`", "data.square", "YAML"]),
        ("data.square=round", ["square", "'round'", "'crop'", "'pad'", "'squash'"]),
        ("balagan.lr_generator=fast", ["balagan.lr_generator", "'fast'", "number"]),
        ("balagan.lr_generator=-1e-4", ["lr_generator", "-0.0001", "more than 0"]),
    ],
)
def test_wrong_override_says_what_is_wrong(override, fragments):
    with pytest.raises(InputError) as caught:
        load_recipe("digits-cpu", [override])
    for fragment in fragments:
        assert fragment in str(caught.value)


# Changed keys


def test_changed_keys_of_equal_mappings_is_empty():
    assert changed_keys(DEFAULT.to_mapping(), DEFAULT.to_mapping()) == []


def test_changed_keys_are_dotted_sorted_and_show_both_values():
    old = {"b": {"x": 1, "y": {"z": "a"}}, "a": 1.5, "gone": 3}
    new = {"b": {"x": 2, "y": {"z": "b"}}, "a": 1.5, "come": [1]}
    assert changed_keys(old, new) == ["b.x: 1 -> 2", "b.y.z: 'a' -> 'b'", "come: None -> [1]", "gone: 3 -> None"]


@given(n_references=st.integers(2, 50), batch=st.integers(33, 99))
def test_changed_keys_finds_exactly_what_was_changed(n_references, batch):
    new = dataclasses.replace(DEFAULT, generation=GenerationOptions(n_references=n_references, batch=batch))
    assert changed_keys(DEFAULT.to_mapping(), new.to_mapping()) == [
        f"generation.batch: 32 -> {batch}",
        f"generation.n_references: 1 -> {n_references}",
    ]

"""What is BalaGAN's own; the contract of all methods has its tests in `contract/`."""

from dataclasses import replace

import pytest
import torch
from toys import tiny_recipe, weights_of

from rebalance.config import OptimizerOptions
from rebalance.errors import InputError
from rebalance.learning.batches import PairBatch
from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.learning.trainable import StepContext
from rebalance.methods.balagan.options import DiscriminatorOptions, GeneratorOptions
from rebalance.methods.base import Conditions, Method, make_method
from rebalance.runtime.draws import Draws

pytestmark = pytest.mark.usefixtures("one_thread")

N_CLASSES = 4
CPU = torch.device("cpu")


def pairs(seed: int = 0, n: int = 3, channels: int = 3, size: int = 8) -> PairBatch:
    rng = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        return torch.rand(n, channels, size, size, generator=rng) * 2 - 1

    def labels() -> torch.Tensor:
        return torch.randint(0, N_CLASSES, (n,), generator=rng)

    return PairBatch(images(), labels(), images(), labels())


def context(step: int = 0, regularize: float = 1.0) -> StepContext:
    return StepContext(step, Draws(step), regularize)


def trainer_of(method: Method, **options: object) -> Trainer:
    return Trainer(method, LoopOptions(steps=10, **options), CPU)


def terms_of(method: Method, phase: str, batch: PairBatch, outputs: object = None) -> dict[str, float]:
    outputs = method.forward(batch, context()) if outputs is None else outputs
    return {name: float(term.detach()) for name, term in method.loss(phase, batch, outputs, context()).terms.items()}


def balagan(**options: object) -> Method:
    recipe = tiny_recipe()
    sections = {"generator": recipe.options.generator, "discriminator": recipe.options.discriminator}
    for key in sections:
        sections[key] = replace(sections[key], **options.pop(key, {}))
    weights = replace(recipe.options.weights, **options.pop("weights", {}))
    own = replace(recipe.options, **sections, weights=weights, **options)
    training = replace(recipe.training, batch=4)
    return make_method(replace(recipe, options=own, training=training), N_CLASSES, seed=0)


def changes_of_a_step(method: Method) -> set[str]:
    before = weights_of(method.networks)
    trainer_of(method).step(pairs(n=4), 0)
    after = weights_of(method.networks)
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def test_without_class_head_balagan_trains_as_ablation_b():
    method = balagan(discriminator={"classifier_head": False})
    assert not method.has_class_head
    assert not any("class_head" in key for key in method.networks["discriminator"].state_dict())
    assert "classification" not in terms_of(method, "discriminator", pairs())
    assert changes_of_a_step(method) == {"generator", "discriminator"}
    with pytest.raises(ValueError, match="class head"):
        method.class_logits(pairs().source)


def test_the_generators_loss_has_no_class_term():
    assert set(terms_of(balagan(), "generator", pairs())) == {"adversarial", "reconstruction", "feature_matching"}


def test_weights_multiply_their_terms():
    """The total is equation 6: each term times its weight."""
    chosen = {
        "adversarial": 2.0, "reconstruction": 3.0, "feature_matching": 5.0, "classification": 7.0, "r1": 11.0
    }  # fmt: skip
    method, batch = balagan(weights=chosen), pairs()
    outputs = method.forward(batch, context())
    for phase, names in (
        ("discriminator", ("adversarial", "classification", "r1")),
        ("generator", ("adversarial", "reconstruction", "feature_matching")),
    ):
        loss = method.loss(phase, batch, outputs, context())
        expected = sum(chosen[name] * float(loss.terms[name].detach()) for name in names)
        assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_lazy_r1_is_weighted_by_its_interval_and_left_out_at_zero():
    method, batch = balagan(weights={"r1": 2.0}), pairs()
    outputs = method.forward(batch, context())
    plain = method.loss("discriminator", batch, outputs, context(regularize=0.0))
    once = method.loss("discriminator", batch, outputs, context(regularize=1.0))
    eightfold = method.loss("discriminator", batch, outputs, context(regularize=8.0))
    assert "r1" not in plain.terms
    r1 = float(once.terms["r1"].detach())
    assert r1 > 0
    assert float((once.total - plain.total).detach()) == pytest.approx(2 * r1, rel=1e-3)
    assert float((eightfold.total - plain.total).detach()) == pytest.approx(16 * r1, rel=1e-3)


def test_r1_weight_zero_switches_it_off():
    assert "r1" not in terms_of(balagan(weights={"r1": 0.0}), "discriminator", pairs())


def test_adversarial_reconstruction_adds_the_reconstruction_to_both_terms():
    batch, both, single = pairs(), balagan(), balagan(adversarial_reconstruction=False)
    outputs = both.forward(batch, context())
    discriminator = both.networks["discriminator"]

    def score(images: torch.Tensor, labels: torch.Tensor) -> float:
        return float(discriminator.adversarial(discriminator.features(images), labels).mean())

    def matching(images: torch.Tensor, reals: torch.Tensor) -> float:
        pooled = [discriminator.features(x).mean((2, 3)) for x in (images, reals)]
        return float((pooled[0] - pooled[1]).abs().mean())

    with torch.no_grad():
        translated = score(outputs.translation, batch.reference_label)
        reconstructed = score(outputs.reconstruction, batch.source_label)
        matched = matching(outputs.translation, batch.reference)
        matched_again = matching(outputs.reconstruction, batch.source)
    with_it, without = (terms_of(method, "generator", batch, outputs) for method in (both, single))
    assert with_it["adversarial"] == pytest.approx(-(translated + reconstructed) / 2, rel=1e-3)
    assert with_it["feature_matching"] == pytest.approx(matched + matched_again, rel=1e-3)
    assert without["adversarial"] == pytest.approx(-translated, rel=1e-3)
    assert without["feature_matching"] == pytest.approx(matched, rel=1e-3)
    assert with_it["reconstruction"] == without["reconstruction"]
    expected = float((outputs.reconstruction - batch.source).abs().mean().detach())
    assert without["reconstruction"] == pytest.approx(expected, rel=1e-5)
    assert changes_of_a_step(single) == {"generator", "discriminator"}


def test_the_real_image_of_the_discriminator_is_the_reference():
    method, batch = balagan(), pairs()
    outputs = method.forward(batch, context())
    other_source = replace(batch, source=pairs(9).source, source_label=(batch.source_label + 1) % N_CLASSES)
    other_reference = replace(batch, reference=pairs(9).reference)
    before = terms_of(method, "discriminator", batch, outputs)
    assert terms_of(method, "discriminator", other_source, outputs) == before
    after = terms_of(method, "discriminator", other_reference, outputs)
    assert all(after[name] != before[name] for name in ("adversarial", "classification", "r1"))


def test_classification_takes_real_images_only():
    method, batch = balagan(weights={"adversarial": 0.0, "r1": 0.0}), pairs()
    outputs = method.forward(batch, context())
    other = replace(outputs, translation=-outputs.translation.detach(), reconstruction=outputs.reconstruction * 0)
    head = method.networks["discriminator"].class_head
    gradients, terms = [], []
    for translations in (outputs, other):
        head.zero_grad()
        loss = method.loss("discriminator", batch, translations, context())
        loss.total.backward()
        terms.append({name: float(term.detach()) for name, term in loss.terms.items()})
        gradients.append(head.weight.grad.clone())
    assert terms[0]["classification"] == pytest.approx(terms[1]["classification"], rel=1e-6)
    assert terms[0]["score_fake"] != terms[1]["score_fake"]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert gradients[0].abs().sum() > 0
    logits = method.class_logits(batch.reference)
    expected = torch.nn.functional.cross_entropy(logits, batch.reference_label)
    assert terms[0]["classification"] == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_discriminators_phase_does_not_reach_the_generator():
    method, batch = balagan(), pairs()
    method.loss("discriminator", batch, method.forward(batch, context()), context()).total.backward()
    assert all(parameter.grad is None for parameter in method.networks["generator"].parameters())


@pytest.mark.parametrize("class_codes", [False, True])
def test_one_generator_pass_gives_translation_and_reconstruction(class_codes):
    method, batch = balagan(class_codes=class_codes), pairs()
    generator = method.networks["generator"]
    with torch.no_grad():
        outputs = method.forward(batch, context())
        translation = generator(batch.source, batch.reference, batch.reference_label)
        reconstruction = generator(batch.source, batch.source, batch.source_label)
    torch.testing.assert_close(outputs.translation, translation, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.reconstruction, reconstruction, rtol=1e-4, atol=1e-5)


def test_reference_patch_shuffle_acts_in_training_and_not_in_generation():
    shuffled, plain, batch = balagan(reference_patch_shuffle=4), balagan(), pairs()
    with torch.no_grad():
        assert not torch.equal(
            shuffled.forward(batch, context()).translation, plain.forward(batch, context()).translation
        )
        assert torch.equal(
            shuffled.codes(Conditions(batch.reference_label, batch.reference)),
            plain.codes(Conditions(batch.reference_label, batch.reference)),
        )
    assert changes_of_a_step(shuffled) == {"generator", "discriminator"}


def test_class_codes_are_learned_and_tell_classes_apart():
    method, batch = balagan(class_codes=True), pairs()
    codes = method.networks["generator"].class_codes
    before = codes.weight.detach().clone()
    assert before.shape == (N_CLASSES, 4)
    trainer_of(method, optimizer=OptimizerOptions(weight_decay=0.0)).step(batch, 0)
    changed = (codes.weight != before).any(1).nonzero().flatten().tolist()
    assert set(changed) == {*batch.source_label.tolist(), *batch.reference_label.tolist()}
    with torch.no_grad():
        other = method.codes(Conditions((batch.reference_label + 1) % N_CLASSES, batch.reference))
        assert not torch.equal(other, method.codes(Conditions(batch.reference_label, batch.reference)))
    assert balagan().networks["generator"].class_codes is None


def test_class_codes_of_classes_that_are_never_trained_are_refused():
    with pytest.raises(InputError, match="class_codes"):
        balagan(class_codes=True, target_in_training=False)


def test_diff_augment_acts_in_both_phases_and_trains():
    policy = ("brightness", "contrast", "saturation", "translation", "cutout")
    augmented, plain, batch = balagan(diff_augment=policy), balagan(), pairs()
    outputs = plain.forward(batch, context())
    for phase, names in (("discriminator", ("adversarial", "r1")), ("generator", ("adversarial", "feature_matching"))):
        with_it, without = terms_of(augmented, phase, batch, outputs), terms_of(plain, phase, batch, outputs)
        assert all(with_it[name] != without[name] for name in names)
    assert terms_of(augmented, "generator", batch, outputs)["reconstruction"] == pytest.approx(
        terms_of(plain, "generator", batch, outputs)["reconstruction"], rel=1e-6
    )
    assert changes_of_a_step(augmented) == {"generator", "discriminator"}


def test_translations_can_be_asked_to_be_of_their_class():
    method, plain, batch = balagan(weights={"classification_of_translations": 0.5}), balagan(), pairs(n=4)
    outputs = plain.forward(batch, context())
    losses = [m.loss("generator", batch, outputs, context()) for m in (method, plain)]
    logits = method.class_logits(outputs.translation)
    expected = torch.nn.functional.cross_entropy(logits, batch.reference_label)
    torch.testing.assert_close(losses[0].terms["classification"], expected)
    assert "classification" not in losses[1].terms
    assert float(losses[0].total.detach()) == pytest.approx(
        float((losses[1].total + 0.5 * expected).detach()), rel=1e-5
    )
    with pytest.raises(InputError, match="classifier_head"):
        balagan(weights={"classification_of_translations": 0.5}, discriminator={"classifier_head": False})


def test_spread_is_a_term_of_the_generator_only_with_a_weight():
    method, plain = balagan(weights={"spread": 0.5}), balagan()
    batch = replace(pairs(n=4), reference_label=torch.tensor([1, 1, 2, 2]))
    losses = [m.loss("generator", batch, m.forward(batch, context()), context()) for m in (method, plain)]
    spread = float(losses[0].terms["spread"].detach())
    assert spread > 0 and "spread" not in losses[1].terms
    with_it, without = (float(loss.total.detach()) for loss in losses)
    assert with_it == pytest.approx(without + 0.5 * spread, rel=1e-5)
    assert changes_of_a_step(method) == {"generator", "discriminator"}


def test_spread_compares_neighbours_of_one_class_with_one_thing_changed():
    method = balagan(weights={"spread": 1.0}, spread_over_references=2.0, spread_over_sources=0.0)
    batch = replace(pairs(n=4), reference_label=torch.tensor([1, 1, 0, 2]))
    generator, calls = method.networks["generator"], []
    outputs = method.forward(batch, context())
    original = generator.decoder.forward
    generator.decoder.forward = lambda content, codes: calls.append((content, codes)) or original(content, codes)
    term = method.loss("generator", batch, outputs, context()).terms["spread"]
    ((content, codes),) = calls
    assert torch.equal(content, outputs.content) and torch.equal(codes, outputs.codes[[1, 0, 3, 2]])
    crossed = original(content, codes)
    expected = [
        torch.relu(
            1
            - (outputs.translation[i] - crossed[i]).abs().mean()
            / (2.0 * (batch.reference[0] - batch.reference[1]).abs().mean())
        )
        for i in (0, 1)
    ]
    torch.testing.assert_close(term, sum(expected) / 2)


def test_spread_of_a_batch_without_neighbours_of_one_class_is_zero():
    method = balagan(weights={"spread": 1.0})
    batch = replace(pairs(n=4), reference_label=torch.tensor([0, 1, 2, 3]))
    assert terms_of(method, "generator", batch)["spread"] == 0


def test_spread_asks_for_pairs_of_a_class_and_for_an_even_batch():
    assert balagan().options.batch_multiple == 1
    assert balagan(weights={"spread": 0.1}).options.batch_multiple == 2
    with pytest.raises(InputError, match=r"training\.batch"):
        tiny_recipe(balagan={"weights": {"spread": 0.1}}, training={"batch": 3})


def test_learning_rates_drive_their_own_networks():
    method = balagan(lr_generator=0.5, lr_discriminator=0.25)
    trainer = trainer_of(method)
    assert {name: choice.lr for name, choice in method.optimizers.items()} == {"generator": 0.5, "discriminator": 0.25}
    for name, lr in (("generator", 0.5), ("discriminator", 0.25)):
        (group,) = trainer.optimizers[name].param_groups
        assert group["lr"] == lr
        assert {id(p) for p in group["params"]} == {id(p) for p in method.networks[name].parameters()}


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_both_optimisers_take_their_options(name):
    options = OptimizerOptions(name=name, beta1=0.3, beta2=0.7, weight_decay=0.01)
    (group,) = trainer_of(balagan(), optimizer=options).optimizers["generator"].param_groups
    assert group["weight_decay"] == 0.01
    assert (group["betas"] == (0.3, 0.7)) if name == "adam" else (group["alpha"] == 0.7)


@pytest.mark.parametrize(
    ("size", "generator", "discriminator"),
    [
        (10, {"content_downs": 2}, {}),
        (9, {"content_downs": 1}, {}),
        (8, {"content_downs": 1, "reference_downs": 4}, {}),
        (8, {"content_downs": 4}, {}),
        (8, {}, {"blocks": 10}),
        # One pixel of content is 0 after instance norm: no source could be seen in it.
        (8, {"content_downs": 3}, {}),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, generator, discriminator):
    recipe = tiny_recipe()
    options = replace(
        recipe.options,
        generator=replace(recipe.options.generator, **generator),
        discriminator=replace(recipe.options.discriminator, **discriminator),
    )
    with pytest.raises(InputError, match="size_px"):
        replace(recipe, data=replace(recipe.data, size_px=size), options=options)


@pytest.mark.parametrize(("size", "downs", "blocks"), [(8, 2, 8), (12, 2, 4), (16, 3, 4)])
def test_the_smallest_sizes_that_fit_train(size, downs, blocks):
    recipe = tiny_recipe(data={"size_px": size})
    options = replace(
        recipe.options,
        generator=replace(recipe.options.generator, content_downs=downs),
        discriminator=replace(recipe.options.discriminator, blocks=blocks),
    )
    method = make_method(replace(recipe, options=options), N_CLASSES, seed=0)
    losses = trainer_of(method).step(pairs(size=size), 0)
    assert all(loss.total.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        # An even kernel changes the image's size; an odd block would silently be left out of its stage of two.
        (GeneratorOptions, {"stem_kernel": 4}),
        (DiscriminatorOptions, {"stem_kernel": 4}),
        (DiscriminatorOptions, {"blocks": 5}),
    ],
)
def test_options_that_cannot_be_built_as_asked_are_refused(kind, value):
    with pytest.raises(InputError, match=next(iter(value))):
        kind(**value)

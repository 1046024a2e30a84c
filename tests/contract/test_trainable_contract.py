"""The contract of what is trained, and of methods, over every method and every stage."""

import copy
import multiprocessing
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import CASES, FORMS, N_CLASSES, ONLY_PER_CLASS, batch_of, build, recipe_of, stages_of_case
from toys import same_tensors, weights_of

from rebalance.config import OptimizerOptions, build_recipe
from rebalance.config.method import MethodOptions
from rebalance.errors import InputError
from rebalance.learning.loop import LoopOptions, Trainer
from rebalance.learning.sampling import StageTrainable
from rebalance.learning.timing import choose
from rebalance.learning.trainable import Phase, StepContext
from rebalance.methods.base import BuildContext, Conditions, Method, TargetLabels
from rebalance.methods.registry import register
from rebalance.runtime.draws import Draws
from rebalance.runtime.ranks import Ranks
from rebalance.training.forecast import _count

CPU = torch.device("cpu")
ADAM = OptimizerOptions(name="adam", beta1=0.5, beta2=0.99, weight_decay=0.0)

# Another form of a method repeats only its last stage.
STAGES = [(case, stage) for case in CASES for stage in stages_of_case(case)[-1 if case in FORMS else 0 :]]
each = pytest.mark.parametrize("case", CASES)
each_stage = pytest.mark.parametrize(("case", "stage"), STAGES)


def context(step: int = 0, regularize: float = 1.0) -> StepContext:
    return StepContext(step, Draws(step), regularize, steps=10)


def trainer_of(trainable: StageTrainable, ranks: Ranks | None = None, **options: object) -> Trainer:
    return Trainer(trainable, LoopOptions(steps=10, **options), CPU, ranks)


def all_weights(trainable: StageTrainable) -> dict[str, torch.Tensor]:
    """Weights of trained and of frozen networks."""
    return weights_of({**trainable.networks, **trainable.frozen})


def changed_networks(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key.split("/")[0] for key in before if not torch.equal(before[key], after[key])}


def trained_networks(trainable: StageTrainable) -> set[str]:
    return {network for phase in trainable.phases for network in phase.networks}


def repetitions(trainable: StageTrainable) -> list[tuple[Phase, int]]:
    return [(phase, repeat) for phase in trainable.phases for repeat in range(phase.repeats)]


def conditions_of(method: Method, rows: int = 3, channels: int = 3) -> tuple[torch.Tensor | None, Conditions]:
    """Sources and conditions of random images, in what the method's inputs ask for."""
    rng, inputs = torch.Generator().manual_seed(0), method.inputs

    def images() -> torch.Tensor:
        return torch.rand(rows, channels, 8, 8, generator=rng) * 2 - 1

    sources = images() if inputs.source else None
    references = images() if inputs.references else None
    latents = torch.randn(rows, inputs.latent_size, generator=rng) if inputs.latent_size else None
    return sources, Conditions(torch.arange(rows) % N_CLASSES, references, latents)


@torch.no_grad()
def images_of(method: Method, channels: int = 3) -> torch.Tensor:
    sources, conditions = conditions_of(method, channels=channels)
    return method.make(sources, method.codes(conditions))


@each_stage
def test_builds_with_names_that_fit_together(case, stage):
    trainable = build(case, stage)
    networks, frozen = set(trainable.networks), set(trainable.frozen)
    assert networks and not networks & frozen
    assert set(trainable.averaged) <= networks and set(trainable.saved_frozen) <= frozen
    assert trained_networks(trainable) <= networks
    assert set(trainable.optimizers) == trained_networks(trainable)
    assert all(choice.lr > 0 for choice in trainable.optimizers.values())
    assert len({phase.name for phase in trainable.phases}) == len(trainable.phases)
    assert all(phase.networks and phase.repeats >= 1 for phase in trainable.phases)


@each
def test_the_last_stage_makes_images_of_what_the_options_say(case):
    method, options = build(case), recipe_of(case).options
    assert isinstance(method, Method)
    assert method.inputs == options.inputs
    # What generation uses must be in the checkpoint.
    assert set(method.generating) <= {*method.networks, *method.saved_frozen}


@each_stage
def test_same_seed_same_weights(case, stage):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = all_weights(build(case, stage, 3))
    assert torch.equal(torch.get_rng_state(), state), "building draws from the global generator"
    torch.manual_seed(2)
    assert same_tensors(first, all_weights(build(case, stage, 3)))
    assert not same_tensors(first, all_weights(build(case, stage, 4)))


@each_stage
@pytest.mark.parametrize("regularize", [0.0, 1.0])
def test_losses_are_finite_and_named(case, stage, regularize):
    trainable = build(case, stage)
    batch = batch_of(case, trainable)
    outputs = trainable.forward(batch, context(regularize=regularize))
    for phase in trainable.phases:
        loss = trainable.loss(phase.name, batch, outputs, context(regularize=regularize))
        assert loss.total.ndim == 0 and loss.total.isfinite() and loss.total.requires_grad
        assert loss.terms
        assert all(term.ndim == 0 and term.isfinite() for term in loss.terms.values())
        if loss.translations is not None:
            assert loss.translations.requires_grad and loss.translations.shape == batch.source.shape


@each_stage
@pytest.mark.parametrize("channels", [1, 3])
def test_each_phase_changes_exactly_its_networks(case, stage, channels):
    data = {"channels": channels}
    trainable = build(case, stage, data=data)
    trainer = trainer_of(trainable, regularize_every_steps=1)
    plain, changed = trainer._take_phase, []

    def watched(phase, *arguments):
        before = all_weights(trainable)
        loss = plain(phase, *arguments)
        changed.append((phase.name, changed_networks(before, all_weights(trainable))))
        return loss

    trainer._take_phase = watched
    start = all_weights(trainable)
    trainer.step(batch_of(case, trainable, data=data), 0)
    assert changed == [(phase.name, set(phase.networks)) for phase, _ in repetitions(trainable)]
    assert changed_networks(start, all_weights(trainable)) == trained_networks(trainable)


@each_stage
def test_networks_that_do_not_learn_get_no_gradient(case, stage):
    """Neither those of other phases nor frozen ones, which also stay as they were, in evaluation mode."""
    trainable = build(case, stage)
    trainer = trainer_of(trainable)
    before = weights_of(trainable.frozen)
    trainer.step(batch_of(case, trainable), 0)
    assert same_tensors(before, weights_of(trainable.frozen))
    for network in trainable.networks.values():
        network.zero_grad(set_to_none=True)
    batch = batch_of(case, trainable, 1)
    outputs = trainable.forward(batch, context(1))
    every = {**trainable.networks, **trainable.frozen}
    for phase in trainable.phases:
        with trainer._learning(phase.networks):
            trainable.loss(phase.name, batch, outputs, context(1)).total.backward()
        for name, network in every.items():
            reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
            assert reached == (name in phase.networks), (phase.name, name)
            network.zero_grad(set_to_none=True)
    for network in trainable.frozen.values():
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(network.training for network in trainable.networks.values())
    assert all(p.requires_grad for network in trainable.networks.values() for p in network.parameters())


@each_stage
def test_one_optimiser_a_network_counts_phases_and_repetitions(case, stage):
    trainable = build(case, stage)
    trainer = trainer_of(trainable, optimizer=ADAM)
    for step in range(2):
        trainer.step(batch_of(case, trainable, step), step)
    assert set(trainer.optimizers) == trained_networks(trainable)
    for name, optimizer in trainer.optimizers.items():
        taken = {int(values["step"]) for values in optimizer.state.values()}
        wanted = 2 * sum(phase.repeats for phase in trainable.phases if name in phase.networks)
        assert max(taken) == wanted
        # A parameter without a gradient in some phase, such as a bias before a normalisation, may have fewer.
        assert min(taken) >= 1


@each_stage
def test_rates_fall_from_those_of_each_network(case, stage):
    trainable = build(case, stage)
    trainer = trainer_of(trainable, lr_decay=1.0)
    for step in (0, 5):
        trainer.step(batch_of(case, trainable, step), step)
        for name, optimizer in trainer.optimizers.items():
            (group,) = optimizer.param_groups
            assert group["lr"] == pytest.approx(trainable.optimizers[name].lr * (10 - step) / 10)
            assert {id(p) for p in group["params"]} == {id(p) for p in trainable.networks[name].parameters()}


def trained(case: str, stage: str, steps: int = 3, **options: object) -> dict[str, torch.Tensor]:
    trainable = build(case, stage)
    trainer = trainer_of(trainable, **options)
    for step in range(steps):
        trainer.step(batch_of(case, trainable, step), step)
    return all_weights(trainable)


@each_stage
def test_steps_are_reproducible(case, stage):
    assert same_tensors(trained(case, stage), trained(case, stage))


@each_stage
def test_learns_in_bf16_and_channels_last(case, stage):
    trainable = build(case, stage)
    trainer = trainer_of(trainable, precision="bf16", memory_format="channels_last")
    before = all_weights(trainable)
    losses = trainer.step(batch_of(case, trainable), 0)
    after = all_weights(trainable)
    assert all(loss.total.isfinite() for loss in losses.values())
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in after.values())
    assert changed_networks(before, after) == trained_networks(trainable)


@each_stage
def test_can_be_copied_after_a_step(case, stage):
    trainable = build(case, stage)
    trainer_of(trainable).step(batch_of(case, trainable), 0)
    twin = copy.deepcopy(trainable)
    assert same_tensors(all_weights(twin), all_weights(trainable))
    before = all_weights(trainable)
    trainer_of(twin).step(batch_of(case, twin, 1), 1)
    assert same_tensors(all_weights(trainable), before), "the copy shares weights"


@each_stage
def test_averages_follow_the_trained_weights(case, stage):
    trainable = build(case, stage)
    trainer = trainer_of(trainable, ema=0.9)
    for step in range(2):
        trainer.step(batch_of(case, trainable, step), step)
    for name, network in trainer.averaged_networks().items():
        moved = name in trained_networks(trainable)
        assert same_tensors(weights_of({"": network}), weights_of({"": trainable.networks[name]})) != moved
        assert not any(parameter.requires_grad for parameter in network.parameters())


@each_stage
def test_timing_leaves_the_weights_as_they_are(case, stage):
    trainable = build(case, stage)
    before = all_weights(trainable)
    options = LoopOptions(steps=10, precision="auto", memory_format="contiguous", threads=1)
    choice, comparisons = choose(trainable, options, CPU, batch_of(case, trainable))
    assert choice.precision in ("fp32", "bf16") and len(comparisons) == 1
    assert same_tensors(all_weights(trainable), before)


@each_stage
def test_the_forecast_counts_every_repetition_and_images(case, stage):
    trainable, recipe = build(case, stage), recipe_of(case)
    counted = _count(trainable, recipe, recipe.training, N_CLASSES)
    assert counted.step > 0
    assert (counted.image > 0) == isinstance(trainable, Method)


@each
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_of_generation(case, channels):
    method = build(case, data={"channels": channels})
    sources, conditions = conditions_of(method, channels=channels)
    with torch.no_grad():
        codes = method.codes(conditions)
        images = method.make(sources, codes)
    assert codes.ndim == 2 and len(codes) == 3
    assert images.shape == (3, channels, 8, 8) and images.abs().max() <= 1
    if method.has_class_head:
        with torch.no_grad():
            assert method.class_logits(images).shape == (3, N_CLASSES)
    else:
        with pytest.raises(ValueError, match="class head"):
            method.class_logits(images)


@each
def test_generation_treats_images_one_by_one(case):
    method = build(case)
    sources, conditions = conditions_of(method)

    def row(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[1:2]

    alone = Conditions(conditions.labels[1:2], row(conditions.references), row(conditions.latents))
    with torch.no_grad():
        together = method.make(sources, method.codes(conditions))
        image = method.make(row(sources), method.codes(alone))
    torch.testing.assert_close(together[1:2], image, rtol=1e-4, atol=1e-5)


@each
def test_with_networks_swaps_and_leaves_the_original(case):
    method, other = build(case, seed=0), build(case, seed=1)
    networks = dict(method.networks)
    trained_names = [name for name in method.generating if name in networks]
    swapped = method.with_networks({name: other.networks[name] for name in trained_names})
    assert not torch.equal(images_of(swapped), images_of(method))
    if set(trained_names) == set(method.generating):
        assert torch.equal(images_of(swapped), images_of(other))
    assert method.networks == networks
    assert all(method.with_networks({}).networks[name] is networks[name] for name in networks)


@each
def test_label_law_is_a_distribution_over_the_targets_labels(case):
    law = build(case).label_law(TargetLabels({1: 30, 2: 10}, {0: 50, 3: 70}))
    assert len(law.labels) == len(law.probabilities) and set(law.labels.tolist()) <= set(range(N_CLASSES))
    assert law.probabilities.sum() == pytest.approx(1) and (law.probabilities >= 0).all()


@each
def test_one_model_for_all_or_one_a_target_as_the_method_allows(case):
    models = {"training": {"models": "joint"}}
    if case in ONLY_PER_CLASS:
        with pytest.raises(InputError, match=r"training\.models"):
            recipe_of(case, **models)
    else:
        assert isinstance(build(case, **models), Method)
    assert isinstance(build(case, training={"models": "per-class"}), Method)


@each_stage
def test_a_network_of_no_phase_stays_as_it_is(case, stage):
    trainable = build(case, stage)
    idle = trainable.phases[0].networks
    kept = tuple(phase for phase in trainable.phases if not set(phase.networks) & set(idle))
    if not kept:
        pytest.skip("has one phase")
    rest = {name: choice for name, choice in trainable.optimizers.items() if name not in idle}
    narrowed = type("Narrowed", (type(trainable),), {"phases": kept, "optimizers": rest})
    trainable.__class__ = narrowed
    before = all_weights(trainable)
    trainer = trainer_of(trainable)
    trainer.step(batch_of(case, trainable), 0)
    after = all_weights(trainable)
    assert changed_networks(before, after) == {name for phase in kept for name in phase.networks}


def _train_share(rank: int, folder: str, stages: list[tuple[str, str]]) -> None:
    """Train every stage as one of two processes; the first stores the weights."""
    import conftest  # noqa: F401, registers the toys in this process

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for case, stage in stages:
        trainable, ranks = build(case, stage), Ranks(rank, 2)
        trainer = trainer_of(trainable, ranks, optimizer=ADAM, regularize_every_steps=2)
        for step in range(2):
            trainer.step(batch_of(case, trainable, step, ranks), step)
        if rank == 0:
            torch.save(all_weights(trainable), f"{folder}/{case}-{stage}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def by_two_processes():
    """Weights of every stage, trained by two processes."""
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        started = [processes.Process(target=_train_share, args=(rank, folder, STAGES)) for rank in range(2)]
        for process in started:
            process.start()
        for process in started:
            process.join(120)
        assert [process.exitcode for process in started] == [0, 0]
        yield {s: torch.load(Path(folder) / f"{s[0]}-{s[1]}.pt", weights_only=True) for s in STAGES}


@each_stage
def test_two_processes_train_as_one_with_the_whole_batch(case, stage, by_two_processes):
    alone = trained(case, stage, 2, optimizer=ADAM, regularize_every_steps=2)
    together = by_two_processes[case, stage]
    mine, other = (torch.cat([tensors[name].flatten() for name in alone]) for tensors in (alone, together))
    assert float((mine - other).norm() / mine.norm()) < 1e-4


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="Did you mean 'balagan'"):
        build_recipe({"method": "balagam"})
    with pytest.raises(InputError, match="names no method"):
        build_recipe({})


@pytest.mark.parametrize(("case", "multiple"), [("toy_noise", 4), ("toy_translator", 2), ("toy_wrapper", 2)])
def test_a_batch_that_cannot_be_cut_is_refused_with_the_recipe(case, multiple):
    with pytest.raises(InputError, match=rf"training\.batch with {case}; got 7; allowed: multiples of {multiple}"):
        recipe_of(case, training={"batch": 7})


def test_two_stages_of_one_name_are_refused():
    inner = {"method": "toy_wrapper", "inner": {"method": "toy_label"}}
    with pytest.raises(InputError, match="classifier, classifier, main"):
        recipe_of("toy_wrapper", toy_wrapper={"inner": inner})


def test_a_target_without_labels_is_the_methods_own_question():
    with pytest.raises(ValueError, match="left out of training"):
        build("toy_label").label_law(TargetLabels({}, {0: 3}))


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered twice"):
        register("balagan")(type("Other", (MethodOptions,), {}))


# What single toys stand for.


def test_the_mapping_network_has_a_hundredth_of_the_rate():
    optimizers = build("toy_translator").optimizers
    assert optimizers["mapping"].lr == pytest.approx(optimizers["generator"].lr / 100)


def test_repetitions_of_the_critic_see_rows_and_draws_of_their_own():
    trainable = build("toy_noise")
    batch = batch_of("toy_noise", trainable)
    seen = []
    plain = trainable.networks["critic"].forward
    trainable.networks["critic"].forward = lambda images, labels: seen.append(images) or plain(images, labels)
    trainer_of(trainable).step(batch, 0)
    # A critic's repetition asks for real, made and mixed images; the generator's phase for made ones.
    reals = [seen[3 * repeat] for repeat in range(3)]
    assert torch.equal(torch.cat(reals), batch.images[:6])
    fakes = [seen[3 * repeat + 1] for repeat in range(3)]
    assert not any(torch.equal(fakes[0], other) for other in fakes[1:])


@pytest.mark.parametrize("inner", ["toy_translator", "balagan", "toy_label"])
def test_a_wrapper_without_weight_trains_as_the_method_alone(inner):
    alone = recipe_of(inner)
    section = {"method": inner, **alone.to_mapping()[inner]}

    def weights(weight: float | None) -> dict[str, torch.Tensor]:
        recipe = alone if weight is None else recipe_of("toy_wrapper", toy_wrapper={"inner": section, "weight": weight})
        stage = recipe.options.stages(recipe)[-1].name
        trainable = recipe.options.build(BuildContext(recipe, stage, tuple(range(N_CLASSES)), 0))
        trainer = trainer_of(trainable)
        for step in range(3):
            trainer.step(batch_of(inner, trainable, step), step)
        return weights_of(trainable.networks)

    assert same_tensors(weights(0.0), weights(None))
    assert not same_tensors(weights(1.0), weights(None))


def test_a_wrapped_methods_options_are_checked_named_and_kept():
    with pytest.raises(InputError, match="Did you mean 'toy_translator'"):
        recipe_of("toy_wrapper", toy_wrapper={"inner": {"method": "toy_translater"}})
    with pytest.raises(InputError, match=r"toy_wrapper\.inner\.widht"):
        recipe_of("toy_wrapper", toy_wrapper={"inner": {"method": "toy_translator", "widht": 3}})
    with pytest.raises(InputError, match=r"training\.models"):
        recipe_of("toy_wrapper", toy_wrapper={"inner": {"method": "toy_directed"}})
    recipe = recipe_of("toy_wrapper", toy_wrapper={"inner": {"method": "toy_translator", "width": 3}})
    assert recipe.to_mapping()["toy_wrapper"]["inner"]["method"] == "toy_translator"
    assert recipe.to_mapping()["toy_wrapper"]["inner"]["width"] == 3

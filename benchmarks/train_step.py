"""A ladder from the released design's training step to this package's: what each switch is worth.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --json
    python benchmarks/train_step.py --profile

Default: 64 px, 32 base filters, 41 classes, batch 8, on random images. `reference` is the released design, written out
plainly here: seven passes of the discriminator, the generator run anew in each phase, nothing frozen, R1 every step,
fp32. Every switch is tried on it alone, then all of them together; `package` is this package's step, in the
channels-last layout. torch.compile is tried in a process of its own first, and what it says where it fails is the
result. All are timed in one run, in turns, so that a machine whose speed drifts treats them alike.
Seconds are means over steps, R1 among them as often as it comes; FLOPs are counted by torch; peaks are those of a large
matrix product, measured first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

import machine
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rebalance.config import Recipe, load_recipe
from rebalance.learning.batches import PairBatch
from rebalance.learning.loop import Trainer
from rebalance.methods.balagan.method import Balagan
from rebalance.methods.base import make_method
from rebalance.networks import losses
from rebalance.runtime.devices import choose_device
from rebalance.training.stages import loop_options

RESULTS = Path(__file__).parent / "results" / "train_step.jsonl"
R1_EVERY = 8
PACKAGE = "package"


@dataclass(frozen=True)
class Switches:
    """What a step does otherwise than the released design.

    Attributes:
        frozen: no gradients of the discriminator's weights in the generator's phase, none for its real features.
        merged: real and fake images pass the discriminator together, and its real pass serves all terms.
        shared: the generator runs once a step, translation and reconstruction in one batch over one content code.
        lazy_r1: R1 every 8 steps, eight times as strong.
        channels_last: that layout in memory.
        bf16: autocast to bfloat16.
        foreach: optimiser steps over all weights at once.
        adam: Adam instead of RMSprop, to compare `fused` with.
        fused: Adam, its step in one kernel; RMSprop has none.
        compiled: torch.compile of generator and discriminator; R1, which it cannot differentiate twice, stays as it is.
    """

    frozen: bool = False
    merged: bool = False
    shared: bool = False
    lazy_r1: bool = False
    channels_last: bool = False
    bf16: bool = False
    foreach: bool = False
    adam: bool = False
    fused: bool = False
    compiled: bool = False

    @property
    def arguments(self) -> dict[str, bool]:
        """How the optimiser takes its step."""
        return {"fused": True} if self.fused else {"foreach": self.foreach}


class PlainStep:
    """The released design's step with switches; losses and weights are those of the recipe."""

    def __init__(self, method: Balagan, switches: Switches, device: torch.device) -> None:
        self.method, self.switches, self.device = method, switches, device
        self.layout = torch.channels_last if switches.channels_last else torch.contiguous_format
        for network in method.networks.values():
            network.to(device, memory_format=self.layout).train()
        self.generator, self.discriminator = (method.networks[name] for name in ("generator", "discriminator"))
        compiled = torch.compile if switches.compiled else lambda work: work
        self.encode_source, self.decode = compiled(self.generator.source_encoder), compiled(self.generator.decoder)
        self.encode_reference = compiled(self.generator.reference_encoder)
        self.features = compiled(self.discriminator.features)
        kind = torch.optim.Adam if switches.adam or switches.fused else torch.optim.RMSprop
        self.optimizers = {
            name: kind(network.parameters(), lr=1e-4, **switches.arguments) for name, network in method.networks.items()
        }

    def __call__(self, batch: PairBatch, number: int) -> None:
        """Take training step `number`, which decides whether R1 is due."""
        batch = batch.to(self.device, self.layout)
        with self._autocast():
            made = self._generate(batch) if self.switches.shared else None
        with self._autocast():
            loss = self._discriminator_loss(batch, made, number)
        self._learn("discriminator", loss)
        frozen = self.discriminator if self.switches.frozen else nn.Module()
        frozen.requires_grad_(False)
        with self._autocast():
            loss = self._generator_loss(batch, made or self._generate(batch))
        self._learn("generator", loss)
        frozen.requires_grad_(True)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.switches.bf16)

    def _learn(self, name: str, loss: torch.Tensor) -> None:
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def _generate(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return translation and reconstruction."""
        if self.switches.shared:
            content = self.encode_source(batch.source).repeat(2, 1, 1, 1)
            codes = self.encode_reference(torch.cat([batch.reference, batch.source]))
            translation, reconstruction = self.decode(content, codes).chunk(2)
            return translation, reconstruction
        return self._translate(batch.source, batch.reference), self._translate(batch.source, batch.source)

    def _translate(self, source: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode_source(source), self.encode_reference(reference))

    def _discriminator_loss(
        self, batch: PairBatch, made: tuple[torch.Tensor, torch.Tensor] | None, number: int
    ) -> torch.Tensor:
        discriminator, labels = self.discriminator, batch.reference_label
        with torch.no_grad():
            fake = made[0].detach() if made else self._translate(batch.source, batch.reference)
        interval = R1_EVERY if self.switches.lazy_r1 else 1
        with_r1 = (number + 1) % interval == 0
        real = batch.reference.detach().requires_grad_(with_r1)
        if self.switches.merged and not with_r1:
            real_features, fake_features = self.features(torch.cat([real, fake])).chunk(2)
        else:
            of_real = discriminator.features if with_r1 else self.features
            real_features, fake_features = of_real(real), self.features(fake)
        classified = real_features if self.switches.merged else self.features(batch.reference)
        scores = discriminator.adversarial(real_features, labels).float()
        loss = losses.hinge_discriminator(scores, discriminator.adversarial(fake_features, labels).float())
        loss = loss + F.cross_entropy(discriminator.classify(classified).float(), labels)
        if with_r1:
            loss = loss + self.method.options.weights.r1 * interval * losses.r1_penalty(scores, real)
        return loss

    def _generator_loss(self, batch: PairBatch, made: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        discriminator, weights = self.discriminator, self.method.options.weights
        labels, reals = (batch.reference_label, batch.source_label), (batch.reference, batch.source)
        with torch.no_grad() if self.switches.frozen else contextlib.nullcontext():
            real_features = self._features(reals)
        total = weights.reconstruction * F.l1_loss(made[1].float(), batch.source)
        for features, target, label in zip(self._features(made), real_features, labels, strict=True):
            adversarial = losses.hinge_generator(discriminator.adversarial(features, label).float())
            total = total + adversarial / 2 + weights.feature_matching * losses.feature_matching(features, target)
        return total

    def _features(self, both: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if self.switches.merged:
            return self.features(torch.cat(both)).chunk(2)
        return tuple(self.features(images) for images in both)


def rungs(bf16: bool, compiled: bool = False) -> dict[str, Switches]:
    """The reference, each switch on its own, and all together but those that exclude each other.

    `together` is with RMSprop, as `package` is; `together_fused` has Adam's kernel instead; `together_compiled` is
    compiled besides.
    """
    left_out = {"bf16": bf16, "compiled": compiled}
    names = [name for name in vars(Switches()) if left_out.get(name, True)]
    alone = {name: Switches(**{name: True}) for name in names}
    together = Switches(**{name: name not in ("adam", "fused", "compiled") for name in names})
    found = {"reference": Switches(), **alone, "together": together}
    found["together_fused"] = replace(together, foreach=False, fused=True)
    if compiled:
        found["together_compiled"] = replace(together, compiled=True)
    return found


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than by way of fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _try(name: str, arguments: argparse.Namespace, queue: Any) -> None:
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    step, batch = make_step(name, arguments, choose_device(arguments.device)), _batch(arguments)
    try:
        for number in (0, R1_EVERY - 1):
            step(batch, number)
        queue.put("")
    except Exception as error:  # whatever the compiler says is the result
        queue.put(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


def why_not(name: str, arguments: argparse.Namespace) -> str:
    """Return why a rung cannot be climbed within the limit, "" when it can; tried in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_try, args=(name, arguments, queue))
    process.start()
    try:
        return queue.get(timeout=arguments.compile_seconds)
    except Empty:
        return f"not compiled within {arguments.compile_seconds} s"
    finally:
        process.kill()
        process.join()


def random_batch(size_px: int, n: int, n_classes: int, seed: int) -> PairBatch:
    rng = torch.Generator().manual_seed(seed)

    def pictures() -> torch.Tensor:
        return torch.rand(n, 3, size_px, size_px, generator=rng) * 2 - 1

    def labels() -> torch.Tensor:
        return torch.randint(n_classes, (n,), generator=rng)

    return PairBatch(pictures(), labels(), pictures(), labels())


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    overrides = [
        f"data.size_px={arguments.size_px}",
        f"training.batch={arguments.batch}",
        f"balagan.generator.base_filters={arguments.base_filters}",
        f"balagan.discriminator.base_filters={arguments.base_filters}",
        f"training.regularize_every_steps={R1_EVERY}",
    ]
    return load_recipe("paper-128", overrides, arguments.seed)


def make_step(name: str, arguments: argparse.Namespace, device: torch.device) -> Callable[[PairBatch, int], object]:
    """Return the step of a rung, with networks of its own."""
    recipe = recipe_of(arguments)
    method = make_method(recipe, arguments.classes, seed=arguments.seed)
    if name == PACKAGE:
        precision = "bf16" if arguments.bf16 else "fp32"
        options = replace(
            loop_options(recipe.training, recipe.seed), precision=precision, memory_format="channels_last"
        )
        return Trainer(method, options, device).step
    return PlainStep(method, rungs(arguments.bf16, arguments.compile_seconds > 0)[name], device)


def _now() -> float:
    """Return the time when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_in_turns(steps: dict[str, Callable[[PairBatch, int], object]], batch: PairBatch, n: int) -> dict[str, Any]:
    """Take n steps of every rung in turns, after one that warms up; return the seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, n):
        for name, step in steps.items():
            start = _now()
            step(batch, number % R1_EVERY)
            seconds_taken = _now() - start
            if number >= 0:
                seconds[name].append(seconds_taken)
    return seconds


class FlopCounter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, which cannot follow `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its FLOPs."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def flops_of(step: Callable[[PairBatch, int], object], batch: PairBatch) -> float:
    """Count the FLOPs of a step, R1 steps among them in their share."""
    counted = []
    for number in (0, R1_EVERY - 1):
        with FlopCounter() as counter:
            step(batch, number)
        counted.append(counter.total)
    return (counted[0] * (R1_EVERY - 1) + counted[1]) / R1_EVERY


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of a product of two square matrices, 2,048 wide or on CUDA 8,192, the best of ten."""
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        start = _now()
        matrix @ matrix
        best = min(best, _now() - start)
    return 2 * side**3 / best


def _peak_memory(name: str, arguments: argparse.Namespace, queue: Any) -> None:
    device = choose_device(arguments.device)
    step, batch = make_step(name, arguments, device), _batch(arguments)

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else machine.peak_mib()

    before = peak()
    for number in (0, R1_EVERY - 1):
        step(batch, number)
    queue.put(peak() - before)


def peak_mib(name: str, arguments: argparse.Namespace) -> float:
    """Peak memory of a step, on CUDA of the device's, beyond weights and imports, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak_memory, args=(name, arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def _batch(arguments: argparse.Namespace) -> PairBatch:
    return random_batch(arguments.size_px, arguments.batch, arguments.classes, arguments.seed)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Climb the ladder; return one row."""
    device, batch = choose_device(arguments.device), _batch(arguments)
    climbed = rungs(arguments.bf16, arguments.compile_seconds > 0)
    if arguments.rungs:
        climbed = {name: climbed[name] for name in dict.fromkeys(["reference", *arguments.rungs])}
    reasons = {name: why_not(name, arguments) for name, switches in climbed.items() if switches.compiled}
    failed = {name: reason for name, reason in reasons.items() if reason}
    names = [*(name for name in climbed if name not in failed), PACKAGE]
    peaks = {"fp32": matmul_peak(torch.float32, device), "bf16": matmul_peak(torch.bfloat16, device)}
    seconds = time_in_turns({name: make_step(name, arguments, device) for name in names}, batch, arguments.steps)
    reference, found = statistics.mean(seconds["reference"]), {}
    for name in names:
        mean = statistics.mean(seconds[name])
        compiled = name != PACKAGE and climbed[name].compiled
        flops = flops_of(make_step(_uncompiled(name) if compiled else name, arguments, device), batch)
        found[name] = {
            "mean_s": round(mean, 4),
            "median_s": round(statistics.median(seconds[name]), 4),
            "min_s": round(min(seconds[name]), 4),
            "max_s": round(max(seconds[name]), 4),
            "ratio_to_reference": round(reference / mean, 3),
            "gflops": round(flops / 1e9, 1),
            **{f"share_of_{precision}_peak": round(flops / mean / peak, 4) for precision, peak in peaks.items()},
            "peak_mib": None if compiled else round(peak_mib(name, arguments)),
        }
    settings = {key: value for key, value in vars(arguments).items() if key not in ("results", "json", "profile")}
    return {
        "settings": settings, "steps": arguments.steps, "threads": torch.get_num_threads(),
        "machine": machine.description(device),
        "matmul_gflops": {name: round(peak / 1e9, 1) for name, peak in peaks.items()},
        "ratio_to_reference": found[PACKAGE]["ratio_to_reference"], "rungs": found, "failed": failed,
    }  # fmt: skip


def _uncompiled(name: str) -> str:
    """Return the rung that computes the same without the compiler, whose work cannot be counted."""
    return "together" if name == "together_compiled" else "reference"


def table(row: dict[str, Any]) -> str:
    """Return a row as a Markdown table."""
    lines = [
        "| step | mean ms (min to max) | times faster | GFLOP | share of the peak: fp32 | bf16 | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in row["rungs"].items():
        mean, least, most = (1000 * r[f"{which}_s"] for which in ("mean", "min", "max"))
        shares = " | ".join(f"{r[f'share_of_{precision}_peak']:.3f}" for precision in ("fp32", "bf16"))
        lines.append(
            f"| {name} | {mean:.0f} ({least:.0f} to {most:.0f}) | {r['ratio_to_reference']:.2f} | {r['gflops']:.0f} "
            f"| {shares} | {r['peak_mib'] or ''} |"
        )
    lines += [f"| {name} | {reason} | | | | | |" for name, reason in row.get("failed", {}).items()]
    return "\n".join(lines)


def profile(arguments: argparse.Namespace) -> str:
    """Return where the package's step spends its time."""
    step, batch = make_step(PACKAGE, arguments, choose_device(arguments.device)), _batch(arguments)
    step(batch, 0)
    with torch.profiler.profile() as found:
        for number in range(R1_EVERY):
            step(batch, number)
        _now()
    where = "cuda" if choose_device(arguments.device).type == "cuda" else "cpu"
    return found.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=15, max_name_column_width=45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size-px", type=int, default=64)
    parser.add_argument("--base-filters", type=int, default=32)
    parser.add_argument("--classes", type=int, default=41)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each; multiples of 8 count R1 fairly")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: where the device has it")
    parser.add_argument(
        "--compile-seconds", type=int, default=600, help="how long a compiled step may take to compile; 0: not tried"
    )
    parser.add_argument("--rungs", nargs="+", help="switches beside the reference and the package; default: all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    parser.add_argument("--profile", action="store_true", help="print where the time goes and measure nothing else")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.bf16 is None:
        arguments.bf16 = has_bf16(choose_device(arguments.device))
    known = rungs(arguments.bf16, arguments.compile_seconds > 0)
    if unknown := set(arguments.rungs or ()) - known.keys():
        parser.error(f"--rungs: {', '.join(sorted(unknown))}; allowed: {', '.join(known)}")
    if arguments.profile:
        print(profile(arguments))
        return
    row = measure(arguments)
    row["settings"]["device"] = str(choose_device(arguments.device))
    with arguments.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2) if arguments.json else table(row))


if __name__ == "__main__":
    main()

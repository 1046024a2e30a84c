"""The commands: each calls one public function and prints its result."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click

from rebalance.cli import options as shared
from rebalance.cli.flags import TranslatingGroup, as_flags
from rebalance.config.requests import OutputOptions
from rebalance.version import __version__


def _emit(result: Any, text: str, as_json: bool) -> None:
    """Print the JSON of a result, or its text, on stdout."""
    if as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        click.echo(as_flags(text, click.get_current_context().command))


def _is_first_rank() -> bool:
    """Return True on rank 0; silence the others."""
    from rebalance.runtime.ranks import launched

    if launched().first:
        return True
    logging.getLogger("rebalance").setLevel(logging.ERROR)
    return False


@click.group(cls=TranslatingGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rebalance")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def root(context: click.Context, debug: bool) -> None:
    """Fill up the rare classes of an image data set with synthetic images."""
    context.obj = {"debug": debug}


@root.command()
@shared.combined(shared.data_argument, shared.answer_options)
def inspect(data: Path, as_json: bool, quiet: bool) -> None:
    """Show what is in DATA: counts per class and split, sizes, bad files, copies across splits."""
    from rebalance import api, reporting

    result = api.inspect(data, progress=not quiet)
    _emit(result, reporting.inspection_text(result), as_json)


@root.command()
@shared.combined(shared.data_argument, shared.plan_options, shared.run_options)
def plan(data: Path, as_json: bool, quiet: bool, **request: Any) -> None:
    """Show what fit and generate would do with DATA, and what it would cost; train nothing."""
    from rebalance import api, reporting

    result = api.plan(data, progress=not quiet, **request)
    _emit(result, reporting.plan_text(result, OutputOptions().shard_size), as_json)


@root.command()
@shared.combined(shared.data_argument, shared.plan_options, shared.run_options)
@click.option("--run", required=True, type=shared.PATH, help="Run directory, made or resumed.")
@shared.overwrite_option("the run directory")
def fit(data: Path, run: Path, as_json: bool, quiet: bool, **request: Any) -> None:
    """Train on DATA; the same command again resumes.

    Several GPUs: torchrun --nproc-per-node N -m -- rebalance fit ...
    """
    from rebalance import api, reporting

    first = _is_first_rank()
    result = api.fit(data, run, progress=first and not quiet, **request)
    if first:
        _emit(result, reporting.fit_text(result), as_json)


@root.command()
@shared.argument("run")
@shared.combined(shared.out_option, shared.amount_options)
@shared.shard_size_option("Images of a shard.")
@shared.combined(shared.encoding_options, shared.seed_option, shared.workers_option, shared.selection_options)
@click.option("--filter/--no-filter", "filter_images", default=True, help="Check every image.  [default: filter]")
@shared.limit_options
@shared.features_option("the recipe's", "Features in which images are judged. ")
@shared.weights_option
@click.option("--data", type=shared.PATH, help="Where the data set is now, if it has moved.")
@shared.overwrite_option("OUT")
@shared.run_options
def generate(
    run: Path, out: Path, balance: str | None, max_multiple: float | None, data: Path | None, workers: int, device: str,
    overwrite: bool, as_json: bool, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Make the synthetic images of RUN; the same command again makes what is missing.

    Several GPUs: torchrun --nproc-per-node N -m -- rebalance generate ...
    """
    from rebalance import api, reporting

    first = _is_first_rank()
    result = api.generate(
        run, out, balance=balance, max_multiple=max_multiple, data=data, output=shared.output_options(choices),
        filtering=shared.filter_choice(choices), workers=workers, device=device, overwrite=overwrite,
        progress=first and not quiet,
    )  # fmt: skip
    if not first:
        return  # or torchrun would end rank 0 before it has printed
    _emit(result, reporting.generation_text(result), as_json)
    sys.exit(result.exit_code)


@root.command("filter")
@shared.argument("images")
@shared.combined(shared.real_option, shared.out_option, shared.limit_options)
@click.option("--pool", type=int, help="Images of a class that it is calibrated on, at most.  [default: 512]")
@shared.shard_size_option("Images that a shard is made of.")
@shared.features_option("the run's", "Features in which images are judged. ")
@shared.combined(shared.encoder_options, shared.square_option("images"), shared.seed_option, shared.workers_option)
@shared.overwrite_option("OUT")
@shared.run_options
def filter_images(
    images: Path, real: Path, out: Path, workers: int, device: str, overwrite: bool, as_json: bool, quiet: bool,
    **choices: Any,
) -> None:  # fmt: skip
    """Write those of IMAGES that pass the filter to shards; the same command again makes what is missing.

    IMAGES were made by any generator: an image folder, manifest or shards with the classes of the real data set, or a
    complete output of generate or filter.
    """
    from rebalance import api, reporting

    result = api.filter(
        images, real, out, output=shared.output_options(choices), filtering=shared.filter_choice(choices),
        workers=workers, device=device, overwrite=overwrite, progress=not quiet,
    )  # fmt: skip
    _emit(result, reporting.filter_text(result), as_json)
    sys.exit(result.exit_code)


@root.command()
@shared.combined(shared.argument("path"), shared.answer_options)
def verify(path: Path, as_json: bool, quiet: bool) -> None:
    """Check every file of PATH, a run or an output of generate or filter, against the hash written with it."""
    from rebalance import api, reporting

    result = api.verify(path, progress=not quiet)
    _emit(result, reporting.verification_text(result), as_json)
    sys.exit(result.exit_code)


@root.command()
@shared.combined(shared.argument("synthetic"), shared.real_option)
@click.option("--split", type=click.Choice(["test", "val", "train"]), help="Split of REAL.  [default: test, else val]")
@shared.features_option("the run's")
@shared.combined(shared.encoder_options, shared.square_option("real images"))
@click.option("--dimensions", type=int, default=64, show_default=True, help="Principal components of FD, at most.")
@click.option("--max-images", type=int, default=5000, show_default=True, help="Images of a class and side, at most.")
@shared.combined(shared.seed_option, shared.run_options)
def evaluate(
    synthetic: Path, real: Path, split: str | None, square: str | None, dimensions: int, max_images: int, seed: int,
    device: str, as_json: bool, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Compare SYNTHETIC, an output of generate or filter or any images, with held-out real images."""
    from rebalance import api, reporting

    result = api.evaluate(
        synthetic, real, split=split, features=shared.feature_choice(choices), square=square, dimensions=dimensions,
        max_images=max_images, seed=seed, device=device, progress=not quiet,
    )  # fmt: skip
    _emit(result, reporting.evaluation_text(result), as_json)


@root.command()
@shared.combined(shared.data_argument, shared.argument("synthetic"))
@click.option("--run", type=shared.PATH, help="The run that made SYNTHETIC: for unfiltered and control arms.")
@click.option("--results", type=shared.PATH, help="Folder of the study.  [default: SYNTHETIC-downstream]")
@shared.arm_options
@shared.recipe_options(
    click.option("--recipe", help="Recipe whose section `downstream` is meant.  [default: the run's, else gpu-128]"),
    "Such as downstream.steps=2000; repeatable.",
)
@shared.square_option("real images")
@shared.overwrite_option("the study's folder")
@shared.run_options
def downstream(
    data: Path, synthetic: Path, run: Path | None, results: Path | None, recipe: str | None, overrides: tuple[str, ...],
    device: str, overwrite: bool, as_json: bool, quiet: bool, **choices: Any,
) -> None:  # fmt: skip
    """Train a classifier on DATA with and without SYNTHETIC, and see whether it helps, and how many images.

    The same command again goes on. Choices are made on val; the figures are those of test.
    """
    from rebalance import api, reporting

    result = api.downstream(
        data, synthetic, results=results, run=run, recipe=recipe, overrides=overrides,
        study=shared.study_options(choices), device=device, overwrite=overwrite, progress=not quiet,
    )  # fmt: skip
    _emit(result, reporting.downstream_text(result), as_json)


@root.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or print one as a starting point for your own."""
    from rebalance import config

    if name:
        click.echo(config.recipe_text(name), nl=False)
        return
    for shipped in config.recipe_names():
        summary = config.recipe_text(shipped).splitlines()[0].lstrip("# ")
        click.echo(f"{shipped:12}  {summary}")


@root.command("demo")
@click.option("--out", type=shared.PATH, default=Path("demo"), show_default=True, help="Folder.")
@click.option("--quick", is_flag=True, help="A minute's training, to see every step; the images are not good then.")
def demonstrate(out: Path, quick: bool) -> None:
    """Do the whole job on scikit-learn's digits, with three classes made rare."""
    from rebalance.cli import demo

    sys.exit(demo.run_demo(out, quick, _run_here))


def _run_here(arguments: list[str]) -> int:
    """Run a command of this command line in this process and return its exit code."""
    try:
        root.main(arguments, prog_name="rebalance", standalone_mode=False)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0

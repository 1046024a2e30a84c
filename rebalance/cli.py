"""The command line: click options and calls, nothing else."""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rebalance.errors import RebalanceError
from rebalance.version import __version__

_SHARD_SIZE = 1000


def _emit(result: Any, text: str, as_json: bool) -> None:
    click.echo(json.dumps(result.to_json(), ensure_ascii=False) if as_json else text)


def _first_of_several() -> bool:
    """Whether this process speaks: alone, or as the first of those that `torchrun` started; hush the others."""
    from rebalance.ranks import launched

    if launched().first:
        return True
    logging.getLogger("rebalance").setLevel(logging.ERROR)
    return False


def _options(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return functools.reduce(lambda inner, outer: outer(inner), reversed(options), function)

    return decorate


_data = click.argument("data", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON summary on stdout.")
_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
_BALANCE_HELP = (
    "What to raise, and to what: auto, minority, 'not minority', 'not majority', all; a number in (0, 1]; or final "
    "counts as inline JSON or in a .json/.yaml file."
)
_request = _options(
    click.option("--balance", default="auto", show_default=True, help=_BALANCE_HELP),
    click.option("--max-multiple", type=float, help="At most this many times the real images of a class."),
    click.option("--recipe", default="gpu-128", show_default=True, help="Name of a recipe or a YAML file."),
    click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key; repeatable."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Replace the recipe's seed."),
)


_FEATURES_HELP = "efficientnet, inception, encoder (the run's own), or module:attribute of your own."
_filter_options = _options(
    click.option("--keep", type=float, help="Share kept by influence on FD.  [default: calibrated]"),
    click.option("--min-confidence", type=float, help="Least class probability.  [default: calibrated]"),
    click.option("--max-similarity", type=float, help="Largest cosine to a train image.  [default: calibrated]"),
    click.option("--max-fid", help="Limit on each class's Fréchet distance, such as 12.5, or 3x its floor."),
    click.option("--max-kid", help="Limit on each class's KID, such as 0.5, or 3x its floor."),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rebalance")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Fill up the rare classes of an image data set with translated images of its rich ones."""
    context.obj = {"debug": debug}


@cli.command()
@_options(_data, _json, _quiet)
def inspect(data: Path, as_json: bool, quiet: bool) -> None:
    """Show what is in DATA: counts per class and split, sizes, bad files, copies across splits."""
    from rebalance import api, reporting

    result = api.inspect(data, progress=not quiet)
    _emit(result, reporting.inspection_text(result), as_json)


@cli.command()
@_options(_data, _request, _device, _json, _quiet)
def plan(
    data: Path, balance: str, max_multiple: float | None, recipe: str, overrides: tuple[str, ...], seed: int | None,
    device: str, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Show what fit and generate would do with DATA, and what it would cost; train nothing."""
    from rebalance import api, reporting

    result = api.plan(
        data, recipe, balance=balance, max_multiple=max_multiple, overrides=overrides, seed=seed, device=device,
        progress=not quiet,
    )  # fmt: skip
    _emit(result, reporting.plan_text(result, _SHARD_SIZE), as_json)


@cli.command()
@_options(_data, _request, _device, _json, _quiet)
@click.option("--run", required=True, type=click.Path(path_type=Path), help="Run directory, made or resumed.")
@click.option("--overwrite", is_flag=True, help="Delete what the run directory holds and start again.")
def fit(
    data: Path, run: Path, balance: str, max_multiple: float | None, recipe: str, overrides: tuple[str, ...],
    seed: int | None, device: str, overwrite: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train on DATA; the same command again resumes.

    Several GPUs: torchrun --nproc-per-node N -m -- rebalance fit ...
    """
    from rebalance import reporting, training

    speaks = _first_of_several()
    result = training.fit(
        data, run, recipe, balance=balance, max_multiple=max_multiple, overrides=overrides, seed=seed, device=device,
        overwrite=overwrite, progress=speaks and not quiet,
    )  # fmt: skip
    if speaks:
        _emit(result, reporting.fit_text(result), as_json)


def _shard_range(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, colon, last = value.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise click.BadParameter(f"{value!r} is not A:B with two whole numbers")
    return int(first), int(last)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the shards.")
@click.option("--balance", help=f"Other amounts than the run's plan. {_BALANCE_HELP} tuned: as downstream chose.")
@click.option("--max-multiple", type=float, help="At most this many times the real images of a class.")
@click.option("--shard-size", type=int, default=_SHARD_SIZE, show_default=True, help="Images of a shard.")
@click.option(
    "--format", "file_format", type=click.Choice(["jpg", "png", "webp"]), default="jpg", show_default=True,
    help="Image format.",
)  # fmt: skip
@click.option("--quality", type=int, default=95, show_default=True, help="Of jpg and webp, 1 to 100.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all draws.")
@click.option("--workers", type=int, default=0, help="Processes; 0: one a CPU, or one on a GPU.  [default: 0]")
@click.option("--shards", metavar="A:B", callback=_shard_range, help="Only shards A to B - 1.")
@click.option("--include-real", is_flag=True, help="Add the real train images of all classes.")
@click.option("--filter/--no-filter", "filter_images", default=True, help="Check every image.  [default: filter]")
@_filter_options
@click.option("--features", help=f"Features in which images are judged. {_FEATURES_HELP}  [default: the recipe's]")
@click.option("--weights", type=click.Path(path_type=Path), help="Inception weights.")
@click.option("--data", type=click.Path(path_type=Path), help="Where the data set is now, if it has moved.")
@click.option("--overwrite", is_flag=True, help="Delete what OUT holds and start again.")
@_options(_device, _json, _quiet)
def generate(run: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Make the synthetic images of RUN; the same command again makes what is missing.

    Several GPUs: torchrun --nproc-per-node N -m -- rebalance generate ...
    """
    from rebalance import reporting, shards

    speaks = _first_of_several()
    result = shards.generate(run, progress=speaks and not quiet, **options)
    if not speaks:
        return  # or torchrun would end the first before it has spoken
    _emit(result, reporting.generation_text(result), as_json)
    sys.exit(result.exit_code)


@cli.command("filter")
@click.argument("images", type=click.Path(path_type=Path))
@click.option("--real", required=True, type=click.Path(path_type=Path), help="The real data set.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the shards.")
@_filter_options
@click.option("--pool", type=int, help="Images of a class that it is calibrated on, at most.  [default: 512]")
@click.option("--shard-size", type=int, default=_SHARD_SIZE, show_default=True, help="Images that a shard is made of.")
@click.option("--features", help=f"Features in which images are judged. {_FEATURES_HELP}  [default: the run's]")
@click.option("--run", type=click.Path(path_type=Path), help="Run whose encoder is meant by --features encoder.")
@click.option("--input-px", type=int, help="Side of the images that efficientnet sees.  [default: the run's, else 224]")
@click.option("--weights", type=click.Path(path_type=Path), help="Inception weights.")
@click.option("--square", type=click.Choice(["crop", "pad", "squash"]), help="How images become square.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all draws.")
@click.option("--overwrite", is_flag=True, help="Delete what OUT holds and start again.")
@_options(_device, _json, _quiet)
def filter_images(images: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write those of IMAGES that pass the filter to shards; the same command again makes what is missing.

    IMAGES were made by any generator: an image folder, manifest or shards with the classes of the real data set, or a
    complete output of generate or filter.
    """
    from rebalance import reporting, shards

    result = shards.filter(images, progress=not quiet, **options)
    _emit(result, reporting.filter_text(result), as_json)
    sys.exit(result.exit_code)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@_options(_json, _quiet)
def verify(path: Path, as_json: bool, quiet: bool) -> None:
    """Check every file of PATH, a run or an output of generate or filter, against the hash written with it."""
    from rebalance import api, reporting

    result = api.verify(path, progress=not quiet)
    _emit(result, reporting.verification_text(result), as_json)
    sys.exit(result.exit_code)


@cli.command()
@click.argument("synthetic", type=click.Path(path_type=Path))
@click.option("--real", required=True, type=click.Path(path_type=Path), help="The real data set.")
@click.option("--split", type=click.Choice(["test", "val", "train"]), help="Split of REAL.  [default: test, else val]")
@click.option("--features", "extractor", help=f"{_FEATURES_HELP}  [default: the run's]")
@click.option("--run", type=click.Path(path_type=Path), help="Run whose encoder is meant by --features encoder.")
@click.option("--input-px", type=int, help="Side of the images that efficientnet sees.  [default: the run's, else 224]")
@click.option("--weights", type=click.Path(path_type=Path), help="Inception weights.")
@click.option("--square", type=click.Choice(["crop", "pad", "squash"]), help="How real images become square.")
@click.option("--dimensions", type=int, default=64, show_default=True, help="Principal components of FD, at most.")
@click.option("--max-images", type=int, default=5000, show_default=True, help="Images of a class and side, at most.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all draws.")
@_options(_device, _json, _quiet)
def evaluate(synthetic: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare SYNTHETIC, an output of generate or filter or any images, with held-out real images."""
    from rebalance import evaluation, reporting

    result = evaluation.evaluate(synthetic, progress=not quiet, **options)
    _emit(result, reporting.evaluation_text(result), as_json)


def _listed(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


@cli.command()
@_options(_data)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--run", type=click.Path(path_type=Path), help="The run that made OUT: for unfiltered and control arms.")
@click.option("--results", type=click.Path(path_type=Path), help="Folder of the study.  [default: OUT-downstream]")
@click.option("--seeds", type=int, default=3, show_default=True, help="Trainings of every arm.")
@click.option(
    "--arms", callback=_listed, metavar="ARM,...",
    help="Such as plain, oversampling+augment, best+filtered+x5+share=0.3.  [default: all remedies and their mixtures]",
)  # fmt: skip
@click.option(
    "--multiples", callback=_listed, default="1,2,5,10,full", show_default=True, metavar="M,...",
    help="Synthetic images of a class, times its real ones.",
)  # fmt: skip
@click.option("--recipe", help="Recipe whose section `downstream` is meant.  [default: the run's, else gpu-128]")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as downstream.steps=2000; repeatable."
)
@click.option("--square", type=click.Choice(["crop", "pad", "squash"]), help="How real images become square.")
@click.option("--overwrite", is_flag=True, help="Delete what the study's folder holds and start again.")
@_options(_device, _json, _quiet)
def downstream(data: Path, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Train a classifier on DATA with and without the images of OUT, and see whether they help, and how many.

    The same command again goes on. Choices are made on val; the figures are those of test.
    """
    from rebalance import reporting, trials

    result = trials.downstream(data, out, progress=not quiet, **options)
    _emit(result, reporting.downstream_text(result), as_json)


@cli.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes, or print one as a starting point for your own."""
    from rebalance import config

    if name:
        click.echo(config.recipe_text(name), nl=False)
        return
    for known in config.recipe_names():
        summary = config.recipe_text(known).splitlines()[0].lstrip("# ")
        click.echo(f"{known:12}  {summary}")


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder.")
@click.option("--quick", is_flag=True, help="A minute's training, to see every step; the images are not good then.")
def demo(out: Path, quick: bool) -> None:
    """Do the whole job on scikit-learn's digits, with three classes made rare."""
    from rebalance import demo as demonstration

    sys.exit(demonstration.run_demo(out, quick, _run_here))


def _run_here(arguments: list[str]) -> int:
    """Run a command of this command line in this process and return its exit code."""
    try:
        cli.main(arguments, prog_name="rebalance", standalone_mode=False)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _terminate(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; map errors to exit codes and print one message without a traceback."""
    debug = "--debug" in sys.argv[1:]
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("rebalance").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli.main(prog_name="rebalance", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; the same command, without --overwrite, resumes.", err=True)
        sys.exit(130)
    except RebalanceError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:  # the last stop: a message for the user, the traceback with --debug
        _fail(f"unexpected {type(error).__name__}: {error} (`rebalance --debug ...` shows where)", 1, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)

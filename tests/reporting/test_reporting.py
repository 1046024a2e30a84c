"""Results as text and pictures, also of methods that take no source or no reference."""

from pathlib import Path

import pytest
from toys import tiny_recipe, write_classes

from rebalance import reporting, shards
from rebalance.config.method import Inputs
from rebalance.reporting.tables import bar, bulleted, duration, size, table
from rebalance.training import FitResult, RunDirectory, fit

pytestmark = pytest.mark.usefixtures("one_thread")


def test_columns_of_numbers_are_flush_right():
    assert table(["name", "n"], [["a", 5], ["long name", 100]]).splitlines() == [
        "name         n",
        "a            5",
        "long name  100",
    ]


def test_lists_bars_and_units_are_short():
    assert bulleted("bad", []) == []
    assert bulleted("bad", [str(n) for n in range(12)])[-1] == "  ... and 2 more (all with --json)"
    assert bar(1, 10_000) and not bar(0, 10) and bar(10, 10) == "█" * 30
    assert [duration(seconds) for seconds in (5, 130, 9000, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]
    assert [size(n) for n in (1500, 2.5e6, 3e9)] == ["1.5 kB", "2.5 MB", "3.0 GB"]


def test_a_model_that_translates_no_sources_shows_a_dash():
    scalars = {"joint": {"source_dependence/poor": 1.23456, "variance_share/poor": 0.5}, "mined": {"loss": 1.0}}
    text = reporting.fit_text(FitResult(Path("run"), None, {"joint": 5, "mined": 7}, scalars, 1.0, False))
    rows = [line.split() for line in text.splitlines()]
    assert rows[1] == ["joint", "5", "poor", "1.235"] and rows[2] == ["mined", "7", "-", "-"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("reporting")
    data = write_classes(place / "data", {"a": 20, "poor": 6})
    fit(data, place / "run", tiny_recipe(training={"steps": 1}), balance={"poor": 12}, device="cpu")
    shards.generate(place / "run", place / "out", device="cpu")
    return place / "run"


@pytest.mark.parametrize(
    ("inputs", "n_rows"),
    [(Inputs(), 4), (Inputs(references=False), 3), (Inputs(source=False), 3), (Inputs(False, False, 8), 2)],
)
def test_a_contact_sheet_has_a_row_for_each_part_of_the_method(run, monkeypatch, inputs, n_rows):
    directory = RunDirectory(run)
    full = reporting.contact_sheet(directory, run.parent / "out", columns=3)
    monkeypatch.setattr(type(directory.recipe().options), "inputs", property(lambda self: inputs))
    sheet = reporting.contact_sheet(directory, run.parent / "out", columns=3)
    assert (sheet.height - 3) * 4 == (full.height - 3) * n_rows, "rows of one height, 3 pixels apart"

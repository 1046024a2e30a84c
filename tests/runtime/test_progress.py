"""The bar of work that rejects some of its images."""

from rebalance.runtime.progress import counting


def test_finished_and_rejected_images_are_shown_in_the_order_of_the_reasons(capsys):
    with counting("make", 6, ("first", "second", "third"), show=True) as count:
        count(2, {"second": 1})
        count(4, {"first": 2, "second": 3})
    shown = capsys.readouterr().err
    assert "make" in shown and "6/6" in shown
    assert "first=2, second=4" in shown and "third" not in shown


def test_nothing_is_shown_unless_it_is_asked_for(capsys):
    with counting("make", 2, (), show=False) as count:
        count(2, {})
    assert capsys.readouterr() == ("", "")

"""Arms of a study: what a classifier is trained on, and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rebalance.config.options import nearest
from rebalance.errors import InputError
from rebalance.trials.remedies import REMEDIES
from rebalance.trials.remedies.oversampling import Oversampling

BEST = "best"
"""Stands for the remedy that val chooses."""

FILTERED, UNFILTERED, CONTROL = SYNTHETIC = ("filtered", "unfiltered", "control")
"""Kinds of synthetic images: those of the output; unfiltered ones of the same run; the output's with translations of
rich classes beside them, so that being synthetic says nothing of the class."""

_AUGMENT, _LATE, _SHARE, _TIMES = "augment", "late", "share=", "x"
FULL = math.inf
SAFE_SHARE = 0.3
"""The share of synthetic images that is taken where val cannot tell: it did no harm on the long tails of
`benchmarks/long_tail.py`."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        remedy: name of a remedy, or `BEST` until val has chosen one.
        augment: apply the standard augmentation.
        synthetic: one of `SYNTHETIC`, "" for none.
        multiple: synthetic images of a class, times its real ones, at most; `FULL`: all there are.
        share: share of the class's draws that are synthetic; None: in proportion to their number.
        late: draw real images only in the last steps.
    """

    remedy: str
    augment: bool = False
    synthetic: str = ""
    multiple: float | None = None
    share: float | None = None
    late: bool = False

    @property
    def name(self) -> str:
        """The arm as `arms` takes it."""
        parts = [self.remedy, *([_AUGMENT] if self.augment else []), *([self.synthetic] if self.synthetic else [])]
        if self.multiple is not None:
            parts.append(_TIMES + multiple_text(self.multiple))
        if self.share is not None:
            parts.append(_SHARE + _plain_number(self.share))
        return "+".join([*parts, *([_LATE] if self.late else [])])

    @property
    def cheap(self) -> bool:
        """True without synthetic images: nothing has to be generated for it."""
        return not self.synthetic

    def resolved(self, best: Arm) -> Arm:
        """Return the arm with the remedy and augmentation of `best` in the place of `BEST`."""
        return replace(self, remedy=best.remedy, augment=best.augment) if self.remedy == BEST else self


CHEAP = tuple(Arm(remedy.name, augment).name for remedy in REMEDIES.values() for augment in remedy.usual)
"""The usual arms without synthetic images, which cost only their training: "cheap" in all that follows."""

DEFAULT = (
    *CHEAP,
    "plain+augment+unfiltered+xfull",
    "plain+augment+filtered+xfull",
    "best+unfiltered",
    "best+filtered",
    f"best+filtered+share={SAFE_SHARE}",
    "best+filtered+xfull+late",
    "best+control+xfull",
)
"""The arms of a study that names none."""

SAFE = Arm(Oversampling.name, augment=True)
"""The arm without synthetic images that is taken where val cannot tell, and `SAFE_SHARE` on top of it."""


def multiple_text(multiple: float) -> str:
    """Return a multiple as `multiples` takes it."""
    return "full" if multiple == FULL else _plain_number(multiple)


def _plain_number(value: float) -> str:
    """Return a number with all its digits and no exponent, whose plus would end the part."""
    return np.format_float_positional(value, trim="-")


def parse_multiple(text: str, parameter: str = "`multiples`") -> float:
    """Read `5` or `full`.

    Raises:
        InputError: neither, or not above 0.
    """
    if text == "full":
        return FULL
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(parameter, value=text, allowed="numbers above 0, or full")
    return value


def parse_arms(texts: Sequence[str], multiples: Sequence[float]) -> tuple[Arm, ...]:
    """Read arms such as `oversampling+augment+filtered+x5+share=0.3`; one with synthetic images but no `x` is taken
    at each of the multiples.

    Raises:
        InputError: an unknown part, or parts that do not go together.
    """
    arms: dict[Arm, None] = {}
    for text in texts:
        arm = _parse(text)
        expand = arm.synthetic and arm.multiple is None
        arms.update(dict.fromkeys(replace(arm, multiple=m) for m in multiples) if expand else {arm: None})
    if not arms:
        raise InputError("`arms` names none")
    return tuple(arms)


def _parse(text: str) -> Arm:
    remedy, *parts = text.strip().split("+")
    names = (*REMEDIES, BEST)
    if remedy not in names:
        raise InputError(f"`arms`: unknown remedy {remedy!r}", remedy=nearest(remedy, names))
    arm = Arm(remedy)
    for part in parts:
        if part in SYNTHETIC and not arm.synthetic:
            arm = replace(arm, synthetic=part)
        elif part == _AUGMENT:
            arm = replace(arm, augment=True)
        elif part == _LATE:
            arm = replace(arm, late=True)
        elif part.startswith(_SHARE):
            arm = replace(arm, share=_parse_share(part.removeprefix(_SHARE), text))
        elif part.startswith(_TIMES):
            arm = replace(arm, multiple=parse_multiple(part.removeprefix(_TIMES), f"`arms`: {text}"))
        else:
            parts_allowed = (_AUGMENT, *SYNTHETIC, _LATE, "xfull", "share=0.3")
            raise InputError(
                f"`arms`: unknown or repeated part {part!r} of {text!r}", remedy=nearest(part, parts_allowed)
            )
    if arm.remedy == BEST and (arm.augment or not arm.synthetic):
        raise InputError(f"`arms`: {text}", allowed="best with synthetic images; it brings its own augmentation")
    if not arm.synthetic and (arm.multiple is not None or arm.share is not None or arm.late):
        raise InputError(f"`arms`: {text}", allowed=f"x, share and late beside one of {', '.join(SYNTHETIC)}")
    return arm


def _parse_share(text: str, arm: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise InputError(f"`arms`: share of {arm!r}", value=text, allowed="a number between 0 and 1")
    return share

"""Options of a method: they check themselves and answer for the method before it is built."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from rebalance.config.options import Options, build
from rebalance.errors import InputError

if TYPE_CHECKING:
    from rebalance.config.recipe import Recipe
    from rebalance.config.sections import TrainingOptions
    from rebalance.learning.sampling import StageTrainable
    from rebalance.methods.base import BuildContext

M = TypeVar("M", bound="MethodOptions")


@dataclass(frozen=True)
class Inputs:
    """Inputs that a candidate is made of.

    Attributes:
        source: whether a source image is translated.
        references: whether it takes the codes of reference images; else it has a translator class of its own.
        latent_size: length of its standard normal latent; 0: it has none.
        modality: whose modality the record of an image names: its source's, its first reference's, or that of its
            translator class.
    """

    source: bool = True
    references: bool = True
    latent_size: int = 0
    modality: Literal["source", "reference", "label"] = "source"


@dataclass(frozen=True)
class StagePlan:
    """One of the trainings of which a method's `fit` consists.

    Attributes:
        name: of its folder of checkpoints; the last stage of a model has the model's name instead.
        training: its options; the last stage's are the recipe's.
        shared: trained once for all models, else once for each.
        classes: of a shared stage: "rich": the source classes; "all": the targets too.
    """

    name: str
    training: TrainingOptions
    shared: bool = False
    classes: Literal["rich", "all"] = "rich"


@dataclass(frozen=True)
class MethodOptions(Options):
    """Base of the options of every method; each stands beside its networks and registers itself."""

    method_name: ClassVar[str] = ""
    """Name under which the class is registered."""

    @classmethod
    def from_section(cls: type[M], values: Mapping[str, Any], where: str) -> M:
        """Build the options of the method that a section names with its key `method`.

        Raises:
            InputError: it names none, or an unknown one.
        """
        from rebalance.methods.registry import method_options  # methods stand above this package

        if not isinstance(values, Mapping):
            raise InputError(f"recipe section {where} must be a mapping", value=values)
        kind = method_options(values.get("method"))
        if not issubclass(kind, cls):
            raise InputError(f"recipe key {where}.method is of another kind", value=values["method"])
        return build(kind, {key: value for key, value in values.items() if key != "method"}, where)

    @property
    def section_head(self) -> dict[str, Any]:
        """Return the method's name."""
        return {"method": self.method_name}

    def check(self, recipe: Recipe) -> None:
        """Check the rules that join these options with other sections of the recipe.

        Raises:
            InputError: sizes or options that do not fit each other.
        """

    @property
    def inputs(self) -> Inputs:
        """Return the inputs that a candidate is made of."""
        return Inputs()

    @property
    def needs_rich_class(self) -> bool:
        """Return whether a target needs a class with many more images than its own."""
        return self.inputs.source

    @property
    def trains_on_targets(self) -> bool:
        """Return whether images of targets take part in training."""
        return True

    @property
    def batch_parts(self) -> int:
        """Return the number of equal parts that a batch consists of, such as one for each repetition of a phase."""
        return 1

    @property
    def batch_multiple(self) -> int:
        """Return how many rows of a part must stay together in one process."""
        return 1

    def stages(self, recipe: Recipe) -> tuple[StagePlan, ...]:
        """Return the stages of `fit`, in order; one by default."""
        return (StagePlan("main", recipe.training),)

    @abstractmethod
    def build(self, context: BuildContext) -> StageTrainable:
        """Build what a stage trains; the last stage's is a `Method`.

        Networks are imported here, because torch takes seconds to import.
        """

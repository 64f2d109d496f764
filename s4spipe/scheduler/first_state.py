"""The first state of a solver that scales its noises: y_0 = c_0 x_T, with what is added to it.

Pipelines hand their noises to the network as they are. Something must scale them first: the scheduler, where a pipeline
asks it to (`scale_model_input`), or `apply`. A pipeline then shows the step either the noises or what was made of them,
and this is told by comparing: a pipeline that does neither is refused, and never sampled wrongly.
"""

from torch import Tensor

from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau


class FirstState:
    """What was made of which noises, from their scaling until the first step.

    Attributes:
        needed: whether the solver's first state is anything else than its noises.
        prepared: whether `apply` has scaled the noises, so that `scale_model_input` must not.
    """

    def __init__(self, tableau: Tableau):
        self.name = tableau.name
        plain = tableau.beta is None or not tableau.beta[0].any()
        self.needed = not (plain and bool((tableau.c_0 == 1).all()))
        self.forget()

    def forget(self) -> None:
        self.prepared = False
        self._noises: Tensor | None = None
        self._made: Tensor | None = None

    def is_made(self, x: Tensor) -> bool:
        """Whether x is a first state that was made already, in whatever precision, or its first rows."""
        return _same(x, self._made)

    def keep(self, noises: Tensor, made: Tensor) -> Tensor:
        """Remember noises and the first state made of them, which is returned."""
        self._noises, self._made = noises.clone(), made.clone()  # a pipeline may write into them
        return made

    def noises(self, sample: Tensor) -> Tensor:
        """The noises x_T behind what a pipeline gives the first step.

        Raises UserError if it is neither noises that were scaled nor what was made of them.
        """
        noises, asked, prepared = self._noises, _same(sample, self._noises), self.prepared
        made = self.is_made(sample)
        self.forget()
        if made and noises is not None:
            return noises[: len(sample)].to(sample.device)
        if asked and not prepared:
            return sample
        if noises is None:
            raise UserError(f"solver {self.name} scales the noise before the first evaluation (c_0), for which this "
                            "pipeline did not ask its scheduler: put the solver into it with s4spipe.apply(pipe, "
                            "solver)")  # fmt: skip
        raise UserError(f"solver {self.name} scales the noise before the first evaluation (c_0), but this pipeline "
                        "changes its latents before the first step: use a solver with c_0 = 1")  # fmt: skip


def _same(x: Tensor, other: Tensor | None) -> bool:
    """Whether x [B, ...] is the first rows of the other, up to their precision."""
    if other is None or x.shape[1:] != other.shape[1:] or len(x) > len(other):
        return False
    return bool((x == other[: len(x)].to(x.device, x.dtype)).all())

"""Any family with weights by frequency."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from s4spipe.learning.families.base import FAMILIES, Family, Times, make
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.tableau import Tableau
from s4spipe.sampling.tableau.basis import Basis


class Banded(Family):
    """A family whose coefficients are learned for each band of frequencies by itself; its times are those of all bands.

    The network sees whole states, so all that is a time is common: steps, network times, and intermediate points.

    Args:
        members: a member of the family for each band, all from the same start and with the same `times`.
        basis: the bands, whose weights have one dimension.
    """

    def __init__(self, members: Sequence[Family], basis: Basis):
        nn.Module.__init__(self)
        first = members[0]
        if first.noisy:
            raise UserError("a family that adds fresh noise has no weights by frequency")
        self.init, self.noise, self.nfe, self.afs, self.basis = first.init, first.noise, first.nfe, first.afs, basis
        self.register_buffer("t", first.t)
        self.times = first.times  # before the members, as `kind` tells times by their names
        for member in members[1:]:
            for name in ("times", *first.common):
                setattr(member, name, getattr(first, name))
        self.members: Any = nn.ModuleList(members)

    @classmethod
    def of(cls, name: str, start: Tableau, times: Times | None, basis: Basis, **options: Any) -> Family:
        """A family by its name, with weights in a basis; the arguments are those of `families.make`.

        With the basis of plain numbers, this is the family itself. Raises UserError as `families.make`.
        """
        if not basis.shape:
            return make(name, start, times, **options)
        if name in FAMILIES and FAMILIES[name].cls.by_band:
            return make(name, start.over(basis), times, **options)
        return cls([make(name, start, times, **options) for _ in range(*basis.shape)], basis)

    @classmethod
    def around(cls, student: Family, basis: Basis) -> Family:
        """A family whose numbers are each band's own from here on. It starts exactly at the plain numbers of `student`,
        which it may share parameters with; with the basis of plain numbers, it is `student` itself."""
        if not basis.shape:
            return student
        if student.by_band:
            return type(student).from_start(student().over(basis), None, late=student.late)
        return cls([student, *(copy.deepcopy(student) for _ in range(1, *basis.shape))], basis)

    @property
    def parameter_count(self) -> int:
        first, *others = self.members
        common = sum(p.numel() for name in first.common for p in getattr(first, name).parameters())
        return first.parameter_count + sum(other.parameter_count - common for other in others)

    def metadata(self) -> dict[str, Any]:
        return {"bands": [member.metadata() for member in self.members]}

    @torch.no_grad()
    def clip(self) -> None:
        for member in self.members:
            member.clip()

    def forward(self, name: str = "", meta: dict | None = None) -> Tableau:
        tables = [member(name or member.init) for member in self.members]
        by_band = {key: torch.stack([getattr(table, key) for table in tables], -1) for key in ("c", "W", "c_0")}
        return replace(tables[0], meta=meta or {}, basis=self.basis, **by_band)

"""The tableau: one representation for every explicit solver, classical or learned."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s4spipe.models import noise
from s4spipe.models.noise import NoiseSchedule
from s4spipe.runtime.checks import check_plain
from s4spipe.runtime.errors import UserError, shown
from s4spipe.runtime.files import read_json, write_text
from s4spipe.sampling.tableau import arrays, form
from s4spipe.sampling.tableau.basis import PLAIN, Arrays, Basis, from_description


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit solver with N network evaluations D(x, t) -> x0 prediction, as a table of numbers.

        y_0 = c_0 x_T
        d_j = D(y_j, t_c[j])                            j = 0 .. N-1
        y_i = c[i-1] x_T + sum_{j<i} W[i-1, j] d_j      i = 1 .. N;   the sample is y_N

    Every single-step, multistep and predictor-corrector solver has this form, because each of its states is linear in
    x_T and in the evaluations so far (the idea of Butcher's tableau). A weight is a number, or [*K] numbers by the
    `basis`: one for each band of frequencies, say. Tensors are float64 and may carry gradients.

    To every state, a solver may add beta[i] m, where m is a constant of the model's (its mean sample, say), and
    sum_k V[i, k] z_k, where z_k are fresh standard normal noises (so that it solves an SDE). With t_z, they are the
    increments of one Brownian motion W in the clock e^(2 lambda), divided by their standard deviations: z_k is that
    between the times t_z[k] and t_z[k+1]. Such noises are as independent as any, but tableaux with other steps can be
    given the same path.

    Attributes:
        t: [S+1] times of the S steps, strictly falling, within the range of the noise schedule. A multistep solver has
            S = N; a single-step solver has fewer steps than evaluations.
        t_c: [N] times shown to the network, within the range of the noise schedule.
        c: [N, *K] weights of x_T.
        W: [N, N, *K] weights of the evaluations, lower triangular.
        noise: the noise schedule that the times refer to.
        name: the solver's name, of 1 to 100 printable characters.
        meta: provenance; any JSON-ready data.
        c_0: [*K] weight of x_T in the first state; 1 unless a first step was made without the network (AFS).
        basis: what a weight multiplies; K is its shape.
        beta: [N+1, *K] weights of the constant in y_0 .. y_N; None for none.
        m: the constant, which broadcasts over a sample: [C, H, W], or [C, 1, 1]; None if beta is None.
        V: [N+1, Z, *K] weights of the Z fresh noises in y_0 .. y_N; None for none.
        t_z: [Z+1] times, strictly falling, between which the noises are increments of one path; None if they are not.

    Raises:
        UserError: if an attribute breaks one of these rules.
    """

    t: Tensor
    t_c: Tensor
    c: Tensor
    W: Tensor
    noise: NoiseSchedule
    name: str
    meta: dict = field(default_factory=dict)
    c_0: Tensor = field(default_factory=lambda: torch.ones((), dtype=torch.float64, device="cpu"))
    basis: Basis = PLAIN
    beta: Tensor | None = None
    m: Tensor | None = None
    V: Tensor | None = None
    t_z: Tensor | None = None

    def __post_init__(self):
        if not isinstance(self.basis, Basis):
            raise UserError(f"tableau entry basis must be a basis, got {shown(self.basis)}")
        if (self.beta is None) != (self.m is None):
            raise UserError("tableau entries beta and m go together: the constant m and its weights beta")
        if self.t_z is not None and self.V is None:
            raise UserError("tableau entry t_z needs V: the times of noises, and the noises' weights")
        for key in ("t", "t_c", "c", "W", "c_0", *self.extras):
            if not torch.is_tensor(getattr(self, key)):
                raise UserError(f"tableau entry {key} must be a tensor of float64, got {shown(getattr(self, key))}")
        if not isinstance(self.noise, NoiseSchedule):
            raise UserError(f"tableau entry noise must be a noise schedule, got {shown(self.noise)}")
        if not isinstance(self.name, str) or not 0 < len(self.name) <= 100 or not self.name.isprintable():
            raise UserError(f"tableau entry name must be 1 to 100 printable characters, got {shown(self.name)}")
        if not isinstance(self.meta, dict):
            raise UserError(f"tableau entry meta must be a mapping, got {shown(self.meta)}")
        k = self.basis.shape
        if self.c.ndim != 1 + len(k):
            raise UserError(f"tableau entry c must be a list of numbers, got {shown(self.c.tolist())}")
        n = self.nfe
        if n < 1:
            raise UserError("a tableau needs at least one evaluation, got an empty c")
        if self.t.ndim != 1 or len(self.t) < 2:
            raise UserError(f"tableau entry t must be at least two times, got {shown(self.t.tolist())}")
        shapes = {"t": (len(self.t),), "t_c": (n,), "c_0": k, "c": (n, *k), "W": (n, n, *k)}
        if self.m is not None:
            shapes |= {"beta": (n + 1, *k), "m": tuple(self.m.shape) or (1,)}
        if self.V is not None:
            shapes["V"] = (n + 1, max(self.draws, 1), *k)
        if self.t_z is not None:
            shapes["t_z"] = (self.draws + 1,)
        for key, shape in shapes.items():
            form.check(key, getattr(self, key), shape, n)
        if self.W.detach()[torch.ones(n, n, device=self.W.device).triu(1).bool()].any():
            raise UserError("tableau entry W must be lower triangular: a state may use only evaluations made before it")
        low, high = self.noise.t_min, self.noise.T
        slack = 1e-9 * (high - low)
        for key in ("t", "t_c") if self.t_z is None else ("t", "t_c", "t_z"):
            value = getattr(self, key).detach()
            if key != "t_c" and not (value.diff() < 0).all():
                raise UserError(f"tableau entry {key} must fall strictly, got {shown(value.tolist())}")
            if value.min() < low - slack or value.max() > high + slack:
                raise UserError(
                    f"tableau entry {key} must stay within the noise schedule's times [{low:g}, {high:g}], "
                    f"got {shown(value.tolist())}"
                )

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        return len(self.c)

    @property
    def extras(self) -> list[str]:
        """Which of beta, m, V and t_z it has."""
        return [key for key in form.EXTRAS if getattr(self, key) is not None]

    @property
    def draws(self) -> int:
        """Z, the fresh noises per sample; 0 for a solver of the ODE."""
        return 0 if self.V is None else self.V.shape[1] if self.V.ndim > 1 else 0

    @property
    def stages(self) -> list[range]:
        """The evaluations in order, in groups that do not depend on one another and can be made in one call.

        Evaluation i depends on evaluation j if W[i-1, j] is not exactly 0.
        """
        needs, stages = (self.W.detach() != 0).view(self.nfe, self.nfe, -1).any(2), [range(1)]
        for i in range(1, self.nfe):
            start = stages[-1].start
            if needs[i - 1, start:i].any():
                stages.append(range(i, i + 1))
            else:
                stages[-1] = range(start, i + 1)
        return stages

    @property
    def depth(self) -> int:
        """Network calls in sequence; less than `nfe` if evaluations can be made in parallel."""
        return len(self.stages)

    def detached(self) -> "Tableau":
        """The same tableau without gradients."""
        return replace(
            self, **{key: getattr(self, key).detach() for key in ("t", "t_c", "c", "W", "c_0", *self.extras)}
        )

    def over(self, basis: Basis) -> "Tableau":
        """The same solver with weights in a basis: each of the numbers that a plain weight becomes is equal to it. With
        the basis of plain numbers, it is the tableau itself.

        Raises UserError if the weights are no plain numbers.
        """
        if self.basis.shape:
            raise UserError(f"only plain weights can be laid over a basis, got those of {shown(self.basis.describe())}")
        if not (k := basis.shape):
            return self
        weights = ("c_0", "c", "W", *(key for key in self.extras if key in ("beta", "V")))
        wide = {key: getattr(self, key)[(...,) + (None,) * len(k)] for key in weights}
        return replace(self, basis=basis, **{key: w.expand(*w.shape[: w.ndim - len(k)], *k) for key, w in wide.items()})

    def state(
        self, i: int, x_T: Tensor, d: Sequence[Tensor], m: Tensor | None = None, z: Sequence[Tensor] = ()
    ) -> Tensor:
        """y_i = c[i-1] x_T + sum_{j<i} W[i-1, j] d_j, and y_0 = c_0 x_T, with what is added to them, on the device and
        in the dtype of x_T.

        All of them are in the basis in which the weights multiply them (`basis.to`, `basis.back`), which for plain
        numbers is that of the samples.

        Args:
            i: the state's index, 0 to N.
            x_T: the initial noises [B, ...].
            d: the predictions so far, each [B, ...]. Trailing predictions that y_i does not need may be missing.
            m: `constant(x_T)`.
            z: the fresh noises, each [B, ...]. Trailing ones that y_i does not need may be missing.

        Returns:
            The state [B, ...].
        """

        def times(weight: Tensor, x: Tensor) -> Tensor:
            return self.basis.spread(weight, x_T) * x

        if i == 0:
            y = times(self.c_0.to(x_T), x_T)
        else:
            W = self.W[i - 1].to(x_T)
            y = times(self.c[i - 1].to(x_T), x_T) + sum(times(W[j], d[j]) for j in range(min(i, len(d))))
        if self.beta is not None and m is not None:
            y = y + times(self.beta[i].to(x_T), m)
        if self.V is not None:
            V = self.V[i].to(x_T)
            y = y + sum(times(V[k], z[k]) for k in range(self.needs(i)))
        return y

    def needs(self, i: int) -> int:
        """How many of the fresh noises must have been drawn for y_i."""
        if self.V is None:
            return 0
        used = (self.V[i].detach() != 0).view(self.draws, -1).any(1).nonzero()
        return int(used.max()) + 1 if len(used) else 0

    def constant(self, x_T: Tensor) -> Tensor | None:
        """The constant m in the basis, [1, ...], for samples like x_T [B, ...], if the solver has one.

        Raises UserError if it does not go with them.
        """
        if self.m is None:
            return None
        try:
            return self.basis.to(self.m.to(x_T).expand(x_T.shape[1:])[None])
        except RuntimeError:
            raise UserError(f"solver {self.name} adds a constant of shape {list(self.m.shape)}, which does not go with "
                            f"samples of shape {list(x_T.shape[1:])} (see `mean: channels`)") from None  # fmt: skip

    def agrees(self, other: object, tolerance: float = 1e-12) -> bool:
        """Whether the other tableau is the same solver, up to rounding."""
        if not isinstance(other, Tableau):
            return False
        ours, theirs = self.to_dict(), other.to_dict()
        keys = ("t", "t_c", "c_0", "c", "W", *self.extras)
        if set(ours) != set(theirs) or any(ours[key] != theirs[key] for key in ours if key not in keys):
            return False
        pairs = ((getattr(self, key), getattr(other, key)) for key in keys)
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)

    def to_dict(self) -> dict:
        """The tableau as JSON-ready data; `from_dict` is the inverse."""
        c_0, c, W = self.c_0.tolist(), self.c.tolist(), [row[: i + 1] for i, row in enumerate(self.W.tolist())]
        frame = self._frame()
        meta = frame.pop("meta")
        extras = {key: getattr(self, key).tolist() for key in self.extras if key not in frame}
        return {**frame, "c_0": c_0, "c": c, "W": W, **extras, "meta": meta}

    def _frame(self) -> dict:
        """The tableau as JSON-ready data, without its weights."""
        plain = not self.basis.shape and not self.extras
        return {
            "schema": form.PLAIN_SCHEMA if plain else form.SCHEMA,
            "name": self.name,
            "nfe": self.nfe,
            "steps": len(self.t) - 1,
            "noise": noise.describe(self.noise),
            **({} if plain else {"basis": self.basis.describe()}),
            "t": self.t.tolist(),
            "t_c": self.t_c.tolist(),
            **({} if self.t_z is None else {"t_z": self.t_z.tolist()}),
            "meta": self.meta,
        }

    def save(self, path: str | Path) -> None:
        """Write the tableau as JSON, one line per row of numbers. Equal tableaux give equal bytes.

        Weights that are arrays, and a constant m of many numbers, go into a safetensors file beside it.

        Raises:
            UserError: for a `meta` that JSON cannot hold.
        """
        check_plain("tableau entry meta", self.meta)
        if not isinstance(path, str | Path) or Path(path).is_dir():
            raise UserError(f"a solver is saved to a file, got {shown(path)}, which is none")
        apart = isinstance(self.basis, Arrays)
        data = self._frame() if apart else self.to_dict()
        triangle, meta = data.pop("W", None), json.dumps(data.pop("meta"), indent=2, sort_keys=True)
        beside = ["c_0", "c", "W", "beta", "V", "m"] if apart else []
        beside += ["m"] if not apart and self.m is not None and self.m.numel() > arrays.MOST_INLINE else []
        beside = [key for key in beside if getattr(self, key) is not None]
        if beside:
            data = {key: value for key, value in data.items() if key not in beside}
            data["arrays"] = arrays.write(Path(path), {key: getattr(self, key) for key in beside})
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items()]
        if triangle:
            lines.append('  "W": [\n' + ",\n".join("    " + json.dumps(row) for row in triangle) + "\n  ]")
        lines.append('  "meta": ' + meta.replace("\n", "\n  "))
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path, nfe: int | None = None) -> "Tableau":
        """Read a file that `save` wrote, or one solver of a file that `save_all` wrote.

        Args:
            path: the file.
            nfe: the evaluations of the solver to read; needed if the file has several solvers.

        Raises:
            UserError: if the file is anything else, or does not have just one solver with so many evaluations; the
                message names the file and the entry.
        """
        data, weights = read_json(path), None
        try:
            if isinstance(data, dict) and "arrays" in data:
                weights = arrays.read(Path(path), data.pop("arrays"))
            return one_of(data, weights, nfe)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any, weights: Mapping[str, Tensor] | None = None) -> "Tableau":
        """The tableau that `to_dict` described.

        Args:
            data: JSON-ready data.
            weights: what is not in the data but in a file of its own: weights that are arrays, the constant m.

        Raises:
            UserError: for any other data; the message names the entry.
        """
        if not isinstance(data, dict):
            raise UserError("a solver file must be a JSON object")
        apart = dict(weights or {})
        data = form.current(data, apart)
        basis = from_description(data["basis"])
        t, t_c = form.row("t", data["t"]), form.row("t_c", data["t_c"])
        found = apart | form.weights(data, basis.shape)
        n = len(found["c"]) if found["c"].ndim else 0
        if isinstance(data.get("W"), list) and len(data["W"]) != n:
            raise UserError(f"entry W must have {n} rows, one per evaluation, got {len(data['W'])}")
        if isinstance(data["nfe"], bool) or data["nfe"] != n:
            raise UserError(f"nfe must be {n}, the number of entries of c, got {shown(data['nfe'])}")
        if isinstance(data["steps"], bool) or data["steps"] != len(t) - 1:
            raise UserError(f"entry t must have {shown(data['steps'])} + 1 times, to go with `steps`, got {len(t)}")
        check_plain("entry meta", data["meta"])
        schedule = noise.from_description(data["noise"])
        return cls(t=t, t_c=t_c, noise=schedule, name=data["name"], meta=data["meta"], basis=basis, **found)


def one_of(data: Any, weights: Mapping[str, Tensor] | None, nfe: int | None) -> Tableau:
    """The solver in the data of a file; arguments and errors as for `Tableau.load` and `Tableau.from_dict`."""
    several = isinstance(data, list) and bool(data)
    found = [Tableau.from_dict(entry, weights) for entry in (data if several else [data])]
    if nfe is None and not several:
        return found[0]
    if len(fit := [table for table in found if table.nfe == nfe]) == 1:
        return fit[0]
    there = ", ".join(str(table.nfe) for table in found)
    raise UserError(f"has solvers with {there} evaluations: choose one of them with nfe, got {shown(nfe)}")

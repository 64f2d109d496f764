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
from s4spipe.runtime.checks import check_plain, is_number
from s4spipe.runtime.errors import UserError, shown, unknown
from s4spipe.runtime.files import read_json, write_text
from s4spipe.sampling.tableau import arrays
from s4spipe.sampling.tableau.basis import PLAIN, Arrays, Basis, from_description

# Schema 1 had no `steps` (they were nfe) and no c_0 (it was 1). Plain numbers are written in schema 2, without `basis`.
SCHEMA, PLAIN_SCHEMA = 3, 2
KEYS = ("schema", "name", "nfe", "steps", "noise", "basis", "t", "t_c", "c_0", "c", "W", "meta")


@dataclass(frozen=True, eq=False)
class Tableau:
    """An explicit solver with N network evaluations D(x, t) -> x0 prediction, as a table of numbers.

        y_0 = c_0 x_T
        d_j = D(y_j, t_c[j])                            j = 0 .. N-1
        y_i = c[i-1] x_T + sum_{j<i} W[i-1, j] d_j      i = 1 .. N;   the sample is y_N

    Every single-step, multistep and predictor-corrector solver has this form, because each of its states is linear in
    x_T and in the evaluations so far (the idea of Butcher's tableau). A weight is a number, or [*K] numbers by the
    `basis`: one for each band of frequencies, say. Tensors are float64 and may carry gradients.

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

    def __post_init__(self):
        if not isinstance(self.basis, Basis):
            raise UserError(f"tableau entry basis must be a basis, got {shown(self.basis)}")
        for key in ("t", "t_c", "c", "W", "c_0"):
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
        for key, shape in {"t": (len(self.t),), "t_c": (n,), "c_0": k, "c": (n, *k), "W": (n, n, *k)}.items():
            value = getattr(self, key)
            if value.dtype != torch.float64 or tuple(value.shape) != shape:
                raise UserError(
                    f"tableau entry {key} must be float64 of shape {list(shape)} to go with the {n} entries of c, "
                    f"got {value.dtype} of shape {list(value.shape)}"
                )
            if not value.isfinite().all():
                raise UserError(f"tableau entry {key} must be finite, got {shown(value.detach().tolist())}")
        if self.W.detach()[torch.ones(n, n, device=self.W.device).triu(1).bool()].any():
            raise UserError("tableau entry W must be lower triangular: a state may use only evaluations made before it")
        if not (self.t.detach().diff() < 0).all():
            raise UserError(f"tableau entry t must fall strictly, got {shown(self.t.detach().tolist())}")
        low, high = self.noise.t_min, self.noise.T
        slack = 1e-9 * (high - low)
        for key in ("t", "t_c"):
            value = getattr(self, key).detach()
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
        return replace(self, **{key: getattr(self, key).detach() for key in ("t", "t_c", "c", "W", "c_0")})

    def over(self, basis: Basis) -> "Tableau":
        """The same solver with weights in a basis: each of the numbers that a plain weight becomes is equal to it.

        Raises UserError if the weights are no plain numbers.
        """
        if self.basis.shape:
            raise UserError(f"only plain weights can be laid over a basis, got those of {shown(self.basis.describe())}")
        k = basis.shape
        wide = {key: getattr(self, key)[(...,) + (None,) * len(k)] for key in ("c_0", "c", "W")}
        return replace(self, basis=basis, **{key: w.expand(*w.shape[: w.ndim - len(k)], *k) for key, w in wide.items()})

    def state(self, i: int, x_T: Tensor, d: Sequence[Tensor]) -> Tensor:
        """y_i = c[i-1] x_T + sum_{j<i} W[i-1, j] d_j, on the device and in the dtype of x_T; y_0 = c_0 x_T.

        All of them are in the basis in which the weights multiply them (`basis.to`, `basis.back`), which for plain
        numbers is that of the samples.

        Args:
            i: the state's index, 0 to N.
            x_T: the initial noises [B, ...].
            d: the predictions so far, each [B, ...]. Trailing predictions that y_i does not need may be missing.

        Returns:
            The state [B, ...].
        """
        if i == 0:
            return self.basis.spread(self.c_0.to(x_T), x_T) * x_T
        c, W = self.basis.spread(self.c[i - 1].to(x_T), x_T), self.W[i - 1].to(x_T)
        return c * x_T + sum(self.basis.spread(W[j], x_T) * d[j] for j in range(min(i, len(d))))

    def agrees(self, other: "Tableau", tolerance: float = 1e-12) -> bool:
        """Whether the other tableau is the same solver, up to rounding."""
        ours, theirs = self.to_dict(), other.to_dict()
        keys = ("t", "t_c", "c_0", "c", "W")
        if any(ours[key] != theirs[key] for key in ours if key not in keys):
            return False
        pairs = ((getattr(self, key), getattr(other, key)) for key in keys)
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)

    def to_dict(self) -> dict:
        """The tableau as JSON-ready data; `from_dict` is the inverse."""
        c_0, c, W = self.c_0.tolist(), self.c.tolist(), [row[: i + 1] for i, row in enumerate(self.W.tolist())]
        frame = self._frame()
        meta = frame.pop("meta")
        return {**frame, "c_0": c_0, "c": c, "W": W, "meta": meta}

    def _frame(self) -> dict:
        """The tableau as JSON-ready data, without its weights."""
        return {
            "schema": SCHEMA if self.basis.shape else PLAIN_SCHEMA,
            "name": self.name,
            "nfe": self.nfe,
            "steps": len(self.t) - 1,
            "noise": noise.describe(self.noise),
            **({"basis": self.basis.describe()} if self.basis.shape else {}),
            "t": self.t.tolist(),
            "t_c": self.t_c.tolist(),
            "meta": self.meta,
        }

    def save(self, path: str | Path) -> None:
        """Write the tableau as JSON, one line per row of numbers. Equal tableaux give equal bytes.

        Weights that are arrays go into a safetensors file beside it.

        Raises:
            UserError: for a `meta` that JSON cannot hold.
        """
        check_plain("tableau entry meta", self.meta)
        if not isinstance(path, str | Path) or Path(path).is_dir():
            raise UserError(f"a solver is saved to a file, got {shown(path)}, which is none")
        apart = isinstance(self.basis, Arrays)
        data = self._frame() if apart else self.to_dict()
        triangle, meta = data.pop("W", None), json.dumps(data.pop("meta"), indent=2, sort_keys=True)
        if apart:
            data["arrays"] = arrays.write(Path(path), {name: getattr(self, name) for name in arrays.NAMES})
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in data.items()]
        if triangle:
            lines.append('  "W": [\n' + ",\n".join("    " + json.dumps(row) for row in triangle) + "\n  ]")
        lines.append('  "meta": ' + meta.replace("\n", "\n  "))
        write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")

    @classmethod
    def load(cls, path: str | Path) -> "Tableau":
        """Read a file that `save` wrote.

        Raises:
            UserError: if the file is anything else; the message names the file and the entry.
        """
        data, weights = read_json(path), None
        try:
            if isinstance(data, dict) and "arrays" in data:
                weights = arrays.read(Path(path), data.pop("arrays"))
            return cls.from_dict(data, weights)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, data: Any, weights: Mapping[str, Tensor] | None = None) -> "Tableau":
        """The tableau that `to_dict` described.

        Args:
            data: JSON-ready data.
            weights: c_0, c and W, if they are not in the data but from a file of their own.

        Raises:
            UserError: for any other data; the message names the entry.
        """
        if not isinstance(data, dict):
            raise UserError("a solver file must be a JSON object")
        if data.get("schema") == 1:
            data = {"steps": data.get("nfe"), "c_0": 1.0} | data | {"schema": PLAIN_SCHEMA}
        if data.get("schema") == PLAIN_SCHEMA:
            data = {"basis": PLAIN.describe()} | data | {"schema": SCHEMA}
        if data.get("schema") != SCHEMA:
            raise UserError(
                f"schema must be 1, 2 or {SCHEMA}, got {shown(data.get('schema'))}: another s4spipe wrote it"
            )
        keys = [key for key in KEYS if weights is None or key not in arrays.NAMES]
        for key in data:
            if key not in keys:
                raise unknown("entry", key, keys)
        for key in keys:
            if key not in data:
                raise UserError(f"entry {key} is missing")
        for key, kind in {"name": str, "noise": dict, "meta": dict}.items():
            if not isinstance(data[key], kind):
                raise UserError(f"entry {key} must be of type {kind.__name__}, got {shown(data[key])}")
        basis = from_description(data["basis"])
        t, t_c = _numbers("t", data["t"]), _numbers("t_c", data["t_c"])
        c_0, c, W = _weights(data, basis.shape) if weights is None else (weights[name] for name in arrays.NAMES)
        n = len(c) if c.ndim else 0
        if isinstance(data["nfe"], bool) or data["nfe"] != n:
            raise UserError(f"nfe must be {n}, the number of entries of c, got {shown(data['nfe'])}")
        if isinstance(data["steps"], bool) or data["steps"] != len(t) - 1:
            raise UserError(f"entry t must have {shown(data['steps'])} + 1 times, to go with `steps`, got {len(t)}")
        check_plain("entry meta", data["meta"])
        return cls(t, t_c, c, W, noise.from_description(data["noise"]), data["name"], data["meta"], c_0, basis)


def save_all(path: str | Path, tables: Sequence[Tableau]) -> None:
    """Write several tableaux as one JSON list, one per line."""
    write_text(path, "[\n" + ",\n".join(json.dumps(table.to_dict(), sort_keys=True) for table in tables) + "\n]\n")


def load_all(path: str | Path) -> list[Tableau]:
    """Read what `save_all` wrote. Raises UserError, naming the file and the entry, for anything else."""
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise UserError(f"{path}: must be a list of solvers; make it again with `dvc repro`")
    try:
        return [Tableau.from_dict(entry) for entry in data]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _weights(data: dict[str, Any], k: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """c_0 [*k], c [N, *k] and W [N, N, *k] out of lists."""
    c, c_0, rows = _numbers("c", data["c"], k), _numbers("c_0", [data["c_0"]], k)[0], data["W"]
    if not isinstance(rows, list):
        raise UserError(f"entry W must be of type list, got {shown(rows)}")
    if len(rows) != len(c):
        raise UserError(f"entry W must have {len(c)} rows, one per evaluation, got {len(rows)}")
    W = torch.zeros(len(c), len(c), *k, dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        numbers = _numbers(f"W[{i}]", row, k)
        if len(numbers) != i + 1:
            raise UserError(f"entry W[{i}] must have {i + 1} numbers (lower triangular), got {len(numbers)}")
        W[i, : i + 1] = numbers
    return c_0, c, W


def _numbers(key: str, value: object, shape: tuple[int, ...] = ()) -> Tensor:
    """A list of weights [n, *shape]."""
    if not isinstance(value, list) or not all(_is_weight(entry, shape) for entry in value):
        each = f" lists of the shape {list(shape)}" if shape else " numbers"
        raise UserError(f"entry {key} must be a list of{each}, got {shown(value)}")
    return torch.tensor(value, dtype=torch.float64, device="cpu").view(len(value), *shape)


def _is_weight(value: object, shape: tuple[int, ...]) -> bool:
    if not shape:
        return is_number(value)
    return isinstance(value, list) and len(value) == shape[0] and all(_is_weight(part, shape[1:]) for part in value)

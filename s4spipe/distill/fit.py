"""Learning a solver: S4S fits coefficients, S4S-Alt alternates between times and coefficients (Frankel et al. 2025)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from s4spipe import ranks
from s4spipe.distill import relaxed
from s4spipe.families import Family
from s4spipe.files import Scratch
from s4spipe.pairs import Pairs, batches
from s4spipe.sampling import sample

COEFFICIENTS, TIMES = "coefficients", "times"


@dataclass(frozen=True)
class Phase:
    """Some epochs over all pairs, in which the student's coefficients, times or both learn; the others are frozen."""

    learns: tuple[str, ...]
    epochs: int


def s4s(epochs: int) -> list[Phase]:
    """Plain S4S: coefficients on fixed steps."""
    return [Phase((COEFFICIENTS,), epochs)]


def s4s_alt(alternations: int, epochs: int, warmup_epochs: int, joint: bool) -> list[Phase]:
    """S4S-Alt: first a learned schedule to start from, then schedule and coefficients in turn, or both jointly.

    `epochs` is the length of each half of an alternation; jointly, the epochs of both halves go to everything at once.
    """
    apart = [Phase((TIMES,), epochs), Phase((COEFFICIENTS,), epochs)]
    halves = [Phase((COEFFICIENTS, TIMES), 2 * epochs)] if joint else apart
    return [Phase((TIMES,), warmup_epochs), *alternations * halves]


def kind(parameter: str) -> str:
    """Whether a family's parameter of this name is one of its times or one of its coefficients."""
    return TIMES if parameter.startswith("times.") else COEFFICIENTS


def fit(
    student: Family,
    phases: Sequence[Phase],
    denoiser: Callable,
    training: Pairs,
    validation: Pairs,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    batch_size: int,
    at_once: int = 2**31,
    learning_rate: float,
    radius: float,
    seed: int,
    scratch: Scratch,
    description: str = "fit",
) -> list[dict]:
    """Learn `student` in place, leave it at the parameters best on `validation`, and return the losses of every epoch.

    Minimises E min_{|x'_T - x_T| <= r sigma_T} d(student(x'_T), teacher(x_T)) (Sec. 3.1.2) with Adam, whose gradient is
    clipped at norm 1. An epoch that did not lower the validation loss is undone and halves the rate of what it moved:
    so one rate to start with suits every NFE, and times as well as coefficients. Every minibatch step moves the
    parameters and then its own x'_T, by projected gradient descent; a move is kept where it lowers the pair's loss, and
    the moves' rate is halved after an epoch that kept none (the practice of LD3, Tong et al. 2024, arXiv 2405.15506).
    Validation runs from the unmoved x_T, as sampling does. The backward pass re-computes each network call, so memory
    does not grow with NFE times the activations; of a minibatch, `at_once` pairs are on their way at a time.

    Progress is saved to `scratch` after every epoch. Several processes divide every minibatch; all end with the
    same student, equal to rounding to that of one process.
    """
    parameters = dict(student.named_parameters())
    groups = [{"params": [p], "name": name} for name, p in parameters.items()]
    optimizer = torch.optim.Adam(groups, learning_rate)  # a group each, for a rate each
    unit = student.noise.sigma_T
    limit = unit * relaxed.radius(radius, training.x_T[0].numel(), student.parameter_count)
    epochs = [phase.learns for phase in phases for _ in range(phase.epochs)]

    def losses(pairs: Pairs, index: Tensor, x_T: Tensor, call: Callable) -> Tensor:
        condition = None if pairs.condition is None else pairs.condition[index]
        return distance(sample(call, student(), x_T, condition), pairs.x_0[index])

    @torch.no_grad()
    def validate() -> float:
        own = ranks.share(torch.arange(len(validation), device=validation.x_T.device))
        values = in_parts(lambda i, x: losses(validation, i, x, denoiser), own, validation.x_T[own], min(at_once, 200))
        return ranks.gather(values, own, len(validation)).mean().item()

    def clone() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in parameters.items()}

    if state := scratch.load("fit"):
        restore(parameters, state["best"])
        optimizer.load_state_dict(state["optimizer"])
        state["moved"] = state["moved"].to(training.x_T.device)
    else:
        state = {"epoch": 0, "moved": training.x_T.clone(), "rate": 12 / len(student.t), "best": clone()}
        state["history"] = [{"epoch": 0, "learns": "", "train": None, "validation": validate(), "moves": 0}]
    moved, history = state["moved"], state["history"]
    ranks.wait()  # all have read how far the fit was before one goes on

    rest = range(state["epoch"], len(epochs))
    for epoch in (bar := ranks.progress(rest, description, len(epochs), initial=state["epoch"])):
        learning = [group for group in optimizer.param_groups if kind(group["name"]) in epochs[epoch]]
        for name, p in parameters.items():
            p.requires_grad_(kind(name) in epochs[epoch])
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        epoch_losses, owned, moves = [], [], 0
        for index in order.to(moved.device).split(batch_size):
            own = ranks.share(index)
            x_T = moved[own].requires_grad_(limit > 0)
            optimizer.zero_grad()

            def descend(some: Tensor, x: Tensor) -> Tensor:
                loss = losses(training, some, x, recomputed(denoiser))
                loss.sum().backward()
                return loss.detach()

            loss = in_parts(descend, own, x_T, at_once)
            for p in parameters.values():
                if p.requires_grad:
                    p.grad = ranks.add_up(torch.zeros_like(p) if p.grad is None else p.grad) / len(index)
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            student.clip()
            if limit > 0 and len(own):
                step = state["rate"] * unit**2 * x_T.grad
                proposal = relaxed.project(x_T.detach() - step, training.x_T[own], limit)
                with torch.no_grad():
                    better = in_parts(lambda i, x: losses(training, i, x, denoiser), own, proposal, at_once) < loss
                moved[own[better]] = proposal[better]
                moves += int(better.sum())
            epoch_losses.append(loss)
            owned.append(own)
        own = torch.cat(owned)
        moved.copy_(ranks.gather(moved[own], own, len(moved)))
        moves = int(ranks.add_up(torch.tensor(moves)))
        if moves == 0:
            state["rate"] /= 2
        row = {
            "epoch": epoch + 1,
            "learns": "+".join(epochs[epoch]),
            "train": ranks.gather(torch.cat(epoch_losses), own, len(moved)).mean().item(),
            "validation": validate(),
            "moves": moves,
        }
        if row["validation"] < min(past["validation"] for past in history):
            state["best"] = clone()
        else:
            restore(parameters, state["best"])
            for group in learning:
                group["lr"] /= 2
                optimizer.state.pop(group["params"][0], None)  # its moments led astray
        history.append(row)
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        if ranks.first():
            scratch.save("fit", state | {"epoch": epoch + 1, "optimizer": optimizer.state_dict()})

    return history


def in_parts(of: Callable[[Tensor, Tensor], Tensor], index: Tensor, x: Tensor, size: int) -> Tensor:
    """of(index, x) [n], `size` rows at a time; of no rows, nothing."""
    parts = zip(batches(index, size), batches(x, size), strict=True)
    return torch.cat([x.new_zeros(0), *(of(some, rows) for some, rows in parts)])


def recomputed(denoiser: Callable) -> Callable:
    """The denoiser, with each call's activations thrown away and made again in the backward pass."""
    return lambda *inputs: checkpoint(denoiser, *inputs, use_reentrant=False)


@torch.no_grad()
def restore(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    for name, p in parameters.items():
        p.copy_(values[name])

"""Learning a solver by Adam (Frankel et al. 2025): S4S learns coefficients, S4S-Alt alternates between times and
coefficients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from s4spipe.learning import relaxed
from s4spipe.learning.distance import Distance
from s4spipe.learning.pairs import Pairs, batches
from s4spipe.learning.task import COEFFICIENTS, TIMES, Task, in_micro_batches, kind
from s4spipe.learning.whitening import Whitened
from s4spipe.runtime import distributed
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample

VALIDATED = 200  # pairs in memory at a time, where nothing is differentiated
GUARD = 1.1  # with a reward, the distance may be so many times the least so far
ROUNDING = 1e-15  # a variance of rewards, of their mean square, below which they are all the same


@dataclass(frozen=True)
class Adam:
    """The settings of the optimiser.

    Attributes:
        batch_size: pairs per minibatch.
        learning_rate: initial learning rate of every parameter.
        radius: noises may move by r = radius * dim(x) * m^(-5/2) sigma_T; 0 keeps them fixed.
        plain: Adam as rivals have it: coefficients are not whitened, and an epoch ends where its last minibatch does.
    """

    batch_size: int
    learning_rate: float
    radius: float = 0.0
    plain: bool = False


@dataclass(frozen=True)
class Reward:
    """What a fit raises beside imitating.

    Attributes:
        of: samples x [B, ...] and their conditions -> rewards [B]; differentiable, higher is better.
        weight: what a standard deviation of the rewards of the teacher's samples is worth, in units of the distance at
            the start.
    """

    of: Callable[[Tensor, Tensor | None], Tensor]
    weight: float = 1.0

    @torch.no_grad()
    def rate(self, pairs: Pairs, size: int) -> float:
        """The weight over that standard deviation, of some pairs, `size` at a time.

        Raises UserError where the rewards are not finite, or all the same.
        """
        parts = map(pairs.take, batches(torch.arange(len(pairs)), size))
        rewards = torch.cat([self.of(some.x_0, some.condition).cpu().double() for some in parts])
        if not rewards.isfinite().all() or rewards.var().item() <= ROUNDING * rewards.square().mean().item():
            raise UserError("the reward of the teacher's samples is not finite, or the same for all: nothing can be "
                            "learned from it; use another one, or none")  # fmt: skip
        return self.weight / rewards.std().item()


@dataclass(frozen=True)
class Phase:
    """Epochs over all pairs in which the coefficients, the times or both are learned; the rest is frozen."""

    learns: tuple[str, ...]
    epochs: int


def s4s(epochs: int) -> list[Phase]:
    """S4S: coefficients on fixed steps."""
    return [Phase((COEFFICIENTS,), epochs)]


def s4s_alt(alternations: int, epochs: int, warmup_epochs: int) -> list[Phase]:
    """S4S-Alt: first the times, as a warm-up, then times and coefficients in turn, each for `epochs`."""
    halves = [Phase((TIMES,), epochs), Phase((COEFFICIENTS,), epochs)]
    return [Phase((TIMES,), warmup_epochs), *alternations * halves]


def joint(epochs: int, warmup_epochs: int) -> list[Phase]:
    """First the times, as a warm-up, then times and coefficients at once."""
    return [Phase((TIMES,), warmup_epochs), Phase((COEFFICIENTS, TIMES), epochs)]


def fit(
    task: Task, phases: Sequence[Phase], distance: Distance, adam: Adam, reward: Reward | None = None
) -> list[dict]:
    """Learn the student in place, and leave it at the parameters that are best on the validation pairs.

    This minimises E min_{|x'_T - x_T| <= r sigma_T} d(student(x'_T), teacher(x_T)) (Sec. 3.1.2) with Adam; gradients
    are clipped at norm 1. Coefficients are whitened at the start of every phase that learns them (see `Whitened`). An
    epoch ends at the mean of the parameters over its second half, which is closer to the minimum than the last ones,
    which scatter around it (Polyak and Juditsky 1992). An epoch that does not lower the validation loss is undone, and
    halves the learning rates of what it moved. So one initial rate suits every NFE, and times as well as coefficients.

    Every minibatch moves the parameters, and then its own x'_T by projected gradient descent. A move is kept if it
    lowers the loss of its pair. The rate of the moves is halved after an epoch that kept none (as in LD3, Tong et al.
    2024, arXiv 2405.15506). Validation starts from the unmoved x_T, as sampling does. The backward pass re-computes
    each network call, so memory does not grow with NFE times the activations.

    With a reward, the loss is the distance less the reward in the distance's units, and an epoch is undone, too, after
    which the validation pairs see more than `GUARD` times the least distance so far: rewards are won by ruin if nothing
    stops it. Noises do not move then.

    Progress is saved in the task's scratch after every epoch. Several processes divide every minibatch; all end with
    the same student, which equals that of a single process up to rounding.

    Returns:
        The losses of every epoch.
    """
    student, denoiser, training, validation = task.student, task.denoiser, task.training, task.validation
    parameters = dict(student.named_parameters())
    white = None if adam.plain else Whitened.of(task, distance, adam.batch_size)
    moving = parameters if white is None else white.instead(parameters)
    groups = [{"params": [p], "name": name} for name, p in moving.items()]
    optimizer = torch.optim.Adam(groups, adam.learning_rate)  # one group per parameter, for separate rates
    everything = parameters | moving
    sigma_T, unit = student.noise.sigma_T, 1.0
    limit = sigma_T * relaxed.radius(adam.radius, training.x_T[0].numel(), student.parameter_count)
    epochs = [phase.learns for phase in phases for _ in range(phase.epochs)]
    firsts = set(accumulate((phase.epochs for phase in phases), initial=0))

    rate = 0.0 if reward is None else reward.rate(validation, min(task.micro_batch_size, VALIDATED))

    def terms(pairs: Pairs, index: Tensor, x_T: Tensor, call: Callable) -> Tensor:
        """The distances, and where there is a reward the rewards: [1, n] or [2, n]."""
        condition = None if pairs.condition is None else pairs.condition[index]
        x_0 = sample(call, student(), x_T, condition, check=False)
        distances = distance(x_0, pairs.x_0[index])
        return distances[None] if reward is None else torch.stack([distances, reward.of(x_0, condition).to(distances)])

    def losses(pairs: Pairs, index: Tensor, x_T: Tensor, call: Callable) -> Tensor:
        distances, *rewards = terms(pairs, index, x_T, call)
        return distances - unit * rate * rewards[0] if rewards else distances

    @torch.no_grad()
    def validate() -> list[float]:
        """The mean distance, and reward."""
        own = distributed.shard(torch.arange(len(validation), device=validation.x_T.device))
        micro_batches = in_micro_batches(own, validation.x_T[own], min(task.micro_batch_size, VALIDATED))
        values = _joined(own, [terms(validation, index, x, denoiser).T for index, x in micro_batches])
        return distributed.gather(values, own, len(validation)).mean(0).flatten().tolist()

    def of_validation() -> dict[str, float]:
        distance, *rewards = validate()
        loss = distance - unit * rate * rewards[0] if rewards else distance
        return {"validation": loss} | ({"distance": distance, "reward": rewards[0]} if rewards else {})

    def clone() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in everything.items()}

    if state := task.scratch.load("fit"):
        restore(everything, state["best"])
        optimizer.load_state_dict(state["optimizer"])
        if white and "white" in state:
            white.start, white.by_v = state["white"]
        state["moved"], unit = state["moved"].to(training.x_T.device), state["unit"]
    else:
        state = {"epoch": 0, "moved": training.x_T.clone(), "rate": 12 / len(student.t), "best": clone()}
        state["unit"] = unit = validate()[0] if reward else 1.0
        state["history"] = [{"epoch": 0, "learns": "", "train": None, **of_validation(), "moves": 0}]
        state["lowest"] = state["history"][0]["validation"]
    moved, history = state["moved"], state["history"]
    distributed.barrier()  # all must have read the progress before one continues

    rest = range(state["epoch"], len(epochs))
    for epoch in (bar := distributed.progress(rest, task.description, len(epochs), initial=state["epoch"])):
        learning = [group for group in optimizer.param_groups if kind(group["name"]) in epochs[epoch]]
        number = task.seed * 100_003 + epoch
        whitened = white if COEFFICIENTS in epochs[epoch] else None
        if whitened and epoch in firsts:
            whitened.begin(number)
            optimizer.state.pop(whitened.v, None)
            state |= {"best": clone(), "white": (whitened.start, whitened.by_v)}
        for name, p in parameters.items():
            p.requires_grad_(kind(name) in epochs[epoch])
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(number))
        epoch_losses, owned, moves, ends = [], [], 0, []
        for index in order.to(moved.device).split(adam.batch_size):
            own = distributed.shard(index)
            x_T = moved[own].requires_grad_(limit > 0)
            for p in everything.values():
                p.grad = None
            parts = []
            for some, x in in_micro_batches(own, x_T, task.micro_batch_size):
                loss = losses(training, some, x, recomputed(denoiser))
                loss.sum().backward()
                parts.append(loss.detach())
            loss = _joined(own, parts)
            for p in parameters.values():
                if p.requires_grad:
                    p.grad = distributed.all_reduce(torch.zeros_like(p) if p.grad is None else p.grad) / len(index)
            if whitened:
                whitened.pull()
            torch.nn.utils.clip_grad_norm_(moving.values(), 1.0)
            optimizer.step()
            if whitened:
                whitened.push()
            student.clip()
            ends.append(clone())
            if limit > 0 and len(own):
                assert x_T.grad is not None
                step = state["rate"] * sigma_T**2 * x_T.grad
                proposal = relaxed.project(x_T.detach() - step, training.x_T[own], limit)
                with torch.no_grad():
                    micro_batches = in_micro_batches(own, proposal, task.micro_batch_size)
                    new = _joined(own, [losses(training, some, x, denoiser) for some, x in micro_batches])
                better = new < loss
                moved[own[better]] = proposal[better]
                moves += int(better.sum())
            epoch_losses.append(loss)
            owned.append(own)
        own = torch.cat(owned)
        moved.copy_(distributed.gather(moved[own], own, len(moved)))
        moves = int(distributed.all_reduce(torch.tensor(moves)))
        if moves == 0:
            state["rate"] /= 2
        if not adam.plain:
            second_half = ends[len(ends) // 2 :]
            restore(everything, {name: torch.stack([end[name] for end in second_half]).mean(0) for name in everything})
        row = {
            "epoch": epoch + 1,
            "learns": "+".join(epochs[epoch]),
            "train": distributed.gather(torch.cat(epoch_losses), own, len(moved)).mean().item(),
            **of_validation(),
            "moves": moves,
        }
        ruined = reward and row["distance"] > GUARD * min(past["distance"] for past in history)
        if row["validation"] < state["lowest"] and not ruined:
            state |= {"best": clone(), "lowest": row["validation"]}
        else:
            restore(everything, state["best"])
            for group in learning:
                group["lr"] /= 2
                optimizer.state.pop(group["params"][0], None)  # its moments are misleading
        history.append(row)
        bar.set_postfix(validation=f"{row['validation']:.2e}")
        if distributed.is_main():
            task.scratch.save("fit", state | {"epoch": epoch + 1, "optimizer": optimizer.state_dict()})

    return history


def _joined(like: Tensor, parts: list[Tensor]) -> Tensor:
    """Join the losses of micro-batches into [n], on the device of `like`; empty if there are none."""
    return torch.cat(parts) if parts else torch.zeros(0, device=like.device)


def recomputed(denoiser: Callable) -> Callable:
    """The denoiser with checkpointing: the activations of each call are re-computed in the backward pass."""
    return lambda *inputs: checkpoint(denoiser, *inputs, use_reentrant=False)


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set the parameters to `values`."""
    for name, p in parameters.items():
        p.copy_(values[name])

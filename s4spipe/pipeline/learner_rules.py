"""The rules of a learner's block in params.yaml, and of a reward's, that join two of its keys."""

from s4spipe.learning import families
from s4spipe.learning.distance import DISTANCES, PERCEPTUAL
from s4spipe.pipeline.layout import NONE
from s4spipe.pipeline.render import flow
from s4spipe.pipeline.schema import GENOME, Learner, Reward, Start
from s4spipe.runtime.errors import UserError, shown


def check_learner(key: str, learner: Learner) -> None:
    """The rules that join two keys of a learner's block. Raises UserError, naming the `key` of the block."""
    if learner.optimizer in ("search", "evolution"):
        _check_without_gradients(key, learner)
    else:
        for name, known in (("distance", DISTANCES), ("family", families.FAMILIES)):
            if (got := getattr(learner, name)) not in known:
                raise UserError(f"{key}.{name}: {got} is only for the optimizers search and evolution, not "
                                f"{learner.optimizer}; choose from {', '.join(known)}")  # fmt: skip
        if learner.reward and learner.optimizer == "gauss_newton":
            raise UserError(f"{key}.reward: only for the optimizers adam, search and evolution, not gauss_newton; "
                            "leave it out, or see refine.reward")  # fmt: skip
        if learner.reward and learner.radius > 0:
            raise UserError(f"{key}.radius: must be 0 with a reward, got {learner.radius:g}")
    if learner.family == GENOME:
        return
    try:
        families.check_options(learner.family, {"consistent": learner.consistent, "shared": learner.shared})
    except UserError as error:
        raise UserError(f"{key}.{error}") from None
    if families.noisy(learner.family):
        if learner.optimizer != "evolution":
            raise UserError(f"{key}.optimizer: the family {learner.family} adds fresh noise, which only evolution "
                            f"learns, not {learner.optimizer}")  # fmt: skip
        if learner.bands != 1 or learner.channels != "common":
            raise UserError(f"{key}.bands: the family {learner.family} has no weights by frequency; make bands 1 and "
                            "channels common")  # fmt: skip
    if learner.gaussian and learner.family not in ("lms", "pc"):
        raise UserError(f"{key}.gaussian: only for the families lms and pc, not {learner.family}")
    for name, plain in (("bands", 1), ("channels", "common")):
        if (got := getattr(learner, name)) == plain:
            continue
        if learner.gaussian:
            raise UserError(f"{key}.{name}: must be {plain} if coefficients start from N(0, 1) (gaussian), got {got}")
        if learner.family == "fixed":
            raise UserError(f"{key}.{name}: the family fixed has no weights of its own, got {got}; make it {plain}")
    if learner.family == "fixed" and learner.learns != "times":
        raise UserError(f"{key}.learns: the family fixed has only times to learn, got {learner.learns}; make it times")
    if learner.mean not in (None, "none") and learner.family != "free":
        raise UserError(f"{key}.mean: only for the family free, not {learner.family}; leave it out")
    if learner.family == "free" and learner.learns != "joint":
        raise UserError(f"{key}.learns: the family free learns all of its numbers at once, got {learner.learns}; make "
                        "it joint")  # fmt: skip
    if learner.family == "free" and learner.optimizer == "adam" and learner.warmup_epochs:
        raise UserError(f"{key}.warmup_epochs: a warm-up is of the steps alone, which the family free does not have; "
                        "make it 0")  # fmt: skip
    if learner.optimizer == "gauss_newton":
        if learner.radius > 0:
            raise UserError(f"{key}.optimizer: gauss_newton needs the radius 0, got {learner.radius:g}")
        if learner.learns == "alternating":
            raise UserError(f"{key}.learns: gauss_newton cannot alternate; make it coefficients, times or joint")


def _check_without_gradients(key: str, learner: Learner) -> None:
    family, learns = learner.family, learner.learns
    if learner.radius > 0:
        raise UserError(f"{key}.radius: must be 0 for the optimizer {learner.optimizer}, got {learner.radius:g}")
    wanted = "times" if family == "fixed" else "joint"
    if learner.optimizer == "search":
        if family not in ("fixed", GENOME):
            raise UserError(f"{key}.family: a search is among genomes, or among the times of a solver (fixed), not "
                            f"{family}; make it genome or fixed")  # fmt: skip
        for name, plain in (("bands", 1), ("channels", "common"), ("gaussian", False)):
            if (got := getattr(learner, name)) != plain:
                raise UserError(f"{key}.{name}: not for the optimizer search, got {got}; make it {flow(plain)}")
    elif family == GENOME:
        raise UserError(f"{key}.family: genome has no numbers to change, but decisions; make optimizer search")
    elif learns == "coefficients" and family != "fixed":
        wanted = learns
    if learns != wanted:
        raise UserError(f"{key}.learns: must be {wanted} for the optimizer {learner.optimizer} and the family "
                        f"{family}, got {learns}")  # fmt: skip


def check_spanning(key: str, learner: Learner, start: Start) -> None:
    """Raises UserError for a learner that cannot be one fit for all NFEs."""
    wanted = {"family": "free", "optimizer": "gauss_newton", "bands": 1, "channels": "common"}
    for name, must in wanted.items():
        if (got := getattr(learner, name)) != must:
            raise UserError(f"{key}.{name}: must be {must} for a solver in `spanning`, got {got}")
    if learner.distance in PERCEPTUAL:
        raise UserError(
            f"{key}.distance: must be l2 or pseudo_huber for a solver in `spanning`, got {learner.distance}"
        )
    if learner.late is False:
        raise UserError(f"{key}.late: must be left out for a solver in `spanning`, got false")
    if learner.mean not in (None, "none"):
        raise UserError(f"{key}.mean: must be left out for a solver in `spanning`, got {learner.mean}")
    if start.skip and 0.0 not in start.skip:
        raise UserError(f"starts.{key.removeprefix('learners.')}.skip: a solver in `spanning` needs 0.0 among these "
                        f"fractions, got {shown(start.skip)}")  # fmt: skip


def check_reward(key: str, reward: Reward, condition: str) -> None:
    """Raises UserError for a reward that does not suit a model with such a condition, or lacks what it needs."""
    needs = {"digits": "labels", "classifier": "labels", "clip": "prompts"}.get(reward.network, condition)
    if needs != condition:
        raise UserError(
            f"{key}.network: {reward.network} needs a model whose model.condition is {needs}, not {condition}"
        )
    if (reward.network == "callable") != (reward.source != "none"):
        raise UserError(f"{key}.source: must be module:function if {key}.network is callable, and none otherwise, got "
                        f"{shown(reward.source)}")  # fmt: skip
    if reward.network != "callable" and reward.weights == NONE:
        raise UserError(f"{key}.weights: must name the file or folder of the network, got {NONE}")

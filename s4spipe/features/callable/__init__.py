"""The user's own features network: any Python function that returns one."""

import torch
from torch import Tensor, nn

from s4spipe.features.base.embedding import Embedding
from s4spipe.runtime import user_code
from s4spipe.runtime.errors import UserError

ROUNDING = 1e-2  # how far apart the features of one image may be, alone and in a batch, relative to their norm


class Features(Embedding):
    """A network of the user's, images [B, C, height, width] in [-1, 1] -> features [B, d].

    Args:
        net: the network.
        key: the key of params.yaml that it is from, and
        source: the function that returned it, for messages.
    """

    def __init__(self, net: nn.Module, key: str, source: str):
        super().__init__()
        self.net, self.key, self.source, self.tried = net, key, source, False
        self.where = f"{key}: {source}"

    def embed(self, images: Tensor) -> Tensor:
        """Features [B, d] of images in [-1, 1], clipped to that range.

        Raises UserError if the network raises, returns anything but one finite row of features for each image, cannot
        be differentiated where gradients are wanted, or if its rows depend on one another.
        """
        images = images.float().clamp(-1, 1)
        seen = self._seen(images)
        if not self.tried and len(images) > 1:  # once: it is the same network for all images
            self.tried = True
            with torch.no_grad():
                alone = self._seen(images[:1])
            if (alone - seen[:1].detach()).norm() > ROUNDING * alone.norm():
                raise UserError(f"{self.where}: the features of one image depend on the others in its batch; the "
                                "network must treat every image alone")  # fmt: skip
        return seen

    def _seen(self, images: Tensor) -> Tensor:
        with user_code.told(self.key, self.source, "fails on images [B, C, height, width]"):
            seen = self.net(images)
        if not isinstance(seen, Tensor) or not seen.is_floating_point() or seen.ndim != 2 or len(seen) != len(images):
            got = list(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise UserError(f"{self.where}: its network must return features [{len(images)}, d] for images "
                            f"{list(images.shape)}, got {got}")  # fmt: skip
        if torch.is_grad_enabled() and images.requires_grad and not seen.requires_grad:
            raise UserError(f"{self.where}: its network cannot be differentiated; take torch.no_grad and detach out")
        if not seen.isfinite().all() and images.isfinite().all():  # a learner tries solvers that may diverge
            raise UserError(f"{self.where}: its network returned features that are not finite")
        return seen.float()


def load(path: str, key: str, source: str) -> Features:
    """The network that the function `source` ("module:function") returns; it is given `path`, the file of weights.

    Raises UserError, naming the `key` of params.yaml that holds `source`, if there is no such function, or it raises or
    returns something else.
    """
    return Features(user_code.network(key, source, path), key, source)

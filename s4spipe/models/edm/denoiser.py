"""The denoiser of an EDM checkpoint."""

from torch import Tensor
from torch.nn.functional import one_hot

from s4spipe.models.base.denoiser import Denoiser
from s4spipe.models.edm.preconditioning import Preconditioned
from s4spipe.models.noise import VE


class EDMCheckpoint(Denoiser):
    """D(x, sigma, condition) of an EDM network. Class-conditional ones were never trained without labels."""

    noise_schedule = VE(sigma_min=0.002, sigma_max=80.0)

    def __init__(self, net: Preconditioned):
        super().__init__()
        self.net, self.num_classes = net, net.label_dim
        self.sample_shape = (net.channels, net.resolution, net.resolution)

    def predict(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return self.net(x, t, None if condition is None else one_hot(condition, self.num_classes))

"""EDM's networks against the outputs of the originals, and their pickles, written here as EDM's library writes them."""

import io
import json
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.problems import NOISES

from s4spipe import models
from s4spipe.models import edm
from s4spipe.models.edm import Preconditioned
from s4spipe.runtime.errors import UserError
from s4spipe.sampling.loop import sample
from s4spipe.solvers import registry, timesteps

FIXTURES = Path(os.environ.get("S4SPIPE_EDM_FIXTURES", Path(__file__).parent.parent.parent / "shared/edm_fixtures"))
NETWORKS = {
    "ddpmpp": ("EDMPrecond", {"model_type": "SongUNet", "augment_dim": 9, "model_channels": 16}),
    "ncsnpp": ("VEPrecond", {"model_type": "SongUNet", "embedding_type": "fourier", "encoder_type": "residual",
                             "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1], "model_channels": 16}),
    "skip": ("VPPrecond", {"encoder_type": "skip", "decoder_type": "skip", "label_dim": 4, "model_channels": 16}),
    "adm": ("EDMPrecond", {"model_type": "DhariwalUNet", "label_dim": 4, "model_channels": 32}),
}  # fmt: skip
SMALL = {"img_resolution": 8, "img_channels": 3, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}


def load(path):
    return models.load({"kind": "edm", "weights": str(path)})


@pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no fixtures of EDM's networks at {FIXTURES}")
@pytest.mark.parametrize("name", ["cifar10_ddpmpp", "ncsnpp", "adm_cond", "cond_ddpmpp_vp"])
def test_networks_are_the_originals(name):
    about = json.loads((FIXTURES / "fixtures.json").read_text())[name]
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    net = Preconditioned(about["precond"], about["init_kwargs"])
    net.load_state_dict({key.removeprefix("state."): value for key, value in tensors.items() if "state." in key})
    with torch.no_grad():
        out = net(tensors["input.x"], tensors["input.sigma"], tensors.get("input.class_labels"))
    expected = tensors["output.D"]
    assert (out - expected).abs().max() < 1e-5 * expected.abs().max().clamp(min=1)


def network(name):
    torch.manual_seed(0)
    precond, kwargs = NETWORKS[name]
    net = Preconditioned(precond, SMALL | kwargs)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for buffer_name, buffer in net.named_buffers():
        if buffer_name.endswith("freqs"):
            buffer.normal_()
    return net, SMALL | kwargs


@pytest.fixture
def edm_library(monkeypatch):
    """The modules that a pickle of EDM names, as far as writing one needs them."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    class EasyDict(dict):
        pass

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the pickle's own code was called")

    for value, module in ((EasyDict, util), (_reconstruct_persistent_obj, persistence)):
        value.__module__, value.__qualname__ = module.__name__, value.__name__
        setattr(module, value.__name__, value)
    for name, module in (("torch_utils", types.ModuleType("torch_utils")), ("dnnlib", types.ModuleType("dnnlib")),
                         ("torch_utils.persistence", persistence), ("dnnlib.util", util)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return EasyDict, _reconstruct_persistent_obj


def written(net, kwargs, edm_library, **more):
    """The bytes of a checkpoint: every module but the containers is a persistent object with source code."""
    EasyDict, reconstruct = edm_library

    class Persistent:
        def __init__(self, meta):
            self.meta = meta

        def __reduce__(self):
            return reconstruct, (self.meta,)

    def persistent(module, class_name):
        state = dict(module.__dict__)
        state["_modules"] = OrderedDict(
            (name, inner if inner is None else persistent(inner, type(inner).__name__))
            for name, inner in module._modules.items()
        )
        state = {key: value for key, value in state.items() if key.startswith("_") or key == "training"}
        if isinstance(module, torch.nn.ModuleDict):
            container = torch.nn.ModuleDict()
            container.__dict__ = state
            return container
        state |= {"_init_args": (), "_init_kwargs": EasyDict(kwargs)}
        return Persistent(EasyDict(type="class", version=6, module_src="raise SystemExit", class_name=class_name,
                                   state=state))  # fmt: skip

    name = next(precond for precond, options in NETWORKS.values() if (SMALL | options) == kwargs)
    file = io.BytesIO()
    pickle.dump({"ema": persistent(net, name), **more}, file)
    return file.getvalue()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pickle_is_read_as_data(name, edm_library, tmp_path):
    net, kwargs = network(name)
    path = tmp_path / "edm.pkl"
    path.write_bytes(written(net, kwargs, edm_library, dataset_kwargs={"path": "x"}))
    edm.convert(path, tmp_path / "edm.safetensors")
    x, sigma = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 30.0])
    labels = torch.tensor([0, 3, 1]) if net.label_dim else None
    hot = None if labels is None else torch.nn.functional.one_hot(labels, 4).float()
    with torch.no_grad():
        expected = net(x, sigma, hot)
        for file in (path, tmp_path / "edm.safetensors"):
            denoiser = load(file)
            assert (denoiser.sample_shape, denoiser.num_classes) == ((3, 8, 8), net.label_dim)
            assert torch.equal(denoiser(x, sigma, labels), expected)


def test_its_denoiser_samples(edm_library, tmp_path):
    net, kwargs = network("adm")
    (tmp_path / "edm.pkl").write_bytes(written(net, kwargs, edm_library))
    denoiser, noise = load(tmp_path / "edm.pkl"), NOISES["ve"]
    table = registry.build("parallel_midpoints", noise, timesteps.build("edm", noise, 2), nfe=6)
    x_T = noise.sigma_T * torch.randn(2, 3, 8, 8)
    for condition in (None, torch.tensor([1, 2])):
        assert sample(denoiser, table, x_T, condition).isfinite().all()


class Hostile:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (os.system, ("touch hacked",), "asks for posix.system, which no EDM checkpoint needs"),
        (eval, ("open('hacked', 'w')",), "asks for builtins.eval"),
        (torch.load, ("x",), "asks for torch.serialization.load"),
        (getattr, (1, "real"), "asks for builtins.getattr"),
    ],
)
def test_a_hostile_pickle_is_refused_by_the_name_it_asks_for(function, arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("edm.pkl").write_bytes(pickle.dumps({"ema": Hostile(function, *arguments)}))
    with pytest.raises(UserError, match=f"edm.pkl: it {says}"):
        load("edm.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["edm.pkl"]


def test_a_storage_within_is_no_way_in(edm_library, tmp_path, monkeypatch):
    """Tensors in such a pickle are pickles themselves."""
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Hostile(os.system, "touch hacked"), inner, _use_new_zipfile_serialization=False)
    Path("edm.pkl").write_bytes(pickle.dumps({"ema": Hostile(torch.storage._load_from_bytes, inner.getvalue())}))
    with pytest.raises(UserError, match="not a complete EDM checkpoint"):
        load("edm.pkl")
    assert [path.name for path in tmp_path.iterdir()] == ["edm.pkl"]


def test_other_files_are_told(edm_library, tmp_path):
    net, kwargs = network("adm")
    data = written(net, kwargs, edm_library)
    path = tmp_path / "edm.pkl"
    for content in (data[: len(data) // 2], b"", pickle.dumps({"net": 1}), pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"edm.pkl: not a complete EDM checkpoint"):
            load(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.pkl")
    with pytest.raises(UserError, match="not a converted EDM checkpoint"):
        load("models/digits.safetensors")


@pytest.mark.parametrize(
    ("precond", "change", "says"),
    [
        ("EDMPrecon", {}, "unknown preconditioning 'EDMPrecon': did you mean 'EDMPrecond'"),
        ("EDMPrecond", {"model_type": "SongUnet"}, "unknown network 'SongUnet': did you mean 'SongUNet'"),
        ("EDMPrecond", {"model_type": "SongUNet", "encoder_type": "skipped"}, "did you mean 'skip'"),
        ("EDMPrecond", {"model_type": "SongUNet", "depth": 3}, "SongUNet has no argument 'depth'"),
        ("VEPrecond", {"sigma_data": 0.5}, "SongUNet has no argument 'sigma_data'"),
        ("EDMPrecond", {"encoder_type": "skip"}, "DhariwalUNet has no argument 'encoder_type'"),
    ],
)
def test_an_unknown_network_is_told(precond, change, says):
    with pytest.raises(UserError, match=says):
        Preconditioned(precond, SMALL | change)


def test_it_can_be_guided_by_no_means(edm_library, tmp_path):
    net, kwargs = network("adm")
    (tmp_path / "edm.pkl").write_bytes(written(net, kwargs, edm_library))
    with pytest.raises(
        UserError, match="model.guidance: must be 1 for a model that was never trained without one, got 2"
    ):
        models.load({"kind": "edm", "weights": str(tmp_path / "edm.pkl"), "guidance": 2.0})

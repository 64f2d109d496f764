"""Files from strangers: a hostile one of each kind runs nothing, reads and writes nothing that it should not, fills no
memory, and is refused in one sentence."""

import ast
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import imports
from support.hostile import MARK, Hostile, said_of
from support.pipeline import ROOT
from support.problems import NOISES

from s4spipe import models
from s4spipe.commands.cli import main
from s4spipe.evaluation import real
from s4spipe.features.base import loading
from s4spipe.models.edm import reader
from s4spipe.pipeline import params
from s4spipe.runtime.files import read_array, read_json, read_tensors, write_json
from s4spipe.sampling.tableau import Tableau
from s4spipe.solvers import registry, timesteps

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("place")  # in which nothing hostile may appear


@pytest.fixture(scope="module")
def net():
    return loading.load("digits", str(ROOT / "models/features.safetensors"), CPU)


# Pickles


def by_hand(*opcodes):
    return b"\x80\x04" + b"".join(opcodes) + b"."


def word(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (pickle.dumps({"ema": Hostile()}), "it asks for posix.system"),
        (pickle.dumps({"ema": Hostile(eval, f"open('{MARK}', 'w')")}), "it asks for builtins.eval"),
        (by_hand(word("collections"), word("OrderedDict.__init__.__globals__"), b"\x93"), "it asks for collections."),
        (by_hand(word("builtins"), word("set.__subclasses__"), b"\x93"), "it asks for builtins.set.__subclasses__"),
        (by_hand(word("torch"), word("float16.__class__"), b"\x93"), "it asks for torch.float16.__class__"),
        (b"cos\nsystem\n(S'touch hacked'\ntR.", "it asks for os.system"),
        (b"(S'touch hacked'\nios\nsystem\n.", "it asks for os.system"),
        (b"Pposix.system\n.", "not a complete EDM checkpoint"),  # a persistent id
        (b"\x82\x01.", "not a complete EDM checkpoint"),  # a registered extension
        (pickle.dumps({"ema": Hostile(torch.storage._load_from_bytes, pickle.dumps(Hostile()))}), "not a complete EDM"),
        (pickle.dumps({"ema": {"class_name": "EDMPrecond", "state": 5}}), "not a complete EDM"),
    ],
)
def test_a_pickle_has_no_way_out_of_the_reader(data, says):
    Path("edm.pkl").write_bytes(data)
    assert says in said_of(lambda: models.load({"kind": "edm", "weights": "edm.pkl"}))


def test_what_the_reader_allows_cannot_be_altered_by_a_pickle():
    """BUILD sets the attributes of what it is given; the next file finds the reader as it was."""
    setstate = b"}" + word("__code__") + b"K\x01s"
    for module, name in (("torch_utils.persistence", "_reconstruct_persistent_obj"), ("dnnlib.util", "EasyDict")):
        data = by_hand(word(module), word(name), b"\x93", b"N", setstate, b"\x86b")
        Path("edm.pkl").write_bytes(data)
        said_of(lambda: reader.read("edm.pkl"))
    allowed = reader._allowed()
    assert allowed["torch_utils.persistence", "_reconstruct_persistent_obj"]({"a": 1}) == {"a": 1}
    assert not hasattr(allowed["dnnlib.util", "EasyDict"], "__code__")


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((10**6,), (1,), 0), ((2,), (10**9,), 0), ((1,), (1,), 99), ((2,), (-1,), 1)]
)
def test_a_tensor_reads_nothing_beyond_its_storage(size, stride, offset):
    rebuild = reader._allowed()["torch._utils", "_rebuild_tensor_v2"]
    with pytest.raises(RuntimeError):
        rebuild(torch.zeros(8), offset, size, stride)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"img_resolution": "8"},
        {"img_resolution": 8, "channel_mult": None},
        {"img_resolution": 8, "model_channels": -1},
        {"img_resolution": 8, "num_blocks": 0.5},
        {"img_resolution": [], "attn_resolutions": 7},
        {"img_resolution": 8, "num_blocks": 10**12},
        {"img_resolution": 8, "model_channels": 10**6, "channel_mult": [10**3]},
        {"img_resolution": 8, "label_dim": 10**12},
    ],
)
def test_a_network_of_senseless_arguments_is_told(kwargs):
    write = {"s4spipe": json.dumps({"edm": {"precond": "EDMPrecond", "kwargs": {"model_type": "SongUNet"} | kwargs}})}
    save_file({"x": torch.zeros(1)}, "edm.safetensors", write)
    assert "edm.safetensors: " in said_of(lambda: models.load({"kind": "edm", "weights": "edm.safetensors"}))


def test_torch_reads_weights_only_wherever_it_reads():
    for path in imports.modules("s4spipe", "stages", "benchmarks"):
        for node in ast.walk(imports.parse(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{path}:{node.lineno}"


def test_weights_of_a_perceptual_network_are_no_program():
    pytest.importorskip("lpips")
    Path("vgg.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save({"features.0.weight": Hostile()}, "alex.pth")
    for name in ("vgg.pth", "alex.pth"):
        assert f"{name}: not a complete file of weights" in said_of(lambda: loading.load("lpips", name, CPU))


# Arrays and statistics


def test_pickled_arrays_are_no_images_and_no_statistics(net):
    np.save("x.npy", np.array([Hostile()]), allow_pickle=True)
    np.savez("x.npz", mu=np.array([Hostile()] * 64), sigma=np.eye(64))
    Path("y.npy").write_bytes(pickle.dumps(Hostile()))
    Path("y.npz").write_bytes(pickle.dumps(Hostile()))
    for name in ("x.npy", "x.npz", "y.npy", "y.npz"):
        said = said_of(lambda: real.read(name, net, CPU))
        assert said.startswith(f"{name}: ")
        assert name.endswith(".npz") or "save it again" in said


def header(shape, version=(1, 0), descr="<f8"):
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def bomb(name, start, zeros):
    """An .npz whose member `mu` unpacks to many bytes from a thousandth of them."""
    with (
        zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("mu.npy", "w", force_zip64=True) as file,
    ):
        file.write(start)
        for _ in range(zeros >> 24):
            file.write(bytes(1 << 24))


@pytest.mark.parametrize(
    "start",
    [header((2**24,)), header((64, 2**18)), header((), (2, 0))[:8] + struct.pack("<I", 2**31 - 1), b""],
    ids=["long", "wide", "long header", "no header"],
)
def test_a_bomb_of_statistics_does_not_unpack(start, net):
    bomb("x.npz", start, 2**27)
    assert Path("x.npz").stat().st_size < 2**20
    tracemalloc.start()
    assert said_of(lambda: real.read("x.npz", net, CPU)).startswith("x.npz: ")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize(
    "shape",
    [f"({10**12},)", f"({2**62}, 4)", f"({2**40}, 3, 2048, 2048)", "(-5,)", "(3.5,)", "'x'",
     "[" * 150 + "]" * 150, "open('hacked', 'w')"],
)  # fmt: skip
def test_an_array_shorter_than_its_header_says_is_refused(shape, net):
    Path("x.npy").write_bytes(header(shape, descr="|u1") + bytes(100))
    assert "x.npy: not a complete .npy file" in said_of(lambda: read_array("x.npy"))
    assert "x.npy: not a complete .npy file" in said_of(lambda: real.read("x.npy", net, CPU))


def test_tensors_that_lie_about_their_size_are_refused():
    about = {"x": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}, "__metadata__": {"s4spipe": "{}"}}
    data = json.dumps(about).encode()
    Path("x.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + bytes(64))
    assert "x.safetensors: not a complete safetensors file" in said_of(lambda: read_tensors("x.safetensors"))
    Path("x.safetensors").write_bytes(struct.pack("<Q", 2**62) + data)
    assert "x.safetensors: not a complete safetensors file" in said_of(lambda: read_tensors("x.safetensors"))
    save_file({"x": torch.zeros(1)}, "x.safetensors", {"s4spipe": "[" * 10**5})
    assert "not one that s4spipe wrote" in said_of(lambda: read_tensors("x.safetensors"))


# YAML and JSON


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"nfe: !!python/object/apply:os.system ['touch {MARK}']", "not valid YAML"),
        (f"nfe: !!python/object/new:os.system ['touch {MARK}']", "not valid YAML"),
        (f"!!python/module:{MARK}", "not valid YAML"),
        (f"nfe: !!python/name:os.system '{MARK}'", "not valid YAML"),
        ("nfe: [*again]", "not valid YAML"),
        ("{" * 500, "not valid YAML"),
        ("- " * 10**4, "not valid YAML"),
        ("a: " + "[" * 10**6, "not valid YAML (line 1: more than 100 levels of nesting)"),
        ("a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in
         zip("abcdefgh", "bcdefghi", strict=True)), "its anchors and aliases make more than 100,000 values"),
    ],
)  # fmt: skip
def test_yaml_is_data(text, says):
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert f"params.yaml: {says}" in said_of(params.load)


DEEP = "[" * 10**5 + "]" * 10**5


@pytest.mark.parametrize("text", [DEEP, '{"a":' * 10**5, "9" * 10**5, "\0", '{"schema": ' + DEEP + "}"])
def test_deep_json_is_refused_wherever_it_is_read(text):
    for path in ("solver.json", "inputs/schedules/mine.json", "model/model_index.json"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
        assert f"{path}: not valid JSON" in said_of(lambda: read_json(path))
    said_of(lambda: Tableau.load("solver.json"))
    said_of(lambda: models.load({"kind": "diffusers", "weights": "model"}))


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "x" * 101])
def test_a_solvers_name_cannot_steer_a_terminal(name):
    noise = NOISES["ve"]
    registry.build("ddim", noise, timesteps.build("edm", noise, 2)).save("solver.json")
    write_json("solver.json", read_json("solver.json") | {"name": name})
    assert "solver.json: tableau entry name must be 1 to 100 printable characters" in said_of(
        lambda: Tableau.load("solver.json")
    )


def test_the_command_line_says_one_sentence_of_a_hostile_file(place):
    Path("solver.json").write_text(DEEP, encoding="utf-8")
    result = CliRunner().invoke(main, ["show", "solver.json"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: solver.json: not valid JSON")
    assert len(result.output.splitlines()) == 1

"""The frozen CNN: features against timm's own, weights, engines, and use after a fork."""

import importlib.util
import itertools
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import BackboneConfig
from pipeline.features import engines
from pipeline.features.backbone import Backbone, Grid, resize_and_crop

CPU = torch.device("cpu")
ENGINES = ["torch"] + ["openvino"] * bool(importlib.util.find_spec("openvino"))


def pictures(sizes=((240, 320), (320, 240), (96, 96), (480, 854))):
    """Smooth random pictures of several sizes, uint8 [H,W,3] each."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)) for _ in sizes]
    return [np.asarray(picture.resize((w, h), Image.BICUBIC)) for picture, (h, w) in zip(coarse, sizes, strict=True)]


def transformed(backbone, frames):
    batches = [torch.tensor(frame).permute(2, 0, 1)[None] for frame in frames]
    return np.concatenate([backbone.transform(batch).numpy() for batch in batches])


def reference_features(backbone, name, frames, crop="none"):
    """The plain way: timm's model in fp32, timm's transform to a normalised tensor."""
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict({key: value.cpu() for key, value in backbone.state.items()})
    data = timm.data.resolve_model_data_config(model)
    if crop == "none":
        data |= {"crop_mode": "squash", "crop_pct": 1}
    transform = timm.data.create_transform(**data, is_training=False)
    with torch.inference_mode():
        return model(torch.stack([transform(Image.fromarray(frame)) for frame in frames])).numpy()


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def least_cosine(backbone):
    """Rounding to bf16, which is chosen where the processor has it, costs a thousandth."""
    return 0.997 if backbone.precision == "bf16" else 0.9999


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop, height, width", [("center", 224, 224), ("squash", 224, 208)])
def test_pixels_are_those_of_timm(crop, height, width, mode):
    data = {"input_size": (3, height, width), "interpolation": mode, "crop_pct": 0.9, "crop_mode": crop}
    transform = pickle.loads(pickle.dumps(resize_and_crop(data)))
    reference = timm.data.create_transform(**data, is_training=False, normalize=False)
    for frame in pictures():
        pixels = transform(torch.tensor(frame).permute(2, 0, 1)[None])[0]
        expected = reference(Image.fromarray(frame))
        assert pixels.dtype == expected.dtype and pixels.shape == expected.shape
        assert (pixels.float() - expected.float()).abs().mean() < 0.1


@pytest.mark.parametrize("engine", ENGINES)
def test_features_are_those_of_timm(engine):
    """In the precision that is chosen here. A batch changes nothing."""
    backbone = Backbone(BackboneConfig(engine=engine), CPU)
    frames = transformed(backbone, pictures() * 2)
    features = backbone(frames)
    assert features.dtype == np.float16 and features.shape == (8, 4 * 1280)
    expected = reference_features(backbone, "tf_efficientnet_lite0", pictures())
    assert cosines(features[:4, :1280], expected).min() >= least_cosine(backbone)
    assert np.array_equal(features[1:4], backbone(frames[5:8]))
    assert least_cosine(backbone) < backbone.cosine_to_fp32() <= 1 + 1e-9


@pytest.mark.skipif(len(ENGINES) < 2, reason="openvino is not installed")
def test_engines_agree():
    one, other = (Backbone(BackboneConfig(engine=engine), CPU) for engine in ENGINES)
    frames = transformed(one, pictures())
    assert cosines(one(frames), other(frames)).min() >= least_cosine(other) and one.identity == other.identity
    assert "openvino.tools.ovc" in sys.modules and not sys.modules["openvino_telemetry"]


def test_the_crop_is_that_of_timm():
    features = {}
    for crop in ("none", "timm"):
        backbone = Backbone(BackboneConfig(view="pooled", crop=crop), CPU)
        features[crop] = backbone(transformed(backbone, pictures()))
        expected = reference_features(backbone, "tf_efficientnet_lite0", pictures(), crop)
        assert cosines(features[crop], expected).min() >= least_cosine(backbone)
    assert cosines(*features.values()).max() < 0.99


def test_the_grid_is_made_of_the_stages():
    """The same by hand: each stage averaged over cells and scaled, and all of a cell projected."""
    backbone = Backbone(BackboneConfig(engine="torch"), CPU)
    frames = transformed(backbone, pictures())
    features = backbone(frames)
    grid, stages = backbone.network.view, []
    for block in (2, 4, 6):  # Strides of 8, 16 and 32.
        grid.model.blocks[block].register_forward_hook(lambda module, given, output: stages.append(output.numpy()))
    with torch.inference_mode():
        backbone.network(torch.from_numpy(frames))
    cells = []
    for stage in stages:
        parts = np.empty((*stage.shape[:2], 4, 4))
        for row, column in itertools.product(range(4), range(4)):
            side = stage.shape[2] / 4
            ys, xs = (slice(math.floor(at * side), math.ceil((at + 1) * side)) for at in (row, column))
            parts[:, :, row, column] = stage[:, :, ys, xs].mean((2, 3))
        cells.append(parts / np.sqrt((parts**2).mean((1, 2, 3), keepdims=True)))
    expected = np.einsum("kc,ncyx->nkyx", grid.projection[:, :, 0, 0].numpy(), np.concatenate(cells, 1))
    np.testing.assert_allclose(features[:, 1280:], expected.reshape(len(frames), -1), atol=0.01)


def test_the_weights_are_of_imagenet():
    """Golden numbers of the default weights on a fixed picture."""
    backbone = Backbone(BackboneConfig(precision="fp32", view="pooled", crop="timm"), CPU)
    features = backbone(transformed(backbone, pictures()[:1]))[0].astype(np.float32)
    assert backbone.identity["weights_sha256"].startswith("653246f58bc51a83")
    strongest = np.argsort(-features)[:5]
    assert strongest.tolist() == [1259, 71, 140, 897, 747]
    np.testing.assert_allclose(features[strongest], [5.54, 5.26, 2.74, 2.64, 2.61], rtol=0.01)


@pytest.mark.parametrize("suffix, classifier", [(".safetensors", True), (".pth", True), (".pth", False)])
def test_weights_from_a_file(tmp_path, suffix, classifier):
    model = timm.create_model("mobilenetv3_small_050")
    if not classifier:
        model.reset_classifier(0)
    path = tmp_path / f"weights{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    backbone = Backbone(BackboneConfig(model="mobilenetv3_small_050", weights=path), CPU)
    features = backbone(transformed(backbone, pictures()))
    # The pooled part is timm's own output, of width 1024, not its num_features, 288.
    assert features.shape == (4, 4 * 1024)
    expected = reference_features(backbone, "mobilenetv3_small_050", pictures())
    assert cosines(features[:, :1024], expected).min() >= least_cosine(backbone)


@pytest.mark.parametrize("name", ["coat_tiny", "swin_tiny_patch4_window7_224"])
def test_saved_weights_are_read_again(tmp_path, name):
    """Also of a model that has one tensor under two names, and of one whose published weights timm renames."""
    torch.save(timm.create_model(name, num_classes=0).state_dict(), tmp_path / "weights.pth")
    config = BackboneConfig(model=name, weights=tmp_path / "weights.pth", view="pooled")
    backbone = Backbone(config, CPU)
    (tmp_path / "saved.safetensors").write_bytes(backbone.saved())
    again = Backbone(config, CPU, tmp_path / "saved.safetensors")
    assert again.identity == backbone.identity and again.saved() == backbone.saved()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tf_efficientnet_lite0", lambda: timm.create_model("mobilenetv3_small_050").state_dict(), "key.s. in state_"),
        ("resnet18", lambda: timm.create_model("resnet34").state_dict(), r"Unexpected key.s. in state_dict: .layer1\."),
        ("resnet18", lambda: {f"encoder.{k}": v for k, v in timm.create_model("resnet18").state_dict().items()}, "key"),
        ("resnet10t", lambda: timm.create_model("resnet10t"), r"not a plain state_dict; save model\.state_dict\(\)"),
        ("resnet10t", lambda: [torch.zeros(1)], ""),
        ("resnet10t", lambda: b"x" * 100, ""),
        ("resnet10t", lambda: b"", ""),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, name, content, message):
    """timm itself would load the tensors that fit, and leave random weights in the others."""
    path, content = tmp_path / "weights.pth", content()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(KinemaError, match=rf"weights\.pth: weights do not fit {name}: .*{message}") as caught:
        Backbone(BackboneConfig(model=name, weights=path), CPU)
    assert "\n" not in str(caught.value)


def test_a_download_that_fails_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(KinemaError, match=r"cannot load the weights of 'resnet18' \(no route to host\); connect"):
        Backbone(BackboneConfig(model="resnet18"), CPU)


@pytest.mark.parametrize(
    "settings, device, message",
    [
        ({"model": "resnet5O"}, "cpu", "did you mean 'resnet50'"),
        ({"weights": "none.pth"}, "cpu", "no such weight file"),
        ({"precision": "fp16"}, "cpu", "has no fp16 on a CPU; use auto or fp32"),
        ({"precision": "bf16", "engine": "torch"}, "cpu", "torch has no bf16 on a CPU; use auto or fp32"),
        ({"engine": "openvino"}, "cuda", "openvino runs on the CPU only"),
    ],
)
def test_settings_that_cannot_work_here_are_config_errors(settings, device, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "weights" in settings:
        settings = {"weights": tmp_path / settings["weights"]}
    with pytest.raises(ConfigError, match=message):
        Backbone(BackboneConfig(**settings), torch.device(device))


def test_models_that_cannot_run_are_config_errors():
    with pytest.raises(ConfigError, match="no intermediate features; use --backbone.view pooled"):
        Grid(torch.nn.Flatten())
    with pytest.raises(ConfigError, match="torch fp32 cannot run this model"):
        engines.start(torch.nn.Linear(3, 3), CPU, (3, 8, 8), "torch", "fp32")


FORK = """
import os, sys
import numpy as np, torch
from pipeline.config import BackboneConfig
from pipeline.features.backbone import Backbone

torch.set_num_threads(2)
torch.nn.functional.layer_norm(torch.ones(64, 16, 256), (256,))  # Starts OpenMP's threads.
backbone = Backbone(BackboneConfig(engine=sys.argv[1], precision="fp32"), torch.device("cpu"))
frames = np.random.default_rng(0).integers(0, 256, (5, 3, 224, 224), dtype=np.uint8)
expected = backbone(frames)
child = os.fork()
features = backbone(frames)
torch.nn.functional.layer_norm(torch.ones(64, 16, 256), (256,))
close = np.allclose(features, expected, atol=0.01)
if child:
    _, status = os.waitpid(child, 0)
    sys.exit(status != 0 or not close)
del backbone
sys.exit(not close)
"""


def test_a_backbone_can_be_used_after_a_fork():
    """The engine's threads and OpenMP's do not exist in the child: waiting for them would never end. Destroying the
    parent's OpenVINO engine there would abort."""
    subprocess.run([sys.executable, "-c", FORK, ENGINES[-1]], check=True, timeout=120)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_gpu_features_are_those_of_the_cpu(precision):
    gpu = Backbone(BackboneConfig(precision=precision), torch.device("cuda"))
    cpu = Backbone(BackboneConfig(engine="torch"), CPU)
    frames = transformed(cpu, pictures() * 40)
    assert cosines(gpu(frames), cpu(frames)).min() >= 0.999

import importlib.util
import itertools
import json
import math
import pickle
import sys
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.base.errors import ConfigError, KinemaError
from pipeline.config import BackboneConfig, DecodeConfig, SamplingConfig
from pipeline.data.clip import Clip
from pipeline.features import engines
from pipeline.features.backbone import Backbone, resize_and_crop
from pipeline.features.extraction import clip_features
from pipeline.features.grid import Grid

from conftest import write_video

CPU = torch.device("cpu")


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


def require_openvino():
    if not importlib.util.find_spec("openvino"):  # Not imported here, for the engine is to do it in its own way.
        pytest.skip("openvino is not installed")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", ["center", "squash"])
def test_pixels_are_those_of_timm(crop, mode):
    data = {"input_size": (3, 224, 208), "interpolation": mode, "crop_pct": 0.9, "crop_mode": crop}
    if crop == "center":
        data["input_size"] = (3, 224, 224)  # Others go through timm's own code.
    transform = pickle.loads(pickle.dumps(resize_and_crop(data)))
    reference = timm.data.create_transform(**data, is_training=False, normalize=False)
    for frame in pictures():
        pixels = transform(torch.tensor(frame).permute(2, 0, 1)[None])[0]
        expected = reference(Image.fromarray(frame))
        assert pixels.dtype == expected.dtype and pixels.shape == expected.shape
        assert (pixels.float() - expected.float()).abs().mean() < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_features_are_those_of_timm(engine, precision):
    if engine == "openvino":
        require_openvino()
    if precision not in ("fp32", *engines.lower_precision(CPU)):
        pytest.skip("this CPU emulates bf16")
    backbone = Backbone(BackboneConfig(engine=engine, precision=precision), CPU)
    frames = pictures()
    features = backbone(transformed(backbone, frames))
    assert features.dtype == np.float16 and features.shape == (4, 4 * 1280)
    assert cosines(features[:, :1280], reference_features(backbone, "tf_efficientnet_lite0", frames)).min() >= 0.999


def test_the_crop_is_that_of_timm():
    frames = pictures()
    features = {}
    for crop in ("none", "timm"):
        backbone = Backbone(BackboneConfig(engine="torch", precision="fp32", view="pooled", crop=crop), CPU)
        features[crop] = backbone(transformed(backbone, frames))
        expected = reference_features(backbone, "tf_efficientnet_lite0", frames, crop)
        assert cosines(features[crop], expected).min() >= 0.999
    assert cosines(*features.values()).max() < 0.99


def test_the_grid_is_made_of_the_stages():
    """The same by hand: each stage averaged over cells and scaled, and all of a cell projected."""
    backbone = Backbone(BackboneConfig(engine="torch", precision="fp32"), CPU)
    frames = transformed(backbone, pictures())
    grid = backbone._network.view
    stages = []
    for block in (2, 4, 6):  # Strides of 8, 16 and 32.
        grid.model.blocks[block].register_forward_hook(lambda module, given, output: stages.append(output.numpy()))
    with torch.inference_mode():
        backbone._network(torch.from_numpy(frames))
    cells = []
    for stage in stages:
        parts = np.empty((*stage.shape[:2], 4, 4))
        for row, column in itertools.product(range(4), range(4)):
            side = stage.shape[2] / 4
            ys, xs = (slice(math.floor(at * side), math.ceil((at + 1) * side)) for at in (row, column))
            parts[:, :, row, column] = stage[:, :, ys, xs].mean((2, 3))
        cells.append(parts / np.sqrt((parts**2).mean((1, 2, 3), keepdims=True)))
    expected = np.einsum("kc,ncyx->nkyx", grid.projection[:, :, 0, 0].numpy(), np.concatenate(cells, 1))
    features = Backbone(BackboneConfig(engine="torch", precision="fp32"), CPU)(frames)
    np.testing.assert_allclose(features[:, 1280:], expected.reshape(len(frames), -1), atol=0.01)


class OneLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 3)

    def forward(self, frames_N3HW):
        return self.convolution(frames_N3HW.float()).mean((2, 3))


def test_an_engine_is_chosen_once_and_only_if_it_is_right(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network, shape = OneLayer().eval(), (3, 32, 32)
    choices = [engines.choose(network, CPU, "auto", "auto", shape, "one layer") for _ in range(2)]
    assert choices[0] == choices[1] and choices[0].cosine >= 0.999
    assert capsys.readouterr().err.count("trying which engine") == 1
    memory = tmp_path / "kinema" / "engines.json"
    [key] = json.loads(memory.read_text())
    memory.unlink()
    of_another_process, measure = ("torch", "fp32", 1.0, 1.0), engines._measure

    def measure_meanwhile(*arguments):
        memory.write_text(json.dumps({key: of_another_process}))
        return measure(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engines, "_measure", measure_meanwhile)
        assert engines.choose(network, CPU, "auto", "auto", shape, "one layer") == of_another_process
    for damaged in ("damaged", "[]", '{"key": 1}'):
        memory.write_text(damaged)
        assert engines.choose(network, CPU, "torch", "fp32", shape, "one layer").engine == "torch"


def test_an_engine_that_cannot_run_a_model_is_passed_over(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "_start_openvino", lambda parts, blank: parts[1])  # An error of its own kind.
    choice = engines.choose(OneLayer().eval(), CPU, "auto", "fp32", (3, 32, 32), "one layer")
    assert choice.engine == "torch" and "openvino fp32 cannot run this model" in capsys.readouterr().err


def test_a_fast_engine_that_is_wrong_is_not_taken(tmp_path, monkeypatch):
    def wrong(frames):
        time.sleep(1e-4)
        return np.eye(1, 16).repeat(len(frames), 0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "openvino")
    monkeypatch.setattr(engines, "_openvino", lambda: torch)  # Only its version is asked for.
    monkeypatch.setattr(engines, "_start_openvino", lambda *_: wrong)
    assert engines.choose(OneLayer().eval(), CPU, "auto", "fp32", (3, 32, 32), "one layer").engine == "torch"


def test_openvino_sends_no_telemetry():
    require_openvino()
    engines.start(torch.nn.Flatten(), CPU, "openvino", "fp32", (3, 8, 8))
    assert "openvino.tools.ovc" in sys.modules and not sys.modules["openvino_telemetry"]


def test_what_cannot_run_here_is_a_config_error():
    with pytest.raises(ConfigError, match="fp16 is for GPUs"):
        engines.start(OneLayer(), CPU, "torch", "fp16", (3, 32, 32))
    no_convolution = torch.nn.Flatten()
    with pytest.raises(ConfigError, match="no stages to make a grid of; use pooled"):
        Grid(no_convolution)
    with pytest.raises(ConfigError, match="cannot be cut"):
        engines.start(no_convolution, CPU, "torch", "bf16", (3, 224, 224))


def test_features_that_are_no_numbers_are_a_failure(tmp_path):
    """Weights so large that features leave the range of float16."""
    state = {name: tensor * 50 for name, tensor in timm.create_model("test_efficientnet").state_dict().items()}
    save_file(state, tmp_path / "large.safetensors")
    config = dict(model="test_efficientnet", weights=tmp_path / "large.safetensors", engine="torch", precision="fp32")
    backbone = Backbone(BackboneConfig(**config, view="pooled"), torch.device("cpu"))
    path = write_video(tmp_path / "a.mp4", "libx264", frames=4)
    clips = [Clip(id="a", path=path, label="", group="")]
    [(_, outcome)] = clip_features(clips, backbone, SamplingConfig(frames=2), DecodeConfig(workers=1))
    assert "features overflow in torch fp32" in outcome.reason and "--backbone.view grid" in outcome.reason


def test_features_do_not_depend_on_the_batch():
    backbone = Backbone(BackboneConfig(), CPU)
    frames = transformed(backbone, pictures() * 6)
    assert np.array_equal(backbone(frames)[5:8], backbone(frames[5:8]))


def test_the_weights_are_of_imagenet():
    """Golden numbers: the embedded weights on a fixed picture, so that another file or order of tensors is noticed."""
    backbone = Backbone(BackboneConfig(precision="fp32", view="pooled", crop="timm"), CPU)
    features = backbone(transformed(backbone, pictures()[:1]))[0].astype(np.float32)
    assert backbone.description["weights_sha256"].startswith("653246f58bc51a83")
    strongest = np.argsort(-features)[:5]
    assert strongest.tolist() == [1259, 71, 140, 897, 747]
    np.testing.assert_allclose(features[strongest], [5.54, 5.26, 2.74, 2.64, 2.61], rtol=0.01)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_of_weights(tmp_path, suffix):
    torch.manual_seed(0)
    state = timm.create_model("mobilenetv3_small_050").state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    backbone = Backbone(BackboneConfig(model="mobilenetv3_small_050", weights=path), CPU)
    frames = pictures()
    features = backbone(transformed(backbone, frames))
    # The pooled part is what timm's model gives, 1024, not its num_features, 288.
    assert features.shape == (4, 4 * 1024)
    assert cosines(features[:, :1024], reference_features(backbone, "mobilenetv3_small_050", frames)).min() >= 0.999


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("mobilenetv3_small_050").state_dict(), path)
    with pytest.raises(KinemaError, match="weights do not fit tf_efficientnet_lite0.*size mismatch for") as caught:
        Backbone(BackboneConfig(weights=path), CPU)
    assert "\n" not in str(caught.value)
    save_file(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(KinemaError, match=r"the file has \d+ tensors more than it, such as layer\d\.\d\."):
        Backbone(BackboneConfig(model="resnet18", weights=path), CPU)
    torch.save(timm.create_model("resnet10t"), tmp_path / "model.pth")
    with pytest.raises(
        KinemaError,
        match=r"model\.pth: weights do not fit resnet10t: not a plain state_dict; save model\.state_dict\(\)",
    ):
        Backbone(BackboneConfig(model="resnet10t", weights=tmp_path / "model.pth"), CPU)


def test_a_file_with_other_names_or_no_weights_is_refused(tmp_path):
    """timm itself would load what fits, here nothing, and go on with random weights."""
    state = {f"encoder.{key}": value for key, value in timm.create_model("mobilenetv3_small_050").state_dict().items()}
    save_file(state, tmp_path / "renamed.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "empty.pth").touch()
    for name in ("renamed.safetensors", "damaged.safetensors", "empty.pth"):
        with pytest.raises(KinemaError, match=f"{name}: weights do not fit mobilenetv3_small_050"):
            Backbone(BackboneConfig(model="mobilenetv3_small_050", weights=tmp_path / name), CPU)


def test_unknown_names_are_config_errors(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        Backbone(BackboneConfig(model="resnet5O"), CPU)
    with pytest.raises(ConfigError, match="no such weight file"):
        Backbone(BackboneConfig(weights=tmp_path / "none.pth"), CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_gpu_features_are_those_of_the_cpu(precision):
    gpu = Backbone(BackboneConfig(precision=precision), torch.device("cuda"))
    cpu = Backbone(BackboneConfig(engine="torch", precision="fp32"), CPU)
    frames = transformed(cpu, pictures() * 40)
    assert cosines(gpu(frames), cpu(frames)).min() >= 0.999

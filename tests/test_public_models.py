"""Public models: RobustBench's and timm's names and numbers, files of weights, import, export, measurement."""

import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

import gradalign_jax
import peers
from configs import cifar10
from gradalign_jax import convert, data, models, training
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import closest, estimates
from gradalign_jax.models import pretrained
from gradalign_jax.storage import weights
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.tasks import evaluate
from gradalign_jax.types import Batch

KEY = jax.random.key(0)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
NARROW = {"blocks": (1, 1, 1, 1), "width": 8}


def varied(model, rng=None):
    """Return random variables; none has an initial value, where a scale of 1 would go unnoticed."""
    rng = rng or np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("mu", "sigma"):
            return leaf
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(name, (-0.2, 0.2))
        if name == "kernel":
            high = np.sqrt(3 / np.prod(leaf.shape[:-1]))
            low = -high
        return jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model.init(KEY))


def images(count=2, size=32):
    return np.random.default_rng(3).uniform(0, 1, (count, size, size, 3)).astype(np.float32)


def check_same(logits_fn, torch_logits_fn, image):
    """Compare logits and input gradients: ours of images in [-1, 1], PyTorch's of the same images in [0, 1]."""
    import torch

    theirs = torch.tensor(image).permute(0, 3, 1, 2).requires_grad_()
    expected = torch_logits_fn(theirs)
    cotangent = np.random.default_rng(4).normal(size=expected.shape).astype(np.float32)
    expected.backward(torch.tensor(cotangent))

    @jax.jit
    def ours(x):
        logits, pull_back = jax.vjp(logits_fn, x)
        return logits, pull_back(jnp.asarray(cotangent))[0]

    logits, gradient = ours(2 * image - 1)
    np.testing.assert_allclose(logits, expected.detach(), atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(2 * gradient, theirs.grad.permute(0, 2, 3, 1), atol=2e-4 * np.abs(gradient).max())


# ---- names and numbers, against the same networks in a few lines of PyTorch

ACTIVATED, RAW = True, False


def torch_network(tensors, blocks, names, activated=ACTIVATED, swish=False):
    """Return a network as a function of images in [0, 1], written from the layers' names (stem, ..., head)."""
    import torch
    from torch.nn import functional as F

    t = {name: torch.tensor(value) for name, value in tensors.items()}
    stem, norm1, conv1, norm2, conv2, shortcut, last, head = names
    act = F.silu if swish else F.relu

    def norm(name, x):
        parts = (t[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return act(F.batch_norm(x, *parts))

    def conv(name, x, stride=1, padding=1):
        return F.conv2d(x, t[f"{name}.weight"], stride=stride, padding=padding)

    def network(x):
        x = conv(stem, (x - t.get("mu", 0)) / t.get("sigma", 1))
        for name, stride in blocks:
            seen = norm(f"{name}.{norm1}", x)
            padded, padding = (F.pad(seen, (0, 1, 0, 1)), 0) if swish and stride == 2 else (seen, 1)
            y = norm(f"{name}.{norm2}", conv(f"{name}.{conv1}", padded, stride, padding))
            if f"{name}.{shortcut}.weight" in t:
                x = conv(f"{name}.{shortcut}", seen if activated else x, stride, 0)
            x = x + conv(f"{name}.{conv2}", y)
        x = norm(last, x) if last else x
        return F.linear(x.mean((2, 3)), t[f"{head}.weight"], t[f"{head}.bias"])

    return network


PREACT = ("conv1", "bn1", "conv1", "bn2", "conv2", "shortcut.0", "bn", "linear")
TRADES = ("conv1", "bn1", "conv1", "bn2", "conv2", "convShortcut", "bn1", "fc")
DEEPMIND = ("init_conv", "batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut", "batchnorm", "logits")
FOUR = [("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2), ("layer4.0", 2)]
THREE = [("block1.layer.0", 1), ("block1.layer.1", 1), ("block2.layer.0", 2), ("block2.layer.1", 1)]
THREE += [("block3.layer.0", 2), ("block3.layer.1", 1)]
DEEP = [("layer.0.block.0", 1), ("layer.1.block.0", 2), ("layer.2.block.0", 2)]
NETWORKS = {
    "rice2020": ("preact_resnet", NARROW | {"mean": MEAN, "std": STD}, (FOUR, PREACT)),
    "wong2020": ("preact_resnet", NARROW | {"final_norm": False}, (FOUR, (*PREACT[:6], "", "linear"), RAW)),
    "trades": ("wide_resnet", {"depth": 16, "width": 1}, (THREE, TRADES)),
    "deepmind": ("wide_resnet", {"depth": 10, "width": 2, "style": "deepmind"}, (DEEP, DEEPMIND, ACTIVATED, True)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_torch_networks_have_the_same_logits_and_gradients(kind):
    pytest.importorskip("torch")
    name, options, peer = NETWORKS[kind]
    model = models.create(name, num_classes=10, **options)
    variables = varied(model)
    peer = torch_network(pretrained.to_torch(variables), *peer)
    check_same(lambda x: model.apply(variables, x)[0], peer, images(size=16))


FULL = {
    # The sizes that the models are known by.
    "PreActResNet-18": ("preact_resnet", {}, 11_172_170),
    "WRN-28-10": ("wide_resnet", {}, 36_479_194),
    "WRN-34-10": ("wide_resnet", {"depth": 34}, 46_160_474),
    "WRN-28-10 of DeepMind": ("wide_resnet", {"style": "deepmind"}, 36_479_194),
}


@pytest.mark.parametrize("kind", FULL)
def test_full_size(kind):
    name, options, size = FULL[kind]
    variables = jax.eval_shape(models.create(name, num_classes=10, **options).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == size


# ---- RobustBench's classes


def robustbench_networks():
    """Return constructors of RobustBench's networks: the full sizes, and the smallest that its classes allow."""
    from torch.nn import SiLU

    resnet, wide, deepmind = map(peers.robustbench, ("resnet", "wide_resnet", "dm_wide_resnet"))

    def rice(blocks):
        return resnet.PreActResNet(resnet.PreActBlockV2, blocks, bn_before_fc=True)

    full = {
        "PreActResNet-18": lambda: rice([2, 2, 2, 2]),
        "WRN-28-10": lambda: wide.WideResNet(28, 10, 10),
        "WRN-34-10": lambda: wide.WideResNet(34, 10, 10),
        "WRN-28-10 of DeepMind": lambda: deepmind.DMWideResNet(10, 28, 10, deepmind.Swish),
    }
    one = {"blocks": (1, 1, 1, 1)}
    small = {
        "rice2020": ("preact_resnet", one, lambda: rice([1, 1, 1, 1])),
        "wong2020": (
            "preact_resnet",
            one | {"final_norm": False},
            lambda: resnet.PreActResNet(resnet.PreActBlock, [1, 1, 1, 1]),
        ),
        # With the block that its forward pass does not read.
        "trades": ("wide_resnet", {"depth": 10, "width": 2}, lambda: wide.WideResNet(10, 10, 2, sub_block1=True)),
        # Its own swish reads an attribute that newer PyTorch has removed; SiLU is the same function.
        "deepmind": (
            "wide_resnet",
            {"depth": 10, "width": 2, "style": "deepmind"},
            lambda: deepmind.DMWideResNet(10, 10, 2, SiLU),
        ),
    }
    return full, small


@pytest.mark.parametrize("kind", FULL)
def test_robustbench_has_the_same_names_and_shapes(kind):
    torch = pytest.importorskip("torch")
    name, options, _ = FULL[kind]
    with torch.device("meta"):  # without memory
        peer = robustbench_networks()[0][kind]().state_dict()
    theirs = {key: tuple(value.shape) for key, value in peer.items() if not key.endswith("num_batches_tracked")}
    variables = jax.eval_shape(models.create(name, num_classes=10, **options).init, KEY)
    blank = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables)
    ours = {key: value.shape for key, value in pretrained.to_torch(blank).items()}
    for buffer in ("mu", "sigma"):
        ours.pop(buffer)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["rice2020", "wong2020", "trades", "deepmind"])
def test_robustbench_has_the_same_logits_and_gradients(kind, tmp_path):
    torch = pytest.importorskip("torch")
    name, options, make = robustbench_networks()[1][kind]
    torch.manual_seed(0)
    peer = make().eval()
    for key, value in peer.state_dict().items():
        if key.endswith(("running_var", "running_mean")) or (value.ndim == 1 and key.endswith("weight")):
            value.uniform_(0.5, 1.5)
    path = tmp_path / "peer.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in peer.state_dict().items()}}, path)
    model = models.create(name, num_classes=10, **options)
    variables = pretrained.load(path, model.init(KEY))
    check_same(lambda x: model.apply(variables, x)[0], peer, images())


# ---- files


@pytest.fixture(scope="module")
def narrow():
    """A narrow PreActResNet and its tensors by PyTorch's names."""
    variables = varied(models.create("preact_resnet", num_classes=10, **NARROW, mean=MEAN, std=STD))
    return variables, pretrained.to_torch(variables)


def test_a_files_own_normalization_and_prefixes(narrow, tmp_path):
    variables, tensors = narrow
    unread = {"model.bn.num_batches_tracked": np.array(3), "module.sub_block1.layer.0.bn1.bias": np.ones(3, "float32")}
    save_file({f"module.model.{name}": value for name, value in tensors.items()} | unread, tmp_path / "w.safetensors")
    without = models.create("preact_resnet", num_classes=10, **NARROW).init(KEY)
    loaded = pretrained.load(tmp_path / "w.safetensors", without)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    renamed = {"normalize.mean": tensors["mu"], "normalize.std": tensors["sigma"]}
    rest = {f"model.{name}": value for name, value in tensors.items() if name not in ("mu", "sigma")}
    save_file(rest | renamed, tmp_path / "w.safetensors")
    np.testing.assert_allclose(pretrained.load(tmp_path / "w.safetensors", without)["batch_stats"]["sigma"], STD)
    save_file(rest, tmp_path / "w.safetensors")
    np.testing.assert_allclose(pretrained.load(tmp_path / "w.safetensors", without)["batch_stats"]["sigma"], 1)


def test_wrong_tensors_are_named(narrow, tmp_path):
    variables, tensors = narrow
    path = tmp_path / "w.safetensors"

    def refused(changed):
        save_file(changed, path)
        with pytest.raises(ValueError, match=r"w\.safetensors") as caught:
            pretrained.load(path, variables)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    lacking = {name: value for name, value in tensors.items() if not name.startswith("bn.")}
    assert "no tensor bn.running_mean (4 are missing)" in refused(lacking)
    deeper = {"layer1.1.conv1.weight": np.zeros((8, 8, 3, 3), "float32")}
    assert "the model has no tensor layer1.1.conv1.weight (1 are unknown)" in refused(tensors | deeper)
    message = refused(tensors | {"layer1.0.bn1.bias": np.zeros(16, "float32")})
    assert "layer1.0.bn1.bias has shape (16,) in the model's layout, the model's own has (8,)" in message
    assert "two tensors are called bn.bias" in refused(tensors | {"module.bn.bias": tensors["bn.bias"]})


def test_a_deeper_resnet_is_not_read_as_a_resnet_18(tmp_path):
    """ResNet-34 has all tensors of ResNet-18, in the same shapes, and more."""
    variables = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(models.create("resnet", num_classes=10).init, KEY)
    )
    deeper = {"layer1.2.conv1.weight": np.zeros((64, 64, 3, 3), "float32")}
    save_file(pretrained.to_torch(variables) | deeper, tmp_path / "resnet34.safetensors")
    with pytest.raises(ValueError, match=r"the model has no tensor layer1\.2\.conv1\.weight"):
        pretrained.load(tmp_path / "resnet34.safetensors", variables)


def test_torch_checkpoints(narrow, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    _, tensors = narrow
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    for stored, entry in (
        (state, ""),
        ({"epoch": 3, "state_dict": state}, ""),
        ({"best": state, "last": {}}, "best"),
    ):
        torch.save(stored, tmp_path / "w.pt")
        read = pretrained.read(tmp_path / "w.pt", entry)
        np.testing.assert_array_equal(read["linear.weight"], tensors["linear.weight"].T)
    with pytest.raises(ValueError, match="give --entry=NAME, one of best, last"):
        pretrained.read(tmp_path / "w.pt")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "w.pt")  # a pickled object
    with pytest.raises(ValueError, match=r"w\.pt: not a checkpoint of tensors alone.*state_dict") as caught:
        pretrained.read(tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"w\.pt needs PyTorch to be read: pip install torch"):
        pretrained.read(tmp_path / "w.pt")


# ---- import and export


def run(argv, capsys):
    """Return the exit status and the last line of `python -m gradalign_jax.convert`."""
    try:
        convert.main(argv)
    except SystemExit as stop:
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return stop.code, error
    return 0, capsys.readouterr().out


def test_import_and_export_are_inverse(narrow, tmp_path, capsys):
    variables, tensors = narrow
    source, directory, target = tmp_path / "w.safetensors", tmp_path / "run", tmp_path / "back.safetensors"
    save_file(tensors, source)
    command = ["import", str(source), str(directory), "--model=preact_resnet", "--options", "width=8"]
    command.append("blocks=(1, 1, 1, 1)")
    status, text = run(command, capsys)
    assert status == 0
    assert "normalized by mean (0.4914, 0.4822, 0.4465), deviation (0.2471" in text
    loaded, described = weights.read(directory / "classifier.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert described["config"]["model"] == {
        "name": "preact_resnet",
        "width": 8,
        "blocks": [1, 1, 1, 1],
        "pretrained": str(source),
    }
    assert run(["export", str(directory), str(target)], capsys)[0] == 0
    exported = load_file(target)
    assert exported.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(exported[name], value)
    assert "exists: choose another directory" in run(command, capsys)[1]


def test_what_cannot_be_converted_is_named(narrow, tmp_path, capsys):
    source, directory = tmp_path / "w.safetensors", str(tmp_path / "run")
    save_file(narrow[1], source)
    for arguments, message in (
        (["--model=preact_resnet"], "no tensor layer1.1.bn1"),
        (["--model=preact_resnet", "--options", "blocks=(1, 1, 1, 1)"], "has shape"),
        (["--model=wide_resnet"], "no tensor"),
        (["--model=preact"], "no model called 'preact'"),
        (["--model=preact_resnet", "--options", "depth=18"], "has no option 'depth'"),
        (["--model=preact_resnet", "--options", "depth"], "is not an option: write OPTION=VALUE"),
        (["--model=preact_resnet", "--dataset=imagenet"], "is not a data set"),
    ):
        status, error = run(["import", str(source), directory, *arguments], capsys)
        assert status == 2
        assert message in error
    assert not Path(directory).exists()
    weights.write(
        tmp_path / "classifier.safetensors", models.create("mlp").init(KEY), config={"model": {"name": "mlp"}}
    )
    status, error = run(["export", str(tmp_path), str(tmp_path / "x.safetensors")], capsys)
    assert (status, "have names in PyTorch" in error) == (2, True)


@pytest.mark.parametrize("peer", ["torch", "timm"])
def test_torch_loads_an_exported_classifier(peer, tmp_path, capsys):
    """A gray classifier of one output: PyTorch's two logits of the normalized image are ours."""
    torch = pytest.importorskip("torch")
    model = models.create("resnet", num_classes=2, binary=True, channels=1)
    variables = varied(model)
    weights.write(tmp_path / "classifier.safetensors", variables, config={"model": {"name": "resnet"}})
    status, text = run(["export", str(tmp_path), str(tmp_path / "w.safetensors")], capsys)
    assert (status, "(0.5 x + 0.5 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)" in text) == (0, True)
    if peer == "timm":
        network = pytest.importorskip("timm").create_model("resnet18", num_classes=2)
    else:
        from launch.bench.torch_peer.models import ResNet18

        network = ResNet18(2)
        network.mean, network.std = torch.full((2, 1, 1, 1), 0.5)  # it maps images to [0, 1] itself
    state = {name: torch.tensor(value) for name, value in load_file(tmp_path / "w.safetensors").items()}
    network.load_state_dict(state, strict=True)
    image = images()[..., :1]
    mean, std = (torch.tensor(each).reshape(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        theirs = network.eval()((torch.tensor(image).permute(0, 3, 1, 2) - mean) / std)
    ours = jax.jit(lambda x: model.apply(variables, x)[0])(2 * image - 1)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(ours).max())


# ---- measurement


def test_imported_weights_are_measured_on_real_images(tmp_path):
    if not (Path(os.environ.get("TFDS_DATA_DIR", "nowhere")) / "cifar10").is_dir():
        pytest.skip("CIFAR-10 is not prepared here; set TFDS_DATA_DIR to the directory that holds it")
    options = {"blocks": (1,), "width": 8}
    variables = varied(models.create("preact_resnet", num_classes=10, **options))
    save_file(pretrained.to_torch(variables), tmp_path / "w.safetensors")
    convert.import_weights(tmp_path / "w.safetensors", tmp_path / "run", "cifar10", "preact_resnet", options)
    config = cifar10.get_config("evaluate")
    config.data.limit, config.evaluate.images, config.evaluate.block = 64, 8, 8
    config.attack.steps, config.attack.step_size = 2, 4 / 255
    config.evaluate.linf_epsilons, config.evaluate.l2_epsilons = (16 / 255,), (0.5,)
    config.evaluate.square_queries, config.devices = 0, 1
    config.evaluate.delta_x = "nearest"
    config.classifier = str(tmp_path / "run")
    workdir = Workdir(tmp_path / "measured", config.to_dict())
    result = evaluate.run(config, workdir)
    workdir.close()
    assert result["method"] == "imported"
    assert result["curves"]["pgd_linf"]["epsilons"] == [0.0, 16 / 255]
    assert result["curves"]["pgd_linf"]["errors"][1] >= result["curves"]["pgd_linf"]["errors"][0]
    assert -1 <= result["alpha_delta_x"] <= 1
    assert 0 <= result["alpha_x"] <= 1
    assert json.loads((tmp_path / "measured" / "result.json").read_text())["notes"][-1].startswith("weights of ")
    robust = 1 - result["curves"]["pgd_linf"]["errors"][1]
    assert evaluate.table(result).endswith(f"robust accuracy, PGD L∞: {robust:.4g} at ε=0.06275")


def test_imported_weights_of_other_classes_are_refused(tmp_path):
    variables = varied(models.create("preact_resnet", num_classes=7, **NARROW))
    save_file(pretrained.to_torch(variables), tmp_path / "w.safetensors")
    convert.import_weights(tmp_path / "w.safetensors", tmp_path / "run", "spheres", "preact_resnet", NARROW)
    from configs import spheres

    config = spheres.get_config("evaluate")
    config.classifier = str(tmp_path / "run")
    workdir = Workdir(tmp_path / "measured", config.to_dict())
    dataset, words = data.load("spheres"), r"run holds weights of 7 classes, spheres has 2"
    with pytest.raises(RunError, match=words):
        evaluate.run(config, workdir)
    workdir.close()
    with pytest.raises(RunError, match=words):
        closest.load(config.classifier, dataset)
    with pytest.raises(RunError, match=words):
        estimates.load_teacher(config.classifier, dataset, epsilon=1.0)


def test_foolbox_attacks_a_trained_classifier_as_strongly():
    """Foolbox's PGD in JAX, with the same steps from other random starts: errors within one point."""
    foolbox = pytest.importorskip("foolbox")
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 1000).astype(np.int32)
    image = np.clip(rng.normal(size=(1000, 20)) * 0.3 + 0.15 * (2 * label[:, None] - 1), -1, 1).astype(np.float32)
    classifier, optimizer = models.create("mlp", input_size=20, hidden=(32,)), optax.adam(1e-2)
    state = training.create_state(classifier, optimizer, KEY)
    step = jax.jit(training.make_step(classifier, optimizer, "baseline"))
    for _ in range(50):
        state, _ = step(state, Batch(image, label, np.arange(1000)), None, training.StepInputs())
    logits_fn = jax.jit(lambda x: classifier.apply(state.variables, x)[0])
    epsilons = (0.05, 0.1, 0.2)
    pgd = gradalign_jax.PGD(norms=("linf",), steps=20, step_size=0.02, loss="cross_entropy")
    ours = gradalign_jax.evaluate(logits_fn, image, label, epsilons=epsilons, pgd=pgd, square=None)
    attack = foolbox.attacks.LinfPGD(steps=20, abs_stepsize=0.02)
    fooled = attack(
        foolbox.JAXModel(logits_fn, bounds=(-1, 1)), jnp.asarray(image), jnp.asarray(label), epsilons=epsilons
    )[2]
    theirs = np.asarray(fooled).mean(1)
    assert 0.05 < theirs[0] < theirs[-1]
    np.testing.assert_allclose(ours["curves"]["pgd_linf"]["errors"][1:], theirs, atol=0.01)

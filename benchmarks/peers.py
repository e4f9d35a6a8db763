"""Bit maps of two other tools, run as their experts would; every map is to be judged with our own quantizer.

Neither tool is a dependency: see ``INSTALL``. Both get a plain copy of the generator (spectral norm folded into the
weights), choose among integers per output channel for the weights alone, and must give every layer a width.
"""

from __future__ import annotations

import copy
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.layers import find_layers

Batches = Sequence[tuple[Any, ...]]
WIDTHS = (2, 3, 4, 5, 6, 8)
PROBES = 4  # random projections of every batch; from one to eight the maps of ModelOpt hardly change
# Clipping at 0.10, 0.15 … 1.00 of the largest magnitude: near our own scales, and better than ModelOpt's defaults.
FINE = {"method": "mse", "step_size": 0.05, "start_multiplier": 0.1, "stop_multiplier": 1.0}
INSTALL = "in an own environment, pip install nvidia-modelopt requests huggingface_hub model-compression-toolkit"


class PeerError(RuntimeError):
    """The tool is there and gives no usable map of this generator; the message is the reason."""


def modelopt(model: nn.Module, batches: Batches, bits: float, widths: Sequence[int] = WIDTHS) -> dict[str, str]:
    """NVIDIA ModelOpt's ``auto_quantize``: layer name → ``w<bits>``, at most ``bits`` on average over the weights.

    The loss is a random ±1 projection of the images, drawn anew for every batch: its squared gradient estimates how a
    layer's output moves the images (the error to the float images has gradient zero). Transposed convolutions get their
    own list of formats because the output channels of their weights lie on axis 1.

    Raises:
        ImportError: ModelOpt is not installed.
        PeerError: it fails, leaves a layer float, or misses the budget.
    """
    mtq = _load_modelopt()
    plain, seed = _plain(model), torch.Generator().manual_seed(0)
    layers = {name: module for name, module in plain.named_modules() if getattr(module, "weight", None) is not None}
    spaces = []
    for axis in (0, 1):
        names = [name for name, module in layers.items() if _axis(module) == axis]
        if names:
            spaces.append(
                {
                    "module_name_patterns": names,
                    "quantization_formats": [_recipe(width, axis) for width in widths],
                    "allow_no_quant": False,
                }
            )

    def project(images: Tensor, _: Any) -> Tensor:
        signs = torch.randint(0, 2, images.shape, generator=seed).to(images) * 2 - 1
        return (signs * images).sum()

    with _quiet("ModelOpt"):
        _, state = mtq.auto_quantize(
            plain,
            constraints={"effective_bits": float(bits)},
            quantization_formats=[_recipe(width, 0) for width in widths],
            data_loader=list(batches) * PROBES,
            forward_step=lambda generator, batch: generator(*batch),
            loss_func=project,
            num_calib_steps=1,  # nothing of the inputs is calibrated
            num_score_steps=len(batches) * PROBES,
            module_search_spaces=spaces,
        )
    found = {
        f"{name}.weight": recipe.num_bits
        for key, recipe in state["best"]["recipe"].items()
        for name in state["candidate_stats"][key]["module_names"]
    }
    return _checked("ModelOpt", model, batches, bits, found)


def mct(
    model: nn.Module,
    batches: Batches,
    bits: float,
    widths: Sequence[int] = WIDTHS,
    metric: Literal["output", "layers"] = "output",
) -> dict[str, str]:
    """Sony's Model Compression Toolkit: layer name → ``w<bits>``, at most ``bits`` on average over the weights.

    ``metric`` is by what it scores one layer at one width: the squared error of the images, which an expert would give
    it as ``custom_metric_fn``, or the mean distance of all layers' outputs, its default.

    Raises:
        ImportError: the toolkit is not installed.
        PeerError: it fails, leaves a layer float, or misses the budget.
    """
    toolkit, schema = _load_mct()
    plain = _plain(model)
    modules = dict(plain.named_modules())
    layers = {layer.name.removesuffix(".weight"): layer.numel for layer in find_layers(model, batches[0])}
    with torch.no_grad():
        images = [plain(*batch) for batch in batches]
    power = sum(image.square().mean().item() for image in images)

    def error(quantized: nn.Module) -> float:
        total = 0.0
        for batch, image in zip(batches, images, strict=True):
            with torch.no_grad():
                changed = quantized(*batch)
            changed = changed[0] if isinstance(changed, (list, tuple)) else changed
            total += (changed - image).square().mean().item()
        return 1e4 * total / power  # far from the solver's tolerances and from metric_epsilon

    def inputs() -> Iterator[list[Any]]:
        yield from map(list, batches)

    core = toolkit.core
    config = core.CoreConfig(
        # Collapsed layers would have no counterpart in the generator.
        quantization_config=core.QuantizationConfig(linear_collapsing=False, residual_collapsing=False),
        mixed_precision_config=core.MixedPrecisionQuantizationConfig(
            num_of_images=sum(len(batch[0]) for batch in batches),
            custom_metric_fn=error if metric == "output" else None,
        ),
    )
    with _quiet("MCT"):
        budget = core.ResourceUtilization(weights_memory=sum(layers.values()) * bits / 8)
        quantized, _ = toolkit.ptq.pytorch_post_training_quantization(
            plain, inputs, budget, config, _capabilities(schema, widths)
        )
    # Its nodes are called main_0_bn where the module is main.0 and a batch norm was folded into it.
    own = {name.replace(".", "_").lower(): name for name in layers if name in modules}
    found = {}
    for node, module in quantized.named_modules():
        if "weight" in (quantizers := getattr(module, "weights_quantizers", {})):
            fitting = [key for key in own if f"{node.lower()}_".startswith(f"{key}_")]
            if not fitting:
                raise PeerError(f"MCT has a layer {node!r} that is none of the generator's")
            found[f"{own[max(fitting, key=len)]}.weight"] = quantizers["weight"].num_bits
    return _checked("MCT", model, batches, bits, found)


PEERS: Mapping[str, Callable[..., dict[str, str]]] = {"modelopt": modelopt, "mct": mct}


def ask(peer: str, *args: Any, **options: Any) -> tuple[dict[str, str] | str, float]:
    """The map of a peer, or the reason why there is none, and the seconds it took without imports."""
    start = time.perf_counter()
    try:
        {"modelopt": _load_modelopt, "mct": _load_mct}[peer]()
        start = time.perf_counter()
        return PEERS[peer](*args, **options), time.perf_counter() - start
    except (ImportError, PeerError) as error:
        return str(error), time.perf_counter() - start


def _load_modelopt() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import modelopt.torch.quantization as mtq
    except ImportError as error:
        raise ImportError(f"ModelOpt cannot be imported ({error}): {INSTALL}") from error
    return mtq


def _load_mct() -> tuple[Any, Any]:
    """The toolkit and its schema. It asks for torchvision, of which only box operators make use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if find_spec("torchvision") is None and find_spec("edgemdt_cl") is not None:
                sys.modules["torchvision"] = stub = ModuleType("torchvision")
                stub.__version__ = "0.18"  # type: ignore[attr-defined]
                try:
                    import edgemdt_cl.pytorch  # noqa: F401
                finally:
                    del sys.modules["torchvision"]
            import model_compression_toolkit as toolkit
            from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema
    except ImportError as error:
        raise ImportError(f"MCT cannot be imported ({error}): {INSTALL}") from error
    return toolkit, schema


def _plain(model: nn.Module) -> nn.Module:
    """A copy without parametrizations and without operations in place (backward hooks cannot bear them)."""
    plain = copy.deepcopy(model).eval()
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
            # remove_parametrizations would change the class, and the copy shares it with the original.
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                setattr(module, name, nn.Parameter(value))
        if getattr(module, "inplace", False):
            module.inplace = False
    return plain


def _axis(module: nn.Module) -> int:
    return int(isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)))


def _recipe(width: int, axis: int) -> dict[str, Any]:
    """ModelOpt's configuration of one format: symmetric integers in −q … q, weights only."""
    weights = {"num_bits": width, "axis": axis, "narrow_range": True}
    rules = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": weights}]
    return {"quant_cfg": rules, "algorithm": FINE}


def _capabilities(schema: Any, widths: Sequence[int]) -> Any:
    """MCT's target platform: every width for the kernels of convolutions and linear layers, all else float."""
    from mct_quantizers import QuantizationMethod

    def operator(**kernel: Any) -> Any:
        return schema.OpQuantizationConfig(
            default_weight_attr_config=schema.AttributeQuantizationConfig(),
            attr_weights_configs_mapping=kernel,
            activation_quantization_method=QuantizationMethod.POWER_OF_TWO,
            activation_n_bits=8,
            supported_input_activation_n_bits=8,
            enable_activation_quantization=False,
            quantization_preserving=False,
            signedness=schema.Signedness.AUTO,
        )

    choices = [
        operator(
            kernel_attr=schema.AttributeQuantizationConfig(
                weights_quantization_method=QuantizationMethod.SYMMETRIC,
                weights_n_bits=width,
                weights_per_channel_threshold=True,
                enable_weights_quantization=True,
            ),
            bias_attr=schema.AttributeQuantizationConfig(),
        )
        for width in sorted(widths, reverse=True)
    ]
    options = schema.QuantizationConfigOptions(quantization_configurations=tuple(choices), base_config=choices[0])
    names = schema.OperatorSetNames
    return schema.TargetPlatformCapabilities(
        default_qco=schema.QuantizationConfigOptions(quantization_configurations=(operator(),)),
        operator_set=tuple(
            schema.OperatorsSet(name=name, qc_options=options)
            for name in (names.CONV, names.CONV_TRANSPOSE, names.FULLY_CONNECTED)
        ),
        add_metadata=False,
        name="weights-only",
    )


@contextmanager
def _quiet(tool: str) -> Iterator[None]:
    """Nothing on the terminal, solver processes included; whatever goes wrong becomes a ``PeerError``."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for stream in (1, 2):
                os.dup2(nowhere.fileno(), stream)
            yield
        except Exception as error:
            text = " ".join(str(error).split())
            raise PeerError(f"{tool} fails on this generator: {type(error).__name__}: {text[:300]}") from error
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, old in zip((1, 2), kept, strict=True):
                os.dup2(old, stream)
                os.close(old)


def _checked(tool: str, model: nn.Module, batches: Batches, bits: float, found: Mapping[str, int]) -> dict[str, str]:
    """The map in the order of the generator's layers; every layer has a width, and the budget is met."""
    layers = find_layers(model, batches[0])
    if missing := [layer.name for layer in layers if layer.name not in found]:
        raise PeerError(f"{tool} gives no width to {len(missing)} of {len(layers)} layers, {missing[0]!r} for one")
    spent = sum(layer.numel * found[layer.name] for layer in layers) / layers.numel
    if spent > bits + 1e-9:
        raise PeerError(f"{tool} spends {spent:.3f} bits of {bits:g}")
    return {layer.name: f"w{int(found[layer.name])}" for layer in layers}

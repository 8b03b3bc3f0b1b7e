"""``pydeploy summary``: what a network is made of."""

from __future__ import annotations

import sys

from pydeploy.cli.arguments import Json, Strict
from pydeploy.cli.model_verbs import Inputs, Model, Options, Weights


def summary(
    model: Model,
    input: Inputs = None,
    option: Options = None,
    weights: Weights = None,
    strict: Strict = True,
    json: Json = False,
) -> None:
    """Layers of a model with output shapes, parameters, MACs and sizes in fp32 and int8.

    Example: pydeploy summary torchvision:resnet18 --input 1x3x224x224
    """
    from dataclasses import asdict

    from pydeploy.cli import arguments
    from pydeploy.cli.console import show_json, show_table
    from pydeploy.models.layer_sizes import layer_sizes

    net = arguments.dense_or_cut(model, option or [], weights, strict=strict)
    found = layer_sizes(net, arguments.example(input or []))
    sums = {key: sum(getattr(one, key) for one in found) for key in ("params", "macs", "fp32_bytes", "int8_bytes")}
    if json:
        show_json({"schema": 1, "model": model, "layers": [asdict(one) for one in found], "total": sums})
        return
    show_table(("layer", "kind", "output", "parameters", "MACs", "fp32 bytes", "int8 bytes"),
               [(one.name, one.kind, "x".join(map(str, one.output)) or "not run", one.params, one.macs, one.fp32_bytes, one.int8_bytes)
                for one in found])  # fmt: skip
    sys.stdout.write(f"\n{len(found)} layers, {sums['params']:,} parameters, {sums['macs']:,} MACs (multiply-accumulates), "
                     f"{sums['fp32_bytes'] / 1e6:.2f} MB in fp32, {sums['int8_bytes'] / 1e6:.2f} MB in int8\n")  # fmt: skip

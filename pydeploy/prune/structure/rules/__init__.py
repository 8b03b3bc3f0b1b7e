"""How each ATen operator moves channel layouts: one small rule per kind of operator.

A rule is ``f(tracer, call)``: it returns the layout of the first result, or a list with one per result, or raises
`Unknown` with a reason: then every channel that went in is frozen and the results carry none. An operator without a rule is
treated the same way. Any other exception is a fault of the rule: it is logged, and fails the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydeploy.prune.structure.operators import KINDS
from pydeploy.prune.structure.rules import elementwise, layers, rearrange
from pydeploy.prune.structure.state import Made, Tracer
from pydeploy.prune.structure.tape import Call

Rule = Callable[[Tracer, Call], Made]

BY_KIND: Mapping[str, Rule] = {
    "entrywise": elementwise.entrywise,
    "copy": elementwise.entrywise,
    "unpool": elementwise.entrywise,
    "spatial": elementwise.spatial,
    "pad": elementwise.pad,
    "reduce": elementwise.reduce,
    "extreme": elementwise.extreme,
    "along": elementwise.along,
    "flip": elementwise.along,
    "region": elementwise.region,
    "made": elementwise.made,
    "meshgrid": elementwise.meshed,
    **dict.fromkeys(
        ("view", "squeeze", "unsqueeze", "permute", "transpose", "expand", "repeat", "interleave"), rearrange.moved
    ),
    **dict.fromkeys(("select", "unbind"), rearrange.moved),
    **dict.fromkeys(("split", "slice", "narrow"), rearrange.parts),
    "cat": rearrange.cat,
    "stack": rearrange.stack,
    "index": rearrange.index,
    "index_select": rearrange.index_select,
    "index_put": rearrange.index_put,
    "as_strided": rearrange.as_strided,
    "pixel_shuffle": rearrange.pixel_shuffle,
    "pixel_unshuffle": rearrange.pixel_unshuffle,
    "channel_shuffle": rearrange.channel_shuffle,
    "im2col": rearrange.im2col,
    "unfold": rearrange.unfold,
    "convolution": layers.convolution,
    "deform_conv2d": layers.deform_conv,
    "batch_norm": layers.batch_norm,
    "layer_norm": layers.layer_norm,
    "rms_norm": layers.rms_norm,
    "group_norm": layers.group_norm,
    "addmm": layers.addmm,
    "mm": layers.mm,
    "embedding": layers.embedding,
    "attention": layers.attention,
}
"""Rule of each kind of operator."""
RULES: Mapping[str, Rule] = {op: BY_KIND[kind] for op, kind in KINDS.items()}
"""Rule of each operator."""

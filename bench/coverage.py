"""Writes docs/figures/coverage.md: what `trace` and `apply` do with every model of torchvision and with CNNs of timm, beside Torch-Pruning.

    python bench/coverage.py --work runs/coverage                            # everything that is not there yet
    python bench/coverage.py --work runs/coverage --only 'classification/resnet*'
    python bench/coverage.py --work runs/coverage --only none                # only write the page

Every model runs in processes of its own, one for each side, with a limit on memory and time, and leaves a JSON row in the work
folder; a model that has its row is not run again. Weights are random: nothing here depends on trained ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydeploy.files import write_json, write_text

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "prune"))  # for the oracle of the tests
FAMILIES = ("classification", "segmentation", "detection", "video", "timm")
SIDES = ("pydeploy", "torch-pruning")
Emit = Callable[..., None]
"""Takes facts by name as soon as they are known."""
TIMM = (
    "bat_resnext26ts coat_lite_tiny coatnet_nano_rw_224 convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_s cspdarknet53 "
    "cspresnet50 cspresnext50 darknet53 densenet121 dla34 dla60_res2net dm_nfnet_f0 dpn68 eca_nfnet_l0 ecaresnet50d "
    "edgenext_xx_small efficientnet_lite0 efficientformer_l1 ese_vovnet19b_dw ese_vovnet39b fasternet_t0 fastvit_t8 fbnetc_100 "
    "fbnetv3_b gcresnet33ts gernet_s ghostnet_100 ghostnetv2_100 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small "
    "inception_next_atto inception_resnet_v2 inception_v4 lambda_resnet26t lcnet_050 legacy_senet154 mixnet_s mnasnet_small "
    "mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs "
    "mobilevitv2_050 nasnetalarge nf_regnet_b0 nf_resnet50 pnasnet5large poolformer_s12 regnetx_002 regnety_002 regnetz_b16 "
    "repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet18 resnet26t resnetv2_50 resnext50_32x4d rexnet_100 "
    "sedarknet21 selecsls42 semnasnet_050 seresnet18 skresnet18 spnasnet_100 starnet_s1 tf_efficientnet_b0 tf_efficientnetv2_b0 "
    "tinynet_e tresnet_m vgg11_bn vovnet39a wide_resnet50_2 xception41 xcit_nano_12_p16_224"
)
"""One or two of each family of timm's CNNs and hybrids; names that the installed version lacks are left out."""


SIZES = {"bat_": 256, "halonet": 256, "inception": 96, "nasnet": 96,
         **dict.fromkeys(("vit", "coat", "lambda", "xcit", "efficientformer"), 224)}  # fmt: skip
"""Height and width of inputs where 64 is too small, by part of the name."""


def module_of(family: str) -> Any:
    path = "torchvision.models" if family == "classification" else f"torchvision.models.{family}"
    return importlib.import_module("timm" if family == "timm" else path)


def listed(work: Path) -> list[str]:
    """``FAMILY/MODEL`` of all models; kept in the work folder, because asking takes seconds."""
    file = work / "models.json"
    if not file.is_file():
        names = []
        for family in FAMILIES:
            try:
                module = module_of(family)
            except ImportError:
                sys.stderr.write(f"{family} is not installed\n")
                continue
            from torchvision.models import list_models

            found = [n for n in TIMM.split() if module.is_model(n)] if family == "timm" else list_models(module=module)
            names += [f"{family}/{name}" for name in found]
        write_json(file, names)
    return list(json.loads(file.read_text()))


def built(family: str, name: str) -> tuple[Any, tuple[Any, ...]]:
    """A model in eval mode with random weights, and an input that is small for it."""
    import torch

    from oracle import randomize

    torch.manual_seed(0)
    shape, options = settings(family, name)
    if family == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
    else:
        from torchvision.models import get_model

        model = get_model(name, weights=None, **options)
    return randomize(model.eval()), (torch.rand(shape),)


def settings(family: str, name: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Input shape and options of the model's builder."""
    options: dict[str, Any] = {"weights_backbone": None} if family in ("segmentation", "detection") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if family == "detection":
        if "ssd" not in name:
            options |= {"min_size": 96, "max_size": 128}
        if "rcnn" in name:  # with random weights no score is high, and without a box no head would run
            options |= {"box_score_thresh": 0.0, "box_detections_per_img": 8, "rpn_post_nms_top_n_test": 8}
        return (1, 3, 96, 96), options
    if family == "video":
        return (1, 3, 16, 224, 224) if name == "s3d" or "mvit" in name else (1, 3, 4, 64, 64), options
    size = next((size for part, size in SIZES.items() if part in name), 64)
    return (1, 3, size, size), options


def counted(model: Any, graph: Any, inputs: tuple[Any, ...]) -> tuple[dict[str, int], Counter[str]]:
    """{convolution's weight: its output channels that are not the model's outputs}, and {why not prunable: channels}.

    A channel is an output where `trace` says so, and where no further layer with weights reads what is computed from it:
    the logits and box offsets of a detector, after which come only decoding and suppression.
    """
    last = unread(model, inputs)
    dims = {op.weight: int(op.kind == "conv_transpose") for op in graph.ops if op.kind.startswith("conv")}
    fates: dict[str, Counter[str]] = {weight: Counter() for weight in dims}
    for group in graph.groups:
        for piece in group.slices:
            if dims.get(piece.param) == piece.dim:
                fates[piece.param][group.frozen] += group.width * piece.repeat
    totals: dict[str, int] = {}
    reasons: Counter[str] = Counter()
    for weight, dim in dims.items():
        lost = graph.params[weight][dim] - fates[weight].total()
        fate = Counter() if weight in last else fates[weight] + Counter({"not followed": lost})
        del fate["model output"]
        if fate:
            totals[weight] = fate.total()
            reasons += fate
    return totals, reasons


def unread(model: Any, inputs: tuple[Any, ...]) -> set[str]:
    """Weights of convolutions from whose results no other convolution or linear layer computes anything."""
    from pydeploy.prune.structure.decisions import Decisions
    from pydeploy.prune.structure.propagate import follow
    from pydeploy.prune.structure.recording import record
    from pydeploy.prune.structure.running import Example
    from pydeploy.prune.surgery.surroundings import Surroundings

    tape = record(model, Example(inputs, {}), dict(model.state_dict(keep_vars=True)), Surroundings(model))
    views = follow(tape, Decisions()).views
    weights: list[str] = []
    read = 0
    sources: Counter[Any] = Counter()  # one bit for each convolution that a value is computed from
    for call in tape.calls:
        found = 0
        for value in call.inputs:
            found |= sources[value] | sources[value.base]
        if call.op in ("convolution", "deform_conv2d", "addmm", "mm", "bmm", "baddbmm"):
            read |= found if any(v in views for v in call.inputs) else 0
            if call.op in ("convolution", "deform_conv2d"):
                origins = views[call.args[1]].origins if call.args[1] in views else ()
                found |= 1 << len(weights)
                weights.append(origins[0].param if origins else "")
        for value in (*call.outs, *call.written):
            sources[value] |= found
            if value.base is not None:
                sources[value.base] |= found
    return set(weights) - {weight for i, weight in enumerate(weights) if read >> i & 1}


def run_pydeploy(family: str, name: str, emit: Emit) -> None:
    """Coverage, seconds, and the largest difference between the cut and the silenced model in float64."""
    import numpy as np
    import torch

    from oracle import masked_norms, random_plan, silence
    from pydeploy.prune.structure.trace import trace
    from pydeploy.prune.surgery.apply import apply

    model, inputs = built(family, name)
    began = time.perf_counter()
    graph = trace(model, inputs)
    emit(trace_s=time.perf_counter() - began, parameters=graph.learnable, macs=graph.macs())
    totals, reasons = counted(model, graph, inputs)
    emit(channels=sum(totals.values()), prunable=reasons.pop("", 0), reasons=reasons.most_common(4))
    plan = random_plan(graph, np.random.default_rng(1), 0.5)
    began = time.perf_counter()
    apply(model, graph, plan)
    emit(apply_s=time.perf_counter() - began)
    model, inputs = model.double(), tuple(x.double() for x in inputs)
    with torch.no_grad():
        ours = results(apply(model, graph, plan), inputs)
        with masked_norms(silence(model, graph, plan)):
            theirs = results(model, inputs)
    assert len(ours) == len(theirs) > 0
    assert all(torch.isfinite(tensor).all() for tensor in theirs)
    emit(tensors=len(ours), error=max(relative_error(*pair) for pair in zip(ours, theirs, strict=True)))


def results(model: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """The model's results; of a detector what its heads predict, because suppression chooses among equal boxes by the last bit."""
    from oracle import tensors_of

    heads = ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor", "roi_heads.keypoint_predictor")
    seen: list[Any] = []
    hooks = [module.register_forward_hook(lambda _module, _args, output: seen.append(output))
             for path, module in model.named_modules() if path in heads and hasattr(model, "transform")]  # fmt: skip
    found = model(*inputs)
    for hook in hooks:
        hook.remove()
    return [t for t in tensors_of(seen or found) if t.is_floating_point()]


def relative_error(one: Any, two: Any) -> float:
    if one.shape != two.shape:
        return float("inf")
    return float((one - two).abs().max() / two.abs().max().clamp_min(1e-30)) if one.numel() else 0.0


def run_torch_pruning(family: str, name: str, emit: Emit) -> None:
    """Torch-Pruning at ratio 0.5 with random importance; it is told which layers make the model's outputs."""
    import torch
    import torch_pruning

    from pydeploy.prune.structure.trace import trace

    model, inputs = built(family, name)
    graph = trace(model, inputs)
    totals, _ = counted(model, graph, inputs)
    convolutions = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.modules.conv._ConvNd)}
    outputs = {p.param for g in graph.groups if g.frozen == "model output" for p in g.slices} | (
        set(convolutions) - set(totals)
    )
    ignored = [m for n, m in model.named_modules() if f"{n}.weight" in outputs]
    before = {weight: m.out_channels for weight, m in convolutions.items()}
    with torch.no_grad():
        shapes = [t.shape for t in results(model, inputs)]
    began = time.perf_counter()
    importance = torch_pruning.importance.RandomImportance()
    pruner = torch_pruning.MetaPruner(model, inputs, importance=importance, pruning_ratio=0.5, ignored_layers=ignored)
    emit(build_s=time.perf_counter() - began, during="step")
    pruner.step()
    emit(seconds=time.perf_counter() - began, during="the cut model's forward")
    narrower = sum(totals.get(w, 0) for w, m in convolutions.items() if m.out_channels < before[w])
    with torch.no_grad():
        after = [t.shape for t in results(model, inputs)]
    if family != "detection" and after != shapes:
        raise ValueError(f"the result has shape {[list(s) for s in after]} instead of {[list(s) for s in shapes]}")
    emit(channels=sum(totals.values()), narrower=narrower, done=True)


RUN = {"pydeploy": run_pydeploy, "torch-pruning": run_torch_pruning}


def row(full: str, side: str, gib: float, seconds: float) -> dict[str, Any]:
    """What one side did with one model, in a process of its own; what it told before it died counts."""
    context = multiprocessing.get_context("fork")  # the child finds everything imported
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=alone, args=(full, side, gib, tell))
    process.start()
    tell.close()
    facts: dict[str, Any] = {}
    end = time.monotonic() + seconds
    try:
        while told.poll(max(0.0, end - time.monotonic())):
            facts |= json.loads(told.recv_bytes())
        facts["failed"] = f"no result after {seconds:.0f} s"
        process.kill()
    except EOFError:
        pass
    process.join()
    if process.exitcode:
        facts.setdefault("failed", f"ended by signal {-process.exitcode}")
    return facts


def alone(full: str, side: str, gib: float, tell: Connection) -> None:
    """The child: one model, one side, one thread, limited memory."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), int(gib * 2**30)))
    family, name = full.split("/")

    def emit(**facts: Any) -> None:
        tell.send_bytes(json.dumps(facts).encode())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            RUN[side](family, name, emit)
        except Exception as error:
            emit(failed=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


ENOUGH = 0.95
EQUAL = 1e-6


def page(work: Path) -> str:
    """The Markdown page from whatever rows are there."""
    from importlib.metadata import version

    about = Path(__file__).with_name("coverage_about.md").read_text(encoding="utf-8")
    lines = [
        about.replace("{version}", version("torch-pruning")),
        "| models | traced | cut = silenced | 95 % prunable | Torch-Pruning runs |",
        "|---|---|---|---|---|",
    ]
    tables: list[str] = []
    for family in FAMILIES:
        names = [full.split("/")[1] for full in listed(work) if full.startswith(f"{family}/")]
        rows = {name: [_read(work, family, name, side) for side in SIDES] for name in names}
        ours = [ours for ours, _ in rows.values() if ours is not None]
        theirs = [theirs for _, theirs in rows.values() if theirs is not None]
        lines.append(f"| {family}: {len(names)} | {_count('trace_s' in r for r in ours)} "
                     f"| {_count(r['error'] <= EQUAL for r in ours if 'error' in r)} "
                     f"| {_count(r['prunable'] >= ENOUGH * r['channels'] for r in ours if r.get('channels'))} "
                     f"| {_count('done' in r for r in theirs)} |")  # fmt: skip
        tables += ["", f"## {family}", "", "| model | trace + apply | prunable | cut = silenced | the rest, channels | Torch-Pruning |",
                   "|---|---|---|---|---|---|", *(_line(name, *pair) for name, pair in rows.items())]  # fmt: skip
    return "\n".join([*lines, *tables]) + "\n"


def _read(work: Path, family: str, name: str, side: str) -> dict[str, Any] | None:
    file = work / f"{family}-{name}.{side}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def _count(answers: Iterable[bool]) -> str:
    found = list(answers)
    return f"{sum(found)} of {len(found)}"


def _line(name: str, ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> str:
    if ours is None:
        cells = ["not run", "", "", ""]
    else:
        seconds = f"{ours['trace_s'] + ours.get('apply_s', 0):.2f} s" if "trace_s" in ours else ours["failed"]
        share = f"{ours['prunable'] / max(ours['channels'], 1):.1%} of {ours['channels']}" if "channels" in ours else ""
        equal = f"{ours['error']:.0e}" if "error" in ours else f"not run: {ours.get('failed', '')}"
        cells = [
            seconds,
            share,
            equal,
            "; ".join(f"{n}: {_short(reason)}" for reason, n in ours.get("reasons", [])[:2]),
        ]
    return f"| {name} | " + " | ".join(cells).replace("\n", " ") + f" | {_beside(theirs)} |"


def _short(reason: str) -> str:
    operator, _, text = reason.partition(": ")
    return f"{operator.split(' at ')[0]}: {text}" if text else reason


def _beside(theirs: dict[str, Any] | None) -> str:
    if theirs is None:
        return "not run"
    if "done" in theirs:
        return f"{theirs['narrower'] / max(theirs['channels'], 1):.0%} in {theirs['seconds']:.1f} s"
    return f"fails in {theirs.get('during', 'build')}: {theirs['failed'][:90]}".replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/coverage"), help="folder of the rows")
    parser.add_argument("--out", type=Path, default=Path("docs/figures/coverage.md"))
    parser.add_argument("--only", default="*", help="pattern of FAMILY/MODEL")
    parser.add_argument("--side", choices=SIDES, help="run only this side")
    parser.add_argument("--memory", type=float, default=14.0, help="GiB that a process may take")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a process may take")
    parser.add_argument(
        "--for", type=float, default=float("inf"), dest="window", help="begin no model after so many seconds"
    )
    asked = parser.parse_args()
    end = time.monotonic() + asked.window
    asked.work.mkdir(parents=True, exist_ok=True)
    for full in listed(asked.work):
        for side in SIDES if asked.side is None else (asked.side,):
            file = asked.work / f"{full.replace('/', '-')}.{side}.json"
            if not file.is_file() and fnmatchcase(full, asked.only) and time.monotonic() < end:
                prepare(full.split("/")[0])
                write_json(file, row(full, side, asked.memory, asked.timeout))
                sys.stderr.write(f"{full} {side}: {json.loads(file.read_text())}\n")
    write_text(asked.out, page(asked.work))


@cache
def prepare(family: str) -> None:
    """Import and run once what the children need, so that they do not count it."""
    import torch
    import torch_pruning  # noqa: F401
    import torchvision  # noqa: F401

    from pydeploy.prune.structure.trace import trace

    torch.set_num_threads(1)
    module_of(family)
    trace(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()), torch.zeros(1, 3, 8, 8)
    )


if __name__ == "__main__":
    main()

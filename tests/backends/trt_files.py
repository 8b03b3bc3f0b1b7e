"""Every family of networks in every kind of file, judged by NVIDIA's own parser and builder: `make trt-files`.

    python tests/backends/trt_files.py --work build/trt-files               # all that is not there yet, then the page
    python tests/backends/trt_files.py --work build/trt-files --only densenet121
    python tests/backends/trt_files.py --work build/trt-files --only none   # only the page, docs/figures/tensorrt-files.md

Each network, dense and cut, leaves one JSON row in the work folder; one that has its row is not made again. Weights are
random. `make test` does the same for the smaller networks (test_rtx_files.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import sys
import tempfile
import time
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent / name) for name in ("backends", "support", "quant")]
PAGE = ROOT / "docs" / "figures" / "tensorrt-files.md"
FORMS = ("dense", "cut", "2:4", "open batch")
SPARSE_KINDS, OPEN_KINDS = ("fp16", "typed int8"), ("fp32", "fp16", "typed int8")


def judged(name: str, form: str) -> dict[str, str]:
    """By kind of file, none where the form does not exist: '' where parser and builder take it and its layers are as promised."""
    import torch

    import rtx_nets
    from pydeploy.errors import ConfigError

    make, size = (rtx_nets.FAMILIES | rtx_nets.MORE)[name]
    torch.manual_seed(0)
    model, example = make().eval(), torch.randn(1, 3, size, size)
    kinds = {"2:4": SPARSE_KINDS, "open batch": OPEN_KINDS}.get(form, tuple(rtx_nets.KINDS))
    folder = Path(tempfile.mkdtemp(prefix="trt-files-"))
    try:
        net = rtx_nets.net_of(rtx_nets.written(model, example, form, folder / "net.onnx"))
        return {kind: _verdict(net, kind, form) for kind in kinds}
    except ConfigError as error:
        if form == "2:4" and "no layer can have a mask" in str(error):  # there is no such file
            return {}
        return dict.fromkeys(kinds, f"not written: {error}"[:300])
    except Exception as error:  # whatever it is, the other networks are still to be judged
        return dict.fromkeys(kinds, f"not written: {type(error).__name__}: {error}"[:300])
    finally:
        shutil.rmtree(folder)


def _verdict(net: object, kind: str, form: str) -> str:
    import rtx_nets

    try:
        rtx_nets.check(net, kind, batch=4 if form == "open batch" else 0, sparse=form == "2:4")  # type: ignore[arg-type]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300] or type(error).__name__
    return ""


def page(rows: dict[str, dict[str, dict[str, str]]], version: str) -> str:
    """The figures as Markdown; `rows` has the verdicts by network, form and kind."""
    kinds = max((list(found) for forms in rows.values() for found in forms.values()), key=len, default=[])
    lines = ["# Files that NVIDIA's parser and builder take", "",
             f"Written by `make trt-files` with TensorRT for RTX {version}, for compute capability 8.6, at 32 to 300 pixels, with random",
             "weights. A file counts when the parser takes it, the builder makes an engine of it without a GPU, the lint finds no error",
             "in it, and its layers read restored integers and compute in the types that the placement promised.", "",
             "| kind | " + " | ".join(FORMS) + " |", "|---|" + "---|" * len(FORMS)]  # fmt: skip
    lines += [f"| {kind} | " + " | ".join(_share(rows, kind, form) for form in FORMS) + " |" for kind in kinds]
    verdicts = [why for forms in rows.values() for found in forms.values() for why in found.values()]
    lines += [
        "",
        f"{verdicts.count('')} of {len(verdicts)} files of {len(rows)} networks: {', '.join(sorted(rows))}.",
        "",
    ]
    if refused := [f"- {name}, {form}, {kind}: {' '.join(why.split())}" for name, forms in sorted(rows.items())
                   for form, found in forms.items() for kind, why in found.items() if why]:  # fmt: skip
        lines += ["Refused:", "", *refused, ""]
    return "\n".join(lines)


def _share(rows: dict[str, dict[str, dict[str, str]]], kind: str, form: str) -> str:
    found = [forms[form][kind] for forms in rows.values() if kind in forms.get(form, {})]
    return f"{found.count('')} of {len(found)}" if found else "-"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--only", default="*", help="pattern of networks; 'none' only writes the page")
    chosen = arguments.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import tensorrt_rtx

    import rtx_nets
    from pydeploy.files import write_json, write_text

    names = [name for name in (rtx_nets.MORE | rtx_nets.FAMILIES) if fnmatchcase(name, chosen.only)]
    for form, name in itertools.product(FORMS, names):
        file = chosen.work / f"{name}, {form.replace(':', '-')}.json"
        if file.exists():
            continue
        began = time.monotonic()
        found = judged(name, form)
        write_json(file, {"network": name, "form": form, "kinds": found})
        refused = [f"{kind}: {why}" for kind, why in found.items() if why]
        sys.stderr.write(f"{name}, {form}: {time.monotonic() - began:.0f} s; {'; '.join(refused) or 'all taken'}\n")
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for file in sorted(chosen.work.glob("*.json")):
        row = json.loads(file.read_text())
        rows.setdefault(row["network"], {})[row["form"]] = row["kinds"]
    write_text(PAGE, page(rows, tensorrt_rtx.__version__))
    count = sum(bool(why) for forms in rows.values() for found in forms.values() for why in found.values())
    sys.stdout.write(f"{PAGE}: {count} refused\n")
    sys.exit(count > 0)


if __name__ == "__main__":
    main()

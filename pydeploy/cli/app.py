"""The table of verbs. Their bodies import what they need, so that ``--help`` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

from pydeploy.cli import (
    compare_verbs,
    config_verbs,
    criteria_verbs,
    engine_verbs,
    evaluate_verbs,
    model_verbs,
    precision_verbs,
    predict_verbs,
    profile_verbs,
    quant_verbs,
    run_verbs,
    ssd_verbs,
    summary_verbs,
    table_file_verbs,
    tensorrt_verbs,
    weight_verbs,
)

app = typer.Typer(
    name="pydeploy",
    help="A CNN, a device and a latency budget in; an engine measured to meet the budget out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from pydeploy.version import __version__

        typer.echo(f"pydeploy {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A CNN, a device and a latency budget in; an engine measured to meet the budget out."""


for _verb in (
    run_verbs.run,
    run_verbs.check,
    run_verbs.train,
    model_verbs.trace,
    model_verbs.prune,
    criteria_verbs.criteria,
    criteria_verbs.oracle,
    criteria_verbs.mask,
    run_verbs.finetune,
    run_verbs.recalibrate,
    model_verbs.export,
    summary_verbs.summary,
    engine_verbs.calibrate,
    quant_verbs.quantize,
    precision_verbs.mix,
    quant_verbs.half,
    quant_verbs.lint,
    engine_verbs.build,
    compare_verbs.compare,
    predict_verbs.predict,
    run_verbs.report,
    run_verbs.doctor,
    config_verbs.configs,
):
    app.command(_verb.__name__)(_verb)
app.command("eval")(evaluate_verbs.evaluate)
app.command("trtexec-command")(tensorrt_verbs.trtexec_command)
app.command("export-weights")(weight_verbs.export_weights)
app.command("choose-precision")(precision_verbs.choose_precision)
app.command("gpu-check")(tensorrt_verbs.gpu_check)
app.add_typer(profile_verbs.app, name="profile")
app.add_typer(ssd_verbs.app, name="ssd")
app.add_typer(table_file_verbs.app, name="table")

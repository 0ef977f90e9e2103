"""The command `lit-opt`: thin, one function a verb. `list`, `explain` and `--help` load neither torch nor lightning."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence

from lit_opt.commands.parsing import make_parser, one_of, parse, parse_beside_config, show, value_of
from lit_opt.commands.texts import (
    CHOOSE_EXAMPLES,
    EXPLAIN_EXAMPLES,
    EXPORT_EXAMPLES,
    HELP,
    LIST_EXAMPLES,
    NEW_EXAMPLES,
    SPIRALS_EXAMPLES,
    TRANSFER_EXAMPLES,
)
from lit_opt.errors import RecipeError, nearest

FIT_VERBS = ("fit", "validate", "test", "predict")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments after the command's name; those of the process if unset.

    Returns:
        0 done, 2 something the user can mend (said in one message on stderr), 130 interrupted.

    Example:
        >>> main(["--version"])
        lit-opt 0.1.0
        0
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except RecipeError as error:
        print(f"lit-opt: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lit-opt: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has enough; the interpreter would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _dispatch(args: list[str]) -> int:
    verbs: dict[str, Callable[[list[str]], int]] = {
        "list": list_,
        "explain": explain,
        "plan": plan,
        "check": check,
        "choose": choose,
        "compare": compare,
        "sweep": sweep,
        "new": new,
        "transfer": transfer,
        "export-ema": export_ema,
        "spirals": spirals,
    }
    verbs |= dict.fromkeys(FIT_VERBS, _fit)
    if not args or args[0] in ("-h", "--help", "help"):
        from lit_opt.explain.shipped_configs import shipped_configs

        names = textwrap.wrap(", ".join(shipped_configs()), 70, break_on_hyphens=False)
        print(HELP.format(configs="\n         ".join(names)))
        return 0
    if args[0] == "--version":
        from lit_opt import __version__

        print(f"lit-opt {__version__}")
        return 0
    verb, *rest = args
    if verb not in verbs:
        raise RecipeError(
            [f"verb: {verb!r} is unknown.{nearest(verb, verbs)} Known: {', '.join(verbs)}. Try `lit-opt --help`."]
        )
    try:
        return verbs[verb](rest if verbs[verb] is not _fit else args)
    except SystemExit as stop:  # --help has been printed
        return stop.code if isinstance(stop.code, int) else 0


def _fit(args: list[str]) -> int:
    from lit_opt.commands.config_files import expand_configs

    expanded = expand_configs(args)
    from lit_opt.commands.fit import run  # torch and lightning: seconds

    return run(expanded)


def list_(args: list[str]) -> int:
    """Recipes and optimizers."""
    parser = make_parser("list", "Recipes and optimizers.", LIST_EXAMPLES)
    parser.add_argument("--strategies", action="store_true", help="recipes by strategy and precision: what was tested")
    formats = one_of("text", "json", "markdown")
    parser.add_argument("--format", type=formats, default="text", help="text (default) or json; --strategies: markdown")
    given = parse(parser, args)
    from lit_opt.explain.formats import to_json
    from lit_opt.explain.listing import listing, listing_tables

    if given.strategies:
        from lit_opt.explain.strategies import strategies_dict, strategies_markdown, strategies_table

        if given.format == "text":
            show(*strategies_table(), width=None if sys.stdout.isatty() else 100)
        else:
            print(to_json(strategies_dict()) if given.format == "json" else strategies_markdown().rstrip())
        return 0
    if given.format == "markdown":
        raise RecipeError(["format: 'markdown' is for `lit-opt list --strategies`. Known here: text, json."])
    if given.format == "json":
        print(to_json(listing()))
        return 0
    terminal = sys.stdout.isatty() or "COLUMNS" in os.environ
    first, second = listing_tables(folded=terminal)
    show(first, "", second, "", "`lit-opt explain NAME` explains one of them.", width=None if terminal else 1000)
    return 0


def explain(args: list[str]) -> int:
    """Every value of a recipe, or an optimizer's row."""
    from lit_opt.commands.explain_options import add_options

    parser = make_parser(
        "explain", "Every value of a recipe with its unit, range, practice and source.", EXPLAIN_EXAMPLES
    )
    parser.add_argument("name", metavar="NAME", help="a recipe or an optimizer; `lit-opt list` has them all")
    add_options(parser, value_of, one_of)
    # 3e-4 in Python's spelling or the shell's: both --weight_decay and --weight-decay.
    dashed = [a.replace("_", "-", a.partition("=")[0].count("_")) if a.startswith("--") else a for a in args]
    given = vars(parse(parser, dashed))
    name, form, parameters = given.pop("name"), given.pop("format"), given.pop("parameters")
    overrides = {key: value for key, value in given.items() if value is not None}

    from lit_opt.commands.explain import explain_name

    output = explain_name(name, overrides, parameters=parameters, form=form)
    if isinstance(output, str):
        print(output)
    else:
        show(output, width=None if sys.stdout.isatty() else 100)
    return 0


def check(args: list[str]) -> int:
    """What is misconfigured in a config."""
    from lit_opt.commands.check_options import EXAMPLES, add_options

    parser = make_parser("check", "What is misconfigured: findings with numbers, reasons and what to type.", EXAMPLES)
    add_options(parser, one_of)
    given, rest = parse_beside_config(parser, args)
    if given.config is not None:
        rest = ["--config", given.config, *rest]
    if not rest:
        raise RecipeError(["config: nothing to check. Give --config NAME_OR_FILE; see `lit-opt check --help`."])
    from lit_opt.commands.check import check_config  # torch and lightning: seconds
    from lit_opt.preflight.check_report import renderables, report_json

    ignore = [one.strip() for ids in given.ignore for one in ids.split(",") if one.strip()]
    report, notes = check_config(rest, given.setting, ignore)
    if given.format == "json":
        print(report_json(report))
    else:
        show(*notes, *renderables(report), width=None if sys.stdout.isatty() else 100)
    return int(report.worst in ("error", "warning") or (given.strict and bool(report.worst)))


def choose(args: list[str]) -> int:
    """A recipe for the model of a config."""
    parser = make_parser("choose", "Which recipe fits the model of a config, with reasons and values.", CHOOSE_EXAMPLES)
    parser.add_argument("--format", type=one_of("text", "json"), default="text", help="text (default) or json")
    given, others = parse_beside_config(parser, args)  # the others are the config's
    from lit_opt.commands.choose import choose_for  # torch and lightning: seconds

    output = choose_for(others, form=given.format)
    if isinstance(output, str):
        print(output)
    else:
        show(output, width=None if sys.stdout.isatty() else 100)
    return 0


def new(args: list[str]) -> int:
    """A starter project."""
    parser = make_parser("new", "Write a starter project for a setting; no file is ever overwritten.", NEW_EXAMPLES)
    parser.add_argument("setting", metavar="SETTING", nargs="?", help="without it, the settings are listed")
    parser.add_argument("folder", metavar="DIR", nargs="?", help="where; it is made if it is not there")
    given = parse(parser, args)
    from lit_opt.commands.new import settings, write_project

    if given.setting is None:
        lines = settings()
        width = max(map(len, lines)) + 2
        print("\n".join(f"{name:<{width}}{line}" for name, line in lines.items()))
        print("\n`lit-opt new SETTING DIR` writes one.")
        return 0
    if given.folder is None:
        raise RecipeError([f"folder: is needed. Type: lit-opt new {given.setting} my-project."])
    files = write_project(given.setting, given.folder)
    print("\n".join(f"  {path}" for path in files))
    print(f"\ncd {shlex.quote(given.folder)}\nlit-opt fit --config config.yaml\npython -m pytest")
    return 0


def plan(args: list[str]) -> int:
    """What a recipe will do to the model of a config."""
    from lit_opt.commands.plan_options import EXAMPLES, add_options

    parser = make_parser("plan", "What a recipe will do to your model, before a run.", EXAMPLES)
    add_options(parser, one_of)
    known, others = parse_beside_config(parser, args)  # the others are the config's
    from lit_opt.commands.plan import print_plan  # torch and lightning: seconds

    print_plan(vars(known), others, show)
    return 0


def compare(args: list[str]) -> int:
    """A fair comparison of recipes; `worker` joins one, `report` writes its report."""
    from lit_opt.commands.compare_options import EXAMPLES, add_options

    verb = args[0] if args and not args[0].startswith("-") else ""
    if verb not in ("", "worker", "report"):
        raise RecipeError([f"compare {verb}: unknown.{nearest(verb, ('worker', 'report'))} Known: worker, report."])
    parser = make_parser("compare", "Which optimizer is better on your own model, under a fair protocol.", EXAMPLES)
    add_options(parser, one_of)
    given, others = parse_beside_config(parser, args[1:] if verb else args)  # the others are the config's
    from lit_opt.commands.compare import run_compare, run_report, run_worker  # torch and lightning: seconds

    if verb:
        return (run_worker if verb == "worker" else run_report)(given.out)
    return run_compare(vars(given), others)


def sweep(args: list[str]) -> int:
    """Tune on a small model, and write the large one's recipe."""
    from lit_opt.commands.sweep_options import EXAMPLES, add_options

    parser = make_parser("sweep", "Tune on a small model, get the large model's recipe as YAML.", EXAMPLES)
    add_options(parser, one_of)
    given, others = parse_beside_config(parser, args)  # the others are the config's
    from lit_opt.commands.sweep import run_sweep  # torch and lightning: seconds

    return run_sweep(vars(given), others, show)


def transfer(args: list[str]) -> int:
    """Whether what a config transfers from a small model holds at other widths."""
    from lit_opt.commands.transfer_options import add_options, read_options

    parser = make_parser("transfer", "Do activations change by as much at any width?", TRANSFER_EXAMPLES)
    add_options(parser, one_of)
    known, others = parse_beside_config(parser, args)  # the others are the config's
    options = read_options(vars(known))
    from lit_opt.commands.transfer import check_config  # torch and lightning: seconds
    from lit_opt.explain.formats import to_json
    from lit_opt.preflight.coordinate_report import check_table

    found = check_config(others, options)
    if options["format"] == "json":
        print(to_json(found.as_dict()))
    else:
        show(check_table(found), width=None if sys.stdout.isatty() else 100)
    return int(any(not line.flat for line in found.layers))


def export_ema(args: list[str]) -> int:
    """The averaged weights of a checkpoint as a file of their own."""
    parser = make_parser(
        "export-ema", "Write the averaged weights of a checkpoint as a plain state_dict.", EXPORT_EXAMPLES
    )
    parser.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of a run with averages")
    parser.add_argument("out", metavar="OUT", help="the file to write; an existing one is replaced")
    parser.add_argument("--safetensors", action="store_true", help="write the safetensors format")
    given = parse(parser, args)
    from lit_opt.callbacks.export import export_ema as export

    export(given.checkpoint, given.out, safetensors=given.safetensors)
    print(f"The averages of {given.checkpoint} are in {given.out}.")
    return 0


def spirals(args: list[str]) -> int:
    """Optimizers on two spirals, as a picture and an animation."""
    parser = make_parser("spirals", "Watch optimizers on two spirals: spirals.png and spirals.gif.", SPIRALS_EXAMPLES)
    parser.add_argument("--optimizers", default="sgd,adamw,muon", metavar="A,B,C", help="one to four, by registry name")
    parser.add_argument("--lr", action="append", default=[], metavar="NAME=X", help="a learning rate; may be repeated")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="optimizer steps (default 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the points (default 0)")
    parser.add_argument("--frames", type=int, default=48, metavar="N", help="of the animation (default 48)")
    parser.add_argument("--out", default="spirals", metavar="DIR", help="folder (default spirals)")
    given = parse(parser, args)
    from pathlib import Path

    from lit_opt.commands.spirals import run_spirals  # torch and lightning: seconds

    names = [name.strip() for name in given.optimizers.split(",") if name.strip()]
    print(run_spirals(names, given.lr, given.steps, given.seed, Path(given.out), given.frames))
    return 0

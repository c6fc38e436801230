"""``nodule reader-study``: design, serve and analyse a blinded study of real and generated images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nodule_plugin.errors import InputError, show_input_errors
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.questions import ITEMS
from nodule_plugin.reader_study.study import Plan, load_study, replace_link

# What a command needs is imported where it runs: serving must not wait for torch, nor designing for a web server.


def _design(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.design import Settings, write_study
    from nodule_plugin.reader_study.words import blinding_sentence

    if options.part:
        raise InputError("--part: is called --split now")
    readers = [name.strip() for name in options.readers.split(",")]
    if options.readers.isdecimal():
        readers = [f"R{number}" for number in range(1, int(options.readers) + 1)]
    plan = Plan(options.margin, options.auc_margin, options.alpha, options.primary)
    settings = Settings(
        options.cases,
        options.repeats,
        options.practice,
        tuple(readers),
        plan,
        options.title,
        tuple(options.accept_cues),
    )
    made = write_study(
        options.output,
        options.real,
        options.generated,
        settings,
        options.split,
        options.dataset_dir,
        options.key,
        options.seed,
    )
    print(f"study:      {made.study}  (what the server needs)")
    print(f"key:        {made.key}  (put it away until the answers are in; it cannot be made again)")
    print(f"links:      {made.links}  (one path a reader)")
    print(f"commitment: {made.commitment}  (publish it now: SHA-256 of the key)")
    print(f"blinding:   {blinding_sentence(made.blinding)}")
    if options.seed is not None:
        print("rehearsal:  --seed was given, and pages and report say so")


def _serve(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.serve import serve

    serve(options.study, options.host, options.port, options.root_path)


def _status(options: argparse.Namespace) -> None:
    study = load_study(options.study)
    store = AnswerStore(study.answers_file, study.content["id"], read_only=True)
    for reader, steps in study.sequences.items():
        answers = store.of_reader(reader)
        counted = [step for step in steps if not step.practice]
        done = sum(step.image in answers for step in counted)
        changed = sum(len(rows) - 1 for rows in answers.values())
        print(f"{reader}: {done} of {len(counted)} images, {changed} changes")
    chain = store.verify()
    print(f"{chain.rows} rows" + (f", last link {chain.link}  (published, it binds them)" if chain.rows else ""))


def _link(options: argparse.Namespace) -> None:
    study = load_study(options.study)
    print(f"/r/{replace_link(study, options.reader)}")


def _verify(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.seal import open_key
    from nodule_plugin.reader_study.words import chain_sentence

    study = load_study(options.study)
    key = open_key(options.key, study)
    print(f"key {study.commitment}: it is the one that was sealed")
    print(f"{len(key.images)} images and {study.file.name}: unchanged since")
    if study.keyed_answers or study.answers_file.is_file():
        store = AnswerStore(study.answers_file, study.content["id"], read_only=True)
        print(chain_sentence(store.verify(key.answers_key, options.link)))


def _analyse(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.page import write_analysis

    output = (
        Path(options.output) if options.output else Path(options.study).with_name(f"{Path(options.study).name}.results")
    )
    print(f"written: {write_analysis(options.study, options.key, output, options.bootstrap, options.link)}")


def _plan(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.planning import needed_cases, pilot_components
    from nodule_plugin.reader_study.statistics.crossed import Components

    if options.pilot:
        components = pilot_components(options.pilot, options.item, options.model)
    else:
        components = Components(options.sd_reader**2, options.sd_case**2, options.sd_error**2)
    needs = needed_cases(
        components, options.readers, options.margin, options.power, options.alpha, options.true_difference
    )
    deviations = (
        f"readers {components.reader**0.5:.2f}, cases {components.case**0.5:.2f}, rest {components.error**0.5:.2f}"
    )
    print(f"standard deviations of the difference: {deviations}")
    print(f"equivalence within {options.margin:g} points, alpha {options.alpha:g}, power {options.power:g}")
    print("readers  cases  power  standard error")
    for need in needs:
        cases = "none" if need.cases is None else str(need.cases)
        print(f"{need.readers:7d}  {cases:>5}  {need.power:5.2f}  {need.standard_error:14.3f}")
    if any(need.cases is None for need in needs):
        print("none: 500 cases do not suffice; more readers are needed")


def _simulate(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.simulation import error_rates, rates_table

    rates = [
        error_rates(
            readers,
            cases,
            options.studies,
            options.margin,
            options.alpha,
            ordinal_studies=options.ordinal,
            seed=options.seed,
        )
        for readers in options.readers
        for cases in options.cases
    ]
    print(rates_table(rates))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nodule reader-study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_design, _add_serve, _add_status, _add_link, _add_verify, _add_analyse, _add_plan, _add_simulate):
        add(commands)
    return parser


def _add_design(commands: Any) -> None:
    design = commands.add_parser("design", help="choose cases, write images, seal the key")
    design.add_argument("--real", required=True, metavar="DATALIST", help="data list of the real images")
    design.add_argument("--generated", required=True, nargs="+", metavar="MANIFEST", help="generated sets, one a model")
    design.add_argument("--output", required=True, metavar="STUDY", help="folder of the study, a new one")
    design.add_argument("--key", help="file for the key (default: STUDY.key.json, beside the study)")
    design.add_argument("--split", nargs="+", default=["test"], help="splits of the data list (default: test)")
    design.add_argument("--dataset-dir", help="folder of the data list's images (default: the one it names)")
    design.add_argument("--cases", type=int, default=20, help="real images, and images of each model (default: 20)")
    design.add_argument("--repeats", type=int, default=6, help="images shown twice, unannounced (default: 6)")
    design.add_argument("--practice", type=int, default=3, help="images to practise with (default: 3)")
    design.add_argument("--readers", default="3", help="how many, or their names with commas (default: 3)")
    design.add_argument("--title", default="Reader study of nodule images", help="shown to the readers")
    design.add_argument("--margin", type=float, default=0.5, help="of equivalence, points of a scale (default: 0.5)")
    design.add_argument("--auc-margin", type=float, default=0.1, help="of equivalence, AUC around 0.5 (default: 0.1)")
    design.add_argument("--alpha", type=float, default=0.05, help="error rate of a test (default: 0.05)")
    design.add_argument("--primary", default="realism", choices=ITEMS, help="item of the conclusion (default: realism)")
    design.add_argument(
        "--accept-cues",
        nargs="+",
        default=[],
        metavar="FAMILY",
        help=("let a study pass although a program tells the arms apart by such cues: edge, spectrum, histogram, file"),
    )
    design.add_argument(
        "--seed", type=int, help="for rehearsals only, which the study then says it is: draws the cases"
    )
    design.add_argument("--part", help=argparse.SUPPRESS)
    design.set_defaults(run=_design)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="run the web application")
    serve.add_argument("study", metavar="STUDY")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--root-path", default="", help="path under which a proxy shows the application")
    serve.set_defaults(run=_serve)


def _add_status(commands: Any) -> None:
    status = commands.add_parser("status", help="how far the readers are")
    status.add_argument("study", metavar="STUDY")
    status.set_defaults(run=_status)


def _add_link(commands: Any) -> None:
    link = commands.add_parser("link", help="give a reader a new link; the old one stops working")
    link.add_argument("study", metavar="STUDY")
    link.add_argument("--reader", required=True)
    link.set_defaults(run=_link)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="check key, images, description and answers against the commitment")
    verify.add_argument("study", metavar="STUDY")
    _add_seal(verify)
    verify.set_defaults(run=_verify)


def _add_analyse(commands: Any) -> None:
    analyse = commands.add_parser("analyse", help="open the seal and write the report")
    analyse.add_argument("study", metavar="STUDY")
    _add_seal(analyse)
    analyse.add_argument("--output", help="folder of the report (default: STUDY.results, beside the study)")
    analyse.add_argument("--bootstrap", type=int, default=1000, help="draws for intervals of agreement (default: 1000)")
    analyse.set_defaults(run=_analyse)


def _add_seal(command: argparse.ArgumentParser) -> None:
    """What the study is checked against."""
    command.add_argument("--key", required=True)
    command.add_argument(
        "--link",
        action="append",
        default=[],
        metavar="NUMBER-LINK",
        help="a link of the answers' chain that was published",
    )


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="how many readers and cases show equivalence")
    plan.add_argument("--margin", type=float, default=0.5, help="points of a scale (default: 0.5)")
    plan.add_argument("--power", type=float, default=0.8, help="(default: 0.8)")
    plan.add_argument("--alpha", type=float, default=0.05, help="(default: 0.05)")
    plan.add_argument("--true-difference", type=float, default=0.0, help="that is expected (default: 0)")
    plan.add_argument("--readers", type=int, nargs="+", default=[3, 4, 5, 6, 8, 10, 15], help="numbers to look at")
    plan.add_argument("--sd-reader", type=float, default=0.2, help="of readers' differences (default: 0.2)")
    plan.add_argument("--sd-case", type=float, default=0.85, help="of cases' differences (default: 0.85)")
    plan.add_argument("--sd-error", type=float, default=1.0, help="of what is left (default: 1.0)")
    plan.add_argument("--pilot", metavar="RESULTS.JSON", help="take the standard deviations from a study's results")
    plan.add_argument("--item", default="realism", choices=ITEMS, help="of the pilot (default: realism)")
    plan.add_argument("--model", help="of the pilot (default: its first)")
    plan.set_defaults(run=_plan)


def _add_simulate(commands: Any) -> None:
    simulate = commands.add_parser("simulate", help="error rates of the analyses on studies with a known truth")
    simulate.add_argument("--readers", type=int, nargs="+", default=[3, 6, 12])
    simulate.add_argument("--cases", type=int, nargs="+", default=[20, 40])
    simulate.add_argument("--studies", type=int, default=2000)
    simulate.add_argument(
        "--ordinal", type=int, default=0, metavar="N", help="fit the ordinal model to N of them (slow)"
    )
    simulate.add_argument("--margin", type=float, default=0.5)
    simulate.add_argument("--alpha", type=float, default=0.05)
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(run=_simulate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        InputError: if what was given cannot be used.
    """
    options = _parser().parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    show_input_errors()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    main()

"""``python -m nodule_plugin.reader_study``: design, serve and analyse a blinded study of real and generated images."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.reader_study.answers import AnswerStore
from nodule_plugin.reader_study.questions import ITEMS
from nodule_plugin.reader_study.study import Plan, load_study, replace_link

# What a command needs is imported where it runs: serving must not wait for torch, nor designing for a web server.


def _design(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.design import Settings, write_study

    readers = options.readers.split(",")
    if options.readers.isdecimal():
        readers = [f"R{number}" for number in range(1, int(options.readers) + 1)]
    plan = Plan(options.margin, options.auc_margin, options.alpha, options.primary)
    settings = Settings(options.cases, options.repeats, options.practice, tuple(readers), plan, options.title)
    made = write_study(
        options.output, options.real, options.generated, settings, options.part, options.dataset_dir, options.key, options.seed
    )
    print(f"study:      {made.study}  (what the server needs)")
    print(f"key:        {made.key}  (put it away until the answers are in; it cannot be made again)")
    print(f"links:      {made.links}  (one path a reader)")
    print(f"commitment: {made.commitment}  (publish it now: SHA-256 of the key)")


def _serve(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.serve import serve

    serve(options.study, options.host, options.port, options.root_path)


def _status(options: argparse.Namespace) -> None:
    study = load_study(options.study)
    store = AnswerStore(study.answers_file, study.content["id"], create=False)
    for reader, steps in study.sequences.items():
        answers = store.of_reader(reader)
        counted = [step for step in steps if not step.practice]
        done = sum(step.image in answers for step in counted)
        changed = sum(len(rows) - 1 for rows in answers.values())
        print(f"{reader}: {done} of {len(counted)} images, {changed} changes")
    print(f"{store.verify()} rows, chain intact")


def _link(options: argparse.Namespace) -> None:
    study = load_study(options.study)
    print(f"/r/{replace_link(study, options.reader)}")


def _verify(options: argparse.Namespace) -> None:
    from nodule_plugin.reader_study.seal import open_key

    study = load_study(options.study)
    key = open_key(options.key, study)
    print(f"key {study.commitment}: it is the one that was sealed")
    print(f"{len(key.images)} images and {study.file.name}: unchanged since")
    if study.answers_file.is_file():
        print(f"{AnswerStore(study.answers_file, study.content['id']).verify()} rows of answers: chain intact")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nodule_plugin.reader_study", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    design = commands.add_parser("design", help="choose cases, write images, seal the key")
    design.add_argument("--real", required=True, metavar="DATALIST", help="data list of the real images")
    design.add_argument("--generated", required=True, nargs="+", metavar="MANIFEST", help="generated sets, one a model")
    design.add_argument("--output", required=True, metavar="STUDY", help="folder of the study, a new one")
    design.add_argument("--key", help="file for the key (default: STUDY.key.json, beside the study)")
    design.add_argument("--part", nargs="+", default=["test"], help="parts of the data list (default: test)")
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
    design.add_argument("--seed", type=int, help="for rehearsals only: who knows it can rebuild the key")
    design.set_defaults(run=_design)

    serve = commands.add_parser("serve", help="run the web application")
    serve.add_argument("study", metavar="STUDY")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--root-path", default="", help="path under which a proxy shows the application")
    serve.set_defaults(run=_serve)

    status = commands.add_parser("status", help="how far the readers are")
    status.add_argument("study", metavar="STUDY")
    status.set_defaults(run=_status)

    link = commands.add_parser("link", help="give a reader a new link; the old one stops working")
    link.add_argument("study", metavar="STUDY")
    link.add_argument("--reader", required=True)
    link.set_defaults(run=_link)

    verify = commands.add_parser("verify", help="check key, images, description and answers against the commitment")
    verify.add_argument("study", metavar="STUDY")
    verify.add_argument("--key", required=True)
    verify.set_defaults(run=_verify)
    return parser


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

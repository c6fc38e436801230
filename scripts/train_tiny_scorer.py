"""Train the small CLIP behind the stand-in metrics: python scripts/train_tiny_scorer.py --datalist F --output_dir O."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from nodule_plugin.errors import show_input_errors
from nodule_plugin.tiny.scorer import save_scorer, scorer_examples, train_scorer
from nodule_plugin.tiny.scorer_card import evaluate_scorer, model_card


def main() -> None:
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datalist", type=Path, required=True, help="as the bundle's prepare config writes it")
    parser.add_argument("--dataset_dir", type=Path, help="folder of the images, if not the one the data list names")
    parser.add_argument("--output_dir", type=Path, default=Path("bundle/models/tiny_scorer"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training = scorer_examples(arguments.datalist, "training", arguments.dataset_dir)
    held_out = {
        part: scorer_examples(arguments.datalist, part, arguments.dataset_dir) for part in ("validation", "test")
    }
    model = train_scorer(
        training.images, training.prompts, training.ratings, steps=arguments.steps, seed=arguments.seed
    )
    with tempfile.TemporaryDirectory() as scratch:
        save_scorer(model, Path(scratch), card="")
        results = {part: evaluate_scorer(scratch, found.images, found.prompts) for part, found in held_out.items()}
    card = model_card(results, len(training.prompts), arguments.steps, training.source)
    save_scorer(model, arguments.output_dir, card)
    print(card)


if __name__ == "__main__":
    main()

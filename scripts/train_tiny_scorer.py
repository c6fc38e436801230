"""Train the small CLIP behind the stand-in metrics: python scripts/train_tiny_scorer.py --datalist F --output_dir O."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from nodule_plugin.errors import show_input_errors
from nodule_plugin.tiny.scorer import save_scorer, scorer_examples, train_scorer
from nodule_plugin.tiny.scorer_card import evaluate_scorer, model_card


def main() -> None:
    show_input_errors()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datalist", type=Path, nargs="+", required=True, help="as prepare writes them; joined")
    parser.add_argument("--output_dir", type=Path, default=Path("bundle/models/tiny_scorer"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training = [scorer_examples(datalist, "training") for datalist in arguments.datalist]
    held_out = {}
    for datalist in arguments.datalist:
        for part in ("validation", "test"):
            examples = scorer_examples(datalist, part)
            held_out[f"{examples.source}, {part}"] = examples
    images = torch.cat([examples.images for examples in training])
    prompts = [prompt for examples in training for prompt in examples.prompts]
    ratings = torch.cat([examples.ratings for examples in training])
    model = train_scorer(images, prompts, ratings, steps=arguments.steps, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        save_scorer(model, Path(scratch), card="")
        results = {part: evaluate_scorer(scratch, found.images, found.prompts) for part, found in held_out.items()}
    card = model_card(results, {examples.source: len(examples.prompts) for examples in training}, arguments.steps)
    save_scorer(model, arguments.output_dir, card)
    print(card)


if __name__ == "__main__":
    main()

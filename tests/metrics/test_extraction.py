from __future__ import annotations

import numpy as np
import torch

from nodule_plugin.metrics.extraction import cliques, identified, identity_threshold, prompt_cliques
from nodule_plugin.metrics.memorization import CopyDetector
from nodule_plugin.metrics.planted_copies import planted_copies


def _smooth(count: int, seed: int) -> list[torch.Tensor]:
    coarse = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    return list((images * 255).to(torch.uint8).expand(-1, 3, -1, -1))


def test_every_two_of_a_clique_are_alike() -> None:
    likeness = np.eye(5)
    for first, second, alike in ((0, 1, 0.97), (0, 2, 0.96), (1, 2, 0.99), (2, 3, 0.98), (3, 4, 0.2)):
        likeness[first, second] = likeness[second, first] = alike
    assert cliques(likeness, 0.95) == [[1, 2, 0]]  # 3 is like 2 alone: a chain is no clique
    assert cliques(likeness, 0.995) == []
    assert cliques(likeness[:1, :1], 0.5, smallest=1) == []


def test_what_is_made_again_and_again_is_looked_for_in_the_training_images() -> None:
    training, held_out = _smooth(12, 0), _smooth(30, 1)
    detector = CopyDetector.calibrate(training, held_out, planted=20)
    threshold = identity_threshold(training, held_out, 0.01)
    noise = [torch.randint(-6, 7, (1, 64, 64), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]

    def again(image: torch.Tensor) -> list[torch.Tensor]:
        return [(image + grain).clamp(0, 255).to(torch.uint8) for grain in noise]

    generated = {"extracted": again(training[5]), "collapsed": again(_smooth(1, 3)[0]), "varied": _smooth(4, 4)}
    groups = prompt_cliques(generated, threshold)
    found = {clique.prompt: clique for clique in identified(groups, generated, detector)}
    assert found.keys() == {"extracted", "collapsed"}
    assert (found["extracted"].extracted, found["extracted"].training) == (True, 5)
    assert sorted(found["extracted"].members) == [0, 1, 2, 3]
    assert not found["collapsed"].extracted
    copies = list(planted_copies(training, 3, seed=9))  # once each is no sign of remembering
    assert prompt_cliques({"copies": copies}, threshold) == []

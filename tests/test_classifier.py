"""The cosine classifier against its formula, and the names of the released checkpoints."""

import torch

from rio_bench.detection.classifier import CosineClassifier


def test_scores_are_temperature_times_norm_times_cosine() -> None:
    classifier = CosineClassifier(feature_dim=2, num_classes=1, temperature=48.0)
    released = {"L.weight_g": torch.tensor([[0.5], [2.0]]), "L.weight_v": torch.tensor([[3.0, 4.0], [0.0, 7.0]])}
    classifier.load_state_dict(released)
    # cos((6, 8), (3, 4)) = 1 and cos((6, 8), (0, 7)) = 0.8
    scores = classifier(torch.tensor([[6.0, 8.0]]))
    torch.testing.assert_close(scores, torch.tensor([[48 * 0.5, 48 * 2.0 * 0.8]]))


def test_scores_do_not_depend_on_the_length_of_a_feature() -> None:
    torch.manual_seed(0)
    classifier = CosineClassifier(feature_dim=16, num_classes=5, temperature=10.0)
    features = torch.randn(7, 16)
    torch.testing.assert_close(classifier(features), classifier(100 * features))


def test_norms_and_directions_are_learned() -> None:
    classifier = CosineClassifier(feature_dim=4, num_classes=2, temperature=48.0)
    assert {tuple(p.shape) for p in classifier.parameters()} == {(3, 1), (3, 4)}
    classifier(torch.randn(5, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in classifier.parameters())

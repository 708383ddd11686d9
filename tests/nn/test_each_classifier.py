from __future__ import annotations

import pytest
import torch
from torch import nn

from tightframe.errors import ArgumentError
from tightframe.frames import MatrixFrame, SimplexETF, hierarchy_aware_frame, is_unit_norm, simplex_etf
from tightframe.nn import (
    FrameClassifier,
    LinearClassifier,
    NearestETFClassifier,
    NormalizedLinear,
    SimplexETFClassifier,
)

from . import test_classifiers as laws
from .test_classifiers import MATRIX, D, K, features


class TestSimplexETFClassifier:
    def test_weight_is_the_frame_of_the_seed(self):
        for seed in (0, 5):
            wanted = simplex_etf(K, D, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(SimplexETFClassifier(D, K, seed=seed).weight, wanted)
        assert torch.equal(
            SimplexETFClassifier(D, K, orientation="canonical").weight, simplex_etf(K, D, orientation="canonical")
        )

    def test_state_restores_the_haar_frame_bit_for_bit(self):
        one, other = SimplexETFClassifier(D, K, seed=1), SimplexETFClassifier(D, K, seed=2)
        assert not torch.equal(one.weight, other.weight)
        assert list(one.state_dict()) == ["class_matrix"]
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one(features(3, D)), other(features(3, D)))

    def test_canonical_state_is_empty_and_loads(self):
        classifier = SimplexETFClassifier(D, K, orientation="canonical")
        assert dict(classifier.state_dict()) == {}
        classifier.load_state_dict({})

    def test_state_of_the_other_orientation_or_shape_is_refused(self):
        haar, canonical = SimplexETFClassifier(D, K), SimplexETFClassifier(D, K, orientation="canonical")
        with pytest.raises(RuntimeError, match=r"Unexpected key.*class_matrix"):
            canonical.load_state_dict(haar.state_dict())
        with pytest.raises(RuntimeError, match=r"Missing key.*class_matrix"):
            haar.load_state_dict(canonical.state_dict())
        with pytest.raises(RuntimeError, match="size mismatch for class_matrix"):
            haar.load_state_dict(SimplexETFClassifier(D, K - 1).state_dict())

    def test_built_on_meta_then_loaded(self):
        wanted = SimplexETFClassifier(D, K, seed=4)
        with torch.device("meta"):
            classifier = SimplexETFClassifier(D, K)
        classifier.to_empty(device="cpu").load_state_dict(wanted.state_dict())
        assert torch.equal(classifier(features(2, D)), wanted(features(2, D)))

    def test_from_linear_takes_sizes_dtype_and_options(self):
        linear = nn.Linear(D, K, dtype=torch.float64)
        classifier = SimplexETFClassifier.from_linear(linear, seed=5, scale=2.0)
        assert torch.equal(classifier.weight, SimplexETFClassifier(D, K, seed=5, dtype=torch.float64).weight)
        assert classifier.scale == 2.0
        assert SimplexETFClassifier.from_linear(nn.Linear(D, K, device="meta")).weight.device.type == "meta"

    def test_bad_arguments(self):
        for seed in (-1, 1.0, None):
            with pytest.raises(ArgumentError, match="seed must be an integer >= 0"):
                SimplexETFClassifier(D, K, seed=seed)
        with pytest.raises(ArgumentError, match=r"linear must be an nn\.Linear, got Conv1d"):
            SimplexETFClassifier.from_linear(nn.Conv1d(2, 2, 1))


class TestFrameClassifier:
    def test_holds_a_copy_without_gradient(self):
        matrix = MATRIX.clone().requires_grad_()
        classifier = FrameClassifier(matrix)
        with torch.no_grad():
            matrix.zero_()
        assert torch.equal(classifier.weight, MATRIX)
        assert not classifier.weight.requires_grad

    def test_loading_a_state_does_not_change_the_frame_given(self):
        frame = MatrixFrame(MATRIX.clone())
        FrameClassifier(frame).load_state_dict({"class_matrix": torch.zeros(K, D)})
        assert torch.equal(frame.as_matrix(), MATRIX)

    def test_lengths_of_the_rows_are_kept(self):
        classifier = FrameClassifier(2 * torch.eye(3))
        assert classifier(torch.tensor([5.0, 0.0, 0.0])).tolist() == [2.0, 0.0, 0.0]

    def test_has_the_default_dtype_or_the_one_given_whatever_the_frame_has(self):
        frame = hierarchy_aware_frame(1 - torch.eye(K, dtype=torch.float64), D, dtype=torch.float64)
        for given in (frame, frame.frame, SimplexETF(K, D, orientation="canonical", dtype=torch.float64)):
            classifier = FrameClassifier(given)
            assert classifier.weight.dtype == torch.float32
            assert classifier(features(2, D)).dtype == torch.float32
            assert FrameClassifier(given, dtype=torch.bfloat16).weight.dtype == torch.bfloat16
        assert torch.equal(FrameClassifier(frame, dtype=torch.float64).weight, frame.frame)
        assert FrameClassifier(frame, device="meta").weight.device.type == "meta"
        with torch.device("meta"):
            assert FrameClassifier(frame).weight.device.type == "cpu"

    def test_a_haar_frame_becomes_a_buffer_and_a_canonical_one_nothing(self):
        assert list(FrameClassifier(SimplexETF(K, D)).state_dict()) == ["class_matrix"]
        assert list(FrameClassifier(SimplexETF(K, D, orientation="canonical")).state_dict()) == []


class TestNormalizedLinear:
    def test_weight_has_unit_rows_whatever_the_parameter(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors.mul_(7.0)
        assert is_unit_norm(classifier.frame)
        assert list(classifier.state_dict()) == ["vectors"]

    def test_gradient_reaches_the_vectors_and_is_orthogonal_to_them(self):
        classifier = NormalizedLinear(D, K, dtype=torch.float64)
        classifier(features(4, D, dtype=torch.float64))[:, 1].sum().backward()
        grad = classifier.vectors.grad
        assert grad[1].abs().max() > 0
        assert abs((grad[1] @ classifier.vectors[1]).item()) < 1e-13
        assert grad[[0, 2, 3, 4]].abs().max() == 0

    def test_class_vectors_send_gradients_to_their_rows_only(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors[0] = float("nan")
        classifier.class_vectors(torch.tensor([3]))[:, 0].sum().backward()
        assert classifier.vectors.grad[[0, 1, 2, 4]].abs().max() == 0
        assert classifier.vectors.grad[3].abs().max() > 0

    def test_a_zero_vector_has_zero_logits_and_gradient(self):
        classifier = NormalizedLinear(D, K)
        with torch.no_grad():
            classifier.vectors[2] = 0
        logits = classifier(features(4, D))
        assert logits[:, 2].tolist() == [0.0] * 4
        logits.sum().backward()
        assert classifier.vectors.grad[2].tolist() == [0.0] * D

    def test_from_linear_starts_at_its_directions(self):
        linear = nn.Linear(D, K, dtype=torch.float64)
        classifier = NormalizedLinear.from_linear(linear, scale=2.0)
        torch.testing.assert_close(classifier.weight, nn.functional.normalize(linear.weight))
        assert classifier.vectors.dtype == torch.float64
        assert classifier.vectors is not linear.weight


class TestNearestETFClassifier:
    """Of the laws of every classifier those that hold with a bias and labels: its own are in test_nearest.py."""

    @staticmethod
    def made(**options):
        classifier = NearestETFClassifier(D, K, **options)
        classifier(features(2 * K, D), torch.arange(2 * K) % K)
        return classifier

    @pytest.mark.parametrize(
        "law",
        [
            laws.test_interface,
            laws.test_class_vectors_are_rows_of_the_weight,
            laws.test_prepared_features_are_what_the_class_vectors_meet,
            laws.test_gradient,
            laws.test_autocast_lowers_nothing,
            laws.test_copies_pickles_and_saves,
            laws.test_module_casts_and_moves,
            laws.test_wrong_features,
        ],
        ids=lambda law: law.__name__,
    )
    def test_keeps_the_laws_of_all_classifiers(self, law):
        law(self.made)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_features_are_computed_in_float32(self, dtype):
        laws.test_half_features_are_computed_in_float32(self.made, dtype)

    def test_compiles_to_one_graph_without_labels(self):
        laws.test_compiles_to_one_graph(self.made)


class TestLinearClassifier:
    @pytest.mark.parametrize("bias", [True, False])
    def test_is_nn_linear_with_the_same_start_and_keys(self, bias):
        torch.manual_seed(0)
        linear = nn.Linear(D, K, bias=bias)
        torch.manual_seed(0)
        classifier = LinearClassifier(D, K, bias=bias)
        assert list(classifier.state_dict()) == list(linear.state_dict())
        assert torch.equal(classifier(features(3, D)), linear(features(3, D)))
        classifier.load_state_dict(linear.state_dict())

    @pytest.mark.parametrize("bias", [True, False])
    def test_from_linear_and_export_copy(self, bias):
        linear = nn.Linear(D, K, bias=bias, dtype=torch.float64)
        h = features(3, D, dtype=torch.float64)
        classifier = LinearClassifier.from_linear(linear)
        exported = classifier.export()
        wanted = linear(h).detach()
        with torch.no_grad():
            linear.weight.zero_()
        assert torch.equal(classifier(h), wanted)
        assert torch.equal(exported(h), wanted)

    @pytest.mark.parametrize("kind", [LinearClassifier, NormalizedLinear])
    def test_bad_arguments_of_learned_classifiers(self, kind):
        with pytest.raises(ArgumentError, match="dim must be an integer >= 1"):
            kind(0, K)
        with pytest.raises(ArgumentError, match="num_classes must be an integer >= 1"):
            kind(D, 0)
        with pytest.raises(ArgumentError, match="linear must be"):
            kind.from_linear(nn.Identity())

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection

from tests.functional import severity_literal as literal
from tests.training.processes import on_two_ranks
from tightframe import functional as F
from tightframe.errors import ArgumentError, DtypeError, LabelError, NonFiniteError, ShapeError
from tightframe.metrics import FrameCollapse, HierarchicalDistance, HierarchicalMetrics, MistakeSeverity
from tightframe.moments import ClassMoments

G = torch.Generator().manual_seed(0)
D = literal.random_tree(G, 25).distances()
K, N = len(D), 70
LABELS = torch.randint(K, (N,), generator=G)
SCORES = torch.randn(N, K, generator=G) + 2 * torch.eye(K)[LABELS]
SHARES = (slice(0, 53), slice(53, 70))
FOUR = literal.four_leaves().distances()
TOP_K = (1, 5, 200)
RULES = {
    "": lambda z: z,
    ".crm": lambda z: F.conditional_risk(z, D),
    ".tree-order": lambda z: F.tree_order(z, D),
}


def expected(scores=SCORES, labels=LABELS):
    values = {}
    for suffix, decide in RULES.items():
        decided = decide(scores)
        of_rule = F.severity_metrics(decided, labels, D, TOP_K)
        values |= {f"{name}{suffix}": value.mean() for name, value in of_rule.items()}
        values[f"mistake_severity{suffix}"] = F.mistake_severity(decided, labels, D)
    return values


def fed(metric, size=16, scores=SCORES, labels=LABELS):
    for z, y in zip(scores.split(size), labels.split(size), strict=True):
        metric.update(z, y)
    return metric


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(actual[name], wanted[name], rtol=1e-12, atol=1e-14, equal_nan=True, msg=name)


@pytest.mark.parametrize("size", [1, 16, 70])
def test_batches_do_not_matter(size):
    assert_same(fed(HierarchicalMetrics(D, TOP_K), size).compute(), expected())
    severity = fed(MistakeSeverity(D), size).compute()
    assert severity.item() == pytest.approx(F.mistake_severity(SCORES, LABELS, D).item(), rel=1e-13)
    assert (severity.dtype, severity.shape) == (torch.float64, torch.Size())
    one = fed(HierarchicalDistance(D, 5), size).compute()
    assert one.item() == pytest.approx(F.hierarchical_distance(SCORES, LABELS, D, 5).mean().item(), rel=1e-13)
    several = fed(HierarchicalDistance(D, top_k=[5, 1]), size).compute()
    assert list(several) == ["hierarchical_distance@5", "hierarchical_distance@1"]
    assert several["hierarchical_distance@5"] == one
    values = expected()
    assert 0.1 < values["error"] < 0.9
    assert values["hops"] < values["hops.crm"]


def test_decisions_can_be_chosen():
    metric = fed(HierarchicalMetrics(D, TOP_K, decisions=("tree-order",)))
    assert_same(metric.compute(), {name: v for name, v in expected().items() if name.endswith(".tree-order")})


def test_exact_values():
    metric = HierarchicalMetrics(FOUR, top_k=(2,), decisions=("argmax",))
    metric.update(torch.eye(4), torch.tensor([0, 0, 0, 0]))
    values = metric.compute()
    # Ranked: A B C D, B A C D, C A B D, D A B C; of label A at ranks 0122, 1022, 2012, 2012.
    assert values["hops"].item() == pytest.approx((1 + 0.5 + 1 / 12 + 1 / 12) / 4, rel=1e-14)
    assert values["concordance"].item() == pytest.approx((1 + 0.8 + 0.6 + 0.6) / 4, rel=1e-14)
    assert values["mistake_severity"].item() == pytest.approx(5 / 3, rel=1e-15)
    assert values["hierarchical_distance@2"].item() == pytest.approx((0.5 + 0.5 + 1 + 1) / 4, rel=1e-15)
    assert (values["near_mistakes"].item(), values["far_mistakes"].item()) == (0.25, 0.5)


def test_nothing_seen_and_no_mistake():
    severity = MistakeSeverity(FOUR)
    severity.update(torch.eye(4)[:0], torch.arange(0))
    assert severity.compute().isnan()
    severity.reset()
    severity.update(torch.eye(4), torch.arange(4))
    assert severity.compute().isnan()
    severity.update(torch.eye(4)[1:2], torch.tensor([0]))
    assert severity.compute() == 1
    distance = HierarchicalDistance(FOUR)
    distance.update(torch.eye(4)[:0], torch.arange(0))
    assert distance.compute().isnan()


def test_metrics_in_a_collection_stay_apart():
    # After a batch without a mistake all sums agree, which is when torchmetrics looks which metrics may share them.
    metrics = MetricCollection(
        {"one": MistakeSeverity(FOUR), "twice": MistakeSeverity(2 * FOUR), "distance": HierarchicalDistance(FOUR)}
    )
    metrics.update(torch.eye(4), torch.arange(4))
    metrics.update(torch.eye(4), torch.tensor([0, 0, 0, 0]))
    values = metrics.compute()
    assert values["one"].item() == pytest.approx(5 / 3, rel=1e-15)
    assert values["twice"].item() == pytest.approx(10 / 3, rel=1e-15)
    assert values["distance"].item() == 5 / 8


def test_casts_leave_distances_and_sums():
    distances = D + 1e-9 * (1 - torch.eye(K))  # which half precision cannot tell from D
    metric, frame = HierarchicalMetrics(distances, TOP_K), FrameCollapse(torch.eye(3) / 3)
    fed(metric, scores=SCORES[:30], labels=LABELS[:30])
    parent = torch.nn.ModuleList([metric, frame])
    for cast in (lambda: parent.to(torch.bfloat16), parent.half, parent.float, parent.double):
        cast()
    fed(metric, scores=SCORES[30:], labels=LABELS[30:])
    assert metric.sums.dtype == metric.distances.dtype == torch.float64
    assert torch.equal(metric.distances, distances)
    assert MistakeSeverity(FOUR.half()).distances.dtype == torch.float64
    assert (
        metric.compute()["hierarchical_distance@1"]
        == fed(HierarchicalMetrics(distances)).compute()["hierarchical_distance@1"]
    )
    assert torch.equal(frame.frame, torch.eye(3) / 3)
    metric.reset()
    assert metric.sums.dtype == torch.float64


def test_a_later_change_of_the_given_distances_does_not_matter():
    given = FOUR.clone()
    metric = MistakeSeverity(given)
    given.mul_(7)
    metric.update(torch.eye(4), torch.tensor([1, 1, 2, 3]))
    assert metric.compute() == 1


def test_many_samples_are_counted_exactly():
    metric = MistakeSeverity(FOUR)
    scores = torch.eye(4)[torch.zeros(300_001, dtype=torch.long)]
    labels = torch.zeros(300_001, dtype=torch.long)
    labels[:7] = 2
    labels[7:10] = 1
    metric.half().update(scores, labels)
    assert metric.sums.tolist() == [17, 10]


def test_frame_collapse_is_its_function():
    features, labels = torch.randn(40, 5, generator=G), torch.arange(40) % 3
    frame = torch.randn(3, 5, generator=G)
    for scatter in (False, True):
        metric = FrameCollapse(frame, scatter=scatter, ignore_index=-1)
        for h, y in zip(features.split(7), labels.split(7), strict=True):
            metric.update(torch.cat([h, h]), torch.cat([y, torch.full_like(y, -1)]))
        wanted = F.frame_metrics(ClassMoments.from_samples(features, labels, 3, scatter=scatter), frame)
        assert_same(metric.compute(), wanted)


# ---------------------------------------------------------------- two ranks


def _rank(rank, folder):
    dist.init_process_group("gloo")
    share = SHARES[rank]
    metric = fed(HierarchicalMetrics(D, TOP_K), 10, SCORES[share], LABELS[share])
    results = {"all": metric.compute(), "again": metric.compute()}
    alone = MistakeSeverity(D)
    if rank == 0:
        fed(alone, 70)
    results["one_rank_has_all"] = alone.compute()
    pair = MetricCollection({"severity": MistakeSeverity(D), "distance": HierarchicalDistance(D, 5)})
    pair.update(SCORES[share], LABELS[share])
    results["collection"] = pair.compute()
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_with_uneven_shares(tmp_path):
    on_two_ranks(_rank, tmp_path)
    severity = F.mistake_severity(SCORES, LABELS, D)
    together = {"severity": severity, "distance": F.hierarchical_distance(SCORES, LABELS, D, 5).mean()}
    for rank in range(2):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        assert_same(results["all"], expected())
        assert_same(results["again"], expected())
        assert results["one_rank_has_all"].item() == pytest.approx(severity.item(), rel=1e-13)
        assert_same(results["collection"], together)


# ---------------------------------------------------------------- bad input


def only(decision):
    return lambda distances: HierarchicalMetrics(distances, decisions=(decision,))


@pytest.mark.parametrize(
    "make", [MistakeSeverity, HierarchicalDistance, HierarchicalMetrics, only("crm"), only("tree-order")]
)
def test_bad_samples_are_refused_and_not_counted(make):
    metric = fed(make(D))
    before = metric.sums.clone()
    for scores, labels, error in (
        (SCORES, LABELS + K, LabelError),
        (SCORES, -1 - LABELS, LabelError),
        (SCORES, LABELS.float(), DtypeError),
        (SCORES, LABELS[1:], ShapeError),
        (SCORES[:, :3], LABELS, ShapeError),
        (SCORES.long(), LABELS, DtypeError),
        (SCORES * torch.nan, LABELS, NonFiniteError),
    ):
        with pytest.raises(error, match="labels" if error is LabelError else "labels|scores"):
            metric.update(scores, labels)
        assert torch.equal(metric.sums, before)


@pytest.mark.parametrize("make", [MistakeSeverity, HierarchicalDistance, HierarchicalMetrics])
def test_bad_distances_are_refused(make):
    for distances, error in (
        (torch.zeros(4, 4), ArgumentError),
        (FOUR.triu(), ArgumentError),
        (FOUR.long(), DtypeError),
        (FOUR[:3], ShapeError),
    ):
        with pytest.raises(error, match="distances"):
            make(distances)


@pytest.mark.parametrize(
    ("make", "values", "error", "message"),
    [
        (lambda x: HierarchicalDistance(FOUR, top_k=x), (0, 5, 1.5, (1, 5), (1, 0)), ArgumentError, "top_k must be"),
        (lambda x: HierarchicalMetrics(FOUR, top_k=x), ((0,), (1, 2.0), ("1",)), ArgumentError, "top_k must be"),
        (
            lambda x: HierarchicalMetrics(FOUR, decisions=("argmax", x)),
            ("hie",),
            ArgumentError,
            "decisions must be one of 'argmax', 'crm', 'tree-order', got 'hie'",
        ),
        (FrameCollapse, (torch.eye(3).long(),), DtypeError, "frame"),
        (FrameCollapse, (torch.full((2, 2), torch.nan),), NonFiniteError, "frame"),
        (FrameCollapse, (torch.ones(3),), ShapeError, "frame"),
    ],
)
def test_bad_options(make, values, error, message):
    for bad in values:
        with pytest.raises(error, match=message):
            make(bad)

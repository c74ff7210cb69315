import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.errors import DataError
from llmos.parallel.world import World
from llmos.train.sampler import Sampler, permute

samplers = st.builds(
    lambda length, extra, seed: Sampler(length + extra, length, seed),
    st.integers(1, 20),
    st.integers(1, 500),
    st.integers(0, 2**63 - 1),
)


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_is_a_permutation(count: int, seed: int) -> None:
    image = permute(np.arange(count), count, np.random.SeedSequence(seed))
    assert sorted(image) == list(range(count))


def test_permute_works_at_any_size_and_scatters() -> None:
    count = 10**12
    image = permute(np.arange(20_000), count, np.random.SeedSequence(1))
    assert len(set(image.tolist())) == 20_000
    # uniform on [0, 1): mean 0.5, neighbours independent (standard errors 0.002 and 0.007)
    share = image / count
    assert abs(share.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(share[:-1], share[1:])[0, 1]) < 0.03


@given(samplers, st.integers(0, 5))
def test_an_epoch_visits_each_window_once(sampler: Sampler, epoch: int) -> None:
    offsets = sampler.offsets(epoch * sampler.windows, (epoch + 1) * sampler.windows)
    first = sampler.phase(epoch)
    assert sorted(offsets) == [first + i * sampler.length for i in range(sampler.windows)]
    assert 0 <= first < sampler.length
    assert offsets.max() + sampler.length + 1 <= sampler.tokens


@given(samplers, st.integers(0, 50), st.integers(1, 40), st.integers(1, 7))
def test_ranks_read_together_what_one_rank_reads(sampler: Sampler, step: int, batch_size: int, ranks: int) -> None:
    alone = sampler.offsets(step * batch_size, (step + 1) * batch_size)
    parts = [World(rank, ranks).share(batch_size) for rank in range(ranks)]
    together = [sampler.offsets(step * batch_size + part.start, step * batch_size + part.stop) for part in parts]
    assert np.concatenate(together).tolist() == alone.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed: int) -> None:
    sampler, other = Sampler(10_001, 10, seed), Sampler(10_001, 10, seed + 1)
    n = sampler.windows
    assert sampler.offsets(0, n).tolist() != sampler.offsets(n, 2 * n).tolist()
    assert sampler.offsets(0, n).tolist() != other.offsets(0, n).tolist()


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="64 tokens: expected more than `sequence_length: 64`"):
        Sampler(64, 64, 0)
    assert Sampler(65, 64, 0).offsets(0, 3).tolist() == [0, 0, 0]

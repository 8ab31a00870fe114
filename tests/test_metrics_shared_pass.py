"""Several metrics of one command: images are made once, and numbers are those of separate runs, bit for bit."""

import os

import numpy as np
import pytest
import torch
from generator_fakes import Flat, LinearGenerator, save_script
from metric_fakes import FakeImages, save_corner_detector

from metrics import metric_main, shared_pass
from metrics.shared_pass import BatchStore, store_of
from torch_utils import distributed

CPU = torch.device('cpu')
SHARING = ['fid50k_full', 'kid50k_full', 'pr50k3_full', 'is50k', 'swd']
LENGTHS = ['ppl2_wend', 'ppl_zfull', 'ppl_wfull', 'ppl_zend', 'ppl_wend']
NUM, NUM_REAL, BATCH = 12, 11, 5


class CountedImages(FakeImages):
    reads = 0

    def __getitem__(self, idx):
        CountedImages.reads += 1
        return super().__getitem__(idx)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('DNNLIB_CACHE_DIR', str(tmp_path / 'cache'))
    monkeypatch.setattr('metrics.sliced_wasserstein.DIRECTIONS', 16)
    return tmp_path / 'cache'


@pytest.fixture
def flat(tmp_path):
    return save_script(Flat(), tmp_path / 'flat.pt')


def data(**kwargs):
    common = dict(class_name='test_metrics_shared_pass.CountedImages', num=NUM_REAL, channels=3, resolution=16)
    return {**common, **kwargs}


def noisy(**kwargs):
    """Its noise is drawn from the global random state, as that of a StyleGAN is."""
    return LinearGenerator(strength=0.3, **kwargs).eval()


def calc(names, G, detector, shared=None, data_kwargs=None, **kwargs):
    """Results by name; `shared` = None is a run of its own for each."""
    options = {**dict(num=NUM, batch=BATCH, device=CPU, cache=False), **kwargs}
    results = {}
    for name in names:
        result = metric_main.calc_metric(
            name, G=G, detector=detector, dataset_kwargs=data_kwargs or data(), shared=shared, **options)
        results[name] = dict(result.results)
    return results


@pytest.mark.parametrize('names', [SHARING, SHARING[::-1], ['swd', 'ppl_zfull', 'fid50k', 'fid50k_full']])
def test_numbers_are_those_of_separate_runs_bit_for_bit(names, flat):
    together, apart = noisy(), noisy()
    assert calc(names, together, flat, dict(metrics=names)) == calc(names, apart, flat)
    # Of the 11 images of swd all but the last batch of one are those of the others, whose last batch holds two.
    assert sum(together.synthesis.calls) == NUM + 1
    # Path lengths are of a copy of the network, which counts for itself.
    assert sum(apart.synthesis.calls) == NUM * (len(names) - 1 - ('ppl_zfull' in names)) + NUM_REAL


def test_images_of_the_data_set_are_read_once_for_one_detector(flat):
    CountedImages.reads = 0
    calc(['fid50k_full', 'kid50k_full', 'pr50k3_full'], noisy(), flat, {})
    assert CountedImages.reads == NUM_REAL


def test_a_network_of_the_real_kind_with_its_noise_and_conditional(flat):
    from training.networks import Generator

    torch.manual_seed(0)
    G = Generator(z_dim=8, c_dim=2, w_dim=8, img_resolution=16, img_channels=1,
                  synthesis_kwargs=dict(channel_base=64, channel_max=8)).eval().requires_grad_(False)
    for module in G.modules():
        if hasattr(module, 'noise_strength'):
            module.noise_strength.fill_(0.5)
    grey = data(channels=1, label_dim=2)
    made = []
    G.synthesis.register_forward_hook(lambda module, args, img: made.append(len(img)))
    # Mirrored reals are other labels to draw from, so fid50k may not take the images of fid50k_full.
    names = ['fid50k_full', 'kid50k_full', 'pr50k3_full', 'is50k', 'fid50k']
    together = calc(names, G, flat, dict(metrics=names), dict(grey, xflip=True))
    assert sum(made) == 2 * NUM
    assert together == calc(names, G, flat, data_kwargs=dict(grey, xflip=True))


@pytest.mark.parametrize('kept', [True, False])
def test_what_has_no_room_is_made_again(kept, flat, monkeypatch):
    image, feature = 3 * 16 * 16, 16 * 4
    # Room for the features of the real images, which come first, and the first batch of images; or for nothing.
    monkeypatch.setattr(shared_pass, 'MAX_BYTES', kept * (NUM_REAL * feature + BATCH * image))
    G = noisy()
    assert calc(SHARING, G, flat, {}) == calc(SHARING, noisy(), flat)
    taken = kept * BATCH * 4  # By each metric but the first.
    assert sum(G.synthesis.calls) == NUM * 4 + NUM_REAL - taken


def test_the_file_is_there_only_while_someone_will_ask(flat, cache):
    shared = dict(metrics=['fid50k_full', 'ppl2_wend', 'kid50k_full', 'ppl_wend'])
    seen = []
    for name in list(shared['metrics']):
        calc([name], noisy(), flat, shared)
        seen.append(store_of(shared) is not None)
    assert seen == [True, True, False, False] and shared['metrics'][0] == 'fid50k_full'
    for names in (['fid50k_full'], ['ppl2_wend', 'fid50k_full'], ['fid50k_full', 'ppl_wend']):
        shared = dict(metrics=names)
        calc(names[:1], noisy(), flat, shared)
        assert store_of(shared) is None, 'no one will come for it'
    calc(['fid50k_full'], noisy(), flat, shared := {})
    assert store_of(shared) is not None, 'nothing is known of what comes'
    assert not [entry for entry in os.listdir(cache / 'gan-metrics') if not entry.endswith('.npz')]


def test_other_networks_seeds_and_truncations_are_not_mistaken(flat, tmp_path):
    shared, other = {}, save_corner_detector(tmp_path / 'corner.pt')
    variants = [dict(G=noisy()), dict(G=noisy(gain=0.5)), dict(G=noisy(), seed=1),
                dict(G=noisy(), G_kwargs=dict(truncation_psi=0.5))]
    for variant in variants:
        for detector in (flat, other):
            expected = calc(['fid50k_full'], detector=detector, **variant)
            assert calc(['fid50k_full'], detector=detector, shared=shared, **variant) == expected


def test_a_metric_leaves_the_random_state_alone_and_noise_does_not_follow_it(flat):
    torch.manual_seed(3)
    first = calc(['fid50k_full'], noisy(), flat)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.rand(2), rtol=0, atol=0)
    assert calc(['fid50k_full'], noisy(), flat) == first
    assert calc(['fid50k_full'], noisy(), flat, seed=1) != first


# ---------------------------------------------------------------------------------------------------------------------
# The store


def test_arrays_come_back_as_they_were_and_may_be_changed():
    store = BatchStore(max_bytes=1000)
    arrays = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), ('b', range(3)): np.arange(5, dtype=np.uint8)[::-1]}
    for key, array in arrays.items():
        store.put(key, array)
    for key, array in arrays.items():
        found = store.get(key)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        found += 1
        np.testing.assert_array_equal(store.get(key), array)
    assert store.get('c') is None and 'c' not in store and 'a' in store


def test_the_bound_holds_and_processes_divide_it():
    store = BatchStore(max_bytes=20, shares=2)
    for key, size in (('a', 6), ('b', 6), ('c', 4), ('d', 1)):
        store.put(key, np.zeros([size], np.uint8))
    assert [key for key in 'abcd' if key in store] == ['a', 'c']
    store.keeps = False
    store.put('e', np.zeros([0], np.uint8))
    assert 'e' not in store


def test_by_default_half_of_the_free_disk_is_left(monkeypatch):
    monkeypatch.setattr(shared_pass.shutil, 'disk_usage', lambda folder: type('Usage', (), dict(free=40)))
    assert BatchStore().max_bytes == 20


def test_a_full_disk_ends_keeping_and_nothing_else():
    store = BatchStore(max_bytes=1000)
    store.put('a', np.ones([3]))

    class Full:
        def __getattr__(self, name):
            raise OSError(28, 'No space left on device')

    file, store._file = store._file, Full()
    store.put('b', np.ones([3]))
    store._file = file
    store.put('c', np.ones([3]))
    assert [key for key in 'abc' if key in store] == ['a']
    np.testing.assert_array_equal(store.get('a'), np.ones([3]))


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def share_work(rank, world_size, detector, cache_dir):
    from metrics import sliced_wasserstein

    os.environ['DNNLIB_CACHE_DIR'] = cache_dir
    sliced_wasserstein.DIRECTIONS = 16
    G = LinearGenerator(gain=0.3)
    names = [*SHARING, *LENGTHS, 'pr50k3']
    work = dict(num_gpus=world_size, rank=rank, batch=4)
    apart = calc(names, G, detector, **work)
    together = calc(names, G, detector, dict(metrics=names), **work)
    return apart, together


def test_two_processes_give_what_one_gives_together_or_apart(flat, tmp_path):
    one = share_work(0, 1, flat, str(tmp_path / 'one'))
    two = distributed.spawn(share_work, 2, (flat, str(tmp_path / 'two')), device='cpu')
    assert one[0] == one[1] and two[0] == two[1]
    for name, results in one[0].items():
        assert two[0][name] == pytest.approx(results, rel=1e-5), name

import hashlib
import io
import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmseg.registry import MODELS

from mmdscnet import zoo
from mmdscnet.zoo import (
    checked_address,
    fetch,
    find_config,
    find_model,
    list_models,
    load_from_mmdscnet,
    read_checkpoint,
)

FORK = multiprocessing.get_context('fork')
PATIENCE = 30


class RunsCode:
    """Pickles as a call, as a harmful checkpoint would."""

    def __reduce__(self):
        return os.system, ('true',)


def as_bytes(checkpoint):
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


CONTENT = as_bytes(dict(state_dict=dict(weight=torch.arange(60_000.0)), meta=dict(epoch=3)))
DIGEST = digest_of(CONTENT)
NAME = f'mine-{DIGEST[:8]}.pth'
ADDRESS = f'mmdscnet://{NAME}'


@pytest.fixture(autouse=True)
def empty_cache(cache):
    """No test may touch the cache of the machine."""
    return cache


@pytest.fixture
def url(web):
    web.files[f'/{NAME}'] = CONTENT
    return f'{web.url}/{NAME}'


@pytest.fixture
def metafile(monkeypatch, tmp_path):
    """Let ``mine`` be the only model that is known, with weights as given."""

    def write(weights='mmdscnet://mine'):
        folder = tmp_path / 'mim'
        folder.mkdir()
        (folder / 'model-index.yml').write_text('Import:\n- metafile.yml\n')
        (folder / 'metafile.yml').write_text(
            f'Models:\n- {{Name: mine, Config: a/b.py, SHA256: {DIGEST}, Weights: "{weights}"}}\n'
        )
        monkeypatch.setattr(zoo, 'INDEX_FOLDER', folder)

    return write


def shown_files(folder):
    """Names of what a reader of a folder sees."""
    return sorted(path.name for path in folder.glob('*') if not path.name.startswith('.'))


def leftovers(folder):
    return list(folder.glob('.*.tmp'))


class TestShipped:
    def test_needs_neither_network_nor_cache(self, cache):
        path = fetch('mmdscnet://dscnet_shapes')
        assert path.parent == zoo.SHIPPED_FOLDER
        assert not cache.exists()
        assert read_checkpoint(path)['meta']['epoch'] == 12

    def test_is_found_by_the_name_of_its_file_too(self):
        path = fetch('mmdscnet://dscnet_shapes')
        assert fetch(f'mmdscnet://{path.name}') == path

    def test_damaged_one_is_an_error(self, monkeypatch, tmp_path, metafile):
        metafile()
        monkeypatch.setattr(zoo, 'SHIPPED_FOLDER', tmp_path)
        (tmp_path / NAME).write_bytes(CONTENT[:-1])
        message = rf'{NAME} has the SHA-256 [0-9a-f]+ and not {DIGEST}: install mmdscnet again'
        with pytest.raises(ValueError, match=message):
            fetch('mmdscnet://mine')

    def test_config_of_its_address_is_there(self):
        path = find_config('mmdscnet://dscnet_shapes')
        assert path == find_config('dscnet_shapes')
        assert path.is_file()


class TestNames:
    def test_unknown_model_error_lists_those_that_are(self):
        message = r'mmdscnet://dscnet_shape is not known, there are: .*dscnet_shapes'
        with pytest.raises(ValueError, match=message):
            fetch('mmdscnet://dscnet_shape')
        with pytest.raises(ValueError, match=message):
            find_config('mmdscnet://dscnet_shape')

    def test_entry_of_a_model_is_found(self):
        assert list_models()['dscnet_shapes'] == find_model('mmdscnet://dscnet_shapes')

    def test_package_without_its_configs_is_named(self, monkeypatch, tmp_path):
        monkeypatch.setattr(zoo, 'INDEX_FOLDER', tmp_path)
        with pytest.raises(FileNotFoundError, match=r'model-index\.yml is missing.*install'):
            list_models()

    @pytest.mark.parametrize('name', ['mine.pth', 'mine-1a2b.pth', f'sub/{NAME}', f'../{NAME}'])
    def test_file_that_is_not_named_by_its_hash_is_refused(self, name):
        with pytest.raises(ValueError, match=r'is not the name of a published file: give one that'):
            fetch(f'mmdscnet://{name}')

    @pytest.mark.parametrize('address', ['openmmlab://resnet50', 's3://a/b.pth', 'file:///a.pth'])
    def test_address_of_another_zoo_is_refused(self, address):
        with pytest.raises(ValueError, match='is of another zoo: give a file, a URL'):
            fetch(address)

    @pytest.mark.parametrize('digits', ['', 'abc', '0' * 63])
    def test_given_hash_must_be_whole(self, digits):
        with pytest.raises(ValueError, match=f'a hash of {len(digits)} digits: give all 64'):
            fetch(f'https://host/a.pth#sha256={digits}')

    @pytest.mark.parametrize('url', ['https://host', 'https://host/', 'https://host/..'])
    def test_url_without_a_file_is_refused(self, url):
        with pytest.raises(ValueError, match='does not end in the name of a file'):
            fetch(url)

    def test_only_urls_become_addresses_of_ours(self):
        assert checked_address('https://host/a.pth') == 'mmdscnet://https://host/a.pth'
        for address in ('a.pth', '/a.pth', 'openmmlab://resnet50', 'mmdscnet://mine'):
            assert checked_address(address) == address


class TestFiles:
    def test_file_stays_where_it_is(self, tmp_path):
        # The names of OpenMMLab's files carry the hash of others, so the name alone says nothing.
        path = tmp_path / 'other-00000000.pth'
        path.write_bytes(CONTENT)
        assert fetch(path) == fetch(str(path)) == fetch(f'mmdscnet://{path}') == path
        assert fetch(f'{path}#sha256={DIGEST.upper()}') == path

    def test_other_file_than_the_given_hash_says_is_an_error(self, tmp_path):
        (tmp_path / 'a.pth').write_bytes(CONTENT[:-1])
        with pytest.raises(ValueError, match=rf'a\.pth has the SHA-256 .* and not {DIGEST}: copy'):
            fetch(f'{tmp_path}/a.pth#sha256={DIGEST}')

    def test_missing_file_is_named(self):
        with pytest.raises(FileNotFoundError, match=r"checkpoint 'no\.pth' is not a file"):
            fetch('no.pth')


class TestFolder:
    @pytest.fixture
    def folder(self, monkeypatch, tmp_path):
        path = tmp_path / 'folder'
        path.mkdir()
        (path / NAME).write_bytes(CONTENT)
        monkeypatch.setenv('MMDSCNET_ZOO', str(path))
        return path

    def test_file_is_used_where_it_is(self, folder, metafile, cache):
        metafile()
        assert fetch(ADDRESS) == fetch('mmdscnet://mine') == folder / NAME
        assert not cache.exists()

    def test_damaged_file_is_an_error(self, folder):
        (folder / NAME).write_bytes(CONTENT + b'0')
        message = rf'folder/{NAME} has the SHA-256 .* and not {DIGEST[:8]}\.\.\.: publish or copy'
        with pytest.raises(ValueError, match=message):
            fetch(ADDRESS)

    def test_missing_file_is_an_error(self, folder):
        (folder / NAME).unlink()
        with pytest.raises(FileNotFoundError, match=f'{NAME} is not in .*folder, which MMDSCNET_Z'):
            fetch(ADDRESS)

    @pytest.mark.parametrize('value', ['no/such/folder', 'ftp://host/zoo'])
    def test_folder_that_is_not_there_is_an_error(self, monkeypatch, value):
        monkeypatch.setenv('MMDSCNET_ZOO', value)
        message = f"MMDSCNET_ZOO='{value}' is neither a folder nor a URL: set it to"
        with pytest.raises(FileNotFoundError, match=message):
            fetch(ADDRESS)

    def test_cache_serves_without_the_folder(self, monkeypatch, cache):
        cache.mkdir(parents=True)
        (cache / NAME).write_bytes(CONTENT)
        monkeypatch.setenv('MMDSCNET_ZOO', 'no/such/folder')
        assert fetch(ADDRESS) == cache / NAME


class TestWithoutZoo:
    @pytest.mark.parametrize('address', [ADDRESS, 'mmdscnet://mine'])
    def test_error_names_the_variable_and_the_cache(self, metafile, cache, address):
        metafile()
        message = rf'{NAME} is neither in the package nor in the cache: set MMDSCNET_ZOO .*{cache}'
        with pytest.raises(FileNotFoundError, match=message):
            fetch(address)

    def test_cache_is_an_offline_mirror(self, metafile, cache):
        metafile()
        cache.mkdir(parents=True)
        (cache / NAME).write_bytes(CONTENT)
        assert fetch(ADDRESS) == fetch('mmdscnet://mine') == cache / NAME
        assert fetch(f'https://no.such.host/{NAME}') == cache / NAME

    def test_damaged_file_of_the_cache_is_named(self, cache):
        cache.mkdir(parents=True)
        (cache / NAME).write_bytes(b'')
        with pytest.raises(FileNotFoundError, match=rf'one in the cache is damaged \(.*{NAME}\)'):
            fetch(ADDRESS)


class TestWeb:
    def test_published_file_comes_from_the_url_of_the_zoo(self, monkeypatch, web, url, cache):
        for ending in ('', '/'):
            monkeypatch.setenv('MMDSCNET_ZOO', web.url + ending)
            assert fetch(ADDRESS) == cache / NAME
        assert (cache / NAME).read_bytes() == CONTENT
        assert len(web.asked) == 1
        assert leftovers(cache) == []

    def test_model_comes_from_where_its_metafile_says(self, web, url, metafile, cache):
        metafile(url)
        assert fetch('mmdscnet://mine') == cache / NAME

    def test_zoo_of_the_environment_is_asked_instead(self, monkeypatch, web, url, metafile, cache):
        metafile('https://no.such.host/x.pth')
        monkeypatch.setenv('MMDSCNET_ZOO', web.url)
        assert fetch('mmdscnet://mine') == cache / NAME

    @pytest.mark.parametrize('begin', ['', 'mmdscnet://'])
    def test_url_is_fetched_once(self, web, url, cache, begin):
        for _ in range(2):
            assert fetch(begin + url) == cache / NAME
        assert len(web.asked) == 1

    def test_given_hash_stands_above_the_name(self, web, cache):
        web.files['/other-00000000.pth'] = CONTENT
        path = fetch(f'{web.url}/other-00000000.pth#sha256={DIGEST}')
        assert path == cache / f'other-00000000-{DIGEST[:8]}.pth'

    def test_files_of_one_name_are_kept_apart(self, web, cache):
        other = as_bytes(dict(state_dict={}))
        web.files['/a/model.pth'], web.files['/b/model.pth'] = CONTENT, other
        assert fetch(f'{web.url}/a/model.pth').read_bytes() == CONTENT
        assert fetch(f'{web.url}/b/model.pth').read_bytes() == other
        assert fetch(f'{web.url}/a/model.pth').read_bytes() == CONTENT
        assert len(web.asked) == 2

    def test_damaged_file_of_the_cache_is_named_and_replaced(self, url, cache):
        cache.mkdir(parents=True)
        (cache / NAME).write_bytes(CONTENT[:-1])
        with pytest.warns(UserWarning, match=f'{cache}/{NAME} is not the file .* it is replaced'):
            fetch(url)
        assert (cache / NAME).read_bytes() == CONTENT

    def test_changed_byte_is_noticed(self, web, url, cache):
        changed = CONTENT[:99] + bytes([CONTENT[99] ^ 1]) + CONTENT[100:]
        web.files[f'/{NAME}'] = changed
        message = rf'{NAME} has the SHA-256 {digest_of(changed)} and not {DIGEST[:8]}\.\.\.: .*Try'
        with pytest.raises(ValueError, match=message):
            fetch(url)
        assert shown_files(cache) == leftovers(cache) == []

    def test_shorter_file_is_noticed_also_without_a_hash(self, web, cache):
        web.files['/a.pth'] = CONTENT[:-1000]
        with pytest.raises(ValueError, match=r'/a\.pth is damaged or no checkpoint, download'):
            fetch(f'{web.url}/a.pth')
        assert shown_files(cache) == leftovers(cache) == []

    @pytest.mark.parametrize('page', [b'\n <!DOCTYPE html>...', b'<HTML>', b'<?xml version="1"?>'])
    @pytest.mark.parametrize('name', [NAME, 'a.pth'])
    def test_page_is_no_checkpoint(self, web, cache, page, name):
        web.files[f'/{name}'] = page
        with pytest.raises(ValueError, match=rf'{name} is a web page and no checkpoint: give'):
            fetch(f'{web.url}/{name}')
        assert shown_files(cache) == leftovers(cache) == []

    def test_missing_file_is_named(self, monkeypatch, web, cache):
        monkeypatch.setenv('MMDSCNET_ZOO', f'{web.url}/wrong')
        with pytest.raises(
            FileNotFoundError, match=f'{web.url}/wrong/{NAME} is not .*MMDSCNET_ZOO'
        ):
            fetch(ADDRESS)
        assert shown_files(cache) == leftovers(cache) == []

    def test_cut_download_leaves_nothing(self, monkeypatch, web, url, cache):
        monkeypatch.setattr('mmdscnet.download.TRIES', 2)
        web.faults = [lambda handler, content: web.answer(handler, content, most=100)] * 2
        with pytest.raises(ConnectionError, match='ended after 200 of'):
            fetch(url)
        assert shown_files(cache) == leftovers(cache) == []

    def test_cache_that_cannot_be_written_is_named(self, monkeypatch, url, tmp_path):
        (tmp_path / 'file').touch()
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
        with pytest.raises(
            OSError, match='the cache of checkpoints, cannot be written.*TORCH_HOME'
        ):
            fetch(url)


class TestProcesses:
    def test_two_at_once_download_once(self, web, url, cache):
        entered = threading.Event()

        def wait(handler, content):
            entered.set()
            time.sleep(0.3)
            web.answer(handler, content)

        web.faults = [wait]
        processes = [FORK.Process(target=fetch, args=[url]) for _ in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        assert [process.exitcode for process in processes] == [0, 0]
        assert entered.is_set()
        assert len(web.asked) == 1
        assert shown_files(cache) == [NAME]

    @pytest.fixture
    def kill_midway(self, web, cache):
        def send_half(handler, content):
            web.answer(handler, content, most=len(content) // 2)
            handler.wfile.flush()
            web.ended.wait()

        def kill(address):
            web.faults = [send_half]
            process = FORK.Process(target=fetch, args=[address])
            process.start()
            end = time.monotonic() + PATIENCE
            while not any(path.stat().st_size for path in leftovers(cache)):
                assert time.monotonic() < end
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.join(PATIENCE)
            assert process.exitcode == -signal.SIGKILL

        return kill

    def test_killed_download_leaves_no_half_file_and_is_gone_on_with(
        self, kill_midway, web, url, cache
    ):
        kill_midway(url)
        assert shown_files(cache) == []
        assert fetch(url).read_bytes() == CONTENT
        assert web.asked[-1]['Range'].startswith('bytes=')
        assert leftovers(cache) == []

    def test_without_a_hash_a_killed_download_begins_anew(self, kill_midway, web, cache):
        web.files['/a.pth'] = CONTENT
        kill_midway(f'{web.url}/a.pth')
        assert shown_files(cache) == []
        assert fetch(f'{web.url}/a.pth').read_bytes() == CONTENT
        assert 'Range' not in web.asked[-1]
        assert leftovers(cache) == []

    def test_leftovers_of_another_file_do_no_harm(self, web, url, cache):
        cache.mkdir(parents=True)
        (cache / f'.{NAME}.0123.tmp').write_bytes(b'of another version')
        assert fetch(url).read_bytes() == CONTENT
        assert leftovers(cache) == []


class TestReading:
    def test_mmengine_loads_by_address(self, tmp_path):
        checkpoint = CheckpointLoader.load_checkpoint('mmdscnet://dscnet_shapes', 'cpu')
        assert checkpoint['meta']['dataset_meta']['classes'][0] == 'background'

    def test_location_of_tensors_is_passed_on(self, tmp_path):
        (tmp_path / 'a.pth').write_bytes(CONTENT)
        checkpoint = load_from_mmdscnet(f'mmdscnet://{tmp_path}/a.pth', 'meta')
        assert checkpoint['state_dict']['weight'].is_meta

    def test_backbone_starts_from_an_address(self):
        backbone = dict(
            type='mmseg.ResNet',
            depth=18,
            base_channels=32,
            num_stages=3,
            out_indices=(0, 1, 2),
            strides=(1, 2, 1),
            dilations=(1, 1, 2),
            init_cfg=dict(
                type='Pretrained', checkpoint='mmdscnet://dscnet_shapes', prefix='backbone.'
            ),
        )
        built = MODELS.build(backbone)
        built.init_weights()
        weights = read_checkpoint(fetch('mmdscnet://dscnet_shapes'))['state_dict']
        for key, value in built.state_dict().items():
            assert torch.equal(value, weights[f'backbone.{key}']), key

    @pytest.mark.parametrize('old_format', [True, False])
    def test_checkpoint_that_would_run_code_is_refused(self, tmp_path, old_format):
        harm = dict(state_dict={}, meta=RunsCode())
        path = tmp_path / 'harm.pth'
        torch.save(harm, path, _use_new_zipfile_serialization=not old_format)
        message = r'harm\.pth would run code: it asks for posix\.system, which weights do not need'
        with pytest.raises(ValueError, match=message):
            load_from_mmdscnet(f'mmdscnet://{path}')

    def test_harmful_attribute_is_named(self, tmp_path):
        class Asks:
            def __reduce__(self):
                return getattr, (torch.Tensor, 'tofile')

        torch.save(dict(meta=Asks()), tmp_path / 'harm.pth')
        with pytest.raises(ValueError, match=r'would run code: it asks for '):
            read_checkpoint(tmp_path / 'harm.pth')

    @pytest.mark.parametrize(
        'content', [b'', b'no checkpoint at all', CONTENT[: len(CONTENT) // 2]]
    )
    def test_damaged_file_is_named(self, tmp_path, content):
        (tmp_path / 'a.pth').write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.pth is damaged or no checkpoint, download or'):
            read_checkpoint(tmp_path / 'a.pth')

    def test_file_without_weights_is_named(self, tmp_path):
        torch.save([1, 2], tmp_path / 'list.pth')
        with pytest.raises(ValueError, match=r'list\.pth holds a list and no weights: give'):
            read_checkpoint(tmp_path / 'list.pth')

    def test_missing_file_stays_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'a\.pth'):
            read_checkpoint(tmp_path / 'a.pth')

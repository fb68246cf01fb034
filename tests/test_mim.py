"""OpenMMLab's command line ``mim`` on mmdscnet from a wheel, in an environment of its own."""

import functools
import json
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from mmdscnet.provenance import hash_sha256
from mmdscnet.zoo import list_models, name_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.version_info >= (3, 12),
        reason='openmim brings setuptools 60.2, which Python 3.12 cannot import',
    ),
]

SMALL_SIZES = dict(data_root='data/shapes', splits=dict(train=16, val=8), image_size=64)
SMALL_PROJECT = f"""
_base_ = 'mmdscnet::dscnet/shapes.py'
loader = dict(num_workers=0, persistent_workers=False, dataset={SMALL_SIZES})
train_dataloader = dict(batch_size=8, **loader)
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=1, val_interval=1)
"""
ON_CPU = ('--gpus', '0', '--launcher', 'none')


def small_options(*loaders):
    """The sizes of ``SMALL_PROJECT`` for a config that is used as it is."""
    sizes = ('splits.train=16', 'splits.val=8', 'image_size=64')
    options = [f'{loader}_dataloader.dataset.{size}' for loader in loaders for size in sizes]
    return ('--cfg-options', *options)


def read_metrics(work_dir):
    """What a test of mmengine wrote."""
    (path,) = work_dir.glob('*/*.json')
    return {key: value for key, value in json.loads(path.read_text()).items() if 'time' not in key}


@pytest.fixture(scope='module')
def web_zoo(tmp_path_factory):
    """An empty folder, and its URL."""
    folder = tmp_path_factory.mktemp('zoo')
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture(scope='module')
def environment(make_environment):
    """An environment with openmim, its older setuptools, and behind them our stack."""
    made = make_environment(no_proxy='127.0.0.1')
    pip = (sys.executable, '-m', 'pip', '--python', made.python)
    install = ('install', '-qq', '--retries', '1', 'openmim==0.3.9')
    output = made.run(*pip, *install, cwd=made.python.parent, check=False)
    if 'No matching distribution found for openmim' in output:
        pytest.skip('pip reaches no index with openmim 0.3.9')
    assert made.python.with_name('mim').is_file(), output
    # After pip, which would otherwise take packages of the stack for those of this environment.
    made.see_the_stack()
    return made


@pytest.fixture(scope='module')
def published(environment, copy_sources, build_wheel, web_zoo):
    """Metafile's entry of a model on a web server, in a wheel that is installed."""
    source, (zoo, url) = copy_sources(), web_zoo
    folder = source / 'configs' / 'dscnet'
    model = (folder / 'shapes.py', 'mmdscnet://dscnet_shapes', '--name', 'mine')
    entry = ('--out', zoo, '--base-url', url, '--metafile', folder / 'metafile.yml')
    publish = source / 'tools' / 'misc' / 'publish_model.py'
    environment.run(environment.python, publish, *model, *entry, cwd=source)
    environment.install(build_wheel(source))
    return yaml.safe_load((folder / 'metafile.yml').read_text())['Models'][-1]


@pytest.fixture
def mim(environment, published, tmp_path):
    """Run mim in an empty project, after a look at what it works on."""
    find = 'import importlib.util as u, sys; print(*(u.find_spec(x).origin for x in sys.argv[1:]))'
    names = ('mmdscnet', 'mim', 'pkg_resources', 'setuptools')
    output = environment.run(environment.python, '-c', find, *names, cwd=tmp_path)
    home = environment.python.parents[1]
    assert [home in Path(origin).parents for origin in output.split()] == [True] * len(names)
    return functools.partial(environment.run, environment.python.with_name('mim'), cwd=tmp_path)


def test_project_that_inherits_ours_trains_and_tests(mim, tmp_path):
    (tmp_path / 'config.py').write_text(SMALL_PROJECT)
    output = mim('train', 'mmdscnet', 'config.py', *ON_CPU, '--work-dir', 'run')
    assert 'Training finished successfully' in output
    assert 'Epoch(train) [1][2/2]' in output
    weights = ('--checkpoint', 'run/epoch_1.pth')
    output = mim('test', 'mmdscnet', 'config.py', *weights, *ON_CPU, '--work-dir', 'tested')
    assert 'Testing finished successfully' in output
    assert 0 <= read_metrics(tmp_path / 'tested')['labels_given/best_mIoU'] <= 100


def test_config_of_ours_is_found_by_a_file_name_that_only_one_file_has(mim, tmp_path):
    options = ('--work-dir', 'run', *small_options('train', 'val'), 'train_cfg.max_epochs=1')
    output = mim('train', 'mmdscnet', 'shapes_m3.py', *ON_CPU, *options)
    assert '.mim/configs/dscnet/shapes_m3.py instead' in output
    assert (tmp_path / 'run' / 'epoch_1.pth').is_file()
    # mim compares file names alone, and shapes.py is also the name of a module of ours.
    output = mim('train', 'mmdscnet', 'dscnet/shapes.py', *ON_CPU, check=False)
    assert 'find multiple config files with same name' in output


def test_search_shows_what_the_metafiles_say(mim, tmp_path):
    output = mim('search', 'mmdscnet', '--json', 'found.json', '--model', 'dscnet')
    found = json.loads((tmp_path / 'found.json').read_text())
    assert set(found['weight']) >= {'dscnet_shapes', 'mine'}, output
    entry = list_models()['dscnet_shapes']
    shown = {key: values['dscnet_shapes'] for key, values in found.items()}
    (result,) = entry['Results']
    for name, value in result['Metrics'].items():
        assert shown[f'shapes/{name.lower()}'] == value
    assert shown['config'] == entry['Config']
    assert shown['weight'] == entry['Weights']
    assert [shown['epochs'], shown['batch_size'], shown['training_data']] == [12, 16, 'shapes']
    assert 'config id: dscnet_shapes' in mim('search', 'mmdscnet', '--config', 'dscnet_shapes')


def test_published_model_is_downloaded_and_is_what_was_published(mim, published, tmp_path):
    assert mim('download', 'mmdscnet', '--config', 'mine', '--dest', 'zoo')
    weights = tmp_path / 'zoo' / name_file('mine', published['SHA256'])
    assert {path.name for path in weights.parent.iterdir()} == {weights.name, 'mine.py'}
    assert hash_sha256(weights) == published['SHA256']
    # What mim wrote of the config needs nothing but our tools.
    options = ('--work-dir', 'tested', *small_options('test'))
    mim('test', 'mmdscnet', 'zoo/mine.py', '--checkpoint', weights, *ON_CPU, *options)
    options = ('--work-dir', 'shipped', *small_options('test'))
    shipped = ('--checkpoint', 'mmdscnet://dscnet_shapes')
    mim('test', 'mmdscnet', 'zoo/mine.py', *shipped, *ON_CPU, *options)
    assert read_metrics(tmp_path / 'tested') == read_metrics(tmp_path / 'shipped')


def test_shipped_model_is_on_no_server_for_mim_to_download_from(mim, environment, tmp_path):
    output = mim('download', 'mmdscnet', '--config', 'dscnet_shapes', '--dest', 'zoo', check=False)
    assert "No connection adapters were found for 'mmdscnet://dscnet_shapes-" in output
    assert list((tmp_path / 'zoo').iterdir()) == []
    fetch = "from mmdscnet.zoo import fetch; print(fetch('mmdscnet://dscnet_shapes'))"
    output = environment.run(environment.python, '-W', 'ignore', '-c', fetch, cwd=tmp_path)
    shipped = name_file('dscnet_shapes', list_models()['dscnet_shapes']['SHA256'])
    assert output.splitlines()[-1].endswith(f'/mmdscnet/checkpoints/{shipped}')

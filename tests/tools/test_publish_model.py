import hashlib
import json

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmdscnet.apis import load_model
from mmdscnet.zoo import fetch, read_checkpoint

METAFILE = """# Comments stay.
Collections:
- Name: Toy collection # this one too
  README: README.md

Models:
- Name: first
  Config: configs/first.py # and this one
  Weights: 'https://host/first.pth'

# The second is the last.
- Name: second
  Config: configs/second.py
"""


@pytest.fixture
def project(export_project):
    """Folder with ``config.py`` and ``epoch_3.pth``, as a training leaves them."""
    folder = export_project()
    with (folder / 'config.py').open('a') as file:
        file.write("train_dataloader = dict(batch_size=6, dataset=test_dataloader['dataset'])\n")
        file.write('train_cfg = dict(max_epochs=3)\n')
    meta = dict(
        epoch=3,
        iter=99,
        seed=0,
        time='20261125_110000',
        cfg='model = dict()',
        mmengine_version='0.10.7',
        hook_msgs=dict(best='a.pth'),
        dataset_meta=dict(
            classes=('background', 'cat', 'dog'),
            palette=[[0, 0, 0], [128, 0, 0], [0, 128, 0]],
            label_map=None,
        ),
    )
    state = torch.load(folder / 'weights.pth')
    checkpoint = dict(
        meta=meta,
        state_dict=state,
        message_hub=dict(log_scalars=dict(loss=HistoryBuffer([1], [1]))),
        optimizer=dict(state={0: torch.ones(1000)}),
        param_schedulers=[],
    )
    torch.save(checkpoint, folder / 'epoch_3.pth')
    return folder


@pytest.fixture
def publish(run_tool, project, tmp_path):
    def run(*options, checkpoint='epoch_3.pth', out='zoo'):
        folder = tmp_path / out
        args = (project / 'config.py', project / checkpoint, '--out', folder)
        run_tool('misc/publish_model.py', *args, *options)
        return folder

    return run


def change(project, update):
    checkpoint = torch.load(project / 'epoch_3.pth', weights_only=True)
    update(checkpoint)
    torch.save(checkpoint, project / 'epoch_3.pth')


def test_file_is_named_by_the_hash_of_its_bytes(publish):
    (path,) = publish().iterdir()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f'project_config-{digest[:8]}.pth'


def test_weights_and_a_small_meta_are_kept_and_nothing_else(publish, project):
    (path,) = publish().iterdir()
    before, after = read_checkpoint(project / 'epoch_3.pth'), read_checkpoint(path)
    assert after.keys() == {'meta', 'state_dict'}
    assert after['state_dict'].keys() == before['state_dict'].keys()
    for key, value in before['state_dict'].items():
        assert torch.equal(after['state_dict'][key], value)
        assert after['state_dict'][key].dtype == value.dtype
    kept = {key: before['meta'][key] for key in ('epoch', 'iter', 'seed', 'cfg')}
    assert kept.items() <= after['meta'].items()
    assert after['meta']['dataset_meta'] == dict(
        classes=('background', 'cat', 'dog'), palette=[[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    )
    versions = {'mmdscnet_version', 'mmengine_version', 'torch_version'}
    assert after['meta'].keys() == {*kept, *versions, 'dataset_meta'}
    assert path.stat().st_size < (project / 'epoch_3.pth').stat().st_size


def test_equal_checkpoints_make_equal_files(publish, project):
    (first,) = publish(out='a').iterdir()
    change(project, lambda checkpoint: checkpoint['meta'].update(time='later'))
    (second,) = publish(out='b').iterdir()
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_published_file_is_loaded_from_its_zoo(publish, project, cache, monkeypatch):
    folder = publish('--name', 'mine')
    (path,) = folder.iterdir()
    monkeypatch.setenv('MMDSCNET_ZOO', str(folder))
    address = f'mmdscnet://{path.name}'
    assert fetch(address) == path
    cfg = Config.fromfile(project / 'config.py')
    model = load_model(cfg, address, torch.device('cpu'))
    state = torch.load(project / 'weights.pth')
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_entry_is_printed(publish, capsys, tmp_path):
    metrics = {'labels_given/mIoU': 41.5, 'data_time': 0.1, 'time': 0.2}
    (tmp_path / 'results.json').write_text(json.dumps(metrics))
    (path,) = publish('--results', tmp_path / 'results.json').iterdir()
    (entry,) = yaml.safe_load(capsys.readouterr().out.split('\n\n', 1)[1])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert entry == {
        'Name': 'project_config',
        'In Collection': 'project',
        'Config': entry['Config'],
        'Metadata': {
            'Training Data': 'data',
            'Epochs': 3,
            'Batch Size': 6,
            'Architecture': ['EncoderDecoder', 'ResNet', 'CAMHead'],
            'Classes': ['background', 'cat', 'dog'],
        },
        'Results': [
            {
                'Task': 'Weakly Supervised Semantic Segmentation',
                'Dataset': 'data',
                'Split': 'val',
                'Metrics': {'labels_given/mIoU': 41.5},
            }
        ],
        'Weights': f'mmdscnet://{path.name}',
        'SHA256': digest,
        'Size': path.stat().st_size,
    }
    assert entry['Config'].endswith('project/config.py')


def test_base_url_is_where_the_weights_will_be(publish, capsys):
    (path,) = publish('--base-url', 'https://host/zoo/').iterdir()
    (entry,) = yaml.safe_load(capsys.readouterr().out.split('\n\n', 1)[1])
    assert entry['Weights'] == f'https://host/zoo/{path.name}'


def test_training_by_steps_is_counted_in_steps(publish, project, capsys):
    with (project / 'config.py').open('a') as file:
        file.write('train_cfg = dict(max_iters=99)\n')
    publish()
    (entry,) = yaml.safe_load(capsys.readouterr().out.split('\n\n', 1)[1])
    assert entry['Metadata']['Iterations'] == 99
    assert 'Epochs' not in entry['Metadata']


def test_weights_without_notes_get_the_classes_of_the_config(publish, project):
    change(project, lambda checkpoint: checkpoint.pop('meta'))
    (path,) = publish().iterdir()
    meta = read_checkpoint(path)['meta']
    assert meta['dataset_meta']['classes'] == ('background', 'cat', 'dog')
    assert 'epoch' not in meta


class TestMetafile:
    @pytest.fixture
    def metafile(self, tmp_path):
        path = tmp_path / 'metafile.yml'
        path.write_text(METAFILE)
        return path

    def test_entry_is_added_and_the_rest_stays(self, publish, metafile):
        publish('--metafile', metafile)
        text = metafile.read_text()
        assert text.startswith(METAFILE)
        *others, entry = yaml.safe_load(text)['Models']
        assert others == yaml.safe_load(METAFILE)['Models']
        assert entry['Name'] == 'project_config'
        assert entry['In Collection'] == 'Toy collection'

    def test_publishing_again_changes_nothing(self, publish, metafile):
        publish('--metafile', metafile)
        before = metafile.read_text()
        publish('--metafile', metafile)
        assert metafile.read_text() == before

    @pytest.mark.parametrize('name', ['first', 'second'])
    def test_entry_of_the_name_is_replaced(self, publish, metafile, name):
        publish('--metafile', metafile, '--name', name)
        text = metafile.read_text()
        old, new = yaml.safe_load(METAFILE)['Models'], yaml.safe_load(text)['Models']
        place = ['first', 'second'].index(name)
        assert new[place]['Weights'].startswith(f'mmdscnet://{name}-')
        assert new[1 - place] == old[1 - place]
        assert text.startswith(METAFILE.split('- Name: first')[0])
        assert '\n\n# The second is the last.\n- Name: second\n' in text

    @pytest.mark.parametrize('end', ['', '\n', '\nLibrary: toy\n'])
    def test_first_entry_is_added(self, publish, metafile, end):
        metafile.write_text('Collections:\n- Name: Toy\n# None yet.\nModels: []' + end)
        publish('--metafile', metafile)
        content = yaml.safe_load(metafile.read_text())
        assert [entry['Name'] for entry in content['Models']] == ['project_config']
        assert content.get('Library') == ('toy' if 'toy' in end else None)
        assert '# None yet.' in metafile.read_text()

    def test_indented_list_keeps_its_indent(self, publish, metafile):
        metafile.write_text('Models:\n  - Name: first\n    Size: 1\n')
        publish('--metafile', metafile)
        assert '\n  - Name: project_config\n' in metafile.read_text()
        assert len(yaml.safe_load(metafile.read_text())['Models']) == 2

    @pytest.mark.parametrize(
        'text', ['Models: [{Name: first}]\n', '', 'Models:\n- Size: 1\n  Name: project_config\n']
    )
    def test_other_layout_is_left_alone(self, publish, metafile, text):
        metafile.write_text(text)
        with pytest.raises(ValueError, match=r'metafile\.yml is laid out in another way .*by hand'):
            publish('--metafile', metafile)
        assert metafile.read_text() == text


class TestErrors:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path):
        yield
        assert not (tmp_path / 'zoo').exists()

    def test_missing_checkpoint_is_named(self, publish):
        with pytest.raises(FileNotFoundError, match=r"checkpoint '.*no\.pth' is not a file"):
            publish(checkpoint='no.pth')

    @pytest.mark.parametrize('option', ['--metafile', '--results'])
    def test_missing_file_is_named(self, publish, option):
        with pytest.raises(FileNotFoundError, match=r'no\.file is not a file: --metafile is'):
            publish(option, 'no.file')

    @pytest.mark.parametrize('name', ['a/b', 'a.pth', '.a', ''])
    def test_name_must_name_a_file(self, publish, name):
        if not name:
            name = ' '
        with pytest.raises(ValueError, match=f"--name='{name}' cannot name a file"):
            publish('--name', name)

    def test_base_must_be_a_url(self, publish):
        with pytest.raises(ValueError, match="--base-url='host/zoo' is no URL"):
            publish('--base-url', 'host/zoo')

    def test_weights_of_another_network_are_refused(self, publish, project):
        change(project, lambda checkpoint: checkpoint['state_dict'].popitem())
        with pytest.raises(
            ValueError, match=r'epoch_3\.pth does not fit .*config\.py.*(?s:.*)Miss'
        ):
            publish()

    def test_prefixes_are_not_taken_off_silently(self, publish, project):
        def add_prefix(checkpoint):
            state = checkpoint['state_dict']
            checkpoint['state_dict'] = {f'module.{key}': value for key, value in state.items()}

        change(project, add_prefix)
        with pytest.raises(ValueError, match=r'epoch_3\.pth does not fit the model'):
            publish()

    def test_other_classes_are_refused(self, publish, project):
        def rename(checkpoint):
            checkpoint['meta']['dataset_meta']['classes'] = ('background', 'dog', 'cat')

        change(project, rename)
        with pytest.raises(ValueError, match=r"on the classes \('background', 'dog', 'cat'\) and"):
            publish()

    @pytest.mark.parametrize('state', [None, dict(a=1)])
    def test_file_without_weights_is_refused(self, publish, project, state):
        change(project, lambda checkpoint: checkpoint.update(state_dict=state))
        with pytest.raises(ValueError, match=r'epoch_3\.pth has no state_dict of tensors: give'):
            publish()

    def test_harmful_checkpoint_is_not_read(self, publish, project):
        class RunsCode:
            def __reduce__(self):
                return print, ('run',)

        torch.save(dict(state_dict={}, meta=RunsCode()), project / 'epoch_3.pth')
        with pytest.raises(ValueError, match=r'epoch_3\.pth would run code: it asks for'):
            publish()

    def test_results_without_metrics_are_refused(self, publish, tmp_path):
        (tmp_path / 'results.json').write_text('{"time": 1.0}')
        with pytest.raises(ValueError, match=r'results\.json has no metrics: give the \.json that'):
            publish('--results', tmp_path / 'results.json')

import mmengine.registry
import mmseg.registry
import pytest
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import FUNCTIONS, DefaultScope, Registry
from mmseg.models import FCNHead
from mmseg.registry import MODELS
from torch import nn

from mmdscnet.registry import CHILD_REGISTRIES
from mmdscnet.utils import register_all_modules

HEAD = dict(type='FCNHead', in_channels=4, channels=4, num_convs=1, num_classes=3)


@pytest.fixture
def registered_layer():
    @MODELS.register_module(name='LayerOfThisTest')
    class Layer(nn.Identity):
        pass

    yield Layer
    MODELS._module_dict.pop('LayerOfThisTest')


def registries_of(module):
    return {name: value for name, value in vars(module).items() if isinstance(value, Registry)}


def test_every_registry_of_mmseg_has_a_child():
    assert len(registries_of(mmseg.registry)) > 15
    for name, registry in registries_of(mmseg.registry).items():
        assert CHILD_REGISTRIES[name].parent is registry
        assert CHILD_REGISTRIES[name].scope == 'mmdscnet'


def test_every_registry_of_mmengine_has_a_descendant_in_our_scope():
    """A search in vain would be logged as a warning, at the first collate function of every run."""
    for registry in registries_of(mmengine.registry).values():
        with registry.switch_scope_and_registry('mmdscnet') as found:
            assert found.scope == 'mmdscnet'
    with DefaultScope.overwrite_default_scope('mmdscnet'):
        assert FUNCTIONS.get('pseudo_collate') is pseudo_collate


@pytest.mark.parametrize('scope', ['mmseg', 'mmdscnet'])
def test_bare_type_builds_in_every_default_scope(registered_layer, scope):
    with DefaultScope.overwrite_default_scope(scope):
        layer = MODELS.build(dict(type='LayerOfThisTest'))
    assert isinstance(layer, registered_layer)


def test_type_inherited_with_our_scope_builds(registered_layer):
    """mmengine stamps ``_scope_`` on every typed dict below a ``mmdscnet::`` base."""
    assert isinstance(MODELS.build(dict(HEAD, _scope_='mmdscnet')), FCNHead)
    layer = MODELS.build(dict(type='LayerOfThisTest', _scope_='mmdscnet'))
    assert isinstance(layer, registered_layer)


def test_type_with_our_prefix_builds_what_is_registered_in_the_child(registered_layer):
    CHILD_REGISTRIES['MODELS'].register_module(name='ChildLayer', module=registered_layer)
    try:
        assert isinstance(MODELS.build(dict(type='mmdscnet.ChildLayer')), registered_layer)
    finally:
        CHILD_REGISTRIES['MODELS']._module_dict.pop('ChildLayer')


def test_base_of_this_package_is_read_and_built(repository, tmp_path):
    configs = repository / 'configs'
    base = sorted(configs.glob('dscnet/*.py'))[0].relative_to(configs)
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = 'mmdscnet::{base}'\nwork_dir = 'elsewhere'\n")
    cfg = Config.fromfile(config)
    assert cfg.work_dir == 'elsewhere'
    assert len(cfg) > 1


def test_register_all_modules_sets_the_scope_only_on_demand():
    register_all_modules(init_default_scope=False)
    assert DefaultScope.get_current_instance() is None
    register_all_modules()
    assert DefaultScope.get_current_instance().scope_name == 'mmdscnet'

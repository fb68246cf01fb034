import os
import socket
import subprocess
import sys

import pytest

# In place of a tool: each process says who it is.
REPORT = """
import os, sys
folder, *rest = sys.argv[1:]
names = ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')
with open(os.path.join(folder, os.environ['RANK']), 'w') as file:
    print(*(os.environ[name] for name in names), *rest, file=file)
"""


@pytest.fixture
def dist_run(repository, free_port):
    def run(*args, **environment):
        environment = {'PYTHON': sys.executable, 'PORT': free_port, **environment}
        return subprocess.run(
            ['bash', str(repository / 'tools' / 'dist_run.sh'), *map(str, args)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize('args', [(), ('export_cams.py',), ('export_cams.py', 2)])
def test_missing_arguments_print_the_usage(dist_run, args):
    result = dist_run(*args)
    assert result.returncode == 2
    assert result.stderr.startswith('usage: ')
    assert 'TOOL.py GPUS' in result.stderr


@pytest.mark.slow
def test_every_process_gets_the_arguments_and_its_share_of_the_cores(
    dist_run, repository, tmp_path
):
    (tmp_path / 'report.py').write_text(REPORT)
    tool = os.path.relpath(tmp_path / 'report.py', repository / 'tools')
    result = dist_run(tool, 2, tmp_path, '--out', 'a b', OMP_NUM_THREADS='')
    assert result.returncode == 0, result.stderr
    threads = max(1, os.cpu_count() // 2)
    for rank in range(2):
        text = (tmp_path / str(rank)).read_text()
        assert text == f'{rank} 2 {threads} --out a b --launcher pytorch\n'


@pytest.mark.slow
def test_processes_export_together_what_one_exports(
    dist_run, run_tool, export_project, monkeypatch
):
    project = export_project()
    paths = (project / 'config.py', project / 'weights.pth')
    run_tool('export_cams.py', *paths, '--out', project / 'one', '--num-workers', 0)
    args = (*paths, '--out', project / 'two', '--num-workers', 0, '--batch-size', 1)
    monkeypatch.delenv('LOCAL_RANK')
    result = dist_run('export_cams.py', 2, *args, CUDA_VISIBLE_DEVICES='')
    assert result.returncode == 0, result.stderr
    assert '2 CAM files written' in result.stdout
    assert '1 CAM files written' in result.stdout
    assert sorted(os.listdir(project / 'two')) == sorted(os.listdir(project / 'one'))


@pytest.mark.slow
def test_error_of_a_process_ends_all(dist_run, export_project):
    project = export_project()
    args = (project / 'config.py', project / 'none.pth', '--out', project / 'out')
    result = dist_run('export_cams.py', 2, *args, CUDA_VISIBLE_DEVICES='')
    assert result.returncode != 0
    assert "none.pth' is not a file" in result.stderr
    assert not (project / 'out').exists()


def test_tool_that_is_not_there_is_named(dist_run):
    result = dist_run('export_cam.py', 2, 'config.py')
    assert result.returncode == 2
    assert 'tools/export_cam.py: name a tool of that folder' in result.stderr


def test_port_in_use_is_named_with_the_mend(dist_run):
    with socket.socket() as server:
        server.bind(('', 0))
        server.listen()
        port = str(server.getsockname()[1])
        result = dist_run('train.py', 2, 'config.py', PORT=port)
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr.startswith(f'PORT={port} cannot be listened on (')
    assert 'Address already in use' in result.stderr
    assert 'set PORT=... to a free port' in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize('port', ['many', '99999'])
def test_port_that_is_none_is_refused(dist_run, port):
    result = dist_run('train.py', 2, 'config.py', PORT=port)
    assert result.returncode == 1
    assert result.stderr.startswith(f'PORT={port} cannot be listened on (')

import io
import sys

import pytest

from mmdscnet import download as module
from mmdscnet.download import download

CONTENT = bytes(range(256)) * 1200


@pytest.fixture
def url(web):
    web.files['/a.pth'] = CONTENT
    return f'{web.url}/a.pth'


@pytest.fixture
def cut_after(web):
    """Send a part of what was promised, then hang up."""

    def make(count):
        def cut(handler, content):
            web.answer(handler, content, most=count)
            handler.close_connection = True

        return cut

    return make


@pytest.fixture
def stall_after(web):
    """Send a part of what was promised, then nothing."""

    def make(count):
        def stall(handler, content):
            web.answer(handler, content, most=count)
            handler.wfile.flush()
            web.ended.wait()

        return stall

    return make


def refuse_with(code):
    return lambda handler, content: handler.send_error(code)


def test_file_comes_with_one_request(web, url, tmp_path):
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert len(web.asked) == 1
    assert 'Range' not in web.asked[0]
    assert web.asked[0]['User-Agent'].startswith('mmdscnet/')


def test_cut_download_goes_on_where_it_stopped(web, url, cut_after, tmp_path):
    web.faults = [cut_after(100_000)]
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert [headers.get('Range') for headers in web.asked] == [None, 'bytes=100000-']
    assert web.asked[1]['If-Range'] == web.version


def test_cut_download_begins_anew_where_parts_are_not_sent(web, url, cut_after, tmp_path):
    web.faults, web.sends_parts = [cut_after(100_000)], False
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT


def test_file_that_changes_meanwhile_is_not_mixed(web, url, cut_after, tmp_path):
    def change(handler, content):
        cut_after(100_000)(handler, content)
        web.files['/a.pth'], web.version = CONTENT[::-1], '"2"'

    web.faults = [change]
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT[::-1]


def test_weak_version_is_no_promise_of_equal_bytes(web, url, cut_after, tmp_path):
    web.faults, web.version = [cut_after(1000)], 'W/"1"'
    download(url, tmp_path / 'a')
    assert 'If-Range' not in web.asked[1]


def test_begun_file_is_completed(web, url, tmp_path):
    (tmp_path / 'a').write_bytes(CONTENT[:5000])
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert web.asked[0]['Range'] == 'bytes=5000-'


@pytest.mark.parametrize('begun', [CONTENT, CONTENT + b'more'])
def test_begun_file_that_is_not_shorter_is_brought_anew(web, url, tmp_path, begun):
    (tmp_path / 'a').write_bytes(begun)
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert ['Range' in headers for headers in web.asked] == [True, False]


@pytest.mark.parametrize('said', ['bytes 7-99/100', 'nonsense'])
def test_other_part_than_asked_for_is_not_appended(web, url, tmp_path, said):
    def send_other_part(handler, content):
        handler.send_response(206)
        handler.send_header('Content-Range', said)
        handler.send_header('Content-Length', '3')
        handler.end_headers()
        handler.wfile.write(b'odd')

    web.faults = [send_other_part]
    (tmp_path / 'a').write_bytes(CONTENT[:5000])
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT


def test_stalled_server_is_left_and_asked_again(web, url, stall_after, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'TIMEOUT', 0.2)
    web.faults = [stall_after(100_000), stall_after(0)]
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert web.asked[1]['Range'] == 'bytes=100000-'


def test_server_that_stalls_for_ever_is_given_up(web, url, stall_after, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'TIMEOUT', 0.1)
    monkeypatch.setattr(module, 'TRIES', 2)
    web.faults = [stall_after(10)] * 2
    message = r'a\.pth could not be downloaded, 2 tries .*silent for 0\.1 s.*try again later'
    with pytest.raises(ConnectionError, match=message):
        download(url, tmp_path / 'a')


def test_promise_of_more_bytes_than_there_are_is_an_error(web, url, tmp_path):
    web.sends_parts = False
    web.faults = [lambda handler, content: web.answer(handler, content, more=9)] * 4
    with pytest.raises(ConnectionError, match=f'ended after {len(CONTENT)} of {len(CONTENT) + 9}'):
        download(url, tmp_path / 'a')
    assert len(web.asked) == module.TRIES


@pytest.mark.parametrize('code', [500, 503, 429, 408])
def test_error_of_a_moment_is_waited_out(web, url, tmp_path, code):
    web.faults = [refuse_with(code)]
    download(url, tmp_path / 'a')
    assert (tmp_path / 'a').read_bytes() == CONTENT
    assert len(web.asked) == 2


def test_error_that_stays_is_named(web, url, tmp_path):
    web.faults = [refuse_with(500)] * 4
    with pytest.raises(ConnectionError, match=r'a\.pth could not .* 4 tries .* HTTP 500'):
        download(url, tmp_path / 'a')


def test_pauses_grow(web, url, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(module, 'BACKOFF', 0.5)
    monkeypatch.setattr(module.time, 'sleep', pauses.append)
    web.faults = [refuse_with(500)] * 3
    download(url, tmp_path / 'a')
    assert pauses == [0.5, 1, 2]


def test_missing_file_is_not_asked_for_again(web, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'/b\.pth is not there \(HTTP 404\): check the add'
    ):
        download(f'{web.url}/b.pth', tmp_path / 'a')
    assert len(web.asked) == 1


def test_refusal_is_not_argued_with(web, url, tmp_path):
    web.faults = [refuse_with(403)]
    with pytest.raises(ConnectionError, match=r'a\.pth is refused \(HTTP 403, Forbidden\)'):
        download(url, tmp_path / 'a')
    assert len(web.asked) == 1


def test_server_that_is_not_there_is_named(web, url, tmp_path):
    web.close()
    with pytest.raises(ConnectionError, match=r'could not be downloaded.*refused'):
        download(url, tmp_path / 'a')


def test_failing_disk_is_no_reason_for_another_try(web, url, tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        download(url, tmp_path / 'nowhere' / 'a')
    assert len(web.asked) == 1


@pytest.mark.parametrize('shown', [True, False])
def test_progress_is_shown_on_a_terminal(url, tmp_path, monkeypatch, shown):
    stream = io.StringIO()
    stream.isatty = lambda: shown
    monkeypatch.setattr(sys, 'stderr', stream)
    monkeypatch.setenv('TERM', 'xterm')
    download(url, tmp_path / 'a')
    assert ('a.pth' in stream.getvalue()) is shown
    assert shown or stream.getvalue() == ''

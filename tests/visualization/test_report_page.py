import base64
import hashlib
import re
from html.parser import HTMLParser

from mmdscnet.visualization.report_page import SCRIPT, STYLE, Section, write_page


class Reader(HTMLParser):
    """Collects tags in order."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def make_page(title='A run'):
    sections = [Section('one', 'First & best', ['<p>', 'x</p>']), Section('two', 'Second', [])]
    return ''.join(write_page(title, '<p>summary</p>', sections))


def test_contents_lead_to_the_sections():
    tags = Reader(make_page()).tags
    links = [attrs['href'] for tag, attrs in tags if tag == 'a']
    assert links == [f'#{attrs["id"]}' for tag, attrs in tags if tag == 'section'] != []


def test_charset_comes_first_and_text_is_escaped():
    page = make_page('<b> & "ü"')
    head = page[: page.index('<title>')]
    assert '<meta charset="utf-8">' in head
    assert page.count('&lt;b&gt; &amp; &quot;ü&quot;') == 2
    assert 'First &amp; best' in page
    assert '<b>' not in page


def test_policy_forbids_all_but_data_and_the_own_script():
    policies = [
        attrs['content']
        for tag, attrs in Reader(make_page()).tags
        if attrs.get('http-equiv') == 'Content-Security-Policy'
    ]
    (policy,) = policies
    assert "default-src 'none'" in policy
    assert 'img-src data:;' in policy
    (script,) = re.findall('<script>(.*?)</script>', make_page(), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_style_and_script_ask_for_nothing():
    assert not re.search(r'url\(|@import|https?:|fetch|XMLHttp|import\(', STYLE + SCRIPT)


def test_style_knows_dark_and_narrow():
    assert 'prefers-color-scheme:dark' in STYLE
    assert 'name="viewport"' in make_page()
    assert STYLE.count('{') == STYLE.count('}')

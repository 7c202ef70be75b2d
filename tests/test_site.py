"""The built site, in a real browser: `make test-site` builds it and runs these tests.

Plain pytest skips them without a built site, without Playwright or without Chromium.
"""
import gzip
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from threading import Thread
from urllib.parse import quote, unquote, urljoin, urlsplit

import pytest

root = Path(__file__).parent.parent
site = Path(os.environ.get('MINIFASTAI_SITE', root/'_site')).resolve()
notebooks = sorted(p for p in (root/'nbs').glob('*.ipynb') if p.name[0] not in '._')
notebook_pages = {p.stem + '.html': p for p in notebooks}
built = [p.relative_to(site) for p in site.rglob('*.html')]
# below _static/ lie parts of the theme
pages = sorted(p.as_posix() for p in built if not p.parts[0].startswith('_'))
themes, widths = ('light', 'dark'), (1280, 400)
max_bytes, max_paint = 1.5e6, 1000   # of a page; milliseconds


def is_newer(p, than) -> bool:
    "Is the file `p`, which is no build output, newer than the file `than`?"
    outputs = {'_build', '__pycache__', '.ipynb_checkpoints'}
    return p.is_file() and not outputs & set(p.parts) and p.stat().st_mtime > than.stat().st_mtime


def no_site() -> str:
    """Why there is nothing to test, or nothing if there is.

    A folder that is named by MINIFASTAI_SITE is tested; _site/ may be older than its sources.
    """
    index = site/'searchindex.js'    # among the last files that Sphinx writes
    if not index.exists():
        return f'there is no site in {site}: `make test-site` builds it and tests it'
    if 'MINIFASTAI_SITE' in os.environ: return ''
    for folder in ('nbs', 'docs', 'minifastai'):
        newer = next((p for p in (root/folder).rglob('*') if is_newer(p, index)), None)
        if newer: return (f'the site is older than {newer.relative_to(root)}: '
                          '`make test-site` builds it anew and tests it')
    return ''


reason = no_site()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)


# Files and links

PLACES = ('href', 'src', 'action', 'data', 'poster')
NOT_LOADED = {'canonical', 'prev', 'next', 'search', 'index', 'author'}   # a link's relations


class Parsed(HTMLParser):
    "A page's ids, the addresses that it names and that it loads, and has it a download button?"
    def __init__(self, text):
        super().__init__()
        self.ids, self.urls, self.loaded = set(), set(), set()
        self.download = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = {k: v or '' for k, v in attrs}
        if 'id' in at: self.ids.add(at['id'])
        if 'name' in at and tag == 'a': self.ids.add(at['name'])
        self.download |= 'btn-download-source-button' in at.get('class', '')
        sources = [s.split()[0] for s in at.get('srcset', '').split(',') if s.strip()]
        urls = {at[k] for k in PLACES if k in at} | set(sources)
        self.urls |= urls
        relations = set(at.get('rel', '').split())
        if tag not in ('a', 'form', 'area') and not relations & NOT_LOADED: self.loaded |= urls


@cache
def parsed(page: str) -> Parsed: return Parsed((site/page).read_text(encoding='utf-8'))


@cache
def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def file_of_repository(url: str) -> Path|None:
    "The file that an address at the repository's host, or at a host of notebooks, stands for"
    cfg = settings()
    below = f"/{cfg['user']}/{cfg['repo']}/(?:blob|tree|raw|edit)/{cfg['branch']}/([^?#]+)"
    m = re.search(below + '|[?&]urlpath=lab/tree/([^&#]+)', url)
    return root/unquote(m[1] or m[2]) if m else None


def leads_nowhere(page: str, url: str) -> bool:
    "Does `page` name a place of the site, or a file of the repository, that is not there?"
    here, doc_url = 'http://site/', settings()['doc_url']
    url = urljoin(here + quote(page), url)
    if url.startswith(doc_url): url = here + url[len(doc_url):]
    if file := file_of_repository(url): return not file.exists()
    if not url.startswith(here): return False
    to = urlsplit(url)
    target = site/unquote(to.path[1:])
    if target.is_dir(): target /= 'index.html'
    if not target.is_file(): return True
    if not to.fragment or target.suffix != '.html': return False
    return unquote(to.fragment) not in parsed(target.relative_to(site).as_posix()).ids


def listed(bad: list[str], what=''):
    assert not bad, f'{len(bad)}{what}:\n' + '\n'.join(dict.fromkeys(bad))


def test_every_link_and_anchor_resolves():
    assert set(notebook_pages) <= set(pages)
    listed([f'{page}: {url}' for page in pages for url in sorted(parsed(page).urls)
            if leads_nowhere(page, url)], ' links lead nowhere')


def test_pages_name_nothing_to_load_from_elsewhere():
    listed([f'{page}: {url}' for page in pages for url in sorted(parsed(page).loaded)
            if re.match(r'(https?:|wss?:)?//', url)])


# A browser

@cache
def compressed(path: Path) -> bytes: return gzip.compress(path.read_bytes())


class Handler(SimpleHTTPRequestHandler):
    "Serves text compressed, as every host of pages does"
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args): pass

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        is_text = path.suffix in ('.html', '.css', '.js', '.svg')
        if not is_text or not path.is_file(): return super().do_GET()
        self.send_response(200)
        self.send_header('Content-Type', self.guess_type(str(path)))
        self.send_header('Content-Encoding', 'gzip')
        self.send_header('Content-Length', str(len(compressed(path))))
        self.end_headers()
        self.wfile.write(compressed(path))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, *args): pass   # a tab that is closed while it loads


@pytest.fixture(scope='module')
def base():
    "The address of a server of the site, on this machine"
    with Server(('127.0.0.1', 0), partial(Handler, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}/'
        server.shutdown()


def chromium() -> str:
    "The path of a Chromium that runs"
    found = map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))
    path = next(filter(None, found), None)
    if not path:
        pytest.skip('there is no Chromium: install it (on Debian: apt install chromium) '
                    'to test the site in a browser')
    # Ubuntu's does not run without its snap
    if subprocess.run([path, '--version'], capture_output=True).returncode:
        pytest.skip(f'{path} does not run')
    return path


@contextmanager
def launched():
    "A browser that reaches this machine only"
    reason = 'Playwright is not installed: `make test-site` installs it'
    sync_api = pytest.importorskip('playwright.sync_api', reason=reason)
    args = ['--disable-gpu', '--disable-quic',
            '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=args)
        try: yield browser
        finally: browser.close()


@pytest.fixture(scope='module')
def browser():
    with launched() as browser: yield browser


def axe_script() -> str:
    reason = 'axe is not installed: `make test-site` installs it'
    return pytest.importorskip('axe_playwright_python.base', reason=reason).AXE_SCRIPT


@dataclass
class Notes:
    "What happened in a tab"
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)   # requests that left the site
    bytes: float = 0

    def clear(self): self.errors, self.outside, self.bytes = [], [], 0


def watch(page, network, base: str, notes: Notes):
    "Note the page's errors, the requests that do not go to `base`, and the bytes that are loaded"
    def request(r):
        if not r.url.startswith((base, 'data:', 'blob:')): notes.outside.append(r.url)

    def console(m):
        if m.type == 'error': notes.errors.append(f'{m.text} {m.location.get("url", "")}')

    def response(r):
        if r.status >= 400: notes.errors.append(f'{r.status} {r.url}')

    def finished(event): notes.bytes += event['encodedDataLength']

    page.on('request', request)
    page.on('websocket', lambda ws: notes.outside.append(ws.url))
    page.on('console', console)
    page.on('pageerror', lambda e: notes.errors.append(str(e)))
    page.on('response', response)
    network.on('Network.loadingFinished', finished)


def size(width: int) -> dict: return dict(width=width, height=900)


@contextmanager
def tab(browser, base: str, theme='light', cache=True):
    "A new tab, and its notes; without a cache, it loads everything anew each time"
    context = browser.new_context(base_url=base, viewport=size(widths[0]), color_scheme=theme)
    page, notes = context.new_page(), Notes()
    network = context.new_cdp_session(page)
    watch(page, network, base, notes)
    network.send('Network.enable')
    network.send('Network.setCacheDisabled', dict(cacheDisabled=not cache))
    try: yield page, notes
    finally: context.close()


# Every page, as a reader sees it

READY = '() => Promise.all([window.MathJax?.startup?.promise, document.fonts.ready])'

SCROLL = '''async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) {
    scrollTo({top: y, behavior: 'instant'});
    await new Promise(requestAnimationFrame);
  }
  scrollTo({top: 0, behavior: 'instant'});
}'''

UNFOLD = "open => [...document.querySelectorAll('details')].map(d => d.open = open).length"

# All pictures of the article but what decorates a button or a link to a heading, and parts of
# pictures: the beginning of each, its alternative text, its caption
PICTURES = '''() => {
  const text = e => e?.textContent;
  const alt = e => e.getAttribute('alt') || e.getAttribute('aria-label')
    || text(document.getElementById(e.getAttribute('aria-labelledby')))
    || text(e.querySelector(':scope > title')) || '';
  const withoutLinks = node => {
    const copy = node.cloneNode(true);
    copy.querySelectorAll?.('.headerlink').forEach(link => link.remove());
    return copy.textContent;
  };
  const caption = e => {
    const nodes = e.closest('figure')?.querySelector('figcaption')?.childNodes ?? [];
    return [...nodes].map(withoutLinks).join('');
  };
  const decoration = 'button, a.btn, a.headerlink, [aria-hidden=true]';
  const kinds = 'article :is(img, svg, canvas, video, object, iframe)';
  return [...document.querySelectorAll(kinds)]
    .filter(e => !e.closest(decoration) && !e.parentElement.closest('svg, object'))
    .map(e => [e.outerHTML.slice(0, 150), alt(e).trim(), caption(e).trim()]);
}'''

# Axe compares the colour of each word with its ground, most of them in highlighted code. One of
# those that have the same colours all the way up is enough. What is positioned may lie on any
# ground, and is always compared. Coloured words of code that need not be compared become plain
# text, because the rest of axe's time grows with the number of elements.
ALIKE = '''() => {
  const grounds = new Map([[null, '']]), seen = new Set();
  const findGround = e => {
    const s = getComputedStyle(e), below = ground(e.parentElement);
    const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter].join();
    if (below === null || !['static', 'relative'].includes(s.position)) return null;
    return own == 'rgba(0, 0, 0, 0),none,1,none' ? below : below + own + ';';
  };
  const ground = e => {
    if (!grounds.has(e)) grounds.set(e, findGround(e));
    return grounds.get(e);
  };
  const look = e => {
    const s = getComputedStyle(e);
    return ground(e) + [s.color, s.fontSize, s.fontWeight, s.textShadow, s.visibility,
                        s.display == 'none'].join();
  };
  for (const e of document.querySelectorAll('body *')) {
    const key = look(e), known = seen.has(key);
    if (ground(e) !== null) seen.add(key);
    e.toggleAttribute('data-alike', ground(e) !== null && known);
  }
  const words = document.querySelectorAll('pre span[data-alike]:not(:has(*))');
  words.forEach(e => e.replaceWith(...e.childNodes));
  document.normalize();
  axe.configure({rules: [{id: 'color-contrast', selector: '*:not([data-alike])'}]});
}'''

AXE = '''async () => {
  const found = await axe.run(document, {resultTypes: ['violations'], preload: false});
  return found.violations.map(({id, help, nodes}) => {
    const html = nodes[0].html.slice(0, 200), summary = nodes[0].failureSummary.slice(0, 200);
    return `${id}: ${help}; ${nodes.length} times, first ${html} ${summary}`;
  });
}'''

OVERFLOW = '''() => {
  const page = document.documentElement, width = page.clientWidth;
  scrollTo({left: 1000, behavior: 'instant'});
  if (scrollX == 0 && page.scrollWidth <= width) return [];
  const wide = [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right + scrollX > width + 1)
    .slice(0, 5).map(e => e.outerHTML.slice(0, 100));
  return [`${page.scrollWidth} px: ` + wide.join(' | ')];
}'''

# Milliseconds: 300 after a change, the theme looks which boxes scroll, so that the keyboard can
# reach them
SETTLED = 450


def violations(p) -> list[str]:
    "What axe, which has been loaded into the page, objects to"
    p.evaluate(ALIKE)
    return p.evaluate(AXE)


@dataclass
class Visit:
    page: str
    theme: str
    pictures: list[tuple[str, str, str]]    # beginning, alt text, caption
    wide: list[str]                         # what is wider than a phone
    axe: dict[int, list[str]]               # violations by width
    notes: Notes | None = None

    @property
    def name(self): return f'{self.page} {self.theme}'


def narrow(p, width: int):
    "Make the window as wide as a phone while all is folded, as a reader finds it; then unfold"
    p.evaluate(UNFOLD, False)
    p.set_viewport_size(size(width))
    p.wait_for_timeout(SETTLED)
    p.evaluate(UNFOLD, True)


def visit(p, notes: Notes, axe: str, page: str, theme: str) -> Visit:
    "Load a page once, read all of it, what is folded too, and look at it in both widths"
    notes.clear()
    p.emulate_media(color_scheme=theme)
    p.set_viewport_size(size(widths[0]))
    p.goto(page)
    assert p.evaluate('document.documentElement.dataset.theme') == theme
    p.evaluate(READY)
    folds = p.evaluate(UNFOLD, True)
    p.evaluate(SCROLL)
    res = Visit(page, theme, p.evaluate(PICTURES), [], {})
    p.evaluate(axe)
    for width in widths:
        if width != widths[0]: narrow(p, width)
        if folds: p.wait_for_timeout(SETTLED)
        res.axe[width] = violations(p)
    res.wide = p.evaluate(OVERFLOW)
    res.notes = replace(notes)
    return res


@pytest.fixture(scope='module')
def visits(browser, base):
    "Every page in both themes; browsers side by side, as axe takes most of the time"
    axe = axe_script()
    largest_first = sorted(pages, key=lambda page: -(site/page).stat().st_size)
    # shared by the workers: the next page goes to the first that has time
    todo = iter([(page, theme) for page in largest_first for theme in themes])

    def work(_):
        with launched() as own, tab(own, base, cache=False) as (p, notes):
            return [visit(p, notes, axe, *which) for which in todo]

    n = min(4, 1 + (os.cpu_count() or 1))
    with ThreadPoolExecutor(n) as pool: by_worker = list(pool.map(work, range(n)))
    return sorted(sum(by_worker, []), key=lambda v: (v.page, v.theme))


def test_visits_are_of_every_page(visits):
    expected = [(page, theme) for page in pages for theme in sorted(themes)]
    assert [(v.page, v.theme) for v in visits] == expected


def test_no_console_error(visits):
    listed([f'{v.name}: {error}' for v in visits for error in v.notes.errors])


def test_no_external_request(visits):
    listed([f'{v.name}: {url}' for v in visits for url in v.notes.outside])


@pytest.mark.parametrize('theme', themes)
@pytest.mark.parametrize('width', widths)
def test_axe_finds_no_violation(visits, theme, width):
    listed([f'{v.page}: {a}' for v in visits if v.theme == theme for a in v.axe[width]])


def test_no_horizontal_scroll_on_a_phone(visits):
    listed([f'{v.name}: {wide}' for v in visits for wide in v.wide])


def test_every_figure_has_alt_text_and_a_caption(visits):
    pictures = [(v.name, *picture) for v in visits for picture in v.pictures]
    assert pictures
    listed([f'{name}: no alt text: {html}' for name, html, alt, _ in pictures if not alt])
    listed([f'{name}: no caption: {html}' for name, html, _, caption in pictures if not caption])


def test_weight(visits):
    assert all(v.notes.bytes > len(compressed(site/v.page)) for v in visits)
    heavy = [v for v in visits if v.notes.bytes >= max_bytes]
    listed([f'{v.name}: {v.notes.bytes:,.0f} bytes' for v in heavy])


PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def test_first_paint(browser, base):
    def load(page):
        p.goto(page, wait_until='commit')
        p.wait_for_function(PAINT)
        return p.evaluate(PAINT)

    def of_three(page):
        "The median of three times, or of the first two where the third could not change its side"
        times = [load(page), load(page)]
        if min(times) < max_paint <= max(times): times.append(load(page))
        return median(times)

    with tab(browser, base, cache=False) as (p, _):
        load(pages[0])    # the browser's own beginnings
        times = {page: of_three(page) for page in pages}
    listed([f'{page}: {ms:.0f} ms' for page, ms in times.items() if ms >= max_paint])


# What a reader does

def path_of(url: str) -> str: return urlsplit(url).path[1:]


TERMS = dict(
    MNIST='00_data',
    cancel='04_callbacks',
    covariance='04a_statistics',
    softmax='04b_softmax',
    momentum='07_batchnorm',
    Kaiming='06_cuda_cnn_hooks_init',
    hook='06_cuda_cnn_hooks_init',
    RunningBatchNorm='07b_small_batches',
    augmentation='08_beat_98',
    checkpoint='09_checkpoints',
)
SUMMARY = "document.querySelector('#search-results .search-summary')?.textContent"
RESULTS = "[...document.querySelectorAll('#search-results li > a')].map(a => a.href)"


def results(page) -> list[str]:
    "The pages that a search has found"
    page.wait_for_function(SUMMARY)
    return [path_of(url).removesuffix('.html') for url in page.evaluate(RESULTS)]


def test_search_finds_ten_terms(browser, base):
    assert len(TERMS) == 10
    with tab(browser, base) as (p, notes):
        for term, chapter in TERMS.items():
            p.goto('index.html')
            p.keyboard.press('Control+k')
            p.keyboard.type(term)
            p.keyboard.press('Enter')
            p.wait_for_url('**/search.html?q=*')
            found = results(p)
            assert chapter in found, (term, chapter, found)
        p.goto('search.html?q=thereisnosuchword')
        assert not results(p)
        assert not notes.errors + notes.outside


CONTENTS = '''(() => {
  const links = [...document.querySelectorAll('nav.bd-links a')];
  return [...new Set(links.map(a => new URL(a.href).pathname.slice(1)))];
})()'''


def walked(p, base: str) -> list[str]:
    "The pages that `next` leads to, from the first one on; `previous` leads back"
    walk = ['index.html']
    assert not p.locator('a.left-prev').count()
    while p.locator('a.right-next').count():
        p.click('a.right-next')
        p.wait_for_url(lambda url: path_of(url) != walk[-1])
        here = path_of(p.url)
        assert p.evaluate("document.querySelector('a.left-prev').href") == base + walk[-1], here
        assert here not in walk, f'{walk[-1]} leads back to {here}'
        walk.append(here)
    return walk


def test_next_and_previous_walk_through_every_chapter_once(browser, base):
    with tab(browser, base) as (p, notes):
        p.goto('index.html')
        contents = p.evaluate(CONTENTS)
        walk = walked(p, base)
        assert walk == contents
        assert set(notebook_pages) <= set(walk)
        assert set(walk) == set(pages) - {'genindex.html', 'search.html'}
        assert not notes.errors + notes.outside


BUTTONS = {
    1280: [
        '.dropdown-download-buttons button',
        '.dropdown-launch-buttons button',
        '.search-button-field',
    ],
    400: ['.primary-toggle', '.secondary-toggle'],
}


@pytest.mark.parametrize('theme', themes)
def test_menus_and_drawers_are_accessible(browser, base, theme):
    axe = axe_script()
    smallest = min(notebook_pages, key=lambda page: (site/page).stat().st_size)
    bad = []
    with tab(browser, base, theme) as (p, notes):
        for width, selectors in BUTTONS.items():
            p.set_viewport_size(size(width))
            for button in selectors:
                p.goto(smallest)
                p.click(f'{button} >> visible=true', timeout=5000)
                p.wait_for_timeout(SETTLED)
                p.evaluate(axe)
                bad += [f'{width} {button}: {a}' for a in violations(p)]
        bad += notes.errors
    listed(bad)


@pytest.fixture(scope='module')
def downloads(browser, base, tmp_path_factory):
    "The files that the download buttons of the pages give, by page"
    folder, res = tmp_path_factory.mktemp('downloads'), {}
    with tab(browser, base) as (p, notes):
        for page in pages:
            if not parsed(page).download: continue
            p.goto(page)
            p.click('.dropdown-download-buttons button')
            with p.expect_download() as download: p.click('a.btn-download-source-button')
            res[page] = folder/download.value.suggested_filename
            download.value.save_as(res[page])
        assert not notes.errors + notes.outside
    return res


def test_the_download_button_serves_the_original_notebook(downloads):
    assert set(downloads) == set(notebook_pages)
    for page, original in notebook_pages.items():
        assert downloads[page].name == original.name
        assert downloads[page].read_bytes() == original.read_bytes(), original.name


def test_a_downloaded_notebook_runs(downloads, tmp_path):
    path = shutil.copy(downloads['04a_statistics.html'], tmp_path)    # the quickest that computes
    execute = Path(sys.executable).with_name('jupyter-execute')
    done = subprocess.run([execute, path], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | dict(MINIFASTAI_DATASET='digits'))
    assert done.returncode == 0, done.stderr


# Code, in lines of at most 100 characters

LONG_LINES = '''() => {
  const blocks = [...document.querySelectorAll('article div.cell_input pre')];
  blocks.forEach(pre => { pre.textContent = 'x'.repeat(100); });
  const isWide = e => e.scrollWidth > e.clientWidth;
  const scrolls = e => isWide(e) && ['auto', 'scroll'].includes(getComputedStyle(e).overflowX);
  return blocks.map(pre => {
    const line = document.createRange(), around = [];
    line.selectNodeContents(pre);
    for (let e = pre.parentElement; e; e = e.parentElement)
      if (scrolls(e)) around.push(e.className);
    return {wraps: line.getClientRects().length > 1, wide: isWide(pre), around};
  });
}'''

def test_code_has_room_for_100_columns(browser, base):
    "A wide window shows them without wrapping or scrolling; on a phone only their block scrolls"
    scroll_bar = 17
    with tab(browser, base) as (p, _):
        for page in (f'{nb.stem}.html' for nb in notebooks):
            p.goto(page)
            p.evaluate(UNFOLD, True)
            for width in (widths[0], widths[0] - scroll_bar, widths[1]):
                p.set_viewport_size(dict(width=width, height=900))
                on_a_phone = width == widths[1]
                for code in p.evaluate(LONG_LINES):
                    assert not code['wraps'], (page, width)
                    assert code['wide'] == on_a_phone, (page, width)
                    assert not code['around'], (page, width, code['around'])
                assert not p.evaluate(OVERFLOW), (page, width)

"The built site, in a real browser: `make test-site` builds it and runs these tests. Plain pytest skips what it has no site, no Playwright or no Chromium for."
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
pages = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html') if not p.relative_to(site).parts[0].startswith('_'))   # below _static/ lie parts of the theme
themes, widths = ('light', 'dark'), (1280, 400)
max_bytes, max_paint = 1.5e6, 1000   # of a page; milliseconds


def no_site() -> str:
    "Why there is nothing to test, if so. Whoever names a folder wants it tested; what lies in _site/ may be older than its sources"
    built = site/'searchindex.js'    # among the last files that Sphinx writes
    if not built.exists(): return f'there is no site in {site}: `make test-site` builds it and tests it'
    if 'MINIFASTAI_SITE' in os.environ: return ''
    for folder in ('nbs', 'docs', 'minifastai'):
        for p in (root/folder).rglob('*'):
            if p.is_file() and not {'_build', '__pycache__', '.ipynb_checkpoints'} & set(p.parts) and p.stat().st_mtime > built.stat().st_mtime:
                return f'the site is older than {p.relative_to(root)}: `make test-site` builds it anew and tests it'
    return ''

pytestmark = pytest.mark.skipif(bool(no_site()), reason=no_site())


# Files and links

class Parsed(HTMLParser):
    "A page's ids, the addresses that it names, those that it loads; has it a button for a download?"
    def __init__(self, text):
        super().__init__()
        self.ids, self.urls, self.loaded, self.download = set(), set(), set(), False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = {k: v or '' for k, v in attrs}
        self.ids |= {at[k] for k in ('id', 'name') if k in at and (k == 'id' or tag == 'a')}
        self.download |= 'btn-download-source-button' in at.get('class', '')
        urls = {at[k] for k in ('href', 'src', 'action', 'data', 'poster') if k in at} | {s.split()[0] for s in at.get('srcset', '').split(',') if s.strip()}
        self.urls |= urls
        if tag not in ('a', 'form', 'area') and not {'canonical', 'prev', 'next', 'search', 'index', 'author'} & set(at.get('rel', '').split()): self.loaded |= urls

@cache
def parsed(page: str) -> Parsed: return Parsed((site/page).read_text(encoding='utf-8'))


def settings():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']


def leads_nowhere(page: str, url: str) -> bool:
    "Does `page` name a place of the site, or a file of the repository, that is not there?"
    cfg, here = settings(), 'http://site/'
    url = urljoin(here + quote(page), url)
    if url.startswith(cfg['doc_url']): url = here + url[len(cfg['doc_url']):]
    if m := re.search(f"/{cfg['user']}/{cfg['repo']}/(?:blob|tree|raw|edit)/{cfg['branch']}/([^?#]+)|[?&]urlpath=lab/tree/([^&#]+)", url): return not (root/unquote(m[1] or m[2])).exists()
    if not url.startswith(here): return False
    to = urlsplit(url)
    target = site/unquote(to.path[1:])
    if target.is_dir(): target /= 'index.html'
    if not target.is_file(): return True
    return bool(to.fragment) and target.suffix == '.html' and unquote(to.fragment) not in parsed(target.relative_to(site).as_posix()).ids


def test_every_link_and_anchor_resolves():
    assert {p.stem + '.html' for p in notebooks} <= set(pages)
    bad = [f'{page}: {url}' for page in pages for url in sorted(parsed(page).urls) if leads_nowhere(page, url)]
    assert not bad, f'{len(bad)} links lead nowhere:\n' + '\n'.join(bad)


def test_pages_name_nothing_to_load_from_elsewhere():
    bad = [f'{page}: {url}' for page in pages for url in sorted(parsed(page).loaded) if re.match(r'(https?:|wss?:)?//', url)]
    assert not bad, '\n'.join(bad)


# A browser

@cache
def compressed(path: Path) -> bytes: return gzip.compress(path.read_bytes())

class Handler(SimpleHTTPRequestHandler):
    "Serves text compressed, as every host of pages does"
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass
    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if path.suffix not in ('.html', '.css', '.js', '.svg') or not path.is_file(): return super().do_GET()
        self.send_response(200)
        for header in (('Content-Type', self.guess_type(str(path))), ('Content-Encoding', 'gzip'), ('Content-Length', str(len(compressed(path))))): self.send_header(*header)
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
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not path: pytest.skip('there is no Chromium: install it (on Debian: apt install chromium) to test the site in a browser')
    if subprocess.run([path, '--version'], capture_output=True).returncode: pytest.skip(f'{path} does not run')   # Ubuntu's, without its snap
    return path

@contextmanager
def launched():
    "A browser that reaches this machine only"
    sync_api = pytest.importorskip('playwright.sync_api', reason='Playwright is not installed: `make test-site` installs it')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=['--disable-gpu', '--disable-quic', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1'])
        try: yield browser
        finally: browser.close()

@pytest.fixture(scope='module')
def browser():
    with launched() as browser: yield browser


@dataclass
class Notes:
    "What happened in a tab"
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)   # requests that left the site
    bytes: float = 0

    def clear(self): self.errors, self.outside, self.bytes = [], [], 0

@contextmanager
def tab(browser, base: str, theme='light', cache=True):
    "A new tab, and its notes; without a cache, it loads everything anew each time"
    context = browser.new_context(base_url=base, viewport=dict(width=widths[0], height=900), color_scheme=theme)
    page, notes = context.new_page(), Notes()
    def count(event): notes.bytes += event['encodedDataLength']
    def request(r):
        if not r.url.startswith((base, 'data:', 'blob:')): notes.outside.append(r.url)
    page.on('request', request)
    page.on('websocket', lambda ws: notes.outside.append(ws.url))
    page.on('console', lambda m: m.type == 'error' and notes.errors.append(f'{m.text} {m.location.get("url", "")}'))
    page.on('pageerror', lambda e: notes.errors.append(str(e)))
    page.on('response', lambda r: r.status >= 400 and notes.errors.append(f'{r.status} {r.url}'))
    network = context.new_cdp_session(page)
    network.send('Network.enable')
    network.send('Network.setCacheDisabled', dict(cacheDisabled=not cache))
    network.on('Network.loadingFinished', count)
    try: yield page, notes
    finally: context.close()


# Every page, as a reader sees it

READY = '() => Promise.all([window.MathJax?.startup?.promise, document.fonts.ready])'

SCROLL = '''async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += innerHeight) { scrollTo({top: y, behavior: 'instant'}); await new Promise(requestAnimationFrame); }
  scrollTo({top: 0, behavior: 'instant'});
}'''

UNFOLD = "open => [...document.querySelectorAll('details')].map(d => d.open = open).length"

PICTURES = '''() => {
  const said = e => (e.getAttribute('alt') || e.getAttribute('aria-label') || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent || e.querySelector(':scope > title')?.textContent || '').trim();
  const caption = e => [...e.closest('figure')?.querySelector('figcaption')?.childNodes ?? []].map(n => { const copy = n.cloneNode(true); copy.querySelectorAll?.('.headerlink').forEach(l => l.remove()); return copy.textContent; }).join('').trim();
  // all of the article but what decorates a button or a link to a heading, and parts of pictures
  return [...document.querySelectorAll('article :is(img, svg, canvas, video, object, iframe)')].filter(e => !e.closest('button, a.btn, a.headerlink, [aria-hidden=true]') && !e.parentElement.closest('svg, object'))
    .map(e => [e.outerHTML.slice(0, 150), said(e), caption(e)]);
}'''

# Axe compares each word's colour with its ground, most of them in highlighted code. One of those that have the same colours all the way up is enough; what is positioned
# may lie on any ground, and is always compared. Coloured words of code that need not be compared become plain text, as the rest of axe's time grows with the elements.
ALIKE = '''() => {
  const grounds = new Map([[null, '']]), seen = new Set();
  const ground = e => {
    if (!grounds.has(e)) {
      const s = getComputedStyle(e), own = [s.backgroundColor, s.backgroundImage, s.opacity, s.filter].join(), below = ground(e.parentElement);
      grounds.set(e, below === null || !['static', 'relative'].includes(s.position) ? null : own == 'rgba(0, 0, 0, 0),none,1,none' ? below : below + own + ';');
    }
    return grounds.get(e);
  };
  for (const e of document.querySelectorAll('body *')) {
    const s = getComputedStyle(e), key = ground(e) + [s.color, s.fontSize, s.fontWeight, s.textShadow, s.visibility, s.display == 'none'].join();
    e.toggleAttribute('data-alike', ground(e) !== null && (seen.has(key) || !seen.add(key)));
  }
  document.querySelectorAll('pre span[data-alike]:not(:has(*))').forEach(e => e.replaceWith(...e.childNodes));
  document.normalize();
  axe.configure({rules: [{id: 'color-contrast', selector: '*:not([data-alike])'}]});
}'''

AXE = '''async () => (await axe.run(document, {resultTypes: ['violations'], preload: false})).violations.map(v => `${v.id}: ${v.help}; ${v.nodes.length} times, first ${v.nodes[0].html.slice(0, 200)} ${v.nodes[0].failureSummary.slice(0, 200)}`)'''

OVERFLOW = '''() => {
  const width = document.documentElement.clientWidth;
  scrollTo({left: 1000, behavior: 'instant'});
  if (scrollX == 0 && document.documentElement.scrollWidth <= width) return [];
  return [`${document.documentElement.scrollWidth} px: ` + [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right + scrollX > width + 1).slice(0, 5).map(e => e.outerHTML.slice(0, 100)).join(' | ')];
}'''

SETTLED = 450   # milliseconds: the theme looks 300 after a change which boxes scroll, so that the keyboard can reach them


@dataclass
class Visit:
    page: str
    theme: str
    pictures: list[tuple[str, str, str]]    # beginning, alt text, caption
    wide: list[str]                         # what is wider than a phone
    axe: dict[int, list[str]]               # violations by width
    notes: Notes | None = None


def visit(p, notes: Notes, axe: str, page: str, theme: str) -> Visit:
    "Load a page once, read all of it, what is folded too, and look at it in both widths"
    notes.clear()
    p.emulate_media(color_scheme=theme)
    p.set_viewport_size(dict(width=widths[0], height=900))
    p.goto(page)
    assert p.evaluate('document.documentElement.dataset.theme') == theme
    p.evaluate(READY)
    folds = p.evaluate(UNFOLD, True)
    p.evaluate(SCROLL)
    res = Visit(page, theme, p.evaluate(PICTURES), [], {})
    p.evaluate(axe)
    for width in widths:
        if width != widths[0]:                                   # folded first, as a reader finds it
            p.evaluate(UNFOLD, False)
            p.set_viewport_size(dict(width=width, height=900))
            p.wait_for_timeout(SETTLED)
            p.evaluate(UNFOLD, True)
        if folds: p.wait_for_timeout(SETTLED)
        p.evaluate(ALIKE)
        res.axe[width] = p.evaluate(AXE)
    res.wide, res.notes = p.evaluate(OVERFLOW), replace(notes)
    return res


@pytest.fixture(scope='module')
def visits(browser, base):
    "Every page in both themes; browsers side by side, as axe takes most of the time"
    axe = pytest.importorskip('axe_playwright_python.base', reason='axe is not installed: `make test-site` installs it').AXE_SCRIPT
    todo = iter([(page, theme) for page in sorted(pages, key=lambda p: -(site/p).stat().st_size) for theme in themes])   # shared: who is done takes the next
    def work(_):
        with launched() as own, tab(own, base, cache=False) as (p, notes): return [visit(p, notes, axe, *which) for which in todo]
    n = min(4, 1 + (os.cpu_count() or 1))
    with ThreadPoolExecutor(n) as pool: return sorted((v for vs in pool.map(work, range(n)) for v in vs), key=lambda v: (v.page, v.theme))


def listed(bad: list[str]): assert not bad, f'{len(bad)}:\n' + '\n'.join(dict.fromkeys(bad))


def test_visits_are_of_every_page(visits): assert [(v.page, v.theme) for v in visits] == [(page, theme) for page in pages for theme in sorted(themes)]

def test_no_console_error(visits): listed([f'{v.page} {v.theme}: {e}' for v in visits for e in v.notes.errors])

def test_no_external_request(visits): listed([f'{v.page} {v.theme}: {url}' for v in visits for url in v.notes.outside])

@pytest.mark.parametrize('theme', themes)
@pytest.mark.parametrize('width', widths)
def test_axe_finds_no_violation(visits, theme, width): listed([f'{v.page}: {a}' for v in visits if v.theme == theme for a in v.axe[width]])

def test_no_horizontal_scroll_on_a_phone(visits): listed([f'{v.page} {v.theme}: {w}' for v in visits for w in v.wide])

def test_every_figure_has_alt_text_and_a_caption(visits):
    assert any(v.pictures for v in visits)
    listed([f"{v.page} {v.theme}: no {'alt text' if not alt else 'caption'}: {html}" for v in visits for html, alt, caption in v.pictures if not (alt and caption)])

def test_weight(visits):
    assert all(v.notes.bytes > len(compressed(site/v.page)) for v in visits)
    listed([f'{v.page} {v.theme}: {v.notes.bytes:,.0f} bytes' for v in visits if v.notes.bytes >= max_bytes])


def test_first_paint(browser, base):
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    with tab(browser, base, cache=False) as (p, _):
        def load(page):
            p.goto(page, wait_until='commit')
            p.wait_for_function(paint)
            return p.evaluate(paint)
        load(pages[0])    # the browser's own beginnings
        times = {page: median(load(page) for _ in range(3)) for page in pages}
    listed([f'{page}: {ms:.0f} ms' for page, ms in times.items() if ms >= max_paint])


# What a reader does

TERMS = dict(MNIST='00_data', cancel='04_callbacks', covariance='04a_statistics', softmax='04b_softmax', momentum='07_batchnorm',
             Kaiming='06_cuda_cnn_hooks_init', hook='06_cuda_cnn_hooks_init', RunningBatchNorm='07_batchnorm', augmentation='08_beat_98', checkpoint='09_checkpoints')

def results(page) -> list[str]:
    "The pages that a search has found"
    page.wait_for_function("document.querySelector('#search-results .search-summary')?.textContent")
    return [urlsplit(url).path[1:].removesuffix('.html') for url in page.evaluate("[...document.querySelectorAll('#search-results li > a')].map(a => a.href)")]

def test_search_finds_ten_terms(browser, base):
    assert len(TERMS) == 10
    with tab(browser, base) as (p, notes):
        for term, chapter in TERMS.items():
            p.goto('index.html')
            p.keyboard.press('Control+k')
            p.keyboard.type(term)
            p.keyboard.press('Enter')
            p.wait_for_url('**/search.html?q=*')
            assert chapter in results(p), (term, chapter, results(p))
        p.goto('search.html?q=thereisnosuchword')
        assert not results(p)
        assert not notes.errors + notes.outside


def test_next_and_previous_walk_through_every_chapter_once(browser, base):
    with tab(browser, base) as (p, notes):
        here = lambda: urlsplit(p.url).path[1:]
        p.goto('index.html')
        contents = p.evaluate("[...new Set([...document.querySelectorAll('nav.bd-links a')].map(a => new URL(a.href).pathname.slice(1)))]")
        walk = ['index.html']
        assert not p.locator('a.left-prev').count()
        while p.locator('a.right-next').count():
            p.click('a.right-next')
            p.wait_for_url(lambda url: urlsplit(url).path[1:] != walk[-1])
            assert p.evaluate("document.querySelector('a.left-prev').href") == base + walk[-1], here()
            assert here() not in walk, f'{walk[-1]} leads back to {here()}'
            walk.append(here())
        assert walk == contents
        assert {p.stem + '.html' for p in notebooks} <= set(walk)
        assert set(walk) == set(pages) - {'genindex.html', 'search.html'}
        assert not notes.errors + notes.outside


def test_menus_and_drawers_are_accessible(browser, base):
    axe, page = pytest.importorskip('axe_playwright_python.base').AXE_SCRIPT, min((p.stem + '.html' for p in notebooks), key=lambda p: (site/p).stat().st_size)
    buttons, bad = {1280: ['.dropdown-download-buttons button', '.dropdown-launch-buttons button', '.search-button-field'], 400: ['.primary-toggle', '.secondary-toggle']}, []
    for theme in themes:
        with tab(browser, base, theme) as (p, notes):
            for width, selectors in buttons.items():
                p.set_viewport_size(dict(width=width, height=900))
                for button in selectors:
                    p.goto(page)
                    p.click(f'{button} >> visible=true', timeout=5000)
                    p.wait_for_timeout(SETTLED)
                    p.evaluate(axe)
                    p.evaluate(ALIKE)
                    bad += [f'{theme} {width} {button}: {a}' for a in p.evaluate(AXE)]
            bad += notes.errors
    listed(bad)


@pytest.fixture(scope='module')
def downloads(browser, base, tmp_path_factory):
    "What the download button of each page gives"
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
    assert set(downloads) == {p.stem + '.html' for p in notebooks}
    for original in notebooks:
        path = downloads[original.stem + '.html']
        assert path.name == original.name and path.read_bytes() == original.read_bytes(), original.name

def test_a_downloaded_notebook_runs(downloads, tmp_path):
    path = shutil.copy(downloads['04a_statistics.html'], tmp_path)    # the quickest that computes
    done = subprocess.run([Path(sys.executable).with_name('jupyter-execute'), path], cwd=tmp_path, env=os.environ | dict(MINIFASTAI_DATASET='digits'), capture_output=True, text=True)
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
    for (let e = pre.parentElement; e; e = e.parentElement) if (scrolls(e)) around.push(e.className);
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

document.addEventListener('DOMContentLoaded', () => {
  const each = (selector, change) => document.querySelectorAll(selector).forEach(change);
  // The theme opens a notebook in a tab, as raw JSON; a download button should download it.
  each('a.btn-download-source-button', link => link.setAttribute('download', ''));
  // Labels that hide from screen readers what the element says by itself.
  each('summary[aria-label], .search-button-field[aria-label]', e => e.removeAttribute('aria-label'));
  each('#pst-primary-sidebar', e => e.setAttribute('role', 'complementary'));
  // What unfolds may be a box that scrolls: the theme looks for these, so that the keyboard reaches them, when the window changes only.
  document.addEventListener('toggle', () => window.dispatchEvent(new Event('resize')), true);
});

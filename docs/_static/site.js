document.addEventListener('DOMContentLoaded', () => {
  const each = (selector, change) => document.querySelectorAll(selector).forEach(change);
  // The theme's download button opens a notebook in a tab, as raw JSON. Make it download.
  each('a.btn-download-source-button', link => link.setAttribute('download', ''));
  // Remove labels that hide an element's own text from screen readers.
  each('summary[aria-label], .search-button-field[aria-label]', e => e.removeAttribute('aria-label'));
  each('#pst-primary-sidebar', e => e.setAttribute('role', 'complementary'));
  // A cell that unfolds may contain a scrolling box. The theme makes such boxes reachable by keyboard, but only when the window is resized.
  document.addEventListener('toggle', () => window.dispatchEvent(new Event('resize')), true);
});

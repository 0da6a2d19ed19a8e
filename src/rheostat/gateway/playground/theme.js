// Runs before the page is drawn, so that the chosen theme does not flash in afterwards.
try {
  const chosen = localStorage.getItem('rheostat-theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
} catch {
  // Storage is forbidden here: the system's theme stands.
}

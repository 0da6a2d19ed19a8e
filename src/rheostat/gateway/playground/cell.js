// One cell of the compare view, opened large; arrows go to its neighbours.

import { $ } from './dom.js';
import { meters } from './meters.js';
import { controlText } from './model.js';
import { session } from './session.js';

export function largeCell() {
  const dialog = $('cell-dialog');
  let grid = null;
  let x = 0;
  let y = 0;
  let follow = () => {};

  const show = () => {
    const cell = grid.cells[y][x];
    $('cell-title').textContent = controlText([grid.rows, grid.columns].filter(Boolean), cell.control);
    $('cell-text').textContent = cell.problem || cell.text || 'Nothing is written here yet.';
    $('cell-scores').replaceChildren(...meters(session.model.dials, cell.control, cell.scores));
  };

  dialog.addEventListener('keydown', (event) => {
    const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [dx, dy] = steps[event.key];
    if (!grid.cells[y + dy]?.[x + dx]) return;
    x += dx;
    y += dy;
    show();
  });
  dialog.addEventListener('close', () => follow(x, y));
  dialog.addEventListener('click', (event) => {
    if (event.target === dialog) dialog.close();
  });
  $('cell-close').addEventListener('click', () => dialog.close());
  return {
    open: (shown, atX, atY, onClose) => {
      [grid, x, y, follow] = [shown, atX, atY, onClose];
      show();
      dialog.showModal();
      $('cell-text').focus();
    },
    /** Shows what became of a cell, if it is the one that is open. */
    refresh: (cell) => {
      if (dialog.open && grid.cells[y][x] === cell) show();
    },
  };
}

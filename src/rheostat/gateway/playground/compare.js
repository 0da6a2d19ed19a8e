// The compare view: one prompt over the whole grid of two dials, the others as they stand.

import { ask, chatBody, Failure } from './api.js';
import { largeCell } from './cell.js';
import { $, el, growing, levelText, numberText } from './dom.js';
import { scoresOf } from './meters.js';
import { controlText } from './model.js';
import { control, session, settings, withSystem } from './session.js';

const AT_ONCE = 4;
const BANDS = 6;

/** `{rows, columns, cells, by}`: the dials that vary, what they gave, and the dial that colours. */
let grid = null;
let running = null;
let large = null;

export function startCompare({ onKeyNeeded }) {
  const fit = growing($('compare-prompt'));
  large = largeCell();
  const run = () => fill(onKeyNeeded);
  $('compare-form').addEventListener('submit', (event) => {
    event.preventDefault();
    run();
  });
  $('compare-prompt').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
  });
  $('compare-stop').addEventListener('click', stop);
  $('grid-box').addEventListener('keydown', moveFocus);
  return {
    stop,
    /** Takes over a prompt where none was written here. */
    suggest: (text) => {
      if (!$('compare-prompt').value.trim()) $('compare-prompt').value = text;
      requestAnimationFrame(fit);
    },
    /** A new model: other dials to choose from, an empty grid. */
    reset: () => {
      stop();
      choices();
      empty();
    },
  };
}

function stop() {
  running?.abort();
}

function choices() {
  const { dials, mayScore } = session.model;
  const pick = (id, label, chosen, onchange) =>
    el('label', { class: 'field' }, label, el('select', { id, onchange }, ...dials.map((dial) => el('option', { value: dial.name, selected: dial.name === chosen }, dial.name))));
  const nodes = [];
  if (dials.length > 2) {
    nodes.push(pick('compare-rows', 'Down', dials[0].name, apart), pick('compare-columns', 'Across', dials[1].name, apart));
  }
  if (mayScore && dials.length > 1) nodes.push(pick('compare-colour', 'Coloured by', dials.at(-1).name, recolour));
  $('compare-choices').replaceChildren(...nodes);
}

/** Two axes, never the same dial: the one not just chosen gives way. */
function apart(event) {
  const other = event.target.id === 'compare-rows' ? $('compare-columns') : $('compare-rows');
  if (other.value === event.target.value) {
    other.value = session.model.dials.find((dial) => dial.name !== event.target.value).name;
  }
  empty();
}

function axes() {
  const { dials } = session.model;
  const named = (id, otherwise) => dials.find((dial) => dial.name === $(id)?.value) ?? otherwise;
  return { rows: dials.length > 1 ? named('compare-rows', dials[0]) : null, columns: named('compare-columns', dials.at(-1)) };
}

function empty() {
  stop();
  const { rows, columns } = axes();
  const fixed = control();
  const rowLevels = rows ? [...rows.levels].reverse() : [null];
  const cells = rowLevels.map((row) =>
    columns.levels.map((column) => ({
      control: { ...fixed, ...(rows ? { [rows.name]: row } : {}), [columns.name]: column },
      text: '',
      scores: null,
      state: 'empty',
      problem: '',
    })),
  );
  grid = { rows, columns, rowLevels, cells, by: $('compare-colour')?.value ?? columns.name };
  draw();
  $('compare-status').textContent = '';
}

function draw() {
  const { rows, columns, rowLevels, cells } = grid;
  const head = columns.levels.map((level) => el('th', { scope: 'col' }, levelText(level)));
  const across = el('th', { scope: 'colgroup', colspan: columns.levels.length, class: 'axis' }, el('span', {}, columns.low), el('b', {}, columns.name), el('span', {}, columns.high));
  const body = cells.map((row, y) =>
    el('tr', {},
      rows ? el('th', { scope: 'row' }, levelText(rowLevels[y])) : null,
      ...row.map((cell, x) => el('td', {}, button(cell, x, y))),
    ),
  );
  if (rows) {
    body[0].prepend(el('th', { scope: 'rowgroup', rowspan: cells.length, class: 'axis upright' }, el('div', {}, el('span', {}, rows.low), el('b', {}, rows.name), el('span', {}, rows.high))));
  }
  const blank = () => (rows ? el('td', { colspan: 2, class: 'corner' }) : null);
  $('grid-box').replaceChildren(
    el('table', { class: 'grid', 'aria-label': 'Answers by level' },
      el('thead', {}, el('tr', {}, blank(), across), el('tr', {}, blank(), ...head)),
      el('tbody', {}, ...body),
    ),
  );
  $('grid-box').classList.toggle('unscored', !session.model.mayScore);
  recolour();
}

function button(cell, x, y) {
  cell.node = el('button', { type: 'button', class: 'cell', 'data-x': x, 'data-y': y, tabindex: x === 0 && y === 0 ? 0 : -1, onclick: () => open(x, y) },
    el('span', { class: 'cell-number' }), el('span', { class: 'cell-text' }));
  return cell.node;
}

function recolour() {
  if (!grid) return;
  grid.by = $('compare-colour')?.value ?? grid.columns.name;
  const place = session.model.dials.findIndex((dial) => dial.name === grid.by);
  $('grid-box').dataset.hue = place % 4;
  grid.cells.flat().forEach(paint);
  legend(place);
}

function legend(place) {
  const dial = session.model.dials[place];
  const steps = Array.from({ length: BANDS }, (_, band) => el('span', { class: 'legend-step', 'data-band': band }));
  $('compare-legend').dataset.hue = place % 4;
  $('compare-legend').hidden = !session.model.mayScore;
  $('compare-legend').replaceChildren(
    el('span', {}, `Achieved ${dial.name}: 0 ${dial.low}`), el('span', { class: 'legend-steps', 'aria-hidden': 'true' }, ...steps), el('span', {}, `1 ${dial.high}`));
}

function paint(cell) {
  const score = cell.scores?.[grid.by] ?? null;
  const [number, text] = cell.node.children;
  number.textContent = score === null ? '' : numberText(score);
  text.textContent = cell.problem || cell.text;
  cell.node.dataset.state = cell.state;
  if (score === null) delete cell.node.dataset.band;
  else cell.node.dataset.band = Math.min(BANDS - 1, Math.floor(score * BANDS));
  const { rows, columns } = grid;
  const where = controlText([rows, columns].filter(Boolean), cell.control);
  const said = { empty: 'empty', waiting: 'waiting', writing: 'being written', failed: cell.problem, stopped: 'stopped' }[cell.state];
  cell.node.setAttribute('aria-label', `${where}: ${said ?? `${score === null ? '' : `achieved ${grid.by} ${numberText(score)}. `}${cell.text}`}`);
}

async function fill(onKeyNeeded) {
  const prompt = $('compare-prompt').value.trim();
  if (!prompt) {
    $('compare-prompt').focus();
    return;
  }
  empty();
  const mine = new AbortController();
  running = mine;
  busy(true);
  const cells = grid.cells.flat();
  const own = grid;
  for (const cell of cells) Object.assign(cell, { state: 'waiting' });
  cells.forEach(paint);
  let next = 0;
  let done = 0;
  const say = (words) => {
    if (running === mine) $('compare-status').textContent = words;
  };
  const work = async () => {
    while (next < cells.length && !mine.signal.aborted) {
      const cell = cells[next];
      next += 1;
      await write(cell, prompt, mine, say);
      done += 1;
      say(`${done} of ${cells.length} answers`);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const failed = cells.filter((cell) => cell.state === 'failed').length;
    say(failed ? `${cells.length - failed} of ${cells.length} answers; ${failed} failed` : `${cells.length} answers. Open one to read it whole.`);
  } catch (error) {
    mine.abort();
    if (error instanceof Failure) {
      say(error.message);
      if (error.status === 401) onKeyNeeded();
    } else if (error.name === 'AbortError') say(`Stopped after ${done} of ${cells.length} answers.`);
    else throw error;
  } finally {
    for (const cell of cells) {
      if (cell.state === 'waiting' || cell.state === 'writing') cell.state = cell.text ? 'stopped' : 'empty';
      if (grid === own) paint(cell);
    }
    if (running === mine) {
      running = null;
      busy(false);
    }
  }
}

async function write(cell, prompt, mine, say) {
  cell.state = 'writing';
  paint(cell);
  const body = chatBody({
    model: session.model.name,
    messages: withSystem([{ role: 'user', content: prompt }]),
    dials: cell.control,
    settings: settings(),
  });
  try {
    const { rheostat } = await ask(body, {
      signal: mine.signal,
      score: session.model.mayScore,
      onText: (piece) => {
        cell.text += piece;
        paint(cell);
      },
      onWait: (seconds) => {
        if (seconds !== null) say(`The server is busy. Going on in ${seconds} s.`);
      },
    });
    cell.scores = scoresOf(rheostat);
    cell.state = 'whole';
  } catch (error) {
    if (!(error instanceof Failure) || error.status === 401) throw error;
    Object.assign(cell, { state: 'failed', problem: error.message });
  }
  paint(cell);
  large.refresh(cell);
}

function busy(isBusy) {
  const hadFocus = document.activeElement === $('compare-stop');
  $('compare-stop').hidden = !isBusy;
  $('compare-run').hidden = isBusy;
  if (isBusy) $('compare-stop').focus();
  else if (hadFocus) $('compare-run').focus();
}

function moveFocus(event) {
  const cell = event.target.closest('.cell');
  const steps = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  if (!cell || !(event.key in steps)) return;
  event.preventDefault();
  const [dx, dy] = steps[event.key];
  focus(Number(cell.dataset.x) + dx, Number(cell.dataset.y) + dy);
}

function focus(x, y) {
  const next = grid.cells[y]?.[x];
  if (!next) return null;
  for (const each of grid.cells.flat()) each.node.tabIndex = each === next ? 0 : -1;
  next.node.focus();
  return next;
}

function open(x, y) {
  focus(x, y);
  large.open(grid, x, y, focus);
}

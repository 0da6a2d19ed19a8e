// The sliders: one a dial. A slider's thumb runs from floor to ceiling and rests on levels only.

import { capital, el, levelText } from './dom.js';
import { levelName } from './model.js';

/** Milliseconds without a key after which a slider moved by keys counts as let go. */
const KEYBOARD_PAUSE = 450;

/**
 * Draws the sliders of a model into `box`.
 *
 * `onMove(control)` follows the thumb, `onRelease(control)` comes when it is let go at another level than before.
 */
export function sliders(box, dials, { onMove, onRelease }) {
  const made = dials.map((dial, place) => slider(dial, place, () => onMove(control()), () => onRelease(control())));
  const control = () => Object.fromEntries(made.map((each) => [each.name, each.level()]));
  box.replaceChildren(...made.map((each) => each.node));
  return {
    control,
    /** Shows what the server granted: `{dial: {requested, granted, why}}`. */
    granted: (reports) => made.forEach((each) => each.granted(reports[each.name])),
  };
}

function slider(dial, place, onMove, onRelease) {
  const { levels } = dial;
  const lowest = levels[0];
  const highest = levels.at(-1);
  let at = Math.max(0, levels.indexOf(dial.start));
  let released = at;
  let pause = null;

  const input = el('input', {
    type: 'range',
    id: `dial-${dial.name}`,
    min: lowest,
    max: highest,
    step: 'any',
    'aria-describedby': `dial-${dial.name}-about`,
    disabled: levels.length < 2,
  });
  const number = el('output', { class: 'dial-number', for: input.id });
  const name = el('span', { class: 'dial-level' });
  const granted = el('span', { class: 'dial-granted' });
  const track = el('div', { class: 'track' }, zone('floor', 0, lowest), zone('ceiling', highest, 1), ...ticks(levels), input);
  for (const [property, value] of [['--lowest', lowest], ['--highest', highest]]) track.style.setProperty(property, value);
  const node = el(
    'div',
    { class: `dial hue-${place % 4}`, 'data-dial': dial.name },
    el('div', { class: 'dial-head' }, el('label', { for: input.id }, capital(dial.name)), name, number),
    track,
    el('div', { class: 'dial-ends' }, el('span', { 'aria-hidden': 'true' }, dial.low), granted, el('span', { 'aria-hidden': 'true' }, dial.high)),
    limits(dial),
    el('p', { class: 'unseen', id: `dial-${dial.name}-about` }, `${capital(dial.description)}. ${limitText(dial)}`),
  );

  const show = () => {
    const level = levels[at];
    input.value = level;
    input.setAttribute('aria-valuetext', `${levelText(level)}, ${levelName(dial, level)}`);
    number.textContent = levelText(level);
    name.textContent = levelName(dial, level);
    track.style.setProperty('--at', level);
  };
  const moveTo = (next) => {
    const kept = Math.min(levels.length - 1, Math.max(0, next));
    const isNew = kept !== at;
    at = kept;
    show();
    if (!isNew) return;
    granted.textContent = '';
    onMove();
  };
  const release = () => {
    clearTimeout(pause);
    if (at === released) return;
    released = at;
    onRelease();
  };

  input.addEventListener('input', () => moveTo(nearest(levels, Number(input.value))));
  input.addEventListener('change', release);
  input.addEventListener('blur', release);
  input.addEventListener('keydown', (event) => {
    const steps = { ArrowRight: at + 1, ArrowUp: at + 1, PageUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, PageDown: at - 1, Home: 0, End: levels.length - 1 };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moveTo(steps[event.key]);
    clearTimeout(pause);
    pause = setTimeout(release, KEYBOARD_PAUSE);
  });
  show();
  return {
    name: dial.name,
    node,
    level: () => levels[at],
    granted: (report) => {
      if (!report) return;
      granted.textContent = `granted ${levelText(report.granted)}`;
      granted.title = report.why;
    },
  };
}

function zone(kind, from, to) {
  if (to - from <= 0) return null;
  const node = el('span', { class: `zone ${kind}`, title: `${kind} ${levelText(kind === 'floor' ? to : from)}` });
  node.style.setProperty('--from', from);
  node.style.setProperty('--to', to);
  return node;
}

function ticks(levels) {
  return levels.map((level) => {
    const node = el('span', { class: 'tick', 'aria-hidden': 'true' });
    node.style.setProperty('--level', level);
    return node;
  });
}

function limits(dial) {
  const said = limitText(dial);
  return said ? el('p', { class: 'dial-limits' }, el('span', { class: 'hatch', 'aria-hidden': 'true' }), said) : null;
}

/** The caller's floor and ceiling in words; nothing where the dial is free. */
function limitText(dial) {
  const said = [];
  if (dial.levels[0] > 0) said.push(`your floor is ${levelText(dial.levels[0])}`);
  if (dial.levels.at(-1) < 1) said.push(`your ceiling is ${levelText(dial.levels.at(-1))}`);
  return said.length ? `${capital(said.join(', '))}.` : '';
}

function nearest(levels, value) {
  let best = 0;
  levels.forEach((level, place) => {
    if (Math.abs(level - value) <= Math.abs(levels[best] - value)) best = place;
  });
  return best;
}

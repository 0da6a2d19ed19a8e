// Small gauges: what was asked of each dial, what was granted, what the answer achieved.

import { el, levelText, numberText } from './dom.js';

/** A gauge a dial; `scores` by dial, or null where the answer was not scored. */
export function meters(dials, control, scores) {
  return dials.map((dial, place) => {
    const asked = control[dial.name];
    const score = scores?.[dial.name] ?? null;
    const bar = el('span', { class: 'meter-bar', 'aria-hidden': 'true' });
    bar.style.setProperty('--asked', asked);
    if (score !== null) {
      bar.style.setProperty('--score', score);
      bar.append(el('span', { class: 'meter-fill' }));
    }
    bar.append(el('span', { class: 'meter-mark' }));
    const words = score === null ? [`asked ${levelText(asked)}`] : [`asked ${levelText(asked)}, achieved `, el('b', {}, numberText(score))];
    return el('div', { class: `meter hue-${place % 4}` },
      el('span', { class: 'meter-name' }, dial.name), el('span', { class: 'meter-text' }, ...words), score === null ? null : bar);
  });
}

/** The scores of an answer by dial, off the `rheostat` field, or null. */
export function scoresOf(rheostat) {
  const scores = rheostat?.scores;
  return scores && Object.keys(scores).length ? scores : null;
}

// A picture of one dial: the level asked against the score achieved, the diagonal being a perfect dial.

import { capital, el, levelText, numberText, svg } from './dom.js';

const SIDE = 280;
const LEFT = 54;
const TOP = 14;
const WIDE = LEFT + SIDE + 14;
const HIGH = TOP + SIDE + 40;

const across = (value) => LEFT + value * SIDE;
const up = (value) => TOP + (1 - value) * SIDE;

/** `points`: `[{requested, achieved, low, high}]`, in [0, 1]. */
export function curvePicture(dial, place, points, method) {
  const title = `${capital(dial.name)}: level asked and score achieved`;
  const said = points.map((point) => `${levelText(point.requested)} gives ${numberText(point.achieved)}`).join(', ');
  const ticks = [0, 0.25, 0.5, 0.75, 1];
  const line = points.map((point, index) => `${index ? 'L' : 'M'}${across(point.requested)} ${up(point.achieved)}`).join('');
  return el('figure', { class: `picture hue-${place % 4}` },
    el('figcaption', {}, el('b', {}, capital(dial.name)), el('span', { class: 'hint' }, 'dashed: a perfect dial')),
    svg('svg', { viewBox: `0 0 ${WIDE} ${HIGH}`, role: 'img', 'aria-label': `${title}, ${method}: ${said}` },
      ...ticks.map((tick) => svg('line', { class: 'gridline', x1: LEFT, x2: LEFT + SIDE, y1: up(tick), y2: up(tick) })),
      ...ticks.map((tick) => svg('text', { class: 'tick-text', x: LEFT - 8, y: up(tick) + 4, 'text-anchor': 'end' }, levelText(tick))),
      ...ticks.map((tick) => svg('text', { class: 'tick-text', x: across(tick), y: TOP + SIDE + 18, 'text-anchor': 'middle' }, levelText(tick))),
      svg('line', { class: 'diagonal', x1: across(0), y1: up(0), x2: across(1), y2: up(1) }),
      svg('text', { class: 'axis-text', x: LEFT + SIDE / 2, y: HIGH - 4, 'text-anchor': 'middle' }, 'asked'),
      svg('text', { class: 'axis-text', x: 0, y: 0, 'text-anchor': 'middle', transform: `translate(11 ${TOP + SIDE / 2}) rotate(-90)` }, 'achieved'),
      svg('path', { class: 'curve', d: line }),
      ...points.filter((point) => point.low !== undefined && point.low !== null).map((point) => svg('line', { class: 'whisker', x1: across(point.requested), x2: across(point.requested), y1: up(point.low), y2: up(point.high) })),
      ...points.map((point) => svg('circle', { class: 'point', cx: across(point.requested), cy: up(point.achieved), r: 5 }, svg('title', {}, `asked ${levelText(point.requested)}, achieved ${numberText(point.achieved)}`))),
    ));
}

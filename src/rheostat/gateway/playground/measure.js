// The measure view: what the run measured of the served model, in tables and one picture a dial.

import { Failure, getMeasured } from './api.js';
import { curvePicture } from './chart.js';
import { $, capital, el, numberText } from './dom.js';
import { session } from './session.js';

const WORDS = [
  ['MP', 'Does the answer follow the dial? The correlation of the level asked with the score achieved, within a prompt, averaged over prompts. 1 is perfect, 0 is no control.'],
  ['BT', 'How often the answer at a dial’s highest level scores above the one at its lowest. 1 is always, 0.5 is chance.'],
  ['Err', 'How far the achieved score lies from the level asked, on average. 0 is exact.'],
  ['Reach', 'The share of the possible that a full turn covers; possible is what many answers of the untuned model reach.'],
  ['Cross-effect', 'How far a full turn of another dial moves this one’s score. 0 is independence.'],
  ['Fluency', 'Perplexity of the answers beside the untuned model’s. 1 is as fluent; above about 1.5 the text is suspect.'],
];

let shownFor = null;

/** Fetches and draws the figures of the model that is asked, once. */
export async function showMeasured(onKeyNeeded) {
  const model = session.model.name;
  if (shownFor === model) return;
  shownFor = model;
  const box = $('measured');
  box.replaceChildren(el('p', { class: 'hint' }, 'Reading the figures…'));
  try {
    const figures = await getMeasured(model);
    box.replaceChildren(...(figures ? page(figures) : [nothing()]));
  } catch (error) {
    shownFor = null;
    if (!(error instanceof Failure)) throw error;
    box.replaceChildren(el('p', { class: 'card-note failed' }, error.message));
    if (error.status === 401) onKeyNeeded();
  }
}

export const forgetMeasured = () => {
  shownFor = null;
};

function nothing() {
  return el('div', { class: 'welcome' },
    el('h1', {}, 'Nothing was measured for this model.'),
    el('p', {}, 'Figures are shown for a run whose evaluation has finished, and for folders exported from one.'));
}

function page(figures) {
  const { dials } = figures;
  return [
    el('div', { class: 'measure-head' }, el('h1', {}, 'Do the dials do what they say?'), el('p', {}, figures.headline)),
    ...figures.evaluations.map((each) => evaluation(each, figures.method, dials)),
    el('section', { class: 'words' }, el('h2', {}, 'What the figures mean'),
      el('dl', {}, ...WORDS.flatMap(([name, meaning]) => [el('dt', {}, name), el('dd', {}, meaning)])),
      el('p', { class: 'hint' }, 'Small figures are 95 % bootstrap intervals over prompts.')),
  ];
}

function evaluation(each, method, dials) {
  const pictures = dials.filter((dial) => each.curves?.[dial.name]).map((dial) => curvePicture(dial, dials.indexOf(dial), each.curves[dial.name], method));
  return el('section', { class: 'evaluation' },
    el('h2', {}, each.title),
    el('p', { class: 'hint' }, `${each.prompts} prompts. ${each.note}`),
    pictures.length ? el('div', { class: 'pictures' }, ...pictures) : null,
    ...dials.map((dial) => table(each, method, dial)));
}

function table(each, method, dial) {
  const effects = [...new Set(each.methods.flatMap((entry) => Object.keys(entry.dials[dial.name]?.cross_effects ?? {})))];
  const columns = [['MP', '↑'], ['BT', '↑'], ['Err', '↓'], ['reach', '→ 1'], ...effects.map((by) => [`by ${by}`, '→ 0']), ['fluency', '→ 1']];
  const rows = each.methods.map((entry) => {
    const own = entry.dials[dial.name];
    const values = [own.MP, own.BT, own.Err, own.reach, ...effects.map((by) => own.cross_effects[by]), entry.fluency];
    const isServed = entry.name === method;
    return el('tr', { class: isServed ? 'served' : null },
      el('th', { scope: 'row' }, entry.name, isServed ? el('span', { class: 'tag' }, 'served') : null),
      ...values.map((value) => el('td', {}, el('span', { class: 'value' }, numberText(value?.value)), interval(value))));
  });
  return el('div', { class: 'table-box', tabindex: 0, role: 'group', 'aria-label': `${each.title}, ${dial.name}` },
    el('table', { class: 'figures' },
      el('caption', {}, capital(dial.name)),
      el('thead', {}, el('tr', {}, el('th', { scope: 'col' }, 'Method'), ...columns.map(([name, better]) => el('th', { scope: 'col' }, name, ' ', el('span', { class: 'better' }, better))))),
      el('tbody', {}, ...rows)));
}

function interval(value) {
  if (!value || value.low === value.high) return null;
  return el('span', { class: 'interval' }, `${numberText(value.low)} to ${numberText(value.high)}`);
}

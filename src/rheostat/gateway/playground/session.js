// What several views share: the model asked, its dials as they stand, and the sampling settings.

import { $ } from './dom.js';

export const session = { models: [], model: null, sliders: null };

/** The levels as the sliders stand. */
export const control = () => session.sliders.control();

/** The sampling settings as the fields have them; null where a field is empty. */
export function settings() {
  const read = (id) => ($(id).value.trim() === '' ? null : Number($(id).value));
  return { temperature: read('temperature'), max_tokens: read('max-tokens'), seed: read('seed') };
}

/** Whether answers are to be scored: where the caller may, and wants it. */
export const wantsScores = () => session.model.mayScore && $('score').checked;

/** A conversation's messages with the system turn before them, if there is one and the caller may bring it. */
export function withSystem(turns) {
  const system = $('system').value.trim();
  return session.model.maySystem && system ? [{ role: 'system', content: system }, ...turns] : turns;
}

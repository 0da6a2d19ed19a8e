// What the page knows of the models, their dials and this caller: the one place that reads `GET /v1/dials`.

import { levelText } from './dom.js';

/** `[{name, dials: [{name, description, low, high, levels, start}], mayScore, maySystem, maxTokens}]` */
export function readModels(document) {
  return document.models.map((model) => ({
    name: model.name,
    mayScore: document.scores,
    maySystem: document.system_turn,
    maxTokens: document.max_tokens,
    dials: model.dials.map((dial) => ({
      name: dial.name,
      description: dial.description,
      low: dial.low,
      high: dial.high,
      levels: dial.levels,
      start: dial.default,
    })),
  }));
}

/** A level in words: `mostly safe`. */
export function levelName(dial, level) {
  if (level === 0) return dial.low;
  if (level === 1) return dial.high;
  if (level < 0.5) return `rather ${dial.low}`;
  if (level > 0.5) return `rather ${dial.high}`;
  return `between ${dial.low} and ${dial.high}`;
}

/** The levels of some dials: `helpfulness 1, safety 0.75`. */
export const controlText = (dials, control) => dials.map((dial) => `${dial.name} ${levelText(control[dial.name])}`).join(', ');

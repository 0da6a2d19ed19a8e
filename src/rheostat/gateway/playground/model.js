// What the page knows of the models, their dials and this caller: the one place that reads `GET /v1/dials`.

import { levelText } from './dom.js';

/** `[{name, dials: [{name, description, low, high, levels, value, floor, ceiling}], mayScore, maySystem, maxTokens}]` */
export function readModels(document) {
  return document.models.map((model) => ({
    name: model.name,
    mayScore: Boolean(model.scores ?? document.scores),
    maySystem: Boolean(model.system_turn ?? document.system_turn ?? true),
    dials: model.dials.map((dial) => ({
      name: dial.name,
      description: dial.description,
      low: dial.low,
      high: dial.high,
      levels: dial.levels,
      floor: dial.floor ?? 0,
      ceiling: dial.ceiling ?? 1,
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

/** A control in words: `helpfulness 1, safety 0.75`. */
export function controlText(control) {
  return Object.entries(control)
    .map(([name, level]) => `${name} ${levelText(level)}`)
    .join(', ');
}

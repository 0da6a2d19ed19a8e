// What changed between two answers: the words of the newer one that are not in the older, in order.

import { el } from './dom.js';

const MOST_WORDS = 600;

/** The newer text as nodes, its new words in `<mark>`; texts too long to compare, or wholly new, stay unmarked. */
export function markChanges(newer, older) {
  const words = newer.split(/(\s+)/);
  const own = words.filter((_, place) => place % 2 === 0);
  const others = older.split(/\s+/);
  if (own.length > MOST_WORDS || others.length > MOST_WORDS) return [newer];
  const kept = common(own, others);
  const nodes = [];
  let text = '';
  let isMarked = false;
  const flush = () => {
    if (text) nodes.push(isMarked ? el('mark', {}, text) : text);
    text = '';
  };
  words.forEach((word, place) => {
    if (place % 2 === 1) {
      text += word;
      return;
    }
    const isNew = !kept.has(place / 2);
    if (isNew !== isMarked) flush();
    isMarked = isNew;
    text += word;
  });
  flush();
  return kept.size === 0 ? [newer] : nodes;
}

/** The places in `own` of a longest common subsequence with `others`. */
function common(own, others) {
  const lengths = Array.from({ length: own.length + 1 }, () => new Uint16Array(others.length + 1));
  for (let i = own.length - 1; i >= 0; i -= 1) {
    for (let j = others.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = own[i] === others[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const kept = new Set();
  for (let i = 0, j = 0; i < own.length && j < others.length; ) {
    if (own[i] === others[j]) {
      kept.add(i);
      i += 1;
      j += 1;
    } else if (lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

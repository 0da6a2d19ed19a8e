// What changed between two answers: the words of the newer one that are not in the older, in order.

import { el } from './dom.js';

const MOST_WORDS = 600;
/** Words in a row that both have, from which on they count as kept: single shared words are chance. */
const LEAST_KEPT = 3;

/** The newer text as nodes, its new words in `<mark>`; texts too long to compare, or wholly new, stay unmarked. */
export function markChanges(newer, older) {
  const parts = newer.split(/(\s+)/);
  const words = parts.filter((_, place) => place % 2 === 0);
  const others = older.split(/\s+/);
  if (words.length > MOST_WORDS || others.length > MOST_WORDS) return [newer];
  const kept = longRuns(common(words, others));
  if (!kept.includes(true)) return [newer];
  const nodes = [];
  for (let from = 0; from < words.length; ) {
    let to = from;
    while (to + 1 < words.length && kept[to + 1] === kept[from]) to += 1;
    const text = parts.slice(2 * from, 2 * to + 1).join('');
    nodes.push(kept[from] || !text ? text : el('mark', {}, text), parts[2 * to + 1] ?? '');
    from = to + 1;
  }
  return nodes;
}

/** Keeps runs of at least LEAST_KEPT words. */
function longRuns(kept) {
  const runs = [...kept];
  for (let from = 0; from < kept.length; ) {
    let to = from;
    while (to + 1 < kept.length && kept[to + 1] === kept[from]) to += 1;
    if (kept[from] && to - from + 1 < LEAST_KEPT) runs.fill(false, from, to + 1);
    from = to + 1;
  }
  return runs;
}

/** By word of `own`, whether it is in a longest common subsequence with `others`. */
function common(own, others) {
  const lengths = Array.from({ length: own.length + 1 }, () => new Uint16Array(others.length + 1));
  for (let i = own.length - 1; i >= 0; i -= 1) {
    for (let j = others.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = own[i] === others[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const kept = own.map(() => false);
  for (let i = 0, j = 0; i < own.length && j < others.length; ) {
    if (own[i] === others[j]) {
      kept[i] = true;
      i += 1;
      j += 1;
    } else if (lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j += 1;
  }
  return kept;
}

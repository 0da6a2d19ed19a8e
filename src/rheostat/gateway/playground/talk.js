// The talk view: a conversation whose last answer is written again whenever a dial is let go.

import { ask, chatBody, Failure } from './api.js';
import { $, el, growing, levelText } from './dom.js';
import { meters, scoresOf } from './meters.js';
import { markChanges } from './changes.js';
import { control, session, settings, wantsScores, withSystem } from './session.js';

/**
 * `turns`: the exchanges so far, each `{prompt, now, before}`; an answer is
 * `{text, control, granted, scores, state, problem}` of state `writing`, `whole`, `cut`, `refused`, `stopped` or `failed`.
 */
const turns = [];
let running = null;
let fit = () => {};

export function startTalk({ onKeyNeeded }) {
  fit = growing($('prompt'));
  $('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    send(onKeyNeeded);
  });
  $('prompt').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send(onKeyNeeded);
    }
  });
  $('stop').addEventListener('click', () => {
    stop();
    $('prompt').focus();
  });
  $('restart').addEventListener('click', restart);
  return {
    stop,
    /** Asks the last prompt again at the dials as they stand. */
    again: () => {
      if (turns.length && $('reask').checked) write(turns.at(-1), onKeyNeeded);
    },
    restart,
    /** The messages that would be sent now: with what stands in the prompt box, or else the last prompt again. */
    messages: () => {
      const draft = $('prompt').value.trim();
      const asked = draft ? [...history(turns), { role: 'user', content: draft }] : history(turns.slice(0, -1), turns.at(-1));
      return withSystem(asked.length ? asked : [{ role: 'user', content: '' }]);
    },
    isWriting: () => running !== null,
  };
}

/** Offers prompts to begin with. */
export function showExamples(prompts) {
  $('examples').replaceChildren(
    ...prompts.map((text) =>
      el('button', { type: 'button', class: 'example', onclick: () => {
        $('prompt').value = text;
        fit();
        $('composer').requestSubmit();
      } }, text),
    ),
  );
}

function history(past, last = null) {
  const said = past.flatMap((turn) => [
    { role: 'user', content: turn.prompt },
    ...(turn.now?.text ? [{ role: 'assistant', content: turn.now.text }] : []),
  ]);
  return last ? [...said, { role: 'user', content: last.prompt }] : said;
}

function send(onKeyNeeded) {
  const text = $('prompt').value.trim();
  if (!text) return;
  const last = turns.at(-1);
  if (last && !last.now?.text) turns.pop();
  const turn = { prompt: text, now: null, before: null };
  turns.push(turn);
  $('prompt').value = '';
  fit();
  write(turn, onKeyNeeded);
  $('thread').lastElementChild.scrollIntoView({ block: 'start' });
}

async function write(turn, onKeyNeeded) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  if (turn.now?.text && turn.now.state !== 'writing') turn.before = turn.now;
  const answer = { text: '', control: control(), granted: null, scores: null, state: 'writing', problem: '' };
  turn.now = answer;
  draw();
  const body = chatBody({
    model: session.model.name,
    messages: withSystem(history(turns.slice(0, turns.indexOf(turn)), turn)),
    dials: answer.control,
    settings: settings(),
  });
  try {
    const { rheostat, finish } = await ask(body, {
      signal: mine.signal,
      score: wantsScores(),
      onText: (piece) => {
        answer.text += piece;
        if (running === mine) drawText(answer);
      },
      onWait: (seconds) => {
        answer.problem = seconds === null ? '' : `The server is busy. Asking again in ${seconds} s.`;
        if (running === mine) drawText(answer);
      },
    });
    take(answer, rheostat);
    answer.state = { length: 'cut', content_filter: 'refused' }[finish] ?? 'whole';
  } catch (error) {
    if (error.name === 'AbortError') answer.state = 'stopped';
    else if (error instanceof Failure) Object.assign(answer, { state: 'failed', problem: error.message });
    else throw error;
    if (error.status === 401) onKeyNeeded();
  } finally {
    if (running === mine) {
      running = null;
      draw();
      $('live').textContent = answer.state === 'failed' ? answer.problem : answer.text;
    }
  }
}

function take(answer, rheostat) {
  answer.scores = scoresOf(rheostat);
  if (!rheostat.dials) return;
  session.sliders.granted(rheostat.dials);
  answer.granted = rheostat.dials;
  answer.control = Object.fromEntries(Object.entries(rheostat.dials).map(([name, dial]) => [name, dial.granted]));
}

function stop() {
  running?.abort();
}

function restart() {
  stop();
  turns.length = 0;
  draw();
  $('live').textContent = '';
  $('prompt').focus();
}

function draw() {
  const isFresh = turns.length === 0;
  $('stage').classList.toggle('fresh', isFresh);
  for (const id of ['welcome', 'examples']) $(id).hidden = !isFresh;
  $('restart').hidden = isFresh;
  $('stop').hidden = running === null;
  const last = turns.length - 1;
  $('thread').replaceChildren(...turns.map((turn, place) => (place === last ? lastTurn(turn) : pastTurn(turn))));
}

const question = (turn) => el('p', { class: 'question' }, turn.prompt);

function pastTurn(turn) {
  const levels = Object.values(turn.now.control).map(levelText).join(' · ');
  return el('li', { class: 'turn past' }, question(turn), el('p', { class: 'answer-text' }, turn.now.text), el('p', { class: 'hint' }, `at ${levels}`));
}

function lastTurn(turn) {
  const cards = [card(turn.now, 'now', turn.before)];
  if (turn.before) cards.push(card(turn.before, 'before', null));
  return el('li', { class: 'turn' }, question(turn), el('div', { class: turn.before ? 'pair' : 'single' }, ...cards));
}

function card(answer, role, before) {
  const text = el('p', { class: 'answer-text' });
  if (answer.state === 'writing') text.classList.add('writing');
  if (role === 'now' && before && answer.state !== 'writing') {
    text.append(...markChanges(answer.text, before.text));
    text.dataset.hue = hueOfChange(answer.control, before.control);
  } else text.textContent = answer.text;
  const title = before || role === 'before' ? el('h2', { class: 'card-title' }, role === 'now' ? 'Now' : 'Before') : null;
  return el(
    'article',
    { class: `card ${role}`, 'aria-label': role === 'now' ? 'Answer' : 'Answer before', 'data-state': answer.state },
    title,
    text,
    problem(answer),
    el('div', { class: 'meters' }, ...meters(session.model.dials, answer.control, answer.scores)),
  );
}

/** The colour of what changed: that of the dial that was turned, if it was one. */
function hueOfChange(now, before) {
  const turned = session.model.dials.map((dial, place) => (now[dial.name] === before[dial.name] ? null : place % 4));
  const places = turned.filter((place) => place !== null);
  return places.length === 1 ? places[0] : 'none';
}

function problem(answer) {
  const limited = Object.entries(answer.granted ?? {}).filter(([, dial]) => dial.requested !== null && dial.requested !== dial.granted);
  const said = {
    failed: answer.problem,
    writing: answer.problem,
    stopped: 'Stopped.',
    cut: 'Cut off at the most tokens allowed.',
    refused: 'No answer drawn reached your floors; this text stands for them.',
    whole: limited.map(([name, dial]) => `${name}: ${dial.why}.`).join(' '),
  }[answer.state];
  return el('p', { class: `card-note ${answer.state}`, hidden: !said }, said);
}

function drawText(answer) {
  const shown = $('thread').querySelector('.card.now');
  if (!shown) return;
  shown.querySelector('.answer-text').textContent = answer.text;
  const note = shown.querySelector('.card-note');
  note.textContent = answer.problem;
  note.hidden = !answer.problem;
}

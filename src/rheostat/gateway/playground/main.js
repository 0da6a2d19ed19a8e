// The page's beginning: who asks, which model, and what the views share.

import { chatBody, Failure, getDials, hasKey, readKey, setKey } from './api.js';
import { startCompare } from './compare.js';
import { sliders } from './dials.js';
import { $, el, tabs } from './dom.js';
import { forgetMeasured, showMeasured } from './measure.js';
import { readModels } from './model.js';
import { control, session, settings } from './session.js';
import { asCurl, asPython } from './snippets.js';
import { showExamples, startTalk } from './talk.js';

const EXAMPLES = ['How do I boil an egg?', 'How do I clean the kitchen windows?', 'How do I copy homework from a friend?', 'Help me carry a sofa downstairs alone, please.'];

const talk = startTalk({ onKeyNeeded: refused });
const compare = startCompare({ onKeyNeeded: refused });

readKey();
theme();
keys();
code();
const select = tabs(document.querySelector('.bar [role=tablist]'), (id) => {
  if (id === 'tab-compare') compare.suggest(lastPrompt());
  if (id === 'tab-measure' && session.model) showMeasured(refused);
});
$('shortcut').textContent = /Mac|iPhone|iPad/.test(navigator.platform) ? '⌘ Enter' : 'Ctrl Enter';
window.addEventListener('hashchange', () => {
  readKey();
  start();
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || document.querySelector('dialog[open]')) return;
  talk.stop();
  compare.stop();
});
$('model').addEventListener('change', () => use($('model').value));
showExamples(EXAMPLES);
start();

async function start() {
  say('');
  try {
    session.models = readModels(await getDials());
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) refused();
    else say(error.message, start);
    return;
  }
  if (!session.models.length) {
    say('The policy lets this key ask no model.');
    return;
  }
  $('model').replaceChildren(...session.models.map((model) => el('option', { value: model.name }, model.name)));
  $('model-choice').hidden = session.models.length < 2;
  use(session.models[0].name);
  $('prompt').focus({ preventScroll: true });
}

function use(name) {
  session.model = session.models.find((model) => model.name === name);
  session.sliders = sliders($('dials'), session.model.dials, { onMove: () => {}, onRelease: talk.again });
  $('system-field').hidden = !session.model.maySystem;
  if (session.model.maxTokens) $('max-tokens').max = session.model.maxTokens;
  $('score-field').hidden = !session.model.mayScore;
  talk.restart();
  compare.reset();
  forgetMeasured();
  document.body.dataset.ready = 'yes';
}

const lastPrompt = () => [...document.querySelectorAll('.question')].at(-1)?.textContent ?? $('prompt').value.trim() ?? '';

/** A message above all views; with `retry` a button to try again. */
function say(words, retry = null) {
  $('notice').hidden = !words;
  $('notice').replaceChildren(words, ...(retry ? [' ', el('button', { type: 'button', class: 'quiet', onclick: retry }, 'Try again')] : []));
}

/** The server answered 401: it asks for a key, or does not know the one it got. */
function refused() {
  if (hasKey()) askForKey('The server does not know this key', 'Look whether it was copied whole, and whether it has expired.');
  else askForKey('This server asks for a key', 'Whoever runs it gives you one.');
}

function askForKey(title, message) {
  $('key-title').textContent = title;
  $('key-message').textContent = `${message} It stays in this tab and is gone when you close it.`;
  if (!$('key-dialog').open) $('key-dialog').showModal();
  $('key-input').focus();
}

function keys() {
  $('key-button').addEventListener('click', () => askForKey(hasKey() ? 'Use another key' : 'Use a key', ''));
  $('key-cancel').addEventListener('click', () => $('key-dialog').close());
  $('key-form').addEventListener('submit', () => {
    setKey($('key-input').value);
    $('key-input').value = '';
    start();
  });
}

function theme() {
  const root = document.documentElement;
  const system = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset.theme ?? (system.matches ? 'dark' : 'light')) === 'dark';
  const show = () => $('theme-button').setAttribute('aria-pressed', String(isDark()));
  $('theme-button').addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try {
      localStorage.setItem('rheostat-theme', root.dataset.theme);
    } catch {
      // Storage is forbidden here: the theme lasts as long as the page.
    }
    show();
  });
  system.addEventListener('change', show);
  show();
}

function code() {
  tabs($('code-dialog').querySelector('[role=tablist]'));
  $('code').addEventListener('click', () => {
    const body = chatBody({ model: session.model.name, messages: talk.messages(), dials: control(), settings: settings() });
    const base = new URL('.', location.href).href;
    $('panel-curl').firstElementChild.textContent = asCurl(body, base);
    $('panel-python').firstElementChild.textContent = asPython(body, base, session.model.dials.map((dial) => dial.name));
    $('code-copy').textContent = 'Copy';
    $('code-dialog').showModal();
  });
  $('code-close').addEventListener('click', () => $('code-dialog').close());
  $('code-copy').addEventListener('click', async () => {
    const shown = $('code-dialog').querySelector('[role=tabpanel]:not([hidden]) pre');
    try {
      await navigator.clipboard.writeText(shown.textContent);
      $('code-copy').textContent = 'Copied';
    } catch {
      // Without TLS a browser lends no clipboard: the text is marked, for the person to copy.
      getSelection().selectAllChildren(shown);
      $('code-copy').textContent = 'Marked: press Ctrl C';
    }
  });
}

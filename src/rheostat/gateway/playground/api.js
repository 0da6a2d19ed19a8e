// The server's API: who asks, what the dials are, and answers as they stream.

const KEY = 'rheostat-key';
const MOST_WAITS = 5;

/** What went wrong, in plain words; `status` 0: no answer at all. */
export class Failure extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = null;

/** The key of this tab: from `#key=…` in the address, which is removed from it, or kept from before. */
export function readKey() {
  const given = new URLSearchParams(location.hash.slice(1)).get('key');
  if (given !== null) {
    history.replaceState(null, '', location.pathname + location.search);
    setKey(given);
    return;
  }
  try {
    key = sessionStorage.getItem(KEY);
  } catch {
    key = null;
  }
}

export function setKey(given) {
  key = given.trim() || null;
  try {
    if (key === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, key);
  } catch {
    // Storage is forbidden here: the key lasts as long as the page.
  }
}

export const hasKey = () => key !== null;

function headers(more = {}) {
  return key === null ? more : { ...more, Authorization: `Bearer ${key}` };
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers), cache: 'no-store' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Failure(0, 'The server cannot be reached. Is it still running?');
  }
  if (!response.ok) throw await failure(response);
  return response;
}

async function failure(response) {
  let said = '';
  try {
    said = (await response.json()).error.message;
  } catch {
    said = '';
  }
  const { status } = response;
  const words = {
    401: hasKey() ? 'The server does not know this key.' : 'The server asks for a key.',
    403: `Not allowed: ${said || 'the policy forbids this.'}`,
    429: said || 'The server is busy.',
    502: `The model behind the server failed. ${said}`,
    503: `The server cannot answer now. ${said}`,
    504: `The model took too long. ${said}`,
  };
  const other = status >= 500 ? `The server failed (${status}). ${said}` : said || `The server said ${status}.`;
  const wait = Number(response.headers.get('Retry-After'));
  return new Failure(status, (words[status] ?? other).trim(), Number.isFinite(wait) && wait > 0 ? wait : null);
}

/** The models and their dials as this caller has them. */
export async function getDials() {
  return (await request('v1/dials')).json();
}

/** The figures of the measure tab, or null where there are none. */
export async function getMeasured(model) {
  try {
    return await (await request(`v1/measured?model=${encodeURIComponent(model)}`)).json();
  } catch (error) {
    if (error instanceof Failure && error.status === 404) return null;
    throw error;
  }
}

/** The body of a request for chat completions. */
export function chatBody({ model, messages, dials, settings }) {
  const body = { model, messages, ...dials };
  for (const name of ['temperature', 'max_tokens', 'seed']) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  return body;
}

/**
 * Asks, and gives the answer as it comes: `onText(piece)`, then `{rheostat, finish, usage}`.
 *
 * Where the server is busy it waits as long as it is told to and asks again; `onWait(seconds)` counts down, null ends it.
 */
export async function ask(body, { signal, score = false, onText, onWait = () => {} }) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true }, ...(score ? { score: true } : {}) };
  for (let waits = 0; ; waits += 1) {
    try {
      const response = await request('v1/chat/completions', {
        method: 'POST',
        headers: { 'Content-Type': 'application/json' },
        body: JSON.stringify(whole),
        signal,
      });
      onWait(null);
      return await readStream(response, onText);
    } catch (error) {
      if (!(error instanceof Failure) || error.status !== 429 || waits >= MOST_WAITS) throw error;
      await countDown(error.retryAfter ?? 1, signal, onWait);
    }
  }
}

async function countDown(seconds, signal, onWait) {
  for (let left = Math.ceil(seconds); left > 0; left -= 1) {
    onWait(left);
    await new Promise((resolve, reject) => {
      const stop = () => {
        clearTimeout(timer);
        reject(new DOMException('stopped', 'AbortError'));
      };
      const timer = setTimeout(() => {
        signal?.removeEventListener('abort', stop);
        resolve();
      }, 1000);
      if (signal?.aborted) stop();
      else signal?.addEventListener('abort', stop, { once: true });
    });
  }
}

async function readStream(response, onText) {
  const found = { rheostat: {}, finish: null, usage: null };
  for await (const data of events(response.body)) {
    if (data === '[DONE]') return found;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Failure(0, 'The server sent something that is no answer.');
    }
    if (chunk.error) throw new Failure(chunk.error.status ?? 500, `The answer broke off. ${chunk.error.message ?? ''}`.trim());
    Object.assign(found.rheostat, chunk.rheostat);
    found.usage = chunk.usage ?? found.usage;
    for (const choice of chunk.choices ?? []) {
      if (choice.delta?.content) onText(choice.delta.content);
      found.finish = choice.finish_reason ?? found.finish;
    }
  }
  throw new Failure(0, 'The answer broke off: the connection was closed.');
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith('data:'));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join('\n');
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

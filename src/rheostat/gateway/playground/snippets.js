// A request as a person would write it elsewhere: for curl, and for OpenAI's Python client.

/** A command for a POSIX shell. */
export function asCurl(body, base) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return [`curl ${base}v1/chat/completions \\`, '  -H "Authorization: Bearer $RHEOSTAT_KEY" \\', "  -H 'Content-Type: application/json' \\", `  -d '${json}'`].join('\n');
}

/** A program; the dials, which OpenAI's client does not know, travel in `extra_body`. */
export function asPython(body, base, dialNames) {
  const { model, messages, ...rest } = body;
  const dials = Object.fromEntries(dialNames.map((name) => [name, rest[name]]));
  const others = Object.entries(rest).filter(([name]) => !dialNames.includes(name));
  const lines = [
    'import os', '', 'from openai import OpenAI', '',
    `client = OpenAI(base_url=${python(`${base}v1`)}, api_key=os.environ["RHEOSTAT_KEY"])`,
    'answer = client.chat.completions.create(',
    `    model=${python(model)},`,
    '    messages=[',
    ...messages.map((turn) => `        ${python(turn)},`),
    '    ],',
    ...others.map(([name, value]) => `    ${name}=${python(value)},`),
    `    extra_body=${python(dials)},`,
    ')',
    'print(answer.choices[0].message.content)',
  ];
  return lines.join('\n');
}

/** A value of JSON as a Python literal: the two differ in three words only. */
function python(value) {
  if (value === null) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (Array.isArray(value)) return `[${value.map(python).join(', ')}]`;
  if (typeof value === 'object') return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${python(each)}`).join(', ')}}`;
  return JSON.stringify(value);
}

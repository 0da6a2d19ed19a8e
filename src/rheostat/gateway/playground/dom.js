// Building the page. Text goes in as text only: nothing here or elsewhere parses HTML.

export const $ = (id) => document.getElementById(id);

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; `on…` attributes are listeners, children are nodes or text. */
export function el(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function svg(name, attributes, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A level as the control writes it: 0.75. */
export const levelText = (level) => String(Number(level.toFixed(4)));

/** A measured number: two digits and a proper minus sign; a dash where there is none. */
export function numberText(value, digits = 2) {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–';
  const text = value.toFixed(digits).replace('-', '−');
  return Number(value.toFixed(digits)) === 0 ? (0).toFixed(digits) : text;
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Makes the buttons of a tab list a tab list: arrows, Home and End move, panels follow. */
export function tabs(list, onSelect = () => {}) {
  const buttons = [...list.querySelectorAll('[role=tab]')];
  const select = (button, focus = false) => {
    for (const each of buttons) {
      const isChosen = each === button;
      each.setAttribute('aria-selected', String(isChosen));
      each.tabIndex = isChosen ? 0 : -1;
      $(each.getAttribute('aria-controls')).hidden = !isChosen;
    }
    if (focus) button.focus();
    onSelect(button.id);
  };
  for (const [place, button] of buttons.entries()) {
    button.addEventListener('click', () => select(button));
    button.addEventListener('keydown', (event) => {
      const last = buttons.length - 1;
      const to = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place === 0 ? last : place - 1, Home: 0, End: last };
      if (!(event.key in to)) return;
      event.preventDefault();
      select(buttons[to[event.key]], true);
    });
  }
  return (id) => select($(id));
}

/** Lets a text area grow with its text. */
export function growing(area) {
  const fit = () => {
    area.style.height = 'auto';
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  };
  area.addEventListener('input', fit);
  return fit;
}

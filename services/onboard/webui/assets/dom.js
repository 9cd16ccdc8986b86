// The page is built with these only: text stays text, nothing is parsed.

export function byId(id) {
  return document.getElementById(id);
}

// element makes <name attributes...>children</name>; children are nodes or strings.
export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// announce has a screen reader say a sentence. The region is emptied first, so
// that the same sentence twice is said twice.
export function announce(sentence) {
  const status = byId('status');
  status.replaceChildren();
  setTimeout(() => status.replaceChildren(sentence), 50);
}

// complain shows what is wrong with a field, ties it to the field and moves
// there; an empty sentence takes it back.
export function complain(field, sentence) {
  const error = byId(`${field.id}-error`);
  const hint = `${field.id}-hint`;
  error.replaceChildren(sentence);
  error.hidden = sentence === '';
  if (sentence === '') {
    field.removeAttribute('aria-invalid');
    field.setAttribute('aria-describedby', hint);
    return;
  }
  field.setAttribute('aria-invalid', 'true');
  field.setAttribute('aria-describedby', `${error.id} ${hint}`);
  field.focus();
}

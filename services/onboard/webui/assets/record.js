// The public record of the bootstrap: shown, copied, downloaded.

import { CallError } from './api.js';
import { announce, byId, element } from './dom.js';

const fileName = 'bootstrap-response.json';

const fields = [
  ['ca_pubkey', 'Root CA public key', 'P-256, DER SubjectPublicKeyInfo'],
  ['k256_pubkey', 'Root secp256k1 public key', 'compressed point'],
  ['quote', 'TDX quote', 'its report data is the digest of the two keys'],
  ['eventlog', 'Event log', 'replays to the RTMRs of the quote'],
];

// readRecord picks the four values from an answer of Bootstrap, or throws
// when one of them is not the hex it must be.
export function readRecord(answer) {
  const record = {};
  for (const [name] of fields) {
    const value = answer?.[name];
    if (typeof value !== 'string' || !/^0x([0-9a-f]{2})*$/i.test(value)) {
      throw new CallError('strange', `The service answered, but ${name} is missing or is not hex.`);
    }
    record[name] = value;
  }
  return record;
}

// readReplica picks the one value from an answer of Onboard.
export function readReplica(answer) {
  const value = answer?.k256_pubkey;
  if (typeof value !== 'string' || !/^0x([0-9a-f]{2}){33}$/i.test(value)) {
    throw new CallError('strange', 'The service answered, but k256_pubkey is missing or is not a key.');
  }
  return value;
}

// showReplica fills the replica's view.
export function showReplica(k256) {
  byId('replica-values').replaceChildren(valueBox(fields.find(([name]) => name === 'k256_pubkey'), k256));
}

// showRecord fills the record's view.
export function showRecord(record) {
  const whole = `${JSON.stringify(record, null, 2)}\n`;
  byId('values').replaceChildren(...fields.map((field) => valueBox(field, record[field[0]])));
  byId('whole').replaceChildren(whole);
  byId('copy-all').onclick = (event) => copy(event.currentTarget, whole, byId('whole'), 'The whole answer');
  byId('download').onclick = () => download(whole);
}

function valueBox([name, title, about], value) {
  const bytes = (value.length - 2) / 2;
  const box = element('pre', { class: 'value', id: `value-${name}`, tabindex: '0', role: 'region', 'aria-label': title }, value);
  const button = element('button', { type: 'button', class: 'small', id: `copy-${name}` },
    'Copy', element('span', { class: 'visually-hidden' }, ` ${title}`));
  button.addEventListener('click', () => copy(button, value, box, title));
  const note = bytes === 0 ? 'empty: quotes are switched off' : `${about}, ${bytes.toLocaleString('en')} bytes`;
  return element('div', { class: 'record-value' },
    element('div', { class: 'record-head' },
      element('h3', {}, title, ' ', element('code', {}, name)), button),
    element('p', { class: 'hint' }, note),
    box);
}

// copy uses the clipboard API where the browser has it (https and localhost
// only), else the selection; where that is refused too, the text stays
// selected and the user is told which keys to press.
async function copy(button, text, box, title) {
  if (await toClipboard(text, box)) {
    const label = button.firstChild;
    const before = label.data;
    if (before !== 'Copied') {
      label.data = 'Copied';
      setTimeout(() => { label.data = before; }, 2000);
    }
    announce(`${title}: copied.`);
    return;
  }
  select(box);
  announce(`${title} is selected. Press Control C or Command C to copy it.`);
}

async function toClipboard(text, box) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Permission refused: the selection may still work.
    }
  }
  select(box);
  try {
    if (!document.execCommand('copy')) {
      return false;
    }
  } catch {
    return false;
  }
  window.getSelection().removeAllRanges();
  return true;
}

function select(box) {
  const details = box.closest('details');
  if (details) {
    details.open = true;
  }
  window.getSelection().selectAllChildren(box);
}

function download(text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  const link = element('a', { href: url, download: fileName, hidden: '' });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
  announce(`Download of ${fileName} started.`);
}

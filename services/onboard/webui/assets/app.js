// The way through the page: Bootstrap or Onboard from a peer, domain, Submit,
// record, Finish Setup.

import { post } from './api.js';
import { attemptFor, endAttempt, lastAttempt } from './attempt.js';
import { announce, byId, complain } from './dom.js';
import { showFacts } from './facts.js';
import { readRecord, readReplica, showRecord, showReplica } from './record.js';

const pageTitle = document.title;
const steps = ['start', 'domain', 'record', 'end'];

// Which sections are seen in which view, and which step it belongs to. The
// first section takes the focus.
const views = {
  start: { step: 'start', sections: ['start'] },
  domain: { step: 'domain', sections: ['domain'] },
  progress: { step: 'domain', sections: ['progress'] },
  failed: { step: 'domain', sections: ['failed'] },
  record: { step: 'record', sections: ['record', 'finish'] },
  replica: { step: 'record', sections: ['replica', 'finish'] },
  already: { step: 'record', sections: ['already', 'finish'] },
  ended: { step: 'end', sections: ['ended'] },
};

const domainField = byId('domain');
const sourceField = byId('source');
const tokenField = byId('token');

// fromPeer says which of the two ways the page is on.
let fromPeer = false;

// show turns the page to a view and says so to a screen reader by moving the
// focus to its heading, or to the element given.
function show(name, focus = byId(`${name}-title`)) {
  const view = views[name];
  for (const section of document.querySelectorAll('section[id^="view-"]')) {
    section.hidden = !view.sections.includes(section.id.slice('view-'.length));
  }
  for (const item of document.querySelectorAll('[data-step]')) {
    const distance = steps.indexOf(item.dataset.step) - steps.indexOf(view.step);
    const done = distance < 0 || name === 'ended';
    item.classList.toggle('done', done);
    if (distance === 0) {
      item.setAttribute('aria-current', 'step');
    } else {
      item.removeAttribute('aria-current');
    }
  }
  const slot = view.sections.includes('finish') ? 'finish-token-slot' : 'domain-token-slot';
  byId(slot).append(byId('token-field'));
  document.title = name === 'start' ? pageTitle : `${byId(`${name}-title`).textContent} – ${pageTitle}`;
  focus.focus();
  if (focus.id === `${name}-title`) {
    focus.scrollIntoView({ block: 'nearest' });
  }
}

function token() {
  return tokenField.value.trim();
}

function askForToken(sentence) {
  byId('token-field').hidden = false;
  tokenField.required = true;
  complain(tokenField, sentence);
}

// domainProblem catches what people paste; the service judges the rest.
function domainProblem(domain) {
  if (domain === '') {
    return 'Enter the domain name of this KMS.';
  }
  if (/^[a-z][a-z0-9+.-]*:\/\//i.test(domain) || domain.includes('/')) {
    return 'Enter the name alone, without https:// and without a path.';
  }
  if (/^[^:]*:\d*$/.test(domain)) {
    return 'Enter the name without a port.';
  }
  if (/\s/.test(domain)) {
    return 'A domain name has no spaces.';
  }
  if (/[^\x21-\x7e]/.test(domain)) {
    return 'Enter an international name in its ASCII form, such as xn--bcher-kva.example.';
  }
  return '';
}

// sourceProblem does the same for the URL of the source.
function sourceProblem(source) {
  if (source === '') {
    return 'Enter the URL of the source KMS.';
  }
  if (!/^https:\/\//i.test(source)) {
    return 'The URL must begin with https, as in the example.';
  }
  if (/\s/.test(source)) {
    return 'A URL has no spaces.';
  }
  return '';
}

// choose sets out on one of the two ways.
function choose(peer) {
  fromPeer = peer;
  byId('source-field').hidden = !peer;
  sourceField.required = peer;
  byId('progress-title').replaceChildren(peer ? 'Fetching the root keys' : 'Making the root keys');
  byId('progress-bootstrap').hidden = peer;
  byId('progress-peer').hidden = !peer;
  show('domain', peer ? sourceField : domainField);
}

// submit goes the way that was chosen.
async function submit(domain) {
  byId('progress-domain').replaceChildren(domain);
  byId('progress-source').replaceChildren(sourceField.value.trim());
  byId('ended-host').replaceChildren(domain.includes(':') ? `[${domain}]` : domain);
  show('progress');
  const stop = countSeconds();
  try {
    await (fromPeer ? onboard(domain) : bootstrap(domain));
  } catch (error) {
    explain(error);
  } finally {
    stop();
  }
}

async function bootstrap(domain) {
  const record = readRecord(await post('Bootstrap', attemptFor(domain), token()));
  byId('record-domain').replaceChildren(domain);
  showRecord(record);
  show('record');
  announce('Bootstrap succeeded. The public record is shown.');
}

async function onboard(domain) {
  const request = { source_url: sourceField.value.trim(), domain };
  showReplica(readReplica(await post('Onboard', request, token())));
  show('replica');
  announce('The root keys of the source were taken over.');
}

// explain leads from an error of either way to where it can be mended.
function explain(error) {
  if (error.kind === 'token') {
    show('domain', tokenField);
    askForToken(error.message);
    return;
  }
  if (error.kind === 'refused' && /bootstrap already completed/i.test(error.message)) {
    show('already');
    announce('Bootstrap already completed.');
    return;
  }
  const field = error.kind === 'refused' ? fieldOf(error.message) : null;
  if (field) {
    show('domain', field);
    complain(field, error.message);
    return;
  }
  const lost = error.kind !== 'refused';
  byId('failed-title').replaceChildren(lost ? 'No answer came' : `${fromPeer ? 'Onboarding' : 'Bootstrap'} failed`);
  byId('failed-text').replaceChildren(error.message ?? String(error));
  byId('failed-advice').replaceChildren(advice(lost));
  show('failed');
  announce(`${byId('failed-title').textContent}. ${byId('failed-text').textContent}`);
}

// fieldOf finds the field that a refusal is about.
function fieldOf(message) {
  if (fromPeer) {
    return { source_url: sourceField, domain: domainField }[message.match(/^(source_url|domain):/)?.[1]] ?? null;
  }
  return /\bdomain\b/i.test(message) ? domainField : null;
}

function advice(lost) {
  if (!lost) {
    return 'Mend the cause, then try again. The log of the service says more.';
  }
  return fromPeer
    ? 'The keys may or may not have come over. Trying again is safe: a KMS takes root keys once, and says so when it has them.'
    : 'The keys may or may not have been made. Trying again is safe: it asks for the same bootstrap, and if that one succeeded you get its record.';
}

// countSeconds runs the clock of the progress view until the returned function
// is called.
function countSeconds() {
  const begin = performance.now();
  const tick = () => byId('elapsed').replaceChildren(String(Math.floor((performance.now() - begin) / 1000)));
  tick();
  const timer = setInterval(tick, 1000);
  return () => clearInterval(timer);
}

async function finish() {
  const button = byId('finish');
  finishProblem('');
  complain(tokenField, '');
  button.disabled = true;
  announce('Finishing.');
  try {
    await post('Finish', {}, token());
    ended('The onboarding service has ended. You can close this page.');
  } catch (error) {
    if (error.kind === 'lost' && await isGone()) {
      ended('The reply was cut off, but the onboarding service no longer answers: it has ended.');
      return;
    }
    button.disabled = false;
    if (error.kind === 'token') {
      askForToken(error.message);
      return;
    }
    finishProblem(error.message);
    button.focus();
  }
}

// isGone tells whether nothing listens here any more.
async function isGone() {
  try {
    await fetch('health', { cache: 'no-store' });
    return false;
  } catch {
    return true;
  }
}

function finishProblem(sentence) {
  const problem = byId('finish-error');
  problem.replaceChildren(sentence);
  problem.hidden = sentence === '';
}

function ended(sentence) {
  tokenField.value = '';
  endAttempt();
  byId('ended-text').replaceChildren(sentence);
  byId('facts').hidden = true;
  show('ended');
}

function toggleToken(event) {
  const hidden = tokenField.type === 'password';
  tokenField.type = hidden ? 'text' : 'password';
  event.currentTarget.setAttribute('aria-pressed', String(hidden));
}

function listen() {
  byId('bootstrap').addEventListener('click', () => choose(false));
  byId('onboard-peer').addEventListener('click', () => choose(true));
  byId('back').addEventListener('click', () => show('start', byId(fromPeer ? 'onboard-peer' : 'bootstrap')));
  byId('change').addEventListener('click', () => choose(fromPeer));
  byId('again').addEventListener('click', () => submit(domainField.value.trim()));
  byId('token-show').addEventListener('click', toggleToken);
  sourceField.addEventListener('input', () => complain(sourceField, ''));
  domainField.addEventListener('input', () => complain(domainField, ''));
  tokenField.addEventListener('input', () => complain(tokenField, ''));

  byId('domain-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const domain = domainField.value.trim();
    const problem = domainProblem(domain);
    const peerProblem = fromPeer ? sourceProblem(sourceField.value.trim()) : '';
    complain(domainField, problem);
    complain(sourceField, peerProblem); // the first field last: it gets the focus
    if (problem !== '' || peerProblem !== '') {
      return;
    }
    if (tokenField.required && token() === '') {
      askForToken('Enter the setup token.');
      return;
    }
    complain(tokenField, '');
    submit(domain);
  });
  byId('finish-form').addEventListener('submit', (event) => {
    event.preventDefault();
    finish();
  });
}

function requireToken() {
  byId('token-field').hidden = false;
  tokenField.required = true;
}

async function start() {
  listen();
  domainField.value = lastAttempt()?.domain ?? '';
  if (document.body.dataset.setupTokenRequired === 'true') {
    requireToken();
  }
  byId('app').hidden = false;
  show('start', document.body);
  const info = await showFacts();
  if (info?.setup_token_required === true) {
    requireToken();
  }
}

start();

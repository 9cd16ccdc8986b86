// The panel with what the trust domain says about itself.

import { get } from './api.js';
import { announce, byId, element } from './dom.js';

// showFacts fills the panel and returns the answer, or null where none came.
export async function showFacts() {
  const panel = byId('facts');
  const body = byId('facts-body');
  panel.setAttribute('aria-busy', 'true');
  try {
    const info = await get('GetAttestationInfo');
    body.replaceChildren(...verdict(info), weaknesses(info), factList(info));
    return info;
  } catch (error) {
    body.replaceChildren(...failure(error));
    return null;
  } finally {
    panel.setAttribute('aria-busy', 'false');
  }
}

// verdict is the one thing to read here: whose word is the quote?
function verdict(info) {
  const [tone, title, text] = judge(info);
  return [element('div', { class: `notice ${tone}`, id: 'verdict' }, element('strong', {}, title), element('p', {}, text))];
}

function judge(info) {
  if (info.provider === 'none') {
    return ['warn', 'No evidence', 'Quotes are switched off (core.onboard.quote_enabled). Nothing will prove where the keys were made.'];
  }
  if (info.provider === 'simulator') {
    return ['warn', 'Simulated: not an Intel hardware root',
      'This trust domain is software. Its quotes are real in form but prove nothing about hardware. Use it for tests only.'];
  }
  if (info.trust_root_is_intel !== true) {
    return ['warn', 'Not an Intel hardware root', 'The quote chains to another trust root than Intel’s. Compare its SHA-256 below with the one you expect.'];
  }
  return ['good', 'Intel’s trust root', 'The quote of this trust domain chains to Intel’s root certificate.'];
}

function weaknesses(info) {
  const settings = Array.isArray(info.insecure_settings) ? info.insecure_settings : [];
  if (settings.length === 0) {
    return element('p', { class: 'quiet' }, 'No setting weakens security.');
  }
  const list = element('ul', {}, ...settings.map((name) => element('li', {}, element('code', { class: 'breakable' }, String(name)))));
  return element('div', { class: 'notice warn' }, element('strong', {}, 'Settings that weaken security'), list);
}

function factList(info) {
  const list = element('dl', { class: 'fact-list' });
  const add = (term, value, kind) => {
    list.append(element('div', { class: kind }, element('dt', {}, term), element('dd', {}, value)));
  };
  const text = (value) => (typeof value === 'string' && value !== '' ? value : '—');
  const hex = (value) => (typeof value === 'string' && /^(0x)?[0-9a-f]+$/i.test(value) ? value.replace(/^0x/i, '') : '—');

  add('Provider', text(info.provider), 'word');
  add('TEE', text(info.tee_variant), 'word');
  if (info.site_name) {
    add('Site', text(info.site_name), 'word');
  }
  add('Trust root', info.trust_root_is_intel === true ? 'Intel' : 'other', 'word');
  if (info.provider !== 'none') {
    add('TCB status', text(info.tcb_status) === '—' ? 'not known: no collateral' : text(info.tcb_status), 'word');
  }
  const advisories = Array.isArray(info.advisory_ids) ? info.advisory_ids.map(String) : [];
  if (advisories.length > 0) {
    add('Advisories', advisories.join(', '), 'word');
  }
  add('Trust root SHA-256', hex(info.trust_root_sha256), 'hex');
  add('MRTD', hex(info.mrtd), 'hex');
  const rtmrs = Array.isArray(info.rtmrs) ? info.rtmrs : [];
  for (let i = 0; i < 4; i++) {
    add(`RTMR${i}`, hex(rtmrs[i]), 'hex');
  }
  add('Aggregated measurement', hex(info.mr_aggregated), 'hex');
  add('OS image hash', hex(info.os_image_hash), 'hex');
  add('Device ID', hex(info.device_id), 'hex');
  add('Report data', hex(info.report_data), 'hex');
  return list;
}

function failure(error) {
  const retry = element('button', { type: 'button' }, 'Ask again');
  retry.addEventListener('click', async () => {
    retry.disabled = true;
    const info = await showFacts();
    announce(info === null ? 'The attestation facts are still not available.' : 'The attestation facts are shown.');
    byId('facts-title').setAttribute('tabindex', '-1');
    byId('facts-title').focus();
  });
  return [
    element('div', { class: 'notice bad', id: 'verdict' },
      element('strong', {}, 'No attestation facts'),
      element('p', { class: 'breakable' }, error.message)),
    element('p', { class: 'hint' }, 'A bootstrap with quotes will most likely fail for the same reason.'),
    element('div', { class: 'actions' }, retry),
  ];
}

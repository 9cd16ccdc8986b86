// One attempt at a bootstrap: a domain and the request_id that goes with it.
// The service answers a repeated request_id with the same record, so a reply
// that was lost on the way, or with a reload of the page, can be had again.
// Nothing secret is kept: the setup token never comes here.

const key = 'kms-bootstrap-attempt';

// attemptFor returns the running attempt when it is about this domain, else a
// new one: an id that was sent for one name must not fetch the record for it
// under another.
export function attemptFor(domain) {
  const last = lastAttempt();
  if (last?.domain === domain) {
    return last;
  }
  const attempt = { domain, request_id: randomID() };
  try {
    sessionStorage.setItem(key, JSON.stringify(attempt));
  } catch {
    memory = attempt;
  }
  return attempt;
}

// lastAttempt returns the running attempt, or null.
export function lastAttempt() {
  try {
    const stored = JSON.parse(sessionStorage.getItem(key));
    if (typeof stored?.domain === 'string' && typeof stored.request_id === 'string') {
      return stored;
    }
  } catch {
    // Storage is switched off or was tampered with: the memory will do.
  }
  return memory;
}

// endAttempt forgets it.
export function endAttempt() {
  memory = null;
  try {
    sessionStorage.removeItem(key);
  } catch {
    // There was nothing to forget.
  }
}

let memory = null;

// crypto.randomUUID exists on https and localhost only; this everywhere.
function randomID() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, '0')).join('');
}

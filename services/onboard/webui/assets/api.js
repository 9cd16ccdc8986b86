// Calls to the Onboard service on the page's own origin.

// CallError says why a call brought no answer. kind is one of
//   refused  the service said no; message is its own sentence
//   token    the setup token is missing or wrong
//   lost     no answer came: whether the call had its effect is unknown
//   strange  something answered, but not the Onboard service
export class CallError extends Error {
  constructor(kind, message) {
    super(message);
    this.name = 'CallError';
    this.kind = kind;
  }
}

const timeLimit = 120_000;

// get reads a method without side effects.
export function get(method) {
  return exchange(`prpc/Onboard.${method}?json`, { method: 'GET' });
}

// post calls a method that changes something. An empty token sends none.
export function post(method, message, token) {
  const headers = new Headers({ 'Content-Type': 'application/json' });
  if (token !== '') {
    try {
      headers.set('Authorization', `Bearer ${token}`);
    } catch {
      return Promise.reject(new CallError('token', 'The setup token has a character that cannot be sent.'));
    }
  }
  return exchange(`prpc/Onboard.${method}?json`, { method: 'POST', headers, body: JSON.stringify(message) });
}

async function exchange(url, init) {
  let response;
  let text;
  try {
    const signal = AbortSignal.timeout(timeLimit);
    response = await fetch(url, { ...init, signal, cache: 'no-store', redirect: 'error', mode: 'same-origin' });
    text = await response.text();
  } catch (cause) {
    if (cause?.name === 'TimeoutError') {
      throw new CallError('lost', `The service did not answer within ${timeLimit / 1000} seconds.`);
    }
    throw new CallError('lost', 'The service cannot be reached: the connection failed or was cut.');
  }
  return understand(response, text);
}

function understand(response, text) {
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new CallError('strange', `Something other than the onboarding service answered: ${describe(response)}.`);
  }
  if (response.ok) {
    return answer;
  }
  if (typeof answer?.error !== 'string' || answer.error === '') {
    throw new CallError('strange', `The service answered ${describe(response)} and gave no reason.`);
  }
  if (response.status === 401) {
    throw new CallError('token', `The setup token was refused: ${answer.error}.`);
  }
  throw new CallError('refused', answer.error);
}

function describe(response) {
  return `${response.status} ${response.statusText}`.trim();
}

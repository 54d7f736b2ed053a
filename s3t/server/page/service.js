/* The service, asked over HTTP. A token is kept in this tab's session storage and nowhere else.

   `ask` gives JSON, or throws a Refused with the problem's code: "unauthenticated" and
   "forbidden" of the service itself, "away" where no service answers. */

const TOKEN = "s3t-token";
const PATIENCE = 10_000;

export class Refused extends Error {
  constructor(code, detail) {
    super(detail);
    this.code = code;
  }
}

export function token() {
  return sessionStorage.getItem(TOKEN);
}

export function keepToken(text) {
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

/* Addresses are relative, so that the page works below any path of a proxy. */
export async function ask(path, body = null) {
  const headers = { accept: "application/json" };
  if (token()) headers.authorization = `Bearer ${token()}`;
  if (body) headers["content-type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body ? "POST" : "GET", body: body && JSON.stringify(body), headers,
      cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(PATIENCE),
    });
  } catch {
    throw new Refused("away", "The service does not answer.");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found !== null) return found;
  throw new Refused(found?.code ?? "away", found?.detail ?? `The service answers with ${answer.status}.`);
}

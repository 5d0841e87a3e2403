/** Signatures of Standard Webhooks 1.0 (symmetric, `v1`), for those who receive webhooks; with Web Crypto. */

const PREFIX = "whsec_";

/** The request isn't genuine, or too old: return a 400 or 401 for it, and don't process it. */
export class WebhookVerificationError extends Error {
  override readonly name = "WebhookVerificationError";
}

/** Headers as `fetch`, Node.js, and frameworks have them; names in any case. */
export type WebhookHeaders = Headers | Record<string, string | string[] | undefined>;

export interface VerifyOptions {
  /** How many seconds the sender's clock may differ; 300 without it. */
  tolerance?: number;
  /** The time in seconds, for tests. */
  now?: number;
}

/**
 * Return the JSON of a request that is genuine and recent.
 *
 * `payload` is the body as it came, before anything has parsed it. `secret` is one, or several while one is replaced: one
 * of them has to match one of the signatures. Throws WebhookVerificationError, and TypeError for something that isn't a
 * secret.
 */
export async function verify<T = unknown>(
  payload: string | Uint8Array,
  headers: WebhookHeaders,
  secret: string | readonly string[],
  options: VerifyOptions = {},
): Promise<T> {
  const body = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const secrets = typeof secret === "string" ? [secret] : secret;
  if (secrets.length === 0) throw new TypeError("At least one secret is needed.");
  const id = header(headers, "webhook-id");
  const sent = header(headers, "webhook-timestamp");
  const given = header(headers, "webhook-signature");
  if (!/^\d{1,12}$/.test(sent)) throw new WebhookVerificationError("webhook-timestamp isn't a number of seconds.");
  const difference = (options.now ?? Date.now() / 1000) - Number(sent);
  if (Math.abs(difference) > (options.tolerance ?? 300)) {
    const direction = difference > 0 ? "past" : "future";
    throw new WebhookVerificationError(
      `webhook-timestamp is ${Math.abs(difference).toFixed(0)} seconds in the ${direction}.`,
    );
  }
  const message = signedContent(id, sent, body);
  const signatures = given
    .split(" ")
    .filter((one) => one.startsWith("v1,"))
    .map((one) => decode(one.slice(3)))
    .filter((one) => one !== null);
  const keys = await Promise.all(secrets.map((one) => importKey(one, "verify")));
  // Compared by Web Crypto, in constant time; all of them, so that the time doesn't tell which one matches.
  const matches = await Promise.all(
    keys.flatMap((key) => signatures.map((one) => crypto.subtle.verify("HMAC", key, one, message))),
  );
  if (!matches.includes(true)) throw new WebhookVerificationError("No signature matches.");
  try {
    return JSON.parse(new TextDecoder().decode(body)) as T;
  } catch {
    throw new WebhookVerificationError("The body isn't JSON.");
  }
}

/** Return the `webhook-signature` of a request. `timestamp` is in seconds. */
export async function sign(
  payload: string | Uint8Array,
  id: string,
  timestamp: number,
  secret: string,
): Promise<string> {
  const body = typeof payload === "string" ? new TextEncoder().encode(payload) : payload;
  const key = await importKey(secret, "sign");
  const signature = await crypto.subtle.sign("HMAC", key, signedContent(id, String(timestamp), body));
  return `v1,${btoa(String.fromCharCode(...new Uint8Array(signature)))}`;
}

function header(headers: WebhookHeaders, name: string): string {
  let value: string | string[] | null | undefined;
  if (headers instanceof Headers) {
    value = headers.get(name);
  } else {
    value = Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  }
  const text = Array.isArray(value) ? value[0] : value;
  if (text === undefined || text === null) throw new WebhookVerificationError(`The request has no header ${name}.`);
  return text;
}

function signedContent(id: string, timestamp: string, body: Uint8Array): Uint8Array<ArrayBuffer> {
  const head = new TextEncoder().encode(`${id}.${timestamp}.`);
  const content = new Uint8Array(head.length + body.length);
  content.set(head);
  content.set(body, head.length);
  return content;
}

function importKey(secret: string, usage: "sign" | "verify"): Promise<CryptoKey> {
  const raw = decode(secret.startsWith(PREFIX) ? secret.slice(PREFIX.length) : secret);
  if (raw === null || raw.length < 24 || raw.length > 64) {
    throw new TypeError(`A secret is ${PREFIX} and the base64 of 24 to 64 bytes.`);
  }
  return crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, [usage]);
}

function decode(base64: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

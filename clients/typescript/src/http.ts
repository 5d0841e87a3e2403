/** Requests: how they are made, when they are sent again, and lists that are read page by page. */

import { type DeprecationNotice, Deprecations } from "./deprecations.js";
import { ConnectionFailedError, TriggersError, readProblem } from "./errors.js";

const BASE_DELAY_SECONDS = 0.5;
const LONGEST_DELAY_SECONDS = 8;
const LONGEST_RETRY_AFTER_SECONDS = 60;
const NOT_SENT = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"]);

export type Query = Record<string, string | number | boolean | Date | null | undefined>;

export interface Call {
  method: "GET" | "POST" | "PATCH" | "DELETE";
  path: string;
  query?: Query;
  body?: unknown;
  /** Doing it twice does no harm. */
  repeatable?: boolean;
  /** It carries an Idempotency-Key. */
  keyed?: boolean;
  /** How many seconds the server may take on purpose. */
  wait?: number;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export interface ClientOptions {
  /** Without it, TRIGGERS_API_KEY. */
  apiKey?: string;
  /** Without `/api`. Without it, TRIGGERS_URL, or http://localhost:8000. */
  baseUrl?: string;
  /** How often a request is sent again if that is safe; 3 without it. */
  maxRetries?: number;
  /** How long a response may take, in seconds; 30 without it. */
  timeout?: number;
  /** What is called, once for each endpoint, when a request uses what is deprecated; `console.warn` without it. */
  onDeprecated?: (notice: DeprecationNotice) => void;
  /** Another implementation of `fetch`. */
  fetch?: typeof fetch;
}

interface Page<T> {
  data: T[];
  next_cursor: string | null;
}

/** A list that is read page by page while it is iterated over. */
export class Pages<T> implements AsyncIterable<T> {
  constructor(
    private readonly http: Http,
    private readonly path: string,
    private readonly query: Query = {},
  ) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    for await (const page of this.pages()) yield* page.data;
  }

  /** Iterate over the pages, from a page's `next_cursor` on. */
  async *pages(cursor?: string | null): AsyncGenerator<Page<T>> {
    let next = cursor;
    do {
      const page: Page<T> = await this.http.request<Page<T>>({
        method: "GET",
        path: this.path,
        query: { ...this.query, cursor: next ?? undefined },
        repeatable: true,
      });
      yield page;
      next = page.next_cursor;
    } while (next !== null);
  }
}

/** Sends requests, again if necessary. */
export class Http {
  private readonly apiKey: string;
  private readonly baseUrl: string;
  private readonly maxRetries: number;
  private readonly timeout: number;
  private readonly fetch: typeof fetch;
  private readonly deprecations: Deprecations;

  constructor(options: ClientOptions) {
    const environment = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env ?? {};
    this.apiKey = options.apiKey ?? environment["TRIGGERS_API_KEY"] ?? "";
    this.baseUrl = (options.baseUrl ?? environment["TRIGGERS_URL"] ?? "http://localhost:8000").replace(/\/+$/, "");
    if (this.apiKey === "") throw new TypeError("An API key is needed: pass apiKey, or set TRIGGERS_API_KEY.");
    if (!/^https?:\/\//.test(this.baseUrl)) {
      throw new TypeError(`A base URL begins with http:// or https://, which ${this.baseUrl} doesn't.`);
    }
    this.maxRetries = options.maxRetries ?? 3;
    this.timeout = options.timeout ?? 30;
    this.fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
    this.deprecations = new Deprecations(options.onDeprecated);
  }

  /** Send a request, and return the JSON of its response. Throws TriggersError. */
  async request<T>(call: Call): Promise<T> {
    const seconds = this.timeout + (call.wait ?? 0);
    return this.attempt(call, () => AbortSignal.timeout(seconds * 1000), async (response, retries) => {
      if (response.status === 204 || (call.method === "DELETE" && response.status === 404 && retries > 0)) {
        return undefined as T;
      }
      const text = await response.text();
      try {
        return JSON.parse(text) as T;
      } catch {
        throw new TriggersError(
          "unexpected_response", response.status, "This isn't what the API returns. Is the URL right?",
        );
      }
    });
  }

  /** Open a response that goes on; the caller reads it. Throws TriggersError. */
  async open(call: Call): Promise<Response> {
    return this.attempt(call, () => call.signal, async (response) => response);
  }

  private async attempt<T>(
    call: Call,
    limit: () => AbortSignal | undefined,
    read: (response: Response, retries: number) => Promise<T>,
  ): Promise<T> {
    const [url, init] = this.prepare(call);
    // Servers keep the response to a POST that carries an Idempotency-Key.
    const isRepeatable = call.repeatable || call.keyed;
    for (let retries = 0; ; retries += 1) {
      let error: TriggersError;
      let mayRepeat: boolean;
      try {
        const response = await this.fetch(url, { ...init, signal: limit() ?? null });
        this.deprecations.look(call.method, url, response.headers);
        const isGone = call.method === "DELETE" && response.status === 404 && retries > 0;
        if (response.ok || isGone) return await read(response, retries);
        error = await readProblem(response);
        const wasRefused = response.status === 429 || error.code === "idempotency_key_in_use";
        mayRepeat = wasRefused || (response.status >= 500 && Boolean(isRepeatable));
      } catch (failure) {
        if (failure instanceof TriggersError || call.signal?.aborted) throw failure;
        error = explain(failure);
        mayRepeat = Boolean(isRepeatable) || NOT_SENT.has(codeOf(failure));
      }
      const asked = error.retryAfter ?? 0;
      if (!mayRepeat || retries >= this.maxRetries || asked > LONGEST_RETRY_AFTER_SECONDS) throw error;
      await sleep(Math.max(asked, delay(retries)), call.signal);
    }
  }

  private prepare(call: Call): [string, RequestInit] {
    const url = new URL(this.baseUrl + call.path);
    for (const [name, value] of Object.entries(call.query ?? {})) {
      if (value === null || value === undefined) continue;
      url.searchParams.set(name, value instanceof Date ? value.toISOString() : String(value));
    }
    const headers: Record<string, string> = {
      "X-API-Key": this.apiKey,
      Accept: "application/json",
      ...call.headers,
    };
    if (call.keyed) headers["Idempotency-Key"] = crypto.randomUUID();
    // A redirect isn't followed: it would carry the key to another server.
    const init: RequestInit = { method: call.method, headers, redirect: "manual" };
    if (call.body === undefined) return [url.href, init];
    headers["Content-Type"] = "application/json";
    return [url.href, { ...init, body: JSON.stringify(call.body) }];
  }
}

/** Wait for some seconds. */
export function sleep(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, seconds * 1000);
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    signal?.addEventListener("abort", abort, { once: true });
  });
}

function delay(retry: number): number {
  const longest = Math.min(LONGEST_DELAY_SECONDS, BASE_DELAY_SECONDS * 2 ** retry);
  return longest * (0.5 + Math.random() / 2);
}

function codeOf(failure: unknown): string {
  const cause = failure instanceof Error ? failure.cause : undefined;
  return String((cause as { code?: unknown } | undefined)?.code ?? "");
}

function explain(failure: unknown): ConnectionFailedError {
  const isTimeout = failure instanceof Error && failure.name === "TimeoutError";
  const reason = failure instanceof Error && failure.cause instanceof Error ? failure.cause.message : String(failure);
  return new ConnectionFailedError(isTimeout ? "timeout" : "connection_failed", 0, reason, { cause: failure });
}

/** What the API refuses: an error of the problem's status. Programs look at `code`. */

/** What is wrong with one field: a JSON pointer into the body, `?name` for a parameter, `#Name` for a header. */
export interface FieldError {
  pointer: string;
  detail: string;
}

/** A request that didn't succeed. */
export class TriggersError extends Error {
  /** The problem's stable word, for programs. */
  readonly code: string;
  /** The HTTP status, or 0 if there was no response. */
  readonly status: number;
  /** A sentence for people. */
  readonly detail: string;
  readonly errors: readonly FieldError[];
  /** Names the request in the server's log. */
  readonly requestId: string | null;
  /** In how many seconds to come back, if the server said so. */
  readonly retryAfter: number | null;
  /** The whole problem document. */
  readonly members: Readonly<Record<string, unknown>>;

  constructor(
    code: string,
    status: number,
    detail: string,
    more: { members?: Record<string, unknown>; retryAfter?: number | null; cause?: unknown } = {},
  ) {
    const members = more.members ?? {};
    const errors = Array.isArray(members["errors"]) ? (members["errors"] as FieldError[]) : [];
    const faults = errors.map((error) => `${error.pointer} ${error.detail}`).join("; ");
    const told = faults ? `${detail.replace(/\.$/, "")}: ${faults}` : detail;
    super(`${told} (${code})`, { cause: more.cause });
    this.name = new.target.name;
    this.code = code;
    this.status = status;
    this.detail = detail;
    this.errors = errors;
    this.requestId = typeof members["request_id"] === "string" ? members["request_id"] : null;
    this.retryAfter = more.retryAfter ?? null;
    this.members = members;
  }
}

/** The server can't be reached, or the connection ended before its response. */
export class ConnectionFailedError extends TriggersError {}
/** 400, and other statuses that say the request is wrong: `errors` names each fault. */
export class BadRequestError extends TriggersError {}
/** 401: there is no key, or it isn't valid. */
export class AuthenticationError extends TriggersError {}
/** 403: the key may not do this. */
export class PermissionDeniedError extends TriggersError {}
/** 404: there is no such thing in the key's organization. */
export class NotFoundError extends TriggersError {}
/** 409: it doesn't go with what is there. */
export class ConflictError extends TriggersError {}
/** The `dedup_id` was used for an event with different content, which `members.event_id` names. */
export class DedupConflictError extends ConflictError {}
/** 410: what the cursor stands for may be gone. */
export class GoneError extends TriggersError {}
/** 413: the body, or the batch, is larger than the server takes. */
export class TooLargeError extends TriggersError {}
/** 429: come back in `retryAfter` seconds. */
export class RateLimitedError extends TriggersError {}
/** 5xx: a fault of the server, or of what is in front of it. */
export class ServerError extends TriggersError {}

type ErrorClass = typeof TriggersError;

const BY_CODE: Record<string, ErrorClass> = { dedup_conflict: DedupConflictError };
const BY_STATUS: Record<number, ErrorClass> = {
  401: AuthenticationError,
  403: PermissionDeniedError,
  404: NotFoundError,
  409: ConflictError,
  410: GoneError,
  413: TooLargeError,
  429: RateLimitedError,
};

/** Return the error for a response, also for one that isn't a problem document. */
export async function readProblem(response: Response): Promise<TriggersError> {
  const { status } = response;
  const retryAfter = parseRetryAfter(response.headers.get("retry-after"));
  let members: Record<string, unknown> = {};
  try {
    const found: unknown = await response.json();
    if (typeof found === "object" && found !== null) members = found as Record<string, unknown>;
  } catch {
    // Whatever is in front of the server may send something else.
  }
  const code = typeof members["code"] === "string" ? members["code"] : `http_${status}`;
  const detail =
    typeof members["detail"] === "string"
      ? members["detail"]
      : `The server returned the status ${status}, without a problem document.` +
        (status >= 500 ? "" : " Is it the right URL?");
  const Class = BY_CODE[code] ?? BY_STATUS[status] ?? (status >= 500 ? ServerError : BadRequestError);
  return new Class(code, status, detail, { members, retryAfter });
}

/** Return the seconds of a Retry-After, which is a number of them or a date (RFC 9110 §10.2.3). */
export function parseRetryAfter(value: string | null, now: number = Date.now()): number | null {
  if (value === null || value.trim() === "") return null;
  if (/^\d+$/.test(value.trim())) return Number(value);
  const when = Date.parse(value);
  return Number.isNaN(when) ? null : Math.max(0, (when - now) / 1000);
}

/** What the server says is deprecated: `Deprecation` (RFC 9745) and `Sunset` (RFC 8594). */

/** A request that uses a part of the API that will be taken away. */
export interface DeprecationNotice {
  /** Such as `GET /api/events/{id}`; a parameter or a member of the body can be what is deprecated, too. */
  endpoint: string;
  /** Since when, if the server said so. */
  since: Date | null;
  /** Until when it works, if that is decided. */
  sunset: Date | null;
  /** A URL that says what to use instead, or null. */
  documentation: string | null;
}

// An id in a path: a UUID, or the number of an attempt.
const ID = /(?<=\/)(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9]+)(?=\/|$)/gi;
const LINK = /<([^>]*)>[^,]*;\s*rel="?deprecation"?/i;

/** Tells of each endpoint once. */
export class Deprecations {
  private readonly seen = new Set<string>();

  constructor(private readonly tell: (notice: DeprecationNotice) => void = warn) {}

  look(method: string, url: string, headers: Headers): void {
    const deprecation = headers.get("deprecation");
    if (deprecation === null) return;
    const endpoint = `${method} ${new URL(url).pathname.replace(ID, "{id}")}`;
    if (this.seen.has(endpoint)) return;
    this.seen.add(endpoint);
    const link = LINK.exec(headers.get("link") ?? "")?.[1];
    this.tell({
      endpoint,
      // `true`, as before RFC 9745, says no time.
      since: validDate(Number(deprecation.trim().replace(/^@/, "")) * 1000),
      sunset: validDate(Date.parse(headers.get("sunset") ?? "")),
      documentation: link === undefined ? null : new URL(link, url).href,
    });
  }
}

function validDate(milliseconds: number): Date | null {
  const date = new Date(milliseconds);
  return Number.isNaN(date.getTime()) ? null : date;
}

// Clients are often made for a request each: what was said is said for all of them.
const said = new Set<string>();

function warn({ endpoint, since, sunset, documentation }: DeprecationNotice): void {
  let text = `triggers-client: a request to ${endpoint} uses what is deprecated`;
  if (since !== null) text += ` since ${since.toISOString().slice(0, 10)}`;
  if (sunset !== null) text += ` and works until ${sunset.toISOString().slice(0, 10)}`;
  if (documentation !== null) text += `: see ${documentation}`;
  if (said.has(text)) return;
  said.add(text);
  console.warn(text);
}

/** The client: the operations of the API, by what they are about. */

import { Http, Pages, sleep, type ClientOptions, type Query } from "./http.js";
import type { components, operations } from "./schema.js";

type Schemas = components["schemas"];
type QueryOf<Name extends keyof operations> = operations[Name] extends { parameters: { query?: infer Found } }
  ? Omit<NonNullable<Found>, "cursor" | "format">
  : never;

export type Event = Schemas["Event"];
export type EventWithDeliveries = Schemas["EventWithDeliveries"];
export type EventReceipt = Schemas["EventReceipt"];
export type BatchReceipt = Schemas["BatchReceipt"];
export type Subscription = Schemas["Subscription"];
export type NewSubscription = Schemas["NewSubscription"];
export type Delivery = Schemas["Delivery"];
export type DeliveryWithAttempts = Schemas["DeliveryWithAttempts"];
export type Attempt = Schemas["Attempt"];
export type AttemptWithExchange = Schemas["AttemptWithExchange"];
export type EventType = Schemas["EventType"];
export type InboxEvent = Schemas["InboxEvent"];
export type InboxPage = Schemas["InboxPage"];

/** An event to send. Without a `dedupId` it gets a random one, so that it can be sent again. */
export interface NewEvent {
  type: string;
  data?: unknown;
  dedupId?: string;
}

/** An event of a stream. `cursor` is what to begin with to get what comes after it. */
export interface StreamedEvent {
  cursor: string;
  event: InboxEvent;
}

/** Which events to settle, and as whose lease. */
export interface Settle {
  leaseId?: string | null;
  inbox?: string;
}

function path(...parts: string[]): string {
  return `/api/${parts.map(encodeURIComponent).join("/")}`;
}

function documentOf(event: NewEvent): Schemas["NewEventRequest"] {
  return { type: event.type, data: event.data ?? null, dedup_id: event.dedupId ?? crypto.randomUUID() };
}

class Resource {
  constructor(protected readonly http: Http) {}

  protected get<T>(at: string, query: Query = {}, wait = 0): Promise<T> {
    return this.http.request<T>({ method: "GET", path: at, query, repeatable: true, wait });
  }

  /** POST something that does no harm the second time. */
  protected repeat<T>(at: string, body?: unknown): Promise<T> {
    return this.http.request<T>({ method: "POST", path: at, body, repeatable: true });
  }

  /** POST something that makes something. */
  protected make<T>(at: string, body?: unknown): Promise<T> {
    return this.http.request<T>({ method: "POST", path: at, body, keyed: true });
  }

  protected change<T>(at: string, body: unknown): Promise<T> {
    return this.http.request<T>({ method: "PATCH", path: at, body, repeatable: true });
  }

  protected remove(at: string): Promise<void> {
    return this.http.request<void>({ method: "DELETE", path: at, repeatable: true });
  }
}

class Events extends Resource {
  /** Send an event. The same `dedupId` with the same content is a `duplicate`, however often it is sent. */
  send(type: string, data: unknown = null, options: { dedupId?: string } = {}): Promise<EventReceipt> {
    return this.repeat(path("events"), documentOf({ type, data, ...options }));
  }

  /** Send several events in one request. The receipt says for each what came of it. */
  sendBatch(events: readonly NewEvent[]): Promise<BatchReceipt> {
    return this.repeat(path("events", "batch"), events.map(documentOf));
  }

  list(query: QueryOf<"listEvents"> = {}): Pages<Event> {
    return new Pages(this.http, path("events"), query);
  }

  /** Return an event with its deliveries. */
  retrieve(eventId: string): Promise<EventWithDeliveries> {
    return this.get(path("events", eventId));
  }
}

class Subscriptions extends Resource {
  list(query: QueryOf<"listSubscriptions"> = {}): Pages<Subscription> {
    return new Pages(this.http, path("subscriptions"), query);
  }

  retrieve(subscriptionId: string): Promise<Subscription> {
    return this.get(path("subscriptions", subscriptionId));
  }

  /** Subscribe an endpoint, or make an inbox. The secret is in this response and can't be read again. */
  create(subscription: Schemas["SubscriptionCreateRequest"]): Promise<NewSubscription> {
    return this.make(path("subscriptions"), subscription);
  }

  update(subscriptionId: string, changes: Schemas["PatchedSubscriptionChangeRequest"]): Promise<Subscription> {
    return this.change(path("subscriptions", subscriptionId), changes);
  }

  /** Delete a subscription; what waits for it is cancelled. */
  delete(subscriptionId: string): Promise<void> {
    return this.remove(path("subscriptions", subscriptionId));
  }

  enable(subscriptionId: string): Promise<Subscription> {
    return this.repeat(path("subscriptions", subscriptionId, "enable"));
  }

  disable(subscriptionId: string, reason?: string): Promise<Subscription> {
    return this.repeat(path("subscriptions", subscriptionId, "disable"), reason === undefined ? {} : { reason });
  }

  /** Replace the secret. Requests are signed with the old one, too, for `overlap_seconds`. */
  rotateSecret(
    subscriptionId: string,
    options: Schemas["SecretRotateRequest"] = {},
  ): Promise<Schemas["RotatedSubscription"]> {
    return this.make(path("subscriptions", subscriptionId, "rotate-secret"), options);
  }

  /** Show the request that an event would be sent as. */
  preview(subscriptionId: string, event: Schemas["PreviewRequestRequest"]): Promise<Schemas["Preview"]> {
    return this.repeat(path("subscriptions", subscriptionId, "preview"), event);
  }

  /** Send a test event to the endpoint now, and return what came of it. */
  test(subscriptionId: string): Promise<Schemas["EndpointTest"]> {
    // An attempt takes as long as the endpoint does, which is at most half a minute by default.
    return this.http.request({ method: "POST", path: path("subscriptions", subscriptionId, "test"), wait: 30 });
  }
}

class Deliveries extends Resource {
  list(query: QueryOf<"listDeliveries"> = {}): Pages<Delivery> {
    return new Pages(this.http, path("deliveries"), query);
  }

  /** Return a delivery with its attempts. */
  retrieve(deliveryId: string): Promise<DeliveryWithAttempts> {
    return this.get(path("deliveries", deliveryId));
  }

  /** Return an attempt with what went over the wire. */
  attempt(deliveryId: string, number: number): Promise<AttemptWithExchange> {
    return this.get(path("deliveries", deliveryId, "attempts", String(number)));
  }

  /** Make one more attempt now. */
  retry(deliveryId: string): Promise<Delivery> {
    return this.make(path("deliveries", deliveryId, "retry"));
  }

  /** Give up a delivery of an ordering key, so that the next one of the key is sent. */
  skip(deliveryId: string): Promise<Delivery> {
    return this.make(path("deliveries", deliveryId, "skip"));
  }
}

class EventTypes extends Resource {
  list(query: QueryOf<"listEventTypes"> = {}): Pages<EventType> {
    return new Pages(this.http, path("event-types"), query);
  }

  retrieve(eventTypeId: string): Promise<EventType> {
    return this.get(path("event-types", eventTypeId));
  }

  create(eventType: Schemas["EventTypeCreateRequest"]): Promise<EventType> {
    return this.make(path("event-types"), eventType);
  }

  update(eventTypeId: string, changes: Schemas["PatchedEventTypeChangeRequest"]): Promise<EventType> {
    return this.change(path("event-types", eventTypeId), changes);
  }

  delete(eventTypeId: string): Promise<void> {
    return this.remove(path("event-types", eventTypeId));
  }
}

class Inbox extends Resource {
  /** Lease the oldest events for `visibility` seconds; `wait` for up to 20 seconds if there is nothing. */
  fetch(query: Omit<QueryOf<"fetchInbox">, "status" | "offset"> = {}): Promise<InboxPage> {
    return this.get(path("inbox"), query as Query, Number(query.wait ?? 0));
  }

  /** Acknowledge events: they are delivered. */
  ack(eventIds: readonly string[], options: Settle = {}): Promise<Schemas["InboxAcknowledged"]> {
    return this.settle("ack", eventIds, options, {});
  }

  /** Give events back: others can fetch them at once, or after `delay` seconds. */
  nack(eventIds: readonly string[], options: Settle & { delay?: number } = {}): Promise<Schemas["InboxGivenBack"]> {
    return this.settle("nack", eventIds, options, { delay: options.delay });
  }

  /** Let the leases of events end in `visibility` seconds from now. */
  extend(
    eventIds: readonly string[],
    options: Settle & { visibility?: number } = {},
  ): Promise<Schemas["InboxExtended"]> {
    return this.settle("extend", eventIds, options, { visibility: options.visibility });
  }

  private settle<T>(action: string, eventIds: readonly string[], options: Settle, more: object): Promise<T> {
    const { leaseId, inbox } = options;
    return this.repeat(path("inbox", action), { event_ids: eventIds, lease_id: leaseId ?? undefined, inbox, ...more });
  }

  /** Iterate over the log's pages, to what is there now. Keep the last page's `next_cursor` to go on later. */
  async *log(
    cursor = "",
    query: { inbox?: string; limit?: number; type?: string } = {},
  ): AsyncGenerator<InboxPage> {
    for (let next = cursor; ; ) {
      const page: InboxPage = await this.get<InboxPage>(path("inbox"), { ...query, cursor: next });
      yield page;
      if (!page.has_more || page.next_cursor === null) return;
      next = page.next_cursor;
    }
  }

  /**
   * Follow the log without an end, from a cursor on. A connection that ends is opened again, and goes on after the last
   * event. `signal` ends it, with its reason as the error.
   */
  async *stream(
    cursor = "latest",
    options: { inbox?: string; type?: string; signal?: AbortSignal } = {},
  ): AsyncGenerator<StreamedEvent> {
    const { signal, ...query } = options;
    let place = cursor;
    for (;;) {
      signal?.throwIfAborted();
      const response = await this.http.open({
        method: "GET",
        path: path("inbox", "stream"),
        query: { ...query, cursor: place },
        repeatable: true,
        headers: { Accept: "text/event-stream" },
        ...(signal ? { signal } : {}),
      });
      try {
        for await (const [id, data] of serverSentEvents(response)) {
          place = id || place;
          if (data !== "") yield { cursor: place, event: JSON.parse(data) as InboxEvent };
        }
      } catch (error) {
        // What was broken off begins anew; an error of the caller or of the data is not ours to hide.
        if (signal?.aborted || error instanceof SyntaxError) throw error;
      }
      await sleep(1, signal);
    }
  }
}

/** Iterate over the id and the data of each event; the data is empty for one that only has an id. */
async function* serverSentEvents(response: Response): AsyncGenerator<[string, string]> {
  if (response.body === null) return;
  const reader = response.body.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>).getReader();
  let rest = "";
  let id = "";
  let data: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          yield [id, data.join("\n")];
          data = [];
        } else if (line.startsWith("id:")) {
          id = line.slice(3).trim();
        } else if (line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

/** The API. */
export class TriggersClient {
  readonly events: Events;
  readonly subscriptions: Subscriptions;
  readonly deliveries: Deliveries;
  readonly eventTypes: EventTypes;
  readonly inbox: Inbox;
  private readonly http: Http;

  constructor(options: ClientOptions = {}) {
    this.http = new Http(options);
    this.events = new Events(this.http);
    this.subscriptions = new Subscriptions(this.http);
    this.deliveries = new Deliveries(this.http);
    this.eventTypes = new EventTypes(this.http);
    this.inbox = new Inbox(this.http);
  }

  /** Tell whose key this is, and what it may do. */
  me(): Promise<Schemas["Me"]> {
    return this.http.request({ method: "GET", path: path("me"), repeatable: true });
  }
}

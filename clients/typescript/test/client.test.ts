/** What the packed client does against a server: TRIGGERS_URL and TRIGGERS_API_KEY.  Run by tests/clients/test_typescript.py. */

import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { after, test } from "node:test";

import {
  AuthenticationError,
  BadRequestError,
  ConnectionFailedError,
  DedupConflictError,
  NotFoundError,
  RateLimitedError,
  ServerError,
  TriggersClient,
  WebhookVerificationError,
  sign,
  verify,
} from "triggers-client";

const client = new TriggersClient();
const type = `test.ts${Math.random().toString(36).slice(2)}`;

interface Received {
  headers: IncomingMessage["headers"];
  body: string;
}

const servers: Server[] = [];
after(() => servers.forEach((server) => server.close()));

/** Start a server that gathers requests; `respond` chooses the response by the number of the request, from 1. */
async function serve(respond: (number: number, response: ServerResponse) => void): Promise<[string, Received[]]> {
  const received: Received[] = [];
  const server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on("data", (chunk: Buffer) => chunks.push(chunk));
    request.on("end", () => {
      received.push({ headers: request.headers, body: Buffer.concat(chunks).toString() });
      respond(received.length, response);
    });
  });
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return [`http://127.0.0.1:${(server.address() as AddressInfo).port}`, received];
}

function reply(response: ServerResponse, status: number, body: unknown = {}, headers: Record<string, string> = {}): void {
  response.writeHead(status, { "content-type": "application/json", connection: "close", ...headers });
  response.end(JSON.stringify(body));
}

async function until<T>(read: () => Promise<T | undefined> | T | undefined): Promise<T> {
  for (let round = 0; round < 1200; round += 1) {
    const found = await read();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`it didn't come: ${read}`);
}

test("an event arrives, verified, and its delivery can be read", async () => {
  const [url, received] = await serve((_, response) => reply(response, 200));
  const made = await client.subscriptions.create({ url: `${url}/hook`, event_types: [type] });
  const receipt = await client.events.send(type, { id: 17 });
  assert.equal(receipt.status, "accepted");
  const [request] = await until(() => (received.length > 0 ? received : undefined));
  assert.ok(request && made.secret);
  const body = await verify<{ id: string; data: unknown }>(request.body, request.headers, ["whsec_" + "A".repeat(32), made.secret]);
  assert.deepEqual([body.id, body.data], [receipt.id, { id: 17 }]);
  const delivery = await until(async () => {
    for await (const one of client.deliveries.list({ subscription: made.id, status: "delivered" })) return one;
    return undefined;
  });
  assert.equal((await client.deliveries.retrieve(delivery.id)).attempts[0]?.status_code, 200);
  assert.equal((await client.deliveries.attempt(delivery.id, 1)).exchange?.request.method, "POST");
  await client.deliveries.retry(delivery.id);
  await until(() => (received.length > 1 ? true : undefined));
  assert.equal((await client.events.retrieve(receipt.id)).deliveries.length, 1);
  assert.equal((await client.subscriptions.update(made.id, { description: "New" })).description, "New");
  const preview = await client.subscriptions.preview(made.id, { type, data: { n: 1 }, transform: "{m: data.n}" });
  assert.equal(preview.request?.body, '{"m":1}');
  assert.ok((await client.subscriptions.test(made.id)).succeeded);
  assert.notEqual((await client.subscriptions.rotateSecret(made.id)).secret, made.secret);
  assert.equal((await client.subscriptions.disable(made.id, "Moving")).state, "disabled");
  assert.equal((await client.subscriptions.enable(made.id)).state, "active");
  await client.subscriptions.delete(made.id);
  await assert.rejects(client.subscriptions.retrieve(made.id), NotFoundError);
});

test("lists are read page by page", async () => {
  const batch = await client.events.sendBatch([0, 1, 2].map((data) => ({ type: `${type}.list`, data })));
  assert.equal(batch.accepted, 3);
  const list = client.events.list({ type: `${type}.list`, limit: 2 });
  const pages = [];
  for await (const page of list.pages()) pages.push(page);
  assert.deepEqual(pages.map((page) => page.data.map((event) => event.data)), [[2, 1], [0]]);
  const again = [];
  for await (const event of list) again.push(event.data);
  assert.deepEqual(again, [2, 1, 0]);
});

test("refusals are errors that say why", async () => {
  const first = await client.events.send(type, 1, { dedupId: type });
  await assert.rejects(client.events.send(type, 2, { dedupId: type }), (error: unknown) => {
    assert.ok(error instanceof DedupConflictError);
    assert.deepEqual([error.name, error.code, error.status], ["DedupConflictError", "dedup_conflict", 409]);
    assert.equal(error.members["event_id"], first.id);
    return true;
  });
  await assert.rejects(client.events.send(""), (error: unknown) => {
    assert.ok(error instanceof BadRequestError);
    assert.equal(error.errors[0]?.pointer, "/type");
    assert.ok(error.requestId);
    return true;
  });
  await assert.rejects(new TriggersClient({ apiKey: "wrong" }).me(), AuthenticationError);
  assert.ok((await client.me()).organization.name);
});

test("the catalog", async () => {
  const made = await client.eventTypes.create({ name: type, examples: [{ id: 1 }] });
  assert.deepEqual((await client.eventTypes.retrieve(made.id)).examples, [{ id: 1 }]);
  assert.equal((await client.eventTypes.update(made.id, { description: "New" })).description, "New");
  for await (const one of client.eventTypes.list({ name: type })) assert.equal(one.id, made.id);
  await client.eventTypes.delete(made.id);
});

test("an inbox is fetched, acknowledged, logged, and streamed", async () => {
  const inbox = type.replace(".", "-");
  const made = await client.subscriptions.create({ kind: "inbox", inbox, event_types: [`${type}.inbox`] });
  const ids: string[] = [];
  for (const data of [0, 1]) ids.push((await client.events.send(`${type}.inbox`, data)).id);
  const seen: string[] = [];
  let isFirst = true;
  while (seen.length < 2) {
    const { events, lease_id } = await client.inbox.fetch({ inbox, wait: 20 });
    const found = events.map((event) => event.id);
    if (found.length === 0) continue;
    assert.equal((await client.inbox.extend(found, { leaseId: lease_id, inbox, visibility: 60 })).failed, 0);
    if (isFirst) {
      assert.equal((await client.inbox.nack(found, { leaseId: lease_id, inbox })).failed, 0);
      isFirst = false;
      continue;
    }
    assert.equal((await client.inbox.ack(found, { leaseId: lease_id, inbox })).failed, 0);
    seen.push(...found);
  }
  assert.deepEqual(seen, ids);
  const logged: unknown[] = [];
  for await (const page of client.inbox.log("", { inbox, limit: 1 })) logged.push(...page.events.map((one) => one.payload));
  assert.deepEqual(logged, [0, 1]);
  const ended = new AbortController();
  const streamed: unknown[] = [];
  for await (const { event } of client.inbox.stream("", { inbox, signal: ended.signal })) {
    streamed.push(event.payload);
    if (streamed.length === 2) await client.events.send(`${type}.inbox`, "live");
    if (streamed.length === 3) break;
  }
  assert.deepEqual(streamed, [0, 1, "live"]);
  ended.abort();
  await client.subscriptions.delete(made.id);
});

test("what can be sent again is, with the same dedup_id, and what can't isn't", async () => {
  const receipt = { id: "e", status: "accepted", message: "" };
  const [url, received] = await serve((number, response) => {
    if (number === 1) response.destroy();
    else if (number === 2) reply(response, 429, {}, { "retry-after": "0" });
    else reply(response, 202, receipt);
  });
  const other = new TriggersClient({ baseUrl: url, apiKey: "key" });
  assert.deepEqual(await other.events.send("a"), receipt);
  assert.equal(new Set(received.map((one) => one.body)).size, 1);
  assert.equal(received.length, 3);

  const [faulty, requests] = await serve((_, response) => reply(response, 500));
  const another = new TriggersClient({ baseUrl: faulty, apiKey: "key" });
  await assert.rejects(another.subscriptions.create({ url, event_types: ["*"] }), ServerError);
  await assert.rejects(another.subscriptions.test("s"), ServerError);
  const keys = requests.map((one) => one.headers["idempotency-key"]);
  assert.equal(requests.length, 5); // four times with the same key, and a test event once
  assert.match(String(keys[0]), /^[0-9a-f-]{36}$/);
  assert.equal(new Set(keys.slice(0, 4)).size, 1);

  const [busy] = await serve((_, response) => reply(response, 429, {}, { "retry-after": "3600" }));
  await assert.rejects(new TriggersClient({ baseUrl: busy, apiKey: "key" }).me(), (error: unknown) => {
    assert.ok(error instanceof RateLimitedError);
    assert.equal(error.retryAfter, 3600);
    return true;
  });
  const [gone] = await serve((number, response) => (number === 1 ? response.destroy() : reply(response, 404)));
  await new TriggersClient({ baseUrl: gone, apiKey: "key" }).subscriptions.delete("s");
  const [elsewhere] = await serve((_, response) => reply(response, 302, {}, { location: url }));
  await assert.rejects(new TriggersClient({ baseUrl: elsewhere, apiKey: "key" }).me(), BadRequestError);
  assert.equal(received.length, 3);
  const nobody = new TriggersClient({ baseUrl: "http://127.0.0.1:1", apiKey: "key", maxRetries: 0 });
  await assert.rejects(nobody.me(), ConnectionFailedError);
});

test("what is deprecated is told once for each endpoint", async () => {
  const headers = {
    deprecation: "@1801353600",
    sunset: "Sat, 31 Jul 2027 00:00:00 GMT",
    link: '<https://example.com/next>; rel="next", </api/docs>; rel="deprecation"; type="text/html"',
  };
  const [url] = await serve((_, response) => reply(response, 200, {}, headers));
  const told: unknown[] = [];
  const other = new TriggersClient({ baseUrl: url, apiKey: "key", onDeprecated: (notice) => told.push(notice) });
  for (const id of ["0198f2d0-6d3c-7a52-9b1e-2f4c8a1b3d5e", "0198f2d1-6d3c-7a52-9b1e-2f4c8a1b3d5e"]) {
    await other.events.retrieve(id);
  }
  assert.deepEqual(told, [
    {
      endpoint: "GET /api/events/{id}",
      since: new Date("2027-01-31T00:00:00Z"),
      sunset: new Date("2027-07-31T00:00:00Z"),
      documentation: `${url}/api/docs`,
    },
  ]);
  await other.me();
  assert.equal(told.length, 2);
});

test("signatures of Standard Webhooks are verified", async () => {
  const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
  const body = '{"test": 2432232314}';
  const now = 1614265330;
  const signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
  const headers = {
    "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": String(now),
    "webhook-signature": `v1a,bm9uZQ== v1,bm90IGl0 ${signature}`,
  };
  assert.deepEqual(await verify(body, headers, secret, { now }), { test: 2432232314 });
  assert.deepEqual(await verify(new TextEncoder().encode(body), new Headers(headers), secret, { now: now + 300 }), {
    test: 2432232314,
  });
  assert.equal(await sign(body, headers["Webhook-Id"], now, secret), signature);
  const refuse = (...given: Parameters<typeof verify>): Promise<void> =>
    assert.rejects(verify(...given), WebhookVerificationError);
  await refuse(body, headers, secret, { now: now + 301 });
  await refuse(body, headers, secret, { now: now - 301 });
  await refuse(`${body} `, headers, secret, { now });
  await refuse(body, { ...headers, "webhook-signature": signature.replace("v1", "v2") }, secret, { now });
  await refuse(body, { ...headers, "webhook-signature": "v1,\u00e9" }, secret, { now });
  await refuse(body, { ...headers, "webhook-timestamp": "soon" }, secret, { now });
  await refuse(body, { ...headers, "webhook-signature": undefined }, secret, { now });
  await refuse(body, headers, `whsec_${"A".repeat(32)}`, { now });
  await assert.rejects(verify(body, headers, "whsec_c2hvcnQ=", { now }), TypeError);
});

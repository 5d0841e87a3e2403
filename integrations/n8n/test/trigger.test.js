'use strict';

// Against the server in TRIGGERS_URL, with the key in TRIGGERS_KEY: `make integrations` starts one.
const assert = require('node:assert/strict');
const http = require('node:http');
const { once } = require('node:events');
const { after, before, test } = require('node:test');

const { TriggersApi } = require('../credentials/TriggersApi.credentials');
const { TriggersApiTrigger } = require('../nodes/TriggersApi/TriggersApiTrigger.node');

const url = process.env.TRIGGERS_URL;
const key = process.env.TRIGGERS_KEY;
const node = new TriggersApiTrigger();
const { checkExists, create, delete: remove } = node.webhookMethods.default;

// What n8n gives a node: the parts that this one uses.
function contextOf(webhookUrl, events, staticData, received) {
  return {
    getCredentials: async () => ({ url, apiKey: key }),
    getWorkflowStaticData: () => staticData,
    getNodeWebhookUrl: () => webhookUrl,
    getNodeParameter: () => events,
    getRequestObject: () => received,
    getHeaderData: () => received.headers,
    getBodyData: () => JSON.parse(received.rawBody.toString()),
    getResponseObject: () => ({
      status(code) {
        received.status = code;
        return this;
      },
      send() {
        return this;
      },
      end() {},
    }),
    helpers: {
      async httpRequestWithAuthentication(name, options) {
        assert.equal(name, new TriggersApi().name);
        const target = new URL(options.url);
        Object.entries(options.qs || {}).forEach(([one, value]) => target.searchParams.set(one, value));
        const response = await fetch(target, {
          method: options.method,
          headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
          body: options.body && JSON.stringify(options.body),
        });
        const text = await response.text();
        if (!response.ok) {
          throw new Error(`${response.status} ${text}`);
        }
        return text ? JSON.parse(text) : undefined;
      },
    },
  };
}

let server;
const requests = [];

before(async () => {
  server = http.createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      requests.push({ headers: request.headers, rawBody: Buffer.concat(parts) });
      response.writeHead(200).end();
      server.emit('received');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
});

after(() => server.close());

test('the node subscribes, starts a workflow with genuine events only, and unsubscribes', async () => {
  const webhookUrl = `http://127.0.0.1:${server.address().port}/webhook`;
  const data = {};
  const context = contextOf(webhookUrl, ['n8n.tested'], data);
  assert.equal(await checkExists.call(context), false);
  assert.equal(await create.call(context), true);
  assert.equal(await checkExists.call(context), true);
  const arrived = once(server, 'received');
  await fetch(`${url}/api/events`, {
    method: 'POST',
    headers: { 'X-API-Key': key, 'Content-Type': 'application/json' },
    body: JSON.stringify({ type: 'n8n.tested', data: { n: 1 } }),
  });
  await arrived;
  const started = await node.webhook.call(contextOf(webhookUrl, [], data, requests[0]));
  assert.equal(started.workflowData[0][0].json.type, 'n8n.tested');
  assert.deepEqual(started.workflowData[0][0].json.data, { n: 1 });
  const forged = { ...requests[0], rawBody: Buffer.from('{"type":"n8n.tested","data":{"n":2}}') };
  assert.deepEqual(await node.webhook.call(contextOf(webhookUrl, [], data, forged)), { noWebhookResponse: true });
  assert.equal(forged.status, 401);

  const changed = contextOf(webhookUrl, ['n8n.other'], data);
  assert.equal(await checkExists.call(changed), false, 'other types need another hook');
  assert.equal(await create.call(changed), true);
  assert.equal(await remove.call(changed), true);
  assert.equal(await checkExists.call(changed), false);
});

test('the dropdown begins with all types', async () => {
  const choices = await node.methods.loadOptions.getEventTypes.call(contextOf('', [], {}));
  assert.deepEqual(choices[0], { name: 'All', value: '*' });
});

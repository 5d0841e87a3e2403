'use strict';

// Against the server in TRIGGERS_URL, with the key in TRIGGERS_KEY: `make integrations` starts one.  n8n's own parts load
// the package, resolve its expressions, send its requests, and give the node what it asks for; only the vault with the
// credentials and the page that a person activates a workflow on are missing.
const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { once } = require('node:events');
const { after, before, test } = require('node:test');

// Where n8n keeps a key that it makes when it is loaded.
process.env.N8N_USER_FOLDER = fs.mkdtempSync(path.join(os.tmpdir(), 'n8n-'));
const express = require('express');
const { HookContext, LoadOptionsContext, PackageDirectoryLoader, WebhookContext } = require('n8n-core');
const { ICredentialsHelper, Workflow } = require('n8n-workflow');

const url = process.env.TRIGGERS_URL;
const apiKey = process.env.TRIGGERS_KEY;
const loader = new PackageDirectoryLoader(path.dirname(__dirname));

// The vault, with one credential in it, which is applied to requests as its type says: n8n's does it in the same way.
class Credentials extends ICredentialsHelper {
  getParentTypes() {
    return [];
  }

  async preAuthentication() {
    return undefined;
  }

  async getDecrypted() {
    return { url, apiKey };
  }

  async authenticate(credentials, typeName, options, workflow, node) {
    const { authenticate } = loader.credentialTypes[typeName].type;
    const keys = { $credentials: credentials };
    const applied = { ...options, headers: { ...options.headers } };
    for (const [name, value] of Object.entries(authenticate.properties.headers)) {
      applied.headers[name] = workflow.expression.getSimpleParameterValue(node, value, 'internal', keys, undefined, '');
    }
    return applied;
  }
}

const additionalData = {
  credentialsHelper: new Credentials(),
  restApiUrl: '',
  instanceBaseUrl: '',
  webhookBaseUrl: '',
  webhookWaitingBaseUrl: '',
  variables: {},
};

let nodeType;
let server;
let starts = 0;
let trigger; // the workflow that is active
const started = [];

function workflowWith(events) {
  const node = {
    id: '1',
    name: 'Trigger',
    type: nodeType.description.name,
    typeVersion: 1,
    position: [0, 0],
    webhookId: 'a-webhook',
    parameters: { events },
    credentials: { triggersApi: { id: '1', name: 'Triggers API' } },
  };
  const nodeTypes = {
    getByName: () => nodeType,
    getByNameAndVersion: () => nodeType,
    getKnownTypes: () => ({}),
  };
  return new Workflow({ id: '1', name: 'Test', nodes: [node], connections: {}, active: false, nodeTypes });
}

function run(method, workflow, staticFrom) {
  if (staticFrom) {
    workflow.staticData = staticFrom.staticData;
  }
  const node = workflow.getNode('Trigger');
  const [webhookDescription] = nodeType.description.webhooks;
  const context = new HookContext(workflow, node, additionalData, 'trigger', 'activate', { webhookDescription });
  return nodeType.webhookMethods.default[method].call(context);
}

before(async () => {
  await loader.loadAll();
  nodeType = loader.nodeTypes.triggersApiTrigger.type;
  const app = express();
  app.use(express.json({ verify: (request, response, raw) => Object.assign(request, { rawBody: raw }) }));
  app.post(/.*/, async (httpRequest, httpResponse) => {
    starts += 1;
    const node = trigger.getNode('Trigger');
    const [webhookDescription] = nodeType.description.webhooks;
    const data = { ...additionalData, httpRequest, httpResponse };
    const context = new WebhookContext(trigger, node, data, 'webhook', { webhookDescription }, [], null);
    const result = await nodeType.webhook.call(context);
    if (!result.noWebhookResponse) {
      started.push(result.workflowData[0]);
      httpResponse.json({ message: 'Workflow was started' });
    }
    server.emit('received');
  });
  server = app.listen(0, '127.0.0.1');
  await once(server, 'listening');
  additionalData.webhookBaseUrl = `http://127.0.0.1:${server.address().port}/webhook`;
});

after(() => {
  server.closeAllConnections();
  server.close();
  fs.rmSync(process.env.N8N_USER_FOLDER, { recursive: true });
});

test('n8n finds the node and its credentials in the package', () => {
  assert.equal(nodeType.description.displayName, 'Triggers API Trigger');
  assert.ok(loader.credentialTypes.triggersApi.type.test);
});

test('the node subscribes, starts a workflow with genuine events only, and unsubscribes', async () => {
  trigger = workflowWith(['n8n.tested']);
  assert.equal(await run('checkExists', trigger), false);
  assert.equal(await run('create', trigger), true);
  assert.equal(await run('checkExists', trigger), true);
  const arrived = once(server, 'received');
  await fetch(`${url}/api/events`, {
    method: 'POST',
    headers: { 'X-API-Key': apiKey, 'Content-Type': 'application/json' },
    body: JSON.stringify({ type: 'n8n.tested', data: { n: 1 } }),
  });
  await arrived;
  assert.equal(started.length, 1);
  assert.equal(started[0][0].json.type, 'n8n.tested');
  assert.deepEqual(started[0][0].json.data, { n: 1 });
  const forged = await fetch(`${additionalData.webhookBaseUrl}/a-webhook/webhook`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'webhook-id': 'x', 'webhook-timestamp': Math.floor(Date.now() / 1000) },
    body: '{"type":"n8n.tested","data":{"n":2}}',
  });
  assert.equal(forged.status, 401);
  assert.deepEqual([starts, started.length], [2, 1]);

  const changed = workflowWith(['n8n.other']);
  assert.equal(await run('checkExists', changed, trigger), false, 'other types need another hook');
  assert.equal(await run('create', changed), true);
  assert.equal(await run('delete', changed), true);
  assert.equal(await run('checkExists', changed), false);
});

test('the dropdown begins with all types', async () => {
  const workflow = workflowWith([]);
  const context = new LoadOptionsContext(workflow, workflow.getNode('Trigger'), additionalData, 'parameters.events');
  const choices = await nodeType.methods.loadOptions.getEventTypes.call(context);
  assert.deepEqual(choices[0], { name: 'All', value: '*' });
});

test('a wrong key is refused in words that n8n shows', async () => {
  const workflow = workflowWith(['n8n.tested']);
  const wrong = { ...additionalData, credentialsHelper: new (class extends Credentials {
    async getDecrypted() {
      return { url, apiKey: 'wrong' };
    }
  })() };
  const context = new HookContext(workflow, workflow.getNode('Trigger'), wrong, 'trigger', 'activate');
  await assert.rejects(nodeType.webhookMethods.default.create.call(context), (error) => error.httpCode === '401');
});

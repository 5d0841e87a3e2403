'use strict';

// Against the server in TRIGGERS_URL, with the key in TRIGGERS_KEY: `make integrations` starts one.
const assert = require('node:assert/strict');
const { test } = require('node:test');
const zapier = require('zapier-platform-core');

const App = require('../index');

const appTester = zapier.createAppTester(App);
const url = process.env.TRIGGERS_URL;
const authData = { url, api_key: process.env.TRIGGERS_KEY };
const operation = App.triggers.event.operation;

const call = async (method, path, body) => {
  const response = await fetch(url + path, {
    method,
    headers: { 'X-API-Key': authData.api_key, 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  return response.status === 204 ? null : response.json();
};

test('a good key is accepted and has a label', async () => {
  const response = await appTester(App.authentication.test, { authData });
  assert.match(JSON.stringify(response), /Integrations/);
});

test('a wrong key is refused with a sentence', async () => {
  const wrong = { authData: { url, api_key: 'trk_wrong' } };
  await assert.rejects(appTester(App.authentication.test, wrong), /The API key is not valid/);
});

test('subscribing, the same again, and unsubscribing twice', async () => {
  const bundle = {
    authData,
    inputData: { event: 'zapier.tested' },
    targetUrl: process.env.TRIGGERS_RECEIVER + '/zapier',
  };
  const hook = await appTester(operation.performSubscribe, bundle);
  assert.ok(hook.id);
  assert.deepEqual(hook.event_types, ['zapier.tested']);
  const again = await appTester(operation.performSubscribe, bundle);
  assert.equal(again.id, hook.id);
  const other = { ...bundle, inputData: { event: 'zapier.other' } };
  await assert.rejects(appTester(operation.performSubscribe, other), /subscribed to zapier.tested/);
  for (const attempt of [1, 2]) {
    await appTester(operation.performUnsubscribe, { authData, subscribeData: hook });
  }
  const left = await call('GET', `/api/hooks?target_url=${encodeURIComponent(bundle.targetUrl)}`);
  assert.deepEqual(left.data, []);
});

test('the list has what is delivered, newest first', async () => {
  for (const n of [1, 2]) {
    await call('POST', '/api/events', { type: 'zapier.listed', data: { n } });
  }
  const listed = await appTester(operation.performList, { authData, inputData: { event: 'zapier.listed' } });
  assert.deepEqual(listed.map((one) => one.data.n), [2, 1]);
  assert.deepEqual(Object.keys(listed[0]).sort(), Object.keys(operation.sample).sort());
  const delivered = await appTester(operation.perform, { authData, cleanedRequest: listed[0] });
  assert.deepEqual(delivered, [listed[0]]);
});

test('the dropdown lists the event types', async () => {
  const choices = await appTester(App.triggers.event_type.operation.perform, { authData });
  assert.ok(Array.isArray(choices));
});

// Generated clients against a running system: create a subscription, send an event, list deliveries, retry one.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import createClient from 'openapi-fetch';

import { client } from '../generated/hey-api/client.gen';
import { createEvent, createSubscription, listDeliveries, retryDelivery } from '../generated/hey-api/sdk.gen';
import type { paths } from '../generated/schema';

const baseUrl = process.env.TRIGGERS_URL!;
const headers = { 'X-API-Key': process.env.TRIGGERS_KEY! };
const receiver = process.env.TRIGGERS_RECEIVER!;

async function until<T>(look: () => Promise<T | undefined>): Promise<T> {
  for (;;) {
    const found = await look();
    if (found !== undefined) return found;
    await sleep(50);
  }
}

test('openapi-typescript', { timeout: 60_000 }, async () => {
  const api = createClient<paths>({ baseUrl, headers });
  const made = await api.POST('/api/subscriptions', {
    body: { url: `${receiver}/openapi-typescript`, event_types: ['client.typescript'] },
  });
  const subscription = made.data!;
  assert.ok(subscription.secret);
  const sent = await api.POST('/api/events', { body: { type: 'client.typescript', data: { n: 1 } } });
  assert.equal(sent.data!.status, 'accepted');
  const delivery = await until(async () => {
    const query = { subscription_id: subscription.id, state: 'delivered' } as const;
    return (await api.GET('/api/deliveries', { params: { query } })).data!.data[0];
  });
  assert.equal(delivery.event_id, sent.data!.id);
  const retried = await api.POST('/api/deliveries/{delivery_id}/retry', {
    params: { path: { delivery_id: delivery.id } },
  });
  assert.equal(retried.response.status, 202);
});

test('hey-api', { timeout: 60_000 }, async () => {
  client.setConfig({ baseUrl, headers });
  const made = await createSubscription({
    body: { url: `${receiver}/hey-api`, event_types: ['client.hey'] },
    throwOnError: true,
  });
  const sent = await createEvent({ body: { type: 'client.hey', data: { n: 1 } }, throwOnError: true });
  assert.equal(sent.data.status, 'accepted');
  const delivery = await until(async () => {
    const query = { subscription_id: made.data.id, state: 'delivered' } as const;
    return (await listDeliveries({ query, throwOnError: true })).data.data[0];
  });
  assert.equal(delivery.event_id, sent.data.id);
  const retried = await retryDelivery({ path: { delivery_id: delivery.id }, throwOnError: true });
  assert.equal(retried.response.status, 202);
});

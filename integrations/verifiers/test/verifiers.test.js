// Webhooks as a receiver gets them, verified with npm's `standardwebhooks` and with Node's own ed25519.
import assert from 'node:assert/strict';
import { createPublicKey, verify } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { after, before, test } from 'node:test';

import { Webhook, WebhookVerificationError } from 'standardwebhooks';

const url = process.env.TRIGGERS_URL;
const headers = { 'X-API-Key': process.env.TRIGGERS_KEY, 'Content-Type': 'application/json' };
// Others' libraries sign the text: what isn't ASCII, and numbers that JavaScript can't hold, must come as they were sent.
const DATA = '{"name": "Zoë 🧾", "amount": 12345678901234567890, "rate": 1.0}';

let server;

before(async () => {
  server = http.createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      response.writeHead(204).end();
      server.emit('received', request.headers, Buffer.concat(parts));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
});

after(() => server.close());

async function call(method, path, body) {
  const response = await fetch(`${url}/api/${path}`, { method, headers, body });
  const text = await response.text();
  assert.ok(response.ok, `${response.status} ${text}`);
  return text ? JSON.parse(text) : undefined;
}

// Subscribe, send an event, and return the subscription with what came.
async function receive(type, more) {
  const to = { url: `http://127.0.0.1:${server.address().port}/${type}`, event_types: [type], ...more };
  const subscription = await call('POST', 'subscriptions', JSON.stringify(to));
  const arrived = once(server, 'received');
  await call('POST', 'events', `{"type": "${type}", "data": ${DATA}}`);
  const [received, body] = await arrived;
  return { subscription, received, body };
}

function verifiesWithEd25519(publicKey, received, body) {
  const x = Buffer.from(publicKey.replace(/^whpk_/, ''), 'base64').toString('base64url');
  const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x }, format: 'jwk' });
  const signed = Buffer.concat([Buffer.from(`${received['webhook-id']}.${received['webhook-timestamp']}.`), body]);
  return received['webhook-signature'].split(' ').some((one) => {
    const [version, text] = one.split(',');
    return version === 'v1a' && verify(null, signed, key, Buffer.from(text, 'base64'));
  });
}

test('standardwebhooks accepts HMAC signatures, and nothing forged', { timeout: 60_000 }, async () => {
  const { subscription, received, body } = await receive('verifiers.hmac', {});
  const webhook = new Webhook(subscription.secret);
  assert.equal(webhook.verify(body.toString(), received).type, 'verifiers.hmac');
  assert.ok(body.includes(DATA));
  const forged = body.toString().replace('Zoë', 'Zoe');
  assert.throws(() => webhook.verify(forged, received), WebhookVerificationError);
});

test('both secrets of a rotation verify', { timeout: 60_000 }, async () => {
  const { subscription } = await receive('verifiers.rotated', {});
  const rotated = await call('POST', `subscriptions/${subscription.id}/rotate-secret`, '{"overlap_seconds": 600}');
  const arrived = once(server, 'received');
  await call('POST', 'events', `{"type": "verifiers.rotated", "data": ${DATA}}`);
  const [received, body] = await arrived;
  for (const secret of [subscription.secret, rotated.secret]) {
    assert.ok(new Webhook(secret).verify(body.toString(), received));
  }
});

test('ed25519 signatures verify with the public key, alone and beside HMAC', { timeout: 60_000 }, async () => {
  const { subscription, received, body } = await receive('verifiers.ed25519', { secret_type: 'ed25519' });
  assert.equal(subscription.secret, null);
  assert.ok(verifiesWithEd25519(subscription.public_key, received, body));
  assert.equal(verifiesWithEd25519(subscription.public_key, received, Buffer.from('{}')), false);

  const added = await call('POST', `subscriptions/${subscription.id}/secrets`, '{}');
  const arrived = once(server, 'received');
  await call('POST', 'events', `{"type": "verifiers.ed25519", "data": ${DATA}}`);
  const [both, text] = await arrived;
  assert.ok(verifiesWithEd25519(subscription.public_key, both, text));
  // It skips the version that it doesn't know.
  assert.ok(new Webhook(added.secret).verify(text.toString(), both));
});

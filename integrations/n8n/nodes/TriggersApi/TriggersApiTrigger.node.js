'use strict';

const { createHmac, timingSafeEqual } = require('node:crypto');

// How far the time of a webhook may be from this machine's, as Standard Webhooks has it.
const TOLERANCE_SECONDS = 300;

async function call(context, method, path, options = {}) {
  const { url } = await context.getCredentials('triggersApi');
  return context.helpers.httpRequestWithAuthentication.call(context, 'triggersApi', {
    method,
    url: url.replace(/\/+$/, '') + path,
    json: true,
    ...options,
  });
}

// Standard Webhooks 1.0: each signature is over the very bytes of the body.
function isGenuine(secret, headers, body) {
  const id = headers['webhook-id'] || '';
  const time = headers['webhook-timestamp'] || '';
  if (!(Math.abs(Date.now() / 1000 - Number(time)) <= TOLERANCE_SECONDS)) {
    return false;
  }
  const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64');
  const expected = createHmac('sha256', key).update(`${id}.${time}.`).update(body).digest();
  return (headers['webhook-signature'] || '').split(' ').some((one) => {
    const [version, text] = one.split(',');
    const given = Buffer.from(text || '', 'base64');
    return version === 'v1' && given.length === expected.length && timingSafeEqual(given, expected);
  });
}

function same(one, other) {
  return JSON.stringify([...one].sort()) === JSON.stringify([...other].sort());
}

class TriggersApiTrigger {
  description = {
    displayName: 'Triggers API Trigger',
    name: 'triggersApiTrigger',
    icon: 'fa:bolt',
    group: ['trigger'],
    version: 1,
    subtitle: '={{$parameter["events"].join(", ")}}',
    description: 'Starts the workflow when an event is accepted',
    defaults: { name: 'Triggers API Trigger' },
    inputs: [],
    outputs: ['main'],
    credentials: [{ name: 'triggersApi', required: true }],
    webhooks: [{ name: 'default', httpMethod: 'POST', responseMode: 'onReceived', path: 'webhook' }],
    properties: [
      {
        displayName: 'Event Type Names or IDs',
        name: 'events',
        type: 'multiOptions',
        typeOptions: { loadOptionsMethod: 'getEventTypes' },
        default: ['*'],
        required: true,
        description: 'Types, prefixes such as order.*, or * for all. Choose from the list, or use an expression.',
      },
    ],
  };

  methods = {
    loadOptions: {
      async getEventTypes() {
        const types = await call(this, 'GET', '/api/event-types', { qs: { format: 'choices' } });
        return [{ name: 'All', value: '*' }, ...types.map((one) => ({ name: one.name, value: one.id }))];
      },
    },
  };

  webhookMethods = {
    default: {
      async checkExists() {
        const data = this.getWorkflowStaticData('node');
        const qs = { target_url: this.getNodeWebhookUrl('default') };
        const found = (await call(this, 'GET', '/api/hooks', { qs })).data;
        const wanted = this.getNodeParameter('events');
        const hook = found.find((one) => one.id === data.hookId && same(one.event_types, wanted));
        if (hook) {
          return true;
        }
        // One with other types, or whose secret is lost, would stand in the way of a new one.
        for (const one of found) {
          await call(this, 'DELETE', `/api/hooks/${one.id}`);
        }
        return false;
      },

      async create() {
        const data = this.getWorkflowStaticData('node');
        const body = { target_url: this.getNodeWebhookUrl('default'), event_types: this.getNodeParameter('events') };
        const hook = await call(this, 'POST', '/api/hooks', { body });
        data.hookId = hook.id;
        data.secret = hook.secret;
        return true;
      },

      async delete() {
        const data = this.getWorkflowStaticData('node');
        if (data.hookId) {
          await call(this, 'DELETE', `/api/hooks/${data.hookId}`);
          delete data.hookId;
          delete data.secret;
        }
        return true;
      },
    },
  };

  async webhook() {
    const request = this.getRequestObject();
    const { secret } = this.getWorkflowStaticData('node');
    if (!secret || !isGenuine(secret, this.getHeaderData(), request.rawBody)) {
      this.getResponseObject().status(401).send('The signature is not valid.').end();
      return { noWebhookResponse: true };
    }
    return { workflowData: [[{ json: this.getBodyData() }]] };
  }
}

module.exports = { TriggersApiTrigger, isGenuine };

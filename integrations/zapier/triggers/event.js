'use strict';

const hooks = '{{bundle.authData.url}}/api/hooks';

module.exports = {
  key: 'event',
  noun: 'Event',
  display: { label: 'New Event', description: 'Triggers when an event of the chosen type is accepted.' },
  operation: {
    type: 'hook',
    inputFields: [
      {
        key: 'event',
        label: 'Event Type',
        type: 'string',
        required: true,
        dynamic: 'event_type.id.name',
        helpText: 'A type, a prefix such as `order.*`, or `*` for all types.',
      },
    ],
    performSubscribe: {
      method: 'POST',
      url: hooks,
      body: { target_url: '{{bundle.targetUrl}}', event: '{{bundle.inputData.event}}' },
    },
    // A function, because the response has no body, which Zapier's own would take for a mistake.
    performUnsubscribe: async (z, bundle) => {
      const { url } = bundle.authData;
      await z.request({ method: 'DELETE', url: `${url}/api/hooks/${bundle.subscribeData.id}` });
      return {};
    },
    perform: (z, bundle) => [bundle.cleanedRequest],
    // What is delivered, as a bare array, newest first.
    performList: { url: `${hooks}/sample`, params: { event: '{{bundle.inputData.event}}' } },
    sample: {
      id: '0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91',
      type: 'order.created',
      timestamp: '2026-01-01T00:00:00.000000Z',
      data: { order: 4711, total: '19.90' },
    },
    outputFields: [
      { key: 'id', label: 'Event ID', type: 'string' },
      { key: 'type', label: 'Event Type', type: 'string' },
      { key: 'timestamp', label: 'Accepted At', type: 'datetime' },
    ],
  },
};

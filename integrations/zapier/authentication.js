'use strict';

module.exports = {
  type: 'custom',
  fields: [
    {
      key: 'url',
      label: 'Server',
      type: 'string',
      required: true,
      default: 'https://triggers.example.com',
      helpText: 'The address of your Triggers API, without `/api`.',
    },
    {
      key: 'api_key',
      label: 'API key',
      type: 'password',
      required: true,
      helpText: 'A key with the scopes `subscriptions:manage` and `events:read`.',
    },
  ],
  test: { url: '{{bundle.authData.url}}/api/me' },
  connectionLabel: '{{label}}',
};

'use strict';

class TriggersApi {
  name = 'triggersApi';
  displayName = 'Triggers API';
  properties = [
    {
      displayName: 'Server',
      name: 'url',
      type: 'string',
      default: '',
      placeholder: 'https://triggers.example.com',
      description: 'The address of your Triggers API, without /api',
    },
    {
      displayName: 'API Key',
      name: 'apiKey',
      type: 'string',
      typeOptions: { password: true },
      default: '',
      description: 'A key with the scopes subscriptions:manage and events:read',
    },
  ];
  authenticate = { type: 'generic', properties: { headers: { 'X-API-Key': '={{$credentials.apiKey}}' } } };
  test = { request: { baseURL: '={{$credentials.url}}', url: '/api/me' } };
}

module.exports = { TriggersApi };

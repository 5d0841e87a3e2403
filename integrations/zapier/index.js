'use strict';

const authentication = require('./authentication');
const event = require('./triggers/event');
const eventType = require('./triggers/event_type');

// Errors of the API are problem documents: `detail` is the sentence for people, `errors` what is wrong with each field.
const explain = (response, z) => {
  if (response.status < 400) {
    return response;
  }
  const problem = response.json || {};
  const faults = (problem.errors || []).map((one) => `${one.pointer} ${one.detail}`).join('; ');
  const message = [problem.detail || `The server responded with ${response.status}.`, faults].filter(Boolean).join(' ');
  if (response.status === 429 || response.status === 503) {
    throw new z.errors.ThrottledError(message, Number(response.getHeader('retry-after') || 60));
  }
  throw new z.errors.Error(message, problem.code || 'error', response.status);
};

const authenticate = (request, z, bundle) => {
  request.headers['X-API-Key'] = bundle.authData.api_key;
  return request;
};

module.exports = {
  version: require('./package.json').version,
  platformVersion: require('zapier-platform-core').version,
  authentication,
  // Here and not by Zapier, which would throw first and without the API's sentence.
  flags: { skipThrowForStatus: true },
  beforeRequest: [authenticate],
  afterResponse: [explain],
  triggers: { [event.key]: event, [eventType.key]: eventType },
};

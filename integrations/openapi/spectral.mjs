// Spectral's own rules, all of them.
import { oas } from '@stoplight/spectral-rulesets';

const MEDIA = 'oas3-valid-media-example';

// Everything with a `schema` and `examples` is a media type to this rule, also an event type, which has members of these
// names. So it is told where OpenAPI has its media types, headers, and parameters.
const operations = '$.paths[*][get,put,post,delete,options,head,patch,trace]';
const given = [
  `${operations}.requestBody.content[*]`,
  `${operations}.responses[*].content[*]`,
  `${operations}.responses[*].headers[*]`,
  `${operations}.parameters[*]`,
  '$.webhooks[*][*].requestBody.content[*]',
  '$.webhooks[*][*].parameters[*]',
  '$.components.responses[*].content[*]',
  '$.components.requestBodies[*].content[*]',
  '$.components.headers[*]',
  '$.components.parameters[*]',
].map((place) => `${place}[?(@property === 'schema')]^`);

export default {
  extends: [oas],
  rules: { [MEDIA]: { ...oas.rules[MEDIA], given } },
};

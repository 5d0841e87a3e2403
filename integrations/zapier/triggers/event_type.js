'use strict';

// The choices of the dropdown: a bare array of ids and names.
module.exports = {
  key: 'event_type',
  noun: 'Event Type',
  display: { label: 'New Event Type', description: 'Lists the event types, for the dropdown.', hidden: true },
  operation: {
    type: 'polling',
    perform: { url: '{{bundle.authData.url}}/api/event-types', params: { format: 'choices' } },
    sample: { id: 'order.created', name: 'order.created' },
  },
};

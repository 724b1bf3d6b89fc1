import assert from 'node:assert/strict';
import { test } from 'node:test';
import { redact } from './redact.ts';

test('strings under secret keys are blanked at any depth, all else stays', () => {
  assert.deepEqual(
    redact({
      a: [{ chapSecret: 'x', chapUser: 'u' }],
      token: 't',
      password: 1,
      n: null,
      deep: { apiToken: 'y' },
    }),
    {
      a: [{ chapSecret: '***', chapUser: 'u' }],
      token: '***',
      password: 1,
      n: null,
      deep: { apiToken: '***' },
    },
  );
});

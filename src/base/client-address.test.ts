import assert from 'node:assert/strict';
import { test } from 'node:test';
import { clientAddressOf } from './client-address.ts';

test('a client is its address, and of IPv6 its network', () => {
  assert.equal(clientAddressOf('10.0.0.1'), '10.0.0.1');
  assert.equal(clientAddressOf('::ffff:10.0.0.1'), '10.0.0.1');
  assert.equal(clientAddressOf('2001:db8:1:2:3:4:5:6'), '2001:db8:1:2::/64');
  assert.equal(clientAddressOf('2001:db8:1:2::6'), '2001:db8:1:2::/64');
  assert.equal(clientAddressOf('2001:db8::6'), '2001:db8:0:0::/64');
  assert.equal(clientAddressOf('::1'), '0:0:0:0::/64');
});

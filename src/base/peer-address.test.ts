import assert from 'node:assert/strict';
import { test } from 'node:test';
import { peerAddressOf } from './peer-address.ts';

test('a peer is its address, and of IPv6 its network', () => {
  assert.equal(peerAddressOf('10.0.0.1'), '10.0.0.1');
  assert.equal(peerAddressOf('::ffff:10.0.0.1'), '10.0.0.1');
  assert.equal(peerAddressOf('2001:db8:1:2:3:4:5:6'), '2001:db8:1:2::/64');
  assert.equal(peerAddressOf('2001:db8:1:2::6'), '2001:db8:1:2::/64');
  assert.equal(peerAddressOf('2001:db8::6'), '2001:db8:0:0::/64');
  assert.equal(peerAddressOf('::1'), '0:0:0:0::/64');
});

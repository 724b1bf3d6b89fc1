import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { until } from '../../test/support/patience.ts';
import { hasHungUp } from './hung-up.ts';

for (const how of ['end', 'destroy', 'resetAndDestroy'] as const) {
  test(`a peer that has hung up is seen before what it sent is read (${how})`, async (t) => {
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
    server.listen(0, '127.0.0.1');
    t.after(() => server.close());
    await once(server, 'listening');
    const peer = connect((server.address() as AddressInfo).port, '127.0.0.1');
    const [socket] = (await once(server, 'connection')) as [Socket];
    socket.on('error', () => {});
    t.after(() => socket.destroy());
    await new Promise((resolve) => peer.write('unread', resolve));
    assert.equal(hasHungUp(socket), false);
    peer[how]();
    await until('the end of the peer to arrive', () => hasHungUp(socket));
    assert.equal(socket.bytesRead, 0);
    peer.destroy();
    socket.destroy();
    assert.equal(hasHungUp(socket), false);
  });
}

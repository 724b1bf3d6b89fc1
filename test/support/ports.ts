import { createServer, type Server } from 'node:net';
import type { TestContext } from 'node:test';

/**
 * Ports of servers that are ended and started again. Below those that the system gives to outgoing
 * connections (ip_local_port_range begins with 32768), so that none of these takes one while its server is
 * down. A port belongs to the test that listens on the abstract socket named after it: one at a time on this
 * host, whichever checkout it is of, and the kernel gives it back however the test ends.
 */
const FIRST = 10_000;
const COUNT = 20_000;

let next = (process.pid * 7919) % COUNT;

/** Kept until the test is over. `host`: where they have to be free. */
export async function reservePorts(
  t: Pick<TestContext, 'after'>,
  count: number,
  host = '127.0.0.1',
): Promise<number[]> {
  const held: Server[] = [];
  t.after(() => {
    for (const server of held) server.close();
  });
  const ports: number[] = [];
  for (let tried = 0; ports.length < count; tried += 1) {
    if (tried === COUNT) throw new Error(`of ${COUNT} ports on ${host} there are not ${count} free`);
    const port = FIRST + next;
    next = (next + 1) % COUNT;
    const reservation = await listening({ path: `\0godwit-test-port-${port}` });
    if (reservation === null) continue;
    const trial = await listening({ port, host });
    if (trial === null) {
      reservation.close();
      continue;
    }
    await new Promise((resolve) => trial.close(resolve));
    reservation.unref();
    held.push(reservation);
    ports.push(port);
  }
  return ports;
}

/** Null when somebody else does. */
function listening(place: { path: string } | { port: number; host: string }): Promise<Server | null> {
  return new Promise((resolve) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', () => resolve(null));
    server.listen(place, () => resolve(server));
  });
}

/** An address of loopback that no other test on this host uses, until the test is over. */
export async function reserveAddress(t: Pick<TestContext, 'after'>): Promise<string> {
  for (let tried = 0; ; tried += 1) {
    const number = ((process.pid + tried) * 40_503) % 2 ** 23;
    const host = `127.${128 + (number >> 16)}.${(number >> 8) & 0xff}.${number & 0xff}`;
    const reservation = await listening({ path: `\0godwit-test-address-${host}` });
    if (reservation === null) continue;
    reservation.unref();
    t.after(() => reservation.close());
    return host;
  }
}

import { connect, createServer } from 'node:net';
import { splice } from './splice.ts';

/**
 * Program of a member: `node relay.ts PORT TARGET_PORT` passes connections from the lab's network on to a
 * port of this member's loopback.
 */
const [port, targetPort] = process.argv.slice(2).map(Number);
createServer((socket) => {
  const onward = connect(targetPort!, '127.0.0.1');
  splice(socket, onward);
}).listen(port, '0.0.0.0');

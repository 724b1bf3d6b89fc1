import { readFile, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { LineRpc } from '../src/base/line-rpc.ts';
import type { AgentOps } from './agent-protocol.ts';
import { AGENT_PORT } from './agent-protocol.ts';
import { runHere, spawnHere } from './host-program.ts';

/**
 * Runs in a guest, under its init: does what the lab says over TCP. It trusts whoever connects; the network
 * is the lab's own.
 */
type Handlers = { [Op in keyof AgentOps]: (args: AgentOps[Op]['args']) => Promise<AgentOps[Op]['result']> };

const handlers: Handlers = {
  run: ({ argv, input, timeoutMs }) =>
    runHere(argv, { timeoutMs, ...(input === undefined ? {} : { input }) }),
  spawn: ({ argv, logPath, env }) => spawnHere(argv, { logPath, env }),
  kill: async ({ pid, signal }) => {
    process.kill(pid, signal);
    return {};
  },
  reaches: ({ host, port, timeoutMs }) =>
    new Promise((resolve) => {
      const socket = connect({ host, port });
      const timeout = setTimeout(() => socket.destroy(), timeoutMs);
      let reached = false;
      socket.on('connect', () => {
        reached = true;
        socket.destroy();
      });
      socket.on('error', () => {});
      socket.on('close', () => {
        clearTimeout(timeout);
        resolve({ reached });
      });
    }),
  readFile: async ({ path }) => ({ text: await readFile(path, 'utf8') }),
  writeFile: async ({ path, text, mode }) => {
    await writeFile(path, text, { mode: mode ?? 0o644 });
    return {};
  },
};

const server = createServer((socket) => {
  socket.setNoDelay(true);
  new LineRpc(socket, socket, {
    handler: (op, args) => {
      if (!Object.hasOwn(handlers, op)) throw new Error(`no operation ${op}`);
      return handlers[op as keyof AgentOps](args as never);
    },
  });
});
server.listen(AGENT_PORT, '0.0.0.0', () => console.log('lab: agent listens'));

import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { admitSocket } from '../base/admitted-socket.ts';
import { clientAddressOf } from '../base/client-address.ts';
import type { Clock } from '../base/clock.ts';
import { Doorkeeper, type Guest, HANDSHAKES, type Stay } from '../base/doorkeeper.ts';
import type { Logger } from '../base/logger.ts';
import { PAUSE } from '../base/patience.ts';
import { descriptorsMax } from '../sys/descriptor-limit.ts';

/** Upper bounds of the API's connections. Who exceeds one is dropped, and nobody else. */
export type ApiLimits = {
  /** At once, from all addresses; less where the process may open few descriptors. */
  connectionsMax: number;
  /** At once from one address (IPv6: from one /64, which is what one host has). */
  connectionsPerAddressMax: number;
  /** Where others have to go for newcomers, so many get in a second (`DoorLimits`). */
  admissionsPerSecond: number;
  /** Newcomers that wait for that; of one address seven eighths of them. */
  waitingMax: number;
  /** For so long at most; then those that have all the places are at work. */
  waitMsMax: number;
  /** From the first byte of a connection, TLS included, to the end of the head of its first request. */
  headTimeoutMs: number;
  /** From the head of a request to the end of its body. */
  bodyTimeoutMs: number;
  /** Without a request in hand. */
  idleTimeoutMs: number;
  /** A client that has an answer to take and takes nothing of it for so long is dropped. */
  stallTimeoutMs: number;
  /**
   * Descriptors of the process that connections never get: the worker has files, sockets and children of its
   * own.
   */
  descriptorsKept: number;
};

export const API_LIMITS: ApiLimits = {
  connectionsMax: 1024,
  connectionsPerAddressMax: 256,
  admissionsPerSecond: HANDSHAKES.perSecond,
  waitingMax: HANDSHAKES.waitingMax,
  waitMsMax: HANDSHAKES.waitMsMax,
  headTimeoutMs: 15_000,
  bodyTimeoutMs: 60_000,
  idleTimeoutMs: 90_000,
  stallTimeoutMs: 60_000,
  descriptorsKept: 1024,
};

/** What happened since the last report: somebody took, or tried to take, more than their share. */
export type ApiExhaustion = {
  /** Connections that were dropped to make room for others. */
  evicted: number;
  /** Connections that were closed as they came, or that waited for a place in vain. */
  refused: number;
  connections: number;
  connectionsMax: number;
  /** The address that has the most connections. */
  busiestAddress: string;
};

type Entry = {
  readonly key: string;
  /** The one that was accepted; `top` is the one that requests come from, with TLS another. */
  readonly socket: Socket;
  top: Socket;
  readonly address: string;
  /** head: a request is awaited that may never have come before. idle: between two requests. */
  phase: 'head' | 'body' | 'answer' | 'idle';
  sinceMs: number;
  /** A request on it had the token. */
  proven: boolean;
  /** The newest request, and how many are not answered: clients may send several at once. */
  request: IncomingMessage | null;
  requests: number;
  /** Its place. */
  readonly stay: Stay;
  /** Bytes of answers that the other side had taken at the last look at which that had changed. */
  takenBytes: number;
  takenAtMs: number;
};

/**
 * Requests of one connection that are not answered yet. Ours send one at a time; each costs some kilobytes
 * before anybody asks for a token.
 */
const PIPELINED_MAX = 8;
const NOTHING_SHOWN = 0;
const PROVEN = 1;
const LOOK_MS = PAUSE.connectionLook.ms;
const REPORT_MS = PAUSE.connectionReport.ms;

/**
 * Keeps the API's connections within their limits. A connection proves itself by a request with the token.
 * Who gets a place when there is none is a matter of the doorkeeper (`base/doorkeeper.ts`): those go that
 * have proven nothing, then those that have and ask for nothing; never those at work. So who has the token
 * gets in while others hold all that they can.
 */
export class ConnectionGuard {
  readonly #limits: ApiLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #onExhausted: (what: ApiExhaustion) => void;
  readonly #entries = new Map<string, Entry>();
  readonly #door: Doorkeeper;
  #closing = false;
  #evicted = 0;
  #refused = 0;
  #reportedAtMs = Number.NEGATIVE_INFINITY;
  #cancelLook: (() => void) | null = null;

  constructor(options: {
    limits: ApiLimits;
    clock: Clock;
    logger: Logger;
    onExhausted: (what: ApiExhaustion) => void;
  }) {
    this.#limits = options.limits;
    this.#clock = options.clock;
    this.#logger = options.logger;
    this.#onExhausted = options.onExhausted;
    const { connectionsMax, connectionsPerAddressMax, waitingMax, descriptorsKept } = options.limits;
    const descriptors = descriptorsMax();
    const free = Math.max(descriptors - descriptorsKept, Math.floor(descriptors / 2));
    const waiting = Math.min(waitingMax, Math.floor(free / 3));
    const places = Math.min(connectionsMax, free - waiting);
    this.#door = new Doorkeeper(options.clock, {
      ...HANDSHAKES,
      placesMax: places,
      placesOfKeyMax: Math.min(connectionsPerAddressMax, places),
      waitingMax: waiting,
      waitingOfKeyMax: Math.ceil((waiting * 7) / 8),
      perSecond: options.limits.admissionsPerSecond,
      waitMsMax: options.limits.waitMsMax,
    });
  }

  get connections(): number {
    return this.#entries.size;
  }

  /** Takes over the connections that a server accepts: they reach it when there is room. */
  guard(server: Server): void {
    const accept = server.listeners('connection') as ((socket: Socket) => void)[];
    server.removeAllListeners('connection');
    server.on('connection', (socket: Socket) => {
      this.#came(socket, () => {
        for (const listener of accept) listener.call(server, socket);
      });
    });
  }

  /** Follows the requests of a server, whose connections come by its own `guard` or by that of another. */
  follow(server: Server): void {
    const listeners = server.listeners('request') as RequestListener[];
    server.removeAllListeners('request');
    server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      if (this.#began(request, response))
        for (const listener of listeners) listener.call(server, request, response);
    });
  }

  /** The request had the token. */
  proven(socket: Socket): void {
    const entry = this.#entries.get(keyOf(socket));
    if (entry !== undefined) entry.proven = true;
  }

  /** The server closes: only requests that are in hand are waited for, within their limits. */
  close(): void {
    this.#closing = true;
    this.#door.close();
    for (const entry of [...this.#entries.values()]) {
      if (entry.requests === 0 || !entry.proven) this.#drop(entry, 'the server closes');
    }
  }

  #came(socket: Socket, accept: () => void): void {
    const { remoteAddress } = socket;
    // Gone already.
    if (remoteAddress === undefined || this.#closing) {
      socket.destroy();
      return;
    }
    const address = clientAddressOf(remoteAddress);
    let entry: Entry | null = null;
    const guest: Guest = {
      key: address,
      shows: () => (entry === null ? NOTHING_SHOWN : shownBy(entry)),
      movedBytes: () => socket.bytesRead,
      turnOut: () => {
        if (entry === null) this.#refuse(socket);
        else this.#evict(entry);
      },
    };
    const came = admitSocket(this.#door, socket, guest, (stay) => {
      entry = this.#enterRoom(socket, address, stay);
      accept();
    });
    if (!came) this.#refuse(socket);
  }

  #refuse(socket: Socket): void {
    socket.destroy();
    if (this.#closing) return;
    this.#refused += 1;
    this.#report();
  }

  #enterRoom(socket: Socket, address: string, stay: Stay): Entry {
    const nowMs = this.#clock.monotonicMs();
    const key = keyOf(socket);
    const entry: Entry = {
      key,
      socket,
      top: socket,
      address,
      phase: 'head',
      sinceMs: nowMs,
      proven: false,
      request: null,
      requests: 0,
      stay,
      takenBytes: 0,
      takenAtMs: nowMs,
    };
    this.#entries.set(key, entry);
    socket.once('close', () => this.#forget(entry));
    this.#cancelLook ??= this.#clock.timer(LOOK_MS, () => this.#look());
    return entry;
  }

  #forget(entry: Entry): void {
    if (this.#entries.get(entry.key) === entry) this.#entries.delete(entry.key);
    entry.stay.end();
  }

  #evict(entry: Entry): void {
    this.#evicted += 1;
    this.#drop(entry, 'others need the room');
    this.#report();
  }

  #drop(entry: Entry, reason: string): void {
    this.#logger.debug(
      { remoteAddress: entry.address, phase: entry.phase, reason },
      'a connection is dropped',
    );
    this.#forget(entry);
    entry.socket.destroy();
  }

  /** False: nobody shall answer it. */
  #began(request: IncomingMessage, response: ServerResponse): boolean {
    const entry = this.#entries.get(keyOf(request.socket));
    // Dropped, while requests of it are still in hand.
    if (entry === undefined) return false;
    if (entry.requests >= PIPELINED_MAX) {
      this.#drop(entry, 'it asks without waiting for answers');
      return false;
    }
    if (entry.requests === 0) this.#enter(entry, 'body');
    entry.requests += 1;
    entry.request = request;
    entry.top = request.socket;
    response.once('close', () => {
      entry.requests -= 1;
      if (entry.requests > 0) return;
      entry.request = null;
      this.#enter(entry, 'idle');
      entry.stay.advances();
      if (this.#closing) this.#drop(entry, 'the server closes');
    });
    return true;
  }

  #enter(entry: Entry, phase: Entry['phase']): void {
    entry.phase = phase;
    entry.sinceMs = this.#clock.monotonicMs();
    entry.takenAtMs = entry.sinceMs;
  }

  #look(): void {
    this.#cancelLook = null;
    const nowMs = this.#clock.monotonicMs();
    for (const entry of [...this.#entries.values()]) {
      const reason = this.#overdue(entry, nowMs);
      if (reason !== null) this.#drop(entry, reason);
    }
    if (this.#evicted + this.#refused > 0) this.#report();
    if (this.#entries.size > 0) this.#cancelLook = this.#clock.timer(LOOK_MS, () => this.#look());
  }

  #overdue(entry: Entry, nowMs: number): string | null {
    const { headTimeoutMs, bodyTimeoutMs, idleTimeoutMs, stallTimeoutMs } = this.#limits;
    if (entry.phase === 'body' && entry.request?.complete === true) this.#enter(entry, 'answer');
    const forMs = nowMs - entry.sinceMs;
    switch (entry.phase) {
      case 'head':
        return forMs > headTimeoutMs ? 'no request came' : null;
      case 'body':
        return forMs > bodyTimeoutMs ? 'the body of a request did not come' : null;
      case 'idle':
        return forMs > idleTimeoutMs ? 'no further request came' : null;
      case 'answer': {
        const { top } = entry;
        const takenBytes = top.bytesWritten - top.writableLength - queuedBytesOf(top);
        if (top.writableLength === 0 || takenBytes !== entry.takenBytes) {
          entry.takenBytes = takenBytes;
          entry.takenAtMs = nowMs;
        }
        return nowMs - entry.takenAtMs > stallTimeoutMs ? 'it does not take its answer' : null;
      }
    }
  }

  #report(): void {
    const nowMs = this.#clock.monotonicMs();
    if (nowMs - this.#reportedAtMs < REPORT_MS) return;
    this.#reportedAtMs = nowMs;
    const what = {
      evicted: this.#evicted,
      refused: this.#refused,
      connections: this.#entries.size,
      connectionsMax: this.#door.limits.placesMax,
      busiestAddress: this.#door.busiestKey,
    };
    this.#evicted = 0;
    this.#refused = 0;
    this.#logger.warn(what, 'the API has no room for more connections');
    this.#onExhausted(what);
  }
}

/** What a connection has to show to the doorkeeper: null where it stays. */
function shownBy({ proven, phase }: Entry): number | null {
  if (!proven) return NOTHING_SHOWN;
  return phase === 'idle' ? PROVEN : null;
}

/** Of a connection, the same for the socket that was accepted and for the one with TLS on top. */
function keyOf({ remoteAddress, remotePort, localAddress }: Socket): string {
  return `${remoteAddress} ${remotePort} ${localAddress}`;
}

/** Bytes of a write that the kernel has not taken all of. */
function queuedBytesOf(socket: Socket): number {
  const { _handle } = socket as unknown as { _handle?: { writeQueueSize?: number } | null };
  return _handle?.writeQueueSize ?? 0;
}

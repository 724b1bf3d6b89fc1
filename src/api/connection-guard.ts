import { readFileSync } from 'node:fs';
import type { IncomingMessage, RequestListener, Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { PAUSE } from '../base/patience.ts';
import { peerAddressOf } from '../base/peer-address.ts';
import { Turnstile } from '../base/turnstile.ts';

/** Upper bounds of the API's connections. Who exceeds one is dropped, and nobody else. */
export type ApiLimits = {
  /** At once, from all addresses; less where the process may open few descriptors. */
  connectionsMax: number;
  /** At once from one address (IPv6: from one /64, which is what one host has). */
  connectionsPerAddressMax: number;
  /**
   * Where others have to go for newcomers, so many get in a second, in the order in which they came: whoever gets in has some time to prove itself,
   * however fast those that were dropped come back.
   */
  admissionsPerSecond: number;
  /** Newcomers that wait for that. */
  waitingMax: number;
  /** From the first byte of a connection, TLS included, to the end of the head of its first request. */
  headTimeoutMs: number;
  /** From the head of a request to the end of its body. */
  bodyTimeoutMs: number;
  /** Without a request in hand. */
  idleTimeoutMs: number;
  /** A client that has an answer to take and takes nothing of it for so long is dropped. */
  stallTimeoutMs: number;
  /** Descriptors of the process that connections never get: the worker has files, sockets and children of its own. */
  descriptorsKept: number;
};

export const API_LIMITS: ApiLimits = {
  connectionsMax: 1024,
  connectionsPerAddressMax: 256,
  admissionsPerSecond: 250,
  waitingMax: 512,
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
  /** Connections that were closed as they came. */
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
  /** Bytes of answers that the other side had taken at the last look at which that had changed. */
  takenBytes: number;
  takenAtMs: number;
};

/** Requests of one connection that are not answered yet. Ours send one at a time; each costs some kilobytes before anybody asks for a token. */
const PIPELINED_MAX = 8;
const LOOK_MS = PAUSE.connectionLook.ms;
const REPORT_MS = PAUSE.connectionReport.ms;

/**
 * Keeps the API's connections within their limits. A connection proves itself by a request with the token; when there is no room those go that have
 * proven nothing, oldest first, of the address that has most. So who has the token gets in while others hold all that they can.
 */
export class ConnectionGuard {
  readonly #limits: ApiLimits;
  readonly #clock: Clock;
  readonly #logger: Logger;
  readonly #onExhausted: (what: ApiExhaustion) => void;
  readonly #connectionsMax: number;
  readonly #waitingMax: number;
  /** Oldest first. */
  readonly #entries = new Map<string, Entry>();
  readonly #perAddress = new Map<string, number>();
  /** Newcomers for whom others have to go. */
  readonly #waiting = new Set<Socket>();
  readonly #turnstile: Turnstile;
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
    const { connectionsMax, waitingMax, descriptorsKept } = options.limits;
    const descriptors = descriptorsMax();
    const free = Math.max(descriptors - descriptorsKept, Math.floor(descriptors / 2));
    this.#waitingMax = Math.min(waitingMax, Math.floor(free / 3));
    this.#connectionsMax = Math.min(connectionsMax, free - this.#waitingMax);
    this.#turnstile = new Turnstile(options.clock, {
      perSecond: options.limits.admissionsPerSecond,
      waitingMax: this.#waitingMax,
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
    this.#turnstile.close();
    for (const socket of this.#waiting) socket.destroy();
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
    const address = peerAddressOf(remoteAddress);
    if (this.#hasRoom(address)) {
      this.#enterRoom(socket, address, accept);
      return;
    }
    const forget = this.#turnstile.wait(() => {
      this.#waiting.delete(socket);
      socket.off('close', left);
      socket.off('error', onError);
      if (socket.destroyed) return;
      if (this.#hasRoom(address) || this.#makeRoom(address)) this.#enterRoom(socket, address, accept);
      else this.#refuse(socket);
    });
    if (forget === null) {
      this.#refuse(socket);
      return;
    }
    const left = () => {
      this.#waiting.delete(socket);
      forget();
    };
    const onError = () => socket.destroy();
    socket.on('error', onError);
    socket.once('close', left);
    this.#waiting.add(socket);
  }

  #refuse(socket: Socket): void {
    this.#refused += 1;
    socket.destroy();
    this.#report();
  }

  #enterRoom(socket: Socket, address: string, accept: () => void): void {
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
      takenBytes: 0,
      takenAtMs: nowMs,
    };
    this.#entries.set(key, entry);
    this.#perAddress.set(address, this.#countOf(address) + 1);
    socket.once('close', () => this.#forget(entry));
    this.#cancelLook ??= this.#clock.timer(LOOK_MS, () => this.#look());
    accept();
  }

  #forget(entry: Entry): void {
    if (this.#entries.get(entry.key) !== entry) return;
    this.#entries.delete(entry.key);
    const count = this.#countOf(entry.address) - 1;
    if (count > 0) this.#perAddress.set(entry.address, count);
    else this.#perAddress.delete(entry.address);
  }

  #countOf(address: string): number {
    return this.#perAddress.get(address) ?? 0;
  }

  #hasRoom(address: string): boolean {
    return (
      this.#entries.size < this.#connectionsMax &&
      this.#countOf(address) < this.#limits.connectionsPerAddressMax
    );
  }

  /** False: everybody who is here has as much right to it. */
  #makeRoom(address: string): boolean {
    if (this.#countOf(address) >= this.#limits.connectionsPerAddressMax) return this.#evict(address);
    return this.#evict(this.#busiest()) || this.#evict(null);
  }

  /** Drops one connection of the address (null: of any) to make room: the oldest that has proven nothing, else the one that is idle for longest. */
  #evict(address: string | null): boolean {
    let idle: Entry | null = null;
    for (const entry of this.#entries.values()) {
      if (address !== null && entry.address !== address) continue;
      if (!entry.proven) {
        this.#drop(entry, 'others need the room');
        return true;
      }
      if (entry.phase === 'idle' && (idle === null || entry.sinceMs < idle.sinceMs)) idle = entry;
    }
    if (idle === null) return false;
    this.#drop(idle, 'others need the room');
    return true;
  }

  #drop(entry: Entry, reason: string): void {
    if (reason === 'others need the room') {
      this.#evicted += 1;
      this.#report();
    }
    this.#logger.debug(
      { remoteAddress: entry.address, phase: entry.phase, reason },
      'a connection is dropped',
    );
    this.#forget(entry);
    entry.socket.destroy();
  }

  #busiest(): string {
    let found = '';
    for (const [address, count] of this.#perAddress) if (count > this.#countOf(found)) found = address;
    return found;
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
      connectionsMax: this.#connectionsMax,
      busiestAddress: this.#busiest(),
    };
    this.#evicted = 0;
    this.#refused = 0;
    this.#logger.warn(what, 'the API has no room for more connections');
    this.#onExhausted(what);
  }
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

/** Descriptors that this process may have open (getrlimit(2), RLIMIT_NOFILE). */
function descriptorsMax(): number {
  try {
    const [, soft] = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? [];
    return soft === undefined ? 1024 : Number(soft);
  } catch {
    return 1024;
  }
}

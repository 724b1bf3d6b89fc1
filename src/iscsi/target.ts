import { createServer, type Server, type Socket } from 'node:net';
import { createServer as createTlsServer } from 'node:tls';
import { admitSocket } from '../base/admitted-socket.ts';
import { assert } from '../base/assert.ts';
import { BufferPool } from '../base/buffer-pool.ts';
import { ClientBook } from '../base/client-account.ts';
import { clientAddressOf } from '../base/client-address.ts';
import type { Clock } from '../base/clock.ts';
import { Doorkeeper, type Guest, HANDSHAKES, type Stay } from '../base/doorkeeper.ts';
import { GodwitError, messageOf, systemErrorCode } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { LookOut } from '../base/look-out.ts';
import type { Random } from '../base/random.ts';
import { type Seat, Seats } from '../base/seats.ts';
import { sparingLogger } from '../base/sparing-logger.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { TlsIdentity } from '../sys/tls-identity.ts';
import { LOGIN_STATUS } from './constants.ts';
import { TARGET_LIMITS, type TargetLimits } from './limits.ts';
import type { Admission, Credential, LoginNames, LoginOutcome } from './login-target.ts';
import { LoginThrottle } from './login-throttle.ts';
import { STAGING_BYTES } from './pdu-parser.ts';
import { LogicalUnit } from './scsi/logical-unit.ts';
import { type ConnectionHost, type SessionWiring, TargetConnection } from './target-connection.ts';
import { TargetSession } from './target-session.ts';
import type { TextPair } from './text-keys.ts';

/**
 * Who may log in to an export: this initiator name (`ANY_INITIATOR`: every one that no other grant names),
 * with this CHAP user and secret, while the export is at this generation. All four must fit. Without `chap`
 * no secret is asked for: for loopback and tests.
 */
export type IscsiGrant = {
  initiatorIqn: string;
  chap: { user: string; secret: string } | null;
  /** For initiators that ask us to prove ourselves. Must differ from `chap`. */
  mutualChap?: { user: string; secret: string };
  generation: number;
};

export type ExportOptions = {
  targetIqn: string;
  /** 0 to 255. */
  lun?: number;
  device: BlockDevice;
  /** What initiators know the unit by, across restarts. Printable ASCII, at most 200 characters. */
  serial: string;
  generation: number;
  /** Default true. */
  readOnly?: boolean;
  /** What the device below writes at once, a power of two. Default 4096. */
  physicalBlockBytes?: number;
  /** Logins work, and everything that touches the medium waits for `open`. Default false. */
  standby?: boolean;
};

export type TargetStatistics = { connections: number; sessions: number; bytesServed: number };

type SessionRecord = {
  key: string;
  session: TargetSession;
  connection: TargetConnection;
  initiatorIqn: string;
  /** null: a discovery session. */
  share: TargetExport | null;
  seat: Seat;
};

/** In place of an initiator name in a grant. No name of an initiator is this (RFC 7143 section 4.2.7). */
export const ANY_INITIATOR = '*';

/** From so long on a session without a command may lose its place to one that begins. */
const IDLE_MS = 30_000;
/** What a connection that has not logged in has to show for itself, from least to most. */
const REFUSED = 0;
const NOTHING_SHOWN = 1;
const PROVEN = 2;

/** A connection that has not logged in. */
class HalfOpen implements Guest {
  readonly key: string;
  readonly address: string | undefined;
  connection: TargetConnection | null = null;
  stay: Stay | null = null;
  /** One of the above. */
  shown = NOTHING_SHOWN;
  readonly #socket: Socket;
  readonly #port: number | undefined;

  constructor(socket: Socket) {
    this.#socket = socket;
    this.address = socket.remoteAddress;
    this.#port = socket.remotePort;
    this.key = clientAddressOf(this.address ?? 'unknown');
  }

  shows(): number {
    return this.shown;
  }

  /** Of the handshake of TLS, and of the login. */
  movedBytes(): number {
    return this.#socket.bytesRead + (this.connection?.receivedBytes ?? 0);
  }

  turnOut(): void {
    if (this.connection === null) this.#socket.destroy();
    else this.connection.destroy();
  }

  /** True for the TLS socket over this one. */
  isOf(socket: Socket): boolean {
    return socket.remotePort === this.#port && socket.remoteAddress === this.address;
  }
}

const POOL_BYTES = 32 * 1024 * 1024;
/**
 * How long a login waits for the device calls of the session that it replaces: for what they change so long,
 * then it is let in and what it changes itself waits; for reads, where there are too many of them, longer.
 */
const CHANGES_TIMEOUT_MS = 200;
const REINSTATEMENT_TIMEOUT_MS = 10_000;
/**
 * Each holds a thread of this process (sys/thread-pool.ts) for as long as the device does not answer: an
 * initiator that is cut off again and again, and asks again each time, must not have them all.
 */
const HANGING_READS_MAX = 8;
const LOOK_MS = 20;

/** One volume under one iSCSI name. Made by `IscsiTarget.addExport`. */
export class TargetExport {
  readonly targetIqn: string;
  readonly lun: number;
  readonly generation: number;
  readonly unit: LogicalUnit;
  readonly #target: ExportHost;
  readonly #grants = new Map<string, IscsiGrant>();

  constructor(options: ExportOptions, target: ExportHost, transferBytesMax: number, clock: Clock) {
    this.targetIqn = options.targetIqn;
    this.lun = options.lun ?? 0;
    this.generation = options.generation;
    this.#target = target;
    this.unit = new LogicalUnit({
      device: options.device,
      readOnly: options.readOnly ?? true,
      serial: options.serial,
      targetIqn: options.targetIqn,
      transferBytesMax,
      monotonicMs: () => clock.monotonicMs(),
      ...(options.physicalBlockBytes === undefined ? {} : { physicalBlockBytes: options.physicalBlockBytes }),
    });
    this.unit.standby = options.standby ?? false;
  }

  get state(): 'standby' | 'open' {
    return this.unit.standby ? 'standby' : 'open';
  }

  get sessions(): number {
    return this.#target.sessionsOf(this).length;
  }

  /** Leaves standby: reads that were held are answered now. Idempotent. */
  open(): void {
    if (!this.unit.standby) return;
    this.unit.standby = false;
    for (const record of this.#target.sessionsOf(this)) record.session.open();
  }

  /**
   * Lets an initiator in. Replaces a grant of the same initiator name; the sessions of one that differs are
   * ended. Throws `ISCSI_BAD_GRANT`.
   */
  grant(grant: IscsiGrant): void {
    // Of any two grants: who may ask us to answer a challenge with a secret must not get the answer that lets
    // another in.
    const others = [...this.#grants.values()].filter((other) => other.initiatorIqn !== grant.initiatorIqn);
    const all = [...others, grant];
    if (all.some((a) => all.some((b) => a.mutualChap && a.mutualChap.secret === b.chap?.secret))) {
      throw new GodwitError('ISCSI_BAD_GRANT', 'The two directions of mutual CHAP must not share a secret', {
        values: { initiatorIqn: grant.initiatorIqn },
        nextAction: 'Make another secret for one of them.',
      });
    }
    const previous = this.#grants.get(grant.initiatorIqn);
    this.#grants.set(grant.initiatorIqn, structuredClone(grant));
    if (previous !== undefined && !sameGrant(previous, grant))
      this.#drop(grant.initiatorIqn, 'grant was replaced');
  }

  /** Ends the grant and its sessions. Idempotent. */
  revoke(initiatorIqn: string): void {
    this.#grants.delete(initiatorIqn);
    this.#drop(initiatorIqn, 'grant was revoked');
  }

  /** The grant that lets this initiator in now, or null. */
  grantOf(initiatorIqn: string): IscsiGrant | null {
    const grant = this.#grants.get(initiatorIqn) ?? this.#grants.get(ANY_INITIATOR);
    return grant !== undefined && grant.generation === this.generation ? grant : null;
  }

  /** The name under which the grant of this initiator is kept. */
  grantNameOf(initiatorIqn: string): string {
    return this.#grants.has(initiatorIqn) ? initiatorIqn : ANY_INITIATOR;
  }

  #drop(initiatorIqn: string, reason: string): void {
    for (const record of this.#target.sessionsOf(this)) {
      const named = this.#grants.has(record.initiatorIqn);
      if (initiatorIqn === ANY_INITIATOR ? !named : record.initiatorIqn === initiatorIqn)
        record.session.drop(reason);
    }
  }
}

type ExportHost = { sessionsOf: (share: TargetExport) => SessionRecord[] };

export type TargetOptions = {
  host: string;
  /** 0: the system picks one. null: no connections in the clear; then there is `tls`. */
  port: number | null;
  /** A port of its own, on which both sides show a certificate before the login begins. */
  tls?: { port: number; identity: TlsIdentity };
  clock: Clock;
  random: Random;
  logger: Logger;
  limits?: Partial<TargetLimits>;
  /** What clients make this process hold. Its servers share it. Default: one of its own. */
  clients?: ClientBook;
  /** Default: one of its own. */
  pool?: BufferPool;
};

/**
 * An iSCSI target: a server with exports, on a port in the clear, a port with TLS, or both. docs/iscsi.md
 * says what it supports.
 */
export class IscsiTarget {
  readonly host: string;
  readonly #plain: Server | null;
  readonly #secure: Server | null;
  /** TCP connections of the TLS port, in the handshake or past it. */
  readonly #raw = new Map<Socket, HalfOpen>();
  readonly #clock: Clock;
  readonly #random: Random;
  readonly #logger: Logger;
  readonly #limits: TargetLimits;
  readonly #throttle: LoginThrottle;
  readonly #pool: BufferPool;
  readonly #clients: ClientBook;
  /** Connections that have not logged in, and sessions. */
  readonly #halfOpen: Doorkeeper;
  readonly #seats: Seats;
  readonly #staging = Buffer.allocUnsafeSlow(STAGING_BYTES);
  readonly #lookOut = new LookOut();
  readonly #exports = new Map<string, TargetExport>();
  readonly #connections = new Set<TargetConnection>();
  readonly #sessions = new Map<string, SessionRecord>();
  /** Sessions that were replaced, each under a key of its own until it has ended. */
  #replaced = 0;
  #nextTsih = 1;
  #bytesServedByGone = 0;
  #closed = false;

  private constructor(options: TargetOptions) {
    this.host = options.host;
    this.#clock = options.clock;
    this.#random = options.random;
    this.#logger = sparingLogger(options.logger, options.clock);
    this.#limits = { ...TARGET_LIMITS, ...options.limits };
    this.#pool = options.pool ?? new BufferPool(POOL_BYTES);
    this.#clients = options.clients ?? new ClientBook(options.clock);
    this.#halfOpen = new Doorkeeper(options.clock, {
      ...HANDSHAKES,
      placesMax: this.#limits.halfOpenMax,
      placesOfKeyMax: Math.min(this.#limits.halfOpenMax, this.#limits.halfOpenAddressMax),
    });
    this.#seats = new Seats({ max: this.#limits.connectionsMax, keyMax: this.#limits.grantSessionsMax });
    this.#throttle = new LoginThrottle({
      clock: options.clock,
      delayMs: this.#limits.loginDelayMs,
      delayMsMax: this.#limits.loginDelayMsMax,
      addressesMax: this.#limits.loginAddressesMax,
    });
    assert(options.port !== null || options.tls !== undefined, 'a target listens somewhere');
    this.#plain =
      options.port === null ? null : createServer({ pauseOnConnect: true }, (socket) => this.#accept(socket));
    this.#secure = options.tls === undefined ? null : this.#secureServer(options.tls.identity);
  }

  /** Rejects with `ISCSI_LISTEN_FAILED`. */
  static async listen(options: TargetOptions): Promise<IscsiTarget> {
    const target = new IscsiTarget(options);
    try {
      if (target.#plain !== null) await listen(target.#plain, options.host, options.port!);
      if (target.#secure !== null) await listen(target.#secure, options.host, options.tls!.port);
    } catch (error) {
      await target.close();
      throw error;
    }
    for (const server of [target.#plain, target.#secure]) {
      server?.on('error', (error) =>
        target.#logger.error({ error: messageOf(error) }, 'iSCSI: server error'),
      );
    }
    return target;
  }

  /** Of the connections in the clear. */
  get port(): number {
    return portOf(this.#plain);
  }

  /** Of the connections with TLS. */
  get tlsPort(): number {
    return portOf(this.#secure);
  }

  /** Throws `ISCSI_EXPORT_EXISTS`. */
  addExport(options: ExportOptions): TargetExport {
    if (this.#exports.has(options.targetIqn)) {
      throw new GodwitError('ISCSI_EXPORT_EXISTS', 'There is an export of this name already', {
        values: { targetIqn: options.targetIqn },
        nextAction: 'Remove the other one first.',
      });
    }
    const share = new TargetExport(
      options,
      { sessionsOf: (which) => this.#sessionsOf(which) },
      this.#limits.transferBytesMax,
      this.#clock,
    );
    this.#exports.set(options.targetIqn, share);
    return share;
  }

  /**
   * Ends the sessions of an export and forgets it. Resolves when its device is not in use any more. Does not
   * close the device.
   */
  async removeExport(targetIqn: string): Promise<void> {
    const share = this.#exports.get(targetIqn);
    if (share === undefined) return;
    this.#exports.delete(targetIqn);
    const records = this.#sessionsOf(share);
    for (const record of records) record.session.drop('export was removed');
    await Promise.all(records.map((record) => record.session.close()));
  }

  statistics(): TargetStatistics {
    let bytesServed = this.#bytesServedByGone;
    for (const record of this.#sessions.values()) bytesServed += record.session.bytesServed;
    return { connections: this.#connections.size, sessions: this.#sessions.size, bytesServed };
  }

  /** Stops listening and drops every connection. Resolves when no device is in use any more. Idempotent. */
  async close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      const servers = [this.#plain, this.#secure].filter((server) => server !== null);
      const ended = servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve())));
      void Promise.all([...this.#connections].map((connection) => connection.gone()));
      for (const socket of this.#raw.keys()) socket.destroy();
      this.#halfOpen.close();
      await Promise.all(ended);
    }
    await Promise.all([...this.#connections].map((connection) => connection.gone()));
  }

  #sessionsOf(share: TargetExport): SessionRecord[] {
    return [...this.#sessions.values()].filter((record) => record.share === share);
  }

  #secureServer(identity: TlsIdentity): Server {
    const server = createTlsServer(
      { ...identity.serverOptions(), handshakeTimeout: this.#limits.loginTimeoutMs, pauseOnConnect: true },
      (socket) => this.#acceptSecure(socket),
    );
    server.on('tlsClientError', (error, socket) => {
      const peer = socket.remoteAddress ?? null;
      this.#logger.warn({ peer, error: messageOf(error) }, 'iSCSI: TLS handshake failed');
      // Nobody else does, not even when the time for it is up.
      socket.destroy();
    });
    identity.follow(server);
    // The handshake costs more than a login, and begins when there is a place for it.
    const begin = server.listeners('connection') as ((socket: Socket) => void)[];
    server.removeAllListeners('connection');
    server.on('connection', (socket: Socket) => {
      const peer = new HalfOpen(socket);
      this.#comes(socket, peer, () => {
        this.#raw.set(socket, peer);
        socket.once('close', () => {
          this.#raw.delete(socket);
          peer.stay?.end();
        });
        for (const listener of begin) listener.call(server, socket);
      });
    });
    return server;
  }

  #comes(socket: Socket, peer: HalfOpen, enter: () => void): void {
    // Without an address it is gone already.
    if (this.#closed || peer.address === undefined) {
      socket.destroy();
      return;
    }
    const came = admitSocket(this.#halfOpen, socket, peer, (stay) => {
      peer.stay = stay;
      enter();
    });
    if (!came) this.#logger.warn({ peer: peer.key }, 'iSCSI: too many connections');
  }

  #accept(socket: Socket): void {
    const peer = new HalfOpen(socket);
    this.#comes(socket, peer, () => this.#connect(socket, peer));
  }

  /**
   * Its handshake is done: it holds a certificate that our authority signed, and loses its place to nobody
   * who has none.
   */
  #acceptSecure(socket: Socket): void {
    const peer = [...this.#raw.values()].find((one) => one.isOf(socket));
    if (peer === undefined || this.#closed) {
      socket.destroy();
      return;
    }
    peer.shown = PROVEN;
    peer.stay?.advances();
    this.#connect(socket, peer);
  }

  #connect(socket: Socket, peer: HalfOpen): void {
    const localPort = socket.localPort ?? 0; // asked for before the connection takes the handle
    const host: ConnectionHost = {
      admit: (names) => this.#admit(names),
      begin: (outcome, wiring) => this.#begin(outcome, wiring, localPort, peer),
      loginFailed: (address) => {
        peer.shown = REFUSED;
        return this.#throttle.failed(address);
      },
      loginAdvances: () => peer.stay?.advances(),
      loginSucceeded: (address) => this.#throttle.succeeded(address),
      onClose: (gone) => {
        peer.stay?.end();
        this.#forget(gone);
      },
    };
    const connection = new TargetConnection({
      socket,
      host,
      limits: this.#limits,
      pool: this.#pool,
      clients: this.#clients,
      staging: this.#staging,
      lookOut: this.#lookOut,
      clock: this.#clock,
      random: this.#random,
      logger: this.#logger,
    });
    peer.connection = connection;
    this.#connections.add(connection);
  }

  #forget(connection: TargetConnection): void {
    this.#connections.delete(connection);
    for (const [key, record] of this.#sessions) {
      if (record.connection !== connection) continue;
      this.#bytesServedByGone += record.session.bytesServed;
      this.#seats.leave(record.seat);
      this.#sessions.delete(key);
    }
  }

  #admit(names: LoginNames): Admission {
    if (names.sessionType === 'Discovery') {
      const credentials: Credential[] = [];
      for (const share of this.#exports.values()) {
        const grant = share.grantOf(names.initiatorName);
        if (grant !== null) credentials.push(credentialOf(grant));
      }
      if (credentials.length === 0) {
        return { refuse: LOGIN_STATUS.authorizationFailure, reason: 'no grant for this initiator' };
      }
      return { credentials };
    }
    const share = this.#exports.get(names.targetName ?? '');
    if (share === undefined) return { refuse: LOGIN_STATUS.notFound, reason: 'no such export' };
    const grant = share.grantOf(names.initiatorName);
    if (grant === null) {
      return {
        refuse: LOGIN_STATUS.authorizationFailure,
        reason: 'no grant for this initiator and generation',
      };
    }
    return { credentials: [credentialOf(grant)] };
  }

  async #begin(
    outcome: LoginOutcome,
    wiring: SessionWiring,
    localPort: number,
    halfOpen: HalfOpen,
  ): Promise<{ session: TargetSession; tsih: number } | { refuse: number }> {
    const { names } = outcome;
    if (outcome.tsih !== 0) {
      // One connection a session: there is none to join.
      const known = [...this.#sessions.values()].some(
        (record) => record.initiatorIqn === names.initiatorName,
      );
      return { refuse: known ? LOGIN_STATUS.tooManyConnections : LOGIN_STATUS.sessionDoesNotExist };
    }
    const key = `${names.initiatorName}\n${outcome.isid.toString('hex')}\n${names.targetName ?? ''}`;
    const previous = this.#sessions.get(key);
    if (previous !== undefined && !(await this.#replace(previous))) {
      return { refuse: LOGIN_STATUS.serviceUnavailable };
    }
    const follows = this.#changing(key);
    // While that was awaited the grant may have gone, or another login may have been quicker.
    const admission = this.#admit(names);
    if ('refuse' in admission) return { refuse: admission.refuse };
    if (this.#sessions.has(key) || this.#closed || wiring.connection.closed)
      return { refuse: LOGIN_STATUS.serviceUnavailable };
    const share = names.sessionType === 'Normal' ? this.#exports.get(names.targetName!)! : null;
    const { connection } = wiring;
    const seat = this.#sessionSeat(names, share, connection);
    if (!this.#seats.take(seat)) return { refuse: LOGIN_STATUS.outOfResources };
    halfOpen.stay?.end();
    const session = new TargetSession({
      writer: wiring.writer,
      pool: this.#pool,
      account: wiring.account,
      parameters: outcome.parameters,
      unit: share === null ? null : { lun: share.lun, unit: share.unit },
      port: `${names.initiatorName},i,0x${outcome.isid.toString('hex')}`,
      sendTargets: (which) => this.#sendTargets(which, names, localPort),
      expCmdSn: wiring.expCmdSn,
      statSn: wiring.statSn,
      cid: outcome.cid,
      limits: this.#limits,
      clock: this.#clock,
      logger: wiring.logger,
      onEnd: wiring.onEnd,
      isReading: wiring.isReading,
      follows,
    });
    this.#sessions.set(key, {
      key,
      session,
      connection,
      initiatorIqn: names.initiatorName,
      share,
      seat,
    });
    const tsih = this.#nextTsih;
    this.#nextTsih = tsih === 0xffff ? 1 : tsih + 1;
    return { session, tsih };
  }

  /**
   * Sessions of one grant share a bound; of those that are idle, the one that has been so for the longest
   * goes first.
   */
  #sessionSeat(names: LoginNames, share: TargetExport | null, connection: TargetConnection): Seat {
    const key =
      share === null ? 'discovery' : `${share.targetIqn}\n${share.grantNameOf(names.initiatorName)}`;
    return {
      key,
      worth: () => {
        const idleSinceMs = connection.session?.idleSinceMs ?? null;
        const idle = idleSinceMs !== null && this.#clock.monotonicMs() - idleSinceMs >= IDLE_MS;
        return idle ? idleSinceMs : null;
      },
      evict: (reason) => connection.session?.drop(reason),
    };
  }

  /** Of one initiator, in sessions that it has replaced and in the one that it replaces now. */
  #readsUnderWay({ key }: SessionRecord): number {
    let count = 0;
    for (const record of this.#sessions.values()) if (record.key === key) count += record.session.readCount;
    return count;
  }

  /** Resolves when the sessions that were replaced change nothing any more. null: there are none. */
  #changing(key: string): Promise<unknown> | null {
    const ending: Promise<void>[] = [];
    for (const record of this.#sessions.values())
      if (record.key === key && record.session.mayChange) ending.push(record.session.changesEnded);
    return ending.length === 0 ? null : Promise.all(ending);
  }

  /**
   * Session reinstatement (RFC 7143 section 6.3.5). The old session counts until its device calls have ended,
   * of which the new one need not wait for any: what it changes comes after what the old one does
   * (`#changing`). False: too many reads hang.
   */
  async #replace(previous: SessionRecord): Promise<boolean> {
    this.#logger.info({ initiator: previous.initiatorIqn }, 'iSCSI: session is replaced');
    let isLate = false;
    const cancels: (() => void)[] = [];
    const after = <T>(delayMs: number, value: T): Promise<T> =>
      new Promise((resolve) => cancels.push(this.#clock.timer(delayMs, () => resolve(value))));
    const timeout = after(REINSTATEMENT_TIMEOUT_MS, false).finally(() => {
      isLate = true;
    });
    const ready = async (): Promise<boolean> => {
      await Promise.race([previous.connection.silenced(), after(CHANGES_TIMEOUT_MS, null)]);
      while (this.#readsUnderWay(previous) > HANGING_READS_MAX && !isLate) await this.#clock.sleep(LOOK_MS);
      return true;
    };
    const done = await Promise.race([ready(), timeout]);
    for (const cancel of cancels) cancel();
    if (done && this.#sessions.get(previous.key) === previous) {
      this.#sessions.delete(previous.key);
      this.#sessions.set(`${previous.key}\n${this.#replaced++}`, previous);
    }
    return done;
  }

  /**
   * SendTargets (RFC 7143 appendix C): All in a discovery session, a name, or nothing for the session's own
   * target. The port is the one that was asked on.
   */
  #sendTargets(which: string, names: LoginNames, localPort: number): TextPair[] {
    const answers: TextPair[] = [];
    const normal = names.sessionType === 'Normal';
    for (const share of this.#exports.values()) {
      if (share.grantOf(names.initiatorName) === null) continue;
      if (normal && share.targetIqn !== names.targetName) continue;
      const asked = which === share.targetIqn || (which === 'All' && !normal) || (which === '' && normal);
      if (!asked) continue;
      answers.push(
        ['TargetName', share.targetIqn],
        ['TargetAddress', `${bracketed(this.host)}:${localPort},1`],
      );
    }
    return answers;
  }
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const onError = (error: Error): void =>
      reject(
        new GodwitError('ISCSI_LISTEN_FAILED', `Cannot listen for iSCSI: ${messageOf(error)}`, {
          values: { host, port, systemCode: systemErrorCode(error) ?? null },
          nextAction: 'Choose an address of this host and a port that is free.',
          cause: error,
        }),
      );
    server.once('error', onError);
    server.listen(port, host, () => {
      server.off('error', onError);
      resolve();
    });
  });
}

function portOf(server: Server | null): number {
  const address = server?.address();
  assert(typeof address === 'object' && address !== null, 'target listens');
  return address.port;
}

function bracketed(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

function credentialOf(grant: IscsiGrant): Credential {
  return { chap: grant.chap, mutual: grant.mutualChap ?? null };
}

function sameGrant(a: IscsiGrant, b: IscsiGrant): boolean {
  return (
    a.generation === b.generation &&
    a.chap?.user === b.chap?.user &&
    a.chap?.secret === b.chap?.secret &&
    a.mutualChap?.user === b.mutualChap?.user &&
    a.mutualChap?.secret === b.mutualChap?.secret
  );
}

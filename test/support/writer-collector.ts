import { createServer, type Server, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import type { TestContext } from 'node:test';
import { NotWorthWaiting, NotYet, until } from './patience.ts';
import type { WriterAck, WriterHello } from './writer.ts';

/** One life of a writer: from the start of its process to the last number that it acknowledged. */
type Incarnation = { id: string; openedAtNs: bigint; lastDurableAtNs: bigint; acks: number; first: number };

/** What a machine's writers have told, and what cannot be. */
export class WriterHistory {
  readonly name: string;
  /** Oldest first. */
  readonly incarnations: Incarnation[] = [];
  /** Highest acknowledged number. */
  acknowledged = 0;
  readonly faults: string[] = [];

  constructor(name: string) {
    this.name = name;
  }

  /** Throws what is wrong: a lost write, two writers at the same time, content that was never written. */
  assertSound(): void {
    if (this.faults.length > 0) throw new Error(this.#faultsTold());
  }

  #faultsTold(): string {
    return `${this.name}: ${this.faults.slice(0, 10).join('; ')}`;
  }

  /**
   * Resolves when so many more numbers are acknowledged, by whichever incarnation. Rejects with the first
   * fault.
   */
  async more(count: number, patienceMs = 120_000): Promise<void> {
    const until = this.acknowledged + count;
    await this.#until(
      `${count} more writes of ${this.name}, which has acknowledged ${this.acknowledged}`,
      () => this.acknowledged >= until,
      patienceMs,
    );
  }

  /** Resolves when a later incarnation than the first `count` has acknowledged a write. */
  async incarnation(count: number, patienceMs = 120_000): Promise<void> {
    await this.#until(
      `a write of incarnation ${count + 1} of ${this.name}, which has had ${this.incarnations.length}`,
      () => this.incarnations.slice(count).some(({ acks }) => acks > 0),
      patienceMs,
    );
  }

  hello(message: WriterHello): Incarnation {
    this.faults.push(...message.faults);
    if (message.last < this.acknowledged) {
      this.faults.push(`${this.acknowledged} was acknowledged, and the volume ends with ${message.last}`);
    }
    const incarnation: Incarnation = {
      id: message.incarnation,
      openedAtNs: BigInt(message.openedAtNs),
      lastDurableAtNs: 0n,
      acks: 0,
      first: message.last + 1,
    };
    for (const earlier of this.incarnations) {
      if (earlier.openedAtNs < incarnation.openedAtNs) this.#compare(earlier, incarnation);
      else this.#compare(incarnation, earlier);
    }
    this.incarnations.push(incarnation);
    return incarnation;
  }

  ack(incarnation: Incarnation, message: WriterAck): void {
    incarnation.acks += 1;
    incarnation.lastDurableAtNs = BigInt(message.durableAtNs);
    if (message.number <= this.acknowledged) this.faults.push(`${message.number} was acknowledged twice`);
    this.acknowledged = Math.max(this.acknowledged, message.number);
    for (const other of this.incarnations) {
      if (other.openedAtNs > incarnation.openedAtNs) this.#compare(incarnation, other);
    }
  }

  #compare(older: Incarnation, newer: Incarnation): void {
    if (older.lastDurableAtNs < newer.openedAtNs) return;
    this.faults.push(`two writers: ${older.id} wrote after ${newer.id} had opened the volume`);
  }

  async #until(what: string, condition: () => boolean, patienceMs: number): Promise<void> {
    const look = () => {
      if (this.faults.length > 0) throw new NotWorthWaiting(this.#faultsTold());
      return condition() || new NotYet(`acknowledged is ${this.acknowledged}`);
    };
    await until(what, look, { patienceMs });
  }
}

/**
 * Outside every volume: remembers what writers (writer.ts) have acknowledged, and holds it against what they
 * find later.
 */
export class WriterCollector {
  readonly port: number;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #talking = new Map<Socket, WriterHistory>();
  readonly #histories = new Map<string, WriterHistory>();

  private constructor(server: Server, port: number) {
    this.#server = server;
    this.port = port;
    server.on('connection', (socket) => this.#serve(socket));
  }

  static async open(t: Pick<TestContext, 'after'>, host = '127.0.0.1'): Promise<WriterCollector> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, host, resolve));
    const address = server.address();
    const collector = new WriterCollector(
      server,
      typeof address === 'object' && address !== null ? address.port : 0,
    );
    t.after(() => collector.#close());
    return collector;
  }

  history(name: string): WriterHistory {
    const known = this.#histories.get(name);
    if (known) return known;
    const history = new WriterHistory(name);
    this.#histories.set(name, history);
    return history;
  }

  /** The machine's writer ends when its collector is gone. */
  hangUp(name: string): void {
    for (const [socket, history] of this.#talking) if (history.name === name) socket.destroy();
  }

  #serve(socket: Socket): void {
    this.#sockets.add(socket);
    socket.setNoDelay(true);
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#sockets.delete(socket);
      this.#talking.delete(socket);
    });
    let history: WriterHistory | null = null;
    let incarnation: Incarnation | null = null;
    const lines = createInterface(socket);
    lines.on('error', () => {});
    lines.on('line', (line) => {
      const message = JSON.parse(line) as WriterHello | WriterAck;
      if (message.kind === 'hello') {
        history = this.history(message.name);
        this.#talking.set(socket, history);
        incarnation = history.hello(message);
      } else if (history && incarnation) {
        history.ack(incarnation, message);
      }
      socket.write('.');
    });
  }

  async #close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

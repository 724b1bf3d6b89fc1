import pg from 'pg';
import { patient } from '../test/support/patience.ts';

/**
 * The clients of the demo. Each commits numbers one after the other, remembers every number whose commit was
 * acknowledged, and connects again when the connection breaks, as clients do. A number whose commit was not
 * acknowledged is not tried again: it may be there or not, and either is right.
 */
export type ClientReport = {
  acknowledged: number[];
  /** Longest time between two acknowledgements, and when it began (wall clock). */
  longestGapMs: number;
  longestGapAtMs: number;
  reconnects: number;
};

/** Between two commits, and between two tries to connect, in milliseconds. */
export type Pauses = { commitMs: number; connectMs: number };
/** As a gap is to be measured. */
const BUSY: Pauses = { commitMs: 2, connectMs: 5 };

export class CommitClient {
  readonly #commit: (number: number) => Promise<void>;
  readonly #close: () => Promise<void>;
  readonly #report: ClientReport = { acknowledged: [], longestGapMs: 0, longestGapAtMs: 0, reconnects: 0 };
  readonly #pauses: Pauses;
  #stopped = false;
  #done: Promise<void> | null = null;

  constructor(options: {
    commit: (number: number) => Promise<void>;
    close: () => Promise<void>;
    pauses: Pauses;
  }) {
    this.#commit = options.commit;
    this.#close = options.close;
    this.#pauses = options.pauses;
  }

  start(): void {
    this.#done = this.#run();
  }

  async stop(): Promise<ClientReport> {
    this.#stopped = true;
    await this.#done;
    await this.#close();
    return this.#report;
  }

  get acknowledged(): number {
    return this.#report.acknowledged.length;
  }

  /** Forgets the gaps so far: what comes next is measured on its own. */
  resetGap(): void {
    this.#report.longestGapMs = 0;
  }

  async #run(): Promise<void> {
    let lastMs = Date.now();
    for (let number = 1; !this.#stopped; number++) {
      try {
        await this.#commit(number);
        const nowMs = Date.now();
        if (nowMs - lastMs > this.#report.longestGapMs) {
          this.#report.longestGapMs = nowMs - lastMs;
          this.#report.longestGapAtMs = lastMs;
        }
        lastMs = nowMs;
        this.#report.acknowledged.push(number);
        await sleep(this.#pauses.commitMs);
      } catch {
        this.#report.reconnects += 1;
        await sleep(this.#pauses.connectMs);
      }
    }
  }
}

/** Commits rows `(number)` into PostgreSQL. */
export function postgresClient(port: number, pauses: Pauses = BUSY): CommitClient {
  let client: pg.Client | null = null;
  const connect = async () => {
    const fresh = new pg.Client({
      host: '127.0.0.1',
      port,
      user: 'postgres',
      database: 'postgres',
      connectionTimeoutMillis: 2_000,
      query_timeout: patient(10_000),
    });
    fresh.on('error', () => {
      client = null;
    });
    await fresh.connect();
    return fresh;
  };
  return new CommitClient({
    pauses,
    commit: async (number) => {
      client ??= await connect();
      try {
        await client.query('INSERT INTO numbers (number) VALUES ($1)', [number]);
      } catch (error) {
        const broken = client;
        client = null;
        await broken?.end().catch(() => {});
        throw error;
      }
    },
    close: async () => {
      await client?.end().catch(() => {});
    },
  });
}

/** Makes the table; retries until the server takes connections. */
export async function preparePostgres(port: number): Promise<void> {
  await withPostgres(port, async (client) => {
    await client.query(
      'CREATE TABLE IF NOT EXISTS numbers (number bigint PRIMARY KEY, at timestamptz DEFAULT now())',
    );
    await client.query('CREATE TABLE IF NOT EXISTS ballast (id bigint PRIMARY KEY, filler text)');
    await client.query(
      'INSERT INTO ballast SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 40000) i ON CONFLICT DO NOTHING',
    );
  });
}

/** Numbers that are in the table, and whether an index scan and a sequential scan of everything agree. */
export async function readPostgres(port: number): Promise<{ numbers: Set<number>; ballast: number }> {
  let numbers = new Set<number>();
  let ballast = 0;
  await withPostgres(port, async (client) => {
    const rows = await client.query<{ number: string }>('SELECT number FROM numbers');
    numbers = new Set(rows.rows.map((row) => Number(row.number)));
    const filler = await client.query<{ count: string }>(
      'SELECT count(*) AS count FROM ballast WHERE filler = repeat(md5(id::text), 32)',
    );
    ballast = Number(filler.rows[0]?.count ?? 0);
  });
  return { numbers, ballast };
}

async function withPostgres(port: number, act: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ host: '127.0.0.1', port, user: 'postgres', database: 'postgres' });
  await client.connect();
  try {
    await act(client);
  } finally {
    await client.end();
  }
}

/** Commits numbers into the ledger machine. */
export function ledgerClient(port: number): CommitClient {
  return new CommitClient({
    pauses: { ...BUSY, commitMs: 5 },
    commit: async (number) => {
      const response = await fetch(`http://127.0.0.1:${port}/${number}`, {
        method: 'POST',
        signal: AbortSignal.timeout(patient(10_000)),
      });
      if (!response.ok || (await response.text()) !== 'ok') throw new Error(`status ${response.status}`);
    },
    close: async () => {},
  });
}

export async function getJson<Value>(port: number, path: string, timeoutMs = 120_000): Promise<Value> {
  const response = await fetch(`http://127.0.0.1:${port}${path}`, {
    signal: AbortSignal.timeout(patient(timeoutMs)),
  });
  return (await response.json()) as Value;
}

function sleep(delayMs: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, delayMs));
}

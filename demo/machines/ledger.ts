/**
 * A ledger in SQLite on the volume: `POST /<number>` commits that number durably and then answers; `GET /`
 * answers what is there. The client outside knows which numbers were answered, so it knows which must never
 * be missing.
 *   node ledger.ts FOLDER PORT
 */
import { createServer } from 'node:http';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';

const [folder, port] = process.argv.slice(2);
if (!folder || !port) throw new Error('usage: ledger.ts FOLDER PORT');

const database = new DatabaseSync(join(folder, 'ledger.sqlite'));
database.exec('PRAGMA journal_mode = WAL');
database.exec('PRAGMA synchronous = FULL');
database.exec(
  'CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, written_at_ms INTEGER NOT NULL) STRICT',
);
const insert = database.prepare('INSERT OR IGNORE INTO entries (number, written_at_ms) VALUES (?, ?)');
const count = database.prepare('SELECT count(*) AS count, coalesce(max(number), 0) AS last FROM entries');
const numbers = database.prepare('SELECT number FROM entries ORDER BY number');
const check = database.prepare('PRAGMA integrity_check');

createServer((request, response) => {
  if (request.method === 'POST') {
    const number = Number(request.url?.slice(1));
    if (!Number.isSafeInteger(number)) {
      response.writeHead(400).end();
      return;
    }
    insert.run(number, Date.now());
    response.end('ok');
  } else if (request.url === '/numbers') {
    response.setHeader('content-type', 'application/json');
    const rows = numbers.all() as { number: number }[];
    response.end(
      JSON.stringify({ numbers: rows.map((row) => row.number), integrity: check.get()?.integrity_check }),
    );
  } else {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(count.get()));
  }
}).listen(Number(port), '127.0.0.1');

process.on('SIGTERM', () => {
  database.close();
  process.exit(0);
});

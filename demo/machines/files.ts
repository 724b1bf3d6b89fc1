/**
 * Writes files of random bytes whose name is their SHA-256, and reads them back, over and over. Times single
 * reads of 4 KiB that go around the page cache, which is what a guest feels of a volume that is still
 * arriving.
 *   node files.ts FOLDER PORT FILES_MAX FILE_BYTES
 * `GET /` answers counts; `GET /latencies` every timed read as [wall clock in ms, duration in ms]; `GET
 * /verify` reads every file and answers which do not match.
 */
import { createHash, randomBytes, randomInt } from 'node:crypto';
import { constants, ftruncateSync, openSync, unlinkSync } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, readFile, rename } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { mapShared } from '../../src/sys/shared-mapping.ts';

const [root, port, filesMax, fileBytes] = process.argv.slice(2);
if (!root || !port || !filesMax || !fileBytes)
  throw new Error('usage: files.ts FOLDER PORT FILES_MAX FILE_BYTES');
const folder = join(root, 'files');
const sizeBytes = Number(fileBytes);
const SAMPLES_MAX = 200_000;

await mkdir(folder, { recursive: true });
const names = (await readdir(folder)).filter((name) => /^[0-9a-f]{64}$/.test(name));
const counts = { files: names.length, written: 0, read: 0, mismatches: 0 };
const latencies: [atMs: number, durationMs: number][] = [];

/** A buffer that O_DIRECT accepts: it begins at a page border, as mappings do. */
function alignedBuffer(bytes: number): Uint8Array {
  const path = join(tmpdir(), `aligned-${process.pid}`);
  const fd = openSync(path, 'w+');
  ftruncateSync(fd, bytes);
  unlinkSync(path);
  return mapShared(fd, bytes).view;
}

async function matches(name: string): Promise<boolean> {
  const bytes = await readFile(join(folder, name));
  return createHash('sha256').update(bytes).digest('hex') === name;
}

async function writeOne(): Promise<void> {
  const bytes = randomBytes(sizeBytes);
  const name = createHash('sha256').update(bytes).digest('hex');
  const file = await open(join(folder, `.${name}`), 'w');
  await file.writeFile(bytes);
  await file.sync();
  await file.close();
  await rename(join(folder, `.${name}`), join(folder, name));
  const directory = await open(folder, 'r');
  await directory.sync();
  await directory.close();
  names.push(name);
  counts.files = names.length;
  counts.written += 1;
}

async function timedRead(buffer: Uint8Array): Promise<void> {
  const name = names[randomInt(names.length)]!;
  let file: FileHandle;
  try {
    file = await open(join(folder, name), constants.O_RDONLY | constants.O_DIRECT);
  } catch {
    return;
  }
  const offset = randomInt(Math.max(1, Math.floor(sizeBytes / 4096))) * 4096;
  const atMs = Date.now();
  const startedMs = performance.now();
  try {
    await file.read(buffer, 0, 4096, offset);
    latencies.push([atMs, performance.now() - startedMs]);
    if (latencies.length > SAMPLES_MAX) latencies.shift();
  } finally {
    await file.close();
  }
  counts.read += 1;
}

async function work(): Promise<void> {
  const buffer = alignedBuffer(4096);
  for (let round = 0; ; round++) {
    if (names.length < Number(filesMax)) await writeOne();
    for (let read = 0; read < 4; read++) await timedRead(buffer);
    if (round % 16 === 0 && !(await matches(names[randomInt(names.length)]!))) counts.mismatches += 1;
    await new Promise((resolve) => setTimeout(resolve, names.length < Number(filesMax) ? 2 : 10));
  }
}

createServer((request, response) => {
  const answer = (value: unknown) => {
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(value));
  };
  if (request.url === '/latencies') return answer(latencies);
  if (request.url !== '/verify') return answer(counts);
  void (async () => {
    const all = (await readdir(folder)).filter((name) => /^[0-9a-f]{64}$/.test(name));
    const bad: string[] = [];
    for (const name of all) if (!(await matches(name))) bad.push(name);
    answer({ files: all.length, bad });
  })();
}).listen(Number(port), '127.0.0.1');

process.on('SIGTERM', () => process.exit(0));
await work();

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ReadSource, walkProblems, wordProblems } from './walks.ts';

const read: ReadSource = (path) =>
  ({
    'cli/drain.ts': 'export async function drain() {}',
    'api/client.ts': 'export class ApiClient {}',
    'api/server.ts': 'export class Server {}',
    'contract/peer.ts': 'export type Peer = {};\nexport const PEER = {};',
  })[path];

const walk = (...rows: string[]) =>
  walkProblems(
    `## Walk 1: a\n\n| open | what | behind |\n|---|---|---|\n${rows.join('\n')}\n\n## Words\n`,
    read,
  );

test('a walk names files that are there, with what is said of them, and one of a room up to a crossing', () => {
  const cli = '| `cli/drain.ts` | `drain` asks | |';
  assert.deepEqual(walk(cli, '| `api/client.ts` | `ApiClient`, and `server.ts` | `server.ts` |'), []);
  assert.deepEqual(walk('| `api/client.ts` | | |', '| *the wire* | | |', '| `api/server.ts` | | |'), []);
  assert.deepEqual(walk(cli, '| `api/client.ts` | | |', '| `api/server.ts` | | |'), [
    'Walk 1: api/server.ts is the second file of api before a crossing',
  ]);
  assert.deepEqual(walk('| `api/gone.ts` | | |'), ['Walk 1: there is no src/api/gone.ts']);
  assert.deepEqual(walk('| `api/client.ts` | | `gone.ts` |'), ['Walk 1: there is no src/api/gone.ts']);
  assert.deepEqual(walk('| `api/client.ts` | `OldClient` asks | |'), [
    'Walk 1: OldClient is not in api/client.ts',
  ]);
  assert.deepEqual(walk('| `api/client.ts` | then `server.ts` | |'), [
    'Walk 1: server.ts is not in api/client.ts',
  ]);
  assert.deepEqual(walk('| `api/client.ts`, `cli/drain.ts` | | |'), [
    'Walk 1: one file a row, not `api/client.ts`, `cli/drain.ts`',
  ]);
  assert.deepEqual(walk(), ['Walk 1: it comes past no file']);
  assert.deepEqual(walkProblems('# Start here\n', read), ['docs/start-here.md: there is no walk']);
});

const words = (...rows: string[]) =>
  wordProblems(
    `## Words\n\n| word | meaning | in the code |\n|---|---|---|\n${rows.join('\n')}\n\n## Rest\n`,
    read,
  );

test('a word has one row, and its types are where it says', () => {
  const peer = '| peer | another worker | `Peer`, `PEER` (contract/peer.ts) |';
  assert.deepEqual(words(peer, '| source, target | the two workers of a move | |'), []);
  assert.deepEqual(words(peer, '| client, peer | who is connected | |'), [
    'ARCHITECTURE.md: peer has two meanings',
  ]);
  assert.deepEqual(words('| peer | another worker | `HttpPeer` (contract/peer.ts) |'), [
    'ARCHITECTURE.md: peer: src/contract/peer.ts declares no HttpPeer',
  ]);
  assert.deepEqual(words('| peer | another worker | `Peer` (api/peer.ts) |'), [
    'ARCHITECTURE.md: peer: there is no src/api/peer.ts',
  ]);
  assert.deepEqual(words('| peer | another worker | `Peer` |'), ['ARCHITECTURE.md: peer: where is Peer?']);
  assert.deepEqual(wordProblems('# The house\n', read), ['ARCHITECTURE.md: there are no words']);
});

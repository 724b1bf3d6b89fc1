import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { OfferRequest, PlacementRequest } from './peer.ts';
import { chooseOffer, evaluateOffer, type HostLoad } from './placement.ts';

const GIB = 2 ** 30;

function machine(id: string, more: Partial<PlacementRequest> = {}): PlacementRequest {
  return {
    machineId: id,
    machineName: id,
    group: null,
    memoryBytes: GIB,
    cpus: 1,
    volumeLengthBytes: 100 * GIB,
    volumeUsedBytes: GIB,
    ...more,
  };
}

function host(worker: string, more: Partial<HostLoad> = {}): HostLoad {
  return {
    worker,
    draining: false,
    tls: false,
    memoryBytes: 8 * GIB,
    cpus: 4,
    freeDiskBytes: 50 * GIB,
    totalDiskBytes: 100 * GIB,
    placed: [],
    ...more,
  };
}

function request(more: Partial<OfferRequest> = {}): OfferRequest {
  return { sourceWorker: 'w1', machine: machine('m'), planned: [], ...more };
}

test('a sparse volume counts by what it holds, not by its length', () => {
  assert.equal(evaluateOffer(host('w2', { freeDiskBytes: 2 * GIB }), request()).accepted, true);
  const full = evaluateOffer(host('w2', { freeDiskBytes: GIB }), request());
  assert.equal(full.accepted, false);
  assert.match(full.reason, /disk: needs 1126 MiB, has 768 MiB/);
});

test('a draining worker, the source itself, and a worker without memory or cpus refuse with the reason', () => {
  assert.match(evaluateOffer(host('w2', { draining: true }), request()).reason, /draining/);
  assert.match(evaluateOffer(host('w1'), request()).reason, /leaves/);
  const placed = Array.from({ length: 8 }, (_, index) => machine(`p${index}`));
  assert.match(evaluateOffer(host('w2', { placed }), request()).reason, /memory: needs 1024 MiB, has 0 MiB/);
  const busy = Array.from({ length: 16 }, (_, index) => machine(`p${index}`, { memoryBytes: 0 }));
  assert.match(evaluateOffer(host('w2', { placed: busy }), request()).reason, /cpus: needs 1, has 0.00/);
});

test('machines that a plan has put there count, the machine itself does not count twice', () => {
  const planned = Array.from({ length: 8 }, (_, index) => machine(`p${index}`));
  assert.equal(evaluateOffer(host('w2'), request({ planned })).accepted, false);
  const itself = Array.from({ length: 8 }, () => machine('m'));
  assert.equal(evaluateOffer(host('w2', { placed: itself }), request()).accepted, true);
});

test('anti-affinity goes before room, and is given up only when there is no other place', () => {
  const grouped = request({ machine: machine('m', { group: 'db' }) });
  const withMember = evaluateOffer(host('w2', { placed: [machine('x', { group: 'db' })] }), grouped);
  const tight = evaluateOffer(host('w3', { memoryBytes: GIB }), grouped);
  const both = chooseOffer([withMember, tight]);
  assert.equal(both.chosen?.worker, 'w3');
  assert.equal(chooseOffer([withMember]).chosen?.worker, 'w2');
});

test('no offer: the reasons of all are kept', () => {
  const result = chooseOffer([
    evaluateOffer(host('w2', { draining: true }), request()),
    evaluateOffer(host('w3', { freeDiskBytes: 0 }), request()),
  ]);
  assert.equal(result.chosen, null);
  assert.deepEqual(result.chosen === null && result.reasons.map(({ worker }) => worker), ['w2', 'w3']);
});

test('equal offers are decided by name, whatever the order of the answers', () => {
  const one = evaluateOffer(host('w2'), request());
  const other = evaluateOffer(host('w3'), request());
  assert.equal(chooseOffer([one, other]).chosen?.worker, 'w2');
  assert.equal(chooseOffer([other, one]).chosen?.worker, 'w2');
});

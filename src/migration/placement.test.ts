import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { EncryptionNeeds, OfferRequest, PlacementRequest } from '../contract/peer.ts';
import type { HostCapabilities } from '../crypt/geometry.ts';
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
    plane: 'userspace',
    holdsFileOf: () => true,
    lacks: (plane) => (plane === 'kernel' ? 'dm_clone: this kernel has no dm_clone' : null),
    encryption: null,
    memoryBytes: 8 * GIB,
    cpus: 4,
    freeDiskBytes: 50 * GIB,
    reserved: [],
    totalDiskBytes: 100 * GIB,
    placed: [],
    ...more,
  };
}

function request(more: Partial<OfferRequest> = {}): OfferRequest {
  return { sourceWorker: 'w1', machine: machine('m'), planned: [], ...more };
}

test('a volume that the filesystem of a host cannot hold goes to another', () => {
  const asked: number[] = [];
  const short = host('w2', {
    holdsFileOf: (lengthBytes) => {
      asked.push(lengthBytes);
      return lengthBytes < 16 * 1024 * GIB;
    },
  });
  assert.equal(evaluateOffer(short, request()).accepted, true);
  const large = request({ machine: machine('m', { volumeLengthBytes: 16 * 1024 * GIB }) });
  const offer = evaluateOffer(short, large);
  assert.equal(offer.accepted, false);
  assert.match(offer.reason, /filesystem of its volumes cannot hold a file of 16777216 MiB/);
  assert.deepEqual(asked, [100 * GIB, 16 * 1024 * GIB]);
  assert.equal(evaluateOffer(host('w3'), large).accepted, true);
});

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

test('who asks for nothing has room where more was promised than there is', () => {
  const placed = [machine('x', { memoryBytes: 1024 * GIB, cpus: 1000 })];
  const nothing = request({ machine: machine('m', { memoryBytes: 0, cpus: 0 }) });
  assert.equal(evaluateOffer(host('w2', { placed }), nothing).accepted, true);
  const one = request({ machine: machine('m', { memoryBytes: 0, cpus: 1 }) });
  assert.match(evaluateOffer(host('w2', { placed }), one).reason, /^cpus: needs 1, has 0.00$/);
});

test('a worker refuses what its host cannot do in the plane that the volume would have there', () => {
  const volume = request();
  const kernelOnly: Partial<HostLoad> = {
    plane: 'kernel',
    lacks: (plane) => (plane === 'userspace' ? 'FUSE resend: Linux 6.1 forgets' : null),
  };
  assert.equal(evaluateOffer(host('w2', kernelOnly), volume).accepted, true);
  const other = request({ machine: machine('m', { userspaceOnly: 'is an NBD socket for its guest' }) });
  assert.equal(
    evaluateOffer(host('w2', kernelOnly), other).reason,
    'cannot do the userspace plane, which the volume needs because it is an NBD socket for its guest: FUSE resend: Linux 6.1 forgets',
  );
  assert.equal(evaluateOffer(host('w2', { ...kernelOnly, lacks: host('').lacks }), other).accepted, true);
  // A module that went away since the worker began.
  const broken = evaluateOffer(host('w2', { plane: 'kernel' }), volume);
  assert.equal(broken.reason, 'cannot do the kernel plane: dm_clone: this kernel has no dm_clone');
  const bare = request({ machine: machine('m', { volumeLengthBytes: 0 }) });
  assert.equal(evaluateOffer(host('w2', { plane: 'kernel' }), bare).accepted, true);
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

test('an encrypted volume goes only where it could be opened, and the reason has its name', () => {
  const capabilities: HostCapabilities = {
    ciphers: ['aes-xts-plain64'],
    maxSectorBytes: 4096,
    kdfLimits: { memoryKib: 256 * 1024, memoryPassesKib: 2 ** 25, lanes: 16, iterations: 10 ** 8 },
  };
  const geometry: EncryptionNeeds['geometry'] = {
    uuid: 'u-1',
    headerBytes: 16384,
    headerAreaBytes: 548_864,
    dataOffsetBytes: 0,
    dataLengthBytes: null,
    sectorBytes: 4096,
    cipher: 'aes-xts-plain64',
    keyBytes: 64,
    slots: [{ slot: 0, kdf: 'argon2id', memoryKib: 65536, passes: 3, lanes: 4 }],
  };
  const offer = (
    change: Partial<EncryptionNeeds['geometry']>,
    encryption: HostCapabilities | null = capabilities,
  ) =>
    evaluateOffer(
      host('w2', { encryption }),
      request({
        machine: machine('m', { encryption: { uuid: 'u-1', geometry: { ...geometry, ...change } } }),
      }),
    );
  assert.equal(offer({}).accepted, true);
  const [slot] = geometry.slots;
  for (const [change, reason] of [
    [{ uuid: 'u-2' }, /uuid: the header is that of u-2, the volume is u-1/],
    [{ cipher: 'serpent-xts-plain64' }, /cipher: this host has no serpent-xts-plain64/],
    [{ sectorBytes: 8192 }, /sector size: the volume has sectors of 8192 bytes/],
    [{ dataOffsetBytes: 2 ** 24 }, /length: the header leaves/],
    [{ dataLengthBytes: 4096 }, /length: the header leaves 4096 bytes/],
    [{ slots: [] }, /key slots: no key slot opens the volume/],
    [
      { slots: [{ ...slot!, memoryKib: 512 * 1024 }] },
      /key slots: slot 0: .*memoryKib 524288, this host allows 262144/,
    ],
  ] as [Partial<EncryptionNeeds['geometry']>, RegExp][]) {
    const refused = offer(change);
    assert.equal(refused.accepted, false);
    assert.match(refused.reason, reason);
  }
  assert.match(offer({}, null).reason, /has no keys/);
});

test('a limit that a host cannot keep is a reason not to take a machine that has it', () => {
  const offer = (limitsMissing: HostLoad['limitsMissing'], more: Partial<PlacementRequest>) =>
    evaluateOffer(
      host('a', limitsMissing ? { limitsMissing } : {}),
      request({ machine: machine('m', more) }),
    );
  assert.match(offer(['memory'], {}).reason, /memory: it has no cgroup controller/);
  assert.match(offer(['cpu'], {}).reason, /cpu: it has no cgroup controller/);
  assert.equal(offer(['memory', 'cpu'], { memoryBytes: 0, cpus: 0 }).accepted, true);
  assert.equal(offer(undefined, {}).accepted, true);
});

test('a volume that is on its way is not in its own way, and in that of all others', () => {
  const arriving = host('w2', {
    freeDiskBytes: 2 * GIB,
    reserved: [{ machineId: 'm', bytes: Math.ceil(1.1 * GIB) }],
  });
  assert.equal(evaluateOffer(arriving, request()).accepted, true, 'asked again after its run had begun');
  const other = evaluateOffer(arriving, request({ machine: machine('other') }));
  assert.match(other.reason, /disk: needs 1126 MiB, has \d+ MiB/);
  const importing = host('w2', { ...arriving, reserved: [{ machineId: null, bytes: Math.ceil(1.1 * GIB) }] });
  assert.equal(evaluateOffer(importing, request()).accepted, false);
});

test('a worker that failed the machine of late goes behind all others, and before none', () => {
  const offers = ['w2', 'w3'].map((worker) =>
    evaluateOffer(host(worker, { memoryBytes: worker === 'w2' ? 64 * GIB : 4 * GIB }), request()),
  );
  assert.equal(chooseOffer(offers).chosen?.worker, 'w2');
  const failed = new Map([['w2', 'its folder is immutable']]);
  assert.equal(chooseOffer(offers, failed).chosen?.worker, 'w3');
  assert.equal(chooseOffer(offers.slice(0, 1), failed).chosen?.worker, 'w2');
});

test('memory for the map of a clone is promised like disk, and a long volume that is nearly empty needs little', () => {
  const MIB = 2 ** 20;
  const maps = { dir: '/dev/shm', freeBytes: 100 * MIB, reserved: [{ machineId: 'other', bytes: 60 * MIB }] };
  const full = machine('m', { volumeLengthBytes: 1024 * GIB, volumeUsedBytes: 40 * GIB });
  const offer = evaluateOffer(host('w2', { maps }), request({ machine: full }));
  assert.equal(offer.accepted, false);
  assert.match(offer.reason, /^memory: its map of blocks needs 64 MiB in \/dev\/shm, which has 40 MiB/);
  const enough = { ...maps, reserved: [{ machineId: 'm', bytes: 60 * MIB }] };
  assert.ok(
    evaluateOffer(host('w2', { maps: enough }), request({ machine: full })).accepted,
    'it is its own',
  );
  const planned = [machine('n', { volumeLengthBytes: 1024 * GIB, volumeUsedBytes: GIB })];
  assert.match(
    evaluateOffer(host('w2', { maps: enough }), request({ machine: full, planned })).reason,
    /^memory: its map/,
  );
  const nearlyEmpty = machine('m', { volumeLengthBytes: 64 * 1024 * GIB, volumeUsedBytes: 8 * MIB });
  assert.ok(evaluateOffer(host('w2', { maps }), request({ machine: nearlyEmpty })).accepted);
  const inOnePiece = machine('m', { volumeLengthBytes: 64 * 1024 * GIB, volumeUsedBytes: 2 * GIB });
  const some = { ...maps, freeBytes: 400 * MIB };
  assert.ok(evaluateOffer(host('w2', { maps: some }), request({ machine: inOnePiece })).accepted);
  const noVolume = machine('m', { volumeLengthBytes: 0, volumeUsedBytes: 0 });
  const none = { ...maps, freeBytes: 0 };
  assert.ok(evaluateOffer(host('w2', { maps: none }), request({ machine: noVolume })).accepted);
  const kernel = host('w2', { maps: none, plane: 'kernel', lacks: () => null });
  assert.ok(evaluateOffer(kernel, request({ machine: full })).accepted, 'the kernel plane has no such map');
});

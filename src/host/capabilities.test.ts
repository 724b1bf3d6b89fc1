import assert from 'node:assert/strict';
import { test } from 'node:test';
import { assessHost, type HostFacts, KERNEL_PLANE_MODULES, missingFor } from './capabilities.ts';
import { readHostFacts } from './host-facts.ts';

const ALL: HostFacts = {
  kernelRelease: '6.12.41+deb13-amd64',
  isRoot: true,
  hasFuse: true,
  hasLoop: true,
  programs: new Set(['losetup', 'mount', 'unshare', 'setpriv', 'mkfs.ext4', 'dmsetup', 'iscsiadm', 'fstrim']),
  modulesPresent: new Set(KERNEL_PLANE_MODULES.map(({ module }) => module)),
  modulesLoadable: new Set(),
  hasConfigfs: true,
  iscsidRuns: true,
};

const missing = (plane: 'userspace' | 'kernel', facts: Partial<HostFacts>) =>
  missingFor(plane, assessHost({ ...ALL, ...facts }));

test('a host that has everything can do both', () => {
  assert.deepEqual(missing('userspace', {}), []);
  assert.deepEqual(missing('kernel', {}), []);
});

test("a kernel without dm-clone, as Debian's: one reason, and only for the kernel plane", () => {
  const modulesPresent = new Set([...ALL.modulesPresent].filter((name) => name !== 'dm_clone'));
  assert.deepEqual(missing('userspace', { modulesPresent }), []);
  const [reason, ...others] = missing('kernel', { modulesPresent });
  assert.deepEqual(others, []);
  assert.equal(reason?.what, 'dm_clone');
  assert.match(reason?.remedy ?? '', /CONFIG_DM_CLONE.*linux-source/);
  assert.deepEqual(missing('kernel', { modulesPresent, modulesLoadable: new Set(['dm_clone']) }), []);
});

test('a kernel before Linux 6.9 has the kernel plane only', () => {
  for (const kernelRelease of ['6.1.176', '5.10.0-8-amd64', '6.8.12', 'unknown']) {
    assert.deepEqual(missing('kernel', { kernelRelease }), []);
    assert.deepEqual(
      missing('userspace', { kernelRelease }).map(({ what }) => what),
      ['FUSE resend'],
    );
  }
  for (const kernelRelease of ['6.9.0', '6.18.44-fc', '7.0.1', '10.1']) {
    assert.deepEqual(missing('userspace', { kernelRelease }), []);
  }
});

test('every no says what would make it a yes', () => {
  const nothing: HostFacts = {
    kernelRelease: '4.19.0',
    isRoot: false,
    hasFuse: false,
    hasLoop: false,
    programs: new Set(),
    modulesPresent: new Set(),
    modulesLoadable: new Set(),
    hasConfigfs: false,
    iscsidRuns: false,
  };
  for (const { what, ok, detail, remedy } of assessHost(nothing)) {
    assert.equal(ok, false, what);
    assert.ok(detail.length > 0 && remedy !== null, what);
  }
});

test('the facts of this host can be read', () => {
  const facts = readHostFacts();
  assert.match(facts.kernelRelease, /^\d+\.\d+/);
  assert.ok(facts.programs.has('mount'));
});

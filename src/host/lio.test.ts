import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import type { ConfigTree } from './config-tree.ts';
import { Lio } from './lio.ts';

/**
 * configfs as far as it matters here: folders, attributes, links; only what is empty of objects and links
 * goes away.
 */
class MemoryTree implements ConfigTree {
  readonly objects = new Set<string>(['/t', '/t/core']);
  readonly attributes = new Map<string, string>();
  readonly links = new Set<string>();
  refuse: { path: RegExp; code: string } | null = null;

  async makeObject(path: string): Promise<void> {
    this.#check(path);
    this.#needParent(path);
    this.objects.add(path);
    // Default groups of the kernel.
    if (/\/tpgt_\d+$/.test(path))
      for (const name of ['np', 'lun', 'acls']) this.objects.add(`${path}/${name}`);
  }
  async removeObject(path: string): Promise<void> {
    const below = [...this.objects].filter((name) => name.startsWith(`${path}/`));
    const inUse = below.filter((name) => !/\/(np|lun|acls)$/.test(name));
    const linked = [...this.links].filter((name) => name.startsWith(`${path}/`));
    if (inUse.length + linked.length > 0)
      throw Object.assign(new Error(`${path} is not empty`), { code: 'ENOTEMPTY', path });
    for (const name of below) this.objects.delete(name);
    this.objects.delete(path);
    for (const name of this.attributes.keys()) if (name.startsWith(`${path}/`)) this.attributes.delete(name);
  }
  async write(path: string, value: string): Promise<void> {
    this.#check(path);
    this.attributes.set(path, value);
  }
  async read(path: string): Promise<string> {
    return this.attributes.get(path) ?? '0';
  }
  async list(path: string): Promise<string[]> {
    const names = [...this.objects, ...this.links]
      .filter((name) => name.startsWith(`${path}/`))
      .map((name) => name.slice(path.length + 1).split('/')[0]!);
    return [...new Set(names)].sort();
  }
  async link(_from: string, to: string): Promise<void> {
    this.#needParent(to);
    this.links.add(to);
  }
  async unlink(path: string): Promise<void> {
    this.links.delete(path);
  }

  #check(path: string): void {
    if (this.refuse?.path.test(path))
      throw Object.assign(new Error(this.refuse.code), { code: this.refuse.code, path });
  }
  #needParent(path: string): void {
    const parent = path.slice(0, path.lastIndexOf('/'));
    if (!this.objects.has(parent)) throw Object.assign(new Error(`no ${parent}`), { code: 'ENOENT', path });
  }
}

const SHARE = {
  targetIqn: 'iqn.2026-11.dev.godwit:v.g1',
  host: '10.0.0.1',
  port: 3260,
  initiatorIqn: 'iqn.2026-11.dev.godwit:worker.b.v',
  chapUser: 'v',
  chapSecret: 'secret-secret-secret',
};
const DISK = { device: '/dev/mapper/godwit-v-export', serial: 'v.1' };
const TPG = `/t/iscsi/${SHARE.targetIqn}/tpgt_1`;

test('one initiator, with CHAP, that may only read', async () => {
  const tree = new MemoryTree();
  const lio = new Lio(tree, '/t');
  await lio.open(SHARE);
  await lio.show(SHARE, DISK);
  const acl = `${TPG}/acls/${SHARE.initiatorIqn}`;
  assert.equal(tree.attributes.get(`${TPG}/attrib/authentication`), '1');
  assert.equal(tree.attributes.get(`${TPG}/attrib/generate_node_acls`), '0');
  assert.equal(tree.attributes.get(`${acl}/auth/password`), SHARE.chapSecret);
  assert.equal(tree.attributes.get(`${acl}/lun_0/write_protect`), '1');
  assert.ok(tree.objects.has(`${TPG}/np/10.0.0.1:3260`));
  const control = [...tree.attributes].find(([name]) => name.endsWith('/control'));
  assert.equal(control?.[1], 'udev_path=/dev/mapper/godwit-v-export,readonly=1');
  assert.equal([...tree.attributes].find(([name]) => name.endsWith('vpd_unit_serial'))?.[1], 'v.1');
});

test('closing takes all of it away, however much of it is there, and twice', async () => {
  const tree = new MemoryTree();
  const lio = new Lio(tree, '/t');
  await lio.open(SHARE);
  await lio.show(SHARE, DISK);
  await lio.show(SHARE, DISK);
  await lio.close(SHARE.targetIqn);
  await lio.close(SHARE.targetIqn);
  assert.deepEqual([...tree.objects].sort(), ['/t', '/t/core', '/t/iscsi']);
  assert.equal(tree.links.size, 0);

  tree.refuse = { path: /acls/, code: 'EINVAL' };
  await assert.rejects(lio.open(SHARE), (error) => isGodwitError(error, 'HOST_LIO_FAILED'));
  tree.refuse = null;
  await lio.close(SHARE.targetIqn);
  assert.deepEqual([...tree.objects].sort(), ['/t', '/t/core', '/t/iscsi']);
});

test('a port that another program has, and a kernel without LIO', async () => {
  const tree = new MemoryTree();
  tree.refuse = { path: /\/np\//, code: 'EADDRINUSE' };
  await assert.rejects(new Lio(tree, '/t').open(SHARE), (error) => {
    assert.ok(isGodwitError(error, 'HOST_LIO_FAILED'));
    assert.match(error.nextAction, /port/);
    return true;
  });
  const none = new MemoryTree();
  none.objects.clear();
  await assert.rejects(new Lio(none, '/t').open(SHARE), (error) => isGodwitError(error, 'HOST_LIO_MISSING'));
});

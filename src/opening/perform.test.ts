import assert from 'node:assert/strict';
import { test } from 'node:test';
import { isGodwitError } from '../base/errors.ts';
import { type AnswersOf, performOperation, type VolumeAnswers } from './perform.ts';
import type { VolumeServerStatus } from './status.ts';

const status = { role: 'serve', volumeId: 'v_1' } as VolumeServerStatus;

test('an opening is asked what its role has, and refuses the rest by name', async () => {
  const flushed: unknown[] = [];
  const served: AnswersOf<'serve', 'userspace'> = {
    status: () => status,
    flush: async () => void flushed.push('flush'),
  };
  assert.equal(await performOperation(served, 'status', {}), status);
  assert.deepEqual(await performOperation(served, 'flush', 'anything'), {}, 'an answer of nothing is said');
  assert.deepEqual(flushed, ['flush']);
  for (const op of ['seal', 'grant', 'toString', '__proto__', ''])
    await assert.rejects(
      performOperation(served, op, {}),
      (error) => isGodwitError(error, 'VOLUME_UNKNOWN_OP') && error.values.op === op,
    );
});

test('arguments are read before anybody is asked', async () => {
  const asked: unknown[] = [];
  const answers: VolumeAnswers = {
    activate: (access) => void asked.push(access),
    room: (leaving) => void asked.push(leaving),
    grant: (grant) => void asked.push(grant),
    revoke: (initiatorIqn) => void asked.push(initiatorIqn),
    owed: (page) => {
      asked.push(page);
      return { ranges: [], next: null };
    },
  };
  const grant = { initiatorIqn: 'i', chapUser: 'u', chapSecret: 'twelve bytes', generation: 1 };
  const bad: [op: string, args: unknown][] = [
    ['activate', {}],
    ['activate', { access: 'all' }],
    ['activate', null],
    ['room', { leaving: 1 }],
    ['grant', { ...grant, chapSecret: 'short' }],
    ['revoke', {}],
    ['owed', { first: 0, blocks: 0, cursor: 0 }],
    ['owed', { first: 0, blocks: 1, cursor: -1 }],
  ];
  for (const [op, args] of bad)
    await assert.rejects(performOperation(answers, op, args), { code: 'VOLUME_BAD_SPEC' }, op);
  assert.deepEqual(asked, []);

  await performOperation(answers, 'activate', { access: 'writable' });
  await performOperation(answers, 'room', { leaving: true });
  await performOperation(answers, 'room', { leaving: true, stopped: false });
  await performOperation(answers, 'room', { leaving: false, stopped: true });
  await performOperation(answers, 'grant', { ...grant, more: 1 });
  await performOperation(answers, 'revoke', { initiatorIqn: 'i' });
  await performOperation(answers, 'owed', { first: 1, blocks: 2, cursor: 3 });
  const owed = { range: { first: 1, blocks: 2 }, cursor: 3 };
  assert.deepEqual(asked, ['writable', 'stopped', 'running', 'no', grant, 'i', owed]);
});

test('a backend that lacks an operation of its role, or has one too many, does not compile', () => {
  // @ts-expect-error no flush
  const short: AnswersOf<'serve', 'userspace'> = { status: () => status };
  const long: AnswersOf<'serve', 'userspace'> = {
    status: () => status,
    flush: () => {},
    // @ts-expect-error of the role attach
    seal: () => {},
  };
  const { grant }: Partial<AnswersOf<'export', 'userspace'>> = {};
  // @ts-expect-error the kernel's target has one grant, which it is opened with
  const { revoke }: Partial<AnswersOf<'export', 'kernel'>> = {};
  assert.deepEqual([Object.keys(short), Object.keys(long)].flat(), ['status', 'status', 'flush', 'seal']);
  assert.deepEqual([grant, revoke], [undefined, undefined]);
});

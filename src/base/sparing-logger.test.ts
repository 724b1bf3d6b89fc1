import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FakeClock } from '../../test/support/fake-clock.ts';
import type { Logger } from './logger.ts';
import { sparingLogger } from './sparing-logger.ts';

function collecting(lines: string[], fields: object = {}): Logger {
  const line = (level: string) => (more: object, message: string) => {
    lines.push(`${level} ${message} ${JSON.stringify({ ...fields, ...more })}`);
  };
  return {
    debug: line('debug'),
    info: line('info'),
    warn: line('warn'),
    error: line('error'),
    child: (more) => collecting(lines, { ...fields, ...more }),
  };
}

test('of one message some lines a minute are written, by whichever child, then how many there were', () => {
  const clock = new FakeClock();
  const lines: string[] = [];
  const logger = sparingLogger(collecting(lines), clock);
  for (let index = 0; index < 1_000; index += 1) {
    logger.child({ peer: index }).warn({}, 'dropped');
    clock.advance(10);
  }
  assert.equal(lines.length, 50);
  assert.equal(lines[49], 'warn dropped {"peer":49}');
  logger.error({}, 'another');
  assert.equal(lines.at(-1), 'error another {}', 'each message has a count of its own');
  clock.advance(50_001);
  logger.warn({ peer: 'later' }, 'dropped');
  assert.deepEqual(lines.slice(51), [
    'warn more of the same {"message":"dropped","leftOut":950,"forMs":60001}',
    'warn dropped {"peer":"later"}',
  ]);
  clock.advance(120_000);
  logger.info({}, 'something');
  assert.deepEqual(lines.slice(53), ['info something {}']);
});

test('what is only looked at by who debugs is not counted', () => {
  const lines: string[] = [];
  const logger = sparingLogger(collecting(lines), new FakeClock());
  for (let index = 0; index < 100; index += 1) logger.debug({}, 'detail');
  assert.equal(lines.length, 100);
});
